"""Jobs of the learning kinds on arrays, as tests run them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import zarr

import dlscale


def put(path, array):
    """An array as a Zarr array with all its chunks."""
    array = np.asarray(array)
    shutil.rmtree(path, ignore_errors=True)
    options = {"chunks": array.shape, "compressors": None, "config": {"write_empty_chunks": True}}
    zarr.create_array(path, shape=array.shape, dtype=array.dtype, **options)[...] = array
    return str(path)


def job(folder: Path, kind: str, inputs, **sections):
    """Run a job whose inputs are arrays, or paths."""
    folder.mkdir(exist_ok=True)
    stored = {role: given if isinstance(given, str) else put(folder / f"{role}.zarr", given) for role, given in inputs.items()}
    spec = {"kind": kind, "cluster": "threads", "input": stored, **sections}
    return dlscale.run(spec, workspace=folder / "jobs")


def record(done):
    """What a finished job wrote of itself."""
    return zarr.open_group(done.result, mode="r").attrs["dlscale"]


def parameters(done):
    """Weight and bias of a model of one layer."""
    arrays = done.open()
    return np.asarray(arrays["parameters/layer-0/weight"]), np.asarray(arrays["parameters/layer-0/bias"])
