"""Processes that an MPI launcher started together: rank 0 runs the command and speaks, the others serve it.

`across_ranks` is the entry. Nothing of MPI is imported unless the environment says that a launcher started more than one process.
A `Session` lasts as long as the command: rank 0 tells the others to work for its Dask scheduler, to run a program with it,
or to end with its exit code. A `Guard` is around all of it, so that one rank that fails or is killed ends them all.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlscale.errors import DlscaleError, RankError, SpecError
from dlscale.showing import shown

if TYPE_CHECKING:
    from dlscale.engine.events import Emit
    from dlscale.engine.ranks import Communicator

#: How a launcher tells a process its rank and how many there are: Open MPI; MPICH, Intel MPI and srun with PMI-2; srun. The
#: batch script of a Slurm job has no step, and an interactive shell is a step of one task.
_VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)
#: A launcher forwards these to all ranks and leaves them the time they need, which it does not after SIGTERM.
_STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *_STOP_SIGNALS)
#: Deaths on other hosts are known after so long: the operating system closes the connections of a process as it dies.
_KNOWN_SECONDS = 0.02
_END_SECONDS = 8.0

_session: Session | None = None


def launched() -> tuple[int, int] | None:
    """Rank and number of the processes that a launcher started together; None without one. Imports nothing."""
    for rank, size in _VARIABLES:
        if os.environ.get(rank, "").isdigit() and os.environ.get(size, "").isdigit():
            return int(os.environ[rank]), int(os.environ[size])
    return None


def session() -> Session | None:
    """The session that this process leads, if it is rank 0 of several."""
    return _session


def lost_rank() -> RankError | None:
    """Why a signal came, if it was not somebody's wish: launchers that lose a rank send SIGTERM to the others."""
    try:
        if _session is not None:
            _session.blame()
    except RankError as error:
        return error
    return None


def across_ranks(command: Callable[[], int]) -> int:
    """Run a command on rank 0, with the other ranks at its service; returns only where no launcher started more than one.

    Parameters
    ----------
    command : callable
        Returns an exit code, with which all ranks end.
    """
    global _session
    rank, n_ranks = launched() or (0, 1)
    if n_ranks == 1:
        return command()
    for number in _SIGNALS if rank else _STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN if rank else lambda *_: signal.raise_signal(signal.SIGTERM))
    try:
        joined = Session(n_ranks)
    except DlscaleError as error:
        if rank == 0:
            print(f"error: {shown(str(error))}", file=sys.stderr)
        return error.exit_code
    if rank > 0:
        joined.end(joined.serve())
    _session = joined
    try:
        code = command()
    except BaseException:
        traceback.print_exc()
        code = 1
    joined.end(code)
    return code


@dataclass(frozen=True)
class Place:
    """Where a rank runs.

    Parameters
    ----------
    host : str
    cores : frozenset of int
        That it may use; ranks that are not bound share them.
    memory_bytes : int
        Of the host.
    """

    host: str
    cores: frozenset[int]
    memory_bytes: int

    @classmethod
    def here(cls) -> Place:
        from dlscale.host import n_cores, total_bytes

        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(n_cores())
        return cls(socket.gethostname(), frozenset(cores), total_bytes())

    def share(self, places: Sequence[Place]) -> tuple[int, int]:
        """Threads and bytes of memory for one of the ranks at these places, which stands here."""
        neighbours = [place for place in places if place.host == self.host]
        cores = sum(1 / sum(core in place.cores for place in neighbours) for core in self.cores)
        return max(1, int(cores + 1e-6)), self.memory_bytes * 6 // 10 // len(neighbours)


class Session:
    """The ranks of one command, from their start to their common end (collective).

    Attributes
    ----------
    communicator : Communicator
        For messages between a command and its ranks.
    shares : list of (int, int)
        Threads and memory in bytes of each rank.
    """

    def __init__(self, n_ranks: int) -> None:
        from dlscale.engine.guard import Guard
        from dlscale.engine.programs import exchange
        from dlscale.engine.ranks import MPICommunicator

        self.communicator: Communicator = MPICommunicator()
        if self.communicator.size != n_ranks:
            raise SpecError(
                f"The launcher started {n_ranks} processes, and MPI sees {self.communicator.size}: they do not belong to each "
                "other. Use the mpirun of the MPI library that mpi4py loads, or `srun --mpi=pmix`."
            )
        self._guard = Guard(self.communicator, on_failure=self._speak, handles_signals=False).__enter__()
        self._worker: threading.Thread | None = None
        self._broken = False
        self._places = exchange(self.communicator, Place.here(), name="places")
        self.shares = [place.share(self._places) for place in self._places]

    @property
    def healthy(self) -> bool:
        """Whether all ranks are there, as far as is known."""
        return not self._broken and self.communicator.failure is None

    def own_address(self) -> str:
        """Where the other ranks reach this one."""
        if len({place.host for place in self._places}) == 1:
            return "127.0.0.1"
        from distributed.utils import get_ip

        return str(get_ip())  # type: ignore[no-untyped-call]

    def tell(self, *message: Any) -> None:
        """Rank 0: what the others must do next."""
        from dlscale.engine.programs import broadcast

        broadcast(self.communicator, message, name="message")

    def serve(self) -> int:
        """Ranks above 0: do what rank 0 says until the end; the exit code."""
        from dlscale.engine.events import ignore
        from dlscale.engine.programs import broadcast

        try:
            import distributed  # noqa: F401  (while rank 0 plans, so that work starts sooner)

            while True:
                match broadcast(self.communicator, name="message"):
                    case ("work", str(scheduler), security):
                        self._worker = self._start_worker(scheduler, security)
                    case ("rest",):
                        self._join_worker()
                    case ("run", program, arguments, token, stall_seconds):
                        self._take_part(program, arguments, token=token, listener=ignore, stall_seconds=stall_seconds)
                    case ("end", int(code)):
                        return code
        except BaseException as error:
            self.give_up(error)
            raise

    def run(
        self, program: Callable[..., Any], arguments: Sequence[Any], *, token: str, listener: Emit, stall_seconds: float | None
    ) -> list[Any]:
        """Rank 0: run a program on all ranks, this one included; the results by rank."""
        self.check()
        self.tell("run", program, arguments, token, stall_seconds)
        try:
            return self._take_part(program, arguments, token=token, listener=listener, stall_seconds=stall_seconds)
        except Exception as error:
            self.give_up(error)
            raise

    def _take_part(
        self, program: Callable[..., Any], arguments: Sequence[Any], *, token: str, listener: Emit, stall_seconds: float | None
    ) -> list[Any]:
        from threadpoolctl import threadpool_limits

        from dlscale.engine.programs import exchange, run_here
        from dlscale.engine.ranks import MPICommunicator

        def with_results(communicator: Communicator, *arguments: Any) -> list[Any]:
            return exchange(communicator, program(communicator, *arguments), name="results")

        communicator = MPICommunicator()
        communicator.stall_seconds = stall_seconds
        with threadpool_limits(limits=self.shares[communicator.rank][0], user_api="blas"):
            results: list[Any] = run_here(with_results, arguments, communicator=communicator, token=token, listener=listener)
        communicator.close()
        return results

    def check(self) -> None:
        """Raise `RankError` if a rank failed or died."""
        if self.communicator.failure is not None:
            self.give_up(self.communicator.failure)
            raise self.communicator.failure

    def blame(self) -> None:
        """As `check`, for an error or a signal that may come of the death of a rank at this very moment."""
        time.sleep(_KNOWN_SECONDS)
        self._guard.look()
        self.check()

    def give_up(self, error: BaseException) -> None:
        """The ranks can do nothing together any more; all end when this one does."""
        if not self._broken:
            self._broken = True
            self._guard.__exit__(type(error), error, error.__traceback__)

    def _speak(self, failure: Mapping[str, Any]) -> None:
        """Of the end of rank 0, which speaks for all, another one must tell."""
        if failure["rank"] == 0 and not failure["traceback"] and self.communicator.rank == 1:
            print(f"error: Rank 0: {shown(failure['cause'])}", file=sys.stderr, flush=True)

    def end(self, code: int) -> None:
        """Leave, all ranks with the same exit code; does not return."""
        from dlscale.engine.ranks.communicator import import_mpi

        _flush()
        # A rank that is stuck must not keep the others.
        timer = threading.Timer(_END_SECONDS, os._exit, (code or 1,))
        timer.daemon = True
        timer.start()
        if not self.healthy:
            os._exit(code or 1)
        try:
            if self.communicator.rank == 0:
                self.tell("end", code)
            self._guard.__exit__(None, None, None)
            import_mpi().Finalize()
        except RankError:
            code = code or 1
        # Not through the interpreter's own end, which waits for threads that may still compute.
        os._exit(code)

    def _start_worker(self, scheduler: str, security: Any) -> threading.Thread:
        from dlscale.engine.clusters.worker import work

        threads, memory_bytes = self.shares[self.communicator.rank]
        arguments = (scheduler, security, self.communicator.rank, threads, memory_bytes)
        worker = threading.Thread(target=work, args=arguments, name="dlscale-worker", daemon=True)
        worker.start()
        return worker

    def _join_worker(self) -> None:
        if self._worker is not None:
            self._worker.join(_END_SECONDS)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
