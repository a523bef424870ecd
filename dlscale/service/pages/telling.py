"""Jobs in words, for the pages."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from dlscale.batch.jobs.progress import Progress, progress_words
from dlscale.batch.workspace import Job, JobState
from dlscale.report import words
from dlscale.service.rows import Row
from dlscale.storage.files.atomic import open_at_once

_TONES = {"green": "good", "red": "bad", "yellow": "warn"}
#: Of a job's page: the end of its log.
_LOG_BYTES, _N_LOG_LINES = 2**16, 200


def tone(state: str) -> str:
    """The class of a state's badge."""
    return "bad" if state == "damaged" else _TONES.get(words.STATE_COLORS.get(state, ""), "busy")


def percent(progress: Progress | None) -> int:
    return 0 if progress is None else math.floor(100 * progress.fraction)


def left(row: Row) -> str:
    """How long a job still takes."""
    seconds = row.progress.seconds_left if row.progress and row.is_active else None
    return "" if seconds is None else words.duration(max(round(seconds), 1))


def how_far(row: Row | JobState, *, runs: bool) -> str:
    return "" if row.progress is None else progress_words(row.progress, runs=runs)


def value_words(value: Any) -> str:
    """A value that differs between the jobs of a sweep, as a job file says it."""
    return value if isinstance(value, str) else json.dumps(value)


def plan_facts(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a job would do and take, as `dlscale plan` tells it."""
    if not plan:
        return []
    steps = [str(step["id"]) for step in plan["steps"] if step["where"] == "workers"]
    inputs = [(role.replace("_", " "), _input(described)) for role, described in plan["inputs"].items()]
    return [
        ("Method", str(plan["words"])),
        *((label.capitalize(), text) for label, text in inputs),
        ("Steps", f"{len(steps)}: {', '.join(steps[:6])}{' …' if len(steps) > 6 else ''}"),
        ("Work", f"{words.quantity(plan['flops'], 'FLOP')}, {words.size(plan['bytes_read'])} read"),
        ("Memory", f"{words.size(plan['peak_bytes_per_worker'])} of {words.size(plan['memory_limit_bytes'])} per worker"),
        ("Cluster", f"{plan['cluster']['kind']}, {words.workers(plan)}"),
        ("Expected", words.duration(plan["expected_seconds"])),
        *(("Note", str(note)) for note in plan["notes"]),
    ]


def _input(described: Mapping[str, Any]) -> str:
    if "arrays" in described:
        return f"{', '.join(described['arrays'])} of kind {described['kind']}, {described['uri']}"
    return f"{words.shape(described['shape'])} {described['dtype']}, {words.size(described['stored_bytes'])}, {described['uri']}"


def checks_of(certificate: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """The checks of a certificate, their numbers in words."""
    return [
        {
            "passed": bool(check["passed"]),
            "meaning": str(check["meaning"]),
            "value": words.number(check["value"]),
            "limit": words.number(check["threshold"]),
        }
        for check in (certificate or {}).get("checks") or ()
    ]


def end_of_log(job: Job) -> str:
    """The last lines of a job's log."""
    try:
        with open(job.log, "rb", opener=open_at_once) as file:
            size = file.seek(0, 2)
            file.seek(max(size - _LOG_BYTES, 0))
            lines = file.read(_LOG_BYTES).decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-_N_LOG_LINES:])
