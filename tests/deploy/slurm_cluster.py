"""A real Slurm on this machine: munged, slurmctld and slurmd with a configuration and ports of their own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
from jobs_here import free_ports

DAEMONS = ("munged", "slurmctld", "slurmd")
POLL_SECONDS = 0.4

_CONFIGURATION = """
ClusterName=dlscale
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
# A requeued job waits until its credential has expired: two minutes, if nothing else is said.
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
# What takes more memory than it asked for is killed, as by the cgroups of a cluster.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerNode=2500
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1
ReturnToService=2
# More processors than there may be, so that jobs that mostly wait need not wait for each other.
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
# What is sent here waits.
PartitionName=closed Nodes={host} State=DOWN
"""


class SlurmCluster:
    """Commands of a running Slurm.

    Parameters
    ----------
    folder : Path
        Holds its configuration, state and logs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf")}
        self._looking = threading.Lock()
        self._looked, self._seen = -POLL_SECONDS, dict[str, dict[str, str]]()

    def command(self, *arguments: str | Path) -> str:
        """Run a command of Slurm; its standard output."""
        ended = subprocess.run([*map(str, arguments)], env=self.environment, capture_output=True, text=True, timeout=300)
        assert ended.returncode == 0, f"{arguments}: {ended.stderr}"
        return ended.stdout.strip()

    def facts(self, job: str) -> dict[str, str]:
        """What ``scontrol show job`` says."""
        return _facts(self.command("scontrol", "-o", "show", "job", job))

    def seen(self) -> dict[str, dict[str, str]]:
        """The facts of all jobs, a moment old: many wait at the same time, and one command of Slurm tells all of them."""
        with self._looking:
            if time.monotonic() - self._looked >= POLL_SECONDS:
                told = [_facts(line) for line in self.command("scontrol", "-o", "show", "jobs").splitlines()]
                self._seen = {facts["JobId"]: facts for facts in told if "JobId" in facts}
                self._looked = time.monotonic()
            return self._seen

    def wait(self, job: str, *states: str, seconds: float = 300.0) -> dict[str, str]:
        """Wait until a job is in one of the states."""
        end = time.monotonic() + seconds
        while (facts := self.seen().get(job, {})).get("JobState") not in states:
            assert time.monotonic() < end, f"job {job} is not {states}: {facts}, {self.logs()}"
            time.sleep(POLL_SECONDS / 4)
        return facts

    def logs(self) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(log.read_text(errors="replace")[-2000:] for log in sorted(self.folder.glob("*.log")))


def _facts(line: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in line.split() if "=" in word)


def missing_programs() -> list[str]:
    return [name for name in (*DAEMONS, "sbatch", "srun") if shutil.which(name) is None]


@contextmanager
def running_slurm(folder: Path) -> Iterator[SlurmCluster]:
    """Start the daemons of a one-node Slurm; stop them at the end."""
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir(mode=0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    cluster, host = SlurmCluster(folder), socket.gethostname().split(".")[0]
    controller_port, node_port = free_ports(2)
    memory = psutil.virtual_memory().total // 2**20 * 3 // 4
    user = psutil.Process().username()
    configuration = _CONFIGURATION.format(
        host=host, controller_port=controller_port, node_port=node_port, user=user, folder=folder, memory=memory
    )
    (folder / "slurm.conf").write_text(configuration)
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    with ExitStack() as daemons:
        places = [f"--{option}={folder}/munge/{name}" for option, name in munge.items()]
        daemons.enter_context(_daemon(cluster, "munged", "--force", "--foreground", *places))
        _until(lambda: (folder / "munge" / "socket").exists(), cluster)
        daemons.enter_context(_daemon(cluster, "slurmctld", "-D", "-i", "-f", str(folder / "slurm.conf")))
        daemons.enter_context(_daemon(cluster, "slurmd", "-D", "-N", host, "-f", str(folder / "slurm.conf")))
        _until(lambda: _says(cluster, "sinfo", "-h", "-o", "%T") == "idle", cluster)
        yield cluster
        subprocess.run(["scancel", "--full", "--user", user], env=cluster.environment, timeout=30)
        _until(lambda: _says(cluster, "squeue", "-h") == "", cluster)


@contextmanager
def _daemon(cluster: SlurmCluster, *command: str) -> Iterator[None]:
    with open(cluster.folder / f"{command[0]}.out.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=cluster.environment)
        try:
            yield
        finally:
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _says(cluster: SlurmCluster, *command: str) -> str | None:
    ended = subprocess.run(command, env=cluster.environment, capture_output=True, text=True, timeout=300)
    return ended.stdout.strip() if ended.returncode == 0 else None


def _until(condition: Callable[[], bool], cluster: SlurmCluster, *, seconds: float = 300.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"Slurm did not start: {cluster.logs()}"
        time.sleep(0.1)
