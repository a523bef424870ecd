"""Block functions on NumPy arrays, each with its flop count.

They trust their arguments. Each runs on one thread: the parallelism of dlscale is between blocks, so that the bits of a
result do not depend on how many threads or workers there were (`one_blas_thread`).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from threadpoolctl import ThreadpoolController

from dlscale import sparse_rows
from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.lapack import add_hermitian_square
from dlscale.sparse_rows import SparseRows

#: Rows of a tile are chosen so that it stays in a core's share of the cache while it is used twice.
TILE_BYTES = 5_400_000
#: A symmetric product reads a tile once, and is fastest where it is near the core's own cache.
GRAM_TILE_BYTES = 1_000_000
#: The same where it is used with vectors.
PIECE_BYTES = 2**18
#: Does the work that threads share.
Share = Callable[[Sequence[Callable[[], object]]], None]
#: A computing thread that returns from BLAS gets the interpreter back after at most this long.
SWITCH_SECONDS = 2e-4


@cache
def _libraries() -> ThreadpoolController:
    """All libraries that are computed with, which this module loads; to look for them takes longer than a small system."""
    return ThreadpoolController()


class _Limiter:
    """Counts who asked for one BLAS thread: the first to enter sets the limit, the last to leave lifts it.

    As the threads of the process then compute side by side, they also take turns in the interpreter more often.

    It is entered by the thread that starts the work, around all of it, not by the threads that do it: threadpoolctl takes
    orders from one thread of a process only.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.n_inside = 0
        self.limit: Any = None
        self.switch_seconds = 0.0

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            if self.n_inside == 0:
                self.limit = _libraries().limit(limits=1, user_api="blas")
                self.switch_seconds = sys.getswitchinterval()
                sys.setswitchinterval(min(self.switch_seconds, SWITCH_SECONDS))
            self.n_inside += 1
        try:
            yield
        finally:
            with self.lock:
                self.n_inside -= 1
                if self.n_inside == 0:
                    self.limit.restore_original_limits()
                    sys.setswitchinterval(self.switch_seconds)


#: Context in which BLAS runs on one thread and threads switch quickly, in the whole process.
one_blas_thread = _Limiter()


@contextmanager
def blas_threads(n_threads: int) -> Iterator[None]:
    """Context in which BLAS runs on so many threads of the process, for a task that is the only one on its worker."""
    with _libraries().limit(limits=n_threads, user_api="blas"):
        yield


@contextmanager
def sharing(n_threads: int) -> Iterator[Share]:
    """Does work on so many threads."""
    if n_threads == 1:

        def alone(work: Sequence[Callable[[], object]]) -> None:
            for part in work:
                part()

        yield alone
        return
    with ThreadPoolExecutor(n_threads) as pool:

        def together(work: Sequence[Callable[[], object]]) -> None:
            if len(work) == 1:  # a small system is solved sooner than a thread starts
                work[0]()
            else:
                list(pool.map(lambda part: part(), work))

        yield together


def accumulator_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype of sums over many blocks: double precision, real or complex."""
    return np.dtype(np.complex128 if dtype.kind == "c" else np.float64)


def half_precision(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Single precision for double, real or complex; single precision itself."""
    return np.dtype(np.complex64 if dtype.kind == "c" else np.float32)


def tile_rows(n_columns: int, itemsize: int, n_bytes: int | None = None) -> int:
    """Rows of a tile of `TILE_BYTES`, or of so many bytes, a multiple of 64, at least 64."""
    return max(64, (n_bytes or TILE_BYTES) // (n_columns * itemsize) // 64 * 64)


def tiles(A: Array, mean: Array | None = None, *, rows: int | None = None) -> Iterator[tuple[int, Array]]:
    """Cut a block into cache-sized tiles ``A[i:i+b] - mean``, of about ``rows`` rows on request; without a mean they are views.

    Yields
    ------
    (i, tile)
        The tile is overwritten by the next one when a mean is subtracted.
    """
    m, n = A.shape
    step = rows or tile_rows(n, A.itemsize)
    # Equal ones: a short last tile costs as much as a whole one beside its product. A fifth too high is still in the cache.
    n_tiles = max(1, -(-5 * m // (6 * step)))
    step = -(-m // (8 * n_tiles)) * 8
    for i in range(0, m, step):
        tile = A[i : i + step]
        yield i, tile if mean is None else np.subtract(tile, mean, out=workspace("tile", tile.shape, A.dtype))


@dataclass
class Moments:
    """Sums over the rows of what a kernel reads, taken while a tile is in the cache.

    Parameters
    ----------
    sums : (n,), optional
        Gains the sum of the rows.
    squares : float, optional
        Gains the sum of the squared moduli; None is not summed.
    probe, probed : (n,), optional
        ``probed`` gains ``(A probe)^H A``.
    met, met_low : number
        With a probe, the sum of ``A probe`` in two parts, mean included: an independent measurement of the mean.
    """

    sums: Array | None = None
    squares: float | None = None
    probe: Array | None = None
    probed: Array | None = None
    met: Any = 0.0
    met_low: Any = 0.0

    def add(self, tile: Array) -> None:
        weights, targets = [], []
        if self.sums is not None:
            weights.append(np.ones(len(tile), tile.dtype))
            targets.append(self.sums)
        if self.probe is not None:
            products = tile @ self.probe
            self._meet(products.sum(dtype=accumulator_dtype(tile.dtype)).item())
            if self.probed is not None:
                weights.append(products.conj())
                targets.append(self.probed)
        for target, weight in zip(targets, weights, strict=True):
            target += weight @ tile
        if self.squares is not None:
            self.squares += sum_of_squares(tile)

    def add_sparse(self, A: SparseRows, centred: SparseRows) -> None:
        """Take in a block, and what is left of it without its mean."""
        if self.sums is not None:
            self.sums += centred.sums()
        if self.squares is not None:
            self.squares += centred.squares()
        if self.probe is not None:
            self._meet(A.times(self.probe[:, None]).sum().item())
            if self.probed is not None:
                self.probed += centred.adjoint_times(centred.times(self.probe[:, None]))[0]

    def add_mean(self, A: Array, tile: Array) -> None:
        """Take in what was subtracted from all rows of A, as the first tile shows that it was."""
        if self.probe is not None:
            wide = accumulator_dtype(A.dtype)
            subtracted = (A[: len(tile)] @ self.probe).sum(dtype=wide) - (tile @ self.probe).sum(dtype=wide)
            self._meet(subtracted.item() / len(tile) * len(A))

    def _meet(self, part: Any) -> None:
        # Many equal parts are rounded the same way: what the sum loses is kept (Knuth's two-sum).
        total = self.met + part
        before = total - part
        self.met_low += (self.met - before) + (part - (total - before))
        self.met = total


def add_normal_product(
    A: Array | SparseRows,
    W: Array,
    ZH: Array,
    *,
    mean: Array | None = None,
    moments: Moments | None = None,
    halved: bool = False,
) -> Array:
    """``Z += (A - 1 mean)^H Y`` with ``Y = (A - 1 mean) W``: one step of a power iteration, in one read of A.

    Parameters
    ----------
    A : (b, n)
        Of compressed rows only what is stored is multiplied, in double precision unless halved.
    W : (n, l), C order
        Of A's dtype, or of half its precision, in which the products are then made; moments keep A's.
    ZH : (l, n), double precision, updated in place
        The conjugate transpose of Z.
    mean : (n,), optional
    moments : Moments, optional
        Gains those of ``A - 1 mean``.
    halved : bool
        Whether the precision of W is half of the matrix's.

    Returns
    -------
    Y : (b, l)
        A workspace, overwritten by the next call.

    Notes
    -----
    4 b n l flops.
    """
    if isinstance(A, SparseRows):
        Y, centred = sparse_rows.add_normal_product(A, W, ZH, mean=mean, halved=halved)
        if moments is not None:
            moments.add_sparse(A, centred)
        return Y
    Y = workspace("Y", (A.shape[0], W.shape[1]), W.dtype)
    update = workspace("ZH", ZH.shape, W.dtype)
    for i, tile in tiles(A, mean):
        if moments is not None:
            if mean is not None and i == 0:
                moments.add_mean(A, tile)
            moments.add(tile)
        if W.dtype != A.dtype:
            # In the tile's own order, which another one would take five times as long to reach.
            by_columns = tile.strides[0] < tile.strides[1]
            converted = workspace("halved", tile.shape[::-1], W.dtype).T if by_columns else workspace("halved", tile.shape, W.dtype)
            np.copyto(converted, tile, casting="same_kind")
            tile = converted
        Y_tile = np.matmul(tile, W, out=Y[i : i + len(tile)])
        ZH += np.matmul(Y_tile.conj().T, tile, out=update)
    return Y


def add_gram(A: Array | SparseRows, G: Array, *, mean: Array | None = None, moments: Moments | None = None) -> None:
    """The upper triangle of ``G += (A - 1 mean)^H (A - 1 mean)``; `mirror_upper` gives the lower one when all is added.

    Parameters
    ----------
    A : (b, n)
        Of compressed rows products are made in double precision too.
    G : (n, n), double precision, upper triangle updated in place
    mean : (n,), optional
    moments : Moments, optional
        Gains those of ``A - 1 mean``.

    Notes
    -----
    b n^2 flops (b n (n + 1) multiplications and additions). Sums within a tile are in A's precision, between tiles in G's.
    """
    if isinstance(A, SparseRows):
        centred = sparse_rows.add_gram(A, G, mean=mean)
        if moments is not None:
            moments.add_sparse(A, centred)
        return
    n, same = len(G), G.dtype == A.dtype
    update = G if same else workspace("G", G.shape, A.dtype)
    if not same:
        update.fill(0)
    for i, tile in tiles(A, mean, rows=gram_tile_rows(n, A.dtype)):
        if moments is not None:
            if mean is not None and i == 0:
                moments.add_mean(A, tile)
            # Products with vectors read what they need again and again: pieces of it stay in the second cache.
            for _, piece in tiles(tile, rows=tile_rows(n, A.itemsize, PIECE_BYTES)):
                moments.add(piece)
        add_hermitian_square(tile, update, beta=1.0 if same else 0.0)
        if not same:
            G += update


def gram_tile_rows(n: int, dtype: np.dtype[Any]) -> int:
    """Rows of the tiles in which `add_gram` multiplies; what has to be added up in another precision should outweigh that."""
    same = dtype == accumulator_dtype(dtype)
    return max(256 if same else 2 * n, tile_rows(n, dtype.itemsize, GRAM_TILE_BYTES))


def mirror_upper(G: Array) -> Array:
    """Fill the lower triangle of a Hermitian matrix (n, n) from its upper one, in place; returns G."""
    step = 64
    for i in range(0, len(G), step):
        stop = i + step
        G[stop:, i:stop] = G[i:stop, stop:].conj().T
        corner = G[i:stop, i:stop]
        G[i:stop, i:stop] = np.triu(corner) + np.triu(corner, 1).conj().T
    return G


def sum_of_squares(A: Array) -> float:
    """``||A||_F^2`` of a tile, summed in double precision over its rows."""
    flat = A.reshape(-1) if A.flags.c_contiguous else A.ravel(order="K")
    return float(np.vdot(flat, flat).real)


#: Exponents of the largest entry up to which squares and long products keep their digits; beyond, a power of two is taken out.
SAFE_EXPONENTS = {32: 40, 64: 400}


def safe_exponent(largest: float, dtype: np.dtype[Any]) -> int:
    """The power of two to take out of a matrix with this largest modulus, so that nothing overflows or vanishes.

    Returns
    -------
    int
        0 where the matrix may stay as it is; else an even k for which ``2^-k largest`` is near 1 (Cholesky factors are then
        scaled exactly too).
    """
    if not 0 < largest < np.inf:
        return 0
    exponent = int(np.frexp(largest)[1])
    return 0 if abs(exponent) <= SAFE_EXPONENTS[np.finfo(dtype).bits] else exponent // 2 * 2


def times_power_of_two(A: Array, exponent: int, *, out: Array | None = None) -> Array:
    """``2^exponent A``, exact unless it overflows or becomes subnormal; A itself for 0 and without ``out``."""
    one, limit = A.real.dtype.type(1), int(np.finfo(A.dtype).maxexp) - 1
    # The long steps come last, so that what becomes subnormal is rounded once.
    short, sign = abs(exponent) % limit, 1 if exponent > 0 else -1
    steps = [sign * short] * bool(short) + [sign * limit] * (abs(exponent) // limit)
    if not steps and out is not None:
        out[...] = A
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for step in steps:
            A = np.multiply(A, np.ldexp(one, step), out=out)
    return A if out is None else out


def largest_part(A: Array, axis: int | None = None) -> Any:
    """The largest modulus of the real and imaginary parts of all entries, or along an axis, which never overflows; 0 of none."""
    parts = (A.real, A.imag) if A.dtype.kind == "c" else (A,)
    largest = np.max([np.maximum(part.max(axis, initial=0), -part.min(axis, initial=0)) for part in parts], axis=0)
    return float(largest) if axis is None else largest


def safe_norm(A: Array, axis: int | None = None) -> Any:
    """The 2-norm of all entries, or along an axis, in double precision: no square overflows or vanishes.

    Parameters
    ----------
    A : array
    axis : int, optional

    Returns
    -------
    float, or array of floats
        NaN where an entry is NaN; infinite where an entry is, or where the norm itself is no number of double precision.
    """
    wide = A.astype(accumulator_dtype(A.dtype), copy=False)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):  # invalid: of infinite complex entries
        if A.dtype != wide.dtype:
            return np.linalg.norm(wide, axis=axis)
        largest = largest_part(wide, axis)
        # Near 1, where squares are safe, by powers that are in range themselves.
        exponent = np.clip(np.frexp(largest)[1], -1000, 1000)
        power = np.ldexp(1.0, -exponent)
        norms = np.linalg.norm(wide * (power if axis is None else np.expand_dims(power, axis)), axis=axis)
        return np.where(largest < np.inf, np.ldexp(norms, exponent), largest)[()]


def unit_phases(d: Array) -> Array:
    """``d / |d|`` entry by entry, 1 where d is zero; the parts are divided one by one, since subnormal numbers have no squares."""
    size = np.abs(d)
    divisor = np.where(size > 0, size, 1)
    units = d.real / divisor
    if d.dtype.kind == "c":
        units = units + 1j * (d.imag / divisor)
    return np.where(size > 0, units, 1).astype(d.dtype, copy=False)
