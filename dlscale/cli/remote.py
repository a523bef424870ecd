"""`dlscale --server URL ...`: the same words for the jobs of a server."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlscale.cli.options import echo, json_option, open_console, print_json, refusal_as_json, spec_options
from dlscale.errors import SpecError

if TYPE_CHECKING:
    from dlscale.service.client import Client

_SAID_SECONDS = 10.0
_STATE_KEYS = ("job", "state", "kind", "result", "seconds", "message", "heartbeat", "progress")


def _client() -> Client:
    from dlscale.service.client import Client

    return Client(click.get_current_context().find_root().params["server"])


@click.command()
@spec_options
@click.option("--priority", type=int, default=0, help="Jobs with a higher one go first [0].")
@json_option
def submit(spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None, priority: int, as_json: bool) -> None:
    """Hand the job of the file SPEC over to the server and print its ID; paths in it are the server's."""
    given = [*overrides, *(f"{key}={value}" for key, value in (("cluster", cluster), ("output", output)) if value is not None)]
    with _client() as client, refusal_as_json(as_json):
        job = client.submit(spec, given, priority=priority)
        if as_json:
            print_json({"job": job, "state": client.status(job)["state"], "folder": None})
        else:
            echo(job)


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@json_option
def status(job_id: str | None, as_json: bool) -> None:
    """Show how far the job ID (by default the newest) is."""
    with _client() as client:
        record = client.status(_known(client, job_id))
    if as_json:
        print_json({key: record[key] for key in _STATE_KEYS})
        return
    from dlscale.batch.workspace import RUNNING
    from dlscale.cli.terminal import rows
    from dlscale.report import words

    pairs = [("state", record["state"]), ("kind", record["kind"])]
    pairs += [("started", words.moment(record["created"])), ("time", words.duration(record["seconds"]))]
    if record["progress"] is not None and record["state"] != "succeeded":
        pairs.append(("progress", _far(record, runs=record["state"] in RUNNING)))
    pairs += [(label, record[key]) for label, key in (("reason", "message"), ("result", "result")) if record[key]]
    if record["resumable"]:
        pairs.append(("go on", f"dlscale --server {client.url} resume {record['job']}"))
    console = open_console()
    console.print(record["job"], style="bold", highlight=False)
    console.print(rows(pairs))


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
def logs(job_id: str | None, follow: bool) -> None:
    """Print the log of the job ID (by default the newest)."""
    with _client() as client:
        for part in client.log(_known(client, job_id), follow=follow):
            echo(part, nl=False)


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Fail if the job has not ended by then.")
@click.option("--quiet", "-q", is_flag=True, help="Do not say now and then how far it is.")
@json_option
def wait(job_id: str | None, timeout: float | None, quiet: bool, as_json: bool) -> None:
    """Wait for the end of the job ID (by default the newest), and end with its exit code."""
    with _client() as client:
        record = client.wait(_known(client, job_id), timeout_seconds=timeout, watch=_ignored if quiet else _saying())
    if as_json:
        print_json({key: record[key] for key in _STATE_KEYS})
    else:
        echo(_end(record))
    sys.exit(record["exit_code"])


@click.command()
@click.argument("job_id", metavar="ID")
def cancel(job_id: str) -> None:
    """Stop the job ID; its checkpoint stays."""
    with _client() as client:
        echo(_end(client.cancel(job_id)))


@click.command()
@click.argument("job_id", metavar="ID")
def resume(job_id: str) -> None:
    """Let the interrupted, cancelled, lost or failed job ID go on from its last checkpoint."""
    with _client() as client:
        echo(str(client.resume(job_id)["job"]))


@click.command()
@click.argument("job_id", metavar="ID")
@click.argument("array", required=False)
@click.option("--rows", default="", metavar="RANGE", help="Such as 0:1000 [the first 100].")
@click.option("--columns", default="", metavar="RANGE", help="Such as 0:10 [the first 100].")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Where a part of ARRAY goes, as .npy.")
@json_option
def result(job_id: str, array: str | None, rows: str, columns: str, output: Path | None, as_json: bool) -> None:
    """Show what the result of the job ID is, or fetch a part of its ARRAY."""
    if array is None and (rows or columns or output):
        raise click.UsageError("--rows, --columns and --output go with an ARRAY.")
    with _client() as client:
        if array is None:
            _show_facts(client.result(job_id), as_json)
            return
        values = client.array(job_id, array, rows=rows, columns=columns)
    if output is not None:
        import numpy as np

        np.save(output, values)
        echo(str(output))
    elif as_json:
        print_json({"array": array, "dtype": str(values.dtype), "values": values})
    else:
        for row in values if values.ndim else [values]:
            echo("  ".join(f"{value:.8g}" for value in (row if row.ndim else [row])))


def _known(client: Client, job_id: str | None) -> str:
    """A job's id, or that of the newest."""
    newest = None if job_id else next(client.jobs(), None)
    if not job_id and newest is None:
        raise SpecError(f"There is no job yet on {client.url}.")
    return job_id or str(newest and newest["job"])


def _show_facts(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    from dlscale.cli.terminal import facts_rows
    from dlscale.report import words

    arrays = {name: f"{words.shape(array['shape'])} {array['dtype']}" for name, array in facts["arrays"].items()}
    shown = {"uri": facts["uri"], "kind": facts["kind"], "job": facts["job"], "arrays": arrays, "seconds": facts["seconds"]}
    for check in (facts.get("certificate") or {}).get("checks", ()):
        limit = words.number(check["threshold"])
        shown[f"check: {check['name']}"] = f"{words.number(check['value'])}, limit {limit}: {check['meaning']}"
    open_console().print(facts_rows(shown))


def _end(record: dict[str, Any]) -> str:
    return f"{record['job']} {record['state']}{': ' if record['message'] else ''}{record['message']}"


def _far(record: dict[str, Any], *, runs: bool) -> str:
    from dlscale.batch.jobs.progress import Progress, progress_words

    return progress_words(Progress(**record["progress"]), runs=runs)


def _ignored(record: dict[str, Any]) -> None:
    """Nothing is said of how far a job is."""


def _saying() -> Callable[[dict[str, Any]], None]:
    """Says on standard error how far a job is, when that has changed, and not too often."""
    said, at = "", time.monotonic()

    def say(record: dict[str, Any]) -> None:
        nonlocal said, at
        from dlscale.batch.workspace import RUNNING

        if record["state"] not in RUNNING or record["progress"] is None or time.monotonic() - at < _SAID_SECONDS:
            return
        if (far := _far(record, runs=True)) != said:
            said, at = far, time.monotonic()
            echo(f"{record['job']} {record['state']}: {said}", err=True)

    return say


COMMANDS = {str(command.name): command for command in (submit, status, logs, wait, cancel, resume, result)}
