from __future__ import annotations

import time
from pathlib import Path

import pytest
from jobs_here import DEPLOY, ENVIRONMENT, arrays, command, job_file
from slurm_cluster import SlurmCluster

import dlscale
from dlscale.batch.document import read_document
from dlscale.batch.prepare import prepare
from dlscale.batch.slurm import SlurmRequest, batch_script, slurm_number, submit_prepared
from dlscale.batch.spec import parse_spec
from dlscale.batch.workspace import Job, Workspace
from dlscale.errors import SpecError

ONE_THREAD = {"workers": 1, "threads": 1}


@pytest.fixture
def submit(slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Queue a job in a Slurm whose commands find it."""
    for name in ("PATH", "PYTHONPATH"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    monkeypatch.setenv("SLURM_CONF", slurm.environment["SLURM_CONF"])
    monkeypatch.chdir(tmp_path)

    def queue(**request: object) -> tuple[Job, str]:
        document = read_document(job_file(tmp_path, cluster=ONE_THREAD))
        root = Workspace(tmp_path / "workspace")
        job = submit_prepared(root, prepare(parse_spec(document), document, root), SlurmRequest(time="10", **request))
        number = slurm_number(job.folder)
        assert number is not None
        return job, number

    return queue


def n_saved(job: Job) -> int:
    return len(list(job.checkpoint.glob("manifests/*.json")))


def until_saved(job: Job, n: int) -> None:
    end = time.monotonic() + 60
    while n_saved(job) < n:
        assert time.monotonic() < end, job.read_state()
        time.sleep(0.02)


def test_a_job_that_is_stopped_again_and_again_ends_with_the_bits_of_an_uninterrupted_one(slurm, submit, tmp_path):
    job, number = submit()
    for n in (3, 12):  # passes, so that each start saves some
        slurm.wait(number, "RUNNING")
        until_saved(job, n)
        # What Slurm does before the time limit.
        slurm.command("scancel", "--signal=TERM", "--batch", number)
        slurm.wait(number, "PENDING")
        assert job.read_state().state == "submitted"
    facts = slurm.wait(number, "COMPLETED", "FAILED")
    said = Path(facts["StdOut"]).read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), said
    assert said.count("back into the queue") == 2
    uninterrupted = dlscale.run(job_file(tmp_path, cluster=ONE_THREAD), workspace=tmp_path / "other")
    assert arrays(job.result) == arrays(Path(uninterrupted.result))
    # Finished passes were not repeated: every one was computed once.
    computed = [event["step"] for event in job.read_events() if event["event"] == "pass_finished" and not event["resumed"]]
    assert len(computed) == len(set(computed))


def test_ranks_that_srun_starts_stop_and_go_on_together(slurm, submit, tmp_path):
    if command("srun", "--mpi=pmix", "true", cwd=tmp_path, **_conf(slurm)).returncode:
        pytest.skip("srun has no PMIx here: libpmix-dev is not installed")
    job, number = submit(ntasks=2, cpus_per_task=1)
    slurm.wait(number, "RUNNING")
    until_saved(job, 3)
    slurm.command("scancel", "--signal=TERM", "--batch", number)
    facts = slurm.wait(number, "COMPLETED", "FAILED")
    said = Path(facts["StdOut"]).read_text()
    assert (facts["JobState"], facts["Restarts"], facts["NumTasks"]) == ("COMPLETED", "1", "2"), said
    alone = dlscale.run(job_file(tmp_path, cluster=ONE_THREAD), workspace=tmp_path / "other")
    assert arrays(job.result) == arrays(Path(alone.result))


@pytest.mark.parametrize("by", ["slurm", "dlscale"])
def test_a_cancelled_job_keeps_its_checkpoint_and_is_not_queued_again(slurm, submit, tmp_path, by):
    job, number = submit()
    slurm.wait(number, "RUNNING")
    until_saved(job, 3)
    if by == "slurm":
        slurm.command("scancel", number)
    else:
        job.cancel.touch()
    facts = slurm.wait(number, "CANCELLED", "FAILED", "COMPLETED")
    assert facts["Restarts"] == "0"
    end = time.monotonic() + 20
    while (state := job.read_state().state) not in ("interrupted", "cancelled") and time.monotonic() < end:
        time.sleep(0.1)
    assert state == ("interrupted" if by == "slurm" else "cancelled")
    assert n_saved(job) >= 3


def test_a_job_that_fails_is_not_queued_again(slurm, submit, tmp_path):
    job, number = submit()
    job.spec.write_text(job.spec.read_text().replace("A.zarr", "gone.zarr"))
    facts = slurm.wait(number, "FAILED", "COMPLETED")
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0")


def test_the_command_queues_a_job_that_others_wait_for(slurm, tmp_path):
    spec, workspace = job_file(tmp_path, cluster=ONE_THREAD), ("--workspace", tmp_path / "workspace")
    options = ("--slurm", "--time", "5:00", "--cpus-per-task", "1", *workspace)
    submitted = command("dlscale", "submit", spec, *options, cwd=tmp_path, **_conf(slurm))
    assert submitted.returncode == 0, submitted.stderr
    job = next(Workspace(tmp_path / "workspace").jobs())
    assert submitted.stdout.strip() == job.id
    number = slurm_number(job.folder)
    assert slurm.facts(number)["TimeLimit"] == "00:05:00"
    slurm.wait(number, "RUNNING")
    until_saved(job, 3)
    slurm.command("scancel", "--signal=TERM", "--batch", number)
    waited = command("dlscale", "wait", job.id, *workspace, cwd=tmp_path, **_conf(slurm))
    assert (waited.returncode, job.read_state().state) == (0, "succeeded"), waited.stderr
    assert slurm.facts(number)["Restarts"] == "1"
    refused = command("dlscale", "submit", spec, "--time", "5:00", cwd=tmp_path)
    assert (refused.returncode, "--time goes with --slurm" in refused.stderr) == (2, True)


def test_ready_script_resumes_the_job_of_its_own_workspace(slurm, tmp_path):
    spec = job_file(tmp_path, cluster=ONE_THREAD)
    ended = command("sbatch", "--parsable", DEPLOY / "slurm" / "job.sbatch", spec, cwd=tmp_path, **_conf(slurm))
    assert ended.returncode == 0, ended.stderr
    number = ended.stdout.strip()
    slurm.wait(number, "RUNNING")
    root = Workspace(tmp_path / "dlscale-workspace" / f"slurm-{number}")
    end = time.monotonic() + 60
    while not (jobs := list(root.jobs())) or n_saved(jobs[0]) < 3:
        assert time.monotonic() < end
        time.sleep(0.05)
    slurm.command("scancel", "--signal=TERM", "--batch", number)
    facts = slurm.wait(number, "COMPLETED", "FAILED")
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), Path(facts["StdOut"]).read_text()
    assert [job.id for job in root.jobs()] == [jobs[0].id]
    assert jobs[0].read_state().state == "succeeded"


def test_refusals(slurm, submit, tmp_path):
    with pytest.raises(SpecError, match="--time must be minutes"):
        SlurmRequest(time="tomorrow").check()
    with pytest.raises(SpecError, match="--ntasks must be at least 1; got 0"):
        SlurmRequest(ntasks=0).check()
    with pytest.raises(SpecError, match="--partition must be one word"):
        SlurmRequest(partition="a; rm -rf b").check()
    with pytest.raises(SpecError, match=r"Slurm did not take the job: .*partition"):
        submit(partition="nowhere")
    assert not list(Workspace(tmp_path / "workspace").jobs())


def test_a_job_that_saves_nothing_new_is_given_up(tmp_path):
    script = batch_script(tmp_path, ["dlscale", "resume", "x"], SlurmRequest(time="1:00", ntasks=4, nodes=2, partition="main"))
    for directive in ("--time=1:00", "--ntasks=4", "--nodes=2", "--partition=main", "--signal=B:TERM@60", "--requeue"):
        assert f"\n#SBATCH {directive}\n" in script
    # The script as it is, with stand-ins for what only Slurm has.
    programs = tmp_path / "bin"
    programs.mkdir()
    interrupted = f"""echo '{{"state": "interrupted"}}' > {tmp_path}/state.json"""
    stand_ins = {"srun": f"{interrupted}; exit 75", "squeue": "echo RUNNING", "scontrol": f'echo "$@" >> {tmp_path}/requeued'}
    for name, body in stand_ins.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    (tmp_path / "state.json").write_text('{"state": "submitted"}')
    (tmp_path / "slurm.sh").write_text(script)
    for _ in range(3):
        ended = command("bash", tmp_path / "slurm.sh", cwd=tmp_path, PATH=f"{programs}:{ENVIRONMENT['PATH']}", SLURM_JOB_ID="7")
        assert ended.returncode == 75
    assert "submit the job with a longer --time" in ended.stdout
    assert (tmp_path / "requeued").read_text() == "requeue 7\n" * 2


def _conf(slurm: SlurmCluster) -> dict[str, str]:
    return {"SLURM_CONF": slurm.environment["SLURM_CONF"]}


def test_workers_that_slurm_starts_compute_for_a_driver_here(slurm, tmp_path):
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed here")
    cluster = {"type": "slurm", "workers": 2, "threads": 1, "memory": "4GB", "walltime": "00:10:00", "queue": "main"}
    spec = job_file(tmp_path, cluster=cluster)
    result = tmp_path / "result.zarr"
    ended = command("dlscale", "run", spec, "--output", result, cwd=tmp_path, **_conf(slurm))
    assert ended.returncode == 0, ended.stderr
    alone = dlscale.run(job_file(tmp_path, cluster=ONE_THREAD), workspace=tmp_path / "other")
    assert arrays(result) == arrays(Path(alone.result))
    # Its workers were jobs of Slurm, and are gone with it.
    assert slurm.command("squeue", "--noheader", "--states=all", "--format=%j").split().count("dask-worker") == 2
    end = time.monotonic() + 30
    while slurm.command("squeue", "--noheader"):
        assert time.monotonic() < end
        time.sleep(0.2)
