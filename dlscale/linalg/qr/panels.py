"""QR by Householder reflectors, panel by panel: A = Q R for a matrix of any shape."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check
from dlscale.engine.clusters.facts import ClusterFacts
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.plan import Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid, Ways
from dlscale.engine.tiles.methods import Change, Factored, largest_modulus
from dlscale.engine.tiles.products import Part
from dlscale.engine.tiles.steps import ReversibleSteps, Steps
from dlscale.engine.tiles.whole import ReversiblePanels
from dlscale.kernels import unit_phases
from dlscale.linalg.panels.plan import ByPanels, FactorOptions, factor_target, plan_panels
from dlscale.linalg.panels.products import part_product, probes, scaled_residual
from dlscale.linalg.panels.reflectors import Householder
from dlscale.linalg.panels.scaling import panels_at_safe_scale, place_times, require_safe, times_back
from dlscale.linalg.scaling import scale_words
from dlscale.linalg.solve.applying import apply
from dlscale.linalg.solve.factors import QRFactors
from dlscale.storage.matrix import Matrix


class Checked(NamedTuple):
    """What a formed Q does on random vectors: ``A X - Q R X`` or its norm, and ``Q^H Q Y``."""

    residual: Array
    back: Array


class QRSteps(ABC):
    """What differs between whole panels and row blocks.

    Attributes
    ----------
    steps, undoing : Steps
        That factor, and that form Q.
    """

    steps: Steps[Any, Any]
    undoing: ReversibleSteps[Any, Any]

    @abstractmethod
    def upper(self, grid: PanelGrid, phases: Array, exponent: int) -> Change:
        """Leaves ``2^exponent R`` (k, n) of a factored matrix, its rows scaled by ``phases`` (k,)."""

    @abstractmethod
    def check(self, passes: Passes, Q: Matrix, grid: PanelGrid, AX: Array, RX: Array, Y: Array) -> Checked:
        """What Q (m, k) does, read from where it is stored; ``grid`` is that of its tiles."""

    @abstractmethod
    def unrotated(self, passes: Passes, factored: Factored, plan: Plan, X: Array) -> Array:
        """``Q X`` for a few vectors (m, k), by the transforms."""


@dataclass(frozen=True)
class UpperPart:
    """Leaves ``2^exponent R`` (k, n) of a factored panel, its rows scaled by ``phases`` (k,)."""

    panel: int
    phases: Array
    exponent: int = 0

    def __call__(self, i: int, j: int, panel: Array) -> None:
        first, stop = j * self.panel, j * self.panel + panel.shape[1]
        panel[first:stop] = np.triu(panel[first:stop])
        panel[stop:] = 0
        panel[:stop] *= self.phases.conj()[:stop, None]
        if self.exponent:
            panel[:stop] = times_back(panel[:stop], self.exponent)


@dataclass(frozen=True)
class ScaledColumns:
    """Scales the columns of Q by ``phases`` (k,)."""

    panel: int
    phases: Array

    def __call__(self, i: int, j: int, panel: Array) -> None:
        panel *= self.phases[j * self.panel : j * self.panel + panel.shape[1]]


@dataclass(frozen=True)
class Orthonormal(Fold):
    """Residual and orthonormality of Q on random vectors, in one read of Q (m, k): ``||AX - Q RX||^2`` and ``Q^H Q Y``."""

    AX: Array
    RX: Array
    Y: Array

    @property
    def flops_per_row(self) -> float:
        return 6.0 * self.RX.size

    def start(self) -> State:
        return {"residual": np.zeros(1), "back": np.zeros(self.Y.shape, self.Y.dtype)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        difference = self.AX[first_row : first_row + len(A)] - A @ self.RX
        state["residual"] += np.linalg.norm(difference) ** 2
        state["back"] += A.conj().T @ (A @ self.Y)
        return ()


class WholeQR(QRSteps):
    """Householder QR of whole panels; Q is checked by a pass over its rows."""

    steps = undoing = ReversiblePanels(Householder())

    def upper(self, grid: PanelGrid, phases: Array, exponent: int) -> Change:
        return UpperPart(grid.panel, phases, exponent)

    def check(self, passes: Passes, Q: Matrix, grid: PanelGrid, AX: Array, RX: Array, Y: Array) -> Checked:
        m, k = Q.shape
        rows = max(1, min(m, 16 * 2**20 // (k * Q.dtype.itemsize)))
        fold = Orthonormal(AX, np.ascontiguousarray(RX), Y)
        found = passes.sweep("check", Q, fold, RowGrid(m, rows, rows * max(1, m // rows // 16)))
        return Checked(np.sqrt(found["residual"]), found["back"])

    def unrotated(self, passes: Passes, factored: Factored, plan: Plan, X: Array) -> Array:
        factors = QRFactors(factored)
        return apply(passes.run, "check", factors.unrotated, factors.rotation_cost, X, facts=plan.cluster)


def plan_panel_qr(A: Matrix, options: FactorOptions, mode: str, facts: ClusterFacts, ways: Ways[QRSteps]) -> Plan:
    """Plan a QR factorization by panels; ``mode`` is ``reduced``, ``r`` or ``raw``.

    Raises
    ------
    SpecError, DoesNotFitError
    """
    m, n = A.shape
    k, item = min(m, n), A.dtype.itemsize
    stored = m * n * item
    more = [Step("upper", 4.0 * m * n, stored)]
    if mode == "reduced":
        more.append(Step("q", 4.0 * m * k * k - 8.0 * k**3 / 3, stored, m * k * item))
        more.append(Step("check", 24.0 * m * k, m * k * item))
    else:
        more.append(Step("check", 16.0 * m * k, stored, n_threads=facts.threads_per_worker))
    if mode != "raw":
        more.append(Step("r", 0.0, k * n * item, k * n * item))
    words = {"reduced": "Q and R", "r": "R", "raw": "reflectors and R, as LAPACK stores them"}[mode]
    what = ByPanels("qr", f"blocked Householder QR: {words}", Ways(ways.whole.steps, ways.in_row_blocks.steps))
    return plan_panels(what, A, options, facts, more=more)


def compute_panel_qr(run: Run, A: Matrix, mode: str, plan: Plan, way: QRSteps) -> Outcome:
    """Factor by the plan; ``q`` and ``r``, or ``qr`` and ``t``, go to the outputs of the run.

    Returns
    -------
    Outcome

    Notes
    -----
    2 n^2 (m - n / 3) flops for R when m >= n, and as many for Q.

    References
    ----------
    Schreiber and Van Loan (1989); Elmroth and Gustavson (2000) for the recursive panel.
    """
    return panels_at_safe_scale(Passes(run), A, partial(_compute, mode=mode, plan=plan, way=way), factor="R")


def _compute(passes: Passes, A: Matrix, exponent: int, *, mode: str, plan: Plan, way: QRSteps) -> Outcome:
    """Factor ``A = 2^-exponent`` times the matrix."""
    (m, n), dtype, factorizer, grid = A.shape, A.dtype, Factorizer(passes.run), plan.panels
    k = min(m, n)
    X = probes(n, dtype)
    target = factor_target(passes.run, "qr", A.shape, dtype, grid, scratch=mode != "raw" or bool(exponent))
    factored, seen = factorizer.factor("qr", A, way.steps, grid, target, probes=X)
    if not exponent:
        require_safe(seen.largest, dtype)
    raw = target.matrix()
    RX = part_product(passes, "upper", raw, plan, X, part=Part("upper")).product[:k]
    phases = diagonal_phases(raw, grid)
    orthonormal = None
    if mode == "reduced":
        q = factor_target(passes.run, "q", (m, k), dtype, grid)
        factorizer.form("q", factored, way.undoing, q, change=ScaledColumns(grid.panel, phases))
        Y = probes(k, dtype)
        # At size 1, so that no square overflows or vanishes.
        size = largest_modulus(seen.products) or 1.0
        RX = phases.conj()[:, None] * RX / size
        residual, back = way.check(passes, q.matrix(), replace(grid, shape=(m, k)), seen.products / size, RX, Y)
        residual, orthonormal = residual * size, scaled_residual(back - Y, Y, k, dtype)
    else:
        padded = np.concatenate([RX, np.zeros((m - k, X.shape[1]), dtype)])
        residual = seen.products - way.unrotated(passes, factored, plan, padded)
    if mode != "raw":
        r = factor_target(passes.run, "r", (k, n), dtype, grid, over=target)
        factorizer.copy("r", factored, r, way.upper(grid, phases, exponent))
    elif exponent:
        place_times(passes, "qr-unscaled", raw, "qr", grid, exponent, upper=True)
    outcome = qr_outcome(mode, factored, scaled_residual(residual, seen.products, n, dtype), orthonormal)
    return replace(outcome, notes=scale_words(exponent))


def qr_outcome(mode: str, factored: Factored, residual: float, orthonormal: float | None) -> Outcome:
    """What a QR factorization hands over, with a certificate from scaled residuals; Q is not always formed."""
    checks = [
        Check(
            "||(A - QR)x|| / (||Ax|| n eps)",
            residual,
            LAPACK_THRESHOLD,
            "on random vectors, Q R acts as the matrix does",
        )
    ]
    if orthonormal is not None:
        checks.append(
            Check(
                "||(Q'Q - I)y|| / (||y|| k eps)",
                orthonormal,
                LAPACK_THRESHOLD,
                "the columns of Q are orthonormal to working precision",
            )
        )
    arrays = {"t": stacked_triangles(factored)} if mode == "raw" else {}
    stored = {"reduced": ("q", "r"), "r": ("r",), "raw": ("qr",)}[mode]
    return Outcome(arrays, stored, Certificate(tuple(checks)))


def diagonal_phases(raw: Matrix, grid: PanelGrid) -> Array:
    """Factors of modulus 1, (k,), that make the diagonal of R real and not negative; R is read panel by panel."""
    k = min(raw.shape)
    spans = [(first, min(stop, k)) for first, stop in map(grid.columns, range(grid.n_steps))]
    return unit_phases(np.concatenate([np.diagonal(raw.region(span, span)) for span in spans]))


def stacked_triangles(factored: Factored) -> Array:
    """The T of all panels side by side, (min(b, k), k), as LAPACK's ``geqrt`` returns them."""
    width = min(factored.grid.panel, *factored.grid.shape)
    parts = [np.pad(fact["t"], ((0, width - len(fact["t"])), (0, 0))) for fact in factored.facts]
    return np.hstack(parts)
