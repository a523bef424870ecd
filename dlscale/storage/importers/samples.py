"""The data sets that scikit-learn ships, by name: ``sample:digits``, ``sample:digits/targets``, ``sample:digits/train``.

Every fifth row is for validation; ``/train`` are the others, and without either it is all rows. With ``/standardized`` every
column of the features has mean 0 and variance 1 over all rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from dlscale.errors import InputError
from dlscale.storage.importers.tables import Request, Table

SAMPLES = ("digits", "breast-cancer", "diabetes")


def is_sample(source: str) -> bool:
    """Whether a source names one of these data sets."""
    return source.startswith("sample:") and source != "sample:photos"


@contextmanager
def read_sample(request: Request) -> Iterator[Table]:
    """Features (m, n), or the targets as a column.

    Raises
    ------
    InputError
        If there is no such data set or part of one; names them.
    """
    from sklearn import datasets

    name, *parts = request.source.removeprefix("sample:").split("/")
    loaders = {"digits": datasets.load_digits, "breast-cancer": datasets.load_breast_cancer, "diabetes": datasets.load_diabetes}
    if name not in loaders or not set(parts) <= {"targets", "train", "validation", "standardized"}:
        raise InputError(
            f"There is no {request.source}; known are sample:photos and sample:{', sample:'.join(SAMPLES)}, each with /targets, "
            "/train, /validation, /standardized, and these together."
        )
    X, y = loaders[name](return_X_y=True)
    array = np.asarray(y, np.float64)[:, None] if "targets" in parts else np.asarray(X, np.float64)
    if "standardized" in parts and "targets" not in parts:
        spread = array.std(axis=0)
        array = (array - array.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    validation = np.arange(len(array)) % 5 == 4
    if "train" in parts:
        array = array[~validation]
    elif "validation" in parts:
        array = array[validation]
    yield Table(array.shape[0], array.shape[1], array.dtype, (block for block in [np.ascontiguousarray(array)]), {})
