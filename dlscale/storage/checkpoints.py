"""Checkpoints that are whole or do not count.

``<directory>/steps/<step>/`` is a Zarr group with the arrays of a step (`zarr.open` reads it), ``scratch/<name>`` holds
large arrays that tasks write, and ``manifests/<step>.json`` lists every file of the step with its size and checksum. A step
is written beside and flushed to the disk; it counts from the rename of its manifest on. Damage found later is reported, and
the step counts no more, so that the caller goes back to the one before.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dlscale.errors import CorruptionError, SpecError
from dlscale.storage.files.atomic import read_plain
from dlscale.storage.files.durable import (
    check_chunk,
    crc32c,
    fsync_path,
    fsync_tree,
    read_chunk,
    read_whole,
    write_atomically,
)
from dlscale.storage.files.nodes import check_name, make_group, place_node
from dlscale.storage.objects.address import Address, is_object_url
from dlscale.storage.objects.requests import listing
from dlscale.storage.writers import ArrayWriter, Layout, Shape, put_array, reopen_array

VERSION = 2

#: A step that is saved again goes to the other of two folders: its own name, or that with this behind it.
OTHER = "~"


class Checkpoint:
    """The saved state of a job: named steps, each of them complete, and scratch arrays.

    Parameters
    ----------
    directory : Path
        Made at the first `save` or `scratch`.
    fsync : bool
        For the scratch arrays; see `ArrayWriter`.

    Attributes
    ----------
    problems : list of str
        A sentence for each damaged step that was met.
    is_local : bool
        Whether there is a folder, where other files of the job can lie too.
    """

    is_local = True

    def __init__(self, directory: Path, *, fsync: bool = False) -> None:
        self.directory = Path(directory).absolute()
        self._has_place = self.directory.parent.is_dir()
        self.problems: list[str] = []
        self._fsync = fsync
        self._steps = self.directory / "steps"
        self._manifests = self.directory / "manifests"

    @property
    def uri(self) -> str:
        """Where it is: its folder, or its URL in an object store."""
        return str(self.directory)

    def look_again(self) -> None:
        """Find what another process has saved meanwhile; on a disk it is found anyway."""

    def save(self, step: str, arrays: Mapping[str, NDArray[Any]], *, writers: Sequence[ArrayWriter] = ()) -> int:
        """Save a step; the one of that name before it counts until this one is complete.

        Parameters
        ----------
        step : str
        arrays : mapping of str to ndarray
            The small state; any shape, booleans, integers, floats or complex numbers.
        writers : sequence of ArrayWriter
            What they have written so far belongs to the step: flushed to the disk here, verified by `load`.

        Returns
        -------
        int
            Bytes of the step, without those of the writers.

        Raises
        ------
        DoesNotFitError
            If the disk is full.
        """
        if "/" in check_name(step):
            raise SpecError(f"The name of a step must have no /, got {step!r}.")
        before = self._manifest(step)
        folder = step + OTHER if before and before["folder"] == step else step
        number = 1 + self.n_saved
        target = self._steps / folder
        _remove(target)
        self.require_place()
        try:
            make_group(self._steps)
            make_group(target, parents=False)
            layouts, crcs = self._write(target, arrays)
            sizes = fsync_tree(target, {})
            fsync_path(self._steps)
            written = {self._name_of(writer): writer.inventory() for writer in writers}
        except BaseException:
            _remove(target)
            raise
        manifest = {
            "version": VERSION,
            "step": step,
            "number": number,
            "folder": folder,
            "arrays": layouts,
            "files": {key: [size, crcs[key]] for key, size in sizes.items()},
            "writers": written,
        }
        self._manifests.mkdir(exist_ok=True)
        fsync_path(self.directory)
        write_atomically(self._manifests / f"{step}.json", sealed(manifest))
        if before:
            _remove(self._steps / before["folder"])
        return sum(sizes.values())

    def load(self, step: str) -> dict[str, NDArray[Any]] | None:
        """The arrays of a step, every byte verified; None if it was never completed, or is damaged (see `problems`)."""
        manifest = self._manifest(step)
        if manifest is None:
            return None
        folder = self._steps / manifest["folder"]
        try:
            for path, files in manifest["writers"].items():
                check_written(path if is_object_url(path) else self.directory / path, files)
            for key, (size, crc) in manifest["files"].items():
                if key.endswith("zarr.json") and crc32c(read_whole(folder / key, size)) != crc:
                    raise CorruptionError(f"{folder / key} is corrupted: its checksum must be {crc:08x}")
            return {name: read_array(folder, name, manifest) for name in manifest["arrays"]}
        except CorruptionError as error:
            self._report(step, error)
            return None

    def scratch(self, name: str, shape: Shape, dtype: DTypeLike, *, chunks: Shape) -> ArrayWriter:
        """A large array for tasks to write, opened where it is there with the same layout; see `create_array`."""
        self.require_place()
        path = place_node(self.directory / "scratch", name)
        return reopen_array(path, Layout(shape, dtype, chunks), name=name, fsync=self._fsync)

    def steps(self) -> list[str]:
        """Names of the steps that count, the oldest first; their arrays are verified by `load`."""
        return [manifest["step"] for manifest in sorted(self._counting(), key=lambda manifest: int(manifest["number"]))]

    @property
    def n_saved(self) -> int:
        """The number of the newest step, larger than that of any before it; 0 without one."""
        return max((int(manifest["number"]) for manifest in self._counting()), default=0)

    def drop(self, step: str) -> None:
        """Remove a step that is needed no more."""
        manifest = self._manifests / f"{check_name(step)}.json"
        if manifest.exists():
            manifest.unlink()
            fsync_path(self._manifests)
        for folder in (step, step + OTHER):
            _remove(self._steps / folder)

    def forget(self, name: str) -> None:
        """Drop the step of this name and its parts ``<name>-<number>``, and remove the scratch array of this name.

        The steps go first, so that none counts whose array is gone.
        """
        for step in self.steps():
            rest = step.removeprefix(name)
            if rest == "" or (rest != step and rest[0] == "-" and rest[1:].isdecimal()):
                self.drop(step)
        self._remove_scratch(check_name(name))

    def discard(self) -> None:
        """Remove all steps and scratch arrays."""
        _remove(self._manifests)  # first, so that a kill in between leaves nothing that seems to count
        _remove(self.directory)

    def require_place(self) -> None:
        """The folder of a job that was moved or removed meanwhile must not come back as a part of itself."""
        if self._has_place and not self.directory.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, "the folder that held it was moved or removed", str(self.directory))

    def _name_of(self, writer: ArrayWriter) -> str:
        return os.path.relpath(writer.path, self.directory) if isinstance(writer.path, Path) else str(writer.path)

    def _remove_scratch(self, name: str) -> None:
        _remove(self.directory / "scratch" / name)

    def _write(self, target: Path, arrays: Mapping[str, NDArray[Any]]) -> tuple[dict[str, Any], dict[str, int]]:
        """Write the arrays; how each is laid out, and the checksum of every file."""
        layouts: dict[str, Any] = {}
        crcs: dict[str, int] = {}
        for name, array in arrays.items():
            writer, chunk_crcs = put_array(place_node(target, name, parents=False), np.asarray(array))
            layouts[name] = [writer.shape, writer.dtype.name, writer.chunks, list(chunk_crcs)]
            crcs |= {f"{name}/{key}": crc for key, crc in chunk_crcs.items()}
        for path in target.rglob("zarr.json"):
            crcs[path.relative_to(target).as_posix()] = crc32c(path.read_bytes())
        return layouts, crcs

    def _counting(self) -> Iterator[dict[str, Any]]:
        for path in self._manifests.glob("*.json"):
            manifest = self._manifest(path.stem)
            if manifest is not None:
                yield manifest

    def _manifest(self, step: str) -> dict[str, Any] | None:
        path = self._manifests / f"{step}.json"
        try:
            return unsealed(read_plain(path), step)
        except FileNotFoundError:
            return None
        except (CorruptionError, OSError) as error:
            self._report(step, CorruptionError(f"its manifest {path} is damaged ({error})"))
            return None

    def _report(self, step: str, error: CorruptionError) -> None:
        problem = f"Checkpoint step '{step}' does not count: {error}."
        if problem not in self.problems:
            self.problems.append(problem)


def check_written(place: Path | str, files: Mapping[str, Any]) -> None:
    """Compare what writers wrote, in a folder or at a URL, with what it was when a step was saved (CorruptionError)."""
    if isinstance(place, str):
        there = listing(Address.of(place))
        for key, (size, version) in files.items():
            if key not in there or (there[key].size, there[key].version) != (size, version):
                raise CorruptionError(f"{place}/{key} is missing, or another one than was written there")
        return
    for key, (size, crc) in files.items():
        _require_size(place / key, size)
        if crc is not None and check_chunk(place / key) != crc:
            raise CorruptionError(f"{place / key} is another one than was written there: its checksum must be {crc:08x}")


def read_array(folder: Path, name: str, manifest: dict[str, Any]) -> NDArray[Any]:
    shape, dtype, chunk, keys = manifest["arrays"][name]
    array: NDArray[Any] = np.empty(shape, dtype)
    for i, key in enumerate(keys):
        _, crc = manifest["files"][f"{name}/{key}"]
        part = read_chunk(folder / name / key, array.dtype, tuple(chunk), crc)
        if not shape:
            return part.copy()
        rows = array[i * chunk[0] : (i + 1) * chunk[0]]
        rows[...] = part[: len(rows)]
    return array


def sealed(manifest: dict[str, Any]) -> bytes:
    """The manifest with its own checksum; names and integers only, so that it is written again in the same bytes."""
    return json.dumps({"crc32c": crc32c(json.dumps(manifest).encode()), "manifest": manifest}).encode()


def unsealed(data: bytes, step: str) -> dict[str, Any]:
    try:
        sealed = json.loads(data)
        manifest: dict[str, Any] = sealed["manifest"]
        crc = sealed["crc32c"]
    except (ValueError, KeyError, TypeError) as error:
        raise CorruptionError("it cannot be parsed") from error
    if crc32c(json.dumps(manifest).encode()) != crc:
        raise CorruptionError("it does not match its checksum")
    if (manifest["version"], manifest["step"]) != (VERSION, step):
        raise CorruptionError(f"it must be of version {VERSION}, step {step}; got {manifest['version']}, {manifest['step']}")
    return manifest


def _require_size(path: Path, size: int) -> None:
    try:
        got = path.stat().st_size
    except OSError as error:
        raise CorruptionError(f"{path} is missing ({error.strerror})") from error
    if got != size:
        raise CorruptionError(f"{path} is torn: it must have {size} bytes, got {got}")


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
