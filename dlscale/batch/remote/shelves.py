"""Small files beside the jobs of a workspace in a bucket."""

from __future__ import annotations

import time
from pathlib import Path

from dlscale.batch.jobs.folder import Claim
from dlscale.batch.jobs.shelf import Shelf
from dlscale.batch.remote import claims
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.requests import exists, get, objects, put, remove_object


class BucketShelf(Shelf):
    """Objects as small files.

    Parameters
    ----------
    folder : Path
        In the mirror, with the locks of this machine.
    place : Address
        In the bucket.
    """

    def __init__(self, folder: Path, place: Address) -> None:
        super().__init__(folder)
        self.place = place

    def names(self, begins: str, ends: str) -> list[str]:
        found = {name: stamp for name, stamp in objects(self.place).items() if name.startswith(begins) and name.endswith(ends)}
        return sorted(found, key=lambda name: found[name].time_ns, reverse=True)

    def has(self, name: str) -> bool:
        return exists(self.place / name)

    def read(self, name: str) -> bytes:
        return get(self.place / name)

    def write(self, name: str, data: bytes) -> None:
        put(self.place / name, data)

    def remove(self, name: str) -> None:
        super().remove(name)
        remove_object(self.place / name)

    def forget_older(self, seconds: float) -> None:
        super().forget_older(seconds)
        for name, stamp in objects(self.place).items():
            if time.time() - stamp.time_ns / 1e9 > seconds:
                remove_object(self.place / name)

    def take(self, name: str) -> Claim | None:
        return claims.take_with(super().take(name), self.place / name)

    def is_taken(self, name: str) -> bool:
        return super().is_taken(name) or claims.is_taken(self.place / name)
