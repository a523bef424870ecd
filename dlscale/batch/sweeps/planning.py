"""What the jobs of a sweep are, and what they would do and take, before any of them is made."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from dlscale.batch.document import Document
from dlscale.batch.recorder import plain
from dlscale.batch.spec import parse_spec
from dlscale.batch.spec.expanding import KEY, expand
from dlscale.batch.spec.models import absolute
from dlscale.batch.spec.sections import JobSpec
from dlscale.batch.sweeps import store
from dlscale.batch.sweeps.store import Sweep, SweptJob
from dlscale.batch.workspace import Workspace
from dlscale.errors import SpecError

if TYPE_CHECKING:
    from dlscale.batch.prepare import Prepared


class Member(NamedTuple):
    """A job of a sweep: the values that it has, by key, and its own job file."""

    values: dict[str, Any]
    document: Document
    spec: JobSpec


class Planned(NamedTuple):
    """A job of a sweep that was planned."""

    values: dict[str, Any]
    prepared: Prepared


def members_of(document: Document) -> list[Member]:
    """The jobs of a sweep, each checked (SpecError if one of them is none, or two have one place)."""
    made = list(expand(document))
    # Their names, and that of the sweep, are made of its own, which must be one too.
    first = made[0][1]
    parse_spec(replace(first, data={**first.data, "name": document.data.get("name")}))
    members = [Member(values, each, parse_spec(each)) for values, each in made]
    places = Counter(absolute(each.spec.output) for each in members if each.spec.output is not None)
    if shared := [place for place, n in places.items() if n > 1]:
        raise SpecError(
            f"{document.where((KEY, 'output'))}: {KEY}.output: {shared[0]} would be the place of {places[shared[0]]} jobs of the "
            "sweep; leave output out, so that each keeps its result in its own folder."
        )
    return members


def plan_all(members: Sequence[Member], plan: Callable[[Member], Prepared]) -> list[Planned]:
    """Plan every job of a sweep."""
    return [Planned(each.values, plan(each)) for each in members]


def new_sweep(root: Workspace, document: Document, planned: Sequence[Planned], *, sweep_id: str = "") -> Sweep:
    """A sweep that has an id, as its jobs have, and no files yet; ``sweep_id`` where that was known before."""
    kind = planned[0].prepared.spec.kind
    name = str(document.data.get("name") or kind)
    # No file keeps the password of a URL.
    jobs: list[SweptJob] = [
        {"job": root.new_job(each.prepared.name).id, "values": plain(list(each.values.values()))} for each in planned
    ]
    return Sweep(sweep_id or store.new_id(name), name, kind, time.time(), list(document.data[KEY]), jobs)


def describe(document: Document, planned: Sequence[Planned]) -> dict[str, Any]:
    """What a sweep would do and take.

    Returns
    -------
    dict
        ``kind keys n_jobs flops bytes_read peak_bytes_per_worker expected_seconds jobs``: of all jobs one after another, and of
        each ``name values words flops bytes_read peak_bytes_per_worker expected_seconds``.
    """
    jobs = [_row(each.values, each.prepared) for each in planned]
    sums = {key: sum(job[key] for job in jobs) for key in ("flops", "bytes_read", "expected_seconds")}
    whole = {"kind": planned[0].prepared.spec.kind, "keys": list(document.data[KEY]), "n_jobs": len(jobs), **sums}
    return {**whole, "peak_bytes_per_worker": max(job["peak_bytes_per_worker"] for job in jobs), "jobs": jobs}


def _row(values: Mapping[str, Any], prepared: Prepared) -> dict[str, Any]:
    plan = prepared.plan
    return {
        "name": prepared.name,
        "values": plain(values),
        "words": plan.words,
        "flops": plan.flops,
        "bytes_read": plan.bytes_read,
        "peak_bytes_per_worker": plan.peak_bytes_per_worker,
        "expected_seconds": plan.expected_seconds,
    }
