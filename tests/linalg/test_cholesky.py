"""Cholesky by panels: LAPACK's factor, however the columns are cut; the upper triangle is not looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from factorizations import assert_cholesky, factor, factor_in_files
from helpers import DTYPES, LAYOUTS, THREADS, each_of, eps, gaussian, store

from dlscale import gallery
from dlscale.engine.clusters import open_cluster
from dlscale.errors import NonFiniteError, NumericalError, SpecError

ORDERS = (1, 2, 32, 33, 150)


@pytest.mark.parametrize("group", [None, 2])
@each_of(dtype=DTYPES)
@pytest.mark.parametrize("condition", [1.0, 1e3, 1e5])
def test_positive_definite(condition: float, dtype: str, group: int | None) -> None:
    """Panels of 32: one unknown, one panel, one column over a panel, several groups."""
    for n in ORDERS:
        A = gallery.positive_definite(n, condition=condition, dtype=dtype)
        outcome, arrays = factor("cholesky", A, panel=min(n, 32), group=group)
        assert outcome.certificate.passed, (n, outcome.certificate)
        assert_cholesky(A, arrays["l"])
        np.testing.assert_allclose(arrays["l"], np.linalg.cholesky(A), rtol=0, atol=10 * n * condition * eps(A))


def test_panels_that_do_not_divide_the_order() -> None:
    """1,100 with panel 512, in memory and by groups: the same bits."""
    B = gaussian(1100, 40)
    A = B @ B.T + np.eye(1100)
    outcome, whole = factor("cholesky", A, panel=512)
    assert outcome.certificate.passed
    assert outcome.certificate.checks[0].value > 1e-4
    _, parts = factor("cholesky", A, panel=512, group=1)
    np.testing.assert_array_equal(parts["l"], whole["l"])


@pytest.mark.parametrize("dtype", ["f8", "c8"])
@pytest.mark.parametrize("minor", [1, 32, 33, 64, 100])
def test_not_positive_definite_names_the_leading_minor(minor: int, dtype: str) -> None:
    """That of LAPACK's potrf."""
    A = gallery.positive_definite(100, dtype=dtype)
    A[minor - 1, minor - 1] = -1
    for group in (None, 1):
        with pytest.raises(NumericalError, match=rf"leading minor of order {minor} is not positive.*kind lu"):
            factor("cholesky", A, panel=32, group=group)


def test_exactly_singular_is_not_positive_definite() -> None:
    A = np.ones((50, 50))
    with pytest.raises(NumericalError, match="leading minor of order 2 "):
        factor("cholesky", A, panel=16)


@pytest.mark.parametrize("group", [None, 2])
@pytest.mark.parametrize("place", [(0, 1), (3, 70), (31, 32), (98, 99)])
def test_a_matrix_that_is_not_hermitian_is_refused(place: tuple[int, int], group: int | None) -> None:
    """L is of the lower triangle; the certificate is of the whole matrix."""
    A = gallery.positive_definite(100)
    A[place] += 1e-6
    with pytest.raises(NumericalError, match="not Hermitian"):
        factor("cholesky", A, panel=32, group=group)


@pytest.mark.parametrize("place", [(0, 0), (99, 99), (64, 37), (99, 0), (3, 70)])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_is_refused_with_its_place(place: tuple[int, int], value: float) -> None:
    A = gallery.positive_definite(100)
    A[place] = value
    with pytest.raises(NonFiniteError) as raised:
        factor("cholesky", A, panel=32, group=2)
    assert (raised.value.row, raised.value.column) == place


@pytest.mark.parametrize(("dtype", "size"), [("f8", 1e200), ("f8", 1e-200), ("c16", 1e200), ("f4", 1e30), ("c8", 1e-25)])
def test_sizes_whose_squares_overflow(dtype: str, size: float) -> None:
    A = gallery.positive_definite(100, dtype=dtype) * np.dtype(dtype).type(size)
    outcome, arrays = factor("cholesky", A, panel=32, group=2)
    assert outcome.certificate.passed, outcome.certificate
    assert outcome.certificate.checks[0].value > 1e-4
    assert_cholesky(A, arrays["l"])


@pytest.mark.parametrize("layout", ["squares", "tiny chunks", "zstd row strips"])
def test_layouts(layout: str, tmp_path: Path) -> None:
    """The same bits from every layout of the matrix, in files and in memory."""
    A = gallery.positive_definite(200)
    path = store(tmp_path / "a.zarr", A, **LAYOUTS[layout])
    stored = factor_in_files("cholesky", path, tmp_path, open_cluster(THREADS), panel=32, group=3)
    _, arrays = factor("cholesky", A, panel=32)
    np.testing.assert_array_equal(stored["l"], arrays["l"])


@pytest.mark.parametrize(
    ("shape", "panel", "words"), [((4, 3), 2, "must be square.*got 4 x 3"), ((40, 40), 41, r"1 to the 40 columns.*got 41")]
)
def test_wrong_matrices_and_options_are_refused(shape: tuple[int, int], panel: int, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        factor("cholesky", np.ones(shape), panel=panel)
