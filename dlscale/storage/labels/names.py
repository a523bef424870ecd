"""Names of rows and columns: text for each, read by ranges, and where data frames keep it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from dlscale.arrays import Array

AXES = ("row", "column")
#: The array with the text that colours rows.
COLOR = "color"
#: Names of a chunk, and of what is in memory at a time.
CHUNK = 1 << 16
_N_TOLD = 10


class Names(Protocol):
    """Text for each row, or each column: ``names[start:stop]`` is a list of str."""

    def __len__(self) -> int: ...

    def __getitem__(self, part: slice, /) -> Sequence[str]: ...


class Color(NamedTuple):
    """A column that is kept beside a matrix, for the colours of its rows: what it is called, and its text in each row."""

    name: str
    texts: Names


class Text(NamedTuple):
    """Labels as they are stored: an array of this name along this axis."""

    array: str
    axis: str
    texts: Names
    attributes: dict[str, str]


class Labels(NamedTuple):
    """What the rows and the columns of a matrix are called, and what colours the rows; None where nobody says.

    What colours columns is what colours the rows of the transpose, and shown nowhere else.
    """

    row: Names | None = None
    column: Names | None = None
    color: Color | None = None
    column_color: Color | None = None

    @classmethod
    def of(cls, axes: Iterable[Names | None]) -> Labels:
        """The names of rows, and those of columns."""
        row, column = axes
        return cls(row, column)

    @property
    def T(self) -> Labels:
        """Those of the transpose."""
        return Labels(self.column, self.row, self.column_color, self.color)

    def stored(self) -> Iterator[Text]:
        """All that there are, each as an array; what colours rows has its name as the attribute that xarray shows."""
        for axis, names in zip(AXES, (self.row, self.column), strict=True):
            if names is not None:
                yield Text(axis, axis, names, {})
        if self.color is not None:
            yield Text(COLOR, "row", self.color.texts, {"long_name": self.color.name})

    def describe(self) -> dict[str, list[str]]:
        """The first names of either axis, for people."""
        told = {}
        for array, _, names, _ in self.stored():
            more = [f"... ({len(names):,} in all)"] if len(names) > _N_TOLD else []
            told[f"names_of_{array}s" if array in AXES else "colors_of_rows"] = [*names[:_N_TOLD], *more]
        return told

    def fitting(self, shape: tuple[int, int]) -> Labels:
        """Those that a matrix of this shape has one of for each row, or column."""
        row, column = (names if names is not None and len(names) == n else None for names, n in zip(self[:2], shape, strict=True))
        colors = (color if color is not None and len(color.texts) == n else None for color, n in zip(self[2:], shape, strict=True))
        return Labels(row, column, *colors)


class ChosenNames:
    """Those of some columns.

    Parameters
    ----------
    names : Names
    columns : (k,) of int
        Which of them, increasing.
    """

    def __init__(self, names: Names, columns: Array) -> None:
        self._names, self._columns = names, columns

    def __len__(self) -> int:
        return len(self._columns)

    def __getitem__(self, part: slice) -> Sequence[str]:
        found: list[str] = []
        wanted = self._columns[part]
        for start in range(0, len(self._names), CHUNK):
            some = wanted[(wanted >= start) & (wanted < start + CHUNK)]
            if some.size:
                names = self._names[int(some[0]) : int(some[-1]) + 1]
                found += [names[j] for j in (some - some[0]).tolist()]
        return found


def text_of(name: Any) -> str:
    """A name as text: bytes are UTF-8, and parts of one that has several are parted by commas."""
    if isinstance(name, bytes):
        return name.decode("utf-8", "replace")
    return ", ".join(map(text_of, name)) if isinstance(name, tuple) else str(name)


def pieces(names: Names) -> Iterator[Sequence[str]]:
    """All names, some at a time."""
    for start in range(0, len(names), CHUNK):
        yield names[start : start + CHUNK]


def counts(array: Any) -> bool:
    """Whether a stored vector seems to count from 0, as what names nothing does."""
    n = int(array.shape[0])
    return n == 0 or (np.dtype(array.dtype).kind in "iu" and int(array[0]) == 0 and int(array[n - 1]) == n - 1)


def labels_of(source: Any) -> Labels:
    """What a data frame, or an array with coordinates, calls its rows and columns; numbers that merely count are no names."""
    if hasattr(source, "dims") and hasattr(source, "coords"):
        axes = [source.coords[name].values if name in source.coords else None for name in source.dims]
        axes = axes if len(axes) == len(AXES) else [None, None]
    else:
        columns = getattr(source, "column_names", getattr(source, "columns", None))
        axes = [getattr(source, "index", None), columns]
    return Labels.of(map(_told, axes))


def _told(axis: Any) -> Names | None:
    """Names of an axis, where it holds such."""
    if axis is None or callable(axis) or type(axis).__name__ == "RangeIndex" or type(axis).__module__.startswith("dask"):
        return None
    if isinstance(axis, np.ndarray) and axis.dtype.kind == "M":
        axis = np.datetime_as_string(axis)
    names = axis.tolist() if hasattr(axis, "tolist") else list(axis)
    return None if names == list(range(len(names))) else list(map(text_of, names))
