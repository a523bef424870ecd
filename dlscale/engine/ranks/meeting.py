"""How ranks find each other on a network where anybody may knock: both ends of a connection show that they know a secret.

The ranks have the secret from MPI. It never travels: each end answers a number that the other one has just drawn (RFC 2104).
Whoever does not know it, says something else, or says nothing, neither ends nor delays the meeting.
"""

from __future__ import annotations

import hmac
import json
import secrets
import selectors
import socket
import time
from contextlib import suppress

from dlscale.errors import RankError

#: Ranks that are started together come within seconds of each other; a machine that is busy starting them takes its time.
MEETING_SECONDS = 60.0
#: What is said before the answer is known fits in a line of so many bytes.
_LINE_BYTES = 256
#: Strangers that are listened to at the same time; beyond it whoever has waited longest must knock again.
_CALLERS = 256


def admit(listener: socket.socket, secret: str, ranks: set[int], *, seconds: float = MEETING_SECONDS) -> dict[int, socket.socket]:
    """The connections of some ranks, as they come and show that they know the secret.

    Parameters
    ----------
    listener : socket
        Bound and listening.
    secret : str
    ranks : set of int
        Who is expected.
    seconds : float
        How long after the last one the next one is waited for.

    Raises
    ------
    RankError
        If one does not come.
    """
    peers: dict[int, socket.socket] = {}
    callers: dict[socket.socket, _Caller] = {}
    listener.setblocking(False)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            _meet(selector, secret, ranks, peers=peers, callers=callers, seconds=seconds)
    except BaseException:
        for connection in peers.values():
            connection.close()
        raise
    finally:
        for connection in callers:
            connection.close()
    for connection in peers.values():
        connection.setblocking(True)
    return peers


def _meet(
    selector: selectors.BaseSelector,
    secret: str,
    ranks: set[int],
    *,
    peers: dict[int, socket.socket],
    callers: dict[socket.socket, _Caller],
    seconds: float,
) -> None:
    """Listen to callers until all ranks are among the peers."""

    def dismiss(connection: socket.socket) -> _Caller:
        selector.unregister(connection)
        return callers.pop(connection)

    deadline = time.monotonic() + seconds
    while missing := sorted(ranks - set(peers)):
        if time.monotonic() > deadline:
            who = ", ".join(map(str, missing))
            raise RankError(f"Rank {who} did not reach rank 0 within {seconds:.0f} s; open the hosts' ports to each other.")
        for key, _ in selector.select(min(1.0, seconds)):
            connection: socket.socket = key.fileobj  # type: ignore[assignment]
            if connection not in callers:
                if (new := _Caller.accept(connection)) is not None:
                    callers[new.connection] = new
                    selector.register(new.connection, selectors.EVENT_READ)
            elif (rank := callers[connection].hear(secret)) is not None:
                caller = dismiss(connection)
                if rank in missing and rank not in peers and caller.welcome(secret, rank):
                    peers[rank] = connection
                    deadline = time.monotonic() + seconds
                else:
                    connection.close()
        while len(callers) > _CALLERS:
            dismiss(next(iter(callers))).connection.close()


def introduce(connection: socket.socket, secret: str, rank: int) -> None:
    """Show whoever answers a connection that this rank knows the secret, and see that it does too (OSError if not)."""
    connection.settimeout(MEETING_SECONDS)
    drawn, own = _read_line(connection), secrets.token_hex(16)
    connection.sendall(json.dumps([rank, own, _proof(secret, "rank", rank, drawn, own)]).encode() + b"\n")
    if not _same(_read_line(connection), _proof(secret, "guard", rank, drawn, own)):
        raise OSError("something else than rank 0 answers")
    connection.settimeout(None)


class _Caller:
    """A connection of somebody who has not said who it is."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.drawn, self.own, self.heard = secrets.token_hex(16), "", b""

    @classmethod
    def accept(cls, listener: socket.socket) -> _Caller | None:
        try:
            connection, _ = listener.accept()
        except OSError:  # it is gone already
            return None
        caller = cls(connection)
        connection.setblocking(False)
        with suppress(OSError):  # as is found out when it is listened to
            connection.sendall(caller.drawn.encode() + b"\n")
        return caller

    def hear(self, secret: str) -> int | None:
        """The rank that calls; -1 if it is none, None as long as that is not known."""
        try:
            data = self.connection.recv(_LINE_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return -1
        self.heard += data
        if not data or len(self.heard) > _LINE_BYTES:
            return -1
        if not self.heard.endswith(b"\n"):
            return None
        with suppress(ValueError, TypeError, RecursionError):
            rank, own, proof = json.loads(self.heard)
            if type(rank) is int and _same(str(proof), _proof(secret, "rank", rank, self.drawn, str(own))):
                self.own = str(own)
                return rank
        return -1

    def welcome(self, secret: str, rank: int) -> bool:
        with suppress(OSError):
            self.connection.sendall(_proof(secret, "guard", rank, self.drawn, self.own).encode() + b"\n")
            return True
        return False


def _proof(secret: str, role: str, rank: int, drawn: str, own: str) -> str:
    return hmac.new(secret.encode(), f"{role} {rank} {drawn} {own}".encode(), "sha256").hexdigest()


def _same(told: str, right: str) -> bool:
    return hmac.compare_digest(told.encode(), right.encode())


def _read_line(connection: socket.socket) -> str:
    line = b""
    while not line.endswith(b"\n"):
        piece = connection.recv(1)
        if not piece or len(line) > _LINE_BYTES:
            raise OSError("the connection was closed")
        line += piece
    return line[:-1].decode("ascii", "replace")
