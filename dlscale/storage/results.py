"""Results that appear complete or not at all.

A job writes its arrays into a hidden Zarr group beside the final path; when the answer is certified, one rename publishes it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dlscale.errors import SpecError
from dlscale.storage.durable import PARTIAL, Stamp, fsync_path, fsync_tree, make_folder, write_atomically
from dlscale.storage.writers import (
    ArrayWriter,
    Shape,
    create_array,
    find_node,
    group_metadata,
    make_group,
    place_node,
    put_array,
    set_aside,
)

__all__ = ["ArrayWriter", "ResultGroup", "create_array"]


class ResultGroup:
    """A Zarr group that is written beside its final path and appears there by one rename, complete.

    Until then it lies in the hidden folder ``.<name>.partial`` beside the final path. A group that was interrupted goes on
    with what was written when it is opened again; call `discard` first where another job's leftovers are not wanted.

    Parameters
    ----------
    path : str or path
        The final path, on this machine's file systems; its parents are created.
    overwrite : bool
        Let `publish` replace a Zarr group or array at the final path.
    fsync : bool
        See `ArrayWriter`.

    Raises
    ------
    SpecError
        If something is at the final path and is not to be overwritten, or nothing can be written there.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False, fsync: bool = False) -> None:
        place = os.fspath(path).removeprefix("file://")
        if "://" in place:
            raise SpecError(f"A result must go to a path on a file system of this machine, got {place}; copy it there afterwards.")
        self.path = Path(place).absolute()
        self.partial = self.path.with_name(f".{self.path.name}{PARTIAL}")
        self._overwrite, self._fsync = overwrite, fsync
        self._writers: dict[str, ArrayWriter] = {}
        self._check_final()
        try:
            make_group(self.partial)
        except OSError as error:
            raise SpecError(f"{self.path} must be a place where files can be written: {error}. Choose another output.") from error

    def create(self, name: str, shape: Shape, dtype: DTypeLike, *, chunks: Shape, shards: Shape | None = None) -> ArrayWriter:
        """Create an array of the group, or open it where it is there with the same layout; see `create_array`."""
        path = place_node(self.partial, name)
        writer = create_array(path, shape, dtype=dtype, chunks=chunks, shards=shards, name=name, fsync=self._fsync)
        return self._writers.setdefault(name, writer)

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Write a small array whole, replacing the one of that name."""
        self._writers.pop(name, None)
        put_array(place_node(self.partial, name), np.asarray(array), name=name)

    def publish(self, attributes: dict[str, Any]) -> Path:
        """Flush everything to the disk and rename the group to its final path.

        Parameters
        ----------
        attributes : dict
            What JSON can hold; becomes the group's attribute ``dlscale``.

        Returns
        -------
        Path
            The final path.

        Raises
        ------
        SpecError
            If something is at the final path; what was written stays in the hidden folder.
        """
        self._check_final()
        make_folder(self.partial)
        for leftover in list(self.partial.rglob(f"*{PARTIAL}")):
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        write_atomically(self.partial / "zarr.json", group_metadata({"dlscale": attributes}), fsync=False)
        synced: dict[str, Stamp] = {}
        for writer in self._writers.values():
            synced |= writer.synced
        fsync_tree(self.partial, synced)
        replaced = set_aside(self.path)
        os.rename(self.partial, self.path)
        fsync_path(self.path.parent)
        if replaced:
            shutil.rmtree(replaced)
        return self.path

    def discard(self) -> None:
        """Remove what was written; the final path is not touched, and the next `create` or `put` starts empty."""
        self._writers.clear()
        if self.partial.exists():
            shutil.rmtree(self.partial)

    def _check_final(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self._overwrite:
            raise SpecError(
                f"{self.path} must not exist before the result is complete, but it does; choose another or overwrite it."
            )
        if find_node(self.path) is None:
            raise SpecError(f"{self.path} must be a Zarr group or array to be overwritten, got something else; choose another.")
