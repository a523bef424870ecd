"""Randomized SVD with equal settings: 50 components, oversampling 10, 2 power iterations; in memory and out of core.

In memory 200,000 x 2,000 in float64 and float32. Out of core 1,000,000 x 2,000 float64 (16 GB of Zarr, uncompressed 16 MiB chunks)
under a limit of 4 GB, from a cold page cache, with `u`, `s` and `vh` written or returned.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import harness
import matrices
import numpy as np
import outofcore
from harness import Bench, case

N_COMPONENTS, OVERSAMPLING, POWER_ITERATIONS = 50, 10, 2


def flops(m: int, n: int) -> int:
    """q + 1 reads, each A @ W and A' @ Y: what the method needs, whoever runs it."""
    return 4 * m * n * (N_COMPONENTS + OVERSAMPLING) * (POWER_ITERATIONS + 1)


def judge(bench: Bench, blocks: Any, u: Any, s: np.ndarray, vh: np.ndarray, shape: tuple[int, int], dtype: str) -> None:
    """Accuracy against the known spectrum; the bounds are what two power iterations give on this spectrum, with room."""
    quality = matrices.svd_quality(blocks, u, s, vh, shape)
    eps = np.finfo(dtype).eps
    bench.check("top10_error", quality["top10_error"], 1e-3)
    bench.check("all_error", quality["all_error"], 1e-1)
    bench.check("frobenius_excess", quality["frobenius_excess"], 2e-2)
    bench.check("u_orthogonality", quality["u_orthogonality"], 2000 * eps)
    bench.check("v_orthogonality", quality["v_orthogonality"], 2000 * eps)


# ---- in memory


def load(bench: Bench, dtype: str) -> np.ndarray:
    """The matrix in memory."""
    m, n = bench.pick(full=(200_000, 2_000), quick=(20_000, 300))
    bench.fact(shape=[m, n], dtype=dtype, matrix_bytes=m * n * np.dtype(dtype).itemsize, flops=flops(m, n))
    return matrices.in_memory(bench.data, (m, n), dtype)


def slices(A: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Row blocks of a matrix in memory."""
    for start, stop in matrices.blocks(A.shape[0], A.shape[1] * A.itemsize):
        yield start, stop, A[start:stop]


def in_memory(bench: Bench, dtype: str, function: Any) -> None:
    """Time `function(A) -> u, s, vh` and judge it."""
    A = load(bench, dtype)
    u, s, vh = bench.time(lambda: function(A), repeats=bench.pick(full=5, quick=2), warm_up=True)
    judge(bench, slices(A), u, s, vh, A.shape, dtype)


def ours(A: np.ndarray) -> tuple[Any, Any, Any]:
    """dlscale.randomized_svd."""
    import dlscale

    result = dlscale.randomized_svd(A, N_COMPONENTS, oversampling=OVERSAMPLING, power_iterations=POWER_ITERATIONS, seed=0)
    return result.u, np.asarray(result.s), np.asarray(result.vh)


def scikit_learn(A: np.ndarray) -> tuple[Any, Any, Any]:
    """sklearn.utils.extmath.randomized_svd."""
    from sklearn.utils.extmath import randomized_svd

    return randomized_svd(A, N_COMPONENTS, n_oversamples=OVERSAMPLING, n_iter=POWER_ITERATIONS, random_state=0)


def dask_threads(A: np.ndarray) -> tuple[Any, Any, Any]:
    """svd_compressed on the threaded scheduler, chunks of about 64 MB."""
    import dask
    import dask.array as da
    from threadpoolctl import threadpool_limits

    rows = max(N_COMPONENTS + OVERSAMPLING, 64_000_000 // (A.shape[1] * A.itemsize))
    D = da.from_array(A, chunks=(rows, -1), name=False)
    with threadpool_limits(1), dask.config.set(scheduler="threads", num_workers=harness.CORES):
        factors = da.linalg.svd_compressed(D, N_COMPONENTS, n_power_iter=POWER_ITERATIONS, n_oversamples=OVERSAMPLING, seed=0)
        return dask.compute(*factors)


for _dtype in ("f8", "f4"):
    for _library, _function in (("dlscale", ours), ("scikit-learn", scikit_learn), ("dask svd_compressed", dask_threads)):
        case(f"SVD in memory {_dtype}", _library)(lambda bench, a=(_dtype, _function): in_memory(bench, *a))


# ---- out of core

OUT_OF_CORE = "SVD out of core"


def judge_stored(bench: Bench, path: Path, u: Any, s: np.ndarray, vh: np.ndarray, shape: tuple[int, int]) -> None:
    """As `judge`, reading the store once more."""
    judge(bench, outofcore.strips(path), u, np.asarray(s), np.asarray(vh), shape, "f8")


def ours_stored(bench: Bench) -> None:
    """`dlscale run` in 4 GB for all processes together."""
    import zarr

    path, shape = outofcore.stored(bench)
    width = N_COMPONENTS + OVERSAMPLING
    outofcore.measure_bound(bench, path, n_reads=POWER_ITERATIONS + 1, flops=flops(*shape), width=width)
    params = {"n_components": N_COMPONENTS, "oversampling": OVERSAMPLING, "power_iterations": POWER_ITERATIONS, "seed": 0}
    result = outofcore.run_dlscale(bench, path, "svd", params, memory=bench.pick(full="4GB", quick="2GB"))
    group = zarr.open_group(result, mode="r")
    judge_stored(bench, path, group["u"], group["s"][:], group["vh"][:], shape)


case(OUT_OF_CORE, "dlscale")(ours_stored)


def dask_stored(bench: Bench, chunks_per_task: int) -> None:
    """svd_compressed on LocalCluster 1 x 2 with the data read again at each use, as its documentation advises out of core.

    The start of the cluster is off the clock; `u` is written to Zarr.
    """
    import dask.array as da
    import zarr

    path, shape = outofcore.stored(bench)
    target = bench.data / "dask-u.zarr"
    rows = zarr.open_array(path, mode="r").chunks[0] * chunks_per_task

    def run() -> tuple[np.ndarray, np.ndarray]:
        shutil.rmtree(target, ignore_errors=True)
        D = da.from_zarr(str(path), chunks=(rows, shape[1]), inline_array=True)
        u, s, vh = da.linalg.svd_compressed(
            D, N_COMPONENTS, n_power_iter=POWER_ITERATIONS, n_oversamples=OVERSAMPLING, seed=0, compute=True
        )
        _, s, vh = da.compute(u.rechunk((rows, -1)).to_zarr(str(target), compute=False), s, vh)
        return s, vh

    with outofcore.dask_cluster(bench):
        s, vh = bench.time(run, before=lambda: harness.forget(path))
    judge_stored(bench, path, zarr.open_array(target, mode="r"), s, vh, shape)


for _blocks in (4, 1):
    case(OUT_OF_CORE, f"dask svd_compressed, {16 * _blocks} MiB blocks")(lambda bench, blocks=_blocks: dask_stored(bench, blocks))


# ---- out of core, where the kernel gives 4 GB for processes and page cache together


def in_a_group(bench: Bench, run: Callable[[Bench], None]) -> None:
    """A case, and the reading that it is held against, from the disk each time."""
    outofcore.stored(bench)
    with outofcore.enforced(bench.pick(full=4_000_000_000, quick=2_000_000_000)):
        run(bench)


for _name, _run in (("dlscale", ours_stored), ("dask svd_compressed, 64 MiB blocks", partial(dask_stored, chunks_per_task=4))):
    case("SVD in a control group of 4 GB", _name)(lambda bench, run=_run: in_a_group(bench, run))


if __name__ == "__main__":
    raise SystemExit(harness.main())
