"""One division of a spectrum: U = sign(A - sigma I), a basis of its invariant subspaces, and the two halves of Q^H A Q.

U is the polar factor of ``A - sigma I``: Hermitian and unitary, with as many eigenvalues 1 as A has eigenvalues above sigma. So
``(I - U) / 2`` and ``(I + U) / 2`` are the projectors on both invariant subspaces. What they make of random vectors is a basis of
each; the QR factorization of all of them together is orthonormal, and Q^H A Q block diagonal up to rounding, which is measured.

References
----------
Nakatsukasa and Higham (2013), Stable and efficient spectral divide and conquer algorithms, algorithm 5.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Columns
from dlscale.engine.passes import Passes
from dlscale.engine.run import Cost, Run, State
from dlscale.engine.targets import MemoryTarget, StoreTarget, Target
from dlscale.engine.tiles.factorizer import Factorizer
from dlscale.engine.tiles.methods import Factored
from dlscale.errors import NumericalError
from dlscale.linalg.eigen.division.cutting import Cutting, cut_division
from dlscale.linalg.eigen.division.density import Density, density
from dlscale.linalg.eigen.division.matrices import Hermitian, Projected, Removed, Shifted
from dlscale.linalg.eigen.division.tasks import Block, Columnwise, FromLeft, Sharpened
from dlscale.linalg.multiply.operands import Operand
from dlscale.linalg.multiply.tiles import Tiles
from dlscale.linalg.panels.plan import factor_target
from dlscale.linalg.polar.newton import COPIES, beside_panels, iterate, rotated, slab_width
from dlscale.linalg.polar.start import Gaussian
from dlscale.linalg.solve.factoring import HOUSEHOLDER
from dlscale.linalg.solve.factors import QRFactors
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import conjugated

#: Places where a division is tried.
N_CUTS = 4
#: A trace of U is so near to an integer of the right parity where all its eigenvalues are -1 or 1.
_NEAR = 0.1
#: What may stand beside the blocks of ``Q^H A Q``, in ``n eps ||A||``.
_BESIDE = 10.0
#: From what on the projections are taken again, of the basis that random vectors gave.
_SHARP = 4.0
AGAIN = "again-"
#: Scratch arrays that are read no more once a matrix is divided.
_USED = ("qr", "u", "polar", "z", "aq", f"{AGAIN}uq", f"{AGAIN}y", f"{AGAIN}aq")


@dataclass(frozen=True)
class Split:
    """A divided matrix.

    Parameters
    ----------
    basis : Factored (n, n)
        Q.
    low, high : callable
        The diagonal blocks of ``Q^H A Q``, with the smaller and with the larger eigenvalues, where they are still needed.
    sizes : (int, int)
        Their rows.
    beside : float
        ``||Q_low^H A Q_high||_F``.
    run : Run
        The names of its scratch arrays are those of this one.
    """

    basis: Factored
    low: Callable[[], Matrix]
    high: Callable[[], Matrix]
    sizes: tuple[int, int]
    beside: float
    run: Run


@dataclass(frozen=True)
class Spectrum:
    """What is known of a matrix before it is divided.

    Parameters
    ----------
    cuts : (c,)
        Where to divide it, the best place first.
    norm : float
        Of the whole matrix, beside which rounding is judged.
    """

    cuts: Array
    norm: float


class Splitter:
    """Divides a Hermitian matrix (n, n).

    Parameters
    ----------
    run : Run
        With names of its own.
    A : callable
        The matrix, Hermitian up to rounding, where it is still needed.
    n : int
    dtype : numpy.dtype
    facts : ClusterFacts
        Of the plan.
    """

    def __init__(self, run: Run, A: Callable[[], Matrix], n: int, dtype: np.dtype[Any], facts: ClusterFacts) -> None:
        self.run, self.A, self.n, self.dtype, self.facts = run, A, n, dtype, facts
        self.cutting: Cutting = cut_division(n, dtype, facts)

    def spectrum(self, norm: float | None, *, seed: int) -> Spectrum:
        """Look for places to divide; the norm is that of this matrix where it is the whole."""
        kept = self.run.newest("cuts")
        if kept is not None:
            state = kept[1]
        else:
            found: Density = density(Passes(self.run), "density", conjugated(self.A().T), self.cutting.rows.grid, seed=seed)
            state = {"cuts": found.cuts(N_CUTS, float(np.finfo(self.dtype).eps)), "norm": np.array([found.norm])}
            self.run.step("cuts-1", Cost(), lambda name: state)
        return Spectrum(state["cuts"], norm or float(state["norm"][0]))

    def split(self, spectrum: Spectrum) -> Split:
        """Divide at the first place where it ends well.

        Raises
        ------
        NumericalError
            If there is none.
        """
        kept = self.run.newest("split")
        if kept is not None:
            return self._known(kept[1])
        for number, sigma in enumerate(spectrum.cuts):
            run = self.run.apart(f"{number}-")
            if (found := self._divided(run, float(sigma), spectrum.norm)) is not None:
                self.run.step("split-1", Cost(), partial(_state_of, found, number))
                self._forget(run, *_USED)
                return found
            self._forget(run, *_USED, "low", "high", "basis", *(f"{AGAIN}{name}" for name in ("low", "high", "basis")))
        raise NumericalError(
            f"The spectrum of {self.n} eigenvalues cannot be divided: at each of {len(spectrum.cuts)} places there are eigenvalues "
            "within rounding."
        )

    def _known(self, state: State) -> Split:
        """A division that is in the checkpoint."""
        run, n_low = self.run.apart(f"{int(state['number'])}-"), int(state["n_low"])
        self._forget(run, *_USED)
        run = run.apart(AGAIN) if state["again"] else run
        sizes = (n_low, self.n - n_low)
        low, high = (partial(self._stored, run, name, size) for name, size in zip(("low", "high"), sizes, strict=True))
        return Split(self._basis(run, Removed((self.n, self.n), self.dtype)), low, high, sizes, float(state["beside"][0]), run)

    def _stored(self, run: Run, name: str, size: int) -> Matrix:
        return self._target(run, name, size).matrix()

    def _divided(self, run: Run, sigma: float, norm: float) -> Split | None:
        """Divide at a place; None where it did not end well."""
        A, n = self.A(), self.n
        U, singular = self._polar(run, A, sigma)
        above = (n + _trace(U)) / 2
        n_low = n - round(above)
        if singular or abs(above - round(above)) > _NEAR or not 0 < n_low < n:
            return None
        split = self._blocks(run, self._basis(run, Projected(self._product(run, U), n_low)), A, n_low)
        if split.beside > _SHARP * self._unit(norm):
            split = self._sharpened(run, split, U, A)
        return split if split.beside <= _BESIDE * self._unit(norm) else None

    def _polar(self, run: Run, A: Matrix, sigma: float) -> tuple[Matrix, bool]:
        """The unitary polar factor of ``A - sigma I``, and whether that is singular up to rounding."""
        cut, n = self.cutting, self.n
        output, kept = self._target(run, "u", n), run.newest("polar")
        if kept is None:
            target = factor_target(run, "qr", (n, n), self.dtype, cut.qr.panels, scratch=True)
            zeros = np.zeros((n, 1), self.dtype)
            factored, _ = Factorizer(run).factor(
                "qr", Shifted(Hermitian(A), sigma), HOUSEHOLDER, cut.qr.panels, target, probes=zeros
            )
            factors = QRFactors(factored, self.facts.threads_per_worker)
            found = iterate(Passes(run), factors, cut.lu.panels, self.facts)
            rotated(run, factors, found.X, output, adjoint=False, facts=self.facts)
            # Without it a stop from here on would repeat the iteration, whose iterates are removed.
            kept = 1, run.step("polar-1", Cost(), lambda name: {"singular": np.array(found.singular)})
            self._forget(run, f"iterate-{found.n_iterations}", "turned", "turned-back")
        return output.matrix(), bool(kept[1]["singular"])

    def _unit(self, norm: float) -> float:
        return self.n * float(np.finfo(self.dtype).eps) * norm

    def _sharpened(self, run: Run, split: Split, U: Matrix, A: Matrix) -> Split:
        """From the projections of the basis itself, which is well conditioned, as random vectors are not always."""
        factors, again = QRFactors(split.basis, self.facts.threads_per_worker), run.apart(AGAIN)
        UQ, Y = self._rows_target(again, "uq"), self._target(again, "y", self.n)
        self._apply(again, "uq", FromLeft(factors, UQ, U), self.n)
        self._apply(again, "y", Sharpened(factors, Y, UQ.matrix(), split.sizes[0]), self.n)
        found = self._blocks(again, self._basis(again, Y.matrix()), A, split.sizes[0])
        self._forget(run, "low", "high", "basis")
        return found

    def _blocks(self, run: Run, basis: Factored, A: Matrix, n_low: int) -> Split:
        """The halves of ``Q^H A Q``, and what stands beside them."""
        factors, n = QRFactors(basis, self.facts.threads_per_worker), self.n
        AQ = self._rows_target(run, "aq")
        self._apply(run, "aq", FromLeft(factors, AQ, A), n)
        blocks, squares = list[Matrix](), 0.0
        for name, first, size in (("low", 0, n_low), ("high", n_low, n - n_low)):
            block = self._target(run, name, size)
            states = self._apply(run, name, Block(factors, block, AQ.matrix(), first), size)
            squares += sum(float(state["beside"][0]) for state in states)
            blocks.append(block.matrix())
        low, high = (partial(_itself, block) for block in blocks)
        return Split(basis, low, high, (n_low, n - n_low), (squares / 2) ** 0.5, run)

    def _product(self, run: Run, U: Matrix) -> Matrix:
        """``U G`` for a Gaussian G."""
        tiling = self.cutting.tiling
        chunks = (tiling.chunk_rows, tiling.columns)
        output: Target = MemoryTarget(np.empty((self.n, self.n), self.dtype))
        if run.checkpoint is not None:
            output = StoreTarget(run.checkpoint.scratch(run.prefix + "z", (self.n, self.n), self.dtype, chunks=chunks))
        run.require_shared(output)
        G = Gaussian((self.n, self.n), self.dtype)
        work = Tiles(Operand(U), Operand(G), tiling, output, n_threads=self.facts.threads_per_worker)
        Columns(run, self.facts).apply("z", work, n_columns=len(tiling.tiles), width=1, writers=output.writers)
        return output.matrix()

    def _basis(self, run: Run, Y: Matrix) -> Factored:
        grid = self.cutting.qr.panels
        target = factor_target(run, "basis", (self.n, self.n), self.dtype, grid, scratch=True)
        zeros = np.zeros((self.n, 1), self.dtype)
        return Factorizer(run).factor("basis", Y, HOUSEHOLDER, grid, target, probes=zeros)[0]

    def _apply(self, run: Run, step: str, what: Columnwise, n_columns: int) -> list[State]:
        return apply_columnwise(run, step, what, n_columns, self.cutting, self.facts)

    def _target(self, run: Run, name: str, size: int) -> Target:
        """A square array that is written by columns of this division's panels."""
        return factor_target(run, name, (size, size), self.dtype, replace(self.cutting.qr.panels, shape=(size, size)), scratch=True)

    def _rows_target(self, run: Run, name: str) -> Target:
        """An array that is written by rows of this division's panels."""
        if run.checkpoint is None:
            return MemoryTarget(np.empty((self.n, self.n), self.dtype))
        panel = self.cutting.qr.panels.panel
        chunks = (min(panel, self.n), min(self.n, max(panel, 2**20 // panel)))
        return StoreTarget(run.checkpoint.scratch(run.prefix + name, (self.n, self.n), self.dtype, chunks=chunks))

    def _forget(self, run: Run, *names: str) -> None:
        for name in names:
            run.forget(name)


def forget_basis(run: Run) -> None:
    """Remove what a division left for the product of eigenvectors, once these are kept."""
    for number in range(N_CUTS):
        for again in ("", AGAIN):
            run.apart(f"{number}-{again}").forget("basis")


def _state_of(split: Split, number: int, name: str) -> State:
    return {
        "number": np.array(number),
        "n_low": np.array(split.sizes[0]),
        "beside": np.array([split.beside]),
        "again": np.array(split.run.prefix.endswith(AGAIN)),
    }


def _itself(block: Matrix) -> Matrix:
    return block


def apply_columnwise(run: Run, step: str, what: Columnwise, n_columns: int, cutting: Cutting, facts: ClusterFacts) -> list[State]:
    """Products with Q, slab by slab, on the workers."""
    n, panel, item = what.factors.shape[0], cutting.qr.panels.panel, what.factors.dtype.itemsize
    facts = beside_panels((n, n), panel, item, facts)
    width, writers = slab_width(n, panel, item, facts), what.output.writers
    return Columns(run, facts).apply(
        step, what, n_columns=n_columns, width=width, column_bytes=int(COPIES * n * item), writers=writers
    )


def _trace(U: Matrix) -> float:
    n, rows = U.shape[0], 512
    spans = [(i, min(i + rows, n)) for i in range(0, n, rows)]
    return float(sum(np.trace(U.region(span, span)).real.astype(float) for span in spans))
