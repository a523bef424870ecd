"""Square matrices for the benchmarks of factorizations, in memory and on disk, and how their answers are judged.

Entries are uniform in (-1/2, 1/2), made tile by tile from the tile's place, so that the same matrix comes out in any layout. The
positive definite one is symmetric with n added to its diagonal. Answers are judged on random vectors:
`||A x - P' L U x|| / (||A||_F ||x||)` and the like, which costs a read of the factors and not another factorization.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

TILE = 1000
STRIP_BYTES = 64 * 2**20
N_PROBES = 4


def tile(n: int, i: int, j: int, *, definite: bool = False) -> np.ndarray:
    """Tile (i, j) of the matrix of order n; tiles have TILE rows and columns, fewer at the end."""
    if definite and j > i:
        return tile(n, j, i, definite=True).T
    rows, columns = min(TILE, n - i * TILE), min(TILE, n - j * TILE)
    block = np.random.default_rng([i, j]).random((rows, columns))
    block -= 0.5
    if definite and i == j:
        block = np.tril(block) + np.tril(block, -1).T + n * np.eye(rows)
    return block


def _fill(n: int, *, definite: bool) -> np.ndarray:
    A = np.empty((n, n))
    count = -(-n // TILE)

    def strip(i: int) -> None:
        for j in range(count):
            A[i * TILE : (i + 1) * TILE, j * TILE : (j + 1) * TILE] = tile(n, i, j, definite=definite)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(strip, range(count)))
    return A


def general(n: int) -> np.ndarray:
    """A random matrix."""
    return _fill(n, definite=False)


def definite(n: int) -> np.ndarray:
    """A symmetric positive definite matrix."""
    return _fill(n, definite=True)


def probes(n: int) -> np.ndarray:
    """Random vectors (n, N_PROBES)."""
    return np.random.default_rng(7).standard_normal((n, N_PROBES))


def store(data: Path, n: int, layout: str, *, definite: bool = False, chunk: int | None = None, alone: bool = False) -> Path:
    """The matrix as a Zarr array, uncompressed, in row strips or in squares of about 16 MB (or of `chunk` columns); kept.

    With `alone` the other large stores of this kind are removed first: the disk may not hold them all.
    """
    import zarr

    side = min(n, chunk or 1500)
    chunks = (max(1, min(n, 2**24 // (8 * n))), n) if layout == "strips" else (side, side)
    path = data / f"square-{'definite' if definite else 'general'}-{n}-{chunks[0]}x{chunks[1]}.zarr"
    if alone:
        for other in data.glob(f"square-*-{n}-*.zarr"):
            if other != path:
                shutil.rmtree(other)
    if path.exists():
        return path
    partial = path.with_suffix(".partial")
    array: Any = zarr.create_array(partial, shape=(n, n), dtype="f8", chunks=chunks, compressors=None, overwrite=True)
    # A band of whole chunks at a time; several where chunks are thin.
    height = chunks[0] * max(1, 512 // chunks[0])

    def band(top: int) -> None:
        bottom = min(top + height, n)
        rows = np.empty((bottom - top, n))
        for i in range(top // TILE, -(-bottom // TILE)):
            low, high = max(top, i * TILE), min(bottom, (i + 1) * TILE)
            for j in range(-(-n // TILE)):
                block = tile(n, i, j, definite=definite)
                rows[low - top : high - top, j * TILE : (j + 1) * TILE] = block[low - i * TILE : high - i * TILE]
        array[top:bottom] = rows

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(band, range(0, n, height)))
    partial.rename(path)
    return path


# ---- judging


def _strips(n: int) -> list[tuple[int, int]]:
    step = max(1, STRIP_BYTES // (8 * n))
    return [(i, min(i + step, n)) for i in range(0, n, step)]


def _times(A: Any, x: np.ndarray, part: Callable[[np.ndarray, int], np.ndarray] = lambda rows, top: rows) -> np.ndarray:
    """A x by strips of rows, of which a part (such as the upper triangle) is taken."""
    return np.concatenate([part(np.asarray(A[i:j]), i) @ x for i, j in _strips(len(x))])


def _upper(rows: np.ndarray, top: int) -> np.ndarray:
    return np.triu(rows, top)


def _unit_lower(rows: np.ndarray, top: int) -> np.ndarray:
    rows = np.tril(rows, top - 1)
    rows[np.arange(len(rows)), top + np.arange(len(rows))] = 1
    return rows


def _size(A: Any, x: np.ndarray) -> tuple[np.ndarray, float]:
    """A x, and ||A||_F ||x||_F, from one read."""
    products, square = [], 0.0
    for i, j in _strips(len(x)):
        rows = np.asarray(A[i:j])
        products.append(rows @ x)
        square += float(np.vdot(rows, rows))
    return np.concatenate(products), float(np.sqrt(square) * np.linalg.norm(x))


def lu_error(A: Any, lu: Any, piv: np.ndarray) -> float:
    """||P A x - L U x|| / (||A|| ||x||) from packed factors and LAPACK's row exchanges (from 0)."""
    x = probes(len(piv))
    product, size = _size(A, x)
    for i, p in enumerate(np.asarray(piv).tolist()):
        if p != i:
            product[[i, p]] = product[[p, i]]
    return float(np.linalg.norm(product - _times(lu, _times(lu, x, _upper), _unit_lower)) / size)


def qr_error(A: Any, q: Any, r: Any) -> tuple[float, float]:
    """||A x - Q R x|| / (||A|| ||x||), and ||Q'(Q x) - x|| / ||x||."""
    x = probes(A.shape[1])
    product, size = _size(A, x)
    error = float(np.linalg.norm(product - q @ (np.triu(r) @ x)) / size)
    return error, float(np.linalg.norm(q.T @ (q @ x) - x) / np.linalg.norm(x))


def r_error(A: Any, r: Any) -> float:
    """||A'(A x) - R'(R x)|| / (||A||^2 ||x||): R is the Cholesky factor of A'A, whatever Q is."""
    x = probes(A.shape[1])
    y, size = _size(A, x)
    z = _times(r, x, _upper)
    gram, found = np.zeros_like(x), np.zeros_like(x)
    for i, j in _strips(len(x)):
        gram += np.asarray(A[i:j]).T @ y[i:j]
        found += np.triu(np.asarray(r[i:j]), i).T @ z[i:j]
    return float(np.linalg.norm(gram - found) * np.linalg.norm(x) / size**2)


def _open(path: Path) -> Any:
    import zarr

    return zarr.open(path, mode="r")


def stored_lu_error(path: Path, result: Path) -> float:
    """`lu_error` of a result on disk."""
    group = _open(result)
    return lu_error(_open(path), group["lu"], np.asarray(group["piv"][...]))


def stored_r_error(path: Path, result: Path) -> float:
    """`r_error` of a result on disk."""
    return r_error(_open(path), _open(result)["r"])


def stored_cholesky_error(path: Path, result: Path) -> float:
    """||A x - L (L' x)|| / (||A|| ||x||) of a result on disk."""
    A, L = _open(path), _open(result)["l"]
    x = probes(A.shape[1])
    product, size = _size(A, x)
    inner = np.zeros_like(x)
    for i, j in _strips(len(x)):
        inner += np.tril(np.asarray(L[i:j]), i).T @ x[i:j]
    return float(np.linalg.norm(product - _times(L, inner, lambda rows, top: np.tril(rows, top))) / size)
