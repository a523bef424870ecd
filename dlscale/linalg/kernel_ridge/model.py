"""A fitted kernel ridge regression, of a function or of a job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import describe_cluster, open_cluster
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.run import Run
from dlscale.errors import InputError, SpecError
from dlscale.linalg.kernel_ridge.folds import TILE, RowProduct, Rows
from dlscale.linalg.kernel_ridge.kernels import Kernel
from dlscale.linalg.kernel_ridge.kind import KIND, KernelRidgeOptions
from dlscale.storage.inputs import StoredResult
from dlscale.storage.matrices import open_matrix

#: Blocks of rows that a task predicts.
_BLOCKS = 8


@dataclass(frozen=True)
class KernelRidgeModel:
    """A fitted kernel ridge regression.

    Parameters
    ----------
    dual_coefficients : (n,) or (n, k)
    features : (n, d)
        The rows that it was fitted to.
    center : (d,)
        Their mean.
    kernel : Kernel
    penalty : float
        The chosen one.
    penalties : (q,)
    errors : (q, k), optional
        Mean squares of what rows differ from what fits without their fold, whose residuals are 1e-6 of the targets, say of them,
        where a penalty was chosen.
    estimates : dict
        ``iterations``, ``true_residual``, ``r2``.
    """

    dual_coefficients: Array
    features: Array
    center: Array
    kernel: Kernel
    penalty: float
    penalties: Array
    errors: Array | None
    estimates: dict[str, Any]

    @property
    def rows(self) -> Rows:
        """The rows that it was fitted to, with its kernel."""
        return Rows(self.kernel, open_matrix(self.features), self.center)

    def predict(self, X: Any) -> Array:
        """``K(X, features) dual_coefficients``.

        Parameters
        ----------
        X : (m, d) NumPy, Dask or Zarr array, path or URL

        Returns
        -------
        (m,) or (m, k)

        Raises
        ------
        SpecError, InputError, NonFiniteError
            If the rows do not suit the features, or cannot be read.
        """
        A, n = open_matrix(X), len(self.features)
        if A.shape[1] != self.features.shape[1] or A.dtype.kind == "c":
            raise SpecError(f"X: must have {self.features.shape[1]} real columns like the features; got {A.shape[1]} of {A.dtype}.")
        fold = RowProduct(self.rows, self.dual_coefficients.reshape(n, -1))
        grid = RowGrid(A.shape[0], min(A.shape[0], TILE), TILE * _BLOCKS)
        with open_cluster(describe_cluster("threads")) as cluster:
            run = Run(cluster)
            output = run.output("predictions", (A.shape[0], fold.P.shape[1]), np.dtype(np.float64), grid)
            Passes(run).sweep("predict", A, fold, grid, outputs=[output])
        found = run.outputs["predictions"]
        return found[:, 0] if self.dual_coefficients.ndim == 1 else found

    @classmethod
    def load(cls, uri: str) -> Self:
        """The model of a finished job.

        Parameters
        ----------
        uri : str
            Path or URL of the result of a job of kind kernel_ridge.

        Raises
        ------
        InputError
            If no such result is there.
        """
        result = StoredResult.open(uri)
        if result.kind != KIND.name:
            raise InputError(f"{uri} is the result of a job of kind {result.kind}; a model is that of one of kind {KIND.name}.")
        return cls.of(result)

    @classmethod
    def of(cls, result: StoredResult) -> Self:
        """The model that a result holds (InputError where it has lost some of it)."""
        spec: Any = result.attributes.get("spec")
        found: Any = result.attributes.get("estimates")
        try:
            options = KernelRidgeOptions(**(spec.get("params") or {}))
            kernel = Kernel(options.kernel, float(found["gamma"]), options.degree, options.coef0)
            penalty = float(found["penalty"])
        except (TypeError, ValueError, AttributeError, KeyError) as error:  # whatever stands in the place of the spec
            raise InputError(f"{result.uri} does not say what its job fitted ({error}); run its job anew.") from error
        names = ("dual_coefficients", "features", "center")
        dual, features, center = (np.ascontiguousarray(result.read(name)) for name in names)
        errors = result.read("path/errors") if "path/errors" in result.arrays else None
        return cls(dual, features, center, kernel, penalty, result.read("path/penalties"), errors, dict(found))
