"""What iterations on systems are helped by: some columns of the matrix, a first x, a preconditioner of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse.linalg
from eigenproblems import with_eigenvalues
from helpers import DTYPES, Array, eps, gaussian, store
from linear_systems import N, computed, definite, hard_systems, relative, resumed_or_whole

import dlscale
from dlscale.errors import DlscaleError, InputError, NumericalError, SpecError
from dlscale.linalg.iterative import stored


def few_large(n: int = N, dtype: str = "f8", rank: int = 20) -> Array:
    """``K + mu I`` with a K of low rank, as kernel matrices are."""
    return with_eigenvalues(np.concatenate([np.geomspace(1, 1e4, rank), np.zeros(n - rank)]) + 1e-3, dtype)


@pytest.mark.parametrize("method", ["cg", "minres"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_some_columns_precondition_what_has_few_large_eigenvalues(dtype: str, method: Any) -> None:
    A = few_large(dtype=dtype)
    A += np.asarray(np.eye(N) * (1.0 if eps(A) > 1e-10 else 0.0), dtype)
    B, goal = gaussian(N, 2, dtype), 1e-8 if eps(A) < 1e-10 else 1e-3
    here = computed(A, B, method=method, preconditioner="nystrom", rank=60, tolerance=goal)
    assert relative(A, here.arrays["x"], B) <= goal
    estimates = here.outcome.estimates
    assert estimates["iterations"] <= 12
    assert estimates["reads"] >= 1 + 4 + estimates["iterations"] + 1
    fewer = computed(A, B, method=method, preconditioner="nystrom", rank=10, tolerance=goal, max_iterations=400)
    assert fewer.outcome.estimates["iterations"] > estimates["iterations"]


@pytest.mark.parametrize("method", ["cg", "minres"])
def test_the_true_residual_holds_or_the_job_fails_and_says_how_it_ended(method: Any) -> None:
    n_solved = 0
    for name, A in hard_systems().items():
        for B in (gaussian(len(A), 1), A @ gaussian(len(A), 1, seed=1)):
            try:
                here = computed(A, B, method=method, preconditioner="nystrom", tolerance=1e-10, max_iterations=50)
            except DlscaleError as error:
                said = str(error)
            else:
                said = ""
                assert relative(A, here.arrays["x"], B) <= 1e-10, name
                n_solved += 1
            assert not said or any(
                words in said for words in ("the true residual is", "not positive definite", "must be symmetric")
            )
    assert n_solved >= 10


def test_what_nystrom_is_not_for() -> None:
    A = definite(10)
    for options, words in (
        ({"method": "gmres", "preconditioner": "nystrom"}, r"nystrom goes with method cg or minres; got method gmres"),
        ({"method": "auto", "preconditioner": "nystrom"}, r"nystrom goes with method cg or minres; got method gmres"),
        ({"method": "cg", "rank": 5}, r"params\.rank: goes with preconditioner nystrom; got 5 with none"),
        ({"method": "direct", "preconditioner": "nystrom"}, r"params\.preconditioner: goes with an iterative method"),
    ):
        with pytest.raises(SpecError, match=words):
            computed(A, gaussian(N, 1), **options)
    with pytest.raises(NumericalError, match=r"which preconditioner nystrom is for: its entry \(0, 0\) is negative"):
        computed(-A, gaussian(N, 1), method="minres", preconditioner="nystrom")


def test_preconditioned_iterations_go_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "KEPT_FLOPS", 3 * 2.0 * N * N * 2)
    path = store(tmp_path / "a.zarr", definite(10), chunks=(50, N))
    rhs, options = store(tmp_path / "b.zarr", gaussian(N, 2), chunks=(N, 2)), {"preconditioner": "nystrom", "rank": 30}
    whole, every = resumed_or_whole(path, rhs, None, "cg", **options)
    with pytest.raises(OSError, match="the disk is gone"):
        resumed_or_whole(path, rhs, tmp_path / "checkpoint", "cg", stop_at="product-8", **options)
    again, rest = resumed_or_whole(path, rhs, tmp_path / "checkpoint", "cg", **options)
    assert again == whole
    assert len(rest) < len(every)


SOLVERS = {"cg": dlscale.cg, "minres": dlscale.minres, "gmres": dlscale.gmres}


@pytest.mark.parametrize("scale", [1.0, 1e-170])
@pytest.mark.parametrize("as_operator", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_first_x_saves_what_it_knows(name: str, as_operator: bool, scale: float) -> None:
    A, X = definite(1e3) * scale, gaussian(N, 2)
    B, solver, limit = A @ X, SOLVERS[name], 20
    matrix: Any = scipy.sparse.linalg.aslinearoperator(A) if as_operator else A
    near = X + 1e-6 * gaussian(N, 2, seed=7)
    with pytest.raises(NumericalError, match="at the limit"):
        solver(matrix, B, rtol=1e-7, maxiter=limit)
    found = solver(matrix, B, x0=near, rtol=1e-7, maxiter=limit).x
    assert np.linalg.norm(B - A @ found, axis=0).max() <= 1e-7 * np.linalg.norm(B, axis=0).max()
    # What is the solution stays it, far from it is begun too, and of zeros it is zero.
    np.testing.assert_allclose(solver(matrix, B, x0=X, rtol=1e-9).x, X, rtol=1e-6, atol=1e-6)
    far = solver(matrix, B[:, 0], x0=1e6 * gaussian(N, 1)[:, 0], rtol=1e-5, maxiter=1500).x
    assert np.linalg.norm(B[:, 0] - A @ far) <= 1e-5 * np.linalg.norm(B[:, 0])
    assert not solver(matrix, 0 * B[:, 0], x0=X[:, 0]).x.any()


@pytest.mark.parametrize("as_operator", [False, True])
@pytest.mark.parametrize("name", SOLVERS)
def test_a_preconditioner_of_the_users_own(name: str, as_operator: bool) -> None:
    scales = np.geomspace(1, 1e3, N)
    A = scales[:, None] * with_eigenvalues(np.linspace(1, 3, N)) * scales
    b, solver = gaussian(N, 1)[:, 0], SOLVERS[name]
    matrix: Any = scipy.sparse.linalg.aslinearoperator(A) if as_operator else A
    inverse = np.diag(scales**-2.0)
    with pytest.raises(NumericalError, match=r"ended at the limit of 40 iterations|ended stagnated"):
        solver(matrix, b, rtol=1e-7, maxiter=40)
    linear = scipy.sparse.linalg.aslinearoperator(inverse)
    for M in (lambda R: R / (scales**2)[:, None], inverse, linear, dlscale.Operator((N, N), lambda R: inverse @ R)):
        x = solver(matrix, b, rtol=1e-7, maxiter=40, M=M).x
        assert np.linalg.norm(b - A @ x) <= 1e-7 * np.linalg.norm(b)


def test_what_of_these_is_refused() -> None:
    A, b = definite(10), gaussian(N, 1)[:, 0]
    for given, words in (
        ({"x0": np.ones(3)}, f"x0 must be {N} x 1 numbers like b; got shape \\(3,\\)"),
        ({"x0": np.ones(N) * 1j}, "x0 must be real"),
        ({"M": 3}, "M must be none, jacobi, block_jacobi or nystrom, a function"),
        ({"M": "ilu"}, "preconditioner: got 'ilu'"),
        ({"M": np.eye(4)}, f"M must be {N} x {N} like A; got 4 x 4"),
        ({"M": np.eye(N) * 1j}, "M must be real"),
    ):
        with pytest.raises(SpecError, match=words):
            dlscale.cg(A, b, **given)
    with pytest.raises(InputError, match="x0 must be finite"):
        dlscale.cg(A, b, x0=np.full(N, np.nan))
    with pytest.raises(InputError, match="must return numbers of shape"):
        dlscale.cg(A, b, M=lambda R: R[:3])
    with pytest.raises(NumericalError, match="or a preconditioner that was given, is not positive definite"):
        dlscale.cg(A, b, M=lambda R: -R)


@pytest.mark.parametrize("preconditioner", ["none", "block_jacobi"])
def test_what_rounding_hides_is_said_to_working_precision(preconditioner: Any) -> None:
    """Definite matrices, diagonally dominant but for powers of two, of which rounding makes others."""
    said = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        S, d = rng.integers(-1, 2, (6, 6)), 2.0 ** -rng.permutation(np.arange(0, 60, 10))
        try:
            computed(d[:, None] * (S + S.T + 16 * np.eye(6)) * d, np.ones((6, 1)), method="cg", preconditioner=preconditioner)
        except NumericalError as error:
            said.append(str(error))
    refusals = [words for words in said if "is not positive definite" in words]
    assert all("to working precision" in words for words in refusals)
    assert refusals or preconditioner == "none"
