"""Quartiles of columns, which are found exactly, and columns scaled and centred by them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.preprocessing import RobustScaler

import dlscale
from dlscale.engine.clusters import describe_cluster, open_cluster
from dlscale.engine.clusters.cluster import Cluster
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.run import Run
from dlscale.errors import NonFiniteError
from dlscale.linalg.statistics import quartiles
from dlscale.linalg.statistics.quartiles import digits_of, quartiles_of
from dlscale.storage.matrices import open_matrix

ROBUST = [{"scale_columns": "robust"}, {"center": "median"}]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with open_cluster(describe_cluster("threads")) as cluster:
        yield cluster


def found(cluster: Cluster, source: Any, rows: int = 64) -> np.ndarray:
    A = open_matrix(source)
    steps = [f"read-{k}" for k in range(len(digits_of(A.shape[1], A.dtype)))]
    return np.array(quartiles_of(Passes(Run(cluster)), A, RowGrid(A.shape[0], block_rows=rows, leaf_rows=2 * rows), steps))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), dtype=st.sampled_from(["f4", "f8"]), budget=st.sampled_from([1, 2**12, 2**23]), rows=st.integers(1, 9))
def test_quartiles_are_those_of_sorted_columns(cluster, monkeypatch, data, dtype, budget, rows):
    monkeypatch.setattr(quartiles, "_COUNTS_BYTES", budget)
    least, width = float(np.finfo(dtype).min) / 2, 32 if dtype == "f4" else 64
    numbers = st.floats(least, -least, width=width) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 5e-45 if dtype == "f4" else 5e-324])
    A = data.draw(arrays(dtype, st.tuples(st.integers(1, 14), st.integers(1, 3)), elements=numbers))
    want, below, above = (
        np.percentile(A.astype("f8"), [25, 50, 75], axis=0, method=method) for method in ("linear", "lower", "higher")
    )
    # Between numbers of both signs their mean is small, and its rounding is that of the numbers.
    rounding = 4e-16 * np.maximum(np.abs(below), np.abs(above)) + 5e-324
    for source in (A, scipy.sparse.csr_array(A)):
        assert (np.abs(found(cluster, source, rows) - want) <= rounding).all()


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("density", [0.3, 0.9])
def test_of_many_rows_in_any_grid(cluster, dtype, density):
    A = scipy.sparse.random_array((1200, 12), density=density, rng=np.random.default_rng(0), format="csr", dtype=dtype)
    A.data[::3] *= -1
    A.data[::5] = 0.25
    want = np.percentile(A.toarray().astype("f8"), [25, 50, 75], axis=0)
    for source in (A, A.tocsc(), A.toarray()):
        np.testing.assert_allclose(found(cluster, source), want, rtol=4e-16)
        np.testing.assert_array_equal(found(cluster, source, 1000), found(cluster, source, 7 * 64))


def test_reads_are_few_where_columns_are():
    """A digit of at least 4 bits in each read; its counts take 8 MB, or what 4 bits take."""
    n_reads = {n: [len(digits_of(n, np.dtype(dtype))) for dtype in ("f4", "f8")] for n in (1, 100, 1000, 10**6)}
    assert n_reads == {1: [2, 4], 100: [3, 6], 1000: [4, 8], 10**6: [8, 16]}
    assert quartiles.counts_bytes(1000, np.dtype("f8")) < 2**23


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_named(cluster, value):
    A = np.ones((200, 3))
    A[150, 2] = value
    for source in (A, scipy.sparse.csr_array(A)):
        with pytest.raises(NonFiniteError, match="row 150, column 2"):
            found(cluster, source)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_columns_are_scaled_as_by_scikit_learn(dtype):
    rng = np.random.default_rng(0)
    A = (rng.standard_t(2, (501, 5)) * [1, 10, 1e5, 1e-5, 0] + [0, 50, 1e5, 1, 7]).astype(dtype)
    scaled = RobustScaler().fit_transform(A.astype("f8"))
    fitted = dlscale.PCA(4, transforms=ROBUST, solver="full").fit(A)
    want = dlscale.PCA(4, solver="full").fit(scaled)
    rtol = 1e-3 if dtype == "f4" else 1e-10
    np.testing.assert_allclose(fitted.explained_variance_, want.explained_variance_, rtol=rtol)
    np.testing.assert_allclose(fitted.mean_, want.mean_, atol=rtol)
    new = A[:7] * 2
    np.testing.assert_allclose(
        fitted.transform(new), want.transform(RobustScaler().fit(A).transform(new)), rtol=rtol, atol=100 * rtol
    )


@pytest.mark.usefixtures("jobs_on_shared_clusters")
def test_jobs_tell_the_reads_and_keep_what_was_found(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    A, y = rng.standard_t(2, (400, 4)).astype("f4"), rng.standard_normal((400, 1)).astype("f4")
    spec = {"kind": "ridge", "input": {"matrix": A, "rhs": y, "transforms": ROBUST}, "params": {"penalties": [1.0]}}
    one, two = (dlscale.run({**spec, "cluster": place}, workspace=tmp_path) for place in ("threads", {"workers": 2, "threads": 1}))
    assert [step["id"] for step in one.plan["steps"]][:3] == ["transforms-1", "transforms-2", "triangle"]
    low, median, high = np.percentile(A.astype("f8"), [25, 50, 75], axis=0)
    arrays_of = one.open()
    np.testing.assert_allclose(arrays_of["transforms/1-factors"][...], 1 / (high - low), rtol=1e-15)
    np.testing.assert_allclose(arrays_of["transforms/2-median"][...], median / (high - low), rtol=1e-15, atol=1e-17)
    for name, array in two.open().items():
        np.testing.assert_array_equal(arrays_of[name][...], array[...])
    W, c = arrays_of["coefficients"][...].reshape(4, 1), arrays_of["intercept"][...]
    predict = {"kind": "predict", "input": {"features": 3 * A, "model": str(one.result)}, "cluster": "threads"}
    predicted = dlscale.run(predict, workspace=tmp_path).open()["predictions"][...]
    np.testing.assert_allclose(predicted, RobustScaler().fit(A).transform(3 * A) @ W + c, rtol=1e-4, atol=1e-4)
