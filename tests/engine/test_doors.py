"""What listens while a job runs, and what strangers get who come to it: another user of the machine, with Dask's own client."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import chdir, closing, contextmanager, suppress
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx
import psutil
import pytest
import yaml
from helpers import gaussian, store

import dlscale
from dlscale.batch import driver
from dlscale.batch.submit import cancel
from dlscale.batch.workspace import Job, Workspace
from dlscale.engine.clusters import describe_cluster
from dlscale.engine.clusters.secured import in_files, make_security
from dlscale.errors import SpecError

MPIRUN = shutil.which("mpirun", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))

#: A job of a hundred passes that runs for longer than strangers stay.
SLOWLY = (str(shutil.which("env")), "PAUSE_SECONDS=1", sys.executable, str(Path(__file__).parents[1] / "chaos" / "staged.py"))

#: Comes to an address as another user, in clear text, and with TLS of its own.
STRANGER = """
import os, sys, warnings
warnings.simplefilter("ignore")
from distributed import Client
from dlscale.engine.clusters.secured import make_security
import cloudpickle, distributed.protocol, encodings.idna, msgpack
address, security = sys.argv[1], make_security()
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
for url, keys in (("tcp://" + address, None), ("tls://" + address, security)):
    try:
        with Client(url, timeout=1, security=keys) as client:
            print("RAN", client.run_on_scheduler(os.getuid), flush=True)
    except Exception as error:
        print("refused", type(error).__name__, flush=True)
os._exit(0)
"""


def job(folder: Path, **cluster: object) -> Path:
    """A job of more than a hundred passes."""
    store(folder / "a.zarr", gaussian(3000, 40), chunks=(150, 40), compressors=None)
    spec = {"kind": "svd", "input": {"matrix": "a.zarr"}, "params": {"n_components": 5, "power_iterations": 100}, **cluster}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(spec))
    return path


@contextmanager
def running(*command: str, cwd: Path) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    with subprocess.Popen(
        command, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                process.communicate(timeout=120)


def doors(root: int, *, n_ports: int) -> set[tuple[str, int]]:
    """Address and port of every socket on which a process and its descendants listen, once there are so many."""
    deadline = time.monotonic() + 300
    while True:
        found: set[tuple[str, int]] = set()
        with suppress(psutil.NoSuchProcess):
            for process in (psutil.Process(root), *psutil.Process(root).children(recursive=True)):
                if process.name() not in ("prterun", "mpirun", "prted", "orted"):  # the launcher's own
                    listening = (c.laddr for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN)
                    found |= {(address.ip, address.port) for address in listening}
        if len(found) >= n_ports or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def answer(port: int, context: ssl.SSLContext | None, said: bytes) -> bytes:
    """What comes back on a port."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=2)
    with suppress(OSError), closing(context.wrap_socket(connection) if context else connection) as stream:
        stream.sendall(said)
        return stream.recv(1000)
    connection.close()
    return b""


def strangers_get_nothing(port: int) -> None:
    anonymous = ssl.create_default_context()
    anonymous.check_hostname, anonymous.verify_mode = False, ssl.CERT_NONE
    request = b"GET /info/main/workers.html HTTP/1.0\r\n\r\n"
    for context in (None, anonymous, make_security().get_connection_args("client")["ssl_context"]):
        said = answer(port, context, request)
        assert b"HTTP" not in said
        assert not said or context is None  # in clear text, the alert of TLS


def goes_on(process: subprocess.Popen[str]) -> None:
    """A job that strangers have not hurt stops where it is told to, with its checkpoint."""
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 75, output


def test_a_local_cluster_is_for_its_own_processes(tmp_path: Path) -> None:
    job(tmp_path, cluster={"workers": 1, "threads": 1})
    with running(*SLOWLY, sys.executable, "-m", "dlscale", "run", "job.yaml", cwd=tmp_path) as process:
        found = doors(process.pid, n_ports=3)
        assert len(found) == 3, "a scheduler, a nanny, a worker, and no pages"
        assert {ip for ip, _ in found} == {"127.0.0.1"}
        for _, port in found:
            strangers_get_nothing(port)
        address = f"127.0.0.1:{min(found)[1]}"
        came = subprocess.run([sys.executable, "-c", STRANGER, address], capture_output=True, text=True, timeout=100)
        assert came.stdout.count("refused") == 2, (came.stdout, came.stderr)
        goes_on(process)


#: Asks a port for a page as another user.
OTHER_USER = """
import encodings.idna, os, socket, sys
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as stream:
    stream.sendall(b"GET /status HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    try:
        print(stream.recv(12).decode())
    except ConnectionError:
        print()
"""


def test_a_dashboard_is_for_its_own_user_and_pages(tmp_path: Path) -> None:
    pytest.importorskip("bokeh", reason="the dashboard needs bokeh")
    job(tmp_path, cluster={"workers": 1, "threads": 1, "dashboard": True})
    with running(*SLOWLY, sys.executable, "-m", "dlscale", "run", "job.yaml", cwd=tmp_path) as process:
        assert process.stdout is not None
        url = next(line.split()[1] for line in process.stdout if "dashboard" in line)
        (log,) = tmp_path.glob("dlscale-workspace/jobs/*/log.txt")
        assert f"dashboard: {url}\n" in log.read_text()
        found = doors(process.pid, n_ports=4)
        assert len(found) == 4, "a scheduler, its pages, a nanny, a worker"
        assert {ip for ip, _ in found} == {"127.0.0.1"}

        assert "<title>Dask Diagnostic UI<" in httpx.get(url).text
        for page in ("/info/main/workers.html", "/api/v1/workers", "/json/counts.json", "/metrics"):
            assert httpx.get(urljoin(url, page)).status_code == 404
        # What a page shows comes by a WebSocket, which no page of somebody else may open.
        asked = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "x" * 24}
        for origin, status in (("http://evil.example", 403), (urljoin(url, "/").rstrip("/"), 101)):
            token = re.search(r'"token":"([^"]+)"', httpx.get(url).text)
            assert token is not None
            headers = asked | {"Origin": origin, "Sec-WebSocket-Protocol": f"bokeh, {token[1]}"}
            with httpx.stream("GET", f"{url}/ws", headers=headers) as answered:
                assert answered.status_code == status, origin
        command = [sys.executable, "-c", OTHER_USER, str(urlsplit(url).port)]
        came = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
        assert came.stdout == ("\n" if os.getuid() == 0 and sys.platform == "linux" else "HTTP/1.1 200\n")
        goes_on(process)


def test_a_dashboard_that_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in ("threads", "slurm"):
        with pytest.raises(SpecError, match=f"dashboard is one of worker processes on this machine, .* got type {kind}"):
            describe_cluster({"type": kind, "dashboard": True})
    monkeypatch.setitem(sys.modules, "bokeh.application", None)
    monkeypatch.delitem(sys.modules, "distributed.dashboard.core", raising=False)
    with pytest.raises(SpecError, match=r"dashboard needs bokeh; install it with `pip install dlscale\[dashboard\]`"):
        describe_cluster({"dashboard": True})


def test_a_submitted_job_opens_no_other_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job(tmp_path, cluster={"workers": 1, "threads": 1})
    monkeypatch.setattr(driver, "_COMMAND", (*SLOWLY, *driver._COMMAND))
    root = Workspace(tmp_path / "workspace")
    with chdir(tmp_path):
        handed = Job(dlscale.submit("job.yaml", workspace=root.root).folder)
    try:
        commands = {p.pid: " ".join(p.info["cmdline"] or ()) for p in psutil.process_iter(["cmdline"])}
        (running,) = [pid for pid, line in commands.items() if str(tmp_path) in line and "--ticket" in line]
        found = doors(running, n_ports=3)
        assert len(found) == 3
        assert {ip for ip, _ in found} == {"127.0.0.1"}
        for _, port in found:
            strangers_get_nothing(port)
    finally:
        cancelled = cancel(handed, root)
    assert cancelled.state == "cancelled"


@pytest.mark.skipif(MPIRUN is None, reason="there is no mpirun here")
def test_ranks_of_one_host_are_for_each_other(tmp_path: Path) -> None:
    job(tmp_path)
    command = [str(MPIRUN), "--oversubscribe", "-n", "2", *SLOWLY, sys.executable, "-m", "dlscale", "run", "job.yaml"]
    with running(*command, cwd=tmp_path) as process:
        found = doors(process.pid, n_ports=3)
        assert len(found) == 3, "a scheduler and two workers"
        assert {ip for ip, _ in found} == {"127.0.0.1"}
        for _, port in found:
            strangers_get_nothing(port)
        assert process.poll() is None


def test_keys_in_files_are_for_their_owner(tmp_path: Path) -> None:
    security = make_security()
    stored = in_files(security, tmp_path)
    assert {oct(path.stat().st_mode)[-3:] for path in tmp_path.iterdir()} == {"600"}
    assert Path(stored.tls_client_key).read_text() == security.tls_client_key
    assert stored.require_encryption
    with pytest.raises(FileExistsError):
        in_files(security, tmp_path)  # never into a file that somebody else has made
