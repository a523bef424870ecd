"""Matrices with names, layouts with names, and how the numerics are judged."""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ZstdCodec

from dlscale import gallery
from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.grids import RowGrid
from dlscale.engine.plan import Grids, Plan
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.storage.matrices import open_matrix

Array = np.ndarray[Any, Any]
DTYPES = ("f4", "f8", "c8", "c16")
M, N = 700, 40
Test = Callable[..., None]


def two_dtypes(given: Mapping[str, Any]) -> tuple[str, str]:
    """Two of `DTYPES`, for `each_of`: both precisions, one real and one complex, and by what else is given those or the others."""
    plain = {name: value for name, value in given.items() if isinstance(value, str | int | float | tuple | dict | None)}
    return (("f4", "c16"), ("f8", "c8"))[zlib.crc32(repr(plain).encode()) % 2]


def each_of(**values: Iterable[Any] | Callable[[Mapping[str, Any]], Iterable[Any]]) -> Callable[[Test], Test]:
    """Make one test of a quick one and each of these values of its parameters; what fails says with which.

    Values may be a function of what else the test is given, by name.
    """

    def decorated(test: Test) -> Test:
        @wraps(test)
        def whole(**given: Any) -> None:
            of_each = [each(given) if callable(each) else each for each in values.values()]
            for chosen in product(*of_each):
                each = dict(zip(values, chosen, strict=True))
                try:
                    test(**given, **each)
                except BaseException as error:
                    error.add_note(f"with {each}")
                    raise

        signature = inspect.signature(test)
        others = [parameter for name, parameter in signature.parameters.items() if name not in values]
        whole.__signature__ = signature.replace(parameters=others)  # type: ignore[attr-defined]
        return whole

    return decorated


def spectrum(s: Array, m: int = M, n: int = N, *, dtype: str = "f8", offset: float = 0.0) -> Array:
    """A matrix with the singular values s; its columns sum to zero, then ``offset`` is added."""
    return gallery.SpectrumMatrix((m, n), s, dtype=np.dtype(dtype), offset=offset).rows(0, m)


def gaussian(m: int, n: int, dtype: str = "f8", seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((m, n))
    return (A + 1j * rng.standard_normal((m, n)) if np.dtype(dtype).kind == "c" else A).astype(dtype)


def _duplicated(dtype: str) -> Array:
    A = gaussian(M, N, dtype)
    A[:, 5], A[:, 9] = A[:, 7], 0
    return A


#: What each is hard for is in its name; all are tall unless they say so.
HARD: dict[str, Callable[[str], Array]] = {
    "slow decay": lambda dtype: spectrum(gallery.power(N), dtype=dtype),
    "condition 1e3": lambda dtype: spectrum(gallery.geometric(N, 1e3), dtype=dtype),
    "condition 1e5": lambda dtype: spectrum(gallery.geometric(N, 1e5), dtype=dtype),
    "condition 1e8": lambda dtype: spectrum(gallery.geometric(N, 1e8), dtype=dtype),
    "condition 1e12": lambda dtype: spectrum(gallery.geometric(N, 1e12), dtype=dtype),
    "condition 1e15": lambda dtype: spectrum(gallery.geometric(N, 1e15), dtype=dtype),
    "no gap": lambda dtype: spectrum(gallery.flat(N), dtype=dtype),
    "rank 11": lambda dtype: gallery.rank_deficient(M, N, 11, dtype=dtype),
    "hilbert, square": lambda dtype: gallery.hilbert(N, dtype=dtype),
    "kahan, square": lambda dtype: gallery.kahan(N, dtype=dtype),
    "graded rows, square": lambda dtype: gallery.graded(N, dtype=dtype),
    "all zeros": lambda dtype: np.zeros((M, N), dtype),
    "constant columns": lambda dtype: np.tile(np.arange(N) + 1.0, (M, 1)).astype(dtype),
    "single column": lambda dtype: gaussian(M, 1, dtype),
    "equal and zero columns": _duplicated,
    "offset 1e8": lambda dtype: gaussian(M, N, dtype) + np.dtype(dtype).type(1e8),
    "1 x 1": lambda dtype: gaussian(1, 1, dtype),
    "1 row": lambda dtype: gaussian(1, 7, dtype),
    "wide": lambda dtype: gaussian(30, 200, dtype),
    "wide, rank 11": lambda dtype: gallery.rank_deficient(N, M, 11, dtype=dtype),
}


def eps(A: Array) -> float:
    return float(np.finfo(A.dtype).eps)


def wide_precision(A: Array) -> Array:
    """A in double precision, in which what single precision computed is judged."""
    return A.astype(np.result_type(A.dtype, np.float64))


def departure(Q: Array) -> float:
    """``||I - Q^H Q||_2``."""
    Q = wide_precision(Q)
    return float(np.linalg.norm(np.eye(Q.shape[1]) - Q.conj().T @ Q, 2))


def norm(A: Array) -> float:
    return float(np.linalg.norm(wide_precision(A), 2))


def backward_error(A: Array, *factors: Array) -> float:
    """``||A - product of the factors||_2 / ||A||_2``."""
    product = wide_precision(factors[0])
    for factor in factors[1:]:
        product = product @ factor
    return norm(wide_precision(A) - product) / max(norm(A), np.finfo(float).tiny)


THREADS = ClusterFacts("threads", 1, 2, 2**31)


def compute(plan_of: Callable[..., Plan], run: Callable[..., Outcome], source: Any, options: Any, **more: Any) -> Any:
    """Plan and compute in this process: (outcome, all its arrays by name, plan).

    A block height in the options also makes leaves of two blocks, so that small matrices are many tasks.
    """
    A = open_matrix(source)
    facts = more.pop("facts", THREADS)
    plan = more.pop("plan", None) or plan_of(A, options, facts)
    if options.block_rows:
        rows = plan.rows.block_rows
        plan = replace(plan, grids=Grids(rows=RowGrid(plan.rows.n_rows, rows, 2 * rows)))
    with open_cluster(facts) as cluster:
        job = Run(cluster, **more)
        outcome = run(job, A, options, plan)
    return outcome, outcome.arrays | job.outputs, plan


#: How one and the same matrix may be stored: what the reader does for each is different.
LAYOUTS: dict[str, dict[str, Any]] = {
    "row strips": {"chunks": (100, N), "compressors": None},
    "column strips": {"chunks": (M, 7), "compressors": None},
    "squares": {"chunks": (33, 33), "compressors": None},
    "tiny chunks": {"chunks": (16, 3), "compressors": None},
    "one chunk": {"chunks": (M, N), "compressors": None},
    "chunk larger than the matrix": {"chunks": (1024, 64), "compressors": None},
    "zstd row strips": {"chunks": (100, N), "compressors": ZstdCodec(level=1)},
    "zstd squares": {"chunks": (64, 16), "compressors": ZstdCodec(level=1)},
    "blosc": {"chunks": (128, N), "compressors": BloscCodec()},
    "gzip": {"chunks": (128, N), "compressors": GzipCodec(level=1)},
    "crc32c row strips": {"chunks": (100, N), "compressors": Crc32cCodec()},
    "crc32c squares": {"chunks": (64, 16), "compressors": Crc32cCodec()},
    "sharded": {"chunks": (32, 10), "shards": (128, 20), "compressors": None},
    "sharded zstd": {"chunks": (50, N), "shards": (100, N), "compressors": ZstdCodec(level=1)},
    "big-endian": {"chunks": (100, N), "compressors": None, "serializer": BytesCodec(endian="big")},
    "v2": {"chunks": (100, N), "zarr_format": 2, "compressors": None},
    "v2 column major": {"chunks": (64, 32), "zarr_format": 2, "order": "F", "compressors": None},
    "v2 compressed": {"chunks": (64, 32), "zarr_format": 2},
    "v2 compressed column major": {"chunks": (64, 32), "zarr_format": 2, "order": "F"},
}


def store(path: Path, A: Array, **layout: Any) -> Path:
    """Write A as a Zarr array of this layout; every chunk is stored, even one of zeros."""
    array = zarr.create_array(path, shape=A.shape, dtype=A.dtype, config={"write_empty_chunks": True}, **layout)
    array[:] = A
    return path
