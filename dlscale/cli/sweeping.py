"""Sweeps on the command line: submitted, waited for and resumed as jobs are, and shown as one table."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from dlscale.cli.options import Command, echo, open_console, plan_job, print_json
from dlscale.cli.watching import EVERY_SECONDS, now_and_then, sweep_goes_on, until_ctrl_c
from dlscale.errors import SpecError

if TYPE_CHECKING:
    from rich.console import Console

    from dlscale.batch.assumed import Assumed
    from dlscale.batch.document import Document
    from dlscale.batch.prepare import Prepared
    from dlscale.batch.sweeps.planning import Member
    from dlscale.batch.sweeps.store import Sweep
    from dlscale.batch.workspace import JobState, Workspace


def sweep_options(command: Command) -> Command:
    """``sweep`` and ``to_csv``."""
    place = click.Path(path_type=Path)
    command = click.option("--csv", "to_csv", type=place, metavar="FILE", help="With --sweep: write the table as CSV.")(command)
    return click.option("--sweep", metavar="ID", help="The jobs of a sweep, with what differs and what they found.")(command)


def is_sweep(document: Document) -> bool:
    from dlscale.batch.spec.expanding import is_sweep as has_matrix

    return has_matrix(document)


def find_sweep(root: Workspace, sweep_id: str) -> Sweep | None:
    """The sweep that is meant; None where it is a job."""
    from dlscale.batch.sweeps.store import find

    return find(root, sweep_id)


def known_sweep(root: Workspace, sweep_id: str) -> Sweep:
    sweep = find_sweep(root, sweep_id)
    if sweep is None:
        from dlscale.batch.sweeps.store import sweep_ids

        newest = ", ".join(sweep_ids(root)[:4])
        there = f"the newest are: {newest}" if newest else "`dlscale submit` of a job file with matrix: makes one"
        raise SpecError(f"There is no sweep {sweep_id} in {root.place}; {there}.")
    return sweep


def submit_sweep(
    root: Workspace, document: Document, *, priority: int, concurrency: int | None, request: Mapping[str, Any] | None
) -> Sweep:
    """Submit the jobs of a sweep; to Slurm where something is requested of it."""
    from dlscale.batch.sweeps.planning import members_of, new_sweep, plan_all
    from dlscale.batch.sweeps.running import submit

    console = open_console(as_json=True)
    planned = plan_all(members_of(document), lambda member: plan_job(member.document, root, console))
    sweep = new_sweep(root, document, planned)
    submit(root, sweep, planned, priority=priority, concurrency=concurrency, slurm=request)
    return sweep


def show_submitted_sweep(sweep_id: str, jobs: Sequence[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"sweep": sweep_id, "jobs": jobs})
    else:
        echo(sweep_id)


def resume_sweep(root: Workspace, sweep: Sweep, *, cluster: str | None, request: Mapping[str, Any] | None, as_json: bool) -> None:
    from dlscale.batch.sweeps.running import resume

    if cluster is not None:
        raise click.UsageError("--cluster goes with one job; a sweep goes on where its jobs say.")
    left = resume(root, sweep, slurm=request)
    where = "run" if request is None else "are in Slurm's queue"
    show_resumed_sweep(sweep.sweep, left, len(sweep.jobs), where=where, as_json=as_json)


def show_resumed_sweep(sweep_id: str, left: Sequence[str], n_jobs: int, *, where: str = "run", as_json: bool = False) -> None:
    if as_json:
        print_json({"sweep": sweep_id, "jobs": left})
    else:
        echo(f"{sweep_id}: {len(left)} of {n_jobs} jobs are left; they {where}.")


def show_cancelled_sweep(sweep_id: str, cancelled: Sequence[str]) -> None:
    echo(f"{sweep_id}: {len(cancelled)} job{'s' if len(cancelled) != 1 else ''} cancelled.")


def wait_for_sweep(root: Workspace, sweep: Sweep, timeout: float | None, *, quiet: bool, as_json: bool) -> NoReturn:
    """Wait for the jobs of a sweep, and leave with its exit code."""
    from dlscale.batch.sweeps.running import wait

    with watching_sweep(sweep.sweep, quiet=quiet) as watch:
        states = wait(root, sweep, timeout_seconds=timeout, watch=lambda states: watch(_words(states)))
    leave_with(sweep.sweep, _words(states), as_json=as_json)


def _words(states: Mapping[str, JobState | None]) -> dict[str, str | None]:
    return {job: None if state is None else state.state for job, state in states.items()}


@contextmanager
def watching_sweep(sweep_id: str, *, url: str = "", quiet: bool) -> Iterator[Callable[[Mapping[str, str | None]], None]]:
    """While a sweep is waited for: what says now and then how its jobs are; Ctrl-C says that it goes on."""
    say = now_and_then(EVERY_SECONDS)

    def watch(states: Mapping[str, str | None]) -> None:
        if not quiet:
            say(f"{sweep_id}: {_told(states)}")

    with until_ctrl_c(sweep_goes_on(sweep_id, url)):
        yield watch


def leave_with(sweep_id: str, states: Mapping[str, str | None], *, as_json: bool) -> NoReturn:
    """Say how the jobs of a sweep ended, None of those that were removed, and leave with its exit code."""
    from dlscale.batch.sweeps.store import exit_code

    if as_json:
        print_json({"sweep": sweep_id, "jobs": states})
    else:
        echo(f"{sweep_id}: {_told(states)}")
    sys.exit(exit_code(_counts(states)))


def _told(states: Mapping[str, str | None]) -> str:
    from dlscale.batch.sweeps.store import told

    return told(_counts(states))


def _counts(states: Mapping[str, str | None]) -> dict[str, int]:
    from dlscale.batch.sweeps.store import count

    return count(state or "removed" for state in states.values())


def plan_of_sweep(document: Document, root: Workspace, console: Console, assumed: Assumed | None) -> dict[str, Any]:
    """What the jobs of a sweep would do and take; nothing is made."""
    from dlscale.batch.sweeps.planning import describe, members_of, plan_all

    def plan(member: Member) -> Prepared:
        return plan_job(member.document, root, console, assumed=assumed, only_looks=True)

    return describe(document, plan_all(members_of(document), plan))


def show_plan_of_sweep(name: str, table: Mapping[str, Any]) -> None:
    """What the jobs of a sweep would do and take: a line a job, and all of them in the last one."""
    from dlscale.report import words

    shown = heads(table["keys"], ("job", "method", "work", "read", "memory", "expected"))
    lines = [["job", *shown, "method", "work", "read", "memory", "expected"]]
    whole = {"name": f"{table['n_jobs']} jobs", "values": dict.fromkeys(table["keys"], ""), "words": "one after another"}
    for row in (*table["jobs"], {**table, **whole}):
        amounts = [words.quantity(row["flops"], "FLOP"), words.size(row["bytes_read"])]
        amounts += [words.size(row["peak_bytes_per_worker"]), words.duration(row["expected_seconds"])]
        lines.append([row["name"], *map(value_words, row["values"].values()), row["words"], *amounts])
    echo(f"{name}: a sweep of {table['n_jobs']} jobs of kind {table['kind']}; memory is per worker.")
    for line in _aligned(lines):
        echo(line)


def show_sweep(root: Workspace, sweep: Sweep, *, to_csv: Path | None, as_json: bool) -> None:
    """The table of a sweep: on the terminal, as JSON, or as a CSV file."""
    from dlscale.batch.sweeps import store

    show_table(table_of(sweep, store.states_of(root, sweep)), to_csv=to_csv, as_json=as_json)


def state_words(root: Workspace, sweep: Sweep) -> dict[str, str]:
    """How each job of a sweep is."""
    from dlscale.batch.sweeps.store import states_of

    return {job: state or "removed" for job, state in _words(states_of(root, sweep)).items()}


def table_of(sweep: Sweep, states: Mapping[str, JobState | None]) -> dict[str, Any]:
    """A sweep, and how its jobs are."""
    from dlscale.batch.sweeps import store

    return {"sweep": sweep.sweep, "kind": sweep.kind, "keys": sweep.keys, "jobs": store.rows_of(sweep, states)}


def show_table(table: dict[str, Any], *, to_csv: Path | None, as_json: bool) -> None:
    from dlscale.batch.sweeps import store
    from dlscale.storage.files.atomic import write_atomically

    rows, keys = table["jobs"], table["keys"]
    if to_csv is not None:
        write_atomically(to_csv, store.to_csv(rows, keys).encode(), fsync=False)
    if as_json:
        print_json({key: table[key] for key in ("sweep", "kind", "keys", "jobs")})
    elif to_csv is not None:
        echo(str(to_csv))
    else:
        for line in _lines(rows, keys):
            echo(line)


def _lines(rows: list[dict[str, Any]], keys: list[str]) -> list[str]:
    from dlscale.batch.sweeps import store
    from dlscale.report import words

    numbers = store.columns(rows)
    shown = heads(keys, numbers)
    table = [["job", *shown, "state", "time", "certificate", *(name.replace("_", " ") for name in numbers), "message"]]
    for row in rows:
        certificate = {None: "", True: "passed", False: "failed"}[row["certificate"]]
        found = [words.part(row["numbers"][name]) if name in row["numbers"] else "" for name in numbers]
        seconds = "" if row["seconds"] is None else words.duration(row["seconds"])
        table.append(
            [row["job"], *map(value_words, row["values"].values()), row["state"], seconds, certificate, *found, row["message"]]
        )
    return _aligned(table)


def heads(keys: Sequence[str], taken: Collection[str]) -> list[str]:
    """What differs is told by the last part of its key, where that is enough."""
    short = [key.rpartition(".")[2] for key in keys]
    return [name if short.count(name) == 1 and name not in taken else key for name, key in zip(short, keys, strict=True)]


def value_words(value: Any) -> str:
    """A value as a cell."""
    return value if isinstance(value, str) else json.dumps(value)


def _aligned(table: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
