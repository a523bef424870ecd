"""Many named arrays as two: a checkpoint flushes every file to the disk, and a model has dozens of small arrays."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from dlscale.arrays import Array


def pack(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """``bytes`` with all arrays one after the other, and ``index`` with their names, shapes and dtypes (JSON text)."""
    index = json.dumps([[name, list(array.shape), array.dtype.str] for name, array in arrays.items()]).encode()
    whole = np.concatenate([np.zeros(0, np.uint8), *(np.ascontiguousarray(a).reshape(-1).view(np.uint8) for a in arrays.values())])
    return {"bytes": whole, "index": np.frombuffer(index, np.uint8)}


def unpack(packed: Mapping[str, Array]) -> dict[str, Array]:
    """What was packed."""
    arrays, start = {}, 0
    for name, shape, dtype in json.loads(packed["index"].tobytes()):
        n_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        arrays[name] = packed["bytes"][start : start + n_bytes].view(dtype).reshape(shape)
        start += n_bytes
    return arrays
