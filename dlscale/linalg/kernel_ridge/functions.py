"""Kernel ridge regression as a function: arrays or URIs in, a model out, in this process."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dlscale.declaration.kind import run_here
from dlscale.errors import SpecError
from dlscale.linalg.kernel_ridge.kernels import Name
from dlscale.linalg.kernel_ridge.kind import KIND, KernelRidgeOptions
from dlscale.linalg.kernel_ridge.model import KernelRidgeModel

#: What is said in ``params``.
_FURTHER = {"degree", "coef0", "n_centers", "tolerance", "max_iterations", "seed"}


def kernel_ridge(
    X: Any,
    y: Any,
    *,
    kernel: Name = "rbf",
    gamma: float | None = None,
    penalties: Any = 1.0,
    cv: int | str | None = None,
    params: Mapping[str, Any] | None = None,
) -> KernelRidgeModel:
    """Solve ``(K(X, X) + penalty I) x = y``, for the best of some penalties, without storing the kernel matrix.

    Parameters
    ----------
    X : (n, d) NumPy, Dask or Zarr array, path or URL
    y : (n,) or (n, k), the same
    kernel : str
        ``rbf``, ``laplacian``, ``polynomial`` or ``linear``, as in scikit-learn.
    gamma : float, optional
        1 / d when absent.
    penalties : float, sequence of floats, or mapping
        Each above 0; a mapping with ``smallest``, ``largest`` and ``count`` is a range at equal ratios.
    cv : int or str, optional
        Folds of neighbouring rows that choose among several penalties, 5 when absent; ``none`` for one penalty.
    params : mapping, optional
        What else a job file may say: ``degree``, ``coef0``, ``n_centers``, ``tolerance``, ``max_iterations``, ``seed``.

    Returns
    -------
    KernelRidgeModel

    Raises
    ------
    SpecError, InputError, NonFiniteError, CertificateError
        As for `dlscale.solve`.
    NumericalError
        If the iterations do not converge, saying what they came to.

    Notes
    -----
    n^2 (d + e) flops a product, e for the exponential; `dlscale.linalg.kernel_ridge.kind` says how.
    """
    if unknown := set(params or {}) - _FURTHER:
        raise SpecError(f"params: {', '.join(sorted(unknown))}: unknown; allowed: {', '.join(sorted(_FURTHER))}.")
    given = penalties if isinstance(penalties, Mapping) else np.asarray(penalties, float).tolist()
    chosen: dict[str, Any] = {"kernel": kernel, "gamma": gamma, "penalties": given, "cv": cv}
    options = KernelRidgeOptions(**chosen | dict(params or {}))
    inputs = KIND.inputs({"features": X, "targets": y})
    outcome, arrays = run_here(KIND, inputs, options)
    found = outcome.estimates
    return KernelRidgeModel(
        arrays["dual_coefficients"],
        arrays["features"],
        arrays["center"],
        options.kernel_of(inputs["features"].shape[1]),
        found["penalty"],
        arrays["path/penalties"],
        arrays.get("path/errors"),
        found,
    )
