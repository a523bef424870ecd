"""Some eigenpairs of a matrix that is only multiplied by: the reads, what is kept of them, and what is measured in the end."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Check
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import bytes_of, lay_out, lay_out_sparse
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.plan import Need
from dlscale.engine.resident import Resident, resident_bytes, resident_grid
from dlscale.engine.run import Cost, Keep
from dlscale.errors import DoesNotFitError, NumericalError
from dlscale.kernels import accumulator_dtype, one_blas_thread
from dlscale.linalg.eigen.filtered import (
    FAR_COLUMNS,
    NARROWEST,
    Aim,
    Iterate,
    advance,
    filtered_alone,
    growth_rates,
    orthonormal_to,
    started,
)
from dlscale.linalg.eigen.pairs import Pairs
from dlscale.linalg.eigen.powers import Both, Powers
from dlscale.linalg.folds.operators import Product
from dlscale.linalg.operators import Operator
from dlscale.linalg.svd.subspace import gaussian, orthonormal
from dlscale.linalg.symmetry import limit, refuse
from dlscale.storage.matrix import Matrix

#: Columns of the check that no pair was missed, its reads, and how probable it is that it misses one.
CHECK_COLUMNS, CHECK_READS, CHECK_FAILURE = 16, 10, 1e-6
#: Columns beside those that are wanted: a third as many and at least so many; and, where the matrix is read from its store each
#: time and has this many rows for each of them, so many: products with them take less than the read, which they save.
FEWEST_BESIDE, MOST_BESIDE, ROWS_BESIDE = 16, 96, 128
#: So much work is sooner done again than its result kept.
KEPT_FLOPS = 5e9
_STEP, _CHECK = "iteration", "check"


@dataclass(frozen=True)
class Layout:
    """How a matrix is read again and again.

    Parameters
    ----------
    width : int
        Columns of the block that it is multiplied by.
    grid : RowGrid
    resident : bool
        Whether the workers hold it.
    memory : tuple of Need
    words : str
    notes : tuple of str
    """

    width: int
    grid: RowGrid
    resident: bool
    memory: tuple[Need, ...]
    words: str
    notes: tuple[str, ...]


def width_of(n: int, k: int, n_beside: int = 0) -> int:
    """Columns that are iterated: the wanted ones, some that make the others converge, and some for the other end."""
    return min(n, -(-(k + max(FEWEST_BESIDE, k // 3, n_beside) + FAR_COLUMNS) // 8) * 8)


def lay_out_reads(A: Matrix, k: int, facts: ClusterFacts) -> Layout:
    """Choose how many columns are iterated for k pairs, and whether the workers hold the matrix.

    Raises
    ------
    DoesNotFitError
    """
    n = A.shape[0]
    layout = _lay_out(A, width_of(n, k), facts)
    if layout.resident or A.in_memory or A.is_sparse:
        return layout
    try:
        return _lay_out(A, width_of(n, k, min(MOST_BESIDE, n // ROWS_BESIDE)), facts)
    except DoesNotFitError:
        return layout


def _lay_out(A: Matrix, width: int, facts: ClusterFacts) -> Layout:
    n = A.shape[0]
    state = 2 * bytes_of(n, width, dtype=accumulator_dtype(A.dtype))
    operands = 2 * n * width * A.dtype.itemsize
    if A.is_sparse:
        layout = lay_out_sparse(A, facts, state_bytes=state, operand_bytes=operands, width=width)
    else:
        layout = lay_out(A, facts, state_bytes=state, operand_bytes=operands)
    held = resident_bytes(A, facts)
    if A.in_memory and facts.kind == "threads":
        return Layout(width, layout.grid, False, layout.memory, "the matrix is in memory", layout.notes)
    if held + layout.peak_bytes <= facts.memory_bytes:
        memory = (*layout.memory, Need("blocks of the matrix that are held", held))
        words = f"read once and held on the workers, {held / 1e9:.3g} GB each"
        return Layout(width, resident_grid(A), True, memory, words, layout.notes)
    return Layout(width, layout.grid, False, layout.memory, "read from its store each time", layout.notes)


class First(NamedTuple):
    """What the first product tells.

    Parameters
    ----------
    product : (n, l), double precision
        Of the matrix and the random vectors.
    skew, size : float
        ``||A - A^H||_F`` and ``||A||_F``.
    mean : float
        Of the eigenvalues.
    """

    product: Array
    skew: float
    size: float
    mean: float


class Products(Protocol):
    """What pairs are found with: products of a matrix, or of an operator."""

    @property
    def A(self) -> Matrix | Operator: ...

    def first(self, X: Array) -> First: ...

    def powers(self, step: str, W: Array) -> tuple[Array, Array]:
        """``A W`` and ``A^2 W``."""
        ...

    def product(self, V: Array) -> Array: ...

    def keep(self, number: int, width: int) -> Keep:
        """Whether the state after so many reads is kept."""
        ...


class Reader:
    """Reads a matrix for folds that are not kept."""

    def __init__(self, passes: Passes, A: Matrix, grid: RowGrid, *, resident: bool) -> None:
        self.passes, self.A, self.grid = passes, A, grid
        self.resident = Resident(passes, A, grid=grid) if resident else None

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        if self.resident is not None:
            self.resident.release()

    def read(self, step: str, fold: Fold) -> State:
        if self.resident is not None:
            return self.resident.sweep(step, fold)
        return self.passes.sweep(step, self.A, fold, self.grid, keep="none")

    def keep(self, number: int, width: int) -> Keep:
        """Whether the state after so many reads is kept."""
        return "last" if number % math.ceil(KEPT_FLOPS / (4.0 * self.A.n_entries * width)) == 0 else "none"

    def first(self, X: Array) -> First:
        state = self.read("symmetry", Both(X))
        Y = state["product"].astype(state["ZH"].dtype)
        # Of a normal X the mean of the columns of ||M X||^2 is ||M||_F^2, twice that of a complex one.
        skew = float(np.linalg.norm(Y - state["ZH"].conj().T)) / math.sqrt(X.shape[1] * (2 if self.A.dtype.kind == "c" else 1))
        return First(Y, skew, math.sqrt(float(state["squares"][0])), complex(state["trace"][0]).real / len(X))

    def product(self, V: Array) -> Array:
        return self.read("residuals", Product(np.ascontiguousarray(V.T)))["product"]

    def powers(self, step: str, W: Array) -> tuple[Array, Array]:
        """``A W`` and ``A^2 W``."""
        state = self.read(step, Powers(np.ascontiguousarray(W)))
        return state["product"], state["ZH"].conj().T


@dataclass(frozen=True)
class Search:
    """A search for eigenpairs.

    Parameters
    ----------
    aim : Aim
    seed : int
    max_reads : int
    width : int
        Columns that are iterated.
    sampled : bool
        Whether random vectors are to show that no pair was missed.
    """

    aim: Aim
    seed: int
    max_reads: int
    width: int
    sampled: bool


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Parameters
    ----------
    pairs : Pairs
        Of the matrix as it was read.
    V : (n, k)
    n_reads : int
    check : Check, optional
        That no pair was missed, as random vectors show it.
    """

    pairs: Pairs
    V: Array
    n_reads: int
    check: Check | None


def find_some(passes: Passes, A: Matrix, *, search: Search, grid: RowGrid, resident: bool) -> Found:
    """The wanted pairs.

    Raises
    ------
    InputError
        If the matrix is not symmetric.
    NumericalError
        If they do not converge in so many reads.
    """
    with Reader(passes, A, grid, resident=resident) as reader:
        return find(passes, reader, search)


def find(passes: Passes, reader: Products, search: Search) -> Found:
    """The wanted pairs by products; see `find_some`."""
    number, it = _begin(passes, reader, search)
    check = None
    while check is None:
        while not it.finished:
            if number >= search.max_reads:
                raise NumericalError(_not_converged(it, search))
            AW, AAW = reader.powers(f"read-{number + 1}", it.W)
            number, it = number + 1, _advanced(passes, reader, number + 1, it, (AW, AAW), search.aim)
        if not search.sampled or it.V.shape[1] == reader.A.shape[0]:
            break
        check, missed = _sampled(passes, reader, it, search)
        if check is None:
            it = missed
    return _concluded(reader, it, search.aim, number, check)


def _begin(passes: Passes, reader: Products, search: Search) -> tuple[int, Iterate]:
    """The newest state, or the first one: a random block, on which the symmetry of the matrix is measured."""
    if (newest := passes.run.newest(_STEP)) is not None:
        return newest[0], Iterate.from_state(newest[1])
    A = reader.A
    n = A.shape[0]
    X = np.ascontiguousarray(gaussian(n, search.width, search.seed, A.dtype), A.dtype)

    def begin(_: str) -> State:
        Y, skew, size, mean = reader.first(X)
        if not skew <= limit(A.dtype) * size:
            raise refuse(skew / size, A.dtype)
        with one_blas_thread():
            W = orthonormal(Y - mean * X).astype(A.dtype)
        return started(W, np.zeros((n, 0), Y.dtype), np.zeros(0)).to_state()

    return 1, Iterate.from_state(passes.run.step(f"{_STEP}-1", Cost(), begin, keep=reader.keep(1, X.shape[1])))


def _advanced(passes: Passes, reader: Products, number: int, it: Iterate, products: tuple[Array, Array], aim: Aim) -> Iterate:
    if reader.keep(number, it.W.shape[1]) == "none":
        return advance(it, *products, aim)
    step = f"{_STEP}-{number}"
    return Iterate.from_state(passes.run.step(step, Cost(), lambda _: advance(it, *products, aim).to_state(), keep="last"))


def _not_converged(it: Iterate, search: Search) -> str:
    k, reached = search.aim.k, f"{it.residual / it.norm:.1e}" if it.norm else "unknown"
    return (
        f"{min(len(it.values), k)} of {k} eigenpairs have converged in {search.max_reads} reads of the matrix: the residual of the "
        f"last is {reached} of its norm, and must be {search.aim.tolerance:.1e}. Raise params.max_reads or params.tolerance, or "
        "ask for other pairs: eigenvalues that are close beside the width of the spectrum take many reads."
    )


def _concluded(reader: Products, it: Iterate, aim: Aim, n_reads: int, check: Check | None) -> Found:
    """The k most wanted of the locked pairs, measured on the matrix once more; one read."""
    order = aim.order(it.values)
    chosen, others = order[: aim.k], np.concatenate([it.values[order[aim.k :]], it.active])
    with one_blas_thread():
        # In this order columns change least.
        V = np.linalg.qr(it.V[:, chosen]).Q.astype(reader.A.dtype)
    AV = reader.product(V)
    with one_blas_thread():
        wide, AV = V.astype(it.V.dtype), AV.astype(it.V.dtype)
        gram = wide.conj().T @ wide
        values = np.einsum("ij,ij->j", wide.conj(), AV).real / np.diagonal(gram).real
        ascending = np.argsort(values, kind="stable")
        residuals = np.linalg.norm(AV - wide * values, axis=0)[ascending]
        departure = float(np.linalg.norm(gram - np.eye(aim.k)))
    nearest = aim.sign * float(others[aim.order(others)[0]]) if len(others) else None
    hidden = float(np.finfo(reader.A.dtype).eps) * it.norm
    pairs = Pairs(values[ascending], residuals, hidden, it.norm, departure, nearest, 0)
    return Found(
        pairs, np.ascontiguousarray(V[:, ascending]), n_reads + 1 + (it.round + (check is not None)) * (CHECK_READS + 1), check
    )


def _sampled(passes: Passes, reader: Products, it: Iterate, search: Search) -> tuple[Check | None, Iterate]:
    """Look for a pair that was missed, among filtered random vectors that are orthogonal to all that were found.

    Returns
    -------
    check : Check, optional
        None where one was found.
    Iterate
        Goes on from what was found.
    """
    run, aim, n, dtype = passes.run, search.aim, len(it.V), it.W.dtype
    last, name = float(np.sort(aim.height(it.values))[::-1][aim.k - 1]), f"{_CHECK}-{it.round}"
    it = replace(it, high=max(last, it.low + NARROWEST * it.norm))
    number, state = run.newest(name) or (0, _random_block(it, min(CHECK_COLUMNS, n - it.V.shape[1]), search.seed))
    while number < CHECK_READS:
        Y, Z = reader.powers(f"{name}-read-{number + 1}", state["W"])

        def compute(_: str, state: State = state, Y: Array = Y, Z: Array = Z, first: bool = number == 0) -> State:
            return filtered_alone(it, state["W"], state["before"], (Y, Z), aim, first=first)

        number, keep = number + 1, reader.keep(number + 1, state["W"].shape[1])
        state = compute("") if keep == "none" else run.step(f"{name}-{number}", Cost(), compute, keep=keep)
    with one_blas_thread():
        W = np.ascontiguousarray(orthonormal_to(it.V, state["W"].astype(it.V.dtype)), dtype)
    Y, _ = reader.powers(f"{name}-last", W)
    with one_blas_thread():
        T = W.astype(it.V.dtype).conj().T @ Y.astype(it.V.dtype)
        highest = float(aim.height(aim.sign * np.linalg.eigvalsh((T + T.conj().T) / 2)).max())
    if highest > last + 2 * aim.tolerance * it.norm:
        again = replace(it, W=W, before=np.zeros((n, 0), it.V.dtype), finished=0, position=0, length=1, round=it.round + 1)
        return None, again
    margin = it.high - last + resolved(it, n, W.shape[1], aim, real=dtype.kind != "c")
    beyond = {"largest": "above the smallest", "smallest": "below the largest", "magnitude": "beyond the smallest modulus"}[
        aim.which
    ]
    share = margin / (it.high - it.low) if it.high > it.low else 0.0
    return Check(
        f"value found by {W.shape[1]} filtered random vectors, beyond the last pair, / (2 tolerance ||A||)",
        max(0.0, highest - last) / (2 * aim.tolerance * it.norm) if it.norm else 0.0,
        1.0,
        f"an eigenvalue that was missed, more than {share:.1e} of the width of the rest of the spectrum {beyond} of those found, "
        f"would have been seen with a probability of at least {1 - CHECK_FAILURE}",
    ), it


def _random_block(it: Iterate, width: int, seed: int) -> State:
    X = gaussian(len(it.V), width, seed + 3_000_017 + it.round, it.V.dtype)
    with one_blas_thread():
        X = X - it.V @ (it.V.conj().T @ X)
    return {"W": np.ascontiguousarray(X, it.W.dtype), "before": X[:, :0]}


def resolved(it: Iterate, n: int, width: int, aim: Aim, *, real: bool) -> float:
    """How far beyond the interval, whose end is not below the last value, an eigenvalue would have been seen with that probability.

    Notes
    -----
    Let u be its vector, g its distance, x a normal vector, p the filter, at most 1 on the rest of the spectrum, of width s. The
    Rayleigh quotient of p(A) x is beyond the last value where ``|u^H x|^2 p^2 g > |x|^2 s``. With ``|x|^2 < 2 n``, and the density
    of ``u^H x`` at 0, that fails for one vector with a probability of at most ``(4 n s / (pi p^2 g))^(1/2)``, or
    ``2 n s / (p^2 g)`` of a complex one; for all of them with its power.
    """
    s = it.high - it.low
    if s <= 0:
        return 0.0
    allowed = CHECK_FAILURE ** (1 / width)
    needed = 4 * n / math.pi / allowed**2 if real else 2 * n / allowed

    def enough(g: float) -> bool:
        rate = float(growth_rates(it, np.array([it.high + g]), aim)[0])
        return 2 * (CHECK_READS * rate - math.log(2)) + math.log(g / s) > math.log(needed)

    low, high = 1e-12 * s, 1e12 * s
    for _ in range(100):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
