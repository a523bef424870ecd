"""How jobs are, on the command line: jobs, status, logs, wait."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from dlscale.cli.choosing import Chosen, Listing, choosing, require_watch, show_jobs, watch_options
from dlscale.cli.options import echo, json_option, open_console, open_workspace, print_json, workspace_option
from dlscale.cli.sweeping import find_sweep, known_sweep, show_sweep, state_words, table_of, wait_for_sweep
from dlscale.cli.watching import Lines, Look, drawing, ended_words, goes_on, is_live, sweep_goes_on, until_ctrl_c
from dlscale.errors import SpecError

if TYPE_CHECKING:
    from dlscale.batch.jobs.progress import Progress
    from dlscale.batch.sweeps.store import Sweep
    from dlscale.batch.workspace import Job, JobState, Workspace


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Fail if the job has not ended by then.")
@click.option("--quiet", "-q", is_flag=True, help="Do not say now and then how far it is.")
@workspace_option
@json_option
def wait(job_id: str | None, timeout: float | None, quiet: bool, workspace: str | None, as_json: bool) -> None:
    """Wait for the end of the job ID (by default the newest), or of a sweep, and end with its exit code."""
    from dlscale.batch.jobs.waiting import wait as wait_for

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
        echo(ended_words(job.id, state.state, state.message))
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

    show_jobs(chosen, listed, root.place)


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@watch_options("Show it anew until the job has ended.")
@workspace_option
@json_option
def status(job_id: str | None, watch: bool, quiet: bool, workspace: str | None, as_json: bool) -> None:
    """Show how far the job ID (by default the newest) is, or each job of a sweep."""
    require_watch(watch, quiet)
    root = open_workspace(workspace)
    if job_id is not None and (sweep := find_sweep(root, job_id)):
        _show_sweep(root, sweep, watch=watch, quiet=quiet, as_json=as_json)
        return
    job = root.find(job_id)
    state = _watched(job, quiet=quiet, err=as_json) if watch else job.read_state()
    if state.state == "lost" and state.progress is not None:
        state = replace(state, progress=_caught_up(job, state.progress))
    if as_json:
        print_json(_state_record(job, state))
    elif not watch:
        from dlscale.cli.terminal import status_rows

        console = open_console()
        console.print(job.id, style="bold", highlight=False)
        console.print(status_rows(job, state), crop=False)
    else:
        echo_last_lines(_state_record(job, state))


def _caught_up(job: Job, progress: Progress) -> Progress:
    """How far a lost job really was; what was written down where its plan is damaged."""
    from dlscale.batch.jobs.progress import caught_up
    from dlscale.engine.plan import Plan

    try:
        total = Plan.from_dict(job.read_plan()).flops
    except (SpecError, KeyError, TypeError, ValueError, AttributeError):
        return progress
    return caught_up(progress, job.read_events(), total)


def _show_sweep(root: Workspace, sweep: Sweep, *, watch: bool, quiet: bool, as_json: bool) -> None:
    from dlscale.batch.sweeps import running, store
    from dlscale.cli.swept import Table, show_how_far, watch_how_far

    if not watch:
        show_how_far(table_of(sweep, store.states_of(root, sweep)), as_json=as_json)
        return

    def wait(show: Callable[[Table], None]) -> Table:
        return table_of(sweep, running.wait(root, sweep, watch=lambda states: show(table_of(sweep, states))))

    watch_how_far(sweep.sweep, wait, quiet=quiet, as_json=as_json)


def _watched(job: Job, *, quiet: bool, err: bool) -> JobState:
    """Show a job until it has ended; its state then."""
    from dlscale.batch.jobs.waiting import wait as wait_for

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
    """Print the log of the job ID (by default the newest), or those of a sweep, each line behind its job's name."""
    root = open_workspace(workspace)
    if job_id is not None and (sweep := find_sweep(root, job_id)):
        members = [each["job"] for each in sweep.jobs]
        states = _states_with_logs(root, sweep)
        states()
        _print_logs(root, members, states, sweep_goes_on(sweep.sweep), follow=follow, marked=True)
        return
    job = root.find(job_id)
    _print_logs(root, [job.id], lambda: {job.id: _state_with_log(job)}, goes_on(job.id), follow=follow)


def _state_with_log(job: Job) -> str:
    """How a job is, all that it wrote until then being here."""
    state = job.read_state().state
    _bring_log(job, state)
    return state


def _bring_log(job: Job, state: str) -> None:
    from dlscale.batch.jobs.waiting import until_free
    from dlscale.batch.workspace import ENDED

    if state in ENDED:
        until_free(job)
    job.refresh()


def _states_with_logs(root: Workspace, sweep: Sweep) -> Callable[[], dict[str, str]]:
    """How each job of a sweep is whenever that is asked, all that it wrote until then being here."""
    from dlscale.batch.jobs.states import MOVING

    known: dict[str, str] = {}

    def look() -> dict[str, str]:
        found = state_words(root, sweep)
        for job_id, state in found.items():
            if state != "removed" and (state in MOVING or known.get(job_id) != state):
                _bring_log(root.job(job_id), state)
        known.update(found)
        return found

    return look


def _print_logs(
    root: Workspace,
    members: Sequence[str],
    states: Callable[[], Mapping[str, str]],
    said: str,
    *,
    follow: bool,
    marked: bool = False,
) -> None:
    from dlscale.cli.logs import print_logs, read_piece

    def read(job_id: str, offset: int) -> bytes:
        return read_piece(root.job(job_id).log, offset)

    with until_ctrl_c(said if follow else ""):
        print_logs(members, read, states=states if follow else None, marked=marked)


def _state_record(job: Job, state: JobState) -> dict[str, Any]:
    from dlscale.batch.jobs.in_slurm import slurm_facts

    record: dict[str, Any] = {key: getattr(state, key) for key in ("job", "state", "kind", "result", "seconds")}
    progress = None if state.progress is None else asdict(state.progress)
    record |= {"message": state.message, "heartbeat": state.heartbeat._asdict(), "progress": progress}
    return record | {"slurm": slurm_facts(job)}


COMMANDS = (wait, jobs, status, logs)
