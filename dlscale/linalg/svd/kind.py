"""Singular value decomposition: randomized, block Krylov, in one read, or exact.

A ~ U S V^H,   U (m, k), S (k), V (n, k)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.arrays import Array
from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.declaration.options import Options
from dlscale.declaration.sections import BlockRows, Seed
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import Layout, bytes_of, lay_out, lay_out_sparse, measured_rates
from dlscale.engine.passes import Passes
from dlscale.engine.passes.rows import Rows
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import SpecError
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.scaling import at_safe_scale
from dlscale.linalg.svd.exact import exact_svd
from dlscale.linalg.svd.finish import finish, iteration_width
from dlscale.linalg.svd.sketch import N_PROBES
from dlscale.linalg.svd.subspace import Subspace, iterate, iterate_to_tolerance, start_subspace
from dlscale.linalg.svd.triplets import LeftOutput, Triplets
from dlscale.storage.matrix import Matrix

Method = Literal["randomized", "krylov", "streaming", "exact"]


#: What the methods that iterate have in common.
NComponents = Annotated[int | None, Field(ge=1, description="an integer of at least 1: singular triplets wanted")]
Tolerance = Annotated[
    float | None, Field(gt=0, lt=1, description="a number between 0 and 1: stop at this relative error instead of at n_components")
]
Oversampling = Annotated[int, Field(ge=0, description="an integer of at least 0: extra random directions")]
PowerIterations = Annotated[int, Field(ge=0, le=100, description="an integer from 0 to 100: one read of the matrix each")]


@dataclass(frozen=True)
class SVDOptions(Options):
    """What to compute: k triplets, or as many as leave ``||A - U S V^H||_2 <= tolerance * ||A||_2``, or all (``exact``).

    Notes
    -----
    The iterations carry ``oversampling`` columns beyond k and read the matrix ``power_iterations + 1`` times. In double precision,
    their products are made in single precision as long as that costs no accuracy
    (`half_precision_suffices`); where the first turns out to need double precision, it is made again, with
    a read of its own. ``krylov`` keeps all iterates and is more accurate for the same reads; ``streaming`` reads once.
    """

    n_components: NComponents = None
    tolerance: Tolerance = None
    oversampling: Oversampling = 10
    power_iterations: PowerIterations = 4
    method: Annotated[Method, Field(description="randomized, krylov, streaming or exact")] = "randomized"
    seed: Seed = 0
    block_rows: BlockRows = None

    def check(self, shape: tuple[int, int]) -> None:
        """Check the options against the matrix.

        Raises
        ------
        SpecError
            Naming the parameter, what it may be and what was got.
        """
        most = min(shape)
        if self.n_components is not None and self.n_components > most:
            raise SpecError(
                f"params.n_components must be between 1 and {most} for a {shape[0]} x {shape[1]} matrix; got {self.n_components}."
            )
        if self.method != "exact" and (self.n_components is None) == (self.tolerance is None):
            raise SpecError("params must hold exactly one of n_components and tolerance.")
        if self.method in ("krylov", "streaming") and self.tolerance is not None:
            raise SpecError(f"params.tolerance goes with method randomized or exact; got {self.method}.")

    @property
    def n_iterations(self) -> int:
        return 0 if self.method == "streaming" else self.power_iterations

    @property
    def most_columns(self) -> int | None:
        """All columns that are ever iterated; None where the whole space may be."""
        if self.method == "exact" or self.n_components is None:
            return None
        return self.width(2**62) * (self.n_iterations + 1 if self.method == "krylov" else 1)

    def width(self, most: int) -> int:
        """Columns that the iterations carry."""
        if self.n_components is None:
            return iteration_width(64 + self.oversampling, most)
        if self.method == "exact":
            return most
        # With no second look at the matrix, a wider sketch is the only way to accuracy (Tropp et al. 2019, section 5.4).
        wider = self.n_components if self.method == "streaming" else 0
        return iteration_width(self.n_components + self.oversampling + wider, most)


def plan_svd(A: Matrix, options: SVDOptions, facts: ClusterFacts) -> Plan:
    """Plan an SVD: the method's passes, their flops and bytes, memory and time.

    Raises
    ------
    SpecError
        If an option does not suit the matrix.
    DoesNotFitError
        If a worker's memory does not hold what the passes need.
    """
    options.check(A.shape)
    eps = float(np.finfo(A.dtype).eps)
    if options.tolerance is not None and options.tolerance < eps:
        raise SpecError(f"params.tolerance must be at least {eps:.1e}, the precision of {A.dtype}; got {options.tolerance}.")
    tall, transposed = orient(A, width=options.most_columns)
    passes = _exact_passes if options.method == "exact" else _sketched_passes
    layout, steps = passes(tall, options, facts)
    if transposed and options.method != "exact":
        # The small factor decides the signs.
        steps.pop(-2)
    return Plan(
        kind="svd",
        method=options.method,
        words=_words(options, tall.shape[1]),
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        transposed=transposed,
        steps=tuple(steps),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(tall, facts, grid=layout.grid, sparse=options.method != "exact"),
        notes=(*layout.notes, *A.notes, *(["passes go over the columns: the matrix is wide"] if transposed else [])),
    )


def _words(options: SVDOptions, n: int) -> str:
    if options.method == "exact":
        return "exact SVD: orthonormal basis (Cholesky QR, or TSQR where the condition asks for it), then the SVD of R"
    name = {"randomized": "randomized SVD", "krylov": "block Krylov SVD", "streaming": "one-read randomized SVD"}[options.method]
    return f"{name}: {options.n_iterations} power iterations on {options.width(n)} columns, {options.n_iterations + 1} reads"


def _exact_passes(A: Matrix, options: SVDOptions, facts: ClusterFacts) -> tuple[Layout, list[Step]]:
    (m, n), read, item = A.shape, A.n_stored_bytes, A.dtype.itemsize
    layout = lay_out(
        A,
        facts,
        state_bytes=bytes_of(n, n, dtype=accumulator_dtype(A.dtype)),
        operand_bytes=2 * n * n * item,
        block_rows=options.block_rows,
    )
    k = options.n_components or n
    return layout, [
        Step("gram", m * n * n, read),
        Step("basis-round-2", 2.0 * m * n * n, read),
        Step("left", m * n * (n + 2.0 * k), read, m * k * item),
    ]


def _sketched_passes(A: Matrix, options: SVDOptions, facts: ClusterFacts) -> tuple[Layout, list[Step]]:
    (m, n), read, item = A.shape, A.n_stored_bytes, A.dtype.itemsize
    width = options.width(n)
    columns = min(n, width * (options.n_iterations + 1 if options.method == "krylov" else 1))
    last = columns + (0 if options.n_iterations and columns < n else N_PROBES)
    state_bytes, operand_bytes = bytes_of(last, n + last, dtype=accumulator_dtype(A.dtype)), 3 * n * last * item
    if A.is_sparse:
        layout = lay_out_sparse(
            A, facts, state_bytes=state_bytes, operand_bytes=operand_bytes, width=last, block_rows=options.block_rows
        )
    else:
        layout = lay_out(
            A,
            facts,
            state_bytes=state_bytes,
            operand_bytes=operand_bytes,
            block_factor=2.5 + last / n,
            block_rows=options.block_rows,
        )
    k, final, entries = options.n_components or width, last - N_PROBES, A.n_entries
    steps = [Step(f"iteration-{i + 1}", 4.0 * entries * width, read) for i in range(options.n_iterations)]
    return layout, [
        *steps,
        Step("range", 4.0 * entries * last + m * float(last * last), read, m * last * item),
        Step("signs", m * (final * final + 2.0 * final * k), m * last * item),
        Step("left", m * (final * final + 2.0 * final * k + k * k), m * last * item, m * k * item),
    ]


def orient(A: Matrix, *, width: int | None = None) -> tuple[Matrix, bool]:
    """The matrix or its transpose, whichever is tall; or the one with compressed rows, where few columns are iterated."""
    T = A.T
    if width and min(A.shape) >= 2 * width and (A.is_sparse or T.is_sparse):
        return (A, False) if A.is_sparse else (T, True)
    return (T, True) if A.shape[1] > A.shape[0] else (A, False)


def right_subspace(rows: Rows, options: SVDOptions, *, probe: Array | None = None) -> Subspace:
    """Make the power iterations that the options ask for."""
    n = rows.A.shape[1]
    if options.tolerance is not None:
        return iterate_to_tolerance(
            rows,
            tolerance=options.tolerance,
            oversampling=options.oversampling,
            n_iterations=options.n_iterations,
            seed=options.seed,
            probe=probe,
        )
    space = Subspace(start_subspace(n, options.width(n), options.seed, rows.A.dtype))
    krylov = options.method == "krylov"
    return iterate(
        rows,
        space,
        n_iterations=options.n_iterations,
        probe=probe,
        krylov=krylov,
        halve=not krylov,
    )


def compute_svd(run: Run, A: Matrix, options: SVDOptions, plan: Plan) -> Outcome:
    """Compute an SVD by its plan.

    Parameters
    ----------
    run : Run
        The tall one of the factors is written to its outputs: ``u`` (m, k), or ``vh`` (k, n) of a wide matrix.
    A : Matrix (m, n)
    options : SVDOptions
    plan : Plan
        From `plan_svd`.

    Returns
    -------
    Outcome
        With ``s`` (k,) and the small one of ``u`` (m, k) and ``vh`` (k, n).
    """
    passes = Passes(run)
    tall = A.T if plan.transposed else A
    name = "vh" if plan.transposed else "u"
    left = LeftOutput(name, transposed=plan.transposed, decides_sign=not plan.transposed)
    found, exponent = at_safe_scale(passes, tall, plan.rows, partial(_triplets, options=options, plan=plan, left=left))
    found = found.times_power(exponent, A.dtype)
    arrays = small_factors(found.s, found.V, plan.transposed, A.dtype)
    return Outcome(arrays, (name,), found.certificate, found.error.to_dict(), found.notes)


def _triplets(passes: Passes, tall: Matrix, *, options: SVDOptions, plan: Plan, left: LeftOutput) -> Triplets:
    n_components, tolerance = options.n_components, options.tolerance
    if options.method == "exact":
        return exact_svd(passes, tall, plan.rows, n_components=n_components, tolerance=tolerance, left=left)
    rows, seed = Rows(passes, tall, plan.rows), options.seed
    space = right_subspace(rows, options)
    return finish(rows, space, n_components=n_components, tolerance=tolerance, seed=seed, left=left)


def small_factors(s: Array, V: Array, transposed: bool, dtype: np.dtype[Any]) -> dict[str, Array]:
    """``s`` and the small singular vectors under their names; of a wide matrix these are the left ones, conjugated."""
    real = np.dtype(dtype.char.lower())
    small = V.astype(dtype)
    return {"s": s.astype(real)} | ({"u": small.conj()} if transposed else {"vh": small.conj().T})


KIND = Kind(
    name="svd",
    title="Singular value decomposition",
    words="Singular value decomposition: the leading triplets, or all of them.",
    arrays="`u` (m, k), `s` (k), `vh` (k, n)",
    options=SVDOptions,
    plan=matrix_plan(plan_svd),
    compute=matrix_compute(compute_svd),
    dimensions={"u": ("row", "component"), "s": ("component",), "vh": ("component", "column")},
    example="{kind: svd, input: {matrix: a.zarr}, params: {n_components: 50}}",
)
