"""From whatever holds a matrix to a `Matrix`."""

from __future__ import annotations

import os
from typing import Any

from dlscale.errors import InputError
from dlscale.storage.arrays import plain_array
from dlscale.storage.files.locations import expand_home
from dlscale.storage.integrity import MissingChunks
from dlscale.storage.labels.names import labels_of
from dlscale.storage.matrix import ArrayMatrix, DaskMatrix, Matrix, compute_dtype
from dlscale.storage.sparse.groups import compressed_in, sparse_names
from dlscale.storage.sparse.matrix import in_memory, oriented
from dlscale.storage.zarr_matrices import ZarrMatrix
from dlscale.storage.zarr_stores import is_group, look_first, no_matrix, open_node


def open_matrix(source: Any, *, vectors: bool = False, missing_chunks: MissingChunks = "refuse") -> Matrix:
    """Open a matrix from whatever holds it.

    Parameters
    ----------
    source : str, Path, zarr.Array, zarr.Group, numpy.ndarray, list, data frame, sparse array of SciPy, dask.array.Array or Matrix
        A string is a path (``~`` is the home folder) or any URL that fsspec opens, and must lead to a Zarr array (v2 or v3), or
        to a group that is a sparse matrix (`dlscale.storage.sparse.groups`). In memory, whatever NumPy can read as numbers
        (`dlscale.storage.arrays.plain_array`).
    vectors : bool
        Whether an array of one dimension, of length m, is taken too: as the column of an (m, 1) matrix.

    missing_chunks : "refuse" or "fill"
        Whether a chunk of a Zarr array that is not there is an error, or stands for the array's fill value, as for Zarr.

    Returns
    -------
    Matrix (m, n)

    Raises
    ------
    SpecError
        If it is no array of anything.
    InputError
        If nothing is there, it is not a two-dimensional array of numbers, or an entry is masked.
    StoreError
        If an object store cannot be reached, or refuses.
    """
    if isinstance(source, Matrix):
        return source
    if hasattr(source, "group") and hasattr(source, "to_memory"):  # how AnnData hands out what it has not read
        source = source.group
    if isinstance(source, str | os.PathLike):
        matrix = _at(expand_home(source).removeprefix("file://"), vectors=vectors, missing_chunks=missing_chunks)
    elif type(source).__module__.startswith("dask."):
        labels = labels_of(source)
        if hasattr(source, "to_dask_array"):  # a data frame
            source = source.to_dask_array(lengths=True)
        matrix = DaskMatrix(_two_dimensional(source, "The Dask array", vectors), labels)
        matrix.is_vector = source.ndim == 1
    elif type(source).__module__.startswith("zarr.") and hasattr(source, "shape"):
        matrix = ZarrMatrix.wrap(source, vectors=vectors, missing_chunks=missing_chunks)
    elif type(source).__module__.startswith("zarr."):
        matrix = _sparse(source, str(source.store_path).removeprefix("file://"), opens_again=False, missing_chunks=missing_chunks)
    elif hasattr(source, "tocsr"):
        matrix = in_memory(source)
    else:
        array = plain_array(source)
        matrix = ArrayMatrix(_two_dimensional(array, "this array", vectors), labels_of(source))
        matrix.is_vector = array.ndim == 1
    compute_dtype(matrix.stored_dtype)
    if 0 in matrix.shape:
        raise InputError(f"A matrix must have at least one row and one column; {matrix.uri} has shape {matrix.shape}.")
    return matrix


def _at(uri: str, *, vectors: bool, missing_chunks: MissingChunks) -> Matrix:
    """The matrix at a path or URL."""
    look_first(uri)
    node = open_node(uri)
    if is_group(node):
        return _sparse(node, uri, opens_again=True, missing_chunks=missing_chunks)
    return ZarrMatrix.at(uri, node, vectors=vectors, missing_chunks=missing_chunks)


def _sparse(group: Any, uri: str, *, opens_again: bool, missing_chunks: MissingChunks) -> Matrix:
    """The sparse matrix that a group is (InputError, which names what in it is a matrix, if it is none)."""
    parts = compressed_in(group, uri, opens_again=opens_again, missing_chunks=missing_chunks)
    if parts is None:
        raise no_matrix(group, uri, sparse_names(group, uri))
    return oriented(parts)


def _two_dimensional(array: Any, what: str, vectors: bool) -> Any:
    if vectors and array.ndim == 1:
        return array[:, None]
    if array.ndim != 2:
        raise InputError(f"A matrix has two dimensions (rows, columns); {what} has shape {tuple(array.shape)}.")
    return array
