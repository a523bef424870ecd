"""What tells whether an input is still the same, without reading it: names, sizes, times and versions of its files.

A file that was written, replaced, or copied over has another change time or inode, even where its size and its time of
modification were kept (``cp -p``, ``rsync -t``, ``tar``). Object stores and web servers give tags or times of their own.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dlscale.errors import InputError

#: What file systems of fsspec call that by which two versions of an object differ; compared without case, dashes and underscores.
_TIMES = frozenset(["lastmodified", "mtime", "modified", "created", "updated"])
_TAGS = frozenset(["etag", "generation", "versionid", "md5hash", "contentmd5", "md5", "checksum", "crc32c", "digest"])


class Stamp(NamedTuple):
    """Size of a file, which version of it this is, and when that was written (0 where nobody says)."""

    size: int
    version: str
    time_ns: int = 0

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        """The stamp of a local file."""
        version = f"{status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
        return cls(status.st_size, version, max(status.st_mtime_ns, status.st_ctime_ns))

    @classmethod
    def told(cls, info: Mapping[str, Any]) -> Stamp:
        """The stamp of what fsspec describes; its version is empty where the server says nothing."""
        said = {key.lower().replace("-", "").replace("_", ""): value for key, value in info.items() if value}
        return cls(int(info.get("size") or 0), " ".join(f"{key}={said[key]}" for key in sorted((_TIMES | _TAGS) & said.keys())))


class Signature(NamedTuple):
    """What an input was when it was looked up.

    Parameters
    ----------
    digest : str
        Of the names and stamps of all its files.
    n_files, n_bytes : int
    newest, time_ns : str, int
        The file that was written last, and when, in nanoseconds of Unix time; 0 where nobody says.
    content : str
        A digest of the numbers themselves, where one was recorded; empty elsewhere.
    """

    digest: str
    n_files: int
    n_bytes: int
    newest: str
    time_ns: int
    content: str = ""

    @classmethod
    def of(cls, stamps: Mapping[str, Stamp], beside: str = "") -> Signature:
        """The signature of files, and of what else decides what their bytes mean."""
        digest = hashlib.blake2b(beside.encode(), digest_size=16)
        for name in sorted(stamps):
            digest.update(f"\0{name}\0{stamps[name].size}\0{stamps[name].version}".encode())
        newest = max(stamps, key=lambda name: (stamps[name].time_ns, name), default="")
        n_bytes = sum(stamp.size for stamp in stamps.values())
        return cls(digest.hexdigest(), len(stamps), n_bytes, newest, stamps[newest].time_ns if newest else 0)

    @classmethod
    def joined(cls, parts: Mapping[str, Signature]) -> Signature:
        """The signature of several arrays as one."""
        return cls.of({name: Stamp(part.n_bytes, part.digest, part.time_ns) for name, part in parts.items()})

    def same_as(self, other: Signature) -> bool:
        """Whether it is the same input: the same files as they were, or files with the same content."""
        return self.digest == other.digest or (bool(self.content) and self.content == other.content)

    def changed(self, now: Signature) -> str:
        """How another look at the input differs, in words."""
        if (self.n_files, self.n_bytes) != (now.n_files, now.n_bytes):
            return f"it was {self.n_bytes:,} bytes in {self.n_files} files and is {now.n_bytes:,} bytes in {now.n_files}"
        if now.time_ns > self.time_ns:
            written = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now.time_ns / 1e9))
            return f"its file {now.newest} was written at {written}"
        return f"its {now.n_files} files of {now.n_bytes:,} bytes are others than they were"


def local_stamps(root: Path) -> dict[str, Stamp]:
    """A stamp for each file below a folder, by its path from there; of a file, its own (InputError if it goes meanwhile)."""
    try:
        return dict(_walk(root)) if root.is_dir() else {root.name: Stamp.of(root.stat())}
    except FileNotFoundError as error:
        raise InputError(f"{error.filename} is gone: it was removed or replaced a moment ago; run again.") from error


def _walk(root: Path) -> Iterator[tuple[str, Stamp]]:
    for folder, _, _ in os.walk(root):
        prefix = Path(folder).relative_to(root).as_posix()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    yield entry.name if prefix == "." else f"{prefix}/{entry.name}", Stamp.of(entry.stat())


def source_version(source: str) -> str | None:
    """What identifies the content of a file, folder or URL that is there; None where its server says nothing of it."""
    import fsspec.core

    files, path = fsspec.core.url_to_fs(source)
    if "file" in ((files.protocol,) if isinstance(files.protocol, str) else files.protocol):
        return Signature.of(local_stamps(Path(path))).digest
    files.invalidate_cache()
    if files.isdir(path):
        stamps = {name: Stamp.told(info) for name, info in files.find(path, detail=True).items()}
    else:
        stamps = {path: Stamp.told(files.info(path))}
    return Signature.of(stamps).digest if all(stamp.version for stamp in stamps.values()) else None
