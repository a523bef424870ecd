"""What is said of a condition number and of an error is not below the truth by more than a factor of 10, or it is not said."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from helpers import THREADS, Array, gaussian

import dlscale
from dlscale.engine.clusters import open_cluster
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import NumericalError
from dlscale.linalg.solve.kind import SolveOptions, compute_solve, plan_solve
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix


def run(A: Array, B: Array, *, precision: Any) -> Outcome:
    inputs, chosen = (
        Inputs({"matrix": open_matrix(A), "rhs": open_matrix(B)}),
        SolveOptions(precision=precision, panel=min(32, len(A))),
    )
    with open_cluster(THREADS) as cluster:
        return compute_solve(Run(cluster), inputs, chosen, plan_solve(inputs, chosen, THREADS))


def ill_conditioned(n: int, condition: float, dtype: str, *, small: int = 1, seed: int = 0) -> Array:
    """Some singular values of 1/condition, the others from 1 to 0.1."""
    rng = np.random.default_rng(seed)
    Q, P = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    s = np.linspace(1, 0.1, n)
    s[-small:] = np.geomspace(1 / condition, min(0.1, 10 / condition), small)
    return np.asarray((Q * s) @ P.T, dtype)


@pytest.mark.parametrize("small", [1, 5])
@pytest.mark.parametrize("condition", [1e2, 1e5, 1e7, 3e7, 3e8, 1e9, 1e11, 1e13])
@pytest.mark.parametrize(("dtype", "precision"), [("f8", "double"), ("f8", "mixed"), ("f4", "double")])
def test_conditions_and_bounds_are_true(dtype: str, precision: Any, condition: float, small: int) -> None:
    A = ill_conditioned(120, condition, dtype, small=small)
    x = gaussian(120, 1, dtype)
    b = (A.astype("f8") @ x.astype("f8")).astype(dtype)
    outcome = run(A, b, precision=precision)
    truth = np.linalg.cond(A.astype("f8"), 1)
    said, bound = outcome.estimates["condition"], outcome.estimates["forward_error_bound"]
    assert truth / 10 <= said <= 3 * truth
    exact = np.linalg.solve(A.astype("f8"), b.astype("f8"))
    error = np.abs(outcome.arrays["x"] - exact).sum() / np.abs(exact).sum()
    assert error / 10 <= bound + truth * np.finfo("f8").eps
    assert (bound < 1) == (not any("nearly singular" in note for note in outcome.notes))


@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_a_matrix_of_lower_rank_has_no_bound(precision: Any) -> None:
    A = gaussian(100, 100)
    A[:, 7] = A[:, 3] + A[:, 5]
    try:
        outcome = run(A, A @ np.ones((100, 1)), precision=precision)
    except NumericalError:
        return
    assert not outcome.estimates["forward_error_bound"] < 1
    assert outcome.estimates["condition"] > 1e14
    assert any("nearly singular" in note for note in outcome.notes)


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_a_graded_matrix_in_mixed_precision(dtype: str) -> None:
    """Factors in single precision tell of conditions far beyond their precision, and are wrong about the vector that matters."""
    A = scipy.linalg.pascal(14).astype(dtype) * (np.exp(1j * np.arange(14)) if dtype == "c16" else 1)
    outcome = run(A, np.ones((14, 1), dtype), precision="mixed")
    truth = np.linalg.norm(A, 1) * np.linalg.norm(scipy.linalg.invpascal(14, exact=True).astype(float), 1)
    assert truth / 10 <= outcome.estimates["condition"] <= 3 * truth


def test_python_is_warned() -> None:
    A = scipy.linalg.hilbert(14)
    for call in (lambda: dlscale.solve(A, np.ones(14)), lambda: dlscale.inverse(A)):
        with pytest.warns(scipy.linalg.LinAlgWarning, match="nearly singular.* no digit"):
            call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        dlscale.solve(scipy.linalg.hilbert(9), np.ones(9))


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
@pytest.mark.parametrize("precision", ["double", "mixed"])
def test_growth_out_of_range_ends_in_qr(precision: Any, dtype: str) -> None:
    """Well conditioned matrices whose U grows like 2^n, or by 1.5^n; in single precision that is no number."""
    n = 300
    for multiplier in (1.0, 0.5):
        A = (np.eye(n) - multiplier * np.tril(np.ones((n, n)), -1)).astype(dtype)
        A[:, -1] = 1
        b = gaussian(n, 1, dtype)
        outcome = run(A, b, precision=precision)
        assert outcome.certificate.passed
        found, want = dlscale.slogdet(A), np.linalg.slogdet(A.astype("c16"))
        assert found.logabsdet == pytest.approx(want[1], rel=1e-4)
        assert found.sign == pytest.approx(want[0], abs=1e-3)


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_what_is_assumed_is_measured_on_the_whole_matrix(dtype: str) -> None:
    """The lower triangles are those of positive definite matrices, which these are not."""
    n = 30
    A = gaussian(n, n, dtype)
    S = (A @ A.conj().T + n * np.eye(n)).astype(dtype)
    for M in (S + np.triu(A, 1), np.tril(S), S + np.outer(np.eye(n)[3], np.eye(n)[20]).astype(dtype)):
        want, b = np.linalg.slogdet(M.astype("c16")), np.ones(n, dtype)
        found = dlscale.slogdet(M, assume="pos")
        assert found.logabsdet == pytest.approx(want[1], rel=1e-4)
        assert found.sign == pytest.approx(want[0], abs=1e-3)
        tolerance = 1e-3 if np.finfo(dtype).bits == 32 else 1e-10
        np.testing.assert_allclose(dlscale.solve(M, b, assume="pos"), np.linalg.solve(M, b), rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(dlscale.inverse(M, assume="pos"), np.linalg.inv(M), rtol=tolerance, atol=tolerance)
        with pytest.raises(NumericalError, match="not Hermitian"):
            dlscale.cholesky(M)


@pytest.mark.parametrize("dtype", ["c8", "c16"])
def test_a_subnormal_complex_pivot(dtype: str) -> None:
    small = np.finfo(dtype).tiny / 8
    A = np.array([[1, 2, 3], [0, small * (1 + 1j), 1], [0, 0, 1j]], dtype)
    found = dlscale.slogdet(A)
    assert found.sign == pytest.approx(1j * (1 + 1j) / np.sqrt(2), rel=1e-5)
    assert found.logabsdet == pytest.approx(np.log(float(small)) + np.log(2) / 2, rel=1e-5)
    assert dlscale.lu(A).lu[1, 1] == A[1, 1]
    with pytest.raises(NumericalError, match=r"singular to the precision of complex.*lstsq"):
        dlscale.solve(A, np.ones(3, dtype))
