"""Objects that are written only where they are still as the writer knew them, as one step of the store."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from dlscale.errors import SpecError, StoreError
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.requests import asked, remove_object

#: By what a store tells one content of an object from another: its tag, or its version.
Tag = Mapping[str, str]

#: So many requests of this process that come late are overwritten.
_N_TRIES = 10


class Found(NamedTuple):
    """An object as it was at one moment; ``written`` is Unix time by the store's clock."""

    data: bytes
    tag: Tag
    written: float


def look(address: Address, *, soon: bool = False) -> Found | None:
    """An object; None where it is not.

    Parameters
    ----------
    address : Address
    soon : bool
        Give up after some seconds, rather than minutes, where the store does not answer (StoreError).
    """
    import obstore

    def call(client: Any) -> Found:
        answer = obstore.get(client, address.key)
        return Found(bytes(answer.bytes()), _tag(answer.meta), answer.meta["last_modified"].timestamp())

    try:
        return asked(address, call, first=soon)
    except FileNotFoundError:
        return None


def write_new(address: Address, data: bytes, *, soon: bool = False) -> Tag | None:
    """Write an object where there is none; its tag, or None where there is one."""
    return _write(address, data, "create", soon=soon)


def replace(
    address: Address, data: bytes, tag: Tag, *, own: Callable[[bytes], bool] = lambda _: False, soon: bool = False
) -> Tag | None:
    """Write an object in place of the one of a tag; the new tag, or None where that one is not there any more.

    Parameters
    ----------
    address : Address
    data : bytes
        Unlike that of any other writer: a request whose answer was lost is asked again, and knows by it what it wrote.
    tag : Tag
    own : callable
        Whether an object is of this writer: a store may carry out a request long after its writer has given up on it.
    soon : bool
        See `look`.
    """
    for _ in range(_N_TRIES):
        if (written := _write(address, data, dict(tag), soon=soon)) is not None:
            return written
        there = look(address, soon=soon)
        if there is None or not own(there.data):
            return None
        tag = there.tag
    raise StoreError(f"{address} is written again and again by requests that this process has given up on.")


def write(address: Address, data: bytes) -> Tag:
    """Write an object, whatever is there; its tag."""
    tag = _write(address, data, "overwrite", soon=False)
    assert tag is not None, "nothing was asked for"
    return tag


def _write(address: Address, data: bytes, mode: Any, *, soon: bool) -> Tag | None:
    import obstore
    from obstore.exceptions import AlreadyExistsError, PreconditionError

    try:
        return _tag(
            asked(address, lambda client: obstore.put(client, address.key, data, mode=mode, use_multipart=False), first=soon)
        )
    except (AlreadyExistsError, PreconditionError):
        there = look(address, soon=soon)
        return there.tag if there is not None and there.data == data else None


def require_conditions(folder: Address) -> None:
    """Refuse a store that cannot be written to, or that writes whatever the condition (SpecError, StoreError)."""
    probe = folder / f".{uuid.uuid4().hex}.probe"
    tag = write_new(probe, b"1", soon=True)
    try:
        second = None if tag is None else replace(probe, b"2", tag, soon=True)
        obeyed = second is not None and write_new(probe, b"3") is None and replace(probe, b"4", tag or {}) is None
    finally:
        remove_object(probe)
    if not obeyed:
        raise SpecError(
            f"{folder}: this store writes objects whatever the condition (If-None-Match, If-Match), so that two machines could "
            "run one job; keep the workspace in another store, or on a file system."
        )


def _tag(said: Any) -> Tag:
    return {name: said[name] for name in ("e_tag", "version") if said.get(name)}
