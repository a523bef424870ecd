"""Results that appear complete or not at all.

A job writes its arrays into a hidden Zarr group beside the final path; when the answer is certified, one rename publishes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dlscale.errors import SpecError
from dlscale.storage.durable import PARTIAL, Stamp, fsync_path, fsync_tree, make_folder, write_atomically
from dlscale.storage.nodes import find_node, group_metadata, make_group, place_node, set_aside
from dlscale.storage.writers import ArrayWriter, Shape, create_array, put_array, reopen_array

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
    owner : str
        Who writes; what another owner left in the hidden folder is removed.

    Raises
    ------
    SpecError
        If something is at the final path and is not to be overwritten, nothing can be written there, or another process is
        writing there.
    """

    def __init__(self, path: str | os.PathLike[str], *, overwrite: bool = False, fsync: bool = False, owner: str = "") -> None:
        place = os.fspath(path).removeprefix("file://")
        if "://" in place:
            raise SpecError(f"A result must go to a path on a file system of this machine, got {place}; copy it there afterwards.")
        self.path = Path(place).absolute()
        self.partial = _partial_of(self.path)
        self._overwrite, self._fsync = overwrite, fsync
        self._writers: dict[str, ArrayWriter] = {}
        self._check_final()
        try:
            self._let_go = weakref.finalize(self, os.close, self._claim())
        except OSError as error:
            raise SpecError(f"{self.path} must be a place where files can be written: {error}. Choose another output.") from error
        self._take_over(owner)

    def create(self, name: str, shape: Shape, dtype: DTypeLike, *, chunks: Shape, shards: Shape | None = None) -> ArrayWriter:
        """Create an array of the group, or open it where it is there with the same layout; see `create_array`.

        What a process before left there with another layout, or damaged, is removed.
        """
        path = place_node(self.partial, name)
        make = create_array if name in self._writers else reopen_array
        writer = make(path, shape, dtype=dtype, chunks=chunks, shards=shards, name=name, fsync=self._fsync)
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
        self._let_go()
        if replaced:
            shutil.rmtree(replaced)
        return self.path

    def discard(self) -> None:
        """Remove what was written; the final path is not touched, and the next `create` or `put` starts empty."""
        self._writers.clear()
        if self.partial.exists():
            shutil.rmtree(self.partial)
        self._let_go()

    def close(self) -> None:
        """Let others write there; what was written stays for whoever goes on with it."""
        self._let_go()

    def _claim(self) -> int:
        """A descriptor of the hidden folder, locked for this process until it is closed or the process ends."""
        while True:
            make_group(self.partial)
            descriptor = os.open(self.partial, os.O_RDONLY)
            if not _lock(descriptor):
                os.close(descriptor)
                raise SpecError(f"{self.path} is being written by another job; wait for its end, or choose another output.")
            try:
                if os.path.samestat(os.fstat(descriptor), os.stat(self.partial)):
                    return descriptor
            except FileNotFoundError:
                pass
            os.close(descriptor)  # another job published or removed it in between

    def _take_over(self, owner: str) -> None:
        found = (find_node(self.partial) or {}).get("attributes") or {}
        if found.get("owner", "") != owner:
            for leftover in self.partial.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            write_atomically(self.partial / "zarr.json", group_metadata({"owner": owner}), fsync=False)

    def _check_final(self) -> None:
        if not os.path.lexists(self.path):
            return
        if not self._overwrite:
            raise SpecError(
                f"{self.path} must not exist before the result is complete, but it does; choose another or overwrite it."
            )
        if find_node(self.path) is None:
            raise SpecError(f"{self.path} must be a Zarr group or array to be overwritten, got something else; choose another.")


def is_being_written(path: Path) -> bool:
    """Whether a process has a `ResultGroup` open for this final path."""
    try:
        descriptor = os.open(_partial_of(path), os.O_RDONLY)
    except OSError:
        return False
    try:
        return not _lock(descriptor)
    finally:
        os.close(descriptor)


def _partial_of(path: Path) -> Path:
    return path.with_name(f".{path.name}{PARTIAL}")


def _lock(descriptor: int) -> bool:
    """Lock a folder for this descriptor; False if another one has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a file system without locks of folders, such as NFS
    return True
