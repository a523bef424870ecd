"""Events: they survive JSON, and what another version or a failing disk leaves in a line does no harm."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import dlscale
from dlscale.engine.events import (
    EpochFinished,
    Event,
    MemoryTaken,
    Saved,
    StateChanged,
    StepFinished,
    StepStarted,
    SyncChosen,
    TrainingResumed,
    Warned,
    WorkDone,
    event_of,
)

TIMES = st.floats(0, 16_725_225_600)
AMOUNTS = st.integers(0, 2**62)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
VALUES = st.dictionaries(st.sampled_from(["epoch_loss", "validation_loss", "validation_accuracy"]), st.none() | NUMBERS)

EVENTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(StateChanged, TEXTS, TEXTS, time=TIMES),
    st.builds(Warned, TEXTS, time=TIMES),
    st.builds(StepStarted, TEXTS, NUMBERS, AMOUNTS, time=TIMES),
    st.builds(WorkDone, TEXTS, TEXTS, AMOUNTS, AMOUNTS, NUMBERS, time=TIMES),
    st.builds(
        WorkDone,
        TEXTS,
        TEXTS,
        rss_bytes=st.none() | AMOUNTS,
        inexact=st.lists(TEXTS).map(tuple),
        thread=AMOUNTS,
        task=st.none() | TEXTS,
        panel=AMOUNTS,
        transform=st.none() | AMOUNTS,
        started=TIMES,
    ),
    st.builds(StepFinished, TEXTS, NUMBERS, AMOUNTS, AMOUNTS, NUMBERS, st.booleans(), time=TIMES),
    st.builds(Saved, TEXTS, AMOUNTS, NUMBERS, time=TIMES),
    st.builds(MemoryTaken, TEXTS, AMOUNTS, time=TIMES),
    st.builds(SyncChosen, TEXTS, TEXTS, time=TIMES),
    st.builds(TrainingResumed, AMOUNTS, AMOUNTS, time=TIMES),
    st.builds(EpochFinished, AMOUNTS, VALUES, time=TIMES),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | TEXTS, lambda x: st.lists(x) | st.dictionaries(TEXTS, x)
)


@given(EVENTS)
def test_an_event_is_the_same_after_json(event: Event) -> None:
    assert event_of(json.loads(json.dumps(event.to_dict()))) == event


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ('{"time": 1, "event": "state", "state": "running", "message": ""}', StateChanged("running", time=1)),
        ('{"time": 1, "event": "pass_started", "step": "gram", "flops": 2.0, "bytes": 3}', StepStarted("gram", 2.0, 3, time=1)),
        (
            '{"time": 1, "event": "blocks", "step": "gram", "worker": "0", "rows": 2, "bytes": 3, "read_seconds": 0.5, '
            '"compute_seconds": 0.25, "inexact": ["a.zarr"], "flops": 4.0}',
            WorkDone("gram", "0", 2, 3, 4.0, 0.5, 0.25, inexact=("a.zarr",), time=1),
        ),
        (
            '{"time": 1, "event": "blocks", "step": "lu-1", "worker": "0", "thread": 7, "task": "apply", "panel": 1, "rows": 0, '
            '"bytes": 0, "flops": 4.0, "read_seconds": 0.0, "compute_seconds": 0.25, "started": 0.5, "transform": 0}',
            WorkDone("lu-1", "0", 0, 0, 4.0, 0.0, 0.25, thread=7, task="apply", panel=1, transform=0, started=0.5, time=1),
        ),
        (
            '{"time": 1, "event": "pass_finished", "step": "training", "seconds": 0.5, "bytes_read": 3, "flops": 4.0, '
            '"resumed": true}',
            StepFinished("training", 0.5, 3, 0, 4.0, True, time=1),
        ),
        ('{"time": 1, "event": "memory", "process": "driver", "rss_bytes": 5}', MemoryTaken("driver", 5, time=1)),
        (
            '{"time": 1, "event": "epoch", "epoch": 2, "epoch_loss": 0.5, "validation_loss": null}',
            EpochFinished(2, {"epoch_loss": 0.5, "validation_loss": None}, time=1),
        ),
    ],
)
def test_lines_of_events_jsonl(line: str, event: Event) -> None:
    assert event_of(json.loads(line)) == event


def test_what_a_later_version_adds_is_passed_over() -> None:
    assert event_of({"event": "colour", "time": 1, "name": "red"}) is None
    assert event_of({"event": "warning", "time": 1, "message": "x", "colour": "red"}) == Warned("x", time=1)


@given(JSON | st.fixed_dictionaries({"event": st.sampled_from(["state", "blocks", "epoch", "memory"])}, optional={"step": JSON}))
def test_anything_else_is_refused_as_damaged(value: Any) -> None:
    try:
        event = event_of(value)
    except ValueError:
        return
    # Only what begins like an event of another version.
    assert event is None
    assert isinstance(value["event"], str)


@pytest.mark.parametrize("time", [-1, 1e12, float("nan"), "noon", None])
def test_a_time_that_is_none_is_refused(time: Any) -> None:
    record = {"event": "warning", "message": "x", "time": time}
    if time is None:
        assert event_of(record) == Warned("x")
        return
    with pytest.raises(ValueError, match="time"):
        event_of(record)


def _keys(tree: ast.AST) -> Iterator[ast.expr | None]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            yield from node.keys
        elif isinstance(node, ast.Subscript):
            yield node.slice


def test_events_are_spelled_by_key_in_one_file() -> None:
    for path in Path(dlscale.__file__).parent.rglob("*.py"):
        if path.name != "events.py":
            keys = [key for key in _keys(ast.parse(path.read_text())) if isinstance(key, ast.Constant)]
            assert "event" not in [key.value for key in keys], path
