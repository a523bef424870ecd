"""LU by panels: LAPACK's factors and pivots on every hard matrix, however the columns are cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
from factorizations import assert_lu, factor, factor_in_files, lapack_lu
from helpers import DTYPES, LAYOUTS, THREADS, each_of, eps, gaussian, store, two_dtypes

from dlscale import gallery
from dlscale.engine.clusters import open_cluster
from dlscale.errors import DlscaleError, InputError, NonFiniteError, NumericalError, SpecError

ORDERS = (1, 2, 32, 33, 150)


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", gallery.HARD_SQUARE)
def test_hard_matrices(name: str, dtype: str) -> None:
    """Panels of 32, two of them a group: one unknown, one panel, one column over a panel, several groups."""
    for n in ORDERS:
        A = gallery.HARD_SQUARE[name](n, dtype)
        outcome, arrays = factor("lu", A, panel=min(n, 32), group=2)
        if outcome.estimates["growth_factor"] > 1e9:
            continue  # see `test_growth`
        assert outcome.certificate.passed, (n, outcome.certificate)
        assert_lu(A, arrays["lu"], arrays["piv"])
        # Where pivots tie to the last bit, or fall below the rounding errors, the choice is not determined.
        if name not in ("near singular", "hilbert", "kahan"):
            np.testing.assert_array_equal(arrays["piv"], lapack_lu(A)[1])


@pytest.mark.parametrize("group", [None, 2])
@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("shape", [(1, 7), (7, 1), (300, 90), (90, 300), (65, 64), (64, 65), (20, 200), (200, 33)], ids=str)
def test_shapes(shape: tuple[int, int], dtype: str, group: int | None) -> None:
    """Tall, wide, panels beyond the last row, a panel that has fewer rows than columns."""
    A = gaussian(*shape, dtype)
    outcome, arrays = factor("lu", A, panel=min(32, shape[1]), group=group)
    assert outcome.certificate.passed, outcome.certificate
    assert_lu(A, arrays["lu"], arrays["piv"])
    lu, piv = lapack_lu(A)
    np.testing.assert_array_equal(arrays["piv"], piv)
    np.testing.assert_allclose(arrays["lu"], lu, rtol=0, atol=2000 * eps(A) * np.abs(lu).max())


def test_panels_that_do_not_divide_the_order() -> None:
    """2,321 with panel 1,024: two whole panels and a rest, in memory and by groups, give the same bits."""
    A = gaussian(2321, 2321)
    outcome, whole = factor("lu", A, panel=1024)
    assert outcome.certificate.passed
    _, piv = lapack_lu(A)
    np.testing.assert_array_equal(whole["piv"], piv)
    _, parts = factor("lu", A, panel=1024, group=1)
    np.testing.assert_array_equal(parts["lu"], whole["lu"])
    np.testing.assert_array_equal(parts["piv"], whole["piv"])


@pytest.mark.parametrize("layout", ["squares", "tiny chunks", "zstd row strips"])
def test_the_stored_result_solves_systems(layout: str, tmp_path: Path) -> None:
    """As SciPy's own factors do; the same bits from every layout of the matrix."""
    A, b = gaussian(200, 200), gaussian(200, 3)
    path = store(tmp_path / "a.zarr", A, **LAYOUTS[layout])
    stored = factor_in_files("lu", path, tmp_path, open_cluster(THREADS), panel=32, group=3)
    x = scipy.linalg.lu_solve((stored["lu"], stored["piv"]), b)
    norms = np.linalg.norm(A, 1) * np.linalg.norm(x, 1, axis=0)
    assert (np.linalg.norm(b - A @ x, 1, axis=0) / norms / eps(A)).max() < 30
    _, arrays = factor("lu", A, panel=32)
    np.testing.assert_array_equal(stored["lu"], arrays["lu"])


@pytest.mark.parametrize("group", [None, 1])
@pytest.mark.parametrize("step", [0, 31, 32, 50, 99])
def test_exactly_singular_is_reported_with_the_step(step: int, group: int | None) -> None:
    A = gallery.singular_at(100, step)
    outcome, arrays = factor("lu", A, panel=32, group=group)
    assert outcome.notes == (f"the matrix is singular to working precision: pivot {step + 1} is zero",)
    assert outcome.certificate.passed
    assert arrays["lu"][step, step] == 0
    assert_lu(A, arrays["lu"], arrays["piv"])


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros(dtype: str) -> None:
    outcome, arrays = factor("lu", np.zeros((70, 70), dtype), panel=32, group=1)
    assert outcome.certificate.passed
    assert not arrays["lu"].any()
    np.testing.assert_array_equal(arrays["piv"], np.arange(70))
    assert "pivot 1 is zero" in outcome.notes[0]


def test_growth() -> None:
    """It is measured; where it costs all digits the certificate says so, though the factors are those of LAPACK."""
    outcome, arrays = factor("lu", gaussian(90, 90), panel=32)
    assert outcome.estimates["growth_factor"] == np.abs(np.triu(arrays["lu"])).max() / np.abs(gaussian(90, 90)).max()
    for n in (12, 100):
        A = gallery.wilkinson_growth(n)
        outcome, arrays = factor("lu", A, panel=5, group=2)
        assert outcome.estimates["growth_factor"] == 2.0 ** (n - 1)
        assert outcome.certificate.passed == (n == 12)
        lu, piv = lapack_lu(A)
        np.testing.assert_array_equal(arrays["lu"], lu)
        np.testing.assert_array_equal(arrays["piv"], piv)


@pytest.mark.parametrize(("dtype", "size"), [("f8", 1e200), ("f8", 1e-200), ("c16", 1e200), ("f4", 1e30), ("c8", 1e-25)])
def test_sizes_whose_squares_overflow(dtype: str, size: float) -> None:
    """The certificate is as sharp as at size 1."""
    A = gaussian(100, 100, dtype) * np.dtype(dtype).type(size)
    outcome, arrays = factor("lu", A, panel=32, group=2)
    assert outcome.certificate.passed, outcome.certificate
    assert 1e-4 < outcome.certificate.checks[0].value < 30
    assert_lu(A, arrays["lu"], arrays["piv"])


@pytest.mark.parametrize(("dtype", "n"), [("f4", 200), ("c8", 200), ("f8", 1100)])
def test_growth_beyond_the_largest_number_is_an_error(dtype: str, n: int) -> None:
    with pytest.raises(NumericalError, match="factors overflow"):
        factor("lu", gallery.wilkinson_growth(n, dtype=dtype), panel=64)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [(0, 0), (99, 99), (37, 64)])
def test_not_finite_is_refused_with_its_place(place: tuple[int, int], value: float) -> None:
    A = gaussian(100, 100)
    A[place] = value
    with pytest.raises(NonFiniteError) as raised:
        factor("lu", A, panel=32, group=2)
    assert (raised.value.row, raised.value.column) == place
    assert issubclass(NonFiniteError, InputError)


def test_sums_that_overflow_are_no_hindrance() -> None:
    A = gaussian(40, 40)
    expected, _ = lapack_lu(A)
    outcome, arrays = factor("lu", A * 2.0**1020, panel=32)
    assert outcome.certificate.passed
    np.testing.assert_allclose(np.triu(arrays["lu"]) / 2.0**1020, np.triu(expected), rtol=1e-10)


@pytest.mark.parametrize(("panel", "words"), [(101, r"params\.panel.*1 to the 100 columns.*got 101")])
def test_wrong_options_are_refused(panel: int, words: str) -> None:
    with pytest.raises(SpecError, match=words):
        factor("lu", gaussian(100, 100), panel=panel)
    assert issubclass(SpecError, DlscaleError)


@pytest.mark.parametrize("n_columns", [5, 300])
def test_growth_in_columns_without_a_pivot_counts(n_columns: int) -> None:
    """Wherever the column that doubles at each step stands, beside the square or far right of it."""
    m = 20
    A = np.zeros((m, m + n_columns))
    A[:, :m] = np.eye(m) - np.tril(np.ones((m, m)), -1)
    A[:, -1] = 1
    outcome, _ = factor("lu", A, panel=20)
    assert outcome.estimates["growth_factor"] == 2.0 ** (m - 1)


def test_a_note_on_growth_needs_growth() -> None:
    """In single precision too, of which a digit more is lost at any growth."""
    outcome, _ = factor("lu", gaussian(60, 60, "f4"), panel=32)
    assert outcome.notes == ()


@pytest.mark.parametrize(("scale", "words"), [(2.0**900, "below the smallest normal number there"), (2.0**-900, "range: exactly")])
def test_a_note_on_another_scale_says_what_it_costs(scale: float, words: str) -> None:
    outcome, _ = factor("qr", gaussian(20, 20) * scale, panel=20)
    assert outcome.notes[0].endswith(words)
