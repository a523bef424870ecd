"""The end of a job's files."""

from __future__ import annotations

import shutil
from contextlib import suppress

from dlscale.batch.document import read_stored
from dlscale.batch.queue import Queue
from dlscale.batch.sweeps.store import forget_if_empty
from dlscale.batch.workspace import Job, Workspace
from dlscale.errors import DlscaleError, SpecError
from dlscale.storage.buckets.checkpoints import ObjectCheckpoint
from dlscale.storage.buckets.results import clear
from dlscale.storage.files.atomic import hidden
from dlscale.storage.objects.address import Address, is_object_url

#: States of jobs that no `dlscale resume` waits for.
DONE = ("succeeded", "failed", "cancelled")


def remove(job: Job, root: Workspace) -> None:
    """Remove a job that has ended, with all that is in its folder; a result that went to another place stays.

    A sweep goes with the last one of its jobs.

    Raises
    ------
    SpecError
        If a process works on it, or is about to.
    """
    if job.folder.is_symlink():
        raise SpecError(f"{job.folder} is a link, and what it leads to is left alone; remove the link yourself.")
    claim = job.take()
    if claim is None:
        raise SpecError(f"Job {job.id} is running; `dlscale cancel {job.id}` stops it.")
    with claim:
        state = None
        with suppress(SpecError):  # of a damaged state the lock alone says that nobody works on the job
            state = job.read_state()
        if state is not None and state.moves:
            raise SpecError(f"Job {job.id} is {state.state}; cancel it first.")
        _leave_stores(job)
        job.remove_stored()
        # Nobody sees half of a job: a folder of this name is a draft, which goes in the end whatever happens here.
        gone = hidden(job.folder)
        job.folder.rename(gone)
    Queue(root).leave(job.id)
    shutil.rmtree(gone, ignore_errors=True)
    if state is not None and state.sweep:
        forget_if_empty(root, state.sweep)


def _leave_stores(job: Job) -> None:
    """Remove what lies of a job in object stores beside its result, where they can be reached."""
    with suppress(DlscaleError, OSError):
        data = read_stored(job.spec).data
        if (at := (data.get("checkpoint") or {}).get("at")) is not None:
            ObjectCheckpoint(Address.of(at) / job.id).discard()
        if is_object_url(output := str(data.get("output"))):
            clear(Address.of(output), job.id)
