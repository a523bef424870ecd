"""Where a Zarr array lies: a folder, a zip file, or what is behind a URL; and a look into it that finds every chunk.

Zarr reads a chunk that is not there as its fill value, also one that was there when the job was checked. `refusing` gives an
array that raises an error instead.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zarr.storage import LocalStore, WrapperStore

from dlscale.errors import InputError, MissingChunkError, SpecError, StoreError
from dlscale.storage.objects.address import Address, has_driver, is_object_url
from dlscale.storage.objects.requests import first_look, names
from dlscale.storage.objects.zarr_store import BucketStore
from dlscale.storage.signatures import Stamp, local_stamps

if TYPE_CHECKING:
    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype

_METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")


class CompleteStore(WrapperStore[Any]):
    """A store in which an absent chunk is an error that names it."""

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        value = await self._store.get(key, prototype, byte_range)
        if value is None and not key.endswith(_METADATA):
            raise MissingChunkError(f"Chunk {key} of {self._store} is missing; restore it before running.")
        return value  # type: ignore[no-any-return]


class PlainStore(LocalStore):
    """A folder in which a pipe, which is never read to its end, or a device, which has none, is an error."""

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None) -> Buffer | None:
        with suppress(OSError):
            mode = os.stat(self.root / key).st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise InputError(f"{self.root / key} is no plain file.")
        return await super().get(key, prototype, byte_range)


def place_of(uri: str) -> Any:
    """What zarr-python opens for a path or URL."""
    path = uri.removeprefix("file://")
    if is_object_url(uri) and has_driver():
        return BucketStore(Address.of(uri))
    return uri if "://" in path else PlainStore(path, read_only=True)


def refusing(array: Any) -> Any:
    """The same array, in which an absent chunk is an error."""
    import zarr
    from zarr.storage import StorePath

    place = array.store_path
    if isinstance(place.store, CompleteStore):
        return array
    inner = array.async_array
    return zarr.Array(type(inner)(inner.metadata, StorePath(CompleteStore(place.store), place.path), inner.config))


def open_array(uri: str) -> Any:
    """Open the Zarr array at a path, in a zip file, or at a URL, for reading.

    Raises
    ------
    InputError
        If there is none; names the arrays of a group.
    """
    node = open_node(uri)
    if is_group(node):
        raise no_matrix(node, uri, [])
    return node


def is_group(node: Any) -> bool:
    """Whether what was opened is a group, and no array."""
    import zarr

    return isinstance(node, zarr.Group)


def no_matrix(group: Any, uri: str, others: list[str]) -> InputError:
    """The error that a group is no matrix; names its arrays, and what else in it is one."""
    names = [*(f"{uri}/{name}" for name, _ in sorted(group.arrays())), *others]
    return InputError(f"{uri} is a Zarr group, and a matrix is one array of it: {', '.join(names) or 'none'}.")


def open_node(uri: str) -> Any:
    """Open the Zarr array or group at a path, in a zip file, or at a URL, for reading (InputError if there is none)."""
    import zarr

    archive = None if "://" in uri else _archive(Path(uri))
    if "://" not in uri and archive is None and not Path(uri).exists():
        raise InputError(f"There is no matrix at {uri}: no such file or directory.")
    if "://" not in uri and archive is None and Path(uri).is_file():
        raise InputError(f"{uri} is a file, and a matrix is a Zarr array; convert it with `dlscale import {uri} NAME.zarr`.")
    try:
        if archive is None:
            node = zarr.open(place_of(uri), mode="r")
        else:
            inside = Path(uri).relative_to(archive).as_posix()
            node = zarr.open(zarr.storage.ZipStore(archive, mode="r"), path="" if inside == "." else inside, mode="r")
        if isinstance(node, zarr.Group):
            sorted(node.members())  # whose descriptions may be damaged
    except ImportError as error:
        advice = " (or better: pip install 'dlscale[cloud]')" if is_object_url(uri) else ""
        raise InputError(f"{uri} needs a package that is not installed: {error}{advice}") from error
    except (SpecError, StoreError):
        raise
    except Exception as error:  # whatever a file system, an archive or damaged metadata end in
        raise InputError(f"There is no Zarr array at {uri} ({type(error).__name__}: {error}).") from error
    return node if isinstance(node, zarr.Group) else understood(node, uri)


def may_hold(uri: str) -> bool:
    """Whether something may lie below a path or URL: of an object store as one look tells, before many are taken in vain."""
    return not (is_object_url(uri) and has_driver()) or bool(names(Address.of(uri)))


def look_first(uri: str) -> None:
    """Find out in seconds, where somebody waits, whether an object store can be asked for what is at a URL (StoreError)."""
    if is_object_url(uri) and has_driver():
        first_look(Address.of(uri))


def understood(array: Any, uri: str) -> Any:
    """The same array, whose description makes sense where zarr-python does not look (InputError)."""
    if not isinstance(array.metadata.attributes, Mapping):
        raise InputError(f"The description of {uri} is damaged: its attributes are no mapping.")
    if any(step < 1 for step in (*array.chunks, *(array.shards or ()))):
        raise InputError(f"The description of {uri} is damaged: its chunks are {array.chunks}.")
    return array


def _archive(path: Path) -> Path | None:
    """The zip file that a path leads to or into."""
    return next((place for place in (path, *path.parents) if place.suffix.lower() == ".zip" and place.is_file()), None)


def store_of(array: Any) -> Any:
    """The store that holds an array."""
    store = array.store_path.store
    return store._store if isinstance(store, CompleteStore) else store


def plain_root(array: Any) -> Path | Address | None:
    """The folder of an array whose chunks are read without zarr-python: in a local store, or in an object store."""
    return bucket_of(array) or local_root(array)


def bucket_of(array: Any) -> Address | None:
    """Where an array lies in an object store, if it lies in one."""
    store = store_of(array)
    return store.address / array.store_path.path if isinstance(store, BucketStore) else None


def local_root(array: Any) -> Path | None:
    """The folder of an array in a local store."""
    store = store_of(array)
    return Path(store.root) / array.store_path.path if isinstance(store, LocalStore) else None


def wait_until_idle(seconds: float = 5.0) -> None:
    """Wait for what an interrupted call has left Zarr's own thread to write."""
    from zarr.core.sync import sync

    async def others() -> None:
        if running := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(running)

    with suppress(TimeoutError):
        sync(others(), timeout=seconds)


def stamps(array: Any) -> dict[str, Stamp]:
    """A stamp for each file of an array, by its key from there; of a remote store, from one listing."""
    from zarr.core.sync import sync

    root = local_root(array)
    if root is not None:
        return local_stamps(root)
    path, store = array.store_path.path, store_of(array)
    if isinstance(store, BucketStore):
        return store.stamps(path)
    found: dict[str, Stamp] = sync(_remote_stamps(store, f"{path}/" if path else ""))
    return found


async def _remote_stamps(store: Any, prefix: str) -> dict[str, Stamp]:
    from zarr.storage import FsspecStore, ZipStore

    if isinstance(store, FsspecStore):
        store.fs.invalidate_cache()  # clients of object stores keep what they have listed once
        listed = await store.fs._find(f"{store.path}/{prefix}".rstrip("/"), detail=True)
        infos = {name.removeprefix(f"{store.path}/"): info for name, info in listed.items()}
        # Listings of web servers tell no sizes.
        infos = {key: info if info.get("size") is not None else await store.fs._info(info["name"]) for key, info in infos.items()}
        return {key.removeprefix(prefix): Stamp.told(info) for key, info in infos.items()}
    version = Stamp.of(store.path.stat()) if isinstance(store, ZipStore) else Stamp(0, "")
    keys = [key async for key in store.list_prefix(prefix)]
    return {key.removeprefix(prefix): version._replace(size=await store.getsize(key)) for key in keys}
