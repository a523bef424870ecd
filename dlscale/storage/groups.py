"""Zarr groups as readers see them: attributes and arrays by name, whatever wrote them."""

from __future__ import annotations

from typing import Any

from dlscale.errors import InputError
from dlscale.storage.integrity import holds_numbers
from dlscale.storage.matrices import Array


def open_arrays(uri: str) -> dict[str, Any]:
    """Every array of a group, opened for reading, by its name.

    Raises
    ------
    InputError
        If there is no Zarr group, or the description of one of its arrays cannot be understood.
    """
    group = _open_group(uri)
    try:
        return {name: array for name, array in group.members(max_depth=None) if hasattr(array, "dtype")}
    except Exception as error:  # whatever zarr-python raises on metadata that a stranger wrote
        raise InputError(f"{uri} holds an array whose metadata cannot be read ({type(error).__name__}: {error}).") from error


def small_arrays(uri: str, *, max_bytes: int) -> dict[str, Array]:
    """The arrays of numbers of a group that are at most so large, in memory."""
    return {name: array[...] for name, array in open_arrays(uri).items() if holds_numbers(array) and array.nbytes <= max_bytes}


def result_attributes(uri: str) -> dict[str, Any] | None:
    """What `ResultGroup.publish` wrote: kind, spec, plan, certificate ...; None where there is no result."""
    try:
        record = _open_group(uri).attrs.asdict().get("dlscale")
    except InputError:
        return None
    return record if isinstance(record, dict) and "kind" in record else None


def _open_group(uri: str) -> Any:
    import zarr

    try:
        return zarr.open_group(uri, mode="r")
    except (ValueError, KeyError, OSError) as error:
        raise InputError(f"There is no Zarr group at {uri} ({type(error).__name__}: {error}).") from error
