"""Looking up every chunk of an array before computing on it.

Zarr reads an absent chunk as its fill value, and by default writes no chunk of nothing else, so that a lost chunk and an
empty one look the same. dlscale does not compute on one: the files that the metadata promises are
looked up by name and size, and where a format says in its own bytes how long it is (Zstandard blocks, Blosc headers,
shard indexes), a truncated file is found without decoding it.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from dlscale.errors import InputError, MissingChunkError

_ABSENT = 2**64 - 1


def check_chunks(array: Any, uri: str, root: Path | None) -> None:
    """Look up all chunks of a Zarr array.

    Parameters
    ----------
    array : zarr.Array
    uri : str
        Its name in messages.
    root : Path or None
        Its folder if it is on this file system; elsewhere one listing through the store gives names and sizes.

    Raises
    ------
    MissingChunkError
        Naming the first chunk that is absent or truncated, and how many are.
    """
    sizes = _local_sizes(array, root) if root else _remote_sizes(array)
    exact = _exact_bytes(array)
    damaged: list[str] = []
    for key in _promised_keys(array):
        size = sizes.get(key)
        if size is None:
            damaged.append(f"{key} is missing")
        elif exact is not None and size != exact:
            damaged.append(f"{key} is truncated: {size} bytes instead of {exact}")
        elif exact is None and (size == 0 or (root and (reason := _damage(array, root / key, size)))):
            damaged.append(f"{key} is truncated" + (f": {reason}" if size else ": 0 bytes"))
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise MissingChunkError(
            f"{uri}: chunk {damaged[0]}{more}. Zarr would read it as zeros or fail halfway; restore it, or write the matrix again. "
            "If Zarr left it out because it holds nothing but the fill value, which is Zarr's default, write such chunks too "
            '(`write_empty_chunks`; the README shows how under "Chunks that are not there").'
        )


def holds_numbers(array: Any) -> bool:
    """Whether an array is of plain numbers: decoding objects, such as pickles, could run what a stranger wrote into them."""
    metadata = array.metadata
    names = ("filters", "codecs", "compressor")
    codecs = [codec for name in names for codec in _listed(getattr(metadata, name, None))]
    pickled = any("pickle" in str(getattr(codec, "codec_id", type(codec).__name__)).lower() for codec in codecs)
    return np.dtype(array.dtype).kind in "biufc" and not pickled


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)


def require_numbers(array: Any, uri: str) -> None:
    """Refuse an array of anything but plain numbers (InputError); nothing of it is decoded."""
    if not holds_numbers(array):
        raise InputError(
            f"{uri} must hold numbers (integers, floats or complex) that no pickle has to be decoded for; got dtype {array.dtype}. "
            "Nothing of it was decoded; write it anew as numbers."
        )


def _promised_keys(array: Any) -> Iterator[str]:
    steps = array.shards or array.chunks
    counts = [-(-length // step) for length, step in zip(array.shape, steps, strict=True)]
    return (array.metadata.encode_chunk_key(index) for index in itertools.product(*map(range, counts)))


def _local_sizes(array: Any, root: Path) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for folder, _, _ in os.walk(root):
        prefix = Path(folder).relative_to(root).as_posix()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_file():
                    sizes[entry.name if prefix == "." else f"{prefix}/{entry.name}"] = entry.stat().st_size
    return sizes


def _remote_sizes(array: Any) -> dict[str, int]:
    from zarr.core.sync import sync

    store, path = array.store_path.store, array.store_path.path

    async def sizes() -> dict[str, int]:
        keys = [key async for key in store.list_prefix(f"{path}/" if path else "")]
        return {key.removeprefix(f"{path}/"): await store.getsize(key) for key in keys}

    return sync(sizes())


def _exact_bytes(array: Any) -> int | None:
    """Bytes that each chunk file must have, where its encoding fixes them."""
    from zarr.codecs import BytesCodec, Crc32cCodec, TransposeCodec

    content: int = int(np.prod(array.chunks)) * np.dtype(array.dtype).itemsize
    metadata: Any = array.metadata
    if metadata.zarr_format == 2:
        return None if metadata.compressor or metadata.filters else content
    if all(isinstance(codec, BytesCodec | Crc32cCodec | TransposeCodec) for codec in metadata.codecs):
        n_checksums = sum(isinstance(codec, Crc32cCodec) for codec in metadata.codecs)
        return content + 4 * n_checksums
    return None


def _damage(array: Any, path: Path, size: int) -> str:
    """Why a compressed or sharded file cannot be whole, or nothing."""
    last = _last_codec(array)
    with open(path, "rb") as file:
        if array.shards:
            return _shard_damage(array, file.fileno(), size)
        if last == "zstd":
            return _zstd_damage(file.fileno(), size)
        if last == "gzip" and not array.filters:
            # The last four bytes of the member hold the length of its content (RFC 1952).
            content = int(np.prod(array.chunks)) * np.dtype(array.dtype).itemsize % 2**32
            stored = int.from_bytes(os.pread(file.fileno(), 4, max(size - 4, 0)), "little")
            return "" if stored == content else "its last bytes are not those of a gzip member"
        if last == "blosc":
            promised = int.from_bytes(os.pread(file.fileno(), 4, 12), "little")
            return "" if promised == size else f"{size} bytes instead of {promised}"
    return ""


def _last_codec(array: Any) -> str:
    codecs = getattr(array, "compressors", ()) or ()
    return type(codecs[-1]).__name__.lower().removesuffix("codec") if codecs else ""


def _zstd_damage(fd: int, size: int) -> str:
    """Walk the block headers of one Zstandard frame (RFC 8878, section 3.1.1)."""
    head = os.pread(fd, 18, 0)
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return "not a Zstandard frame"
    descriptor = head[4]
    single = descriptor >> 5 & 1
    content_bytes = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    offset = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3] + content_bytes
    while True:
        header = os.pread(fd, 3, offset)
        if len(header) < 3:
            return f"it ends at byte {size}, inside a block"
        word = int.from_bytes(header, "little")
        offset += 3 + (1 if (word >> 1 & 3) == 1 else word >> 3)
        if word & 1:
            break
    offset += 4 * (descriptor >> 2 & 1)
    return "" if offset <= size else f"{size} bytes instead of {offset}"


def _shard_damage(array: Any, fd: int, size: int) -> str:
    """Check a shard's index: its own checksum, and that every inner chunk that has elements lies inside the file."""
    codec = array.metadata.codecs[0]
    per_shard = [s // c for s, c in zip(array.shards, array.chunks, strict=True)]
    n_index = int(np.prod(per_shard)) * 16 + 4
    if size < n_index:
        return "it is shorter than its index"
    index = os.pread(fd, n_index, 0 if codec.index_location.value == "start" else size - n_index)
    if google_crc32c.value(index[:-4]) != int.from_bytes(index[-4:], "little"):
        return "its index does not match its checksum"
    entries = np.frombuffer(index[:-4], "<u8").reshape(-1, 2)
    present = entries[:, 0] != _ABSENT
    if (entries[present].sum(axis=1) > size).any():
        return "an inner chunk lies beyond its end"
    return ""
