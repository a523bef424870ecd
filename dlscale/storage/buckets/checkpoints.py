"""Checkpoints in an object store: the same steps and manifests as on a disk, each of them an object that is whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from numpy.typing import DTypeLike, NDArray

from dlscale.errors import CorruptionError, SpecError
from dlscale.storage.buckets.writers import create_object_array, sent_from
from dlscale.storage.checkpoints import OTHER, VERSION, Checkpoint, check_written, read_array, sealed, unsealed
from dlscale.storage.files.durable import crc32c
from dlscale.storage.files.nodes import check_name, make_group
from dlscale.storage.objects.address import Address, is_object_url
from dlscale.storage.objects.requests import get, helpers, names, put, remove, remove_object
from dlscale.storage.writers import ArrayWriter, Layout, Shape


class ObjectCheckpoint(Checkpoint):
    """The saved state of a job in an object store; see `Checkpoint`.

    One process at a time has it: that which has the job's lock.

    Parameters
    ----------
    place : Address
    """

    is_local = False

    def __init__(self, place: Address) -> None:
        self.place = place
        self.problems: list[str] = []
        self._found: dict[str, dict[str, Any]] | None = None
        self._folders: set[str] | None = None

    @property
    def directory(self) -> Path:  # type: ignore[override]
        raise SpecError(f"{self.place}: what is saved here has no folder.")

    @property
    def uri(self) -> str:
        return str(self.place)

    def look_again(self) -> None:
        self._found = self._folders = None

    def save(self, step: str, arrays: Mapping[str, NDArray[Any]], *, writers: Sequence[ArrayWriter] = ()) -> int:
        if "/" in check_name(step):
            raise SpecError(f"The name of a step must have no /, got {step!r}.")
        before = self._manifest(step)
        folder = step + OTHER if before and before["folder"] == step else step
        number, target = 1 + self.n_saved, self.place / "steps" / folder
        self._clear(folder)
        self._folders_found().add(folder)  # whatever comes of it
        with sent_from(("step", target)) as here:
            make_group(here / "step")
            layouts, crcs = self._write(here / "step", arrays)
            sizes = {key: os.path.getsize(here / "step" / key) for key in crcs}
        written = {str(writer.path): writer.inventory() for writer in writers}
        manifest = {
            "version": VERSION,
            "step": step,
            "number": number,
            "folder": folder,
            "arrays": layouts,
            "files": {key: [sizes[key], crc] for key, crc in crcs.items()},
            "writers": written,
        }
        data = sealed(manifest)
        put(self.place / f"manifests/{step}.json", data)
        self._manifests_found()[step] = unsealed(data, step)
        if before:
            self._clear(before["folder"])
        return sum(sizes.values())

    def load(self, step: str) -> dict[str, NDArray[Any]] | None:
        manifest = self._manifest(step)
        if manifest is None:
            return None
        try:
            for path, files in manifest["writers"].items():
                check_written(path if is_object_url(path) else Path(path), files)
            with TemporaryDirectory(prefix="dlscale-") as folder:
                self._bring(manifest, Path(folder))
                return {name: read_array(Path(folder), name, manifest) for name in manifest["arrays"]}
        except CorruptionError as error:
            self._report(step, error)
            return None

    def scratch(self, name: str, shape: Shape, dtype: DTypeLike, *, chunks: Shape) -> ArrayWriter:
        return create_object_array(self.place / "scratch" / check_name(name), Layout(shape, dtype, chunks), name=name)

    def drop(self, step: str) -> None:
        remove_object(self.place / f"manifests/{check_name(step)}.json")
        self._manifests_found().pop(step, None)
        for folder in (step, step + OTHER):
            self._clear(folder)

    def discard(self) -> None:
        remove(self.place / "manifests")  # first, so that a kill in between leaves nothing that seems to count
        remove(self.place)
        self.look_again()

    def require_place(self) -> None:
        """Nothing: whoever writes an object makes its place."""

    def _remove_scratch(self, name: str) -> None:
        remove(self.place / "scratch" / name)

    def _clear(self, folder: str) -> None:
        """Remove what lies in the folder of a step, if something does."""
        if folder in self._folders_found():
            remove(self.place / "steps" / folder)
            self._folders_found().discard(folder)

    def _folders_found(self) -> set[str]:
        if self._folders is None:
            self._folders = set(names(self.place / "steps"))
        return self._folders

    def _bring(self, manifest: Mapping[str, Any], folder: Path) -> None:
        """The objects of a step as files."""
        source = self.place / "steps" / manifest["folder"]

        def bring(key: str) -> None:
            size, crc = manifest["files"][key]
            try:
                data = get(source / key)
            except FileNotFoundError:
                raise CorruptionError(f"{source / key} is missing") from None
            if len(data) != size or (key.endswith("zarr.json") and crc32c(data) != crc):
                raise CorruptionError(f"{source / key} is corrupted: its checksum must be {crc:08x}")
            (folder / key).parent.mkdir(parents=True, exist_ok=True)
            (folder / key).write_bytes(data)

        list(helpers().map(bring, manifest["files"]))

    def _counting(self) -> Iterator[dict[str, Any]]:
        yield from list(self._manifests_found().values())

    def _manifest(self, step: str) -> dict[str, Any] | None:
        return self._manifests_found().get(step)

    def _manifests_found(self) -> dict[str, dict[str, Any]]:
        if self._found is None:
            self._found = {}
            for name in names(self.place / "manifests"):
                step = name.removesuffix(".json")
                with suppress(FileNotFoundError):
                    try:
                        self._found[step] = unsealed(get(self.place / "manifests" / name), step)
                    except CorruptionError as error:
                        self._report(step, CorruptionError(f"its manifest {self.place / 'manifests' / name} is damaged ({error})"))
        return self._found


def open_checkpoint(uri: str) -> Checkpoint:
    """The checkpoint in a folder, or at a URL of an object store."""
    return ObjectCheckpoint(Address.of(uri)) if is_object_url(uri) else Checkpoint(Path(uri))
