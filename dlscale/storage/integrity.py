"""Looking up every chunk of an array before computing on it.

Zarr reads an absent chunk as its fill value, and by default writes no chunk of nothing else, so that a lost chunk and an
empty one look the same. dlscale does not compute on one: the files that the metadata promises are
looked up by name and size, and where a format says in its own bytes how long it is (Zstandard blocks, Blosc headers,
shard indexes), a truncated file is found without decoding it.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np

from dlscale.errors import InputError, MissingChunkError
from dlscale.storage.files.atomic import open_at_once
from dlscale.storage.packing import PACKING_KEYS
from dlscale.storage.signatures import Signature
from dlscale.storage.zarr_stores import local_root, stamps

MissingChunks = Literal["refuse", "fill"]

_ABSENT = 2**64 - 1


def check_chunks(array: Any, uri: str, *, missing_chunks: MissingChunks = "refuse") -> Signature:
    """Look up all chunks of a Zarr array.

    Parameters
    ----------
    array : zarr.Array
    uri : str
        Its name in messages.
    missing_chunks : "refuse" or "fill"
        Whether a chunk that is not there is lost, or stands for the fill value.

    Returns
    -------
    Signature
        Of all that decides its numbers.

    Raises
    ------
    MissingChunkError
        Naming the first chunk that is absent or truncated, and how many are.
    """
    counts = _counts(array)
    found = {index: (key, stamp) for key, stamp in stamps(array).items() if (index := _index_of(array, key, counts)) is not None}
    root, exact = local_root(array), _exact_bytes(array)
    damaged = {index: reason for index, (key, stamp) in found.items() if (reason := _fault(array, root, key, stamp.size, exact))}
    n_absent = math.prod(counts) - len(found) if missing_chunks == "refuse" else 0
    if n_absent:
        # Among one more than are there, one is absent: a shape that promises more than a disk can hold ends here too.
        absent = next(index for index in _indexes(counts) if index not in found)
        damaged[absent] = f"{array.metadata.encode_chunk_key(absent)} is missing"
    if damaged:
        n_more = len(damaged) - 1 + max(n_absent - 1, 0)
        more = f" (and {n_more:,} more)" if n_more else ""
        raise MissingChunkError(
            f"{uri}: chunk {damaged[min(damaged)]}{more}. Zarr would read it as zeros or fail halfway; restore it, or write the "
            "matrix again. If Zarr left it out because it holds nothing but the fill value, which is Zarr's default, say so with "
            "`missing_chunks: fill` beside the input, or write such chunks too "
            "(`write_empty_chunks`; docs/importing.md shows how)."
        )
    metadata = {key: value for key, value in array.metadata.to_dict().items() if key != "attributes"}
    told = {key: array.attrs[key] for key in PACKING_KEYS if key in array.attrs}
    return Signature.of(dict(found.values()), beside=repr((metadata, told)))


def holds_numbers(array: Any) -> bool:
    """Whether an array is of plain numbers: decoding objects, such as pickles, could run what a stranger wrote into them."""
    return np.dtype(array.dtype).kind in "biufc" and not _is_pickled(array)


def holds_text(array: Any) -> bool:
    """Whether an array is of plain text, as names are."""
    return np.dtype(array.dtype).kind in "TU" and not _is_pickled(array)


def _is_pickled(array: Any) -> bool:
    names = ("filters", "codecs", "compressor")
    codecs = [codec for name in names for codec in _listed(getattr(array.metadata, name, None))]
    return any("pickle" in str(getattr(codec, "codec_id", type(codec).__name__)).lower() for codec in codecs)


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else () if value is None else (value,)


def require_numbers(array: Any, uri: str) -> None:
    """Refuse an array of anything but plain numbers (InputError); nothing of it is decoded."""
    if not holds_numbers(array):
        raise InputError(
            f"{uri} must hold numbers (integers, floats or complex) that no pickle has to be decoded for; got dtype {array.dtype}. "
            "Nothing of it was decoded; write it anew as numbers."
        )


def _counts(array: Any) -> tuple[int, ...]:
    """How many chunk files the metadata promises along each axis."""
    return tuple(-(-length // step) for length, step in zip(array.shape, array.shards or array.chunks, strict=True))


def _indexes(counts: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All indexes in C order, none of them made before it is asked for."""
    for k in range(math.prod(counts)):
        index, left = [0] * len(counts), k
        for axis in reversed(range(len(counts))):
            left, index[axis] = divmod(left, counts[axis])
        yield tuple(index)


def _index_of(array: Any, key: str, counts: tuple[int, ...]) -> tuple[int, ...] | None:
    """Which promised chunk a file of an array is; None for other files."""
    index = tuple(map(int, re.findall("[0-9]+", key)))[: array.ndim]
    within = len(index) == array.ndim and all(k < count for k, count in zip(index, counts, strict=True))
    return index if within and array.metadata.encode_chunk_key(index) == key else None


def _fault(array: Any, root: Path | None, key: str, size: int, exact: int | None) -> str:
    """What is wrong with a chunk's file, or nothing."""
    if exact is not None:
        return "" if size == exact else f"{key} is truncated: {size} bytes instead of {exact}"
    if size == 0:
        return f"{key} is truncated: 0 bytes"
    reason = _damage(array, root / key, size) if root else ""
    return f"{key} is truncated: {reason}" if reason else ""


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
    with open(path, "rb", opener=open_at_once) as file:
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
