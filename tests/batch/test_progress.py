"""How far a job is: from its events, in its state, and in what commands say of it."""

from __future__ import annotations

import io
import json
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gate import PATIENCE_SECONDS
from helpers import gaussian
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from dlscale.batch import recorder
from dlscale.batch import run as jobs
from dlscale.batch.jobs import progress
from dlscale.batch.jobs.progress import Follower, Progress, caught_up, progress_words, step_words
from dlscale.batch.workspace import Heartbeat, JobState, Workspace
from dlscale.cli import terminal, watching
from dlscale.cli.main import commands
from dlscale.cli.terminal import JobProgress, WholePlaces, facts_rows, show_result
from dlscale.engine.events import EpochFinished, Event, Saved, StateChanged, StepFinished, StepStarted, TrainingResumed, WorkDone

STEPS = st.sampled_from(["a", "b", "c"])
NUMBERS = st.floats(0, 1e18)
EVENTS = st.one_of(
    st.builds(StateChanged, st.sampled_from(["running", "certifying", "cancelled", "failed", "lost"])),
    st.builds(StepStarted, STEPS, NUMBERS),
    st.builds(WorkDone, STEPS, st.just("0"), bytes=st.integers(0, 10**18), flops=NUMBERS),
    st.builds(StepFinished, STEPS, NUMBERS, flops=NUMBERS, resumed=st.booleans()),
    st.builds(Saved, STEPS),
    st.builds(TrainingResumed, st.just(3), st.just(1), NUMBERS),
    st.builds(EpochFinished, st.integers(0, 9), st.dictionaries(st.just("epoch_loss"), st.floats() | st.none())),
)


def after(events: list[Event], total: float = 100.0, n_steps: int = 2) -> Progress:
    follower = Follower(total, n_steps)
    for event in events:
        follower(event)
    return follower.progress()


def test_work_of_finished_steps_and_of_the_one_that_runs_counts() -> None:
    begun = [StateChanged("running"), StepStarted("a", 40.0), WorkDone("a", "0", flops=10.0, bytes=8)]
    assert after(begun).fraction == 0.1
    # What tasks say, and what the step says at its end, is not counted twice.
    found = after([*begun, StepFinished("a", 1.0, flops=40.0), Saved("a"), StepStarted("b", 60.0), WorkDone("b", "0", flops=30.0)])
    assert (found.fraction, found.step, found.n_done, found.n_steps) == (0.7, "b", 1, 2)
    assert found.rate is not None
    assert found.seconds_left == pytest.approx(30.0 / found.rate)


def test_what_comes_from_the_checkpoint_is_done_and_says_nothing_of_the_rate() -> None:
    resumed = [StateChanged("running"), StepStarted("a"), StepFinished("a", 0.0, flops=40.0, resumed=True)]
    assert (after(resumed).fraction, after(resumed).rate, after(resumed).seconds_left) == (0.4, None, None)


def test_a_run_begins_anew() -> None:
    first = [StateChanged("running"), StepStarted("a"), StepFinished("a", 1.0, flops=40.0), EpochFinished(3, {"epoch_loss": 0.5})]
    assert (after(first).epoch, after(first).loss) == (3, 0.5)
    assert after([*first, StateChanged("running")]) == Progress(n_steps=2)


def test_a_job_that_goes_on_is_as_far_as_it_was_until_its_first_step_is_heard_of() -> None:
    before = Progress(0.7, "b", 7, 10, 5.0, 8.0, 6.0)
    follower = Follower(100.0, 10, before=before)
    follower(StateChanged("running"))
    assert follower.progress() == Progress(0.7, "", 7, 10)
    follower(StepFinished("a", 0.0, flops=40.0, resumed=True))
    assert (follower.progress().fraction, follower.progress().n_done) == (0.4, 1)


def test_of_many_fast_passes_few_have_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    console, now = Console(file=io.StringIO(), width=80), [100.0]
    monkeypatch.setattr(terminal.time, "monotonic", lambda: now[0])
    told = JobProgress(console, 1.0)
    for k in range(60):
        told(StepFinished(f"product-{k}", 0.1, flops=1.0))
        now[0] += 0.1
    told(StateChanged("certifying"))
    lines = console.file.getvalue().splitlines()
    assert [line.split()[1] for line in lines[:20]] == [f"product-{k}" for k in range(20)]
    # A line a second of the others, and none of them is uncounted.
    assert 6 <= len(lines) - 20 <= 10
    assert sum(int(line.split()[1]) if "more passes" in line else 1 for line in lines) == 60
    assert "more passes" in lines[-1]


def test_events_tell_how_far_a_killed_job_came_since_it_was_written_down() -> None:
    begun = [StateChanged("running"), StepStarted("a", 40.0), Saved("a"), StepFinished("a", 1.0, flops=40.0)]
    written = after([*begun, StepStarted("b", 60.0), WorkDone("b", "0", flops=10.0)])
    found = caught_up(written, [*begun, StepStarted("b", 60.0), WorkDone("b", "0", flops=30.0)], 100.0)
    # What was done of the step that ran is done again.
    assert (found.fraction, found.step, found.n_done, found.n_steps) == (0.4, "b", 1, 2)
    assert (found.rate, found.seconds_left) == (written.rate, written.seconds_left)
    assert caught_up(found, [], 100.0) == found


@pytest.mark.parametrize("state", ["failed", "interrupted", "cancelled"])
def test_a_job_that_stopped_is_as_far_as_what_it_kept(state: str) -> None:
    one = [StateChanged("running"), StepStarted("a", 100.0), WorkDone("a", "0", flops=100.0)]
    assert after(one, n_steps=1).fraction == 1.0
    found = after([*one, StateChanged(state)], n_steps=1)
    assert (found.fraction, found.n_done, found.rate is None) == (0.0, 0, False)
    kept = [StepStarted("a"), Saved("a"), StepFinished("a", 1.0, flops=20.0)]
    loose = [StepStarted("b"), StepFinished("b", 1.0, flops=20.0), StepStarted("c"), WorkDone("c", "0", flops=30.0)]
    assert (after([*kept, *loose]).fraction, after([*kept, *loose]).n_done) == (0.7, 2)
    found = after([*kept, *loose, StateChanged(state)])
    assert (found.fraction, found.n_done) == (0.2, 1)
    # What is kept behind it holds all that was before.
    found = after([*kept, *loose[:2], StepStarted("i-1"), Saved("i-1"), StepFinished("i-1"), *loose[2:], StateChanged(state)])
    assert (found.fraction, found.n_done) == (0.4, 2)


def test_of_a_training_that_stopped_what_it_saved_counts_and_is_where_it_goes_on() -> None:
    begun = [StateChanged("running"), StepStarted("training", 100.0), WorkDone("training", "0", flops=50.0)]
    stopped = [*begun, Saved("step-5"), WorkDone("training", "0", flops=20.0), StateChanged("failed")]
    assert (after(stopped).fraction, after(stopped).n_done) == (0.5, 0)
    goes_on = [*stopped, StateChanged("running"), StepStarted("training", 100.0), TrainingResumed(5, 1, 50.0)]
    assert (after(goes_on).fraction, after(goes_on).rate) == (0.5, None)
    found = after([*goes_on, WorkDone("training", "0", flops=25.0, compute_seconds=5.0)])
    assert found.fraction == 0.75
    ended = after([*goes_on, StepFinished("training", 9.0, flops=50.0), Saved("trained")])
    assert (ended.fraction, ended.n_done) == (1.0, 1)
    # Trained, and stopped in what comes behind it.
    again = after([*goes_on[:-1], TrainingResumed(10, 2, 100.0), StepFinished("training", resumed=True), StateChanged("failed")])
    assert (again.fraction, again.n_done) == (1.0, 1)


def test_workers_that_start_are_none_of_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    follower = Follower(100.0, 2)
    follower(StateChanged("running"))
    follower(StepStarted("a"))
    now[0] += 5.0
    follower(StepFinished("a", 5.0, flops=40.0, resumed=True))
    follower(StepStarted("b"))
    now[0] += 10.0
    follower(WorkDone("b", "0", flops=10.0, read_seconds=0.5, compute_seconds=0.5))
    assert follower.progress().rate == pytest.approx(10.0)
    assert follower.progress().seconds_left == pytest.approx(5.0)
    # Of threads, which together were at work for longer than their step.
    follower = Follower(100.0, 2)
    follower(StepStarted("b"))
    now[0] += 1.0
    follower(WorkDone("b", "0", flops=10.0, compute_seconds=4.0))
    assert follower.progress().rate == pytest.approx(10.0)


@given(st.lists(EVENTS))
@example([WorkDone("a", "0", bytes=0, flops=5e-324)])
@example([EpochFinished(1, {"epoch_loss": 1.797e308})])
def test_whatever_happens_it_fits_the_state_file(events: list[Event]) -> None:
    found = after(events)
    assert 0 <= found.fraction <= 1
    json.dumps(vars(found), allow_nan=False)
    for runs in (False, True):
        assert progress_words(found, runs=runs)


def test_words() -> None:
    found = Progress(0.999, "iteration-2", 2, 12, 5.1e9, 8e8, 182.0, 4, 0.25)
    assert progress_words(found, runs=True) == (
        "99%, 3 min 02 s left, step 3 of 12 (iteration-2), epoch 4, loss 0.250, 5.10 GFLOP/s, 800 MB/s"
    )
    assert progress_words(found, runs=False) == "99%, 2 of 12 steps, epoch 4, loss 0.250"
    assert progress_words(Progress(n_steps=3), runs=True) == "0%, 0 of 3 steps"


def test_no_more_steps_are_done_than_were_planned_in_words() -> None:
    done = [event for name in "abc" for event in (StepStarted(name, 1.0, 0), StepFinished(name, 1.0, 0, 0, 1.0))]
    assert step_words(after(done[:4])) == "2 of 2 steps"
    assert step_words(after(done)) == "step 4 (c)"
    assert progress_words(after(done), runs=False) == "3%, 3 steps"


def test_what_the_driver_computes_between_passes_is_no_step_of_the_plan() -> None:
    done = [event for name in ("read-2", "iteration-2") for event in (StepStarted(name), StepFinished(name, 1.0))]
    assert step_words(after(done)) == "step 1 of 2 (iteration-2)"
    assert step_words(after([*done, StepStarted("read-3", 1.0), StepFinished("read-3", 1.0, bytes_read=8, flops=1.0)])) == (
        "step 2 of 2 (read-3)"
    )


def test_state_and_log_of_a_job_that_stopped_say_how_far_it_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", gaussian(400, 20))
    spec = {
        "kind": "svd",
        "input": {"matrix": {"import": str(tmp_path / "a.npy")}},
        "params": {"n_components": 3, "power_iterations": 4},
        "cluster": "threads",
    }
    seen: list[object] = []
    monkeypatch.setattr(recorder, "HEARTBEAT_SECONDS", 0.0)
    monkeypatch.setattr(recorder, "TELL_SECONDS", 0.0)

    told = re.compile(r"INFO \d+%, (\d+ s|.* min .*) left, step 2 of 7 \(iteration-2\), ")

    def log() -> str:
        return Workspace(tmp_path / "ws").find(None).log.read_text()

    def fail(event: dict[str, object]) -> None:
        seen.append(event["event"])
        if seen.count("pass_finished") == 1 and event["event"] == "pass_started":
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not told.search(log()):  # the heart beats meanwhile
                assert time.monotonic() < deadline, log()
                time.sleep(0.05)
        if seen.count("pass_finished") == 2:
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        jobs.run(spec, workspace=tmp_path / "ws", listener=fail)
    job = Workspace(tmp_path / "ws").find(None)
    found = job.read_state().progress
    assert found is not None
    assert found.n_done == 2
    finished = [event.flops for event in job.read_events() if isinstance(event, StepFinished)]
    assert found.fraction == pytest.approx(sum(finished[:2]) / job.read_plan()["flops"])
    assert re.search(r"pass iteration-1: [\d.]+ s; \d+%, (\d+ s|.* min .*) left, 1 of 7 steps, .*FLOP/s", log()), log()
    call = CliRunner().invoke
    shown = call(commands, ["status", "--workspace", str(tmp_path / "ws")]).stdout
    assert f"2 of {found.n_steps} steps" in " ".join(shown.split())
    (listed,) = json.loads(call(commands, ["jobs", "--workspace", str(tmp_path / "ws"), "--json"]).stdout)
    assert listed["progress"]["n_done"] == 2


def test_lists_and_waits_say_how_far_a_running_job_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    job = Workspace(tmp_path).new_job("x")
    job.folder.mkdir(parents=True)
    state = JobState(job.id, "x", "svd", "running", 1.0, Heartbeat.now(), progress=Progress(0.5, "gram", 0, 2, 1e9, None, 12.0))
    job.write_state(state)
    call = CliRunner().invoke
    assert "50%, 12 s left, step 1 of 2 (gram), 1.00 GFLOP/s" in call(commands, ["jobs", "--workspace", str(tmp_path)]).stdout
    monkeypatch.setattr(watching, "EVERY_SECONDS", -1.0)
    say = watching.Lines(states=False, err=True)
    for fraction in (0.5, 0.5, 0.75):
        say(watching.Look.of(replace(state, progress=replace(state.progress, fraction=fraction))))
    say(watching.Look.of(replace(state, state="succeeded")))
    said = capsys.readouterr().err.splitlines()
    assert [line.partition("%")[0] for line in said] == [f"{job.id} running: {percent}" for percent in (50, 75)]


def test_in_a_narrow_terminal_the_bar_says_whole_what_is_done() -> None:
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    told = JobProgress(console, 100.0)
    with told.live():
        told(StepStarted("training", 100.0))
        told(WorkDone("training", "0", flops=50.0, bytes=8))
        told(EpochFinished(5, {"epoch_loss": 0.689}))
        told(StateChanged("certifying"))
    written = console.file.getvalue()
    assert "checking the answer" in written
    assert "…" not in written


def shown(renderable: object, width: int) -> list[str]:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable, crop=False)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_places_stay_whole_in_narrow_terminals() -> None:
    place = "dlscale-workspace/jobs/diabetes-kernel-ridge-20261129-094209-bbb2/result [1].zarr"
    lines = shown(WholePlaces([("variance explained", "words " * 20), ("result", place), ("report", place)]), 40)
    assert max(map(len, lines[:-2])) <= 40
    # In the column of the texts above.
    assert lines[-2:] == [f"result{' ' * 14}{place}", f"report{' ' * 14}{place}"]
    assert lines[0].index("words") == lines[-1].index(place)


def test_notes_are_told_one_by_one() -> None:
    assert shown(facts_rows({"notes": ["One.", "Two."], "rows": 3}), 80) == ["Notes  One.", "       Two.", "Rows   3"]


@pytest.mark.parametrize(("message", "words"), [("", ""), ("cancelled: stopped.", ": stopped."), ("SIGINT: x.", ": SIGINT: x.")])
def test_how_a_job_ended_is_said_once(message: str, words: str) -> None:
    assert watching.ended_words("a-1", "cancelled", message) == f"a-1 cancelled{words}"


def test_a_variance_that_is_nearly_all_is_not_called_all(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", gaussian(200, 3) * [100.0, 1.5, 1.0])
    spec = {
        "kind": "pca",
        "input": {"matrix": {"import": str(tmp_path / "a.npy")}},
        "params": {"n_components": 2},
        "cluster": "threads",
    }
    done = jobs.run(spec, workspace=tmp_path / "ws")
    console = Console(file=io.StringIO(), width=200)
    show_result(console, done)
    (told,) = (line for line in console.file.getvalue().splitlines() if line.startswith("variance explained"))
    assert re.fullmatch(r"variance explained +99\.9\d+ %  0\.0\d+ %", told.rstrip()), told
