"""Where a job keeps what it has computed: a folder of this machine's file systems, or an object store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from dlscale.batch.jobs.folder import Job
from dlscale.batch.jobs.pacing import Paced, PacedCheckpoint, PacedObjectCheckpoint
from dlscale.batch.jobs.places import is_result_of
from dlscale.batch.spec.sections import CheckpointSpec
from dlscale.storage import results
from dlscale.storage.buckets.results import ObjectResultGroup, clear
from dlscale.storage.objects.address import Address
from dlscale.storage.results import ResultGroup


def checkpoint_of(job: Job, spec: CheckpointSpec, *, fsync: bool = False, guard: Callable[[], None] = lambda: None) -> Paced:
    """The checkpoint of a job: where the job lies, or below the address that its spec names."""
    place = job.place / "checkpoint.zarr" if spec.at is None else Address.of(spec.at) / job.id
    if isinstance(place, Address):
        return PacedObjectCheckpoint(place, every_seconds=spec.every, guard=guard)
    return PacedCheckpoint(place, every_seconds=spec.every, fsync=fsync, guard=guard)


def result_group(
    output: Path | Address, *, overwrite: bool, fsync: bool, owner: str, dimensions: Mapping[str, tuple[str, ...]]
) -> ResultGroup:
    """The group that a job writes its result to."""
    if isinstance(output, Address):
        return ObjectResultGroup(output, overwrite=overwrite, owner=owner, dimensions=dimensions)
    return ResultGroup(output, overwrite=overwrite, fsync=fsync, owner=owner, dimensions=dimensions)


def is_published(output: Path | Address, owner: str) -> bool:
    """Whether a job's result is there; what a kill has left of its publication is finished first."""
    if isinstance(output, Path):
        results.settle(output, owner)
        return is_result_of(output, owner)
    found = is_result_of(output, owner)
    if found:
        clear(output, owner)
    return found
