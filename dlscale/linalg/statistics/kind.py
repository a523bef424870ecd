"""Norms of a matrix: those that entries tell, in one read, and those of its singular values.

The 2-norm of a matrix that is large both ways is the largest Ritz value of a block Krylov space, whose error is estimated.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, Field

from dlscale.arrays import Array
from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.declaration.options import Options
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import lay_out, lay_out_sparse, measured_rates
from dlscale.engine.passes import Passes
from dlscale.engine.passes.rows import Rows
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.linalg.scaling import at_safe_scale, scale_words
from dlscale.linalg.statistics.entries import measure_entries, measure_smallest
from dlscale.linalg.svd.exact import exact_svd
from dlscale.linalg.svd.finish import finish
from dlscale.linalg.svd.kind import SVDOptions, plan_svd, right_subspace
from dlscale.linalg.svd.triplets import LeftOutput, Triplets
from dlscale.storage.matrix import Matrix

Ord = Literal["fro", "1", "-1", "inf", "-inf", "max", "2", "-2", "nuc"]


def _as_word(value: object) -> object:
    """1 and .inf are numbers in YAML."""
    return f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else value


#: Those that singular values tell.
SPECTRAL = ("2", "-2", "nuc")
#: Those that are smallest sums.
_SMALLEST = ("-1", "-inf")
#: Up to so many rows or columns, whichever are fewer, all singular values are computed.
EXACT = 4096
#: Of the 2-norm of a larger matrix.
_KRYLOV = SVDOptions(n_components=1, method="krylov", power_iterations=8)
_EXACT = SVDOptions(method="exact")


@dataclass(frozen=True)
class NormOptions(Options):
    """Which norm."""

    ord: Annotated[
        Ord,
        BeforeValidator(_as_word, json_schema_input_type=Ord | float),
        Field(
            description="fro (root of the sum of squares), 1 or inf (largest sum of a column or row), -1 or -inf (smallest), max "
            "(largest entry), 2 or -2 (largest or smallest singular value) or nuc (their sum)"
        ),
    ] = "fro"


def plan_norm(A: Matrix, options: NormOptions, facts: ClusterFacts) -> Plan:
    """Plan a norm.

    Raises
    ------
    SpecError
        If all singular values of a matrix that is large both ways are asked for.
    DoesNotFitError
    """
    if options.ord in SPECTRAL:
        return _plan_spectral(A, options, facts)
    state_bytes = 8 * (A.shape[1] + 5)
    lay = lay_out_sparse if A.is_sparse else lay_out
    layout = lay(A, facts, state_bytes=state_bytes)
    return Plan(
        kind="norm",
        method="entries",
        words="sums of moduli and squares, one read",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        steps=(Step("entries", 6.0 * A.n_entries, A.n_stored_bytes),),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts, grid=layout.grid, sparse=True),
        notes=(*layout.notes, *A.notes),
    )


def _plan_spectral(A: Matrix, options: NormOptions, facts: ClusterFacts) -> Plan:
    plan = None
    if min(A.shape) <= EXACT:
        try:
            plan = plan_svd(A, _EXACT, facts)
        except DoesNotFitError:
            if options.ord != "2":
                raise
    elif options.ord != "2":
        raise SpecError(
            f"params.ord: {options.ord} takes all singular values, which are computed of matrices with at most {EXACT:,} rows or "
            f"columns; got {A.shape[0]} x {A.shape[1]}. Of larger ones there is ord: 2."
        )
    plan = plan or plan_svd(A, _KRYLOV, facts)
    # No singular vectors are written, nor is the sign of any decided.
    steps = tuple(replace(step, bytes_written=0) if step.id == "left" else step for step in plan.steps if step.id != "signs")
    return replace(plan, kind="norm", steps=steps)


def compute_norm(run: Run, A: Matrix, options: NormOptions, plan: Plan) -> Outcome:
    """Take a norm by a plan.

    Returns
    -------
    Outcome
        With ``norm`` (1,), in double precision and infinite where that is too small for it; ``s``, the singular values, where all
        were computed.

    Notes
    -----
    One read; two where squares of the entries, or smallest sums, are out of range. Singular values take 3 to 5.

    References
    ----------
    Blue (1978) for sums of squares at a safe scale; Musco and Musco (2015) for the Krylov space.
    """
    passes = Passes(run)
    if plan.method == "entries":
        if options.ord in _SMALLEST:
            measured, exponent = measure_smallest(passes, A, options.ord, grid=plan.rows)
        else:
            measured, exponent = at_safe_scale(passes, A, plan.rows, partial(measure_entries, grid=plan.rows))
        norm = _times_power(np.array([measured.norms[options.ord]]), exponent)
        return Outcome({"norm": norm}, (), measured.certificate, notes=scale_words(exponent))
    tall = A.T if plan.transposed else A
    found, exponent = at_safe_scale(passes, tall, plan.rows, partial(_triplets, plan=plan))
    s = found.s.astype(float)
    value = {"2": s[0], "-2": s[-1], "nuc": s.sum()}[options.ord]
    # What is multiplied back may be rounded to a multiple of the smallest number.
    least = float(np.finfo(float).smallest_subnormal) * (exponent < 0)
    error = _times_power(np.asarray(found.error.singular_values, float), exponent) + least
    off_by = {"2": error[0], "-2": error[-1], "nuc": error.sum()}[options.ord]
    arrays = {"norm": _times_power(np.array([value]), exponent)}
    if plan.method == "exact":
        arrays["s"] = _times_power(s, exponent)
    return Outcome(
        arrays,
        (),
        found.certificate,
        {"error": None if np.isnan(off_by) else float(off_by)},
        (*found.notes, *scale_words(exponent)),
    )


def _triplets(passes: Passes, tall: Matrix, *, plan: Plan) -> Triplets:
    left = LeftOutput(None, decides_sign=False)
    if plan.method == "exact":
        return exact_svd(passes, tall, plan.rows, left=left)
    rows = Rows(passes, tall, plan.rows)
    return finish(rows, right_subspace(rows, _KRYLOV), n_components=1, tolerance=None, seed=_KRYLOV.seed, left=left)


def _times_power(values: Array, exponent: int) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        return np.ldexp(values, exponent)


KIND = Kind(
    name="norm",
    title="Norm",
    words="A norm of a matrix: of its entries, in one read, or of its singular values.",
    arrays="`norm` (1); `s` where all singular values were computed",
    options=NormOptions,
    plan=matrix_plan(plan_norm),
    compute=matrix_compute(compute_norm),
    example="{kind: norm, input: {matrix: a.zarr}, params: {ord: fro}}",
)
