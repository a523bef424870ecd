"""`dlscale rm` and `dlscale prune`: the end of jobs, and how much room they leave."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import click

from dlscale.cli.options import EXIT_FAILED, Command, echo, job_filters, json_option, open_workspace, print_json, workspace_option
from dlscale.cli.sweeping import find_sweep
from dlscale.errors import DlscaleError

if TYPE_CHECKING:
    from dlscale.batch.workspace import Job, Workspace


@click.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@workspace_option
@json_option
def rm(job_ids: tuple[str, ...], workspace: str | None, as_json: bool) -> None:
    """Remove jobs that have ended, or those of a sweep, with checkpoint, log, report and the result in the job's folder."""
    root = open_workspace(workspace)
    found = [job for job_id in dict.fromkeys(job_ids) for job in _meant(root, job_id)]
    _remove(found, root, as_json=as_json)


def _meant(root: Workspace, job_id: str) -> list[Job]:
    """The job, or those of the sweep that are there; a sweep goes with its last job."""
    sweep = find_sweep(root, job_id)
    if sweep is None:
        return [root.find(job_id)]
    from dlscale.batch.sweeps.running import jobs_of

    return [job for job in jobs_of(root, sweep) if job.exists()]


def prune_options(command: Command) -> Command:
    """``older_than`` and ``keep``."""
    command = click.option("--keep", type=click.IntRange(0), metavar="N", default=0, help="Not the N newest of them.")(command)
    return click.option("--older-than", type=click.FloatRange(0), metavar="DAYS", help="Only jobs that began so many days ago.")(
        command
    )


@click.command()
@prune_options
@job_filters
@click.option("--yes", is_flag=True, help="Remove them; without it, they are only listed.")
@workspace_option
@json_option
def prune(
    older_than: float | None,
    keep: int,
    states: tuple[str, ...],
    kinds: tuple[str, ...],
    name: str | None,
    yes: bool,
    workspace: str | None,
    as_json: bool,
) -> None:
    """Remove all jobs that succeeded, failed or were cancelled, or those that the options choose."""
    from dlscale.batch.removing import DONE

    root = open_workspace(workspace)
    latest = time.time() - 86400.0 * (older_than or 0.0)
    listed = root.list_jobs(states=states or DONE, kinds=kinds, name=name)[0]
    chosen = [row.job for row in listed if row.created <= latest][keep:]
    _remove([root.job(job_id) for job_id in chosen], root, as_json=as_json, dry=not yes)


def remove_each(
    jobs: Iterable[str], size_of: Callable[[str], int], remove: Callable[[str], None], *, as_json: bool, dry: bool = False
) -> None:
    """Remove each, and say how much room it took; what cannot be removed is named in the end, which is a failure."""
    from dlscale.report import words

    sizes, refused = {}, {}
    for job in jobs:
        try:
            size = size_of(job)
            if not dry:
                remove(job)
        except (DlscaleError, OSError) as error:
            refused[job] = str(error)
            continue
        sizes[job] = size
        if not as_json:
            echo(f"{job}  {words.size(size)}")
    if as_json:
        print_json({"removed": {} if dry else sizes, "would_remove": sizes if dry else {}, "refused": refused})
    elif not sizes and not refused:
        echo("No such jobs.")
    else:
        whole = f"{len(sizes)} job{'s' if len(sizes) != 1 else ''}, {words.size(sum(sizes.values()))}"
        echo(f"{whole}: not removed yet; add --yes." if dry else f"{whole}: removed.")
        for message in refused.values():
            echo(message, prefix=f"{click.style('kept:', fg='yellow')} ", err=True)
    if refused:
        sys.exit(EXIT_FAILED)


def _remove(jobs: Iterable[Job], root: Workspace, *, as_json: bool, dry: bool = False) -> None:
    from dlscale.batch.removing import remove

    known = {job.id: job for job in jobs}
    remove_each(known, lambda job: known[job].size(), lambda job: remove(known[job], root), as_json=as_json, dry=dry)
