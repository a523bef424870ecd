"""What tasks share, and what they return, without its large arrays going through the scheduler.

A value of many gigabytes in a task graph goes from the client to the scheduler and from there to each worker, in copies. A
parcel carries everything but the large arrays; these lie beside it as files, and each process that opens it reads them once.
"""

from __future__ import annotations

import io
import pickle
import platform
import threading
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.buffers import empty_pages
from dlscale.errors import DlscaleError, MissingChunkError
from dlscale.storage.chunk_files import Window, read_window
from dlscale.storage.files.durable import write_chunk

#: Arrays of fewer bytes travel in the parcel: a file costs more than they do. A factorization has one of some megabytes for each
#: panel, all of which together are large.
LARGE_BYTES = 2**18


class Parcel:
    """A value on its way to another process.

    Parameters
    ----------
    packed : bytes
        From `pack`. One piece: arrays that Dask receives on their own may lie at odd addresses, and every product with such
        an array copies it first.
    """

    def __init__(self, packed: bytes) -> None:
        self.packed = packed
        self._lock = threading.Lock()
        self._opened: list[Any] = []

    def __reduce__(self) -> tuple[type[Parcel], tuple[bytes]]:
        return type(self), (self.packed,)

    def open(self) -> Any:
        """The value, the same for all threads of a process.

        Raises
        ------
        DlscaleError
            If this process does not see the files.
        """
        with self._lock:
            if not self._opened:
                self._opened.append(_Reader(io.BytesIO(self.packed)).load())
            return self._opened[0]


def pack(value: Any, place: Path | None) -> Parcel:
    """Write the large arrays of a value to files, and put the rest of it in a parcel.

    Parameters
    ----------
    value
        Anything that can be pickled.
    place : Path, optional
        Where files go: this path with a number behind it; a file that is there is replaced. None: all goes into the parcel.
    """
    if place is None:
        return Parcel(pickle.dumps(value, protocol=4))
    buffer = io.BytesIO()
    _Writer(buffer, place).dump(value)
    return Parcel(buffer.getvalue())


def opened(value: Any) -> Any:
    """What is in a parcel; anything else as it is."""
    return value.open() if isinstance(value, Parcel) else value


class _Writer(pickle.Pickler):
    def __init__(self, buffer: io.BytesIO, place: Path) -> None:
        super().__init__(buffer, protocol=4)
        self._place = place
        self._written: dict[int, tuple[str, tuple[int, ...], np.dtype[Any], bool]] = {}

    def persistent_id(self, value: Any) -> Any:
        if (
            type(value) is not np.ndarray
            or value.nbytes < LARGE_BYTES
            or value.dtype.kind not in "biufc"
            or not value.dtype.isnative
        ):
            return None
        if id(value) not in self._written:
            by_columns = value.flags.f_contiguous and not value.flags.c_contiguous
            elements = (value.T if by_columns else value).reshape(1, -1)
            path = self._place.with_name(f"{self._place.name}-{len(self._written)}")
            write_chunk(path, elements, elements.shape)
            self._written[id(value)] = (str(path), value.shape, value.dtype, by_columns)
        return self._written[id(value)]


class _Reader(pickle.Unpickler):
    def persistent_load(self, what: Any) -> Any:
        path, shape, dtype, by_columns = what
        array = empty_pages(shape[::-1] if by_columns else shape, dtype)
        n = array.size
        try:
            read_window(Window(Path(path), (0, 1, 0, n), array.reshape(1, n)), (1, n), checksum=True, direct=False)
        except MissingChunkError as error:
            raise DlscaleError(
                f"A worker on {platform.node()} does not see {path}, which another process of the job wrote; the job's folder must "
                "lie on a file system that all of them share."
            ) from error
        return array.T if by_columns else array
