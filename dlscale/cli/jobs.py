"""The life of a job on the command line: submit, cancel, resume; report and verify what it left."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlscale.cli.options import (
    EXIT_FAILED,
    Command,
    echo,
    follow,
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
from dlscale.cli.sweeping import find_sweep, is_sweep, resume_sweep, show_cancelled_sweep, show_submitted_sweep, submit_sweep
from dlscale.cli.watching import ended_words
from dlscale.errors import Interrupted
from dlscale.interrupts import held_back

if TYPE_CHECKING:
    from dlscale.batch.workspace import Job


def _slurm_options(command: Command) -> Command:
    """``slurm``, and with it the fields of a `SlurmRequest`."""
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


def _slurm_request(slurm: bool, asked: Mapping[str, Any], **elsewhere: Any) -> dict[str, Any] | None:
    """What is asked of Slurm; None where the job does not go there.

    Parameters
    ----------
    slurm : bool
    asked : mapping
        Options that go with ``--slurm``.
    **elsewhere
        Options that do not.
    """
    request = {name: value for name, value in asked.items() if value is not None}
    wrong, word = ([name for name, value in elsewhere.items() if value], "not") if slurm else (list(request), "only")
    if wrong:
        raise click.UsageError(f"--{wrong[0].replace('_', '-')} goes {word} with --slurm.")
    return request if slurm else None


@click.command()
@spec_options
@click.option("--priority", type=int, help="Jobs with a higher one go first [0].")
@click.option("--concurrency", type=click.IntRange(1), help="Submitted jobs of the workspace that run at once, from now on [1].")
@_slurm_options
@workspace_option
@json_option
def submit(
    spec: Path,
    overrides: tuple[str, ...],
    cluster: str | None,
    output: str | None,
    priority: int | None,
    concurrency: int | None,
    slurm: bool,
    workspace: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Hand the job of the file SPEC over and print its ID; it goes on when this command, or its terminal, is gone.

    A file with `matrix:` is a sweep, an array of jobs; `dlscale jobs --sweep ID` shows the table of their results.

    On a running Dask cluster (tcp://host:port) a worker drives the job, and another one if that dies; with local or threads a
    process of its own on this machine does.
    """
    request = _slurm_request(slurm, asked, priority=priority, concurrency=concurrency)
    console, root = open_console(as_json=True), open_workspace(workspace)
    with refusal_as_json(as_json):
        document = read_job_file(spec, overrides, cluster, output)
        if is_sweep(document):
            sweep = submit_sweep(root, document, priority=priority or 0, concurrency=concurrency, request=request)
            show_submitted_sweep(sweep.sweep, [each["job"] for each in sweep.jobs], as_json=as_json)
            return
        prepared = plan_job(document, root, console)
        from dlscale.batch import slurm as slurm_jobs
        from dlscale.batch.jobs.in_slurm import slurm_number
        from dlscale.batch.submit import submit_prepared

        if request is not None:
            job = slurm_jobs.submit_prepared(root, prepared, slurm_jobs.SlurmRequest(**request))
            click.echo(f"Slurm's number is {slurm_number(job)}.", err=True)
        else:
            job = submit_prepared(root, prepared, priority=priority or 0, concurrency=concurrency)
    _show_submitted(job, as_json)


@click.command()
@click.argument("job_id", metavar="ID")
@workspace_option
def cancel(job_id: str, workspace: str | None) -> None:
    """Stop the job or the sweep ID within seconds, wherever it runs or waits; checkpoints stay."""
    from dlscale.batch.submit import cancel as stop

    root = open_workspace(workspace)
    if sweep := find_sweep(root, job_id):
        from dlscale.batch.sweeps.running import cancel_all

        show_cancelled_sweep(sweep.sweep, cancel_all(root, sweep))
        return
    job = root.find(job_id)
    state = stop(job, root)
    echo(ended_words(job.id, state.state, state.message))


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("--cluster", metavar="C", help="Where to go on, if not where it began: local, threads or tcp://host:port.")
@click.option("--detach", is_flag=True, help="Hand it over, as `submit` does, instead of waiting for its end here.")
@click.option("--unless-cancelled", is_flag=True, hidden=True)
@_slurm_options
@workspace_option
@json_option
def resume(
    job_id: str,
    cluster: str | None,
    detach: bool,
    unless_cancelled: bool,
    slurm: bool,
    workspace: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Go on with the interrupted, cancelled, lost or failed job ID from its last checkpoint; of a sweep, run what is left.

    With --slurm it is queued there again, asking for the same as before where nothing else is said.
    """
    request = _slurm_request(slurm, asked, cluster=cluster, detach=detach)
    console, root = open_console(as_json), open_workspace(workspace)
    if sweep := find_sweep(root, job_id):
        resume_sweep(root, sweep, cluster=cluster, request=request, as_json=as_json)
        return
    from dlscale.batch import run as jobs
    from dlscale.cli.terminal import import_bar

    with refusal_as_json(as_json):
        job = root.find(job_id)
        if unless_cancelled and job.stored_state().state == "cancelled":
            raise Interrupted(f"Job {job.id} was cancelled; it does not go on by itself.")
        with import_bar(console) as bar:
            prepared = jobs.reopen(job, root, cluster=cluster, progress=bar)
        if request is not None:
            from dlscale.batch.slurm import queue_again
            from dlscale.batch.spec.secrets import secret_environment

            number = queue_again(job, request, secret_environment(prepared.data))
            click.echo(f"Slurm's number is {number}.", err=True)
        elif detach:
            from dlscale.batch.submit import resubmit

            resubmit(job, root, prepared)
    if detach or slurm:
        _show_submitted(job, as_json)
        return
    follow(console, job.id, prepared, lambda listener: jobs.resume(job, prepared, listener=listener), as_json=as_json)


@click.command(hidden=True)
@click.argument("job_id", metavar="ID")
@workspace_option
def requeue(job_id: str, workspace: str | None) -> None:
    """Put the interrupted job ID back into Slurm's queue; its batch script calls this at its end."""
    from dlscale.batch.slurm import requeue as back_into_the_queue

    job = open_workspace(workspace).find(job_id)
    # Slurm ends the batch script of a job that it queues, and this process with it: what was done is said all the same.
    with suppress(KeyboardInterrupt), held_back():
        echo(f"dlscale: {back_into_the_queue(job)}")


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


COMMANDS = (submit, cancel, resume, requeue, report, verify)
