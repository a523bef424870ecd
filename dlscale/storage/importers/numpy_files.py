"""NumPy's .npy and .npz, read as plain bytes into one block at a time (no pickles, no memory map)."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.tables import Blocks, Request, Table, matrix_layout, open_binary, row_ranges, rows_per_block

Array = NDArray[Any]

FORTRAN_BLOCKS = 4  # blocks read together from column-major files: each column is then one longer read


@contextmanager
def read_npy(request: Request) -> Iterator[Table]:
    """A .npy file in row-major or column-major order."""
    with open_binary(request.source) as stream:
        yield _table(stream, request.source)


@contextmanager
def read_npz(request: Request) -> Iterator[Table]:
    """The member `dataset` of a .npz file (or its only one); a column-major one is unpacked to a scratch file first."""
    with open_binary(request.source) as stream, zipfile.ZipFile(stream) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        name = request.dataset or (names[0] if len(names) == 1 else "")
        if name not in names:
            asked = f"has no array {name!r}" if name else f"holds {len(names)} arrays"
            raise SpecError(f"{request.source} {asked}; set dataset to one of: {', '.join(names)}.")
        what = f"{request.source}, array {name!r}"
        with archive.open(f"{name}.npy") as member:
            _, fortran, _ = _header(cast(BinaryIO, member), what)
        if fortran:
            request.scratch.mkdir(parents=True, exist_ok=True)
            unpacked = request.scratch / "member.npy"
            with archive.open(f"{name}.npy") as member, unpacked.open("wb") as file:
                shutil.copyfileobj(member, file, 1 << 20)
            with unpacked.open("rb") as file:
                yield _table(file, what)
        else:
            with archive.open(f"{name}.npy") as member:
                yield _table(cast(BinaryIO, member), what)


def _header(stream: BinaryIO, what: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy_format.read_magic(stream)
    if version == (1, 0):
        return npy_format.read_array_header_1_0(stream)
    if version == (2, 0):
        return npy_format.read_array_header_2_0(stream)
    raise InputError(f"{what} is in .npy format {version}, which is for records; save the numbers as a plain 2-D array.")


def _table(stream: BinaryIO, what: str) -> Table:
    shape, fortran, stored = _header(stream, what)
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
