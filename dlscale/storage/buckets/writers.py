"""Arrays in an object store that many tasks write at once, each of them whole chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dlscale.errors import SpecError
from dlscale.storage.files.durable import crc32c, plain_elements
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.requests import get_or_none, helpers, listing, put, remove
from dlscale.storage.writers import ArrayWriter, Layout, array_metadata

if TYPE_CHECKING:
    from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class ObjectWriter(ArrayWriter):
    """An array in an object store, written as one on a disk is; each chunk is one object, which is there whole or not at all.

    Parameters
    ----------
    path : Address
        What the keys of its objects begin with.
    """

    path: Any

    def write(self, start_row: int, block: NDArray[Any], start_column: int = 0) -> None:
        region = self._region(block, (start_row, start_column))
        if block.size == 0:
            return
        block = block.astype(self.dtype, copy=False)

        def send(file: tuple[str, tuple[slice, ...]]) -> None:
            key, part = file
            put(self.path / key, _encoded(block[part], self.chunks).data)

        files = list(self._files(region))
        if len(files) == 1:
            send(files[0])
        else:
            list(helpers().map(send, files))

    def flush(self) -> dict[str, int]:
        """What the store has of it; what was written is safe there already."""
        return {key: stamp.size for key, stamp in listing(self.path).items()}

    def inventory(self) -> dict[str, tuple[int, Any]]:
        """Every object with its size and its version."""
        return {key: (stamp.size, stamp.version) for key, stamp in listing(self.path).items()}

    def matrix(self) -> Matrix:
        from dlscale.storage.zarr_matrices import ZarrMatrix
        from dlscale.storage.zarr_stores import open_array

        return ZarrMatrix.at(str(self.path), open_array(str(self.path)))


def _encoded(block: NDArray[Any], chunk_shape: tuple[int, ...]) -> NDArray[Any]:
    elements = plain_elements(block, chunk_shape)
    return np.concatenate([elements, np.frombuffer(crc32c(elements).to_bytes(4, "little"), np.uint8)])


def create_object_array(place: Address, layout: Layout, *, name: str) -> ObjectWriter:
    """Create an array in an object store, or go on with the one that is there with the same layout; others are removed.

    Raises
    ------
    SpecError
        If the layout is not possible.
    StoreError
    """
    if layout.shards:
        raise SpecError(f"{place}: arrays in an object store have chunks and no shards, got shards {layout.shards}.")
    writer = ObjectWriter(name, place, *layout.checked(place))
    wanted = array_metadata(writer, layout.dimensions)
    if get_or_none(place / "zarr.json") != wanted:
        remove(place)
        put(place / "zarr.json", wanted)
    return writer


@contextmanager
def sent_from(*places: tuple[str, Address]) -> Iterator[Path]:
    """A folder of this machine for the body to write to; afterwards each of its parts is sent to its place."""
    with TemporaryDirectory(prefix="dlscale-") as folder:
        yield Path(folder)
        files = [
            (path, place / path.relative_to(Path(folder) / part).as_posix())
            for part, place in places
            for path in sorted((Path(folder) / part).rglob("*"))
            if path.is_file()
        ]
        list(helpers().map(lambda file: put(file[1], file[0].read_bytes()), files))
