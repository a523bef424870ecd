"""Zarr groups as readers see them: attributes and arrays by name, whatever wrote them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dlscale.arrays import Array
from dlscale.errors import InputError
from dlscale.storage.integrity import holds_numbers
from dlscale.storage.zarr_stores import place_of, refusing, understood


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


def small_arrays(uri: str, *, max_bytes: int) -> dict[str, Array]:
    """The arrays of numbers of a group that are at most so large, in memory."""
    arrays = open_arrays(uri)
    with _explained(uri):
        return {name: array[...] for name, array in arrays.items() if holds_numbers(array) and array.nbytes <= max_bytes}


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
    except InputError:
        raise
    except Exception as error:  # metadata that somebody damaged end in any exception there
        raise InputError(f"There is no Zarr group that can be read at {uri} ({type(error).__name__}: {error}).") from error
