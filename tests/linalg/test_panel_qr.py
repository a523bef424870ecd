"""Householder QR by panels: every hard matrix and shape, judged as LAPACK's testers judge it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from factorizations import assert_qr, factor, factor_in_files, scaled_residual
from helpers import LAYOUTS, THREADS, Array, each_of, eps, gaussian, store, two_dtypes

from dlscale import gallery
from dlscale.certificates import LAPACK_THRESHOLD
from dlscale.engine.clusters import open_cluster
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.errors import NonFiniteError, NumericalError, SpecError

ORDERS = (1, 2, 32, 33, 150)
SHAPES = [(1, 7), (7, 1), (300, 90), (90, 300), (65, 64), (64, 65), (20, 200), (200, 33)]


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", gallery.HARD_SQUARE)
def test_hard_matrices(name: str, dtype: str) -> None:
    """Panels of 32, two of them a group: one column, one panel, one column over a panel, several groups."""
    for n in ORDERS:
        A = gallery.HARD_SQUARE[name](n, dtype)
        outcome, arrays = factor("qr", A, panel=min(n, 32), group=2)
        assert outcome.certificate.passed, (n, outcome.certificate)
        assert_qr(A, arrays["q"], arrays["r"])


@pytest.mark.parametrize("name", ["singular", "zeros", "rank 20", "equal columns"])
@pytest.mark.parametrize("shape", [(100, 100), (150, 70), (70, 150)], ids=str)
def test_rank_deficient(shape: tuple[int, int], name: str) -> None:
    m, n = shape
    k = min(shape)
    A: Array = {
        "singular": lambda: np.pad(gallery.singular_at(k, k // 2), ((0, m - k), (0, n - k))),
        "zeros": lambda: np.zeros(shape),
        "rank 20": lambda: gallery.rank_deficient(m, n, 20),
        "equal columns": lambda: np.tile(gaussian(m, 1), (1, n)),
    }[name]()
    for group in (None, 1):
        outcome, arrays = factor("qr", A, panel=32, group=group)
        assert outcome.certificate.passed, outcome.certificate
        assert_qr(A, arrays["q"], arrays["r"])


@pytest.mark.parametrize("group", [None, 2])
@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes_and_modes(shape: tuple[int, int], dtype: str, group: int | None) -> None:
    """Tall, wide, panels beyond the last row, a panel that has fewer rows than columns; R is LAPACK's up to phases."""
    A, panel = gaussian(*shape, dtype), min(32, shape[1])
    outcome, arrays = factor("qr", A, panel=panel, group=group)
    assert outcome.certificate.passed, outcome.certificate
    assert_qr(A, arrays["q"], arrays["r"])
    expected = np.linalg.qr(A, mode="r")
    diagonal = np.diag(expected)
    expected = expected * (diagonal.conj() / np.abs(diagonal))[:, None]
    np.testing.assert_allclose(arrays["r"], expected, rtol=0, atol=500 * eps(A) * np.abs(expected).max())
    outcome, only_r = factor("qr", A, panel=panel, group=group, mode="r")
    assert outcome.certificate.passed
    assert list(only_r) == ["r"]
    np.testing.assert_array_equal(only_r["r"], arrays["r"])


def explicit_q(raw: Array, t: Array, panel: int) -> Array:
    """Q (m, m) from reflectors and T, as LAPACK's gemqrt multiplies them."""
    m, n = raw.shape
    grid, Q = PanelGrid(raw.shape, panel, 1), np.eye(m, dtype=raw.dtype)
    for j in range(grid.n_steps):
        first, stop = grid.columns(j)[0], min(grid.columns(j)[1], min(m, n))
        V = np.tril(raw[:, first:stop], -first - 1)
        V[range(first, stop), range(stop - first)] = 1
        T = np.triu(t[: stop - first, first:stop])
        Q = Q - (Q @ V) @ T @ V.conj().T
    return Q


@pytest.mark.parametrize("dtype", ["f8", "c16", "f4"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_raw_is_the_format_of_geqrt(shape: tuple[int, int], dtype: str) -> None:
    A, panel = gaussian(*shape, dtype), min(32, *shape)
    outcome, arrays = factor("qr", A, panel=panel, group=2, mode="raw")
    assert outcome.certificate.passed
    assert arrays["t"].shape == (panel, min(shape))
    Q = explicit_q(arrays["qr"], arrays["t"], panel)
    assert scaled_residual(A, Q, np.triu(arrays["qr"])) < LAPACK_THRESHOLD
    (gemqrt,) = scipy.linalg.get_lapack_funcs(("gemqrt",), (A,))
    adjoint = "T" if np.dtype(dtype).kind == "f" else "C"
    v, t = np.asfortranarray(arrays["qr"][:, : min(shape)]), np.asfortranarray(arrays["t"])
    applied, info = gemqrt(v, t, np.asfortranarray(A), side="L", trans=adjoint)
    assert info == 0
    np.testing.assert_allclose(applied, np.triu(arrays["qr"]), rtol=0, atol=500 * eps(A) * np.abs(A).max())


def test_panels_that_do_not_divide_the_columns() -> None:
    """1,100 rows, 700 columns, panel 512, in memory and by groups: the same bits."""
    A = gaussian(1100, 700)
    outcome, whole = factor("qr", A, panel=512)
    assert outcome.certificate.passed
    _, parts = factor("qr", A, panel=512, group=1)
    for name in ("q", "r"):
        np.testing.assert_array_equal(parts[name], whole[name])


@pytest.mark.parametrize(("dtype", "size"), [("f8", 1e200), ("f8", 1e-200), ("c16", 1e200), ("f4", 1e30), ("c8", 1e-25)])
@pytest.mark.parametrize("mode", ["reduced", "r"])
def test_sizes_whose_squares_overflow(mode: str, dtype: str, size: float) -> None:
    A = gaussian(100, 60, dtype) * np.dtype(dtype).type(size)
    outcome, arrays = factor("qr", A, panel=32, group=1, mode=mode)
    assert outcome.certificate.passed, outcome.certificate
    assert outcome.certificate.checks[0].value > 1e-4
    if mode == "reduced":
        assert_qr(A, arrays["q"], arrays["r"])


@pytest.mark.parametrize("value", [np.nan, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (99, 59), (37, 32)])
def test_not_finite_is_refused_with_its_place(place: tuple[int, int], value: float) -> None:
    A = gaussian(100, 60)
    A[place] = value
    with pytest.raises(NonFiniteError) as raised:
        factor("qr", A, panel=32, group=1)
    assert (raised.value.row, raised.value.column) == place


def test_factors_that_overflow_are_said_to() -> None:
    """R has the lengths of columns, which here are no numbers of double precision."""
    with pytest.raises(NumericalError, match="factors overflow float64: they reach about 1e309"):
        factor("qr", np.full((40, 40), 1.7e308), panel=32)


@pytest.mark.parametrize("layout", ["squares", "tiny chunks", "zstd row strips"])
def test_layouts(layout: str, tmp_path: Path) -> None:
    """The same bits from every layout of the matrix, in files and in memory."""
    A = gaussian(200, 130)
    path = store(tmp_path / "a.zarr", A, **LAYOUTS[layout])
    stored = factor_in_files("qr", path, tmp_path, open_cluster(THREADS), panel=32, group=2)
    _, arrays = factor("qr", A, panel=32)
    for name in ("q", "r"):
        np.testing.assert_array_equal(stored[name], arrays[name])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"panel": 41}, r"params\.panel.*1 to the 40 columns.*got 41"),
        ({"mode": "full"}, "mode: got 'full' .*reduced .Q and R., r .R alone. or raw"),
        ({"mode": "raw", "block_rows": 8}, "block_rows is for tall"),
        ({"block_rows": 8}, "4 times more rows"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        factor("qr", gaussian(40, 40), **options)
