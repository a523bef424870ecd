"""QR by a tree of small pieces: R and Q of one factorization, and rounding of equal terms that does not grow with their number."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import DTYPES, backward_error, compute, departure, eps, gaussian, norm

from dlscale.linalg.folds.least_squares import AugmentedQR
from dlscale.linalg.folds.triangles import below, times_q, triangle
from dlscale.linalg.qr.tall import TallQROptions, compute_tall_qr, plan_tall_qr


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (128, 2), (129, 2), (300, 2), (5000, 3), (2000, 20), (321, 20)], ids=str)
def test_factors(shape: tuple[int, int], dtype: str) -> None:
    """One piece, a row more, rows that are left, several levels; below another triangle too."""
    A = gaussian(*shape, dtype)
    k = min(shape)
    R, Q = triangle(A), times_q(A, np.eye(k, dtype=dtype))
    assert Q.shape == (shape[0], k)
    assert Q.dtype == A.dtype
    assert backward_error(A, Q, R) < 10 * shape[1] * eps(A)
    assert departure(Q) < 20 * shape[1] * eps(A)
    T = below(R, A.astype(R.dtype))
    assert norm(T.conj().T @ T - 2 * R.conj().T @ R) < 1e-13 * norm(R) ** 2


@pytest.mark.parametrize("m", [2009, 30_000])
def test_constant_columns(m: int) -> None:
    """Rounding errors of equal terms go one way: factored at once, the certificate was up to 20, and 31 at other lengths."""
    for value in (1.0, 0.1, 0.7, 1 / 3):
        A = np.full((m, 2), value)
        outcome, _, _ = compute(plan_tall_qr, compute_tall_qr, A, TallQROptions(mode="r"))
        assert outcome.certificate.checks[1].value < 8


def test_blocks_below_a_triangle() -> None:
    """What rounding makes of zero in a chain of blocks is a few eps; with each block below the triangle before it it was 94."""
    A, fold = np.ones((30_000, 2)), AugmentedQR(1, 1, np.dtype("f8"))
    state = fold.start()
    for first in range(0, len(A), 3000):
        fold.update(state, [A[first : first + 3000, :1], A[first : first + 3000, 1:]], first)
    s = np.linalg.svd(state["triangle"], compute_uv=False)
    assert s[1] < 30 * eps(A) * s[0]
