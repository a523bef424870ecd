"""Newton's iteration for the unitary polar factor of a triangle that no worker holds: X <- (z X + X^-H / z) / 2.

The singular values of an iterate lie in an interval that is known, from 1 to a bound. With ``z = bound^-1/2`` the next one is the
smallest that can be (Byers and Xu): nine iterations in double precision, whatever the condition. From the first iteration on no
singular value is below 1, so that only the triangle, whose inverse takes no factors, is ever ill conditioned.

Of an ill-conditioned R the first iterate has large and small rows, and factors of it lose what the small ones say: ``U^H A`` would
not be Hermitian. There the iteration starts from L of ``R = L Q^H``, which is nearer to a diagonal than R, and ends with ``X Q^H``.

An iterate is an array of its own in the scratch space, and a step of the run; what the next ones do not read is removed.

References
----------
Higham (2008), Functions of Matrices, sections 8.3 to 8.6; Byers and Xu (2008), A new scaling for Newton's iteration for the polar
decomposition and its backward stability; Nakatsukasa and Higham (2012) for its stability; Stewart (1999), The QLP approximation to
the singular value decomposition.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import SLAB_COLUMNS, SLAB_SHARE, Applied, Columns, Span, Tell
from dlscale.engine.grids import blocks
from dlscale.engine.passes import Passes
from dlscale.engine.run import Cost, Run, State
from dlscale.engine.targets import Target
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.grid import PanelGrid
from dlscale.errors import DoesNotFitError, NumericalError
from dlscale.kernels import one_blas_thread
from dlscale.linalg.lu import kind as lu
from dlscale.linalg.panels.plan import CHUNK_BYTES, factor_target
from dlscale.linalg.polar.start import Start
from dlscale.linalg.solve.factoring import HOUSEHOLDER
from dlscale.linalg.solve.factors import LUFactors, QRFactors
from dlscale.linalg.solve.inverse import identity_columns
from dlscale.linalg.solve.triangular import N_PIECES
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import conjugated

#: Slabs of the same size that a task holds for each, where it has a few: columns that become those of the inverse, or of a product,
#: and one more that is read or written.
COPIES = 1.75
#: Pieces of factors that are read by a substitution.
PIECES_BYTES = N_PIECES * CHUNK_BYTES
#: With the bound of Byers and Xu the eleventh iteration is at 1, from any condition that double precision knows.
MOST = 12
#: Times 1 / eps: the condition from which on a triangle is factored once more.
ILL = 0.01


class Iterated(NamedTuple):
    """Where the iteration ended.

    Parameters
    ----------
    X : Matrix (n, n)
        Unitary.
    n_iterations : int
    singular : bool
        Whether it started beside the triangle, which is singular to working precision.
    """

    X: Matrix
    n_iterations: int
    singular: bool


@dataclass(frozen=True)
class NewtonStep(Applied):
    """Columns of ``(z X + X^-H / z) / 2``, written where they belong, or, without a place for them, what they are to be made of.

    Parameters
    ----------
    factors : LUFactors
        Of X.
    X : Matrix (n, n)
    z : float
    output : Target (n, n), optional
    """

    factors: LUFactors
    X: Matrix
    z: float = 1.0
    output: Target | None = None

    def cost(self, slabs: Sequence[Span]) -> Cost:
        return step_cost(self.factors.inverse_cost, self.X.shape[0], self.X.dtype.itemsize, written=self.output is not None)(slabs)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        # BLAS sums squares, too.
        with one_blas_thread():
            inverse = self.factors.solve(
                identity_columns(self.X.shape[0], slabs, self.X.dtype),
                adjoint=True,
                width=_width_of(slabs[0]),
                tell=tell,
                overwrite=True,
            )
            ends = np.cumsum([_width_of(slab) for slab in slabs])
            return [self._finish(slab, part) for slab, part in zip(slabs, np.split(inverse, ends[:-1], axis=1), strict=True)]

    def _finish(self, slab: Span, inverse: Array) -> State:
        """The squares of X and its inverse; with a place to write to, of what is between ``z X`` and ``X^-H / z``."""
        n = self.X.shape[0]
        names = ("squares", "inverse") if self.output is None else ("between",)
        state: State = {name: np.zeros(1) for name in names}
        for rows in blocks(0, n, _rows_at_a_time(self.output, n, _width_of(slab) * self.X.dtype.itemsize)):
            X, part = self.X.region(rows, slab), inverse[slice(*rows)]
            if self.output is None:
                state["squares"] += _squares(X)
                state["inverse"] += _squares(part)
                continue
            real = X.real.dtype.type
            X, part = X * real(self.z), part / real(self.z)
            state["between"] += _squares(X - part)
            X += part
            X *= real(0.5)
            self.output.write(rows[0], X, slab[0])
        return state


def _width_of(slab: Span) -> int:
    return slab[1] - slab[0]


def _rows_at_a_time(output: Target | None, n: int, row_bytes: int) -> int:
    """Rows of a slab that are made at a time: whole chunks where they are written."""
    chunks = getattr(output, "chunks", None)
    return int(chunks[0]) if chunks else max(1, min(n, CHUNK_BYTES // row_bytes))


def _squares(A: Array) -> float:
    return float(np.linalg.norm(A.astype(np.result_type(A.dtype, float), copy=False)) ** 2)


def step_cost(of_column: Callable[[int], Cost], n: int, itemsize: int, *, written: bool = True) -> Callable[[Sequence[Span]], Cost]:
    """What some slabs of a step take, from what columns of the inverse take (`Factorization.inverse_cost`)."""

    def cost(slabs: Sequence[Span]) -> Cost:
        flops = sum(of_column(start).flops * (stop - start) for start, stop in slabs)
        n_bytes = n * itemsize * sum(stop - start for start, stop in slabs)
        return Cost(flops, of_column(min(slabs)[0]).bytes_read + n_bytes, n_bytes if written else 0)

    return cost


def slab_width(rows: int, panel: int, itemsize: int, facts: ClusterFacts) -> int:
    """Columns of a slab of an iterate: whole panels, as many as memory and speed ask for."""
    room = int(facts.work_bytes * SLAB_SHARE / (COPIES * rows * itemsize))
    return panel * max(1, min(SLAB_COLUMNS, room) // panel)


def require_room(run: Run, n_bytes: int, limit_bytes: int) -> None:
    """Refuse a run without files whose arrays, in the memory of this process then, take more than there is.

    Raises
    ------
    DoesNotFitError
    """
    if run.checkpoint is None and n_bytes > limit_bytes:
        raise DoesNotFitError(
            f"The arrays between take {n_bytes / 1e9:.2f} GB, and this process has {limit_bytes / 1e9:.2f} GB; run it as a job "
            "(dlscale.run), which has them on the disk."
        )


def beside(facts: ClusterFacts, n_bytes: int) -> ClusterFacts:
    """A cluster of which slabs may take what is beside pieces of factors that are read."""
    return replace(facts, memory_bytes=max(1, facts.memory_bytes - n_bytes))


def beside_panels(shape: tuple[int, int], panel: int, itemsize: int, facts: ClusterFacts) -> ClusterFacts:
    """The same where what is read are whole panels of Q, two at a time."""
    return beside(facts, 2 * shape[0] * panel * itemsize)


def iterate(passes: Passes, factored: QRFactors, grid: PanelGrid, facts: ClusterFacts) -> Iterated:
    """The unitary polar factor of the triangle of a QR factorization.

    Parameters
    ----------
    passes : Passes
    factored : QRFactors (m, n)
    grid : PanelGrid
        Of an iterate (n, n).
    facts : ClusterFacts
        Of the plan.

    Raises
    ------
    NumericalError
        If the iteration does not end.

    Notes
    -----
    2 n^3 flops for each iteration but the first; 10/3 n^3 more for an ill-conditioned triangle.
    """
    return _Iteration(passes, factored, grid, facts).go()


class _Iteration:
    """The iteration while it goes on."""

    def __init__(self, passes: Passes, factored: QRFactors, grid: PanelGrid, facts: ClusterFacts) -> None:
        self.passes, self.run, self.R, self.grid = passes, passes.run, factored.triangle, grid
        self.cluster, self.facts = facts, beside(facts, PIECES_BYTES)
        self.n, self.dtype = self.R.shape[0], self.R.dtype
        self.panels = replace(factored.factored.grid, shape=self.R.shape)
        self.width = slab_width(self.n, grid.panel, self.dtype.itemsize, self.facts)
        self.eps = float(np.finfo(self.dtype).eps)

    def go(self) -> Iterated:
        newest = self.run.newest("iterate")
        if newest is None:
            X, state = self._first()
            number = 1
        else:
            number, state = newest
            self._forget(number)
            X = self._target(number).matrix()
        while float(state["bound"][0]) - 1.0 > self.eps:
            if number >= MOST:
                raise NumericalError(
                    f"Newton's iteration for the polar factor did not end after {number} iterations: its singular values are "
                    f"between 1 and {float(state['bound'][0]):.3g}."
                )
            number += 1
            bound = float(state["bound"][0])
            factors = self._factors(X, number)
            X, state = self._step(number, factors, X, bound**-0.5, _halved(bound**0.5), state)
        return Iterated(self._turned_back(X) if state["ill"] else X, number, bool(state["singular"]))

    def _first(self) -> tuple[Matrix, State]:
        """The iteration from the triangle, or from beside it."""
        X: Matrix = Start(self.R)
        factors = self._of_triangle(X)
        size, inverse = self._norms("norms", factors, X)
        ill, singular = (not size * inverse < limit / self.eps for limit in (ILL, 1.0))
        if size == 0:
            X, size, inverse, ill = Start(self.R, ridge=1.0), self.n**0.5, self.n**0.5, False
            factors = self._of_triangle(X)
        elif ill:
            X = conjugated(Start(self._turned.triangle, noise=self.eps * size / (4 * self.n**0.5)).T)
            factors = self._factors(X, 1)
            size, inverse = self._norms("norms-beside", factors, X)
            if not np.isfinite(inverse):
                raise NumericalError("The matrix is singular to working precision, and so is what is beside it up to rounding.")
        z = (inverse / size) ** 0.5
        before = {"singular": np.array(singular), "ill": np.array(ill)}
        return self._step(1, factors, X, z, _halved((size * inverse) ** 0.5), before)

    @cached_property
    def _turned(self) -> QRFactors:
        """Those of ``R^H = Q L^H``."""
        target = factor_target(self.run, "turned", self.panels.shape, self.dtype, self.panels, scratch=True)
        RH, zeros = conjugated(Start(self.R).T), np.zeros((self.n, 1), self.dtype)
        factored, _ = Factorizer(self.run).factor("turned", RH, HOUSEHOLDER, self.panels, target, probes=zeros)
        return QRFactors(factored, self.facts.threads_per_worker)

    def _turned_back(self, X: Matrix) -> Matrix:
        """``X Q^H``, by rows, whose chunks are as high as a panel is wide."""
        grid = replace(self.panels, row_blocks=self.panels.n_panels)
        output = factor_target(self.run, "turned-back", grid.shape, self.dtype, grid, scratch=True)
        rotated(self.run, self._turned, conjugated(X.T), output, adjoint=True, facts=self.cluster, step="turned-back")
        return output.matrix()

    def _of_triangle(self, X: Matrix) -> LUFactors:
        """An upper triangle has itself as U."""
        return LUFactors(X, np.arange(self.n), self.facts.threads_per_worker)

    def _factors(self, X: Matrix, number: int) -> LUFactors:
        zeros = np.zeros((self.n, 1), self.dtype)
        packed, pivots, *_ = lu.factor_panels(self.passes, X, self.grid, probes=zeros, step=f"lu-{number}", keep=False)
        return LUFactors(packed, pivots, self.facts.threads_per_worker)

    def _norms(self, step: str, factors: LUFactors, X: Matrix) -> tuple[float, float]:
        """``||X||_F`` and ``||X^-1||_F``, which may be infinite."""
        found = self._apply(step, NewtonStep(factors, X))
        size, inverse = (float(sum(state[name][0] for state in found)) ** 0.5 for name in ("squares", "inverse"))
        return size, inverse if np.isfinite(inverse) else float("inf")

    def _step(self, number: int, factors: LUFactors, X: Matrix, z: float, bound: float, before: State) -> tuple[Matrix, State]:
        """One iteration: the next iterate, and the bound of its singular values, beside what was known before."""
        output = self._target(number)
        found = self._apply(f"newton-{number}", NewtonStep(factors, X, z, output))
        between = float(sum(state["between"][0] for state in found)) ** 0.5
        # s - 1/s is at most what is between, for each singular value s of z X.
        measured = _halved((between + (between * between + 4.0) ** 0.5) / 2)
        state = before | {"bound": np.array([np.fmin(bound, measured)])}
        self.run.step(f"iterate-{number}", Cost(), lambda name: state, flushed=output.writers, keep="last")
        self._forget(number)
        return output.matrix(), state

    def _forget(self, number: int) -> None:
        """What was read for an iterate that is kept, and is no more."""
        for name in (f"newton-{number}", f"lu-{number}", f"lu-{number}-rows", f"iterate-{number - 1}"):
            self.run.forget(name)

    def _apply(self, step: str, what: NewtonStep) -> list[State]:
        writers = what.output.writers if what.output else ()
        held = int(COPIES * self.n * self.dtype.itemsize)
        return Columns(self.run, self.facts).apply(
            step, what, n_columns=self.n, width=self.width, column_bytes=held, writers=writers
        )

    def _target(self, number: int) -> Target:
        return factor_target(self.run, f"iterate-{number}", (self.n, self.n), self.dtype, self.grid, scratch=True)


def _halved(s: float) -> float:
    """What becomes of the singular values from ``1/s`` to s: at most this, and at least 1."""
    return (s + 1 / s) / 2


def rotated(
    run: Run, factors: QRFactors, X: Matrix, output: Target, *, adjoint: bool, facts: ClusterFacts, step: str = "u"
) -> None:
    """Write ``Q X`` (m, n), or its adjoint, by slabs of columns of X."""
    (m, n), panel = factors.shape, factors.factored.grid.panel
    item = X.dtype.itemsize
    facts = beside_panels((m, n), panel, item, facts)
    what = Rotation(factors, X, output, adjoint)
    Columns(run, facts).apply(
        step,
        what,
        n_columns=n,
        width=slab_width(m, panel, item, facts),
        column_bytes=int(COPIES * m * item),
        writers=output.writers,
    )


@dataclass(frozen=True)
class Rotation(Applied):
    """Columns of ``Q X``, written where they belong.

    Parameters
    ----------
    factors : QRFactors (m, n)
    X : Matrix (n, n)
    output : Target
        (m, n), or (n, m) for the adjoint.
    adjoint : bool
    """

    factors: QRFactors
    X: Matrix
    output: Target
    adjoint: bool

    def cost(self, slabs: Sequence[Span]) -> Cost:
        (m, n), k = self.factors.shape, sum(stop - start for start, stop in slabs)
        one, item = self.factors.rotation_cost, self.X.dtype.itemsize
        return Cost(one.flops * k, one.bytes_read + n * k * item, m * k * item)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        m, n = self.factors.shape
        columns = [np.zeros((m, _width_of(slab)), self.X.dtype) for slab in slabs]
        for slab, C in zip(slabs, columns, strict=True):
            C[:n] = self.X.region((0, n), slab)
        self.factors.rotate(columns, adjoint=False, tell=tell)
        for (start, _), C in zip(slabs, columns, strict=True):
            if self.adjoint:
                self.output.write(start, np.ascontiguousarray(C.conj().T))
            else:
                self.output.write(0, C, start)
        return [{} for _ in slabs]
