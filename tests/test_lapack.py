"""BLAS and LAPACK in place, on views of larger arrays, against NumPy and SciPy; other threads run meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Literal
from unittest.mock import Mock

import numpy as np
import pytest
import scipy.linalg
from helpers import DTYPES, each_of, eps, gaussian

import dlscale
from dlscale.arrays import is_laid_out
from dlscale.lapack import (
    add_hermitian_square,
    add_outer_packed,
    apply_reflectors,
    factor_cholesky,
    factor_lu,
    factor_qr,
    interchanges,
    largest_eigenpairs,
    multiply_add,
    multiply_triangular,
    pack_upper,
    solve_lower,
    solve_right,
    solve_upper,
    subtract_hermitian_product,
    svd,
    unpack_upper,
)
from dlscale.storage.matrix import ArrayMatrix

OPS = {"N": lambda A: A, "T": lambda A: A.T, "C": lambda A: A.conj().T}


def view(A: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A as a part of a larger array of sevens, and that array."""
    m, n = A.shape
    room = np.full((m + 3, n + 5), 7, A.dtype)
    inside = room[2 : m + 2, 1 : n + 1]
    inside[...] = A
    return inside, room


def assert_frame_untouched(room: np.ndarray) -> None:
    room[2:-1, 1:-4] = 7
    assert (room == 7).all()


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("op_a", OPS)
@pytest.mark.parametrize("op_b", OPS)
def test_multiply_add(op_a: str, op_b: str, dtype: str) -> None:
    m, n, k = 13, 7, 5
    A, B = gaussian(*((m, k) if op_a == "N" else (k, m)), dtype), gaussian(*((k, n) if op_b == "N" else (n, k)), dtype)
    (a, _), (b, _), (c, room) = view(A), view(B), view(gaussian(m, n, dtype))
    expected = 0.5 * c + 2.0 * OPS[op_a](A) @ OPS[op_b](B)
    assert multiply_add(a, b, c, alpha=2.0, beta=0.5, op_a=op_a, op_b=op_b) is c
    np.testing.assert_allclose(c, expected, rtol=0, atol=100 * eps(A))
    assert_frame_untouched(room)


@pytest.mark.parametrize("shape", [(0, 4, 3), (4, 0, 3), (1, 1, 1), (1, 6, 4), (6, 1, 4)], ids=str)
def test_products_that_are_small_or_empty(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    A, B = gaussian(m, k), gaussian(k, n)
    np.testing.assert_allclose(multiply_add(A, B, np.ones((m, n))), 1 - A @ B, atol=1e-14)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("order", ["C", "F"])
def test_hermitian_square(order: Literal["C", "F"], dtype: str) -> None:
    """One triangle is added to, the other not touched."""
    A, G = np.asarray(gaussian(40, 9, dtype), order=order), np.ones((9, 9), dtype)
    assert add_hermitian_square(A, G) is G
    np.testing.assert_allclose(G, 1 + np.triu(A.conj().T @ A), atol=400 * eps(A))
    add_hermitian_square(A[:0], G)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("n", [0, 1, 9])
def test_packed_triangles(n: int, dtype: str) -> None:
    """Only the upper triangle is packed; a product is added to it."""
    G, x = gaussian(n, n, dtype), gaussian(1, n, dtype)[0]
    G = G + G.conj().T
    g, _ = view(G)
    packed = pack_upper(g)
    np.testing.assert_array_equal(packed, G[np.triu_indices(n)])
    np.testing.assert_array_equal(unpack_upper(packed, n), np.triu(G))
    assert add_outer_packed(x, packed, alpha=-2.0) is packed
    np.testing.assert_allclose(unpack_upper(packed, n), np.triu(G - 2 * np.outer(x.conj(), x)), atol=200 * eps(G))


@pytest.mark.parametrize("dtype", DTYPES)
def test_hermitian_product(dtype: str) -> None:
    """One triangle is subtracted from, the other not touched."""
    L, C = gaussian(9, 5, dtype), np.ones((9, 9), dtype)
    (x, _), (c, room) = view(L), view(C)
    assert subtract_hermitian_product(x, c) is c
    np.testing.assert_allclose(c, 1 - np.tril(L @ L.conj().T), atol=200 * eps(L))
    assert_frame_untouched(room)
    subtract_hermitian_product(x[:, :0], c)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("unit", [False, True])
def test_triangular_solves_and_products(unit: bool, op: str, dtype: str) -> None:
    """The other triangle, and a unit diagonal, are not looked at."""
    A, B = gaussian(9, 9, dtype) / 9 + 3 * np.eye(9, dtype=dtype), gaussian(9, 4, dtype)
    L, U = np.tril(A, -1 if unit else 0), np.triu(A, 1 if unit else 0)
    if unit:
        L, U = L + np.eye(9, dtype=dtype), U + np.eye(9, dtype=dtype)
    (a, _), tolerance = view(A), 200 * eps(A)
    for solve, T in ((solve_lower, L), (solve_upper, U)):
        x, room = view(B)
        solve(a, x, op=op, unit=unit)
        np.testing.assert_allclose(OPS[op](T) @ x, B, atol=tolerance * np.abs(x).max() * 9)
        assert_frame_untouched(room)
    for uplo, T in (("L", L), ("U", U)):
        x, room = view(B)
        multiply_triangular(a, x, uplo=uplo, op=op, unit=unit)
        np.testing.assert_allclose(x, OPS[op](T) @ B, atol=tolerance * np.abs(x).max())
        assert_frame_untouched(room)
        x, room = view(np.ascontiguousarray(B.T))
        solve_right(x, a, uplo=uplo, op=op, unit=unit)
        np.testing.assert_allclose(x @ OPS[op](T), B.T, atol=tolerance * np.abs(x).max() * 9)
        assert_frame_untouched(room)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (130, 20), (20, 20), (8, 20), (1, 9), (9, 1)], ids=str)
def test_factor_lu_is_getrf(shape: tuple[int, int], dtype: str) -> None:
    A = gaussian(*shape, dtype)
    panel, room = view(A)
    pivots, singular = factor_lu(panel)
    (getrf,) = scipy.linalg.get_lapack_funcs(("getrf",), (A,))
    lu, piv, _ = getrf(A)
    assert singular == 0
    np.testing.assert_array_equal(pivots, piv)
    np.testing.assert_allclose(panel, lu, rtol=0, atol=100 * eps(A) * np.abs(lu).max())
    targets, sources = interchanges(pivots)
    P = np.arange(shape[0])
    P[targets] = P[sources]
    k = min(shape)
    L, U = np.tril(panel[:, :k], -1) + np.eye(shape[0], k, dtype=dtype), np.triu(panel[:k])
    np.testing.assert_allclose(L @ U, A[P], atol=100 * eps(A) * np.abs(A).max())
    assert_frame_untouched(room)


def test_factor_lu_names_the_first_zero_pivot() -> None:
    A = gaussian(10, 6)
    A[:, [2, 4]] = 0
    assert factor_lu(A)[1] == 3


def test_interchanges_in_a_row() -> None:
    """Row 0 goes to 3, on to 5, and a row that comes back stays where it was."""
    A = np.arange(6)
    for i, p in enumerate([3, 1, 2, 5, 4, 5]):
        A[[i, p]] = A[[p, i]]
    targets, sources = interchanges(np.array([3, 1, 2, 5, 4, 5]))
    B = np.arange(6)
    B[targets] = B[sources]
    np.testing.assert_array_equal(A, B)
    assert all(len(part) == 0 for part in interchanges(np.arange(4)))


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (130, 20), (20, 20), (8, 20), (1, 9), (9, 1)], ids=str)
def test_factor_qr(shape: tuple[int, int], dtype: str) -> None:
    """Q = I - V T V^H is unitary, Q R = A, and R is LAPACK's up to phases."""
    A = gaussian(*shape, dtype)
    panel, room = view(A)
    T = factor_qr(panel)
    k = min(shape)
    V = np.tril(panel[:, :k], -1)
    V[:k] += np.eye(k, dtype=dtype)
    assert (np.tril(T, -1) == 0).all()
    Q = np.eye(shape[0]) - V @ T @ V.conj().T
    np.testing.assert_allclose(Q.conj().T @ Q, np.eye(shape[0]), atol=100 * eps(A))
    np.testing.assert_allclose(Q @ np.triu(panel), A, atol=200 * eps(A) * np.abs(A).max())
    B = gaussian(shape[0], 5, dtype)
    for op in ("N", "C"):
        C, frame = view(B)
        apply_reflectors(panel[:, :k], T, C, op=op)
        np.testing.assert_allclose(C, OPS[op](Q) @ B, atol=200 * eps(A) * np.abs(B).max())
        assert_frame_untouched(frame)
    assert_frame_untouched(room)


@pytest.mark.parametrize("dtype", DTYPES)
def test_factor_cholesky(dtype: str) -> None:
    for n in (1, 2, 40):
        B = gaussian(n, n, dtype)
        A = B @ B.conj().T + np.eye(n, dtype=dtype)
        block, room = view(A)
        block[np.triu_indices(n, 1)] = np.nan
        assert factor_cholesky(block) == 0
        np.testing.assert_allclose(block, np.linalg.cholesky(A), atol=100 * n * eps(A))
        assert_frame_untouched(room)
    A = np.eye(6, dtype=dtype)
    A[3, 3] = -1
    assert factor_cholesky(A) == 4


@pytest.mark.parametrize("k", [1, 8, 9, 64])
@pytest.mark.parametrize("spectrum", ["decaying", "equal", "zero"])
@each_of(dtype=DTYPES)
def test_largest_eigenpairs(dtype: str, spectrum: str, k: int) -> None:
    n = 64
    Q, _ = np.linalg.qr(gaussian(n, n, dtype))
    known = {"decaying": 0.5 ** np.arange(n), "equal": np.ones(n), "zero": np.zeros(n)}[spectrum]
    G = (Q * known.astype(dtype)) @ Q.conj().T
    G = (G + G.conj().T) / 2
    before = G.copy()
    values, V = largest_eigenpairs(G, k)
    np.testing.assert_array_equal(G, before)
    assert V.shape == (n, k)
    assert values.dtype == G.real.dtype
    np.testing.assert_allclose(values, known[:k], atol=20 * eps(G))
    np.testing.assert_allclose(G @ V, V * values, atol=20 * eps(G))
    np.testing.assert_allclose(V.conj().T @ V, np.eye(k), atol=50 * eps(G))


def test_wrong_arguments_raise() -> None:
    """An argument that LAPACK refuses is a fault of ours, not a result."""
    from dlscale.lapack import call, cython_lapack

    with pytest.raises(ValueError, match="LAPACK potrf"):
        call(cython_lapack, "potrf", np.dtype("f8"), "?", 2, np.eye(2), 2)


def test_the_interpreter_is_free_meanwhile() -> None:
    """A Python thread counts on while another factors; where it must wait, it counts at the edges at most."""
    A = gaussian(1500, 1500)

    def counted() -> int:
        n, panel, begun, done = 0, A.copy(), threading.Event(), threading.Event()
        thread = threading.Thread(target=lambda: (begun.set(), factor_lu(panel), done.set()))
        thread.start()
        begun.wait()
        while not done.is_set():
            n += 1
            time.sleep(1e-4)
        thread.join()
        return n

    # A machine with much else to do may let it count late in one of them, but not in each.
    assert any(counted() > 10 for _ in range(30))


#: Rows in an order, or at distances, that BLAS has no name for.
LAYOUTS = {
    "reversed": lambda A: np.ascontiguousarray(A[::-1])[::-1],
    "columns reversed": lambda A: np.ascontiguousarray(A[:, ::-1])[:, ::-1],
    "repeated": lambda A: np.broadcast_to(A[:1], A.shape),
    "overlapping": lambda A: np.lib.stride_tricks.sliding_window_view(A.ravel()[: len(A) + A.shape[1] - 1], A.shape[1]),
    "packed records": lambda A: _packed(A),
    "transposed and reversed": lambda A: np.asfortranarray(A[::-1])[::-1],
}


def _packed(A: np.ndarray) -> np.ndarray:
    records = np.zeros(len(A), dtype=[("flag", "u1"), ("row", A.dtype, A.shape[1:])])
    records["row"] = A
    return records["row"]


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_that_blas_does_not_take_are_copied(layout: str, dtype: str, capfd: pytest.CaptureFixture[str]) -> None:
    A = LAYOUTS[layout](gaussian(60, 5, dtype))
    copy = np.array(A, order="C", copy=True)
    assert not is_laid_out(A)
    assert is_laid_out(copy)
    np.testing.assert_array_equal(A, copy)
    G = np.triu(add_hermitian_square(A, np.zeros((5, 5), A.dtype)))
    np.testing.assert_array_equal(G, np.triu(add_hermitian_square(copy, np.zeros((5, 5), A.dtype))))
    for part in (slice(None), slice(0, 1), slice(3, 9)):
        assert is_laid_out(ArrayMatrix(A).region((part.start or 0, part.stop or 60), (1, 4)))
    pca, expected = (dlscale.PCA(2).fit(X) for X in (A.real, copy.real.copy()))
    np.testing.assert_array_equal(pca.components_, expected.components_)
    np.testing.assert_array_equal(dlscale.svd(A).s, dlscale.svd(copy).s)
    for result, peer in zip(dlscale.qr(A), dlscale.qr(copy), strict=True):
        np.testing.assert_array_equal(result, peer)
    assert "illegal value" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("view", [np.s_[:], np.s_[::2], np.s_[:, ::3], np.s_[2:3], np.s_[:, :1], np.s_[5:2]])
def test_parts_of_arrays_are_taken_as_they_lie(view: object) -> None:
    for A in (np.ones((12, 9)), np.asfortranarray(np.ones((12, 9)))):
        assert is_laid_out(A[view])


@pytest.mark.parametrize("dtype", DTYPES)
def test_lu_exchanges_rows_for_subnormal_pivots(dtype: str) -> None:
    """As it does for any other; what is left of the last columns here has no normal number."""
    tiny = float(np.finfo(dtype).smallest_subnormal)
    A = np.array([[1, 2, 1, 3], [0, 0, 900 * tiny, 1], [0, 0, 100 * tiny, 2], [0, 4, 0, 0]], dtype)
    packed = A.copy()
    pivots, singular = factor_lu(packed)
    L, U = np.tril(packed, -1) + np.eye(4), np.triu(packed)
    PA = A.copy()
    for i, p in enumerate(pivots.tolist()):
        PA[[i, p]] = PA[[p, i]]
    assert not singular
    assert pivots[2] == 3
    np.testing.assert_allclose(L @ U, PA, rtol=4 * np.finfo(dtype).eps, atol=tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (3, 5, 5)])
def test_singular_vectors_are_found_where_divide_and_conquer_does_not_converge(
    shape: tuple[int, ...], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    A = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    found = [svd(A, full_matrices=full) for full in (False, True)]
    with monkeypatch.context() as patch:
        patch.setattr(np.linalg, "svd", Mock(side_effect=np.linalg.LinAlgError("SVD did not converge")))
        again = [svd(A, full_matrices=full) for full in (False, True)]
    tolerance = 20 * eps(A)
    for (U, s, VH), peers in zip(again, found, strict=True):
        assert [part.shape for part in (U, s, VH)] == [part.shape for part in peers]
        np.testing.assert_allclose(s, peers[1], atol=tolerance * float(s.max()))
        k = s.shape[-1]
        np.testing.assert_allclose((U[..., :k] * s[..., None, :]) @ VH[..., :k, :], A, atol=tolerance * float(s.max()))
