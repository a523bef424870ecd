"""QR of tall matrices of every condition: backward error, orthogonality, and a triangular factor that is unique."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import (
    DTYPES,
    HARD,
    Array,
    backward_error,
    compute,
    departure,
    each_of,
    eps,
    gaussian,
    norm,
    spectrum,
    two_dtypes,
    wide_precision,
)

import dlscale
from dlscale import gallery
from dlscale.errors import SpecError
from dlscale.linalg.folds.orthogonal import INVERSE_LIMIT, TriangularFactor
from dlscale.linalg.qr.tall import TallQROptions, compute_tall_qr, plan_tall_qr

TALL = [name for name in HARD if "wide" not in name and "row" not in name] + ["graded rows, square"]


def run(A: Array, **options: Any) -> tuple[Any, Array, Array]:
    outcome, arrays, _ = compute(plan_tall_qr, compute_tall_qr, A, TallQROptions(**options))
    return outcome, arrays.get("q"), arrays["r"]


def assert_upper_triangular_with_positive_diagonal(R: Array) -> None:
    assert (np.tril(R, -1) == 0).all()
    diagonal = np.diag(R)
    assert (diagonal.imag == 0).all()
    assert (diagonal.real >= 0).all()


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("block_rows", [64, 17])
@pytest.mark.parametrize("name", TALL)
def test_hard_matrices(name: str, block_rows: int, dtype: str) -> None:
    """||A - Q R|| <= c n eps ||A||, ||I - Q^H Q|| <= c n eps; blocks of 17 rows are shorter than the matrix is wide."""
    A = HARD[name](dtype)
    n = A.shape[1]
    outcome, Q, R = run(A, block_rows=block_rows)
    assert outcome.certificate.passed, outcome.certificate
    assert backward_error(A, Q, R) < 5 * n * eps(A)
    assert departure(Q) < 20 * n * eps(A)
    assert_upper_triangular_with_positive_diagonal(R)
    assert Q.dtype == R.dtype == A.dtype


@pytest.mark.parametrize("condition", [1, 1e2, 1e5, 1e7, 1e8, 1e12, 1e15])
def test_every_condition(condition: float) -> None:
    """||I - Q^T Q|| under 1e-12 in double precision; the condition is right, or infinite where rounding hides it."""
    A = spectrum(gallery.geometric(50, condition), 1500, 50)
    outcome, Q, R = run(A, block_rows=128)
    assert departure(Q) < 1e-12
    assert backward_error(A, Q, R) < 1e-14
    # Of 1,500 rows rounding may make 1500^1/2 + 2 * 50^1/2 eps of zero.
    told = condition if condition < 1 / (53 * eps(A)) else np.inf
    assert outcome.estimates["condition"] == pytest.approx(told, rel=1e-10 + condition * 1e-15)


@pytest.mark.parametrize("n", [2, 6, 40])
@each_of(dtype=DTYPES)
def test_the_condition_of_dependent_columns_is_infinite(dtype: str, n: int) -> None:
    A = gaussian(120, n, dtype)
    A[:, n - 1] = A[:, n // 2 - 1]
    assert run(A)[0].estimates["condition"] == np.inf
    assert 1 <= run(gaussian(120, n, dtype))[0].estimates["condition"] < 20


@pytest.mark.parametrize(
    ("condition", "words"),
    [(1.0, "Cholesky QR, 1 round"), (1e4, "Cholesky QR, 2 round"), (1e8, "shifted Cholesky QR"), (1e15, "TSQR")],
)
def test_the_condition_chooses_the_method(condition: float, words: str) -> None:
    outcome, _, _ = run(spectrum(gallery.geometric(30, condition), 1000, 30))
    assert words in outcome.notes[0]


@pytest.mark.parametrize("dtype", ["f8", "c16"])
@pytest.mark.parametrize("condition", [1.0, 1e5, 1e15])
def test_r_is_that_of_lapack(condition: float, dtype: str) -> None:
    """R with a positive diagonal is unique: the same as LAPACK's up to phases of its rows, whatever the method."""
    A = spectrum(gallery.geometric(20, condition), 500, 20, dtype=dtype)
    expected = np.linalg.qr(A, mode="r")
    expected *= (np.diag(expected).conj() / np.abs(np.diag(expected)))[:, None]
    _, _, R = run(A, block_rows=64)
    rows = np.abs(expected).max(axis=1, keepdims=True)
    assert np.abs(R - expected).max() < 1e-13
    if condition < 1e6:
        assert (np.abs(R - expected) / rows).max() < 1e-9


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (64, 64), (65, 64), (128, 1), (129, 40), (64, 20), (63, 20)], ids=str)
def test_shapes(shape: tuple[int, int], dtype: str) -> None:
    """One block, one row over a block, one column, square, at a block of 64 rows."""
    A = gaussian(*shape, dtype)
    _, Q, R = run(A, block_rows=64)
    assert Q.shape == shape
    assert R.shape == (shape[1], shape[1])
    assert backward_error(A, Q, R) < 5 * shape[1] * eps(A)
    assert departure(Q) < 20 * shape[1] * eps(A)


def test_column_scaling_is_free() -> None:
    """Columns of lengths 1 to 1e15 that are orthogonal: the scaled condition is 1, and small columns keep their digits."""
    lengths = np.geomspace(1, 1e-15, 12)
    A = spectrum(gallery.flat(12), 400, 12) * lengths
    outcome, Q, R = run(A)
    assert "Cholesky" in outcome.notes[0]
    assert departure(Q) < 1e-13
    assert (np.linalg.norm(A - Q @ R, axis=0) <= 1e-14 * lengths).all()


@pytest.mark.parametrize("condition", [1.0, 1e15])
def test_mode_r(condition: float) -> None:
    A = spectrum(gallery.geometric(20, condition), 500, 20)
    outcome, Q, R = run(A, mode="r", block_rows=64)
    assert Q is None
    assert outcome.stored == ()
    assert outcome.certificate.passed
    np.testing.assert_array_equal(R, run(A, block_rows=64)[2])


def test_function() -> None:
    A = gaussian(300, 20)
    q, r = dlscale.qr(A)
    assert backward_error(A, q, r) < 1e-14
    np.testing.assert_array_equal(dlscale.qr(A, mode="r"), r)


def test_integers() -> None:
    A = np.random.default_rng(0).integers(-5, 6, (200, 10))
    q, r = dlscale.qr(A)
    assert q.dtype == np.float64
    assert backward_error(wide_precision(A), q, r) < 1e-14


@pytest.mark.parametrize(
    ("shape", "mode", "words"), [((3, 4), "reduced", "tall matrix"), ((4, 3), "full", "mode: got .full. .*reduced .Q and R. or r")]
)
def test_options_are_refused(shape: tuple[int, int], mode: Any, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        run(np.ones(shape), mode=mode)


@pytest.mark.parametrize("ratio", [1e-4, 1e-9, 1e-18])
def test_columns_whose_squares_vanish_beside_others(ratio: float) -> None:
    """Single precision squares of short columns lose their digits: these columns keep theirs."""
    A = (gaussian(300, 6) * np.array([1, ratio, 1, ratio, 1, 1])).astype("f4")
    outcome, Q, R = run(A, block_rows=64)
    assert outcome.certificate.passed
    assert departure(Q) < 100 * eps(A)
    short = wide_precision(A)[:, [1, 3]]
    assert norm(short - (wide_precision(Q) @ wide_precision(R))[:, [1, 3]]) < 100 * eps(A) * norm(short)


def test_no_error_of_numpy_reaches_a_user() -> None:
    """Columns that are nearly equal, where rounding makes a Gram matrix indefinite."""
    for seed in range(20):
        column = gaussian(4000, 1, "f4", seed)
        A = (column + 1e-7 * gaussian(4000, 5, "f4", seed + 100)).astype("f4")
        outcome, _, _ = run(A)
        assert outcome.certificate.passed


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
@pytest.mark.parametrize(("condition", "inverted"), [(10.0, True), (1e6, False)])
def test_blocks_are_multiplied_by_an_inverse_only_where_it_is_harmless(
    condition: float, inverted: bool, scale: float, dtype: str
) -> None:
    """Whatever the scales of the columns, the backward error of each is that of a solve up to `INVERSE_LIMIT`."""
    rng = np.random.default_rng(0)
    A = (spectrum(np.geomspace(1, 1 / condition, 20), 300, 20, dtype=dtype) * scale ** rng.uniform(-1, 1, 20)).astype(dtype)
    R = np.linalg.qr(wide_precision(A), mode="r")
    factor = TriangularFactor.of(R, A.dtype)
    assert (factor.inverse is not None) == inverted
    Q = factor.divide(A, out=np.empty_like(A))
    lost = np.linalg.norm(A - Q.astype(R.dtype) @ R, axis=0) / np.linalg.norm(A, axis=0)
    assert lost.max() < 10 * eps(A)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_hardly_more_is_lost_than_by_solving(dtype: str) -> None:
    """Matrices of a few positive columns, some of them nearly singular, where an inverse loses most; with any kernels of BLAS."""
    lost, by_solving = 0.0, 0.0
    for seed in range(2000):
        A = np.random.default_rng(seed).random((10, 10)).astype(dtype)
        R = np.linalg.qr(wide_precision(A), mode="r")
        factor = TriangularFactor.of(R, A.dtype)
        for chosen in (factor, TriangularFactor(R)):
            Q = chosen.divide(A, out=np.empty_like(A)).astype(R.dtype)
            error = float(np.abs(A - Q @ R).max())
            lost, by_solving = (max(lost, error), by_solving) if chosen is factor else (lost, max(by_solving, error))
    assert lost <= INVERSE_LIMIT * by_solving, (lost, by_solving)


def test_an_inverse_beyond_the_range_of_the_dtype_is_not_used() -> None:
    R = np.diag([1e-20, 1e30]) @ np.array([[1.0, 0.1], [0.0, 1.0]])
    assert TriangularFactor.of(R, np.dtype("f8")).inverse is not None
    assert TriangularFactor.of(np.diag([1e30, 1e37]), np.dtype("f4")).inverse is None
