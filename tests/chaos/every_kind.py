"""Small jobs of every kind, with several tasks for each of some workers, and what their answers must be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import yaml
import zarr
from victims import GOES_ON, ask, job_folder

import dlscale
from dlscale.batch.kinds import KINDS
from dlscale.declaration.kind import Kind

Arrays = dict[str, np.ndarray[Any, Any]]
#: The arrays of an undisturbed run of a kind.
Whole = Callable[[str], Arrays]

N_TALL, N_SQUARE = 12_000, 700
_SQUARE = {"input": {"matrix": "square"}}
_SOURCES = {"matrix": "tall", "features": "tall", "rhs": "targets", "targets": "targets", "model": "model"}

#: What the job of a kind has instead of what `_job_of` gives it.
_OWN: Mapping[str, dict[str, Any]] = {
    "svd": {"params": {"n_components": 6, "power_iterations": 8, "block_rows": 500}},
    "pca": {"params": {"n_components": 5, "scores": True, "block_rows": 500}},
    "lu": _SQUARE,
    "cholesky": _SQUARE,
    "solve": {"input": {"matrix": "square", "rhs": "right"}},
    "lstsq": {"params": {}},
    # A penalty of which a few products are enough.
    "kernel_ridge": {"params": {"penalties": 100.0, "n_centers": 128, "tolerance": 1e-6}},
    "inverse": _SQUARE,
    "slogdet": _SQUARE,
    "norm": {"params": {"ord": 2}},
    "polar": {"input": {"matrix": "square"}, "params": {"panel": 128}},
    "matmul": {"input": {"a": "square", "b": "square"}, "params": {"tile": 128}},
    "eigh": {**_SQUARE, "params": {"n_components": 20, "method": "iterative"}},
    "train": {"model": {"type": "mlp", "hidden": [32]}, "loss": {"type": "squared"}, "params": {"epochs": 6, "batch_size": 256}},
    # Fewer iterations than it takes to converge: sums that are rounded differently may end that one iteration earlier.
    "covariate_weights": {"input": {"features": "tall", "target_features": "population"}, "params": {"iterations": 4}},
}


def _job_of(kind: Kind) -> dict[str, Any]:
    """A job with many tasks, from the declaration of its kind."""
    own, sizes = _OWN.get(kind.name, {}), {"block_rows": 500, "panel": 32}
    known = [field.name for field in fields(kind.options) if field.name in sizes]
    default: dict[str, Any] = {"params": {name: sizes[name] for name in sorted(known)[:1]}}
    if "input" not in own:
        default["input"] = {role.name: _SOURCES[role.name] for role in kind.roles if not role.optional}
    return default | own


JOBS: Mapping[str, dict[str, Any]] = {name: _job_of(kind) for name, kind in KINDS.items()}


def make_inputs(folder: Path) -> Path:
    """The matrices of all jobs; the square one is positive definite by its diagonal."""
    rng = np.random.default_rng(0)
    A = rng.standard_normal((N_SQUARE, N_SQUARE))
    arrays = {
        "tall": rng.standard_normal((N_TALL, 40)) * np.arange(1, 41) ** -0.5,
        "targets": rng.standard_normal((N_TALL, 3)),
        "square": A + A.T + 4 * N_SQUARE**0.5 * np.eye(N_SQUARE),
        "right": rng.standard_normal((N_SQUARE, 2)),
        "population": rng.standard_normal((N_TALL, 40)) * np.arange(1, 41) ** -0.5 + 0.3,
    }
    for name, array in arrays.items():
        chunks = (500, array.shape[1])
        zarr.create_array(folder / f"{name}.zarr", shape=array.shape, dtype="f8", chunks=chunks, compressors=None)[:] = array
    write_job(folder, "train", folder, cluster="threads", output=str(folder / "model.zarr"))
    dlscale.run(folder / "job.yaml", ["params.epochs=1"], workspace=folder / "ws")
    return folder


def write_job(folder: Path, kind: str, inputs: Path, **more: Any) -> Path:
    """A job file of a kind."""
    paths = {role: str(inputs / f"{name}.zarr") for role, name in JOBS[kind]["input"].items()}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"kind": kind, "name": "chaos", **JOBS[kind], "input": paths, **more}))
    return path


def arrays_of(result: Path) -> Arrays:
    """All arrays of a result, those of its groups too."""
    members = zarr.open_group(result, mode="r").members(max_depth=None)
    return {name: np.asarray(member[...]) for name, member in members if isinstance(member, zarr.Array)}


def check_same(kind: str, found: Arrays, expected: Arrays) -> None:
    """The same bits; of kinds that train, whose sums over ranks are rounded differently, the same numbers."""
    assert found.keys() == expected.keys()
    for name, array in found.items():
        if not KINDS[kind].collective:
            assert array.tobytes() == expected[name].tobytes(), name
        elif "seconds" not in name:
            np.testing.assert_allclose(array, expected[name], rtol=1e-10, atol=1e-10, err_msg=name)


def undisturbed(inputs: Path, folder_of: Callable[[str], Path]) -> Whole:
    """The arrays of an undisturbed run of a kind, by night on the local cluster; each is run once."""
    known: dict[str, Arrays] = {}

    def run(kind: str) -> Arrays:
        if kind not in known:
            folder = folder_of(kind)
            write_job(folder, kind, inputs)
            ended = ask("run", "job.yaml", *(GOES_ON or ("--cluster", "local")), cwd=folder)
            assert ended.code == 0, ended.err
            known[kind] = arrays_of(job_folder(folder) / "result.zarr")
        return known[kind]

    return run
