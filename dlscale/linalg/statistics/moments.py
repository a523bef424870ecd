"""Kind ``statistics``: what is told of each column of a matrix, or of each row, in one read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.certificates import Certificate, scaled
from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.declaration.options import Options
from dlscale.declaration.sections import BlockRows
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import lay_out, lay_out_sparse, measured_rates
from dlscale.engine.passes import Passes, State
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import SpecError
from dlscale.linalg.statistics.columns import NAMES, ColumnStatistics, RowStatistics, sums_of, told_of
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class StatisticsOptions(Options):
    """What to tell."""

    of: Annotated[Literal["columns", "rows"], Field(description="columns or rows: what each number is told of")] = "columns"
    block_rows: BlockRows = None


def plan_statistics(A: Matrix, options: StatisticsOptions, facts: ClusterFacts) -> Plan:
    """Plan statistics: one read.

    Raises
    ------
    SpecError
        If the matrix is complex.
    DoesNotFitError
    """
    m, n = A.shape
    if A.dtype.kind == "c":
        raise SpecError("input.matrix: statistics are of real matrices; this one is complex.")
    state_bytes = 8 * ((len(NAMES) + 1) * (n if options.of == "columns" else 1) + 8)
    lay = lay_out_sparse if A.is_sparse else lay_out
    layout = lay(A, facts, state_bytes=state_bytes, operand_bytes=8 * 4 * n, block_rows=options.block_rows)
    written = 0 if options.of == "columns" else 8 * len(NAMES) * m
    return Plan(
        kind="statistics",
        method=options.of,
        words=f"moments and extremes of {options.of}, one read",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        steps=(Step("statistics", ColumnStatistics(n).flops_per_row / n * A.n_entries, A.n_stored_bytes, written),),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts, grid=layout.grid, sparse=True),
        notes=(*layout.notes, *A.notes),
    )


def compute_statistics(run: Run, A: Matrix, options: StatisticsOptions, plan: Plan) -> Outcome:
    """Tell means, variances (divided by one less than the numbers that they are of), nonzeros and extremes, in double precision.

    Returns
    -------
    Outcome
        With ``columns/mean``, ``variance``, ``nonzeros``, ``smallest``, ``largest`` (n,), or ``rows/mean`` ... (m, 1).

    Raises
    ------
    NonFiniteError
    NumericalError
        If a variance is out of the range of double precision.

    Notes
    -----
    One read.
    """
    passes, (m, n) = Passes(run), A.shape
    if options.of == "rows":
        return _of_rows(passes, A, plan)
    found = passes.sweep("statistics", A, ColumnStatistics(n), plan.rows)
    arrays = dict(zip(_named("columns"), told_of(found, m, "column"), strict=True))
    return Outcome(arrays, (), _checks(found, *sums_of(found, m), A))


def _of_rows(passes: Passes, A: Matrix, plan: Plan) -> Outcome:
    m, n = A.shape
    names = _named("rows")
    outputs = [passes.run.output(name, (m, 1), np.dtype(float), plan.rows) for name in names]
    found = passes.sweep("statistics", A, RowStatistics(n), plan.rows, outputs=outputs)
    return Outcome({}, names, _checks(found, float(found["of_rows"][0]), float(found["squares_of_rows"][0]), A))


def _named(of: str) -> tuple[str, ...]:
    """What is published for each of `NAMES`."""
    return tuple(f"{of}/{name.replace('squares', 'variance')}" for name in NAMES)


def _checks(found: State, total: float, squares: float, A: Matrix) -> Certificate:
    """That what is told adds up to what was summed the other way."""
    size, wide = max(A.shape), np.dtype(float)
    sums: list[Any] = []
    for name, measured, told, beside in (
        ("entries", float(found["entries"][0]), total, float(found["moduli"][0])),
        ("squares", float(found["all_squares"][0]), squares, float(found["all_squares"][0])),
    ):
        sums.append(
            scaled(
                f"|sum of {name} - what the statistics make of it| / (sum of moduli max(m, n) eps)",
                abs(measured - told),
                beside,
                size=size,
                dtype=wide,
                meaning=f"summed along the other side of the matrix, the {name} come to what these means and variances say",
            )
        )
    return Certificate(tuple(sums))


KIND = Kind(
    name="statistics",
    title="Statistics",
    words="Mean, variance, extremes and nonzeros of each column, or of each row.",
    arrays="`columns/...` (n) or `rows/...` (m, 1): `mean`, `variance`, `nonzeros`, `smallest`, `largest`",
    options=StatisticsOptions,
    plan=matrix_plan(plan_statistics),
    compute=matrix_compute(compute_statistics),
    dimensions={name: (of[:-1],) for of in ("columns", "rows") for name in _named(of)},
    example="{kind: statistics, input: {matrix: a.zarr}}",
)
