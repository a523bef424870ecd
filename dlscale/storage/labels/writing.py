"""Names are written as arrays of text called ``row`` and ``column``, and what colours rows as ``color``.

Those of a copy lie in the group ``labels`` in its folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from dlscale.storage.files.nodes import group_metadata
from dlscale.storage.labels.names import CHUNK, COLOR, Labels, Text, pieces

#: The group of a copy that holds them.
FOLDER = "labels"


class NamesWriter:
    """Writes names of an axis from the first to the last, however many there are.

    Parameters
    ----------
    path : Path
        Folder of the new array.
    axis : str
        ``row`` or ``column``: its dimension.
    attributes : mapping, optional
        Of the array.
    """

    def __init__(self, path: Path, axis: str, attributes: Mapping[str, str] | None = None) -> None:
        self._path, self._axis, self._attributes = path, axis, dict[str, Any](attributes or {})
        self._waiting: list[str] = []
        self._array: zarr.Array[Any] | None = None
        self._crc = 0

    def append(self, names: Sequence[str]) -> None:
        self._waiting.extend(names)
        while len(self._waiting) >= CHUNK:
            self._write(self._waiting[:CHUNK], CHUNK)
            del self._waiting[:CHUNK]

    def finish(self) -> str:
        """Write what is left; returns a digest of all."""
        self._write(self._waiting, max(1, len(self._waiting)))
        return f"{self._crc:08x}"

    def _write(self, names: Sequence[str], chunk: int) -> None:
        if self._array is None:
            self._array = zarr.create_array(
                self._path,
                shape=(0,),
                chunks=(chunk,),
                dtype="string",
                compressors=[Crc32cCodec()],
                filters=None,
                dimension_names=[self._axis],
                attributes=self._attributes,
                config={"write_empty_chunks": True},  # an absent chunk means a lost one
            )
        if not names:
            return
        self._crc = google_crc32c.extend(self._crc, "\0".join([*names, ""]).encode("utf-8", "replace"))
        start = self._array.shape[0]
        self._array.resize((start + len(names),))
        self._array[start:] = np.array([name.encode("utf-8", "replace").decode() for name in names], np.dtypes.StringDType())


def write_text(path: Path, text: Text) -> str:
    """Write labels as an array of their own; returns a digest."""
    writer = NamesWriter(path, text.axis, text.attributes)
    for piece in pieces(text.texts):
        writer.append(piece)
    return writer.finish()


class LabelsWriter:
    """Writes the labels of a copy into its folder while the copy is made.

    Parameters
    ----------
    copy : Path
    color : str
        What the column is called that colours the rows, if there is one.
    """

    def __init__(self, copy: Path, *, color: str = "") -> None:
        self._folder, self._color, self._writers = copy / FOLDER, color, dict[str, NamesWriter]()

    def append(self, array: str, texts: Sequence[str]) -> None:
        if not texts:
            return
        if array not in self._writers:
            axis, attributes = ("row", {"long_name": self._color}) if array == COLOR else (array, {})
            self._writers[array] = NamesWriter(self._folder / array, axis, attributes)
        self._writers[array].append(texts)

    def copy(self, labels: Labels) -> None:
        """Add labels that are there as a whole."""
        self._color = labels.color.name if labels.color is not None else self._color
        for text in labels.stored():
            for piece in pieces(text.texts):
                self.append(text.array, piece)

    def finish(self) -> str:
        """Write what is left; returns a digest of all, empty where there are no names."""
        digest = "".join(f"{array}{writer.finish()}" for array, writer in sorted(self._writers.items()))
        digest += self._color if COLOR in self._writers else ""
        if digest:
            (self._folder / "zarr.json").write_bytes(group_metadata({}))
        return digest


def write_labels(copy: Path, labels: Labels) -> str:
    """Write labels into the folder of a copy; returns a digest, empty where there are none."""
    writer = LabelsWriter(copy)
    writer.copy(labels)
    return writer.finish()
