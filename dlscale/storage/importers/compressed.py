"""Sparse matrices in three arrays, in files of other formats: read by rows (or columns) in bounded memory, whatever their size."""

from __future__ import annotations

import io
import shutil
import zipfile
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy_format

from dlscale.arrays import Array
from dlscale.errors import InputError
from dlscale.storage.files.ahead import ahead
from dlscale.storage.importers.tables import Blocks, Request, Table, matrix_layout, row_ranges, rows_per_block
from dlscale.storage.sparse.groups import Compressed
from dlscale.storage.sparse.matrix import PIECE_NONZEROS, SparseMatrix
from dlscale.storage.sparse.packed import Member, unpacked_together


def compressed_table(parts: Compressed, request: Request, *, notes: tuple[str, ...] = ()) -> Table:
    """The matrix in compressed rows or columns, as they are, or dense where that is asked for."""
    matrix = SparseMatrix(parts)
    m, n, dtype = matrix_layout(parts.shape, parts.dtype, what=parts.uri)
    if request.sparse is False:
        return Table(m, n, matrix.dtype, _dense(matrix if parts.by_rows else matrix.T, m, n), notes=list(notes))
    rows, columns = (m, n)[:: 1 if parts.by_rows else -1]
    return Table(
        rows, columns, dtype, _compressed(matrix), notes=list(notes), sparse=True, by_rows=parts.by_rows, n_entries=matrix.nnz
    )


def _compressed(matrix: SparseMatrix) -> Generator[Any, None, None]:
    return ahead(matrix.stored_rows(*span) for span in matrix.spans(0, matrix.shape[0], PIECE_NONZEROS))


def _dense(matrix: Any, m: int, n: int) -> Blocks:
    for start, stop in row_ranges(m, rows_per_block(n, matrix.dtype.itemsize)):
        yield matrix.read(start, stop)


@dataclass(frozen=True)
class FileVector:
    """The elements of an .npy file of one dimension; ``vector[start:stop]`` reads a range."""

    path: Path
    offset: int
    dtype: np.dtype[Any]
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, part: slice) -> Array:
        start, count = part.start, part.stop - part.start
        found = np.fromfile(self.path, self.dtype, count, offset=self.offset + start * self.dtype.itemsize)
        if len(found) != count:
            raise InputError(f"{self.path.name} ends before its last number: the file is truncated. Copy or write it again.")
        return found


@contextmanager
def npz_table(archive: zipfile.ZipFile, form: str, request: Request) -> Iterator[Table]:
    """A matrix that `scipy.sparse.save_npz` wrote as CSR or CSC, its numbers and columns unpacked as they are read."""
    missing = [name for name in ("data", "indices", "indptr") if f"{name}.npy" not in archive.namelist()]
    if missing:
        raise InputError(f"{request.source} is a sparse matrix that has lost its array {missing[0]!r}; write it anew.")
    with archive.open("shape.npy") as member:
        shape = npy_format.read_array(io.BytesIO(member.read(1 << 16)), allow_pickle=False).tolist()
    if len(shape) != 2:
        raise InputError(f"{request.source} is a sparse array of shape {tuple(shape)}; a matrix has two dimensions.")
    pointers = _unpacked(archive, request)
    with ExitStack() as stack:
        data, indices = (stack.enter_context(closing(_member(archive, name, request))) for name in ("data", "indices"))
        vectors = (cast(Any, vector) for vector in (data, indices, pointers))
        table = compressed_table(Compressed(request.source, (shape[0], shape[1]), form == "csr", *vectors), request)
        yield replace(table, blocks=_compared(table.blocks, (data, indices)))


def _compared(blocks: Blocks, members: tuple[Member, Member]) -> Blocks:
    """The same; where one is wrong the checksums of the members, which come at their ends, are compared before it is told."""
    with closing(blocks):
        try:
            yield from blocks
        except Exception:
            for member in members:
                member.finish()
            raise


def npz_format(archive: zipfile.ZipFile) -> str:
    """What SciPy calls the format of the sparse matrix in a .npz file."""
    with archive.open("format.npy") as member:
        value = npy_format.read_array(io.BytesIO(member.read(1 << 16)), allow_pickle=False).item()
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)


def _member(archive: zipfile.ZipFile, name: str, request: Request) -> Member:
    with archive.open(f"{name}.npy") as member:
        length, dtype = _header(cast(BinaryIO, member), f"{request.source}, array {name!r}")
        return Member(archive, f"{name}.npy", member.tell(), dtype, length)


def _unpacked(archive: zipfile.ZipFile, request: Request) -> FileVector:
    """The pointers, which are read by any range, in a scratch file."""
    request.scratch.mkdir(parents=True, exist_ok=True)
    path = request.scratch / "indptr.npy"
    with archive.open("indptr.npy") as member, path.open("wb") as file:
        shutil.copyfileobj(member, file, 1 << 20)
    with path.open("rb") as stream:
        length, dtype = _header(stream, f"{request.source}, array 'indptr'")
        return FileVector(path, stream.tell(), dtype, length)


def _header(stream: BinaryIO, what: str) -> tuple[int, np.dtype[Any]]:
    version = npy_format.read_magic(stream)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, _, dtype = read(stream)
    if len(shape) != 1 or dtype.kind not in "biufc":
        raise InputError(f"{what} must hold numbers in one dimension; got shape {shape}, dtype {dtype}.")
    return int(shape[0]), dtype


def hdf5_parts(group: Any, what: str, dataset: Callable[[str], Any]) -> tuple[Compressed, tuple[str, ...]] | None:
    """The sparse matrix that a group of HDF5 is, and what is to be said of it; None where it does not say its shape.

    Parameters
    ----------
    group : h5py.Group
    what : str
        Its name in messages.
    dataset : callable
        From a name to the dataset in the group.

    References
    ----------
    AnnData's and 10x Genomics' files; those of MATLAB, version 7.3.
    """
    named = _matlab(group, dataset) or _anndata(group) or _cells(group, dataset)
    if named is None:
        return None
    names, shape, by_rows, note = named
    vectors = [dataset(name) for name in names]
    for name, vector in zip(names, vectors, strict=True):
        if len(vector.shape or ()) != 1 or vector.dtype.kind not in ("iu" if name != "data" else "biufc"):
            raise InputError(
                f"{what}: {name!r} must hold {'numbers' if name == 'data' else 'integers'} in one dimension; got shape "
                f"{vector.shape}, dtype {vector.dtype}."
            )
    data, indices, indptr = vectors
    parts = Compressed(what, shape, by_rows, unpacked_together(data), unpacked_together(indices), indptr)
    return parts, (note,) if note else ()


_Named = tuple[tuple[str, str, str], tuple[int, int], bool, str]


def _matlab(group: Any, dataset: Callable[[str], Any]) -> _Named | None:
    if "MATLAB_sparse" not in group.attrs or not {"data", "ir", "jc"} <= set(group):
        return None
    return ("data", "ir", "jc"), (int(group.attrs["MATLAB_sparse"]), len(dataset("jc")) - 1), False, ""


def _anndata(group: Any) -> _Named | None:
    attributes: Mapping[str, Any] = dict(group.attrs)
    form = attributes.get("encoding-type", attributes.get("h5sparse_format"))
    shape = attributes.get("shape", attributes.get("h5sparse_shape"))
    form = form.decode() if isinstance(form, bytes) else form
    if str(form)[:3] not in ("csr", "csc") or shape is None or len(shape) != 2:
        return None
    return ("data", "indices", "indptr"), (int(shape[0]), int(shape[1])), str(form).startswith("csr"), ""


def _cells(group: Any, dataset: Callable[[str], Any]) -> _Named | None:
    """Genes by cells, in compressed columns, which are the rows of cells by genes."""
    if not {"data", "indices", "indptr", "shape", "barcodes"} <= set(group):
        return None
    genes, cells = (int(length) for length in dataset("shape")[:2])
    return ("data", "indices", "indptr"), (cells, genes), True, "the file holds genes by cells: its cells are the rows here"
