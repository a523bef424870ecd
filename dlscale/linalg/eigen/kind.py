"""Eigenvalues and eigenvectors of a symmetric or Hermitian matrix: A V = V L."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.arrays import Array
from dlscale.certificates import Certificate
from dlscale.declaration.kind import Kind, Role
from dlscale.declaration.options import Options
from dlscale.declaration.sections import Seed
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import libraries, measured_rates
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.linalg.eigen import direct, generalized, iterative
from dlscale.linalg.eigen.completeness import plan_proof, prove
from dlscale.linalg.eigen.division.plan import find_divided, plan_divided
from dlscale.linalg.eigen.filtered import Aim
from dlscale.linalg.eigen.nearest import find_nearest, plan_nearest
from dlscale.linalg.eigen.pairs import Pairs, Which
from dlscale.linalg.eigen.shifted import Pencil
from dlscale.linalg.panels.plan import require_dense
from dlscale.linalg.scaling import at_safe_scale, bound_words, scale_words, scaled_back
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import ArrayMatrix, Matrix
from dlscale.storage.scaled import promoted

#: What takes no longer is done at once.
QUICK_SECONDS = 10.0
#: The proof may take so long, or as long as the iterations.
PROOF_SECONDS = 120.0
#: Reads that iterations usually take.
USUAL_READS = 50


Rates = dict[str, float | None]
Method = Literal["auto", "direct", "iterative", "divided"]
Completeness = Literal["auto", "cholesky", "random"]


@dataclass(frozen=True)
class EighOptions(Options):
    """What to compute: all eigenpairs, or k: of the largest or smallest eigenvalues, the largest moduli, or nearest to sigma.

    Notes
    -----
    ``direct`` is LAPACK in the memory of one worker, and ``divided`` finds all pairs where that is too small; ``iterative``
    multiplies, for some pairs, reading the matrix at most ``max_reads`` times, until residuals are at most ``tolerance`` of its
    norm (n eps where that is absent). That none of the pairs was missed is shown by a Cholesky factorization, n^3 / 3 flops, or
    by random vectors, with a probability.
    With ``sigma``, the shifted matrix is factored in the memory of one worker, and two more factorizations count what is nearer.
    """

    n_components: Annotated[int | None, Field(ge=1, description="an integer of at least 1: eigenpairs wanted; absent: all")] = None
    which: Annotated[Which, Field(description="largest, smallest or magnitude: the eigenvalues that are wanted first")] = "largest"
    sigma: Annotated[
        float | None,
        Field(allow_inf_nan=False, description="a number, with n_components: those nearest to it are wanted"),
    ] = None
    method: Annotated[Method, Field(description="auto, direct, iterative or divided")] = "auto"
    tolerance: Annotated[
        float | None, Field(gt=0, lt=1, description="a number between 0 and 1: residuals that iterations end with, of the norm")
    ] = None
    max_reads: Annotated[int, Field(ge=10, description="an integer of at least 10: reads of the matrix by iterations")] = 200
    completeness: Annotated[
        Completeness, Field(description="auto, cholesky or random: how it is shown that no pair is missing")
    ] = "auto"
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

        if self.sigma is not None:
            if self.n_components is None:
                raise SpecError("params.sigma: finds some eigenpairs; give params.n_components.")
            for name in ("which", "method", "tolerance", "completeness"):
                if getattr(self, name) != getattr(type(self), name):
                    raise SpecError(f"params.{name}: is left out with sigma; got {getattr(self, name)}.")
        if self.method == "divided" and self.n_components is not None:
            raise SpecError("params.method: divided finds all eigenpairs; leave params.n_components out.")
        if self.method == "iterative" and self.n_components is None:
            raise SpecError("params.method: iterative finds some eigenpairs; give params.n_components.")
        if self.tolerance is not None and (self.n_components is None or self.method == "direct"):
            raise SpecError("params.tolerance goes with n_components and method auto or iterative.")
        if self.completeness == "random" and (self.n_components is None or self.method == "direct"):
            raise SpecError("params.completeness: random goes with n_components and method auto or iterative.")

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
    if options.method == "divided":
        require_dense(A, "the polar factor", "find some of its eigenpairs (params.n_components)")
        return plan_divided(A, facts)
    choice = direct.choose(n, k, options.which, A.dtype, facts) if options.method != "iterative" else None
    rates = measured_rates(A, facts)
    at_once = None if choice is None else _plan_direct(A, k, options, choice, facts, rates)
    if options.n_components is None or options.method == "direct":
        if at_once is None and options.n_components is None and options.method == "auto" and not A.is_sparse:
            return plan_divided(A, facts)
        if at_once is None:
            raise DoesNotFitError(_needed(A, k, options.which, facts))
        plan = at_once
    else:
        plan = _plan_iterative(A, options, facts, rates)
        if at_once is not None and options.tolerance is None and options.completeness != "random":
            soon = max(QUICK_SECONDS, plan.nominal_seconds * USUAL_READS / options.max_reads)
            plan = at_once if at_once.nominal_seconds <= soon else plan
    return _with_completeness(plan, A, options, facts) if k < n else plan


def _plan_direct(A: Matrix, k: int, options: EighOptions, choice: direct.Choice, facts: ClusterFacts, rates: Rates) -> Plan:
    n, item = A.shape[0], A.dtype.itemsize
    square, n_threads = n * n * item, choice.n_threads
    names = {"evd": "divide and conquer", "evr": "bisection or relatively robust representations"}
    flops = direct.flops(n, k, options.which, choice.routine)
    return Plan(
        kind="eigh",
        method="direct",
        words=f"LAPACK in one task with {n_threads} thread{'s' * (n_threads > 1)}: tridiagonal reduction, {names[choice.routine]}",
        matrix=A.describe(),
        grids=Grids(),
        steps=(Step("eigenpairs", flops, A.n_stored_bytes, n * k * item, n_threads=n_threads * direct.EFFICIENCY),),
        memory=(
            Need("the matrix, read and overwritten", square),
            Need("vectors, and what LAPACK works in", choice.n_bytes - square),
            *libraries(facts),
        ),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=rates,
        notes=tuple(A.notes),
        choices=asdict(choice),
    )


def _plan_iterative(A: Matrix, options: EighOptions, facts: ClusterFacts, rates: Rates) -> Plan:
    k = options.count(A.shape[0])
    layout = iterative.lay_out_reads(A, k, facts)
    once, each = (A.n_stored_bytes, 0) if layout.resident else (0, A.n_stored_bytes)
    flops = 4.0 * A.n_entries * layout.width
    if A.is_sparse:
        rates = measured_rates(A, facts, grid=layout.grid, sparse=True)
    reads = [Step("symmetry", flops, each), *(Step(f"read-{i}", flops, each) for i in range(2, options.max_reads + 1))]
    return Plan(
        kind="eigh",
        method="iterative",
        words=f"Chebyshev-filtered subspace of {layout.width} columns, at most {options.max_reads} reads ({layout.words})",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        steps=(*([Step("resident", 0.0, once)] if once else []), *reads, Step("residuals", 2.0 * A.n_entries * k, each)),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=rates,
        notes=(*layout.notes, *A.notes),
        choices={"resident": layout.resident, "width": layout.width},
    )


def _plan(inputs: Inputs, options: EighOptions, facts: ClusterFacts) -> Plan:
    A, B = inputs["matrix"], inputs.get("b")
    options.check(A.shape)
    n = A.shape[0]
    if B is not None and B.shape != A.shape:
        raise SpecError(f"input.b: must have the shape of input.matrix, {n} x {n}; got {B.shape[0]} x {B.shape[1]}.")
    if options.sigma is not None:
        return plan_nearest(_pencil(inputs), options.count(n), facts)
    if B is None:
        return plan_eigh(A, options, facts)
    if options.method == "iterative" or options.tolerance is not None or options.completeness == "random":
        raise SpecError(
            "params: with input.b all pairs are found in memory; method iterative, tolerance and random have no place there."
        )
    return generalized.plan_generalized(promoted(A, B.dtype), promoted(B, A.dtype), options.count(n), facts)


def _pencil(inputs: Inputs) -> Pencil:
    A, B = inputs["matrix"], inputs.get("b")
    return Pencil(A, None) if B is None else Pencil(promoted(A, B.dtype), promoted(B, A.dtype))


def _compute(run: Run, inputs: Inputs, options: EighOptions, plan: Plan) -> Outcome:
    A, B = inputs["matrix"], inputs.get("b")
    if options.sigma is not None:
        return _compute_nearest(run, _pencil(inputs), options, plan)
    if B is None:
        return compute_eigh(run, A, options, plan)
    A, B = promoted(A, B.dtype), promoted(B, A.dtype)
    choice, k = direct.Choice(**plan.choices), options.count(A.shape[0])
    pairs, checks = generalized.find_generalized(run, A, B, k=k, which=options.which, choice=choice, seed=options.seed)
    notes = _beyond(pairs, float(pairs.errors(A.dtype).max()), options.which)
    return Outcome(_arrays(pairs, A.dtype), ("eigenvectors",), Certificate(checks), {"complete": True}, tuple(notes))


def _compute_nearest(run: Run, pencil: Pencil, options: EighOptions, plan: Plan) -> Outcome:
    n, sigma = pencil.n, options.sigma
    assert sigma is not None
    found = find_nearest(run, pencil, options.count(n), sigma, plan, seed=options.seed)
    certificate, proof, notes = Certificate(found.checks), found.proof, list(found.notes)
    if proof is not None:
        certificate = certificate.also(proof.check)
        notes += _beyond(found.pairs, proof.margin, "sigma", found.target)
    complete = len(found.pairs.values) == n or (proof is not None and proof.complete)
    estimates = {"complete": complete, "norm": float(np.ldexp(found.pairs.norm, found.pairs.exponent)), **found.estimates}
    return Outcome(_arrays(found.pairs, pencil.A.dtype), ("eigenvectors",), certificate, estimates, tuple(notes))


def _with_completeness(plan: Plan, A: Matrix, options: EighOptions, facts: ClusterFacts) -> Plan:
    """With the proof that no pair is missing, where it takes little time or was asked for; or else with random vectors.

    Raises
    ------
    DoesNotFitError
        If the proof does not fit where there is no other way.
    """
    needed = plan.method == "direct" or options.completeness == "cholesky"
    proof = plan_proof(A, options.which, facts) if options.completeness != "random" else None
    if proof is None and needed:
        raise DoesNotFitError(
            "One worker has no room for the panels of the Cholesky factorization that shows that no pair is missing."
        )
    soon = max(PROOF_SECONDS, plan.nominal_seconds * USUAL_READS / options.max_reads)
    if proof is not None and (needed or proof.nominal_seconds <= soon):
        return _with_proof(plan, proof)
    each = 0 if plan.choices["resident"] else A.n_stored_bytes
    flops = 4.0 * A.n_entries * iterative.CHECK_COLUMNS
    names = [*(f"check-0-read-{i + 1}" for i in range(iterative.CHECK_READS)), "check-0-last"]
    checks = tuple(Step(name, flops, each) for name in names)
    words = f"{plan.words}; then random vectors that would show a pair that was missed"
    return replace(plan, words=words, steps=(*plan.steps[:-1], *checks, plan.steps[-1]))


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
    n, k = A.shape[0], options.count(A.shape[0])
    if plan.method == "direct":
        choice = direct.Choice(**plan.choices)
        pairs, V = direct.find_directly(run, A, k=k, which=options.which, choice=choice, seed=options.seed)
        return conclude(run, A, pairs, V, options, plan)
    if plan.method == "divided":
        pairs, V = find_divided(run, A, plan, seed=options.seed)
        return conclude(run, A, pairs, V, options, plan)
    aim = Aim(k, options.which, options.tolerance or n * float(np.finfo(A.dtype).eps))
    proved, resident = plan.grids.panels is not None, bool(plan.choices["resident"])
    search = iterative.Search(aim, options.seed, options.max_reads, width=int(plan.choices["width"]), sampled=not proved)
    found, exponent = at_safe_scale(
        Passes(run), A, plan.rows, partial(iterative.find_some, search=search, grid=plan.rows, resident=resident)
    )
    outcome = conclude(run, A, replace(found.pairs, exponent=exponent), ArrayMatrix(found.V), options, plan)
    certificate, estimates = outcome.certificate, outcome.estimates | {"reads": found.n_reads}
    if found.check is not None:
        certificate = certificate.also(found.check)
        estimates |= {"complete": 1.0 - iterative.CHECK_FAILURE if found.check.passed else False}
    arrays = outcome.arrays | {"eigenvectors": found.V}
    notes = (*outcome.notes, *scale_words(exponent))
    return replace(outcome, arrays=arrays, stored=(), certificate=certificate, estimates=estimates, notes=notes)


def conclude(run: Run, A: Matrix, pairs: Pairs, V: Matrix, options: EighOptions, plan: Plan) -> Outcome:
    """The outcome of pairs whose vectors are written: their certificate, and the proof that none is missing."""
    n, k = A.shape[0], len(pairs.values)
    certificate, notes = Certificate(pairs.checks(n, A.dtype, options.tolerance)), list[str]()
    complete = k == n
    if plan.grids.panels is not None and certificate.passed:
        proof = prove(Passes(run), A, pairs, V.read(0, n), which=options.which, grid=plan.panels)
        certificate, complete = certificate.also(proof.check), proof.complete
        notes += _beyond(pairs, proof.margin, options.which)
    arrays = _arrays(pairs, A.dtype)
    estimates = {"complete": complete, "norm": float(np.ldexp(pairs.norm, pairs.exponent))}
    return Outcome(arrays, ("eigenvectors",), certificate, estimates, tuple(notes))


def _arrays(pairs: Pairs, dtype: np.dtype[Any]) -> dict[str, Array]:
    values = scaled_back(pairs.values, pairs.exponent, np.dtype(dtype.char.lower()), what="The eigenvalues")
    # Where values have fewer digits than others, they are rounded to multiples of the smallest number.
    errors = np.ldexp(pairs.errors(dtype), pairs.exponent) + float(np.finfo(dtype).smallest_subnormal) * (pairs.exponent != 0)
    return {"eigenvalues": values, "residuals": errors}


def _beyond(pairs: Pairs, margin: float, which: Which | Literal["sigma"], target: float = 0.0) -> list[str]:
    """That the set of eigenvalues is not the only one, where the next one is as near as can be told."""
    if pairs.nearest is None:
        return []
    if which in ("largest", "smallest"):
        distance = abs(float(pairs.values[0] if which == "largest" else pairs.values[-1]) - pairs.nearest)
    else:
        sizes = np.abs(pairs.values.astype(float) - target)
        distance = abs(float(sizes.max() if which == "sigma" else sizes.min()) - abs(pairs.nearest - target))
    if distance > margin:
        return []
    near = f"within {bound_words(margin, pairs.exponent)} of the last"
    near += ", counted from sigma" if which == "sigma" else ""
    said = f"a cluster goes on beyond the {len(pairs.values)} eigenvalues: the next one is {near}"
    return [f"{said}, so the set, and the vectors of that cluster, are not the only ones"]


KIND = Kind(
    name="eigh",
    title="Eigenvalues of a symmetric matrix",
    words="Eigenvalues and eigenvectors of a symmetric or Hermitian matrix: all of them, or some, proved to be complete.",
    arrays="`eigenvalues` (k), ascending, `eigenvectors` (n, k), `residuals` (k)",
    options=EighOptions,
    plan=_plan,
    compute=_compute,
    dimensions={"eigenvalues": ("pair",), "eigenvectors": ("column", "pair"), "residuals": ("pair",)},
    example="{kind: eigh, input: {matrix: a.zarr}, params: {n_components: 20}}",
    roles=(Role("matrix"), Role("b", "as the matrix, positive definite: of A x = lambda B x", optional=True)),
)
