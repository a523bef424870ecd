"""A matrix that a program holds, written where other processes find it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from dlscale.storage.files.durable import require_free_space
from dlscale.storage.importers.strips import default_chunks
from dlscale.storage.labels.writing import write_labels
from dlscale.storage.matrix import Matrix
from dlscale.storage.sparse.matrix import PIECE_NONZEROS, SparseMatrix
from dlscale.storage.sparse.writing import CompressedWriter
from dlscale.storage.writers import Layout, create_array


def store_matrix(A: Matrix, path: Path) -> str:
    """Write a matrix as a Zarr array, or a sparse one as a group, that can be read by any range of rows, a strip of it at a time.

    Parameters
    ----------
    A : Matrix (m, n)
        An array of one dimension stays one.
    path : Path
        Folder of the new array.

    Returns
    -------
    str
        A digest of shape, dtype and entries.

    Raises
    ------
    DoesNotFitError
        If the disk has no room.
    """
    if isinstance(A, SparseMatrix):
        return _store_sparse(A, path)
    (m, n), dtype = A.shape, A.dtype
    require_free_space(path.parent.parent, m * n * dtype.itemsize)
    rows, columns = default_chunks(n, dtype.itemsize)
    rows = min(rows, m)
    layout = Layout((m,), dtype, (rows,)) if A.is_vector else Layout((m, n), dtype, (rows, columns))
    writer = create_array(path, layout, checksum=False)
    content = hashlib.blake2b(repr((layout.shape, dtype.str)).encode(), digest_size=16)
    for start in range(0, m, rows):
        block = np.ascontiguousarray(A.read(start, min(start + rows, m)))
        content.update(block.data)
        writer.write(start, block[:, 0] if A.is_vector else block)
    writer.flush()
    content.update(write_labels(path, A.labels).encode())
    return content.hexdigest()


def _store_sparse(A: SparseMatrix, path: Path) -> str:
    m, n = A.shape
    require_free_space(path.parent.parent, A.nnz * (A.stored_dtype.itemsize + 8) + 8 * m)
    dtype = np.dtype(np.uint8) if A.stored_dtype.kind == "b" else A.stored_dtype.newbyteorder("=")
    writer = CompressedWriter(path, n, dtype=dtype, by_rows=A.parts.by_rows, attributes={"dlscale": {"source": A.uri}})
    for start, stop in A.spans(0, m, PIECE_NONZEROS):
        writer.append(A.stored_rows(start, stop))
    content = hashlib.blake2b(repr((A.shape, dtype.str)).encode(), digest_size=16)
    content.update(writer.finish().encode())
    content.update(write_labels(path, A.labels if A.parts.by_rows else A.labels.T).encode())
    return content.hexdigest()
