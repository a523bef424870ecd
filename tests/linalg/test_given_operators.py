"""Operators that users give by their products: eigenpairs and systems, certified by these."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, Array, departure, eps, gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, aslinearoperator

import dlscale
from dlscale.errors import CertificateError, InputError, NumericalError, SpecError

THRESHOLD = 30


def hermitian(n: int, dtype: str, *, definite: bool = False) -> Array:
    """Eigenvalues from -1 to 27, denser at 0; from 1 to 3 of a definite one."""
    Q = np.linalg.qr(gaussian(n, n, "c16" if np.dtype(dtype).kind == "c" else "f8")).Q
    values = np.linspace(1, 3, n) if definite else np.linspace(-1, 3, n) ** 3
    A = (Q * values) @ Q.conj().T
    return ((A + A.conj().T) / 2).astype(dtype)


def operator(A: Array) -> dlscale.Operator:
    return dlscale.Operator(A.shape, lambda X: A @ X, rmatmat=lambda Y: A.conj().T @ Y, dtype=A.dtype)


@settings(max_examples=30, deadline=None)
@given(
    n=st.sampled_from((1, 2, 9, 60, 150)),
    dtype=st.sampled_from(DTYPES),
    which=st.sampled_from(["LM", "LA", "SA"]),
    power=st.integers(-100, 100),
    scipys=st.booleans(),
)
def test_eigenpairs(n: int, dtype: str, which: Any, power: int, scipys: bool) -> None:
    """Of any size: products of products would be out of range."""
    k, scale = min(n, 3), np.ldexp(1.0, power).astype(dtype)
    A = hermitian(n, dtype)
    M = A * scale
    values, vectors = dlscale.eigsh(aslinearoperator(M) if scipys else operator(M), k, which=which)
    assert (values.dtype, vectors.dtype) == (M.real.dtype, M.dtype)
    truth = np.linalg.eigvalsh(A.astype("c16"))
    order = {"LM": np.argsort(-np.abs(truth)), "LA": np.arange(n)[::-1], "SA": np.arange(n)}[which]
    size = np.abs(truth).max()
    np.testing.assert_allclose(values / scale.real, np.sort(truth[order[:k]]), atol=THRESHOLD * n * eps(A) * size)
    R = A.astype("c16") @ vectors - vectors * (values / scale.real)
    assert np.linalg.norm(R, axis=0).max() <= THRESHOLD * n * eps(A) * size
    assert departure(vectors) <= THRESHOLD * n * eps(A)


def test_eigenpairs_of_what_has_no_matrix() -> None:
    """The second difference on a line, of which the eigenvalues are known."""
    n = 400
    calls = []

    def second_difference(X: Array) -> Array:
        calls.append(X.shape[1])
        Y = 2 * X
        Y[1:] -= X[:-1]
        Y[:-1] -= X[1:]
        return Y

    values, _ = dlscale.eigsh(dlscale.Operator((n, n), second_difference), 4, which="LA")
    np.testing.assert_allclose(values, np.sort(4 * np.sin(np.pi * np.arange(n - 3, n + 1) / (2 * (n + 1))) ** 2), rtol=1e-12)
    # Blocks, and not vectors.
    assert min(calls) >= 4


@settings(max_examples=30, deadline=None)
@given(
    n=st.sampled_from((1, 2, 9, 80)),
    k=st.integers(1, 3),
    dtype=st.sampled_from(DTYPES),
    method=st.sampled_from(["cg", "minres", "gmres"]),
    power=st.integers(-60, 60),
    scipys=st.booleans(),
)
def test_systems(n: int, k: int, dtype: str, method: str, power: int, scipys: bool) -> None:
    A = hermitian(n, dtype, definite=True)
    if method == "gmres":
        A = (A + gaussian(n, n, dtype, seed=1) / n).astype(dtype)
    A = A * np.ldexp(1.0, power).astype(dtype)
    B = gaussian(n, k, dtype, seed=2)
    b = B[:, 0] if k == 1 else B
    rtol = 1e-3 if A.real.dtype == np.float32 else 1e-9
    x, info = getattr(dlscale, method)(aslinearoperator(A) if scipys else operator(A), b, rtol=rtol)
    assert info == 0
    assert x.shape == b.shape
    assert x.dtype == A.dtype
    residual = np.linalg.norm(b.astype("c16") - A.astype("c16") @ x, axis=0) / np.linalg.norm(b.astype("c16"), axis=0)
    assert residual.max() <= 1.01 * rtol


def test_complex_right_hand_sides_of_a_real_operator() -> None:
    A, b = hermitian(30, "f8", definite=True), gaussian(30, 1, "c16")[:, 0]
    x, _ = dlscale.cg(operator(A), b, rtol=1e-10)
    np.testing.assert_allclose(A @ x, b, rtol=1e-8)


def test_what_is_not_symmetric_is_refused() -> None:
    A = hermitian(60, "f8")
    A[3, 7] += 1e-3
    for solve in (lambda: dlscale.eigsh(operator(A)), lambda: dlscale.cg(operator(A), np.ones(60))):
        with pytest.raises(InputError, match=r"A must be symmetric.*; A - A' is about \d\.\de-0[45] of A"):
            solve()
    with pytest.raises(InputError, match="A must be Hermitian for minres"):
        dlscale.minres(operator(gaussian(20, 20, "c16")), np.ones(20))


def test_products_that_change_are_found() -> None:
    """What is handed out was measured on products of its own."""
    A, count = hermitian(80, "f8"), [0]

    def drifting(X: Array) -> Array:
        count[0] += 1
        return np.asarray(A @ X + 1e-7 * count[0] * np.arange(80)[:, None] * X)

    with pytest.raises((CertificateError, NumericalError)):
        dlscale.eigsh(dlscale.Operator((80, 80), drifting), 3, which="LA")


@pytest.mark.parametrize(
    ("product", "error", "words"),
    [
        (lambda X: X[:-1], InputError, r"matmat must return numbers of shape \(20, \d+\); got shape \(19, \d+\)"),
        (lambda X: X * 1j, InputError, "matmat returned complex numbers where dtype says float64"),
        (lambda X: None, InputError, "matmat must return numbers of shape .* dtype object"),
        (lambda X: X / np.where(np.arange(20) == 4, 0, np.inf)[:, None] * 0, NumericalError, "matmat returned nan at row 4"),
    ],
)
def test_what_a_product_must_be(product: Any, error: type[Exception], words: str) -> None:
    with np.errstate(all="ignore"), pytest.raises(error, match=words):
        dlscale.eigsh(dlscale.Operator((20, 20), product), 2)


def test_what_does_not_suit_is_refused() -> None:
    A = gaussian(6, 4)
    for shape in ((3,), (3, 0), (3, 2.5), "ab"):
        with pytest.raises(SpecError, match="shape must be two numbers of at least 1"):
            dlscale.Operator(shape, lambda X: X)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="matmat and rmatmat must be functions"):
        dlscale.Operator((3, 3), A)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="A must be square to have eigenvalues; got 6 x 4"):
        dlscale.eigsh(operator(A), 2)
    with pytest.raises(SpecError, match="k must be between 1 and 5"):
        dlscale.eigsh(operator(hermitian(5, "f8")), 6)
    with pytest.raises(SpecError, match="b must have 5 rows like A; got 4"):
        dlscale.cg(operator(hermitian(5, "f8")), np.ones(4))
    with pytest.raises(SpecError, match="M must be none with an operator"):
        dlscale.cg(operator(hermitian(5, "f8")), np.ones(5), M="jacobi")
    with pytest.raises(NumericalError, match="Conjugate gradients ended not definite"):
        dlscale.cg(operator(-hermitian(30, "f8", definite=True)), np.ones(30))
    with pytest.raises(NumericalError, match=r"ended not definite .* The preconditioner that was given is not positive definite"):
        dlscale.minres(hermitian(30, "f8"), np.ones(30), M=-np.eye(30))
    with pytest.raises(NumericalError, match="ended broken down"):
        dlscale.minres(hermitian(30, "f8"), np.ones(30), M=np.zeros((30, 30)))
    with pytest.raises(SpecError, match="has no rmatmat"):
        dlscale.Operator((3, 3), lambda X: X).adjoint(np.ones((3, 1)))
    assert repr(operator(A)) == "dlscale.Operator(6 x 4, float64)"


@pytest.mark.parametrize("solve", [dlscale.cg, dlscale.minres, dlscale.gmres])
def test_a_function_may_fill_the_same_array_each_time(solve: Any) -> None:
    A, filled = hermitian(40, "f8", definite=True), dict[tuple[int, ...], Array]()
    same = dlscale.Operator(A.shape, lambda X: np.matmul(A, X, out=filled.setdefault(X.shape, np.zeros(X.shape))))
    np.testing.assert_allclose(A @ solve(same, np.ones(40), rtol=1e-9).x, 1, atol=1e-6)


def test_vectors_alone_are_enough_for_scipy_s() -> None:
    A = hermitian(40, "f8")
    values, _ = dlscale.eigsh(LinearOperator((40, 40), matvec=lambda v: A @ v, dtype=float), 2, which="LA")
    np.testing.assert_allclose(values, np.linalg.eigvalsh(A)[-2:], rtol=1e-12)
