"""LU, QR, Cholesky and solves of square float64 matrices, in memory and out of core, as fractions of the matrix-product rate.

`--n N` sets the order of the matrices in memory (default 16,384; QR: half of it), `--out-of-core N` that of those on disk (default
40,000).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import numpy as np
import outofcore
import square
from harness import Bench, case
from peers import native

FLOPS = {"LU": 2 / 3, "QR": 8 / 3, "QR, R alone": 4 / 3, "Cholesky": 1 / 3, "solve": 2 / 3}
#: LAPACK's testers accept a scaled residual under this.
THRESHOLD = 30.0


def order(bench: Bench, group: str) -> int:
    """n of a group's matrices."""
    n = int(os.environ.get("DLSCALE_BENCH_N") or bench.pick(full=16_384, quick=1_024))
    return n // 2 if group.startswith("QR") else n


def timed(bench: Bench, group: str, function: Callable[[], Any], **options: Any) -> Any:
    """Time a case, with the rate of the matrix product of all cores just before and just after it."""
    n = order(bench, group)
    flops = FLOPS[group] * n**3
    size = bench.pick(full=4096, quick=1024)
    before = harness.matmul_flops("f8", size)
    answer = bench.time(function, **options)
    rate = (before + harness.matmul_flops("f8", size)) / 2
    seconds = min(bench.record["seconds"])
    bench.fact(shape=[n, n], dtype="f8", flops=flops, matrix_bytes=8 * n * n, product_flops=rate, fraction=flops / seconds / rate)
    return answer


def own(bench: Bench, group: str, seconds: float, error: float) -> None:
    """Record a program that timed and checked itself: what it printed takes the place of the clock around it."""
    n = bench.record["facts"]["shape"][0]
    bench.record["seconds"] = [seconds]
    bench.fact(fraction=bench.record["facts"]["flops"] / seconds / bench.record["facts"]["product_flops"])
    judge(bench, error, n)


def judge(bench: Bench, error: float, n: int) -> None:
    """A relative residual, scaled by n eps as LAPACK's testers do; kept unscaled beside it."""
    bench.check("scaled_residual", error / (n * np.finfo("f8").eps), THRESHOLD)
    bench.fact(residual=error)


# ---- LU


def judge_lu(bench: Bench, A: np.ndarray, lu: np.ndarray, piv: np.ndarray) -> None:
    """P A = L U on random vectors, from LAPACK's packed factors."""
    judge(bench, square.lu_error(A, lu, piv), len(A))


@case("LU", "dlscale")
def lu_ours(bench: Bench) -> None:
    """dlscale.lu, this process's threads."""
    import dlscale

    A = square.general(order(bench, "LU"))
    result = timed(bench, "LU", lambda: dlscale.lu(A), warm_up=True)
    judge_lu(bench, A, np.asarray(result.lu), np.asarray(result.piv))


def job(bench: Bench, group: str, kind: str, params: dict[str, Any]) -> Path:
    """A job on the local cluster: the matrix on disk in squares (in the page cache), the result on disk."""
    path = square.store(bench.data, order(bench, group), "squares", definite=group == "Cholesky", chunk=1024)
    return Path(timed(bench, group, lambda: outofcore.run_job(bench, path, kind, params), subprocess_only=True))


@case("LU", "dlscale run, local cluster")
def lu_job(bench: Bench) -> None:
    """The whole command, from a store that is in the page cache to a result on disk."""
    n = order(bench, "LU")
    result = job(bench, "LU", "lu", {})
    judge(bench, square.stored_lu_error(square.store(bench.data, n, "squares", chunk=1024), result), n)


@case("LU", "scipy lu_factor")
def lu_scipy(bench: Bench) -> None:
    """scipy.linalg.lu_factor of a C-ordered array."""
    import scipy.linalg

    A = square.general(order(bench, "LU"))
    judge_lu(bench, A, *timed(bench, "LU", lambda: scipy.linalg.lu_factor(A), warm_up=True))


@case("LU", "LAPACK in place")
def lu_lapack(bench: Bench) -> None:
    """getrf on a Fortran-ordered array, no check and no copy."""
    import scipy.linalg

    A = square.general(order(bench, "LU"))
    work = np.asfortranarray(A)
    judge_lu(bench, A, *timed(bench, "LU", lambda: scipy.linalg.lu_factor(work, overwrite_a=True, check_finite=False)))


@case("LU", "dask, pivots in diagonal blocks only")
def lu_dask(bench: Bench) -> None:
    """dask.array.linalg.lu, tiles of 1,024."""
    A = square.general(order(bench, "LU"))
    dask, D, linalg = on_dask(A, 1024)
    with harness_threads():
        p, lower, upper = timed(bench, "LU", lambda: dask.compute(*linalg.lu(D)), warm_up=True)
    x = square.probes(len(A))
    judge(bench, float(np.linalg.norm(A @ x - p @ (lower @ (upper @ x))) / (np.linalg.norm(A) * np.linalg.norm(x))), len(A))


def scalapack(bench: Bench, group: str, what: str) -> None:
    """ScaLAPACK on 2 ranks: blocks of 128, a grid of 1 x 2."""
    program = native.scalapack(bench.data)
    arguments = (program, what, str(order(bench, group)), "128", "1", "2")
    printed = timed(bench, group, lambda: native.mpirun(2, *arguments), subprocess_only=True)
    record = json.loads(printed)
    own(bench, group, record["seconds"], record["backward_error"])


@case("LU", "ScaLAPACK pdgetrf, 2 ranks")
def lu_scalapack(bench: Bench) -> None:
    scalapack(bench, "LU", "lu")


@case("LU", "HPL, 2 ranks")
def lu_hpl(bench: Bench) -> None:
    """HPL factors and solves; its time is of both."""
    n = order(bench, "LU")
    record = timed(bench, "LU", lambda: native.hpl(bench.data / "hpcc", n, 192, (1, 2)), subprocess_only=True)
    own(bench, "LU", record["seconds"], record["backward_error"])


# ---- QR


def judge_qr(bench: Bench, A: np.ndarray, q: Any, r: Any) -> None:
    """A = Q R and Q'Q = I on random vectors."""
    error, departure = square.qr_error(A, np.asarray(q), np.asarray(r))
    judge(bench, error, len(A))
    bench.check("orthogonality", departure / (len(A) * np.finfo("f8").eps), THRESHOLD)


@case("QR", "dlscale")
def qr_ours(bench: Bench) -> None:
    """dlscale.qr."""
    import dlscale

    A = square.general(order(bench, "QR"))
    result = timed(bench, "QR", lambda: dlscale.qr(A), warm_up=True)
    judge_qr(bench, A, result.q, result.r)


@case("QR", "scipy qr economic")
def qr_scipy(bench: Bench) -> None:
    """geqrf and orgqr."""
    import scipy.linalg

    A = square.general(order(bench, "QR"))
    judge_qr(bench, A, *timed(bench, "QR", lambda: scipy.linalg.qr(A, mode="economic", check_finite=False), warm_up=True))


@case("QR", "dask tsqr")
def qr_dask(bench: Bench) -> None:
    """dask.array.linalg.qr takes one column of blocks; two of them."""
    A = square.general(order(bench, "QR"))
    dask, D, linalg = on_dask(A, (len(A) // 2, len(A)))
    with harness_threads():
        judge_qr(bench, A, *timed(bench, "QR", lambda: dask.compute(*linalg.qr(D)), warm_up=True))


@case("QR", "ScaLAPACK pdgeqrf pdorgqr, 2 ranks")
def qr_scalapack(bench: Bench) -> None:
    scalapack(bench, "QR", "qr")


@case("QR", "heat, 2 ranks")
def qr_heat(bench: Bench) -> None:
    """heat.linalg.qr split along the columns: block Gram-Schmidt."""
    n = order(bench, "QR")
    record = timed(bench, "QR", lambda: native.heat_qr(n, 1, "reduced", 2), subprocess_only=True)
    own(bench, "QR", record["seconds"], record["backward_error"])
    bench.check("orthogonality", record["orthogonality"] / (n * np.finfo("f8").eps), THRESHOLD)


@case("QR, R alone", "dlscale")
def r_ours(bench: Bench) -> None:
    """dlscale.qr with mode r."""
    import dlscale

    A = square.general(order(bench, "QR"))
    r = timed(bench, "QR, R alone", lambda: dlscale.qr(A, mode="r"), warm_up=True)
    judge(bench, square.r_error(A, np.asarray(getattr(r, "r", r))), len(A))


@case("QR, R alone", "scipy qr r")
def r_scipy(bench: Bench) -> None:
    """geqrf."""
    import scipy.linalg

    A = square.general(order(bench, "QR"))
    (r,) = timed(bench, "QR, R alone", lambda: scipy.linalg.qr(A, mode="r", check_finite=False), warm_up=True)
    judge(bench, square.r_error(A, r), len(A))


@case("QR, R alone", "ScaLAPACK pdgeqrf, 2 ranks")
def r_scalapack(bench: Bench) -> None:
    scalapack(bench, "QR, R alone", "r")


# ---- Cholesky


def judge_cholesky(bench: Bench, A: np.ndarray, lower: Any) -> None:
    """A = L L' on random vectors."""
    x = square.probes(len(A))
    L = np.asarray(lower)
    judge(bench, float(np.linalg.norm(A @ x - L @ (L.T @ x)) / (np.linalg.norm(A) * np.linalg.norm(x))), len(A))


@case("Cholesky", "dlscale")
def cholesky_ours(bench: Bench) -> None:
    """dlscale.cholesky."""
    import dlscale

    A = square.definite(order(bench, "Cholesky"))
    judge_cholesky(bench, A, timed(bench, "Cholesky", lambda: dlscale.cholesky(A), warm_up=True).l)


@case("Cholesky", "scipy cholesky")
def cholesky_scipy(bench: Bench) -> None:
    """scipy.linalg.cholesky of a C-ordered array."""
    import scipy.linalg

    A = square.definite(order(bench, "Cholesky"))
    judge_cholesky(bench, A, timed(bench, "Cholesky", lambda: scipy.linalg.cholesky(A, lower=True), warm_up=True))


@case("Cholesky", "LAPACK in place")
def cholesky_lapack(bench: Bench) -> None:
    """potrf on a Fortran-ordered array, no check and no copy."""
    import scipy.linalg

    A = square.definite(order(bench, "Cholesky"))
    work = np.asfortranarray(A)
    factor = timed(bench, "Cholesky", lambda: scipy.linalg.cholesky(work, lower=True, overwrite_a=True, check_finite=False))
    judge_cholesky(bench, A, factor)


@case("Cholesky", "dask")
def cholesky_dask(bench: Bench) -> None:
    """dask.array.linalg.cholesky, tiles of 1,024."""
    A = square.definite(order(bench, "Cholesky"))
    dask, D, linalg = on_dask(A, 1024)
    with harness_threads():
        (lower,) = timed(bench, "Cholesky", lambda: dask.compute(linalg.cholesky(D, lower=True)), warm_up=True)
    judge_cholesky(bench, A, lower)


@case("Cholesky", "ScaLAPACK pdpotrf, 2 ranks")
def cholesky_scalapack(bench: Bench) -> None:
    scalapack(bench, "Cholesky", "cholesky")


# ---- solve


def judge_solve(bench: Bench, A: np.ndarray, b: np.ndarray, x: Any) -> None:
    """The normwise backward error, in units of eps (not of n eps), as LAPACK's `dget02`."""
    x = np.asarray(x)
    error = np.abs(b - A @ x).sum() / (np.abs(A).sum(axis=0).max() * np.abs(x).sum())
    bench.check("backward_error", float(error), THRESHOLD * float(np.finfo("f8").eps))


def solve_case(bench: Bench, solve: Callable[[np.ndarray, np.ndarray], Any]) -> None:
    A = square.general(order(bench, "solve"))
    b = np.random.default_rng(1).standard_normal(len(A))
    judge_solve(bench, A, b, timed(bench, "solve", lambda: solve(A, b)))


@case("solve", "dlscale")
def solve_ours(bench: Bench) -> None:
    """dlscale.solve, double precision."""
    import dlscale

    solve_case(bench, dlscale.solve)


@case("solve", "dlscale, precision mixed")
def solve_mixed(bench: Bench) -> None:
    """dlscale.solve, factored in single precision, refined to double."""
    import dlscale

    solve_case(bench, lambda A, b: dlscale.solve(A, b, precision="mixed"))


@case("solve", "scipy solve")
def solve_scipy(bench: Bench) -> None:
    """scipy.linalg.solve."""
    import scipy.linalg

    solve_case(bench, scipy.linalg.solve)


@case("solve", "numpy solve")
def solve_numpy(bench: Bench) -> None:
    """numpy.linalg.solve."""
    solve_case(bench, np.linalg.solve)


@case("solve", "dask, pivots in diagonal blocks only")
def solve_dask(bench: Bench) -> None:
    """dask.array.linalg.solve, tiles of 1,024."""
    import dask.array as da

    def solve(A: np.ndarray, b: np.ndarray) -> np.ndarray:
        _, D, linalg = on_dask(A, 1024)
        return np.asarray(linalg.solve(D, da.from_array(b, chunks=1024)).compute())

    with harness_threads():
        solve_case(bench, solve)


@case("solve", "ScaLAPACK pdgesv, 2 ranks")
def solve_scalapack(bench: Bench) -> None:
    scalapack(bench, "solve", "solve")


# ---- out of core


def out_of_core(bench: Bench, kind: str, group: str, layout: str, params: dict[str, Any]) -> tuple[Path, Path, int]:
    """`dlscale run` of a matrix on disk under a memory limit of all processes, from a cold page cache."""
    n = int(os.environ.get("DLSCALE_BENCH_OUT_OF_CORE") or bench.pick(full=40_000, quick=2_000))
    path = square.store(bench.data, n, layout, definite=kind == "cholesky", alone=True)
    flops = FLOPS[group] * n**3
    rate = harness.matmul_flops("f8", bench.pick(full=4096, quick=1024))
    result = outofcore.run_dlscale(bench, path, kind, params, memory=bench.pick(full="5GB", quick="2GB"))
    rate = (rate + harness.matmul_flops("f8", bench.pick(full=4096, quick=1024))) / 2
    seconds = bench.record["seconds"][-1]
    bench.fact(shape=[n, n], dtype="f8", flops=flops, stored_bytes=8 * n * n, product_flops=rate, fraction=flops / seconds / rate)
    return path, result, n


def _register_out_of_core(layout: str) -> None:
    @case(f"LU out of core, {layout}", "dlscale", limit=7200)
    def lu(bench: Bench) -> None:
        path, result, n = out_of_core(bench, "lu", "LU", layout, {})
        judge(bench, square.stored_lu_error(path, result), n)

    @case(f"QR out of core, R alone, {layout}", "dlscale", limit=7200)
    def qr(bench: Bench) -> None:
        path, result, n = out_of_core(bench, "qr", "QR, R alone", layout, {"mode": "r"})
        judge(bench, square.stored_r_error(path, result), n)

    @case(f"Cholesky out of core, {layout}", "dlscale", limit=7200)
    def cholesky(bench: Bench) -> None:
        path, result, n = out_of_core(bench, "cholesky", "Cholesky", layout, {})
        judge(bench, square.stored_cholesky_error(path, result), n)


for _layout in ("strips", "squares"):
    _register_out_of_core(_layout)


def on_dask(A: np.ndarray, chunks: Any) -> Any:
    """Dask, the array in these chunks, and its linalg."""
    import dask
    import dask.array as da

    return dask, da.from_array(A, chunks=chunks, name=False), da.linalg


def harness_threads() -> Any:
    """One BLAS thread a task, and a task a core: Dask's best."""
    from contextlib import ExitStack

    import dask
    from threadpoolctl import threadpool_limits

    stack = ExitStack()
    stack.enter_context(threadpool_limits(1))
    stack.enter_context(dask.config.set(scheduler="threads", pool=stack.enter_context(ThreadPoolExecutor(harness.CORES))))
    return stack


if __name__ == "__main__":
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--n", default=os.environ.get("DLSCALE_BENCH_N", ""))
    parser.add_argument("--out-of-core", default=os.environ.get("DLSCALE_BENCH_OUT_OF_CORE", ""))
    mine, rest = parser.parse_known_args()
    # The processes of the cases see the sizes in their environment.
    os.environ["DLSCALE_BENCH_N"], os.environ["DLSCALE_BENCH_OUT_OF_CORE"] = mine.n, mine.out_of_core
    sys.argv = [sys.argv[0], *rest]
    raise SystemExit(harness.main())
