"""What factorizations and solves show of their answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlscale.report import figures, lookahead, pictures, words
from dlscale.report.kinds import Telling, Tile, array
from dlscale.report.markup import Markup, div, join, tag
from dlscale.report.sections import Job, pair, section

_N_SOLUTIONS = 4
#: Points of a picture; more are thinned out, and the page stays small.
_MOST_POINTS = 1000


def _estimate(job: Job, key: str) -> float | None:
    """A number that the job estimated; JSON has null in the place of one that is not finite."""
    estimates = job.record.estimates
    if key not in estimates:
        return None
    value = estimates[key]
    if value is None:
        return float("inf")
    return float(value) if isinstance(value, int | float) else None


def rate_tile(job: Job) -> list[Tile]:
    """How fast the panels were factored."""
    found = lookahead.overall(job)
    if found is None:
        return []
    rate, part = found
    below = f"{words.share(part)} of the machine's product rate" if part else "all threads together"
    return [Tile("Factoring", words.quantity(rate, "FLOP/s"), below)]


def condition_tile(job: Job, below: str = "estimate, in the 1-norm") -> list[Tile]:
    """The condition number, and how many digits it costs."""
    value = _estimate(job, "condition")
    if value is None:
        return []
    digits = round(np.log10(value)) if 1 < value < np.inf else 0
    lost = f"; costs about {digits} digit{'s' if digits > 1 else ''}" if digits else ""
    return [Tile("Condition", words.number(value), below + lost)]


def _lu_tiles(job: Job) -> list[Tile]:
    shown = []
    growth, piv = _estimate(job, "growth_factor"), array(job, "piv")
    if growth is not None:
        shown.append(Tile("Growth factor", words.number(growth), "largest entry of U over that of A"))
    if piv is not None:
        moved = int(np.sum(piv != np.arange(len(piv))))
        shown.append(Tile("Row exchanges", words.count(moved), f"in {words.count(len(piv))} steps"))
    return shown + rate_tile(job)


def _iteration_tiles(job: Job) -> list[Tile]:
    """How many iterations there were, and what they came to."""
    n, true, reads = (_estimate(job, key) for key in ("iterations", "true_residual", "reads"))
    if n is None or true is None:
        return []
    below = f"{words.count(int(reads))} products with the matrix" if reads is not None else ""
    return [
        Tile("Iterations", words.count(int(n)), below),
        Tile("True residual", words.number(true), "of the right-hand side, measured"),
    ]


def _solve_tiles(job: Job) -> list[Tile]:
    shown = _iteration_tiles(job) + condition_tile(job)
    error, bound, n_steps = (
        _estimate(job, "backward_error"),
        _estimate(job, "forward_error_bound"),
        _estimate(job, "refinement_steps"),
    )
    if error is not None:
        below = f"after {n_steps:.0f} refinement step{'s' if n_steps != 1 else ''}" if n_steps else "no refinement needed"
        shown.append(Tile("Backward error", words.number(error), below))
    if bound is not None:
        said = words.number(bound) if bound < 1 else "no digit is sure"
        shown.append(Tile("Error of the solution", f"≤ {said}" if bound < 1 else said, "relative, from a bound of the condition"))
    return shown + rate_tile(job)


def _lstsq_title(job: Job) -> str:
    shortest = job.record.params.get("preconditioner") in (None, "none")
    return f"The least squares solution of minimum norm{'' if shortest else ' where columns are independent'}"


def _lstsq_tiles(job: Job) -> list[Tile]:
    rank, shape = _estimate(job, "rank"), job.record.matrix.get("shape")
    shown = []
    if rank is not None:
        below = f"of {words.count(min(shape))}" if shape else ""
        full = shape and rank == min(shape)
        shown.append(Tile("Numerical rank", words.count(int(rank)), f"{below}, full" if full else f"{below}; minimum norm"))
    return shown + condition_tile(job, "largest over smallest singular value") + rate_tile(job)


def _slogdet_tiles(job: Job) -> list[Tile]:
    shown = []
    sign, log = array(job, "sign"), array(job, "logabsdet")
    if log is not None:
        value = float(np.ravel(log)[0])
        power = f"|det| = 10 to the {value / np.log(10):,.2f}".replace("-", "−")
        power = power if np.isfinite(value) else "singular to working precision"
        shown.append(Tile("log |det|", words.number(value), power))
    if sign is not None:
        unit = complex(np.ravel(sign)[0])
        said = f"{unit.real:+g}" if unit.imag == 0 else f"{unit.real:.4f} {unit.imag:+.4f} i"
        shown.append(Tile("Sign of det", said.replace("-", "−")))
    return shown + condition_tile(job) + rate_tile(job)


def pivots(job: Job) -> Markup | None:
    """Where the pivots came from, and the factors by orders of magnitude."""
    piv = array(job, "piv")
    drawn = []
    if piv is not None:
        n, at = len(piv), np.linspace(0, len(piv) - 1, min(len(piv), _MOST_POINTS)).astype(int)
        drawn.append(figures.scatter(at + 1, piv[at] + 1, n, "row that came up in each step", "step"))
    drawn += _magnitudes(job, "lu", "L below the diagonal and U above it")
    if not drawn:
        return None
    lead = "A point on the diagonal is a step whose pivot was in its place; points far above it are rows that came from far below."
    return section("Pivots", lead if piv is not None else "", pair(*drawn))


def cholesky_factor(job: Job) -> Markup | None:
    """The diagonal of L, and the whole of it by orders of magnitude."""
    factor = array(job, "l")
    if factor is None or factor.ndim != 2:
        return None
    drawn = [figures.spectrum(np.abs(np.diagonal(factor)), "diagonal entries of L", "row", style="s3")]
    lead = "Small diagonal entries mark rows that nearly depend on those before them."
    return section("The triangle L", lead, pair(*drawn, *_magnitudes(job, "l", "L")))


def convergence(job: Job) -> Markup | None:
    """What iterations claimed of their residuals, against what was measured."""
    claimed, measured = array(job, "history/residual"), array(job, "history/true_residual")
    if claimed is None or measured is None:
        return None
    lead = "The line is what the recurrence says of itself; dots are residuals that were measured, by which the iterations end."
    return section("Convergence", lead, pair(figures.convergence(claimed, measured)))


def solution(job: Job) -> Markup | None:
    """The first solutions over their rows."""
    x = array(job, "x")
    if x is None:
        return None
    x = x[:, None] if x.ndim == 1 else x
    drawn = []
    for i, column in enumerate(x.T[:_N_SOLUTIONS]):
        title = f"solution {i + 1}" if x.shape[1] > 1 else "solution"
        drawn.append(figures.vector(column, title, over="row"))
    lead = f"The entries of the solution{'s' if x.shape[1] > 1 else ''}"
    lead += f", the first {_N_SOLUTIONS} of {words.count(x.shape[1])}" if x.shape[1] > _N_SOLUTIONS else ""
    lead += ". Magnitudes are shown, since the entries are complex." if np.iscomplexobj(x) else "."
    return section("Solution", lead, pair(*drawn))


def _magnitudes(job: Job, name: str, what: str) -> list[Markup]:
    factor = array(job, name)
    if factor is None or factor.ndim != 2:
        return []
    image = pictures.magnitudes(factor, f"{what} by orders of magnitude")
    said = f"{what}: yellow is the largest entry, dark is 16 decades below it, clear is exactly zero."
    return [join([div("triangle", image), tag("figcaption", None, said)])]


def _polar_tiles(job: Job) -> list[Tile]:
    shown = []
    for name, title, below in (
        ("distance", "Distance", "of U from the matrix, in the Frobenius norm"),
        ("iterations", "Iterations", "of Newton, to the unitary factor"),
    ):
        value = job.record.estimates.get(name)
        if isinstance(value, int | float):
            shown.append(Tile(title, words.number(float(value)) if name == "distance" else words.count(int(value)), below))
    return shown + condition_tile(job, "largest over smallest singular value") + rate_tile(job)


def polar_factors(job: Job) -> Markup | None:
    """The Hermitian factor by orders of magnitude."""
    drawn = _magnitudes(job, "p", "P")
    lead = "How the columns depend on each other: where they are orthonormal, P is the identity."
    return section("The Hermitian factor", lead, pair(*drawn)) if drawn else None


TELLINGS: Mapping[str, Telling] = {
    "lu": Telling(lambda job: "The LU factorization with partial pivoting", _lu_tiles, (pivots,)),
    "cholesky": Telling(lambda job: "The Cholesky factorization", rate_tile, (cholesky_factor,)),
    "solve": Telling(lambda job: "The solution of linear systems with the matrix", _solve_tiles, (convergence, solution)),
    "lstsq": Telling(_lstsq_title, _lstsq_tiles, (convergence, solution)),
    "inverse": Telling(lambda job: "The inverse", lambda job: condition_tile(job, "in the 1-norm") + rate_tile(job), ()),
    "polar": Telling(lambda job: "The polar decomposition", _polar_tiles, (polar_factors,)),
    "slogdet": Telling(lambda job: "Sign and logarithm of the determinant", _slogdet_tiles, ()),
}
