"""Where something lies in an object store, and how the store is reached.

Credentials, endpoint and region come from the environment of the process that asks, and from nowhere else: an address holds
none, so that it can be written down, told and sent to other processes.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

from dlscale.errors import SpecError

_URL = re.compile(r"(s3|gs|az)://([^/?#]*)/*([^?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class Patience(NamedTuple):
    """How long a store is waited for.

    Parameters
    ----------
    request_seconds : int
        A request that is not answered in this time is asked again; a piece of data has to arrive in it.
    silent_seconds : int
        So is one of which nothing comes for so long.
    retry_seconds : int
        How long a request is asked again and again, with growing pauses that are drawn at random (jitter).
    retries, tries : int
        How often the driver asks, and how often that is begun anew.
    """

    request_seconds: int
    silent_seconds: int
    retry_seconds: int
    retries: int
    tries: int


PATIENT = Patience(60, 60, 180, 12, 5)
#: Of the first look at a store, where a person waits for what is wrong.
FIRST_LOOK = Patience(10, 10, 15, 3, 2)
#: Of a server, whose clients wait too.
SERVING = Patience(60, 5, 5, 3, 2)
_usual = PATIENT


def is_object_url(location: object) -> bool:
    """Whether a location is a URL of an object store."""
    return isinstance(location, str) and _URL.match(location) is not None


def has_driver() -> bool:
    """Whether object stores can be reached at all."""
    return find_spec("obstore") is not None


@dataclass(frozen=True, order=True)
class Address:
    """A place in an object store: an object, or what the keys of several begin with.

    Parameters
    ----------
    scheme : "s3", "gs" or "az"
    bucket : str
        On Azure the container.
    key : str
        Without slashes at its ends; empty is the whole bucket.
    """

    scheme: str
    bucket: str
    key: str = ""

    @classmethod
    def of(cls, url: str) -> Address:
        """The address that a URL writes down.

        Raises
        ------
        SpecError
            If it has no bucket, or holds more than a place, such as a password.
        """
        found = _URL.fullmatch(url)
        if found is None:
            raise SpecError(f"{url} must be a URL such as s3://bucket/name (s3, gs or az).")
        scheme, bucket, key, rest = found[1].lower(), found[2], found[3].strip("/"), found[4]
        if "@" in bucket or ":" in bucket or rest:
            raise SpecError(
                f"{url} must hold a bucket and a key and nothing else; credentials and endpoints come from the environment only."
            )
        if not bucket:
            raise SpecError(f"{url} must name a bucket, as in {scheme}://bucket/name.")
        if any(part in ("", ".", "..") for part in key.split("/")) and key:
            raise SpecError(f"{url} must be a key without empty parts, '.' and '..'.")
        return cls(scheme, bucket, key)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, part: str) -> Address:
        return Address(self.scheme, self.bucket, f"{self.key}/{part}".strip("/"))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> Address:
        return Address(self.scheme, self.bucket, self.key.rpartition("/")[0])

    def holds(self, other: Address) -> bool:
        """Whether another address is this one, or lies below it."""
        return f"{other}/".startswith(f"{self}/")


def require_driver(address: Address) -> None:
    """Refuse an address where object stores cannot be reached at all (SpecError)."""
    if not has_driver():
        raise SpecError(f"{address} needs the package obstore, which is not installed; pip install 'dlscale[cloud]'.")


def be(patience: Patience) -> None:
    """Wait for stores so long from now on, in this process."""
    global _usual
    _usual = patience


def usual() -> Patience:
    """How long this process waits for stores."""
    return _usual


def connected(address: Address, patience: Patience | None = None) -> Any:
    """The client of an address's bucket in this process (SpecError without its driver)."""
    require_driver(address)
    return _client(f"{address.scheme}://{address.bucket}", patience or _usual)


@cache
def _client(root: str, patience: Patience) -> Any:
    from obstore.store import from_url

    request, silent = patience.request_seconds, patience.silent_seconds
    options: dict[str, Any] = {"timeout": timedelta(seconds=request), "read_timeout": timedelta(seconds=silent)}
    options["connect_timeout"] = timedelta(seconds=min(10, silent // 2))
    endpoint = next((value for name in _ENDPOINTS if (value := os.environ.get(name))), "") if root.startswith("s3:") else ""
    if endpoint.startswith("http://"):
        options["allow_http"] = True  # it was asked for by name
    return from_url(
        root,
        client_options=options,
        retry_config={
            "max_retries": patience.retries,
            "retry_timeout": timedelta(seconds=patience.retry_seconds),
            "backoff": {"init_backoff": timedelta(seconds=0.1), "max_backoff": timedelta(seconds=10), "base": 2},
        },
    )


def forget_clients() -> None:
    """Reach stores anew, as the environment says by now."""
    _client.cache_clear()
