"""Iterations on a stored matrix: what its products take, and where their states are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.kept import State
from dlscale.engine.plan import NOMINAL_FLOPS_PER_SECOND, Step
from dlscale.engine.run import Cost
from dlscale.errors import DoesNotFitError
from dlscale.kernels import accumulator_dtype, largest_part, safe_norm, times_power_of_two
from dlscale.linalg.iterative.recurrence import Map
from dlscale.linalg.operators import MatrixOperator, OperatorPlan, plan_operator
from dlscale.linalg.scaling import exponent_of, published, scaled_back
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import Scaled

#: Work that is sooner done again than its result kept, as flops of products.
KEPT_FLOPS = 5e9
_STEP = "iteration"
#: Bytes that all threads read from memory in a second: what a product of few columns waits for, where the matrix is held.
_MEMORY_RATE = 1e10
#: What to do where `Sides.coarse` tells that the digits of x do not do.
COARSE = (
    "Entries of x may be below the smallest normal number of its dtype, where they have fewer digits; multiply the right-hand side "
    "by a power of two."
)


class Stored:
    """Products with a stored matrix are reads, and states of iterations go to the checkpoint.

    Parameters
    ----------
    operator : MatrixOperator
    flops : float
        Of one product.
    handed_out : callable
        From solutions to what is left of them when they are handed out.
    """

    def __init__(self, operator: MatrixOperator, flops: float, handed_out: Map) -> None:
        self.operator, self.run, self._handed_out = operator, operator.passes.run, handed_out
        self._every = max(1, int(KEPT_FLOPS / flops))

    def handed_out(self, X: Array) -> Array:
        return self._handed_out(X)

    def newest(self) -> tuple[int, State] | None:
        return self.run.newest(_STEP)

    def keep(self, number: int, compute: Callable[[], State]) -> State:
        if number % self._every:
            return compute()
        return self.run.step(f"{_STEP}-{number}", Cost(), lambda _: compute(), keep="last")


@dataclass(frozen=True)
class Sides:
    """Right-hand sides near size 1, each times a power of two of its own.

    Parameters
    ----------
    B : (m, k), double precision
    exponents : list of k integers
        ``2^exponent`` times a column is what was given.
    dtype : numpy.dtype
        In which solutions are handed out: as precise as the matrix, and complex where either is.
    """

    B: Array
    exponents: list[int]
    dtype: np.dtype[Any]

    @classmethod
    def of(cls, rhs: Array, matrix: np.dtype[Any]) -> Sides:
        """From right-hand sides (m, k), and the dtype of the matrix."""
        wide = np.result_type(accumulator_dtype(matrix), rhs.dtype)
        exponents = [exponent_of(largest) for largest in largest_part(rhs, axis=0).tolist()]
        B = np.stack([times_power_of_two(rhs[:, j].astype(wide), -e) for j, e in enumerate(exponents)], axis=1)
        return cls(B, exponents, np.result_type(matrix, np.complex64) if wide.kind == "c" else matrix)

    def published(self, X: Array, exponent: int) -> Array:
        """Solutions for these sides and ``2^-exponent`` times the matrix, with the digits that `back` leaves them."""
        columns = [published(X[:, j], e - exponent, self.dtype) for j, e in enumerate(self.exponents)]
        return np.stack(columns, axis=1)

    def coarse(self, size: float, exponent: int) -> float:
        """What digits of x that its dtype has no room for may leave of the largest residual, relative to its right-hand side.

        Parameters
        ----------
        size : float
            Frobenius norm of ``2^-exponent`` times the matrix.
        exponent : int
        """
        info, lengths = np.finfo(self.dtype), safe_norm(self.B, axis=0)
        with np.errstate(over="ignore", under="ignore"):
            steps = np.ldexp(size * len(self.B) ** 0.5, [info.minexp - info.nmant - 1 + exponent - e for e in self.exponents])
            return float((steps / np.where(lengths > 0, lengths, np.inf)).max(initial=0.0))

    def back(self, X: Array, exponent: int) -> Array:
        """Solutions for what was given, from those for these sides and ``2^-exponent`` times the matrix.

        Raises
        ------
        NumericalError
            If one is out of range.
        """
        what = "The entries of x"
        columns = [scaled_back(X[:, j], e - exponent, self.dtype, what=what) for j, e in enumerate(self.exponents)]
        return np.stack(columns, axis=1)


class PlannedProducts(NamedTuple):
    """How a matrix is multiplied again and again, and what it takes.

    Parameters
    ----------
    how : OperatorPlan
    steps : list of Step
        The read of a matrix that is held from then on.
    each : int
        Bytes that a product reads.
    """

    how: OperatorPlan
    steps: list[Step]
    each: int


def plan_products(A: Matrix, width: int, facts: ClusterFacts, *, driver_bytes: int, n_products: int) -> PlannedProducts:
    """Plan products with so many columns, beside what the driver holds.

    Raises
    ------
    DoesNotFitError
    """
    left = replace(facts, memory_bytes=max(1, facts.memory_bytes - driver_bytes))
    how = plan_operator(A, width, left, n_products=n_products)
    if how.way == "blocks":
        raise DoesNotFitError(f"One worker has no room for rows of {A.shape[1]} columns beside the vectors; raise cluster.memory.")
    if how.way == "resident":
        return PlannedProducts(how, [Step("resident", 0.0, A.n_stored_bytes)], 0)
    return PlannedProducts(how, [], 0 if how.way == "memory" else A.n_stored_bytes)


def by_parts(product: Map, X: Array, dtype: np.dtype[Any]) -> Array:
    """A product of a matrix of this dtype with X, whose real and imaginary parts are multiplied as columns where it is real."""
    if X.dtype.kind != "c" or dtype.kind == "c":
        return product(X)
    Y, k = product(np.hstack([X.real, X.imag])), X.shape[1]
    return np.asarray(Y[:, :k] + 1j * Y[:, k:])


def rounding_of(A: Matrix, squares: Array, X: Array) -> Array:
    """What rounding may hide of the norm of each column of ``B - A X``, from the squared norms of the columns of A.

    ``eps (sum_j ||a_j||^2 |x_j|^2)^(1/2)``: of rounding errors that are independent, of a sum of products by BLAS. Of a matrix that
    was scaled down also what its entries have lost below the smallest normal number.
    """
    eps, roots, info = float(np.finfo(float).eps), np.sqrt(squares), np.finfo(A.dtype)
    if isinstance(A, Scaled) and A.exponent < 0:
        roots = np.hypot(roots, float(info.smallest_subnormal) / eps * A.shape[0] ** 0.5)
    with np.errstate(over="ignore"):
        return np.asarray(eps * safe_norm(roots[:, None] * np.abs(X), axis=0))


def threads_of_held_products(dtype: np.dtype[Any], flops_per_entry: float, facts: ClusterFacts) -> float:
    """Threads that a product with what is in memory keeps at work, as it waits for memory."""
    return min(float(facts.n_threads), flops_per_entry / NOMINAL_FLOPS_PER_SECOND * _MEMORY_RATE / dtype.itemsize)
