"""Ridge regression as a function: arrays or URIs in, named results out, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from dlscale.arrays import Array
from dlscale.declaration.kind import run_here
from dlscale.linalg.ridge.kind import KIND, RidgeOptions
from dlscale.linalg.ridge.penalties import DEFAULT


class RidgeResult(NamedTuple):
    """Ridge coefficients for the chosen penalty, and the path it was chosen from.

    Parameters
    ----------
    coefficients : (n,) or (n, k)
        Of k targets as columns: the transpose of scikit-learn's ``coef_``.
    intercept : number or (k,)
        Zero where none is fitted.
    penalty : float
    penalties : (q,)
    errors : (q, k), optional
        Mean squares of what rows differ from what the other rows, or folds, say of them.
    path : (q, n) or (q, n, k), optional
        The coefficients for all penalties, on request.
    """

    coefficients: Array
    intercept: Any
    penalty: float
    penalties: Array
    errors: Array | None
    path: Array | None


def ridge(
    A: Any, b: Any, *, penalties: Any = DEFAULT, fit_intercept: bool = True, cv: int | str = "loo", path: bool = False
) -> RidgeResult:
    """The w and c that minimize ``||b - A w - c||^2 + penalty ||w||^2``, for the best of some penalties.

    Parameters
    ----------
    A : (m, n) NumPy, Dask or Zarr array, path or URL
    b : (m,) or (m, k), the same
    penalties : float, sequence of floats, or mapping
        Each at least 0; a mapping with ``smallest``, ``largest`` and ``count`` is a range at equal ratios.
    fit_intercept : bool
    cv : int or str
        What chooses: ``loo`` leaves each row out, exactly; a number of folds of neighbouring rows; ``none``, for one penalty.
    path : bool
        Whether to return the coefficients for all penalties.

    Returns
    -------
    RidgeResult

    Raises
    ------
    SpecError, InputError, NonFiniteError, NumericalError, CertificateError
        As for `dlscale.solve`; NumericalError also where no penalty has an error to choose by.

    Notes
    -----
    2 m (n + k + 1)^2 flops of a tall matrix, and 3 reads of it whatever the number of penalties; 2 with folds. Rows whose leverage
    is within 1e-4 of 1 take one more read, and a fit of order n each. No Gram matrix is made, so that the condition is not squared.

    References
    ----------
    Golub, Heath, Wahba (1979) for leaving one out.
    """
    given = penalties if isinstance(penalties, Mapping) else np.asarray(penalties, float).tolist()
    options = RidgeOptions(penalties=given, fit_intercept=fit_intercept, cv=cv, path=path)  # type: ignore[arg-type]
    inputs = KIND.inputs({"matrix": A, "rhs": b})
    outcome, arrays = run_here(KIND, inputs, options)
    intercept = arrays["intercept"]
    return RidgeResult(
        arrays["coefficients"],
        intercept[0].item() if inputs["rhs"].is_vector else intercept,
        outcome.estimates["penalty"],
        arrays["path/penalties"],
        arrays.get("path/errors"),
        arrays.get("path/coefficients"),
    )
