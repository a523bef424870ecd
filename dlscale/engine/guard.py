"""A guard over ranks: when one fails or dies, all of them know at once, and the cause is kept.

Every rank holds a connection to rank 0. A rank that fails sends its error and traceback through it; a rank that is killed
sends nothing, and the operating system closes its connection. Either way rank 0 tells all others, and every wait for a
collective ends with the cause. A rank that hangs inside an MPI call cannot be told; it is ended from outside after a while.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from dlscale.engine.ranks import Communicator
from dlscale.engine.ranks.communicator import explain_failure
from dlscale.engine.ranks.meeting import admit, introduce
from dlscale.errors import RankError
from dlscale.interrupts import asking_to_stop

Failure = dict[str, Any]

#: A rank that was told of a failure and is still there after so long is stuck in an MPI call.
_GRACE_SECONDS = 8.0
#: Rank 0 may take so long to write down what happened before the others end themselves.
_FAREWELL_SECONDS = 15.0
_ADDRESS_BYTES = 512


class Guard:
    """A context around what all ranks do together.

    Parameters
    ----------
    communicator : Communicator
    on_failure : callable, optional
        Called on rank 0, and on every rank when rank 0 itself is lost, with ``{rank, cause, traceback}``, in another thread.
    handles_signals : bool
        Whether signals that ask for a stop are a request, for all ranks; only in the main thread. What arrived is raised again
        at the end, with the handlers of before.

    Notes
    -----
    After a failure the ranks above 0 end with exit code 1 when rank 0 ends, which may take the time to write a report.
    """

    def __init__(
        self,
        communicator: Communicator,
        *,
        on_failure: Callable[[Failure], None] | None = None,
        handles_signals: bool = True,
    ) -> None:
        self.communicator = communicator
        self.failure: Failure | None = None
        self._on_failure = on_failure or (lambda failure: None)
        self._handles_signals = handles_signals and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}
        self._received: int | None = None
        self._own: Failure | None = None
        self._peers: dict[int, socket.socket] = {}
        self._left: set[int] = set()
        self._answered, self._noted = threading.Event(), threading.Event()
        self._rests: dict[int, bytes] = {}
        self._lock, self._receiving = threading.Lock(), threading.RLock()

    def __enter__(self) -> Guard:
        if self._handles_signals:
            self._before = {number: signal.signal(number, self._handle) for number in asking_to_stop()}
        if self.communicator.size > 1:
            self._connect()
            threading.Thread(target=self._watch, name="dlscale-guard", daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if error is None:
                self.communicator.barrier("the end of the program")
                self._leave()
        except BaseException as late:
            error = late
            raise
        finally:
            if error is not None:
                self._fail(error)
            if self.failure is None or not self._handles_signals:
                self._restore()

    def look(self) -> None:
        """Notice at once which ranks have failed or died by now.

        The operating system closes the connections of a process before its launcher learns of its death: in whoever was sent a
        signal for it, this finds the cause.
        """
        for rank in self._peers:
            self._receive(rank)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        if self._received is not None:
            number, self._received = self._received, None
            signal.raise_signal(number)

    def _handle(self, number: int, _: FrameType | None) -> None:
        # A launcher that lost a rank sends SIGTERM to the others: that is no request of the user.
        if self.failure is None:
            self._received = self._received or number
            self.communicator.request_stop()

    # What follows is about failures.

    def _fail(self, error: BaseException) -> None:
        """The program raised on this rank."""
        if self.failure is None:
            text = "".join(traceback.format_exception(error))
            failure = {"rank": self.communicator.rank, "cause": explain_failure(error), "traceback": text}
            self._own = failure
            if self.communicator.rank == 0 or not self._say({"failed": failure}):
                self._spread(failure)
        self._answered.set()
        if self.communicator.size == 1:
            return
        if self.failure is not None:
            self._noted.wait(_GRACE_SECONDS)
        if self.communicator.rank == 0:
            # MPI cannot be shut down in order any more. Others end when this process closes its connections.
            atexit.register(_exit_now)
            return
        threading.Event().wait(_FAREWELL_SECONDS)  # the watching thread ends the process as soon as rank 0 is gone
        _exit_now()

    def _spread(self, failure: Failure) -> None:
        """Write a failure down, tell every rank, and let this rank's waits end."""
        with self._lock:
            if self.failure is not None:
                return
            self.failure = failure
        error = RankError(f"Rank {failure['rank']}: {failure['cause']}")
        if failure["traceback"]:
            error.add_note(failure["traceback"])
        try:
            self._on_failure(failure)
        finally:
            for rank in list(self._peers):
                self._say({"failed": failure}, rank)
            # Only now: the program ends, and its process with it, as soon as it is told. A rank that had not heard why would
            # take this one for the culprit.
            self._noted.set()
            self.communicator.failure = error
            threading.Thread(target=self._force, name="dlscale-guard-end", daemon=True).start()

    def _force(self) -> None:
        if not self._answered.wait(_GRACE_SECONDS):
            _exit_now()

    # What follows is about connections.

    def _connect(self) -> None:
        """Rank 0 listens; every other rank connects to it."""
        place = np.zeros(_ADDRESS_BYTES, np.uint8)
        listener: socket.socket | None = None
        if self.communicator.rank == 0:
            here = self.communicator.one_host
            listener = socket.create_server(("127.0.0.1" if here else "", 0), backlog=self.communicator.size)
            data = json.dumps(
                [["127.0.0.1"] if here else _host_addresses(), listener.getsockname()[1], secrets.token_hex(16)]
            ).encode()
            place[: len(data)] = np.frombuffer(data, np.uint8)
        self.communicator.bcast(place, name="the address of the guard")
        addresses, port, secret = json.loads(place.tobytes().rstrip(b"\0"))
        if listener is None:
            self._peers[0] = _reach(addresses, port, secret, self.communicator.rank)
        else:
            with listener:
                self._peers = admit(listener, secret, set(range(1, self.communicator.size)))
        self.communicator.barrier("the guard is there")

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        for rank, connection in self._peers.items():
            selector.register(connection, selectors.EVENT_READ, rank)
        while selector.get_map():
            for key, _ in selector.select():
                if not self._receive(key.data):
                    selector.unregister(key.fileobj)

    def _receive(self, rank: int) -> bool:
        """Take in what a rank has sent so far; whether more can come."""
        lines: list[bytes] = []
        ended = False
        with self._receiving:
            while not ended:
                try:
                    data = self._peers[rank].recv(1 << 16, socket.MSG_DONTWAIT)
                except BlockingIOError:
                    break
                except OSError:
                    data = b""
                ended = not data
                *whole, self._rests[rank] = (self._rests.get(rank, b"") + data).split(b"\n")
                lines += whole
            for line in lines:
                self._hear(rank, json.loads(line))
            if ended:
                self._lost(rank)
        return not ended

    def _hear(self, rank: int, message: dict[str, Any]) -> None:
        if "failed" in message:
            self._spread(message["failed"])
        else:
            self._left.add(rank)

    def _lost(self, rank: int) -> None:
        if rank in self._left or self.communicator.rank in self._left:
            return
        if rank == 0 and (self.failure or self._own):
            # It failed for the same reason, and ended before it read what this rank said of it.
            self._spread(self._own or {})
            _exit_now()
        cause = "the process ended without a word: it was killed, crashed, or ran out of memory."
        self._spread({"rank": rank, "cause": cause, "traceback": ""})

    def _leave(self) -> None:
        self._left.add(self.communicator.rank)
        for rank, connection in self._peers.items():
            self._say({"left": True}, rank)
            connection.shutdown(socket.SHUT_WR)

    def _say(self, message: dict[str, Any], rank: int = 0) -> bool:
        try:
            self._peers[rank].sendall(json.dumps(message).encode() + b"\n")
        except (OSError, KeyError):
            return False
        return True


def _host_addresses() -> list[str]:
    """Names under which this host may be reached, the surest first."""
    name = socket.gethostname()
    try:
        found = [str(info[4][0]) for info in socket.getaddrinfo(name, None, socket.AF_INET)]
    except OSError:
        found = []
    return list(dict.fromkeys([name, *found]))[:6]


def _reach(addresses: list[str], port: int, secret: str, rank: int) -> socket.socket:
    if addresses[0] == socket.gethostname():  # or another host of that name, which will not know the secret
        addresses = ["127.0.0.1", *addresses]
    problems = []
    for address in addresses:
        try:
            connection = socket.create_connection((address, port), timeout=20)
            introduce(connection, secret, rank)
            return connection
        except OSError as error:
            problems.append(f"{address}: {error}")
    raise RankError(f"Rank 0 cannot be reached on port {port} ({'; '.join(problems)}); open the hosts' ports to each other.")


def _exit_now() -> None:
    """End without MPI's own shutdown, which waits for ranks that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
