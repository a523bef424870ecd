"""PCA: dlscale, every scikit-learn solver, dask-ml and Spark MLlib; in memory 200,000 x 500, and 16 GB out of core.

Every library starts from data where it likes it best: NumPy, a Dask array persisted in memory, a Spark DataFrame cached in the JVM.
Out of core everybody reads the same Zarr store, and Spark the same numbers as Parquet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import harness
import matrices
import numpy as np
import outofcore
from harness import Bench, case

N_COMPONENTS = 50
OFFSET = 1.0  # in memory, the columns are not centred
IN_MEMORY, OUT_OF_CORE = "PCA in memory", "PCA out of core"


def judge(
    bench: Bench, shape: tuple[int, int], variance: np.ndarray, components: np.ndarray, *, exact: bool, ratio: bool = False
) -> None:
    """Explained variance against the known spectrum (as a share of the total if `ratio`), orthonormal components."""
    variance, components = np.asarray(variance, np.float64), np.asarray(components, np.float64)
    known = matrices.spectrum(shape) ** 2
    known = (known / known.sum() if ratio else known / (shape[0] - 1))[:N_COMPONENTS]
    error = np.abs(variance - known) / known
    # IncrementalPCA and randomized solvers are approximate; the others are held to rounding.
    bench.check("top10_error", error[:10].max(), 1e-9 if exact else 1e-2)
    bench.check("all_error", error.max(), 1e-9 if exact else 2e-1)
    bench.check("orthogonality", np.linalg.norm(components @ components.T - np.eye(N_COMPONENTS), 2), 1e-9)


# ---- in memory


def memory_shape(bench: Bench) -> tuple[int, int]:
    """Rows and columns in memory."""
    m, n = bench.pick(full=(200_000, 500), quick=(20_000, 100))
    bench.fact(shape=[m, n], dtype="f8", matrix_bytes=8 * m * n, n_components=N_COMPONENTS, gram_flops=m * n * n)
    return m, n


def repeats(bench: Bench) -> int:
    """Repeats of an in-memory fit."""
    return bench.pick(full=15, quick=2)


def fit_array(bench: Bench, make: Callable[[], Any], *, exact: bool) -> None:
    """Time `make().fit(A)` on a NumPy array."""
    shape = memory_shape(bench)
    A = matrices.in_memory(bench.data, shape, "f8", offset=OFFSET)
    model = bench.time(lambda: make().fit(A), repeats=repeats(bench), warm_up=True)
    judge(bench, shape, model.explained_variance_, model.components_, exact=exact)


@case(IN_MEMORY, "dlscale")
def ours(bench: Bench) -> None:
    """dlscale.PCA, solver chosen by itself."""
    import dlscale

    fit_array(bench, lambda: dlscale.PCA(N_COMPONENTS), exact=False)


def scikit_learn(bench: Bench, solver: str) -> None:
    """sklearn.decomposition.PCA with one of its solvers."""
    from sklearn.decomposition import PCA

    fit_array(
        bench, lambda: PCA(N_COMPONENTS, svd_solver=solver, random_state=0), exact=solver in ("full", "covariance_eigh", "arpack")
    )


for _solver in ("auto", "covariance_eigh", "full", "arpack", "randomized"):
    case(IN_MEMORY, f"scikit-learn {_solver}", limit=600)(lambda bench, solver=_solver: scikit_learn(bench, solver))


@case(IN_MEMORY, "scikit-learn IncrementalPCA", limit=600)
def incremental(bench: Bench) -> None:
    """IncrementalPCA at its default batch size."""
    from sklearn.decomposition import IncrementalPCA

    fit_array(bench, lambda: IncrementalPCA(N_COMPONENTS), exact=False)


def dask_ml(bench: Bench, solver: str, power: int) -> None:
    """dask_ml.decomposition.PCA on the threaded scheduler, rows in blocks of about 64 MB, one BLAS thread per task."""
    import dask
    import dask.array as da
    from dask_ml.decomposition import PCA
    from threadpoolctl import threadpool_limits

    shape = memory_shape(bench)
    A = matrices.in_memory(bench.data, shape, "f8", offset=OFFSET)
    D = da.from_array(A, chunks=(64_000_000 // (8 * shape[1]), -1), name=False)
    with threadpool_limits(1), dask.config.set(scheduler="threads", num_workers=harness.CORES):
        make = lambda: PCA(N_COMPONENTS, svd_solver=solver, iterated_power=power, random_state=0)  # noqa: E731
        model = bench.time(lambda: make().fit(D), repeats=bench.pick(full=3, quick=1), warm_up=True)
    judge(bench, shape, model.explained_variance_, model.components_, exact=solver == "tsqr")


case(IN_MEMORY, "dask-ml tsqr", limit=600)(lambda bench: dask_ml(bench, "tsqr", 0))
case(IN_MEMORY, "dask-ml randomized", limit=600)(lambda bench: dask_ml(bench, "randomized", 2))


def parquet(data: Path, shape: tuple[int, int], offset: float) -> Path:
    """The known matrix as one Parquet column of lists, for Spark."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = data / f"known-{shape[0]}x{shape[1]}-{offset:g}.parquet"
    if not path.exists():
        unfinished = path.with_suffix(".partial")
        with pq.ParquetWriter(
            unfinished, pa.schema([("x", pa.list_(pa.float64()))]), compression="none", use_dictionary=False
        ) as writer:
            for start, stop in matrices.blocks(shape[0], 8 * shape[1]):
                rows = matrices.known_rows(start, stop, shape, offset=offset)
                cells = pa.ListArray.from_arrays(np.arange(0, rows.size + 1, shape[1], dtype=np.int32), rows.ravel())
                writer.write_table(pa.table({"x": cells}))
        unfinished.rename(path)
    return path


@contextmanager
def spark_frame(bench: Bench, path: Path) -> Iterator[Any]:
    """A Spark session on all cores and the matrix as a DataFrame of vectors.

    Which BLAS Spark found is kept on record: its own Java one, or a native one if libblas.so.3 is on LD_LIBRARY_PATH.
    """
    from py4j.protocol import Py4JJavaError
    from pyspark.ml.functions import array_to_vector
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.master(f"local[{harness.CORES}]").config("spark.driver.memory", "12g")
    builder = builder.config("spark.driver.bindAddress", "127.0.0.1").config("spark.driver.host", "127.0.0.1")
    session = builder.config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    try:
        netlib = session._jvm.dev.ludovic.netlib.blas
        try:
            blas = netlib.NativeBLAS.getInstance()
        except Py4JJavaError:
            blas = netlib.JavaBLAS.getInstance()
        bench.fact(blas=blas.getClass().getSimpleName())
        yield session.read.parquet(str(path)).select(array_to_vector("x").alias("x"))
    finally:
        session.stop()


@case(IN_MEMORY, "Spark MLlib", limit=900)
def spark(bench: Bench) -> None:
    """pyspark.ml PCA, which is RowMatrix.computePrincipalComponents; vectors are cached in the JVM before the clock starts."""
    from pyspark.ml.feature import PCA

    shape = memory_shape(bench)
    with spark_frame(bench, parquet(bench.data, shape, OFFSET)) as frame:
        frame = frame.cache()
        frame.count()
        model = bench.time(
            lambda: PCA(k=N_COMPONENTS, inputCol="x", outputCol="y").fit(frame), repeats=bench.pick(full=3, quick=1), warm_up=True
        )
        # MLlib gives shares of the total variance only.
        judge(bench, shape, model.explainedVariance.toArray(), model.pc.toArray().T, exact=True, ratio=True)


# ---- out of core: the store of the SVD benchmark


def ours_stored(bench: Bench, solver: str) -> None:
    """`dlscale run` in 4 GB for all processes together, everything included."""
    import zarr

    path, (m, n) = outofcore.stored(bench)
    shape = (m, n)
    # The limit of the exact method: one read, and one triangle of the covariance at the rate of a square product.
    outofcore.measure_bound(bench, path, n_reads=1, flops=m * n * n, width=N_COMPONENTS)
    params = {"n_components": N_COMPONENTS, "solver": solver, "seed": 0}
    result = outofcore.run_dlscale(bench, path, "pca", params, memory=bench.pick(full="4GB", quick="2GB"))
    group = zarr.open_group(result, mode="r")
    judge(bench, shape, group["explained_variance"][:], group["components"][:], exact=solver == "covariance")


case(OUT_OF_CORE, "dlscale")(lambda bench: ours_stored(bench, "auto"))
case(OUT_OF_CORE, "dlscale covariance")(lambda bench: ours_stored(bench, "covariance"))
case(OUT_OF_CORE, "dlscale randomized")(lambda bench: ours_stored(bench, "randomized"))


@case(OUT_OF_CORE, "scikit-learn IncrementalPCA", limit=1800)
def incremental_stored(bench: Bench) -> None:
    """IncrementalPCA fed from the store; batches of 25 columns' worth of rows, better here than its default of 5."""
    import zarr
    from sklearn.decomposition import IncrementalPCA

    path, shape = outofcore.stored(bench)
    batch = bench.pick(full=25, quick=5) * shape[1]

    def run() -> Any:
        Z, model = zarr.open_array(path, mode="r"), IncrementalPCA(N_COMPONENTS)
        for start in range(0, shape[0], batch):
            model.partial_fit(Z[start : start + batch], check_input=False)
            bench.fact(share_done=min(start + batch, shape[0]) / shape[0])
        return model

    model = bench.time(run, before=lambda: harness.forget(path))
    judge(bench, shape, model.explained_variance_, model.components_, exact=False)


@case(OUT_OF_CORE, "dask-ml randomized", limit=1800)
def dask_ml_stored(bench: Bench) -> None:
    """dask-ml's randomized solver on LocalCluster 1 x 2, two power iterations; the start of the cluster is off the clock."""
    import dask.array as da
    import zarr
    from dask_ml.decomposition import PCA

    path, shape = outofcore.stored(bench)
    rows = 4 * zarr.open_array(path, mode="r").chunks[0]

    def run() -> Any:
        D = da.from_zarr(str(path), chunks=(rows, shape[1]), inline_array=True)
        return PCA(N_COMPONENTS, svd_solver="randomized", iterated_power=2, random_state=0).fit(D)

    with outofcore.dask_cluster(bench):
        model = bench.time(run, before=lambda: harness.forget(path))
    judge(bench, shape, model.explained_variance_, model.components_, exact=False)


@case(OUT_OF_CORE, "Spark MLlib", limit=3600)
def spark_stored(bench: Bench) -> None:
    """MLlib PCA reading Parquet, nothing cached."""
    from pyspark.ml.feature import PCA

    _, shape = outofcore.stored(bench)
    source = parquet(bench.data, shape, 0.0)
    with spark_frame(bench, source) as frame:
        fit = PCA(k=N_COMPONENTS, inputCol="x", outputCol="y").fit
        model = bench.time(lambda: fit(frame), before=lambda: harness.forget(source))
        judge(bench, shape, model.explainedVariance.toArray(), model.pc.toArray().T, exact=True, ratio=True)


@case(OUT_OF_CORE, "Spark MLlib, a tenth of the rows", limit=1800)
def spark_tenth(bench: Bench) -> None:
    """The same on 1/40 and 1/10 of the rows: the cost of a row and the fixed cost, and from them the time for all rows."""
    from pyspark.ml.feature import PCA

    _, (m, n) = outofcore.stored(bench)
    for rows in (m // 40, m // 10):
        source = parquet(bench.data, (rows, n), 0.0)
        with spark_frame(bench, source) as frame:
            fit = PCA(k=N_COMPONENTS, inputCol="x", outputCol="y").fit
            fit(frame.limit(2 * N_COMPONENTS))  # starting the JVM must not be extrapolated
            model = bench.time(partial(fit, frame), before=partial(harness.forget, source))
            judge(bench, (rows, n), model.explainedVariance.toArray(), model.pc.toArray().T, exact=True, ratio=True)
    seconds = bench.record["seconds"]
    row_seconds = (seconds[1] - seconds[0]) / (m // 10 - m // 40)
    bench.fact(rows_share=0.1, extrapolated_seconds=seconds[1] + row_seconds * (m - m // 10))
    bench.record["seconds"] = seconds[1:]


if __name__ == "__main__":
    raise SystemExit(harness.main())
