"""Kernel ridge regression: scikit-learn's answers, without the matrix; and ends that are told as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import THREADS, Array, gaussian, store
from sklearn.kernel_ridge import KernelRidge
from sklearn.model_selection import KFold

import dlscale
from dlscale.batch import run as jobs
from dlscale.batch.workspace import Workspace
from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.kept import State
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError, InputError, NonFiniteError, NumericalError, SpecError
from dlscale.linalg.iterative.cg import CG
from dlscale.linalg.iterative.nystrom import Nystrom, partial_cholesky
from dlscale.linalg.iterative.recurrence import Limits, Problem, iterate
from dlscale.linalg.kernel_ridge import folds, kind, model, path
from dlscale.linalg.kernel_ridge.kernels import Kernel
from dlscale.linalg.kernel_ridge.kind import KernelRidgeOptions, compute_kernel_ridge, plan_kernel_ridge
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

KERNELS: list[dict[str, Any]] = [
    {"kernel": "rbf"},
    {"kernel": "rbf", "gamma": 3.0},
    {"kernel": "laplacian", "gamma": 0.7},
    {"kernel": "polynomial"},
    {"kernel": "polynomial", "degree": 2, "coef0": 0.5, "gamma": 2.0},
    {"kernel": "linear"},
]


@pytest.fixture
def _small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 32 rows, so that a few hundred rows are many tiles."""
    for module in (folds, kind, model):
        monkeypatch.setattr(module, "TILE", 32)


def targets(X: Array, k: int = 0) -> Array:
    y = np.sin(2 * X[:, 0]) + X.sum(axis=1) ** 2 + 0.1 * gaussian(len(X), 1, seed=7)[:, 0]
    return np.stack([y * (j + 1) - j for j in range(k)], axis=1) if k else y


def run(X: Any, Y: Any, facts: ClusterFacts = THREADS, **options: Any) -> Outcome:
    inputs = Inputs({"features": open_matrix(X), "targets": open_matrix(Y, vectors=True)})
    chosen = KernelRidgeOptions(**options)
    plan = plan_kernel_ridge(inputs, chosen, facts)
    with open_cluster(facts) as cluster:
        return compute_kernel_ridge(Run(cluster), inputs, chosen, plan)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("options", KERNELS, ids=lambda options: "-".join(map(str, options.values())))
@pytest.mark.parametrize("n", [1, 31, 64, 65, 203])
def test_the_answer_is_that_of_scikit_learn(n: int, options: dict[str, Any]) -> None:
    X, new = gaussian(n, 4) + 1, gaussian(70, 4, seed=1)
    y = targets(X, 3)
    further = {name: options[name] for name in ("degree", "coef0") if name in options}
    ours = dlscale.kernel_ridge(X, y, kernel=options["kernel"], gamma=options.get("gamma"), penalties=0.1, params=further)
    theirs = KernelRidge(alpha=0.1, **options).fit(X, y)
    np.testing.assert_allclose(ours.dual_coefficients, theirs.dual_coef_, atol=1e-8 * np.abs(theirs.dual_coef_).max())
    told = theirs.predict(new)
    np.testing.assert_allclose(ours.predict(new), told, atol=1e-8 * np.abs(told).max())
    assert ours.dual_coefficients.shape == (n, 3)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i4"])
def test_one_target_in_any_dtype(dtype: str) -> None:
    X = (10 * gaussian(150, 3)).astype(dtype)
    y = targets(X.astype(float) / 10)
    ours = dlscale.kernel_ridge(X, y, penalties=0.5, gamma=0.01)
    theirs = KernelRidge(alpha=0.5, kernel="rbf", gamma=0.01).fit(X.astype(float), y)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X.astype(float)), atol=1e-8 * np.abs(y).max())
    assert ours.dual_coefficients.shape == (150,)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("apart", [1e4, 1e6, 1e8, 1e18])
def test_groups_that_are_far_apart_keep_their_digits(apart: float) -> None:
    X = gaussian(90, 3) + apart * np.repeat(np.arange(3.0), 30)[:, None]
    y = targets(gaussian(90, 3))
    K = np.exp(-0.5 * ((X[:, None] - X) ** 2).sum(axis=2))
    expected = K @ np.linalg.solve(K + 0.01 * np.eye(90), y)
    ours = dlscale.kernel_ridge(X, y, gamma=0.5, penalties=0.01)
    np.testing.assert_allclose(ours.predict(X), expected, atol=1e-7 * np.abs(y).max())


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kernel", ["rbf", "laplacian", "polynomial", "linear"])
def test_a_row_at_infinity_is_named(kernel: Any, value: float) -> None:
    X = gaussian(70, 3)
    fit = partial(dlscale.kernel_ridge, y=targets(X), kernel=kernel)
    model = fit(X)
    X[41, 2] = value
    for take in (fit, model.predict):
        with pytest.raises(NonFiniteError, match=f"{value} at row 41, column 2"):
            take(X)


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("columns", [1000, 3])
@pytest.mark.parametrize("n_folds", [2, 5])
def test_errors_are_those_of_fits_without_each_fold(n_folds: int, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where not all folds and penalties are solved at once."""
    monkeypatch.setattr(kind, "_MOST_COLUMNS", columns)
    X = gaussian(203, 3)
    Y, penalties = targets(X, 2), [1e-3, 0.1, 10.0]
    expected = np.zeros((3, 2))
    for i, penalty in enumerate(penalties):
        for train, test in KFold(n_folds).split(X):
            fit = KernelRidge(alpha=penalty, kernel="rbf").fit(X[train], Y[train])
            expected[i] += ((Y[test] - fit.predict(X[test])) ** 2).sum(axis=0) / len(X)
    found = dlscale.kernel_ridge(X, Y, penalties=penalties, cv=n_folds)
    assert found.errors is not None
    np.testing.assert_allclose(found.errors, expected, rtol=1e-4)
    assert found.penalty == penalties[int(np.argmin(expected.sum(axis=1)))]
    best = KernelRidge(alpha=found.penalty, kernel="rbf").fit(X, Y)
    np.testing.assert_allclose(found.dual_coefficients, best.dual_coef_, atol=1e-7 * np.abs(best.dual_coef_).max())


def test_a_large_offset_costs_no_digits() -> None:
    X = np.round(gaussian(120, 3) * 1024) / 1024
    y = targets(X)
    near, far = (dlscale.kernel_ridge(X + offset, y, penalties=0.01).predict(X + offset) for offset in (0.0, 2.0**30))
    np.testing.assert_allclose(far, near, atol=1e-8)


@pytest.mark.parametrize("tolerance", [1e-10, 1e-3])
@pytest.mark.parametrize("penalty", [1e-1, 1e-4, 1e-8])
@pytest.mark.parametrize("kernel", ["rbf", "linear"])
def test_errors_are_as_sure_as_they_are_said_to_be(kernel: Any, penalty: float, tolerance: float) -> None:
    """Also of targets that other rows tell to six digits."""
    X = np.random.default_rng(0).permutation(np.linspace(0, 1, 40))[:, None] + (0 if kernel == "rbf" else 1)
    y = np.sin(3 * X[:, 0]) if kernel == "rbf" else X[:, 0]
    K = np.exp(-3 * (X - X.T) ** 2) if kernel == "rbf" else X @ X.T
    expected, unsure = 0.0, 0.0
    for train, test in KFold(5).split(X):
        x = np.linalg.solve(K[np.ix_(train, train)] + penalty * np.eye(len(train)), y[train])
        expected += np.square(y[test] - K[np.ix_(test, train)] @ x).sum()
        unsure += max(tolerance, 1e-6) ** 2 * (y[train] @ y[train]) * np.linalg.norm(K[np.ix_(test, test)], 2) / (4 * penalty)
    try:
        found = dlscale.kernel_ridge(X, y, kernel=kernel, gamma=3.0, penalties=penalty, cv=5, params={"tolerance": tolerance})
    except NumericalError as error:
        assert "stagnated" in str(error)  # noqa: PT017
        return
    assert found.errors is not None
    off = abs(np.sqrt(found.errors[0, 0] * len(X)) - np.sqrt(expected))
    assert off <= np.sqrt(unsure) + 1e-7 * np.sqrt(expected) + 1e-14 / penalty


@pytest.mark.parametrize(("size", "penalty", "words"), [(1.5e308, 1e-6, "overflow"), (5e-323, 1e3, "too small for the digits")])
def test_dual_coefficients_out_of_range_are_refused(size: float, penalty: float, words: str) -> None:
    X = np.linspace(0, 1, 20)[:, None]
    with pytest.raises(NumericalError, match=f"The dual coefficients .*{words}.* the targets"):
        dlscale.kernel_ridge(X, np.sin(9 * X[:, 0]) * size, gamma=50.0, penalties=penalty)


@pytest.mark.parametrize("power", [-900, 0, 900])
def test_targets_of_any_size(power: int) -> None:
    X = gaussian(90, 3)
    y = targets(X)
    plain, scaled = (dlscale.kernel_ridge(X, values, penalties=0.1) for values in (y, np.ldexp(y, power)))
    np.testing.assert_array_equal(scaled.dual_coefficients, np.ldexp(plain.dual_coefficients, power))


def test_features_that_tell_nothing_and_targets_of_zero() -> None:
    for X in (np.zeros((40, 2)), np.ones((40, 2))):
        found = dlscale.kernel_ridge(X, np.arange(40.0), penalties=1.0)
        np.testing.assert_allclose(found.predict(X), np.full(40, 40 * 19.5 / 41), rtol=1e-9)
    assert not dlscale.kernel_ridge(np.zeros((40, 2)), np.arange(40.0), kernel="linear").predict(np.ones((3, 2))).any()
    assert not dlscale.kernel_ridge(gaussian(40, 2), np.zeros(40)).dual_coefficients.any()


@pytest.mark.parametrize(("dtype", "accuracy"), [("f8", 1e-7), ("f4", 2e-3)])
def test_the_preconditioner_is_of_the_matrix_without_a_fold(dtype: str, accuracy: float) -> None:
    """With all columns it is the inverse, on what is left of the rows."""
    X, bounds, kernel = gaussian(60, 2), (0, 13, 60), Kernel("rbf", 0.5, 3, 1.0)
    points = kernel.prepared(X, X.mean(axis=0))
    K, penalties = kernel.block(points, points, same=True), np.array([0.1, 3.0])
    F = partial_cholesky(
        kernel.diagonal(points), lambda chosen: kernel.columns(points, chosen).astype(dtype), 60, 0, dtype=np.dtype(dtype)
    )
    nystrom = Nystrom.of(F, bounds)
    for fold, out in ((0, slice(0, 13)), (1, slice(13, 60)), (-1, slice(0, 0))):
        R, M = gaussian(60, 2), K.copy()
        R[out], M[out], M[:, out] = 0, 0, 0
        Z = nystrom.apply(R, penalties, fold)
        Z[out] = 0
        for j, penalty in enumerate(penalties):
            np.testing.assert_allclose(M @ Z[:, j] + penalty * Z[:, j], R[:, j], atol=accuracy)


@pytest.mark.usefixtures("_small_tiles")
def test_more_columns_need_fewer_products() -> None:
    X = gaussian(200, 4)
    taken = [run(X, targets(X), penalties=0.02, n_centers=n).estimates["iterations"] for n in (5, 60, 190)]
    assert taken[0] > 2 * taken[1] > 4 * taken[2]


@pytest.mark.usefixtures("_small_tiles")
def test_the_bits_do_not_depend_on_the_threads() -> None:
    X = gaussian(300, 3)
    found = [run(X, targets(X), replace(THREADS, threads_per_worker=n), penalties=[0.01, 0.1]).arrays for n in (1, 3)]
    for name, array in found[0].items():
        assert array.tobytes() == found[1][name].tobytes()


def test_an_end_without_convergence_is_told() -> None:
    X = gaussian(300, 6)
    with pytest.raises(NumericalError, match=r"penalty 1e-06 ended at their limit after 4 products, with a residual .* 1\.0e-10"):
        run(X, targets(X), penalties=1e-6, n_centers=5, max_iterations=4)
    with pytest.raises(NumericalError, match="ended stagnated"):
        run(X, targets(X), penalties=1e-9, gamma=1e-3, tolerance=1e-16)


def test_single_precision_that_does_not_suffice_is_followed_by_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups that are far from their mean: exponents in single precision are off by more than the penalty."""
    X, solved = gaussian(400, 3) / 10 + 10 * np.repeat([-1.0, 1.0], 200)[:, None], []
    monkeypatch.setattr(Kernel, "single_suits", lambda *_: True)
    monkeypatch.setattr(
        path, "iterate", lambda method, problem, limits: solved.append(problem.name) or iterate(method, problem, limits)
    )
    y = targets(10 * X)
    found = run(X, y, gamma=0.8, penalties=1e-4)
    assert found.certificate.passed
    assert solved == ["fit", "fit-double"]
    assert len(found.arrays["history/residual"]) == found.estimates["iterations"]


def test_a_wrong_product_fails_the_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    right = folds.SymmetricProduct.update

    def wrong(self: Any, state: Any, A: Array, first_row: int) -> Any:
        told = right(self, state, A, first_row)
        state["product"] *= 1 + 1e-7
        return told

    monkeypatch.setattr(folds.SymmetricProduct, "update", wrong)
    X = gaussian(100, 3)
    assert not run(X, targets(X), penalties=0.1).certificate.passed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"penalties": 0.0}, "penalties: got 0.0"),
        ({"penalties": [1.0, -2.0]}, "penalties"),
        ({"kernel": "sigmoid"}, "kernel: got 'sigmoid'"),
        ({"gamma": 0.0}, "gamma"),
        ({"penalties": [1.0, 2.0], "cv": "none"}, "none goes with one penalty"),
        ({"cv": 51}, "at most the number of rows, 50; got 51"),
    ],
)
def test_what_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        run(gaussian(50, 3), gaussian(50, 1), **options)


def test_inputs_that_do_not_fit() -> None:
    X, y = gaussian(50, 3), gaussian(50, 1)
    with pytest.raises(SpecError, match="must have 50 rows"):
        run(X, gaussian(49, 1))
    with pytest.raises(SpecError, match="must be real"):
        run(X.astype("c16"), y)
    with pytest.raises(SpecError, match="centers: unknown; allowed: coef0, degree, max_iterations, n_centers, seed, tolerance"):
        dlscale.kernel_ridge(X, y, params={"centers": 5})
    with pytest.raises(SpecError, match="3 real columns like the features; got 4"):
        dlscale.kernel_ridge(X, y).predict(gaussian(5, 4))
    with pytest.raises(DoesNotFitError, match=r"raise cluster\.memory"):
        run(gaussian(5000, 3), gaussian(5000, 1), replace(THREADS, memory_bytes=10**6))
    X[31, 2] = np.nan
    with pytest.raises(NonFiniteError, match="row 31, column 2"):
        run(X, y)
    with pytest.raises(NonFiniteError, match="row 31, column 2"):
        dlscale.kernel_ridge(gaussian(50, 3), y).predict(X)
    with pytest.raises(NumericalError, match="overflow"):
        run(gaussian(50, 3) * 1e200, y)


@pytest.fixture
def job(tmp_path: Path) -> dict[str, Any]:
    X = gaussian(700, 3)
    store(tmp_path / "x.zarr", X, chunks=(100, 2), compressors=None)
    store(tmp_path / "y.zarr", targets(X), chunks=(256,), compressors=None)
    inputs = {"features": str(tmp_path / "x.zarr"), "targets": str(tmp_path / "y.zarr")}
    return {"kind": "kernel_ridge", "input": inputs, "params": {"penalties": [0.1, 1.0], "n_centers": 20}, "cluster": "threads"}


@pytest.mark.usefixtures("drawn_reports")
def test_a_job_its_report_and_its_model(job: dict[str, Any], tmp_path: Path) -> None:
    result = jobs.run(job, workspace=tmp_path / "ws")
    page = (result.folder / "report.html").read_text()
    for words in ("A kernel ridge regression of x.zarr", "The path of penalties", "Convergence", "20 columns that precondition"):
        assert words in page
    model = dlscale.KernelRidgeModel.load(str(result.folder / "result.zarr"))
    X, new = gaussian(700, 3), gaussian(40, 3, seed=5)
    theirs = KernelRidge(alpha=model.penalty, kernel="rbf").fit(X, targets(X))
    np.testing.assert_allclose(model.predict(new), theirs.predict(new), atol=1e-7 * np.abs(targets(X)).max())
    with pytest.raises(InputError, match="no result of a dlscale job"):
        dlscale.KernelRidgeModel.load(str(tmp_path))


@pytest.mark.parametrize(
    ("penalties", "step"),
    [([0.1], "fit-product-21"), ([0.1, 10.0], "folds-0-product-21")],
    ids=["one system", "systems of which some are solved"],
)
def test_it_goes_on_to_the_same_bits_where_it_was_stopped(
    job: dict[str, Any], penalties: list[float], step: str, tmp_path: Path
) -> None:
    job["params"] = {"penalties": penalties, "n_centers": 20}
    whole = jobs.run(job, workspace=tmp_path / "whole").open()

    def fail(event: dict[str, Any]) -> None:
        if event["event"] == "pass_finished" and event["step"] == step:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        jobs.run(job, workspace=tmp_path / "ws", listener=fail)
    workspace = Workspace(tmp_path / "ws")
    stopped = workspace.find(None)
    told: list[Any] = []
    resumed = jobs.resume(stopped, jobs.reopen(stopped, workspace), listener=told.append).open()
    for name in ("dual_coefficients", *(["path/errors"] if len(penalties) > 1 else [])):
        assert np.asarray(resumed[name]).tobytes() == np.asarray(whole[name]).tobytes()
    assert step.replace("21", "2") not in [getattr(event, "step", None) for event in told]


def test_a_state_is_in_the_order_in_which_it_is_read_again() -> None:
    """Also once a column has left; the bits of sums depend on it."""
    A, seen = np.diag(np.arange(1.0, 31.0)), []

    class Kept(Problem):
        def keep(self, number: int, compute: Callable[[], State]) -> State:
            seen.append(compute())
            return seen[-1]

    B = np.stack([np.eye(30)[3], np.ones(30), np.arange(30.0)], axis=1)
    assert iterate(CG(), Kept(lambda X: A @ X, B), Limits(1e-10, 100)).end == "converged"
    assert {len(state["live"]) for state in seen} >= {2, 1}
    assert all(array.flags.c_contiguous for state in seen for array in state.values())
