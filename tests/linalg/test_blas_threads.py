"""The same bits however many threads BLAS would use by itself, which `one_blas_thread` takes from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import Array, gaussian
from threadpoolctl import threadpool_limits

import dlscale
from dlscale.declaration.kind import run_here
from dlscale.linalg.polar import kind as polar

#: Large enough that OpenBLAS divides a product, a factorization and a reduction to tridiagonal form.
TALL, SQUARE = gaussian(3000, 120), gaussian(400, 400) + 40 * np.eye(400)
SYMMETRIC, POSITIVE = SQUARE + SQUARE.T, SQUARE @ SQUARE.T

FUNCTIONS: dict[str, Callable[[], Any]] = {
    "svd": lambda: dlscale.svd(TALL),
    "randomized_svd": lambda: dlscale.randomized_svd(TALL, 10),
    "qr": lambda: dlscale.qr(TALL),
    "lstsq": lambda: dlscale.lstsq(TALL, TALL[:, :3]),
    "PCA": lambda: (dlscale.PCA(5).fit(TALL).components_,),
    "lu": lambda: dlscale.lu(SQUARE),
    "cholesky": lambda: (dlscale.cholesky(POSITIVE),),
    "solve": lambda: (dlscale.solve(SQUARE, SQUARE[:, :3]),),
    "inverse": lambda: (dlscale.inverse(SQUARE),),
    "eigh": lambda: dlscale.eigh(SYMMETRIC),
    "matmul": lambda: (dlscale.matmul(SQUARE, SQUARE),),
    "polar": lambda: dlscale.polar(TALL),
    "polar, by iterations": lambda: _newton(SQUARE),
}


def _newton(A: Array) -> list[Array]:
    arrays = run_here(polar.KIND, polar.KIND.inputs({"matrix": A}), polar.PolarOptions(method="newton")).arrays
    return [arrays["u"], arrays["p"]]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bits_do_not_depend_on_the_threads_of_blas(name: str) -> None:
    def bits(n_threads: int) -> list[bytes]:
        with threadpool_limits(n_threads, user_api="blas"):
            found: list[Array] = [np.asarray(array) for array in FUNCTIONS[name]()]
        return [array.tobytes() for array in found]

    assert bits(2) == bits(1)
