"""One job from start to end: compute, certify, publish, report; and the same again from its checkpoint.

`run` is the Python entry. The command line calls `prepare` and `start` itself, to show the plan in between.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dlscale.batch.arrays import with_arrays_stored
from dlscale.batch.document import parse_scalar, read_document, read_stored, set_value
from dlscale.batch.jobs import records
from dlscale.batch.jobs.keeping import checkpoint_of, is_published, result_group
from dlscale.batch.jobs.progress import Follower
from dlscale.batch.jobs.records import checksum
from dlscale.batch.jobs.signals import Signals, Stop
from dlscale.batch.kinds import KINDS
from dlscale.batch.main_guard import require_main_guard
from dlscale.batch.notebooks import ReportPage, card, notebook_progress, report_page
from dlscale.batch.prepare import Earlier, Prepared, Progress, prepare
from dlscale.batch.recorder import Recorder, plain
from dlscale.batch.remote.opening import job_in, open_workspace
from dlscale.batch.reporting import write_report
from dlscale.batch.spec import parse_spec
from dlscale.batch.spec.secrets import restore_secrets
from dlscale.batch.workspace import Heartbeat, Job, JobState, Workspace
from dlscale.engine.clusters import open_cluster
from dlscale.engine.clusters.client import answers
from dlscale.engine.clusters.launchers import lost_rank
from dlscale.engine.events import Emit, Event, Warned, ignore
from dlscale.engine.machine import describe_machine
from dlscale.engine.plan import Plan
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import CertificateError, DlscaleError, InputError, Interrupted, NumericalError, RankError, SpecError, StoreError
from dlscale.linalg.fitting import compute_with_fits
from dlscale.report import words
from dlscale.storage.files.atomic import fsync_path, hidden, write_atomically
from dlscale.storage.files.locks import LockLostError
from dlscale.storage.groups import open_arrays
from dlscale.storage.objects.address import Address
from dlscale.storage.results import ResultGroup

#: Running the job again from its checkpoint would end in the same way.
FINAL_ERRORS = (InputError, NumericalError, CertificateError)


@dataclass(frozen=True, repr=False)
class JobResult:
    """How a job ended; in a notebook, a table of what it found.

    Parameters
    ----------
    job, state, kind : str
        Id; succeeded, failed, lost (its cluster vanished), interrupted or cancelled; svd, pca, qr and so on.
    result : str or None
        Path of the published result, a Zarr group.
    seconds : float
        Wall time over all runs of the job.
    certificate : dict or None
    plan : dict
    folder : Path
        Where the job's files are.
    error : Exception or None
        Why it did not succeed.
    """

    job: str
    state: str
    kind: str
    result: str | None
    seconds: float
    certificate: dict[str, Any] | None
    plan: dict[str, Any]
    folder: Path
    error: Exception | None = None

    def open(self) -> dict[str, Any]:
        """The result's arrays by name, opened for reading; ``np.asarray`` brings one to memory.

        Raises
        ------
        InputError
            If the job has no result.
        """
        if self.result is None:
            raise InputError(f"Job {self.job} has no result; it is {self.state}.")
        return open_arrays(self.result)

    def report(self) -> ReportPage:
        """The report: a path, and in a notebook the page itself."""
        return report_page(self.folder)

    def resume(self, *, cluster: str | None = None) -> JobResult:
        """Go on with a job that stopped, here or on another cluster, to the same bits as without the stop.

        Raises
        ------
        SpecError
            If the job runs, has succeeded, or would fail again.
        DlscaleError
            If it fails or is interrupted.
        """
        job = job_in(self.folder)
        return _checked(resume(job, reopen(job, open_workspace(self.folder.parent.parent), cluster=cluster)))

    def __repr__(self) -> str:
        certificate = "" if self.certificate is None else f", certificate {'passed' if self.certificate['passed'] else 'failed'}"
        return f"<JobResult {self.job}: {self.state} after {words.duration(self.seconds)}{certificate}>"

    def _repr_html_(self) -> str:
        return card(self.folder)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON: job state kind result seconds certificate plan, and the error if there is one."""
        record = {key: value for key, value in asdict(self).items() if key not in ("folder", "error")}
        return plain(record | ({"error": str(self.error)} if self.error else {}))  # type: ignore[no-any-return]


def run(
    spec: str | Path | Mapping[str, Any],
    overrides: Iterable[str] = (),
    *,
    workspace: str | Path | None = None,
    listener: Callable[[dict[str, Any]], None] | None = None,
) -> JobResult:
    """Plan, compute, certify and publish a job in this process.

    Parameters
    ----------
    spec : str, Path or mapping
        A YAML file, YAML text, or the same as a mapping, whose inputs may be arrays, too: NumPy, Dask, Zarr, data frames, lists.
        They are kept in the workspace, so that the job can be resumed.
    overrides : iterable of str
        ``section.key=value``.
    workspace : path or URL, optional
        Where jobs are kept; by default DLSCALE_WORKSPACE or ``./dlscale-workspace``.
    listener : callable, optional
        Receives the job's events as they happen, as mappings like the lines of events.jsonl.

    Returns
    -------
    JobResult

    Raises
    ------
    SpecError, InputError
        Before anything is created.
    DlscaleError
        If the job failed or was interrupted; a note of the exception names the job.
    """
    root = open_workspace(workspace)
    document = read_document(with_arrays_stored(spec, root), overrides)
    prepared = prepare(parse_spec(document), document, root)
    if prepared.facts.kind == "local":
        require_main_guard("dlscale.run")
    tell: Emit = (lambda event: listener(event.to_dict())) if listener else notebook_progress(prepared) or ignore
    return _checked(start(root.new_job(prepared.name), prepared, listener=tell))


def _checked(result: JobResult) -> JobResult:
    """A result; what a job failed with is raised."""
    if result.error:
        result.error.add_note(f"Job {result.job}; its files are in {result.folder}.")
        raise result.error
    return result


def start(job: Job, prepared: Prepared, *, listener: Emit = ignore) -> JobResult:
    """Create a job's folder and run the job."""
    return _execute(job, create(job, prepared), prepared, listener)


def create(job: Job, prepared: Prepared, *, state: str = "planned", sweep: str = "") -> JobState:
    """Create the folder of a job (of a sweep), whole or not at all, in a state: planned to run here, submitted to run elsewhere."""
    workspace = Workspace(job.folder.parent.parent)
    draft = Job(hidden(job.folder))
    workspace.remove_drafts()
    workspace.make_folder(draft.folder)
    files = {
        draft.spec: yaml.safe_dump(plain(prepared.data), sort_keys=False).encode(),
        draft.plan: json.dumps(plain(prepared.describe_plan()), indent=1).encode(),
    }
    checksums = {path.name: checksum(data) for path, data in files.items()}
    kind = prepared.spec.kind
    began = JobState(job.id, prepared.name, kind, state, time.time(), Heartbeat.now(), checksums=checksums, sweep=sweep)
    try:
        for path, data in files.items():
            write_atomically(path, data)
        draft.write_state(began)
        os.rename(draft.folder, job.folder)
        fsync_path(workspace.jobs_folder)
        job.publish()
    except BaseException:
        shutil.rmtree(draft.folder, ignore_errors=True)
        raise
    return began


def reopen(job: Job, workspace: Workspace, *, cluster: str | None = None, progress: Progress | None = None) -> Prepared:
    """A stopped job as it was planned.

    Parameters
    ----------
    job : Job
    workspace : Workspace
    cluster : str, optional
        Where to go on, instead of the cluster of the spec; the plan, and with it the bits of the answer, stay.
    progress : callable, optional
        See `prepare`.

    Raises
    ------
    SpecError
        If the job runs, has succeeded, or its files are damaged.
    """
    state = job.read_state()
    if state.state == "succeeded":
        raise SpecError(f"Job {job.id} has succeeded; its result is {state.result}. `dlscale report {job.id}` draws its report.")
    if state.final:
        raise SpecError(f"Job {job.id} would fail again: {state.message} Change the spec or the matrix and run it anew.")
    if job.is_taken():
        raise SpecError(f"Job {job.id} is running already; `dlscale status {job.id}` shows how far it is.")
    job.check_files()
    document = restore_secrets(read_stored(job.spec))
    if cluster is not None:
        document = set_value(document, ["cluster"], parse_scalar(cluster, "--cluster"), "--cluster")
    spec, record = parse_spec(document), job.read_plan()
    try:
        plan = Plan.from_dict(record)
        earlier = Earlier(job.id, plan, record["inputs"], job.read_inputs())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise records.damaged(job.plan, error, still=f"Run {job.spec} anew.") from error
    return prepare(spec, document, workspace, earlier=earlier, progress=progress)


def resume(job: Job, prepared: Prepared, *, listener: Emit = ignore) -> JobResult:
    """Go on with a stopped job from its checkpoint, to the same bits as without the stop."""
    return _execute(job, job.read_state(), prepared, listener)


def _execute(job: Job, state: JobState, prepared: Prepared, listener: Emit) -> JobResult:
    output = prepared.output or job.place / "result.zarr"
    error: Exception | None = None
    follower = Follower(prepared.plan.flops, len(prepared.plan.worker_steps), before=state.progress)
    with Signals() as signals, Recorder(job, state, listener, cancel=signals.stop, follower=follower) as recorder:
        try:
            # A job that was killed when it had published is found complete.
            path = output if is_published(output, job.id) else _produce(job, prepared, output, recorder, signals)
            checkpoint_of(job, prepared.spec.checkpoint).discard()
            recorder.change("succeeded", result=str(path))
        except (Stop, Exception) as reason:
            lost = lost_rank() if isinstance(reason, Stop) else None
            if fence := _fence(reason, recorder):
                # Whatever stands in the job's folder now, if there is one, belongs to somebody else.
                return _job_result(job, replace(recorder.state, state="lost"), prepared, fence)
            if signals.received and not isinstance(lost or reason, RankError):
                cancelled = job.is_asked_to_stop()
                said = "cancelled" if cancelled else signals.received
                error = Interrupted(f"{said}: stopped after the last finished pass; go on with `dlscale resume {job.id}`.")
                recorder.change("cancelled" if cancelled else "interrupted", str(error))
            else:
                error = _failed(lost or reason, job, prepared, output, recorder)
        job.forget_stop()
        try:
            write_report(job)
        except Exception as trouble:
            recorder.failure(trouble)
            recorder.emit(Warned(f"The report could not be written ({_message(trouble)}); see {job.log}."))
        ended = recorder.state
    return _job_result(job, ended, prepared, error)


def _fence(reason: BaseException, recorder: Recorder) -> LockLostError | None:
    """Why a job that stopped must not be written to any more, if that is so."""
    with suppress(LockLostError, StoreError):
        recorder.check()
    return recorder.fence or (reason if isinstance(reason, LockLostError) else None)


def _job_result(job: Job, ended: JobState, prepared: Prepared, error: Exception | None) -> JobResult:
    return JobResult(
        job=job.id,
        state=ended.state,
        kind=ended.kind,
        result=ended.result,
        seconds=ended.seconds,
        certificate=ended.certificate,
        plan=plain(prepared.describe_plan()),
        folder=job.folder,
        error=error,
    )


def _produce(job: Job, prepared: Prepared, output: Path | Address, recorder: Recorder, signals: Signals) -> Path | Address:
    """Compute the answer and publish it."""
    recorder.check()
    job.record_inputs(prepared.inputs.signatures)
    group = _result_group(job, prepared, output)
    try:
        with signals.raising():
            outcome = _compute(job, prepared, group, recorder, signals)
        return group.publish(_attributes(job, prepared, outcome, recorder.seconds))
    finally:
        group.close()


def _compute(job: Job, prepared: Prepared, group: ResultGroup, recorder: Recorder, signals: Signals) -> Outcome:
    """Run the algorithm and check its answer; afterwards the result group is complete."""

    def emit(event: Event) -> None:
        recorder.emit(event)
        signals.check()

    shapes = (matrix.attributes.get("image_shape") for matrix in prepared.inputs.values())
    image_shape = next(filter(None, shapes), None)
    recorder.change("running", summary={"machine": describe_machine(), "image_shape": image_shape})
    shared = not prepared.facts.one_host
    checkpoint = checkpoint_of(job, prepared.spec.checkpoint, fsync=shared, guard=recorder.check)
    kind = prepared.spec.kind
    try:
        with open_cluster(prepared.facts) as cluster, prepared.keeping_blocks(job.id):
            recorder.losses, stall, told = cluster.losses, prepared.spec.stall, (kind, job.id)
            run = Run(cluster, checkpoint=checkpoint, result=group, emit=emit, stall_seconds=stall, rows_folder=job.rows, job=told)
            cluster.tell_dashboard(emit)
            outcome = compute_with_fits(KINDS[kind], run, prepared.inputs, prepared.options, prepared.plan)
    except Stop:
        checkpoint.flush()
        raise
    except FINAL_ERRORS as error:
        # What was wrong with the answer may be that its input changed underneath, which then is what to say.
        prepared.inputs.require_unchanged()
        raise prepared.inputs.naming(error) from error.__cause__
    finally:
        for problem in checkpoint.problems:
            recorder.emit(Warned(problem))
        recorder.tell_losses()
    prepared.inputs.require_unchanged()
    outcome = replace(outcome, notes=(*outcome.notes, *prepared.inexact_notes(job)))
    recorder.change("certifying", summary=_summary(outcome))
    outcome.certificate.require()
    for name, array in outcome.arrays.items():
        group.put(name, array)
    group.name_axes(prepared.labels(outcome.arrays))
    return outcome


def _failed(reason: BaseException, job: Job, prepared: Prepared, output: Path | Address, recorder: Recorder) -> Exception:
    """Note why a job failed; what another run could not use is removed."""
    error = reason if isinstance(reason, Exception) else DlscaleError(str(reason))
    recorder.failure(error)
    final = isinstance(error, FINAL_ERRORS)
    if final:
        _result_group(job, prepared, output).discard()
        checkpoint_of(job, prepared.spec.checkpoint).discard()
    gone = prepared.facts.kind == "tcp" and not final and not answers(prepared.facts.address)
    code = getattr(error, "exit_code", DlscaleError.exit_code)
    recorder.change("lost" if gone else "failed", _message(error), final=final, failure_code=code)
    return error


def _result_group(job: Job, prepared: Prepared, output: Path | Address) -> ResultGroup:
    shared, dimensions = not prepared.facts.one_host, KINDS[prepared.spec.kind].dimensions
    return result_group(output, overwrite=prepared.spec.overwrite, fsync=shared, owner=job.id, dimensions=dimensions)


def _summary(outcome: Outcome) -> dict[str, Any]:
    return {"certificate": outcome.certificate.to_dict(), "estimates": outcome.estimates, "notes": list(outcome.notes)}


def _attributes(job: Job, prepared: Prepared, outcome: Outcome, seconds: float) -> dict[str, Any]:
    attributes = {
        "kind": prepared.spec.kind,
        "version": describe_machine()["versions"]["dlscale"],
        "job": job.id,
        "spec": prepared.data,
        "plan": prepared.describe_plan(),
        "seconds": seconds,
    }
    return plain(attributes | _summary(outcome))  # type: ignore[no-any-return]


def _message(error: BaseException) -> str:
    return str(error) if isinstance(error, DlscaleError) else f"{type(error).__name__}: {error}"
