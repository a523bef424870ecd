"""The files of sweeps, and the table of what their jobs found.

    <root>/sweeps/<name>-sweep-<YYYYmmdd-HHMMSS>-<4 hex>.json    its jobs and the values that each has
    <root>/sweeps/<name>-sweep-....log, ....lock                 what its driver said, and whether it lives

The jobs are ordinary ones, and their own files say how they are.
"""

from __future__ import annotations

import csv
import io
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

from dlscale.batch.jobs import records
from dlscale.batch.workspace import JobState, Workspace
from dlscale.engine.events import UnixTime
from dlscale.errors import Interrupted, SpecError

_ENDING = ".json"


class SweptJob(TypedDict):
    job: str
    values: list[Any]


@dataclass(frozen=True)
class Sweep:
    """An array of jobs.

    Parameters
    ----------
    sweep, name, kind : str
        Its id, and what its jobs have in common.
    created : float
        Unix time.
    keys : list of str
        That differ between the jobs.
    jobs : list of SweptJob
        Each with a value of every key.
    """

    sweep: str
    name: str
    kind: str
    created: UnixTime
    keys: list[str]
    jobs: list[SweptJob]


def new_id(name: str) -> str:
    return f"{name}-sweep-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def log_of(root: Workspace, sweep_id: str) -> Path:
    """Of this machine."""
    return root.sweeps.folder / f"{sweep_id}.log"


def lock_of(sweep_id: str) -> str:
    """The name of the lock that the process has which runs it."""
    return f"{sweep_id}.lock"


def keep(root: Workspace, sweep: Sweep) -> None:
    """Write a sweep down."""
    root.make_folder(root.sweeps.folder)
    root.sweeps.write(f"{sweep.sweep}{_ENDING}", json.dumps(asdict(sweep)).encode())


def exists(root: Workspace, sweep_id: str) -> bool:
    return root.sweeps.has(f"{sweep_id}{_ENDING}")


def sweep_ids(root: Workspace, begins: str = "") -> list[str]:
    """Of all sweeps whose id begins so, the newest first."""
    return [name.removesuffix(_ENDING) for name in root.sweeps.names(begins, _ENDING)]


def read(root: Workspace, sweep_id: str) -> Sweep:
    """The sweep with this id (SpecError if there is none, or its file is damaged)."""
    name = f"{sweep_id}{_ENDING}"
    try:
        return records.parse(root.sweeps.read(name), Sweep, root.sweeps.folder / name)
    except FileNotFoundError:
        raise SpecError(f"There is no sweep {sweep_id} in {root.place}.") from None


def find(root: Workspace, sweep_id: str) -> Sweep | None:
    """The sweep with this id, or with the only id that begins so; None if there is none, or a job may be meant (SpecError)."""
    found = meant(sweep_ids(root, sweep_id), sweep_id, lambda: bool(root.ids(sweep_id)))
    return None if found is None else read(root, found)


def meant(begun: Sequence[str], sweep_id: str, job_begins: Callable[[], bool]) -> str | None:
    """Which sweep is meant by an id, or by what it begins with.

    Parameters
    ----------
    begun : sequence of str
        The ids of sweeps that begin so.
    sweep_id : str
    job_begins : callable
        Whether the id of a job begins so, which then is meant.

    Raises
    ------
    SpecError
        If there is more than one.
    """
    if sweep_id in begun:
        return sweep_id
    if not begun or job_begins():
        return None
    if len(begun) > 1:
        raise SpecError(f"{sweep_id!r} is the beginning of {len(begun)} sweeps: {', '.join(begun[:4])}; give more of it.")
    return begun[0]


def forget(root: Workspace, sweep_id: str) -> None:
    """Remove the files of a sweep; its jobs stay."""
    for name in (f"{sweep_id}{_ENDING}", lock_of(sweep_id)):
        root.sweeps.remove(name)
    log_of(root, sweep_id).unlink(missing_ok=True)


def forget_if_empty(root: Workspace, sweep_id: str) -> None:
    """Remove the files of a sweep none of whose jobs is there any more."""
    with suppress(SpecError, OSError):
        # The last ones first: those that stand first are mostly removed first.
        if not any(root.job(each["job"]).exists() for each in reversed(read(root, sweep_id).jobs)):
            forget(root, sweep_id)


def states_of(root: Workspace, sweep: Sweep) -> dict[str, JobState | None]:
    """How each job is; None of one that was removed, or is damaged."""
    return root.read_states([each["job"] for each in sweep.jobs])


def counts(states: Mapping[str, JobState | None]) -> dict[str, int]:
    """How many jobs are in each state."""
    return count("removed" if state is None else state.state for state in states.values())


def counts_of(root: Workspace, sweep: Sweep) -> dict[str, int]:
    """How many jobs of a sweep are in each state."""
    return counts(states_of(root, sweep))


def count(states: Iterable[str]) -> dict[str, int]:
    """How often each state is there."""
    return dict(sorted(Counter(states).items()))


def told(counted: Mapping[str, int]) -> str:
    """``3 succeeded, 1 failed``."""
    return ", ".join(f"{n} {state}" for state, n in counted.items())


def exit_code(counted: Mapping[str, int]) -> int:
    """0 where all jobs succeeded, 1 where one failed or is lost, otherwise 75: `dlscale resume` goes on."""
    if set(counted) == {"succeeded"}:
        return 0
    return 1 if counted.keys() & {"failed", "lost", "removed"} else Interrupted.exit_code


def moves(states: Mapping[str, JobState | None]) -> bool:
    """Whether some job runs or waits."""
    return any(state is not None and state.moves for state in states.values())


def rows_of(sweep: Sweep, states: Mapping[str, JobState | None]) -> list[dict[str, Any]]:
    """The table of a sweep, a row a job: its values by key, its state, and the numbers that it found.

    Parameters
    ----------
    sweep : Sweep
    states : mapping
        See `states_of`.

    Returns
    -------
    list of dict
        ``job state seconds certificate values numbers message result progress``; ``numbers`` are the scalar estimates.
    """
    rows = []
    for each in sweep.jobs:
        state = states[each["job"]]
        row: dict[str, Any] = {"job": each["job"], "values": dict(zip(sweep.keys, each["values"], strict=True))}
        row |= {
            "state": "removed",
            "seconds": None,
            "certificate": None,
            "numbers": {},
            "message": "",
            "result": None,
            "progress": None,
        }
        if state is not None:
            certificate = state.certificate
            row |= {"state": state.state, "seconds": state.seconds, "message": state.message, "result": state.result}
            row["certificate"] = None if certificate is None else bool(certificate.get("passed"))
            row["numbers"] = _numbers(state.summary.get("estimates") or {})
            if state.progress is not None:
                row["progress"] = asdict(state.progress)
                if state.progress.loss is not None:
                    row["numbers"].setdefault("loss", state.progress.loss)
        rows.append(row)
    return rows


def _numbers(estimates: Mapping[str, Any]) -> dict[str, float]:
    return {key: value for key, value in estimates.items() if isinstance(value, int | float) and not isinstance(value, bool)}


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of all numbers, in the order in which they come."""
    return list(dict.fromkeys(name for row in rows for name in row["numbers"]))


def to_csv(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> str:
    """The table as CSV: one line of heads, one a job."""
    text, numbers = io.StringIO(), columns(rows)
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["job", *keys, "state", "seconds", "certificate", *numbers, "message", "result"])
    for row in rows:
        certificate = {None: "", True: "passed", False: "failed"}[row["certificate"]]
        found = [row["numbers"].get(name, "") for name in numbers]
        values = [_safe(row["values"].get(key)) for key in keys]
        seconds = "" if row["seconds"] is None else row["seconds"]
        writer.writerow(
            [row["job"], *values, row["state"], seconds, certificate, *found, _safe(row["message"]), _safe(row["result"])]
        )
    return text.getvalue()


def _safe(value: Any) -> Any:
    """A value of a cell: text that a spreadsheet would take for a formula is marked as text."""
    if value is None or isinstance(value, bool | int | float):
        return "" if value is None else value
    text = value if isinstance(value, str) else json.dumps(value)
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
