"""Sign and logarithm of a determinant, from the diagonal of the factors: no product that could overflow."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, Check, factorization
from dlscale.declaration.kind import Kind, matrix_compute, matrix_plan
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import OutOfRange, SpecError
from dlscale.kernels import safe_norm
from dlscale.linalg.cholesky import kind as cholesky
from dlscale.linalg.folds.residuals import Residual
from dlscale.linalg.lu import kind as lu
from dlscale.linalg.lu.kind import row_move
from dlscale.linalg.panels.plan import FactorOptions
from dlscale.linalg.panels.products import TriangularProduct, probes, triangular_product
from dlscale.linalg.panels.scaling import largest_entry, panels_at_safe_scale, require_room, require_safe
from dlscale.linalg.scaling import scale_words
from dlscale.linalg.solve.applying import apply
from dlscale.linalg.solve.block_diagonal import Inertia
from dlscale.linalg.solve.factoring import (
    FACTORS,
    After,
    Around,
    FactoringOptions,
    factor_orthogonally,
    is_symmetric,
    plan_square,
    reason_for_qr,
)
from dlscale.linalg.solve.stored import diagonal
from dlscale.linalg.solve.symmetric import factor_symmetric
from dlscale.storage.matrix import Matrix


class SlogdetOptions(FactoringOptions):
    """How to take a determinant."""


def plan_slogdet(A: Matrix, options: SlogdetOptions, facts: ClusterFacts) -> Plan:
    """Plan a determinant.

    Raises
    ------
    SpecError
        If the matrix is not square.
    DoesNotFitError
    """
    m, n = A.shape
    if m != n:
        raise SpecError(f"input.matrix: must be square to have a determinant; got {m} x {n}.")
    product = n * n * A.dtype.itemsize
    more = (Step("right", 4.0 * n * n, product), Step("left", 4.0 * n * n, product))
    around = Around(after=lambda grid: After(() if is_symmetric(options.assume) else more))
    return plan_square("slogdet", options.assume, A, FactorOptions(options.panel), facts, around=around)


def compute_slogdet(run: Run, A: Matrix, options: SlogdetOptions, plan: Plan) -> Outcome:
    """Take a determinant by a plan.

    Returns
    -------
    Outcome
        With ``sign`` (1,) and ``logabsdet`` (1,): ``det A = sign exp(logabsdet)``; 0 and -inf where a pivot is zero.

    Notes
    -----
    2/3 n^3 flops, half of it with ``assume: pos``.

    References
    ----------
    Higham (2002), section 14.6: a computed determinant is the exact one of a matrix that differs by the backward error.
    """
    return panels_at_safe_scale(Passes(run), A, partial(_determinant, options=options, plan=plan))


def _determinant(passes: Passes, A: Matrix, exponent: int, *, options: SlogdetOptions, plan: Plan) -> Outcome:
    """The determinant of ``2^exponent A``."""
    n, dtype = A.shape[0], A.dtype
    X = probes(n, dtype)
    notes = list(scale_words(exponent))
    ways = {"pos": _by_cholesky, "sym": _by_ldl, "her": _by_ldl}
    found = ways.get(options.assume, _by_lu)(passes, A, plan, X, watched=not exponent)
    if found is None or not found.check.passed:
        if not exponent:
            # Reflectors are made of squares, which triangular factors are not.
            require_safe(largest_entry(passes, "largest", A), dtype)
        notes.append(f"factored once more by QR: {reason_for_qr(options.assume)}")
        found = _by_qr(passes, A, plan, X)
    if found.inertia and found.inertia.n_zero:
        notes.append(f"{found.inertia.n_zero} of the eigenvalues are not told from zero: rounding gave the determinant their signs")
    logarithm = found.logarithm + n * exponent * float(np.log(2))
    arrays = {"sign": np.array([found.sign], dtype), "logabsdet": np.array([logarithm])}
    estimates = found.inertia._asdict() if found.inertia else {}
    return Outcome(arrays, (), Certificate((found.check,)), estimates, tuple(notes))


@dataclass(frozen=True)
class Determinant:
    """``sign exp(logarithm)``, the check of the factors that it is from, and the inertia where they tell it."""

    sign: complex
    logarithm: float
    check: Check
    inertia: Inertia | None = None

    @classmethod
    def of(cls, sign: complex, d: Array, name: str, difference: Array, expected: Array, *, power: int = 1) -> Determinant:
        """The sign times the product of a power of the diagonal d, from factors with this residual on random vectors."""
        norms = (float(safe_norm(M)) for M in (difference, expected))
        check = factorization(name, *norms, size=len(d), dtype=d.dtype)
        sizes = np.abs(d).astype(float)
        if (sizes == 0).any():
            return cls(0.0, -np.inf, check)
        # At size 1: complex numbers divide by way of squares, which subnormal ones do not have.
        units = np.ldexp(d.real, -np.frexp(sizes)[1]) + (1j * np.ldexp(d.imag, -np.frexp(sizes)[1]) if d.dtype.kind == "c" else 0)
        sign *= complex(np.prod(units / np.abs(units)))
        # Products of many unit numbers drift by rounding.
        sign = sign / abs(sign) if d.dtype.kind == "c" else float(np.sign(sign.real))
        # What is large and what is small cancel in whole numbers.
        parts, exponents = np.frexp(sizes)
        return cls(sign, power * (float(np.log(parts).sum()) + int(exponents.sum()) * float(np.log(2))), check)


def _by_cholesky(passes: Passes, A: Matrix, plan: Plan, X: Array, *, watched: bool) -> Determinant:
    n, columns = A.shape[0], plan.columns
    L, seen = cholesky.factor_panels(passes, A, plan.panels, probes=X, step=FACTORS, keep=False)
    if watched:
        require_room(seen.largest, A.dtype)
    LX = triangular_product(passes, "right", L, columns, TriangularProduct(X, n, lower=True, adjoint=True, n_columns=n))
    LLX = triangular_product(passes, "left", L, columns, TriangularProduct(LX, n, lower=True))
    return Determinant.of(1.0, diagonal(L), "A - LL'", LLX - seen.products, seen.products, power=2)


def _by_ldl(passes: Passes, A: Matrix, plan: Plan, X: Array, *, watched: bool) -> Determinant:
    found = factor_symmetric(passes, A, plan, probes=X, name=FACTORS)
    difference, factors = found.products - found.factored, found.factors
    determinant = Determinant.of(1.0, factors.blocks.pivots, "A - LDL'", difference, found.products)
    return replace(determinant, inertia=factors.inertia)


def _by_lu(passes: Passes, A: Matrix, plan: Plan, X: Array, *, watched: bool) -> Determinant | None:
    """None where the entries of U grow out of range."""
    n, columns = A.shape[0], plan.columns
    packed, pivots, facts, seen = lu.factor_panels(passes, A, plan.panels, probes=X, step=FACTORS, keep=False)
    if watched:
        require_room(seen.largest, A.dtype)
    if not np.isfinite([fact["largest"][0] for fact in facts]).all():
        return None
    try:
        UX = triangular_product(passes, "right", packed, columns, TriangularProduct(X, n, lower=False))
        LUX = triangular_product(passes, "left", packed, columns, TriangularProduct(UX, n, lower=True, unit=True))
    except OutOfRange:
        return None
    move = row_move(0, pivots)
    PAX = seen.products.copy()
    PAX[move.targets] = seen.products[move.sources]
    exchanges = int((pivots != np.arange(n)).sum())
    return Determinant.of((-1.0) ** exchanges, diagonal(packed), "PA - LU", PAX - LUX, PAX)


def _by_qr(passes: Passes, A: Matrix, plan: Plan, X: Array) -> Determinant:
    """The determinant of a reflector ``I - tau v v^H`` is ``-tau / conj(tau)``; tau is on the diagonal of T."""
    factors = factor_orthogonally(passes, A, plan, name=f"{FACTORS}-qr")
    packed = factors.factored.matrix
    tau = np.concatenate([np.diagonal(facts["t"]) for facts in factors.factored.facts])
    tau = tau[tau != 0]
    RX = triangular_product(passes, "right-qr", packed, plan.columns, TriangularProduct(X, len(X), lower=False))
    QRX = apply(passes.run, "left-qr", factors.unrotated, factors.rotation_cost, RX, facts=plan.cluster)
    AX = -passes.sweep("product", A, Residual(X), plan.rows)["residual"]
    return Determinant.of(complex(np.prod(-tau / tau.conj())), diagonal(packed), "A - QR", AX - QRX, AX)


KIND = Kind(
    name="slogdet",
    title="Determinant",
    words="Sign and logarithm of a determinant.",
    arrays="`sign`, `logabsdet`",
    options=SlogdetOptions,
    plan=matrix_plan(plan_slogdet),
    compute=matrix_compute(compute_slogdet),
    example="{kind: slogdet, input: {matrix: a.zarr}}",
)
