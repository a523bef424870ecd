"""That one process of all machines works on a job: an object that names it, and that it writes anew every few seconds.

The object is made where there is none, and replaced where it is the one that was read; a store does either as one step. It is taken
over when its process is known to be gone, or when it stayed the same for `LEASE_SECONDS` in which the store answered: a store
that does not answer says nothing of anybody. Who was stopped for longer than that finds out before it writes again.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from contextlib import suppress
from types import TracebackType

from dlscale.batch.jobs.folder import Claim
from dlscale.batch.jobs.states import LOST_SECONDS
from dlscale.errors import StoreError
from dlscale.storage.files.locks import BEAT_SECONDS, LEASE_SECONDS, Lock, LockLostError
from dlscale.storage.files.processes import Owner
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.conditions import Found, look, replace, write_new
from dlscale.storage.objects.requests import remove_object

_POLL_SECONDS = 2.0
#: Of the claims that this process has.
_tokens: set[str] = set()
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # which goes on while the machine sleeps


class BucketClaim:
    """The claim of this process on a job, until `release` or its end. `take` makes one.

    Parameters
    ----------
    place : Address
        Of the object.
    lock : Lock
        Of this machine's mirror, which is held as long.

    Attributes
    ----------
    answers : bool
        Whether the store answered when `check` asked it last; where it did not for minutes, it is not waited for as long again.
    """

    note = ""

    def __init__(self, place: Address, lock: Lock) -> None:
        self.place, self._local = place, lock
        self._token, self._count, self._known = uuid.uuid4().hex, 0, 0.0
        self._tag: dict[str, str] = {}
        self._lost, self.answers = False, True
        self._writing, self._ended = threading.Lock(), threading.Event()
        self._beat = threading.Thread(target=self._go_on, name="claim", daemon=True)

    def check(self) -> None:
        """Make sure that the claim is this process's still.

        Raises
        ------
        LockLostError
        StoreError
            If the store does not say.
        """
        self._local.check()
        # What was written so lately nobody has seen unchanged for long enough.
        if not self._lost and _now() - self._known > LEASE_SECONDS / 2:
            patient, self.answers = self.answers, False
            self._renew(soon=not patient)
            self.answers = True
        if self._lost:
            raise LockLostError(
                f"{self.place} was taken over by another process while this one did not run or had no connection; it stops here, "
                "and the other one goes on."
            )

    def release(self, *, remove: bool = False) -> None:
        """Give the claim back, at most once; the lock file of this machine too where ``remove`` says that nobody else needs it."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._beat.join()
        with suppress(StoreError):  # it is then taken over after a while
            self._renew()
            if not self._lost:
                remove_object(self.place)
        _tokens.discard(self._token)
        self._local.release(remove=remove)

    def __enter__(self) -> BucketClaim:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()

    def write(self, over: Found | None) -> bool:
        """Write it where there is none, or over one that was found; whether that was possible."""
        began, data = _now(), self._data()
        tag = write_new(self.place, data) if over is None else replace(self.place, data, over.tag)
        if tag is None:
            return False
        self._tag, self._known = dict(tag), began
        _tokens.add(self._token)
        self._beat.start()
        return True

    def _go_on(self) -> None:
        while not self._ended.wait(BEAT_SECONDS) and not self._lost:
            with suppress(StoreError):
                self._renew()

    def _renew(self, *, soon: bool = True) -> None:
        with self._writing:
            began = _now()
            tag = replace(self.place, self._data(), self._tag, own=self._is_own, soon=soon)
            if tag is None:
                self._lost = True
            else:
                self._tag, self._known = dict(tag), began

    def _is_own(self, data: bytes) -> bool:
        return self._token.encode() in data

    def _data(self) -> bytes:
        self._count += 1
        return json.dumps({"token": self._token, "count": self._count, **Owner.here()._asdict()}).encode()


def take(place: Address, lock: Lock) -> BucketClaim | None:
    """The claim on a job, unless another process has it; waits while that may be gone.

    Parameters
    ----------
    place : Address
        Of the claim's object.
    lock : Lock
        That this process has in the mirror.

    Raises
    ------
    StoreError
    """
    claim = BucketClaim(place, lock)
    while True:
        found = look(place)
        if found is not None and not _is_left(place, found):
            return None
        if claim.write(found):
            return claim
        if found is not None:
            return None  # somebody was quicker


def take_with(lock: Claim | None, place: Address) -> BucketClaim | None:
    """As `take`, with the lock of this machine's mirror if this process has it; it is let go where the claim is another's."""
    if lock is None:
        return None
    assert isinstance(lock, Lock)
    try:
        claim = take(place, lock)
    except BaseException:
        lock.release()
        raise
    if claim is None:
        lock.release()
    return claim


def is_taken(place: Address) -> bool:
    """Whether a process seems to have the claim, as far as one look and the clocks of this machine and of the store tell."""
    found = look(place)
    if found is None:
        return False
    lives = _lives(found)
    return abs(time.time() - found.written) < LOST_SECONDS if lives is None else lives


def _is_left(place: Address, found: Found) -> bool:
    """Whether nobody has a claim any more; one of another machine is watched."""
    lives = _lives(found)
    if lives is not None:
        return not lives
    same, last = 0.0, _now()
    while same < LEASE_SECONDS:
        time.sleep(_POLL_SECONDS)
        again = look(place)
        if again is None or again.tag != found.tag:
            return again is None
        now = _now()
        same += min(now - last, 2 * _POLL_SECONDS)
        last = now
    return True


def _lives(found: Found) -> bool | None:
    """Whether the process that has a claim is there; None of one that cannot be looked up from here."""
    with suppress(ValueError, KeyError, TypeError):
        said = json.loads(found.data)
        owner = Owner(str(said["host"]), int(said["pid"]), float(said["started"]), str(said["machine"]))
        if owner == Owner.here():
            return said["token"] in _tokens
        return owner.is_alive if owner.is_near else None
    return None


def _now() -> float:
    return time.clock_gettime(_CLOCK)
