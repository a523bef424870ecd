"""The estimate of the condition number, beside the true one."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from helpers import gaussian

from dlscale import gallery
from dlscale.linalg.solve.condition import condition, longest_image, one_norm


@pytest.mark.parametrize("dtype", ["f8", "c16"])
@pytest.mark.parametrize("n", [1, 2, 3, 10, 60])
@pytest.mark.parametrize("name", [name for name in gallery.HARD_SQUARE if name != "hilbert"])
def test_within_a_factor_of_three_and_never_above(name: str, n: int, dtype: str) -> None:
    A = gallery.HARD_SQUARE[name](n, dtype)
    lu = scipy.linalg.lu_factor(A)
    found = condition(
        np.linalg.norm(A, 1),
        lambda X: scipy.linalg.lu_solve(lu, X),
        lambda X: scipy.linalg.lu_solve(lu, X, trans=2),
        n,
        complex_valued=dtype == "c16",
    )
    true = np.linalg.norm(A, 1) * np.linalg.norm(scipy.linalg.lu_solve(lu, np.eye(n)), 1)
    assert true / 3 <= found <= true * (1 + 1e-6)


def test_the_alternating_vector_finds_what_cancels() -> None:
    """A matrix whose products with ones vanish (Higham 1988, section 2): the estimate is not zero."""
    C = np.array([[1.0, -1.0], [-1.0, 1.0]])
    C = np.kron(np.eye(8), C)
    assert one_norm(lambda X: C @ X, lambda X: C.T @ X, 16) == pytest.approx(2.0)


def test_the_same_estimate_twice() -> None:
    C = gaussian(200, 200)
    found = {one_norm(lambda X: C @ X, lambda X: C.T @ X, 200) for _ in range(2)}
    assert len(found) == 1
    assert found.pop() == pytest.approx(np.linalg.norm(C, 1), rel=0.2)


@pytest.mark.parametrize("n", [4, 200])
def test_overflow_is_infinite(n: int) -> None:
    assert one_norm(lambda X: np.full_like(X, np.inf), lambda X: X, n) == np.inf
    assert condition(0.0, lambda X: X, lambda X: X, n) == np.inf


def centred(n: int, dtype: str, seed: int, *, size: float, order: int) -> np.ndarray:
    """The identity of order n but for a block of rows and columns that sum to one."""
    rng = np.random.default_rng(seed)
    C = rng.standard_normal((order, order)) + (1j * rng.standard_normal((order, order)) if dtype == "c16" else 0)
    C = C - C.mean(0) - C.mean(1)[:, None] + C.mean()
    A, at = np.eye(n, dtype=dtype), int(rng.integers(0, n - order + 1))
    A[at : at + order, at : at + order] += size * C
    return A


def unseen(n: int, dtype: str, seed: int, *, size: float) -> np.ndarray:
    """A diagonal matrix, and a large one of rank one that the vectors which an estimate begins with do not see."""
    seen = [np.eye(n)[:, :6]]

    def identity(X: np.ndarray) -> np.ndarray:
        seen.append(X[:, :3])
        return X

    longest_image(identity, lambda X: identity(X[:, :2]) @ np.ones((2, X.shape[1])), n, complex_valued=dtype == "c16")
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(np.hstack(seen))[0]
    u, v = (w - Q @ (Q.conj().T @ w) for w in (rng.standard_normal(n), rng.standard_normal(n) * np.geomspace(1e-3, 1, n)))
    return np.diag(np.where(np.arange(n) < 6, 2, 1)).astype(dtype) + size * np.outer(u, v.conj())


@pytest.mark.parametrize("dtype", ["f8", "c16"])
@pytest.mark.parametrize("n", [40, 129, 300])
@pytest.mark.parametrize("size", [1e3, 1e9])
def test_what_the_first_vectors_do_not_see(size: float, n: int, dtype: str) -> None:
    for seed in range(20):
        for C in (centred(n, dtype, seed, size=size, order=3 + seed % 5), unseen(n, dtype, seed, size=size)):
            found = longest_image(lambda X, C=C: C @ X, lambda X, C=C: C.conj().T @ X, n, complex_valued=dtype == "c16")
            true = np.linalg.norm(C, 1)
            assert true / 10 <= found.estimate <= true * (1 + 1e-9)
            assert true * (1 - 1e-9) <= found.bound <= 300 * true
            assert np.abs(C @ found.x).sum() == pytest.approx(found.estimate * np.abs(found.x).sum())


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_the_bound_is_true_and_not_far(dtype: str) -> None:
    """Of matrices whose columns are all alike, one alone, and long in few entries or in all."""
    rng = np.random.default_rng(0)
    for seed in range(50):
        n = int(rng.integers(129, 400))
        C = rng.standard_normal((n, n)).astype(dtype)
        for D in (np.eye(n, dtype=dtype), C, C * np.geomspace(1, 1e-8, n), C * np.geomspace(1, 1e-8, n)[:, None], np.linalg.inv(C)):
            found = longest_image(lambda X, D=D: D @ X, lambda X, D=D: D.conj().T @ X, n, complex_valued=dtype == "c16", seed=seed)
            assert 1 - 1e-9 <= found.bound / np.linalg.norm(D, 1) <= 100
