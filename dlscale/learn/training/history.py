"""What a training leaves behind of its steps and epochs: named lists of numbers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.ranks import Communicator

_PREFIX = "history/"


class History:
    """Curves by name, in double precision."""

    def __init__(self) -> None:
        self._curves: dict[str, list[float]] = {}

    def append(self, name: str, value: float) -> None:
        self._curves.setdefault(name, []).append(float(value))

    def names(self) -> list[str]:
        return list(self._curves)

    def values(self, name: str) -> list[float]:
        """A curve; empty when nothing was added."""
        return self._curves.get(name, [])

    def to_arrays(self) -> dict[str, Array]:
        """``history/<name>`` (n,) for every curve."""
        return {f"{_PREFIX}{name}": np.array(values) for name, values in self._curves.items()}

    def restore(self, communicator: Communicator, arrays: Mapping[str, Array] | None) -> None:
        """Take over the curves that rank 0 found in a checkpoint, on every rank.

        Decisions such as early stopping follow from the curves, so every rank must have them.
        """
        text = ""
        if arrays is not None:
            self._curves = {n.removeprefix(_PREFIX): a.tolist() for n, a in arrays.items() if n.startswith(_PREFIX)}
            text = "\n".join(f"{name}\t{len(values)}" for name, values in self._curves.items())
        data = np.frombuffer(text.encode(), np.uint8).copy()
        size = communicator.bcast(np.array([data.size]), name="names of curves: size")
        data = communicator.bcast(data if arrays is not None else np.zeros(size[0], np.uint8), name="names of curves")
        for line in filter(None, data.tobytes().decode().split("\n")):
            name, length = line.split("\t")
            curve = np.array(self._curves[name]) if arrays is not None else np.zeros(int(length))
            self._curves[name] = communicator.bcast(curve, name=f"curve {name}").tolist()
