"""A matrix that is multiplied by: one noun, several ways behind it, and views that compose.

``strips`` reads the matrix by rows, with the operand in each worker's memory; ``blocks`` cuts both ways, with operands and
products as arrays at rest, whole nowhere; ``resident`` reads it once and holds it on the workers; ``memory`` is a matrix that is in
this process already.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import N_WAITING_STATES, bytes_of, lay_out, lay_out_sparse
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.resident import Resident, resident_bytes, resident_grid
from dlscale.errors import DoesNotFitError, SpecError
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.folds.operators import AdjointAcross, AdjointProduct, Product, ProductAcross
from dlscale.linalg.folds.products import NormalProduct
from dlscale.storage.matrix import Matrix, RowRange

Tag = Literal["symmetric", "positive definite"]
Way = Literal["strips", "blocks", "resident", "memory"]

#: Products from which on holding a matrix on the workers pays: the first one reads it as well.
MANY_PRODUCTS = 3
#: Bytes of the rows of a product that one task adds up, where it is cut by rows too.
_PANEL_BYTES = 2**26


class Operator(ABC):
    """A linear map that is known by its products.

    Attributes
    ----------
    shape : (m, n)
    dtype : numpy.dtype
    tags : set of str
        What is said of it: ``symmetric`` (Hermitian where it is complex), ``positive definite``; `require` tests it.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]
    tags: frozenset[Tag] = frozenset()

    @abstractmethod
    def apply(self, X: Array) -> Array:
        """``A X`` (m, k) of X (n, k)."""

    @abstractmethod
    def adjoint(self, Y: Array) -> Array:
        """``A^H Y`` (n, k) of Y (m, k)."""

    def normal(self, W: Array) -> Array:
        """``A^H (A W)`` (n, k) of W (n, k)."""
        return self.adjoint(self.apply(W))


@dataclass(frozen=True)
class OperatorPlan:
    """How a matrix will be multiplied.

    Parameters
    ----------
    way : str
    grid : RowGrid
        Of the rows of A; for ``blocks`` of its columns.
    panel_rows : int
        For ``blocks``: rows of A that are taken at a time.
    words : str
        What is done and why.
    peak_bytes : int
        Of one worker.
    """

    way: Way
    grid: RowGrid
    panel_rows: int
    words: str
    peak_bytes: int


def plan_operator(A: Matrix, width: int, facts: ClusterFacts, *, n_products: int = 1) -> OperatorPlan:
    """Choose how to multiply a matrix by ``width`` columns.

    Parameters
    ----------
    A : Matrix (m, n)
    width : int
        k.
    facts : ClusterFacts
    n_products : int
        How many are expected; many are worth holding the matrix on the workers.

    Raises
    ------
    DoesNotFitError
        If no way fits.
    """
    (m, n), item = A.shape, A.dtype.itemsize
    state = bytes_of(n, width, dtype=accumulator_dtype(A.dtype))
    try:
        operands = 2 * max(m, n) * width * item
        if A.is_sparse:
            layout = lay_out_sparse(A, facts, state_bytes=state, operand_bytes=operands, width=width)
        else:
            layout = lay_out(A, facts, state_bytes=state, operand_bytes=operands)
    except DoesNotFitError:
        return _plan_blocks(A, width, facts, f"{n} x {width} numbers of each partial result do not fit a worker")
    if A.in_memory and facts.kind == "threads":
        return OperatorPlan("memory", layout.grid, m, "the matrix is in memory", layout.peak_bytes)
    held = resident_bytes(A, facts)
    if n_products >= MANY_PRODUCTS and held + layout.peak_bytes <= facts.memory_bytes:
        words = f"resident: read once and held on the workers, {held / 1e9:.3g} GB each"
        return OperatorPlan("resident", resident_grid(A), m, words, held + layout.peak_bytes)
    return OperatorPlan("strips", layout.grid, m, "strips of rows, one read a product", layout.peak_bytes)


def _plan_blocks(A: Matrix, width: int, facts: ClusterFacts, reason: str) -> OperatorPlan:
    m, wide = A.shape[0], accumulator_dtype(A.dtype).itemsize
    n_states = 2 * facts.threads_per_worker + N_WAITING_STATES
    target = min(_PANEL_BYTES, facts.work_bytes // (3 * n_states)) // (width * wide)
    unit = 8 if A.any_range else A.row_unit
    rows = min(m, max(1, target // unit) * unit)
    # Beside a block of A^T: twice the rows of what is read with it, of the product, of the sum, and of what is written.
    factor = 3.0 + 5.0 * width / rows
    bytes_ = rows * width * wide
    layout = lay_out(RowRange(A, 0, rows).T, facts, state_bytes=bytes_, operand_bytes=bytes_, block_factor=factor)
    cut = "" if rows == m else f" of {rows} rows at a time"
    words = f"blocks both ways: columns{cut}, operands and products at rest ({reason})"
    return OperatorPlan("blocks", layout.grid, rows, words, layout.peak_bytes)


class MatrixOperator(Operator):
    """A stored matrix, multiplied as its plan says; a context manager, which lets go of what is held.

    Products are numbered, and not kept: who iterates keeps a state of its own.

    Parameters
    ----------
    passes : Passes
    A : Matrix (m, n)
    plan : OperatorPlan
    tags : set of str
    """

    def __init__(self, passes: Passes, A: Matrix, plan: OperatorPlan, *, tags: frozenset[Tag] = frozenset()) -> None:
        self.passes, self.A, self.plan, self.tags = passes, A, plan, tags
        self.shape, self.dtype = A.shape, A.dtype
        self._resident = Resident(passes, A, grid=plan.grid) if plan.way == "resident" else None
        self._n_products = self.n_reads = 0

    def __enter__(self) -> MatrixOperator:
        return self

    def __exit__(self, *_: object) -> None:
        if self._resident is not None:
            self._resident.release()

    def apply(self, X: Array) -> Array:
        self._require_array()
        return self.read(Product(np.ascontiguousarray(X.T)))["product"]

    def adjoint(self, Y: Array) -> Array:
        self._require_array()
        if "symmetric" in self.tags:
            return self.apply(Y)
        return np.asarray(self.read(AdjointProduct(Y, self.shape[1]))["ZH"].conj().T)

    def normal(self, W: Array) -> Array:
        """In one read."""
        self._require_array()
        return np.asarray(self.read(NormalProduct(np.ascontiguousarray(W, self._of(W))))["ZH"].conj().T)

    def apply_at_rest(self, X: Matrix, name: str) -> Matrix:
        """``A X`` for X (n, k) at rest, as a scratch array of this name; kept, so done once in a job.

        Notes
        -----
        One read of A, and one of X for each panel of rows.
        """
        (m, _), rows, k = self.shape, self.plan.panel_rows, X.shape[1]
        dtype = np.result_type(self.dtype, X.dtype)
        output = self.passes.run.scratch(name, (m, k), dtype, RowGrid(m, rows, rows))
        for start in range(0, m, rows):
            panel = RowRange(self.A, start, min(m, start + rows))
            fold = ProductAcross(panel.shape[0], k, dtype, output, start)
            self.passes.sweep(f"{name}-rows-{start}", [panel.T, X], fold, self.plan.grid)
        return output.matrix()

    def adjoint_at_rest(self, Y: Matrix, name: str) -> Matrix:
        """``A^H Y`` for Y (m, k) at rest, as a scratch array of this name; kept, so done once in a job.

        Notes
        -----
        One read of A and Y; the product is read and written once for each panel of rows.
        """
        (m, n), rows, k = self.shape, self.plan.panel_rows, Y.shape[1]
        dtype = np.result_type(self.dtype, Y.dtype)
        before: list[Matrix] = []
        for i, start in enumerate(range(0, m, rows)):
            stop = min(m, start + rows)
            # Two arrays in turn, since a task may be repeated that has written.
            output = self.passes.run.scratch(f"{name}-{i % 2}", (n, k), dtype, self.plan.grid)
            inputs, fold = [RowRange(self.A, start, stop).T, *before], AdjointAcross(RowRange(Y, start, stop), dtype)
            self.passes.sweep(f"{name}-rows-{start}", inputs, fold, self.plan.grid, outputs=[output])
            before = [output.matrix()]
        return before[0]

    def read(self, fold: Fold, step: str = "") -> State:
        """Fold the rows of the matrix, in one read of it or of what is held; under the next number without a name of its own."""
        self._n_products += not step
        self.n_reads += 1
        step = step or f"product-{self._n_products}"
        if self._resident is not None:
            return self._resident.sweep(step, fold)
        return self.passes.sweep(step, self.A, fold, self.plan.grid, keep="none")

    def _of(self, W: Array) -> np.dtype[Any]:
        return np.result_type(self.dtype, W.dtype)

    def _require_array(self) -> None:
        if self.plan.way == "blocks":
            raise SpecError(f"Operands of a matrix of shape {self.shape} lie at rest here ({self.plan.words}); use apply_at_rest.")
