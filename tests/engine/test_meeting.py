"""Ranks that meet on a port where strangers knock."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from dlscale.engine.ranks.meeting import admit, introduce
from dlscale.errors import RankError

SECRET = "0123456789abcdef" * 2


@pytest.fixture
def door() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def knock(door: socket.socket, said: bytes = b"") -> socket.socket:
    connection = socket.create_connection(door.getsockname())
    connection.sendall(said)
    return connection


def echo(door: socket.socket) -> socket.socket:
    """Somebody who sends back what it hears, as if it knew."""
    connection = knock(door)
    threading.Thread(target=lambda: connection.sendall(connection.recv(100)), daemon=True).start()
    return connection


def replay(door: socket.socket) -> socket.socket:
    """Somebody who has heard how a rank introduced itself elsewhere."""
    ours, theirs = socket.socketpair()
    ours.sendall(b"another number\n")
    with suppress(OSError), ours, theirs:
        ours.shutdown(socket.SHUT_WR)  # and then nothing: it is not answered
        introduce(Recorder(theirs), "elsewhere" + SECRET, 1)  # type: ignore[arg-type]
    return knock(door, Recorder.said)


class Recorder:
    """A socket that keeps what is sent."""

    said = b""

    def __init__(self, inner: socket.socket) -> None:
        self.inner = inner

    def sendall(self, data: bytes) -> None:
        Recorder.said = data
        self.inner.sendall(data)

    def recv(self, size: int) -> bytes:
        return self.inner.recv(size)

    def settimeout(self, seconds: float | None) -> None:
        self.inner.settimeout(seconds)


STRANGERS: dict[str, Callable[[socket.socket], socket.socket]] = {
    "silent": knock,
    "web": lambda door: knock(door, b"GET / HTTP/1.0\r\n\r\n"),
    "no list": lambda door: knock(door, b"1\n"),
    "short": lambda door: knock(door, b"[1]\n"),
    "names": lambda door: knock(door, b'["x", null, null]\n'),
    "rank 1": lambda door: knock(door, b'[1, "a", "b"]\n'),
    "umlauts": lambda door: knock(door, '[1, "ä", "ö"]\n'.encode()),
    "surrogates": lambda door: knock(door, b'[1, "\\ud800", "\\ud800"]\n'),
    "deep": lambda door: knock(door, b"[" * 250 + b"\n"),
    "bytes": lambda door: knock(door, bytes(range(256)) * 100),
    "half": lambda door: knock(door, b"[1, "),
    "echo": echo,
    "replay": replay,
}


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_neither_end_nor_delay_the_meeting(name: str, door: socket.socket) -> None:
    strangers = [STRANGERS[name](door) for _ in range(3)]
    ours = [knock(door), knock(door)]
    threads = [threading.Thread(target=introduce, args=(ours[i], SECRET, i + 1)) for i in range(2)]
    for thread in threads:
        thread.start()
    # Who waited for a stranger would wait as long as the test may take.
    peers = admit(door, SECRET, {1, 2}, seconds=3600.0)
    for thread in threads:
        thread.join()
    for rank, connection in peers.items():
        connection.sendall(b"hello\n")
        assert ours[rank - 1].recv(6) == b"hello\n"
    for connection in (*strangers, *ours, *peers.values()):
        connection.close()


def test_a_crowd_is_borne(door: socket.socket) -> None:
    strangers: list[socket.socket] = []
    crowd = threading.Thread(target=lambda: strangers.extend(knock(door) for _ in range(400)))
    meeting: list[dict[int, socket.socket]] = []
    host = threading.Thread(target=lambda: meeting.append(admit(door, SECRET, {1}, seconds=3600.0)))
    host.start()
    crowd.start()
    crowd.join()
    with knock(door) as connection:
        introduce(connection, SECRET, 1)
    host.join()
    assert set(meeting[0]) == {1}
    for each in (*strangers, meeting[0][1]):
        each.close()


def test_a_rank_that_does_not_come_is_named(door: socket.socket) -> None:
    with knock(door), pytest.raises(RankError, match="Rank 1, 3 did not reach rank 0"):
        admit(door, SECRET, {1, 3}, seconds=0.2)


@pytest.mark.parametrize("answer", [b"", b"wrong\n", b"SSH-2.0\r\n", b"\xff\n" * 3])
def test_somebody_else_behind_the_port_is_noticed(answer: bytes, door: socket.socket) -> None:
    def impostor() -> None:
        connection, _ = door.accept()
        with connection, suppress(OSError):
            connection.sendall(b"a number\n")
            connection.recv(1000)
            connection.sendall(answer)

    thread = threading.Thread(target=impostor)
    thread.start()
    with knock(door) as connection, pytest.raises(OSError, match=r"closed|something else"):
        introduce(connection, SECRET, 1)
    thread.join()
