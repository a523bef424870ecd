"""Sparse matrices as others write them: a Zarr group with three arrays, in the conventions of AnnData and of binsparse.

References
----------
AnnData's on-disk format, sparse arrays, version 0.1.0; the binsparse specification, version 0.1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError
from dlscale.storage.integrity import MissingChunks, require_numbers
from dlscale.storage.sparse.vectors import StoredVector
from dlscale.storage.zarr_stores import understood

Vector = StoredVector | Array

ANNDATA_NAMES = ("data", "indices", "indptr")
BINSPARSE_NAMES = ("values", "indices_1", "pointers_to_1")
#: What AnnData calls the format.
_ENCODINGS = {"csr_matrix": True, "csc_matrix": False}


class Compressed(NamedTuple):
    """A matrix in compressed rows, or in compressed columns.

    Parameters
    ----------
    uri : str
    shape : (m, n)
    by_rows : bool
        Whether rows are compressed; else columns are.
    data, indices, indptr : vector
        Entries and their columns (rows), and where each row (column) begins among them.
    iso : bool
        Whether ``data`` holds one number that all entries have.
    pairs : bool
        Whether ``data`` holds real and imaginary parts in turn.
    attributes : mapping
        What dlscale wrote beside it.
    """

    uri: str
    shape: tuple[int, int]
    by_rows: bool
    data: Vector
    indices: Vector
    indptr: Vector
    iso: bool = False
    pairs: bool = False
    attributes: Mapping[str, Any] = {}

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of an entry."""
        dtype = self.data.dtype
        return np.result_type(dtype, np.complex64) if self.pairs else dtype

    def checked(self) -> Compressed:
        """The same, after its counts were compared (InputError)."""
        major, nnz = self.shape[0 if self.by_rows else 1], len(self.indices)
        wanted = (1 if self.iso and nnz else nnz) * (2 if self.pairs else 1)
        if not (self.iso and not nnz) and len(self.data) != wanted:
            raise InputError(f"{self.uri} is damaged: it has {nnz} indices and {len(self.data)} values; write it anew.")
        if len(self.indptr) != major + 1:
            what = "rows" if self.by_rows else "columns"
            raise InputError(f"{self.uri} is damaged: it has {major} {what} and {len(self.indptr)} pointers, one too few or many.")
        return self


def compressed_in(group: Any, uri: str, *, opens_again: bool, missing_chunks: MissingChunks = "refuse") -> Compressed | None:
    """The sparse matrix that a Zarr group is; None where it says nothing of one.

    Raises
    ------
    InputError
        If it says so, and what is needed is not there or makes no sense.
    """
    attributes = dict(group.attrs)
    told = attributes.get("dlscale")
    named = _anndata(attributes) or _binsparse(attributes, uri)
    if named is None:
        return None
    by_rows, shape, names, iso, pairs = named
    if (
        not isinstance(shape, list | tuple)
        or len(shape) != 2
        or not all(isinstance(length, int) and length >= 0 for length in shape)
    ):
        raise InputError(f"{uri} is a sparse matrix whose shape must be two numbers; got {shape!r}.")
    vectors = [_vector(group, name, uri, opens_again=opens_again, missing_chunks=missing_chunks) for name in names]
    for name, vector in zip(names[1:], vectors[1:], strict=True):
        if vector.dtype.kind not in "iu":
            raise InputError(f"{uri}/{name} must hold integers; got dtype {vector.dtype}.")
    found = Compressed(
        uri,
        (shape[0], shape[1]),
        by_rows,
        vectors[0],
        vectors[1],
        vectors[2],
        iso,
        pairs,
        told if isinstance(told, dict) else {},
    )
    return found.checked()


def sparse_names(group: Any, uri: str) -> list[str]:
    """Where sparse matrices are in a group, at most one group deeper, as in ``layers/counts``."""
    found = []
    for name, node in sorted(group.groups()):
        inner = [(f"{name}/{below}", node_below) for below, node_below in sorted(node.groups())]
        found += [f"{uri}/{path}" for path, child in [(name, node), *inner] if is_sparse(child)]
    return found


def is_sparse(group: Any) -> bool:
    """Whether a group says that it is a sparse matrix."""
    attributes = dict(group.attrs)
    return _anndata(attributes) is not None or "binsparse" in attributes


_Named = tuple[bool, Any, tuple[str, str, str], bool, bool]


def _anndata(attributes: Mapping[str, Any]) -> _Named | None:
    encoding, shape = attributes.get("encoding-type"), attributes.get("shape")
    if "h5sparse_format" in attributes:  # as versions before 0.7 called it
        encoding, shape = f"{attributes['h5sparse_format']}_matrix", attributes.get("h5sparse_shape")
    if not isinstance(encoding, str) or encoding not in _ENCODINGS:
        return None
    return _ENCODINGS[encoding], shape, ANNDATA_NAMES, False, False


def _binsparse(attributes: Mapping[str, Any], uri: str) -> _Named | None:
    header = attributes.get("binsparse")
    if not isinstance(header, dict):
        return None
    header = header.get("binsparse", header)
    form = header.get("format") if isinstance(header, dict) else None
    if form not in ("CSR", "CSC"):
        raise InputError(f"{uri} is a sparse matrix of binsparse in format {form!r:.40}; read are CSR and CSC.")
    if header.get("fill"):
        raise InputError(f"{uri} is a sparse matrix of binsparse with a fill value; read are those whose other entries are zero.")
    types = header.get("data_types")
    kind = str(types.get("values", "")) if isinstance(types, dict) else ""
    return form == "CSR", header.get("shape"), BINSPARSE_NAMES, kind.startswith("iso["), bool(re.search(r"\bcomplex\[", kind))


def _vector(group: Any, name: str, uri: str, *, opens_again: bool, missing_chunks: MissingChunks) -> StoredVector:
    place = f"{uri}/{name}"
    array = group.get(name)
    if array is None or not hasattr(array, "dtype"):
        raise InputError(f"{uri} is a sparse matrix that has lost its array {name!r}; write it anew.")
    array = understood(array, place)
    require_numbers(array, place)
    if array.ndim != 1:
        raise InputError(f"{place} must have one dimension; got shape {array.shape}.")
    return StoredVector(place, array, opens_again=opens_again, missing_chunks=missing_chunks)
