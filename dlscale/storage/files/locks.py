"""One policy of locks between processes, of one machine or of several that share a file system.

A lock is a file of its own, opened without following links, never truncated, readable by its owner alone unless its folder
is shared. Where the file system knows ``flock`` the kernel keeps the lock and frees it with the process. Where it does not
(Lustre without ``-o flock``, NFS without a lock daemon) a lease is a file beside it that names its owner and is touched
every few seconds; who wants it takes it over when the owner's process is gone, or has not touched it for long.

A process that was frozen, and whose lease was taken over meanwhile, finds out with `Lock.check` before it writes again.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dlscale.errors import DlscaleError, SpecError
from dlscale.storage.files.atomic import hidden, read_plain
from dlscale.storage.files.processes import Owner

#: A lease is touched so often, and is taken over when it was not for so long.
BEAT_SECONDS, LEASE_SECONDS = 5.0, 30.0

_POLL_SECONDS = 0.1
#: Whoever finds that the file was removed, and is no lock any more, has it for a moment.
_N_TRIES, _MOMENT_SECONDS = 4, 0.01
#: Whoever only asks whether a lock is held shares it for a moment, which is long where the processor is busy.
_ASKING_SECONDS = 30.0
_NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL)


class LockLostError(DlscaleError):
    """The lock, or the folder around it, was removed or taken over while it was held."""


class Lock:
    """A lock that this process has, until `release` or its end. `take` and `take_waiting` make one.

    Attributes
    ----------
    path : Path
    note : str
        What is to be said about how it is kept; empty where the kernel keeps it.
    """

    def __init__(self, path: Path, descriptor: int, lease: Lease | None) -> None:
        self.path, self._descriptor, self._lease = path, descriptor, lease
        self.note = "" if lease is None else _note(path)

    def check(self) -> None:
        """Make sure that the lock is this process's still.

        Raises
        ------
        LockLostError
        """
        try:
            same = os.path.samestat(os.fstat(self._descriptor), os.lstat(self.path))
        except FileNotFoundError:
            raise LockLostError(f"{self.path.parent} was removed or moved while it was in use.") from None
        except OSError:
            return  # a disk that fails now and then is not a lost lock
        if not same or (self._lease is not None and not self._lease.is_own):
            raise LockLostError(
                f"{self.path} was taken over by another process while this one did not run (it was stopped, or its machine slept); "
                "it stops here, and the other one goes on."
            )

    def release(self, *, remove: bool = False) -> None:
        """Give the lock back, at most once; its file too where ``remove`` says that nobody else needs it."""
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor < 0:
            return
        if remove:
            with suppress(OSError):
                found = os.fstat(descriptor)
                if found.st_size == 0 and os.path.samestat(found, os.lstat(self.path)):  # one with content was somebody's
                    self.path.unlink()
        if self._lease is not None:
            self._lease.end()
        os.close(descriptor)

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()


class Lease:
    """A file that names who has a lock, where the kernel keeps none.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = uuid.uuid4().hex
        self._ended = threading.Event()
        self._beat = threading.Thread(target=self._touch, name="lease", daemon=True)

    @classmethod
    def take(cls, path: Path) -> Lease | None:
        """The lease, unless somebody has it."""
        lease = cls(path)
        for _ in range(2):
            if lease._create():
                lease._beat.start()
                return lease
            if not _is_stale(path):
                return None
            _set_aside(path)
        return None

    @property
    def is_own(self) -> bool:
        return _read_lease(self.path).get("token") == self.token

    def end(self) -> None:
        self._ended.set()
        if self.is_own:
            self.path.unlink(missing_ok=True)

    def _create(self) -> bool:
        """Make the file, whole or not at all: a link to a whole one cannot replace another's."""
        draft = hidden(self.path, f".{self.token}")
        draft.write_text(json.dumps({"token": self.token, **Owner.here()._asdict()}), encoding="utf-8")
        try:
            os.link(draft, self.path)
        except FileExistsError:
            return False
        except OSError:  # a file system without links
            try:
                with open(self.path, "x", encoding="utf-8") as file:
                    file.write(draft.read_text(encoding="utf-8"))
            except FileExistsError:
                return False
        finally:
            draft.unlink()
        return True

    def _touch(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            with suppress(OSError):
                if self.is_own:
                    os.utime(self.path)


def take(path: Path) -> Lock | None:
    """Take a lock, or None if another process has it.

    Parameters
    ----------
    path : Path
        Of the lock's own file, made where it is absent; its folder must be there.

    Raises
    ------
    SpecError
        If something else stands there, such as a link.
    OSError
        If it cannot be opened.
    """
    while True:
        descriptor = _open(path, os.O_RDWR | os.O_CREAT)
        try:
            taken, lease = _lock(descriptor, path)
            if not taken:
                os.close(descriptor)
                return None
            if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                return Lock(path, descriptor, lease)
            if lease is not None:
                lease.end()
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # whoever had it before has removed it


def take_waiting(path: Path) -> Lock:
    """As `take`, when the lock is free."""
    while (lock := take(path)) is None:
        time.sleep(_POLL_SECONDS)
    return lock


@contextmanager
def held(path: Path) -> Iterator[Lock]:
    """Have a lock for the body, when it is free."""
    with take_waiting(path) as lock:
        yield lock


def is_held(path: Path) -> bool:
    """Whether a process has the lock; nothing is made or changed, so it can be asked on a read-only file system."""
    try:
        descriptor = _open(path, os.O_RDONLY)
    except (OSError, SpecError):
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        lease = _lease_of(path)
        return lease.exists() and not _is_stale(lease, quick=True)
    finally:
        os.close(descriptor)
    return False


def _open(path: Path, flags: int) -> int:
    shared = path.parent.stat().st_mode
    mode = 0o660 if shared & stat.S_ISGID and shared & stat.S_IWGRP else 0o600
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO) or path.is_symlink():
            raise SpecError(
                f"{path} must be a lock file of dlscale, and it is a link or a folder that somebody put there; it was left alone. "
                "Remove it, or choose another place."
            ) from error
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SpecError(f"{path} must be a lock file of dlscale, got something else; remove it, or choose another place.")
    return descriptor


def _lock(descriptor: int, path: Path) -> tuple[bool, Lease | None]:
    """Whether the lock was free, and the lease where the kernel cannot keep it."""
    n_tries, deadline = _N_TRIES, time.monotonic() + _ASKING_SECONDS
    while n_tries:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True, None
        except BlockingIOError:
            n_tries -= _has_owner(descriptor) or time.monotonic() > deadline
            time.sleep(_MOMENT_SECONDS)
        except OSError as error:
            if error.errno not in _NO_FLOCK:
                raise
            lease = Lease.take(_lease_of(path))
            return lease is not None, lease
    return False, None


def _note(path: Path) -> str:
    return (
        f"The file system of {path.parent} has no flock: leases that are touched every {BEAT_SECONDS:.0f} s stand in for locks, "
        f"and one that was not for {LEASE_SECONDS:.0f} s is taken over."
    )


def _has_owner(descriptor: int) -> bool:
    """Whether one has the lock for itself, rather than some who share it since they ask (`is_held`)."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False


def _lease_of(path: Path) -> Path:
    bare = path.with_name(path.name.lstrip(".") or path.name)
    return hidden(bare, ".lease")


def _read_lease(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(read_plain(path))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _is_stale(lease: Path, *, quick: bool = False) -> bool:
    """Whether the owner of a lease is gone; one of another machine is watched for a while by this machine's own clock."""
    record = _read_lease(lease)
    with suppress(TypeError, ValueError):
        owner = Owner(str(record["host"]), int(record["pid"]), float(record["started"]), str(record["machine"]))
        if owner.is_near:
            return not owner.is_alive
    try:
        before = lease.stat().st_mtime_ns
        if age_of(lease) < LEASE_SECONDS:
            return False
        if quick:
            return True
        # A step of the clock makes a lease look old; a live one is touched meanwhile.
        time.sleep(2 * BEAT_SECONDS)
        return lease.stat().st_mtime_ns == before
    except FileNotFoundError:
        return True


def _set_aside(lease: Path) -> None:
    """Remove a stale lease; where another process was quicker, and the lease is a new one, that one is given back."""
    stale = _read_lease(lease).get("token")
    aside = hidden(lease, f".{uuid.uuid4().hex}")
    with suppress(FileNotFoundError):
        os.rename(lease, aside)
        if _read_lease(aside).get("token") != stale:
            with suppress(OSError):
                os.link(aside, lease)
        aside.unlink()


def age_of(path: Path) -> float:
    """Seconds since a file was touched, by the clock of its file system where that can be asked (FileNotFoundError)."""
    import tempfile

    touched = path.stat().st_mtime
    try:
        with tempfile.TemporaryFile(dir=path.parent) as probe:
            probe.write(b"?")
            probe.flush()
            return os.fstat(probe.fileno()).st_mtime - touched
    except OSError:
        return time.time() - touched
