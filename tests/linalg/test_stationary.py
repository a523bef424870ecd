"""Jacobi's iteration, Gauss and Seidel's, and relaxation: right where they converge, and no end that is not measured."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eigenproblems import with_eigenvalues
from helpers import DTYPES, Array, eps, gaussian, store
from linear_systems import N, computed, definite, hard_systems, relative, resumed_or_whole

from dlscale.errors import InputError, NumericalError, SpecError
from dlscale.linalg.iterative import gauss_seidel, stored

METHODS = ("jacobi", "gauss_seidel")


def dominant(n: int = N, dtype: str = "f8", seed: int = 0) -> Array:
    """Without symmetry, each diagonal entry twice as large as the others of its row together."""
    A = gaussian(n, n, dtype, seed)
    sizes = np.abs(A).sum(axis=1)
    return np.asarray(A + np.diag(2 * sizes * np.exp(1j * np.arange(n)) if A.dtype.kind == "c" else 2 * sizes), dtype)


def reference(A: Array, b: Array, steps: int, *, omega: float, newest: bool) -> Array:
    """The iteration as textbooks write it, entry by entry."""
    x = np.zeros_like(b)
    for _ in range(steps):
        before, n = x.copy(), len(A)
        for i in range(n):
            others = x if newest else before
            rest = A[i] @ others - A[i, i] * others[i]
            x[i] = (1 - omega) * before[i] + omega * (b[i] - rest) / A[i, i]
    return x


@pytest.mark.parametrize("omega", [1.0, 0.7, 1.3])
@pytest.mark.parametrize("method", METHODS)
def test_the_steps_are_those_of_the_textbook(method: Any, omega: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauss_seidel, "STRIP_BYTES", 7 * 40 * 8)
    A, b = dominant(40), gaussian(40, 1)
    for steps in (1, 3):
        x = reference(A, b[:, 0], steps, omega=omega, newest=method == "gauss_seidel")
        reached = np.linalg.norm(b[:, 0] - A @ x) / np.linalg.norm(b)
        with pytest.raises(NumericalError, match="at the limit") as told:
            computed(A, b, method=method, relaxation=omega, tolerance=1e-13, max_iterations=steps)
        assert float(re.search(r"residual is (\S+) of", str(told.value))[1]) == pytest.approx(reached, rel=0.06)  # type: ignore[index]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("method", METHODS)
def test_where_they_converge(method: Any, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauss_seidel, "STRIP_BYTES", 40 * N * 8)
    A, B = dominant(N, dtype), gaussian(N, 2, dtype)
    here = computed(A, B, method=method)
    assert relative(A, here.arrays["x"], B) <= eps(A) ** 0.5
    assert here.outcome.estimates["ended"] == "converged"
    # A real matrix, a complex right-hand side, and one that is zero.
    A, B = dominant(), gaussian(N, 2, "c16")
    B[:, 1] = 0
    X = computed(A, B, method=method, tolerance=1e-10).arrays["x"]
    assert relative(A, X, B) <= 1e-10
    assert not X[:, 1].any()


def test_definite_matrices_and_relaxation() -> None:
    """SOR converges for every omega, Jacobi's iteration where 2 D / omega - A is definite too; blocks take fewer steps."""
    A = definite(5)
    b = gaussian(N, 1)
    for omega in (0.7, 1.7):
        assert relative(A, computed(A, b, method="gauss_seidel", relaxation=omega).arrays["x"], b) <= 1e-7
    A = np.full((N, N), 0.3) + 0.7 * np.eye(N)
    with pytest.raises(NumericalError, match=r"Jacobi's iteration ended diverged after .* lower params\.relaxation"):
        computed(A, b, method="jacobi")
    assert computed(A, b, method="jacobi", relaxation=0.04, tolerance=1e-3).outcome.certificate.passed
    T = 2 * np.eye(N) - np.eye(N, k=1) - np.eye(N, k=-1) + 0.2 * np.eye(N)
    steps = [
        computed(T, b, tolerance=1e-4, **options).outcome.estimates["iterations"]
        for options in (
            {"method": "jacobi"},
            {"method": "gauss_seidel"},
            {"method": "jacobi", "preconditioner": "block_jacobi"},
            {"method": "gauss_seidel", "relaxation": 1.5},
        )
    ]
    assert steps[3] < steps[1] < steps[0]
    assert steps[2] < steps[0]


@pytest.mark.parametrize(("method", "preconditioner"), [("jacobi", "none"), ("jacobi", "block_jacobi"), ("gauss_seidel", "none")])
def test_the_true_residual_holds_or_the_job_fails_and_says_how_it_ended(method: Any, preconditioner: Any) -> None:
    n_solved = 0
    for name, A in hard_systems().items():
        for B in (gaussian(len(A), 1), A @ gaussian(len(A), 1, seed=1)):
            said = ""
            try:
                here = computed(A, B, method=method, preconditioner=preconditioner, tolerance=1e-10, max_iterations=25)
            except (NumericalError, InputError) as error:
                said = str(error)
            else:
                assert relative(A, here.arrays["x"], B) <= 1e-10, name
                n_solved += 1
            assert not said or re.search("ended .*the true residual is|divides by the diagonal|is divided by", said), name
    assert n_solved >= {"none": 4, "block_jacobi": 20}[preconditioner]


def test_what_is_refused() -> None:
    A = dominant(130)
    A[5, 5] = A[9, 9] = 0
    for method in METHODS:
        with pytest.raises(InputError, match=rf"entry \(5, 5\) is zero, .* and method {method} divides"):
            computed(A, gaussian(130, 1), method=method)
        for tiny in (2.0**-1074, 2.0**-1040, 2.0**-1000):
            small, b = np.diag([1.0, tiny, 1.0]), np.array([[1.0], [tiny], [1.0]])
            if tiny == 2.0**-1000:
                assert relative(small, computed(small, b, method=method).arrays["x"], b) < 1e-8
                continue
            with pytest.raises(InputError, match=rf"entry \(1, 1\) is zero, or is so beside .*, and method {method} divides"):
                computed(small, b, method=method)
    A[64:128, 64:128] = 1
    with pytest.raises(InputError, match="the block of rows 64 to 127 on the diagonal is singular"):
        computed(A, gaussian(130, 1), method="jacobi", preconditioner="block_jacobi")
    for options, words in (
        (
            {"method": "cg", "relaxation": 1.2},
            r"params\.relaxation: goes with method jacobi or gauss_seidel; got 1\.2 with method cg",
        ),
        ({"method": "direct", "relaxation": 1.2}, r"params\.relaxation: goes with"),
        ({"method": "jacobi", "relaxation": 2.0}, "relaxation: got 2.0"),
        ({"method": "gauss_seidel", "preconditioner": "jacobi"}, "must be none with method gauss_seidel; got jacobi"),
        ({"method": "jacobi", "preconditioner": "jacobi"}, "must be none or block_jacobi with method jacobi"),
    ):
        with pytest.raises(SpecError, match=words):
            computed(definite(10), gaussian(N, 1), **options)


@pytest.mark.parametrize("method", METHODS)
def test_iterations_go_on_to_the_same_bits(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "KEPT_FLOPS", 6 * 2.0 * N * N * 2)
    A = with_eigenvalues(np.linspace(1, 2, N))
    path, rhs = store(tmp_path / "a.zarr", A, chunks=(50, N)), store(tmp_path / "b.zarr", gaussian(N, 2), chunks=(N, 2))
    whole, every = resumed_or_whole(path, rhs, None, method)
    with pytest.raises(OSError, match="the disk is gone"):
        resumed_or_whole(path, rhs, tmp_path / "checkpoint", method, stop_at="product-8")
    again, rest = resumed_or_whole(path, rhs, tmp_path / "checkpoint", method)
    assert again == whole
    assert len(rest) < len(every)
