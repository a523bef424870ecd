"""One-dimensional arrays at rest, read by any range."""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import CorruptionError, MissingChunkError, StoreError
from dlscale.storage.chunk_files import Window, read_window
from dlscale.storage.integrity import MissingChunks
from dlscale.storage.zarr_matrices import RawLayout, raw_layout
from dlscale.storage.zarr_stores import open_array, refusing


class StoredVector:
    """A one-dimensional Zarr array; ``vector[start:stop]`` reads a range.

    Plain chunk files of a local store are read by positioned reads, just what is asked for. Of others each thread keeps the chunk
    that it decoded last, in which the next range is likely to begin.

    Parameters
    ----------
    uri : str
    array : zarr.Array
    opens_again : bool
        Whether its uri is all that another process needs.
    """

    def __init__(self, uri: str, array: Any, *, opens_again: bool, missing_chunks: MissingChunks = "refuse") -> None:
        self.uri, self.opens_again, self.missing_chunks = uri, opens_again, missing_chunks
        self._array: Any = array
        self.length, self.dtype = int(array.shape[0]), np.dtype(array.dtype)

    def __getstate__(self) -> dict[str, Any]:
        state = {key: value for key, value in vars(self).items() if key not in ("raw", "_kept")}
        return state | ({"_array": None} if self.opens_again else {})

    def __len__(self) -> int:
        return self.length

    @property
    def array(self) -> Any:
        """Where an absent chunk is an error, unless it was said to be filled."""
        if self._array is None:
            self._array = open_array(self.uri)
        return refusing(self._array) if self.missing_chunks == "refuse" else self._array

    @property
    def chunk_bytes(self) -> int:
        """Bytes that one thread keeps of it."""
        return 0 if self.raw else min(int(self.array.chunks[0]), self.length) * self.dtype.itemsize

    @cached_property
    def raw(self) -> RawLayout | None:
        found = raw_layout(self.array) if self.missing_chunks == "refuse" else None
        return found if found and not found.checksum else None

    @cached_property
    def _kept(self) -> threading.local:
        return threading.local()

    def __getitem__(self, part: slice) -> Array:
        start, stop = part.start, part.stop
        out = np.empty(stop - start, self.dtype)
        width = int(self.array.chunks[0])
        for i in range(start // width, -(-stop // width)):
            first, last = max(start, i * width), min(stop, (i + 1) * width)
            target = out[first - start : last - start]
            if self.raw is None:
                target[...] = self._chunk(i, width)[first - i * width : last - i * width]
            else:
                path = self.raw.root / self.array.metadata.encode_chunk_key((i,))
                place = (0, 1, first - i * width, last - i * width)
                read_window(Window(path, place, target[None, :]), (1, width), checksum=False, direct=False)
        return out

    def _chunk(self, i: int, width: int) -> Array:
        number, chunk = getattr(self._kept, "chunk", (-1, None))
        if number == i and chunk is not None:
            return np.asarray(chunk)
        try:
            chunk = np.asarray(self.array[i * width : min((i + 1) * width, self.length)])
        except (MissingChunkError, StoreError):
            raise
        except Exception as error:  # each codec library raises its own exception type for damaged bytes
            raise CorruptionError(
                f"Chunk {i} of {self.uri} cannot be decoded ({type(error).__name__}: {error}); restore the chunk."
            ) from error
        self._kept.chunk = (i, chunk)
        return chunk
