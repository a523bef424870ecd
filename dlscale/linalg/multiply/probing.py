"""Freivalds' check of a product: on random signs x, ``C x`` must be ``A (B x)`` up to rounding, row by row.

    Y = B [x, 1],  Z = A Y,  and the same of the moduli:  v = |A| (|B| 1)
    |C x - Z| <= (n + k) eps v + u

The bound on the right, with what underflow may take for u, is never exceeded by rounding alone; an entry that is wrong by more
shows on every vector of signs, and several together escape each with a probability of at most 1/2.

References
----------
Freivalds (1979); Higham (2002), section 3.5, for the rounding errors of a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Check
from dlscale.engine.grids import RowGrid
from dlscale.engine.outputs import RowOutput
from dlscale.engine.passes import Fold, Passes, State
from dlscale.errors import NonFiniteError, OutOfRange
from dlscale.kernels import accumulator_dtype, largest_part, safe_exponent, tiles
from dlscale.linalg.multiply.operands import Operand
from dlscale.linalg.scaling import Largest, bound_words, exponent_of
from dlscale.sparse_rows import SparseRows
from dlscale.storage.matrix import ArrayMatrix, Matrix
from dlscale.storage.scaled import scaled

#: Vectors of signs: what is wrong in several places at once escapes all of them with a probability of 1e-6.
N_SIGNS = 20


def signs(n: int, dtype: np.dtype[Any]) -> Matrix:
    """Vectors of random signs (n, N_SIGNS), and ones behind them that stand for their moduli."""
    rng = np.random.default_rng(0)
    X = np.ones((n, N_SIGNS + 1), accumulator_dtype(dtype))
    X[:, :N_SIGNS] -= 2 * rng.integers(0, 2, (n, N_SIGNS), np.int8)
    return ArrayMatrix(X)


@dataclass(frozen=True)
class AcrossRows(Fold):
    """``[M X, |M| w]`` for ``[X, w]``, handed to the output of the pass.

    Parameters
    ----------
    Xw : Matrix (n, s)
        Read whole by each process.
    """

    Xw: Matrix

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.Xw.shape[0] * self.Xw.shape[1]

    @cached_property
    def _operand(self) -> Array:
        return np.ascontiguousarray(self.Xw.read(0, self.Xw.shape[0]))

    def start(self) -> State:
        return {"largest": np.zeros(1), "total": np.zeros(1)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        X, rows = self._operand, np.empty((len(A), self.Xw.shape[1]), self.Xw.dtype)
        if isinstance(A, SparseRows):
            rows[:, :-1] = A.times(X[:, :-1])
            rows[:, -1] = A.moduli().times(X[:, -1:].real)[:, 0]
            np.maximum(state["largest"], _largest(A), out=state["largest"])
        for i, tile in () if isinstance(A, SparseRows) else tiles(A):
            wide = tile.astype(rows.dtype, copy=False)
            rows[i : i + len(tile), :-1] = wide @ X[:, :-1]
            rows[i : i + len(tile), -1] = np.abs(wide) @ X[:, -1].real
            np.maximum(state["largest"], largest_part(tile), out=state["largest"])
        state["total"] += np.abs(rows[:, -1]).sum()
        return (rows,)

    def merge(self, left: State, right: State) -> State:
        return {"largest": np.maximum(left["largest"], right["largest"]), "total": left["total"] + right["total"]}


def _largest(A: SparseRows) -> float:
    """The largest modulus of the real and imaginary parts."""
    return float(max(largest_part(A.entries()), largest_part(A.beside())))


@dataclass(frozen=True)
class DownColumns(Fold):
    """``[M^H X, |M|^T w]``, in a pass over M and ``[X, w]``, which the worker that has the last sums writes.

    Parameters
    ----------
    n : int
        Columns of M.
    output : RowOutput (n, s)
    dtype : numpy.dtype
        Of what is written.
    """

    n: int
    output: RowOutput
    dtype: np.dtype[Any]

    takes_sparse = True

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.n * self.output.shape[1]

    def start(self) -> State:
        return {"largest": np.zeros(1), "sums": np.zeros((self.output.shape[1], self.n), self.dtype)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        M, X = A
        if isinstance(M, SparseRows):
            state["sums"][:-1] += M.adjoint_times(X[:, :-1])
            state["sums"][-1] += M.moduli().adjoint_times(X[:, -1:].real)[0]
            np.maximum(state["largest"], _largest(M), out=state["largest"])
            return ()
        for i, tile in tiles(M):
            wide, part = tile.astype(X.dtype, copy=False), X[i : i + len(tile)]
            state["sums"][:-1] += part[:, :-1].conj().T @ wide
            state["sums"][-1] += part[:, -1].real @ np.abs(wide)
            np.maximum(state["largest"], largest_part(tile), out=state["largest"])
        return ()

    def merge(self, left: State, right: State) -> State:
        return {"largest": np.maximum(left["largest"], right["largest"]), "sums": left["sums"] + right["sums"]}

    def concluded(self) -> Sequence[RowOutput]:
        return (self.output,)

    def conclude(self, state: State) -> State:
        self.output.write(0, np.ascontiguousarray(state["sums"].conj().T))
        return {"largest": state["largest"], "total": np.abs(state["sums"][-1:]).sum(axis=1)}


@dataclass(frozen=True)
class Difference(Fold):
    """The largest ``|C x - z| / bound`` of all rows and vectors of signs, in a pass over C and ``[Z, v]``: the signs times A B,
    and the ones times ``|A| |B|``.

    Parameters
    ----------
    X : (n, s)
        Signs, and a column of ones.
    relative, absolute : float
        The bound is ``relative v + absolute``.
    """

    X: Array
    relative: float
    absolute: float

    @property
    def flops_per_row(self) -> float:
        return 2.0 * self.X.size

    def start(self) -> State:
        return {"ratio": np.zeros(1)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        C, Zv = A
        for i, tile in tiles(C):
            Z = Zv[i : i + len(tile)]
            R = np.abs(tile.astype(Z.dtype, copy=False) @ self.X[:, :-1] - Z[:, :-1])
            bound = self.relative * Z[:, -1:].real + self.absolute
            np.maximum(state["ratio"], np.max(R / bound), out=state["ratio"])
        return ()

    def merge(self, left: State, right: State) -> State:
        return {"ratio": np.maximum(left["ratio"], right["ratio"])}


class Probed(NamedTuple):
    """``op(M) [X, w]``.

    Parameters
    ----------
    operand : Operand
        At a safe scale: ``2^-exponent`` times the one that was given.
    exponent : int
    product : Matrix
    largest : float
        Of the parts of the entries that were given.
    """

    operand: Operand
    exponent: int
    product: Matrix
    largest: float


def probe_both(
    passes: Passes, a: Operand, b: Operand, X: Matrix, grids: Mapping[str, RowGrid], *, role: str, symmetric: bool
) -> tuple[Probed, Probed]:
    """Multiply probes by b, and the result by a, each in a read or two; once more where both are better left as they are.

    Parameters
    ----------
    passes : Passes
    a, b : Operand
    X : Matrix
    grids : mapping
        Of ``a`` and ``b``.
    role : str
        What b is called.
    symmetric : bool
        Whether a is the adjoint of b, and is to have its scale.

    Raises
    ------
    NonFiniteError
        Naming the input and the place.
    """
    of_b = probe(passes, b, X, grids["b"], name="b", role=role)
    of_a = probe(passes, a, of_b.product, grids["a"], name="a", role="a")
    if of_a.exponent + of_b.exponent <= 0:
        return of_a, of_b
    # Of a product that is larger than its operands at a safe scale, what vanishes there may count. It is divided by no more than
    # its sums need to stay in range.
    limits, digits = np.finfo(b.dtype), [math.ceil(math.log2(size)) for size in (*a.shape, b.shape[1])]
    # Sums for probes are in double precision.
    room, of_sums = int(limits.maxexp) - 4, sum(digits[1:]) if limits.bits == 64 else 0
    size_a, size_b = exponent_of(of_a.largest), exponent_of(of_b.largest)
    e_b = max(0, size_b + of_sums - room)
    excess = max(0, size_a + size_b - e_b - room + sum(digits))
    e_a = -(-(excess + e_b) // 2) if symmetric else excess if size_a >= size_b else 0
    e_b = max(e_a, e_b) if symmetric else e_b + excess - e_a
    e_a = e_b if symmetric else e_a
    there = passes.apart("raised-")
    of_b = _probed(there, b, e_b, partial(_sweep, Xw=X, grid=grids["b"], name="b"))
    return _probed(there, a, e_a, partial(_sweep, Xw=of_b.product, grid=grids["a"], name="a")), of_b


def probe(passes: Passes, operand: Operand, Xw: Matrix, grid: RowGrid, *, name: str, role: str) -> Probed:
    """Multiply probes by an operand, in one read; where its entries are out of a safe range, in two.

    Raises
    ------
    NonFiniteError
        Naming the input and the place.
    """
    try:
        return _at_safe_scale(passes, operand, partial(_sweep, Xw=Xw, grid=grid, name=name), grid, name)
    except NonFiniteError as error:
        raise NonFiniteError(error.row, error.column, error.value, matrix=f"input.{role}") from None


def _at_safe_scale(
    passes: Passes, operand: Operand, sweep: Callable[[Passes, Operand], tuple[float, Matrix]], grid: RowGrid, name: str
) -> Probed:
    try:
        largest, product = sweep(passes, operand)
        exponent = safe_exponent(largest, operand.dtype)
    except OutOfRange:
        largest = float(passes.sweep(f"largest-{name}", operand.matrix, Largest(), grid)["largest"][0])
        exponent = exponent_of(largest)
    if not exponent:
        return Probed(operand, 0, product, largest)
    return _probed(passes.apart("scaled-"), operand, exponent, sweep)


def _probed(passes: Passes, operand: Operand, exponent: int, sweep: Callable[[Passes, Operand], tuple[float, Matrix]]) -> Probed:
    there = Operand(scaled(operand.matrix, -exponent), operand.adjoint)
    largest, product = sweep(passes, there)
    return Probed(there, exponent, product, float(np.ldexp(largest, exponent)))


def _sweep(passes: Passes, operand: Operand, *, Xw: Matrix, grid: RowGrid, name: str) -> tuple[float, Matrix]:
    """The largest entry, and ``op(M) [X, w]``."""
    M, step, s = operand.matrix, f"probes-{name}", Xw.shape[1]
    if operand.adjoint:
        n = M.shape[1]
        output = passes.run.scratch(step, (n, s), Xw.dtype, RowGrid(n, n, n))
        found = passes.sweep(step, (M, Xw), DownColumns(n, output, Xw.dtype), grid)
    else:
        output = passes.run.scratch(step, (M.shape[0], s), Xw.dtype, grid)
        found = passes.sweep(step, M, AcrossRows(Xw), grid, outputs=[output])
    return float(found["largest"][0]), output.matrix()


def compare(passes: Passes, C: Matrix, X: Matrix, a: Probed, b: Probed, grid: RowGrid) -> Check:
    """Check a stored product against what its operands, which are at scales of their own, make of the probes; one read of it."""
    exponent, n, k, limits = a.exponent + b.exponent, C.shape[1], a.operand.shape[1], np.finfo(C.dtype)
    # A complex product is four real ones; what is too small for the dtype is off by half of its smallest number.
    parts, smallest = 4 if C.dtype.kind == "c" else 1, float(limits.smallest_subnormal)
    with np.errstate(over="ignore"):
        # Of products, and of the entries of an operand that was divided, beside the largest of the other.
        beside = [float(np.ldexp(other.largest, -other.exponent)) for one, other in ((a, b), (b, a)) if one.exponent > 0]
        absolute = parts * n * (k * smallest * (1.0 + sum(beside)) + float(np.ldexp(smallest, -exponent)))
    fold = Difference(X.read(0, n), parts**0.5 * (n + k) * float(limits.eps), absolute)
    ratio = float(passes.sweep("check", (scaled(C, -exponent), a.product), fold, grid)["ratio"][0])
    return Check(
        "|C x - A (B x)| / (|A| |B| |x| (n + k) eps + u)",
        ratio,
        1.0,
        f"on {N_SIGNS} vectors of random signs, each row of the stored product acts as the two matrices do; rounding alone "
        "never exceeds the bound, and an entry that is wrong by more than twice the bound escapes with a probability of 1e-6; "
        f"u, {bound_words(absolute, exponent)}, is what underflow may take",
    )
