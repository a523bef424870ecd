"""Sparse matrices: PCA of 2,000,000 x 30,000 at 1 % from disk under 4 GB, its memory as rows grow, and imports of 5 GB.

Entries are normal numbers at random places (`dlscale generate --density`): their spectrum is flat, the hard case for randomized
methods, and its edge is known, `density (1 + (n/m)^1/2)^2`. Peers begin with the matrix in memory, dlscale with its files, from a
cold page cache. scanpy is compared where it is installed (``pip install scanpy``).
"""

from __future__ import annotations

import gzip
import io
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import harness
import numpy as np
import outofcore
import scipy.sparse
from harness import Bench, case

N_COMPONENTS, OVERSAMPLING, POWER_ITERATIONS = 50, 10, 4
#: Columns more with which errors are measured.
N_PROBES = 4
N_READS = POWER_ITERATIONS + 1
PCA, MEMORY, IMPORT = "sparse PCA, 2,000,000 x 30,000 at 1 %", "memory 1x 4x rows, sparse", "import of a sparse matrix under 1 GB"
#: Entries that are read at a time.
PIECE = 2**22


class Store:
    """A stored matrix in compressed rows, read by zarr-python."""

    def __init__(self, path: Path) -> None:
        import zarr

        self.path, group = path, zarr.open_group(path, mode="r")
        self.shape = tuple(group.attrs["shape"])
        self.data, self.indices, self.indptr = group["data"], group["indices"], group["indptr"][:]

    @property
    def nnz(self) -> int:
        return int(self.indptr[-1])

    def rows(self, start: int, stop: int) -> Any:
        """These rows, compressed."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        parts = (self.data[first:last], self.indices[first:last], self.indptr[start : stop + 1] - first)
        return scipy.sparse.csr_array(parts, shape=(stop - start, self.shape[1]))

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Spans of rows with about so many entries as are read at a time."""
        step = max(1, PIECE * self.shape[0] // self.nnz)
        return ((start, min(start + step, self.shape[0])) for start in range(0, self.shape[0], step))


def stored(bench: Bench, shape: tuple[int, int]) -> Store:
    """A random matrix at 1 %, written by `dlscale generate` unless it is there."""
    path = bench.data / f"sparse-{shape[0]}x{shape[1]}.zarr"
    if not path.exists():
        program, size = str(Path(sys.executable).with_name("dlscale")), f"{shape[0]}x{shape[1]}"
        subprocess.run([program, "generate", "--shape", size, "--density", "0.01", str(path)], check=True, capture_output=True)
    store = Store(path)
    size_bytes = sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    bench.fact(shape=list(shape), nnz=store.nnz, density=store.nnz / (shape[0] * shape[1]), stored_bytes=size_bytes)
    return store


def large(bench: Bench) -> Store:
    """The matrix of the PCA."""
    return stored(bench, bench.pick(full=(2_000_000, 30_000), quick=(20_000, 1000)))


# ---- PCA


def kernel_flops(store: Store, width: int) -> float:
    """Rate of what a power iteration is made of, ``Y = A W`` and ``A' Y`` by SciPy, a block of rows on each core, in flop/s."""
    spans = [span for span, _ in zip(store.pieces(), range(harness.CORES), strict=False)]
    blocks = [store.rows(*span) for span in spans]
    W = np.random.default_rng(0).standard_normal((store.shape[1], width))

    def multiply(R: Any) -> float:
        return float((R.T @ (R @ W))[0, 0])

    seconds = []
    with ThreadPoolExecutor(len(blocks)) as pool:
        for _ in range(4):
            start = time.perf_counter()
            list(pool.map(multiply, blocks))
            seconds.append(time.perf_counter() - start)
    return 4 * sum(R.nnz for R in blocks) * width / statistics.median(seconds[1:])


def measure_bound(bench: Bench, store: Store) -> None:
    """What no program with as many reads can beat: the flops at the kernel's rate, or reading the store as often."""
    width = N_COMPONENTS + OVERSAMPLING + N_PROBES
    rate, flops = kernel_flops(store, width), 4.0 * store.nnz * width * N_READS
    harness.forget(store.path)
    watch = Bench(bench.size, bench.data)
    watch.time(lambda: [harness.read_raw(store.path) for _ in range(N_READS)])
    read = watch.record["seconds"][0]
    bench.fact(kernel_flops=rate, flops=flops, flops_seconds=flops / rate, raw_read_seconds=read)
    bench.fact(bound_seconds=max(read, flops / rate))


def judge(bench: Bench, store: Store, variance: np.ndarray, components: np.ndarray, *, of: str = "") -> None:
    """Components against the matrix: orthonormal, with the variances that are said, near the edge of the spectrum."""
    V, m = np.ascontiguousarray(np.asarray(components, np.float64).T), store.shape[0]

    def sums(span: tuple[int, int]) -> np.ndarray:
        T = store.rows(*span) @ V
        return np.stack([T.sum(axis=0), (T**2).sum(axis=0)])

    with ThreadPoolExecutor(harness.CORES) as pool:
        total, squares = sum(pool.map(sums, store.pieces()))
    measured = (squares - total**2 / m) / (m - 1)
    # A variance is that of the matrix on a subspace: it is never more than what its component has in the whole.
    bench.check(f"variance_overstated{of}", float(max(np.max(variance / measured) - 1, 0.0)), 1e-6)
    bench.check(f"orthogonality{of}", float(np.linalg.norm(V.T @ V - np.eye(V.shape[1]), 2)), 1e-9)
    edge = bench.record["facts"]["density"] * (1 + (store.shape[1] / m) ** 0.5) ** 2
    bench.fact(variance_captured=float(measured.sum()), of_the_edge=float(measured.mean() / edge))
    bench.check(f"below_the_edge{of}", 1 - float(measured.mean() / edge), 0.3)


def judge_subset(bench: Bench, store: Store) -> None:
    """Components of some rows and columns beside a dense reference, by the exact solver and by the randomized one.

    For the latter columns are scaled, so that each component is far enough from the others to be defined.
    """
    import dlscale

    R = store.rows(0, min(20_000, store.shape[0]))[:, : min(1000, store.shape[1])]
    scaled = R @ scipy.sparse.diags_array(0.85 ** np.arange(R.shape[1]))
    randomized = dlscale.PCA(N_COMPONENTS, solver="randomized", power_iterations=10, seed=0)
    for name, A, model in (
        ("exact", R, dlscale.PCA(N_COMPONENTS, solver="covariance")),
        ("randomized", scaled.tocsr(), randomized),
    ):
        dense = A.toarray()
        _, vectors = np.linalg.eigh(np.cov(dense, rowvar=False))
        found, exact = model.fit(A).components_, vectors[:, : -N_COMPONENTS - 1 : -1].T
        signs = np.sign(np.einsum("ij,ij->i", found, exact))[:, None]
        bench.check(f"subset_{name}", float(np.linalg.norm(found - signs * exact, axis=1).max()), 1e-8)


def ours(bench: Bench, store: Store, memory: str) -> tuple[np.ndarray, np.ndarray]:
    """`dlscale run` of the randomized PCA; variances and components."""
    import zarr

    params = {"n_components": N_COMPONENTS, "solver": "randomized", "power_iterations": POWER_ITERATIONS, "seed": 0}
    result = zarr.open_group(outofcore.run_dlscale(bench, store.path, "pca", params, memory=memory), mode="r")
    return result["explained_variance"][:], result["components"][:]


@case(PCA, "dlscale", limit=3600)
def stored_pca(bench: Bench) -> None:
    """`dlscale run` in 4 GB for all processes together, everything included."""
    store = large(bench)
    measure_bound(bench, store)
    found = ours(bench, store, bench.pick(full="4GB", quick="2GB"))
    judge(bench, store, *found)
    judge_subset(bench, store)


def fit_in_memory(bench: Bench, fit: Callable[[Any], tuple[np.ndarray, np.ndarray]]) -> None:
    """Time a peer on the matrix in memory; `fit` gives back variances and components."""
    store = large(bench)
    A = scipy.sparse.csr_matrix(store.rows(0, store.shape[0]))
    A.has_canonical_format = True
    found = bench.time(lambda: fit(A))
    judge(bench, store, *found)


@case(PCA, "scikit-learn TruncatedSVD", limit=1800)
def truncated(bench: Bench) -> None:
    """As many products with a matrix as wide; means are not subtracted (they are near zero here)."""
    from sklearn.decomposition import TruncatedSVD

    def fit(A: Any) -> tuple[np.ndarray, np.ndarray]:
        model = TruncatedSVD(N_COMPONENTS, n_iter=POWER_ITERATIONS, n_oversamples=OVERSAMPLING, random_state=0).fit(A)
        return model.explained_variance_, model.components_

    fit_in_memory(bench, fit)


@case(PCA, "scikit-learn PCA arpack", limit=1800)
def arpack(bench: Bench) -> None:
    """Exact components, means subtracted on the way."""
    from sklearn.decomposition import PCA as Peer

    def fit(A: Any) -> tuple[np.ndarray, np.ndarray]:
        model = Peer(N_COMPONENTS, svd_solver="arpack", random_state=0).fit(A)
        return model.explained_variance_, model.components_

    fit_in_memory(bench, fit)


@case(PCA, "scanpy", limit=1800)
def scanpy(bench: Bench) -> None:
    """`scanpy.pp.pca` by its default solver."""
    import anndata
    import scanpy

    def fit(A: Any) -> tuple[np.ndarray, np.ndarray]:
        cells = anndata.AnnData(A)
        scanpy.pp.pca(cells, n_comps=N_COMPONENTS, dtype="float64")
        return cells.uns["pca"]["variance"], cells.varm["PCs"].T

    fit_in_memory(bench, fit)


@case(MEMORY, "dlscale", limit=3600)
def grow(bench: Bench) -> None:
    """1x and 4x rows under one limit."""
    rows, n = bench.pick(full=(250_000, 30_000), quick=(5_000, 1000))
    for times in (1, 4):
        store = stored(bench, (times * rows, n))
        judge(bench, store, *ours(bench, store, bench.pick(full="4GB", quick="2GB")), of=f"_{times}x")
    bench.record["compare_peaks"] = 1.1


# ---- imports


def write_h5ad(store: Store, path: Path, m: int) -> None:
    """The first m rows as anndata writes them with gzip."""
    import h5py

    nnz = int(store.indptr[m])
    with h5py.File(path, "w") as file:
        file.attrs.update({"encoding-type": "anndata", "encoding-version": "0.1.0"})
        group = file.create_group("X")
        group.attrs.update({"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": [m, store.shape[1]]})
        group["indptr"] = store.indptr[: m + 1]
        for name, source in (("data", store.data), ("indices", store.indices)):
            chunks = (min(2**17, nnz),)
            target = group.create_dataset(name, (nnz,), source.dtype, chunks=chunks, compression="gzip", compression_opts=1)
            for start in range(0, nnz, PIECE):
                target[start : start + PIECE] = source[start : min(start + PIECE, nnz)]


def read_h5ad(path: Path) -> None:
    """All chunks, decompressed into one buffer."""
    import h5py

    with h5py.File(path, "r") as file:
        for dataset in file["X"].values():
            buffer = np.empty(PIECE, dataset.dtype)
            for start in range(0, len(dataset), PIECE):
                count = min(PIECE, len(dataset) - start)
                dataset.read_direct(buffer, np.s_[start : start + count], np.s_[:count])


def write_npz(store: Store, path: Path, m: int) -> None:
    """The first m rows as `scipy.sparse.save_npz` writes them, piece by piece."""
    nnz = int(store.indptr[m])
    small = {"format": np.array(b"csr"), "shape": np.array([m, store.shape[1]]), "indptr": store.indptr[: m + 1]}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, array in small.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array)
        for name, source in (("data", store.data), ("indices", store.indices)):
            header = {"descr": source.dtype.str, "fortran_order": False, "shape": (nnz,)}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array_header_1_0(member, header)
                for start in range(0, nnz, PIECE):
                    member.write(source[start : min(start + PIECE, nnz)].tobytes())


def read_npz(path: Path) -> None:
    """All members, decompressed."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            with archive.open(name) as member:
                drain(member)


def write_market(store: Store, path: Path, m: int) -> None:
    """The first m rows as text, row by row, gzipped if the name says so."""
    import pyarrow as pa
    import pyarrow.csv

    options = pyarrow.csv.WriteOptions(include_header=False, delimiter=" ", quoting_style="none")
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else path.open("wb") as file:
        file.write(f"%%MatrixMarket matrix coordinate real general\n{m} {store.shape[1]} {store.indptr[m]}\n".encode())
        for start, stop in store.pieces():
            if start >= m:
                break
            block = store.rows(start, min(stop, m)).tocoo()
            columns = [block.row + (start + 1), block.col + 1, block.data]
            text = io.BytesIO()
            pyarrow.csv.write_csv(pa.table(columns, names=["i", "j", "value"]), text, options)
            file.write(text.getbuffer())


def read_market(path: Path) -> None:
    """All bytes, unpacked if they are packed."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        drain(file)


def drain(stream: Any) -> None:
    """Read to the end."""
    while stream.read(2**20):
        pass


Write, Read = Callable[[Store, Path, int], None], Callable[[Path], None]


def imported(bench: Bench, suffix: str, write: Write, read: Read, full: int, quick: int) -> None:
    """`dlscale import` of the first rows of the large matrix, and reading the same file alone, both from a cold page cache."""
    store, m = large(bench), bench.pick(full=full, quick=quick)
    path, target = bench.data / f"sparse{suffix}", bench.data / "sparse-imported.zarr"
    shutil.rmtree(target, ignore_errors=True)
    try:
        write(store, path, m)
        bench.fact(shape=[m, store.shape[1]], nnz=int(store.indptr[m]), stored_bytes=path.stat().st_size)
        bench.limit_memory(1e9)
        command = [str(Path(sys.executable).with_name("dlscale")), "import", "--sparse", "yes", str(path), str(target)]
        run = lambda: subprocess.run(command, check=True, capture_output=True)  # noqa: E731
        bench.time(run, before=lambda: harness.forget(path), subprocess_only=True)
        watch = Bench(bench.size, bench.data)
        watch.time(lambda: read(path), before=lambda: harness.forget(path))
        alone = watch.record["seconds"][0]
        bench.fact(alone_seconds=alone, part_of_reading=alone / bench.record["seconds"][0])
        bench.check("different_entries", different(store, Store(target), m), 0.0)
    finally:
        path.unlink(missing_ok=True)
        shutil.rmtree(target, ignore_errors=True)


def different(store: Store, found: Store, m: int) -> float:
    """How many of the first m rows' numbers, columns and pointers differ."""
    nnz = int(store.indptr[m])
    if found.nnz != nnz or len(found.indptr) != m + 1:
        return float(nnz)
    total = int((found.indptr != store.indptr[: m + 1]).sum())
    for start in range(0, nnz, PIECE):
        piece = slice(start, min(start + PIECE, nnz))
        total += int((found.data[piece] != store.data[piece]).sum() + (found.indices[piece] != store.indices[piece]).sum())
    return float(total)


# About 5 GB of each; of the last, as it is unpacked.
for _suffix, _write, _read, _rows in (
    (".h5ad", write_h5ad, read_h5ad, 1_700_000),
    (".npz", write_npz, read_npz, 1_700_000),
    (".mtx", write_market, read_market, 500_000),
    (".mtx.gz", write_market, read_market, 500_000),
):
    case(f"{IMPORT}, {_suffix}", "dlscale", limit=3600)(
        lambda bench, a=(_suffix, _write, _read, _rows): imported(bench, *a, quick=10_000)
    )


if __name__ == "__main__":
    raise SystemExit(harness.main())
