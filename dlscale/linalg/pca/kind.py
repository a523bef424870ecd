"""Principal component analysis: the SVD of the centred matrix, A - 1 mean = U S V^H.

The mean is never subtracted in storage: blocks are centred as they are read.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from dlscale.arrays import Array
from dlscale.certificates import Certificate
from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.declaration.options import Options
from dlscale.declaration.sections import BlockRows, Positive, Seed
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import bytes_of, lay_out, measured_rates
from dlscale.engine.passes import Passes, State
from dlscale.engine.passes.rows import Rows
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.kernels import accumulator_dtype, one_blas_thread
from dlscale.lapack import largest_eigenpairs
from dlscale.linalg.folds.centering import Centered, ColumnMeans, RowMeans, less_mean, mean_check, row_weights
from dlscale.linalg.folds.products import Gram
from dlscale.linalg.pca.covariance import UNRESOLVED, Covariance, resolves
from dlscale.linalg.pca.dimension import most_likely_dimension
from dlscale.linalg.pca.principal import Principal
from dlscale.linalg.scaling import at_safe_scale
from dlscale.linalg.svd import SVDOptions, plan_svd
from dlscale.linalg.svd.exact import exact_svd
from dlscale.linalg.svd.finish import finish
from dlscale.linalg.svd.kind import Oversampling, PowerIterations, orient, right_subspace
from dlscale.linalg.svd.subspace import gaussian
from dlscale.linalg.svd.triplets import LeftOutput, Triplets
from dlscale.storage.matrix import Dense, Matrix
from dlscale.storage.scaled import Scaled

Solver = Literal["auto", "covariance", "randomized", "krylov", "full"]
#: How much longer than the randomized solver the exact one may take and still be chosen.
EXACT_IS_WORTH = 2.0


@dataclass(frozen=True)
class PCAOptions(Options):
    """What to compute: k components, the fewest that explain more than a fraction of the variance, the most likely k, or all.

    Notes
    -----
    ``covariance``: eigenvectors of the n x n covariance matrix, one read; ``randomized``: q + 1 reads; ``krylov``: the same reads,
    with a block Krylov space, which takes more memory and is more accurate; ``full``: the exact SVD;
    ``auto``: the covariance matrix, unless the randomized solver is faster by a second or more, and the exact SVD where variances
    are asked for that a covariance matrix does not resolve. `dlscale.linalg.pca.dimension` says what ``mle`` means;
    ``oversampling``, ``power_iterations`` and ``tolerance`` are those of the randomized solvers (`SVDOptions`).
    """

    n_components: Annotated[
        Positive | Annotated[float, Field(gt=0, lt=1)] | Literal["mle"] | None,
        Field(description="an integer of at least 1, a fraction of the variance between 0 and 1, or mle"),
    ] = None
    solver: Annotated[Solver, Field(description="auto, covariance, randomized, krylov or full")] = "auto"
    whiten: Annotated[bool, Field(description="true or false: scores with unit variance")] = False
    scores: Annotated[bool, Field(description="true or false: also write the scores (m, k)")] = False
    oversampling: Oversampling = 10
    power_iterations: PowerIterations = 4
    tolerance: Annotated[float | None, Field(gt=0, lt=1, description="a number between 0 and 1: stop at this relative error")] = (
        None
    )
    seed: Seed = 0
    block_rows: BlockRows = None

    @property
    def fraction(self) -> float | None:
        """The fraction of variance asked for, if it is one."""
        return self.n_components if isinstance(self.n_components, float) else None

    def svd(self) -> SVDOptions:
        """The options of the randomized solver."""
        return SVDOptions(
            n_components=self.n_components if isinstance(self.n_components, int) else None,
            tolerance=self.tolerance,
            oversampling=self.oversampling,
            power_iterations=self.power_iterations,
            method="krylov" if self.solver == "krylov" else "randomized",
            seed=self.seed,
            block_rows=self.block_rows,
        )

    def check(self, shape: tuple[int, int]) -> None:
        """Check the options against the matrix.

        Raises
        ------
        SpecError
            Naming the parameter, what it may be and what was got.
        """
        most, k = min(shape), self.n_components
        if shape[0] < 2:
            raise SpecError(f"input.matrix: must have at least 2 rows for a PCA; got {shape[0]} x {shape[1]}.")
        if k == "mle" and shape[0] < shape[1]:
            raise SpecError(f"params.n_components mle needs as many rows as columns; the matrix is {shape[0]} x {shape[1]}.")
        if isinstance(k, int) and k > most:
            raise SpecError(f"params.n_components must be between 1 and {most} for a {shape[0]} x {shape[1]} matrix; got {k}.")
        if self.tolerance is not None and self.n_components is not None:
            raise SpecError("params must not hold both n_components and tolerance.")
        if self.solver in ("randomized", "krylov"):
            if self.fraction is not None or k == "mle" or (k is None and self.tolerance is None):
                raise SpecError(f"params.solver {self.solver} needs a whole number of n_components, or a tolerance.")
            self.svd().check(shape)


def plan_pca(A: Matrix, options: PCAOptions, facts: ClusterFacts) -> Plan:
    """Plan a PCA: choose the solver by what was asked, by memory and by expected time.

    Raises
    ------
    SpecError
        If an option does not suit the matrix.
    DoesNotFitError
        If a worker's memory does not hold what the solver needs.
    """
    options.check(A.shape)
    if options.n_components == "mle" and A.dtype.kind == "c":
        raise SpecError("params.n_components mle is known for real matrices; this one is complex.")
    if options.solver != "auto":
        return _PLANS[options.solver](A, options, facts)
    plans, reasons, unsuited = [], [], []
    for solver in ("covariance", "randomized"):
        try:
            options_solver = replace(options, solver=solver)
            options_solver.check(A.shape)
            plans.append(_PLANS[solver](A, options_solver, facts))
        except DoesNotFitError as error:
            reasons.append(f"{solver}: {error}")
        except SpecError as error:
            # A fraction of the variance is not for the randomized solver.
            unsuited.append(str(error))
    if not plans:
        raise DoesNotFitError(" ".join([*reasons, *unsuited]))
    worth = {"covariance": 1 / EXACT_IS_WORTH, "full": 1 / EXACT_IS_WORTH, "randomized": 1.0}
    best = min(plans, key=lambda plan: plan.nominal_seconds * worth[plan.method])
    return replace(best, notes=(*best.notes, *reasons))


def _plan_covariance(A: Matrix, options: PCAOptions, facts: ClusterFacts, solver: str = "covariance") -> Plan:
    tall, transposed = orient(A)
    if transposed:
        solver = "full"  # which is what is computed there, whatever was asked
    m, n = tall.shape
    item, read = A.dtype.itemsize, A.n_stored_bytes
    layout = lay_out(
        tall,
        facts,
        state_bytes=bytes_of(n, n, dtype=accumulator_dtype(A.dtype)),
        operand_bytes=3 * n * n * item,
        block_factor=3.5 if solver == "covariance" else 5.0,
        block_rows=options.block_rows,
    )
    k = options.n_components if isinstance(options.n_components, int) else n
    long_output = transposed or options.scores
    # The columns of a wide matrix are centred by its rows, so that its Gram matrix is singular: one more round finds a basis.
    n_rounds = 2 if transposed else 1 if solver == "full" else 0
    costs = [Step("means", 2.0 * m * n, read)] if transposed else []
    # Of compressed rows what is stored is multiplied, with all else that its row holds.
    sparse = solver == "covariance" and tall.is_sparse
    costs.append(Step("covariance", float(tall.n_entries if sparse else m * n) * n, read))
    costs += [Step(f"basis-round-{i + 2}", 2.0 * m * n * n, read) for i in range(n_rounds)]
    if transposed:
        costs.append(Step("signs", 2.0 * m * n * k, read))
    if long_output or n_rounds:
        entries = tall.n_entries if sparse else m * n
        costs.append(Step("left", entries * (2.0 * k + (n if n_rounds else 0)), read, m * k * item if long_output else 0))
    rates = measured_rates(tall, facts, grid=layout.grid, sparse=sparse)
    words = {
        "covariance": "eigenvectors of the covariance matrix, summed in one read",
        "full": "exact SVD of the centred matrix (Cholesky QR, or TSQR where the condition asks for it)",
    }
    notes = (*layout.notes, *A.notes, *(["passes go over the columns: the matrix is wide"] if transposed else []))
    return Plan(
        kind="pca",
        method=solver,
        words=f"{solver} PCA: {words[solver]}",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        transposed=transposed,
        steps=(*costs, Step("eigenvectors", 9.0 * n**3, where="driver")),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=rates,
        notes=notes,
    )


def _plan_full(A: Matrix, options: PCAOptions, facts: ClusterFacts) -> Plan:
    return _plan_covariance(A, options, facts, solver="full")


def _plan_randomized(A: Matrix, options: PCAOptions, facts: ClusterFacts) -> Plan:
    svd = options.svd()
    # Of a transposed matrix each row is centred by its own mean, for which it is read densely.
    plan = plan_svd(Dense(A) if orient(A, width=svd.most_columns)[1] else A, svd, facts)
    # Signs are those of the components, which are at hand unless the matrix is wide.
    steps = tuple(step for step in plan.steps if step.id != "signs")
    if plan.transposed or options.power_iterations == 0:
        steps = (Step("means", 2.0 * A.n_entries, A.n_stored_bytes), *steps)
    return replace(plan, kind="pca", method="randomized", words=f"randomized PCA: {plan.words}", steps=steps)


_PLANS = {"covariance": _plan_covariance, "full": _plan_full, "randomized": _plan_randomized, "krylov": _plan_randomized}


def compute_pca(run: Run, A: Matrix, options: PCAOptions, plan: Plan) -> Outcome:
    """Compute a PCA by its plan.

    Parameters
    ----------
    run : Run
        ``scores`` (m, k) go to its outputs if they are asked for, and ``components`` (k, n) of a wide matrix.
    A : Matrix (m, n)
    options : PCAOptions
    plan : Plan
        From `plan_pca`.

    Returns
    -------
    Outcome
        With ``components`` (k, n), ``explained_variance``, ``explained_variance_ratio``, ``singular_values`` (k),
        ``mean`` (n), ``noise_variance`` (1).
    """
    return principal_components(Passes(run), A, options, plan).outcome()


def principal_components(passes: Passes, A: Matrix, options: PCAOptions, plan: Plan) -> Principal:
    """What `compute_pca` finds, before it is rounded to the dtype of A."""
    tall = A.T if plan.transposed else A
    compute = partial(_decompose, options=options, plan=plan, n_rows=A.shape[0])
    (found, center), exponent = at_safe_scale(passes, tall, plan.rows, compute)
    return Principal(found, center, exponent, A.shape[0], options.whiten, options.scores, plan.transposed, A.dtype)


def _decompose(passes: Passes, tall: Matrix, *, options: PCAOptions, plan: Plan, n_rows: int) -> tuple[Triplets, Array]:
    """The SVD of the centred matrix, and its mean, which is measured twice."""
    left = _left_output(options, plan, n_rows, -tall.exponent if isinstance(tall, Scaled) else 0)
    if plan.transposed:
        weights = row_weights(0, tall.shape[0]).astype(np.dtype(tall.dtype.char.lower()))
        means = passes.sweep("means", tall, RowMeans(tall.dtype), plan.rows)
        mean, measured = means["mean"], means["met"]
        tall, probe = Centered(tall, None), None
    else:
        weights = probe = np.ascontiguousarray(gaussian(tall.shape[1], 1, 3_000_003, tall.dtype)[:, 0].astype(tall.dtype))
    if plan.method == "randomized":
        found, means = _randomized(passes, tall, options, plan, left, probe)
    else:
        found, means = _exact(passes, tall, options, plan, left, probe)
    if probe is not None:
        mean, measured = means["mean"], means["met"] / n_rows
    spread = math.sqrt(found.squares / n_rows)
    check = mean_check(measured.sum(), weights, mean.astype(tall.dtype), spread, tall.dtype)
    return replace(found, certificate=Certificate((*found.certificate.checks, check))), mean


def _left_output(options: PCAOptions, plan: Plan, n_rows: int, exponent: int) -> LeftOutput:
    """What is tall: the scores, or the components of a wide matrix. Signs are those of the components."""
    if plan.transposed:
        return LeftOutput("components", transposed=True, decides_sign=True)
    name = "scores" if options.scores else None
    if options.whiten:
        return LeftOutput(name, factor=math.sqrt(n_rows - 1), decides_sign=False)
    return LeftOutput(name, times_s=True, exponent=exponent, decides_sign=False)


def _randomized(
    passes: Passes, tall: Matrix, options: PCAOptions, plan: Plan, left: LeftOutput, probe: Array | None
) -> tuple[Triplets, State]:
    """By the randomized solver; with a probe, the mean is found on the way and met on it."""
    svd, means = options.svd(), State()
    if probe is not None and svd.n_iterations == 0:
        means = passes.sweep("means", tall, ColumnMeans(tall.shape[1], tall.dtype, probe), plan.rows)
        tall, probe = less_mean(tall, means), None
    rows = Rows(passes, tall, plan.rows)
    space = right_subspace(rows, svd, probe=probe)
    if probe is not None:
        means = space.means
        rows = replace(rows, A=less_mean(tall, means, space.squares))
    found = finish(rows, space, n_components=svd.n_components, tolerance=svd.tolerance, seed=svd.seed, left=left)
    return found, means


def _exact(
    passes: Passes, tall: Matrix, options: PCAOptions, plan: Plan, left: LeftOutput, probe: Array | None
) -> tuple[Triplets, State]:
    """From ``A_c^H A_c`` to triplets: by its eigenvectors, or, where these are too few digits, by an exact SVD."""
    n, dtype = tall.shape[1], tall.dtype
    fold = Gram(n, dtype, center=probe is not None, probe=probe)
    state = passes.sweep("covariance", tall, fold, plan.rows)
    gram = fold.matrix(state)
    if probe is not None:
        tall = less_mean(tall, state, float(np.trace(gram).real))
    count = partial(_count, options, tall)
    if options.solver == "full" or probe is None:
        return exact_svd(passes, tall, plan.rows, n_components=lambda s: count(s**2), left=left, gram=gram), state
    wanted = options.n_components
    # One more than is kept, which bounds what is left out.
    n_pairs = min(n, wanted + 1) if isinstance(wanted, int) else n
    with one_blas_thread():
        values, vectors = largest_eigenpairs(gram, n_pairs)
    products = accumulator_dtype(dtype) if tall.is_sparse else dtype
    covariance = Covariance(gram, probe, state["probed"], values, vectors, products)
    k = count(covariance.values)
    # The likelihood of a dimension depends on all variances.
    decisive = min(n, tall.shape[0] - 1) if wanted == "mle" else k
    if options.solver == "covariance" or resolves(covariance.values, decisive, products):
        return covariance.triplets(passes, tall, plan.rows, n_components=k, left=left), state
    found = exact_svd(passes, tall, plan.rows, n_components=lambda s: count(s**2), left=left, gram=gram)
    return replace(found, notes=(*found.notes, f"{UNRESOLVED}: exact SVD instead")), state


def _count(options: PCAOptions, tall: Matrix, values: Array) -> int:
    """How many components: the number asked for, the most likely one, those that explain the fraction asked for, or all."""
    most, k = min(tall.shape), options.n_components
    if k == "mle":
        return most_likely_dimension(values, tall.shape[0])
    if options.fraction is not None:
        explained = np.cumsum(values) / max(float(values.sum()), np.finfo(float).tiny)
        # A fraction that a PCA itself reported is reached to rounding; then one more is kept, as scikit-learn does.
        reached = explained <= options.fraction + 4 * len(values) * float(np.finfo(tall.dtype).eps)
        return min(most, int(reached.sum()) + 1)
    if options.tolerance is not None:
        return max(1, int((np.sqrt(values) > options.tolerance * np.sqrt(values[0])).sum()))
    return most if k is None else int(k)


KIND = Kind(
    name="pca",
    title="Principal component analysis",
    words="Principal component analysis.",
    arrays="`components` (k, n), `explained_variance`, `explained_variance_ratio`, `singular_values` (k), "
    "`mean` (n), `noise_variance`, `scores` (m, k) on request",
    options=PCAOptions,
    plan=matrix_plan(plan_pca),
    compute=matrix_compute(compute_pca),
    dimensions={
        "components": ("component", "column"),
        "explained_variance": ("component",),
        "explained_variance_ratio": ("component",),
        "singular_values": ("component",),
        "mean": ("column",),
        "scores": ("row", "component"),
    },
    example="{kind: pca, input: {matrix: a.zarr}, params: {n_components: 0.95}}",
)
