"""A sparse matrix as `scipy.sparse.save_npz` writes it, read as a whole."""

from __future__ import annotations

import zipfile
from typing import Any, BinaryIO

import numpy as np

from dlscale.errors import InputError
from dlscale.storage.importers.tables import Blocks, Request, Table, matrix_layout, row_ranges, rows_per_block
from dlscale.storage.sparse.sums import require_finite_sums

MAX_BYTES = 1 << 29  # of the arrays of a sparse matrix, which is read as a whole


def sparse_table(archive: zipfile.ZipFile, stream: BinaryIO, request: Request) -> Table:
    """The matrix, with its zeros unless it is to be sparse; entries that stand at one place are added up, as in SciPy.

    Raises
    ------
    InputError
        If it has not two dimensions, takes more than `MAX_BYTES`, or has an entry outside of its shape.
    """
    import scipy.sparse

    source = request.source
    n_bytes = sum(member.file_size for member in archive.infolist())
    if n_bytes > MAX_BYTES:
        raise InputError(
            f"{source} is a sparse matrix whose arrays take {n_bytes} bytes, and at most {MAX_BYTES} are read; write it as a "
            "Matrix Market file (scipy.io.mmwrite), which is read piece by piece."
        )
    stream.seek(0)
    try:
        matrix = scipy.sparse.load_npz(stream)
        if matrix.ndim == 2 and matrix.format in ("csr", "csc", "bsr"):
            # Its products trust the indices.
            matrix.check_format(full_check=True)
    except Exception as error:  # whatever SciPy meets in a damaged file
        raise InputError(f"{source} is not a sparse matrix as scipy.sparse.save_npz writes it: {error}.") from error
    m, n, dtype = matrix_layout(matrix.shape if matrix.ndim == 2 else (*matrix.shape, 1, 1), matrix.dtype, what=source)
    if dtype.kind in "iu":
        # Sums may pass the range of the entries' own type.
        matrix = matrix.astype(np.int64 if dtype.kind == "i" else np.uint64)
    rows = matrix.tocsr(copy=not getattr(matrix, "has_canonical_format", False))
    rows.sum_duplicates()
    require_finite_sums(matrix, rows, source=source, place=lambda i, j: (i, j))
    if dtype.kind in "iu" and rows.nnz and not (np.iinfo(dtype).min <= rows.data.min() and rows.data.max() <= np.iinfo(dtype).max):
        dtype = rows.dtype
    if request.sparse:
        return Table(m, n, dtype, (rows.astype(dtype) for _ in range(1)), sparse=True, n_entries=rows.nnz)
    return Table(m, n, dtype, _blocks(rows, m, n, dtype=dtype))


def _blocks(rows: Any, m: int, n: int, *, dtype: np.dtype[Any]) -> Blocks:
    for start, stop in row_ranges(m, rows_per_block(n, dtype.itemsize)):
        yield rows[start:stop].toarray().astype(dtype, copy=False)
