"""The steps of a run: told, timed, kept, not repeated."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.clusters.cluster import DaskCluster
from dlscale.engine.events import Event, Saved, StepFinished, StepStarted, ignore
from dlscale.engine.run import Cost, Run, State
from dlscale.engine.targets import MemoryTarget
from dlscale.errors import SpecError
from dlscale.storage.checkpoints import Checkpoint
from tests.helpers import THREADS

COST = Cost(flops=12.0, bytes_read=34, bytes_written=56)


def run_of(folder: Any, events: list[Event] | None = None) -> Run:
    emit = ignore if events is None else events.append
    return Run(open_cluster(THREADS), checkpoint=Checkpoint(folder / "checkpoint.zarr"), emit=emit)


def value(x: float) -> State:
    return {"x": np.array([x])}


def never(name: str) -> State:
    raise AssertionError(f"{name} must not be computed again")


def test_a_step_is_told_at_its_start_and_end_with_what_it_costs(tmp_path):
    events: list[Event] = []
    run_of(tmp_path, events).step("one", COST, lambda name: value(len(name)))
    assert [type(event) for event in events] == [StepStarted, Saved, StepFinished]
    assert events[0] == StepStarted("one", 12.0, 34)
    finished = events[-1]
    assert (finished.flops, finished.bytes_read, finished.bytes_written, finished.resumed) == (12.0, 34, 56, False)


def test_the_start_of_workers_is_no_part_of_the_step_that_needs_them_first(tmp_path, monkeypatch):
    events: list[Event] = []
    run, clock = run_of(tmp_path, events), itertools.count(100.0, 10.0)
    monkeypatch.setattr("dlscale.engine.run.time", SimpleNamespace(perf_counter=lambda: next(clock)))

    def compute(name: str) -> State:
        run.cluster.start_seconds = 7.0
        return value(0)

    for name in ("first", "second"):
        run.step(name, COST, compute, keep="none")
    assert [event.seconds for event in events if isinstance(event, StepFinished)] == [3.0, 10.0]


def test_a_step_in_the_checkpoint_is_not_computed_again(tmp_path):
    run_of(tmp_path).step("one", COST, lambda _: value(1.5))
    events: list[Event] = []
    assert run_of(tmp_path, events).step("one", COST, never)["x"][0] == 1.5
    assert [type(event) for event in events] == [StepStarted, StepFinished]
    assert events[-1].resumed


def test_a_run_apart_has_its_own_steps(tmp_path):
    run = run_of(tmp_path)
    run.step("one", COST, lambda _: value(1))
    names: list[str] = []
    run.apart("scaled-").step("one", COST, lambda name: names.append(name) or value(2))
    assert names == ["scaled-one"]
    assert run.step("one", COST, never)["x"][0] == 1


def test_of_an_iteration_the_last_two_steps_are_kept_and_found_again(tmp_path):
    run = run_of(tmp_path).apart("apart-")
    assert run.newest("iterate") is None
    run.step("start", COST, lambda _: value(0))
    for number in range(1, 12):
        run.step(f"iterate-{number}", COST, lambda _, number=number: value(number), keep="last")
    assert Checkpoint(tmp_path / "checkpoint.zarr").steps() == ["apart-start", "apart-iterate-10", "apart-iterate-11"]
    number, state = run_of(tmp_path).apart("apart-").newest("iterate")
    assert (number, state["x"][0]) == (11, 11.0)


def test_where_the_last_step_of_an_iteration_is_damaged_the_one_before_counts(tmp_path):
    run = run_of(tmp_path)
    for number in (1, 2, 3):
        run.step(f"iterate-{number}", COST, lambda _, number=number: value(number), keep="last")
    next((tmp_path / "checkpoint.zarr" / "steps" / "iterate-3").rglob("c/0")).write_bytes(b"")
    number, state = run_of(tmp_path).newest("iterate")
    assert (number, state["x"][0]) == (2, 2.0)


def test_without_a_checkpoint_every_step_is_computed():
    run = Run(open_cluster(THREADS))
    assert [run.step("one", COST, lambda _, x=x: value(x), keep="last")["x"][0] for x in (1, 2)] == [1, 2]
    assert run.newest("one") is None


def test_arrays_of_this_process_are_no_targets_for_other_processes():
    elsewhere = Run(DaskCluster(ClusterFacts("local", 1, 1, 2**30)))
    with pytest.raises(SpecError, match="cluster: threads"):
        elsewhere.require_shared(MemoryTarget(np.zeros((2, 2))))
