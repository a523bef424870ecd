"""What people hold in memory, as a plain array of numbers: subclasses of NumPy's array, masks, lists, data frames."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError


def plain_array(source: Any) -> Array:
    """An array that is nothing but an array, with the numbers of one.

    Parameters
    ----------
    source : numpy.ndarray of any subclass, list, tuple, data frame, or what else offers NumPy its numbers
        Objects that are numbers (Decimal, Fraction, large integers) become float64, or complex128 where one is complex.

    Returns
    -------
    ndarray
        The same memory where it is an array already.

    Raises
    ------
    SpecError
        If it is no array of anything.
    InputError
        If an entry is masked or is no number, naming its place, or if rows differ in length.
    """
    kind = type(source).__name__
    if not (hasattr(source, "__array__") or hasattr(source, "__array_interface__") or _is_sequence(source)):
        advice = " A sparse matrix is taken as an array: call .toarray()." if hasattr(source, "toarray") else ""
        raise SpecError(
            f"A matrix must be a NumPy, Dask or Zarr array, a list of rows, a data frame, a path or a URL; got {kind}.{advice}"
        )
    try:
        if _is_sequence(source) and any(isinstance(row, np.ma.MaskedArray) for row in source):
            source = np.ma.array(source)
        array = source if isinstance(source, np.ma.MaskedArray) else np.asarray(source)
    except Exception as error:  # whatever the conversion of a foreign type raises
        raise InputError(f"This {kind} is not an array of numbers with rows of one length: {error}") from error
    return numbers_of(unmasked(array))


def unmasked(array: Any, place: tuple[int, ...] = ()) -> Array:
    """The array without its mask, and without any other subclass.

    Parameters
    ----------
    array : ndarray
    place : tuple of int
        Of its first entry in what the user gave.

    Raises
    ------
    InputError
        If an entry is masked.
    """
    if isinstance(array, np.ma.MaskedArray):
        if (masked := np.argwhere(np.ma.getmaskarray(array))).size:
            raise InputError(
                f"The entry at {_words(masked[0], place)} is masked, and every entry of a matrix counts; "
                "say what stands there with .filled(...), or drop its row."
            )
        array = array.data
    return np.asarray(array)


def numbers_of(array: Array) -> Array:
    """An array of objects as one of numbers; any other array as it is."""
    if array.dtype.kind != "O":
        return array
    values = array.ravel().tolist()
    for i, value in enumerate(values):
        if not isinstance(value, Number | np.bool_):
            where = _words(np.unravel_index(i, array.shape))
            raise InputError(f"A matrix must hold numbers; at {where} stands {value!r:.60} ({type(value).__name__}).")
    dtype = np.complex128 if any(isinstance(value, complex | np.complexfloating) for value in values) else np.float64
    try:
        return np.array(values, dtype).reshape(array.shape)
    except Exception as error:  # an integer beyond all floats, or what a type of numbers does not convert
        raise InputError(f"The numbers of the array do not become {np.dtype(dtype)}: {error}") from error


def _is_sequence(source: Any) -> bool:
    return isinstance(source, Sequence) and not isinstance(source, str | bytes | bytearray)


def _words(index: Any, place: tuple[int, ...] = ()) -> str:
    """Where an entry is: its row and column, or what an array of another number of dimensions has."""
    where = [int(i) + start for i, start in zip(index, place or (0,) * len(index), strict=True)]
    if len(where) == 2:
        return f"row {where[0]}, column {where[1]}"
    return f"row {where[0]}" if len(where) == 1 else f"index {tuple(where)}"
