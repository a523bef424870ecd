"""Checking all that a job left: its own files, its checkpoint, its result."""

from __future__ import annotations

from dlscale.batch.jobs import records
from dlscale.batch.workspace import Job
from dlscale.errors import InputError, SpecError
from dlscale.storage.objects.address import Address
from dlscale.storage.objects.requests import names
from dlscale.storage.verifying import Findings, verify


def verify_job(job: Job) -> Findings:
    """Check every file of a job that has a form or a checksum, the checkpoint and the result included."""
    findings = Findings()
    result = ""
    try:
        state = job.stored_state()
        result = state.result or ""
        job.check_files()
    except SpecError as error:
        findings.damage.append(str(error))
    try:
        job.read_plan()
    except SpecError as error:
        findings.damage.append(str(error))
    torn = job.torn_events()
    if torn:
        findings.damage.append(f"{job.events}: line {torn[0]} is damaged ({len(torn)} in all); it is left out of reports")
    for path, model in ((job.slurm, records.SlurmRecord), (job.slurm_starts, records.StartsRecord), (job.handed_over, dict)):
        try:
            records.read(path, model)
        except FileNotFoundError:
            continue
        except SpecError as error:
            findings.damage.append(str(error))
    for place in filter(None, (_checkpoint_of(job), result)):
        try:
            verify(place, findings)
        except InputError as error:
            findings.damage.append(str(error))
    return findings


def _checkpoint_of(job: Job) -> str:
    """Where its checkpoint is; nothing where it has none."""
    place = job.place / "checkpoint.zarr"
    there = names(place / "manifests") if isinstance(place, Address) else place.exists()
    return str(place) if there else ""
