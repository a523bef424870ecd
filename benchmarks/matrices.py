"""Matrices whose singular values are known exactly, in memory and on disk.

`A = U diag(s) V'` with `s_i = (m/i)^1/2` (entries of order 0.1, covariance eigenvalues near 1/i), `U` the cosines
`u_ij = (2/m)^1/2 cos(pi (2i+1) j / 2m)`, j = 1..n, and `V` the orthonormal DCT-II matrix. `U` is orthonormal, and orthogonal to the
constant column: every column of `A` has mean 0 before the offset is added. A block of rows depends on its row numbers alone, so
that every library is given the same matrix, whatever its blocks.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import scipy.fft

BLOCK_BYTES = 16 * 2**20  # one chunk of the stores, and one block of generated rows


def spectrum(shape: tuple[int, int]) -> np.ndarray:
    """All singular values of the known matrix: `i^-1/2` is slow decay, the hard case for randomized methods."""
    return np.sqrt(max(shape) / np.arange(1, min(shape) + 1))


def known_rows(start: int, stop: int, shape: tuple[int, int], *, offset: float = 0.0) -> np.ndarray:
    """Rows `start:stop` of the known matrix of this shape, plus `offset` in every entry, float64."""
    m, n = shape
    if m < n:
        return np.ascontiguousarray(known_rows(0, n, (n, m), offset=offset).T[start:stop])
    i = np.arange(start, stop, dtype=np.int64)[:, None]
    j = np.arange(1, n + 1, dtype=np.int64)
    # The angle is reduced in integers: cos of a large argument would lose the digits that make U orthonormal.
    angle = (np.pi / (2 * m)) * ((2 * i + 1) * j % (4 * m))
    block = np.cos(angle, out=angle)
    block *= np.sqrt(2 / m) * spectrum(shape)
    block = scipy.fft.dct(block, norm="ortho", axis=1, overwrite_x=True)
    block += offset
    return block


def blocks(m: int, row_bytes: int) -> list[tuple[int, int]]:
    """Row ranges of about 16 MiB each."""
    step = max(1, BLOCK_BYTES // row_bytes)
    return list(pairwise([*range(0, m, step), m]))


def in_memory(data: Path, shape: tuple[int, int], dtype: str, *, offset: float = 0.0) -> np.ndarray:
    """The known matrix as a NumPy array; kept as .npy in the data folder so that later cases load it."""
    path = data / f"known-{shape[0]}x{shape[1]}-{dtype}-{offset:g}.npy"
    if not path.exists():
        A = np.empty(shape, dtype)

        def fill(span: tuple[int, int]) -> None:
            A[slice(*span)] = known_rows(*span, shape, offset=offset)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(fill, blocks(shape[0], 8 * shape[1])))
        partial = path.with_suffix(".partial.npy")
        np.save(partial, A)
        partial.rename(path)
    return np.load(path)


def store(
    data: Path,
    shape: tuple[int, int],
    dtype: str,
    *,
    chunk_bytes: int = BLOCK_BYTES,
    compression: str = "none",
    noise: bool = False,
) -> Path:
    """The path of a Zarr v3 array of row strips, written once: the known matrix, or (`noise`) standard normal numbers."""
    import zarr

    kind = "noise" if noise else "known"
    path = data / f"{kind}-{shape[0]}x{shape[1]}-{dtype}-{chunk_bytes >> 20}MiB-{compression}.zarr"
    if path.exists():
        return path
    m, n = shape
    row_bytes = n * np.dtype(dtype).itemsize
    wide = m < n  # a wide matrix is chunked along its columns, as a transposed tall one would be
    chunk_rows = m if wide else min(m, max(1, chunk_bytes // row_bytes))
    chunk_columns = max(1, chunk_bytes // (m * np.dtype(dtype).itemsize)) if wide else n
    partial = path.with_suffix(".partial")
    compressors: Any = None if compression == "none" else zarr.codecs.ZstdCodec(level=1)
    Z = zarr.create_array(
        partial, shape=shape, dtype=dtype, chunks=(chunk_rows, min(n, chunk_columns)), compressors=compressors, overwrite=True
    )

    def write(start: int) -> None:
        stop = min(start + chunk_rows, m)
        if noise:
            Z[start:stop] = np.random.default_rng(start).standard_normal((stop - start, n), dtype=dtype)
        else:
            Z[start:stop] = known_rows(start, stop, shape)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write, range(0, m, chunk_rows)))
    partial.rename(path)
    return path


def svd_quality(A_blocks: Any, u: Any, s: np.ndarray, vh: np.ndarray, shape: tuple[int, int]) -> dict[str, float]:
    """How good a truncated SVD of the known matrix is; `A_blocks` yields (start, stop, rows) once, `u` is sliced by rows.

    Returns
    -------
    dict
        `top10_error`, `all_error`: largest relative error of the first 10 and of all singular values against the known ones;
        `frobenius_excess`: `||A - u s vh||_F` over the best possible at this rank, minus 1; `u_orthogonality`, `v_orthogonality`:
        `||I - u'u||_2`, `||I - vv'||_2`.
    """
    k = len(s)
    s, vh = np.asarray(s, np.float64), np.asarray(vh, np.float64)
    W, G = np.zeros((shape[1], k)), np.zeros((k, k))
    for start, stop, rows in A_blocks:
        part = np.asarray(u[start:stop], np.float64)
        W += np.asarray(rows, np.float64).T @ part
        G += part.T @ part
    exact = spectrum(shape)
    # ||A - U S V'||^2 = ||A||^2 - 2 tr(S U'A V) + tr(S G S V'V)
    cross = float(np.einsum("i,ij,ji->", s, W.T, vh.T))
    square = float(np.sum(exact**2) - 2 * cross + np.einsum("i,ij,j,ij->", s, G, s, vh @ vh.T))
    best = float(np.sum(exact[k:] ** 2))
    error = np.abs(s - exact[:k]) / exact[:k]
    return {
        "top10_error": float(error[:10].max()),
        "all_error": float(error.max()),
        "frobenius_excess": float(np.sqrt(max(square, 0.0) / best) - 1),
        "u_orthogonality": float(np.linalg.norm(G - np.eye(k), 2)),
        "v_orthogonality": float(np.linalg.norm(vh @ vh.T - np.eye(k), 2)),
    }
