"""How one penalty of a path is chosen, and what is said of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import NumericalError


def fold_bounds(n_rows: int, n_folds: int) -> tuple[int, ...]:
    """First row of each fold of neighbouring rows, as scikit-learn's `KFold` cuts, and the number of rows."""
    return tuple(i * (n_rows // n_folds) + min(i, n_rows % n_folds) for i in range(n_folds + 1))


def choose(errors: Array, powers: Sequence[int]) -> int:
    """The penalty with the least error of all targets together; of equal ones the first, as in scikit-learn.

    Parameters
    ----------
    errors : (q, k)
    powers : sequence of k int
        Binary exponents: each target is by so much larger.

    Raises
    ------
    NumericalError
        If no penalty has an error.
    """
    with np.errstate(under="ignore"):
        total = np.ldexp(errors, 2 * (np.asarray(powers) - max(powers))).sum(axis=1)
    if not np.isfinite(total).any():
        raise NumericalError(
            "No penalty has an error to choose by: without some row, nothing tells its value. Raise the penalties, or give "
            "params.cv a number of folds."
        )
    return int(np.argmin(total))


def end_of_path(best: int, penalties: Array) -> tuple[str, ...]:
    """Whether the chosen penalty is at an end of the path that goes on beyond it."""
    if len(penalties) == 1 or penalties[best] == 0 or penalties.min() < penalties[best] < penalties.max():
        return ()
    end = "smallest" if penalties[best] == penalties.min() else "largest"
    return (f"the chosen penalty is the {end} of the path: one beyond it may have a smaller error",)
