"""The polar decomposition, A = U P: the nearest matrix with orthonormal columns, and what is left of A beside it."""

from __future__ import annotations

from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.plan import Plan
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError
from dlscale.linalg.panels.plan import require_dense
from dlscale.linalg.polar.by_panels import compute_newton, plan_newton
from dlscale.linalg.polar.direct import compute_direct, plan_direct
from dlscale.linalg.polar.options import PolarOptions
from dlscale.storage.matrix import Matrix

#: What takes no longer is left to LAPACK.
QUICK_SECONDS = 10.0


def plan_polar(A: Matrix, options: PolarOptions, facts: ClusterFacts) -> Plan:
    """Plan a polar decomposition.

    Raises
    ------
    SpecError
        If an option does not suit the matrix.
    DoesNotFitError
    """
    options.check(A.shape)
    require_dense(A, "the polar factor", "take its leading singular vectors (kind svd)")
    direct = None
    if options.method == "direct" or (options.method == "auto" and options.panel is None):
        try:
            direct = plan_direct(A, options, facts)
        except DoesNotFitError:
            if options.method == "direct":
                raise
    if direct is not None and (options.method == "direct" or direct.nominal_seconds <= QUICK_SECONDS):
        return direct
    try:
        newton = plan_newton(A, options, facts)
    except DoesNotFitError:
        if direct is None:
            raise
        return direct
    return newton if direct is None or newton.nominal_seconds < direct.nominal_seconds else direct


def compute_polar(run: Run, A: Matrix, options: PolarOptions, plan: Plan) -> Outcome:
    """Compute by the plan (`direct.compute_direct`, `by_panels.compute_newton`)."""
    compute = compute_direct if plan.method == "direct" else compute_newton
    return compute(run, A, options, plan)


KIND = Kind(
    name="polar",
    title="Polar decomposition",
    words="Polar decomposition: A = U P with orthonormal U, the nearest such matrix, and P Hermitian positive semidefinite.",
    arrays="`u` (m, n), mode both: `p` (n, n), or (m, m) with `A = P U`",
    options=PolarOptions,
    plan=matrix_plan(plan_polar),
    compute=matrix_compute(compute_polar),
    dimensions={"u": ("row", "column")},
    example="{kind: polar, input: {matrix: a.zarr}}",
)
