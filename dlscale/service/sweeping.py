"""Sweeps that come over the network: every job of one is checked as a job of its own would be."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dlscale.batch.document import Document, read_stored, set_value
from dlscale.batch.prepare import Prepared, prepare
from dlscale.batch.spec import parse_spec, to_data
from dlscale.batch.spec.expanding import KEY
from dlscale.batch.sweeps import running, store
from dlscale.batch.sweeps.planning import Member, describe, members_of, new_sweep, plan_all
from dlscale.batch.sweeps.store import Sweep
from dlscale.batch.workspace import Job
from dlscale.errors import SpecError
from dlscale.service.problems import Problem
from dlscale.service.schema import form_told
from dlscale.service.settings import Settings


class SweepStarter:
    """Starts and stops the sweeps of a server.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self._settings, self._workspace = settings, settings.workspace

    def validate(self, document: Document) -> str:
        """What `dlscale validate` says (SpecError)."""
        members = self._members(self._placed(document))
        return f"{document.source} is a valid sweep of {len(members)} jobs of kind {members[0].spec.kind}."

    def plan(self, document: Document) -> dict[str, Any]:
        """What `dlscale plan --json` says."""
        document = self._placed(document)
        return describe(document, plan_all(self._members(document), lambda member: self._plan(member, only_looks=True)))

    def submit(self, document: Document, priority: int, note: Callable[[str, Sequence[str]], None], known_id: str = "") -> Sweep:
        """Hand the jobs of a sweep over.

        Parameters
        ----------
        document : Document
        priority : int
            Of each job.
        note : callable
            Called with the id of the sweep and those of its jobs, before they are made.
        known_id : str
            Of the sweep, where an earlier request was to make it.
        """
        document = self._placed(document)
        planned = plan_all(self._members(document), self._plan)
        sweep = new_sweep(self._workspace, document, planned, sweep_id=known_id)
        note(sweep.sweep, [each["job"] for each in sweep.jobs])
        running.submit(self._workspace, sweep, planned, priority=priority)
        return sweep

    def made_before(self, sweep_id: str, jobs: Sequence[str]) -> Sweep | None:
        """The sweep that an earlier request has made; None, and nothing of it left, where it was not made whole."""
        if not store.exists(self._workspace, sweep_id):
            running.undo(self._workspace, sweep_id, [self._workspace.job(job) for job in jobs])
            return None
        sweep = store.read(self._workspace, sweep_id)
        there = [job for job in running.jobs_of(self._workspace, sweep) if job.exists()]
        if there and all(job.stored_state().state == "submitted" and job.read_state().state == "lost" for job in there):
            self.resume(sweep)  # the server was killed before it had handed them over
        return sweep

    def resume(self, sweep: Sweep) -> list[str]:
        """Run what is left of a sweep; the ids of these jobs."""
        cluster = self._settings.cluster
        return running.resume(self._workspace, sweep, check=self._may_go_on, trusted=() if cluster is None else (cluster,))

    def cancel(self, sweep: Sweep) -> list[str]:
        """Cancel the jobs of a sweep that run or wait; their ids."""
        return running.cancel_all(self._workspace, sweep)

    def require_rest(self, sweep: Sweep) -> None:
        """Refuse what a sweep does not bear some of whose jobs run or wait (Problem)."""
        states = store.states_of(self._workspace, sweep)
        if store.moves(states):
            said = store.told(store.counts(states))
            raise Problem(409, f"Sweep {sweep.sweep} runs: {said}; cancel it first.", exit_code=2)

    def _members(self, document: Document) -> list[Member]:
        with form_told(document):
            members = members_of(document)
        for member in members:
            self._settings.allowed.check(to_data(member.spec), member.document)
        return members

    def _plan(self, member: Member, *, only_looks: bool = False) -> Prepared:
        return prepare(member.spec, member.document, self._workspace, only_looks=only_looks)

    def _placed(self, document: Document) -> Document:
        """A document whose jobs run where all jobs of this server do."""
        cluster, axes = self._settings.cluster, document.data[KEY]
        if cluster is None:
            return document
        if isinstance(axes, dict) and (own := next((key for key in axes if key.split(".")[0] == "cluster"), None)):
            raise SpecError(f"{document.where((KEY, own))}: {KEY}.{own}: all jobs of this server run on {cluster}.")
        return set_value(document, ["cluster"], cluster, "--cluster")

    def _may_go_on(self, job: Job) -> None:
        """Refuse a job, of a sweep that was submitted elsewhere, that this server would not have taken (SpecError)."""
        spec, cluster = parse_spec(read_stored(job.spec)), self._settings.cluster
        self._settings.allowed.check(to_data(spec), Document({}, {}, str(job.spec)))
        if cluster is not None and spec.cluster != cluster:
            raise SpecError(f"{job.spec}: cluster: got {spec.cluster}; all jobs of this server run on {cluster}.")
