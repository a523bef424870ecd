"""A kind of job: what it takes, how it is planned and computed. Each is declared in its own file, and a table lists them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dlscale.arrays import Array
from dlscale.declaration.options import Options
from dlscale.engine.clusters import ClusterFacts, describe_cluster, open_cluster
from dlscale.engine.plan import Plan
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import InexactNote
from dlscale.storage.exactness import inexact_words
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix

#: What a role with a matrix takes, in words.
MATRIX = "path or URL of a Zarr array, or a section with import: SOURCE"


@dataclass(frozen=True)
class Role:
    """An input of a kind.

    Parameters
    ----------
    name : str
    words : str
        What it takes.
    optional : bool
    vector : bool
        Whether it also takes an array of one dimension, as a column.
    result_of : tuple of str
        It takes no matrix but the result of an earlier job, of one of these kinds.
    like_first : bool
        Whether it is as large as the first input where a plan assumes the shape of that; else one column.
    transformed : bool
        Whether it is read with the transforms of the first matrix, of whose columns it has more rows.
    carries_transforms : bool
        Whether the first matrix is read with the transforms of this result, as what it was made of.
    """

    name: str
    words: str = MATRIX
    optional: bool = False
    vector: bool = False
    result_of: tuple[str, ...] = ()
    like_first: bool = False
    transformed: bool = False
    carries_transforms: bool = False


#: Right-hand sides of a system with the matrix.
RHS = Role(
    "rhs",
    "path or URL of a Zarr array with as many rows as the matrix, of one or two dimensions, or a section with import: SOURCE",
    vector=True,
)


@dataclass(frozen=True)
class Kind:
    """A kind of job. The job file's parser and schema, its reference, the README, the report and the tests read it here.

    Parameters
    ----------
    name, title : str
        ``svd``; "Singular value decomposition", which heads its report.
    words : str
        A sentence on what it computes.
    arrays : str
        Names and shapes of the arrays of the result, as Markdown.
    options : type
        From the ``params`` of a job file, and the sections that only this kind has.
    plan, compute : callable
        From (inputs, options, facts) to a plan, and from (run, inputs, options, plan) to an outcome.
    example : str
        The shortest useful job file, in one line of YAML.
    roles : tuple of Role
    sections : tuple of str
        Fields of the options that stand beside the params, as sections of their own.
    rule : callable, optional
        From the roles that were given to what is wrong with them together, if anything is.
    dimensions : mapping of str to tuple of str
        What the first axes of arrays of the result go along: ``row`` or ``column`` of the first matrix, whose names they then
        have, ``component`` and the like.
    collective : bool
        Whether its workers wait for each other (allreduce): it then needs all of them at once, and runs alone on a cluster.
    """

    name: str
    title: str
    words: str
    arrays: str
    options: type[Options]
    plan: Callable[[Inputs, Any, ClusterFacts], Plan]
    compute: Callable[[Run, Inputs, Any, Plan], Outcome]
    example: str
    roles: tuple[Role, ...] = (Role("matrix"),)
    sections: tuple[str, ...] = ()
    rule: Callable[[Collection[str]], str | None] | None = None
    dimensions: Mapping[str, tuple[str, ...]] = field(default_factory=dict, hash=False)
    collective: bool = False

    def inputs(self, sources: Mapping[str, Any]) -> Inputs:
        """Arrays, paths or URLs by their roles, opened."""
        vectors = {role.name for role in self.roles if role.vector}
        return Inputs({role: open_matrix(source, vectors=role in vectors) for role, source in sources.items()})


def matrix_plan(plan: Callable[[Matrix, Any, ClusterFacts], Plan]) -> Callable[[Inputs, Any, ClusterFacts], Plan]:
    """The plan of a kind whose algorithm takes the one matrix itself."""
    return lambda inputs, options, facts: plan(inputs["matrix"], options, facts)


def matrix_compute(compute: Callable[[Run, Matrix, Any, Plan], Outcome]) -> Callable[[Run, Inputs, Any, Plan], Outcome]:
    """The computation of a kind whose algorithm takes the one matrix itself."""
    return lambda run, inputs, options, plan: compute(run, inputs["matrix"], options, plan)


class Here(NamedTuple):
    """What a kind computed in this process: its outcome, and all of its arrays."""

    outcome: Outcome
    arrays: dict[str, Array]


def run_here(kind: Kind, inputs: Inputs, options: Any) -> Here:
    """Plan and compute in this process, without files.

    Raises
    ------
    SpecError, InputError
        If the options do not suit the inputs, or these cannot be read.
    CertificateError
        If the answer fails its own check.
    """
    with planned_here(kind, inputs, options) as (run, plan):
        outcome = kind.compute(run, inputs, options, plan)
    outcome.certificate.require()
    for uri in inputs.inexact():
        warnings.warn(inexact_words(uri), InexactNote, stacklevel=4)
    return Here(outcome, outcome.arrays | run.outputs)


@contextmanager
def planned_here(kind: Kind, inputs: Inputs, options: Any) -> Iterator[tuple[Run, Plan]]:
    """A run on this process's threads, and a plan for it."""
    facts = describe_cluster("threads")
    plan = kind.plan(inputs, options, facts)
    with open_cluster(facts) as cluster:
        yield Run(cluster), plan
