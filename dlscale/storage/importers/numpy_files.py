"""NumPy's .npy and .npz, read as plain bytes into one block at a time (no pickles, no memory map); SciPy's sparse .npz."""

from __future__ import annotations

import io
import math
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy_format

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.compressed import npz_format, npz_table
from dlscale.storage.importers.scipy_files import sparse_table
from dlscale.storage.importers.tables import Blocks, Request, Table, matrix_layout, open_binary, row_ranges, rows_per_block

FORTRAN_BLOCKS = 4  # blocks read together from column-major files: each column is then one longer read


@contextmanager
def read_npy(request: Request) -> Iterator[Table]:
    """A .npy file in row-major or column-major order."""
    with open_binary(request.source) as stream:
        yield _table(stream, request.source, stream.seek(0, io.SEEK_END))


@contextmanager
def read_npz(request: Request) -> Iterator[Table]:
    """The member `dataset` of a .npz file (or its only one), or the sparse matrix that SciPy saved in it, with its zeros.

    A column-major member is unpacked to a scratch file first.
    """
    with open_binary(request.source) as stream, zipfile.ZipFile(stream) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if request.dataset is None and {"format", "shape", "data"} <= set(names):
            form = npz_format(archive) if request.sparse else ""
            if form not in ("csr", "csc"):
                yield sparse_table(archive, stream, request)
                return
            with npz_table(archive, form, request) as table:
                yield table
            return
        name = request.dataset or (names[0] if len(names) == 1 else "")
        if name not in names:
            asked = f"has no array {name!r}" if name else f"holds {len(names)} arrays"
            raise SpecError(f"{request.source} {asked}; set dataset to one of: {', '.join(names)}.")
        what, n_bytes = f"{request.source}, array {name!r}", archive.getinfo(f"{name}.npy").file_size
        with archive.open(f"{name}.npy") as member:
            _, fortran, _ = _header(cast(BinaryIO, member), what, n_bytes)
        if fortran:
            request.scratch.mkdir(parents=True, exist_ok=True)
            unpacked = request.scratch / "member.npy"
            with archive.open(f"{name}.npy") as member, unpacked.open("wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
            with unpacked.open("rb") as file:
                yield _table(file, what, n_bytes)
        else:
            with archive.open(f"{name}.npy") as member:
                yield _table(cast(BinaryIO, member), what, n_bytes)


def _header(stream: BinaryIO, what: str, n_bytes: int) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether column-major, and dtype of an array whose file has so many bytes."""
    version = npy_format.read_magic(stream)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise InputError(f"{what} is in .npy format {version}, which is not known; save it again with NumPy.")
    # Format 3 differs from 2 in the letters that names of fields may have, and an array of fields is no matrix.
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    if any(length < 0 for length in shape):
        raise InputError(f"{what} has shape {shape}: the file is damaged. Copy or write it again.")
    if not dtype.hasobject and math.prod(shape) * dtype.itemsize > n_bytes:
        raise InputError(f"{what} ends before its last row: the file is truncated. Copy or write it again.")
    return shape, fortran, dtype


def _table(stream: BinaryIO, what: str, n_bytes: int) -> Table:
    stream.seek(0)
    shape, fortran, stored = _header(stream, what, n_bytes)
    m, n, dtype = matrix_layout(shape, stored, what=what)
    blocks = _columnwise(stream, m, n, dtype=stored, what=what) if fortran else _rowwise(stream, m, n, dtype=stored, what=what)
    return Table(m, n, dtype, blocks)


def _rowwise(stream: BinaryIO, m: int, n: int, *, dtype: np.dtype[Any], what: str) -> Blocks:
    step = rows_per_block(n, dtype.itemsize)
    buffer = np.empty((min(step, m), n), dtype)
    for start, stop in row_ranges(m, step):
        block = buffer[: stop - start]
        _fill(stream, block, what)
        yield block


def _columnwise(stream: BinaryIO, m: int, n: int, *, dtype: np.dtype[Any], what: str) -> Blocks:
    origin = stream.tell()
    step = FORTRAN_BLOCKS * rows_per_block(n, dtype.itemsize)
    buffer = np.empty(n * min(step, m), dtype)
    for start, stop in row_ranges(m, step):
        columns = buffer[: n * (stop - start)].reshape(n, stop - start)
        for j in range(n):
            stream.seek(origin + (j * m + start) * dtype.itemsize)
            _fill(stream, columns[j], what)
        yield columns.T


def _fill(stream: BinaryIO, block: Array, what: str) -> None:
    """Read exactly the bytes of a contiguous block."""
    view = block.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(view):
        n_read = stream.readinto(view[done:])  # type: ignore[attr-defined]
        if not n_read:
            raise InputError(f"{what} ends before its last row: the file is truncated. Copy or write it again.")
        done += n_read
