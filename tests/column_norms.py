"""A trial kind, as a developer would add it: the Euclidean norm of each column, in one pass. Here is all that is written for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, Check
from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.declaration.options import Options
from dlscale.declaration.sections import BlockRows
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import lay_out, measured_rates
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.storage.matrix import Matrix


@dataclass(frozen=True)
class ColumnNormsOptions(Options):
    """How to measure columns."""

    block_rows: BlockRows = None


@dataclass(frozen=True)
class Squares(Fold):
    """``sum_i |a_ij|^2`` of each column j, and their sum taken in the other order."""

    n: int

    @property
    def flops_per_row(self) -> float:
        return 4.0 * self.n

    def start(self) -> State:
        return {"squares": np.zeros(self.n), "total": np.zeros(1)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        squares = np.abs(A.astype(np.result_type(A.dtype, np.float64))) ** 2
        state["squares"] += squares.sum(axis=0)
        state["total"] += squares.sum(axis=1).sum()
        return ()


def plan_column_norms(A: Matrix, options: ColumnNormsOptions, facts: ClusterFacts) -> Plan:
    """Plan the norms: one read."""
    (m, n), layout = A.shape, lay_out(A, facts, state_bytes=8 * A.shape[1], block_rows=options.block_rows)
    return Plan(
        kind="column_norms",
        method="one-read",
        words="sums of squares, one read",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        steps=(Step("squares", 4.0 * m * n, A.n_stored_bytes),),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=(*layout.notes, *A.notes),
    )


def compute_column_norms(run: Run, A: Matrix, options: ColumnNormsOptions, plan: Plan) -> Outcome:
    """The norms by the plan, as ``norms`` (n,)."""
    state = Passes(run).sweep("squares", A, Squares(A.shape[1]), plan.rows)
    total = float(state["total"][0])
    difference = abs(float(state["squares"].sum()) - total) / (total * np.finfo(float).eps or 1.0)
    check = Check("|sum of the squares by columns - by rows| / (sum eps)", difference, 1e4, "the columns hold what the rows do")
    return Outcome({"norms": np.sqrt(state["squares"])}, (), Certificate((check,)))


KIND = Kind(
    name="column_norms",
    title="Norms of columns",
    words="The Euclidean norm of each column.",
    arrays="`norms` (n)",
    options=ColumnNormsOptions,
    plan=matrix_plan(plan_column_norms),
    compute=matrix_compute(compute_column_norms),
    example="{kind: column_norms, input: {matrix: a.zarr}}",
)
