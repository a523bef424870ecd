"""A column of a data frame at rest, as AnnData writes it into HDF5 and Zarr, as a text for each row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError
from dlscale.storage.labels.names import text_of

#: What a column's group holds, by how it is encoded.
_CATEGORICAL, _NULLABLE = ("codes", "categories"), ("values", "mask")


class ColumnTexts:
    """The values of a column as text, read by ranges; empty where there is none.

    Parameters
    ----------
    values : array (m,)
        Stored text or numbers, or the numbers of categories, below 0 where there is none.
    categories : sequence of str, optional
    mask : array (m,) of bool, optional
        Where there is no value.
    """

    def __init__(self, values: Any, categories: Sequence[str] | None = None, mask: Any = None) -> None:
        self._values, self._categories, self._mask = values, categories, mask

    def __len__(self) -> int:
        return int(self._values.shape[0])

    def __getitem__(self, part: slice) -> list[str]:
        found = np.asarray(self._values[part])
        if self._categories is not None:
            return self._of_categories(found)
        texts = _texts(found)
        if self._mask is None:
            return texts
        return ["" if absent else text for text, absent in zip(texts, self._mask[part].tolist(), strict=True)]

    def _of_categories(self, codes: Array) -> list[str]:
        categories = self._categories or ()
        if codes.size and int(codes.max()) >= len(categories):
            raise InputError(f"A column says category {int(codes.max())} of {len(categories)} in a row: its file is damaged.")
        return ["" if code < 0 else categories[code] for code in codes.tolist()]


def _texts(values: Array) -> list[str]:
    if values.dtype.kind == "f":
        return ["" if value != value else str(value) for value in values]
    return list(map(text_of, values.tolist()))


def column_texts(column: Any, part: Callable[[str], Any], is_plain: Callable[[Any], bool]) -> ColumnTexts | None:
    """The texts of an array, or of a group that is a column with categories, or with a mask; None of anything else.

    Parameters
    ----------
    column : array or group
        Of h5py or Zarr.
    part : callable
        From a name to the array in the group; None where there is none.
    is_plain : callable
        Whether an array is of text or numbers.
    """
    if hasattr(column, "shape"):
        return ColumnTexts(column) if _is_vector(column, is_plain) else None
    for names in (_CATEGORICAL, _NULLABLE):
        first, second = (part(name) if name in column else None for name in names)
        if first is None or second is None or not (_is_vector(first, is_plain) and _is_vector(second, is_plain)):
            continue
        if names is _NULLABLE:
            return ColumnTexts(first, mask=second)
        return ColumnTexts(first, ColumnTexts(second)[:])
    return None


def _is_vector(array: Any, is_plain: Callable[[Any], bool]) -> bool:
    return len(array.shape or ()) == 1 and is_plain(array)
