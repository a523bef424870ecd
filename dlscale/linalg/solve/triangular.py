"""Triangular systems op(T) X = B with T on disk or in memory, read once, panel by panel, ahead of what is computed.

The columns of B are cut in slabs, and what a piece of a panel does to other unknowns in blocks of these. Threads take slabs of
their own where there are enough, and share the blocks where there are not.
Neither the order of the sums (`dlscale.linalg.solve.substitution`) nor the cuts depend on the threads, so that no bit does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.columns import SLAB_COLUMNS, Tell, untold
from dlscale.engine.grids import blocks
from dlscale.engine.passes.reading import N_STRIPS, read_regions
from dlscale.kernels import one_blas_thread, sharing
from dlscale.lapack import Op, multiply_add, solve_lower, solve_upper
from dlscale.linalg.solve.substitution import PANEL, Piece, Span, Substitution
from dlscale.storage.matrix import Matrix

#: Unknowns that a thread works on at once: products of that size run at their rate.
SHARED_ROWS = 512
#: Of fewer columns a product is over so soon that a thread is given several at once.
FEW_COLUMNS, N_AT_ONCE = 16, 2
#: So few columns are multiplied with an adjoint as rows.
N_SKINNY = 4
#: Pieces before the one that is read last that a thread may still work on.
N_HELD = 1
#: Pieces that are in memory: that is used, those that are still used, and those that are read ahead.
N_PIECES = 1 + N_HELD + N_STRIPS
#: Unknowns of a triangle that is solved as it is; of larger ones most of the work is products, which are faster.
TRIANGLE = 128

#: What is done to each slab, in order.
_Work = list[list[Callable[[], object]]]


class _Slab(NamedTuple):
    """Columns of X, and the first row of them that is not zero."""

    X: Array
    first: int


@dataclass(frozen=True)
class How:
    """How a triangular system is solved.

    Parameters
    ----------
    dtype : numpy.dtype, optional
        What is computed in; that of the triangle if absent.
    n_threads : int
        Threads that multiply.
    width : int
        Columns of a slab: the same columns in the same slabs have the same bits, whatever other slabs are beside them.
    tell : callable
        Told of the flops that were done, and the bytes that were read.
    panel : int
        Unknowns of a panel where chunks are not wider.
    """

    dtype: np.dtype[Any] | None = None
    n_threads: int = 1
    width: int = SLAB_COLUMNS
    tell: Tell = untold
    panel: int = PANEL


def solve_triangular(
    T: Matrix,
    B: Array,
    *,
    lower: bool,
    op: Op = "N",
    unit: bool = False,
    overwrite: bool = False,
    how: How = How(),
) -> Array:
    """Solve ``op(T) X = B``.

    Parameters
    ----------
    T : Matrix (n, n)
        Only one triangle is used.
    B : (n, k)
    lower : bool
        Which triangle.
    op : str
        ``N``: T; ``T``: its transpose; ``C``: its conjugate transpose.
    unit : bool
        Whether the diagonal counts as ones, whatever is stored there.
    overwrite : bool
        Whether B may become X where it is of the right kind.
    how : How

    Returns
    -------
    X : (n, k)
        Not finite where a diagonal entry is zero that B reaches, or where it overflows.

    Notes
    -----
    n^2 k flops, less where B begins with zeros and these stay; one read of the triangle. Memory for X, and a few pieces.

    References
    ----------
    Golub and Van Loan (2013), section 3.1.4.
    """
    dtype = how.dtype or T.dtype
    right = B.dtype == dtype and B.strides[1] == B.itemsize and B.flags.writeable
    X = B if overwrite and right else _copy(B, dtype)
    way = Substitution.of(T, how.panel)
    forward = lower == (op == "N")
    slabs = [_Slab(X[:, a:b], _first_row(X[:, a:b]) if forward else 0) for a, b in blocks(0, B.shape[1], how.width)]
    steps = list(way.steps(lower=lower, op=op, first=min((slab.first for slab in slabs), default=0)))
    regions = [way.rectangle(span, piece) for span, pieces in steps for piece in pieces]
    solving = _Solving(way, slabs, lower, op, unit, how.n_threads)
    with (
        np.errstate(all="ignore"),
        one_blas_thread(),
        closing(read_regions(T, regions, held=N_HELD)) as read,
        closing(solving.threads),
    ):
        for span, pieces in steps:
            solving.begin(span, X.dtype)
            for piece in pieces:
                block = next(read)
                n_bytes = block.shape[0] * block.shape[1] * T.dtype.itemsize
                how.tell(solving.use(piece, block), 0 if T.in_memory else n_bytes)
        solving.threads.end()
    return X


class _Together:
    """Threads that share the work on one piece, and wait for each other after it."""

    def __init__(self, n_threads: int) -> None:
        self._stack = ExitStack()
        self._share = self._stack.enter_context(sharing(n_threads))

    def do(self, work: _Work) -> None:
        self._share([part for parts in work for part in parts])

    def end_of_piece(self) -> None: ...

    def end(self) -> None: ...

    def close(self) -> None:
        self._stack.close()


class _Apart:
    """Threads that work on slabs of their own, and wait for each other when one is `N_HELD` pieces behind."""

    def __init__(self, n_threads: int, n_slabs: int) -> None:
        self._pool = ThreadPoolExecutor(n_threads)
        self._last: list[Future[None] | None] = [None] * n_slabs
        self._pieces: deque[list[Future[None] | None]] = deque()

    def do(self, work: _Work) -> None:
        for i, parts in enumerate(work):
            if parts:
                self._last[i] = self._pool.submit(_after, self._last[i], parts)

    def end_of_piece(self) -> None:
        self._pieces.append(list(self._last))
        if len(self._pieces) > N_HELD:
            _wait(self._pieces.popleft())

    def end(self) -> None:
        _wait(self._last)

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


def _after(before: Future[None] | None, parts: Sequence[Callable[[], object]]) -> None:
    """Do what comes after something that was begun earlier."""
    _wait([before])
    for part in parts:
        part()


def _wait(jobs: Iterable[Future[None] | None]) -> None:
    for job in jobs:
        if job is not None:
            job.result()


class _Solving:
    """The unknowns, and the panel that is solved for."""

    def __init__(self, way: Substitution, slabs: Sequence[_Slab], lower: bool, op: Op, unit: bool, n_threads: int) -> None:
        self.way, self.slabs, self.lower, self.op, self.unit = way, slabs, lower, op, unit
        self.scatters = way.scatters(op)
        n_slabs = len(slabs)
        self.threads = _Apart(n_threads, n_slabs) if n_slabs >= n_threads > 1 else _Together(n_threads)

    def begin(self, panel: Span, dtype: np.dtype[Any]) -> None:
        self.panel, self._found, self._dtype = panel, 0, dtype
        self._triangle: Array | None = None

    def use(self, piece: Piece, block: Array) -> float:
        """Begin to use a piece, of which what was read may be overwritten `N_HELD` pieces later; the flops that takes."""
        if block.dtype != self._dtype or block.strides[1] != block.itemsize:
            block = np.ascontiguousarray(block, self._dtype)
        # What a panel collects comes before its own unknowns, what it carries after them.
        steps = (self._solve, self._couple) if self.scatters else (self._couple, self._solve)
        flops = 0.0
        for step in steps:
            work, taken = step(piece, block)
            self.threads.do(work)
            flops += taken
        self.threads.end_of_piece()
        return flops

    def _solve(self, piece: Piece, block: Array) -> tuple[_Work, float]:
        """Solve for the panel as soon as all of its triangle is there."""
        size, (start, stop) = self.panel[1] - self.panel[0], piece.own
        if start == stop:
            return [], 0.0
        part = self._cut(block, piece, piece.own)
        if stop - start == size:
            triangle = part
        else:
            if self._triangle is None:
                self._triangle = np.empty((size, size), block.dtype)
            triangle, at = self._triangle, slice(start - self.panel[0], stop - self.panel[0])
            triangle[(slice(None), at) if self.way.by_rows else at] = part
        self._found += stop - start
        if self._found < size:
            return [], 0.0
        solve = partial(solve_block, triangle, lower=self.lower, op=self.op, unit=self.unit)
        work: _Work = [[partial(solve, slab.X[slice(*self.panel)])] if slab.first < self.panel[1] else [] for slab in self.slabs]
        return work, sum(float(size * size * slab.X.shape[1]) for slab, parts in zip(self.slabs, work, strict=True) if parts)

    def _couple(self, piece: Piece, block: Array) -> tuple[_Work, float]:
        """Subtract what the panel contributes to the unknowns of a piece, or these to the panel."""
        work: _Work = [[] for _ in self.slabs]
        flops = 0.0
        for slab, parts in zip(self.slabs, work, strict=True):
            # What is zero contributes nothing.
            start, stop = piece.others if self.scatters else (max(piece.others[0], slab.first), piece.others[1])
            if start < stop and slab.first < (self.panel[1] if self.scatters else stop):
                part = self._cut(block, piece, (start, stop))
                products = list(self._products(part, slab.X[slice(*self.panel)], slab.X[start:stop]))
                parts += _in_a_row(products, N_AT_ONCE) if slab.X.shape[1] < FEW_COLUMNS else products
                flops += 2.0 * part.size * slab.X.shape[1]
        return work, flops

    def _products(self, part: Array, mine: Array, other: Array) -> Iterator[Callable[[], object]]:
        source, target = (mine, other) if self.scatters else (other, mine)
        n_parts = -(-len(target) // SHARED_ROWS)
        for first, last in blocks(0, len(target), -(-len(target) // n_parts)):
            A = part[first:last] if self.op == "N" else part[:, first:last]
            multiply = _subtract_adjoint_product if self.op != "N" and source.shape[1] <= N_SKINNY else multiply_add
            yield partial(multiply, A, source, target[first:last], op_a=self.op)

    def _cut(self, block: Array, piece: Piece, wanted: Span) -> Array:
        """What couples the panel to the unknowns wanted."""
        at = slice(wanted[0] - piece.span[0], wanted[1] - piece.span[0])
        return block[:, at] if self.way.by_rows else block[at]


def _in_a_row(work: Sequence[Callable[[], object]], n: int) -> Iterator[Callable[[], object]]:
    """The same work, n pieces of it one after another."""

    def run(pieces: Sequence[Callable[[], object]]) -> None:
        for piece in pieces:
            piece()

    return (partial(run, work[i : i + n]) for i in range(0, len(work), n))


def _subtract_adjoint_product(A: Array, B: Array, C: Array, *, op_a: Op) -> Array:
    """``C <- C - op(A) B`` for a few columns, by ``op(B) A``, which reads A in its own order: two to three times as fast."""
    C -= (B.T @ A).T if op_a == "T" else (B.conj().T @ A).conj().T
    return C


def solve_block(T: Array, B: Array, *, lower: bool, op: Op, unit: bool) -> None:
    """``B <- op(T)^-1 B`` for a triangle (n, n), by halves, so that most of it is products."""
    n = len(T)
    if n <= TRIANGLE:
        (solve_lower if lower else solve_upper)(T, B, op=op, unit=unit)
        return
    half = -(-n // TRIANGLE) // 2 * TRIANGLE
    top, bottom = slice(0, half), slice(half, n)
    before, behind = (top, bottom) if lower == (op == "N") else (bottom, top)
    solve_block(T[before, before], B[before], lower=lower, op=op, unit=unit)
    multiply_add(T[bottom, top] if lower else T[top, bottom], B[before], B[behind], op_a=op)
    solve_block(T[behind, behind], B[behind], lower=lower, op=op, unit=unit)


def _copy(B: Array, dtype: np.dtype[Any]) -> Array:
    """A copy whose rows are not a power of two apart, which would make the caches thrash."""
    n, k = B.shape
    X = np.empty((n, k + padding(k, dtype.itemsize)), dtype)[:, :k]
    X[...] = B
    return X


def padding(k: int, itemsize: int) -> int:
    """Entries behind each row of k, so that rows are not a power of two apart."""
    return 8 if k * itemsize % 4096 == 0 else 0


def _first_row(B: Array) -> int:
    """The first row that is not zero."""
    for start, stop in blocks(0, len(B), 512):
        found = B[start:stop].any(axis=1)
        if found.any():
            return start + int(found.argmax())
    return len(B)
