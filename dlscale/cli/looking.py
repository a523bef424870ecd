"""How jobs are, on the command line: jobs, status, logs, wait."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlscale.cli.choosing import Chosen, Listing, choosing, require_watch, show_jobs, watch_options
from dlscale.cli.options import echo, json_option, open_console, open_workspace, print_json, workspace_option
from dlscale.cli.sweeping import find_sweep, known_sweep, show_sweep, wait_for_sweep
from dlscale.cli.watching import Lines, Look, drawing, goes_on, is_live, until_ctrl_c
from dlscale.errors import SpecError

if TYPE_CHECKING:
    from dlscale.batch.workspace import Job, JobState

_MAX_LINE_BYTES = 2**20


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Fail if the job has not ended by then.")
@click.option("--quiet", "-q", is_flag=True, help="Do not say now and then how far it is.")
@workspace_option
@json_option
def wait(job_id: str | None, timeout: float | None, quiet: bool, workspace: str | None, as_json: bool) -> None:
    """Wait for the end of the job ID (by default the newest), or of a sweep, and end with its exit code."""
    from dlscale.batch.submit import wait as wait_for

    root = open_workspace(workspace)
    if job_id is not None and (sweep := find_sweep(root, job_id)):
        wait_for_sweep(root, sweep, timeout, quiet=quiet, as_json=as_json)
    job, lines = root.find(job_id), Lines(states=False, quiet=quiet, err=True)
    with until_ctrl_c(goes_on(job.id)):
        state = wait_for(job, timeout_seconds=timeout, watch=lambda state: lines(Look.of(state)))
    record = _state_record(job, state)
    if as_json:
        print_json(record)
    else:
        echo_last_lines(record)
        echo(f"{job.id} {state.state}{': ' if state.message else ''}{state.message}")
    sys.exit(state.exit_code)


def echo_last_lines(record: Mapping[str, Any]) -> None:
    """Of a job that Slurm ended, on standard error."""
    if record["state"] != "succeeded" and record["slurm"] is not None:
        for line in record["slurm"]["last_lines"]:
            echo(line, err=True)


@click.command()
@choosing
@workspace_option
def jobs(chosen: Chosen) -> None:
    """List the jobs of the workspace, the newest first, and name those whose files are damaged."""
    root = open_workspace(chosen.workspace)
    if chosen.sweep is not None:
        show_sweep(root, known_sweep(root, chosen.sweep), to_csv=chosen.to_csv, as_json=chosen.as_json)
        return

    def listed() -> Listing:
        ids = root.ids()
        few = chosen.cut_to(len(ids))
        found = root.list_jobs(few or chosen.limit, states=chosen.states, kinds=chosen.kinds, name=chosen.name, ids=ids)
        return Listing(*found, f"{len(ids):,}" if few else "")

    show_jobs(chosen, listed)


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@watch_options("Show it anew until the job has ended.")
@workspace_option
@json_option
def status(job_id: str | None, watch: bool, quiet: bool, workspace: str | None, as_json: bool) -> None:
    """Show how far the job ID (by default the newest) is."""
    require_watch(watch, quiet)
    root = open_workspace(workspace)
    job = root.find(job_id)
    state = _watched(job, quiet=quiet, err=as_json) if watch else job.read_state()
    if as_json:
        print_json(_state_record(job, state))
    elif not watch:
        from dlscale.cli.terminal import status_rows

        console = open_console()
        console.print(job.id, style="bold", highlight=False)
        console.print(status_rows(job, state))
    else:
        echo_last_lines(_state_record(job, state))


def _watched(job: Job, *, quiet: bool, err: bool) -> JobState:
    """Show a job until it has ended; its state then."""
    from dlscale.batch.submit import wait as wait_for

    console = open_console(err)
    with until_ctrl_c(goes_on(job.id)):
        if quiet or not is_live(console):
            lines = Lines(quiet=quiet, err=err)
            return wait_for(job, watch=lambda state: lines(Look.of(state)))
        from dlscale.cli.terminal import watched_rows

        console.print(job.id, style="bold", highlight=False)
        with drawing(console) as draw:
            return wait_for(job, watch=lambda state: draw(lambda: watched_rows(state)))


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@workspace_option
def logs(job_id: str | None, follow: bool, workspace: str | None) -> None:
    """Print the log of the job ID (by default the newest)."""
    job = open_workspace(workspace).find(job_id)
    if not follow:
        _print_log(job, 0)
        return
    with until_ctrl_c(goes_on(job.id)):
        _follow_log(job)


def _follow_log(job: Job) -> None:
    from dlscale.batch.workspace import RUNNING

    offset = 0
    while True:
        running = job.read_state().state in (*RUNNING, "submitted")
        offset = _print_log(job, offset)
        if not running:
            return
        time.sleep(0.5)


def _print_log(job: Job, offset: int) -> int:
    """Print a log from a place on; the place behind it."""
    for line in _lines_from(job.log, offset):
        offset += len(line)
        echo(line.decode(errors="replace"), nl=False)
    return offset


def _lines_from(path: Path, offset: int) -> Iterator[bytes]:
    """The lines of a log from a place on, long ones in pieces; none where it is not there."""
    from dlscale.storage.files.atomic import open_at_once

    try:
        with open(path, "rb", opener=open_at_once) as log:
            log.seek(offset)
            while line := log.readline(_MAX_LINE_BYTES):
                yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.") from error


def _state_record(job: Job, state: JobState) -> dict[str, Any]:
    from dlscale.batch.jobs.in_slurm import slurm_facts

    record: dict[str, Any] = {key: getattr(state, key) for key in ("job", "state", "kind", "result", "seconds")}
    progress = None if state.progress is None else asdict(state.progress)
    record |= {"message": state.message, "heartbeat": state.heartbeat._asdict(), "progress": progress}
    return record | {"slurm": slurm_facts(job)}


COMMANDS = (wait, jobs, status, logs)
