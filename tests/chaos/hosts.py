"""Two hosts, made of network namespaces, and a Dask cluster over them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from victims import ENVIRONMENT, system

ADDRESSES = ("10.77.0.1", "10.77.0.2")
SCHEDULER = f"tcp://{ADDRESSES[0]}:8786"


class Hosts:
    """Two network namespaces with a cable between them."""

    def __init__(self) -> None:
        self.names = [f"dlscale-{os.getpid()}-{i}" for i in range(2)]
        self.ends = [f"dl{os.getpid() % 10**6}-{i}" for i in range(2)]

    def on(self, host: int) -> list[str]:
        """What a command is put behind to run on a host."""
        return ["ip", "netns", "exec", self.names[host]]

    def connect(self) -> None:
        """Make them."""
        for name in self.names:
            system("ip", "netns", "add", name)
        system("ip", "link", "add", self.ends[0], "type", "veth", "peer", "name", self.ends[1])
        for name, end, address in zip(self.names, self.ends, ADDRESSES, strict=True):
            system("ip", "link", "set", end, "netns", name)
            system("ip", "-n", name, "addr", "add", f"{address}/24", "dev", end)
            for device in (end, "lo"):
                system("ip", "-n", name, "link", "set", device, "up")

    def cable(self, state: str) -> None:
        """Pull the cable out (``down``), or put it in again (``up``)."""
        system("ip", "-n", self.names[1], "link", "set", self.ends[1], state)

    def remove(self) -> None:
        """Remove what there is of them."""
        for name in self.names:
            with suppress(FileNotFoundError):
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@contextmanager
def two_hosts() -> Iterator[Hosts]:
    hosts = Hosts()
    try:
        hosts.connect()
        yield hosts
    finally:
        hosts.remove()


@contextmanager
def cluster(hosts: Hosts, folder: Path) -> Iterator[None]:
    """A scheduler and a worker on the first host, a worker on the second."""
    base = [sys.executable, "-m", "dask"]
    worker = [*base, "worker", SCHEDULER, "--nthreads", "1", "--memory-limit", "2GB", "--no-nanny", "--no-dashboard", "--host"]
    commands = [
        [*hosts.on(0), *base, "scheduler", "--host", ADDRESSES[0], "--port", "8786", "--no-dashboard", "--no-show"],
        *([*hosts.on(i), *worker, ADDRESSES[i]] for i in range(2)),
    ]
    folder.mkdir()
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    processes = [subprocess.Popen(command, env=ENVIRONMENT, cwd=folder, **quiet) for command in commands]
    try:
        waiting = "import sys; from distributed import Client; Client(sys.argv[1], timeout='30s').wait_for_workers(2, timeout=60)"
        subprocess.run([*hosts.on(0), sys.executable, "-c", waiting, SCHEDULER], env=ENVIRONMENT, check=True, timeout=90)
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()
