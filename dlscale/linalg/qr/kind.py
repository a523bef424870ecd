"""QR of a matrix of any shape: tall ones by passes over their rows, the others by panels of their columns.

A panel is one block of columns (`panels`), or, where it is too tall for one worker, cut in row blocks (`row_blocks`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from dlscale.declaration.kind import Kind, Role
from dlscale.declaration.sections import Planned
from dlscale.engine.clusters.facts import ClusterFacts
from dlscale.engine.plan import Plan
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.engine.tiles.grid import Ways
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.linalg.panels.plan import FactorOptions, require_dense
from dlscale.linalg.qr import pivoted
from dlscale.linalg.qr import tall as tall_qr
from dlscale.linalg.qr.panels import QRSteps, WholeQR, compute_panel_qr, plan_panel_qr
from dlscale.linalg.qr.row_blocks import TiledQR
from dlscale.linalg.qr.update import is_cholesky, with_rows
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import Matrix

Mode = Literal["reduced", "r", "raw"]

WAYS: Ways[QRSteps] = Ways(WholeQR(), TiledQR())

#: Rows to columns from which on, and columns up to which, a matrix goes to the passes by itself.
TALL = 4
MAX_TALL_COLUMNS = 8192


@dataclass(frozen=True)
class QROptions(FactorOptions):
    """What to compute.

    Notes
    -----
    ``reduced``: Q (m, k) and R (k, n), k = min(m, n), the diagonal of R real and not negative; ``raw``: the reflectors and R in
    one array ``qr`` (m, n), and ``t`` (b, k), as LAPACK's ``geqrt`` with blocks of the panel's width. Asking for ``panel`` or
    ``row_blocks`` means that a tall matrix is factored by panels too.
    """

    mode: Annotated[Mode, Field(description="reduced (Q and R), r (R alone) or raw (reflectors, as LAPACK stores them)")] = (
        "reduced"
    )
    pivoting: Annotated[
        bool, Field(description="true or false: whether columns are exchanged so that R tells the rank; in memory if not tall")
    ] = False
    block_rows: Annotated[
        Planned,
        Field(description="an integer of at least 1, or auto: rows of a block of a tall matrix; the planner chooses when absent"),
    ] = None

    def check(self) -> None:
        """Check what does not depend on the matrix (SpecError)."""
        if self.block_rows and (self.by_panels or self.mode == "raw"):
            raise SpecError(
                "params.block_rows is for tall matrices that go by passes; leave it out, or panel, row_blocks and mode: raw."
            )

        if self.pivoting and (self.by_panels or self.mode == "raw"):
            raise SpecError("params.pivoting: goes with mode reduced or r, and without panel and row_blocks.")

    @property
    def by_panels(self) -> bool:
        return self.panel is not None or self.row_blocks is not None


def plan_qr(A: Matrix, options: QROptions, facts: ClusterFacts) -> Plan:
    """Plan a QR factorization.

    Raises
    ------
    SpecError, DoesNotFitError
    """
    options.check()
    require_dense(A, "the QR factors", "take its leading singular vectors (kind svd), or solve with it (kind lstsq)")
    m, n = A.shape
    if options.mode != "raw" and not options.by_panels and m >= TALL * n and (n <= MAX_TALL_COLUMNS or options.block_rows):
        try:
            return tall_qr.plan_tall_qr(A, _by_passes(options), facts)
        except DoesNotFitError:
            if options.block_rows:
                raise
    if options.block_rows:
        raise SpecError(f"params.block_rows is for matrices with {TALL} times more rows than columns; got {m} x {n}.")
    if options.pivoting:
        return pivoted.plan_pivoted(A, options.mode, facts)
    return plan_panel_qr(A, options, options.mode, facts, WAYS)


def plan_with_rows(inputs: Inputs, options: QROptions, facts: ClusterFacts) -> Plan:
    """Plan the factorization of a matrix, or the triangle of one that was factored with more rows.

    Raises
    ------
    SpecError, InputError, DoesNotFitError
    """
    A, factors = inputs["matrix"], inputs.results.get("factors")
    if factors is None:
        return plan_qr(A, options, facts)
    options.check()
    if options.mode != "r" or options.pivoting or options.by_panels:
        raise SpecError(
            "params: with input.factors must be mode: r, without pivoting, panel and row_blocks: the triangle has no room for more."
        )
    plan = tall_qr.plan_tall_qr(with_rows(factors, A), _by_passes(options), facts)
    return replace(plan, words=f"the triangle of {factors.uri} and {A.shape[0]} more rows: {plan.words}")


def compute_with_rows(run: Run, inputs: Inputs, options: QROptions, plan: Plan) -> Outcome:
    """Compute by the plan; of a Cholesky factor with more rows, ``l``."""
    A, factors = inputs["matrix"], inputs.results.get("factors")
    if factors is None:
        return compute_qr(run, A, options, plan)
    outcome = tall_qr.compute_tall_qr(run, with_rows(factors, A), _by_passes(options), plan)
    if is_cholesky(factors):
        return replace(outcome, arrays={"l": np.ascontiguousarray(outcome.arrays["r"].conj().T)})
    return outcome


def compute_qr(run: Run, A: Matrix, options: QROptions, plan: Plan) -> Outcome:
    """Compute by the plan (`tall.compute_tall_qr`, `panels.compute_panel_qr`, `pivoted.compute_pivoted`)."""
    if plan.method == "pivoted":
        return pivoted.compute_pivoted(run, A, options.mode, plan)
    if plan.method == "panels":
        return compute_panel_qr(run, A, options.mode, plan, WAYS.of(plan.panels))
    return tall_qr.compute_tall_qr(run, A, _by_passes(options), plan)


def _by_passes(options: QROptions) -> tall_qr.TallQROptions:
    mode: tall_qr.Mode = "r" if options.mode == "r" else "reduced"
    return tall_qr.TallQROptions(mode=mode, pivoting=options.pivoting, block_rows=options.block_rows)


KIND = Kind(
    name="qr",
    title="QR factorization",
    words="QR factorization: A = Q R.",
    arrays="`q` (m, k), `r` (k, n), k = min(m, n), with pivoting `p` (n); `l` where `factors` are of cholesky; mode raw: `qr`, `t`",
    options=QROptions,
    plan=plan_with_rows,
    compute=compute_with_rows,
    example="{kind: qr, input: {matrix: a.zarr}, params: {mode: r}}",
    roles=(
        Role("matrix"),
        Role(
            "factors",
            "path of the result of a qr or cholesky job, to whose triangle the rows of the matrix are added (mode: r)",
            optional=True,
            result_of=("qr", "cholesky"),
        ),
    ),
)
