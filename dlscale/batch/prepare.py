"""From a spec to a plan: everything that can be refused is refused here, before anything is created."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dlscale.arrays import Array
from dlscale.batch.assumed import Assumed
from dlscale.batch.document import Document
from dlscale.batch.jobs.places import check_checkpoint, check_output, only_importer
from dlscale.batch.kinds import KINDS
from dlscale.batch.spec import to_data
from dlscale.batch.spec.consent import require_consent
from dlscale.batch.spec.models import absolute
from dlscale.batch.spec.sections import ClusterSpec, ImportSpec, JobSpec
from dlscale.batch.workspace import Job, Workspace
from dlscale.declaration.faults import KeyPath
from dlscale.declaration.kind import Kind
from dlscale.engine.clusters import ClusterFacts, describe_cluster
from dlscale.engine.events import WorkDone
from dlscale.engine.plan import Plan
from dlscale.errors import DlscaleError, DoesNotFitError, InputError, NonFiniteError, SpecError, StoreError
from dlscale.linalg.fitting import fitted_by, plan_with_fits, require_same, transforms_of
from dlscale.storage.exactness import inexact_words
from dlscale.storage.files.durable import PARTIAL, require_free_space
from dlscale.storage.files.nodes import attributes_of, remove_node
from dlscale.storage.importers import import_matrix
from dlscale.storage.inputs import Inputs, StoredResult
from dlscale.storage.labels.names import Color, Labels
from dlscale.storage.labels.stored import color_beside
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix
from dlscale.storage.objects.address import Address
from dlscale.storage.signatures import Signature, Stamp, source_version
from dlscale.storage.sparse.transforms import transformed

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Earlier:
    """A stopped job that goes on.

    Parameters
    ----------
    job : str
    plan : Plan
        It fixes the bits of the answer.
    inputs : mapping of role to dict
        What each input was when the job was planned.
    signatures : mapping of role to Signature
        What each was when the job began to read it.
    """

    job: str
    plan: Plan
    inputs: Mapping[str, Any]
    signatures: Mapping[str, Signature]


@dataclass(frozen=True)
class Prepared:
    """A job that can start.

    Parameters
    ----------
    spec : JobSpec
    data : dict
        The spec as plain data with absolute paths: what spec.yaml and the result's attributes hold.
    inputs : Inputs
        Opened, all their chunks found.
    facts : ClusterFacts
    options
        The options of the kind's algorithm.
    plan : Plan
    output : Path, Address or None
        Where the result goes; None is the job's own folder.
    color : Color or None
        What colours the rows of the first matrix, where the spec names it.
    """

    spec: JobSpec
    data: dict[str, Any]
    inputs: Inputs
    facts: ClusterFacts
    options: Any
    plan: Plan
    output: Path | Address | None
    color: Color | None = None

    @property
    def name(self) -> str:
        return self.spec.name or self.spec.kind

    def labels(self, arrays: Mapping[str, Array]) -> Labels:
        """What the rows and columns of the first matrix are called, transformed as these arrays of an outcome say."""
        first = self.inputs.get(KINDS[self.spec.kind].roles[0].name)
        found = Labels() if first is None else fitted_by(first, arrays).labels
        return found if self.color is None else found._replace(color=self.color)

    def inexact_notes(self, job: Job) -> list[str]:
        """A note on each input of which integers were rounded: as this process saw, or workers said, before a stop too."""
        uris = set(self.inputs.inexact())
        with suppress(SpecError):
            uris.update(uri for event in job.read_events() if isinstance(event, WorkDone) for uri in event.inexact)
        return [inexact_words(uri) for uri in sorted(uris)]

    def keeping_blocks(self, job: str) -> AbstractContextManager[None]:
        """Let workers that end with the job keep what they will read again: as much as the plan leaves of their memory."""
        outlive = self.facts.kind == "tcp"
        spare = 0 if outlive else self.facts.memory_bytes - self.plan.peak_bytes_per_worker
        return self.inputs.kept(job, n_bytes_read=self.plan.bytes_read, n_bytes_spare=spare)

    def describe_plan(self) -> dict[str, Any]:
        """The plan and what each input is: what plan.json and the result's attributes hold."""
        return {**self.plan.to_dict(), "inputs": self.inputs.describe()}


def prepare(
    spec: JobSpec,
    document: Document,
    workspace: Workspace,
    *,
    earlier: Earlier | None = None,
    progress: Progress | None = None,
    assumed: Assumed | None = None,
    only_looks: bool = False,
) -> Prepared:
    """Open and check the inputs, plan the job, and refuse what cannot work.

    Parameters
    ----------
    spec, document
        From one file; the document gives the places for messages.
    workspace : Workspace
        An imported matrix is kept there; nothing else is written.
    earlier : Earlier, optional
        A stopped job to go on with.
    progress : callable, optional
        Receives (done, total) of an import.
    assumed : Assumed, optional
        For a plan that is only looked at: the matrix or the cluster that it is for.
    only_looks : bool
        Whether the plan is only looked at: a cluster that only the job file names is not asked.

    Raises
    ------
    SpecError, InputError
        Naming the key, what was got, and what is allowed.
    """
    data = to_data(spec)
    output = _check_places(spec, data, document, workspace, earlier.job if earlier else "")
    with blame(document, "cluster"):
        facts = assumed.facts if assumed else None
        if facts is None:
            require_consent(spec.cluster, document, only_looks=only_looks)
            facts = describe_cluster(cluster_request(spec.cluster))
    found = assumed.inputs(spec) if assumed and assumed.shape else _open_inputs(spec, data, document, workspace, progress)
    color = None if assumed and assumed.shape else _color(spec, found, document)
    inputs, kind = _transformed(spec, found, document), KINDS[spec.kind]
    options = kind.options(**spec.option_values())
    if getattr(options, "log_rows", False) and not facts.one_host:
        workspace.require_folder("a log of rows from several machines (params.log_rows)")
    if earlier is not None:
        plan = earlier.plan
        _check_same(earlier, inputs, document)
        with blame(document, "cluster"):
            _check_fits(plan, facts)
    else:
        with _blame_key(document, spec):
            plan = plan_with_fits(kind, inputs, options, facts)
        plan = replace(plan, notes=(*plan.notes, *facts.notes))
        if assumed:
            return Prepared(spec, data, inputs, facts, options, assumed.plan(plan), output, color)
        _require_room(plan, output, document, workspace)
        plan = plan.writing_in(next(place for place in (workspace.root, *workspace.root.parents) if place.is_dir()))
    return Prepared(spec, data, inputs, facts, options, plan, output, color)


def _require_room(plan: Plan, output: Path | Address | None, document: Document, workspace: Workspace) -> None:
    here = output if output is not None else workspace.place
    with blame(document, "output"):
        n_bytes = plan.bytes_written if plan.disk_bytes is None else plan.disk_bytes
        require_free_space(here if isinstance(here, Path) else workspace.root, 0 if isinstance(here, Address) else n_bytes)


def _check_places(
    spec: JobSpec, data: Mapping[str, Any], document: Document, workspace: Workspace, job: str
) -> Path | Address | None:
    """Refuse places where the job cannot write; where its result goes, if that is not its own folder."""
    with blame(document, "output"):
        output = check_output(data, overwrite=spec.overwrite, job=job)
    with blame(document, "checkpoint", "at"):
        check_checkpoint(spec)
    with blame(document):
        workspace.require_writable()
    return output


def cluster_request(cluster: str | ClusterSpec) -> str | dict[str, Any]:
    """A spec's cluster as `describe_cluster` takes it."""
    return cluster.model_dump() if isinstance(cluster, ClusterSpec) else cluster


def _open_inputs(
    spec: JobSpec, data: Mapping[str, Any], document: Document, workspace: Workspace, progress: Progress | None
) -> Inputs:
    """Every input that the spec names, opened and checked."""
    declared = {role.name: role for role in KINDS[spec.kind].roles}
    matrices: dict[str, Matrix] = {}
    results: dict[str, StoredResult] = {}
    signatures: dict[str, Signature | None] = {}
    for role, source in spec.input.roles().items():
        with blame(document, "input", role):
            location, known = data["input"][role], declared[role]
            if known.result_of:
                results[role] = result = StoredResult.open(location)
                if result.kind not in known.result_of:
                    raise InputError(f"must be the result of a job of kind {' or '.join(known.result_of)}; got {result.kind}.")
                signatures[role] = result.check()
                continue
            if isinstance(source, ImportSpec):
                location = _imported(location, source, workspace, progress)
            missing = spec.input.missing_chunks
            matrices[role] = matrix = open_matrix(location, vectors=known.vector, missing_chunks=missing)
            signatures[role] = matrix.check()
    return Inputs(matrices, results, {role: signature for role, signature in signatures.items() if signature})


def _color(spec: JobSpec, inputs: Inputs, document: Document) -> Color | None:
    """What the spec says that colours the rows of the first matrix."""
    kind, name = KINDS[spec.kind], spec.input.color
    if name is None:
        return None
    first = kind.roles[0].name
    with blame(document, "input", "color"):
        if not any(along[:1] == ("row",) for along in kind.dimensions.values()):
            raise SpecError(f"colours rows of a result, and that of kind {spec.kind} has none; leave it out.")
        if not isinstance(spec.input.roles().get(first), str):
            raise SpecError(f"is of a matrix that lies in Zarr; set color in the section of input.{first} with import.")
        return color_beside(inputs[first].uri, inputs[first].shape[0], name)


def _transformed(spec: JobSpec, inputs: Inputs, document: Document) -> Inputs:
    """The inputs, the first one being read as the spec's transforms say, or those that a model was made with."""
    roles, matrices, steps = KINDS[spec.kind].roles, dict(inputs), [step.step() for step in spec.input.transforms]
    first = roles[0].name
    for result in (inputs.results[role.name] for role in roles if role.carries_transforms and role.name in inputs.results):
        with blame(document, "input", first):
            matrices[first] = transforms_of(result, matrices[first])
        with blame(document, "input", "transforms"):
            require_same(result, steps)
        return Inputs(matrices, inputs.results, inputs.signatures)
    if not steps:
        return inputs
    with blame(document, "input", "transforms"):
        if first not in matrices:
            raise SpecError(f"are of a matrix, and input.{first} is the result of a job; leave them out.")
        for name in [role.name for role in roles if role.name == first or role.transformed]:
            if name in matrices:
                matrices[name] = transformed(matrices[name], steps)
    return Inputs(matrices, inputs.results, inputs.signatures)


def _imported(data: dict[str, Any], request: ImportSpec, workspace: Workspace, progress: Progress | None) -> Path:
    """The imported matrix of a request; the first job that needs it makes it, others wait for that."""
    source = absolute(request.source)
    if "://" not in source and not source.startswith("sample:") and not os.path.exists(source):
        raise InputError(f"There is nothing to import at {source}: no such file or directory.")
    version = _version(source)
    destination = workspace.import_path(data, version or "")
    if version is not None and _is_current(destination):
        return destination
    with only_importer(destination, make_folder=workspace.make_folder):
        if version is not None and _is_current(destination):
            return destination
        draft = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}{PARTIAL}") / "array"
        import_matrix(source, draft, chunks=request.chunks, dtype=request.dtype, progress=progress, **request.read_options())
        if version != _version(source):
            raise InputError(f"{source} was changed while it was imported; run the job again when it is written.")
        if version is None:
            # Nobody says which content the source has, so the copy is kept under its own.
            destination = workspace.import_path(data, attributes_of(draft)["content"])
            if destination.exists():
                return destination
        remove_node(destination)
        draft.rename(destination)
    return destination


def _version(source: str) -> str | None:
    """What identifies the content of a source; None where nobody says, and of what is not there, which the import tells."""
    if source.startswith("sample:"):
        return ""
    with suppress(Exception):  # whatever a server or its client raises
        return source_version(source)
    return None


def _is_current(copy: Path) -> bool:
    """Whether there is a copy, of what the other files that it was read from hold today."""
    if not copy.exists():
        return False
    others = attributes_of(copy).get("read_also", {})
    return all(os.path.exists(path) and list(Stamp.of(os.stat(path))) == stamp for path, stamp in others.items())


def _check_same(earlier: Earlier, inputs: Inputs, document: Document) -> None:
    """Refuse to go on with inputs other than those that the checkpoint was made from."""
    for role, found in inputs.describe().items():
        with blame(document, "input", role):
            before, now = _content(earlier.inputs.get(role, {})), _content(found)
            if before != now:
                raise SpecError(f"was {before} when the job began and is {now} now; run the job anew.")
            read, there = earlier.signatures.get(role), inputs.signatures.get(role)
            if read and there and not read.same_as(there):
                how = read.changed(there)
                raise SpecError(f"{found['uri']} has changed since the job began to read it: {how}; run the job anew.")


def _content(described: Mapping[str, Any]) -> str:
    """Shape and dtype of an input, or the job whose result it is."""
    return " ".join(str(described[key]) for key in ("shape", "dtype", "job") if key in described)


def _check_fits(plan: Plan, facts: ClusterFacts) -> None:
    if plan.peak_bytes_per_worker > facts.memory_bytes:
        raise DoesNotFitError(
            f"the job was planned to take {plan.peak_bytes_per_worker / 1e9:.2f} GB on each worker, and these have "
            f"{facts.memory_bytes / 1e9:.2f} GB; give them more, or run the job anew."
        )


@contextmanager
def blame(document: Document, *path: str) -> Iterator[None]:
    """Put the place and the key before the message of what went wrong inside."""
    try:
        yield
    except StoreError as error:
        raise _placed(InputError(str(error)), document, path) from error
    except (SpecError, InputError) as error:
        raise _placed(error, document, path) from error


@contextmanager
def _blame_key(document: Document, spec: JobSpec) -> Iterator[None]:
    """As `blame`, for the key that the message begins with; what does not fit is the cluster's, and all else the first input's."""
    try:
        yield
    except (SpecError, InputError) as error:
        raise _placed(error, document, _named_key(error, KINDS[spec.kind])) from error


def _named_key(error: DlscaleError, kind: Kind) -> KeyPath:
    if isinstance(error, DoesNotFitError):
        return ("cluster",)
    begins = re.match(r"[a-z_]+(\.\w+)*", str(error))
    path = tuple(begins[0].split(".")) if begins else ()
    return path if path and path[0] in ("params", "input", *kind.sections) else ("input", kind.roles[0].name)


def _placed(error: DlscaleError, document: Document, path: KeyPath) -> DlscaleError:
    key = ".".join(map(str, path)) or "--workspace"
    if isinstance(error, NonFiniteError):
        return NonFiniteError(error.row, error.column, error.value, f"{document.where(path)}: {key}: {error.matrix}", error.name)
    message = str(error).removeprefix(f"{key}:").removeprefix(key).lstrip()
    return type(error)(f"{document.where(path)}: {key}: {message}")
