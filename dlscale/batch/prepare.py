"""From a spec to a plan: everything that can be refused is refused here, before anything is created."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlscale.batch.document import Document, KeyPath
from dlscale.batch.kinds import KINDS
from dlscale.batch.spec import ClusterSpec, ImportSpec, Spec, absolute, to_data
from dlscale.batch.workspace import Workspace
from dlscale.engine.clusters import ClusterFacts, describe_cluster
from dlscale.engine.costs import Plan
from dlscale.errors import DlscaleError, DoesNotFitError, InputError, SpecError
from dlscale.storage.durable import PARTIAL, require_free_space
from dlscale.storage.groups import result_attributes
from dlscale.storage.importers import import_matrix
from dlscale.storage.matrices import Matrix, open_matrix
from dlscale.storage.results import is_being_written

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Earlier:
    """A stopped job that goes on: its id, and its plan, which fixes the bits of its answer."""

    job: str
    plan: Plan


@dataclass(frozen=True)
class Prepared:
    """A job that can start.

    Parameters
    ----------
    spec : Spec
    data : dict
        The spec as plain data with absolute paths: what spec.yaml and the result's attributes hold.
    matrix : Matrix
        Opened, all its chunks found.
    facts : ClusterFacts
    options
        The options of the kind's algorithm.
    plan : Plan
    output : Path or None
        Where the result goes; None is the job's own folder.
    """

    spec: Spec
    data: dict[str, Any]
    matrix: Matrix
    facts: ClusterFacts
    options: Any
    plan: Plan
    output: Path | None

    @property
    def name(self) -> str:
        return self.spec.name or self.spec.kind


def prepare(
    spec: Spec, document: Document, workspace: Workspace, *, earlier: Earlier | None = None, progress: Progress | None = None
) -> Prepared:
    """Open and check the matrix, plan the job, and refuse what cannot work.

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

    Raises
    ------
    SpecError, InputError
        Naming the key, what was got, and what is allowed.
    """
    data = to_data(spec)
    with _blame(document, "output"):
        output = _check_output(data, overwrite=spec.overwrite, job=earlier.job if earlier else "")
    with _blame(document):
        _check_writable(workspace.root)
    with _blame(document, "cluster"):
        facts = describe_cluster(cluster_request(spec.cluster))
    with _blame(document, "input", "matrix"):
        matrix = _open(data["input"]["matrix"], spec, workspace, progress)
    options = KINDS[spec.kind].options(**spec.params.model_dump())
    if earlier is not None:
        plan = earlier.plan
        with _blame(document, "input", "matrix"):
            _check_same(plan, matrix)
        with _blame(document, "cluster"):
            _check_fits(plan, facts)
    else:
        with _blame_params(document, type(spec.params).model_fields):
            plan = KINDS[spec.kind].plan(matrix, options, facts)
        n_bytes = sum(step.bytes_written for step in plan.passes)
        with _blame(document, "output"):
            require_free_space(output or workspace.root, n_bytes)
    return Prepared(spec, data, matrix, facts, options, plan, output)


def cluster_request(cluster: str | ClusterSpec) -> str | dict[str, Any]:
    """A spec's cluster as `describe_cluster` takes it."""
    return cluster.model_dump() if isinstance(cluster, ClusterSpec) else cluster


def _open(location: Any, spec: Spec, workspace: Workspace, progress: Progress | None) -> Matrix:
    request = spec.input.matrix
    if isinstance(request, ImportSpec):
        location = _imported(location, request, workspace, progress)
    matrix = open_matrix(location)
    matrix.check()
    return matrix


def _imported(data: dict[str, Any], request: ImportSpec, workspace: Workspace, progress: Progress | None) -> Path:
    """The imported matrix of a request; the first job that needs it makes it, others wait for that."""
    source = absolute(request.source)
    if "://" not in source and not source.startswith("sample:") and not os.path.exists(source):
        raise InputError(f"There is nothing to import at {source}: no such file or directory.")
    destination = workspace.import_path(data)
    if destination.exists():
        return destination
    with _only_importer(destination):
        if not destination.exists():
            import_matrix(
                source,
                destination,
                chunks=request.chunks,
                dtype=request.dtype,
                patches=request.patches,
                stride=request.stride,
                dataset=request.dataset,
                columns=request.columns,
                progress=progress,
            )
    return destination


@contextmanager
def _only_importer(destination: Path) -> Iterator[None]:
    """Keep other processes from importing the same; nothing is left of an import that failed or was killed."""
    missing = [folder for folder in destination.parents if not folder.exists()]
    path = destination.with_suffix(".lock")
    while True:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path.exists() and os.path.samestat(os.fstat(lock.fileno()), os.stat(path))):
                continue  # whoever had it before has removed it
            try:
                _remove_imports_of(destination)
                yield
                return
            finally:
                _remove_imports_of(destination)
                path.unlink(missing_ok=True)
                for folder in missing:
                    with suppress(OSError):
                        folder.rmdir()


def _remove_imports_of(destination: Path) -> None:
    """Remove what killed imports left; one that was interrupted may have threads that write for another moment."""
    for _ in range(40):
        leftovers = list(destination.parent.glob(f".{destination.name}.*{PARTIAL}"))
        for leftover in leftovers:
            shutil.rmtree(leftover, ignore_errors=True)
        if not leftovers:
            return
        time.sleep(0.05)


def is_result_of(path: Path, job: str) -> bool:
    """Whether a job has published its result there."""
    return bool(job) and (result_attributes(str(path)) or {}).get("job") == job


def _check_same(plan: Plan, matrix: Matrix) -> None:
    planned, found = (list(plan.matrix["shape"]), str(plan.matrix["dtype"])), (list(matrix.shape), str(matrix.dtype))
    if planned != found:
        raise SpecError(f"was {planned[0]} {planned[1]} when the job began and is {found[0]} {found[1]} now; run the job anew.")


def _check_fits(plan: Plan, facts: ClusterFacts) -> None:
    if plan.peak_bytes_per_worker > facts.memory_bytes:
        raise DoesNotFitError(
            f"the job was planned to take {plan.peak_bytes_per_worker / 1e9:.2f} GB on each worker, and these have "
            f"{facts.memory_bytes / 1e9:.2f} GB; give them more, or run the job anew."
        )


def _check_output(data: Mapping[str, Any], *, overwrite: bool, job: str) -> Path | None:
    location = data.get("output")
    if location is None:
        return None
    output = Path(location.removeprefix("file://"))
    if "://" in location and not location.startswith("file://"):
        raise SpecError(f"got {location}; allowed: a path on a file system of this machine.")
    source = data["input"]["matrix"]
    if isinstance(source, str) and (within := _nested(output, Path(source.removeprefix("file://")))):
        raise SpecError(f"{output} {within} the input matrix {source}; choose a path beside it.")
    if is_being_written(output):
        raise SpecError(f"{output} is being written by another job; wait for its end, or choose another path.")
    # A job that goes on may have published just before it was killed.
    if os.path.lexists(output) and not is_result_of(output, job):
        if not overwrite:
            raise SpecError(f"{output} exists already; choose another path, or set overwrite: true.")
        if result_attributes(str(output)) is None:
            raise SpecError(f"{output} is not a result of dlscale, and only such a result is overwritten; choose another path.")
    _check_writable(output.parent)
    return output


def _nested(output: Path, source: Path) -> str:
    """How one of two paths lies in the other, or nothing."""
    output, source = Path(os.path.realpath(output)), Path(os.path.realpath(source))
    if output == source:
        return ""
    return "lies in" if source in output.parents else "holds" if output in source.parents else ""


def _check_writable(folder: Path) -> None:
    """Write something that never gets a name into the nearest folder that exists."""
    place = folder
    while not os.path.lexists(place):
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(b"?")
    except OSError as error:
        raise SpecError(f"got {folder}, where nothing can be written ({error.strerror}); choose a folder that is yours.") from error


@contextmanager
def _blame(document: Document, *path: str) -> Iterator[None]:
    """Put the place and the key before the message of what went wrong inside."""
    try:
        yield
    except (SpecError, InputError) as error:
        raise _placed(error, document, path) from error


@contextmanager
def _blame_params(document: Document, names: Any) -> Iterator[None]:
    """As `_blame`, for the parameter or the resource that the message itself names first."""
    try:
        yield
    except (SpecError, InputError) as error:
        words = re.findall(r"[a-z_]+", str(error))
        key = next((word for word in words if word in names), None)
        if isinstance(error, DoesNotFitError):
            path: KeyPath = ("cluster",)
        else:
            path = ("params", key) if key else ("input", "matrix")
        raise _placed(error, document, path) from error


def _placed(error: DlscaleError, document: Document, path: KeyPath) -> DlscaleError:
    key = ".".join(map(str, path)) or "--workspace"
    message = str(error).removeprefix(f"{key}:").removeprefix(key).lstrip()
    return type(error)(f"{document.where(path)}: {key}: {message}")
