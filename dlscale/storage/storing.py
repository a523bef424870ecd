"""A matrix that a program holds, written where other processes find it."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from dlscale.storage.files.durable import require_free_space
from dlscale.storage.importers.strips import default_chunks
from dlscale.storage.matrix import Matrix
from dlscale.storage.writers import Layout, create_array


def store_matrix(A: Matrix, path: Path) -> str:
    """Write a matrix as a Zarr array that can be read by any range of rows, one strip of it in memory at a time.

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
    return content.hexdigest()
