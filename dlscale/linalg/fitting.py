"""Transforms whose steps have parameters: the passes that fit them are part of a plan, and what they found of its result."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.declaration.kind import Kind
from dlscale.declaration.transforms import steps_of
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import lay_out, lay_out_sparse
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import InputError, SpecError
from dlscale.linalg.statistics.columns import ColumnStatistics, moments_of
from dlscale.linalg.statistics.quartiles import counts_bytes, digits_of, quartiles_of
from dlscale.storage.inputs import Inputs, StoredResult
from dlscale.storage.matrix import Matrix
from dlscale.storage.sparse.steps import Quartiles, Statistics, fits
from dlscale.storage.sparse.steps import Step as Transform
from dlscale.storage.sparse.transforms import Transformed, transformed

#: Where a plan has the grid of these passes, and a result their parameters.
_NAME = "transforms"


def plan_with_fits(kind: Kind, inputs: Inputs, options: Any, facts: ClusterFacts) -> Plan:
    """The plan of a kind, with the passes that fit the transforms of its inputs."""
    plan = kind.plan(inputs, options, facts)
    A = _to_fit(inputs.values())
    if A is None:
        return plan
    base, n = A.base, A.base.shape[1]
    found = list(fits(A.steps, n))
    state = max([8 * (6 * n + 4), *(counts_bytes(k, base.dtype) for what, k in found if what is Quartiles)])
    layout = (lay_out_sparse if base.is_sparse else lay_out)(base, facts, state_bytes=state, operand_bytes=8 * 6 * n)
    costs = [cost / n * base.n_entries for what, k in found for cost in _flops_per_row(what, k, base.dtype)]
    steps = [Step(f"{_NAME}-{i + 1}", cost, base.n_stored_bytes) for i, cost in enumerate(costs)]
    grid = {"block_rows": layout.grid.block_rows, "leaf_rows": layout.grid.leaf_rows}
    return replace(
        plan,
        steps=(*steps, *plan.steps),
        memory=max(plan.memory, layout.memory, key=lambda needs: sum(need.n_bytes for need in needs)),
        choices=plan.choices | {_NAME: grid},
    )


def compute_with_fits(kind: Kind, run: Run, inputs: Inputs, options: Any, plan: Plan) -> Outcome:
    """What a kind computes of inputs that are read as their transforms say, once these are fitted."""
    views = {role: A for role, A in inputs.items() if isinstance(A, Transformed)}
    if not views:
        return kind.compute(run, inputs, options, plan)
    # The first input is among them; the others have the same columns.
    first = fitted(Passes(run), next(iter(views.values())), plan)
    assert isinstance(first, Transformed)
    read = {role: Transformed(A.base, first.steps, first.parameters) for role, A in views.items()}
    outcome = kind.compute(run, Inputs({**inputs, **read}, inputs.results, inputs.signatures), options, plan)
    note = f"all of this, the certificate too, is about the matrix as it is transformed: {first.words}"
    return replace(outcome, arrays=outcome.arrays | _stored(first), notes=(*outcome.notes, note))


def fitted(passes: Passes, A: Matrix, plan: Plan) -> Matrix:
    """A matrix with the parameters of its transforms; A itself where there is nothing to fit."""
    if not isinstance(A, Transformed) or A.fitted:
        return A
    return Transformed(A.base, A.steps, _parameters(passes, A, plan))


def _parameters(passes: Passes, A: Transformed, plan: Plan) -> list[Array | None]:
    """The parameters of a matrix's steps, by the passes of a plan."""
    grid = RowGrid(A.shape[0], **plan.choices[_NAME])
    found: list[Array | None] = []
    known: dict[type[Statistics], Statistics] = {}
    numbers = itertools.count(1)
    for i, step in enumerate(A.steps):
        if step.parameter and step.statistics not in known:
            before = transformed(A.base, A.steps[:i], found)
            n_reads = len(_flops_per_row(step.statistics, before.shape[1], before.dtype))
            names = [f"{_NAME}-{next(numbers)}" for _ in range(n_reads)]
            known[step.statistics] = _statistics(step.statistics, passes, before, grid, names)
        parameter = step.fit(known[step.statistics]) if step.parameter else None
        later = {what: step.after(columns, parameter) for what, columns in known.items()}
        known = {what: columns for what, columns in later.items() if columns is not None}
        found.append(parameter)
    return found


def _statistics(what: type[Statistics], passes: Passes, A: Matrix, grid: RowGrid, names: Sequence[str]) -> Statistics:
    if what is Quartiles:
        return quartiles_of(passes, A, grid, names)
    return moments_of(passes.sweep(names[0], A, ColumnStatistics(A.shape[1]), grid))


def _flops_per_row(what: type[Statistics], n: int, dtype: np.dtype[Any]) -> list[float]:
    """Of each read that finds out what a step is fitted to."""
    if what is Quartiles:
        return [8.0 * n * (1 if k == 0 else 3) for k in range(len(digits_of(n, dtype)))]
    return [ColumnStatistics(n).flops_per_row]


def transforms_of(result: StoredResult, A: Matrix) -> Matrix:
    """New rows, read as those were that a result is about.

    Raises
    ------
    SpecError
        If they have another number of columns.
    InputError
        If the result has lost a parameter.
    """
    try:
        steps = steps_of(_spec_of(result))
        told = (result.attributes.get("plan") or {}).get("matrix") or {}
        made_of = int((told.get("source_shape") or told.get("shape") or [0, A.shape[1]])[1])
    except (TypeError, ValueError, AttributeError, LookupError) as error:  # whatever stands in the place of the spec
        raise InputError(f"{result.uri} does not say how its rows were transformed ({error}); run its job anew.") from error
    if steps and made_of != A.shape[1]:
        raise InputError(f"must have {made_of} columns, like the rows that {result.uri} was made of; got {A.shape[1]}.")
    n, parameters = A.shape[1], []
    for i, step in enumerate(steps):
        parameters.append(_read(result, i, step, n) if step.parameter else None)
        n = step.n_columns(n)
    return transformed(A, steps, parameters)


def _read(result: StoredResult, i: int, step: Transform, n: int) -> Array:
    """The parameter of a step that meets n columns (InputError if it is none)."""
    name = _name(i, step.parameter)
    parameter = result.read(name)
    chosen = step.parameter == "columns"
    sound = parameter.shape == (step.n_columns(n),) and parameter.dtype.kind in ("iu" if chosen else "f")
    if not sound or not np.isfinite(parameter).all() or (chosen and not (parameter.min() >= 0 and parameter.max() < n)):
        raise InputError(f"{result.uri}/{name} is not what its job wrote; run it anew.")
    return parameter


def require_same(result: StoredResult, given: Sequence[Any]) -> None:
    """Refuse steps other than those that a result was made with (SpecError); none are those."""
    if given and list(given) != steps_of(_spec_of(result)):
        raise SpecError("are those that the model was made with, and applied by themselves; leave them out.")


def _spec_of(result: StoredResult) -> list[Mapping[str, Any]]:
    spec = result.attributes.get("spec") or {}
    return list((spec.get("input") or {}).get("transforms") or [])


def _to_fit(matrices: Iterable[Matrix]) -> Transformed | None:
    """The first matrix whose transforms are not fitted."""
    return next((A for A in matrices if isinstance(A, Transformed) and not A.fitted), None)


def fitted_by(A: Matrix, arrays: Mapping[str, Array]) -> Matrix:
    """A matrix with the parameters of its transforms, which are among the arrays of an outcome."""
    if not isinstance(A, Transformed) or A.fitted:
        return A
    found = [arrays[_name(i, step.parameter)] if step.parameter else None for i, step in enumerate(A.steps)]
    return Transformed(A.base, A.steps, found)


def _stored(A: Transformed) -> dict[str, Array]:
    pairs = enumerate(zip(A.steps, A.parameters, strict=True))
    return {_name(i, step.parameter): found for i, (step, found) in pairs if step.parameter}


def _name(i: int, parameter: str) -> str:
    return f"{_NAME}/{i + 1}-{parameter}"
