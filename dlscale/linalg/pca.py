"""Principal component analysis: the SVD of the centred matrix, A - 1 mean = U S V^H.

The mean is never subtracted in storage: blocks are centred as they are read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check, orthogonality
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import PassCost, Plan, bytes_of, lay_out, measured_rates
from dlscale.engine.outcome import Outcome
from dlscale.engine.passes import Fold, Passes, State
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.kernels import accumulator_dtype, one_blas_thread
from dlscale.lapack import largest_eigenpairs
from dlscale.linalg.centering import Centered, ColumnMeans, RowMeans
from dlscale.linalg.estimates import ErrorEstimate
from dlscale.linalg.exact_svd import exact_svd
from dlscale.linalg.finish import finish
from dlscale.linalg.left_factor import largest_entries, phases_of
from dlscale.linalg.products import Gram
from dlscale.linalg.subspace import gaussian
from dlscale.linalg.svd import Method, SVDOptions, orient, plan_svd, right_subspace
from dlscale.linalg.triplets import LeftOutput, Triplets
from dlscale.storage.matrices import Array, Matrix

Solver = Literal["auto", "covariance", "randomized", "full"]
#: How much longer than the randomized solver the exact one may take and still be chosen.
EXACT_IS_WORTH = 2.0
#: Variances below this part of the largest are noise in a covariance matrix; the full solver resolves them.
COVARIANCE_LIMIT = 1e-11


@dataclass(frozen=True)
class PCAOptions:
    """What to compute.

    Parameters
    ----------
    n_components : int, float or None
        k; or, between 0 and 1, the fewest components that explain this fraction of the variance; None keeps all.
    solver : str
        ``covariance``: eigenvectors of the n x n covariance matrix, one read; ``randomized``: q + 1 reads;
        ``full``: the exact SVD; ``auto``: the covariance matrix, unless the randomized solver is faster by a second or more.
    whiten : bool
        Scale the scores to unit variance.
    scores : bool
        Write the scores (m, k) too.
    oversampling, power_iterations, method, seed, block_rows
        As for the SVD (`dlscale.linalg.svd.SVDOptions`); they concern the randomized solver.
    tolerance : float, optional
        Instead of ``n_components``, for the randomized solver.
    """

    n_components: float | None = None
    solver: Solver = "auto"
    whiten: bool = False
    scores: bool = False
    oversampling: int = 10
    power_iterations: int = 4
    method: Method = "randomized"
    tolerance: float | None = None
    seed: int = 0
    block_rows: int | None = None

    @property
    def fraction(self) -> float | None:
        """The fraction of variance asked for, if it is one."""
        k = self.n_components
        return float(k) if k is not None and not isinstance(k, int | np.integer) else None

    def svd(self) -> SVDOptions:
        """The options of the randomized solver."""
        return SVDOptions(
            n_components=None if self.fraction else self.n_components,  # type: ignore[arg-type]
            tolerance=self.tolerance,
            oversampling=self.oversampling,
            power_iterations=self.power_iterations,
            method=self.method,
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
        most = min(shape)
        if self.solver not in get_args(Solver):
            raise SpecError(f"params.solver must be one of {', '.join(get_args(Solver))}; got {self.solver!r}.")
        if shape[0] < 2:
            raise SpecError(f"A PCA needs at least 2 rows; the matrix is {shape[0]} x {shape[1]}.")
        if self.fraction is not None and not 0 < self.fraction < 1:
            raise SpecError(f"params.n_components must be a whole number or lie strictly between 0 and 1; got {self.n_components}.")
        if self.fraction is None and self.n_components is not None and not 1 <= self.n_components <= most:
            raise SpecError(
                f"params.n_components must be between 1 and {most} for a {shape[0]} x {shape[1]} matrix; got {self.n_components}."
            )
        if self.method not in ("randomized", "krylov"):
            raise SpecError(f"params.method must be randomized or krylov for a pca; got {self.method!r}.")
        if self.tolerance is not None and self.n_components is not None:
            raise SpecError("params must not hold both n_components and tolerance.")
        if self.solver == "randomized":
            if self.fraction is not None or (self.n_components is None and self.tolerance is None):
                raise SpecError("params.solver randomized needs a whole number of n_components, or a tolerance.")
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
    if options.solver != "auto":
        return _PLANS[options.solver](A, options, facts)
    plans, reasons = [], []
    for solver in ("covariance", "randomized"):
        try:
            options_solver = replace(options, solver=solver)
            options_solver.check(A.shape)
            plans.append(_PLANS[solver](A, options_solver, facts))
        except DoesNotFitError as error:
            reasons.append(f"{solver}: {error}")
        except SpecError:
            # A fraction of the variance is not for the randomized solver.
            continue
    if not plans:
        raise DoesNotFitError(" ".join(reasons))
    worth = {"covariance": 1 / EXACT_IS_WORTH, "randomized": 1.0}
    best = min(plans, key=lambda plan: plan.nominal_seconds * worth[plan.algorithm.split()[0]])
    return replace(best, notes=(*best.notes, *reasons))


def _plan_covariance(A: Matrix, options: PCAOptions, facts: ClusterFacts, solver: str = "covariance") -> Plan:
    tall, transposed = orient(A)
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
    k = n if options.n_components is None or options.fraction else int(options.n_components)
    long_output = transposed or options.scores
    costs = [PassCost("means", 2.0 * m * n, read)] if transposed else []
    costs.append(PassCost("covariance", float(m) * n * n, read))
    if solver == "full":
        costs.append(PassCost("basis-round-2", 2.0 * m * n * n, read))
    if long_output or solver == "full":
        costs.append(PassCost("left", m * n * (2.0 * k + (n if solver == "full" else 0)), read, m * k * item if long_output else 0))
    rates = measured_rates(tall, facts)
    words = {
        "covariance": "eigenvectors of the covariance matrix, summed in one read",
        "full": "exact SVD of the centred matrix (Cholesky QR, or TSQR where the condition asks for it)",
    }
    notes = (*layout.notes, *A.notes, *(["passes go over the columns: the matrix is wide"] if transposed else []))
    return Plan(
        kind="pca",
        algorithm=f"{solver} PCA: {words[solver]}",
        matrix=A.describe(),
        grid=layout.grid,
        transposed=transposed,
        passes=tuple(costs),
        driver_flops=9.0 * n**3,
        peak_bytes_per_worker=layout.peak_bytes,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=rates,
        notes=notes,
    )


def _plan_full(A: Matrix, options: PCAOptions, facts: ClusterFacts) -> Plan:
    return _plan_covariance(A, options, facts, solver="full")


def _plan_randomized(A: Matrix, options: PCAOptions, facts: ClusterFacts) -> Plan:
    plan = plan_svd(A, options.svd(), facts)
    passes = plan.passes
    if plan.transposed or options.power_iterations == 0:
        passes = (PassCost("means", 2.0 * A.shape[0] * A.shape[1], A.n_stored_bytes), *passes)
    return replace(plan, kind="pca", algorithm=f"randomized PCA: {plan.algorithm}", passes=passes)


_PLANS = {"covariance": _plan_covariance, "full": _plan_full, "randomized": _plan_randomized}


def compute_pca(passes: Passes, A: Matrix, options: PCAOptions, plan: Plan) -> Outcome:
    """Compute a PCA by its plan.

    Parameters
    ----------
    passes : Passes
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
    solver = plan.algorithm.split()[0]
    m, _ = A.shape
    tall = A.T if plan.transposed else A
    left = _left_output(options, plan, m)
    mean: Array | None = None
    if plan.transposed:
        mean = passes.sweep("means", tall, RowMeans(A.dtype), plan.grid)["mean"]
        tall = Centered(tall, None)
    if solver == "randomized":
        found, mean = _randomized(passes, tall, options, plan, left, mean)
    else:
        gram = Gram(tall.shape[1], A.dtype, center=not plan.transposed, probe=_probe(tall))
        state = passes.sweep("covariance", tall, gram, plan.grid)
        mean = state["mean"] if mean is None else mean
        centered = tall if plan.transposed else Centered(tall, state["mean"])
        found = _from_gram(passes, centered, gram.matrix(state), state["probed"], options, plan, left, solver)
    return _outcome(found, mean, m, options, plan, A.dtype)


def _left_output(options: PCAOptions, plan: Plan, n_rows: int) -> LeftOutput:
    """What is tall: the scores, or the components of a wide matrix. Signs are those of the components."""
    if plan.transposed:
        return LeftOutput("components", transposed=True, decides_sign=True)
    whitened = math.sqrt(n_rows - 1) if options.whiten else 1.0
    return LeftOutput("scores" if options.scores else None, times_s=not options.whiten, factor=whitened, decides_sign=False)


def _probe(A: Matrix) -> Array:
    return np.ascontiguousarray(gaussian(A.shape[1], 1, 3_000_003, A.dtype)[:, 0].astype(A.dtype))


def _randomized(
    passes: Passes, tall: Matrix, options: PCAOptions, plan: Plan, left: LeftOutput, mean: Array | None
) -> tuple[Triplets, Array]:
    svd = options.svd()
    if not plan.transposed and svd.n_iterations == 0:
        mean = passes.sweep("means", tall, ColumnMeans(tall.shape[1], tall.dtype), plan.grid)["mean"]
        tall = Centered(tall, mean)
    space = right_subspace(passes, tall, svd, plan, center=mean is None)
    if mean is None:
        assert space.mean is not None
        mean = space.mean
        tall = Centered(tall, mean)
    found = finish(passes, tall, plan.grid, space, n_components=svd.n_components, tolerance=svd.tolerance, seed=svd.seed, left=left)
    return found, mean


def _from_gram(
    passes: Passes,
    centered: Matrix,
    gram: Array,
    probed: Array,
    options: PCAOptions,
    plan: Plan,
    left: LeftOutput,
    solver: str,
) -> Triplets:
    """From ``A_c^H A_c`` to triplets: by its eigenvectors, or, where these are too few digits, by an exact SVD."""
    n, dtype = gram.shape[0], centered.dtype
    # One more than is kept, which bounds what is left out.
    n_pairs = n if options.n_components is None or options.fraction is not None else min(n, int(options.n_components) + 1)
    with one_blas_thread():
        eigenvalues, vectors = largest_eigenpairs(gram, n_pairs)
    values, total = np.maximum(eigenvalues, 0.0), float(np.trace(gram).real)
    k = _count(options, values, min(centered.shape))
    unresolved = values[k - 1] <= COVARIANCE_LIMIT * values[0]
    if solver == "full" or plan.transposed or (unresolved and options.solver == "auto"):
        found = exact_svd(passes, centered, plan.grid, n_components=k, left=left, gram=gram)
        why = "the smallest variances asked for are below the resolution of a covariance matrix: exact SVD instead"
        return found if solver == "full" or not unresolved else replace(found, notes=(*found.notes, why))
    s, V = np.sqrt(values[:k]), vectors[:, :k]
    V = V * phases_of(largest_entries(V.T))
    eps = float(np.finfo(dtype).eps)
    probe = _probe(centered)
    size = max(float(values[0]), np.finfo(float).tiny)
    scale = size * np.linalg.norm(probe) * n * eps
    checks = [
        orthogonality(
            "V", V.conj().T @ V, np.dtype(gram.dtype.char.lower()), "the components are orthonormal to working precision"
        ),
        Check(
            "||(A'A) x - A'(A x)|| / (||A'A|| ||x|| n eps)",
            float(np.linalg.norm(probed.conj() - gram @ probe)) / scale,
            LAPACK_THRESHOLD,
            "on a random vector, the covariance matrix acts as the data do",
        ),
        Check(
            "||C v - lambda v|| / (||C|| n eps)",
            float(np.linalg.norm(gram @ V - V * eigenvalues[:k])) / (size * n * float(np.finfo(np.float64).eps)),
            LAPACK_THRESHOLD,
            "each component is an eigenvector of the covariance matrix",
        ),
    ]
    if left.name:
        # What has no variance beyond rounding cannot be given one.
        weights = np.ones(k) if left.times_s else left.factor / np.maximum(s, eps * float(s[0]) or 1.0)
        product = Scores(np.ascontiguousarray(V * weights, dtype))
        output = passes.output(left.name, (centered.shape[0], k), dtype, plan.grid)
        measured = passes.sweep("left", centered, product, plan.grid, outputs=[output])["gram"]
        unscaled = measured / np.outer(weights, weights)
        checks.append(
            Check(
                "||T'T - S^2|| / (||S||^2 n eps)",
                float(np.linalg.norm(unscaled - np.diag(s**2), 2) / (size * n * eps)),
                LAPACK_THRESHOLD,
                "the scores are uncorrelated and have the variances of the components",
            )
        )
    rounding = 4 * eps * values[0] / np.maximum(s, np.sqrt(eps * values[0]) + np.finfo(float).tiny)
    first = float(values[k]) if k < n else 0.0
    error = ErrorEstimate(
        math.sqrt(first) if k < n else float(rounding.max()),
        math.sqrt(max(total - float(values[:k].sum()), first)) if k < n else float(rounding.max()),
        rounding,
    )
    notes = ("the smallest variances asked for are below the resolution of a covariance matrix",) if unresolved else ()
    return Triplets(s, V, error, Certificate(tuple(checks)), total, notes)


def _count(options: PCAOptions, values: Array, most: int) -> int:
    """How many components: the number asked for, those that explain the fraction asked for, or all."""
    if options.fraction is not None:
        explained = np.cumsum(values) / max(float(values.sum()), np.finfo(float).tiny)
        return min(most, int(np.searchsorted(explained, options.fraction, side="right")) + 1)
    if options.tolerance is not None:
        return max(1, int((np.sqrt(values) > options.tolerance * np.sqrt(values[0])).sum()))
    return int(options.n_components) if options.n_components is not None else most


@dataclass(frozen=True)
class Scores(Fold):
    """Blocks of ``T = A V``, and ``T^H T``."""

    V: Array

    @property
    def flops_per_row(self) -> float:
        return float(2 * self.V.size + self.V.shape[1] ** 2)

    def start(self) -> State:
        k = self.V.shape[1]
        return {"gram": np.zeros((k, k), accumulator_dtype(self.V.dtype))}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        T = A @ self.V
        T_wide = T.astype(state["gram"].dtype, copy=False)
        state["gram"] += T_wide.conj().T @ T_wide
        return (T,)


def _outcome(found: Triplets, mean: Array, m: int, options: PCAOptions, plan: Plan, dtype: np.dtype[Any]) -> Outcome:
    real = np.dtype(dtype.char.lower())
    s, k = found.s, len(found.s)
    variance, total = s**2 / (m - 1), found.squares / (m - 1)
    n_left = min(m, len(mean)) - k
    arrays = {
        "explained_variance": variance.astype(real),
        "explained_variance_ratio": (variance / total if total > 0 else np.zeros_like(variance)).astype(real),
        "singular_values": s.astype(real),
        "mean": mean.astype(dtype),
        "noise_variance": np.array([max(total - variance.sum(), 0.0) / n_left if n_left else 0.0], real),
    }
    stored: tuple[str, ...] = ()
    if plan.transposed:
        stored = ("components",)
        if options.scores:
            arrays["scores"] = (found.V.conj() * (math.sqrt(m - 1) if options.whiten else s)).astype(dtype)
    else:
        arrays["components"] = np.ascontiguousarray(found.V.conj().T, dtype)
        stored = ("scores",) if options.scores else ()
    estimates = found.error.to_dict() | {"total_variance": total, "explained": float(variance.sum() / total) if total > 0 else 0.0}
    return Outcome(arrays, stored, found.certificate, estimates, found.notes)
