"""What ridge coefficients are checked for: no other coefficients give a smaller sum of squares and penalty."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, Check, scaled
from dlscale.kernels import accumulator_dtype, safe_norm
from dlscale.linalg.folds.least_squares import read_rhs
from dlscale.linalg.ridge.folds import NormalEquations, WideNormalEquations, WideProduct
from dlscale.linalg.ridge.reduced import RidgeProblem
from dlscale.linalg.ridge.tall import Tall
from dlscale.storage.matrix import ArrayMatrix


@dataclass(frozen=True)
class Measured:
    """What one or two reads tell of coefficients.

    Parameters
    ----------
    intercept : (k,)
        The mean of ``B - A W``, in the dtype of W; zeros where there is none.
    gradient, rhs : (k,)
        Norms of ``A^H (B - A W) - a W`` and of B, both centred where there is an intercept.
    matrix : float
        ``||A||_F``, centred.
    residuals : (k,)
        ``||b - A w - c||^2`` of each target.
    mean_residual : (k,)
        The mean of ``B - A W - intercept``.
    reach : (k,)
        The size of what the intercept is a difference of.
    """

    intercept: Array
    gradient: Array
    rhs: Array
    matrix: float
    residuals: Array
    mean_residual: Array
    reach: Array


def measure_tall(problem: RidgeProblem, reduced: Tall, W: Array, penalty: float) -> Measured:
    """In one read of A and B."""
    shift, means, dtype = reduced.shift, reduced.means, W.dtype
    wide = W.astype(accumulator_dtype(dtype), copy=False)
    fold = NormalEquations(wide, shift, means, np.result_type(dtype, problem.B.dtype))
    seen = problem.passes.sweep("check", [problem.A, problem.B], fold, problem.plan.rows)
    intercept = _intercept(problem, means - shift @ wide, dtype)
    # What the intercept is off by, beside the means that were subtracted.
    off = intercept.astype(wide.dtype) - (means - shift @ wide)
    m = problem.A.shape[0]
    residuals = np.maximum(seen["residuals"] - 2 * (seen["sums"].conj() * off).real + m * np.abs(off) ** 2, 0)
    return Measured(
        intercept,
        safe_norm(seen["gradient"] - penalty * wide, axis=0),
        np.sqrt(seen["rhs"]),
        float(np.sqrt(seen["matrix"][0])),
        residuals,
        np.abs(seen["sums"] / m - off),
        np.abs(means) + np.abs(shift) @ np.abs(wide),
    )


def measure_wide(problem: RidgeProblem, W: Array, penalty: float) -> Measured:
    """In two reads of A."""
    m, dtype, centred = problem.A.shape[0], W.dtype, problem.intercept
    wide = W.astype(accumulator_dtype(dtype), copy=False)
    rhs, operand = read_rhs(problem.B, 0, m).astype(accumulator_dtype(dtype)), ArrayMatrix(wide)
    fold = WideProduct(m, W.shape[1], dtype, centred)
    seen = problem.passes.sweep("check-product", [problem.A.T, operand], fold, problem.plan.rows)
    means = rhs.mean(axis=0) if centred else np.zeros(rhs.shape[1])
    intercept = _intercept(problem, means - seen["means"], dtype)
    R = (rhs - means) - seen["product"]
    equations = WideNormalEquations(R, penalty, centred)
    gradient = problem.passes.sweep("check-gradient", [problem.A.T, operand], equations, problem.plan.rows)["gradient"]
    off = intercept.astype(wide.dtype) - (means - seen["means"])
    left = R - off
    return Measured(
        intercept,
        np.sqrt(gradient),
        safe_norm(rhs - means, axis=0),
        float(np.sqrt(seen["matrix"][0])),
        (np.abs(left) ** 2).sum(axis=0),
        np.abs(left.mean(axis=0)),
        np.abs(means) + seen["reach"],
    )


def certify(problem: RidgeProblem, measured: Measured, W: Array, penalty: float) -> Certificate:
    """The certificate of coefficients, that of the worst target."""
    size, lengths, norm = max(problem.A.shape), safe_norm(W, axis=0), measured.matrix
    pull = penalty / norm if norm else 0.0
    reach = [float(b + (norm + pull) * w) for b, w in zip(measured.rhs, lengths, strict=True)]
    centred = "both centred, " if problem.intercept else ""
    equations = [
        scaled(
            "||A'(b - Aw) - aw|| / ((||A|| (||b|| + ||A|| ||w||) + a ||w||) max(m, n) eps)",
            float(value),
            norm,
            size_of,
            size=size,
            dtype=W.dtype,
            meaning=f"{centred}the normal equations with the penalty a hold: no other coefficients give a smaller sum of squares "
            "and penalty",
        )
        for value, size_of in zip(measured.gradient, reach, strict=True)
    ]
    checks = [_worst(equations)]
    if problem.intercept:
        means = [
            scaled(
                "|mean(b - Aw - c)| / ((|mean(b)| + |mean(A)| |w| + ||b|| m^-1/2) max(m, n) eps)",
                float(value),
                float(at + b / np.sqrt(problem.A.shape[0])),
                size=size,
                dtype=W.dtype,
                meaning="the intercept c is the mean of what the coefficients leave of the targets",
            )
            for value, at, b in zip(measured.mean_residual, measured.reach, measured.rhs, strict=True)
        ]
        checks.append(_worst(means))
    return Certificate(tuple(checks))


def _worst(checks: list[Check]) -> Check:
    return max(checks, key=lambda check: check.value if np.isfinite(check.value) else np.inf)


def _intercept(problem: RidgeProblem, means: Array, dtype: np.dtype[Any]) -> Array:
    return np.asarray(means.astype(dtype)) if problem.intercept else np.zeros(len(means), dtype)
