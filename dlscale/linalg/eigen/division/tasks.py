"""What a division does with columns on the workers: ``Q^H A Q``, and products with eigenvectors; Q as reflectors of its panels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.columns import Applied, Span, Tell
from dlscale.engine.grids import blocks
from dlscale.engine.run import Cost, State
from dlscale.engine.targets import Target
from dlscale.kernels import one_blas_thread
from dlscale.linalg.multiply.operands import Operand
from dlscale.linalg.solve.factors import QRFactors
from dlscale.storage.matrix import Matrix

#: Rows of which what is between is made at a time.
_TILE_ROWS = 512


@dataclass(frozen=True)
class Columnwise(Applied):
    """Columns, each slab of them made, multiplied with the adjoint of Q or with Q, and written.

    Parameters
    ----------
    factors : QRFactors (n, n)
    output : Target
    """

    factors: QRFactors
    output: Target

    adjoint = True

    def cost(self, slabs: Sequence[Span]) -> Cost:
        n, k = self.factors.shape[0], sum(stop - start for start, stop in slabs)
        one, item = self.factors.rotation_cost, self.factors.dtype.itemsize
        return Cost(one.flops * k, one.bytes_read + n * k * item, n * k * item)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        # BLAS sums squares, too.
        with one_blas_thread():
            columns = [np.array(self.read(slab), order="C") for slab in slabs]
            self.factors.rotate(columns, adjoint=self.adjoint, tell=tell)
            return [self.finish(slab, part) for slab, part in zip(slabs, columns, strict=True)]

    def read(self, slab: Span) -> Array:
        """Columns (n, width)."""
        raise NotImplementedError

    def finish(self, slab: Span, columns: Array) -> State:
        raise NotImplementedError


@dataclass(frozen=True)
class FromLeft(Columnwise):
    """``A Q``, row by row, for a Hermitian A: the adjoint of ``Q^H A``.

    Parameters
    ----------
    A : Matrix (n, n)
    """

    A: Matrix

    def read(self, slab: Span) -> Array:
        return self.A.region((0, self.A.shape[0]), slab)

    def finish(self, slab: Span, columns: Array) -> State:
        self.output.write(slab[0], np.ascontiguousarray(columns.conj().T))
        return {}


@dataclass(frozen=True)
class Block(Columnwise):
    """A diagonal block of ``Q^H (A Q)``, and the squares of what stands beside it.

    Parameters
    ----------
    AQ : Matrix (n, n)
    first : int
        Its first row and column.
    """

    AQ: Matrix
    first: int

    def read(self, slab: Span) -> Array:
        return self.AQ.region((0, self.AQ.shape[0]), (self.first + slab[0], self.first + slab[1]))

    def finish(self, slab: Span, columns: Array) -> State:
        stop = self.first + self.output.shape[0]
        self.output.write(0, np.ascontiguousarray(columns[self.first : stop]), slab[0])
        beside = [
            np.linalg.norm(part.astype(np.result_type(part, float), copy=False)) ** 2
            for part in (columns[: self.first], columns[stop:])
        ]
        return {"beside": np.array([sum(beside)])}


@dataclass(frozen=True)
class Sharpened(Columnwise):
    """``[(Q - U Q) / 2, (Q + U Q) / 2]`` for a Hermitian unitary U: columns of Q, each projected on the subspace that it is near.

    Parameters
    ----------
    UQ : Matrix (n, n)
    n_below : int
        Columns of the first part.
    """

    UQ: Matrix
    n_below: int

    adjoint = False

    def read(self, slab: Span) -> Array:
        n = self.factors.shape[0]
        C = np.zeros((n, slab[1] - slab[0]), self.factors.dtype)
        C[np.arange(*slab), np.arange(slab[1] - slab[0])] = 1
        return C

    def finish(self, slab: Span, columns: Array) -> State:
        signs = np.where(np.arange(*slab) < self.n_below, -1, 1).astype(columns.dtype)
        columns += signs * self.UQ.region((0, len(columns)), slab)
        columns *= columns.real.dtype.type(0.5)
        self.output.write(0, columns, slab[0])
        return {}


@dataclass(frozen=True)
class Joined(Columnwise):
    """``Q [V_1, 0; 0, V_2]`` with its columns in another order.

    Parameters
    ----------
    parts : (Matrix (k, k), Matrix (n - k, n - k))
    order : (n,)
        Which columns are wanted, counted through both parts.
    """

    parts: tuple[Matrix, Matrix]
    order: Array

    adjoint = False

    def read(self, slab: Span) -> Array:
        n, k = len(self.order), self.parts[0].shape[0]
        C = np.zeros((n, slab[1] - slab[0]), self.factors.dtype)
        wanted = self.order[slice(*slab)]
        for V, first in zip(self.parts, (0, k), strict=True):
            mine = np.flatnonzero((wanted >= first) & (wanted < first + V.shape[0]))
            if len(mine):
                columns = wanted[mine] - first
                low, high = int(columns.min()), int(columns.max()) + 1
                C[first : first + V.shape[0], mine] = V.region((0, V.shape[0]), (low, high))[:, columns - low]
        return C

    def finish(self, slab: Span, columns: Array) -> State:
        self.output.write(0, columns, slab[0])
        return {}


@dataclass(frozen=True)
class Symmetrized(Applied):
    """``(A + A^H) / 2``, and the squares of ``A - A^H`` and of A, for an A near 1 in size.

    Parameters
    ----------
    A : Matrix (n, n)
    output : Target
    """

    A: Matrix
    output: Target

    def cost(self, slabs: Sequence[Span]) -> Cost:
        return symmetrized_cost(self.A, slabs)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        with one_blas_thread():
            return [self._symmetrized(slab) for slab in slabs]

    def _symmetrized(self, slab: Span) -> State:
        n = self.A.shape[0]
        columns, rows = self.A.region((0, n), slab), self.A.region(slab, (0, n))
        found, squares = np.empty(columns.shape, columns.dtype), np.zeros(2)
        for start, stop in blocks(0, n, _TILE_ROWS):
            tile, mirrored = columns[start:stop], rows[:, start:stop].conj().T
            wide = np.result_type(tile, float)
            squares += [np.linalg.norm(part.astype(wide)) ** 2 for part in (np.subtract(tile, mirrored, dtype=wide), tile)]
            np.multiply(tile + mirrored, tile.real.dtype.type(0.5), out=found[start:stop])
        self.output.write(0, found, slab[0])
        return {"skew": squares[:1], "squares": squares[1:]}


def symmetrized_cost(A: Matrix, slabs: Sequence[Span]) -> Cost:
    """Of `Symmetrized`."""
    n, k = A.shape[0], sum(stop - start for start, stop in slabs)
    n_read = Operand(A).bytes_read([(0, n)], slabs) + Operand(A).bytes_read(slabs, [(0, n)])
    return Cost(4.0 * n * k, n_read, n * k * A.dtype.itemsize)


@dataclass(frozen=True)
class Copied(Applied):
    """Columns of a matrix, copied to where they belong."""

    V: Matrix
    output: Target

    def cost(self, slabs: Sequence[Span]) -> Cost:
        n_bytes = self.V.shape[0] * sum(stop - start for start, stop in slabs) * self.V.dtype.itemsize
        return Cost(0.0, n_bytes, n_bytes)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        for slab in slabs:
            self.output.write(0, np.ascontiguousarray(self.V.region((0, self.V.shape[0]), slab)), slab[0])
        return [{} for _ in slabs]
