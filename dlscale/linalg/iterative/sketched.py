"""Tall least squares by sketch and precondition: the triangle of a random sketch makes CGLS converge in a few reads.

A sparse sign matrix S with d = 8 n rows gives, in one read, ``S [A b]``. Its QR factorization has an R for which ``A R^-1`` is
well-conditioned whatever A is, a first x, and singular values by which a gradient tells the backward error. CGLS with
``R^-1 R^-H`` then goes on from that x, and from the measured residual of what it found, which is what makes the method backward
stable.

References
----------
Epperly, Meier and Nakatsukasa (2024), Fast randomized least-squares solvers can be just as accurate and stable as classical direct
solvers; Karlson and Walden (1997), Estimation of optimal backward perturbation bounds for the linear least squares problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.linalg
import scipy.sparse

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import bytes_of, lay_out, measured_rates
from dlscale.engine.grids import RowGrid, blocks
from dlscale.engine.passes import Fold, State
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.errors import NumericalError, SpecError
from dlscale.kernels import accumulator_dtype, one_blas_thread, safe_norm
from dlscale.lapack import svd
from dlscale.linalg.iterative.gradients import StoredLeastSquares
from dlscale.linalg.iterative.options import Iterations
from dlscale.linalg.iterative.recurrence import Map
from dlscale.linalg.iterative.stored import threads_of_held_products
from dlscale.linalg.operators import MatrixOperator
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import Matrix

#: Rows of the sketch for each column of A, and of them those that a row of A is added to.
OVERSAMPLING, NONZEROS = 8, 8
#: A matrix must have so many rows for each column.
LEAST_ROWS = 16
#: Rows that are sketched at a time, and bytes of each of them: their signed sums stay in a cache.
_ROWS, _PANEL_BYTES = 2**13, 256
#: Leaves of a matrix in memory at least: more would spend their time on partial results, each as large as the sketch.
_N_LEAVES = 16
#: Times eps: the backward error that is asked for where nothing is said, and the part of it that is aimed at.
BACKWARD_ERROR, AIM = 16.0, 0.125
#: Iterations at most where nothing is said: usually it is some 30.
MAX_ITERATIONS = 100


@dataclass(frozen=True)
class Sketch(Fold):
    """``S [A B]`` for a sparse sign embedding S: in each of `NONZEROS` equal parts of it, every row is added to one at random.

    Parameters
    ----------
    n : int
        Columns of A.
    B : (m, k), double precision
    n_rows : int
        Of S.
    """

    n: int
    B: Array
    n_rows: int

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return float(2 * NONZEROS * (self.n + self.B.shape[1]))

    def start(self) -> State:
        dtype = self.B.dtype
        return {"A": _panels(self.n_rows, self.n, dtype), "B": _panels(self.n_rows, self.B.shape[1], dtype)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        for start, stop in blocks(0, len(A), _ROWS):
            S = self.columns(first_row + start, stop - start)
            if isinstance(A, SparseRows):
                _add_sparse_product(S, A.part(start, stop), state["A"])
            else:
                _add_product(S, A[start:stop], state["A"])
            _add_product(S, self.B[first_row + start : first_row + stop], state["B"])
        return ()

    def conclude(self, state: State) -> State:
        widths = {"A": self.n, "B": self.B.shape[1]}
        return {"sketch": np.hstack([np.hstack([*state[name]])[:, :width] for name, width in widths.items()])}

    def columns(self, first_row: int, b: int) -> Any:
        """Those of S for b rows of A, (d, b)."""
        rng, part = np.random.default_rng([7_000_003, first_row]), self.n_rows // NONZEROS
        places = rng.integers(0, part, (b, NONZEROS), dtype=np.int32) + part * np.arange(NONZEROS, dtype=np.int32)
        signs = rng.choice([-1.0, 1.0], b * NONZEROS) / NONZEROS**0.5
        ends = np.arange(0, b * NONZEROS + 1, NONZEROS, dtype=np.int32)
        return scipy.sparse.csc_array((signs, places.ravel(), ends), (self.n_rows, b))


def _panels(m: int, n: int, dtype: np.dtype[Any]) -> Array:
    """Zeros for a matrix (m, n) as panels of w columns, one after the other: (p, m, w), where p w may be more than n."""
    width = min(n, _PANEL_BYTES // dtype.itemsize)
    return np.zeros((-(-n // width), m, width), dtype)


def _add_product(S: Any, X: Array, total: Array) -> None:
    """``total += S X`` for a total in panels."""
    width = total.shape[2]
    for i, panel in enumerate(total):
        columns = X[:, i * width : (i + 1) * width]
        contiguous = workspace("columns", columns.shape, total.dtype)
        np.copyto(contiguous, columns)
        panel[:, : columns.shape[1]] += S @ contiguous


def _add_sparse_product(S: Any, X: SparseRows, total: Array) -> None:
    """The same of compressed rows."""
    product = (S.tocsr() @ X.wide().rows).tocoo()
    panels, columns = np.divmod(product.col, total.shape[2])
    total[panels, product.row, columns] += product.data
    if X.shift is not None:
        _add_product(S @ np.ones((len(X), 1)), -X.shift[None], total)


def sketch_grid(rows: RowGrid, n_rows: int, *, held: bool) -> RowGrid:
    """The grid of the pass that sketches.

    Parameters
    ----------
    rows : RowGrid
        Of other passes.
    n_rows : int
        Of the sketch.
    held : bool
        Whether the matrix is in memory: blocks are then views, as high as is of use.
    """
    if not held:
        return rows
    m, most = rows.n_rows, rows.n_rows // _N_LEAVES
    block = rows.block_rows * max(1, min(_ROWS, most) // rows.block_rows)
    return RowGrid(m, block, block * max(1, rows.leaf_rows // block, min(8 * n_rows, most) // block))


class SketchedLeastSquares(StoredLeastSquares):
    """A least squares problem with what a sketch tells of it.

    What is held against the tolerance is the Karlson-Walden estimate of the backward error, relative to ``||A||_F``.

    Parameters
    ----------
    operator : MatrixOperator (m, n)
    rhs : (m, k), double precision
    handed_out : callable
    sketch : (d, n + k)
        ``S [A B]``.

    Raises
    ------
    NumericalError
        If the matrix has no full rank to working precision.
    """

    def __init__(self, operator: MatrixOperator, rhs: Array, handed_out: Map, sketch: Array) -> None:
        n = operator.shape[1]
        with one_blas_thread():
            CH, self.R = scipy.linalg.qr_multiply(sketch[:, :n], sketch[:, n:].conj().T)
            _, self.values, self.Vh = svd(self.R)
            if not self.values[-1] > n * float(np.finfo(float).eps) * self.values[0]:
                raise NumericalError(
                    "The columns of the matrix are dependent to working precision, which method sketch does not solve for; use "
                    "method direct."
                )
            start = np.asarray(scipy.linalg.solve_triangular(self.R, CH.conj().T), rhs.dtype)
        super().__init__(operator, rhs, handed_out, start)

    def precondition(self, S: Array) -> Array:
        """``R^-1 R^-H S``."""
        return np.asarray(scipy.linalg.solve_triangular(self.R, scipy.linalg.solve_triangular(self.R, S, trans="C")))

    def residual(self, X: Array) -> Array:
        self.lengths_of_x = safe_norm(X, axis=0)
        return super().residual(X)

    def relative(self, S: Array, residuals: Array, columns: Array) -> Array:
        """``||(A^H A + mu^2 I)^(-1/2) S|| / (||x|| ||A||_F)`` with mu = ||r|| / ||x||."""
        x = self.lengths_of_x[columns]
        x = np.where(x > 0, x, 1)
        weights = np.hypot(self.values[:, None], residuals / x)
        return np.asarray(np.linalg.norm((self.Vh @ S) / weights, axis=0) / x / self.norm)

    def reached(self, R: Array, X: Array) -> tuple[Array, Array]:
        k = X.shape[1]
        return self.relative(R, self.residuals, np.arange(k)) * self.sizes, np.zeros(k)


def plan_sketched(A: Matrix, B: Matrix, options: Iterations, facts: ClusterFacts) -> Plan:
    """Plan a least squares problem by sketch and precondition.

    Raises
    ------
    SpecError
        If the matrix is not tall enough, or the right-hand sides do not suit it.
    DoesNotFitError
    """
    (m, n), k = A.shape, B.shape[1]
    if B.shape[0] != m:
        raise SpecError(f"input.rhs: must have {m} rows like the matrix; got {B.shape[0]}.")
    if m < LEAST_ROWS * n:
        raise SpecError(f"params.method: sketch is for matrices with {LEAST_ROWS} rows for each column; got {m} x {n}.")
    if options.preconditioner != "none":
        raise SpecError(f"params.preconditioner: method sketch makes its own; got {options.preconditioner}.")
    wide = np.result_type(accumulator_dtype(A.dtype), B.dtype)
    width, d = k * (2 if wide.kind == "c" and A.dtype.kind != "c" else 1), OVERSAMPLING * n
    sketch = bytes_of(d, n + k, dtype=wide)
    held = A.in_memory and facts.kind == "threads"
    driver_bytes = 2 * sketch + 8 * bytes_of(n, n, dtype=wide) + (16 * n + 3 * m) * k * wide.itemsize
    left = replace(facts, memory_bytes=max(1, facts.memory_bytes - driver_bytes))
    # For each thread: signs and panels, or a product of compressed rows; and blocks that are copied where squares are not safe.
    product = min(d * n, NONZEROS * A.most_entries(min(_ROWS, m))) if A.is_sparse else 0
    working = (2 * min(_ROWS, m) + d) * _PANEL_BYTES + product * (32 + 2 * wide.itemsize)
    working += 2 * min(_ROWS, m // _N_LEAVES) * n * A.dtype.itemsize if held else 0
    layout = lay_out(A, left, state_bytes=sketch, operand_bytes=facts.threads_per_worker * working)
    each = 0 if held else A.n_stored_bytes
    threads = threads_of_held_products(A.dtype, 4.0 * width, facts) if held else 0.0
    max_iterations = options.max_iterations or MAX_ITERATIONS
    # A sum waits for the cache about as long as a product of one column for memory.
    sketching = threads_of_held_products(A.dtype, 2.0, facts) if held else 0.0
    products = [Step(f"product-{i}", 4.0 * A.n_entries * width, each, n_threads=threads) for i in range(1, max_iterations + 3)]
    return Plan(
        kind="lstsq",
        method="sketch",
        words=f"Sketch of {d} rows and its QR factorization, then at most {max_iterations} iterations of one product each",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        steps=(
            Step("sketch", 2.0 * NONZEROS * m * (n + k), each, n_threads=sketching),
            Step("triangle", 2.0 * d * n**2 + 20.0 * n**3, where="driver"),
            *products,
        ),
        memory=(*layout.memory, Need("the sketch, its factors, and vectors", driver_bytes)),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts, grid=layout.grid),
        notes=(*layout.notes, *A.notes),
        choices={"way": "memory" if held else "strips", "sketch_rows": d},
    )
