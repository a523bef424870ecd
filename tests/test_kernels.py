"""Block functions against NumPy, in every dtype and at tile borders."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import pytest
from helpers import each_of
from threadpoolctl import threadpool_info, threadpool_limits

from dlscale import kernels
from dlscale.buffers import workspace
from dlscale.kernels import (
    Moments,
    accumulator_dtype,
    add_gram,
    add_normal_product,
    mirror_upper,
    one_blas_thread,
    sum_of_squares,
    tile_rows,
    tiles,
)

DTYPES = ("f4", "f8", "c8", "c16")
#: One row, one under, at and over a tile of 64 rows, and several tiles of 64 or 256.
HEIGHTS = (1, 63, 64, 65, 600)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TILE_BYTES", 1)
    monkeypatch.setattr(kernels, "GRAM_TILE_BYTES", 1)


def gaussian(m: int, n: int, dtype: str, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, n))
    return (A + 1j * rng.standard_normal((m, n)) if np.dtype(dtype).kind == "c" else A).astype(dtype)


def close(actual: Any, expected: Any, dtype: str, size: float) -> None:
    assert np.abs(actual - expected).max() <= 50 * np.finfo(dtype).eps * size


@pytest.mark.parametrize("centred", [False, True])
@each_of(dtype=DTYPES)
@pytest.mark.parametrize("m", HEIGHTS)
@pytest.mark.parametrize("order", ["C", "F"])
def test_normal_product_and_gram(m: int, dtype: str, centred: bool, order: Any) -> None:
    n, width = 7, 3
    A, W = np.asarray(gaussian(m, n, dtype), order=order), gaussian(n, width, dtype, 1)
    mean = gaussian(1, n, dtype, 2)[0] if centred else None
    wide = accumulator_dtype(A.dtype)
    exact = A.astype(wide) - (0 if mean is None else mean.astype(wide))
    ZH, G = np.ones((width, n), wide), np.ones((n, n), wide)
    Y = add_normal_product(A, W, ZH, mean=mean)
    close(Y, exact @ W, dtype, 10)
    assert Y.dtype == A.dtype
    close(ZH - 1, ((exact.conj().T @ (exact @ W)).conj().T), dtype, 10 * (m + 10))
    if dtype in ("f8", "c16"):
        single, moments = np.dtype(dtype.replace("8", "4").replace("16", "8")), Moments(squares=0.0)
        ZH[:] = 0
        half = add_normal_product(A, W.astype(single), ZH, mean=mean, moments=moments)
        assert half.dtype == single
        close(ZH, (exact.conj().T @ (exact @ W)).conj().T, str(single), 10 * (m + 10))
        assert moments.squares == pytest.approx(np.linalg.norm(exact) ** 2, rel=1e-13)
    add_gram(A, G, mean=mean)
    mirror_upper(G)
    np.testing.assert_array_equal(G, G.conj().T)
    close(G - 1, exact.conj().T @ exact, dtype, 10 * (m + 10))


@pytest.mark.parametrize("m", HEIGHTS)
def test_tiles_cover_the_block_in_order(m: int) -> None:
    A = np.arange(2.0 * m).reshape(m, 2)
    pieces = [(i, tile.copy()) for i, tile in tiles(A)]
    heights = [len(tile) for _, tile in pieces]
    assert [i for i, _ in pieces] == [0, *np.cumsum(heights)[:-1]]
    # Nearly equal, and at most a fifth over the tile of 64 rows.
    assert max(heights) - min(heights) < 8 * len(heights)
    assert max(heights) <= 80
    np.testing.assert_array_equal(np.concatenate([tile for _, tile in pieces]), A)
    centred = np.concatenate([tile.copy() for _, tile in tiles(A, np.array([1.0, 2.0]))])
    np.testing.assert_array_equal(centred, A - [1.0, 2.0])
    assert all(len(tile) <= 120 for _, tile in tiles(A, rows=100))


def test_tile_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "TILE_BYTES", 2**22)
    for n in (1, 100, 2000, 10**6):
        rows = tile_rows(n, 8)
        assert rows % 64 == 0
        assert rows == 64 or rows * n * 8 <= 2**22


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("layout", ["C", "F", "strided"])
def test_sum_of_squares(dtype: str, layout: str) -> None:
    A = gaussian(50, 8, dtype)
    A = A[::2, 1:6] if layout == "strided" else np.asarray(A, order=layout)  # type: ignore[call-overload]
    assert sum_of_squares(A) == pytest.approx(float((np.abs(A.astype(complex)) ** 2).sum()), rel=1e-5)


def test_workspace_is_reused_and_belongs_to_its_thread() -> None:
    big = workspace("test", (10, 10), np.dtype("f8"))
    small = workspace("test", (3, 4), np.dtype("c16"))
    assert np.shares_memory(big, small)
    assert (small.shape, small.dtype) == ((3, 4), np.dtype("c16"))
    assert not np.shares_memory(big, workspace("other", (10, 10), np.dtype("f8")))
    others: list[Any] = []
    thread = threading.Thread(target=lambda: others.append(workspace("test", (10, 10), np.dtype("f8"))))
    thread.start()
    thread.join()
    assert not np.shares_memory(big, others[0])


def blas_threads() -> int:
    return max(info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas")


def test_one_blas_thread_holds_for_all_threads_until_the_last_leaves() -> None:
    """Entered by the thread that starts the work, it holds in every thread, and inner uses do not lift it."""
    switch_seconds = sys.getswitchinterval()
    seen: list[int] = []
    with threadpool_limits(2, user_api="blas"):
        with one_blas_thread():
            with one_blas_thread():
                assert blas_threads() == 1
                assert sys.getswitchinterval() < switch_seconds
            thread = threading.Thread(target=lambda: seen.append(blas_threads()))
            thread.start()
            thread.join()
            assert blas_threads() == 1
        assert seen == [1]
        assert (blas_threads(), sys.getswitchinterval()) == (2, switch_seconds)
