"""All eigenpairs of a matrix that fits in the memory of a worker, or some: LAPACK, in one task with all of its threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import empty_pages
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Applied, Columns, Span, Tell
from dlscale.engine.grids import RowGrid
from dlscale.engine.outputs import RowOutput
from dlscale.engine.run import Cost, Run, State
from dlscale.engine.targets import MemoryTarget
from dlscale.errors import NonFiniteError, NumericalError
from dlscale.kernels import accumulator_dtype, blas_threads, largest_part, times_power_of_two
from dlscale.lapack import multiply_add
from dlscale.linalg.eigen.pairs import Pairs, Which, rank
from dlscale.linalg.eigen.tridiagonal import evd, evr
from dlscale.linalg.in_memory import patiently
from dlscale.linalg.scaling import exponent_of
from dlscale.linalg.svd.subspace import gaussian
from dlscale.linalg.symmetry import require_symmetric
from dlscale.storage.matrix import Matrix

Routine = Literal["evd", "evr"]

#: 32-bit LAPACK: the work of ``evd`` has 1 + 6n + 2n^2 entries, and an index of the matrix goes up to n^2.
LARGEST_EVD, LARGEST = 32_766, 46_340
#: The part of the rate of a product at which LAPACK finds eigenpairs.
EFFICIENCY = 0.4
#: Bisection finds one pair in so many faster than divide and conquer finds all.
FEW = 8
#: BLAS on several threads is faster from this order on.
MANY_THREADS_FROM = 300
#: Random vectors on which the pairs are measured.
N_PROBES = 16
#: The mean square of so many normal numbers is below 1/9 of what is expected once in some hundred thousand times.
SAFETY = 3.0
_STRIP_BYTES, _TRANSPOSED = 2**25, 32


@dataclass(frozen=True)
class Choice:
    """How LAPACK is called.

    Parameters
    ----------
    routine : str
        ``evd`` or ``evr``.
    n_bytes : int
        That it works in, the matrix included.
    may_repeat : bool
        Whether there is room for ``evd`` where ``evr`` does not converge.
    n_threads : int
        Of BLAS, which decide the order of sums.
    """

    routine: Routine
    n_bytes: int
    may_repeat: bool
    n_threads: int


@dataclass(frozen=True)
class Direct(Applied):
    """Reads a matrix, finds its eigenpairs, measures them and writes the vectors.

    Parameters
    ----------
    A : Matrix (n, n)
    output : RowOutput (n, k)
    which : str
    choice : Choice
    seed : int
    """

    A: Matrix
    output: RowOutput
    which: Which
    choice: Choice
    seed: int

    def cost(self, slabs: Sequence[Span]) -> Cost:
        n, k = self.A.shape[0], slabs[0][1]
        return Cost(flops(n, k, self.which, self.choice.routine), self.A.n_stored_bytes, n * k * self.A.dtype.itemsize)

    def apply(self, B: Array | None, slabs: Sequence[Span], tell: Tell) -> list[State]:
        n, k, dtype, choice = self.A.shape[0], slabs[0][1], self.A.dtype, self.choice
        # Where the vectors go to in the end, the matrix is before: memory is slow that is touched for the first time.
        room = self.output.array if isinstance(self.output, MemoryTarget) and k == n else None
        A, exponent = read_near_one(self.A, tell, out=room)
        require_symmetric(A)
        X = np.ascontiguousarray(gaussian(n, N_PROBES, self.seed, dtype), dtype)
        with blas_threads(choice.n_threads):
            AX = _product(A, X)
            first, stop = _computed(n, k, self.which)
            find = partial(evd, A) if choice.routine == "evd" else partial(evr, A, first, stop)
            values, VH, info = patiently(tell, find)
            if info and choice.routine == "evr" and choice.may_repeat:
                # Rare: eigenvalues that agree up to rounding, in single precision.
                A, _ = read_near_one(self.A, tell, out=A)
                values, VH, info = patiently(tell, partial(evd, A))
            if info:
                raise NumericalError(
                    f"LAPACK {choice.routine} did not converge (info = {info}); divide and conquer, with more memory, would."
                )
            order = rank(values, self.which)
            chosen = np.sort(order[:k])
            start = int(chosen[0])
            # A view where the wanted ones are neighbours, as they are but for those of largest modulus.
            VH = VH[start : start + k] if chosen[-1] == start + k - 1 else VH[chosen]
            measured = _measure(VH, values[chosen], X, AX, self.seed)
        tell(self.cost(slabs).flops, 0)
        write_columns(self.output, VH)
        nearest = values[order[k : k + 1]].astype(float)
        norm = float(np.abs(values).max())
        found = {"values": values[chosen], "nearest": nearest, "norm": np.array([norm]), "exponent": np.array([exponent])}
        return [measured | found]


def read_near_one(A: Matrix, tell: Tell, *, even: bool = False, out: Array | None = None) -> tuple[Array, int]:
    """All of a matrix in memory of its own, or in ``out``, at a size near 1: ``2^-exponent A``; of an even exponent on request."""
    whole = _whole(A, tell, empty_pages(A.shape, A.dtype) if out is None else out)
    exponent = exponent_of(largest_part(whole))
    exponent += exponent % 2 if even else 0
    return times_power_of_two(whole, -exponent, out=whole), exponent


def write_columns(output: RowOutput, VH: Array) -> None:
    """Write V (n, k) by strips of rows, from its adjoint."""
    k, n = VH.shape
    unit = output.writers[0].chunks[0] if output.writers else 1
    rows = max(1, _STRIP_BYTES // (k * VH.itemsize) // unit) * unit
    for i in range(0, n, rows):
        strip = np.empty((min(rows, n - i), k), VH.dtype)
        # A few rows of V^H at a time, which the cache holds.
        for j in range(0, k, _TRANSPOSED):
            np.conjugate(VH[j : j + _TRANSPOSED, i : i + rows].T, out=strip[:, j : j + _TRANSPOSED])
        output.write(i, strip)


def find_directly(run: Run, A: Matrix, *, k: int, which: Which, choice: Choice, seed: int) -> tuple[Pairs, Matrix]:
    """The wanted eigenpairs and their vectors by LAPACK; ``eigenvectors`` (n, k) go to the outputs of the run."""
    n = A.shape[0]
    rows = min(n, 512)
    output = run.output("eigenvectors", (n, k), A.dtype, RowGrid(n, rows, rows))
    what = Direct(A, output, which, choice, seed)
    (found,) = Columns(run, run.cluster.facts).apply("eigenpairs", what, n_columns=k, width=k, writers=output.writers)
    # The norm is that of all of the matrix where all values are computed, and that of a part of it otherwise.
    norm = max(float(found["norm"][0]), float(found["norm_of_products"][0]))
    nearest = float(found["nearest"][0]) if len(found["nearest"]) else None
    exponent = int(found["exponent"][0])
    hidden, departure = float(np.finfo(A.dtype).eps) * norm, float(found["departure"][0])
    return Pairs(found["values"], found["residuals"], hidden, norm, departure, nearest, exponent), output.matrix()


def choose(n: int, k: int, which: Which, dtype: np.dtype[np.generic], facts: ClusterFacts) -> Choice | None:
    """How to call LAPACK; None where nothing fits."""
    if n > LARGEST:
        return None
    n_threads = 1 if n < MANY_THREADS_FROM else facts.threads_per_worker
    first, stop = _computed(n, k, which)
    square, least = n * n * dtype.itemsize, least_bytes(n, k, which, dtype)
    if n <= LARGEST_EVD and 3 * square <= facts.work_bytes:
        return Choice("evd" if stop - first == n else "evr", 3 * square, True, n_threads)
    return Choice("evr", least, False, n_threads) if least <= facts.work_bytes else None


def least_bytes(n: int, k: int, which: Which, dtype: np.dtype[np.generic]) -> int:
    """What the routine with the least memory works in."""
    first, stop = _computed(n, k, which)
    return n * (n + stop - first) * dtype.itemsize


def flops(n: int, k: int, which: Which, routine: Routine) -> float:
    """Reduction to a tridiagonal matrix, its eigenvectors, and these brought back; and made orthonormal."""
    first, stop = _computed(n, k, which)
    every = stop - first == n
    found = 4 / 3 * n**3 + (4 / 3 * n**3 if every else 0.0) + 2.0 * n * n * (stop - first)
    return found + (4.0 * n**3 if every and routine == "evr" else 0.0)


def _computed(n: int, k: int, which: Which) -> tuple[int, int]:
    """The range of the pairs that are computed: the wanted ones and the one next to them, or all."""
    if which == "magnitude" or FEW * (k + 1) > n:
        return 0, n
    return (n - k - 1, n) if which == "largest" else (0, k + 1)


def _whole(A: Matrix, tell: Tell, whole: Array) -> Array:
    """All of a matrix, in ``whole``.

    Raises
    ------
    NonFiniteError
    """
    for i, strip in _strips(A, tell, whole):
        if not np.isfinite(strip).all():
            row, column = (int(index) for index in np.argwhere(~np.isfinite(strip))[0])
            raise NonFiniteError(*A.place(i + row, column), strip[row, column].item())
        place = whole[i : i + len(strip)]
        if (strip.ctypes.data, strip.strides) != (place.ctypes.data, place.strides):
            place[...] = strip
    return whole


def times(A: Matrix, X: Array, exponent: int, tell: Tell) -> Array:
    """``2^exponent A X``, by strips of A."""
    products = [times_power_of_two(strip, exponent) @ X for _, strip in _strips(A, tell)]
    return np.concatenate(products)


def _strips(A: Matrix, tell: Tell, out: Array | None = None) -> Iterator[tuple[int, Array]]:
    """Strips of rows with the number of the first one, read into ``out`` where that can be."""
    m, n = A.shape
    rows = max(1, _STRIP_BYTES // (n * A.dtype.itemsize) // A.row_unit) * A.row_unit
    for i in range(0, m, rows):
        strip = A.region((i, min(i + rows, m)), (0, n), None if out is None else out[i : i + rows])
        tell(0.0, strip.size * A.stored_dtype.itemsize)
        yield i, strip


def _product(A: Array, B: Array) -> Array:
    """A B by the BLAS of SciPy's LAPACK: the threads of NumPy's keep its cores busy for a while after they are done."""
    return multiply_add(A, B, np.empty((len(A), B.shape[1]), A.dtype), alpha=1.0, beta=0.0)


def _measure(VH: Array, values: Array, X: Array, AX: Array, seed: int) -> State:
    """What the pairs leave of random vectors: ``V^H A - L V^H = R^H`` for a Hermitian A, and ``V^H V - I``.

    Notes
    -----
    8 n k p flops. The mean over normal vectors of the square of ``r^H x`` is ``||r||^2``.
    """
    k, wide = len(VH), accumulator_dtype(VH.dtype)
    products = _product(VH, np.hstack([AX, X])).astype(wide)
    left = products[:, :N_PROBES] - values[:, None] * products[:, N_PROBES:]
    C = gaussian(k, N_PROBES, seed + 1, VH.dtype).astype(VH.dtype)
    # V C from the left, without a copy of V.
    VC = np.ascontiguousarray(_product(np.ascontiguousarray(C.conj().T), VH).conj().T)
    lost = _product(VH, VC).astype(wide) - C
    # Of a complex normal vector the two parts have unit variance each.
    mean = N_PROBES * (2 if VH.dtype.kind == "c" else 1)
    return {
        "residuals": SAFETY * np.sqrt((np.abs(left) ** 2).sum(axis=1) / mean),
        "departure": SAFETY * np.sqrt((np.abs(lost) ** 2).sum(keepdims=True)[0] / mean),
        "norm_of_products": np.sqrt((np.abs(AX.astype(wide)) ** 2).sum(axis=0) / (np.abs(X.astype(wide)) ** 2).sum(axis=0)).max(
            keepdims=True
        ),
    }
