"""What is asked of an object store: objects in whole and in pieces, lists, conditional writes; and what its answers mean.

The driver asks again where a server fails, is busy or does not answer. What it does not know how to go on with, such as an
answer that breaks off, is asked again here.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import Any, TypeVar

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import StoreError
from dlscale.showing import without_secrets
from dlscale.storage.objects.address import FIRST_LOOK, Address, connected, require_driver, usual
from dlscale.storage.signatures import Stamp

T = TypeVar("T")

#: Bytes of one request: large enough that its latency is small beside it, small enough to arrive in time.
PIECE_BYTES = 16 * 2**20
#: Bytes that one process asks for at the same time, beside where they go to.
IN_FLIGHT_BYTES = 128 * 2**20
#: An answer is taken by so many, which no memory is made for anew.
_ARRIVING_BYTES = 2**18
#: What is read along with a piece that it lies behind, such as a checksum.
_SHORT_BYTES = 2**20
_N_TOGETHER = 16
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.2, 5.0
_SHOWN_CHARACTERS = 200


def first_look(address: Address) -> None:
    """Ask for the first key below an address: whether there are a driver, credentials, an endpoint and a bucket (StoreError)."""
    require_driver(address)
    import obstore

    def look(client: Any) -> None:
        next(iter(obstore.list(client, _below(address), chunk_size=1)), None)

    asked(address, look, first=True)


def asked(address: Address, call: Callable[[Any], T], *, first: bool = False) -> T:
    """What a call on the client of an address's bucket returns.

    Raises
    ------
    FileNotFoundError
        If there is no such object.
    AlreadyExistsError, PreconditionError (of obstore)
        If a condition does not hold.
    StoreError
        If the store cannot be asked, refuses, or does not answer after several tries.
    """
    from obstore.exceptions import AlreadyExistsError, BaseError, GenericError, PreconditionError

    patience = FIRST_LOOK if first else usual()
    deadline = time.monotonic() + patience.retry_seconds
    for k in range(patience.tries):
        try:
            return call(connected(address, patience))
        except FileNotFoundError as error:
            if reason := _refusal(address, str(error)):
                raise StoreError(reason) from None
            raise
        except (AlreadyExistsError, PreconditionError):
            raise
        except (BaseError, TornAnswer) as error:
            reason = _refusal(address, str(error))
            ends = k == patience.tries - 1 or time.monotonic() > deadline
            if reason or ends or not isinstance(error, GenericError | TornAnswer):
                raise StoreError(reason or f"{address} cannot be reached: {_told(address, error)}") from None
            time.sleep(random.uniform(0, min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2**k)))
    raise AssertionError("every try returns or raises")


class TornAnswer(Exception):
    """An answer that has not as many bytes as it must have."""


_ENDPOINT = {"s3": "AWS_ENDPOINT_URL", "gs": "the network", "az": "AZURE_STORAGE_ACCOUNT_NAME"}
_HOST = re.compile(r"Error performing \w+ (https?://[^/\s]+)")


def _told(address: Address, error: BaseException) -> str:
    """The first line of what the driver says; its own words go on for a page, and may hold addresses with signatures."""
    text = without_secrets(str(error).partition("\n")[0].strip())
    host = _HOST.search(text)
    if host and "error sending request" in text:
        return f"no connection to {host[1]}, or no answer in time; look at {_ENDPOINT[address.scheme]} in the environment."
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


_CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_SKIP_SIGNATURE=true for a public bucket)",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS or GOOGLE_SERVICE_ACCOUNT",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY (or another credential of Azure)",
}
_NO_CREDENTIALS = (
    *("169.254.169.254", "/latest/api/token", "metadata.google", "token request"),
    *("Missing AccessKeyId", "Missing SecretAccessKey", "Account must be specified", "invalid_grant"),
)
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist", "InvalidBucketName")
_DENIED = ("403 Forbidden", "401 Unauthorized", "InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied")


def _refusal(address: Address, text: str) -> str:
    """Why asking again would not help, in a sentence; empty where it may."""
    if any(sign in text for sign in _NO_BUCKET):
        what = "container" if address.scheme == "az" else "bucket"
        return f"{address} cannot be used: there is no {what} {address.bucket!r} there; create it, or name another."
    if any(sign in text for sign in _NO_CREDENTIALS):
        return (
            f"{address} needs credentials, and this process has none: set {_CREDENTIALS[address.scheme]} in its environment, "
            "and in that of the workers."
        )
    if any(sign in text for sign in _DENIED):
        return f"{address} cannot be used: the store refused the credentials of the environment; look at them and at their rights."
    return ""


def get(address: Address, span: tuple[int, int] | None = None, *, last: int = 0) -> bytes:
    """The bytes of an object, of a range of it, or its last few (FileNotFoundError where it is not)."""
    import obstore

    def call(client: Any) -> bytes:
        if span is not None:
            return _of_length(obstore.get_range(client, address.key, start=span[0], end=span[1]), span[1] - span[0])
        options: Any = {"range": {"suffix": last}} if last else None
        answer = obstore.get(client, address.key, options=options)
        start, stop = answer.range
        return _of_length(answer.bytes(), stop - start)

    return asked(address, call)


def _of_length(data: Any, n_bytes: int) -> bytes:
    found = bytes(data)
    if len(found) != n_bytes:
        raise TornAnswer(f"an answer has {len(found)} bytes instead of {n_bytes}")
    return found


def fetch(address: Address, spans: Sequence[tuple[int, Array]]) -> None:
    """Read ranges of an object into arrays of bytes: pairs of where a range begins, and where it goes.

    Raises
    ------
    FileNotFoundError
    StoreError
    """
    requests = list(_in_requests(spans))
    if len(requests) == 1:
        _fetch(address, requests[0])
    else:
        list(_fetchers().map(lambda parts: _fetch(address, parts), requests))


def _in_requests(spans: Sequence[tuple[int, Array]]) -> Iterator[list[tuple[int, Array]]]:
    """Ranges as they are asked for: long ones in pieces, at the same time; a short one with the piece that it lies behind."""
    parts: list[tuple[int, Array]] = []
    end = -1
    for start, out in spans:
        for k in range(0, len(out), PIECE_BYTES):
            piece = out[k : k + PIECE_BYTES]
            if parts and (start + k != end or len(piece) > _SHORT_BYTES):
                yield parts
                parts = []
            parts.append((start + k, piece))
            end = start + k + len(piece)
    if parts:
        yield parts


def _fetch(address: Address, parts: Sequence[tuple[int, Array]]) -> None:
    """Read neighbouring ranges of an object by one request, as they arrive."""
    import obstore

    start, n_bytes = parts[0][0], sum(len(out) for _, out in parts)
    options: Any = {"range": (start, start + n_bytes)}

    def call(client: Any) -> None:
        missing = deque(out for _, out in parts)
        for piece in obstore.get(client, address.key, options=options).stream(min_chunk_size=_ARRIVING_BYTES):
            _deal_out(np.frombuffer(piece, np.uint8), missing)
        if missing:
            raise TornAnswer(f"a range lacks {sum(map(len, missing))} bytes of {n_bytes}")

    with in_flight(n_bytes):
        asked(address, call)


def _deal_out(found: Array, missing: deque[Array]) -> None:
    """Put bytes where the next ones are missing."""
    while len(found):
        if not missing:
            raise TornAnswer(f"a range has {len(found)} bytes more than were asked for")
        out = missing.popleft()
        n = min(len(out), len(found))
        out[:n], found = found[:n], found[n:]
        if n < len(out):
            missing.appendleft(out[n:])


def put(address: Address, data: bytes | bytearray | memoryview) -> None:
    """Write an object, whole or not at all, in place of one that is there."""
    import obstore

    with in_flight(len(data)):
        asked(address, lambda client: obstore.put(client, address.key, data, use_multipart=len(data) > 4 * PIECE_BYTES))


def put_new(address: Address, data: bytes) -> bool:
    """Write an object where there is none, as one step; whether what stands there is this one."""
    import obstore
    from obstore.exceptions import AlreadyExistsError

    try:
        asked(address, lambda client: obstore.put(client, address.key, data, mode="create", use_multipart=False))
    except AlreadyExistsError:
        # A request whose answer was lost is asked again, and finds what it wrote itself.
        return get_or_none(address) == data
    return True


def get_or_none(address: Address) -> bytes | None:
    """The bytes of an object; None where it is not."""
    try:
        return get(address)
    except FileNotFoundError:
        return None


def listing(address: Address) -> dict[str, Stamp]:
    """Every object below an address, by its key from there, with size and version."""
    import obstore

    beginning = f"{address.key}/" if address.key else ""

    def call(client: Any) -> dict[str, Stamp]:
        pages = obstore.list(client, _below(address), chunk_size=1000)
        return {entry["path"].removeprefix(beginning): _stamp(entry) for page in pages for entry in page}

    return asked(address, call)


def names(address: Address) -> list[str]:
    """What lies directly below an address, as a folder is listed."""
    import obstore

    def call(client: Any) -> list[str]:
        found = obstore.list_with_delimiter(client, _below(address))
        return [*found["common_prefixes"], *(entry["path"] for entry in found["objects"])]

    return [path.rpartition("/")[2] for path in asked(address, call)]


def objects(address: Address) -> dict[str, Stamp]:
    """The objects directly below an address, with size and version."""
    import obstore

    found = asked(address, lambda client: obstore.list_with_delimiter(client, _below(address))["objects"])
    return {entry["path"].rpartition("/")[2]: _stamp(entry) for entry in found}


def exists(address: Address) -> bool:
    """Whether there is an object of this name."""
    try:
        stamp_of(address)
    except FileNotFoundError:
        return False
    return True


def stamp_of(address: Address) -> Stamp:
    """Size and version of an object (FileNotFoundError where it is not)."""
    import obstore

    return _stamp(asked(address, lambda client: obstore.head(client, address.key)))


def _stamp(entry: Any) -> Stamp:
    time_ns = int(entry["last_modified"].timestamp() * 1e9)
    return Stamp(int(entry["size"]), str(entry["e_tag"] or entry["version"] or time_ns), time_ns)


def _below(address: Address) -> str | None:
    return address.key or None


def copy(pairs: Iterable[tuple[Address, Address]]) -> None:
    """Copy objects within their bucket; nothing of them passes this machine."""
    import obstore

    def one(pair: tuple[Address, Address]) -> None:
        source, target = pair
        asked(source, lambda client: obstore.copy(client, source.key, target.key))

    list(helpers().map(one, pairs))


def remove(address: Address, *, first: Sequence[str] = ()) -> None:
    """Remove every object below an address, and the one of that name; those of some keys before all others."""
    import obstore

    keys = sorted(listing(address).keys() - set(first))
    for group in ([*first], keys):
        paths = [(address / key).key for key in group]
        for k in range(0, len(paths), 1000):
            _remove_all(address, obstore.delete, paths[k : k + 1000])


def remove_object(address: Address) -> None:
    """Remove one object, if it is there."""
    import obstore

    _remove_all(address, obstore.delete, [address.key])


def _remove_all(address: Address, delete: Any, paths: list[str]) -> None:
    try:
        asked(address, lambda client: delete(client, paths))
    except FileNotFoundError:
        # Some stores tell of the first that is gone already, and leave the others.
        if len(paths) > 1:
            for path in paths:
                _remove_all(address, delete, [path])


@cache
def _fetchers() -> ThreadPoolExecutor:
    """Threads that wait for pieces: others than those that wait for all pieces of an object."""
    return ThreadPoolExecutor(_N_TOGETHER, thread_name_prefix="dlscale-pieces")


@cache
def helpers() -> ThreadPoolExecutor:
    """Threads that wait for answers."""
    return ThreadPoolExecutor(_N_TOGETHER, thread_name_prefix="dlscale-objects")


_room, _changed = [IN_FLIGHT_BYTES], threading.Condition()


@contextmanager
def in_flight(n_bytes: int) -> Iterator[None]:
    """Wait until so many bytes may be under way in this process, and let them be for the body."""
    n_bytes = min(n_bytes, IN_FLIGHT_BYTES)
    with _changed:
        _changed.wait_for(lambda: _room[0] >= n_bytes)
        _room[0] -= n_bytes
    try:
        yield
    finally:
        with _changed:
            _room[0] += n_bytes
            _changed.notify_all()
