"""Kernel ridge regression: as many rows as scikit-learn can hold the kernel matrix of, and more of them under 1 GB.

The targets are a smooth function of 8 features, and noise. Both solve the same system, scikit-learn by Cholesky, dlscale by
iterations whose residual is measured; predictions for new rows are compared.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import harness
import numpy as np
from harness import Bench, case

GROUP, LARGE = "kernel ridge, as many rows as their kernel matrix fits", "kernel ridge of 50,000 rows under 1 GB"
N_FEATURES, PENALTY = 8, 0.1
#: Rows of the subset on which the large case is compared.
SUBSET = 5000


def data(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, N_FEATURES))
    return X, np.sin(2 * X[:, 0]) + X[:, 1] * X[:, 2] + 0.1 * rng.standard_normal(n)


def sizes(bench: Bench) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, targets, and new rows."""
    n = bench.pick(full=30_000, quick=2000)
    bench.fact(n=n, penalty=PENALTY)
    return *data(n), data(200, 1)[0]


def by_blocks(X: np.ndarray, new: np.ndarray, dual: np.ndarray) -> np.ndarray:
    """Predictions by the formula."""
    distances = ((new[:, None, :] - X[None, :, :]) ** 2).sum(axis=2)
    return np.asarray(np.exp(-distances / N_FEATURES) @ dual)


def residual(X: np.ndarray, y: np.ndarray, dual: np.ndarray) -> float:
    """Of some of the rows of the system."""
    some = np.random.default_rng(2).choice(len(X), 200, replace=False)
    return float(np.linalg.norm(y[some] - PENALTY * dual[some] - by_blocks(X, X[some], dual)) / np.linalg.norm(y[some]))


@case(GROUP, "dlscale")
def ours(bench: Bench) -> None:
    import dlscale

    X, y, _ = sizes(bench)
    found = bench.time(lambda: dlscale.kernel_ridge(X, y, penalties=PENALTY))
    bench.fact(iterations=found.estimates["iterations"], n_centers=found.estimates["n_centers"])
    bench.check("residual", residual(X, y, found.dual_coefficients), 1e-9)


@case(GROUP, "scikit-learn KernelRidge")
def theirs(bench: Bench) -> None:
    from sklearn.kernel_ridge import KernelRidge

    X, y, _ = sizes(bench)
    found = bench.time(lambda: KernelRidge(alpha=PENALTY, kernel="rbf").fit(X, y))
    bench.check("residual", residual(X, y, found.dual_coef_), 1e-9)


@case(LARGE, "dlscale run, 1 GB", limit=7200)
def large(bench: Bench) -> None:
    import zarr
    from sklearn.kernel_ridge import KernelRidge

    import dlscale

    n = bench.pick(full=50_000, quick=2500)
    X, y = data(n)
    paths = {}
    for role, array in (("features", X), ("targets", y)):
        paths[role] = str(bench.data / f"kernels-{role}.zarr")
        zarr.create_array(paths[role], shape=array.shape, dtype="f8", chunks=(4096, *array.shape[1:]), overwrite=True)[:] = array
    result, job = bench.data / "kernels-result.zarr", bench.data / "kernels.json"
    cluster = {"type": "local", "workers": 1, "threads": harness.CORES, "memory": "1GB"}
    spec = {"kind": "kernel_ridge", "input": paths, "params": {"penalties": PENALTY}, "cluster": cluster}
    job.write_text(json.dumps(spec | {"output": str(result), "overwrite": True}))
    command = [sys.executable, "-m", "dlscale", "run", str(job), "--workspace", str(bench.data / "kernels-jobs"), "--json"]
    bench.limit_memory(1e9)
    bench.time(lambda: subprocess.run(command, check=True, capture_output=True), subprocess_only=True)
    model, new = dlscale.KernelRidgeModel.load(str(Path(result))), data(200, 1)[0]
    bench.fact(n=n, iterations=model.estimates["iterations"], n_centers=model.estimates["n_centers"])
    bench.check("residual", residual(X, y, model.dual_coefficients), 1e-9)
    bench.check("predictions", float(np.abs(model.predict(new) - by_blocks(X, new, model.dual_coefficients)).max()), 1e-8)
    some = slice(0, bench.pick(full=SUBSET, quick=1000))
    subset = KernelRidge(alpha=PENALTY, kernel="rbf").fit(X[some], y[some])
    ours = dlscale.kernel_ridge(X[some], y[some], penalties=PENALTY)
    bench.check("agreement", float(np.abs(ours.predict(new) - subset.predict(new)).max() / np.abs(y).max()), 1e-8)


if __name__ == "__main__":
    raise SystemExit(harness.main())
