"""PCA with scikit-learn's estimator contract."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
import scipy.sparse
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from dlscale.arrays import Array
from dlscale.declaration.kind import planned_here
from dlscale.declaration.transforms import steps_of
from dlscale.engine.grids import BLOCK_BYTES, blocks
from dlscale.engine.passes import Passes
from dlscale.errors import NonFiniteError, NumericalError, SpecError
from dlscale.linalg.fitting import fitted, plan_with_fits
from dlscale.linalg.pca.covariance import whitening
from dlscale.linalg.pca.kind import KIND, PCAOptions, Solver, principal_components
from dlscale.storage.arrays import unmasked
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Matrix
from dlscale.storage.sparse.transforms import Transformed, transformed

_KIND = replace(KIND, plan=partial(plan_with_fits, KIND))


class PCA(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Principal component analysis of matrices of any size.

    Parameters
    ----------
    n_components : int, float, "mle" or None
        k; a fraction of the variance to explain, strictly between 0 and 1; the most likely number (Minka 2000); or None for
        all, min(m, n).
    solver : {"auto", "covariance", "randomized", "krylov", "full"}
        See `dlscale.linalg.pca.kind.PCAOptions`.
    whiten : bool
        Scale the transformed data to unit variance.
    oversampling, power_iterations, seed
        Of the solvers randomized and krylov (`dlscale.linalg.svd.kind.SVDOptions`).
    transforms : list of dict, optional
        What is done to rows as they are read, as ``input.transforms`` of a job, such as
        ``[{"scale_rows": {"to": 1e4}}, {"map": "log1p"}]``. What a step takes from the columns is found in `fit`, and is the same
        in `transform`.

    Attributes
    ----------
    components_ : (k, n), orthonormal rows
        n counts the columns that the transforms leave.
    explained_variance_, explained_variance_ratio_, singular_values_ : (k,)
    mean_ : (n,)
    noise_variance_ : float
    n_components_, n_samples_, n_features_in_ : int
    feature_names_in_ : (n,) of str
        Where the columns have names.
    transforms_ : tuple
        The steps that new rows are read through, and the parameter of each, which `fit` found.
    notes_ : tuple of str
        Decisions taken on the way, and what to know of the answer.

    See Also
    --------
    sklearn.decomposition.PCA : the same names and signs; this one centres block by block, certifies its answer, and takes
        Dask and Zarr arrays, paths and URLs as well as NumPy arrays and sparse ones of SciPy, and complex numbers.
    """

    def __init__(
        self,
        n_components: float | Literal["mle"] | None = None,
        *,
        solver: Solver = PCAOptions.solver,
        whiten: bool = PCAOptions.whiten,
        oversampling: int = PCAOptions.oversampling,
        power_iterations: int = PCAOptions.power_iterations,
        seed: int = PCAOptions.seed,
        transforms: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        self.n_components = n_components
        self.solver = solver
        self.whiten = whiten
        self.oversampling = oversampling
        self.power_iterations = power_iterations
        self.seed = seed
        self.transforms = transforms

    def fit(self, X: Any, y: None = None) -> Self:
        """Find the components.

        Parameters
        ----------
        X : (m, n or more) NumPy, Dask or Zarr array, list, data frame, sparse array of SciPy, path or URL
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
        self._fit(X, y, scores=False)
        return self

    def _fit(self, X: Any, y: Any, *, scores: bool) -> dict[str, Array]:
        if getattr(getattr(y, "dtype", None), "kind", "") == "c":
            raise SpecError("Complex data not supported as y, which a PCA does not use; leave it out.")
        A = self._matrix(X, reset=True)
        options = PCAOptions(
            n_components=self.n_components,
            solver=self.solver,
            whiten=self.whiten,
            scores=scores,
            oversampling=self.oversampling,
            power_iterations=self.power_iterations,
            seed=self.seed,
        )
        rows = transformed(A, steps_of(self.transforms or []))
        with planned_here(_KIND, Inputs({"matrix": rows}), options) as (run, plan):
            rows = fitted(Passes(run), rows, plan)
            found = principal_components(Passes(run), rows, options, plan)
        self.transforms_ = (rows.steps, rows.parameters) if isinstance(rows, Transformed) else ((), ())
        outcome = found.outcome()
        outcome.certificate.require()
        arrays = outcome.arrays | run.outputs
        self.components_ = arrays["components"]
        self.explained_variance_ = arrays["explained_variance"]
        self.explained_variance_ratio_ = arrays["explained_variance_ratio"]
        self.singular_values_ = arrays["singular_values"]
        self.mean_ = arrays["mean"]
        # What the dtype rounds away of the mean, which beside a large offset is as large as the data.
        self._mean_low = found.mean - self.mean_
        self.noise_variance_ = float(arrays["noise_variance"][0])
        self.n_samples_, self.n_features_in_ = A.shape
        self.n_components_ = len(self.singular_values_)
        self.notes_ = outcome.notes
        return arrays

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
        A = transformed(self._matrix(X, reset=False), *self.transforms_)
        V = self.components_.conj().T
        weights = whitening(self.singular_values_, self.n_samples_) if self.whiten else None
        T = np.empty((A.shape[0], V.shape[1]), np.result_type(A.dtype, V.dtype))
        for start, block, centred in self._centred(A, T.dtype):
            rows = T[start : start + len(block)]
            np.matmul(centred, V, out=rows)
            if weights is not None:
                rows *= weights
            _require_finite(rows, block, start)
        return T

    def fit_transform(self, X: Any, y: None = None) -> Array:
        """Fit, and return the scores of the same rows, ``U S``, or of unit variance if ``whiten``.

        Returns
        -------
        (m, k)
            As certified with the fit. `transform` projects the rows once more, which gives the same to rounding where the
            components are exact; those of the randomized solver are not.
        """
        return self._fit(X, y, scores=True)["scores"]

    def inverse_transform(self, X: Array) -> Array:
        """Rows, as they are transformed, from their projections, less what the components leave out.

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
            X = (X / whitening(self.singular_values_, self.n_samples_)).astype(np.result_type(X.dtype, self.components_.dtype))
        rows = np.asarray(X @ self.components_)
        return np.asarray((rows + self.mean_) + self._mean_low, rows.dtype)

    def get_covariance(self) -> Array:
        """The covariance matrix of the model, ``V^* (S^2 / (m - 1) - sigma^2) V^T + sigma^2 I``, sigma^2 the noise variance.

        Returns
        -------
        (n, n)
            Where all components were kept, that of the data, as of ``numpy.cov(X, rowvar=False)``.

        References
        ----------
        Tipping and Bishop (1999), Probabilistic principal component analysis, section 3.2.
        """
        check_is_fitted(self)
        signal = np.maximum(self.explained_variance_ - self.noise_variance_, 0.0)
        return self._from_spectrum(signal, self.noise_variance_)

    def get_precision(self) -> Array:
        """The inverse of `get_covariance`.

        Returns
        -------
        (n, n)

        Raises
        ------
        NumericalError
            If the covariance matrix is singular: if a component, or all that was left out, has no variance.
        """
        variances, noise = self._likelihood_variances()
        if not noise:
            return self._from_spectrum(1 / variances, 0.0)
        return self._from_spectrum(1 / variances - 1 / noise, 1 / noise)

    def score_samples(self, X: Any) -> Array:
        """The log-likelihood of each row in the probabilistic model of the PCA, a normal distribution.

        Parameters
        ----------
        X : (m, n)

        Returns
        -------
        (m,)
            Of complex rows in the circular complex normal distribution.

        Raises
        ------
        NumericalError
            If the covariance matrix is singular.

        References
        ----------
        Tipping and Bishop (1999), section 3.2; scikit-learn's ``PCA.score_samples``.
        """
        variances, noise = self._likelihood_variances()
        A = transformed(self._matrix(X, reset=False), *self.transforms_)
        n, k = A.shape[1], self.n_components_
        V = self.components_.conj().T.astype(np.result_type(self.components_.dtype, np.float64))
        log_determinant = float(np.log(variances).sum()) + (n - k) * math.log(noise or 1.0)
        half = 1.0 if V.dtype.kind == "c" else 0.5
        scores = np.empty(A.shape[0])
        for start, block, centred in self._centred(A, np.result_type(A.dtype, V.dtype)):
            T = centred @ V
            distances = (np.abs(T) ** 2 / variances).sum(axis=1)
            if noise:
                # Of what the components leave, and not as a difference of squares, which cancels where the noise is small.
                distances += (np.abs(centred - T @ V.conj().T) ** 2).sum(axis=1) / noise
            _require_finite(distances, block, start)
            scores[start : start + len(block)] = distances
        return -half * (scores + log_determinant + n * math.log(math.pi / half))

    def score(self, X: Any, y: None = None) -> float:
        """The mean of `score_samples` over the rows.

        Parameters
        ----------
        X : (m, n)
        y : ignored
        """
        return float(self.score_samples(X).mean())

    def _likelihood_variances(self) -> tuple[Array, float]:
        """The variances along the components, and the one of all else, 0 where there is nothing else (NumericalError if 0)."""
        check_is_fitted(self)
        left_out = self.components_.shape[1] - self.n_components_
        noise = self.noise_variance_ if left_out else 0.0
        variances = np.maximum(self.explained_variance_.astype(np.float64), noise)
        if not variances.all() or (left_out and not noise):
            what = f"{left_out} dimensions without components have" if variances.all() else "a component has"
            raise NumericalError(f"The covariance matrix is singular: {what} no variance; keep fewer components.")
        return variances, noise

    def _from_spectrum(self, along: Array, everywhere: float) -> Array:
        """``V^* diag(along) V^T + everywhere I`` with V^H the components."""
        V = self.components_
        C = (V.T * along) @ V.conj()
        C.flat[:: len(C) + 1] += everywhere
        return np.asarray(C)

    def _centred(self, A: Matrix, dtype: Any) -> Iterator[tuple[int, Array, Array]]:
        """The number of its first row, a block of rows, and the same less the mean in a dtype."""
        m, n = A.shape
        unit = min(A.row_unit, m)
        mean = self.mean_.astype(dtype)
        low = ((self.mean_ - mean) + self._mean_low).astype(dtype)
        for start, stop in blocks(0, m, max(1, BLOCK_BYTES // (n * A.dtype.itemsize * unit)) * unit):
            block = A.read(start, stop)
            centred = np.subtract(block, mean, dtype=dtype)
            if low.any():
                centred -= low
            yield start, block, centred

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _matrix(self, X: Any, *, reset: bool) -> Matrix:
        """X as a matrix; what scikit-learn would take is checked by scikit-learn, except for NaN: who reads X names its place."""
        if isinstance(X, str | os.PathLike | Matrix) or hasattr(X, "chunks"):
            matrix = open_matrix(X)
            if not reset and matrix.shape[1] != self.n_features_in_:
                raise SpecError(f"X must have {self.n_features_in_} columns, as in fit; got {matrix.shape[1]}.")
            self._name_features(matrix, reset=reset)
            return matrix
        if isinstance(X, np.ma.MaskedArray):
            X = unmasked(X)
        # scikit-learn refuses complex numbers, and indices that SciPy does not convert.
        if scipy.sparse.issparse(X) or (isinstance(X, np.ndarray) and X.dtype.kind == "c"):
            matrix = open_matrix(X)
            validate_data(self, X, reset=reset, skip_check_array=True)
            return matrix
        dtypes = (np.float64, np.float32)
        X = validate_data(
            self,
            X,
            reset=reset,
            dtype=dtypes,
            ensure_min_samples=2 if reset else 1,
            ensure_all_finite=False,
        )
        return open_matrix(X)

    def _name_features(self, A: Matrix, *, reset: bool) -> None:
        """Take over, or compare, the names of the columns of a matrix that is stored, as scikit-learn does of a data frame."""
        names = A.labels.column
        fitted = getattr(self, "feature_names_in_", None)
        if reset and names is not None:
            self.feature_names_in_ = np.array(names[:], object)
        elif reset and fitted is not None:
            del self.feature_names_in_
        elif names is not None and fitted is not None:
            for j in np.flatnonzero(np.array(names[:], object) != fitted)[:1].tolist():
                found = names[j : j + 1][0]
                raise SpecError(f"X must have the columns of fit, in their order; column {j} is {found!r}, not {fitted[j]!r}.")

    @property
    def _n_features_out(self) -> int:
        return int(self.components_.shape[0])


def _require_finite(results: Array, block: Array, start: int) -> None:
    """Name the entry that spoilt what was computed of a block, if one did (NonFiniteError)."""
    if not np.isfinite(results).all():
        for i, j in np.argwhere(~np.isfinite(block))[:1].tolist():
            raise NonFiniteError(start + i, j, block[i, j].item())
