"""The labels of a matrix in a store.

Those of a copy lie in its own folder. Those that others wrote are found where they write them: xarray as arrays beside the matrix
that are called as its dimensions are, AnnData in ``obs`` and ``var``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dlscale.errors import InputError, SpecError
from dlscale.storage.integrity import holds_numbers, holds_text
from dlscale.storage.labels.columns import ColumnTexts, column_texts
from dlscale.storage.labels.names import AXES, COLOR, Color, Labels, Names, counts, text_of
from dlscale.storage.labels.writing import FOLDER
from dlscale.storage.zarr_stores import is_group, may_hold, open_array, open_node, refusing


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
    has_own = may_hold(f"{uri}/{FOLDER}")
    own = [names_at(f"{uri}/{FOLDER}/{axis}") if has_own else None for axis in AXES]
    beside, _, _ = uri.rstrip("/").rpartition("/")
    named = dimensions if dimensions is not None and len(dimensions) == len(AXES) else (None, None)
    found = Labels.of((mine or _names_in(beside, name) for mine, name in zip(own, named, strict=True))).fitting(shape)
    found = found if any(found) else _annotations(uri)
    return found._replace(color=color_at(f"{uri}/{FOLDER}/{COLOR}") if has_own else None).fitting(shape)


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


def color_beside(uri: str, n_rows: int, name: str) -> Color:
    """A column of AnnData's ``obs``, or an array beside a matrix, as what colours its rows.

    Parameters
    ----------
    uri : str
        Of the matrix.
    n_rows : int
    name : str

    Raises
    ------
    SpecError
        If there is none, or what there is has not a text or a number for each row.
    """
    root = _anndata_root(uri, "obsm")
    places = [f"{root}/obs"] if root else []
    beside, _, _ = uri.rstrip("/").rpartition("/")
    for group in [*places, beside]:
        texts = _column_in(group, name)
        if texts is None:
            continue
        if len(texts) != n_rows:
            raise SpecError(f"{group}/{name} has {len(texts)} values, and the matrix {n_rows} rows to be coloured.")
        return Color(name, texts)
    where = " or ".join([*places, beside])
    raise SpecError(f"there is no column or array {name!r} of text or numbers in {where}, to colour the rows of {uri} by.")


def _column_in(group: str, name: str) -> ColumnTexts | None:
    if not _stays_inside(name):
        return None
    uri = f"{group}/{name}"

    def part(below: str) -> Any:
        try:
            return refusing(open_array(f"{group}/{below}"))
        except InputError:
            return None

    try:
        found = open_node(uri)
    except InputError:
        return None
    older = dict(found.attrs).get("categories")
    if not is_group(found) and isinstance(older, str) and older == f"__categories/{name}":  # before 0.8
        codes, categories = part(name), part(older)
        return None if categories is None else ColumnTexts(codes, ColumnTexts(categories)[:])
    column = found if is_group(found) else refusing(open_array(uri))
    return column_texts(column, lambda below: part(f"{name}/{below}"), lambda array: holds_text(array) or holds_numbers(array))


def _names_in(group: str, name: object) -> Names | None:
    """The names in an array of a group; what a stranger wrote as its name leads nowhere else."""
    return names_at(f"{group}/{name}") if isinstance(name, str) and _stays_inside(name) else None


def _stays_inside(name: str) -> bool:
    """Whether a name leads to no other group."""
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\?#")


def _annotations(uri: str) -> Labels:
    """Those that AnnData keeps of a matrix ``X`` or ``layers/...``."""
    root = _anndata_root(uri)
    return Labels.of(_index_at(f"{root}/{table}") for table in ("obs", "var")) if root else Labels()


def _anndata_root(uri: str, *more: str) -> str:
    """The group of AnnData that a matrix ``X``, or in ``layers`` or one of more groups, lies in; empty where it is none."""
    parts = uri.rstrip("/").split("/")
    depth = 1 if parts[-1] == "X" else 2 if parts[-2:-1] and parts[-2] in ("layers", *more) else 0
    return "/".join(parts[:-depth]) if depth else ""


def _index_at(uri: str) -> Names | None:
    try:
        table = open_node(uri)
    except InputError:
        return None
    return _names_in(uri, dict(table.attrs).get("_index")) if is_group(table) else None
