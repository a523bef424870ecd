"""Kernel ridge regression: ``(K(X, X) + a I) x = y``, where the kernel matrix is never stored.

Its tiles are made, multiplied and forgotten, half of them, since it is symmetric. Conjugate gradients are preconditioned by some of
its columns (randomly pivoted Cholesky), which are chosen once for all penalties; the folds that choose a penalty are left out by
masks, so that all folds and penalties share the tiles of each product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.arrays import Array
from dlscale.certificates import Certificate, Check
from dlscale.declaration.kind import MATRIX, Kind, Role
from dlscale.declaration.options import Options
from dlscale.declaration.sections import AboveZero, Count, NotNegative, Planned, Seed
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import bytes_of, libraries, measured_rates
from dlscale.engine.grids import N_LEAVES, RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Cost, Run
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.host import n_cores
from dlscale.kernels import largest_part, one_blas_thread, safe_norm, times_power_of_two
from dlscale.linalg.folds.least_squares import finite, read_rhs
from dlscale.linalg.iterative.nystrom import Nystrom, partial_cholesky
from dlscale.linalg.iterative.recurrence import Iterate, Limits
from dlscale.linalg.kernel_ridge.folds import TILE, RowProduct, Rows, SymmetricProduct
from dlscale.linalg.kernel_ridge.kernels import Kernel, Name
from dlscale.linalg.kernel_ridge.path import PathProblem, Systems, solve_path
from dlscale.linalg.ridge.penalties import PenaltiesAboveZero, path_of
from dlscale.linalg.ridge.selection import choose, end_of_path, fold_bounds
from dlscale.linalg.scaling import exponent_of, scaled_back
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import promoted

#: Products that iterations usually take; how many is not known before.
USUAL_PRODUCTS = 40
#: Residuals, relative to the targets, with which fits for choosing among penalties end. What they say of held rows is off by this
#: times ``||y|| (||K_held|| / 4a)^1/2`` at most, since ``||K_h (K + a)^-1|| <= ||K_hh||^1/2 max_s s^1/2 / (s + a)``.
CHOOSING = 1e-6
#: Arrays of the size of all solutions that iterations hold at a time.
_N_VECTORS = 12
#: Columns that are solved for at a time, unless memory asks for fewer.
_MOST_COLUMNS = 256
#: Part of the memory that is left for them that columns which precondition take, unless they are asked for: alone, and where many
#: solutions are held beside them.
_CENTERS_SHARE, _SHARE_BESIDE_FOLDS = 0.7, 0.35
_DOUBLE = np.dtype(np.float64)


@dataclass(frozen=True)
class KernelRidgeOptions(Options):
    """Which kernel, with scikit-learn's names, which penalties, and how the systems are solved."""

    kernel: Annotated[Name, Field(description="rbf, laplacian, polynomial or linear")] = "rbf"
    gamma: Annotated[AboveZero | None, Field(description="a number above 0; absent: 1 / the number of features")] = None
    degree: Annotated[Count, Field(description="an integer of at least 1, for polynomial")] = 3
    coef0: Annotated[NotNegative, Field(description="a number of at least 0, for polynomial")] = 1.0
    penalties: PenaltiesAboveZero = 1.0
    cv: Annotated[
        Literal["none"] | Annotated[int, Field(ge=2)] | None,
        Field(description="an integer of at least 2 (folds of neighbouring rows) or none; absent: 5 for several penalties"),
    ] = None
    n_centers: Annotated[
        Planned, Field(description="an integer of at least 1, or auto: columns that precondition; the planner chooses when absent")
    ] = None
    tolerance: Annotated[
        float, Field(gt=0, lt=1, description="a number between 0 and 1: residual that the iterations end with, of the targets")
    ] = 1e-10
    max_iterations: Annotated[Count, Field(description="an integer of at least 1: products with the kernel matrix")] = 1000
    seed: Seed = 0

    @property
    def n_folds(self) -> int:
        """0 for none."""
        if self.cv is None:
            return 5 if len(path_of(self.penalties)) > 1 else 0
        return self.cv if isinstance(self.cv, int) else 0

    def kernel_of(self, d: int) -> Kernel:
        """The kernel of rows with d features."""
        return Kernel(self.kernel, 1 / d if self.gamma is None else self.gamma, self.degree, self.coef0)

    def check(self, X: Matrix, Y: Matrix) -> None:
        """Check the options against the features and targets.

        Raises
        ------
        SpecError
        """
        for role, M in (("features", X), ("targets", Y)):
            if M.dtype.kind == "c":
                raise SpecError(f"input.{role}: must be real; got {M.dtype}.")
        if Y.shape[0] != X.shape[0]:
            raise SpecError(f"input.targets: must have {X.shape[0]} rows like the features; got {Y.shape[0]}.")
        if len(path_of(self.penalties)) > 1 and not self.n_folds:
            raise SpecError("params.cv: none goes with one penalty, since nothing chooses among several.")
        if self.n_folds > X.shape[0]:
            raise SpecError(f"params.cv: must be at most the number of rows, {X.shape[0]}; got {self.n_folds}.")


def plan_kernel_ridge(inputs: Inputs, options: KernelRidgeOptions, facts: ClusterFacts) -> Plan:
    """Plan a kernel ridge regression.

    Raises
    ------
    SpecError
        If the options or the targets do not suit the features.
    DoesNotFitError
    """
    X, Y = promoted(inputs["features"], _DOUBLE), inputs["targets"]
    options.check(X, Y)
    (n, d), k, kernel = X.shape, Y.shape[1], options.kernel_of(X.shape[1])
    n_folds, q = options.n_folds, len(path_of(options.penalties))
    precision = np.dtype(np.float32 if kernel.single_suits(n, float(path_of(options.penalties).min())) else np.float64)
    wanted = max(k, min(n_folds * q * k, _MOST_COLUMNS))
    fixed = [
        Need("the features, as the kernel takes them", bytes_of(n, 5 * d + 6, dtype=_DOUBLE)),
        Need("tiles of the kernel matrix", 2 * facts.threads_per_worker * bytes_of(TILE, TILE, dtype=_DOUBLE)),
        *libraries(facts),
    ]
    each = (_N_VECTORS + 2 * facts.threads_per_worker + 6) * bytes_of(n, dtype=_DOUBLE)
    left = facts.memory_bytes - sum(need.n_bytes for need in fixed) - k * each
    usual = _usual_centers(n, left * (_SHARE_BESIDE_FOLDS if n_folds else _CENTERS_SHARE), precision)
    n_centers = min(n, options.n_centers or usual)
    fixed += [
        Need("columns that precondition", bytes_of(n + (n_folds + 1) * n_centers, n_centers, dtype=precision)),
        Need("their eigenvectors while they are computed", bytes_of(3 * n_centers, n_centers, dtype=_DOUBLE)),
    ]
    columns = min(wanted, int((facts.memory_bytes - sum(need.n_bytes for need in fixed)) // each))
    if columns < k:
        raise DoesNotFitError(
            f"One worker needs {(sum(need.n_bytes for need in fixed) + k * each) / 1e9:.2f} GB for {n} rows, {n_centers} columns "
            f"that precondition and {k} targets, and has {facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory or lower "
            "params.n_centers."
        )
    # An entry in single precision takes half as long.
    product = float(n) ** 2 * precision.itemsize / _DOUBLE.itemsize
    steps = [Step("centers", n * n_centers * (kernel.flops(d) + 3.0 * n_centers), X.n_stored_bytes, where="driver")]
    if n_folds:
        width = n_folds * q * k
        n_batches = -(-width // columns)
        flops = product * (n_batches * kernel.flops(d) / 2 + 2.0 * width)
        steps.append(Step("folds", USUAL_PRODUCTS * flops, USUAL_PRODUCTS * n_batches * X.n_stored_bytes))
    steps.append(Step("fit", USUAL_PRODUCTS * product * (kernel.flops(d) / 2 + 2.0 * k), USUAL_PRODUCTS * X.n_stored_bytes))
    steps.append(Step("check", float(n) ** 2 * (kernel.flops(d) + 2.0 * k), X.n_stored_bytes, n * d * 8))
    return Plan(
        kind="kernel_ridge",
        method="nystrom-cg",
        words="conjugate gradients, preconditioned by columns of the kernel matrix (randomly pivoted Cholesky); its tiles are made "
        "for each product and never stored",
        matrix=X.describe(),
        grids=Grids(rows=RowGrid(n, min(n, TILE), TILE * max(1, -(-n // (TILE * N_LEAVES))))),
        steps=tuple(steps),
        memory=(*fixed, Need("solutions, and what the iterations hold of them", columns * each)),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(X, facts),
        notes=tuple(X.notes),
        choices={"n_centers": n_centers, "columns": columns, "precision": precision.name},
    )


def _usual_centers(n: int, n_bytes: float, precision: np.dtype[Any]) -> int:
    """Columns that take as long as some ten products, and no more than these bytes."""
    return max(64, min(round(10 * math.sqrt(n)), int(n_bytes / (n * precision.itemsize))))


@dataclass(frozen=True)
class _Work:
    """A job on its way."""

    passes: Passes
    X: Matrix
    Y: Array
    options: KernelRidgeOptions
    plan: Plan

    @cached_property
    def rows(self) -> Rows:
        n, d = self.X.shape
        X = finite(self.X.read(0, n), 0, role="features")
        return Rows(self.options.kernel_of(d), self.X, X.mean(axis=0))

    @cached_property
    def precision(self) -> np.dtype[Any]:
        """Of the products that iterations make."""
        suits = self.rows.kernel.single_suits(len(self.Y), float(path_of(self.options.penalties).min()), self.rows.points)
        return self.planned_precision if suits else _DOUBLE

    @property
    def planned_precision(self) -> np.dtype[Any]:
        return np.dtype(str(self.plan.choices["precision"]))

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        n, n_folds = len(self.Y), self.options.n_folds
        return fold_bounds(n, n_folds) if n_folds else (n,)

    @cached_property
    def nystrom(self) -> Nystrom:
        """The same at every start of the job, sooner computed than kept."""
        n_centers, n, d = int(self.plan.choices["n_centers"]), *self.X.shape
        n_threads = min(self.plan.cluster.n_threads, n_cores())
        cost = Cost(n * n_centers * (self.rows.kernel.flops(d) + 3.0 * n_centers), self.X.n_stored_bytes)
        found: list[Nystrom] = []

        def compute(_: str) -> dict[str, Array]:
            with one_blas_thread():
                kernel, points, dtype = self.rows.kernel, self.rows.points_in(self.precision), self.planned_precision

                def columns_of(chosen: Array) -> Array:
                    return kernel.columns(points, chosen).astype(dtype, copy=False)

                diagonal = kernel.diagonal(self.rows.points)
                F = partial_cholesky(diagonal, columns_of, n_centers, self.options.seed, dtype=dtype, n_threads=n_threads)
                found.append(Nystrom.of(F, self.bounds, n_threads))
            return {}

        self.passes.run.step("centers", cost, compute, keep="none")
        return found[0]

    def multiply(self, step: str, P: Array) -> Array:
        """``K P``, in the precision of P."""
        # In one order whoever multiplies: a worker that gets it at an odd address would copy it to rows.
        fold = SymmetricProduct(self.rows, np.ascontiguousarray(P))
        # What comes from another process may lie at an odd address, where sums are made in another order.
        return np.require(self.passes.sweep(step, self.X, fold, self.plan.rows, keep="none")["product"], requirements="A")

    def solve(self, name: str, systems: Systems, tolerance: float) -> Iterate:
        problem = PathProblem(self.passes, name, systems, self.multiply, self.precision)
        return solve_path(problem, self.nystrom, Limits(tolerance, self.options.max_iterations))

    def errors(self, penalties: Array) -> Array:
        """(q, k): mean squares of what rows differ from what fits without their fold, to `CHOOSING`, say of them."""
        n, k = self.Y.shape
        folds, which, targets = (
            index.ravel() for index in np.meshgrid(range(self.options.n_folds), range(len(penalties)), range(k), indexing="ij")
        )
        squares, width = np.zeros((len(penalties), k)), int(self.plan.choices["columns"])
        for first in range(0, len(folds), width):
            some = slice(first, first + width)
            systems = Systems(np.ascontiguousarray(self.Y[:, targets[some]]), penalties[which[some]], folds[some], self.bounds)
            systems.leave_out(systems.B, np.arange(systems.B.shape[1]))
            it = self.solve(f"folds-{first}", systems, max(self.options.tolerance, CHOOSING))
            told = self.multiply(f"held-out-{first}", it.X)
            for j, (fold, i, target) in enumerate(zip(folds[some], which[some], targets[some], strict=True)):
                held = slice(self.bounds[fold], self.bounds[fold + 1])
                squares[i, target] += ((self.Y[held, target] - told[held, j]) ** 2).sum()
        return np.asarray(squares / n)


def compute_kernel_ridge(run: Run, inputs: Inputs, options: KernelRidgeOptions, plan: Plan) -> Outcome:
    """Regress by a plan; ``features`` (n, d), which predictions need, go to the outputs of the run.

    Returns
    -------
    Outcome
        With ``dual_coefficients`` (n, k), or (n,) for targets of one dimension; ``center`` (d,); ``path/penalties`` (q,) and, where
        one was chosen, ``path/errors`` (q, k); ``history/residual``, what the iterations claimed.

    Raises
    ------
    NonFiniteError
    NumericalError
        If the iterations do not converge, saying what they came to; or if the dual coefficients are out of range.

    Notes
    -----
    n^2 (d + e) flops a product, e for the exponential; n l^2 for l columns that precondition, n l numbers of memory.

    References
    ----------
    Frangella, Tropp, Udell (2023); Diaz, Epperly, Frangella, Tropp, Webber (2023).
    """
    X, targets, penalties = promoted(inputs["features"], _DOUBLE), inputs["targets"], path_of(options.penalties)
    Y = read_rhs(targets, 0, X.shape[0], role="targets").astype(_DOUBLE)
    # Targets of any size: an answer is as large as they are, exactly.
    powers = [exponent_of(largest) for largest in largest_part(Y, axis=0).tolist()]
    Y = np.stack([times_power_of_two(column, -power) for column, power in zip(Y.T, powers, strict=True)], axis=1)
    work = _Work(Passes(run), X, Y, options, plan)
    errors = work.errors(penalties) if options.n_folds else np.zeros((1, Y.shape[1]))
    best = choose(errors, powers)
    k, penalty = Y.shape[1], float(penalties[best])
    systems = Systems(Y, np.full(k, penalty), np.full(k, -1), work.bounds)
    it = work.solve("fit", systems, options.tolerance)
    kept = run.output("features", X.shape, _DOUBLE, plan.rows)
    fold = RowProduct(work.rows, np.ascontiguousarray(it.X), Y, penalty, keeps_rows=True)
    seen = work.passes.sweep("check", X, fold, plan.rows, outputs=[kept])
    certificate, residual = _certify(seen["residual"], Y, options.tolerance)
    words = {"what": "The dual coefficients", "of": "the targets"}
    dual = np.stack([scaled_back(column, e, _DOUBLE, **words) for column, e in zip(it.X.T, powers, strict=True)], axis=1)
    arrays = {
        "dual_coefficients": dual[:, 0] if targets.is_vector else dual,
        "center": work.rows.center,
        "path/penalties": penalties,
        "history/residual": it.claimed,
    }
    told: dict[str, Any] = {"penalty": penalty, "true_residual": residual, "iterations": it.iterations, "ended": it.end}
    if options.n_folds:
        with np.errstate(over="ignore", under="ignore"):
            arrays["path/errors"] = np.ldexp(errors, 2 * np.asarray(powers))
            told["error"] = float(arrays["path/errors"][best].sum())
    deviations = ((Y - Y.mean(axis=0)) ** 2).sum(axis=0)
    told["r2"] = [float(1 - f / v) if v > 0 else 1.0 for f, v in zip(seen["fit"], deviations, strict=True)]
    told["n_centers"], told["gamma"] = int(work.nystrom.F.shape[1]), work.rows.kernel.gamma
    return Outcome(arrays, ("features",), certificate, told, end_of_path(best, penalties))


def _certify(squares: Array, Y: Array, tolerance: float) -> tuple[Certificate, float]:
    sizes = safe_norm(Y, axis=0)
    reached = [float(r / size) if size > 0 else float(r) for r, size in zip(np.sqrt(squares), sizes, strict=True)]
    check = Check(
        "||y - (K + aI)x|| / (||y|| tolerance)",
        max(reached) / tolerance,
        2.0,
        "the dual coefficients solve the regularized system, measured with every row of the kernel matrix made anew",
    )
    return Certificate((check,)), max(reached)


KIND = Kind(
    name="kernel_ridge",
    title="Kernel ridge regression",
    words="Kernel ridge regression: the kernel matrix is never stored, and a penalty is chosen by folds that share its products.",
    arrays="`dual_coefficients` (n, k), `features` (n, d) and `center` (d), with which predictions are made; `path/penalties` (q), "
    "`path/errors` (q, k), `history/residual`",
    options=KernelRidgeOptions,
    plan=plan_kernel_ridge,
    compute=compute_kernel_ridge,
    example="{kind: kernel_ridge, input: {features: x.zarr, targets: y.zarr}, params: {kernel: rbf, penalties: [0.01, 0.1, 1]}}",
    roles=(Role("features"), Role("targets", f"{MATRIX}; as many rows as the features, of one or two dimensions", vector=True)),
)
