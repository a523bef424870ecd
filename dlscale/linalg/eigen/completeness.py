"""The proof that no eigenvalue was missed: a Cholesky factorization of the shifted matrix without the pairs that were found.

Let V (n, k) hold the pairs found, sigma lie above the last of the k largest, and

    M = sigma I - A + V (L - lambda_k I) V^H.

If M is positive definite then ``x^H A x < sigma`` for all unit x orthogonal to V, so that A has at most k eigenvalues from sigma on
(Courant and Fischer): whatever V is, and whether or not it spans an invariant subspace. That M is so is shown by its Cholesky
factorization, in double precision, up to what rounding makes of a factorization that ended well (Rump): its bound is part of sigma.
The k smallest are the k largest of -A, and for the largest moduli both sides are shown.

References
----------
Rump (2006), Verification of positive definiteness, theorem 2.3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Check
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.errors import DoesNotFitError, NumericalError
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.cholesky import kind as cholesky
from dlscale.linalg.eigen.pairs import Pairs, Which
from dlscale.linalg.panels.plan import ByPanels, FactorOptions, plan_panels
from dlscale.linalg.scaling import bound_words
from dlscale.storage.matrix import Matrix, View
from dlscale.storage.scaled import scaled

#: The name of the factorization's steps.
STEP = "complete"
_OF_ZEROS = 1e-100


class Deflated(View):
    """``sign (sigma I - A + V diag(d) V^H)`` in double precision, made as it is read.

    Parameters
    ----------
    base : Matrix (n, n)
        A.
    V : (n, k)
    d : (k,)
    sigma, sign : float
    """

    def __init__(self, base: Matrix, V: Array, d: Array, sigma: float, sign: float) -> None:
        super().__init__(base)
        self.stored_dtype = accumulator_dtype(base.dtype)
        self.V, self.d, self.sigma, self.sign = V, d, sigma, sign

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        right = self.d[:, None] * self.V[slice(*columns)].astype(self.dtype).conj().T
        block: Array = np.matmul(self.V[slice(*rows)].astype(self.dtype), right, out=out)
        block -= self.base.region(rows, columns)
        first, last = max(rows[0], columns[0]), min(rows[1], columns[1])
        if first < last:
            i = np.arange(first, last)
            block[i - rows[0], i - columns[0]] += self.sigma
        block *= self.sign
        return block


class _Unread(View):
    """What a plan needs to know of the shifted matrix."""

    def __init__(self, base: Matrix) -> None:
        super().__init__(base)
        self.stored_dtype = accumulator_dtype(base.dtype)

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        return np.ones((rows[1] - rows[0], columns[1] - columns[0]), self.dtype)


@dataclass(frozen=True)
class Proof:
    """What was shown of the set of eigenvalues.

    Parameters
    ----------
    complete : bool
    margin : float
        So far beyond the last of the values an eigenvalue could still lie, of the scaled matrix.
    check : Check
    """

    complete: bool
    margin: float
    check: Check


def plan_proof(A: Matrix, which: Which, facts: ClusterFacts) -> Plan | None:
    """The factorization, or the two of largest moduli; None where its panels do not fit.

    Notes
    -----
    n^3 / 3 flops each.
    """
    try:
        plan = plan_panels(ByPanels("eigh", "", cholesky.STEPS, step=STEP), _Unread(A), FactorOptions(), facts)
    except DoesNotFitError:
        return None
    steps = plan.steps
    if which == "magnitude":
        steps = tuple(replace(step, id=f"{side}-{step.id}") for side in ("above", "below") for step in steps)
    return replace(plan, steps=steps)


def prove(passes: Passes, A: Matrix, pairs: Pairs, V: Array, *, which: Which, grid: PanelGrid) -> Proof:
    """Show that the pairs are all there are up to the last of them.

    Parameters
    ----------
    passes : Passes
    A : Matrix (n, n)
    pairs : Pairs
    V : (n, k)
        Their vectors.
    which : str
    grid : PanelGrid
    """
    A, values = scaled(A, -pairs.exponent), pairs.values.astype(float)
    margin = margin_of(pairs, len(V))
    if which == "magnitude":
        target, sides = 0.0, {"above-": (1.0, float(np.abs(values).min())), "below-": (-1.0, float(np.abs(values).min()))}
    else:
        sign, target = (1.0, float(values[0])) if which == "largest" else (-1.0, float(values[-1]))
        sides = {"": (sign, sign * target)}
    shifted = {name: Deflated(A, V, values - target, sign * (edge + margin), sign) for name, (sign, edge) in sides.items()}
    definite = all(_is_definite(passes.apart(name), M, grid) for name, M in shifted.items())
    words = bound_words(margin, pairs.exponent)
    beyond = {"largest": "above the smallest", "smallest": "below the largest", "magnitude": "beyond the smallest modulus"}[which]
    check = Check(
        "1 if the Cholesky factorization of s I - A + V (L - l) V' breaks down",
        0.0 if definite else 1.0,
        0.0,
        f"without the {len(values)} pairs, the matrix has no eigenvalue more than {words} {beyond} of them: none was missed",
    )
    return Proof(definite, margin, check)


def margin_of(pairs: Pairs, n: int) -> float:
    """How far beyond the last value sigma must lie for rounding and what the pairs leave not to matter.

    Notes
    -----
    The pairs move the eigenvalues of M by at most ``2 ||R|| + ||L - l|| ||I - V^H V||``; the factorization ends well where they
    exceed ``(n + 2) eps / 2`` of its trace, and proves no more than that.
    """
    spread = 2.0 * pairs.norm
    moved = 2.0 * float(np.linalg.norm(pairs.residuals + pairs.hidden)) + spread * pairs.departure
    rounding = (n + 2) * float(np.finfo(float).eps) / 2 * n * spread
    # Of a matrix of zeros all eigenvalues are below any margin.
    return moved + 2.0 * rounding or _OF_ZEROS


def _is_definite(passes: Passes, M: Matrix, grid: PanelGrid) -> bool:
    probes = np.zeros((M.shape[0], 1), M.dtype)
    try:
        cholesky.factor_panels(passes, M, grid, probes=probes, step=STEP, keep=False)
    except NumericalError:
        return False
    return True
