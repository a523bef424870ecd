"""Results that appear complete or not at all.

A job writes its arrays into a hidden Zarr group beside the final path; when the answer is certified, one rename publishes it.
Three hidden names belong to the path ``<name>``: ``.<name>.partial`` is written, ``.<name>.lock`` says by whom, and
``.replaced.<name>`` is an old result on its way out. Nothing that stands there is followed or removed unless it is a folder
of this user that carries the mark of a group.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dlscale.errors import SpecError
from dlscale.storage.files import locks
from dlscale.storage.files.atomic import PARTIAL, exchange, fsync_path, hidden, is_own_folder, make_folder, write_atomically
from dlscale.storage.files.durable import Stamp, fsync_tree
from dlscale.storage.files.nodes import find_node, group_metadata, place_node, remove_node
from dlscale.storage.labels.names import Labels
from dlscale.storage.labels.writing import write_text
from dlscale.storage.seals import SEAL, make_seal
from dlscale.storage.writers import ArrayWriter, Layout, Shape, create_array, put_array, reopen_array

__all__ = ["ArrayWriter", "ResultGroup", "create_array"]

#: The attribute of a group that is being written: who writes it, and for which name.
_MARK = "dlscale_partial"


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
    dimensions : mapping of str to tuple of str, optional
        What the first axes of an array are called, by its name; others are called after their array.

    Raises
    ------
    SpecError
        If something is at the final path and is not to be overwritten, nothing can be written there, or another process is
        writing there.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        overwrite: bool = False,
        fsync: bool = False,
        owner: str = "",
        dimensions: Mapping[str, tuple[str, ...]] | None = None,
    ) -> None:
        place = os.fspath(path).removeprefix("file://")
        if "://" in place:
            raise SpecError(f"A result must go to a path on a file system of this machine, got {place}; copy it there afterwards.")
        self.path = Path(place).absolute()
        self.partial = _partial_of(self.path)
        self._overwrite, self._fsync = overwrite, fsync
        self._writers: dict[str, ArrayWriter] = {}
        self._owner = owner
        self._dimensions, self._lengths = dimensions or {}, dict[str, int]()
        self._check_final()
        with self._writable():
            make_folder(self.path.parent)
            self._lock = claim(self.path)
            self._let_go = weakref.finalize(self, self._lock.release, remove=True)
        try:
            check_place(self.path)
            with self._writable():
                _finish(self.path, owner)
                self._take_over()
        except BaseException:
            self._let_go()
            raise

    def create(
        self, name: str, shape: Shape, dtype: DTypeLike, *, chunks: Shape, shards: Shape | None = None, once: bool = False
    ) -> ArrayWriter:
        """Create an array of the group, or open it where it is there with the same layout; see `create_array`, `ArrayWriter`.

        What a process before left there with another layout, or damaged, is removed.
        """
        self._lock.check()
        path = place_node(self.partial, name)
        make = create_array if name in self._writers else reopen_array
        layout = Layout(shape, dtype, chunks, shards, self._dimensions_of(name, shape))
        writer = replace(make(path, layout, name=name, fsync=self._fsync), once=once)
        return self._writers.setdefault(name, writer)

    def put(self, name: str, array: NDArray[Any]) -> None:
        """Write a small array whole, replacing the one of that name."""
        self._lock.check()
        self._writers.pop(name, None)
        array = np.asarray(array)
        put_array(place_node(self.partial, name), array, name=name, dimensions=self._dimensions_of(name, array.shape))

    def name_axes(self, labels: Labels) -> None:
        """Write labels of rows and columns, where an array has such, beside the arrays, as xarray does."""
        self._lock.check()
        for text in labels.stored():
            if self._lengths.get(text.axis) == len(text.texts):
                path = place_node(self.partial, text.array)
                remove_node(path)
                write_text(path, text)

    def _dimensions_of(self, name: str, shape: Shape) -> tuple[str, ...]:
        """What the axes of an array are called."""
        known, own = self._dimensions.get(name, ()), name.rpartition("/")[2]
        called = []
        for axis, length in enumerate(shape):
            # xarray refuses a group in which two lengths have one name.
            fits = axis < len(known) and self._lengths.setdefault(known[axis], length) == length
            called.append(known[axis] if fits else f"{own}_{axis}")
        return tuple(called)

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
        self._lock.check()
        self._check_final()
        self._mark_if_absent()
        for leftover in list(self.partial.rglob(f"*{PARTIAL}")):
            _remove(leftover)
        attributes = json.loads(group_metadata(attributes))["attributes"]
        seal = make_seal(self.partial, attributes)
        write_atomically(self.partial / "zarr.json", group_metadata({"dlscale": attributes, SEAL: seal}), fsync=False)
        synced: dict[str, Stamp] = {}
        for writer in self._writers.values():
            synced |= writer.synced
        fsync_tree(self.partial, synced)
        self._lock.check()
        if os.path.lexists(self.path):
            # The old result is whole under one of its names at every moment; `_finish` ends what a kill leaves here.
            replaced = _replaced(self.path)
            if exchange(self.partial, self.path):
                os.rename(self.partial, replaced)
            else:
                os.rename(self.path, replaced)
                os.rename(self.partial, self.path)
            fsync_path(self.path.parent)
            _remove_group(replaced)
        else:
            os.rename(self.partial, self.path)
            fsync_path(self.path.parent)
        self._let_go()
        return self.path

    def discard(self) -> None:
        """Remove what was written; the final path is not touched, and the next `create` or `put` starts empty."""
        self._writers.clear()
        if self.partial.exists():
            _remove_group(self.partial)
        self._let_go()

    def close(self) -> None:
        """Let others write there; what was written stays for whoever goes on with it."""
        self._let_go()

    @contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SpecError(f"{self.path} must be a place where files can be written: {error}. Choose another output.") from error

    def _take_over(self) -> None:
        """Go on with what this owner left; remove what another one did."""
        if self.partial.exists() and _owner_of(self.partial) != self._owner:
            _empty(self.partial)
        self._mark_if_absent()

    def _mark_if_absent(self) -> None:
        if _owner_of(self.partial) is None:
            make_folder(self.partial)
            mark = {_MARK: {"owner": self._owner, "output": self.path.name}}
            write_atomically(self.partial / "zarr.json", group_metadata(mark), fsync=False)

    def _check_final(self) -> None:
        check_name_length(self.path)
        if not os.path.lexists(self.path):
            return
        if not self._overwrite:
            raise SpecError(
                f"{self.path} must not exist before the result is complete, but it does; choose another or overwrite it."
            )
        if self.path.is_symlink():
            raise SpecError(
                f"{self.path} is a link to {os.readlink(self.path)}, and links are not overwritten; name the result itself."
            )
        if find_node(self.path) is None:
            raise SpecError(f"{self.path} must be a Zarr group or array to be overwritten, got something else; choose another.")


def claim(path: Path) -> locks.Lock:
    """Take the final path of a group for this process (SpecError if another one has it); its folder must be there."""
    lock = locks.take(_lock_of(path))
    if lock is None:
        raise SpecError(f"{path} is being written by another job; wait for its end, or choose another output.")
    return lock


def is_being_written(path: Path) -> bool:
    """Whether a process has a `ResultGroup` open for this final path."""
    return locks.is_held(_lock_of(path))


def check_name_length(path: Path) -> None:
    """Refuse a name that the file system would refuse when the work is done (SpecError)."""
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    try:
        most = os.pathconf(folder, "PC_NAME_MAX")
    except (OSError, ValueError):
        return
    for part in path.relative_to(folder).parts:
        if (n_bytes := len(os.fsencode(part))) > most:
            raise SpecError(
                f"{part[:60]}... is a name of {n_bytes} bytes, and the file system of {folder} takes {most}; shorten it."
            )


def check_place(path: Path) -> None:
    """Refuse to write where the hidden names of a final path belong to something else, which is left alone.

    Raises
    ------
    SpecError
        Naming what stands there.
    """
    for place in (_partial_of(path), _replaced(path)):
        if not os.path.lexists(place):
            continue
        if place.is_symlink():
            what = f"a link to {os.readlink(place)}"
        elif not place.is_dir():
            what = "a file that is no result"
        elif not is_own_folder(place):
            what = "a folder of another user"
        elif _owner_of(place) is None and not _is_draft(place) and not (place == _replaced(path) and find_node(place)):
            found, mark = find_node(place), place / "zarr.json"
            if found is None:
                what = f"a folder without {mark}, which would say whose it is"
            elif found.get("node_type") == "unreadable node":
                what = f"a folder whose {mark} is damaged"
            else:
                what = "a folder of something else"
        else:
            continue
        raise SpecError(
            f"{place} is {what}; the result would be written under this name first. Remove it, or choose another output."
        )


def settle(path: Path, owner: str) -> None:
    """Finish what a killed `ResultGroup.publish` of this owner began; nothing where another process writes there."""
    if not any(map(os.path.lexists, (_partial_of(path), _replaced(path), _lock_of(path)))):
        return
    check_place(path)
    lock = locks.take(_lock_of(path))
    if lock is not None:
        try:
            _finish(path, owner)
        finally:
            lock.release(remove=True)


def _finish(path: Path, owner: str) -> None:
    partial, replaced = _partial_of(path), _replaced(path)
    if os.path.lexists(replaced):
        if not os.path.lexists(path):
            os.rename(partial if _is_complete(partial) else replaced, path)
        if os.path.lexists(replaced):
            _remove_group(replaced)
    if owner and _is_complete(path) and _owner_of(path) == owner and _is_complete(partial) and _owner_of(partial) != owner:
        _remove_group(partial)  # the two have changed places


def _owner_of(group: Path) -> str | None:
    """Who wrote a group or is writing it; None for a folder that no `ResultGroup` made."""
    attributes = (find_node(group) or {}).get("attributes")
    if not isinstance(attributes, dict):
        return None
    for mark, key in ((_MARK, "owner"), ("dlscale", "job")):
        if isinstance(record := attributes.get(mark), dict):
            return str(record.get(key, ""))
    return None


def _is_complete(group: Path) -> bool:
    attributes = (find_node(group) or {}).get("attributes")
    return isinstance(attributes, dict) and isinstance(attributes.get("dlscale"), dict)


def _is_draft(group: Path) -> bool:
    """Whether a folder holds no more than what is there when a process is killed before it marks a new group."""
    return all(entry.name.startswith(".zarr.json.") for entry in group.iterdir())


def _partial_of(path: Path) -> Path:
    return hidden(path)


def _lock_of(path: Path) -> Path:
    return hidden(path, ".lock")


def _replaced(path: Path) -> Path:
    return hidden(path, "", beginning="replaced.")


def _empty(group: Path) -> None:
    """Remove what a group holds; its mark last, since without it nobody may remove the rest."""
    for entry in sorted(group.iterdir(), key=lambda entry: entry.name == "zarr.json"):
        _remove(entry)


def _remove_group(group: Path) -> None:
    _empty(group)
    group.rmdir()


def _remove(place: Path) -> None:
    """Remove a file, a link (not what it points to) or a folder."""
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
