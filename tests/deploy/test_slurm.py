from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from held.drivers import PATH_OF_HELD_JOBS, driver_of, held, stop, until
from in_bucket import in_a_bucket
from jobs_here import DEPLOY, ENVIRONMENT, arrays, command, job_file
from slurm_cluster import SlurmCluster

import dlscale
from dlscale.batch.document import read_document
from dlscale.batch.jobs.in_slurm import slurm_facts, slurm_number
from dlscale.batch.jobs.waiting import wait
from dlscale.batch.prepare import prepare
from dlscale.batch.slurm import N_FRUITLESS_STARTS, SlurmRequest, batch_script, queue_again, requeue, submit_prepared
from dlscale.batch.spec import parse_spec
from dlscale.batch.workspace import Heartbeat, Job, JobState, Workspace
from dlscale.engine.events import StepFinished
from dlscale.errors import DlscaleError, SpecError
from dlscale.storage.checkpoints import Checkpoint

NIGHT = int(os.environ.get("DLSCALE_CHAOS_RUNS", "1")) >= 10
#: A worker process for jobs that are told to stop; for others the process that Slurm starts.
ONE_THREAD = {"workers": 1, "threads": 1}


@pytest.fixture(scope="module")
def environment(slurm: SlurmCluster) -> Iterator[None]:
    """Commands of this process find Slurm."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", ENVIRONMENT["PATH"])
        patch.setenv("PYTHONPATH", PATH_OF_HELD_JOBS)
        patch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
        yield


def submit(folder: Path, *, cluster: object = ONE_THREAD, **request: object) -> tuple[Job, str]:
    """Queue the job of a folder; Slurm's number of it."""
    document = read_document(job_file(folder, cluster=cluster))
    root = Workspace(folder / "workspace")
    job = submit_prepared(root, prepare(parse_spec(document), document, root), SlurmRequest(**{"time": "10", **request}))
    number = slurm_number(job)
    assert number is not None
    return job, number


def n_saved(job: Job) -> int:
    return len(list(job.checkpoint.glob("manifests/*.json")))


def stopped_again_and_again(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    still = held(folder)
    job, number = submit(folder)
    for last in (False, True):
        driver = driver_of(job)
        if last:
            still.unlink()
        stop(slurm, number, driver)
        slurm.wait(number, "PENDING")
        assert job.read_state().state == "submitted"
    facts = slurm.wait(number, "COMPLETED", "FAILED")
    said = Path(facts["StdOut"]).read_text()
    # What Slurm has queued again it may end before that is said.
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), said
    assert arrays(job.result) == alone
    # Finished passes were not repeated: every one was computed once.
    computed = [event.step for event in job.read_events() if isinstance(event, StepFinished) and not event.resumed]
    assert len(computed) == len(set(computed))


def ranks_of_srun(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    """They stop and go on together."""
    tried = command("srun", "--mpi=pmix", "true", cwd=folder, **_conf(slurm))
    if "invalid mpi type" in tried.stderr.lower():
        pytest.skip("srun has no PMIx here: libpmix-dev is not installed")
    assert tried.returncode == 0, tried.stderr
    still = held(folder)
    job, number = submit(folder, ntasks=2, cpus_per_task=1)
    driver = driver_of(job)
    still.unlink()
    stop(slurm, number, driver)
    facts = slurm.wait(number, "COMPLETED", "FAILED")
    said = Path(facts["StdOut"]).read_text()
    assert (facts["JobState"], facts["Restarts"], facts["NumTasks"]) == ("COMPLETED", "1", "2"), said
    assert arrays(job.result) == alone


def queued_by_the_command(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    """Others wait for the job."""
    spec, workspace = job_file(folder, cluster=ONE_THREAD), ("--workspace", folder / "workspace")
    options = ("--slurm", "--time", "5:00", "--cpus-per-task", "1", *workspace)
    still = held(folder)
    submitted = command("dlscale", "submit", spec, *options, cwd=folder, **_conf(slurm))
    assert submitted.returncode == 0, submitted.stderr
    job = next(Workspace(folder / "workspace").jobs())
    assert submitted.stdout.strip() == job.id
    number = slurm_number(job)
    assert slurm.facts(number)["TimeLimit"] == "00:05:00"
    driver = driver_of(job)
    still.unlink()
    stop(slurm, number, driver)
    waited = command("dlscale", "wait", job.id, *workspace, cwd=folder, **_conf(slurm))
    assert (waited.returncode, job.read_state().state) == (0, "succeeded"), waited.stderr
    assert slurm.facts(number)["Restarts"] == "1"
    refused = command("dlscale", "submit", spec, "--time", "5:00", cwd=folder)
    assert (refused.returncode, "--time goes only with --slurm" in refused.stderr) == (2, True)


def the_ready_script(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    """It resumes the job of its own workspace."""
    spec, still = job_file(folder, cluster=ONE_THREAD), held(folder)
    ended = command("sbatch", "--parsable", DEPLOY / "slurm" / "job.sbatch", spec, cwd=folder, **_conf(slurm))
    assert ended.returncode == 0, ended.stderr
    number = ended.stdout.strip()
    root = Workspace(folder / "dlscale-workspace" / f"slurm-{number}")
    until(lambda: list(root.jobs()))
    jobs = list(root.jobs())
    driver = driver_of(jobs[0])
    still.unlink()
    stop(slurm, number, driver)
    facts = slurm.wait(number, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), Path(facts["StdOut"]).read_text()
    assert [job.id for job in root.jobs()] == [jobs[0].id]
    assert jobs[0].read_state().state == "succeeded"


def a_sweep(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    """Each of its jobs is one of Slurm; cancelled while they wait, they are queued again with what was asked for before."""
    short = {"n_components": 2, "power_iterations": 1}
    spec = job_file(folder, cluster="threads", params=short, matrix={"params.seed": [0, 1]})
    root, conf = Workspace(folder / "workspace"), _conf(slurm)

    def dlscale_says(*arguments: str | Path) -> str:
        ended = command("dlscale", *arguments, "--workspace", root.root, cwd=folder, **conf)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    sweep = dlscale_says("submit", spec, "--slurm", "--time", "5:00", "--cpus-per-task", "1", "--partition", "closed")
    jobs = list(root.jobs())
    before = {slurm_number(job) for job in jobs}
    assert (len(before), {slurm.wait(number, "PENDING")["TimeLimit"] for number in before}) == (2, {"00:05:00"})
    assert dlscale_says("cancel", sweep) == f"{sweep}: 2 jobs cancelled."
    assert {slurm.wait(number, "CANCELLED")["JobState"] for number in before} == {"CANCELLED"}
    assert dlscale_says("resume", sweep, "--slurm", "--partition", "main").endswith("they are in Slurm's queue.")
    after = {slurm_number(job) for job in jobs}
    assert len(after) == 2
    assert not after & before
    assert {slurm.facts(number)["TimeLimit"] for number in after} == {"00:05:00"}
    assert dlscale_says("wait", sweep, "--quiet") == f"{sweep}: 2 succeeded"


def killed(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    held(folder)
    job, number = submit(folder, cluster="threads")
    driver_of(job).kill()
    check_end(slurm, job, "failed", f"Slurm's job {number} was killed (signal 9).")


def cancelled(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    held(folder)
    job, number = submit(folder)
    driver_of(job)
    slurm.command("scancel", number)
    check_end(slurm, job, "cancelled", f"Slurm's job {number} was cancelled; what was finished is in the checkpoint.")
    assert slurm.facts(number)["Restarts"] == "0"
    assert n_saved(job) >= 3


def cancelled_before_it_began(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    job, number = submit(folder, cluster="threads", partition="closed")
    until(lambda: job.read_state().message == f"Slurm's job {number}, PENDING (PartitionDown).")
    assert job.read_state().state == "submitted"
    slurm.command("scancel", number)
    check_end(slurm, job, "cancelled", f"Slurm's job {number} was cancelled; what was finished is in the checkpoint.")


def out_of_memory(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    job, number = submit(folder, memory="50M")
    check_end(slurm, job, "failed", f"Slurm's job {number} ran out of memory; submit the job with more --memory.")


def gone_with_its_time(slurm: SlurmCluster, folder: Path, alone: dict[str, bytes]) -> None:
    """It does not hear that it is to stop."""
    held(folder)
    job, number = submit(folder, time="1")
    driver_of(job)
    slurm.wait(number, "TIMEOUT", seconds=300)
    check_end(slurm, job, "interrupted", f"Slurm's job {number} reached its time limit; what was finished is in the checkpoint.")


def check_end(slurm: SlurmCluster, job: Job, state: str, message: str) -> None:
    """The end is told, with the last lines, and kept for when Slurm has forgotten it."""
    slurm.wait(slurm_number(job), "FAILED", "OUT_OF_MEMORY", "CANCELLED", "TIMEOUT")
    ended = wait(job, timeout_seconds=300)
    assert (ended.state, ended.message, ended.exit_code) == (state, message, {"failed": 1}.get(state, 75))
    assert bool(slurm_facts(job)["last_lines"]) == (ended.progress is not None or state == "failed")
    assert json.loads(job.slurm_end.read_text())["job"] == slurm_number(job)


GOES_ON = (stopped_again_and_again, ranks_of_srun, queued_by_the_command, the_ready_script, a_sweep, in_a_bucket)
ENDS = (killed, cancelled, cancelled_before_it_began, out_of_memory, *((gone_with_its_time,) if NIGHT else ()))
SCENARIOS = (*GOES_ON, *ENDS)


@pytest.fixture(scope="module")
def ends(
    slurm: SlurmCluster, environment: None, alone: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[None]]]:
    """Jobs that are stopped and go on, or end, all at the same time: mostly they wait for Slurm to queue them again."""
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        yield {each.__name__: pool.submit(each, slurm, tmp_path_factory.mktemp(each.__name__), alone) for each in SCENARIOS}


@pytest.mark.parametrize("scenario", [each.__name__ for each in ENDS])
@pytest.mark.timeout(900)
def test_what_ended_in_slurm_ends_as_such(ends: dict[str, Future[None]], scenario: str) -> None:
    ends[scenario].result()


@pytest.mark.parametrize("scenario", [each.__name__ for each in GOES_ON])
def test_a_job_that_is_stopped_goes_on_to_the_same_bits(ends: dict[str, Future[None]], scenario: str) -> None:
    ends[scenario].result()


@pytest.mark.skipif(not NIGHT, reason="takes minutes; set DLSCALE_CHAOS_RUNS=10 or more")
@pytest.mark.timeout(900)
def test_a_time_limit_shorter_than_the_work(slurm, environment, tmp_path):
    """The limit itself, of which Slurm knows whole minutes, ends a start; the next one goes on."""
    long = {"n_components": 6, "power_iterations": 100, "block_rows": 50}
    spec = job_file(tmp_path, cluster=ONE_THREAD, params=long)
    root = Workspace(tmp_path / "workspace")
    document = read_document(spec)
    job = submit_prepared(root, prepare(parse_spec(document), document, root), SlurmRequest(time="1", signal_seconds=20))
    facts = slurm.wait(slurm_number(job), "COMPLETED", "FAILED", "TIMEOUT", seconds=600)
    assert facts["JobState"] == "COMPLETED", Path(facts["StdOut"]).read_text()
    assert int(facts["Restarts"]) >= 1
    alone = dlscale.run(spec, ["cluster=threads"], workspace=tmp_path / "other")
    assert arrays(job.result) == arrays(Path(alone.result))


def test_a_cancelled_job_keeps_its_checkpoint_and_is_not_queued_again(slurm, environment, alone, tmp_path):
    still = held(tmp_path)
    job, number = submit(tmp_path)
    driver = driver_of(job)
    still.unlink()
    job.cancel.touch()
    driver.resume()
    facts = slurm.wait(number, "CANCELLED", "FAILED", "COMPLETED")
    assert facts["Restarts"] == "0"
    assert wait(job, timeout_seconds=300).state == "cancelled"
    assert n_saved(job) >= 3
    # Unless somebody asks for it.
    again = ("dlscale", "resume", job.id, "--slurm", "--workspace", tmp_path / "workspace")
    queued = command(*again, cwd=tmp_path, **_conf(slurm))
    assert (queued.returncode, queued.stdout.strip()) == (0, job.id), queued.stderr
    assert queued.stderr == f"Slurm's number is {slurm_number(job)}.\n"
    refused = command(*again, cwd=tmp_path, **_conf(slurm))
    assert refused.returncode == 2
    # Where Slurm has it by then.
    assert any(words in refused.stderr for words in ("in Slurm's queue", "is running already", "has succeeded")), refused.stderr
    facts = slurm.wait(slurm_number(job), "CANCELLED", "FAILED", "COMPLETED")
    assert (facts["JobState"], facts["TimeLimit"]) == ("COMPLETED", "00:10:00")
    assert slurm_number(job) != number
    assert arrays(job.result) == alone


def test_a_job_that_fails_is_not_queued_again(slurm, environment, tmp_path):
    job, number = submit(tmp_path)
    job.spec.write_text(job.spec.read_text().replace("A.zarr", "gone.zarr"))
    facts = slurm.wait(number, "FAILED", "COMPLETED")
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")


def test_refusals(slurm, environment, tmp_path):
    with pytest.raises(SpecError, match="--time must be minutes"):
        SlurmRequest(time="tomorrow").check()
    with pytest.raises(SpecError, match="--ntasks must be at least 1; got 0"):
        SlurmRequest(ntasks=0).check()
    with pytest.raises(SpecError, match="--partition must be one word"):
        SlurmRequest(partition="a; rm -rf b").check()
    with pytest.raises(SpecError, match=r"Slurm did not take the job: .*partition"):
        submit(tmp_path, partition="nowhere")
    assert not list(Workspace(tmp_path / "workspace").jobs())


def test_a_job_that_saves_nothing_new_is_given_up(tmp_path):
    job = Workspace(tmp_path / "ws").new_job("x")
    job.folder.mkdir(parents=True)
    submitted = JobState(job.id, "x", "svd", "submitted", 1.0, Heartbeat.now())
    job.write_state(submitted)
    job.spec.write_text("kind: svd\n")
    job.slurm.write_text('{"job": "7"}')
    script = batch_script(job, SlurmRequest(time="1:00", ntasks=4, nodes=2, partition="main"))
    for directive in ("--time=1:00", "--ntasks=4", "--nodes=2", "--partition=main", "--signal=B:TERM@60", "--requeue"):
        assert f"\n#SBATCH {directive}\n" in script
    # The script as it is, with stand-ins for what only Slurm has.
    programs = tmp_path / "bin"
    programs.mkdir()
    interrupted = f"sed -i s/submitted/interrupted/ {job.state}"
    stand_ins = {"srun": f"{interrupted}; exit 75", "squeue": "echo RUNNING", "scontrol": f'echo "$@" >> {tmp_path}/requeued'}
    for name, body in stand_ins.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    job.slurm_script.write_text(script)

    def start() -> str:
        ended = command("bash", job.slurm_script, cwd=tmp_path, PATH=f"{programs}:{ENVIRONMENT['PATH']}", SLURM_JOB_ID="7")
        assert ended.returncode == 75
        return ended.stdout

    for _ in range(2):
        assert "back into the queue" in start()
        assert job.stored_state().state == "submitted"
    assert "submit the job with a longer --time" in start()
    assert job.stored_state().state == "interrupted"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n" * 2


def test_what_is_saved_lets_a_job_start_again_and_again(tmp_path, monkeypatch):
    job = Workspace(tmp_path).new_job("x")
    job.folder.mkdir(parents=True)
    job.spec.write_text("kind: svd\n")
    job.slurm.write_text('{"job": "7"}')
    said: list[tuple[str, ...]] = []
    monkeypatch.setattr("dlscale.batch.slurm._slurm", lambda *arguments: said.append(arguments) or "RUNNING")
    for number in range(2 * N_FRUITLESS_STARTS):
        job.write_state(JobState(job.id, "x", "svd", "interrupted", 1.0, Heartbeat.now(), message="SIGTERM"))
        Checkpoint(job.checkpoint).save(f"step-{number % 2}", {"x": np.zeros(1)})
        assert requeue(job).startswith("back into the queue")
        assert (job.stored_state().state, job.stored_state().message) == ("submitted", "")
    assert said.count(("scontrol", "requeue", "7")) == 2 * N_FRUITLESS_STARTS
    # Who was cancelled meanwhile is not.
    for state in ("cancelled", "submitted", "failed"):
        job.write_state(JobState(job.id, "x", "svd", state, 1.0, Heartbeat.now()))
        assert f"is {state}" in requeue(job)
    job.write_state(JobState(job.id, "x", "svd", "interrupted", 1.0, Heartbeat.now()))
    monkeypatch.setattr("dlscale.batch.slurm._slurm", lambda *arguments: "CANCELLED")
    assert "CANCELLED" in requeue(job)
    assert job.stored_state().state == "interrupted"


def test_a_job_that_slurm_does_not_take_again_is_as_it_was(tmp_path, monkeypatch):
    job = Workspace(tmp_path).new_job("x")
    job.folder.mkdir(parents=True)
    before = JobState(job.id, "x", "svd", "interrupted", 1.0, Heartbeat.now(), message="SIGTERM")
    job.write_state(before)
    record = {"job": "7", "time": "10", "ntasks": 2, "partition": "main"}
    job.slurm.write_text(json.dumps(record))

    def refuses(*arguments: str, **more: object) -> str:
        raise DlscaleError("Invalid partition")

    monkeypatch.setattr("dlscale.batch.slurm._slurm", refuses)
    with pytest.raises(SpecError, match="Slurm did not take the job: Invalid partition"):
        queue_again(job, {"partition": "closed"})
    assert (job.stored_state(), json.loads(job.slurm.read_text())) == (before, record)
    # What was asked for last time is asked for again.
    monkeypatch.setattr("dlscale.batch.slurm._slurm", lambda *arguments, **more: "8")
    assert queue_again(job, {"partition": "closed"}) == "8"
    asked = json.loads(job.slurm.read_text())
    assert {**record, "job": "8", "partition": "closed"}.items() <= asked.items()
    assert job.stored_state().state == "submitted"


def test_a_job_that_was_cancelled_in_the_queue_does_not_run(tmp_path):
    job = Workspace(tmp_path).new_job("x")
    job.folder.mkdir(parents=True)
    job.write_state(JobState(job.id, "x", "svd", "cancelled", 1.0, Heartbeat.now()))
    ended = command("dlscale", "resume", job.id, "--unless-cancelled", "--workspace", tmp_path, cwd=tmp_path)
    assert (ended.returncode, "was cancelled" in ended.stderr) == (75, True), ended.stderr


def _conf(slurm: SlurmCluster) -> dict[str, str]:
    return {"SLURM_CONF": slurm.environment["SLURM_CONF"], "PYTHONPATH": PATH_OF_HELD_JOBS}


def test_workers_that_slurm_starts_compute_for_a_driver_here(slurm, alone, tmp_path):
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed here")
    cluster = {"type": "slurm", "workers": 2, "threads": 1, "memory": "4GB", "walltime": "00:10:00", "queue": "main"}
    spec = job_file(tmp_path, cluster=cluster)
    result = tmp_path / "result.zarr"
    ended = command("dlscale", "run", spec, "--output", result, cwd=tmp_path, **_conf(slurm))
    assert ended.returncode == 0, ended.stderr
    assert arrays(result) == alone
    # Its workers were jobs of Slurm, and are gone with it.
    assert slurm.command("squeue", "--noheader", "--states=all", "--format=%j").split().count("dask-worker") == 2
    end = time.monotonic() + 300
    while slurm.command("squeue", "--noheader"):
        assert time.monotonic() < end
        time.sleep(0.2)
