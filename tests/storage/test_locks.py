"""One process has a lock, whatever the file system knows of locks, and whoever else writes in the folder."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from dlscale.errors import SpecError
from dlscale.storage.files import locks
from dlscale.storage.files.locks import LockLostError, held, is_held, take
from dlscale.storage.files.processes import Owner

#: A file system that knows no flock, such as Lustre mounted without it.
NO_FLOCK = """
import errno, fcntl
def flock(descriptor, operation):
    raise OSError(errno.ENOSYS, "Function not implemented")
fcntl.flock = flock
"""
HOLDER = """
import sys, time
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from dlscale.storage.files import locks
lock = locks.take(Path(sys.argv[1]))
print("got" if lock else "held", flush=True)
for line in sys.stdin:
    try:
        lock.check()
        print("mine", flush=True)
    except locks.LockLostError as error:
        print("lost", error, flush=True)
"""


@pytest.fixture(params=["flock", "lease"])
def kept(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """How locks are kept, in this process and in those that it starts."""
    if request.param == "lease":
        (tmp_path / "sitecustomize.py").write_text(NO_FLOCK)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        exec(NO_FLOCK, {})
        monkeypatch.setattr(locks.fcntl, "flock", locks.fcntl.flock)
    return str(request.param)


@pytest.fixture(autouse=True)
def _flock_comes_back() -> Iterator[None]:
    real = locks.fcntl.flock
    yield
    locks.fcntl.flock = real


@contextmanager
def holder(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has tried to take a lock."""
    root = str(Path(locks.__file__).parents[2])
    command = [sys.executable, "-c", HOLDER, str(path), root]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return said(process)


def freeze(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGSTOP)
    while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
        time.sleep(0.01)


def test_one_process_has_a_lock_until_it_is_killed(kept: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with holder(path) as other:
        assert said(other) == "got"
        assert is_held(path)
        assert take(path) is None
        with holder(path) as third:
            assert said(third) == "held"
        assert ask(other) == "mine"
        freeze(other)  # and not gone
        assert take(path) is None
        other.kill()
        other.wait()
    assert not is_held(path)
    lock = take(path)
    assert lock is not None
    assert ("flock" in lock.note) == (kept == "lease")
    assert take(path) is None
    lock.release(remove=True)
    assert [entry.name for entry in tmp_path.iterdir() if "lock" in entry.name] == []


def test_who_asks_and_is_held_up_meanwhile_is_no_owner(tmp_path: Path) -> None:
    (tmp_path / "lock").touch()
    with open(tmp_path / "lock") as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)
        later = threading.Timer(0.3, fcntl.flock, (asking, fcntl.LOCK_UN))
        later.start()
        lock = take(tmp_path / "lock")
        later.join()
        assert lock is not None
        lock.check()
        assert take(tmp_path / "lock") is None
        lock.release()


def test_two_threads_of_a_process_exclude_each_other(kept: str, tmp_path: Path) -> None:
    with held(tmp_path / "lock"):
        assert take(tmp_path / "lock") is None
    with held(tmp_path / "lock"):
        assert is_held(tmp_path / "lock")


def test_a_frozen_owner_whose_lease_was_taken_over_stops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen from another machine, which can look up no process and waits for the lease to age."""
    (tmp_path / "sitecustomize.py").write_text(NO_FLOCK)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    exec(NO_FLOCK, {})
    monkeypatch.setattr("dlscale.storage.files.processes.machine", lambda: "another machine")
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    path = tmp_path / "lock"
    with holder(path) as other:
        assert said(other) == "got"
        assert take(path) is None
        freeze(other)
        (lease,) = tmp_path.glob("*.lease")
        os.utime(lease, (time.time() - 100,) * 2)
        lock = take(path)
        assert lock is not None
        lock.check()
        other.send_signal(signal.SIGCONT)
        answer = ask(other)
        assert answer.startswith("lost")
        assert "taken over by another process" in answer
    lock.release()


def test_a_lease_that_is_touched_is_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the clock was set back, so that it looks old."""
    exec(NO_FLOCK, {})
    monkeypatch.setattr(locks, "BEAT_SECONDS", 0.1)
    lock = take(tmp_path / "lock")
    assert lock is not None
    (lease,) = tmp_path.glob("*.lease")
    record = json.loads(lease.read_text())
    lease.write_text(json.dumps(record | {"machine": "another"}))
    monkeypatch.setattr(locks, "age_of", lambda path: 3600.0)

    def until_touched(_: float) -> None:
        """The time in which a lease is touched, however late the thread that does it."""
        before, deadline = lease.stat().st_mtime_ns, time.monotonic() + 60
        while lease.stat().st_mtime_ns == before and time.monotonic() < deadline:
            time.sleep(0.01)

    monkeypatch.setattr(locks, "time", SimpleNamespace(sleep=until_touched, monotonic=time.monotonic))
    assert take(tmp_path / "lock") is None
    lock.release()
    assert not lease.exists()


@pytest.mark.parametrize("what", ["link", "dangling link", "folder", "fifo"])
def test_what_somebody_put_in_the_place_of_a_lock_is_left_alone(what: str, tmp_path: Path) -> None:
    precious, path = tmp_path / "precious.txt", tmp_path / "lock"
    precious.write_text("years of work")
    {
        "link": lambda: path.symlink_to(precious),
        "dangling link": lambda: path.symlink_to(tmp_path / "absent"),
        "folder": path.mkdir,
        "fifo": lambda: os.mkfifo(path),
    }[what]()
    with pytest.raises(SpecError, match=str(path)):
        take(path)
    assert precious.read_text() == "years of work"
    assert not (tmp_path / "absent").exists()


def test_a_lock_file_is_not_truncated_and_is_private(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("not ours")
    lock = take(tmp_path / "lock")
    assert lock is not None
    lock.release()
    assert (tmp_path / "lock").read_text() == "not ours"
    with held(tmp_path / "new") as new:
        assert new.path.stat().st_mode & 0o777 == 0o600
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    before = os.umask(0o007)
    try:
        with held(shared / "new") as new:
            assert new.path.stat().st_mode & 0o777 == 0o660
    finally:
        os.umask(before)


def test_a_folder_that_is_moved_away_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    with held(tmp_path / "job" / "lock") as lock:
        lock.check()
        (tmp_path / "job").rename(tmp_path / "elsewhere")
        with pytest.raises(LockLostError, match="removed or moved"):
            lock.check()


def test_a_process_is_known_by_its_start(tmp_path: Path) -> None:
    owner = Owner.here()
    assert owner.is_near
    assert owner.is_alive
    assert not owner._replace(started=owner.started - 100).is_alive
    assert not owner._replace(machine="another boot").is_near
    with subprocess.Popen([sys.executable, "-c", "pass"]) as process:
        while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:  # it has ended, and nobody has waited for it
            time.sleep(0.01)
        assert not owner._replace(pid=process.pid).is_alive


def test_a_file_with_content_under_the_name_of_a_lock_is_not_removed(tmp_path: Path) -> None:
    place = tmp_path / ".x.lock"
    place.write_text("somebody's")
    lock = take(place)
    assert lock is not None
    lock.release(remove=True)
    assert place.read_text() == "somebody's"
