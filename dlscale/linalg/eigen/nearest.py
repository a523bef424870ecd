"""Eigenpairs nearest to a value: ``A - sigma B = U^H D U`` in the memory of a worker, and the largest of its inverse.

    S = L^H (A - sigma B)^-1 L,    B = L L^H,    S Y = Y T,    X = L^-H Y,    lambda = sigma + 1 / theta

Without B, L is the identity. The pairs are those of A and B in the space of X, measured on the matrices as they are stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.linalg

from dlscale.arrays import Array
from dlscale.certificates import Check, scaled
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Applied, Columns, Span, Tell
from dlscale.engine.costs import libraries, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.outputs import RowOutput
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.run import Cost, Run, State
from dlscale.errors import DoesNotFitError, NumericalError
from dlscale.kernels import blas_threads, times_power_of_two
from dlscale.lapack import factor_cholesky, multiply_triangular, solve_lower
from dlscale.linalg.eigen import counting, direct
from dlscale.linalg.eigen.counting import Interval, Proof, prove_nearest
from dlscale.linalg.eigen.direct import N_PROBES, SAFETY
from dlscale.linalg.eigen.pairs import Pairs, indefinite_words
from dlscale.linalg.eigen.shift_invert import WIDTH, Nearest
from dlscale.linalg.eigen.shifted import Factored, Held, Pencil, factored, in_lambda
from dlscale.linalg.in_memory import WORK_BYTES, n_blas_threads
from dlscale.linalg.scaling import power_words
from dlscale.linalg.solve.symmetric import EFFICIENCY, LARGEST, LDLFactors
from dlscale.linalg.svd.subspace import gaussian
from dlscale.storage.matrix import ArrayMatrix

#: Residuals that are looked for, of what is allowed.
_AIM = 0.25
#: How often vectors are multiplied once more where they are not good enough.
_POLISHES = 3
#: Times n eps ||A|| / ||B||: how far sigma is moved from an eigenvalue; and how often, each time further.
_MOVE, _MOVES = 64.0, 4
#: Blocks that are solved with for few pairs, as a rule.
USUAL_BLOCKS = 12
_EPS = float(np.finfo(float).eps)


@dataclass(frozen=True)
class FindNearest(Applied):
    """Factors the shifted matrix, finds the pairs, measures them and writes their vectors.

    Parameters
    ----------
    pencil : Pencil
    output : RowOutput (n, k)
    sigma : float
    seed : int
    n_threads : int
        Of BLAS, which decide the order of sums.
    """

    pencil: Pencil
    output: RowOutput
    sigma: float
    seed: int
    n_threads: int

    def cost(self, slabs: Sequence[Span]) -> Cost:
        n, k, A = self.pencil.n, slabs[0][1], self.pencil.A
        return Cost(flops(n, k, self.pencil), n_bytes_read(self.pencil), n * k * A.dtype.itemsize)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        n, k, pencil = self.pencil.n, slabs[0][1], self.pencil
        shifted = self._factored(tell)
        shift, held, (found, lost), *_ = shifted
        if held.B is not None:
            with blas_threads(self.n_threads):
                minor = factor_cholesky(held.B)
            if minor:
                raise NumericalError(indefinite_words(minor))
        factors = LDLFactors(ArrayMatrix(held.M), found.blocks, found.order, found.inertia, self.n_threads)
        search = _Search(pencil, held, shifted.target, self.n_threads, tell)
        nearest = Nearest(
            lambda Y: search.inverse(factors, Y), n, k, held.M.dtype,
            reach=2 * abs(shift - shifted.target), seed=self.seed,
        )  # fmt: skip
        tolerance = n * float(np.finfo(pencil.A.dtype).eps)
        _, Y = nearest.search(max(_AIM * tolerance * held.size(shift) / held.bound(shift), 8 * _EPS))
        state, VH = search.measured(Y, k)
        for _ in range(_POLISHES):
            if state["error"][0] <= tolerance:
                break
            better, rounded = search.measured(np.linalg.qr(search.inverse(factors, Y)).Q, k)
            if better["error"][0] < state["error"][0]:
                state, VH = better, rounded
        tell(flops(n, k, pencil), 0)
        direct.write_columns(self.output, times_power_of_two(VH, -(held.f // 2)))
        stretch = 1.0 if held.B is None else search.inverse_norm(self.seed) ** 2
        state["hidden"] = _EPS * (stretch if held.B is None else stretch / n) ** 0.5 * state.pop("sizes")
        unit = tolerance * float(state["norm"][0]) / (held.b_norms.least or 1.0)
        facts = {"target": shifted.target, "moved": shift - shifted.target, "lost": lost, "stretch": stretch, "unit": unit}
        facts |= {"a_most": held.a_norms.most, "b_most": held.b_norms.most or 1.0, "beyond": float(shifted.beyond)}
        exponents = {"e": np.array([held.e]), "f": np.array([held.f]), "n_solves": np.array([nearest.n_applied])}
        return [state | exponents | {name: np.array([value]) for name, value in facts.items()}]

    def _factored(self, tell: Tell) -> Shifted:
        """The factors of the shifted matrix; sigma is moved a little where it is an eigenvalue to rounding."""
        shift, beyond = None, False
        for i in range(_MOVES + 1):
            held = self.pencil.read(tell)
            target = in_lambda(self.sigma, held)
            if held.B is None:
                # Beyond all eigenvalues, the nearest ones are the same wherever it is.
                given, most = target, 2 * held.a_norms.most
                target = float(np.clip(target, -most, most))
                beyond = target != given
            elif held.a_norms.most and not abs(target) * held.b_norms.least <= held.a_norms.most / _EPS:
                raise NumericalError("params.sigma: is so large that nothing of the matrix is left beside sigma times input.b.")
            shift = target if shift is None else shift
            held.shift(shift)
            done = factored(held.M, self.seed, self.n_threads, tell)
            if not (done.found.singular or done.found.inertia.n_zero):
                return Shifted(shift, held, done, target, beyond)
            unit = held.size(target) / (held.b_norms.least or 1.0) or 1.0
            shift = target + (-2.0) ** i * _MOVE * self.pencil.n * _EPS * unit
        raise NumericalError(
            "params.sigma: eigenvalues are so near to sigma, and to values on both sides of it, that rounding does not tell them "
            "apart; give another sigma, or leave it out."
        )


class Shifted(NamedTuple):
    """Factors of A minus ``shift`` times B; the shift is near the target, which is sigma, or nearer where that is beyond all
    eigenvalues.
    """

    shift: float
    held: Held
    done: Factored
    target: float
    beyond: bool


@dataclass(frozen=True)
class _Search:
    """Products with S, and what is measured of spaces that they lead to.

    Parameters
    ----------
    pencil : Pencil
    held : Held
        With L in the place of B.
    target : float
    n_threads : int
    tell : callable
    """

    pencil: Pencil
    held: Held
    target: float
    n_threads: int
    tell: Tell

    def inverse(self, factors: LDLFactors, Y: Array) -> Array:
        """``S Y``."""
        L = self.held.B
        if L is None:
            return factors.solve(Y, tell=self.tell)
        with blas_threads(self.n_threads):
            X = multiply_triangular(L, np.array(Y, order="C"), uplo="L")
        X = np.ascontiguousarray(factors.solve(X, tell=self.tell))
        with blas_threads(self.n_threads):
            return multiply_triangular(L, X, uplo="L", op="C")

    def measured(self, Y: Array, k: int) -> tuple[State, Array]:
        """The pairs of the pencil in the space of Y, and the adjoint of the vectors of the k nearest as they are handed out."""
        held, pencil, scale = self.held, self.pencil, (self.held.e, self.held.f)
        with blas_threads(self.n_threads):
            X = Y if held.B is None else solve_lower(held.B, np.array(Y, order="C"), op="C")
            AX, BX = pencil.times(X, scale, self.tell)
            H, G = X.conj().T @ AX, X.conj().T @ BX
            try:
                values, W = scipy.linalg.eigh((H + H.conj().T) / 2, (G + G.conj().T) / 2)
            except np.linalg.LinAlgError as error:
                raise NumericalError(
                    "input.b: is so nearly singular that rounding makes it indefinite for the vectors that were found; without "
                    "`sigma` all pairs are found by factors that bear more."
                ) from error
            order = np.argsort(np.abs(values - self.target), kind="stable")
            chosen = np.sort(order[:k])
            handed = (X @ W[:, chosen]).astype(pencil.A.dtype)
            V, found = handed.astype(X.dtype), values[chosen]
            AV, BV = (AX @ W[:, chosen], BX @ W[:, chosen]) if handed.dtype == X.dtype else pencil.times(V, scale, self.tell)
            R, lengths = AV - BV * found, np.linalg.norm(V, axis=0)
            bars = R if held.B is None else solve_lower(held.B, np.array(R, order="C"))
            lost = V.conj().T @ BV - np.eye(k)
        norm = max(held.a_norms.least, float(np.abs(found).max())) if held.B is None else held.a_norms.least
        sizes = (norm + np.abs(found) * held.b_norms.least) * lengths
        left = np.linalg.norm(R, axis=0)
        state = {
            "values": found,
            "nearest": values[order[k : k + 1]],
            "bars": np.linalg.norm(bars, axis=0),
            "sizes": sizes,
            "error": np.array([float(np.divide(left, sizes, out=np.where(left > 0, np.inf, 0.0), where=sizes > 0).max())]),
            "norm": np.array([norm]),
            "departure": np.array([np.linalg.norm(lost)]),
            "size": np.array([(held.b_norms.least * float(lengths.max()) ** 2) if held.B is not None else 1.0]),
        }
        return state, np.ascontiguousarray(handed.conj().T)

    def inverse_norm(self, seed: int) -> float:
        """``||L^-1||_F``, as random vectors measure it."""
        L = self.held.B
        assert L is not None
        G = np.ascontiguousarray(gaussian(len(L), N_PROBES, seed + 1, L.dtype))
        parts = 2 if L.dtype.kind == "c" else 1
        return SAFETY * float(np.linalg.norm(solve_lower(L, G, op="C"))) / float(np.sqrt(N_PROBES * parts))


class Found(NamedTuple):
    """The pairs that were found, with what was shown of them.

    Parameters
    ----------
    pairs : Pairs
    checks : tuple of Check
    proof : Proof, optional
        None where all pairs were wanted.
    target : float
        Sigma, at the scale of the pairs.
    estimates : dict
    notes : tuple of str
    """

    pairs: Pairs
    checks: tuple[Check, ...]
    proof: Proof | None
    target: float
    estimates: dict[str, float | int]
    notes: tuple[str, ...]


def find_nearest(run: Run, pencil: Pencil, k: int, sigma: float, plan: Plan, *, seed: int) -> Found:
    """The pairs nearest to sigma; ``eigenvectors`` (n, k) go to the outputs of the run."""
    n, dtype, n_threads = pencil.n, pencil.A.dtype, int(plan.choices["n_threads"])
    rows = min(n, 512)
    output = run.output("eigenvectors", (n, k), dtype, RowGrid(n, rows, rows))
    what = FindNearest(pencil, output, sigma, seed, n_threads)
    (found,) = Columns(run, plan.cluster).apply("shift-invert", what, n_columns=k, width=k, writers=output.writers)
    numbers = "target moved beyond lost stretch unit norm a_most b_most departure error size"
    fact = {name: float(found[name][0]) for name in numbers.split()}
    e, f = int(found["e"][0]), int(found["f"][0])
    nearest = float(found["nearest"][0]) if len(found["nearest"]) else None
    pairs = Pairs(found["values"], found["bars"], found["hidden"], fact["norm"], fact["departure"], nearest, e - f)
    checks = pairs.checks(n, dtype) if pencil.B is None else _checks(fact, n, dtype)
    notes, target = list[str](), float(np.ldexp(fact["target"], e - f))
    if fact["moved"]:
        size = power_words(abs(fact["moved"]), e - f)
        notes.append(f"sigma is an eigenvalue to rounding: what was factored is shifted by {size} more; distances are from sigma")
    if fact["beyond"]:
        notes.append(f"sigma is beyond all eigenvalues: what is said of distances from it is measured from {target!r}")
    proof = None
    if k < n and all(check.passed for check in checks):
        V = times_power_of_two(np.asarray(output.matrix().read(0, n)).astype(pencil.wide), f // 2)
        interval = Interval(
            fact["target"],
            found["values"],
            V,
            pairs.residuals + pairs.hidden,
            fact["departure"],
            fact["lost"],
            fact["stretch"],
            fact["unit"],
            fact["a_most"],
            fact["b_most"],
            e - f,
            repr(target) if fact["beyond"] else "sigma",
        )
        proof = prove_nearest(run, pencil, interval, plan.cluster, seed=seed, n_threads=n_threads)
    return Found(pairs, checks, proof, fact["target"], {"solves": int(found["n_solves"][0])}, tuple(notes))


def _checks(fact: dict[str, float], n: int, dtype: np.dtype[np.generic]) -> tuple[Check, ...]:
    return (
        scaled(
            "||Ax - l Bx|| / ((||A|| + |l| ||B||) ||x|| n eps)", fact["error"], size=n, dtype=dtype,
            meaning="every pair is an exact one of matrices that differ from A and B by rounding only",
        ),
        scaled(
            "||I - X'BX|| / (||B|| ||X||^2 n eps)", fact["departure"], fact["size"], size=n, dtype=dtype,
            meaning="the eigenvectors are orthonormal with respect to B, to working precision",
        ),
    )  # fmt: skip


def plan_nearest(pencil: Pencil, k: int, facts: ClusterFacts) -> Plan:
    """Plan the k pairs nearest to a value.

    Raises
    ------
    DoesNotFitError
        If the memory of one worker does not hold the matrices in double precision.
    """
    A, n, item = pencil.A, pencil.n, pencil.wide.itemsize
    n_matrices, columns = 1 if pencil.B is None else 2, 4 * (k + 8 * WIDTH)
    matrices, vectors = n_matrices * n * n * item, n * columns * item + WORK_BYTES
    if n > LARGEST:
        raise DoesNotFitError(f"params.sigma: {n} rows are more than the {LARGEST} of which LAPACK makes LDL^T factors.")
    if matrices + vectors > facts.work_bytes:
        needed = (matrices + vectors + facts.memory_bytes - facts.work_bytes) / 1e9
        raise DoesNotFitError(
            f"params.sigma: {n} rows are factored in the memory of one worker, which needs {needed:.2f} GB and has "
            f"{facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory, or use fewer workers."
        )
    n_threads = n_blas_threads(n, facts)
    once, used = n_bytes_read(pencil) // 2, n_threads * EFFICIENCY
    steps = [Step("shift-invert", flops(n, k, pencil), 2 * once, n * k * A.dtype.itemsize, n_threads=used)]
    if k < n:
        steps += [Step(name, counting.flops(n, k), once, n_threads=used) for name in ("count-below", "count-above")]
    by_b = "" if pencil.B is None else ", Cholesky of B"
    return Plan(
        kind="eigh",
        method="shift_invert",
        words=f"LDL^T of the shifted matrix in one task{by_b}, block Krylov spaces of its inverse; BLAS threads: {n_threads}"
        + ("; then two inertias that count what is nearer" if k < n else ""),
        matrix=A.describe(),
        grids=Grids(),
        steps=tuple(steps),
        memory=(
            Need("the matrix, factored in its place" + (", and the other one" if by_b else ""), matrices),
            Need("vectors, and what is read", vectors),
            *libraries(facts),
        ),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts),
        notes=tuple(A.notes),
        choices={"n_threads": n_threads},
    )


def flops(n: int, k: int, pencil: Pencil) -> float:
    """The factorization, and solves with blocks of columns."""
    blocks = USUAL_BLOCKS + 2 * k // WIDTH
    with_b = pencil.B is not None
    return n**3 / 3 * (1 + with_b) + 2.0 * n * n * WIDTH * blocks * (1 + with_b)


def n_bytes_read(pencil: Pencil) -> int:
    """To be factored, and to be multiplied once."""
    return 2 * (pencil.A.n_stored_bytes + (0 if pencil.B is None else pencil.B.n_stored_bytes))
