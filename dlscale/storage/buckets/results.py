"""Results in an object store, which are there whole or not at all.

A store renames nothing and locks nothing. A job writes its arrays beside the final name, below ``.<name>.partial/<job>/``, which
is its own. To publish them, it claims the name by an object that is written only where there is none, lets the store copy what
it wrote, and writes the group's ``zarr.json`` last, again only where there is none: without it there is no result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dlscale.errors import CorruptionError, SpecError
from dlscale.storage.buckets.writers import ObjectWriter, create_object_array, sent_from
from dlscale.storage.files.durable import crc32c
from dlscale.storage.files.nodes import check_name, group_metadata, place_node
from dlscale.storage.labels.names import Labels
from dlscale.storage.labels.writing import write_text
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.requests import copy, get, get_or_none, helpers, listing, names, put, put_new, remove, remove_object
from dlscale.storage.results import ResultGroup
from dlscale.storage.seals import SEAL, description_crc
from dlscale.storage.signatures import Stamp
from dlscale.storage.writers import ArrayWriter, Layout, Shape, put_array

_ROOT = "zarr.json"


class ObjectResultGroup(ResultGroup):
    """A Zarr group that is written beside its final address, and appears there complete.

    Parameters
    ----------
    place : Address
        The final address.
    overwrite : bool
        Let `publish` replace a Zarr group at the final address.
    owner : str
        Who writes.
    dimensions : mapping of str to tuple of str, optional
        See `ResultGroup`.

    Notes
    -----
    Nothing is asked of the store before something is written. `require_free` tells whether the final address can be used.
    """

    def __init__(
        self, place: Address, *, overwrite: bool = False, owner: str = "", dimensions: Mapping[str, tuple[str, ...]] | None = None
    ) -> None:
        self.place, self.staged = place, _staged(place, owner)
        self._overwrite, self._owner = overwrite, owner
        self._writers: dict[str, ArrayWriter] = {}
        self._dimensions, self._lengths = dimensions or {}, dict[str, int]()
        self._staged_names: set[str] | None = None

    def create(
        self, name: str, shape: Shape, dtype: DTypeLike, *, chunks: Shape, shards: Shape | None = None, once: bool = False
    ) -> ArrayWriter:
        parts = check_name(name).split("/")
        for k in range(1, len(parts)):
            put(self.staged / "/".join(parts[:k]) / _ROOT, group_metadata({}))
        layout = Layout(shape, dtype, chunks, shards, self._dimensions_of(name, shape))
        writer = create_object_array(self.staged / name, layout, name=name)
        self._staged_names = None
        return self._writers.setdefault(name, writer)

    def put(self, name: str, array: NDArray[Any]) -> None:
        self._writers.pop(name, None)
        array = np.asarray(array)
        first = check_name(name).partition("/")[0]
        self._clear(name)
        with sent_from((first, self.staged / first)) as folder:
            put_array(place_node(folder, name), array, name=name, dimensions=self._dimensions_of(name, array.shape))

    def name_axes(self, labels: Labels) -> None:
        for text in labels.stored():
            if self._lengths.get(text.axis) == len(text.texts):
                self._clear(text.array)
                with sent_from((text.array, self.staged / text.array)) as folder:
                    write_text(place_node(folder, text.array), text)

    def publish(self, attributes: dict[str, Any]) -> Any:
        """Let the group appear at its final address, which is returned; see the module.

        Raises
        ------
        SpecError
            If something else is there, or another job publishes there.
        CorruptionError
            If a chunk that was written is not in the store any more.
        StoreError
        """
        require_free(self.place, overwrite=self._overwrite, owner=self._owner)
        written = listing(self.staged)
        self._require_whole(written)
        attributes = json.loads(group_metadata(attributes))["attributes"]
        described = sorted(key for key in written if key.endswith(f"/{_ROOT}"))
        metadata = dict(zip(described, helpers().map(lambda key: crc32c(get(self.staged / key)), described), strict=True))
        seal = {"dlscale": description_crc(attributes), "metadata": metadata, "chunks": {}}
        if not put_new(_claim(self.place), self._owner.encode()):
            raise _claimed(self.place)
        remove(self.place, first=[_ROOT])
        copy((self.staged / key, self.place / key) for key in sorted(written))
        there = listing(self.place)
        if {key: stamp.size for key, stamp in there.items()} != {key: stamp.size for key, stamp in written.items()}:
            raise CorruptionError(f"{self.place} is not what was written below {self.staged}; resume the job.")
        if not put_new(self.place / _ROOT, group_metadata({"dlscale": attributes, SEAL: seal})):
            raise SpecError(f"{self.place} was published by somebody else meanwhile; choose another output, and resume the job.")
        clear(self.place, self._owner)
        return self.place

    def discard(self) -> None:
        self._writers.clear()
        clear(self.place, self._owner)

    def close(self) -> None:
        """Nothing is held."""

    def _clear(self, name: str) -> None:
        """Remove what an array of a name, or another run of the job, has left where one is about to be written."""
        first = name.partition("/")[0]
        if self._staged_names is None:
            self._staged_names = set(names(self.staged))
        if first in self._staged_names:
            remove(self.staged / name)
        self._staged_names.add(first)

    def _require_whole(self, written: Mapping[str, Stamp]) -> None:
        for name, writer in self._writers.items():
            n_chunks = math.prod(-(-length // chunk) for length, chunk in zip(writer.shape, writer.chunks, strict=True))
            n_bytes = math.prod(writer.chunks) * writer.dtype.itemsize + 4
            found = sum(key.startswith(f"{name}/c/") and stamp.size == n_bytes for key, stamp in written.items())
            if isinstance(writer, ObjectWriter) and found < n_chunks:
                raise CorruptionError(f"{self.staged / name} has {found} of its {n_chunks} chunks; resume the job.")


def require_free(place: Address, *, overwrite: bool, owner: str) -> None:
    """Refuse a final address where something is that may not be replaced (SpecError)."""
    root, claimed = get_or_none(place / _ROOT), get_or_none(_claim(place))
    if claimed is not None and claimed != owner.encode():
        raise _claimed(place)
    if root is not None and not overwrite:
        raise SpecError(f"{place} must not exist before the result is complete, but it does; choose another or overwrite it.")
    if root is None and claimed is None and names(place):
        raise SpecError(f"{place} holds something that is no result; choose another address.")


def _claimed(place: Address) -> SpecError:
    by = (get_or_none(_claim(place)) or b"unknown").decode(errors="replace")
    return SpecError(
        f"{place} is being published by job {by}; wait for its end. If it does not run any more, resume it, "
        f"or remove {_claim(place)}."
    )


def require_writable(place: Address) -> None:
    """Write a small object beside a final address and remove it (StoreError if that is refused)."""
    probe = place.parent / f".{place.name}.partial" / "probe"
    put(probe, b"?")
    remove_object(probe)


def clear(place: Address, owner: str) -> None:
    """Remove what a job has written beside a final address, and its claim: once the result is published, or if it never will be."""
    remove(_staged(place, owner))
    if get_or_none(_claim(place)) == owner.encode():
        remove_object(_claim(place))


def _staged(place: Address, owner: str) -> Address:
    return place.parent / f".{place.name}.partial" / (owner or "nobody")


def _claim(place: Address) -> Address:
    return place.parent / f".{place.name}.claim"
