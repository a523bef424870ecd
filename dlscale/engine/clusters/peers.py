"""Whose process is at the other end of a connection within this machine.

Loopback is open to every user of a machine. On Linux the kernel says whose a connection is.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
from typing import Any

#: Of sock_diag(7).
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST = 4, 20, 1
_ALL_STATES = _NO_COOKIE = 0xFFFFFFFF
_N_BYTES_OF_ID = 48


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def is_foreign(connection: socket.socket) -> bool:
    """Whether the process at the other end of a connection within this machine is another user's, as far as the system tells."""
    try:
        user = user_of_peer(connection)
    except (OSError, struct.error, AttributeError):
        return False
    return user is not None and user not in (0, os.geteuid())


def user_of_peer(connection: socket.socket) -> int | None:
    """The number of the user at the other end; None if the other end is not on this machine.

    References
    ----------
    sock_diag(7): ``inet_diag_req_v2`` asks for the socket with the ports and addresses of ours the other way round.
    """
    peer: tuple[Any, ...] = connection.getpeername()
    own: tuple[Any, ...] = connection.getsockname()
    if not is_loopback(peer[0]):
        return None
    family = connection.family
    addresses = b"".join(socket.inet_pton(family, end[0]).ljust(16, b"\0") for end in (peer, own))
    request = struct.pack("=BBBxI", family, socket.IPPROTO_TCP, 0, _ALL_STATES)
    request += struct.pack("!HH", peer[1], own[1]) + addresses + struct.pack("=III", 0, _NO_COOKIE, _NO_COOKIE)
    header = struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.sendto(header + request, (0, 0))
        answer = kernel.recv(4096)
    _, kind = struct.unpack_from("=IH", answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None
    *_, user, _ = struct.unpack_from("=IIIII", answer, 16 + 4 + _N_BYTES_OF_ID)
    return int(user)
