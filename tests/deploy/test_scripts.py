from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import dask
import psutil
import pytest
import yaml
from jobs_here import DEPLOY, ENVIRONMENT, ROOT, arrays, command, free_ports, job_file

from dlscale.engine.clusters import open_cluster
from dlscale.errors import SpecError

STAGED = ROOT / "tests" / "chaos" / "staged.py"


@contextmanager
def local_cluster(folder: Path, **environment: str) -> Iterator[str]:
    """The address of what deploy/local starts."""
    environment = {"PORT": str(*free_ports(1)), "FOLDER": str(folder / "cluster"), "WORKERS": "2", "THREADS": "1", **environment}
    script = DEPLOY / "local" / "cluster.sh"
    started = command(script, "start", cwd=folder, **environment)
    logs = [log.read_text()[-2000:] for log in (folder / "cluster").glob("*.log")]
    assert started.returncode == 0, (started.stderr, logs)
    try:
        yield started.stdout.split()[0]
    finally:
        stopped = command(script, "stop", cwd=folder, **environment)
        assert stopped.returncode == 0, stopped.stderr
        with socket.socket() as probe:
            assert probe.connect_ex(("127.0.0.1", int(environment["PORT"]))) != 0, "the scheduler still listens"


def listeners(pids: Path) -> set[str]:
    """Where a cluster and all its processes listen."""
    roots = [psutil.Process(int(pid)) for pid in pids.read_text().split()]
    family = [process for root in roots for process in (root, *root.children(recursive=True))]
    return {c.laddr.ip for process in family for c in process.net_connections("tcp") if c.status == psutil.CONN_LISTEN}


def run_on(address: str, folder: Path, **environment: str) -> dict[str, bytes]:
    result = folder / f"{address[:3]}.zarr"
    ended = command("dlscale", "run", job_file(folder), "--cluster", address, "--output", result, cwd=folder, **environment)
    assert ended.returncode == 0, ended.stderr
    return arrays(result)


def test_local_cluster_serves_jobs(tmp_path, alone):
    settings = {"DASK_CONFIG": str(tmp_path / "cluster" / "tls" / "dask.yaml")}
    with local_cluster(tmp_path) as address:
        assert run_on(address, tmp_path, **settings) == alone
        assert {oct(key.stat().st_mode)[-3:] for key in (tmp_path / "cluster" / "tls").iterdir()} == {"600"}
        assert listeners(tmp_path / "cluster" / "pids") == {"127.0.0.1"}
        stranger = command("dlscale", "run", job_file(tmp_path), "--cluster", address, cwd=tmp_path)
        assert (stranger.returncode, "needs certificates" in stranger.stderr) == (2, True)
        again = command(DEPLOY / "local" / "cluster.sh", "start", cwd=tmp_path, FOLDER=str(tmp_path / "cluster"))
        assert (again.returncode, "stop that cluster first" in again.stderr) == (2, True)


@pytest.mark.skipif(shutil.which("mpirun", path=ENVIRONMENT["PATH"]) is None, reason="there is no mpirun here")
def test_mpirun_script_goes_on_after_a_rank_was_killed(tmp_path, alone):
    spec, result = job_file(tmp_path, cluster="mpi"), tmp_path / "result.zarr"
    # The first start stands still behind its third checkpoint.
    (tmp_path / "bin").mkdir()
    (program := tmp_path / "bin" / "dlscale").write_text(
        f"""#!/bin/sh
[ "$1" != run ] || exec env HELD_AT="checkpoint .* 3" {sys.executable} {STAGED} {sys.executable} -m dlscale "$@"
exec {sys.executable} -m dlscale "$@"
"""
    )
    program.chmod(0o700)
    arguments = [DEPLOY / "mpirun" / "job.sh", spec, "--output", result]
    path = os.pathsep.join([str(program.parent), ENVIRONMENT["PATH"]])
    environment = ENVIRONMENT | {"RANKS": "2", "MPIRUN_OPTIONS": "--oversubscribe", "PATH": path}
    with subprocess.Popen(arguments, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as script:
        end = time.monotonic() + 240
        try:
            while psutil.STATUS_STOPPED not in ranks_of(script).values():
                assert script.poll() is None
                assert time.monotonic() < end
                time.sleep(0.02)
            (other,) = (rank for rank, status in ranks_of(script).items() if status != psutil.STATUS_STOPPED)
            other.kill()
            _, errors = script.communicate(timeout=480)
        finally:
            if script.poll() is None:
                ranks = ranks_of(script)
                script.kill()
                for rank in ranks:
                    rank.kill()
    assert script.returncode == 0, errors
    assert "job.sh: resuming" in errors
    assert arrays(result) == alone


def ranks_of(script: subprocess.Popen[str]) -> dict[psutil.Process, str]:
    """Each of the ranks that a script has started, and its status."""
    found = {}
    for child in psutil.Process(script.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # some other command, which has just ended
            if "OMPI_COMM_WORLD_RANK" in child.environ():
                found[child] = child.status()
    return found


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed here")
def test_tls_cluster_serves_who_has_the_key_and_nobody_else(tmp_path):
    made = command(DEPLOY / "tls" / "certificates.sh", tmp_path / "tls", cwd=tmp_path)
    assert made.returncode == 0, made.stderr
    assert oct((tmp_path / "tls" / "dask-key.pem").stat().st_mode)[-3:] == "600"
    settings = {"DASK_CONFIG": str(tmp_path / "tls" / "dask.yaml")}
    with local_cluster(tmp_path, WORKERS="1", **settings) as address:
        assert not (tmp_path / "cluster" / "tls").exists()
        given = yaml.safe_load(Path(settings["DASK_CONFIG"]).read_text())["distributed"]["comm"]["tls"]
        keys = {"ca-file": given["ca-file"], "client.cert": given["client"]["cert"], "client.key": given["client"]["key"]}
        with (
            dask.config.set({f"distributed.comm.tls.{name}": path for name, path in keys.items()}),
            open_cluster(address) as cluster,
        ):
            assert len(cluster.workers()) == 1
        with pytest.raises(SpecError, match="needs certificates"):
            open_cluster(address)


def test_settings_are_valid_yaml_that_dask_knows():
    import distributed  # noqa: F401  (defines the settings)

    def check(given, known, place):
        for name, value in given.items():
            assert name in known, f"{place}.{name} is no setting of Dask"
            if isinstance(value, dict):
                check(value, known[name], f"{place}.{name}")

    check(yaml.safe_load((DEPLOY / "dask.yaml").read_text()), dask.config.config, "")


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*")), ids=lambda path: str(path.relative_to(DEPLOY)))
def test_every_file_is_headed_by_its_commands_and_is_in_the_guide(path):
    if path.is_dir() or path.name == "README.md":
        return
    text = path.read_text()
    head = text.split("\n\n")[0] if path.suffix != ".yaml" else text
    assert re.search(r"^#   \S", head, re.M) or path.name == "dask.yaml", "no command in its head"
    guide = (DEPLOY / "README.md").read_text()
    assert str(path.relative_to(DEPLOY)) in guide
    # What a comment names exists.
    for name in re.findall(r"deploy/[\w./-]+\w", text):
        assert (ROOT / name).exists(), name
    if path.suffix in (".sh", ".sbatch"):
        shell = "bash" if path.suffix == ".sbatch" else "sh"
        assert command(shell, "-n", path, cwd=ROOT).returncode == 0


def test_container_file_copies_what_exists():
    text = (DEPLOY / "container" / "Containerfile").read_text()
    for sources in re.findall(r"^COPY (.+) \S+$", text, re.M):
        for source in sources.split():
            assert (ROOT / source).exists(), source
    assert re.findall(r'"/source\[(.+)\]"', text) == ["mpi,formats,serve"]
