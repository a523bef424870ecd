"""From a spec to a plan: everything that can be refused is refused here, before anything is created."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlscale.batch.assumed import Assumed
from dlscale.batch.document import Document, KeyPath
from dlscale.batch.kinds import KINDS
from dlscale.batch.places import check_output, check_writable, only_importer
from dlscale.batch.sections import ClusterSpec, ImportSpec, JobSpec
from dlscale.batch.spec import absolute, to_data
from dlscale.batch.workspace import Workspace
from dlscale.engine.clusters import ClusterFacts, describe_cluster
from dlscale.errors import DlscaleError, DoesNotFitError, InputError, SpecError
from dlscale.storage.durable import require_free_space
from dlscale.storage.importers import import_matrix
from dlscale.storage.inputs import Inputs, StoredResult
from dlscale.storage.matrices import open_matrix

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Earlier:
    """A stopped job that goes on.

    Parameters
    ----------
    job : str
    plan
        As its kind's ``plan_type`` reads it; it fixes the bits of the answer.
    inputs : mapping of role to dict
        What each input was.
    """

    job: str
    plan: Any
    inputs: Mapping[str, Any]


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
    plan
        Of the kind's ``plan_type``.
    output : Path or None
        Where the result goes; None is the job's own folder.
    """

    spec: JobSpec
    data: dict[str, Any]
    inputs: Inputs
    facts: ClusterFacts
    options: Any
    plan: Any
    output: Path | None

    @property
    def name(self) -> str:
        return self.spec.name or self.spec.kind

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

    Raises
    ------
    SpecError, InputError
        Naming the key, what was got, and what is allowed.
    """
    data = to_data(spec)
    with _blame(document, "output"):
        output = check_output(data, overwrite=spec.overwrite, job=earlier.job if earlier else "")
    with _blame(document):
        check_writable(workspace.root)
    with _blame(document, "cluster"):
        facts = assumed.facts if assumed and assumed.facts else describe_cluster(cluster_request(spec.cluster))
    inputs = assumed.inputs(spec) if assumed and assumed.shape else _open_inputs(spec, data, document, workspace, progress)
    kind = KINDS[spec.kind]
    options = kind.options(**spec.option_values())
    if earlier is not None:
        plan = earlier.plan
        _check_same(earlier.inputs, inputs, document)
        with _blame(document, "cluster"):
            _check_fits(plan, facts)
    else:
        with _blame_key(document, spec):
            plan = kind.plan(inputs, options, facts)
        if assumed:
            return Prepared(spec, data, inputs, facts, options, assumed.plan(plan), output)
        n_bytes = sum(step.bytes_written for step in plan.passes)
        with _blame(document, "output"):
            require_free_space(output or workspace.root, n_bytes)
    return Prepared(spec, data, inputs, facts, options, plan, output)


def cluster_request(cluster: str | ClusterSpec) -> str | dict[str, Any]:
    """A spec's cluster as `describe_cluster` takes it."""
    return cluster.model_dump() if isinstance(cluster, ClusterSpec) else cluster


def _open_inputs(
    spec: JobSpec, data: Mapping[str, Any], document: Document, workspace: Workspace, progress: Progress | None
) -> Inputs:
    """Every input that the spec names, opened and checked."""
    matrices, results, rules = {}, {}, type(spec.input)
    for role, source in spec.input.roles().items():
        with _blame(document, "input", role):
            location = data["input"][role]
            if role in rules.results:
                results[role] = result = StoredResult.open(location)
                if result.kind not in rules.results[role]:
                    raise InputError(f"must be the result of a job of kind {' or '.join(rules.results[role])}; got {result.kind}.")
                result.check()
                continue
            if isinstance(source, ImportSpec):
                location = _imported(location, source, workspace, progress)
            matrices[role] = matrix = open_matrix(location, vectors=role in rules.vectors)
            matrix.check()
    return Inputs(matrices, results)


def _imported(data: dict[str, Any], request: ImportSpec, workspace: Workspace, progress: Progress | None) -> Path:
    """The imported matrix of a request; the first job that needs it makes it, others wait for that."""
    source = absolute(request.source)
    if "://" not in source and not source.startswith("sample:") and not os.path.exists(source):
        raise InputError(f"There is nothing to import at {source}: no such file or directory.")
    destination = workspace.import_path(data)
    if destination.exists():
        return destination
    with only_importer(destination, make_folder=workspace.make_folder):
        if not destination.exists():
            import_matrix(
                source,
                destination,
                chunks=request.chunks,
                dtype=request.dtype,
                progress=progress,
                **request.read_options(),
            )
    return destination


def _check_same(planned: Mapping[str, Any], inputs: Inputs, document: Document) -> None:
    for role, found in inputs.describe().items():
        with _blame(document, "input", role):
            before, now = _content(planned.get(role, {})), _content(found)
            if before != now:
                raise SpecError(f"was {before} when the job began and is {now} now; run the job anew.")


def _content(described: Mapping[str, Any]) -> str:
    """Shape and dtype of an input, or the job whose result it is."""
    return " ".join(str(described[key]) for key in ("shape", "dtype", "job") if key in described)


def _check_fits(plan: Any, facts: ClusterFacts) -> None:
    if plan.peak_bytes_per_worker > facts.memory_bytes:
        raise DoesNotFitError(
            f"the job was planned to take {plan.peak_bytes_per_worker / 1e9:.2f} GB on each worker, and these have "
            f"{facts.memory_bytes / 1e9:.2f} GB; give them more, or run the job anew."
        )


@contextmanager
def _blame(document: Document, *path: str) -> Iterator[None]:
    """Put the place and the key before the message of what went wrong inside."""
    try:
        yield
    except (SpecError, InputError) as error:
        raise _placed(error, document, path) from error


@contextmanager
def _blame_key(document: Document, spec: JobSpec) -> Iterator[None]:
    """As `_blame`, for the key that the message begins with, or the parameter, section or input that it names first."""
    try:
        yield
    except (SpecError, InputError) as error:
        raise _placed(error, document, _named_key(error, spec)) from error


def _named_key(error: DlscaleError, spec: JobSpec) -> KeyPath:
    begins = re.match(r"[a-z_]+(\.\w+)*", str(error))
    path = tuple(begins[0].split(".")) if begins else ()
    sections, roles = spec.own_sections(), list(type(spec.input).model_fields)
    if isinstance(error, DoesNotFitError):
        return ("cluster",)
    if path and path[0] in ("params", "input", *sections):
        return path
    words = re.findall(r"[a-z_]+", str(error))
    places = {**{role: ("input", role) for role in roles}, **{name: (name,) for name in sections}}
    params = {name: ("params", name) for name in type(spec.params).model_fields}
    return next((known[word] for known in (params, places) for word in words if word in known), ("input", roles[0]))


def _placed(error: DlscaleError, document: Document, path: KeyPath) -> DlscaleError:
    key = ".".join(map(str, path)) or "--workspace"
    message = str(error).removeprefix(f"{key}:").removeprefix(key).lstrip()
    return type(error)(f"{document.where(path)}: {key}: {message}")
