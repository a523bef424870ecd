"""Workers of this machine that end before their job does: what took each, and how much memory it had at most."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from distributed import Nanny, Status
from distributed.deploy.spec import SpecCluster
from tornado.ioloop import PeriodicCallback

from dlscale.engine.clusters.secured import ClosedCluster, ClosedWorker

_SAMPLE_SECONDS = 0.5
#: A worker that ends so often before it is up will not come up.
_STARTS = 5
_CRASHES = {
    signal.SIGSEGV: "a segmentation fault",
    signal.SIGBUS: "a bus error",
    signal.SIGABRT: "an abort",
    signal.SIGILL: "an illegal instruction",
    signal.SIGFPE: "an arithmetic fault",
}


_before: dict[str, str | None] = {}
_n_borrowers = 0
_lending = threading.Lock()


@contextmanager
def _lent_environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Have a nanny set variables of the environment for the worker that it starts, and take them back.

    They are set in the process of whoever computes, which, and what it starts for itself, would go on with one thread for BLAS and
    OpenMP. Several nannies may start workers at the same time.
    """
    global _n_borrowers
    with _lending:
        _n_borrowers += 1
        for name in variables:
            _before.setdefault(name, os.environ.get(name))
    try:
        yield
    finally:
        with _lending:
            _n_borrowers -= 1
            for name in () if _n_borrowers else list(_before):
                value = _before.pop(name)
                if os.environ.get(name) != variables.get(name):
                    continue  # set by somebody else meanwhile
                os.environ.pop(name) if value is None else os.environ.update({name: value})


class PatientCluster(ClosedCluster):
    """Worker processes that are waited for, however long a busy machine takes to start one again."""

    def _update_worker_status(self, op: str, msg: Any) -> None:
        # Past the one of SpecCluster, which closes the nanny of a worker that is away for some seconds.
        super(SpecCluster, self)._update_worker_status(op, msg)  # type: ignore[no-untyped-call]


class WatchedNanny(Nanny):
    """Starts its worker again, as every nanny of Dask does, and says why the one before ended.

    A worker that ends while the cluster starts is started again too, which other nannies take for the end of the cluster.

    Parameters
    ----------
    tell : callable
        Receives a sentence on each worker that ends before its time.
    """

    def __init__(self, *arguments: Any, tell: Callable[[str], None], **options: Any) -> None:
        options["worker_class"] = ClosedWorker
        super().__init__(*arguments, **options)
        self.tell = tell
        self._peak_bytes, self._oom_kills = 0, oom_kills()
        sampler = PeriodicCallback(self._sample, 1e3 * _SAMPLE_SECONDS)
        self.periodic_callbacks["dlscale-peak"] = sampler
        sampler.start()

    def _sample(self) -> None:
        self._peak_bytes = max(self._peak_bytes, peak_bytes(self.pid))

    async def instantiate(self) -> Status:
        # Ctrl-C on a terminal reaches every process, and a worker before it can ignore that. What this thread blocks, it blocks
        # too; the tracker is started first, since who starts it blocks no SIGINT afterwards.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        for _ in range(_STARTS):
            with _lent_environment(self.pre_spawn_env):
                status = await super().instantiate()
            if status != Status.stopped or self.status != Status.init:
                break  # it is up; or the nanny is, which then starts workers again by itself
        self._sample()  # it may be gone before the next one
        return status

    async def _on_worker_exit(self, exitcode: int) -> None:
        if self.status in (Status.init, Status.running):
            before, self._oom_kills = self._oom_kills, oom_kills()
            self.tell(describe_loss(str(self.name), exitcode, self._peak_bytes, out_of_memory=self._oom_kills > before))
        self._peak_bytes = 0
        await super()._on_worker_exit(exitcode)


def describe_loss(worker: str, exitcode: int, peak_bytes: int, *, out_of_memory: bool) -> str:
    """A sentence on a worker that is gone.

    Parameters
    ----------
    worker : str
        Its name.
    exitcode : int
        Minus the number of the signal that ended it.
    peak_bytes : int
        The most memory that it had, as far as is known.
    out_of_memory : bool
        Whether the kernel has killed for lack of memory meanwhile.
    """
    if exitcode >= 0:
        cause = f"ended by itself with exit code {exitcode}"
    elif (number := signal.Signals(-exitcode)) in _CRASHES:
        cause = f"crashed by {_CRASHES[number]}"
    elif number == signal.SIGKILL and out_of_memory:
        cause = "was killed by the kernel because the machine ran out of memory; give the job less of it (cluster.memory)"
    elif number == signal.SIGTERM:
        cause = "was told to end (SIGTERM), as a batch system does that needs its machine for others"
    else:
        cause = f"was killed by {number.name}"
    return f"Worker {worker} {cause}. It had {peak_bytes / 1e9:.2f} GB of memory at most."


def oom_kills() -> int:
    """How often the kernel of this machine has killed a process for lack of memory (0 where it does not say)."""
    with suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def peak_bytes(pid: int | None) -> int:
    """The most memory that a running process has had (0 where the system does not say)."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
