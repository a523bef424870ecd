"""Names are written as arrays of text called ``row`` and ``column``; those of a copy in the group ``labels`` in its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from dlscale.storage.files.nodes import group_metadata
from dlscale.storage.labels.names import AXES, CHUNK, Labels, Names, pieces

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
    """

    def __init__(self, path: Path, axis: str) -> None:
        self._path, self._axis = path, axis
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
                config={"write_empty_chunks": True},  # an absent chunk means a lost one
            )
        if not names:
            return
        self._crc = google_crc32c.extend(self._crc, "\0".join([*names, ""]).encode("utf-8", "replace"))
        start = self._array.shape[0]
        self._array.resize((start + len(names),))
        self._array[start:] = np.array([name.encode("utf-8", "replace").decode() for name in names], np.dtypes.StringDType())


def write_names(path: Path, axis: str, names: Names) -> str:
    """Write the names of an axis as an array of its own; returns a digest."""
    writer = NamesWriter(path, axis)
    for piece in pieces(names):
        writer.append(piece)
    return writer.finish()


class LabelsWriter:
    """Writes the labels of a copy into its folder while the copy is made."""

    def __init__(self, copy: Path) -> None:
        self._folder, self._writers = copy / FOLDER, dict[str, NamesWriter]()

    def append(self, axis: str, names: Sequence[str]) -> None:
        if names:
            self._writers.setdefault(axis, NamesWriter(self._folder / axis, axis)).append(names)

    def copy(self, labels: Labels) -> None:
        """Add labels that are there as a whole."""
        for axis, names in zip(AXES, labels, strict=True):
            for piece in pieces(names) if names is not None else ():
                self.append(axis, piece)

    def finish(self) -> str:
        """Write what is left; returns a digest of all, empty where there are no names."""
        digest = "".join(f"{axis}{writer.finish()}" for axis, writer in sorted(self._writers.items()))
        if digest:
            (self._folder / "zarr.json").write_bytes(group_metadata({}))
        return digest


def write_labels(copy: Path, labels: Labels) -> str:
    """Write labels into the folder of a copy; returns a digest, empty where there are none."""
    writer = LabelsWriter(copy)
    writer.copy(labels)
    return writer.finish()
