"""From whatever holds a matrix to a `Matrix`."""

from __future__ import annotations

import os
from typing import Any, Literal

from dlscale.errors import InputError
from dlscale.storage.arrays import plain_array
from dlscale.storage.files.locations import expand_home
from dlscale.storage.matrix import ArrayMatrix, DaskMatrix, Matrix, compute_dtype
from dlscale.storage.zarr_matrices import ZarrMatrix


def open_matrix(source: Any, *, vectors: bool = False, missing_chunks: Literal["refuse", "fill"] = "refuse") -> Matrix:
    """Open a matrix from whatever holds it.

    Parameters
    ----------
    source : str, Path, zarr.Array, numpy.ndarray, list, data frame, dask.array.Array or Matrix
        A string is a path (``~`` is the home folder) or any URL that fsspec opens, and must lead to a Zarr array (v2 or v3).
        In memory, whatever NumPy can read as numbers (`dlscale.storage.arrays.plain_array`).
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
    """
    if isinstance(source, Matrix):
        return source
    if isinstance(source, str | os.PathLike):
        matrix: Matrix = ZarrMatrix.open(expand_home(source), vectors=vectors, missing_chunks=missing_chunks)
    elif type(source).__module__.startswith("dask."):
        if hasattr(source, "to_dask_array"):  # a data frame
            source = source.to_dask_array(lengths=True)
        matrix = DaskMatrix(_two_dimensional(source, "The Dask array", vectors))
        matrix.is_vector = source.ndim == 1
    elif type(source).__module__.startswith("zarr.") and hasattr(source, "shape"):
        matrix = ZarrMatrix.wrap(source, vectors=vectors, missing_chunks=missing_chunks)
    else:
        array = plain_array(source)
        matrix = ArrayMatrix(_two_dimensional(array, "The array", vectors))
        matrix.is_vector = array.ndim == 1
    compute_dtype(matrix.stored_dtype)
    if 0 in matrix.shape:
        raise InputError(f"A matrix must have at least one row and one column; {matrix.uri} has shape {matrix.shape}.")
    return matrix


def _two_dimensional(array: Any, what: str, vectors: bool) -> Any:
    if vectors and array.ndim == 1:
        return array[:, None]
    if array.ndim != 2:
        raise InputError(f"A matrix has two dimensions (rows, columns); {what} has shape {tuple(array.shape)}.")
    return array
