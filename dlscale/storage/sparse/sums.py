"""Entries of a sparse matrix that stand at one place are added up: a sum may pass the range of the type that holds its parts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse

from dlscale.errors import InputError


def first_overflow(parts: Any, rows: Any) -> tuple[int, int] | None:
    """Row and column of the first sum that is no finite number though all of its parts are.

    Parameters
    ----------
    parts : sparse array (m, n)
        Entries as they are given.
    rows : scipy.sparse.csr_array (m, n)
        Their sums, with columns in order.
    """
    wrong = ~np.isfinite(rows.data)
    if not wrong.any():
        return None
    given = parts.tocoo()
    infinite = scipy.sparse.coo_array((~np.isfinite(given.data), given.coords), shape=given.shape).tocsr()
    found = np.flatnonzero(wrong & ~infinite.data)
    if not found.size:
        return None
    k = int(found[0])
    return int(np.searchsorted(rows.indptr, k, side="right")) - 1, int(rows.indices[k])


def require_finite_sums(parts: Any, rows: Any, *, source: str, place: Callable[[int, int], tuple[int, int]]) -> None:
    """Name the first sum that is out of range (InputError), by its row and column in the matrix of the source."""
    if (lost := first_overflow(parts, rows)) is not None:
        i, j = place(*lost)
        raise InputError(
            f"{source}: the entries given for row {i}, column {j} (both count from 0) add up to {rows[lost]}, which "
            f"{rows.dtype} does not hold; correct or scale the numbers."
        )
