"""The life of a job on the command line: submit, wait, cancel, resume; jobs, status, logs, report."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlscale.cli.options import (
    EXIT_FAILED,
    Command,
    echo,
    follow,
    job_filters,
    json_option,
    open_console,
    open_workspace,
    plan_job,
    print_json,
    read_job_file,
    refusal_as_json,
    spec_options,
    workspace_option,
)
from dlscale.errors import Interrupted, SpecError

if TYPE_CHECKING:
    from dlscale.batch.jobs.progress import Progress
    from dlscale.batch.workspace import Job, JobState, ListedJob

_MAX_LINE_BYTES = 2**20
#: `wait` says so often how far a job is.
_SAID_SECONDS = 10.0


def _slurm_options(command: Command) -> Command:
    for option in (
        click.option("--account", metavar="A", help="With --slurm: who pays."),
        click.option("--partition", metavar="P", help="With --slurm: where to."),
        click.option("--memory", metavar="SIZE", help="With --slurm: of a node, such as 64G."),
        click.option("--cpus-per-task", type=click.IntRange(1), help="With --slurm: threads of each rank."),
        click.option("--ntasks", type=click.IntRange(1), help="With --slurm: ranks; more than one run under MPI [1]."),
        click.option("--nodes", type=click.IntRange(1), help="With --slurm."),
        click.option("--time", metavar="T", help="With --slurm: limit of one start, such as 2:00:00; a job may take many."),
        click.option("--slurm", is_flag=True, help="Queue it with sbatch; at the time limit it queues itself again until done."),
    ):
        command = option(command)
    return command


@click.command()
@spec_options
@click.option("--priority", type=int, default=0, help="Jobs with a higher one go first [0].")
@click.option("--concurrency", type=click.IntRange(1), help="Submitted jobs of the workspace that run at once, from now on [1].")
@_slurm_options
@workspace_option
@json_option
def submit(
    spec: Path,
    overrides: tuple[str, ...],
    cluster: str | None,
    output: str | None,
    priority: int,
    concurrency: int | None,
    slurm: bool,
    workspace: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Hand the job of the file SPEC over and print its ID; it goes on when this command, or its terminal, is gone.

    On a running Dask cluster (tcp://host:port) a worker drives the job, and another one if that dies; with local or threads a
    process of its own on this machine does.
    """
    request = {name: value for name, value in asked.items() if value is not None}
    if request and not slurm:
        raise click.UsageError(f"--{next(iter(request)).replace('_', '-')} goes with --slurm.")
    console, root = open_console(as_json=True), open_workspace(workspace)
    with refusal_as_json(as_json):
        prepared = plan_job(read_job_file(spec, overrides, cluster, output), root, console)
        from dlscale.batch import slurm as slurm_jobs
        from dlscale.batch.submit import submit_prepared

        if slurm:
            job = slurm_jobs.submit_prepared(root, prepared, slurm_jobs.SlurmRequest(**request))
            click.echo(f"Slurm's number is {slurm_jobs.slurm_number(job)}.", err=True)
        else:
            job = submit_prepared(root, prepared, priority=priority, concurrency=concurrency)
    _show_submitted(job, as_json)


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Fail if the job has not ended by then.")
@click.option("--quiet", "-q", is_flag=True, help="Do not say now and then how far it is.")
@workspace_option
@json_option
def wait(job_id: str | None, timeout: float | None, quiet: bool, workspace: str | None, as_json: bool) -> None:
    """Wait for the end of the job ID (by default the newest), and end with its exit code."""
    from dlscale.batch.submit import wait as wait_for

    job = open_workspace(workspace).find(job_id)
    state = wait_for(job, timeout_seconds=timeout, watch=_ignored if quiet else _Saying())
    if as_json:
        print_json(_state_record(state))
    else:
        echo(f"{job.id} {state.state}{': ' if state.message else ''}{state.message}")
    sys.exit(state.exit_code)


def _ignored(state: JobState) -> None:
    """Nothing is said of how far a job is."""


class _Saying:
    """Says on standard error how far a job is, when that has changed, and not too often."""

    def __init__(self) -> None:
        self._said, self._at = "", time.monotonic()

    def __call__(self, state: JobState) -> None:
        from dlscale.batch.jobs.progress import progress_words
        from dlscale.batch.workspace import RUNNING

        if state.state not in RUNNING or state.progress is None or time.monotonic() - self._at < _SAID_SECONDS:
            return
        if (said := progress_words(state.progress, runs=True)) != self._said:
            self._said, self._at = said, time.monotonic()
            echo(f"{state.job} {state.state}: {said}", err=True)


@click.command()
@click.argument("job_id", metavar="ID")
@workspace_option
def cancel(job_id: str, workspace: str | None) -> None:
    """Stop the job ID within seconds, wherever it runs or waits; its checkpoint stays."""
    from dlscale.batch.submit import cancel as stop

    root = open_workspace(workspace)
    job = root.find(job_id)
    state = stop(job, root)
    echo(f"{job.id} {state.state}{': ' if state.message else ''}{state.message}")


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--cluster", metavar="C", help="Where to go on, if not where it began: local, threads or tcp://host:port.")
@click.option("--detach", is_flag=True, help="Hand it over, as `submit` does, instead of waiting for its end here.")
@click.option("--unless-cancelled", is_flag=True, hidden=True)
@workspace_option
@json_option
def resume(job_id: str, cluster: str | None, detach: bool, unless_cancelled: bool, workspace: str | None, as_json: bool) -> None:
    """Go on with the interrupted, cancelled, lost or failed job ID from its last checkpoint."""
    console, root = open_console(as_json), open_workspace(workspace)
    from dlscale.batch import run as jobs
    from dlscale.cli.terminal import import_bar

    with refusal_as_json(as_json):
        job = root.find(job_id)
        if unless_cancelled and job.stored_state().state == "cancelled":
            raise Interrupted(f"Job {job.id} was cancelled; it does not go on by itself.")
        with import_bar(console) as bar:
            prepared = jobs.reopen(job, root, cluster=cluster, progress=bar)
        if detach:
            from dlscale.batch.submit import resubmit

            resubmit(job, root, prepared)
    if detach:
        _show_submitted(job, as_json)
        return
    follow(console, job.id, prepared, lambda listener: jobs.resume(job, prepared, listener=listener), as_json=as_json)


@click.command(hidden=True)
@click.argument("job_id", metavar="ID")
@workspace_option
def requeue(job_id: str, workspace: str | None) -> None:
    """Put the interrupted job ID back into Slurm's queue; its batch script calls this at its end."""
    from dlscale.batch.slurm import requeue as back_into_the_queue

    echo(f"dlscale: {back_into_the_queue(open_workspace(workspace).find(job_id))}")


@click.command()
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the N newest.")
@job_filters
@workspace_option
@json_option
def jobs(
    limit: int | None, states: tuple[str, ...], kinds: tuple[str, ...], name: str | None, workspace: str | None, as_json: bool
) -> None:
    """List the jobs of the workspace, the newest first, and name those whose files are damaged."""
    found, faults = open_workspace(workspace).list_jobs(limit, states=states, kinds=kinds, name=name)
    if as_json:
        listed = [{key: value for key, value in asdict(s).items() if key != "message"} for s in found]
        empty = {"kind": None, "created": None, "seconds": None, "progress": None}
        damaged = [{"job": job, "state": "damaged", **empty, "message": message} for job, message in sorted(faults.items())]
        click.echo(json.dumps(listed + damaged))
        return
    nothing = "No job can be read." if faults else "No such jobs." if states or kinds or name else "No jobs yet."
    click.echo("\n".join(_lines(found)) if found else nothing)
    for job, message in sorted(faults.items()):
        echo(f"{job}: {message}", prefix=f"{click.style('damaged:', fg='red')} ", err=True)


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@workspace_option
@json_option
def status(job_id: str | None, workspace: str | None, as_json: bool) -> None:
    """Show how far the job ID (by default the newest) is."""
    job = open_workspace(workspace).find(job_id)
    state = job.read_state()
    if as_json:
        print_json(_state_record(state))
        return
    from dlscale.cli.terminal import status_rows

    console = open_console()
    console.print(job.id, style="bold", highlight=False)
    console.print(status_rows(job, state))


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@workspace_option
def logs(job_id: str | None, follow: bool, workspace: str | None) -> None:
    """Print the log of the job ID (by default the newest)."""
    from dlscale.batch.workspace import RUNNING

    job = open_workspace(workspace).find(job_id)
    offset = 0
    while True:
        running = job.read_state().state in (*RUNNING, "submitted")
        for line in _lines_from(job.log, offset):
            offset += len(line)
            echo(line.decode(errors="replace"), nl=False)
        if not (follow and running):
            return
        time.sleep(0.5)


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


@click.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Where it goes [report.html of the job].")
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@workspace_option
def report(job_id: str | None, output: Path | None, show: bool, workspace: str | None) -> None:
    """Draw the report of the job ID (by default the newest) anew, and print its path."""
    from dlscale.batch.reporting import write_report

    path = write_report(open_workspace(workspace).find(job_id), output)
    echo(str(path))
    if show:
        click.launch(str(path))


def _lines(states: Sequence[ListedJob]) -> Iterator[str]:
    """A table of jobs as plain lines: thousands of them take a blink, and an id stays whole in a narrow terminal."""
    from dlscale.batch.jobs.progress import progress_words
    from dlscale.batch.workspace import RUNNING
    from dlscale.report import words

    table = [("job", "kind", "state", "started", "time", "message")]
    for s in states:
        message = s.message or (progress_words(s.progress, runs=True) if s.progress and s.state in RUNNING else "")
        cells = (s.job, s.kind, s.state, words.moment(s.created), words.duration(s.seconds), message)
        table.append(cells if "".join(cells).isprintable() else tuple(map(_printable, cells)))  # type: ignore[arg-type]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)][:-1]
    for number, row in enumerate(table):
        line = "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip()
        color = words.STATE_COLORS.get(row[2], "cyan") if number else None
        yield line.replace(f" {row[2]} ", f" {click.style(row[2], fg=color)} ", 1) if color else click.style(line, dim=True)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _state_record(state: JobState) -> dict[str, Any]:
    record = {"job": state.job, "state": state.state, "kind": state.kind, "result": state.result, "seconds": state.seconds}
    return record | {"message": state.message, "heartbeat": state.heartbeat._asdict(), "progress": _told(state.progress)}


def _told(progress: Progress | None) -> dict[str, Any] | None:
    return None if progress is None else asdict(progress)


def _show_submitted(job: Job, as_json: bool) -> None:
    state = job.read_state().state
    if as_json:
        print_json({"job": job.id, "state": state, "folder": str(job.folder)})
        return
    echo(job.id)
    if state == "submitted" and not job.slurm.exists():
        click.echo("No worker has taken the job yet: they are busy. It starts when one is free.", err=True)


@click.command()
@click.argument("target", metavar="PATH|ID")
@workspace_option
@json_option
def verify(target: str, workspace: str | None, as_json: bool) -> None:
    """Compare every chunk of a result, a matrix or a checkpoint (PATH), or all that the job ID left, with its checksum."""
    from dlscale.batch.verifying import verify_job
    from dlscale.batch.workspace import Job
    from dlscale.storage.files.locations import expand_home
    from dlscale.storage.verifying import verify as verify_store

    path = str(expand_home(target))
    stored = "://" in path or Path(path).exists()
    if stored and not Job(Path(path)).state.exists():
        findings = verify_store(path)
    else:
        findings = verify_job(Job(Path(path)) if stored else open_workspace(workspace).find(target))
    if as_json:
        print_json({"target": target, **findings.to_dict()})
    else:
        for note in findings.notes:
            echo(note)
        for fault in findings.damage:
            echo(fault, prefix=f"{click.style('damaged:', fg='red')} ")
        counted = f"{findings.n_chunks:,} chunks of {findings.n_arrays:,} arrays, {findings.n_bytes / 1e6:,.1f} MB"
        verdict = f"{len(findings.damage)} damaged" if findings.damage else "all as written"
        echo(f"{target}: {counted}: {verdict}.")
    if findings.damage:
        sys.exit(EXIT_FAILED)


COMMANDS = (submit, wait, cancel, resume, requeue, jobs, status, logs, report, verify)
