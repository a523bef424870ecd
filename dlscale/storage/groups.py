"""Zarr groups as readers see them: attributes and arrays by name, whatever wrote them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, StoreError
from dlscale.storage.integrity import holds_numbers, holds_text
from dlscale.storage.labels.names import AXES, COLOR
from dlscale.storage.zarr_stores import place_of, refusing, understood

#: Of text that colours rows, so many chunks are read.
_MOST_TEXT_CHUNKS = 32


def open_arrays(uri: str) -> dict[str, Any]:
    """Every array of a group, opened for reading, by its name; reading a chunk that is absent is an error (MissingChunkError).

    Raises
    ------
    InputError
        If there is no Zarr group, or the description of one of its arrays cannot be understood.
    """
    with _explained(uri):
        arrays = [(name, array) for name, array in _open_group(uri).members(max_depth=None) if hasattr(array, "dtype")]
        return {name: refusing(understood(array, f"{uri}/{name}")) for name, array in arrays}


def open_array(uri: str) -> Any:
    """One array of any number of dimensions, opened for reading (InputError if it cannot be)."""
    import zarr

    with _explained(uri):
        return understood(zarr.open_array(place_of(uri), mode="r"), uri)


def small_arrays(uri: str, arrays: Mapping[str, Any], *, max_bytes: int) -> dict[str, Array]:
    """Of the open arrays of a group, those of numbers that are at most so large, in memory."""
    with _explained(uri):
        return {name: array[...] for name, array in arrays.items() if holds_numbers(array) and array.nbytes <= max_bytes}


def small_labels(uri: str, arrays: Mapping[str, Any], *, most: int) -> dict[str, list[str]]:
    """The names of rows and of columns among the open arrays of a group, by axis; of an axis with more of them, none."""
    with _explained(uri):
        found = {axis: arrays[axis] for axis in AXES if axis in arrays and holds_text(arrays[axis])}
        few = {axis: array for axis, array in found.items() if array.ndim == 1 and array.shape[0] <= most}
        return {axis: list(map(str, array[...].tolist())) for axis, array in few.items()}


def sampled_rows(uri: str, arrays: Mapping[str, Any], name: str, n_columns: int, *, max_bytes: int) -> Array | None:
    """The first columns of an array of a group: of all rows, or, where these are too many to read, of chunks spread evenly."""
    array = arrays.get(name)
    if array is None or array.ndim != 2 or not holds_numbers(array) or array.shape[1] < n_columns:
        return None
    with _explained(uri):
        return np.concatenate([array[rows, :n_columns] for rows in _sampled(array, max_bytes)])


def _sampled(array: Any, max_bytes: int) -> list[slice]:
    """The rows of all chunks of an array, or of so many that are spread evenly."""
    if array.nbytes <= max_bytes:
        return [slice(0, int(array.shape[0]))]
    rows = int((array.shards or array.chunks)[0])
    n_chunks = -(-int(array.shape[0]) // rows)
    n_read = max(1, min(n_chunks, max_bytes // max(1, rows * int(array.shape[1]) * array.dtype.itemsize)))
    return [slice(k * rows, (k + 1) * rows) for k in np.linspace(0, n_chunks - 1, n_read).astype(int).tolist()]


def sampled_color(
    uri: str, arrays: Mapping[str, Any], name: str, *, max_bytes: int, most: int
) -> tuple[str, Array, list[str]] | None:
    """What colours rows of a group, of as many of `sampled_rows` at most.

    Returns
    -------
    (str, (r,) of int, list of str) or None
        The name of the column, where the rows are among those of `sampled_rows`, and the text of each; None where nothing colours.
    """
    array, color = arrays.get(name), arrays.get(COLOR)
    if array is None or array.ndim != 2 or color is None or color.shape != array.shape[:1] or not holds_text(color):
        return None
    n, chunk = int(array.shape[0]), int(color.chunks[0])
    rows = np.concatenate([np.arange(*span.indices(n)) for span in _sampled(array, max_bytes)])
    read = np.unique(rows // chunk)
    read = read[np.unique(np.linspace(0, len(read) - 1, min(len(read), _MOST_TEXT_CHUNKS)).astype(int))]
    among = np.flatnonzero(np.isin(rows // chunk, read))
    among = among[np.unique(np.linspace(0, len(among) - 1, min(len(among), most)).astype(int))]
    wanted, texts = rows[among], list[str]()
    with _explained(uri):
        for k in np.unique(wanted // chunk).tolist():
            found = color[k * chunk : (k + 1) * chunk].tolist()
            texts += [str(found[i - k * chunk]) for i in wanted[wanted // chunk == k].tolist()]
        return str(dict(color.attrs).get("long_name", COLOR)), among, texts


def result_attributes(uri: str) -> dict[str, Any] | None:
    """What `ResultGroup.publish` wrote: kind, spec, plan, certificate ...; None where there is no result.

    Raises
    ------
    InputError
        If there is a result whose description is damaged.
    """
    try:
        record = _open_group(uri).attrs.asdict().get("dlscale")
    except InputError:
        return None
    if not isinstance(record, dict) or "kind" not in record:
        return None
    from dlscale.storage.descriptions import check_description

    check_description(record, uri)
    return record


def _open_group(uri: str) -> Any:
    import zarr

    with _explained(uri):
        return zarr.open_group(place_of(uri), mode="r")


@contextmanager
def _explained(uri: str) -> Iterator[None]:
    """Whatever zarr-python and its stores raise for what is absent or damaged, as one error."""
    try:
        yield
    except (InputError, StoreError):
        raise
    except Exception as error:  # metadata that somebody damaged end in any exception there
        raise InputError(f"There is no Zarr group that can be read at {uri} ({type(error).__name__}: {error}).") from error
