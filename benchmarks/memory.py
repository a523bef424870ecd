"""Peak memory of `dlscale run` (all processes together): flat while the matrix grows, small when one side is tiny."""

from __future__ import annotations

from typing import Any

import harness
import matrices
import numpy as np
import outofcore
from harness import Bench, case


def judge(bench: Bench, result: Any, shape: tuple[int, int], name: str) -> None:
    """Top singular values against the known ones."""
    import zarr

    s = zarr.open_array(result / "s", mode="r")[:]
    exact = matrices.spectrum(shape)[: len(s)]
    bench.check(f"top10_error_{name}", float(np.max(np.abs(s - exact)[:10] / exact[:10])), 2e-2)


def grow(bench: Bench, kind: str, **params: str) -> None:
    """1x, 4x and 16x rows under one limit; the last one is the 16 GB store of the other benchmarks."""
    rows, n = bench.pick(full=(62_500, 2_000), quick=(3_750, 500))
    for times in (1, 4, 16):
        path, shape = outofcore.stored(bench, (times * rows, n))
        given = {"n_components": 50, "seed": 0} | params
        result = outofcore.run_dlscale(bench, path, kind, given, memory=bench.pick(full="4GB", quick="2GB"))
        if kind == "svd":
            judge(bench, result, shape, f"{times}x")
    bench.record["compare_peaks"] = 1.1


case("memory 1x 4x 16x rows", "dlscale svd")(lambda bench: grow(bench, "svd"))
# A PCA chooses its solver by what it costs, so each is held against itself.
for _solver in ("covariance", "randomized"):
    case("memory 1x 4x 16x rows", f"dlscale pca {_solver}")(lambda bench, solver=_solver: grow(bench, "pca", solver=solver))


def extreme(bench: Bench, shape: tuple[int, int], memory: str) -> None:
    """A matrix whose one side is tiny."""
    path, shape = outofcore.stored(bench, shape)
    judge(bench, outofcore.run_dlscale(bench, path, "svd", {"n_components": 50, "seed": 0}, memory=memory), shape, "svd")


for _m, _n in ((200, 200_000), (200_000, 200)):
    case("memory 2 GB", f"dlscale {_m} x {_n}")(lambda bench, shape=(_m, _n): extreme(bench, shape, "2GB"))


if __name__ == "__main__":
    raise SystemExit(harness.main())
