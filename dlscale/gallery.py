"""Matrices with known answers: a prescribed spectrum at any size, and small matrices that are hard on purpose.

`SpectrumMatrix` makes any block of rows by itself, so that a matrix larger than memory can be written in parallel and its
exact singular values and vectors are still known. Spectra for it: `power`, `geometric`, `step`, `flat`. Small hard
matrices: `wilkinson_growth`, `kahan`, `hilbert`, `graded`, `rank_deficient`, `zero_leading_block`, `tiny_leading_block`,
`near_singular`, `singular_at`, `positive_definite`; `HARD_SQUARE` has those of any order by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import DTypeLike

from dlscale.arrays import Array
from dlscale.errors import SpecError

FLOAT64 = np.dtype(np.float64)
COMPUTE_DTYPES = tuple(np.dtype(code) for code in ("f4", "f8", "c8", "c16"))
TILE_ROWS = 64  # rows that share one base angle; the angles of a tile are one small table
SLAB_BYTES = 1 << 20  # rows are made in slabs that stay in a core's cache
MAX_ROWS = 1 << 31  # (2 i + 1) f < 2 m^2 must fit in 64 bits


def _dtype(dtype: DTypeLike) -> np.dtype[Any]:
    chosen = np.dtype(dtype)
    if chosen not in COMPUTE_DTYPES:
        raise SpecError(f"A gallery matrix is float32, float64, complex64 or complex128; got dtype {chosen}.")
    return chosen


@dataclass(frozen=True, eq=False)
class SpectrumMatrix:
    """An m x n matrix `A = U diag(s) V^H + offset` with exactly orthonormal factors, of which any rows can be made alone.

    Real: column j of U is the cosine `sqrt(2/m) cos(pi (2 i + 1) f_j / (2 m))` with distinct frequencies f_j, and V^H is
    rows of the orthonormal DCT with random column signs. Complex: U and V^H are columns and rows of the unitary discrete
    Fourier transform, V^H with random column phases. The frequencies, signs and phases are a function of `seed` alone.

    While r < m no frequency is zero, so every column of `U` sums to zero and the principal components are known too:
    with `s` and `V^H` as given, whatever the offset, the explained variances of A are `s**2 / (m - 1)`, its components
    `V^H`, and its mean is `offset` in each column.

    Parameters
    ----------
    shape : (int, int)
        Rows m (below 2**31) and columns n.
    singular_values : (r,) array of float
        Not negative, in descending order, 1 <= r <= min(m, n). Entries of A have root mean square
        `norm(s) / sqrt(m n)`.
    seed : int
        Chooses the singular vectors.
    dtype : dtype
        float32, float64, complex64 or complex128. Blocks are computed in double precision and rounded once.
    offset : float
        Added to every entry. The singular values of A are `s` only where it is 0.

    Raises
    ------
    SpecError
        If the shape, the spectrum or the dtype is not as above.

    Notes
    -----
    A block of b rows costs O(b (r + n log n)) operations and, beyond the block itself, a few MB (or a few rows, where these are
    longer); the tables that are kept hold 128 r + n numbers. The factors are orthonormal to a few
    units of rounding for any m: angles are reduced in integer arithmetic before a cosine is taken.
    """

    shape: tuple[int, int]
    singular_values: Array
    seed: int = 0
    dtype: np.dtype[Any] = FLOAT64
    offset: float = 0.0

    def __post_init__(self) -> None:
        m, n = (int(size) for size in self.shape)
        s = np.array(self.singular_values, dtype=np.float64)
        if m < 1 or n < 1 or m >= MAX_ROWS:
            raise SpecError(f"shape must be at least 1 x 1 with fewer than 2**31 rows; got {m} x {n}.")
        if s.ndim != 1 or not 1 <= s.size <= min(m, n):
            raise SpecError(f"singular_values must hold 1 to min(m, n) = {min(m, n)} numbers; got shape {s.shape}.")
        if not np.isfinite(s).all() or s[-1] < 0 or (np.diff(s) > 0).any():
            raise SpecError("singular_values must be finite, not negative and in descending order.")
        s.setflags(write=False)
        for name, value in (("shape", (m, n)), ("singular_values", s), ("dtype", _dtype(self.dtype))):
            object.__setattr__(self, name, value)

    def __reduce__(self) -> tuple[type[SpectrumMatrix], tuple[Any, ...]]:
        return type(self), (self.shape, self.singular_values, self.seed, self.dtype, self.offset)  # without the tables

    def rows(self, start: int, stop: int) -> Array:
        """Rows start:stop of A; the same bits however the rows are cut.

        Parameters
        ----------
        start, stop : int
            0 <= start <= stop <= m.

        Returns
        -------
        (stop - start, n) array of `dtype`, C-contiguous
        """
        self._check_range(start, stop)
        n = self.shape[1]
        frequencies, signs = self._right
        scale = self._weights * self.singular_values
        block = np.empty((stop - start, n), self.dtype)
        itemsize = 16 if self._complex else 8
        slab_rows = max(1, SLAB_BYTES // (itemsize * n * TILE_ROWS)) * TILE_ROWS
        piece_rows = max(1, SLAB_BYTES // (itemsize * n))
        for lo in range(start - start % TILE_ROWS, stop, slab_rows):
            hi = min(lo + slab_rows, stop)
            first = max(lo, start)
            waves = self._waves(lo, hi)[first - lo :]
            waves *= scale
            # Of wide rows fewer at a time than share an angle.
            for top in range(first, hi, piece_rows):
                bottom = min(top + piece_rows, hi)
                spectrum = np.zeros((bottom - top, n), waves.dtype)
                spectrum[:, frequencies] = waves[top - first : bottom - first]
                slab = _inverse_transform(spectrum)
                slab *= signs
                if self.offset:
                    slab += self.offset
                block[top - start : bottom - start] = slab
        return block

    def u(self, start: int, stop: int) -> Array:
        """Rows start:stop of U: the exact left singular vectors, (stop - start, r) in double precision."""
        self._check_range(start, stop)
        lo = start - start % TILE_ROWS
        return np.ascontiguousarray((self._waves(lo, stop) * self._weights)[start - lo :])

    def vh(self) -> Array:
        """The exact right singular vectors V^H, (r, n) in double precision."""
        frequencies, signs = self._right
        spectrum = np.zeros((frequencies.size, self.shape[1]), np.complex128 if self._complex else np.float64)
        spectrum[np.arange(frequencies.size), frequencies] = 1
        return np.asarray(_inverse_transform(spectrum) * signs)

    @property
    def _complex(self) -> bool:
        return self.dtype.kind == "c"

    @cached_property
    def _left(self) -> Array:
        """The r distinct frequencies of the columns of U; zero is among them only when r = m."""
        m, r = self.shape[0], self.singular_values.size
        rng = np.random.default_rng([self.seed, 0])
        return np.asarray(rng.permutation(m) if r == m else 1 + rng.choice(m - 1, r, replace=False))

    @cached_property
    def _right(self) -> tuple[Array, Array]:
        """The r distinct frequencies of the rows of V^H, and the n signs (phases) of its columns."""
        n, r = self.shape[1], self.singular_values.size
        rng = np.random.default_rng([self.seed, 1])
        frequencies = rng.choice(n, r, replace=False)
        phases = np.exp(2j * np.pi * rng.random(n)) if self._complex else rng.integers(0, 2, n) * 2.0 - 1.0
        return frequencies, phases

    @cached_property
    def _weights(self) -> Array:
        m = self.shape[0]
        if self._complex:
            return np.full(self.singular_values.size, m**-0.5)
        return np.asarray(np.where(self._left == 0, m**-0.5, (2 / m) ** 0.5))

    def _rotations(self, steps: Array) -> Array:
        """exp(2 pi i k f / N) for integer steps k and all frequencies f; the angle is reduced exactly, in integers."""
        period = self.shape[0] * (1 if self._complex else 4)
        turns = np.multiply.outer(steps, self._left) % period
        turns -= period * (turns > period // 2)
        return np.asarray(np.exp((2j * np.pi / period) * turns))

    @cached_property
    def _tile(self) -> Array:
        steps = np.arange(TILE_ROWS, dtype=np.int64)
        return self._rotations(steps if self._complex else 2 * steps + 1)

    def _waves(self, lo: int, hi: int) -> Array:
        """Columns of U before scaling, rows lo:hi, where lo is a multiple of the tile.

        Row lo + 64 q + t is the rotation of its tile times the rotation of t within a tile: one complex product (for
        the cosines, its real part) in place of a sine and a cosine an entry.
        """
        starts = np.arange(lo, hi, TILE_ROWS, dtype=np.int64)
        base = self._rotations(starts if self._complex else 2 * starts)[:, None, :]
        if self._complex:
            waves = base * self._tile
        else:
            waves = base.real * self._tile.real
            waves -= base.imag * self._tile.imag
        return np.asarray(waves.reshape(-1, self._left.size)[: hi - lo])

    def _check_range(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.shape[0]:
            raise SpecError(f"Rows must satisfy 0 <= start <= stop <= {self.shape[0]}; got {start}:{stop}.")


def _inverse_transform(spectrum: Array) -> Array:
    """The orthonormal inverse DCT-II (real) or DFT (complex) of every row, in place where possible."""
    if spectrum.dtype.kind == "c":
        return np.asarray(scipy.fft.ifft(spectrum, norm="ortho", overwrite_x=True))
    return np.asarray(scipy.fft.idct(spectrum, norm="ortho", overwrite_x=True))


def power(k: int, exponent: float = 0.5) -> Array:
    """The slowly decaying spectrum `s_i = i**-exponent`, i = 1..k; at 0.5 randomized methods without care are wrong."""
    return np.asarray(np.arange(1, k + 1, dtype=np.float64) ** -exponent)


def geometric(k: int, condition: float) -> Array:
    """k singular values in geometric progression from 1 to `1 / condition`."""
    return np.geomspace(1.0, 1.0 / condition, k)


def step(k: int, n_large: int, *, small: float = 1e-6) -> Array:
    """`n_large` singular values of 1 and k - n_large of `small`: a clear gap and a numerical rank."""
    return np.where(np.arange(k) < n_large, 1.0, small)


def flat(k: int) -> Array:
    """k singular values of 1: no gap anywhere, so single singular vectors are not determined."""
    return np.ones(k)


def wilkinson_growth(n: int, *, dtype: DTypeLike = np.float64) -> Array:
    """Wilkinson's matrix: LU with partial pivoting grows to `2**(n - 1)`, the largest growth there is.

    References
    ----------
    J. H. Wilkinson, Error analysis of direct methods of matrix inversion, J. ACM 8 (1961); Higham, Accuracy and
    Stability of Numerical Algorithms (2002), section 9.4.
    """
    A = np.eye(n) - np.tri(n, k=-1)
    A[:, -1] = 1
    return A.astype(_dtype(dtype))


def kahan(n: int, *, theta: float = 1.2, dtype: DTypeLike = np.float64) -> Array:
    """Kahan's upper triangular matrix: nearly singular, though no diagonal entry of R is small (QR does not see it).

    `R = diag(1, s, ..., s**(n - 1)) (I - c strictly_upper(1))` with s = sin(theta), c = cos(theta).

    References
    ----------
    W. Kahan, Numerical linear algebra, Canadian Math. Bull. 9 (1966); Higham (2002), section 8.3.
    """
    R = np.eye(n) - np.cos(theta) * np.triu(np.ones((n, n)), 1)
    return np.asarray(np.sin(theta) ** np.arange(n)[:, None] * R, _dtype(dtype))


def hilbert(n: int, *, dtype: DTypeLike = np.float64) -> Array:
    """Hilbert's matrix `1 / (i + j + 1)`, i and j from 0: positive definite, condition about `exp(3.5 n)`.

    References
    ----------
    D. Hilbert, Acta Math. 18 (1894); Higham (2002), section 28.1.
    """
    i = np.arange(n)
    return (1.0 / (i[:, None] + i + 1)).astype(_dtype(dtype))


def graded(n: int, *, decades: float = 12.0, seed: int = 0, dtype: DTypeLike = np.float64) -> Array:
    """A Gaussian matrix whose rows fall from 1 to `10**-decades`: each row's own accuracy must survive.

    References
    ----------
    Higham (2002), section 19.4 (row-wise error of QR on graded rows).
    """
    A = _gaussian(np.random.default_rng(seed), (n, n), _dtype(dtype))
    return (np.logspace(0, -decades, n)[:, None] * A).astype(_dtype(dtype))


def rank_deficient(m: int, n: int, r: int, *, seed: int = 0, dtype: DTypeLike = np.float64) -> Array:
    """An m x n matrix of rank exactly r: a product of small integers, so that no entry is rounded.

    `A = [I; B] [I, C]` with rows and columns shuffled and integer B, C; equal columns and rows are common, as in data.

    Raises
    ------
    SpecError
        If r is not in 0..min(m, n).
    """
    if not 0 <= r <= min(m, n):
        raise SpecError(f"The rank r must be in 0..{min(m, n)}; got {r}.")
    rng = np.random.default_rng(seed)

    def integers(shape: tuple[int, int]) -> Array:
        real = rng.integers(-3, 4, shape)
        return real + 1j * rng.integers(-3, 4, shape) if _dtype(dtype).kind == "c" else real

    left = np.concatenate([np.eye(r), integers((m - r, r))])[rng.permutation(m)]
    right = np.concatenate([np.eye(r), integers((r, n - r))], axis=1)[:, rng.permutation(n)]
    return np.asarray(left @ right).astype(_dtype(dtype))


def zero_leading_block(n: int, *, dtype: DTypeLike = np.float64) -> Array:
    """`[[0, I], [I, 0]]` of even order n: orthogonal, and LU that pivots only inside a diagonal block calls it singular.

    Raises
    ------
    SpecError
        If n is odd.
    """
    if n % 2:
        raise SpecError(f"zero_leading_block needs an even order; got n = {n}.")
    return np.roll(np.eye(n), n // 2, axis=1).astype(_dtype(dtype))


def tiny_leading_block(n: int, *, scale: float | None = None, seed: int = 0, dtype: DTypeLike = np.float64) -> Array:
    """A Gaussian matrix whose leading block of order n // 2 is multiplied by `scale` (default: eps of the dtype).

    It is well conditioned; LU that pivots only inside a diagonal block loses all digits on it, and does not notice.
    """
    A = _gaussian(np.random.default_rng(seed), (n, n), _dtype(dtype))
    A[: n // 2, : n // 2] *= np.finfo(_dtype(dtype)).eps if scale is None else scale
    return A.astype(_dtype(dtype))


def near_singular(n: int, *, condition: float | None = None, seed: int = 0, dtype: DTypeLike = np.float64) -> Array:
    """A matrix with one small singular value, `1 / condition` (default: eps of the dtype), and the others 1."""
    chosen = _dtype(dtype)
    s = np.ones(n)
    s[-1] = float(np.finfo(chosen).eps) if condition is None else 1.0 / condition
    return SpectrumMatrix((n, n), s, seed=seed, dtype=chosen).rows(0, n)


def singular_at(n: int, step: int, *, seed: int = 0, dtype: DTypeLike = np.float64) -> Array:
    """A Gaussian matrix with a column of zeros: the pivot of LU at this step (from 0) is exactly zero, and no other.

    Raises
    ------
    SpecError
        If the step is not in 0..n - 1.

    References
    ----------
    Types 5 to 7 of LAPACK's ``dlatb4``.
    """
    if not 0 <= step < n:
        raise SpecError(f"The step must be in 0..{n - 1}; got {step}.")
    A = _gaussian(np.random.default_rng(seed), (n, n), _dtype(dtype))
    A[:, step] = 0
    return A.astype(_dtype(dtype))


def positive_definite(n: int, *, condition: float = 1e3, seed: int = 0, dtype: DTypeLike = np.float64) -> Array:
    """A Hermitian positive definite matrix with eigenvalues in geometric progression from 1 to `1 / condition`."""
    chosen = _dtype(dtype)
    wide = np.dtype(np.complex128 if chosen.kind == "c" else np.float64)
    U = SpectrumMatrix((n, n), np.ones(n), seed=seed, dtype=wide).rows(0, n)
    A = (U * geometric(n, condition)) @ U.conj().T
    return np.asarray((A + A.conj().T) / 2, chosen)


def _padded_wilkinson(n: int, dtype: DTypeLike) -> Array:
    # The growth of a larger one would overflow.
    order = min(n, 1000 if np.finfo(_dtype(dtype)).eps < 1e-10 else 100)
    A = np.eye(n, dtype=_dtype(dtype))
    A[:order, :order] = wilkinson_growth(order, dtype=dtype)
    return A


#: Hard square matrices of any order, by name: functions of the order and the dtype.
HARD_SQUARE: Mapping[str, Callable[[int, DTypeLike], Array]] = {
    "random": lambda n, dtype: _gaussian(np.random.default_rng(n), (n, n), _dtype(dtype)).astype(_dtype(dtype)),
    "zero leading block": lambda n, dtype: (
        zero_leading_block(n, dtype=dtype) if n % 2 == 0 else np.eye(n, dtype=_dtype(dtype))[::-1]
    ),
    "tiny leading block": lambda n, dtype: tiny_leading_block(n, dtype=dtype),
    "graded": lambda n, dtype: graded(n, dtype=dtype),
    "wilkinson": _padded_wilkinson,
    "kahan": lambda n, dtype: kahan(n, dtype=dtype),
    "hilbert": lambda n, dtype: hilbert(n, dtype=dtype),
    "near singular": lambda n, dtype: near_singular(n, dtype=dtype),
}


def _gaussian(rng: np.random.Generator, shape: tuple[int, int], dtype: np.dtype[Any]) -> Array:
    A = rng.standard_normal(shape)
    return A + 1j * rng.standard_normal(shape) if dtype.kind == "c" else A
