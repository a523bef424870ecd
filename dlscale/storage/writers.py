"""Zarr arrays that many tasks write at once.

Two tasks that write parts of one Zarr chunk corrupt it silently, so a writer takes whole chunks only (whole shards where
the array has them). All arrays are uncompressed Zarr v3 with a crc32c behind every chunk; `zarr.open` reads them. Chunk
files are encoded here, without copying the block; zarr-python writes the sharded arrays.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from numpy.typing import DTypeLike, NDArray
from zarr.codecs import BytesCodec, Crc32cCodec
from zarr.core.buffer import default_buffer_prototype

from dlscale.errors import SpecError
from dlscale.host import total_bytes
from dlscale.storage.files.durable import (
    PARTIAL,
    Stamp,
    begin_flush,
    fsync_path,
    fsync_tree,
    make_folder,
    stored_crc,
    write_atomically,
    write_chunk,
)
from dlscale.storage.files.nodes import find_node, remove_node

if TYPE_CHECKING:
    from dlscale.storage.matrix import Matrix

Shape = tuple[int, ...]

#: Bytes of a chunk of an array that is written whole: few files, and a copy of one chunk is cheap.
_CHUNK_BYTES = 64 * 2**20

#: Arrays of so many bytes that are read once at most are not worth the processor time of copying them to the page cache.
_ONCE_BYTES = 2**28

#: The metadata that decide which bytes stand in which file.
_LAYOUT = ("node_type", "shape", "data_type", "chunk_grid", "chunk_key_encoding", "fill_value", "codecs")


@dataclass(frozen=True)
class Layout:
    """How an array lies in a store.

    Parameters
    ----------
    shape : tuple of int
    dtype : dtype
        Boolean, integer, float or complex, as NumPy names them.
    chunks, shards : tuple of int
        Chunks longer than the array are cut to its length, unless it is sharded.
    dimensions : tuple of str, optional
        What its axes are called.
    """

    shape: Shape
    dtype: DTypeLike
    chunks: Shape
    shards: Shape | None = None
    dimensions: tuple[str, ...] | None = None

    def checked(self, path: object) -> tuple[Shape, np.dtype[Any], Shape, Shape | None]:
        """Shape, dtype, chunks and shards as they are stored (SpecError where they are not possible)."""
        shape, chunks, shards = self.shape, self.chunks, self.shards
        dtype = np.dtype(self.dtype)
        if dtype.kind not in "biufc" or dtype in (np.longdouble, np.clongdouble):
            raise SpecError(
                f"{path} must hold booleans, integers, floats or complex numbers of a width Zarr knows, got dtype {dtype}."
            )
        if not len(shape) == len(chunks) == len(shards or chunks) or min(shape, default=0) < 0 or min(chunks, default=1) < 1:
            raise SpecError(
                f"{path}: chunks and shards must have a positive length for each axis of {shape}, got {chunks}, {shards}."
            )
        if shards and any(s < 1 or s % c for s, c in zip(shards, chunks, strict=True)):
            raise SpecError(f"{path}: shards must be multiples of chunks along every axis, got shards {shards} of chunks {chunks}.")
        if not shards:
            chunks = tuple(min(c, max(n, 1)) for c, n in zip(chunks, shape, strict=True))
        return tuple(shape), dtype.newbyteorder("="), tuple(chunks), tuple(shards) if shards else None


@dataclass(frozen=True)
class ArrayWriter:
    """A Zarr array that many tasks, threads and processes write, each of them whole chunks. `create_array` makes one.

    It can be pickled; each process opens the array at its first write.

    Parameters
    ----------
    name : str
        For messages.
    path : Path
        The array's folder.
    shape, chunks, dtype, shards : see `Layout`
    fsync : bool
        Flush each chunk file to the disk as it is written, in the process that writes it. `flush` does it later and for
        less, but only for what this machine's kernel holds; on a file system shared by several machines, use True.
    checksum : bool
        A crc32c behind each chunk. Without one, an array can be read by any range of rows, which is how inputs are stored.
    once : bool
        The job reads it once at most: the page cache need not keep it.
    """

    name: str
    path: Path
    shape: Shape
    dtype: np.dtype[Any]
    chunks: Shape
    shards: Shape | None = None
    fsync: bool = False
    checksum: bool = True
    once: bool = False

    def __reduce__(self) -> tuple[type[ArrayWriter], tuple[Any, ...]]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    @property
    def n_bytes(self) -> int:
        """Bytes of the array's elements."""
        return math.prod(self.shape) * self.dtype.itemsize

    @cached_property
    def past_cache(self) -> bool:
        """Whether chunks are written past the page cache, which would keep nothing of an array of this size, or need not."""
        return self.n_bytes > total_bytes() // 2 or (self.once and self.n_bytes >= _ONCE_BYTES)

    @property
    def unit(self) -> Shape:
        """Shape of what one task must write as a whole: the shard, or the chunk."""
        return self.shards or self.chunks

    def check_grid(self, block_shape: Shape) -> None:
        """Check, before anything is written, that a grid of equal blocks from the origin splits no chunk.

        Parameters
        ----------
        block_shape : tuple of int
            One length for each axis; the last block of an axis may be shorter.

        Raises
        ------
        SpecError
            If two blocks would share a chunk (or a shard).
        """
        if len(block_shape) != len(self.shape):
            raise SpecError(f"A block of {self._words} must have {len(self.shape)} axes, got shape {tuple(block_shape)}.")
        for axis, (block, unit, length) in enumerate(zip(block_shape, self.unit, self.shape, strict=True)):
            if block < 1 or (block % unit and block < length):
                raise SpecError(
                    f"Blocks of {self._words} must be whole {self._unit_name}s along axis {axis}: "
                    f"a multiple of {unit} or at least {length} long, got {block}. "
                    f"Choose such a block, or {self._unit_name}s that divide {block}."
                )

    def write(self, start_row: int, block: NDArray[Any], start_column: int = 0) -> None:
        """Write a block of whole chunks; each chunk file is replaced as one step.

        Parameters
        ----------
        start_row, start_column : int
            Where the block's first element goes along axes 0 and 1.
        block : ndarray
            In any memory order, of a dtype that converts to the array's without loss.

        Raises
        ------
        SpecError
            If the block splits a chunk (or a shard), does not lie inside the array, or would lose digits.
        DoesNotFitError
            If the disk is full.
        """
        region = self._region(block, (start_row, start_column))
        if block.size == 0:
            return
        block = block.astype(self.dtype, copy=False)
        if self._is_plain:
            for key, part in self._files(region):
                file, direct = self.path / key, self.past_cache
                write_chunk(file, block[part], self.chunks, fsync=self.fsync, checksum=self.checksum, direct=direct, root=self.path)
                if not self.fsync:
                    begin_flush(file)
        else:
            self._array[region] = block
            if self.fsync:
                for key, _ in self._files(region):
                    fsync_path(self.path / key)

    def flush(self) -> dict[str, int]:
        """Flush to the disk what this object has not flushed before; the bytes of every file of the array, by its relative path."""
        return fsync_tree(self.path, self.synced)

    def inventory(self) -> dict[str, tuple[int, int | None]]:
        """As `flush`, with the checksum at the end of each chunk's file beside its size."""
        found: dict[str, tuple[int, int | None]] = {}
        for key, size in self.flush().items():
            stamp = self.synced[os.path.join(self.path, *key.split("/"))]
            if self.shards or not self.checksum or key.endswith("zarr.json"):
                found[key] = (size, None)
                continue
            if self._crcs.get(key, (None, 0))[0] != stamp:
                self._crcs[key] = stamp, stored_crc(self.path / key)
            found[key] = (size, self._crcs[key][1])
        return found

    def matrix(self) -> Matrix:
        """The written array, opened for reading (two axes only)."""
        from dlscale.storage.matrices import open_matrix

        matrix = open_matrix(self.path)
        matrix.is_uncached = self.once and self.past_cache
        return matrix

    @cached_property
    def _array(self) -> zarr.Array[Any]:
        # Chunks of zeros are written too: an absent file means damage here. (`open_array` takes the setting and drops it.)
        array = zarr.open_array(self.path, mode="r+").with_config({"write_empty_chunks": True})
        if (array.shape, array.chunks, array.shards) != (self.shape, self.chunks, self.shards) or array.dtype != self.dtype:
            raise SpecError(
                f"{self.path} must hold {self._words}, got shape {array.shape}, dtype {array.dtype}, chunks {array.chunks}, "
                f"shards {array.shards}; it was replaced after this writer was made. Make a new one."
            )
        return array

    @cached_property
    def _is_plain(self) -> bool:
        """Whether a chunk file is its elements, little endian, and their crc32c if there is one."""
        codecs = getattr(self._array.metadata, "codecs", ())
        match codecs:
            case (BytesCodec() as elements, *rest) if [type(codec) for codec in rest] == [Crc32cCodec] * self.checksum:
                return elements.endian is None or elements.endian.value == "little"
        return False

    @cached_property
    def synced(self) -> dict[str, Stamp]:
        """The files that this object has flushed."""
        return {}

    @cached_property
    def _crcs(self) -> dict[str, tuple[Stamp, int]]:
        """The checksums of the files that `inventory` has read, which is not done again while a file stays the same."""
        return {}

    def _files(self, region: tuple[slice, ...]) -> Iterator[tuple[str, tuple[slice, ...]]]:
        """The chunk (or shard) files of a region, and the part of a block at that region that each one holds."""
        counts = [range(r.start // unit, -(-r.stop // unit)) for r, unit in zip(region, self.unit, strict=True)]
        for index in itertools.product(*counts):
            where = zip(index, self.unit, region, strict=True)
            yield "/".join(["c", *map(str, index)]), tuple(slice(i * n - r.start, (i + 1) * n - r.start) for i, n, r in where)

    @property
    def _unit_name(self) -> str:
        return "shard" if self.shards else "chunk"

    @property
    def _words(self) -> str:
        return f"array '{self.name}' (shape {self.shape}, dtype {self.dtype}, {self._unit_name}s {self.unit})"

    def _region(self, block: NDArray[Any], origin: tuple[int, int]) -> tuple[slice, ...]:
        starts = (*origin, *(0 for _ in self.shape))[: len(self.shape)]
        if block.ndim != len(self.shape) or any(origin[len(self.shape) :]):
            raise SpecError(f"A block of {self._words} must have {len(self.shape)} axes, got shape {block.shape} at {origin}.")
        if not np.can_cast(block.dtype, self.dtype, "safe"):
            raise SpecError(f"{self._words} takes what converts to its dtype without loss, got {block.dtype}; convert it first.")
        region = tuple(slice(start, start + n) for start, n in zip(starts, block.shape, strict=True))
        for axis, (r, unit, length) in enumerate(zip(region, self.unit, self.shape, strict=True)):
            if r.start < 0 or r.stop > length:
                raise SpecError(f"A block of {self._words} must lie inside it, got {r.start}:{r.stop} along axis {axis}.")
            if r.start % unit or (r.stop % unit and r.stop != length):
                raise SpecError(
                    f"A block of {self._words} must be whole {self._unit_name}s: along axis {axis} from a multiple of {unit} "
                    f"to a multiple of {unit} or to {length}, got {r.start}:{r.stop}. Call check_grid before the first write."
                )
        return region


def create_array(
    path: str | os.PathLike[str],
    layout: Layout,
    *,
    name: str | None = None,
    fsync: bool = False,
    checksum: bool = True,
    overwrite: bool = False,
    parents: bool = True,
) -> ArrayWriter:
    """Create a Zarr array, or open the one that is there if it has the same layout (what was written stays).

    Parameters
    ----------
    path : str or path
        Its folder; without ``parents`` it is made in one that is there.
    name : str, optional
        For messages; by default the last part of the path.
    fsync, checksum : see `ArrayWriter`
    overwrite : bool
        Remove the Zarr array or group that is there first, whatever its layout.

    Raises
    ------
    SpecError
        If the layout is not possible, or the place is taken by something else.
    """
    path = Path(path).absolute()  # a writer is pickled to processes with other working folders
    writer = ArrayWriter(name or path.name, path, *layout.checked(path), fsync, checksum)
    wanted = array_metadata(writer, layout.dimensions)
    if overwrite:
        remove_node(path)
    found = find_node(path)
    if found is None:
        try:
            make_folder(path) if parents else path.mkdir(exist_ok=True)
            if any(not entry.name.endswith(PARTIAL) for entry in path.iterdir()):
                raise SpecError(f"{path} must be free for a Zarr array, got a folder with other files in it; choose another path.")
            write_atomically(path / "zarr.json", wanted, fsync=fsync)
        except OSError as error:
            raise SpecError(f"{path} must be a place where files can be written: {error}. Choose another path.") from error
    elif any(found.get(key) != value for key, value in json.loads(wanted).items() if key in _LAYOUT):
        raise SpecError(
            f"{path} must be free or hold {writer._words}, got another {found.get('node_type')} there; "
            "remove it, overwrite it, or choose another path."
        )
    return writer


def reopen_array(path: Path, layout: Layout, *, name: str, fsync: bool) -> ArrayWriter:
    """`create_array` at a place that nobody else uses: what is there of another layout, or damaged, is removed."""
    try:
        return create_array(path, layout, name=name, fsync=fsync)
    except SpecError:
        if path.is_dir():
            shutil.rmtree(path)
        return create_array(path, layout, name=name, fsync=fsync)


def put_array(
    path: Path, array: NDArray[Any], *, name: str | None = None, dimensions: tuple[str, ...] | None = None
) -> tuple[ArrayWriter, dict[str, int]]:
    """Write a small array whole into a folder that is there, in place of a Zarr node of its name; `fsync_tree` is the caller's.

    Returns
    -------
    ArrayWriter
        The layout; cut into chunks along the first axis only.
    dict
        Chunk file relative to `path` to the crc32c of its elements, in order.
    """
    row_bytes = array.nbytes // max(1, len(array)) if array.ndim else array.nbytes
    rows = max(1, _CHUNK_BYTES // max(1, row_bytes))
    chunks = tuple(max(1, min(n, rows) if axis == 0 else n) for axis, n in enumerate(array.shape))
    layout = Layout(array.shape, array.dtype, chunks, dimensions=dimensions)
    writer = create_array(path, layout, name=name, overwrite=True, parents=False)
    array = array.astype(writer.dtype, copy=False)
    crcs = {}
    if array.size:
        for i in range(math.ceil(len(array) / chunks[0]) if chunks else 1):
            key = "/".join(["c", *(str(i if axis == 0 else 0) for axis in range(array.ndim))])
            crcs[key] = write_chunk(path / key, array[i * rows : (i + 1) * rows] if chunks else array, chunks, root=path)
    return writer, crcs


def publish_array(writer: ArrayWriter, destination: Path, attributes: dict[str, Any]) -> Path:
    """Give a written array its attributes and, by one rename, its final place; everything is on the disk first."""
    zarr.open_array(writer.path, mode="r+").update_attributes({"dlscale": attributes})
    writer.flush()
    os.rename(writer.path, destination)
    fsync_path(destination.parent)
    return destination


def array_metadata(writer: ArrayWriter, dimensions: tuple[str, ...] | None) -> bytes:
    """The ``zarr.json`` of an array."""
    array = zarr.create_array(
        store={},
        shape=writer.shape,
        dtype=writer.dtype,
        chunks=writer.chunks,
        shards=writer.shards,
        filters=None,
        compressors=[Crc32cCodec()] if writer.checksum else None,
        fill_value=0,
        dimension_names=dimensions,
    )
    return array.metadata.to_buffer_dict(default_buffer_prototype())["zarr.json"].to_bytes()
