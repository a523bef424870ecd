"""Ridge regression: scikit-learn's answers, and what is left out is left out exactly."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, THREADS, Array, each_of, eps, gaussian, spectrum, store
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import KFold

import dlscale
from dlscale import gallery
from dlscale.batch import run as jobs
from dlscale.engine.clusters import open_cluster
from dlscale.engine.grids import RowGrid
from dlscale.engine.plan import Grids
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import NonFiniteError, NumericalError, SpecError
from dlscale.linalg.ridge import tall
from dlscale.linalg.ridge.folds import from_contrasts, to_contrasts
from dlscale.linalg.ridge.kind import RidgeOptions, compute_ridge, plan_ridge
from dlscale.linalg.ridge.small import SmallProblem
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

PENALTIES = [1e-3, 0.1, 1.0, 30.0]
#: Tall, with folds of unequal size; nearly square, both ways; wide; one column; as few rows as there may be.
SHAPES = [(83, 7), (31, 30), (30, 30), (30, 31), (17, 90), (40, 1), (2, 5), (3, 2)]


def run(A: Any, B: Any, *, rows: int = 16, **options: Any) -> Outcome:
    """In blocks of a few rows, two of them a leaf."""
    inputs = Inputs({"matrix": open_matrix(A), "rhs": open_matrix(B, vectors=True)})
    chosen = RidgeOptions(**options)
    plan = plan_ridge(inputs, chosen, THREADS)
    n_rows = plan.rows.n_rows
    plan = replace(plan, grids=Grids(rows=RowGrid(n_rows, min(rows, n_rows), 2 * min(rows, n_rows))))
    with open_cluster(THREADS) as cluster:
        return compute_ridge(Run(cluster), inputs, chosen, plan)


def formula(A: Array, B: Array, penalty: float, *, intercept: bool) -> tuple[Array, Array]:
    """Coefficients and intercept by the SVD of all of A, in double precision."""
    wide = np.result_type(A.dtype, np.float64)
    a, b = (M.mean(axis=0, dtype=wide) if intercept else np.zeros(M.shape[1]) for M in (A, B))
    U, s, VH = np.linalg.svd(A - a, full_matrices=False)
    filters = np.divide(s, s**2 + penalty, out=np.zeros_like(s), where=s > s[0] * eps(A) * max(A.shape))
    W = VH.conj().T @ (filters[:, None] * (U.conj().T @ (B - b)))
    return W, b - a @ W


def refitted(A: Array, B: Array, penalty: float, folds: Any, *, intercept: bool) -> Array:
    """Mean squares of what is left of rows by fits without them."""
    total = np.zeros(B.shape[1])
    for train, test in folds:
        W, c = formula(A[train], B[train], penalty, intercept=intercept)
        total += (np.abs(B[test] - A[test] @ W - c) ** 2).sum(axis=0)
    return total / len(A)


def each_row(m: int) -> list[tuple[Array, Array]]:
    return [(np.delete(np.arange(m), i), np.array([i])) for i in range(m)]


@pytest.mark.parametrize("intercept", [True, False])
@each_of(dtype=DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, int], dtype: str, intercept: bool) -> None:
    A, B = gaussian(*shape, dtype) + 2, gaussian(shape[0], 3, dtype, seed=1) - 1
    outcome = run(A, B, penalties=PENALTIES, fit_intercept=intercept, path=True)
    assert outcome.certificate.passed, outcome.certificate
    arrays, unit = outcome.arrays, eps(A)
    for i, penalty in enumerate(PENALTIES):
        W, c = formula(A.astype("c16"), B.astype("c16"), penalty, intercept=intercept)
        condition = min(np.linalg.norm(A, 2) ** 2 / penalty, np.linalg.cond(A - intercept * A.mean(axis=0)) ** 2)
        np.testing.assert_allclose(arrays["path/coefficients"][i], W, atol=100 * unit * condition * np.abs(W).max())
        if arrays["path/coefficients"][i].tobytes() == arrays["coefficients"].tobytes():
            np.testing.assert_allclose(arrays["intercept"], c, atol=1000 * unit * condition * np.abs(W).max())
    assert arrays["coefficients"].dtype == A.dtype
    left_out = [refitted(A.astype("c16"), B.astype("c16"), a, each_row(len(A)), intercept=intercept) for a in PENALTIES]
    # The error is as sure as the leverages, which single precision rounds.
    np.testing.assert_allclose(arrays["path/errors"], left_out, rtol=1e-7 if A.dtype.char in "dD" else 0.05)
    assert outcome.estimates["penalty"] == PENALTIES[int(np.argmin(np.sum(left_out, axis=1)))]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", [(90, 8), (40, 25), (20, 60)], ids=str)
def test_the_choice_is_that_of_scikit_learn(shape: tuple[int, int], intercept: bool) -> None:
    A, b = gaussian(*shape) * np.linspace(0.1, 10, shape[1]) + 1, gaussian(shape[0], 1, seed=2)[:, 0]
    theirs = RidgeCV(PENALTIES, fit_intercept=intercept, store_cv_results=True).fit(A, b)
    ours = dlscale.ridge(A, b, penalties=PENALTIES, fit_intercept=intercept)
    assert ours.penalty == theirs.alpha_
    np.testing.assert_allclose(ours.errors[:, 0], theirs.cv_results_.mean(axis=0), rtol=1e-8)
    np.testing.assert_allclose(ours.coefficients, theirs.coef_, rtol=1e-9)
    np.testing.assert_allclose(ours.intercept, theirs.intercept_, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", [(83, 7), (31, 30), (30, 31), (20, 60)], ids=str)
@pytest.mark.parametrize("n_folds", [2, 5, 19])
def test_folds_are_those_of_scikit_learn(n_folds: int, shape: tuple[int, int], intercept: bool) -> None:
    A, B = gaussian(*shape) + 3, gaussian(shape[0], 2, seed=1) + 5
    outcome = run(A, B, penalties=[*PENALTIES, 0.0], fit_intercept=intercept, cv=n_folds)
    folds = list(KFold(n_folds).split(A))
    expected = [refitted(A, B, a, folds, intercept=intercept) for a in [*PENALTIES, 0.0]]
    np.testing.assert_allclose(outcome.arrays["path/errors"], expected, rtol=1e-9)
    assert outcome.certificate.passed


@pytest.mark.parametrize("shape", [(120, 20), (20, 120)], ids=str)
def test_columns_of_very_different_sizes(shape: tuple[int, int]) -> None:
    A = gaussian(*shape) * 10.0 ** np.linspace(-6, 6, shape[1])
    b = gaussian(shape[0], 1)[:, 0]
    for penalty in (1e-4, 1.0, 1e8):
        ours = dlscale.ridge(A, b, penalties=penalty)
        theirs = Ridge(penalty, solver="svd").fit(A, b)
        condition = np.linalg.norm(A, 2) / np.sqrt(penalty)
        unit = 10 * eps(A) * condition * np.linalg.norm(b)
        np.testing.assert_allclose(A @ ours.coefficients + ours.intercept, theirs.predict(A), atol=unit)


@pytest.mark.parametrize("shape", [(200, 12), (12, 200)], ids=str)
def test_a_large_offset_costs_no_digits(shape: tuple[int, int]) -> None:
    A, b = (np.round(gaussian(*size) * 1024) / 1024 for size in (shape, (shape[0], 1)))
    # 2^30 holds ten more bits behind the point than the entries need.
    near, far = (run(A + offset, b + offset, penalties=[0.5], cv="loo") for offset in (0.0, 2.0**30))
    np.testing.assert_allclose(far.arrays["coefficients"], near.arrays["coefficients"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(far.arrays["path/errors"], near.arrays["path/errors"], rtol=1e-6)
    assert far.certificate.passed


@pytest.mark.parametrize("shape", [(150, 20), (20, 150)], ids=str)
def test_the_condition_is_not_squared(shape: tuple[int, int]) -> None:
    """The least singular value and the root of the penalty are far below the root of eps, where a Gram matrix ends."""
    A, b = spectrum(gallery.geometric(20, 1e10), *shape), gaussian(shape[0], 1)
    penalty = 1e-20
    below = np.vstack([A, np.sqrt(penalty) * np.eye(shape[1])])
    exact = np.linalg.lstsq(below, np.vstack([b, np.zeros((shape[1], 1))]))[0]
    outcome = run(A, b, penalties=[penalty], fit_intercept=False)
    assert outcome.certificate.passed
    np.testing.assert_allclose(outcome.arrays["coefficients"], exact, atol=1e-4 * np.linalg.norm(exact))


@pytest.mark.parametrize("shape", [(90, 30), (30, 90)], ids=str)
def test_no_penalty_is_least_squares_of_minimum_norm(shape: tuple[int, int]) -> None:
    A, B = gallery.rank_deficient(*shape, 11), gaussian(shape[0], 2)
    outcome = run(A, B, penalties=0, fit_intercept=False, cv="none")
    np.testing.assert_allclose(outcome.arrays["coefficients"], np.linalg.lstsq(A, B, rcond=1e-10)[0], atol=1e-11)
    assert outcome.certificate.passed
    assert outcome.estimates["degrees_of_freedom"] == pytest.approx(11)


@pytest.mark.parametrize("power", [-200, 0, 170, 400])
@pytest.mark.parametrize("shape", [(60, 9), (9, 60)], ids=str)
def test_the_scale_changes_exponents_only(shape: tuple[int, int], power: int) -> None:
    A, B = gaussian(*shape), gaussian(shape[0], 2)
    plain = run(A, B, penalties=[0.25, 1.0])
    found = run(
        np.ldexp(A, power), np.ldexp(B, [power // 2, -power]), penalties=np.ldexp([0.25, 1.0], 2 * power).tolist(), path=True
    )
    assert found.certificate.passed
    expected = np.ldexp(plain.arrays["coefficients"], [power // 2 - power, -2 * power])
    chosen = [0.25, 1.0].index(plain.estimates["penalty"])
    np.testing.assert_allclose(found.arrays["path/coefficients"][chosen], expected, rtol=1e-13)


def test_a_penalty_that_is_out_of_range_is_refused() -> None:
    with pytest.raises(NumericalError, match="penalty 1e-300 is out of range beside the squares"):
        run(gaussian(20, 3) * 1e100, gaussian(20, 1), penalties=1e-300)


@pytest.mark.parametrize("A", [np.zeros((20, 3)), np.ones((20, 3)), np.zeros((3, 20))], ids=["zero", "constant", "wide zero"])
def test_a_matrix_that_tells_nothing_leaves_the_mean(A: Array) -> None:
    b = gaussian(len(A), 1)
    outcome = run(A, b, penalties=[0.0, 1.0])
    assert outcome.certificate.passed
    assert np.abs(outcome.arrays["coefficients"]).max() == 0
    np.testing.assert_allclose(outcome.arrays["intercept"], b.mean(axis=0))
    np.testing.assert_allclose(outcome.arrays["path/errors"], np.square(b - b.mean()).mean() * (len(A) / (len(A) - 1)) ** 2)


def test_many_right_hand_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than are reduced in one pass."""
    A, B = gaussian(150, 20), gaussian(150, 64)
    whole = [run(A, B, penalties=PENALTIES, cv=cv).arrays for cv in ("loo", 4)]
    monkeypatch.setattr(tall, "batch", lambda n: 10)
    for before, cv in zip(whole, ("loo", 4), strict=True):
        for name, array in run(A, B, penalties=PENALTIES, cv=cv).arrays.items():
            np.testing.assert_allclose(array, before[name], atol=1e-13)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_rows_with_leverages_near_one_in_many_blocks(dtype: str, intercept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In several leaves, with targets in several batches; among them rows that are far larger than others."""
    A, B = gaussian(31, 3, dtype) + 1e3, gaussian(31, 7, dtype, seed=1)
    A[[0, 13, 14, 30]] += 1e7 * gaussian(4, 3, dtype, seed=2)
    found = run(A, B, rows=2, penalties=[1e-3, 1e-1], fit_intercept=intercept).arrays["path/errors"]
    left_out = [refitted(A, B, a, each_row(len(A)), intercept=intercept) for a in (1e-3, 1e-1)]
    np.testing.assert_allclose(found, left_out, rtol=1e-6)
    monkeypatch.setattr(tall, "batch", lambda n: 3)
    again = run(A, B, rows=2, penalties=[1e-3, 1e-1], fit_intercept=intercept).arrays["path/errors"]
    np.testing.assert_allclose(again, found, rtol=1e-9)


@pytest.mark.parametrize("shape", [(80, 12), (12, 80)], ids=str)
def test_complex_targets_of_a_real_matrix(shape: tuple[int, int]) -> None:
    A, b = gaussian(*shape), gaussian(shape[0], 1, "c16")[:, 0]
    found = dlscale.ridge(A, b, penalties=2.0)
    parts = [dlscale.ridge(A, part.copy(), penalties=2.0) for part in (b.real, b.imag)]
    np.testing.assert_allclose(found.coefficients, parts[0].coefficients + 1j * parts[1].coefficients, atol=1e-13)
    assert found.intercept == pytest.approx(parts[0].intercept + 1j * parts[1].intercept)
    assert found.errors[0, 0] == pytest.approx(parts[0].errors[0, 0] + parts[1].errors[0, 0])


@pytest.mark.parametrize("shape", [(70, 9), (9, 70)], ids=str)
def test_wrong_coefficients_fail(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    right = SmallProblem.coefficients
    monkeypatch.setattr(SmallProblem, "coefficients", lambda self, which: right(self, which) * (1 + 1e-9))
    outcome = run(gaussian(*shape), gaussian(shape[0], 2), penalties=[1.0], cv="none")
    assert [check.passed for check in outcome.certificate.checks] == [False, True]


def test_a_row_that_alone_tells_its_value_has_no_error() -> None:
    A = np.zeros((30, 2))
    A[:, 0], A[7, 1] = np.arange(30), 1
    b = gaussian(30, 1)
    outcome = run(A, b, penalties=[0.0, 1.0])
    assert np.isinf(outcome.arrays["path/errors"][0, 0])
    assert outcome.estimates["penalty"] == 1.0
    with pytest.raises(NumericalError, match="Raise the penalties"):
        run(A, b, penalties=[0.0])
    assert run(A, b, penalties=[0.0], cv="none").certificate.passed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", [(20, 3), (3, 20), (500, 2)], ids=str)
def test_the_condition_of_a_lower_rank_is_that_of_the_penalty(shape: tuple[int, int], intercept: bool, dtype: str) -> None:
    A, b = np.outer(np.arange(1, shape[0] + 1), np.arange(1, shape[1] + 1)).astype(dtype), gaussian(shape[0], 1, dtype)
    size = np.linalg.norm(A - intercept * A.mean(axis=0))
    for penalty in (0.0, 1e-40, 1e-28, 1.0):
        outcome = run(A, b, penalties=penalty, fit_intercept=intercept, cv="none")
        expected = np.hypot(size, 1) if penalty == 1 else np.inf
        assert outcome.estimates["condition"] == pytest.approx(expected)
        assert outcome.estimates["degrees_of_freedom"] == pytest.approx(size**2 / (size**2 + penalty))


@pytest.mark.parametrize("m", [2, 3, 40])
def test_contrasts_are_an_orthonormal_basis_beside_constants(m: int) -> None:
    H = from_contrasts(np.eye(m - 1))
    np.testing.assert_allclose(H.T @ H, np.eye(m - 1), atol=1e-14)
    np.testing.assert_allclose(H.sum(axis=0), 0, atol=1e-13)
    B = gaussian(m, 3) + 1e6
    np.testing.assert_allclose(from_contrasts(to_contrasts(B)), B - B.mean(axis=0), atol=1e-8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"penalties": [-1.0]}, "penalties"),
        ({"penalties": []}, "penalties"),
        ({"penalties": "many"}, "penalties: got 'many'"),
        ({"penalties": {"smallest": 2.0, "largest": 1.0}}, "largest must be above smallest, which is 2; got 1"),
        ({"penalties": {"smallest": 0.1}}, "largest"),
        ({"cv": 1}, "cv: got 1"),
        ({"cv": 51}, "at most the number of rows, 50; got 51"),
        ({"cv": "none"}, "none goes with one penalty"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        run(gaussian(50, 3), gaussian(50, 1), **options)


def test_too_few_rows_and_rows_that_do_not_match() -> None:
    with pytest.raises(SpecError, match="at least 2 rows"):
        dlscale.ridge(gaussian(1, 5), gaussian(1, 1))
    with pytest.raises(SpecError, match="must have 50 rows"):
        dlscale.ridge(gaussian(50, 5), gaussian(49, 1))


@pytest.mark.parametrize("shape", [(50, 5), (5, 50)], ids=str)
def test_a_nan_is_found_with_its_place(shape: tuple[int, int]) -> None:
    A, B = gaussian(*shape), gaussian(shape[0], 2)
    A[3, 4] = np.nan
    with pytest.raises(NonFiniteError, match="row 3, column 4"):
        dlscale.ridge(A, B)
    B[2, 1] = np.inf
    with pytest.raises(NonFiniteError, match="row 2, column 1"):
        dlscale.ridge(gaussian(*shape), B)


@pytest.mark.usefixtures("drawn_reports")
@pytest.mark.parametrize("shape", [(150, 30), (30, 150)], ids=str)
def test_a_job_from_disk_and_its_report(shape: tuple[int, int], tmp_path: Path) -> None:
    A, B = gaussian(*shape), gaussian(shape[0], 2)
    a = store(tmp_path / "a.zarr", A, chunks=(20, 20), compressors=None)
    b = store(tmp_path / "b.zarr", B, chunks=(64, 2), compressors=None)
    params = {"penalties": {"smallest": 0.01, "largest": 100.0, "count": 5}, "path": True}
    job = {"kind": "ridge", "input": {"matrix": str(a), "rhs": str(b)}, "params": params, "cluster": "threads"}
    result = jobs.run(job, workspace=tmp_path / "ws")
    found = dlscale.ridge(A, B, penalties=params["penalties"])
    np.testing.assert_allclose(np.asarray(result.open()["coefficients"]), found.coefficients, atol=1e-13)
    np.testing.assert_allclose(np.asarray(result.open()["path/errors"]), found.errors, rtol=1e-11)
    assert np.asarray(result.open()["path/coefficients"]).shape == (5, shape[1], 2)
    page = (result.folder / "report.html").read_text()
    for words in ("A ridge regression of a.zarr", "The path of penalties", "mean squared error", "largest coefficients"):
        assert words in page
