"""Watching jobs: live on a terminal, lines elsewhere, and what Ctrl-C does."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from gate import PATIENCE_SECONDS
from hypothesis import given
from hypothesis import strategies as st
from meanwhile import meanwhile, until_said
from test_terminal import on_a_terminal

from dlscale.batch.jobs.progress import Progress
from dlscale.batch.sweeps.store import Sweep, keep
from dlscale.batch.workspace import Heartbeat, Job, JobState, ListedJob, Workspace
from dlscale.cli.listing import table_lines
from dlscale.cli.main import commands
from dlscale.storage.files.atomic import hidden

FAR = Progress(0.42, "iteration-2", 2, 12, 5e9, 1e8, 30.0)


def make_job(root: Path, name: str = "one", state: str = "running") -> Job:
    """A job that this process seems to work on."""
    job = Workspace(root / "ws").new_job(name)
    draft = Job(hidden(job.folder))  # those who watch see it whole or not at all
    draft.folder.mkdir(parents=True)
    draft.spec.write_text("kind: svd\n")
    draft.log.write_text("begun\n")
    draft.write_state(JobState(job.id, name, "svd", state, time.time(), Heartbeat.now(), progress=FAR), fsync=False)
    draft.folder.rename(job.folder)
    return job


def change(job: Job, **changes: object) -> None:
    job.write_state(replace(job.stored_state(), **changes), fsync=False)  # type: ignore[arg-type]


def watched(root: Path, *arguments: str, happens: Callable[[], None]) -> Result:
    """What a command says while something happens."""
    import_module("dlscale.batch.jobs.waiting")  # before the clock of what happens runs
    return meanwhile(lambda: CliRunner().invoke(commands, [*arguments, "--workspace", str(root / "ws")]), happens)


class Screen:
    """A terminal, and what is drawn on it, which is taken as it comes: nobody waits until it can be drawn."""

    def __init__(self) -> None:
        self._leader, self.follower = pty.openpty()
        self._drawn = b""
        self._thread = threading.Thread(target=self._take, daemon=True)

    def of(self, process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
        """The process alone draws from now on."""
        os.close(self.follower)
        self._thread.start()
        return process

    def _take(self) -> None:
        with suppress(OSError):  # nobody has it any more
            while data := os.read(self._leader, 2**16):
                self._drawn += data

    def until(self, *words: str) -> str:
        """What was drawn, once each of these was."""
        end = time.monotonic() + PATIENCE_SECONDS
        while not all(word.encode() in self._drawn for word in words):
            assert time.monotonic() < end, self._drawn
            time.sleep(0.02)
        return self._drawn.decode(errors="replace")

    def close(self) -> None:
        self._thread.join()
        os.close(self._leader)


#: Says at once what is said every ten seconds.
_SOON = """
from dlscale.cli import main, watching
watching.EVERY_SECONDS = 0.0
main.main()
"""


def watching(*arguments: str, cwd: Path, to: int = subprocess.PIPE) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _SOON, *arguments, "--workspace", "ws"]
    return subprocess.Popen(command, cwd=cwd, env=os.environ | {"TERM": "xterm"}, stdout=to, stderr=subprocess.PIPE)


@pytest.mark.parametrize(
    ("options", "states"), [((), ["queued: waits", "running", "failed: it broke"]), (("-q",), ["failed: it broke"])]
)
def test_a_job_is_watched_in_lines(options: tuple[str, ...], states: list[str], tmp_path: Path) -> None:
    job = make_job(tmp_path, state="queued")
    change(job, message="waits")

    def live() -> None:
        for said, state, message in (("queued: waits", "running", ""), ("running", "failed", "it broke")):
            until_said(*({said} & set(states)))
            change(job, state=state, message=message)

    said = watched(tmp_path, "status", job.id[:5], "--watch", *options, happens=live)
    lines = said.stdout.splitlines()
    assert said.exit_code == 0
    assert len(lines) == len(states)
    for line, state in zip(lines, states, strict=True):
        assert line.startswith(f"{job.id} {state}")
    assert "\x1b" not in said.output


def test_jobs_are_watched_until_all_rest(tmp_path: Path) -> None:
    done, job = make_job(tmp_path, "done", "succeeded"), make_job(tmp_path)
    late: list[Job] = []

    def live() -> None:
        until_said("step 3 of 12")
        late.append(make_job(tmp_path, "late"))
        until_said(late[0].id)
        change(job, state="succeeded")
        until_said("succeeded")
        change(late[0], state="cancelled", message="cancelled")

    lines = watched(tmp_path, "jobs", "--watch", happens=live).stdout.splitlines()
    assert [line for line in lines if done.id in line] == []
    assert lines[0] == f"{job.id} running: 42%, 30 s left, step 3 of 12 (iteration-2), 5.00 GFLOP/s, 100 MB/s"
    assert f"{job.id} succeeded" in lines
    assert lines[-1] == f"{late[0].id} cancelled: cancelled"


def make_sweep(root: Path, *jobs: Job) -> str:
    sweep = Sweep("one-sweep-20261126-120000-abcd", "one", "svd", time.time(), ["params.seed"], [])
    sweep.jobs.extend({"job": job.id, "values": [seed]} for seed, job in enumerate(jobs))
    keep(Workspace(root / "ws"), sweep)
    return sweep.sweep


def test_a_sweep_is_watched_and_its_logs_are_followed_until_all_its_jobs_rest(tmp_path: Path) -> None:
    done, job, waiting = (make_job(tmp_path, f"one-{i}", state) for i, state in enumerate(("failed", "running", "submitted")))
    sweep = make_sweep(tmp_path, done, job, waiting)
    screen = Screen()
    in_lines = watching("status", sweep, "--watch", cwd=tmp_path)
    drawn = screen.of(watching("status", "one-sweep", "--watch", cwd=tmp_path, to=screen.follower))
    first = [in_lines.stdout.readline().decode() for _ in range(2)]
    assert first[0] == f"{job.id} running: 42%, 30 s left, step 3 of 12 (iteration-2), 5.00 GFLOP/s, 100 MB/s\n"
    assert first[1].startswith(f"{waiting.id} submitted")
    screen.until("1 running", "step 3")

    def live() -> None:
        change(waiting, state="running")
        until_said("one-0: begun", "one-1: begun", "one-2: begun")
        with job.log.open("a") as log:
            log.write("hal")
            log.flush()
            time.sleep(0.7)  # in which it is read, and kept until the line ends
            log.write("f\nnext\n")
        until_said("one-1: half\none-1: next\n")
        with waiting.log.open("a") as log:
            log.write("\x1b[31m")
        change(job, state="succeeded", progress=None)
        change(waiting, state="cancelled", message="stopped")

    said = watched(tmp_path, "logs", "-f", sweep, happens=live)
    lines = sorted(said.stdout.splitlines(), key=lambda line: line[:5])
    assert lines == ["one-0: begun", "one-1: begun", "one-1: half", "one-1: next", "one-2: begun", "one-2: \\x1b[31m"]
    told = in_lines.communicate(timeout=PATIENCE_SECONDS)[0].decode().splitlines()
    # Both changed at once: whoever looks in between sees the one, or the other.
    ends = [f"{job.id} succeeded", f"{waiting.id} cancelled: stopped"]
    assert sorted(line for line in told if line in ends) == sorted(ends)
    assert told[-1] in ends
    assert (drawn.communicate(timeout=PATIENCE_SECONDS)[1], drawn.returncode) == (b"", 0)
    screen.close()


def test_ctrl_c_ends_the_watching_and_no_job(tmp_path: Path) -> None:
    job = make_job(tmp_path)
    before = job.state.read_bytes()
    kinds = [("wait",), ("status", "--watch"), ("logs", "-f"), ("jobs", "--watch")]
    screen = Screen()
    started = [watching(*kind, cwd=tmp_path) for kind in kinds]
    on_terminal = screen.of(watching("status", "--watch", cwd=tmp_path, to=screen.follower))
    # Each says something at first, `wait` how far the job is.
    assert all(started[i].stdout.readline() for i in (1, 2, 3))
    assert b"step 3 of 12" in started[0].stderr.readline()
    assert "\x1b[" in screen.until("step 3 of 12")
    started.append(on_terminal)
    for process in started:
        process.send_signal(signal.SIGINT)
    said = [process.communicate(timeout=PATIENCE_SECONDS) for process in started]
    assert [process.returncode for process in started] == [130] * len(started), said
    for _, err in said:
        assert re.search(rb"goes on; `dlscale cancel one-[\w-]+` stops it|The jobs go on", err)
        assert b"Traceback" not in err
    screen.close()
    assert job.state.read_bytes() == before


#: Sends itself Ctrl-C as soon as a module is looked for.
_INTERRUPTED_AT = """
import os, runpy, signal, sys
module = sys.argv.pop(1)
class At:
    def find_spec(self, name, *_):
        if name == module:
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, At())
runpy.run_module("dlscale", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("module", ["dlscale.cli.main", "dlscale.engine.clusters.launchers", "dlscale.batch.remote.opening"])
def test_ctrl_c_in_the_first_moments_ends_with_a_shell_s_code(module: str, tmp_path: Path) -> None:
    """While modules are loaded: before the command is known nothing handles signals, and then nothing was begun."""
    make_job(tmp_path)
    kinds = [("wait",), ("status", "--watch"), ("logs", "-f"), ("jobs", "--watch")]
    command = [sys.executable, "-c", _INTERRUPTED_AT, module]
    started = [
        subprocess.Popen([*command, *kind, "--workspace", "ws"], cwd=tmp_path, stderr=subprocess.PIPE, text=True) for kind in kinds
    ]
    said = [process.communicate(timeout=PATIENCE_SECONDS)[1] for process in started]
    expected = (130, "\nThe jobs go on.\n") if module == "dlscale.batch.remote.opening" else (-signal.SIGINT, "")
    assert list(zip([process.returncode for process in started], said, strict=True)) == [expected] * len(kinds)


def test_without_colours_where_they_are_not_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job(tmp_path, state="succeeded")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    kinds = [["jobs"], ["status"], ["status", "--watch"], ["jobs", "--watch"]]
    for said in on_a_terminal([[*kind, "--workspace", "ws"] for kind in kinds], tmp_path):
        assert job.id in said
        assert not re.search(r"\x1b\[[\d;]*[34]\dm", said)


@pytest.mark.parametrize(
    ("rank", "size", "live"),
    [("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", False), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", True)],
)
def test_the_terminal_of_a_rank_is_nobody_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, size: str, live: bool
) -> None:
    """Open MPI gives each rank a terminal, whose output it passes on; a shell in Slurm is a step of one task."""
    job = make_job(tmp_path, state="succeeded")
    monkeypatch.setenv(rank, "0")
    monkeypatch.setenv(size, "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    kinds = [["jobs"], ["status"], ["status", "--watch"]]
    said = on_a_terminal([[*kind, "--workspace", "ws"] for kind in kinds], tmp_path)
    assert all(job.id in each for each in said)
    assert ["\x1b" in each for each in said] == [live] * 3


def test_quiet_goes_with_watch(tmp_path: Path) -> None:
    make_job(tmp_path)
    for command in ("status", "jobs"):
        refused = CliRunner().invoke(commands, [command, "--quiet", "--workspace", str(tmp_path / "ws")])
        assert (refused.exit_code, "--quiet goes with --watch" in refused.stderr) == (2, True)


LOOKING = """
import sys
from dlscale.cli.main import commands
for words in (["jobs"], ["jobs", "--json"], ["status"], ["status", "--json"], ["status", "--watch"], ["wait"], ["logs", "-f"]):
    try:
        commands([*words, "--workspace", "ws"])
    except SystemExit as end:
        assert not end.code, words
    assert "numpy" not in sys.modules, words
"""


def test_who_only_looks_does_not_wait_for_numpy(tmp_path: Path) -> None:
    make_job(tmp_path, state="succeeded")
    looked = subprocess.run([sys.executable, "-c", LOOKING], cwd=tmp_path, capture_output=True, text=True)
    assert looked.returncode == 0, looked.stderr


rows = st.builds(
    ListedJob,
    st.from_regex(r"[a-z]{1,12}-20261126-120000-[0-9a-f]{4}", fullmatch=True),
    st.sampled_from(["svd", "kernel-ridge"]),
    st.sampled_from(["running", "succeeded", "interrupted"]),
    st.floats(0, 2e9),
    st.floats(0, 1e6),
    st.text(st.characters(categories=["L", "N", "Zs"]), max_size=120),
)


@given(st.lists(rows, min_size=1, max_size=4), st.integers(60, 200))
def test_a_table_fits_its_terminal(jobs: list[ListedJob], width: int) -> None:
    plain = [re.sub(r"\x1b\[\d*m", "", line) for line in table_lines(jobs, width=width)]
    assert len(plain) == len(jobs) + 1
    assert max(map(len, plain)) <= width
    for job, line in zip(jobs, plain[1:], strict=True):
        assert line.startswith(job.job)
        assert job.state in line
