"""The same bits however many threads BLAS would use by itself, which `one_blas_thread` takes from it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from helpers import Array, gaussian
from threadpoolctl import threadpool_limits

import dlscale

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
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_bits_do_not_depend_on_the_threads_of_blas(name: str) -> None:
    def bits(n_threads: int) -> list[bytes]:
        with threadpool_limits(n_threads, user_api="blas"):
            found: list[Array] = [np.asarray(array) for array in FUNCTIONS[name]()]
        return [array.tobytes() for array in found]

    assert bits(2) == bits(1)
