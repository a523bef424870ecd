"""`dlscale --server URL jobs | status | logs | wait`: how the jobs of a server are."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from dlscale.cli.choosing import Chosen, Listing, choosing, require_watch, show_jobs, watch_options
from dlscale.cli.looking import echo_last_lines
from dlscale.cli.options import echo, json_option, open_console, print_json
from dlscale.cli.sweeping import leave_with, show_table, watching_sweep
from dlscale.cli.watching import Lines, Look, drawing, ended_words, goes_on, is_live, sweep_goes_on, until_ctrl_c
from dlscale.errors import SpecError

if TYPE_CHECKING:
    from rich.table import Table

    from dlscale.service.client import Client

_STATE_KEYS = ("job", "state", "kind", "result", "seconds", "message", "heartbeat", "progress", "slurm")
_WHOLE_ID = re.compile(r".+-\d{8}-\d{6}-[0-9a-f]{4}")
#: What the id of a sweep has.
_OF_A_SWEEP = "-sweep-"
#: Rows of a list, fetched at once; and named of those of which an id is the beginning.
_N_ROWS, _N_NAMED = 1000, 4


@contextmanager
def open_client() -> Iterator[Client]:
    """The client of the server that the command line names."""
    from dlscale.service.client import Client

    with Client(click.get_current_context().find_root().params["server"]) as client:
        yield client


def known_id(client: Client, job_id: str | None) -> str:
    """A job's id, from what it begins with; that of the newest job when None (SpecError)."""
    if job_id is None:
        newest = next(client.jobs(page=1), None)
        if newest is None:
            raise SpecError(f"There is no job yet on {client.url}.")
        return str(newest["job"])
    if _WHOLE_ID.fullmatch(job_id):
        return job_id
    found = [row["job"] for row in islice(client.jobs(begins=job_id), 50)]
    if len(found) > 1 and job_id not in found:
        shown = ", ".join(found[:_N_NAMED])
        raise SpecError(
            f"{job_id!r} is the beginning of {'50 or more' if len(found) == 50 else len(found)} jobs: {shown}; give more of it."
        )
    return job_id if job_id in found or not found else str(found[0])


def known_sweep(client: Client, sweep_id: str | None) -> str | None:
    """The id of the sweep that is meant, as `dlscale.batch.sweeps.store.find` finds it; None where it is a job."""
    if sweep_id is None or (_WHOLE_ID.fullmatch(sweep_id) and _OF_A_SWEEP not in sweep_id):
        return None
    begun = [str(each["sweep"]) for each in client.sweeps(begins=sweep_id, page=_N_ROWS)]
    if not begun:
        return None
    from dlscale.batch.sweeps.store import meant

    return meant(begun, sweep_id, lambda: next(client.jobs(begins=sweep_id, page=1), None) is not None)


def listed_jobs(client: Client, limit: int | None, *, states: tuple[str, ...], kinds: tuple[str, ...], name: str | None) -> Listing:
    """As `Workspace.list_jobs`."""
    from dlscale.batch.workspace import ListedJob

    rows = list(islice(client.jobs(state=states, kind=kinds, begins=name or "", page=min(limit or _N_ROWS, _N_ROWS)), limit))
    faults = {row["job"]: row["message"] for row in rows if row["state"] == "damaged"}
    looks = [(row, Look.of_record(row)) for row in rows if row["job"] not in faults]
    found = [
        ListedJob(look.job, row["kind"], look.state, row["created"], row["seconds"], look.message, look.progress)
        for row, look in looks
    ]
    return Listing(found, faults)


@click.command()
@choosing
def jobs(chosen: Chosen) -> None:
    """List the jobs of the server, the newest first."""
    with open_client() as client:
        if (sweep := chosen.sweep) is not None:
            show_table(client.sweep(known_sweep(client, sweep) or sweep), to_csv=chosen.to_csv, as_json=chosen.as_json)
            return

        def newest(limit: int | None) -> Listing:
            return listed_jobs(client, limit, states=chosen.states, kinds=chosen.kinds, name=chosen.name)

        def listed() -> Listing:
            found = newest(chosen.n_wanted)
            n_found = len(found.jobs) + len(found.faults)
            few = chosen.cut_to(n_found)
            return newest(few)._replace(of=f"more than {n_found - 1:,}") if few else found

        show_jobs(chosen, listed, client.url)


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@watch_options("Show it anew until the job has ended.")
@json_option
def status(job_id: str | None, watch: bool, quiet: bool, as_json: bool) -> None:
    """Show how far the job ID (by default the newest) is, or each job of a sweep."""
    require_watch(watch, quiet)
    with open_client() as client:
        if sweep := known_sweep(client, job_id):
            _show_sweep(client, sweep, watch=watch, quiet=quiet, as_json=as_json)
            return
        job = known_id(client, job_id)
        record = _watched(client, job, quiet=quiet, err=as_json) if watch else client.status(job)
    if as_json:
        print_json({key: record[key] for key in _STATE_KEYS})
    elif not watch:
        console = open_console()
        console.print(record["job"], style="bold", highlight=False)
        console.print(_rows(record, client.url))
    else:
        echo_last_lines(record)


def _show_sweep(client: Client, sweep: str, *, watch: bool, quiet: bool, as_json: bool) -> None:
    from dlscale.cli.swept import show_how_far, watch_how_far

    if watch:
        watch_how_far(sweep, lambda show: client.wait_for_sweep(sweep, watch=show), url=client.url, quiet=quiet, as_json=as_json)
    else:
        show_how_far(client.sweep(sweep), as_json=as_json)


def _watched(client: Client, job: str, *, quiet: bool, err: bool) -> dict[str, Any]:
    console = open_console(err)
    with until_ctrl_c(goes_on(job, client.url)):
        if quiet or not is_live(console):
            lines = Lines(quiet=quiet, err=err)
            return client.wait(job, watch=lambda record: lines(Look.of_record(record)))
        console.print(job, style="bold", highlight=False)
        with drawing(console) as draw:
            return client.wait(job, watch=lambda record: draw(lambda: _rows(record, client.url)))


def _rows(record: dict[str, Any], url: str) -> Table:
    from dlscale.batch.jobs.progress import progress_words
    from dlscale.cli.terminal import rows, slurm_rows
    from dlscale.report import words

    look = Look.of_record(record)
    pairs = [("state", look.state), ("kind", record["kind"])]
    pairs += [("sweep", record["sweep"])] if record["sweep"] else []
    pairs += [("started", words.moment(record["created"])), ("time", words.duration(record["seconds"]))]
    if look.progress is not None and look.state != "succeeded":
        pairs.append(("progress", progress_words(look.progress, runs=look.runs)))
    pairs += slurm_rows(record["slurm"])
    pairs += [(label, record[key]) for label, key in (("reason", "message"), ("result", "result")) if record[key]]
    if record["resumable"] and not look.moves:
        pairs.append(("go on", f"dlscale --server {url} resume {look.job}"))
    return rows(pairs)


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
def logs(job_id: str | None, follow: bool) -> None:
    """Print the log of the job ID (by default the newest), or those of a sweep, each line behind its job's name."""
    from dlscale.cli.logs import print_logs

    with open_client() as client:
        if sweep := known_sweep(client, job_id):
            first = _states(client.sweep(sweep))
            members, said = [job for job, state in first.items() if state], sweep_goes_on(sweep, client.url)
        else:
            job = known_id(client, job_id)
            members, said = [job], goes_on(job, client.url)

        def states() -> dict[str, str]:
            if sweep is None:
                return {members[0]: client.status(members[0])["state"]}
            return {job: state or "removed" for job, state in _states(client.sweep(sweep)).items()}

        with until_ctrl_c(said if follow else ""):
            print_logs(members, client.log_part, states=states if follow else None, marked=sweep is not None)


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Fail if the job has not ended by then.")
@click.option("--quiet", "-q", is_flag=True, help="Do not say now and then how far it is.")
@json_option
def wait(job_id: str | None, timeout: float | None, quiet: bool, as_json: bool) -> None:
    """Wait for the end of the job ID (by default the newest), or of a sweep, and end with its exit code."""
    lines = Lines(states=False, quiet=quiet, err=True)
    with open_client() as client:
        if sweep := known_sweep(client, job_id):
            with watching_sweep(sweep, url=client.url, quiet=quiet) as say:
                table = client.wait_for_sweep(sweep, timeout_seconds=timeout, watch=lambda table: say(_states(table)))
            leave_with(sweep, _states(table), as_json=as_json)
        job = known_id(client, job_id)
        with until_ctrl_c(goes_on(job, client.url)):
            record = client.wait(job, timeout_seconds=timeout, watch=lambda record: lines(Look.of_record(record)))
    if as_json:
        print_json({key: record[key] for key in _STATE_KEYS})
    else:
        echo_last_lines(record)
        echo(how_it_ended(record))
    sys.exit(record["exit_code"])


def _states(table: Mapping[str, Any]) -> dict[str, str | None]:
    return {row["job"]: None if row["state"] == "removed" else row["state"] for row in table["jobs"]}


def how_it_ended(record: dict[str, Any]) -> str:
    return ended_words(record["job"], record["state"], record["message"])


COMMANDS = (jobs, status, logs, wait)
