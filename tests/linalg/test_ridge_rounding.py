"""What rounding may not do to a ridge regression: against answers in rational numbers, which are exact."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from helpers import Array, gaussian

import dlscale
from dlscale.errors import CertificateError
from dlscale.linalg.ridge.selection import end_of_path


def left_out(A: Array, b: Array, penalty: float, *, intercept: bool) -> float:
    """The mean square of what each row differs from what all others say of it, exactly."""
    rows = [[Fraction(float(entry)) for entry in row] for row in np.column_stack([A, b])]
    total = Fraction(0)
    for i, held in enumerate(rows):
        others = rows[:i] + rows[i + 1 :]
        means = [sum(column) / len(others) * int(intercept) for column in zip(*others, strict=True)]
        centred = [[entry - mean for entry, mean in zip(row, means, strict=True)] for row in others]
        n = len(means) - 1
        G = [[sum(row[p] * row[q] for row in centred) for q in range(n + 1)] for p in range(n)]
        for p in range(n):
            G[p][p] += Fraction(penalty)
        away = [entry - mean for entry, mean in zip(held, means, strict=True)]
        total += (away[n] - sum(x * w for x, w in zip(away[:n], solved(G), strict=True))) ** 2
    return float(total / len(rows))


def solved(G: list[list[Fraction]]) -> list[Fraction]:
    """x of ``G = [M c]`` with ``M x = c``, for a definite M."""
    n = len(G)
    for i in range(n):
        G[i] = [entry / G[i][i] for entry in G[i]]
        for j in set(range(n)) - {i}:
            G[j] = [a - G[j][i] * b for a, b in zip(G[j], G[i], strict=True)]
    return [row[n] for row in G]


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("penalty", [1e-14, 1e-12, 1e-8, 1e-3, 10.0])
@pytest.mark.parametrize("shape", [(6, 5), (5, 1), (9, 3), (12, 2)], ids=str)
def test_no_digit_is_lost_beside_a_leverage_near_one(shape: tuple[int, int], penalty: float, intercept: bool) -> None:
    for seed in range(3):
        A, b = gaussian(*shape, seed=seed), gaussian(shape[0], 1, seed=seed + 100)[:, 0]
        condition = np.linalg.cond(A - intercept * A.mean(axis=0))
        found = dlscale.ridge(A, b, penalties=penalty, fit_intercept=intercept).errors
        np.testing.assert_allclose(found, left_out(A, b, penalty, intercept=intercept), rtol=1e-11 * condition**2)


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("factor", [1e3, 6e6, 1e10])
@pytest.mark.parametrize("row", [0, 4, 6])
def test_a_row_that_is_far_larger_than_the_others(row: int, factor: float, intercept: bool) -> None:
    for dtype in ("f4", "f8"):
        A, b = gaussian(7, 2, dtype), gaussian(7, 1, dtype, seed=1)[:, 0]
        A[row] *= factor
        found = dlscale.ridge(A, b, penalties=[0.5, 20.0], fit_intercept=intercept).errors[:, 0]
        expected = [left_out(A, b, penalty, intercept=intercept) for penalty in (0.5, 20.0)]
        np.testing.assert_allclose(found, expected, rtol=max(1e-11, 1e-15 * factor))


def test_a_penalty_above_zero_has_an_error_and_the_best_one_is_chosen() -> None:
    A, b = np.array([[1e7], [1], [2], [-1.0]]), np.array([1e7, 2, 3, -4])
    found = dlscale.ridge(A, b, penalties=[1e-3, 1e3, 1e12], fit_intercept=False)
    np.testing.assert_allclose(found.errors[:, 0], [2.49833388874830e13, 2.44071357145425e13, 2.49999999994028e13], rtol=1e-12)
    assert found.penalty == 1e3


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("shape", [(9, 3), (3, 9), (40, 2), (5, 5)], ids=str)
@pytest.mark.parametrize("kind", ["alike", "outer"])
def test_a_lower_rank_beside_tiny_penalties(kind: str, shape: tuple[int, int], intercept: bool, dtype: str) -> None:
    """Any penalty down to the smallest leaves the coefficients near those of minimum norm, and no less than the least residual."""
    m, n = shape
    A = np.outer(np.arange(1, m + 1), np.ones(n) if kind == "alike" else np.arange(1, n + 1)).astype(dtype)
    A = A / A.dtype.type(3) if kind == "alike" else A
    b = gaussian(m, 1, dtype)[:, 0]
    u, v = (M.astype("f8") for M in (A[:, 0] - intercept * A[:, 0].mean(), A[0] / A[0, 0]))
    t = b - intercept * b.mean(dtype="f8")
    least = t @ t - (u @ t) ** 2 / (u @ u)
    for penalty in (0.0, 1e-300, 1e-40, 1e-32, 1e-30, 1e-28, 1e-20, 1e-14):
        for cv in ("none", 2):
            found = dlscale.ridge(A, b, penalties=penalty, fit_intercept=intercept, cv=cv)
            np.testing.assert_allclose(found.coefficients, v * (u @ t) / (u @ u) / (v @ v), rtol=2e-5 if dtype == "f4" else 1e-10)
            away = t - A @ found.coefficients.astype("f8") + intercept * A.mean(axis=0, dtype="f8") @ found.coefficients
            assert away @ away >= least * (1 - 1e-6 if dtype == "f4" else 1 - 1e-12)


@pytest.mark.parametrize("offset", [1.0, 1e8])
def test_the_mean_of_a_wide_matrix_is_as_sure_as_the_sizes_in_it(offset: float) -> None:
    """Large parts of ``mean(A) w`` that cancel are rounded as they are."""
    for seed in range(20):
        A = gaussian(3, 4, seed=seed)
        A[1] = np.array([1, -3, 1, 0.5]) * offset
        assert np.isfinite(dlscale.ridge(A, gaussian(3, 1, seed=seed), penalties=1.0).coefficients).all()
    A = np.array([[1.0, 2, 0], [offset, -3 * offset, offset], [0, 1, 1]])
    dlscale.ridge(A, np.array([1.0, 2, 3]), penalties=1.0)


def test_a_wrong_intercept_of_a_wide_matrix_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlscale.linalg.ridge import check

    right = check._intercept
    monkeypatch.setattr(check, "_intercept", lambda *given: right(*given) + 1e-9)
    with pytest.raises(CertificateError, match="mean"):
        dlscale.ridge(gaussian(5, 40) + 1, gaussian(5, 1), penalties=1.0)


def test_nothing_is_beyond_the_penalty_zero() -> None:
    assert end_of_path(0, np.array([0.0, 1.0])) == ()
    assert end_of_path(0, np.array([0.0, 0.0])) == ()
    assert "largest" in end_of_path(1, np.array([0.0, 1.0]))[0]
    assert "smallest" in end_of_path(0, np.array([0.5, 1.0]))[0]
