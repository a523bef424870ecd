"""The command line as a user meets it: exit codes, messages, JSON, signals, quiet."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import zarr
from click.testing import CliRunner, Result
from drawing import with_pages
from gate import PATIENCE_SECONDS, Gate
from helpers import store

from dlscale.batch.generate import default_chunks
from dlscale.batch.workspace import Workspace
from dlscale.cli.main import commands
from dlscale.report.words import duration

ROOT = Path(__file__).parents[1]
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]), "OMP_NUM_THREADS": "1"}

MANY_PASSES = ("--set", "params.power_iterations=16", "--set", "params.block_rows=500")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Made by `make_folder`, and current."""
    monkeypatch.chdir(tmp_path)
    return make_folder(tmp_path)


def make_folder(folder: Path) -> Path:
    """A folder with a matrix of 4000 x 60, a wide one, and a job."""
    rng = np.random.default_rng(0)
    for name, shape in (("a.zarr", (4000, 60)), ("wide.zarr", (60, 400))):
        array = zarr.create_array(folder / name, shape=shape, chunks=(500, shape[1]), dtype="f8")
        array[:] = rng.standard_normal(shape)
    zarr.create_array(folder / "line.zarr", shape=(10,), dtype="f8")[:] = 1.0
    (folder / "file.txt").write_text("not a folder")
    (folder / "job.yaml").write_text("kind: svd\nname: try\ninput: {matrix: a.zarr}\nparams: {n_components: 5}\ncluster: threads\n")
    return folder


def call(*arguments: str) -> Result:
    """A command in this process."""
    return CliRunner().invoke(commands, arguments)


def spawn(*arguments: str, drawn: bool = False, **more: str) -> subprocess.Popen[str]:
    """A command in a process group of its own, as a shell starts it, with more in its environment. It may draw its report."""
    command = [sys.executable, "-m", "dlscale", *arguments]
    environment = (with_pages(ENVIRONMENT) if drawn else ENVIRONMENT) | more
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def make_huge_matrix(folder: Path) -> Path:
    """A matrix of bytes in a sparse file, whose Q in float64 is twice the free disk."""
    n_rows = 2 * shutil.disk_usage(folder).free // (8 * 64)
    path = folder / "huge.zarr"
    zarr.create_array(path, shape=(n_rows, 64), chunks=(n_rows, 64), dtype="i1", compressors=None)
    chunk = path / "c" / "0" / "0"
    chunk.parent.mkdir(parents=True)
    chunk.touch()
    os.truncate(chunk, n_rows * 64)
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["params.n_componets=4"], ["params.n_componets", "unknown key", "did you mean n_components?"]),
        (["params.n_components=many"], ["params.n_components", "got 'many'", "an integer of at least 1"]),
        (["params.n_components=61"], ["params.n_components", "between 1 and 60", "got 61"]),
        (["input.matrix=absent.zarr"], ["input.matrix", "absent.zarr", "no such file"]),
        (["input.matrix=file.txt"], ["input.matrix", "file.txt", "is a file", "dlscale import"]),
        (["input.matrix=line.zarr"], ["input.matrix", "two dimensions", "(10,)"]),
        (["input.matrix={import: absent.npy}"], ["input.matrix", "absent.npy", "no such file"]),
        (["kind=cholesky", "params={}", "input.matrix=wide.zarr"], ["input.matrix", "square", "60 x 400"]),
        (["output=file.txt/r.zarr"], ["output", "file.txt", "nothing can be written"]),
        (["output=/proc/r.zarr"], ["output", "/proc", "nothing can be written"]),
        (["output=https://host/r.zarr"], ["output", "https://host/r.zarr", "this machine"]),
        (["output=a.zarr"], ["output", "exists already", "overwrite"]),
        (["cluster={memory: 10MB}"], ["cluster", "memory must be at least", "got 0.01 GB"]),
        (["cluster={type: threads, memory: 1KB}"], ["cluster", "GB", "cluster.memory"]),
        (["huge"], ["output", "free disk"]),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_a_bad_spec_is_told_and_leaves_nothing(changes: list[str], words: list[str], folder: Path) -> None:
    if changes == ["huge"]:
        make_huge_matrix(folder)
        changes = ["kind=qr", "params={}", "input.matrix=huge.zarr"]
    before = tree(folder)
    result = call("run", "job.yaml", *(part for change in changes for part in ("--set", change)))
    assert result.exit_code == 2, result.output
    assert len(result.stderr.splitlines()) == 1
    for word in ["error:", *words]:
        assert word in result.stderr
    assert result.stdout == ""
    assert tree(folder) == before


def test_a_refusal_names_the_line_of_the_file(folder: Path) -> None:
    (folder / "job.yaml").write_text("kind: svd\ninput: {matrix: a.zarr}\nparams:\n  n_components: 100\n")
    assert "job.yaml:4: params.n_components: must be between 1 and 60" in call("run", "job.yaml").stderr


def test_a_refusal_is_json_too(folder: Path) -> None:
    result = call("run", "job.yaml", "--set", "params.n_components=61", "--json")
    assert result.exit_code == 2
    record = json.loads(result.stdout.splitlines()[-1])
    assert (record["state"], record["job"]) == ("refused", None)
    assert "params.n_components" in record["error"]


def test_usage_errors_have_exit_code_2(folder: Path) -> None:
    assert call("run").exit_code == 2
    assert call("run", "absent.yaml").exit_code == 2
    assert call("status", "nobody").exit_code == 2


def test_a_run_is_quiet_and_its_last_line_is_json(folder: Path) -> None:
    process = spawn("run", "job.yaml", "--json", "--cluster", "local", "--output", "r.zarr", drawn=True)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, err
    record = json.loads(out.splitlines()[-1])
    assert set(record) == {"job", "state", "kind", "result", "seconds", "certificate", "plan"}
    assert (record["state"], record["result"]) == ("succeeded", str(folder / "r.zarr"))
    assert record["certificate"]["passed"]
    assert len(out.splitlines()) == 1
    assert (folder / "dlscale-workspace" / "jobs" / record["job"] / "report.html").stat().st_size > 10_000
    for noise in ("distributed", "Warning", "Traceback", "INFO"):
        assert noise not in err


def test_help_loads_little() -> None:
    """What takes long to import is imported where it is used."""
    command = [sys.executable, "-X", "importtime", "-m", "dlscale", "--help"]
    told = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True).stderr
    loaded = {line.rpartition("|")[2].strip().partition(".")[0] for line in told.splitlines()}
    assert {"click", "dlscale"} <= loaded
    assert not {"dask", "distributed", "zarr", "sklearn", "matplotlib", "pyarrow", "h5py", "mpi4py", "PIL"} & loaded


def stop_in_the_middle(
    folder: Path, cluster: str, stop: Callable[[subprocess.Popen[str]], None], gate: Gate
) -> tuple[int, str, str]:
    """Run the job of many passes, stop it after a few, and give its exit code, its id and what it said."""
    with gate.closed(steps=4):
        process = spawn("run", "job.yaml", *MANY_PASSES, "--cluster", cluster, **gate.environment)
        gate.wait_for_job(process)
        stop(process)
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, next(folder.glob("dlscale-workspace/jobs/*-*")).name, err


def answer(path: str | Path) -> dict[str, Any]:
    return {name: np.asarray(array) for name, array in zarr.open_group(path, mode="r").arrays()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the job of many passes finds where nothing stops it."""
    folder = make_folder(tmp_path_factory.mktemp("whole"))
    with chdir(folder):
        assert call("run", "job.yaml", *MANY_PASSES, "--output", "whole.zarr").exit_code == 0
    return answer(folder / "whole.zarr")


def check_resumed(folder: Path, job_id: str, whole: dict[str, Any]) -> None:
    """Resume, on threads wherever it ran before, and compare each bit with an uninterrupted run."""
    resumed = call("resume", job_id, "--cluster", "threads", "--json")
    assert resumed.exit_code == 0, resumed.output
    record = json.loads(resumed.stdout.splitlines()[-1])
    stopped = answer(record["result"])
    assert whole.keys() == stopped.keys() == {"u", "s", "vh"}
    for name in whole:
        np.testing.assert_array_equal(stopped[name], whole[name])
    events = (folder / "dlscale-workspace" / "jobs" / job_id / "events.jsonl").read_text().splitlines()
    repeated = [event for event in map(json.loads, events) if event["event"] == "pass_finished" and not event["resumed"]]
    assert len(repeated) <= len({event["step"] for event in repeated}) + 1


@pytest.mark.parametrize(
    ("number", "cluster"),
    [(signal.SIGTERM, "threads"), (signal.SIGHUP, "threads"), (signal.SIGINT, "local"), (signal.SIGTERM, "local")],
)
def test_a_signal_ends_in_a_checkpoint_and_resume_in_the_same_bits(
    number: int, cluster: str, folder: Path, whole: dict[str, Any], gate: Gate
) -> None:
    check_stopped(folder, *stop_in_the_middle(folder, cluster, lambda process: os.killpg(process.pid, number), gate), whole)


def check_stopped(folder: Path, code: int, job_id: str, err: str, whole: dict[str, Any]) -> None:
    assert code == 75
    assert f"dlscale resume {job_id}" in err
    assert "Traceback" not in err
    assert json.loads(call("status", job_id, "--json").stdout)["state"] == "interrupted"
    check_resumed(folder, job_id, whole)


def test_a_job_goes_on_where_nobody_reads_what_it_says(folder: Path, gate: Gate) -> None:
    with gate.closed(), spawn("run", "job.yaml", *MANY_PASSES, "--cluster", "threads", **gate.environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        gate.open()
    assert process.returncode == 0
    (job,) = json.loads(call("jobs", "--json").stdout)
    assert job["state"] == "succeeded"


def test_closed_streams_are_no_fault(folder: Path) -> None:
    closed = 'exec "$0" -m dlscale run job.yaml --cluster threads <&- >&- 2>&-'
    assert subprocess.run(["bash", "-c", closed, sys.executable], env=ENVIRONMENT, check=False).returncode == 0
    listed = subprocess.run(["bash", "-c", 'exec "$0" -m dlscale jobs >&-', sys.executable], env=ENVIRONMENT, check=True, stderr=-1)
    assert not listed.stderr
    (job,) = json.loads(call("jobs", "--json").stdout)
    assert job["state"] == "succeeded"


def test_a_second_ctrl_c_is_safe(folder: Path, whole: dict[str, Any], gate: Gate) -> None:
    """And a third one, and all that come until the command has ended."""

    def again_and_again(process: subprocess.Popen[str]) -> None:
        # Not waited for, its number is no other's.
        while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            os.kill(process.pid, signal.SIGINT)
            time.sleep(0.003)

    code, job_id, err = stop_in_the_middle(folder, "local", again_and_again, gate)
    assert code == 75, err
    assert "Traceback" not in err
    check_resumed(folder, job_id, whole)


def test_ctrl_c_while_workers_start_is_told_in_one_sentence(folder: Path) -> None:
    """They are reached by it as all processes of a terminal are, before they have loaded what they run."""
    process = spawn("run", "job.yaml", "--cluster", "local")
    driver, deadline = psutil.Process(process.pid), time.monotonic() + PATIENCE_SECONDS
    while not any("spawn_main" in " ".join(child.cmdline()) for child in driver.children()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(0.1)  # it is loading modules
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75
    assert err.splitlines()[-1].startswith("error: SIGINT: stopped")
    assert "Traceback" not in err


def test_a_killed_job_is_lost_and_can_be_resumed(folder: Path, whole: dict[str, Any], gate: Gate) -> None:
    code, job_id, _ = stop_in_the_middle(folder, "local", lambda process: os.killpg(process.pid, signal.SIGKILL), gate)
    assert code == -signal.SIGKILL
    found = json.loads(call("status", job_id, "--json").stdout)
    assert found["state"] == "lost"
    # What is said of its progress is as new as its events.
    finished = re.search(r"passes +(\d+) finished of (\d+) planned", call("status", job_id).stdout)
    assert finished is not None
    assert (found["progress"]["n_done"], found["progress"]["n_steps"]) == tuple(map(int, finished.groups()))
    check_resumed(folder, job_id, whole)


def test_a_running_job_is_not_resumed_and_a_signal_to_threads_ends_in_a_checkpoint(
    folder: Path, whole: dict[str, Any], gate: Gate
) -> None:
    seen: list[Result] = []

    def meddle(process: subprocess.Popen[str]) -> None:
        seen.append(call("resume", next(folder.glob("dlscale-workspace/jobs/*-*")).name))
        os.killpg(process.pid, signal.SIGINT)

    ended = stop_in_the_middle(folder, "threads", meddle, gate)
    assert seen[0].exit_code == 2
    assert "running already" in seen[0].stderr
    check_stopped(folder, *ended, whole)


@pytest.mark.usefixtures("drawn_reports")
def test_the_life_of_a_job_can_be_followed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert call("jobs").stdout == f"No jobs yet in {folder / 'dlscale-workspace'}.\n"
    assert call("validate", "job.yaml").stdout == "job.yaml is a valid job of kind svd.\n"
    planned = json.loads(call("plan", "job.yaml", "--json").stdout)
    assert planned["flops"] > 0
    assert "iteration-1" in call("plan", "job.yaml").stdout
    shown = call("run", "job.yaml", "--output", "r.zarr")
    assert shown.exit_code == 0
    for words in ("pass iteration-1", "singular values", "check", "orthonormal", "r.zarr", "report.html"):
        assert words in shown.stdout
    (job,) = json.loads(call("jobs", "--json").stdout)
    assert job["state"] == "succeeded"
    monkeypatch.setenv("COLUMNS", "68")
    listed = call("jobs").stdout
    for words in (job["job"], "succeeded", f" {duration(job['seconds'])}\n"):
        assert words in listed
    monkeypatch.delenv("COLUMNS")
    assert "succeeded" in call("status").stdout
    assert "pass left" in call("logs", job["job"]).stdout
    assert call("report").stdout.strip().endswith("report.html")
    assert json.loads(call("schema").stdout)["title"] == "dlscale job"


@pytest.mark.usefixtures("drawn_reports")
@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("slogdet", ("log |det|", "sign of det", "+1")),
        ("solve", ("condition", "backward error", "no digit is sure", "warning", "nearly singular")),
        ("inverse", ("condition", "warning", "nearly singular")),
    ],
)
def test_the_end_says_the_answer_and_where_none_is_sure(
    kind: str, said: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    Q = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    A = (Q * np.geomspace(1, 1e-17, 30)) @ Q.T if kind != "slogdet" else np.eye(30)
    store(tmp_path / "a.zarr", A, chunks=(30, 30))
    store(tmp_path / "b.zarr", rng.standard_normal((30, 1)), chunks=(30, 1))
    rhs = ", rhs: b.zarr" if kind == "solve" else ""
    (tmp_path / "job.yaml").write_text(f"kind: {kind}\ninput: {{matrix: a.zarr{rhs}}}\ncluster: threads\n")
    shown = call("run", "job.yaml")
    assert shown.exit_code == 0, shown.stderr
    for words in said:
        assert words in shown.stdout
    page = next(tmp_path.glob("dlscale-workspace/jobs/*/report.html")).read_text()
    assert ("no digit is sure" in page) == ("warning" in said)


def test_jobs_are_chosen_counted_and_removed(folder: Path) -> None:
    for name in ("one", "two", "three"):
        assert call("run", "job.yaml", "--set", f"name={name}").exit_code == 0
    ids = {row["job"].split("-")[0]: row["job"] for row in json.loads(call("jobs", "--json").stdout)}
    for options, names in (
        (("--name", "t"), {"two", "three"}),
        (("--state", "succeeded", "--limit", "1"), {"three"}),
        (("--kind", "pca"), set()),
        (("--kind", "svd", "--kind", "pca", "--name", "one"), {"one"}),
    ):
        assert {row["job"].split("-")[0] for row in json.loads(call("jobs", "--json", *options).stdout)} == names
    assert "No such jobs" in call("jobs", "--kind", "pca").stdout
    refused = call("jobs", "--state", "done")
    assert refused.exit_code == 2
    assert "succeeded" in refused.stderr
    looked = call("prune", "--keep", "1")
    assert "2 jobs" in looked.stdout
    assert "--yes" in looked.stdout
    assert len(json.loads(call("jobs", "--json").stdout)) == 3
    assert "No such jobs" in call("prune", "--older-than", "1").stdout
    removed = json.loads(call("prune", "--keep", "1", "--yes", "--json").stdout.splitlines()[-1])["removed"]
    assert set(removed) == {ids["one"], ids["two"]}
    assert min(removed.values()) > 0
    assert "1 job" in call("rm", ids["three"]).stdout
    assert not list(folder.glob("dlscale-workspace/jobs/*"))
    assert call("rm", "nothing").exit_code == 2


def test_a_job_that_is_refused_says_how_to_go_on(folder: Path) -> None:
    assert call("run", "job.yaml").exit_code == 0
    job = Workspace(folder / "dlscale-workspace").find(None)
    with job.claim():
        refused = call("rm", job.id)
    assert (refused.exit_code, job.exists()) == (1, True)
    assert f"Job {job.id} is running; `dlscale cancel {job.id}` stops it." in refused.stderr
    # Nor is one whose state is damaged without a way on.
    job.state.write_text('{"kind"')
    damaged = call("status", job.id)
    assert (damaged.exit_code, f"`dlscale run {job.spec}` computes the job anew." in damaged.stderr) == (2, True)
    assert call("validate", str(job.spec)).exit_code == 0


def test_info_tells_a_matrix_from_a_result(folder: Path) -> None:
    assert json.loads(call("info", "a.zarr", "--json").stdout)["shape"] == [4000, 60]
    assert call("run", "job.yaml", "--output", "r.zarr").exit_code == 0
    assert json.loads(call("info", "r.zarr", "--json").stdout)["certificate"]["passed"]
    assert "I - U'U" in call("info", "r.zarr").stdout
    assert call("info", "absent.zarr").exit_code == 2


def test_the_home_folder_is_a_tilde(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Keys of a job, operands and options, in words that no shell has seen."""
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    np.save(folder / "b.npy", np.random.default_rng(0).standard_normal((300, 6)))
    (folder / "home.yaml").write_text(
        "kind: svd\ninput: {matrix: {import: ~/b.npy}}\nparams: {n_components: 2}\ncluster: threads\noutput: ~/in-a-key.zarr\n"
    )
    assert call("import", "~/b.npy", "~/b.zarr").exit_code == 0
    assert call("info", "~/b.zarr").exit_code == 0
    assert call("run", "~/home.yaml", "--workspace=~/jobs").exit_code == 0
    assert (
        call("run", "~/home.yaml", "--workspace", "~/jobs", "--output=~/option.zarr", "--set", "input.matrix=~/b.zarr").exit_code
        == 0
    )
    assert call("generate", "~/made.zarr", "--shape=50x3", "--spectrum=flat", "--cluster=threads").exit_code == 0
    assert {"b.zarr", "jobs", "in-a-key.zarr", "option.zarr", "made.zarr"} <= {path.name for path in folder.iterdir()}
    assert not list(Path.cwd().iterdir())


def test_import_and_info(folder: Path) -> None:
    np.save("b.npy", np.arange(12.0).reshape(4, 3))
    result = call("import", "b.npy", "b.zarr", "--chunks", "2x3", "--dtype", "f4")
    assert result.exit_code == 0, result.output
    assert "4 × 3" in result.stdout
    np.testing.assert_array_equal(zarr.open_array("b.zarr"), np.arange(12.0).reshape(4, 3))
    refused = call("import", "b.npy", "c.zarr", "--chunks", "two")
    assert refused.exit_code == 2
    assert "ROWSxCOLUMNS" in refused.stderr


def test_generate_makes_the_spectrum_that_was_asked(folder: Path) -> None:
    options = ("--shape", "300x20", "--spectrum", "power:-0.5", "--dtype", "f8", "--cluster", "threads")
    result = call("generate", "g.zarr", *options)
    assert result.exit_code == 0, result.output
    s = np.linalg.svd(np.asarray(zarr.open_array("g.zarr")), compute_uv=False)
    np.testing.assert_allclose(s, np.arange(1, 21) ** -0.5, rtol=1e-10)
    (folder / "g.yaml").write_text("shape: [200, 10]\ncondition: 1e8\ncluster: threads\n")
    assert call("generate", "g.yaml", "h.zarr").exit_code == 0
    s = np.linalg.svd(np.asarray(zarr.open_array("h.zarr")), compute_uv=False)
    assert s[0] / s[-1] == pytest.approx(1e8, rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "item", "chunks"),
    [
        ((2_000_000, 2000), 8, (1024, 2000)),
        ((7, 5), 8, (7, 5)),
        ((2000, 200_000), 8, (8, 200_000)),
        ((2000, 2_000_000), 8, (8, 16_384)),
        ((2000, 2_000_000), 4, (16, 16_384)),
        ((2000, 400_000), 8, (32, 4096)),
        ((3, 10**7), 16, (1, 65_536)),
    ],
)
def test_chunks_of_long_rows_are_cut_in_columns(shape: tuple[int, int], item: int, chunks: tuple[int, int]) -> None:
    """What is made at a time takes 128 MiB, and a strip of columns is made of whole chunks."""
    assert default_chunks(shape, item) == chunks


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), ["shape", "missing"]),
        (("--shape", "10"), ["--shape", "'10'", "ROWSxCOLUMNS"]),
        (("--shape", "10x5"), ["spectrum", "condition"]),
        (("--shape", "10x5", "--spectrum", "wild"), ["--spectrum", "got 'wild'", "power:-0.5"]),
        (("--shape", "10x5", "--spectrum", "power:2"), ["spectrum", "power:2", "at most 0"]),
        (("--shape", "10x5", "--condition", "0.5"), ["--condition", "got 0.5", "at least 1"]),
    ],
)
def test_a_bad_description_of_a_matrix_is_told(options: tuple[str, ...], words: list[str], folder: Path) -> None:
    before = tree(folder)
    result = call("generate", "g.zarr", *options)
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr
    assert tree(folder) == before
