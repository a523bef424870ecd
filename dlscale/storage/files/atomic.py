"""Files that are replaced as one step, under hidden names until they are whole.

Every file is written beside its final name (``.<name>.<unique>.partial``) and renamed over it, so that a reader sees the
old file, the new file or none, and never half of one.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from dlscale.errors import DoesNotFitError

#: Ending of the names of files that are being written; what a killed process leaves behind carries it too.
PARTIAL = ".partial"

#: Bytes of a name on every usual file system.
MAX_NAME_BYTES = 255

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def hidden(path: Path, ending: str = PARTIAL, *, beginning: str = "") -> Path:
    """The hidden name ``.<beginning><name><ending>`` beside a path, shortened (and told apart by a hash) where it is too long."""
    name = f".{beginning}{path.name}{ending}"
    if len(os.fsencode(name)) > MAX_NAME_BYTES:
        digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:16]
        room = MAX_NAME_BYTES - len(os.fsencode(f".{beginning}-{digest}{ending}"))
        kept = os.fsencode(path.name)[:room].decode(errors="ignore")
        name = f".{beginning}{kept}-{digest}{ending}"
    return path.with_name(name)


def fsync_path(path: str | os.PathLike[str]) -> None:
    """Flush a file's data, or a folder's list of names, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_at_once(path: str | os.PathLike[str], flags: int) -> int:
    """An opener for `open` that does not wait for the other end of a pipe, and takes nothing that has no end (OSError)."""
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no plain file", os.fspath(path))
    return descriptor


def read_plain(path: str | os.PathLike[str]) -> bytes:
    """The bytes of a file (OSError of what is none, such as a pipe)."""
    with open(path, "rb", opener=open_at_once) as file:
        return file.read()


def make_folder(path: Path) -> None:
    """Create a folder and its parents where they are absent, and flush the names of the new ones to the disk."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    fsync_path(path.parent)


def write_atomically(path: Path, data: bytes, *, fsync: bool = True) -> None:
    """Replace a file as one step: afterwards it is the new one, after a crash at any time the old or the new one.

    Parameters
    ----------
    path : Path
        Its folder must exist.
    data : bytes
    fsync : bool
        Flush the file and its folder to the disk before returning; False where a later `fsync_tree` does it.

    Raises
    ------
    DoesNotFitError
        If the disk is full; the old file stays.
    """
    replace_file(path, lambda file, _: file.write(data), len(data), fsync=fsync)
    if fsync:
        fsync_path(path.parent)


def replace_file(path: Path, write: Callable[[BinaryIO, Path], Any], n_bytes: int, *, fsync: bool) -> None:
    """As `write_atomically`, for what ``write(file, its path)`` writes; the folder is not flushed."""
    partial = hidden(path, f".{uuid.uuid4().hex}{PARTIAL}")
    try:
        with open(partial, "xb") as file:
            write(file, partial)
            if fsync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException as error:
        partial.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(path.parent).free
            raise DoesNotFitError(
                f"{path} requires {n_bytes} bytes of disk, got {os.strerror(error.errno)} ({gigabytes(free)} free); "
                "free some space or raise the quota, and resume."
            ) from error
        raise


def exchange(one: Path, other: Path) -> bool:
    """Let two names change places as one step; False where the system or the file system cannot.

    References
    ----------
    rename(2): ``renameat2`` with ``RENAME_EXCHANGE``.
    """
    call = _renameat2()
    if call is None:
        return False
    if call(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


@cache
def _renameat2() -> Any:
    try:
        return ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return None


def is_own_folder(path: Path) -> bool:
    """Whether a path is a folder, no link to one, of the user whose files this process makes there."""
    try:
        found = os.lstat(path)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (os.geteuid(), _owner_of_new_files(path.parent, found.st_uid))


def _owner_of_new_files(folder: Path, uid: int) -> int:
    """The owner that the file system gives to what this process makes: on a network another one than the process's."""
    if uid == os.geteuid():
        return uid
    import tempfile

    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            return os.fstat(file.fileno()).st_uid
    except OSError:
        return os.geteuid()


def gigabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e9:.3f} GB ({n_bytes} bytes)"
