"""QR with column pivoting: tall matrices by passes, others in memory; the factors, the order and the rank."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from factorizations import factor, scaled_residual
from helpers import DTYPES, HARD, Array, departure, each_of, eps, gaussian, store, two_dtypes
from hypothesis import given, settings
from hypothesis import strategies as st

import dlscale
from dlscale import gallery
from dlscale.batch.assumed import AssumedMatrix
from dlscale.engine.clusters import ClusterFacts
from dlscale.errors import DoesNotFitError, NonFiniteError, SpecError
from dlscale.linalg.qr import pivoted
from dlscale.linalg.qr.kind import QROptions, plan_qr

THRESHOLD = 30
#: One entry, one row, one column, square, wide, not quite tall, tall in one block, tall in several.
SHAPES = ((1, 1), (1, 7), (9, 1), (60, 60), (30, 70), (70, 30), (200, 30), (5000, 12))


def assert_pivoted(A: Array, q: Array, r: Array, p: Array) -> None:
    """A[:, p] = q r, with the diagonal of r not increasing, and no column of r longer behind it."""
    k = min(A.shape)
    assert (q.shape, r.shape, p.dtype) == ((A.shape[0], k), (k, A.shape[1]), np.intp)
    assert q.dtype == r.dtype == A.dtype
    assert sorted(p) == list(range(A.shape[1]))
    assert scaled_residual(A[:, p], q, r) < THRESHOLD
    assert departure(q) < THRESHOLD * k * eps(A)
    assert (np.tril(r, -1) == 0).all()
    wide = r.astype(np.result_type(r.dtype, "f8"))
    diagonal = np.diagonal(wide)
    assert (diagonal.real >= 0).all()
    for j in range(k):
        behind = np.linalg.norm(wide[j:, j:], axis=0)
        assert (behind <= diagonal[j].real + 100 * len(A) ** 0.5 * eps(A) * diagonal[0].real).all()


@settings(max_examples=60, deadline=None)
@given(shape=st.sampled_from(SHAPES), dtype=st.sampled_from(DTYPES), power=st.integers(-60, 60), decay=st.floats(0, 3))
def test_any_shape(shape: tuple[int, int], dtype: str, power: int, decay: float) -> None:
    """Multiplied by a power of two, the factors have the same digits; the order is that of LAPACK where it is clear."""
    A = (gaussian(*shape, dtype) * np.logspace(0, -decay, shape[1])[::-1]).astype(dtype)
    q, r, p = dlscale.qr(A, pivoting=True)
    assert_pivoted(A, q, r, p)
    _, R, P = scipy.linalg.qr(A, mode="economic", pivoting=True)
    assert (p == P).all()
    np.testing.assert_allclose(np.diagonal(r).real, np.abs(np.diagonal(R)), rtol=1e4 * eps(A), atol=1e3 * eps(A) * abs(R[0, 0]))
    scale = np.ldexp(1.0, power).astype(dtype)
    scaled = dlscale.qr(A * scale, pivoting=True)
    for found, expected in zip(scaled, (q, r * scale, p), strict=True):
        np.testing.assert_array_equal(found, expected)
    r_alone, p_alone = dlscale.qr(A, mode="r", pivoting=True)
    np.testing.assert_array_equal(r_alone, r)
    np.testing.assert_array_equal(p_alone, p)


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", [name for name in HARD if name != "offset 1e8"])
def test_hard_matrices(name: str, dtype: str) -> None:
    A = HARD[name](dtype)
    outcome, arrays = factor("qr", A, pivoting=True)
    assert outcome.certificate.passed
    assert_pivoted(A, arrays["q"], arrays["r"], arrays["p"])


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("shape", [(80, 60), (60, 80), (600, 60)])
@pytest.mark.parametrize("rank", [0, 1, 17, 60])
def test_the_rank(shape: tuple[int, int], rank: int, dtype: str) -> None:
    """Of products of integers the rank is exact."""
    rng = np.random.default_rng(rank)
    left, right = (rng.integers(-4, 5, size) for size in ((shape[0], rank), (rank, shape[1])))
    outcome, _ = factor("qr", (left @ right).astype(dtype), pivoting=True)
    assert outcome.estimates["rank"] == rank
    assert outcome.estimates["rank_tolerance"] == max(shape) * np.finfo(dtype).eps


@pytest.mark.parametrize("shape", [(300, 300), (3000, 40)])
def test_from_disk(tmp_path: Path, shape: tuple[int, int]) -> None:
    A = gaussian(*shape)
    path = str(store(tmp_path / "a.zarr", A, chunks=(100, 20)))
    outcome, arrays = factor("qr", path, pivoting=True)
    assert outcome.certificate.passed
    assert_pivoted(A, arrays["q"], arrays["r"], arrays["p"])


def test_out_of_range_entries() -> None:
    for size in (1e-300, 1e300):
        A = gaussian(40, 30) * size
        q, r, p = dlscale.qr(A, pivoting=True)
        assert_pivoted(A / size, q, r / size, p)


def test_wrong_factors_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pivoted.pivoted_qr

    def wrong(F: Array) -> Any:
        found = right(F)
        found.r[2, 5] += 1
        return found

    monkeypatch.setattr(pivoted, "pivoted_qr", wrong)
    for shape in ((50, 40), (500, 40)):
        assert not factor("qr", gaussian(*shape), pivoting=True)[0].certificate.passed


def test_what_does_not_suit_is_refused() -> None:
    A = gallery.hilbert(10)
    for options in ({"mode": "raw"}, {"panel": 2}, {"row_blocks": 1}):
        with pytest.raises(SpecError, match=r"params.pivoting: goes with mode reduced or r, and without panel and row_blocks"):
            factor("qr", A, pivoting=True, **options)
    A[3, 4] = np.nan
    with pytest.raises(NonFiniteError, match="nan at row 3, column 4"):
        factor("qr", A, pivoting=True)
    facts = ClusterFacts("threads", 1, 2, 2**31)
    with pytest.raises(
        DoesNotFitError, match=r"params.pivoting: .* 30000 x 30000 need 2\d\.\d\d GB, and has 2.15 GB; leave it out"
    ):
        plan_qr(AssumedMatrix((30_000, 30_000)), QROptions(pivoting=True), facts)
    assert plan_qr(AssumedMatrix((10**7, 300)), QROptions(pivoting=True), facts).method == "passes"
