"""Sweeps on the command line: submitted, waited for and resumed as jobs are, and shown as one table."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlscale.cli.options import Command, echo, open_console, plan_job, print_json
from dlscale.cli.watching import EVERY_SECONDS, now_and_then, until_ctrl_c
from dlscale.errors import SpecError

if TYPE_CHECKING:
    from dlscale.batch.document import Document
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
    if not (root.root / "sweeps").is_dir():
        return None
    from dlscale.batch.sweeps.store import find

    return find(root, sweep_id)


def known_sweep(root: Workspace, sweep_id: str) -> Sweep:
    sweep = find_sweep(root, sweep_id)
    if sweep is None:
        from dlscale.batch.sweeps.store import sweep_ids

        newest = ", ".join(sweep_ids(root)[:4])
        there = f"the newest are: {newest}" if newest else "`dlscale submit` of a job file with matrix: makes one"
        raise SpecError(f"There is no sweep {sweep_id} in {root.root}; {there}.")
    return sweep


def submit_sweep(
    root: Workspace, document: Document, *, priority: int, concurrency: int | None, request: Mapping[str, Any] | None
) -> Sweep:
    """Submit the jobs of a sweep; to Slurm where something is requested of it."""
    from dlscale.batch.sweeps.running import submit

    console = open_console(as_json=True)
    return submit(
        root,
        document,
        lambda made: plan_job(made, root, console),
        priority=priority,
        concurrency=concurrency,
        slurm=request,
    )


def show_submitted_sweep(sweep: Sweep, *, as_json: bool) -> None:
    if as_json:
        print_json({"sweep": sweep.sweep, "jobs": [each["job"] for each in sweep.jobs]})
    else:
        echo(sweep.sweep)


def resume_sweep(root: Workspace, sweep: Sweep, *, cluster: str | None, request: Mapping[str, Any] | None, as_json: bool) -> None:
    from dlscale.batch.sweeps.running import resume

    if cluster is not None:
        raise click.UsageError("--cluster goes with one job; a sweep goes on where its jobs say.")
    left = resume(root, sweep, slurm=request)
    if as_json:
        print_json({"sweep": sweep.sweep, "jobs": left})
    else:
        where = "run" if request is None else "are in Slurm's queue"
        echo(f"{sweep.sweep}: {len(left)} of {len(sweep.jobs)} jobs are left; they {where}.")


def wait_for_sweep(root: Workspace, sweep: Sweep, timeout: float | None, *, quiet: bool, as_json: bool) -> None:
    """Wait for the jobs of a sweep, and leave with its exit code."""
    from dlscale.batch.sweeps.running import exit_code, told, wait

    say = now_and_then(EVERY_SECONDS)

    def watch(states: Mapping[str, JobState | None]) -> None:
        if not quiet:
            say(f"{sweep.sweep}: {told(states)}")

    with until_ctrl_c(f"\nSweep {sweep.sweep} goes on; `dlscale cancel {sweep.sweep}` stops it."):
        states = wait(root, sweep, timeout_seconds=timeout, watch=watch)
    if as_json:
        print_json({"sweep": sweep.sweep, "jobs": {job: None if state is None else state.state for job, state in states.items()}})
    else:
        echo(f"{sweep.sweep}: {told(states)}")
    sys.exit(exit_code(states))


def show_sweep(root: Workspace, sweep: Sweep, *, to_csv: Path | None, as_json: bool) -> None:
    """The table of a sweep: on the terminal, as JSON, or as a CSV file."""
    from dlscale.batch.sweeps import store

    table = {"sweep": sweep.sweep, "kind": sweep.kind, "keys": sweep.keys, "jobs": store.table(root, sweep)}
    show_table(table, to_csv=to_csv, as_json=as_json)


def show_table(table: dict[str, Any], *, to_csv: Path | None, as_json: bool) -> None:
    from dlscale.batch.sweeps import store
    from dlscale.storage.files.atomic import write_atomically

    rows, keys = table["jobs"], table["keys"]
    if to_csv is not None:
        write_atomically(to_csv, store.to_csv(rows, keys).encode(), fsync=False)
    if as_json:
        print_json(table)
    elif to_csv is not None:
        echo(str(to_csv))
    else:
        for line in _lines(rows, keys):
            echo(line)


def _lines(rows: list[dict[str, Any]], keys: list[str]) -> list[str]:
    from dlscale.batch.sweeps import store
    from dlscale.report import words

    numbers = store.columns(rows)
    # What differs is told by the last part of its key, where that is enough.
    short = [key.rpartition(".")[2] for key in keys]
    heads = [name if short.count(name) == 1 and name not in numbers else key for name, key in zip(short, keys, strict=True)]
    table = [["job", *heads, "state", "time", "certificate", *(name.replace("_", " ") for name in numbers), "message"]]
    for row in rows:
        certificate = {None: "", True: "passed", False: "failed"}[row["certificate"]]
        values = [value if isinstance(value, str) else json.dumps(value) for value in row["values"].values()]
        found = [words.number(row["numbers"][name]) if name in row["numbers"] else "" for name in numbers]
        seconds = "" if row["seconds"] is None else words.duration(row["seconds"])
        table.append([row["job"], *values, row["state"], seconds, certificate, *found, row["message"]])
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in table]
