"""Some eigenpairs of an operator that a user gives, in this process."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate
from dlscale.engine.clusters import describe_cluster, open_cluster
from dlscale.engine.passes import Passes
from dlscale.engine.run import Keep, Run
from dlscale.errors import InputError, SpecError
from dlscale.linalg.eigen.filtered import Aim
from dlscale.linalg.eigen.iterative import First, Search, find, width_of
from dlscale.linalg.eigen.pairs import Which
from dlscale.linalg.given_operators import Operator, measure
from dlscale.linalg.scaling import scaled_back
from dlscale.linalg.symmetry import limit


class Products:
    """Products with an operator where others read a matrix."""

    def __init__(self, A: Operator) -> None:
        self.A, self.exponent = A, 0

    def first(self, X: Array) -> First:
        found = measure(self.A, X)
        if not found.skew <= limit(self.A.dtype) * found.size:
            word = "Hermitian" if self.A.dtype.kind == "c" else "symmetric"
            raise InputError(f"A must be {word}; A - A' is about {found.skew / found.size:.1e} of A in the Frobenius norm.")
        self.A, self.exponent = found.A, found.exponent
        return First(found.product, found.skew, found.size, found.mean)

    def powers(self, step: str, W: Array) -> tuple[Array, Array]:
        AW = self.A.apply(W)
        return AW, self.A.apply(AW)

    def product(self, V: Array) -> Array:
        return self.A.apply(V)

    def keep(self, number: int, width: int) -> Keep:
        return "none"


def pairs_of_operator(
    A: Operator, k: int, which: Which, *, tolerance: float | None, max_reads: int, seed: int
) -> tuple[Array, Array]:
    """Eigenvalues (k,), ascending, and eigenvectors (n, k), certified on products with the operator.

    Raises
    ------
    SpecError
        If the operator is not square, or has fewer eigenvalues.
    InputError
        If it is not symmetric, or not Hermitian where it is complex.
    NumericalError
        If the pairs do not converge.
    CertificateError
    """
    n = A.shape[0]
    if A.shape[1] != n:
        raise SpecError(f"A must be square to have eigenvalues; got {n} x {A.shape[1]}.")
    if k > n:
        raise SpecError(f"k must be between 1 and {n} for an operator of {n} rows; got {k}.")
    aim = Aim(k, which, tolerance or n * float(np.finfo(A.dtype).eps))
    reader = Products(A)
    with open_cluster(describe_cluster("threads")) as cluster:
        found = find(Passes(Run(cluster)), reader, Search(aim, seed, max_reads, width_of(n, k), sampled=True))
    pairs = replace(found.pairs, exponent=reader.exponent)
    certificate = Certificate(pairs.checks(n, A.dtype, tolerance))
    (certificate if found.check is None else certificate.also(found.check)).require()
    real = np.dtype(A.dtype.char.lower())
    return scaled_back(pairs.values, pairs.exponent, real, what="The eigenvalues"), found.V
