"""What is private to Dask is known in one place, and does there what the engine counts on."""

from __future__ import annotations

from pathlib import Path

import dask.threaded

import dlscale
from dlscale.engine.graphs import DataNode, Task, TaskRef


def test_no_other_module_knows_private_parts_of_dask() -> None:
    package = Path(dlscale.__file__).parent
    knowing = [path for path in package.rglob("*.py") if "dask._" in path.read_text(encoding="utf-8")]
    assert [path.relative_to(package).as_posix() for path in knowing] == ["engine/graphs.py"]


def test_a_task_gets_what_its_references_name_and_a_value_as_it_is() -> None:
    """Keys may be tuples, and what only looks like a reference, such as text or a tuple in a value, is none."""
    value = ("a", ("t", 0))
    graph = {
        "a": DataNode("a", value),
        ("t", 0): Task(("t", 0), lambda given, *, more: (given, more), TaskRef("a"), more="a"),
        "last": Task("last", lambda *given: given, TaskRef(("t", 0)), "a"),
    }
    assert dask.threaded.get(graph, "last") == ((value, "a"), "a")
