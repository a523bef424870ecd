"""All eigenpairs by division: halves that a worker holds are LAPACK's, and eigenvectors are products from disk to disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Columns
from dlscale.engine.grids import RowGrid
from dlscale.engine.outputs import RowOutput
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.run import Cost, Run
from dlscale.engine.targets import Target
from dlscale.linalg.eigen import direct
from dlscale.linalg.eigen.division.matrices import Hermitian, Identity
from dlscale.linalg.eigen.division.splitting import Splitter, apply_columnwise, forget_basis
from dlscale.linalg.eigen.division.tasks import Copied, Joined
from dlscale.linalg.panels.plan import factor_target
from dlscale.linalg.polar.newton import slab_width
from dlscale.linalg.solve.factors import QRFactors
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import conjugated

#: A matrix is a multiple of the identity where what is beside that is so many ``n eps ||A||``.
_OF_IDENTITY = 10.0
#: How pairs were found, by number.
_WAYS = ("at once", "identity", "divided")


class Found(NamedTuple):
    """All pairs of a matrix (n, n).

    Parameters
    ----------
    values : (n,), ascending
    V : Matrix (n, n)
    """

    values: Array
    V: Matrix


@dataclass(frozen=True)
class Beside(Fold):
    """The squares of ``A - c I`` and the diagonal of A."""

    c: float
    n: int

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.n

    def start(self) -> State:
        return {"squares": np.zeros(1), "diagonal": np.zeros(self.n)}

    def update(self, state: State, A: Array, first_row: int) -> tuple[()]:
        rows = np.arange(len(A))
        block = A.astype(np.result_type(A, float))
        state["diagonal"][first_row : first_row + len(A)] = A[rows, first_row + rows].real
        block[rows, first_row + rows] -= self.c
        state["squares"] += np.linalg.norm(block) ** 2
        return ()


@dataclass(frozen=True)
class Recursion:
    """Divides until a part fits.

    Parameters
    ----------
    dtype : numpy.dtype
    facts : ClusterFacts
        Of the plan.
    largest : int
        Rows of which a worker finds all pairs at once.
    seed : int
    """

    dtype: np.dtype[Any]
    facts: ClusterFacts
    largest: int
    seed: int

    def pairs(self, run: Run, A: Callable[[], Matrix], n: int, *, norm: float | None, output: Target | None = None) -> Found:
        """All pairs of a Hermitian matrix (n, n).

        Parameters
        ----------
        run : Run
            With names of its own.
        A : callable
            The matrix, Hermitian up to rounding, where it is still needed.
        n : int
        norm : float, optional
            Of the matrix of which this is a part; absent for the whole.
        output : Target, optional
            Where the vectors of the whole go.
        """
        kept = run.newest("pairs")
        if kept is not None:
            return self._known(run, kept[1], n, output)
        order: Array = np.arange(n)
        if n <= self.largest:
            way, found = "at once", self._at_once(run, Hermitian(A()), n)
        else:
            splitter = Splitter(run, A, n, self.dtype, self.facts)
            diagonal = self._multiple(run, A, splitter, norm)
            if diagonal is None:
                way, found = "divided", self._divided(run, splitter, norm, output)
            else:
                order = np.argsort(diagonal)
                way, found = "identity", Found(diagonal[order], Identity(n, self.dtype, order))
        if output is not None and way != "divided":
            found = found._replace(V=self._copied(run, found.V, output))
        state = {"values": found.values, "way": np.array(_WAYS.index(way)), "order": order}
        run.step("pairs-1", Cost(), lambda name: state)
        # What these pairs were made of.
        forget_basis(run)
        for side in "ab":
            run.apart(f"{side}-").forget("v")
        return found

    def _copied(self, run: Run, V: Matrix, output: Target) -> Matrix:
        n = V.shape[0]
        width = slab_width(n, getattr(output, "chunks", (n, n))[1], self.dtype.itemsize, self.facts)
        Columns(run, self.facts).apply("copied", Copied(V, output), n_columns=n, width=width, writers=output.writers)
        return output.matrix()

    def _known(self, run: Run, state: State, n: int, output: Target | None) -> Found:
        """Pairs that are in the checkpoint."""
        values, way = state["values"], _WAYS[int(state["way"])]
        if output is not None:
            return Found(values, output.matrix())
        if way == "identity":
            return Found(values, Identity(n, self.dtype, state["order"]))
        return Found(values, (self._leaf_vectors(run, n) if way == "at once" else self._vectors(run, n)).matrix())

    def _leaf_vectors(self, run: Run, n: int) -> RowOutput:
        rows = min(n, 512)
        return run.scratch("v", (n, n), self.dtype, RowGrid(n, rows, rows))

    def _vectors(self, run: Run, n: int) -> Target:
        grid = Splitter(run, lambda: Identity(n, self.dtype), n, self.dtype, self.facts).cutting.qr.panels
        return factor_target(run, "v", (n, n), self.dtype, grid, scratch=True)

    def _at_once(self, run: Run, A: Matrix, n: int) -> Found:
        """By LAPACK."""
        choice = direct.choose(n, n, "largest", self.dtype, self.facts)
        assert choice is not None
        output = self._leaf_vectors(run, n)
        what = direct.Direct(A, output, "largest", choice, self.seed)
        (found,) = Columns(run, self.facts).apply("eigenpairs", what, n_columns=n, width=n, writers=output.writers)
        return Found(np.ldexp(found["values"].astype(float), int(found["exponent"][0])), output.matrix())

    def _multiple(self, run: Run, A: Callable[[], Matrix], splitter: Splitter, norm: float | None) -> Array | None:
        """The diagonal of a matrix that is a multiple of the identity up to rounding."""
        n = splitter.n
        c = float(A().region((0, 1), (0, 1))[0, 0].real)
        found = Passes(run).sweep("identity", conjugated(A().T), Beside(c, n), splitter.cutting.rows.grid)
        beside = float(found["squares"][0]) ** 0.5
        return found["diagonal"] if beside <= _OF_IDENTITY * n * float(np.finfo(self.dtype).eps) * (norm or abs(c)) else None

    def _divided(self, run: Run, splitter: Splitter, norm: float | None, output: Target | None) -> Found:
        spectrum = splitter.spectrum(norm, seed=self.seed)
        split = splitter.split(spectrum)
        parts = [
            self.pairs(run.apart(f"{side}-"), block, size, norm=spectrum.norm)
            for side, block, size in zip("ab", (split.low, split.high), split.sizes, strict=True)
        ]
        for name in ("low", "high"):
            split.run.forget(name)
        values = np.concatenate([part.values for part in parts])
        # Where the halves meet, values may have changed places within rounding.
        order = np.argsort(values, kind="stable")
        target = output or self._vectors(run, splitter.n)
        factors = QRFactors(split.basis, self.facts.threads_per_worker)
        what = Joined(factors, target, (parts[0].V, parts[1].V), order)
        apply_columnwise(run, "v", what, splitter.n, splitter.cutting, self.facts)
        return Found(values[order], target.matrix())
