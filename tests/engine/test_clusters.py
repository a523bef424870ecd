"""Real worker processes: the same bits for any number of them, one that is killed, one that stands still."""

from __future__ import annotations

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing import spawn
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from helpers import Array, gaussian, store

from dlscale.engine.clusters import Cluster, ClusterFacts, describe_cluster, open_cluster
from dlscale.engine.clusters.lost_workers import describe_loss
from dlscale.engine.clusters.watching import Watch, Wishes
from dlscale.engine.graphs import Task
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.run import Run
from dlscale.errors import DlscaleError, NonFiniteError, SpecError, StalledError
from dlscale.linalg.pca import PCAOptions, compute_pca, plan_pca
from dlscale.linalg.qr.tall import TallQROptions, compute_tall_qr, plan_tall_qr
from dlscale.linalg.svd import SVDOptions, compute_svd, plan_svd
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix
from dlscale.storage.results import ResultGroup
from tests.engine.launching import wait_for

SHAPE = (2000, 50)
GRID = RowGrid(2000, 100, 200)


@pytest.fixture(scope="module")
def matrices(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("matrices")
    A = gaussian(*SHAPE) * np.geomspace(1, 1e-3, SHAPE[1]) + 3.0
    layouts: dict[str, dict[str, Any]] = {
        "row strips": {"chunks": (100, 50), "compressors": None},
        "squares": {"chunks": (70, 30), "compressors": None},
        "zstd": {"chunks": (90, 50)},
        "sharded": {"chunks": (50, 25), "shards": (200, 50)},
    }
    return {name: store(folder / f"{name}.zarr", A, **layout) for name, layout in layouts.items()}


JOBS: dict[str, tuple[Any, Any, Any]] = {
    "svd": (plan_svd, compute_svd, SVDOptions(n_components=5, power_iterations=1)),
    "exact": (plan_svd, compute_svd, SVDOptions(n_components=5, method="exact")),
    "pca": (plan_pca, compute_pca, PCAOptions(n_components=5, solver="randomized", power_iterations=1, scores=True)),
    "covariance": (plan_pca, compute_pca, PCAOptions(n_components=5, solver="covariance", scores=True)),
    "qr": (plan_tall_qr, compute_tall_qr, TallQROptions()),
}


def run(cluster: Cluster, job: str, source: Path, folder: Path) -> dict[str, bytes]:
    """All arrays of the result, as bytes; on disk, as a job has them."""
    from dataclasses import replace

    plan_of, compute, options = JOBS[job]
    A = open_matrix(source)
    plan = plan_of(A, options, cluster.facts)
    plan = replace(plan, grids=replace(plan.grids, rows=GRID))
    result = ResultGroup(folder / "result.zarr")
    outcome = compute(Run(cluster, checkpoint=Checkpoint(folder / "checkpoint.zarr"), result=result), A, options, plan)
    assert outcome.certificate.passed
    path = result.publish({})
    stored = {name: open_matrix(path / name) for name in outcome.stored}
    arrays = outcome.arrays | {name: B.read(0, B.shape[0]) for name, B in stored.items()}
    return {name: array.tobytes() for name, array in arrays.items()}


@pytest.fixture(scope="module")
def reference(
    shared_clusters: Callable[[int], Cluster], matrices: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, dict[str, bytes]]:
    """Every job on one worker."""
    return {job: run(shared_clusters(1), job, matrices["row strips"], tmp_path_factory.mktemp(job)) for job in JOBS}


@pytest.mark.parametrize("job", JOBS)
def test_same_bits_on_any_number_of_workers(
    shared_clusters: Any, matrices: dict[str, Path], reference: Any, tmp_path: Path, job: str
) -> None:
    """One and two; four are ranks, in test_mpi.py."""
    assert run(shared_clusters(2), job, matrices["row strips"], tmp_path) == reference[job]


@pytest.mark.parametrize(
    ("job", "name"), [("svd", "squares"), ("exact", "sharded"), ("pca", "zstd"), ("covariance", "squares"), ("qr", "sharded")]
)
def test_same_bits_in_any_layout(
    shared_clusters: Any, matrices: dict[str, Path], reference: Any, tmp_path: Path, job: str, name: str
) -> None:
    assert run(shared_clusters(2), job, matrices[name], tmp_path) == reference[job]


@pytest.mark.parametrize("job", JOBS)
@pytest.mark.parametrize("threads", [1, 4])
def test_same_bits_on_any_number_of_threads(
    matrices: dict[str, Path], reference: Any, tmp_path: Path, job: str, threads: int
) -> None:
    with open_cluster(ClusterFacts("threads", 1, threads, 2**31)) as cluster:
        assert run(cluster, job, matrices["row strips"], tmp_path) == reference[job]


def test_an_error_in_a_worker_arrives_as_it_is(shared_clusters: Any, tmp_path: Path) -> None:
    A = gaussian(*SHAPE)
    A[1234, 5] = np.nan
    path = store(tmp_path / "A.zarr", A, chunks=(100, 50))
    with pytest.raises(NonFiniteError, match="row 1234, column 5"):
        run(shared_clusters(2), "svd", path, tmp_path)


@dataclass(frozen=True)
class Held(Fold):
    """A sum, and its blocks; in the middle a process says that it is at work, and waits until it may go on."""

    folder: Path

    def start(self) -> State:
        return {"sum": np.zeros(50)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        if first_row >= SHAPE[0] // 2:
            (self.folder / f"{os.getpid()}").touch()
            while not (self.folder / "go").exists():
                time.sleep(0.02)
        state["sum"] += A.sum(axis=0)
        return (A,)


@pytest.mark.parametrize(
    ("n_workers", "number", "cause"),
    [(1, signal.SIGSEGV, "crashed by a segmentation fault"), (2, signal.SIGKILL, "was killed by SIGKILL")],
)
def test_a_worker_killed_in_the_middle_of_a_pass(
    shared_clusters: Any, matrices: dict[str, Path], tmp_path: Path, n_workers: int, number: int, cause: str
) -> None:
    """Its blocks are computed again, by another one or its successor; the same bits, and outputs whole. The cause is known."""
    A, cluster, killed = open_matrix(matrices["row strips"]), shared_clusters(n_workers), []

    def kill(folder: Path) -> None:
        wait_for(lambda: killed.extend(int(file.name) for file in folder.iterdir()) or killed)
        del killed[1:]
        os.kill(killed[0], number)
        wait_for(lambda: cluster.losses)
        (folder / "go").touch()

    results = []
    for attempt in ("killed", "quiet"):
        folder = tmp_path / attempt
        folder.mkdir()
        result = ResultGroup(tmp_path / f"{attempt}.zarr")
        passes = Passes(Run(cluster, result=result))
        output = passes.run.output("B", SHAPE, A.dtype, GRID)
        killer = threading.Thread(target=kill, args=(folder,))
        killer.start() if attempt == "killed" else (folder / "go").touch()
        state = passes.sweep("held", A, Held(folder), GRID, outputs=[output])
        if attempt == "killed":
            killer.join()
        path = result.publish({})
        results.append((state["sum"].tobytes(), open_matrix(path / "B").read(0, SHAPE[0]).tobytes()))
    assert results[0] == results[1]
    (said,) = cluster.losses
    cluster.losses.clear()
    told = re.fullmatch(rf"Worker [01] {cause}. It had (\d\.\d\d) GB of memory at most.", said)
    assert told
    assert 0.05 <= float(told[1]) < 2.0


@pytest.mark.parametrize(
    ("exitcode", "out_of_memory", "words"),
    [
        (-signal.SIGKILL, True, "the machine ran out of memory"),
        (-signal.SIGKILL, False, "was killed by SIGKILL"),
        (-signal.SIGTERM, False, "as a batch system does that needs its machine"),
        (-signal.SIGBUS, True, "crashed by a bus error"),
        (3, False, "with exit code 3"),
    ],
)
def test_what_took_a_worker_is_said(exitcode: int, out_of_memory: bool, words: str) -> None:
    said = describe_loss("1", exitcode, 3 * 10**9, out_of_memory=out_of_memory)
    assert said.startswith("Worker 1 ")
    assert words in said
    assert said.endswith("It had 3.00 GB of memory at most.")


@contextmanager
def no_first_workers(folder: Path, n: int) -> Iterator[Callable[[], int]]:
    """The first n worker processes that are started kill themselves instead of working; how many were started."""
    starts, python, program = folder / "starts", spawn.get_executable(), folder / "python"
    folder.mkdir()
    starts.touch()
    program.write_text(
        f"""#!/bin/sh
case "$*" in
*spawn_main*)
    echo >> {starts}
    [ "$(wc -l < {starts})" -gt {n} ] || kill -KILL $$
esac
exec {os.fsdecode(python)} "$@"
"""
    )
    program.chmod(0o700)
    spawn.set_executable(str(program))
    try:
        yield lambda: len(starts.read_bytes())
    finally:
        spawn.set_executable(python)


def memory_settings() -> list[Any]:
    return [dask.config.get(f"distributed.worker.memory.{what}") for what in ("target", "spill", "pause", "terminate")]


def messages_kept(cluster: Any) -> int:
    """How many of the messages that were sent the driver, its scheduler and its workers keep."""
    cluster.client.submit(abs, -1, pure=False).result()
    streams = [cluster.client.scheduler_comm, *cluster.local.scheduler.stream_comms.values()]
    of_workers = cluster.client.run(lambda dask_worker: len(dask_worker.batched_stream.recent_message_log)).values()
    return sum(len(stream.recent_message_log) for stream in streams) + sum(of_workers)


ENVIRONMENTS = """
import json, os, signal
from contextlib import closing
from dlscale.engine.clusters import open_cluster
from tests.engine.launching import wait_for

def environment():
    return dict(os.environ)

if __name__ == "__main__":
    seen = [environment()]
    with closing(open_cluster({"type": "local", "workers": 2, "threads": 1, "memory": "2GB"})) as cluster:
        first = cluster.workers()
        seen += [environment(), *cluster.client.run(environment).values()]
        os.kill(next(iter(cluster.client.run(os.getpid).values())), signal.SIGKILL)
        wait_for(lambda: len(cluster.workers()) == 2 and cluster.workers() - first)
    seen.append(environment())
    print(json.dumps(seen))
"""


def test_variables_for_workers_are_taken_back(tmp_path: Path) -> None:
    """Else what the caller starts afterwards would compute with one thread."""
    (tmp_path / "program.py").write_text(ENVIRONMENTS)
    unset = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "PYTHONHASHSEED", "__DASK_PARENT_PID")
    given = {name: value for name, value in os.environ.items() if name not in unset}
    given |= {"OPENBLAS_NUM_THREADS": "7", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, tmp_path / "program.py"], env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, meanwhile, *workers, after = json.loads(done.stdout)
    for seen in (meanwhile, after):
        assert {name: value for name, value in seen.items() if name != "__DASK_PARENT_PID"} == before
    # What the caller has set holds for workers too.
    assert [(worker["OMP_NUM_THREADS"], worker["OPENBLAS_NUM_THREADS"]) for worker in workers] == [("1", "7")] * 2


def test_a_worker_killed_while_it_starts_is_started_again(tmp_path: Path) -> None:
    """With the cluster, and in the place of another that was killed, however long it stays away."""
    cluster: Any = open_cluster({"type": "local", "workers": 1, "threads": 1, "memory": "1GB"})
    with closing(cluster):
        with no_first_workers(tmp_path / "first", 2) as n_starts:
            first = cluster.workers()
        assert (len(first), n_starts(), len(cluster.losses)) == (1, 3, 2)
        (settings,) = cluster.client.run(memory_settings).values()
        assert settings == [False] * 4
        assert messages_kept(cluster) == 0
        with (
            no_first_workers(tmp_path / "again", 1) as n_starts,
            dask.config.set({"distributed.deploy.lost-worker-timeout": "10ms"}),
        ):
            (running,) = cluster.client.run(os.getpid).values()
            os.kill(running, signal.SIGKILL)
            wait_for(lambda: cluster.workers() - first)
        assert (n_starts(), len(cluster.losses)) == (2, 4)
        assert {said[:35] for said in cluster.losses} == {"Worker 0 was killed by SIGKILL. It "}
        # With Dask's own settings it would pause near its limit, and a job on it wait for ever.
        assert list(cluster.client.run(memory_settings).values()) == [settings]
        assert messages_kept(cluster) == 0


def test_workers_that_never_come_up_are_given_up(tmp_path: Path) -> None:
    cluster = open_cluster({"type": "local", "workers": 1, "threads": 1, "memory": "1GB"})
    with (
        closing(cluster),
        no_first_workers(tmp_path / "all", 99) as n_starts,
        pytest.raises(DlscaleError, match=r"The workers of the local cluster did not start\. Worker 0 was killed by SIGKILL"),
    ):
        cluster.workers()
    assert n_starts() == 5


@dataclass(frozen=True)
class Deadly(Held):
    """A block that no process survives."""

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        os.kill(os.getpid(), signal.SIGABRT)
        return ()


def test_a_block_that_takes_every_worker_ends_the_pass(
    shared_clusters: Any, matrices: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    A, cluster = open_matrix(matrices["row strips"]), shared_clusters(1)
    cluster.client.wait_for_workers(1)
    monkeypatch.setattr(cluster.local.scheduler, "allowed_failures", 0)
    with pytest.raises(DlscaleError, match=r"The same task was lost with each of 1 workers\. Worker 0 crashed by an abort"):
        Passes(Run(cluster)).sweep("deadly", A, Deadly(tmp_path), RowGrid(2000, 1000, 2000))


@dataclass(frozen=True)
class Product(Fold):
    """``A W`` summed over rows, for a large W."""

    W: Array

    def start(self) -> State:
        return {"sum": np.zeros(self.W.shape[1])}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        state["sum"] += (A @ self.W).sum(axis=0)
        return ()


def test_large_operands_travel_without_a_word(shared_clusters: Any, matrices: dict[str, Path]) -> None:
    """Dask warns of graphs over 10 MB, and warnings are errors here."""
    A = open_matrix(matrices["row strips"])
    W = gaussian(50, 40_000)
    state = Passes(Run(shared_clusters(2))).sweep("large", A, Product(W), RowGrid(2000, 1000, 1000))
    np.testing.assert_allclose(state["sum"], A.read(0, 2000).sum(axis=0) @ W, atol=1e-8)


def test_two_clusters_at_a_time_do_not_get_in_each_others_way(shared_clusters: Any) -> None:
    """Two jobs on one machine: no fixed port."""
    assert shared_clusters(1).client.scheduler.address != shared_clusters(2).client.scheduler.address


def test_workers_are_seen_while_the_client_asks_for_other_things(shared_clusters: Any) -> None:
    """Dask's client asks its scheduler for a summary without workers now and then."""
    cluster = shared_clusters(2)
    client = cluster.client
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            client.sync(client._update_scheduler_info)

    asking = [threading.Thread(target=ask) for _ in range(3)]
    for thread in asking:
        thread.start()
    try:
        assert {len(cluster.workers()) for _ in range(200)} == {2}
    finally:
        ended.set()
        for thread in asking:
            thread.join()


def test_results_that_are_released_leave_the_workers_at_once(shared_clusters: Any) -> None:
    """Also those that were long waited for, and before Python looks for cycles of references."""
    cluster = shared_clusters(2)
    key = ("held", uuid.uuid4().hex)

    def held() -> bool:
        return any(str(key) in map(str, keys) for keys in cluster.client.has_what().values())

    gc.disable()
    try:
        watch = Watch("held", lambda event: None, lambda: "")
        handles = cluster.hold({key: Task(key, wait_and_make, 2.5)}, [key], {}, Wishes({}, {}), watch)
        assert held()
        cluster.release(handles.values())
        wait_for(lambda: not held())
    finally:
        gc.enable()


def wait_and_make(seconds: float) -> Array:
    time.sleep(seconds)
    return np.zeros(1000)


@dataclass(frozen=True)
class Stuck(Fold):
    """A pass of which no block ends while a file is there."""

    held: Path

    def start(self) -> State:
        return {"sum": np.zeros(50)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        while self.held.exists():
            time.sleep(0.02)
        return ()


def test_a_pass_without_progress_ends(shared_clusters: Any, matrices: dict[str, Path], tmp_path: Path) -> None:
    A = open_matrix(matrices["row strips"])
    passes = Passes(Run(shared_clusters(2), stall_seconds=1.0))
    (held := tmp_path / "held").touch()
    with pytest.raises(StalledError, match=r"No progress for 1 s.*Waiting for"):
        passes.sweep("stuck", A, Stuck(held), RowGrid(2000, 1000, 1000))
    held.unlink()


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mainframe", "local, threads, mpi, slurm"),
        ({"type": "local", "cores": 3}, "'cores'"),
        ({"type": "local", "workers": -1}, "positive"),
        ({"type": "local", "memory": "100MB"}, "at least"),
    ],
)
def test_what_is_not_a_cluster(spec: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        describe_cluster(spec)


def test_memory_is_shared_out() -> None:
    facts = describe_cluster({"type": "local", "workers": 2, "threads": 3, "memory": "4GB"})
    assert (facts.n_workers, facts.threads_per_worker, facts.n_threads) == (2, 3, 6)
    assert facts.memory_bytes * 2 < 4e9


def test_a_running_cluster_is_joined(shared_clusters: Any, matrices: dict[str, Path], reference: Any, tmp_path: Path) -> None:
    shared_clusters(2).client.wait_for_workers(2)
    address, security = shared_clusters(2).client.scheduler.address, shared_clusters(2).local.security
    with pytest.raises(SpecError, match="needs certificates"):
        open_cluster(address)
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    certificate.write_text(security.tls_client_cert)
    key.write_text(security.tls_client_key)
    files = {"ca-file": str(certificate), "client.cert": str(certificate), "client.key": str(key)}
    with dask.config.set({f"distributed.comm.tls.{name}": path for name, path in files.items()}), open_cluster(address) as cluster:
        assert (cluster.facts.kind, cluster.facts.n_workers) == ("tcp", 2)
        assert run(cluster, "qr", matrices["row strips"], tmp_path) == reference["qr"]
