"""PCA with scikit-learn's estimator contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from dlscale.engine.clusters import describe_cluster, open_cluster
from dlscale.engine.grids import BLOCK_BYTES, blocks
from dlscale.engine.passes import Passes
from dlscale.errors import NonFiniteError, SpecError
from dlscale.linalg.pca import PCAOptions, Solver, compute_pca, plan_pca
from dlscale.linalg.svd import Method
from dlscale.storage.matrices import Array, Matrix, open_matrix


class PCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Principal component analysis of matrices of any size.

    Parameters
    ----------
    n_components : int, float or None
        k; a fraction of the variance to explain, strictly between 0 and 1; or None for all, min(m, n).
    solver : {"auto", "covariance", "randomized", "full"}
        See `dlscale.linalg.pca.PCAOptions`.
    whiten : bool
        Scale the transformed data to unit variance.
    oversampling, power_iterations, method, seed
        Of the randomized solver (`dlscale.linalg.svd.SVDOptions`).

    Attributes
    ----------
    components_ : (k, n), orthonormal rows
    explained_variance_, explained_variance_ratio_, singular_values_ : (k,)
    mean_ : (n,)
    noise_variance_ : float
    n_components_, n_samples_, n_features_in_ : int

    See Also
    --------
    sklearn.decomposition.PCA : the same names and signs; this one centres block by block, certifies its answer, and takes
        Dask and Zarr arrays, paths and URLs as well as NumPy arrays.
    """

    def __init__(
        self,
        n_components: float | None = None,
        *,
        solver: Solver = "auto",
        whiten: bool = False,
        oversampling: int = 10,
        power_iterations: int = 4,
        method: Method = "randomized",
        seed: int = 0,
    ) -> None:
        self.n_components = n_components
        self.solver = solver
        self.whiten = whiten
        self.oversampling = oversampling
        self.power_iterations = power_iterations
        self.method = method
        self.seed = seed

    def fit(self, X: Any, y: None = None) -> Self:
        """Find the components.

        Parameters
        ----------
        X : (m, n) NumPy, Dask or Zarr array, path or URL
        y : ignored

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a parameter does not suit X, or X holds a NaN or an infinity.
        CertificateError
            If the answer fails its own check.
        """
        A = self._matrix(X, reset=True)
        options = PCAOptions(
            n_components=self.n_components,
            solver=self.solver,
            whiten=self.whiten,
            oversampling=self.oversampling,
            power_iterations=self.power_iterations,
            method=self.method,
            seed=self.seed,
        )
        facts = describe_cluster("threads")
        plan = plan_pca(A, options, facts)
        with open_cluster(facts) as cluster:
            passes = Passes(cluster)
            outcome = compute_pca(passes, A, options, plan)
        outcome.certificate.require()
        arrays = outcome.arrays | passes.outputs
        self.components_ = arrays["components"]
        self.explained_variance_ = arrays["explained_variance"]
        self.explained_variance_ratio_ = arrays["explained_variance_ratio"]
        self.singular_values_ = arrays["singular_values"]
        self.mean_ = arrays["mean"]
        self.noise_variance_ = float(arrays["noise_variance"][0])
        self.n_samples_, self.n_features_in_ = A.shape
        self.n_components_ = len(self.singular_values_)
        return self

    def transform(self, X: Any) -> Array:
        """Project rows on the components: ``(X - mean) V``, scaled to unit variance if ``whiten``.

        Parameters
        ----------
        X : (m, n)

        Returns
        -------
        (m, k)

        Raises
        ------
        NonFiniteError
            Naming the row and column of a NaN or infinity.
        """
        check_is_fitted(self)
        A = self._matrix(X, reset=False)
        V = self.components_.conj().T
        if self.whiten:
            deviation, limits = np.sqrt(self.explained_variance_), np.finfo(self.explained_variance_.dtype)
            V = V / np.maximum(deviation, limits.eps * deviation[0] + limits.tiny)
        m, n = A.shape
        T = np.empty((m, V.shape[1]), np.result_type(A.dtype, V.dtype))
        unit = min(A.row_unit, m)
        for start, stop in blocks(0, m, max(1, BLOCK_BYTES // (n * A.dtype.itemsize * unit)) * unit):
            block = A.read(start, stop)
            T[start:stop] = (block - self.mean_) @ V
            if not np.isfinite(T[start:stop]).all():
                for i, j in np.argwhere(~np.isfinite(block))[:1].tolist():
                    raise NonFiniteError(start + i, j, block[i, j].item())
        return T

    def fit_transform(self, X: Any, y: None = None) -> Array:
        """Fit, and project the same rows.

        Returns
        -------
        (m, k)
        """
        return self.fit(X).transform(X)

    def inverse_transform(self, X: Array) -> Array:
        """Rows from their projections, less what the components leave out.

        Parameters
        ----------
        X : (m, k)

        Returns
        -------
        (m, n)
        """
        check_is_fitted(self)
        X = np.asarray(X)
        if self.whiten:
            X = X * np.sqrt(self.explained_variance_)
        return np.asarray(X @ self.components_ + self.mean_)

    def _matrix(self, X: Any, *, reset: bool) -> Matrix:
        """X as a matrix; what scikit-learn would take is checked by scikit-learn, except for NaN: who reads X names its place."""
        if isinstance(X, str | Path | Matrix) or hasattr(X, "chunks"):
            matrix = open_matrix(X)
            if not reset and matrix.shape[1] != self.n_features_in_:
                raise SpecError(f"X must have {self.n_features_in_} columns, as in fit; got {matrix.shape[1]}.")
            return matrix
        dtypes = (np.float64, np.float32)
        X = validate_data(self, X, reset=reset, dtype=dtypes, ensure_min_samples=2 if reset else 1, ensure_all_finite=False)
        return open_matrix(X)

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[0])
