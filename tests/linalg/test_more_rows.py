"""Factors with more rows: R of [R; W], and L with L L^H + W^H W, as if all rows had been factored at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factorizations import assert_cholesky, assert_qr, scaled_residual
from helpers import DTYPES, Array, departure, eps, gaussian, store
from hypothesis import given, settings
from hypothesis import strategies as st

import dlscale
from dlscale import gallery
from dlscale.errors import InputError, NonFiniteError, SpecError

THRESHOLD = 30


@settings(max_examples=40, deadline=None)
@given(
    m=st.sampled_from((1, 20, 25, 300)),
    n=st.sampled_from((1, 20)),
    p=st.sampled_from((1, 7, 200)),
    dtype=st.sampled_from(DTYPES),
    power=st.integers(-30, 30),
)
def test_qr_of_more_rows(m: int, n: int, p: int, dtype: str, power: int) -> None:
    """Tall, square and wide beginnings; rows of another size."""
    A, W = gaussian(m, n, dtype), (gaussian(p, n, dtype, seed=1) * np.ldexp(1.0, power)).astype(dtype)
    q, r = dlscale.qr(A).with_rows(W)  # type: ignore[union-attr]
    assert_qr(np.concatenate([A, W]), q, r)


@settings(max_examples=40, deadline=None)
@given(n=st.sampled_from((1, 2, 33, 90)), p=st.sampled_from((1, 7, 400)), dtype=st.sampled_from(DTYPES))
def test_cholesky_of_more_rows(n: int, p: int, dtype: str) -> None:
    A, W = gallery.positive_definite(n, dtype=dtype), gaussian(p, n, dtype)
    found = dlscale.cholesky(A).with_rows(W)
    wide = np.result_type(dtype, "f8")
    assert_cholesky((A.astype(wide) + W.astype(wide).conj().T @ W.astype(wide)).astype(dtype), found.l)


@pytest.mark.parametrize("dtype", DTYPES)
def test_errors_do_not_grow_with_the_updates(dtype: str) -> None:
    A, factors = gaussian(60, 12, dtype), dlscale.qr(gaussian(60, 12, dtype))
    for i in range(30):
        W = gaussian(5, 12, dtype, seed=i + 1) * (1e-3 if i % 2 else 1e2)
        A, factors = np.concatenate([A, W.astype(dtype)]), factors.with_rows(W.astype(dtype))  # type: ignore[union-attr]
    q, r = factors
    assert scaled_residual(A, q, r) < THRESHOLD
    assert departure(q) < THRESHOLD * 12 * eps(A)


@pytest.fixture
def job(tmp_path: Path) -> Any:
    def run(kind: str, inputs: dict[str, Any], **params: Any) -> dict[str, Any]:
        number = len(list(tmp_path.iterdir()))
        places = {
            role: str(value if isinstance(value, Path) else store(tmp_path / f"{role}-{number}.zarr", value, chunks=(33, 20)))
            for role, value in inputs.items()
        }
        output = str(tmp_path / f"{kind}-{number}.zarr")
        spec = {"kind": kind, "input": places, "params": params, "output": output, "cluster": "threads"}
        result = dlscale.run(spec, workspace=tmp_path / "workspace")
        assert result.certificate is not None
        assert result.certificate["passed"]
        return {"path": Path(output)} | {name: np.asarray(array) for name, array in result.open().items()}

    return run


def same_triangle(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, atol=100 * eps(found) * np.abs(expected).max())


@pytest.mark.parametrize("mode", ["reduced", "r"])
def test_a_stored_triangle_with_more_rows_again_and_again(mode: str, job: Any) -> None:
    A, W, V = gaussian(400, 20), gaussian(50, 20, seed=1), gaussian(3, 20, seed=2)
    first = job("qr", {"matrix": A}, mode=mode)
    second = job("qr", {"matrix": W, "factors": first["path"]}, mode="r")
    third = job("qr", {"matrix": V, "factors": second["path"]}, mode="r")
    assert set(third) == {"path", "r"}
    same_triangle(third["r"], dlscale.qr(np.concatenate([A, W, V]), mode="r"))  # type: ignore[arg-type]


def test_a_stored_cholesky_factor_with_more_rows(job: Any) -> None:
    A, W = gallery.positive_definite(40, dtype="c16"), gaussian(7, 40, "c16")
    first = job("cholesky", {"matrix": A})
    second = job("qr", {"matrix": W, "factors": first["path"]}, mode="r")
    third = job("qr", {"matrix": W, "factors": second["path"]}, mode="r")
    assert set(third) == {"path", "l"}
    assert_cholesky(A + 2 * W.conj().T @ W, third["l"])


def test_what_does_not_suit_is_refused(job: Any) -> None:
    A, W = gaussian(60, 20), gaussian(5, 20)
    triangle, raw = job("qr", {"matrix": A}, mode="r")["path"], job("qr", {"matrix": A}, mode="raw")["path"]
    pivoted = job("qr", {"matrix": A}, pivoting=True)["path"]
    for factors, words in ((raw, "has mode raw"), (pivoted, "was pivoted")):
        with pytest.raises(InputError, match=rf"input.factors: must be of a qr job of mode r or reduced.*{words}"):
            job("qr", {"matrix": W, "factors": factors}, mode="r")
    with pytest.raises(InputError, match=r"input.matrix: must have 20 columns like what was factored in .*; got 19"):
        job("qr", {"matrix": W[:, 1:], "factors": triangle}, mode="r")
    for params in ({}, {"mode": "r", "pivoting": True}, {"mode": "r", "panel": 4}):
        with pytest.raises(SpecError, match=r"params: with input.factors must be mode: r"):
            job("qr", {"matrix": W, "factors": triangle}, **params)
    W[2, 7] = np.nan
    with pytest.raises(NonFiniteError, match="nan at row 2, column 7"):
        job("qr", {"matrix": W, "factors": triangle}, mode="r")
    with pytest.raises(SpecError, match="must have 20 columns like the matrix that was factored; got 3"):
        dlscale.qr(A).with_rows(np.ones((2, 3)))  # type: ignore[union-attr]
