"""Every kind of fault on every kind of job: the right answer, or words that are true; nothing lost, and no wait without end.

Three cases at random in a usual run; with DLSCALE_CHAOS_RUNS=N, N faults on each kind. `ledger.py` counts what was written down.
"""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
from drawing import with_pages
from every_kind import JOBS, Arrays, arrays_of, check_same, write_job
from hosts import SCHEDULER, cluster, two_hosts
from victims import (
    ENVIRONMENT,
    RUNS,
    SEED,
    Ended,
    ask,
    fault,
    finish,
    job_folder,
    job_folders,
    kill_tree,
    killed_at_the_end,
    leftovers,
    spawn,
    system,
    wait_for,
    workers_of,
)

from dlscale.batch.kinds import KINDS

#: No command takes longer, whatever happened to its job.
DEADLINE_SECONDS = 240.0

#: About what a process takes to load what draws its report, and to draw it.
REPORT_SECONDS = 1.0

#: A fault may meet a job while its report is drawn.
DRAWING = with_pages(ENVIRONMENT)["PYTHONPATH"]

#: Changes the time of day of a process after a while, as NTP does.
STEP = """
import os, threading, time
real, started, after, step = time.time, time.monotonic(), float(os.environ["STEP_AFTER"]), float(os.environ["STEP_SECONDS"])
time.time = lambda: real() + (step if time.monotonic() - started > after else 0.0)
"""


@pytest.fixture(scope="module")
def calm(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Arrays, float]]:
    """The arrays of an undisturbed run of a kind in one process, and about how long a job is at work that draws its report."""
    known: dict[str, tuple[Arrays, float]] = {}

    def run(kind: str) -> tuple[Arrays, float]:
        if kind not in known:
            folder = tmp_path_factory.mktemp(kind)
            write_job(folder, kind, inputs)
            ended = ask("run", "job.yaml", "--cluster", "threads", cwd=folder)
            assert ended.code == 0, ended.err
            known[kind] = arrays_of(job_folder(folder) / "result.zarr"), ended.seconds + REPORT_SECONDS
        return known[kind]

    return run


class Case:
    """One job of a kind, whose run a fault meets at a random moment.

    Parameters
    ----------
    kind : str
    folder : Path
    expected : mapping
    seconds : float
        Of an undisturbed run.
    dice : random.Random
    """

    def __init__(self, kind: str, folder: Path, expected: Arrays, seconds: float, dice: random.Random) -> None:
        self.kind, self.folder, self.expected, self.dice = kind, folder, expected, dice
        self.moment = dice.uniform(0.0, 1.0) * seconds

    def note(self, what: str) -> None:
        fault(f"{what} of {self.kind}")

    def stopped(self, number: int = signal.SIGKILL) -> str:
        """Start the job, and end it with a signal at its moment; its id."""
        with started(self.folder) as process:
            time.sleep(self.moment)
            if process.poll() is None:
                kill_tree(process, number)
            finish(process, DEADLINE_SECONDS)
        return job_folder(self.folder).name

    def resume(self, job: str) -> Ended:
        return quiet(ask("resume", job, "--cluster", "threads", cwd=self.folder))

    def check(self, ended: Ended) -> None:
        """The job has succeeded, with the right answer, and its result is as it was written."""
        assert ended.code == 0 or "has succeeded" in ended.err, ended
        job = job_folder(self.folder)
        check_same(self.kind, arrays_of(job / "result.zarr"), self.expected)
        assert leftovers(self.folder) == set()
        verified = quiet(ask("verify", job / "result.zarr", cwd=self.folder))
        assert verified.code == 0, verified


def quiet(ended: Ended) -> Ended:
    assert "Traceback" not in ended.err, ended.err
    return ended


@contextmanager
def started(folder: Path, *more: str, under: Sequence[str] = (), **environment: str) -> Iterator[subprocess.Popen[str]]:
    """The job of a folder from the moment that it has a folder of its own."""
    more, environment = more or ("--cluster", "threads"), {"PYTHONPATH": DRAWING, **environment}
    with killed_at_the_end(spawn("run", "job.yaml", *more, cwd=folder, under=under, **environment)) as process:
        wait_for(lambda: job_folders(folder), alive=process)
        yield process


def kill(case: Case) -> None:
    case.note("kill")
    case.check(case.resume(case.stopped()))


def freeze(case: Case) -> None:
    """Whoever tries to go on with the job meanwhile is refused."""
    with started(case.folder) as process:
        time.sleep(case.moment)
        if process.poll() is None:
            kill_tree(process, signal.SIGSTOP)
            case.note("freeze")
            other = case.resume(job_folder(case.folder).name)
            assert other.code == 2, other
            kill_tree(process, signal.SIGCONT)
        case.check(quiet(finish(process, DEADLINE_SECONDS)))


def freeze_a_worker(case: Case) -> None:
    with started(case.folder, "--cluster", "local", "--set", "cluster.workers=2", "--set", "cluster.threads=1") as process:
        workers = wait_for(lambda: workers_of(process) or process.poll() is not None)
        time.sleep(case.moment)
        victims = workers_of(process) if workers is not True else []
        for worker in victims[:1]:
            with suppress(psutil.NoSuchProcess):
                worker.suspend()
                case.note("frozen worker")
            time.sleep(3.0)
            with suppress(psutil.NoSuchProcess):  # where the job had no more need of it
                worker.resume()
        case.check(quiet(finish(process, DEADLINE_SECONDS)))


def two_resumes(case: Case) -> None:
    job = case.stopped(case.dice.choice([signal.SIGKILL, signal.SIGTERM]))
    case.note("two resumes")
    both = [spawn("resume", job, "--cluster", "threads", cwd=case.folder) for _ in range(2)]
    ends = sorted((quiet(finish(process, DEADLINE_SECONDS)) for process in both), key=lambda ended: ended.code)
    assert ends[0].code == 0 or "has succeeded" in ends[0].err, ends
    assert ends[1].code == 2, ends
    case.check(ends[0])


def damage(case: Case) -> None:
    """A bit, the end or the whole of any file of the job: it goes on to the right answer, or says which file is damaged."""
    job = case.stopped()
    files = sorted(path for path in job_folder(case.folder).rglob("*") if path.is_file() and path.name != "lock")
    path = case.dice.choice(files)
    how, data = case.dice.choice(["flip", "cut", "removal"]), bytearray(path.read_bytes())
    case.note(f"{how} of {'a chunk' if '/c/' in str(path) else path.name}")
    if how == "removal" or not data:
        path.unlink()
    elif how == "cut":
        path.write_bytes(data[: case.dice.randrange(len(data))])
    else:
        bit = case.dice.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
    ended = case.resume(job)
    published = (job_folder(case.folder) / "result.zarr").exists() and "result.zarr" in path.parts
    if published:  # it had ended: nothing but `verify` looks at it again
        assert ask("verify", job_folder(case.folder) / "result.zarr", cwd=case.folder).code == 1 or path.name == "zarr.json"
        return
    if ended.code == 2 and "has succeeded" not in ended.err:
        unfinished = path.parent.name == ".result.zarr.partial"
        assert unfinished or path.name in ("state.json", "spec.yaml", "plan.json", "inputs.json"), (path, ended)
        assert path.name in ended.err or "not the folder of a job" in ended.err, ended
        listed = quiet(ask("jobs", cwd=case.folder))
        assert listed.code == 0
        return
    case.check(ended)


def full_disk(case: Case) -> None:
    place = case.folder / "dlscale-workspace"
    place.mkdir()
    system("mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", place)
    try:
        with started(case.folder) as process:
            time.sleep(case.moment)
            with open(place / "ballast", "wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(65536))
                except OSError:
                    case.note("full disk")
            quiet(finish(process, DEADLINE_SECONDS))
        (place / "ballast").unlink()
        case.check(case.resume(job_folder(case.folder).name))
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def failing_disk(case: Case) -> None:
    """Of a sudden nothing can be made, renamed or removed in the job's folder."""
    with started(case.folder) as process:
        time.sleep(case.moment)
        job = job_folder(case.folder)
        system("chattr", "+i", job)
        try:
            case.note("failing disk")
            quiet(finish(process, DEADLINE_SECONDS))
        finally:
            system("chattr", "-i", job)
    case.check(case.resume(job.name))


def clock_step(case: Case) -> None:
    (case.folder / "site").mkdir()
    (case.folder / "site" / "sitecustomize.py").write_text(STEP)
    step = case.dice.choice([-7200.0, -20.0, 20.0, 7200.0])
    path = f"{case.folder / 'site'}:{DRAWING}"
    with started(case.folder, PYTHONPATH=path, STEP_AFTER=str(case.moment), STEP_SECONDS=str(step)) as process:
        case.note("clock step")
        time.sleep(case.moment)
        if process.poll() is None:
            listed = quiet(ask("jobs", "--json", cwd=case.folder))
            assert listed.record[0]["state"] not in ("lost", "damaged"), listed
        case.check(quiet(finish(process, DEADLINE_SECONDS)))


def partition(case: Case) -> None:
    """Two hosts cannot reach each other: for a moment, which nothing comes of, or until the job says that it waits in vain."""
    for_good, spec = case.dice.random() < 0.25, case.folder / "job.yaml"
    spec.write_text(spec.read_text() + "\nstall: 20s\n")
    with two_hosts() as hosts, cluster(hosts, case.folder / "dask"):
        with started(case.folder, "--cluster", SCHEDULER, under=hosts.on(0)) as process:
            time.sleep(case.moment)
            hosts.cable("down")
            case.note("broken connection for good" if for_good else "broken connection for 2 s")
            if not for_good:
                time.sleep(2.0)
                hosts.cable("up")
            ended = quiet(finish(process, DEADLINE_SECONDS))
        if for_good and ended.code:
            assert ended.code == 1, ended
            assert "No progress for 20 s" in ended.err, ended
            ended = case.resume(job_folder(case.folder).name)
    case.check(ended)


def removal(case: Case) -> None:
    with started(case.folder) as process:
        time.sleep(case.moment)
        job = job_folder(case.folder)
        job.rename(case.folder / "elsewhere")
        case.note("move of the folder")
        quiet(finish(process, DEADLINE_SECONDS))
    assert job_folders(case.folder) == []
    (case.folder / "elsewhere").rename(job)
    case.check(case.resume(job.name))


FAULTS = (kill, freeze, freeze_a_worker, two_resumes, damage, full_disk, damage, failing_disk, clock_step, partition, removal)
KINDS_OF_JOBS = sorted(JOBS)
ALL = [
    (run, FAULTS[(run + position) % len(FAULTS)], kind)
    for run in range(max(RUNS, 1))
    for position, kind in enumerate(KINDS_OF_JOBS)
]
CHOSEN = ALL if RUNS > 1 else random.Random(SEED).sample(ALL, 3)


@pytest.mark.parametrize(("run", "meet", "kind"), CHOSEN, ids=[f"{run}-{meet.__name__}-{kind}" for run, meet, kind in CHOSEN])
def test_a_fault(
    run: int, meet: Callable[[Case], None], kind: str, inputs: Path, calm: Callable[[str], tuple[Arrays, float]], tmp_path: Path
) -> None:
    if KINDS[kind].collective:  # there are no workers
        meet = {freeze_a_worker: freeze, partition: kill}.get(meet, meet)
    expected, seconds = calm(kind)
    print(f"DLSCALE_CHAOS_SEED={SEED}")
    folder = tmp_path / "job"
    folder.mkdir()
    write_job(folder, kind, inputs)
    meet(Case(kind, folder, expected, seconds, random.Random(f"{SEED} {run} {meet.__name__} {kind}")))
