"""Many products with one matrix, as iterative methods make them: 200 of 20,000 x 20,000 (3.2 GB) by 8 columns; and its square.

For the many, dlscale's matrix is stored, read once, and held on two workers of one thread; NumPy's is in the memory of one process
that uses both cores. The first product of dlscale, which reads, is off the clock; on the clock the store has another name, so that
nobody can. The square goes from disk to disk by a job under 2 GB, and is compared with the rate of products in memory, and with
NumPy's own product of the same matrix in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import numpy as np
import outofcore
from harness import Bench, case

GROUP = "200 products with a square matrix by 8 columns"
WIDTH = 8
SQUARE_GROUP = "a square matrix times itself, from disk to disk"


def iterate(multiply: Callable[[np.ndarray], np.ndarray], X: np.ndarray, n_products: int) -> np.ndarray:
    """Products of what came before, brought back to its length."""
    for _ in range(n_products):
        X = multiply(X)
        X /= np.linalg.norm(X)
    return X


def sizes(bench: Bench) -> tuple[Path, np.ndarray, int]:
    """The stored matrix, where to start, and how many products."""
    n, n_products = bench.pick(full=(20_000, 200), quick=(2_000, 20))
    path, _ = outofcore.stored(bench, (n, n))
    bench.fact(n_products=n_products, width=WIDTH)
    return path, np.random.default_rng(0).standard_normal((n, WIDTH)), n_products


def judge(bench: Bench, path: Path, found: np.ndarray, start: np.ndarray, n_products: int) -> None:
    """Against plain products by strips, of the first few."""
    n_checked = min(n_products, 3)

    def multiply(X: np.ndarray) -> np.ndarray:
        return np.concatenate([block @ X for _, _, block in outofcore.strips(path)])

    expected = iterate(multiply, start, n_checked)
    bench.check("error", float(np.abs(found - expected).max() / np.abs(expected).max()), 1e-12)


@case(GROUP, "numpy")
def numpy_products(bench: Bench) -> None:
    path, start, n_products = sizes(bench)
    A = np.concatenate([block for _, _, block in outofcore.strips(path)])
    judge(bench, path, iterate(lambda X: A @ X, start, min(n_products, 3)), start, n_products)
    bench.time(lambda: iterate(lambda X: A @ X, start, n_products), repeats=bench.pick(full=3, quick=1))


@case(GROUP, "dlscale, held on 2 workers")
def resident_products(bench: Bench) -> None:
    from dlscale.engine.clusters import describe_cluster, open_cluster
    from dlscale.engine.passes import Passes
    from dlscale.engine.run import Run
    from dlscale.linalg.operators import MatrixOperator, plan_operator
    from dlscale.storage.matrices import open_matrix

    path, start, n_products = sizes(bench)
    A, facts = open_matrix(path), describe_cluster({"type": "local", "workers": 2, "threads": 1})
    plan: Any = plan_operator(A, WIDTH, facts, n_products=n_products)
    bench.fact(way=plan.words, plan_bytes=plan.peak_bytes)
    with open_cluster(facts) as cluster, MatrixOperator(Passes(Run(cluster)), A, plan) as operator:
        judge(bench, path, iterate(operator.apply, start, min(n_products, 3)), start, n_products)
        hidden = path.rename(path.with_name(f"{path.name}.hidden"))
        try:
            bench.time(lambda: iterate(operator.apply, start, n_products), repeats=bench.pick(full=3, quick=1))
        finally:
            hidden.rename(path)


@case(SQUARE_GROUP, "dlscale, under 2 GB", limit=3600)
def square_on_disk(bench: Bench) -> None:
    import zarr

    n = bench.pick(full=20_000, quick=2_000)
    path, _ = outofcore.stored(bench, (n, n))
    flops, rate = 2.0 * n**3, harness.matmul_flops("f8", bench.pick(full=4096, quick=1024))
    result = outofcore.run_dlscale(bench, path, "matmul", {}, memory="2GB", roles=("a", "b"))
    seconds = bench.record["seconds"][-1]
    bench.fact(flops=flops, product_seconds=flops / rate, part_of_rate=flops / rate / seconds)
    bench.fact(read_ratio=bench.record["read_bytes"] / bench.record["facts"]["plan_read_bytes"])
    x = np.random.default_rng(1).standard_normal((n, WIDTH))
    product = zarr.open_array(result / "product", mode="r")

    def multiply(X: np.ndarray) -> np.ndarray:
        return np.concatenate([block @ X for _, _, block in outofcore.strips(path)])

    step = product.chunks[0]
    found = np.concatenate([product[i : i + step] @ x for i in range(0, n, step)])
    expected = multiply(multiply(x))
    bench.check("error", float(np.abs(found - expected).max() / np.abs(expected).max()), 1e-12)


@case(SQUARE_GROUP, "numpy, in memory", limit=3600)
def square_in_memory(bench: Bench) -> None:
    n = bench.pick(full=20_000, quick=2_000)
    path, _ = outofcore.stored(bench, (n, n))
    A = np.concatenate([block for _, _, block in outofcore.strips(path)])
    product = np.ones_like(A)  # touched, so that the clock sees the product alone
    bench.time(lambda: np.matmul(A, A, out=product))


if __name__ == "__main__":
    raise SystemExit(harness.main())
