"""Eigenvalues and eigenvectors of a symmetric or Hermitian matrix: A V = V L."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Annotated

import numpy as np
from pydantic import Field

from dlscale.certificates import Certificate
from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.declaration.options import Options
from dlscale.declaration.sections import Seed
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import libraries, measured_rates
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.linalg.eigen import direct
from dlscale.linalg.eigen.completeness import plan_proof, prove
from dlscale.linalg.eigen.pairs import Pairs, Which
from dlscale.linalg.scaling import power_words, scaled_back
from dlscale.storage.matrix import Matrix

#: The part of the rate of a product at which LAPACK finds eigenpairs.
_EFFICIENCY = 0.4


@dataclass(frozen=True)
class EighOptions(Options):
    """What to compute: all eigenpairs, or those of the k largest or smallest eigenvalues, or of the largest moduli."""

    n_components: Annotated[int | None, Field(ge=1, description="an integer of at least 1: eigenpairs wanted; absent: all")] = None
    which: Annotated[Which, Field(description="largest, smallest or magnitude: the eigenvalues that are wanted first")] = "largest"
    seed: Seed = 0

    def check(self, shape: tuple[int, int]) -> None:
        """Check the options against the matrix.

        Raises
        ------
        SpecError
            If it is not square, or naming the parameter, what it may be and what was got.
        """
        n = shape[0]
        if shape[1] != n:
            raise SpecError(f"input.matrix: must be square to have eigenvalues; got {n} x {shape[1]}.")
        if self.n_components is not None and self.n_components > n:
            raise SpecError(f"params.n_components must be between 1 and {n} for a {n} x {n} matrix; got {self.n_components}.")

    def count(self, n: int) -> int:
        """k."""
        return self.n_components or n


def plan_eigh(A: Matrix, options: EighOptions, facts: ClusterFacts) -> Plan:
    """Plan eigenpairs.

    Raises
    ------
    SpecError
        If an option does not suit the matrix.
    DoesNotFitError
        Saying what would fit.
    """
    options.check(A.shape)
    n = A.shape[0]
    k = options.count(n)
    found = direct.choose(n, k, options.which, A.dtype, facts)
    if found is None:
        raise DoesNotFitError(_needed(A, k, options.which, facts))
    square, n_threads = n * n * A.dtype.itemsize, found.n_threads
    names = {"evd": "divide and conquer", "evr": "bisection or relatively robust representations"}
    plan = Plan(
        kind="eigh",
        method=found.routine,
        words=f"LAPACK in one task with {n_threads} thread{'s' * (n_threads > 1)}: tridiagonal reduction, {names[found.routine]}",
        matrix=A.describe(),
        grids=Grids(),
        steps=(
            Step(
                "eigenpairs",
                direct.flops(n, k, options.which),
                A.n_stored_bytes,
                n * k * A.dtype.itemsize,
                n_threads=n_threads * _EFFICIENCY,
            ),
        ),
        memory=(
            Need("the matrix, read and overwritten", square),
            Need("vectors, and what LAPACK works in", found.n_bytes - square),
            *libraries(facts),
        ),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=tuple(A.notes),
        choices=asdict(found),
    )
    proof = plan_proof(A, options.which, facts) if k < n else None
    return plan if proof is None else _with_proof(plan, proof)


def _with_proof(plan: Plan, proof: Plan) -> Plan:
    return replace(
        plan,
        words=f"{plan.words}; then the proof by Cholesky that none was missed",
        grids=replace(plan.grids, panels=proof.grids.panels),
        steps=(*plan.steps, *proof.steps),
        memory=max(plan.memory, proof.memory, key=lambda memory: sum(need.n_bytes for need in memory)),
        bytes_moved=proof.bytes_moved,
        n_tasks=proof.n_tasks,
    )


def _needed(A: Matrix, k: int, which: Which, facts: ClusterFacts) -> str:
    n = A.shape[0]
    if n > direct.LARGEST:
        return f"input.matrix: {n} rows are more than the {direct.LARGEST} of which LAPACK finds eigenvalues at once."
    least = direct.least_bytes(n, k, which, A.dtype)
    return (
        f"One worker needs {(least + facts.memory_bytes - facts.work_bytes) / 1e9:.2f} GB for the matrix of {n} rows and its "
        f"eigenvectors, and has {facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory, or use fewer workers."
    )


def compute_eigh(run: Run, A: Matrix, options: EighOptions, plan: Plan) -> Outcome:
    """Compute eigenpairs by their plan; ``eigenvectors`` (n, k) go to the outputs of the run.

    Returns
    -------
    Outcome
        With ``eigenvalues`` (k,), ascending, and ``residuals`` (k,), an eigenvalue of the matrix being no further from each.

    Raises
    ------
    InputError
        If the matrix is not symmetric, or not Hermitian where it is complex.

    References
    ----------
    Golub and Van Loan (2013), sections 8.3 to 8.5.
    """
    k = options.count(A.shape[0])
    choice = direct.Choice(**plan.choices)
    pairs, V = direct.find_directly(run, A, k=k, which=options.which, choice=choice, seed=options.seed)
    return conclude(run, A, pairs, V, options, plan)


def conclude(run: Run, A: Matrix, pairs: Pairs, V: Matrix, options: EighOptions, plan: Plan) -> Outcome:
    """The outcome of pairs whose vectors are written: their certificate, and the proof that none is missing."""
    n, k, real = A.shape[0], len(pairs.values), np.dtype(A.dtype.char.lower())
    certificate, complete, notes = Certificate(pairs.checks(n, A.dtype)), k == n, list[str]()
    if plan.grids.panels is not None and certificate.passed:
        proof = prove(Passes(run), A, pairs, V.read(0, n), which=options.which, grid=plan.panels)
        certificate, complete = certificate.also(proof.check), proof.complete
        notes += _beyond(pairs, proof.margin, options.which)
    arrays = {
        "eigenvalues": scaled_back(pairs.values, pairs.exponent, real, what="The eigenvalues"),
        "residuals": np.ldexp(pairs.residuals, pairs.exponent),
    }
    estimates = {"complete": complete, "norm": float(np.ldexp(pairs.norm, pairs.exponent))}
    return Outcome(arrays, ("eigenvectors",), certificate, estimates, tuple(notes))


def _beyond(pairs: Pairs, margin: float, which: Which) -> list[str]:
    """That the set of eigenvalues is not the only one, where the next one is as near as can be told."""
    if pairs.nearest is None:
        return []
    last = {"largest": pairs.values[0], "smallest": pairs.values[-1], "magnitude": np.abs(pairs.values).min()}[which]
    distance = abs(float(last) - (abs(pairs.nearest) if which == "magnitude" else pairs.nearest))
    if distance > margin:
        return []
    near = f"within {power_words(margin, pairs.exponent)} of the last"
    said = f"a cluster goes on beyond the {len(pairs.values)} eigenvalues: the next one is {near}"
    return [f"{said}, so the set, and the vectors of that cluster, are not the only ones"]


KIND = Kind(
    name="eigh",
    title="Eigenvalues of a symmetric matrix",
    words="Eigenvalues and eigenvectors of a symmetric or Hermitian matrix: all of them, or some, proved to be complete.",
    arrays="`eigenvalues` (k), ascending, `eigenvectors` (n, k), `residuals` (k)",
    options=EighOptions,
    plan=matrix_plan(plan_eigh),
    compute=matrix_compute(compute_eigh),
    example="{kind: eigh, input: {matrix: a.zarr}, params: {n_components: 20}}",
)
