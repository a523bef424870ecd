"""The one room that knows Dask's own classes of tasks, which are private to it and change with it.

A graph is a mapping of keys to a `Task` (a function with arguments, some of them a `TaskRef` to another key) or to a `DataNode`
(a value). Everything else of Dask that is used elsewhere is public.
"""

from __future__ import annotations

from dask._task_spec import DataNode, Task, TaskRef

__all__ = ["DataNode", "Task", "TaskRef"]
