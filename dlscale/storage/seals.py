"""What a result says of its own bytes: checksums of its descriptions, and of which chunk stands where.

The checksum within a chunk's file tells that the file is whole. That it stands where it was written, and is no older version,
only a list outside of it can tell; the list is bounded, so that descriptions stay small.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dlscale.storage.files.atomic import read_plain
from dlscale.storage.files.durable import crc32c, stored_crc

#: The attribute of a result with the checksums, which `verify` compares.
SEAL = "dlscale_checksums"

#: Checksums kept of one array: where it has more chunks, each speaks of several neighbours.
_MOST_RUNS = 1024
_HEX_DIGITS = 8


def make_seal(group: Path, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The checksums of a group that is about to be published."""
    paths = sorted(path for path in group.rglob("zarr.json") if path.parent != group)
    metadata = {path: read_plain(path) for path in paths}
    return {
        "dlscale": description_crc(attributes),
        "metadata": {path.relative_to(group).as_posix(): crc32c(data) for path, data in metadata.items()},
        "chunks": {
            path.parent.relative_to(group).as_posix(): fold_crcs(_chunk_crcs(path.parent, array))
            for path, data in metadata.items()
            if _has_own_crcs(array := json.loads(data))
        },
    }


def description_crc(attributes: Mapping[str, Any]) -> int:
    """The crc32c of what a result says of itself, however its JSON is written."""
    return crc32c(json.dumps(attributes, sort_keys=True).encode())


def fold_crcs(crcs: Iterable[int]) -> str:
    """Checksums of all chunks of an array, in C order, as a text of bounded length."""
    return "".join(f"{crc32c(run):0{_HEX_DIGITS}x}" for run in _runs([crc.to_bytes(4, "little") for crc in crcs]))


def displaced(crcs: Sequence[int], sealed: str) -> list[range]:
    """Which chunks, by their number in C order, are not those that were sealed."""
    found, length = fold_crcs(crcs), _run_length(len(crcs))
    starts = range(0, len(crcs), length)
    marks = [slice(i * _HEX_DIGITS, (i + 1) * _HEX_DIGITS) for i in range(len(starts))]
    return [
        range(start, min(start + length, len(crcs)))
        for start, mark in zip(starts, marks, strict=True)
        if found[mark] != sealed[mark]
    ]


def _runs(crcs: list[bytes]) -> Iterator[bytes]:
    length = _run_length(len(crcs))
    for start in range(0, len(crcs), length):
        yield b"".join(crcs[start : start + length])


def _run_length(n_chunks: int) -> int:
    return max(1, -(-n_chunks // _MOST_RUNS))


def _has_own_crcs(node: Mapping[str, Any]) -> bool:
    return [codec["name"] for codec in node.get("codecs", ())] == ["bytes", "crc32c"]


def _chunk_crcs(folder: Path, array: Mapping[str, Any]) -> Iterator[int]:
    steps = array["chunk_grid"]["configuration"]["chunk_shape"]
    counts = [range(-(-length // step)) for length, step in zip(array["shape"], steps, strict=True)]
    for index in itertools.product(*counts):
        try:
            yield stored_crc(folder.joinpath("c", *map(str, index)))
        except OSError:
            yield 0  # one that is missing is told by whoever reads it
