"""Small files of a job here and in its bucket, and which of them are the same."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from dlscale.storage.files.atomic import write_atomically
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.conditions import Tag, look, replace, write, write_new
from dlscale.storage.objects.requests import helpers, objects
from dlscale.storage.signatures import Stamp

_RECORD = ".copies.json"


class Copy(NamedTuple):
    """A file that is the same here and there: the object's version, and what tells that the file was not written since."""

    version: str
    size: int
    modified: int


class Copies:
    """The files of a folder that are copies of objects, or go up to be.

    Parameters
    ----------
    folder : Path
    place : Address
    """

    def __init__(self, folder: Path, place: Address) -> None:
        self.folder, self.place = folder, place
        self.lock = folder / ".copies.lock"
        self._tags: dict[str, Tag] = {}
        self._tried: list[bytes] = []
        self._record: dict[str, Copy] = {}
        with suppress(OSError, ValueError, TypeError):
            self._record = {name: Copy(*copy) for name, copy in json.loads((folder / _RECORD).read_bytes()).items()}

    def bring(self, name: str) -> bool:
        """Make a file what its object is; whether there is one."""
        found = look(self.place / name)
        path = self.folder / name
        if found is None:
            path.unlink(missing_ok=True)
            return False
        self._tags[name] = found.tag
        if self._is_same(name, _version(found.tag)):
            return True
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, found.data, fsync=False)
        os.utime(path, (found.written, found.written))
        self._note(name, found.tag, path.stat())
        return True

    def bring_all(self, names: Sequence[str], folders: Sequence[str]) -> Collection[str]:
        """Make files of some names, and all in some folders, what their objects are; those that have none are removed.

        Returns
        -------
        collection of str
            All that is in the bucket, in these folders and beside them.
        """
        there: dict[str, Stamp] = {}
        places = ["", *folders]
        for folder, found in zip(places, helpers().map(lambda each: objects(self.place / each.rstrip("/")), places), strict=True):
            there |= {f"{folder}{name}": stamp for name, stamp in found.items()}
        for name in set(names) - there.keys():
            (self.folder / name).unlink(missing_ok=True)
        wanted = [name for name in there if name in names or any(name.startswith(each) for each in folders)]
        list(helpers().map(self.bring, [name for name in wanted if not self._is_same(name, there[name].version)]))
        self._keep()
        return there

    def version_of(self, name: str) -> str:
        """Which version of an object a file is the same as; empty where that is not known."""
        return self._record[name].version if name in self._record else ""

    def send(self, name: str) -> bool:
        """Let an object be what its file is; whether the file was written since (FileNotFoundError without one)."""
        path = self.folder / name
        status = path.stat()
        known = self._record.get(name)
        if known is not None and (known.size, known.modified) == (status.st_size, status.st_mtime_ns):
            return False
        self._note(name, write(self.place / name, path.read_bytes()), status)
        return True

    def send_new(self, name: str) -> bool:
        """As `send`, where there is no object; whether there was none."""
        return self._sent(name, write_new(self.place / name, (self.folder / name).read_bytes()))

    def send_over(self, name: str) -> bool:
        """As `send`, where the object is the one that was brought or sent last by this process; whether it was."""
        data, place = (self.folder / name).read_bytes(), self.place / name
        self._tried.append(data)
        tag = replace(place, data, self._tags[name], own=self._tried.__contains__) if name in self._tags else None
        if tag is not None:
            self._tried.clear()
        return self._sent(name, tag)

    def forget(self) -> None:
        """Remove the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _sent(self, name: str, tag: Tag | None) -> bool:
        if tag is None:
            return False
        self._tags[name] = tag
        self._note(name, tag, (self.folder / name).stat())
        self._keep()
        return True

    def _note(self, name: str, tag: Tag, status: os.stat_result) -> None:
        self._record[name] = Copy(_version(tag), status.st_size, status.st_mtime_ns)

    def _is_same(self, name: str, version: str) -> bool:
        known = self._record.get(name)
        with suppress(FileNotFoundError):
            status = (self.folder / name).stat()
            return known is not None and known == (version, status.st_size, status.st_mtime_ns)
        return False

    def _keep(self) -> None:
        with suppress(OSError):
            write_atomically(self.folder / _RECORD, json.dumps(self._record).encode(), fsync=False)


def _version(tag: Tag) -> str:
    return tag.get("e_tag") or tag.get("version") or ""
