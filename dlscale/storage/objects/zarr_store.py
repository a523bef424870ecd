"""Object stores as zarr-python reads them, with this package's clients, tries and errors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from zarr.abc.store import OffsetByteRequest, RangeByteRequest, SuffixByteRequest
from zarr.storage import ObjectStore

from dlscale.storage.objects.address import Address, connected
from dlscale.storage.objects.requests import exists, get, listing, names
from dlscale.storage.signatures import Stamp

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from zarr.abc.store import ByteRequest
    from zarr.core.buffer import Buffer, BufferPrototype


class BucketStore(ObjectStore[Any]):
    """What lies below an address, for reading."""

    def __init__(self, address: Address) -> None:
        super().__init__(connected(address), read_only=True)
        self.address = address

    def __str__(self) -> str:
        return str(self.address)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BucketStore) and self.address == other.address

    def __reduce__(self) -> tuple[type[BucketStore], tuple[Address]]:
        return BucketStore, (self.address,)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        return await asyncio.to_thread(self._get, key, prototype, byte_range)

    def _get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None) -> Buffer | None:
        place = self.address / key
        try:
            if isinstance(byte_range, RangeByteRequest):
                data = get(place, (byte_range.start, byte_range.end))
            elif isinstance(byte_range, SuffixByteRequest):
                data = get(place, last=byte_range.suffix)
            else:
                data = get(place)
        except FileNotFoundError:
            return None
        if isinstance(byte_range, OffsetByteRequest):
            data = data[byte_range.offset :]
        return prototype.buffer.from_bytes(data)

    async def exists(self, key: str) -> bool:
        return await asyncio.to_thread(exists, self.address / key)

    def list_prefix(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        return self._keys(prefix)

    def list_dir(self, prefix: str) -> AsyncIterator[str]:  # type: ignore[override]
        return self._names(prefix)

    async def _keys(self, prefix: str) -> AsyncIterator[str]:
        for key in await asyncio.to_thread(listing, self.address):
            if key.startswith(prefix):
                yield key

    async def _names(self, prefix: str) -> AsyncIterator[str]:
        for name in await asyncio.to_thread(names, self.address / prefix.strip("/")):
            yield name

    def stamps(self, prefix: str) -> dict[str, Stamp]:
        """A stamp for each object below a prefix, by its key from there, from one listing."""
        return listing(self.address / prefix if prefix else self.address)
