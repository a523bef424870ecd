"""`dlscale --server URL ...`: the same words for the jobs of a server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlscale.cli import remote_looking
from dlscale.cli.options import (
    echo,
    job_filters,
    json_option,
    open_console,
    print_json,
    refusal_as_json,
    spec_options,
)
from dlscale.cli.remote_looking import how_it_ended, known_id, known_sweep, listed_jobs, open_client
from dlscale.cli.removing import prune_options, remove_each
from dlscale.cli.sweeping import (
    is_sweep,
    show_cancelled_sweep,
    show_plan_of_sweep,
    show_resumed_sweep,
    show_submitted_sweep,
)

if TYPE_CHECKING:
    from dlscale.service.client import Client


@click.command()
@spec_options
@click.option("--priority", type=int, default=0, help="Jobs with a higher one go first [0].")
@json_option
def submit(spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None, priority: int, as_json: bool) -> None:
    """Hand the job of the file SPEC, or the jobs of a sweep, over to the server and print its ID; paths in it are the server's."""
    from dlscale.batch.document import read_document

    given = _given(overrides, cluster, output)
    with open_client() as client, refusal_as_json(as_json):
        job = client.submit(spec, given, priority=priority)
        if is_sweep(read_document(spec, given)):
            show_submitted_sweep(job, [row["job"] for row in client.sweep(job)["jobs"]] if as_json else (), as_json=as_json)
        elif as_json:
            print_json({"job": job, "state": client.status(job)["state"], "folder": None})
        else:
            echo(job)


@click.command()
@spec_options
@json_option
def plan(spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None, as_json: bool) -> None:
    """Show what the job of the file SPEC would do and take on the server; compute nothing."""
    with open_client() as client, refusal_as_json(as_json):
        planned = client.plan(spec, _given(overrides, cluster, output))
    if as_json:
        print_json(planned)
        return
    if "jobs" in planned:
        show_plan_of_sweep(str(spec), planned)
        return
    from dlscale.cli.terminal import plan_panel

    open_console().print(plan_panel(spec.stem, planned))


@click.command()
@spec_options
def validate(spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None) -> None:
    """Check the file SPEC: keys, types, ranges, and that the server allows what it names."""
    from dlscale.batch.document import read_document
    from dlscale.batch.spec.expanding import expand

    given = _given(overrides, cluster, output)
    with open_client() as client:
        kind = client.validate(spec, given)
    document = read_document(spec, given)
    what = f"sweep of {sum(1 for _ in expand(document))} jobs" if is_sweep(document) else "job"
    echo(f"{spec} is a valid {what} of kind {kind}.")


def _given(overrides: tuple[str, ...], cluster: str | None, output: str | None) -> list[str]:
    more = (("cluster", cluster), ("output", output))
    return [*overrides, *(f"{key}={value}" for key, value in more if value is not None)]


@click.command()
@click.argument("job_id", metavar="ID")
def cancel(job_id: str) -> None:
    """Stop the job or the sweep ID; checkpoints stay."""
    with open_client() as client:
        if sweep := known_sweep(client, job_id):
            show_cancelled_sweep(sweep, client.cancel_sweep(sweep))
            return
        echo(how_it_ended(client.cancel(known_id(client, job_id))))


@click.command()
@click.argument("job_id", metavar="ID")
def resume(job_id: str) -> None:
    """Let the interrupted, cancelled, lost or failed job ID go on from its last checkpoint; of a sweep, run what is left."""
    with open_client() as client:
        if sweep := known_sweep(client, job_id):
            left = client.resume_sweep(sweep)
            show_resumed_sweep(sweep, left, len(client.sweep(sweep)["jobs"]))
            return
        echo(str(client.resume(known_id(client, job_id))["job"]))


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
    with open_client() as client:
        job = known_id(client, job_id)
        if array is None:
            _show_facts(client.result(job), as_json)
            return
        values = client.array(job, array, rows=rows, columns=columns)
    if output is not None:
        import numpy as np

        np.save(output, values)
        echo(str(output))
    elif as_json:
        print_json({"array": array, "dtype": str(values.dtype), "values": values})
    else:
        for row in values if values.ndim else [values]:
            echo("  ".join(f"{value:.8g}" for value in (row if row.ndim else [row])))


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


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Where it goes [ID.html].")
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
def report(job_id: str | None, output: Path | None, show: bool) -> None:
    """Fetch the report of the job ID (by default the newest), and print its path."""
    from dlscale.storage.files.atomic import write_atomically

    with open_client() as client:
        job = known_id(client, job_id)
        path = output or Path(f"{job}.html")
        write_atomically(path, client.report(job).encode(), fsync=False)
    echo(str(path))
    if show:
        click.launch(str(path))


@click.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@json_option
def rm(job_ids: tuple[str, ...], as_json: bool) -> None:
    """Remove jobs that have ended, or those of a sweep, with checkpoint, log, report and the result in the job's folder."""
    with open_client() as client:
        found = dict.fromkeys(job for job_id in job_ids for job in _meant(client, job_id))
        remove_each(found, client.size, client.delete, as_json=as_json)


def _meant(client: Client, job_id: str) -> list[str]:
    """The job, or those of the sweep that are there; a sweep goes with its last job."""
    sweep = known_sweep(client, job_id)
    if sweep is None:
        return [known_id(client, job_id)]
    return [row["job"] for row in client.sweep(sweep)["jobs"] if row["state"] != "removed"]


@click.command()
@prune_options
@job_filters
@click.option("--yes", is_flag=True, help="Remove them; without it, they are only listed.")
@json_option
def prune(
    older_than: float | None,
    keep: int,
    states: tuple[str, ...],
    kinds: tuple[str, ...],
    name: str | None,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove all jobs that succeeded, failed or were cancelled, or those that the options choose."""
    from dlscale.batch.removing import DONE

    latest = time.time() - 86400.0 * (older_than or 0.0)
    with open_client() as client:
        listed = listed_jobs(client, None, states=states or DONE, kinds=kinds, name=name)[0]
        chosen = [row.job for row in listed if row.created <= latest][keep:]
        remove_each(chosen, client.size, client.delete, as_json=as_json, dry=not yes)


COMMANDS = {
    str(command.name): command
    for command in (submit, plan, validate, *remote_looking.COMMANDS, cancel, resume, result, report, rm, prune)
}
