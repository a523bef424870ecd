"""What a least squares solution is checked for: no other x comes closer, and none that comes as close is shorter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, Check, scaled
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan
from dlscale.kernels import accumulator_dtype, safe_norm
from dlscale.linalg.folds.least_squares import NormalResidual, WideGradient, WideProduct, read_rhs
from dlscale.storage.matrix import ArrayMatrix, Matrix


def check(
    passes: Passes, A: Matrix, B: Matrix, X: Array, Y: Array | None, plan: Plan, *, kept: Array | None = None
) -> tuple[Certificate, dict[str, Any]]:
    """Measure a solution in one read of A, of a wide one in two.

    Parameters
    ----------
    passes : Passes
    A : Matrix (m, n)
    B : Matrix (m, k)
    X : (n, k)
    Y : (m, k), optional
        Where A is wide: X is to be ``A^H Y``.
    plan : Plan
    kept : (min(m, n), r), optional
        Where small singular values are to count as zero: the singular vectors on the short side of A that are left.

    References
    ----------
    LAPACK ``dqrt16`` (the residual of what can be solved), ``dqrt17`` (it is orthogonal to the columns of A), and ``dqrt14`` (X is
    in the row space of A).
    """
    m = A.shape[0]
    X = X.astype(accumulator_dtype(X.dtype), copy=False)
    outside = None
    if plan.transposed:
        assert Y is not None
        rhs = read_rhs(B, 0, m)
        seen = passes.sweep("check-product", [A.T, ArrayMatrix(X)], WideProduct(m, X.shape[1], X.dtype), plan.rows)
        R = rhs - seen["product"]
        seen_by_gradient = R if kept is None else kept @ (kept.conj().T @ R)
        measured = passes.sweep("check-gradient", A.T, WideGradient(seen_by_gradient, X, Y), plan.rows)
        gradient, outside = np.sqrt(measured["gradient"]), np.sqrt(measured["outside"])
        residuals, sizes = (np.abs(R) ** 2).sum(axis=0), safe_norm(rhs, axis=0)
    else:
        seen = passes.sweep("check", [A, B], NormalResidual(X, B.dtype), plan.rows)
        slopes = seen["gradient"] if kept is None else kept.conj().T @ seen["gradient"]
        gradient, residuals, sizes = safe_norm(slopes, axis=0), seen["residuals"], np.sqrt(seen["rhs"])
    norm, lengths = float(np.sqrt(seen["matrix"][0])), safe_norm(X, axis=0)
    checks = [
        _worst(
            f"||{'' if kept is None else 'P '}A'(b - Ax)|| / (||A|| (||b|| + ||A|| ||x||) max(m, n) eps)",
            gradient,
            [(norm, float(b + norm * x)) for b, x in zip(sizes, lengths, strict=True)],
            A,
            "the residual is orthogonal to the columns of A: no other x comes closer"
            if kept is None
            else "P projects on the singular vectors that rcond keeps: among the solutions made of these, no other comes closer",
        )
    ]
    if outside is not None and Y is not None:
        reach = [(float(norm * y + x),) for y, x in zip(safe_norm(Y, axis=0), lengths, strict=True)]
        name, meaning = (
            "||x - A'y|| / ((||A|| ||y|| + ||x||) max(m, n) eps)",
            "x is made of rows of A: no other solution is shorter",
        )
        checks.append(_worst(name, outside, reach, A, meaning))
    return Certificate(tuple(checks)), {"residuals": residuals.tolist(), "norm_of_x": lengths.tolist()}


def _worst(name: str, values: Array, norms: Sequence[tuple[float, ...]], A: Matrix, meaning: str) -> Check:
    """The check of the column that is worst."""
    checks = [
        scaled(name, float(value), *sizes, size=max(A.shape), dtype=A.dtype, meaning=meaning)
        for value, sizes in zip(values, norms, strict=True)
    ]
    return max(checks, key=lambda check: check.value if np.isfinite(check.value) else np.inf)
