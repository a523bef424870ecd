"""Files that survive a crash: fsync of whole trees, checksummed chunk files, free space.

The rename of `atomic` survives a killed process; `fsync_tree` makes it survive a power cut too.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import google_crc32c
import numpy as np
from numpy.typing import NDArray

from dlscale.buffers import O_DIRECT, PAGE_BYTES
from dlscale.errors import CorruptionError, DoesNotFitError
from dlscale.storage.files.atomic import (
    PARTIAL,
    fsync_path,
    gigabytes,
    make_folder,
    open_at_once,
    read_plain,
    replace_file,
    write_atomically,
)

__all__ = [
    "PARTIAL",
    "Stamp",
    "begin_flush",
    "check_chunk",
    "crc32c",
    "fsync_path",
    "fsync_tree",
    "make_folder",
    "plain_elements",
    "read_chunk",
    "read_whole",
    "require_free_space",
    "stored_crc",
    "write_atomically",
    "write_chunk",
]

_CRC_BYTES = 4
#: Of ``sync_file_range``: begin to write what is not on its way to the disk yet.
_SYNC_FILE_RANGE_WRITE = 2
#: Files that are flushed at the same time.
_N_FLUSHES = 8

#: Inode, modification time in nanoseconds and size in bytes: equal stamps mean the same version of a file.
Stamp = tuple[int, int, int]


def crc32c(buffer: bytes | memoryview | NDArray[Any]) -> int:
    """CRC-32C (Castagnoli) of a contiguous buffer, without copying it."""
    if isinstance(buffer, bytes):
        return int(google_crc32c.value(buffer))
    return int(google_crc32c.value(np.frombuffer(buffer, dtype=np.uint8)))


def fsync_tree(root: Path, synced: dict[str, Stamp]) -> dict[str, int]:
    """Flush every file and folder under a folder to the disk, the folder included.

    Parameters
    ----------
    root : Path
        Other threads and processes may go on replacing files in it; files that are being written are left out.
    synced : dict
        Path to stamp of the files that are on the disk already; they are not flushed again, and the others are added.

    Returns
    -------
    dict
        Path relative to `root` (with ``/``) to size in bytes, of every file.
    """
    sizes, new, folders = {}, dict[str, Stamp](), list[str]()
    for folder, _, names in os.walk(root, topdown=False, onerror=_reraise):
        prefix = os.path.relpath(folder, root).replace(os.sep, "/")
        for name in sorted(names):
            if name.endswith(PARTIAL):
                continue
            file = os.path.join(folder, name)
            stat = os.stat(file)
            stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
            if synced.get(file) != stamp:
                new[file] = stamp
            sizes[name if prefix == "." else f"{prefix}/{name}"] = stat.st_size
        folders.append(folder)
    _fsync_all(list(new))
    synced.update(new)
    for folder in folders:
        fsync_path(folder)
    return sizes


def begin_flush(path: Path) -> None:
    """Let the disk begin to take a file, so that a flush later waits for less of it; nothing where the system has no such call."""
    if (call := _sync_file_range()) is None:
        return
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            call(descriptor, ctypes.c_int64(0), ctypes.c_int64(0), _SYNC_FILE_RANGE_WRITE)
        finally:
            os.close(descriptor)


@cache
def _sync_file_range() -> Any:
    try:
        return ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return None


def _fsync_all(files: list[str]) -> None:
    """Flush files, several at a time: each waits for the journal of the file system rather than for the disk."""
    if len(files) <= _N_FLUSHES:
        for file in files:
            fsync_path(file)
        return
    with ThreadPoolExecutor(_N_FLUSHES) as pool:
        for _ in pool.map(fsync_path, files):
            pass


def write_chunk(
    path: Path,
    block: NDArray[Any],
    chunk_shape: tuple[int, ...],
    *,
    fsync: bool = False,
    checksum: bool = True,
    direct: bool = False,
    root: Path | None = None,
) -> int:
    """Write one Zarr chunk file with the codecs ``bytes`` (little endian) and ``crc32c``, atomically.

    Parameters
    ----------
    path : Path
        Folders up to it are created, below ``root``.
    block : ndarray
        In any memory order. Where it is smaller than `chunk_shape` (at an edge of the array) it is padded with zeros.
    chunk_shape : tuple of int
    fsync : bool
        Flush the file to the disk before it gets its name.
    checksum : bool
        Whether the array's codecs have a ``crc32c``.
    direct : bool
        Past the page cache, where the block is contiguous and begins at a page of memory.
    root : Path, optional
        The array's folder; where it is gone it is not made again.

    Returns
    -------
    int
        crc32c of the elements, 0 without a checksum. (Of the whole file it would say nothing: the CRC of data followed by
        its CRC is a constant.)
    """
    elements = plain_elements(block, chunk_shape)
    crc = crc32c(elements) if checksum else 0
    parts: list[bytes | memoryview] = [elements.data, crc.to_bytes(_CRC_BYTES if checksum else 0, "little")]
    try:
        _replace(path, parts, fsync, direct=direct)
    except FileNotFoundError:  # the first chunk of its row of chunks
        if root is not None and not root.is_dir():
            raise
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path, parts, fsync, direct=direct)
    return crc


def plain_elements(block: NDArray[Any], chunk_shape: tuple[int, ...]) -> NDArray[Any]:
    """The bytes of a chunk's elements: in C order, little endian, padded with zeros where the block is smaller."""
    if block.shape != chunk_shape:
        padded = np.zeros(chunk_shape, block.dtype)
        padded[tuple(slice(n) for n in block.shape)] = block
        block = padded
    return np.ascontiguousarray(block, dtype=block.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)


def read_chunk(path: Path, dtype: np.dtype[Any], chunk_shape: tuple[int, ...], crc: int) -> NDArray[Any]:
    """Read a chunk file that `write_chunk` wrote, as a read-only array of shape `chunk_shape`.

    Raises
    ------
    CorruptionError
        If it is absent, has another size, or its elements have another checksum than `crc`.
    """
    data = read_whole(path, int(np.prod(chunk_shape)) * dtype.itemsize + _CRC_BYTES)
    elements = np.frombuffer(data, np.uint8)[:-_CRC_BYTES]
    got = crc32c(elements)
    if got != crc or data[-_CRC_BYTES:] != crc.to_bytes(_CRC_BYTES, "little"):
        raise CorruptionError(f"{path} is corrupted: its checksum must be {crc:08x}, got {got:08x}")
    return elements.view(dtype.newbyteorder("<")).astype(dtype.newbyteorder("="), copy=False).reshape(chunk_shape)


def stored_crc(path: str | os.PathLike[str]) -> int:
    """The checksum at the end of a chunk file that `write_chunk` wrote, which is not compared with its elements (OSError)."""
    with open(path, "rb", buffering=0, opener=open_at_once) as file:
        file.seek(-_CRC_BYTES, os.SEEK_END)
        return int.from_bytes(file.read(_CRC_BYTES), "little")


def check_chunk(path: Path) -> int:
    """Check a chunk file that `write_chunk` wrote against the checksum at its own end, which is returned.

    Raises
    ------
    CorruptionError
        If it cannot be read, or its elements have changed.
    """
    got = 0
    try:
        with open(path, "rb", opener=open_at_once) as file:
            left = os.fstat(file.fileno()).st_size - _CRC_BYTES
            while left > 0 and (part := file.read(min(left, 2**24))):
                got = int(google_crc32c.extend(got, part))
                left -= len(part)
            stored = int.from_bytes(file.read(), "little")
    except OSError as error:
        raise CorruptionError(f"{path} cannot be read: {error}") from error
    if got != stored:
        raise CorruptionError(f"{path} is corrupted: its checksum must be {stored:08x}, got {got:08x}")
    return stored


def read_whole(path: Path, size: int) -> bytes:
    """Read a file that must have the given size in bytes.

    Raises
    ------
    CorruptionError
        If it cannot be read or has another size.
    """
    try:
        data = read_plain(path)
    except FileNotFoundError:
        raise CorruptionError(f"{path} is missing") from None
    except OSError as error:
        raise CorruptionError(f"{path} cannot be read: {error}") from error
    if len(data) != size:
        raise CorruptionError(f"{path} is torn: it must have {size} bytes, got {len(data)}")
    return data


def require_free_space(path: str | os.PathLike[str], n_bytes: int) -> None:
    """Check that a file system has room.

    Parameters
    ----------
    path : path
        Where the bytes will be written; it and its parents need not exist yet.
    n_bytes : int

    Raises
    ------
    DoesNotFitError
        If less than `n_bytes` are free.
    """
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < n_bytes:
        raise DoesNotFitError(
            f"{path} requires {gigabytes(n_bytes)} of free disk, got {gigabytes(free)} free on its file system; "
            "free some space, or choose a path on another file system."
        )


def _replace(path: Path, parts: Sequence[bytes | memoryview], fsync: bool, *, direct: bool = False) -> None:
    def write(file: BinaryIO, partial: Path) -> None:
        done = _write_direct(partial, parts[0]) if direct else 0
        file.seek(done)
        for part in (parts[0][done:], *parts[1:]):
            file.write(part)

    replace_file(path, write, sum(len(part) for part in parts), fsync=fsync)


def _write_direct(path: Path, data: bytes | memoryview) -> int:
    """Write whole pages past the page cache; returns the bytes written, which an ordinary write completes."""
    n_bytes, done = len(data) // PAGE_BYTES * PAGE_BYTES, 0
    if n_bytes == 0 or np.frombuffer(data, np.uint8).ctypes.data % PAGE_BYTES:
        return 0
    try:
        fd = os.open(path, os.O_WRONLY | O_DIRECT)
    except OSError:
        # Such as a file system in memory.
        return 0
    try:
        while done < n_bytes:
            done += os.write(fd, data[done:n_bytes])
    except OSError as error:
        if error.errno != errno.EINVAL:  # which is a device with larger pages
            raise
    finally:
        os.close(fd)
    return done


def _reraise(error: OSError) -> None:
    raise error
