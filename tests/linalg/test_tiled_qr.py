"""QR of panels in row blocks: every hard matrix and shape, in the formats and with the R of whole panels."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
from factorizations import assert_qr, factor
from helpers import DTYPES, Array, each_of, eps, gaussian, two_dtypes

from dlscale import gallery
from dlscale.errors import NonFiniteError, SpecError
from dlscale.linalg.qr.row_blocks import signed_lu

#: With panels of 32: one column, one panel, one column over it, two panels and a quarter, several panels a row block.
ORDERS = (1, 32, 33, 73, 150)
#: Tall and wide; row blocks with fewer rows than a panel has columns, with none at all, and beyond the last column.
SHAPES = [(7, 1), (300, 90), (90, 300), (65, 64), (64, 65), (40, 200), (200, 33)]


def blocks(m: int, panel: int) -> int:
    return min(3, -(-m // panel))


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", gallery.HARD_SQUARE)
def test_hard_matrices(name: str, dtype: str) -> None:
    for n, group in zip(ORDERS, (None, 1, 1, 2, 2), strict=True):
        A, panel = gallery.HARD_SQUARE[name](n, dtype), min(n, 32)
        outcome, arrays = factor("qr", A, panel=panel, row_blocks=blocks(n, panel), group=group)
        assert outcome.certificate.passed, (n, outcome.certificate)
        assert_qr(A, arrays["q"], arrays["r"])


@pytest.mark.parametrize("name", ["singular", "zeros", "rank 20", "equal columns"])
def test_rank_deficient(name: str) -> None:
    for m, n in ((150, 150), (200, 70), (70, 200)):
        k = min(m, n)
        A: Array = {
            "singular": lambda m=m, n=n, k=k: np.pad(gallery.singular_at(k, k // 2), ((0, m - k), (0, n - k))),
            "zeros": lambda m=m, n=n: np.zeros((m, n)),
            "rank 20": lambda m=m, n=n: gallery.rank_deficient(m, n, 20),
            "equal columns": lambda m=m, n=n: np.tile(gaussian(m, 1), (1, n)),
        }[name]()
        outcome, arrays = factor("qr", A, panel=32, row_blocks=3, group=2)
        assert outcome.certificate.passed, outcome.certificate
        assert_qr(A, arrays["q"], arrays["r"])


@pytest.mark.parametrize("dtype", ["f8", "c8"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_modes(shape: tuple[int, int], dtype: str) -> None:
    """R is that of whole panels; Q is applied from the reflectors where it is not formed."""
    A, panel = gaussian(*shape, dtype), min(32, shape[1])
    cut = {"panel": panel, "row_blocks": blocks(shape[0], panel), "group": 2}
    outcome, arrays = factor("qr", A, **cut)
    assert outcome.certificate.passed, outcome.certificate
    assert_qr(A, arrays["q"], arrays["r"])
    _, whole = factor("qr", A, panel=panel)
    np.testing.assert_allclose(arrays["r"], whole["r"], rtol=0, atol=500 * eps(A) * np.abs(whole["r"]).max())
    outcome, only_r = factor("qr", A, mode="r", **cut)
    assert outcome.certificate.passed
    assert list(only_r) == ["r"]
    np.testing.assert_array_equal(only_r["r"], arrays["r"])


@pytest.mark.parametrize("dtype", ["f4", "c16"])
@pytest.mark.parametrize("shape", [(300, 90), (90, 300)], ids=str)
def test_raw_is_the_format_of_geqrt(shape: tuple[int, int], dtype: str) -> None:
    A, panel = gaussian(*shape, dtype), 32
    outcome, arrays = factor("qr", A, panel=panel, row_blocks=3, group=2, mode="raw")
    assert outcome.certificate.passed
    (gemqrt,) = scipy.linalg.get_lapack_funcs(("gemqrt",), (A,))
    v, t = np.asfortranarray(arrays["qr"][:, : min(shape)]), np.asfortranarray(arrays["t"])
    adjoint = "T" if np.dtype(dtype).kind == "f" else "C"
    applied, info = gemqrt(v, t, np.asfortranarray(A), side="L", trans=adjoint)
    assert info == 0
    np.testing.assert_allclose(applied, np.triu(arrays["qr"]), rtol=0, atol=500 * eps(A) * np.abs(A).max())


def test_panels_that_do_not_divide_the_columns() -> None:
    A = gaussian(2321, 2321)
    outcome, arrays = factor("qr", A, panel=1024, row_blocks=2, mode="r")
    assert outcome.certificate.passed, outcome.certificate
    X, R = gaussian(2321, 8, seed=1), arrays["r"]
    gram, again = A.T @ (A @ X), R.T @ (R @ X)
    assert np.linalg.norm(gram - again) / (np.linalg.norm(gram) * 2321 * eps(A)) < 30


@pytest.mark.parametrize(("dtype", "size"), [("f8", 1e200), ("c16", 1e-200), ("f4", 1e30)])
@pytest.mark.parametrize("mode", ["reduced", "r"])
def test_sizes_whose_squares_overflow(mode: str, dtype: str, size: float) -> None:
    A = gaussian(100, 60, dtype) * np.dtype(dtype).type(size)
    outcome, arrays = factor("qr", A, panel=32, row_blocks=3, group=1, mode=mode)
    assert outcome.certificate.passed, outcome.certificate
    assert outcome.certificate.checks[0].value > 1e-4
    if mode == "reduced":
        assert_qr(A, arrays["q"], arrays["r"])


def test_not_finite_is_refused_with_its_place() -> None:
    A = gaussian(100, 60)
    A[70, 40] = np.nan
    with pytest.raises(NonFiniteError) as raised:
        factor("qr", A, panel=32, row_blocks=3, group=1)
    assert (raised.value.row, raised.value.column) == (70, 40)


@pytest.mark.parametrize("dtype", DTYPES)
def test_signed_lu(dtype: str) -> None:
    """Of the top of any orthonormal columns, also those without a diagonal or with nothing in the top."""
    Q, _ = np.linalg.qr(gaussian(60, 20, dtype))
    for top in (Q[:20], np.fliplr(np.eye(20, dtype=dtype)), np.zeros((20, 20), dtype), np.eye(1, dtype=dtype)):
        LU = top.copy()
        S = signed_lu(LU)
        assert set(S.tolist()) <= {-1.0, 1.0}
        assert np.abs(np.diag(LU)).min() >= 1 - 100 * eps(Q)
        L = np.tril(LU, -1) + np.eye(len(LU), dtype=dtype)
        np.testing.assert_allclose(L @ np.triu(LU), top - np.diag(S), rtol=0, atol=100 * eps(Q))


def test_row_blocks_mean_panels() -> None:
    """Also for a tall matrix, which would go by passes."""
    outcome, arrays = factor("qr", gaussian(200, 16), row_blocks=2)
    assert outcome.certificate.passed
    assert_qr(gaussian(200, 16), arrays["q"], arrays["r"])
    with pytest.raises(SpecError, match="leave it out, or panel, row_blocks"):
        factor("qr", gaussian(200, 16), row_blocks=2, block_rows=50)
