"""Systems with a triangular matrix, and with the transpose of any: judged by the backward error against what was asked for."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, THREADS, Array, eps, gaussian, store
from hypothesis import given, settings
from hypothesis import strategies as st

import dlscale
from dlscale import gallery
from dlscale.engine.clusters import open_cluster
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import InputError, NonFiniteError, NumericalError, SpecError
from dlscale.linalg.solve import triangle as kind_of_triangle
from dlscale.linalg.solve import triangular
from dlscale.linalg.solve.kind import SolveOptions, compute_solve, plan_solve
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

THRESHOLD = 30
#: Unknowns of a panel of the substitution, of a part that threads share, and of a triangle that is not halved, as tests have them.
SMALL = {"panel": 64, "shared": 48, "triangle": 16}
#: One unknown, two, one such panel less or more one, several.
SIZES = (1, 2, 30, 63, 65, 150)


def run(A: Any, B: Any, **options: Any) -> Outcome:
    inputs, chosen = Inputs({"matrix": open_matrix(A), "rhs": open_matrix(B, vectors=True)}), SolveOptions(**options)
    plan = plan_solve(inputs, chosen, THREADS)
    with open_cluster(THREADS) as cluster:
        return compute_solve(Run(cluster), inputs, chosen, plan)


def backward_error(A: Array, X: Array, B: Array) -> float:
    """max_j ||b_j - A x_j||_1 / (||A||_1 ||x_j||_1 eps), in higher precision."""
    wide = np.longdouble if A.dtype.kind == "f" else np.clongdouble
    W = X.astype(wide)
    R = np.abs(B.astype(wide) - A.astype(wide) @ W).sum(axis=0)
    return float((R / np.abs(A).sum(axis=0).max() / np.abs(W).sum(axis=0) / eps(A)).max())


def triangle(A: Array, *, lower: bool, unit: bool = False) -> Array:
    T = np.tril(A) if lower else np.triu(A)
    if unit:
        np.fill_diagonal(T, 1)
    return T


OP = {False: lambda A: A, True: lambda A: A.T, "conjugate": lambda A: A.conj().T}


@settings(max_examples=60, deadline=None)
@given(
    n=st.sampled_from(SIZES),
    k=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    lower=st.booleans(),
    transposed=st.sampled_from([False, True, "conjugate"]),
    only=st.booleans(),
    unit=st.booleans(),
    power=st.integers(-90, 90),
)
def test_any_triangle(n: int, k: int, dtype: str, lower: bool, transposed: Any, only: bool, unit: bool, power: int) -> None:
    """In panels of few unknowns; multiplied by a power of two, it has the same digits."""
    options = {"transposed": transposed, "only_triangle": only, "unit_diagonal": unit}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kind_of_triangle, "How", partial(triangular.How, panel=SMALL["panel"]))
        patch.setattr(triangular, "SHARED_ROWS", SMALL["shared"])
        patch.setattr(triangular, "TRIANGLE", SMALL["triangle"])
        check_triangle(n, k, dtype, lower=lower, power=0 if unit else power, **options)


@pytest.mark.parametrize("n", [511, 513, 1030])
@pytest.mark.parametrize(("lower", "transposed", "dtype"), [(True, False, "f8"), (True, "conjugate", "c8"), (False, True, "f4")])
def test_triangles_of_several_panels(n: int, lower: bool, transposed: Any, dtype: str) -> None:
    check_triangle(n, 2, dtype, lower=lower, power=3, transposed=transposed)


def check_triangle(n: int, k: int, dtype: str, *, lower: bool, power: int, **options: Any) -> None:
    """Solve with a triangle that is multiplied by a power of two, and without it."""
    unit, only, transposed = (options.get(name, False) for name in ("unit_diagonal", "only_triangle", "transposed"))
    A, B = gaussian(n, n, dtype) / n + 2 * np.eye(n), gaussian(n, k, dtype, seed=1)
    two = np.ldexp(1.0, power).astype(dtype)
    A = two * A.astype(dtype)
    T = triangle(A, lower=lower, unit=unit)
    outcome = run(A if only else T, B, assume="lower" if lower else "upper", **options)
    X = outcome.arrays["x"]
    assert X.dtype == A.dtype
    assert outcome.certificate.passed
    assert backward_error(OP[transposed](T), X, B) < THRESHOLD
    again = run(T / two, B, assume="lower" if lower else "upper", **options).arrays["x"]
    np.testing.assert_array_equal(X * two, again)


@settings(max_examples=25, deadline=None)
@given(
    n=st.sampled_from((1, 2, 33, 150)),
    dtype=st.sampled_from(DTYPES),
    transposed=st.sampled_from([True, "conjugate"]),
    assume=st.sampled_from(["general", "pos"]),
    precision=st.sampled_from(["double", "mixed"]),
)
def test_transposed(n: int, dtype: str, transposed: Any, assume: Any, precision: Any) -> None:
    A = gallery.positive_definite(n, dtype=dtype) if assume == "pos" else gaussian(n, n, dtype)
    B = gaussian(n, 2, dtype, seed=1)
    outcome = run(A, B, assume=assume, precision=precision, transposed=transposed, panel=min(n, 32))
    assert outcome.certificate.passed
    assert backward_error(OP[transposed](A), outcome.arrays["x"], B) < THRESHOLD


@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_solve_with_the_transpose(dtype: str) -> None:
    A, B = gaussian(70, 70, dtype), gaussian(70, 2, dtype, seed=1)
    factors = dlscale.lu(A)
    for trans, M in enumerate((A, A.T, A.conj().T)):
        # Without refinement, LU has the growth of its entries in its backward error.
        assert backward_error(M, factors.solve(B, trans), B) < THRESHOLD * 10
    with pytest.raises(SpecError, match="trans must be 0, 1 or 2; got 3"):
        factors.solve(B, 3)


@pytest.mark.parametrize("dtype", DTYPES)
def test_hard_triangles(dtype: str) -> None:
    """Kahan's matrix, and one with ones below the diagonal: the condition is as large as the precision can tell, or larger."""
    for T in (gallery.kahan(60, dtype=dtype), -np.tri(50, dtype=dtype, k=-1) + np.eye(50, dtype=dtype)):
        B, lower = gaussian(len(T), 2, dtype), bool((np.triu(T, 1) == 0).all())
        outcome = run(T, B, assume="lower" if lower else "upper")
        assert outcome.certificate.passed
        assert backward_error(T, outcome.arrays["x"], B) < THRESHOLD
        truth = np.linalg.cond(T.astype("c16"), 1)
        assert outcome.estimates["condition"] >= truth / 10 or not np.isfinite(outcome.estimates["forward_error_bound"])


@pytest.mark.parametrize("layout", [{"chunks": (33, 33)}, {"chunks": (40, 300)}, {"chunks": (300, 40), "compressors": None}])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lower", [False, True])
def test_from_disk(tmp_path: Path, layout: Any, lower: bool, transposed: bool) -> None:
    A, B = gaussian(300, 300) / 300 + np.eye(300), gaussian(300, 2)
    path = str(store(tmp_path / "a.zarr", A, **layout))
    outcome = run(path, B, assume="lower" if lower else "upper", transposed=transposed, only_triangle=True)
    T = triangle(A, lower=lower)
    assert backward_error(T.T if transposed else T, outcome.arrays["x"], B) < THRESHOLD
    with pytest.raises(InputError, match=r"must be (lower|upper) triangular; .* stands"):
        run(path, B, assume="lower" if lower else "upper", transposed=transposed)


def test_the_factors_in_one_array_are_two_triangles() -> None:
    A, b = gaussian(80, 80), gaussian(80, 1)[:, 0]
    lu, piv = dlscale.lu(A)
    x = b.copy()
    for i, p in enumerate(piv):
        x[[i, p]] = x[[p, i]]
    x = dlscale.solve_triangular(lu, x, lower=True, unit_diagonal=True)
    x = dlscale.solve_triangular(lu, x)
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-9)


@pytest.mark.parametrize(
    ("lower", "transposed", "words"),
    [
        (True, False, r"must be lower triangular; 0.5 stands above the diagonal, at row 3, column 7"),
        (True, True, r"must be lower triangular; 0.5 stands above the diagonal, at row 3, column 7"),
        (False, False, r"must be upper triangular; 0.25 stands below the diagonal, at row 8, column 2"),
        (False, True, r"must be upper triangular; 0.25 stands below the diagonal, at row 8, column 2"),
    ],
)
def test_what_is_not_triangular_is_refused_with_its_place(lower: bool, transposed: bool, words: str) -> None:
    A, b = np.eye(10), np.ones(10)
    A[3, 7], A[8, 2] = 0.5, 0.25
    assume: Any = "lower" if lower else "upper"
    with pytest.raises(InputError, match=words):
        dlscale.solve(A, b, assume=assume, transposed=transposed)
    # Of two wrong entries, nothing stands in the triangle that is solved with.
    assert np.isfinite(run(A, b, assume=assume, transposed=transposed, only_triangle=True).arrays["x"]).all()


def test_what_is_no_part_of_the_matrix_may_be_anything() -> None:
    A, b = np.tril(gaussian(30, 30)) + 5 * np.eye(30), np.ones(30)
    x = dlscale.solve_triangular(A, b, lower=True)
    A[np.triu_indices(30, 1)] = np.nan
    np.testing.assert_array_equal(dlscale.solve_triangular(A, b, lower=True), x)
    A[7, 3] = np.inf
    with pytest.raises(NonFiniteError, match=r"inf at row 7, column 3"):
        dlscale.solve_triangular(A, b, lower=True)


@pytest.mark.parametrize("place", [0, 17, 599])
def test_a_zero_on_the_diagonal_is_named(place: int) -> None:
    T = np.tril(np.ones((600, 600)))
    T[place, place] = 0
    for transposed in (False, True):
        with pytest.raises(NumericalError, match=rf"exactly singular: entry \({place}, {place}\) on its diagonal is zero.*lstsq"):
            dlscale.solve(T, np.ones(600), assume="lower", transposed=transposed)
    x = dlscale.solve_triangular(T, np.ones(600), lower=True, unit_diagonal=True)
    np.testing.assert_array_equal(x, np.eye(600)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"only_triangle": True}, "params.only_triangle: is for assume lower or upper; got true with assume general"),
        ({"unit_diagonal": True, "assume": "pos"}, "params.unit_diagonal: is for assume lower or upper; got true with assume pos"),
        ({"assume": "lower", "panel": 2}, "params.panel is for what is factored"),
        ({"assume": "upper", "precision": "mixed"}, "params.precision: mixed is for what is factored"),
        ({"assume": "lower", "method": "cg"}, "params.assume: lower goes with method direct; got method cg"),
        ({"transposed": True, "method": "cg"}, "params.transposed: goes with method direct"),
        ({"transposed": "yes"}, "transposed: got 'yes'"),
    ],
)
def test_what_does_not_go_together_is_refused(options: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        run(np.eye(3), np.ones(3), **options)


def test_trans_is_a_word_of_scipy() -> None:
    with pytest.raises(SpecError, match="trans must be 0, 1, 2, N, T or C; got 'H'"):
        dlscale.solve_triangular(np.eye(3), np.ones(3), "H")
