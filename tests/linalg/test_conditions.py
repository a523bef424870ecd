"""Condition numbers by singular values: infinite of every matrix that is exactly singular, and right where they are finite."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from helpers import DTYPES, THREADS, Array, compute, eps, spectrum
from hypothesis import example, given, settings
from hypothesis import strategies as st

from dlscale import gallery
from dlscale.engine.clusters import open_cluster
from dlscale.engine.run import Run
from dlscale.linalg.conditions import condition_number, rounding
from dlscale.linalg.lstsq.kind import LstsqOptions, compute_lstsq, plan_lstsq
from dlscale.linalg.qr.tall import TallQROptions, compute_tall_qr, plan_tall_qr
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix


def by_qr(A: Array, **options: Any) -> float:
    return float(compute(plan_tall_qr, compute_tall_qr, A, TallQROptions(mode="r", **options))[0].estimates["condition"])


def by_lstsq(A: Array, **options: Any) -> float:
    b = np.random.default_rng(0).random((len(A), 1)).astype(A.dtype)
    inputs, chosen = Inputs({"matrix": open_matrix(A), "rhs": open_matrix(b)}), LstsqOptions(**options)
    with open_cluster(THREADS) as cluster:
        return float(compute_lstsq(Run(cluster), inputs, chosen, plan_lstsq(inputs, chosen, THREADS)).estimates["condition"])


@settings(max_examples=25, deadline=None)
@given(
    m=st.integers(8, 3000),
    value=st.sampled_from([1.0, 0.1, 0.7, 1 / 3]),
    block_rows=st.sampled_from([None, 64, 500, 1200]),
    dtype=st.sampled_from(DTYPES),
)
@example(m=2009, value=1.0, block_rows=None, dtype="f8")
@example(m=2009, value=0.7, block_rows=None, dtype="f8")
@example(m=1023, value=1.0, block_rows=None, dtype="f8")
@example(m=3000, value=1.0, block_rows=1200, dtype="f8")
def test_of_constant_columns(m: int, value: float, block_rows: int | None, dtype: str) -> None:
    """Rounding errors of equal terms go one way."""
    A = np.full((m, 2), value, dtype)
    assert by_qr(A, block_rows=block_rows) == np.inf
    assert by_lstsq(A, block_rows=block_rows) == np.inf


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(600, 150), (200, 20), (40, 9)], ids=str)
def test_of_a_column_that_is_the_sum_of_others(shape: tuple[int, int], dtype: str, seed: int) -> None:
    """Also where a triangle in double precision comes of products in single."""
    A = np.random.default_rng(seed).integers(0, 10, shape)
    A[:, -1] = A[:, :-1].sum(axis=1)
    A = A.astype(dtype)
    assert by_qr(A) == by_lstsq(A) == by_lstsq(np.ascontiguousarray(A.T)) == np.inf


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(60, 5), (2000, 30)], ids=str)
def test_finite_ones_are_right(shape: tuple[int, int], dtype: str) -> None:
    """A tenth of what is taken for infinite, within a tenth."""
    told = 0.1 / rounding(shape, np.dtype(dtype))
    A = spectrum(gallery.geometric(shape[1], told), *shape, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exact = np.linalg.cond(A.astype(np.result_type(A.dtype, np.float64)))
        for found in (by_qr(A), by_lstsq(A), by_lstsq(np.ascontiguousarray(A.T))):
            assert found == pytest.approx(exact, rel=0.1)


def test_a_long_matrix_in_single_precision_keeps_its_condition() -> None:
    """Its sums are made in double precision."""
    A = spectrum(gallery.geometric(4, 1e5), 40_000, 4, dtype="f4")
    assert by_qr(A) == pytest.approx(np.linalg.cond(A.astype(float)), rel=0.1)


@pytest.mark.parametrize("sums", ["f4", None])
def test_what_is_not_told_from_zero(sums: str | None) -> None:
    limit = rounding((100, 4), np.dtype("f4"), sums=None if sums is None else np.dtype(sums))
    assert limit == pytest.approx((44.0 if sums else 4.0) * eps(np.zeros(1, "f4")), rel=1e-6)
    assert condition_number(1.0, 0.0, (100, 4), np.dtype("f4")) == condition_number(0.0, 0.0, (1, 1), np.dtype("f8")) == np.inf
