"""Jobs that come over the network, handed over as `dlscale submit` does it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from dlscale.batch.document import Document, UnusableValueError, parse_yaml, read_document, set_value
from dlscale.batch.jobs import records
from dlscale.batch.prepare import Prepared, prepare
from dlscale.batch.removing import remove
from dlscale.batch.run import reopen
from dlscale.batch.spec import parse_spec, to_data
from dlscale.batch.spec.expanding import is_sweep
from dlscale.batch.spec.sections import JobSpec
from dlscale.batch.submit import cancel, resubmit, submit_prepared
from dlscale.batch.sweeps.running import jobs_of
from dlscale.batch.sweeps.store import Sweep, forget_if_empty
from dlscale.batch.workspace import ENDED, HandOver, Job, JobState
from dlscale.errors import SpecError, StoreError
from dlscale.service.problems import Problem
from dlscale.service.schema import FormError, form_told
from dlscale.service.settings import Settings
from dlscale.service.sweeping import SweepStarter

#: Writes down which job, or which sweep with which jobs, is about to be made.
Note = Callable[[str, Sequence[str]], None]
#: What a job file that came over the network is called in messages.
SOURCE = "spec"
#: Keys are remembered for so long.
_KEY_SECONDS = 7 * 86400.0


@dataclass(frozen=True)
class Kept:
    """What is remembered of a request with a key: the job, or the sweep, that it makes, or has made.

    Parameters
    ----------
    digest : str
        Of the request's body.
    job : str
        Its id, or that of the sweep.
    jobs : list of str
        Of the sweep.
    """

    digest: str
    job: str
    jobs: list[str] = field(default_factory=list)


def read_body(body: bytes, *, is_json: bool) -> Document:
    """A request's body as a job file, in which nothing was given by whoever runs the server (SpecError, FormError)."""
    try:
        text = body.decode("utf-8")
        return _read_json(text) if is_json else parse_yaml(text, SOURCE)
    except UnicodeDecodeError as error:
        raise FormError(f"{SOURCE}: must be text in UTF-8: {error.reason} at byte {error.start}.") from error
    except UnusableValueError:  # a schema knows no such limits
        raise
    except SpecError as error:
        raise FormError(str(error)) from error


def _read_json(text: str) -> Document:
    try:
        data = json.loads(text, object_pairs_hook=_no_key_twice)
        if not isinstance(data, dict):
            raise SpecError(f"{SOURCE}: a job file is a mapping; got {type(data).__name__}.")
        return replace(read_document(data), given=frozenset())
    except json.JSONDecodeError as error:
        raise SpecError(f"{SOURCE}:{error.lineno}: not readable as JSON: {error.msg}.") from error
    except RecursionError:
        raise SpecError(f"{SOURCE}: nested too deeply; a job file has at most a few levels.") from None
    except ValueError as error:
        raise error if isinstance(error, SpecError) else SpecError(f"{SOURCE}: not readable as JSON: {error}.") from error


class Starter:
    """Starts, stops and removes the jobs of a server.

    Parameters
    ----------
    settings : Settings
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._workspace = settings.workspace
        self._keys = settings.workspace.shelf("service/keys")
        #: Processes that this server started and that it must see off when they end.
        self._drivers: set[int] = set()
        self.sweeps = SweepStarter(settings)

    def validate(self, document: Document) -> str:
        """What `dlscale validate` says, of a job that names nothing but what is allowed (SpecError)."""
        if is_sweep(document):
            return self.sweeps.validate(document)
        return f"{document.source} is a valid job of kind {self._checked(self._placed(document)).kind}."

    def plan(self, document: Document) -> dict[str, Any]:
        """What `dlscale plan --json` says."""
        if is_sweep(document):
            return self.sweeps.plan(document)
        return self._prepare(document, only_looks=True).describe_plan()

    def submit(
        self, document: Document, body: bytes, *, key: str = "", who: str = "", priority: int = 0
    ) -> tuple[Job | Sweep, bool]:
        """Hand a job, or the jobs of a sweep, over.

        Parameters
        ----------
        document : Document
        body : bytes
            It was read from.
        key : str
            The same key with the same body makes nothing a second time, whatever happened to the answer to the first request.
        who : str
            Whose key it is.
        priority : int

        Returns
        -------
        made
        new : bool
            False where an earlier request with the key has made it.
        """
        if not key:
            return self._hand_over(document, priority, lambda job, jobs: None), True
        self._workspace.make_folder(self._keys.folder)
        name = hashlib.sha256(f"{who}\n{key}".encode()).hexdigest()
        lock = self._keys.take(f"{name}.lock")
        if lock is None:
            raise Problem(409, "A request with this Idempotency-Key is being answered.", headers={"Retry-After": "2"}, exit_code=1)
        try:
            return self._submit_once(document, body, name, priority)
        finally:
            lock.release(remove=True)

    def _submit_once(self, document: Document, body: bytes, name: str, priority: int) -> tuple[Job | Sweep, bool]:
        digest = hashlib.sha256(body).hexdigest()
        kept = self._kept(name)
        if kept is not None and kept.digest != digest:
            raise Problem(409, "This Idempotency-Key was sent with another job file; use a new key for a new job.", exit_code=2)
        if kept is not None and (made := self._made_before(kept)) is not None:
            return made, False

        def note(made: str, jobs: Sequence[str]) -> None:
            """Written down before it is done: a server that is killed in between finds out what was meant."""
            self._keys.write(name, json.dumps(asdict(Kept(digest, made, list(jobs)))).encode())

        return self._hand_over(document, priority, note, "" if kept is None else kept.job), True

    def _made_before(self, kept: Kept) -> Job | Sweep | None:
        """What an earlier request has made; handed over where the server was killed before it had done so."""
        if kept.jobs:
            sweep = self.sweeps.made_before(kept.job, kept.jobs)
            self._take_care_of(self._workspace.job(kept.jobs[0]))
            return sweep
        job = self._workspace.job(kept.job)
        if not job.catch_up():
            return None
        if job.stored_state().state == "submitted" and job.read_state().state == "lost":
            self.resume(job)
        return job

    def _hand_over(self, document: Document, priority: int, note: Note, known_id: str = "") -> Job | Sweep:
        if is_sweep(document):
            sweep = self.sweeps.submit(document, priority, note, known_id)
            self._take_care_of(self._workspace.job(sweep.jobs[0]["job"]))
            return sweep
        prepared = self._prepare(document)
        job = self._workspace.job(known_id) if known_id else self._workspace.new_job(prepared.name)
        note(job.id, ())
        submit_prepared(self._workspace, prepared, priority=priority, job=job)
        self._take_care_of(job)
        return job

    def resume(self, job: Job) -> None:
        """Let a stopped job go on, as `dlscale resume --detach` does."""
        if not (state := job.read_state()).resumable and state.state not in ENDED:
            raise Problem(409, f"Job {job.id} is running already; it is {state.state}.", exit_code=2)
        try:
            prepared = reopen(job, self._workspace, cluster=self._settings.cluster)
        except SpecError as error:
            if state.state == "succeeded" or state.final:
                raise Problem(409, str(error), exit_code=2) from error
            raise
        self._settings.allowed.check(prepared.data, Document({}, {}, str(job.spec)))
        resubmit(job, self._workspace, prepared)
        self._take_care_of(job)

    def cancel(self, job: Job) -> JobState:
        """Stop a job wherever it runs, as `dlscale cancel` does."""
        if (state := job.read_state().state) in ENDED:
            raise Problem(409, f"Job {job.id} has ended already; it is {state}.", exit_code=2)
        return cancel(job, self._workspace)

    def remove(self, job: Job) -> None:
        """Remove a job that has ended."""
        try:
            remove(job, self._workspace)
        except SpecError as error:
            raise Problem(409, str(error), exit_code=2) from error

    def resume_sweep(self, sweep: Sweep) -> list[str]:
        """Run what is left of a sweep, as `dlscale resume` does; the ids of these jobs."""
        left = self.sweeps.resume(sweep)
        self._take_care_of(self._workspace.job(left[0]))
        return left

    def remove_sweep(self, sweep: Sweep) -> None:
        """Remove the jobs of a sweep that runs no more, and the sweep with them."""
        self.sweeps.require_rest(sweep)
        for job in jobs_of(self._workspace, sweep):
            if job.exists():
                self.remove(job)
        forget_if_empty(self._workspace, sweep.sweep)

    def see_off(self) -> None:
        """Let the processes that ended go; called now and then."""
        for pid in tuple(self._drivers):
            with suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            self._drivers.discard(pid)

    def forget_old_keys(self) -> None:
        """Remove the keys that nobody repeats any more."""
        with suppress(OSError, StoreError):
            self._keys.forget_older(_KEY_SECONDS)

    def _kept(self, name: str) -> Kept | None:
        with suppress(OSError, SpecError):
            return records.parse(self._keys.read(name), Kept, self._keys.folder / name)
        return None

    def _prepare(self, document: Document, *, only_looks: bool = False) -> Prepared:
        document = self._placed(document)
        return prepare(self._checked(document), document, self._workspace, only_looks=only_looks)

    def _checked(self, document: Document) -> JobSpec:
        with form_told(document):
            spec = parse_spec(document)
        self._settings.allowed.check(to_data(spec), document)
        return spec

    def _placed(self, document: Document) -> Document:
        """A document whose job runs where all jobs of this server do."""
        if self._settings.cluster is None:
            return document
        return set_value(document, ["cluster"], self._settings.cluster, "--cluster")

    def _take_care_of(self, job: Job) -> None:
        with suppress(OSError, SpecError):
            driver = records.read(job.handed_over, HandOver).driver
            if driver is not None:
                self._drivers.add(driver.pid)


def _no_key_twice(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    data: dict[str, Any] = {}
    for key, value in pairs:
        if key in data:
            raise SpecError(f"{SOURCE}: the key {key!r} stands twice.")
        data[key] = value
    return data
