"""The order of submitted jobs, and how many run at once."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from dlscale.batch.driver import run_submitted, wait_for_turn
from dlscale.batch.queue import Queue, Ticket
from dlscale.batch.workspace import Heartbeat, Job, JobState, Workspace
from dlscale.errors import SpecError


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


@pytest.fixture
def queue(workspace: Workspace) -> Queue:
    return Queue(workspace)


def enter(workspace: Workspace, name: str, submitted: float, **more: object) -> Ticket:
    """A job that a process (this one) drives, with its ticket in the queue."""
    job = workspace.job(name)
    job.folder.mkdir(parents=True)
    job.write_state(JobState(name, name, "svd", "queued", time.time(), Heartbeat.now()))
    ticket = Ticket(name, submitted, **more)  # type: ignore[arg-type]
    Queue(workspace).join(ticket)
    return ticket


def end(workspace: Workspace, ticket: Ticket, state: str = "succeeded", **changes: object) -> None:
    job: Job = workspace.job(ticket.job)
    job.write_state(replace(job.read_state(), state=state, **changes))  # type: ignore[arg-type]


def test_one_job_runs_at_a_time_the_oldest_first(workspace: Workspace, queue: Queue) -> None:
    new, old = enter(workspace, "new", 2.0), enter(workspace, "old", 1.0)
    assert queue.take_turn(new) == ["old"]
    assert queue.take_turn(old) == []
    assert queue.take_turn(new) == ["old"]
    end(workspace, old)
    assert queue.take_turn(new) == []
    assert not (workspace.queue_folder / "old.ticket.json").exists()


def test_a_higher_priority_goes_first_and_nobody_overtakes(workspace: Workspace, queue: Queue) -> None:
    low, high = enter(workspace, "low", 1.0), enter(workspace, "high", 2.0, priority=5)
    assert queue.take_turn(low) == ["high"]
    assert queue.take_turn(high) == []


def test_as_many_run_at_once_as_was_said(workspace: Workspace, queue: Queue) -> None:
    queue.limit(2)
    a, b, c = (enter(workspace, name, i) for i, name in enumerate("abc"))
    assert (queue.take_turn(a), queue.take_turn(b), queue.take_turn(c)) == ([], [], ["a", "b"])
    queue.leave("a")
    assert queue.take_turn(c) == []
    with pytest.raises(SpecError, match="at least 1; got 0"):
        queue.limit(0)


def test_a_job_with_collectives_has_a_cluster_to_itself(workspace: Workspace, queue: Queue) -> None:
    queue.limit(8)
    one = enter(workspace, "one", 1.0, cluster="tcp://a:1")
    gang = enter(workspace, "gang", 2.0, cluster="tcp://a:1", collective=True)
    after = enter(workspace, "after", 3.0, cluster="tcp://a:1")
    other = enter(workspace, "other", 1.5, cluster="tcp://b:1", collective=True)
    assert (queue.take_turn(one), queue.take_turn(other)) == ([], [])
    assert queue.take_turn(gang) == ["one"]
    assert "gang" in queue.take_turn(after)
    queue.leave("one")
    assert queue.take_turn(gang) == []
    assert queue.take_turn(after) == ["gang"]


def test_a_lost_job_gives_its_turn_away_and_keeps_its_place(workspace: Workspace, queue: Queue) -> None:
    gone, late, mine = enter(workspace, "gone", 1.0), enter(workspace, "late", 3.0), enter(workspace, "mine", 2.0)
    assert queue.take_turn(gone) == []
    end(workspace, gone, "running", heartbeat=Heartbeat.now()._replace(started=1.0))
    assert queue.take_turn(mine) == []
    end(workspace, gone, "queued", heartbeat=Heartbeat.now())
    queue.join(gone)
    assert queue.take_turn(gone) == ["mine"]
    assert queue.take_turn(late) == ["mine", "gone"]


def test_a_torn_or_foreign_file_holds_nobody(workspace: Workspace, queue: Queue) -> None:
    mine = enter(workspace, "mine", 2.0)
    (workspace.queue_folder / "x.ticket.json").write_text("{")
    (workspace.queue_folder / "limit.json").write_text("?")
    queue.join(Ticket("no-such-job", 1.0))
    assert queue.take_turn(mine) == []


def test_a_job_lives_before_it_takes_its_turn(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a job of the same moment would not see it, and run beside it."""
    ticket = enter(workspace, "mine", 1.0)
    end(workspace, ticket, "submitted", heartbeat=Heartbeat.now()._replace(started=1.0))
    seen: list[str] = []

    def take_turn(queue: Queue, ticket: Ticket) -> list[str]:
        seen.append(workspace.job(ticket.job).read_state().state)
        return []

    monkeypatch.setattr(Queue, "take_turn", take_turn)
    assert wait_for_turn(workspace.job("mine"), Queue(workspace), ticket)
    assert seen == ["queued"]


def test_a_job_that_another_process_ended_before_it_was_taken_stays_as_it_is(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver died and it seemed lost, so that somebody resumed it while the process that was to run it started."""
    ticket, take = enter(workspace, "mine", 1.0), Job.take

    def take_late(job: Job) -> object:
        end(workspace, ticket)
        return take(job)

    monkeypatch.setattr(Job, "take", take_late)
    assert not wait_for_turn(workspace.job("mine"), Queue(workspace), ticket)
    assert workspace.job("mine").read_state().state == "succeeded"
    assert not workspace.job("mine").is_taken()
    assert run_submitted(workspace.job("mine")) != 0  # it is too late here, too
    assert workspace.job("mine").read_state().state == "succeeded"
