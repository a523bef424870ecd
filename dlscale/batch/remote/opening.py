"""Which workspace is meant: a folder, a bucket, or the folder of this machine that mirrors one."""

from __future__ import annotations

import os
from pathlib import Path

from dlscale.batch.jobs.folder import Job
from dlscale.batch.workspace import MIRRORED, Workspace
from dlscale.storage.objects.address import Address, is_object_url


def open_workspace(root: str | Path | None = None) -> Workspace:
    """The workspace at a path or URL; by default that of the environment's DLSCALE_WORKSPACE, or ``dlscale-workspace`` here."""
    location = root or os.environ.get("DLSCALE_WORKSPACE")
    if is_object_url(location):
        return _in_bucket(str(location))
    workspace = Workspace(location)
    mirrored = workspace.root / MIRRORED
    return _in_bucket(mirrored.read_text(encoding="utf-8")) if mirrored.exists() else workspace


def job_in(folder: Path) -> Job:
    """The job that has a folder, with what others have written of it."""
    job = open_workspace(folder.parent.parent).job(folder.name)
    job.refresh()
    return job


def _in_bucket(url: str) -> Workspace:
    from dlscale.batch.remote.workspaces import BucketWorkspace

    return BucketWorkspace(Address.of(url))
