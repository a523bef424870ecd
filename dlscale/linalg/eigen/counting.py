"""The proof that no eigenvalue nearer to sigma was missed: two inertias of the matrix without the pairs that were found.

Let V (n, k) hold the pairs found, and ``A' = A + (B V) W (B V)^H`` with a diagonal W. If no eigenvalue of ``A' - lambda B`` is
within rho of sigma, then at most k of those of ``A - lambda B`` are: a space of more of their vectors would have one orthogonal to
all of B V, on which A' is A. That holds whatever V is, and whether or not it spans an invariant subspace. How many eigenvalues
of A' are below a value is how many negative ones D has in ``A' - value B = U^H D U`` (Sylvester), up to what rounding makes of that
factorization, which is measured and taken off rho.

References
----------
Parlett (1998), The Symmetric Eigenvalue Problem, chapter 3: slicing the spectrum.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Check
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Applied, Columns, Span, Tell
from dlscale.engine.run import Cost, Run, State
from dlscale.kernels import blas_threads
from dlscale.linalg.eigen.shifted import Pencil, factored, strips
from dlscale.linalg.scaling import bound_words

_EPS = float(np.finfo(float).eps)
#: Times the error of a factorization: how far its shift stays away from eigenvalues.
_APART = 4.0
#: Times n eps ||A|| / ||B||: eigenvalues so near to sigma are at it.
_AT_SIGMA = 100.0
#: Times n eps times the norm: what an inertia tells from zero, for sure.
_TOLD = 2.0


@dataclass(frozen=True)
class Count(Applied):
    """Counts the eigenvalues below a value.

    Parameters
    ----------
    pencil : Pencil
    V : (n, k), double precision
        At the scale at which the pencil is read.
    weights : (k,)
        The diagonal of W.
    value : float
        At that scale too.
    seed, n_threads : int
    """

    pencil: Pencil
    V: Array
    weights: Array
    value: float
    seed: int
    n_threads: int

    def cost(self, slabs: Sequence[Span]) -> Cost:
        A, B = self.pencil.A, self.pencil.B
        return Cost(flops(len(self.V), self.V.shape[1]), A.n_stored_bytes + (0 if B is None else B.n_stored_bytes))

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        held = self.pencil.read(tell)
        M, W = held.M, self.V
        with blas_threads(self.n_threads):
            if held.B is not None:
                W = held.B @ self.V
            right = (self.weights[:, None] * W.conj().T).astype(W.dtype)
            for rows in strips(M):
                M[rows] += W[rows] @ right
            held.shift(self.value)
        n, k = W.shape
        # Entries are rounded when they are made, each in sums of k + 2 terms.
        sizes = n**0.5 * held.bound(self.value) + (k + 2) * float(np.abs(self.weights) @ np.linalg.norm(W, axis=0) ** 2)
        found, lost = factored(M, self.seed, self.n_threads, tell)
        tell(flops(n, k), 0)
        return [{"inertia": np.array(found.inertia), "lost": np.array([lost + _EPS * sizes])}]


def flops(n: int, k: int) -> float:
    """The matrix without the pairs, and its factorization."""
    return n**3 / 3 + 2.0 * n * n * k


@dataclass(frozen=True)
class Interval:
    """What was found about a value, at the scale at which the pencil is read.

    Parameters
    ----------
    target : float
        Sigma.
    values : (k,)
    V : (n, k)
    residuals : (k,)
        Errors of the values.
    departure : float
        ``||I - V^H B V||_F``.
    lost : float
        The error of one such factorization.
    stretch : float
        ``||B^-1||_2``, not less: what turns errors of a matrix into such of eigenvalues.
    unit : float
        n eps ``||A|| / ||B||``.
    norm, b_norm : float
        Not less than those of A and B; 1 without B.
    exponent : int
        The values are to be multiplied by ``2^exponent``.
    about : str
        What the target is called.
    """

    target: float
    values: Array
    V: Array
    residuals: Array
    departure: float
    lost: float
    stretch: float
    unit: float
    norm: float
    b_norm: float
    exponent: int
    about: str = "sigma"


@dataclass(frozen=True)
class Proof:
    """What was shown.

    Parameters
    ----------
    check : Check
    margin : float
        So much nearer than the last of the values an eigenvalue could still lie.
    complete : bool
        Whether there is an interval that was shown to have no others.
    """

    check: Check
    margin: float
    complete: bool


def prove_nearest(run: Run, pencil: Pencil, found: Interval, facts: ClusterFacts, *, seed: int, n_threads: int) -> Proof:
    """Show that there are no eigenvalues nearer to sigma than the pairs that were found."""
    distances = np.abs(found.values - found.target)
    last, k = float(distances.max()), len(distances)
    # Where V is not exactly invariant, W moves the other eigenvalues too.
    moved = 4.0 * float(np.linalg.norm(found.residuals)) + 2.0 * last * found.departure
    side = np.where(found.values >= found.target, 1.0, -1.0)
    weights = found.target + side * 2 * last - found.values
    # What inertias do not tell from zero is counted: the shifts stay further away than that from what is no nearer than the last.
    largest = found.norm + (float(np.abs(weights).max()) + abs(found.target) + last) * found.b_norm
    untold_part = _TOLD * len(found.V) * _EPS * largest
    # Of a matrix of zeros all eigenvalues are within any margin.
    margin = found.stretch * (_APART * found.lost + untold_part) + moved + found.unit or float(np.finfo(float).tiny)
    rho = last - margin
    name = "eigenvalues nearer to sigma that two inertias of A + BV W V'B, without the pairs, count"
    at_sigma = last <= _AT_SIGMA * found.unit
    near = bound_words(max(last, found.unit), found.exponent)
    untold = f"all {k} eigenvalues are within {near} of {found.about}, and rounding tells no more"
    if rho <= 0:
        return Proof(Check(name, 0.0, 0.0, untold), margin, at_sigma)
    counts = []
    for step, value in (("count-below", found.target - rho), ("count-above", found.target + rho)):
        what = Count(pencil, found.V, weights, value, seed, n_threads)
        counts += Columns(run, facts).apply(step, what, n_columns=1, width=1)
    below, above = counts
    # What is not told from zero may be on either side.
    n_left = int(above["inertia"][1] + above["inertia"][2] - below["inertia"][1])
    lost = found.stretch * max(float(state["lost"][0]) for state in counts)
    proved = rho - lost
    if proved <= 0:
        return Proof(Check(name, 0.0, 0.0, untold), last, at_sigma)
    words = _words_below(proved, found.exponent)
    meaning = f"beside the {k} pairs no eigenvalue is nearer to {found.about} than {words}: none was missed"
    return Proof(Check(name, float(n_left), 0.0, meaning), margin + lost, n_left == 0)


def _words_below(value: float, exponent: int) -> str:
    """``value 2^exponent``, rounded down, for people."""
    value *= 1 - 1e-6
    with np.errstate(over="ignore", under="ignore"):
        whole = float(np.ldexp(value, exponent))
    return f"{whole:.7g}" if np.finfo(float).tiny <= whole < np.inf else f"{value:.7g} 2^{exponent}"
