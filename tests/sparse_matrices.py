"""Sparse matrices of all sorts, and Zarr groups with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
import zarr

INDEX_DTYPES = ("u2", "i4", "i8", "u8")


def random_sparse(seed: int) -> tuple[Any, np.ndarray]:
    """A matrix in compressed rows as somebody may have written it, and the same as a dense one.

    Rows and columns may be empty, one row dense, entries unsorted, twice at one place, or zeros that are stored.
    """
    rng = np.random.default_rng(seed)
    m, n = int(rng.integers(1, 40)), int(rng.integers(1, 30))
    dtype = np.dtype(rng.choice(["f4", "f8", "c16", "i4", "u1"]))
    counts = rng.binomial(n, rng.uniform(0, 0.3), m)
    if rng.random() < 0.3:
        counts[rng.integers(m)] = n
    counts[rng.random(m) < 0.2] = 0
    twice = rng.random() < 0.5
    columns = [rng.choice(n, count, replace=bool(twice)) for count in counts]
    indices = np.concatenate([*(np.sort(c) if rng.random() < 0.5 else c for c in columns), np.zeros(0, int)])
    values = rng.integers(0, 9, indices.size).astype(dtype)
    if dtype.kind in "fc":
        values = (values * rng.standard_normal(indices.size)).astype(dtype)
    if dtype.kind == "c":
        values = values * (1 + 2j)
    indptr = np.concatenate([[0], np.cumsum(counts)])
    index = str(rng.choice(INDEX_DTYPES))
    A = scipy.sparse.csr_array((m, n), dtype=dtype)
    A.data, A.indices, A.indptr = values, indices.astype(index), indptr.astype(index)
    dense = np.zeros((m, n), dtype)
    np.add.at(dense, (np.repeat(np.arange(m), counts), indices), values)
    return A, dense


def anndata_group(path: Path, A: Any, *, encoding: str = "csr_matrix", shape: Any = None, **layout: Any) -> Path:
    """The three arrays of a matrix as AnnData writes them."""
    layout = {"compressors": None, "chunks": 7, "config": {"write_empty_chunks": True}} | layout
    group = zarr.open_group(path, mode="w", zarr_format=layout.pop("zarr_format", 3))
    group.attrs.update({"encoding-type": encoding, "encoding-version": "0.1.0", "shape": list(shape or A.shape)})
    for name in ("data", "indices", "indptr"):
        values = getattr(A, name)
        group.create_array(name, data=values, **(layout | {"chunks": (layout["chunks"],)}))
    return path
