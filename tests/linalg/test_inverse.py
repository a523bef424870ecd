"""Inverses and determinants of hard matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, THREADS, Array, each_of, eps, gaussian, norm, two_dtypes

from dlscale import gallery
from dlscale.engine.clusters import open_cluster
from dlscale.engine.run import Run
from dlscale.errors import NumericalError, SpecError
from dlscale.linalg.solve import inverse
from dlscale.linalg.solve.inverse import InverseOptions, compute_inverse, plan_inverse
from dlscale.linalg.solve.slogdet import SlogdetOptions, compute_slogdet, plan_slogdet
from dlscale.storage.matrices import open_matrix


def run(source: Array, options: Any) -> tuple[Any, dict[str, Array]]:
    plan_of, algorithm = (plan_inverse, compute_inverse) if isinstance(options, InverseOptions) else (plan_slogdet, compute_slogdet)
    A = open_matrix(source)
    plan = plan_of(A, options, THREADS)
    with open_cluster(THREADS) as cluster:
        job = Run(cluster)
        outcome = algorithm(job, A, options, plan)
    return outcome, outcome.arrays | job.outputs


SQUARE = [name for name in gallery.HARD_SQUARE if name != "hilbert"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SQUARE)
def test_inverses(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """||I - A X|| <= c n eps ||A|| ||X||; blocks of 32 rows."""
    monkeypatch.setattr(inverse, "BLOCK_ROWS", 32)
    for n in (1, 32, 33, 100):
        A = gallery.HARD_SQUARE[name](n, dtype)
        outcome, arrays = run(A, InverseOptions(panel=min(n, 32)))
        X = arrays["inverse"]
        assert X.dtype == A.dtype
        assert outcome.certificate.passed, outcome.certificate
        wide = np.longdouble if A.dtype.kind == "f" else np.clongdouble
        departure = norm((np.eye(n) - A.astype(wide) @ X.astype(wide)).astype("c16"))
        assert departure <= 30 * n * eps(A) * norm(A) * norm(X)
        product = np.abs(A).sum(0).max() * np.abs(X).sum(0).max()
        # Where rounding hides the number, the larger one of two estimates is told.
        most = 1 + 1e-5 if product * eps(A) < 0.1 else 20
        assert (1 - 1e-5) * product <= outcome.estimates["condition"] <= most * product


def test_the_inverse_chooses_qr_where_lu_alone_is_inaccurate() -> None:
    """Refinement would save a solution by these factors of growth 2^31; the rows of an inverse are not refined."""
    for n, chooses_qr in ((32, True), (8, False)):
        outcome, _ = run(gallery.HARD_SQUARE["wilkinson"](n, "f4"), InverseOptions())
        assert outcome.certificate.passed
        assert any("by QR" in note for note in outcome.notes) == chooses_qr


def test_inverse_of_a_positive_definite_matrix() -> None:
    A = gallery.positive_definite(70, dtype="c16")
    outcome, arrays = run(A, InverseOptions(assume="pos", panel=32))
    assert outcome.certificate.passed
    np.testing.assert_allclose(arrays["inverse"] @ A, np.eye(70), atol=1e-11)


def test_no_inverse() -> None:
    with pytest.raises(NumericalError, match="pivot of step 4"):
        run(gallery.singular_at(10, 3), InverseOptions())
    for options in (InverseOptions(), SlogdetOptions()):
        with pytest.raises(SpecError, match="must be square"):
            run(np.ones((3, 4)), options)
        with pytest.raises(SpecError, match=r"assume: got 'banded' \(text\); allowed: general, pos .*, sym or her"):
            run(np.eye(4), type(options)(assume="banded"))  # type: ignore[arg-type]


def test_an_inverse_that_overflows_is_told_as_such() -> None:
    """Where it does so at the scale where it is computed, by the products with it too."""
    told = list[str]()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        exponents = rng.choice([*range(-149, -119), *[0] * 15, *[100] * 15], (2, 2, 2))
        parts = np.ldexp(rng.standard_normal((2, 2, 2)), exponents)
        try:
            run((parts[0] + (seed % 2) * 1j * parts[1]).astype("c8"), InverseOptions())
        except NumericalError as error:
            told.append(str(error))
    assert not any("products overflow" in words for words in told)
    assert any("No factors of the matrix give an inverse in the range of complex64" in words for words in told)


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", SQUARE)
def test_determinants(name: str, dtype: str) -> None:
    """The computed determinant is that of a matrix within the backward error: log|det| moves by n eps times the condition."""
    for n in (1, 32, 33, 100):
        A = gallery.HARD_SQUARE[name](n, dtype)
        outcome, arrays = run(A, SlogdetOptions(panel=min(n, 32)))
        assert outcome.certificate.passed, outcome.certificate
        sign, logarithm = np.linalg.slogdet(A.astype(np.result_type(A.dtype, "f8")))
        tolerance = 10 * n * eps(A) * np.linalg.cond(A.astype("c16"))
        if tolerance < 0.1:
            assert abs(arrays["sign"][0] - sign) <= tolerance
            assert abs(arrays["logabsdet"][0] - logarithm) <= tolerance + eps(A) * abs(logarithm)
        assert arrays["sign"].dtype == A.dtype


def test_determinants_that_would_overflow() -> None:
    A = gaussian(200, 200) * 1e30
    _, arrays = run(A, SlogdetOptions())
    sign, logarithm = np.linalg.slogdet(A)
    assert arrays["sign"][0] == sign
    assert arrays["logabsdet"][0] == pytest.approx(logarithm)


@pytest.mark.parametrize("dtype", DTYPES)
def test_determinant_of_a_positive_definite_matrix(dtype: str) -> None:
    A = gallery.positive_definite(50, dtype=dtype)
    outcome, arrays = run(A, SlogdetOptions(assume="pos", panel=16))
    assert outcome.certificate.passed
    assert arrays["sign"][0] == 1
    assert arrays["logabsdet"][0] == pytest.approx(np.linalg.slogdet(A.astype("c16"))[1], abs=1e4 * 50 * eps(A))


@pytest.mark.parametrize("step", [0, 9, 19])
def test_determinant_of_a_singular_matrix(step: int) -> None:
    _, arrays = run(gallery.singular_at(20, step), SlogdetOptions(panel=8))
    assert (arrays["sign"][0], arrays["logabsdet"][0]) == (0, -np.inf)
