"""What there is of this machine for a process: its memory and its cores, or what a container or a batch system leaves of them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import psutil

_GROUPS = Path("/sys/fs/cgroup")


def n_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_bytes() -> int:
    """The memory of this machine, or the limit of this process's control group or of one above it, if that is smaller."""
    return min([psutil.virtual_memory().total, *_limits(Path("/proc/self/cgroup"), _GROUPS)])


def _limits(membership: Path, groups: Path) -> list[int]:
    """The limits on the way from a process's control group to the root; none where they cannot be read or are not set."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return []
    limits = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, name = groups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = groups / "memory", "memory.limit_in_bytes"
        else:
            continue
        group = root / path.strip("/")
        while group.is_relative_to(root):
            # A container does not see its own path, and "max" is no limit.
            with suppress(OSError, ValueError):
                limits.append(int((group / name).read_text()))
            group = group.parent
    return limits
