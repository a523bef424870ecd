"""HDF5: one dataset, read in strips of whole chunks, or one sparse group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.storage.importers.compressed import compressed_table, hdf5_parts
from dlscale.storage.importers.hdf5_links import check_sources, follow
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
from dlscale.storage.labels.hdf5 import color_of, labels_of_dataset, labels_of_group
from dlscale.storage.labels.names import Labels
from dlscale.storage.packing import PACKING_KEYS, Packing
from dlscale.storage.signatures import Stamp

MAX_STRIP_BYTES = 8 * BLOCK_BYTES  # a tall chunk is read again and again only where a strip of such would pass this

#: What programs call the parts of a complex number.
_PARTS = (("r", "i"), ("real", "imag"), ("re", "im"))

#: What lies in a group that is a sparse matrix: in files of anndata, PyTables and 10x, and in those of MATLAB.
_SPARSE = ({"data", "indices", "indptr"}, {"data", "ir", "jc"})


@contextmanager
def read_hdf5(request: Request) -> Iterator[Table]:
    """The dataset of that path inside the file, or the only matrix in it, unpacked as netCDF packs numbers.

    Links are followed, and sources of virtual datasets read, where they lead to files beside this one or in folders below.
    """
    h5py = need("h5py", request.source)
    with ExitStack() as stack:
        file = stack.enter_context(open_binary(request.source)) if is_url(request.source) else request.source
        store = stack.enter_context(h5py.File(file, "r"))
        dataset = _dataset(h5py, store, request)
        if isinstance(dataset, h5py.Group):
            yield _sparse_table(h5py, store, dataset, request)
            return
        what = f"{request.source}, dataset {dataset.name!r}"
        others = check_sources(h5py, dataset, request.source)
        stored, parts = _plain(dataset.dtype)
        m, n, dtype = matrix_layout(dataset.shape or (), stored, what=what)
        packing = Packing.of({key: dataset.attrs[key] for key in PACKING_KEYS if key in dataset.attrs}, stored, what)
        blocks = _blocks(dataset, m, n, dtype=dtype, parts=parts)
        labels = _colored(h5py, store, dataset, labels_of_dataset(h5py, store, dataset, (m, n)), m, request, others)
        attributes = _read_also(others)
        turned = ["MATLAB wrote it, column by column: its columns are the rows here"] if "MATLAB_class" in dataset.attrs else []
        if packing is not None:
            dtype = np.dtype(np.float64) if dtype.kind in "iu" or dtype.itemsize == 2 else dtype
            blocks = _unpacked(blocks, packing, dtype=dtype, what=what)
        yield Table(m, n, dtype, blocks, attributes, notes=turned, labels=labels)


def _dataset(h5py: Any, store: Any, request: Request) -> Any:
    found: list[str] = []
    store.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    if request.dataset is not None:
        item = follow(h5py, store, request.dataset, request.source)
        if item is None:
            raise SpecError(f"{request.source} has no dataset {request.dataset!r}; it has: {_listed(found)}.")
        if isinstance(item, h5py.Dataset) or _is_sparse(item):
            return item
        raise SpecError(f"{request.source}: {request.dataset!r} is a group; its file has the datasets: {_listed(found)}.")
    if store.attrs.get("encoding-type") == "anndata" and "X" in store:
        return store["X"]
    groups = [name for name in sorted({name.rpartition("/")[0] for name in found}) if _is_sparse(store[name] if name else store)]
    if len(groups) == 1:
        return store[groups[0]] if groups[0] else store
    if groups:
        raise SpecError(f"{request.source} holds {len(groups)} sparse matrices; set dataset to one of: {_listed(groups)}.")
    matrices = [name for name in found if len(store[name].shape or ()) == 2] or found
    if len(matrices) != 1:
        raise SpecError(f"{request.source} holds {len(found)} datasets; set dataset to one of: {_listed(found)}.")
    return store[matrices[0]]


def _listed(names: list[str]) -> str:
    return ", ".join(names[:50]) + (", ..." if len(names) > 50 else "") or "none"


def _is_sparse(group: Any) -> bool:
    return any(parts <= set(group) for parts in _SPARSE)


def _sparse_table(h5py: Any, store: Any, group: Any, request: Request) -> Table:
    what, others = f"{request.source}, group {group.name!r}", set[Path]()

    def dataset(name: str) -> Any:
        item = follow(h5py, store, f"{group.name}/{name}", request.source)
        if not isinstance(item, h5py.Dataset):
            raise InputError(f"{what} is a sparse matrix whose {name!r} is no dataset.")
        others.update(check_sources(h5py, item, request.source))
        return item

    found = hdf5_parts(group, what, dataset)
    if found is None:
        raise InputError(
            f"{request.source}: {group.name!r} is a sparse matrix in three arrays that do not say its shape, as those of AnnData, "
            "10x and MATLAB do; write it by scipy.sparse.save_npz or scipy.io.mmwrite. (Name one of its arrays to import that.)"
        )
    shape = found[0].shape
    labels = _colored(h5py, store, group, labels_of_group(h5py, store, group, shape), shape[0], request, others)
    return replace(compressed_table(found[0], request, notes=found[1]), attributes=_read_also(others), labels=labels)


def _colored(h5py: Any, store: Any, matrix: Any, labels: Labels, n_rows: int, request: Request, others: set[Path]) -> Labels:
    """Labels with what colours the rows, if that was asked for; the files that it comes from are added to the others."""
    if request.color is None:
        return labels

    def item(path: str) -> Any:
        found = follow(h5py, store, path, request.source)
        if isinstance(found, h5py.Dataset):
            others.update(check_sources(h5py, found, request.source))
        return found

    return labels._replace(color=color_of(h5py, matrix, n_rows, request.color, item, request.source))


def _read_also(others: set[Path]) -> dict[str, Any]:
    """What says whether the other files that numbers were read from are still the same."""
    return {"read_also": {os.fspath(path): Stamp.of(path.stat()) for path in sorted(others)}} if others else {}


def _plain(dtype: np.dtype[Any]) -> tuple[np.dtype[Any], tuple[str, str] | None]:
    """The dtype of numbers, and the names of the parts of complex ones that are stored as pairs."""
    names = dtype.names or ()
    for pair in _PARTS:
        chosen = tuple(next((name for name in names if name.lower() == part), "") for part in pair)
        if len(names) == 2 and all(chosen):
            first, second = (dtype[name] for name in chosen)
            if first == second and first.kind == "f" and first.itemsize in (4, 8):
                return np.dtype(f"c{2 * first.itemsize}"), (chosen[0], chosen[1])
    return dtype, None


def _blocks(dataset: Any, m: int, n: int, *, dtype: np.dtype[Any], parts: tuple[str, str] | None) -> Blocks:
    row_bytes = max(1, n * dtype.itemsize)
    unit = dataset.chunks[0] if dataset.chunks else 1
    if unit * row_bytes > MAX_STRIP_BYTES:
        unit = max(1, MAX_STRIP_BYTES // row_bytes)
    for start, stop in row_ranges(m, unit * max(1, BLOCK_BYTES // (unit * row_bytes))):
        block = dataset[start:stop]
        if parts is not None:
            pairs, block = block, np.empty(block.shape, dtype)
            block.real, block.imag = pairs[parts[0]], pairs[parts[1]]
        yield block.reshape(stop - start, n)


def _unpacked(blocks: Blocks, packing: Packing, *, dtype: np.dtype[Any], what: str) -> Blocks:
    start = 0
    for block in blocks:
        gaps = packing.gaps(block)
        if gaps is not None and gaps.any():
            row, column = np.argwhere(gaps)[0]
            raise InputError(f"{what} has a missing value in row {start + row}, column {column} ({packing}). Fill or drop it.")
        unpacked: Array = np.empty(block.shape, dtype)
        packing.unpack(block, unpacked)
        yield unpacked
        start += len(block)
