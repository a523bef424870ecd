"""Which process something belongs to, in a form that outlives the process and does not move with the clock.

A process number comes round, and a time of day is set by hand, by NTP or after a suspended machine: on Linux a process is
known by its number and its start in clock ticks since the boot, on one boot of one machine (and in one namespace of
numbers, since containers share the boot).
"""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path
from typing import NamedTuple


class Owner(NamedTuple):
    """A process of some machine.

    Parameters
    ----------
    host : str
        For messages; two machines may have the same name.
    pid : int
    started : float
        Clock ticks since the boot; on systems without ``/proc``, Unix time.
    machine : str
        The boot of the machine and its namespace of process numbers.
    """

    host: str
    pid: int
    started: float
    machine: str

    @classmethod
    def here(cls) -> Owner:
        """This process."""
        return cls(socket.gethostname(), os.getpid(), start_of(os.getpid()) or 0.0, machine())

    @property
    def is_near(self) -> bool:
        """Whether it can be looked up from here."""
        return bool(self.machine) and self.machine == machine()

    @property
    def is_alive(self) -> bool:
        """Of a process that is near: whether it is there still, and no other one of its number."""
        started = start_of(self.pid)
        # Without /proc the start is a time of day, rounded in different ways.
        return started is not None and abs(started - self.started) < 2.0


@cache
def machine() -> str:
    """This boot of this machine, and this namespace of process numbers."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def start_of(pid: int) -> float | None:
    """When a process of this machine started (see `Owner`); None where there is none, or only its zombie."""
    try:
        # The name, in parentheses, may hold anything; the state is the field after it, the start the twentieth.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return None if fields[0] in (b"Z", b"X") else float(fields[19])
    except FileNotFoundError:
        if os.path.exists("/proc/self/stat"):
            return None
    except (OSError, IndexError, ValueError):
        return None  # it ended just now
    import psutil  # where there is no /proc

    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else float(process.create_time())
    except (psutil.Error, ValueError):
        return None
