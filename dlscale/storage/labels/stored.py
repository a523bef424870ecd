"""The labels of a matrix in a store.

Those of a copy lie in its own folder. Those that others wrote are found where they write them: xarray as arrays beside the matrix
that are called as its dimensions are, AnnData in ``obs`` and ``var``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlscale.errors import InputError
from dlscale.storage.integrity import holds_numbers, holds_text
from dlscale.storage.labels.names import AXES, COLOR, Color, Labels, Names, counts, text_of
from dlscale.storage.labels.writing import FOLDER
from dlscale.storage.zarr_stores import is_group, open_array, open_node, refusing


class StoredNames:
    """Names in a store, read by ranges; numbers there are names as they are printed."""

    def __init__(self, array: Any) -> None:
        self._array = refusing(array)

    def __len__(self) -> int:
        return int(self._array.shape[0])

    def __getitem__(self, part: slice) -> Sequence[str]:
        return list(map(text_of, self._array[part].tolist()))


def labels_at(uri: str, shape: tuple[int, int], dimensions: Sequence[str | None] | None = None) -> Labels:
    """The labels of a matrix at a path or URL.

    Parameters
    ----------
    uri : str
    shape : (m, n)
        Of the matrix; what is of another length is none of its labels.
    dimensions : sequence of str, optional
        What the matrix calls its dimensions.
    """
    own = [names_at(f"{uri}/{FOLDER}/{axis}") for axis in AXES]
    beside, _, _ = uri.rstrip("/").rpartition("/")
    named = dimensions if dimensions is not None and len(dimensions) == len(AXES) else (None, None)
    found = Labels.of((mine or _names_in(beside, name) for mine, name in zip(own, named, strict=True))).fitting(shape)
    found = found if any(found) else _annotations(uri)
    return found._replace(color=color_at(f"{uri}/{FOLDER}/{COLOR}")).fitting(shape)


def names_at(uri: str) -> Names | None:
    """The names that an array of text or numbers at a path or URL is; None where there is no such array."""
    try:
        array = open_array(uri)
    except InputError:
        return None
    if array.ndim != 1 or not (holds_text(array) or (holds_numbers(array) and not counts(array))):
        return None
    return StoredNames(array)


def color_at(uri: str) -> Color | None:
    """What colours rows, in an array of text at a path or URL; None where there is no such array."""
    try:
        array = open_array(uri)
    except InputError:
        return None
    if array.ndim != 1 or not holds_text(array):
        return None
    return Color(text_of(dict(array.attrs).get("long_name", "")), StoredNames(array))


def _names_in(group: str, name: object) -> Names | None:
    """The names in an array of a group; what a stranger wrote as its name leads nowhere else."""
    if not isinstance(name, str) or not name or name.startswith(".") or set(name) & set("/\\?#"):
        return None
    return names_at(f"{group}/{name}")


def _annotations(uri: str) -> Labels:
    """Those that AnnData keeps of a matrix ``X`` or ``layers/...``."""
    parts = uri.rstrip("/").split("/")
    depth = 1 if parts[-1] == "X" else 2 if parts[-2:-1] == ["layers"] else 0
    if not depth:
        return Labels()
    return Labels.of(_index_at("/".join([*parts[:-depth], table])) for table in ("obs", "var"))


def _index_at(uri: str) -> Names | None:
    try:
        table = open_node(uri)
    except InputError:
        return None
    return _names_in(uri, dict(table.attrs).get("_index")) if is_group(table) else None
