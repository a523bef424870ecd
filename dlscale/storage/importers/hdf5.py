"""HDF5: one dataset, read in strips of whole chunks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from dlscale.errors import SpecError
from dlscale.storage.importers.tables import (
    BLOCK_BYTES,
    Blocks,
    Request,
    Table,
    is_url,
    matrix_layout,
    need,
    open_binary,
    row_ranges,
)

MAX_STRIP_BYTES = 8 * BLOCK_BYTES  # a tall chunk is read again and again only where a strip of such would pass this


@contextmanager
def read_hdf5(request: Request) -> Iterator[Table]:
    """The dataset of that path inside the file, or the only matrix in it."""
    h5py = need("h5py", request.source)
    with ExitStack() as stack:
        file = stack.enter_context(open_binary(request.source)) if is_url(request.source) else request.source
        store = stack.enter_context(h5py.File(file, "r"))
        dataset = store[_name(h5py, store, request)]
        m, n, dtype = matrix_layout(dataset.shape or (), dataset.dtype, what=f"{request.source}, dataset {dataset.name!r}")
        yield Table(m, n, dtype, _blocks(dataset, m, n, dtype=dtype))


def _name(h5py: Any, store: Any, request: Request) -> str:
    found: list[str] = []
    store.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    if request.dataset is not None:
        if request.dataset.strip("/") not in found:
            raise SpecError(f"{request.source} has no dataset {request.dataset!r}; it has: {', '.join(found) or 'none'}.")
        return request.dataset
    matrices = [name for name in found if len(store[name].shape or ()) == 2] or found
    if len(matrices) != 1:
        raise SpecError(f"{request.source} holds {len(found)} datasets; set dataset to one of: {', '.join(found) or 'none'}.")
    return matrices[0]


def _blocks(dataset: Any, m: int, n: int, *, dtype: np.dtype[Any]) -> Blocks:
    row_bytes = max(1, n * dtype.itemsize)
    unit = dataset.chunks[0] if dataset.chunks else 1
    if unit * row_bytes > MAX_STRIP_BYTES:
        unit = max(1, MAX_STRIP_BYTES // row_bytes)
    for start, stop in row_ranges(m, unit * max(1, BLOCK_BYTES // (unit * row_bytes))):
        yield dataset[start:stop].reshape(stop - start, n)
