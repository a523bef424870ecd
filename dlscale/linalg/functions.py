"""The functions of the Python interface: arrays or URIs in, named results out, in this process.

A job file runs the same algorithms on a cluster, with checkpoints (`dlscale.run`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from dlscale.arrays import Array
from dlscale.declaration.kind import run_here
from dlscale.linalg.svd import SVDOptions
from dlscale.linalg.svd.kind import KIND, Method


class SVDResult(NamedTuple):
    """``A ~ u diag(s) vh``.

    Parameters
    ----------
    u : (m, k)
    s : (k,), decreasing
    vh : (k, n)
    """

    u: Array
    s: Array
    vh: Array


def randomized_svd(
    A: Any,
    n_components: int,
    *,
    oversampling: int = SVDOptions.oversampling,
    power_iterations: int = SVDOptions.power_iterations,
    method: Method = SVDOptions.method,
    seed: int = SVDOptions.seed,
) -> SVDResult:
    """Leading singular triplets of a matrix, ``A ~ U S V^H``.

    Parameters
    ----------
    A : (m, n) NumPy, Dask or Zarr array, path or URL
    n_components : int
        k.
    oversampling : int
        Columns beyond k that the iterations carry.
    power_iterations : int
        q; A is read q + 1 times.
    method : str
        ``randomized``, ``krylov`` or ``streaming`` (`dlscale.linalg.svd.kind.SVDOptions`).
    seed : int

    Returns
    -------
    SVDResult
        ``u`` (m, k) and ``vh`` (k, n) orthonormal, ``s`` (k,); the signs of scikit-learn.

    Raises
    ------
    SpecError, InputError
        If an argument does not suit the matrix, or it cannot be read.
    NonFiniteError
        Naming the row and column of a NaN or infinity.
    CertificateError
        If the answer fails its own check.

    Notes
    -----
    4 m n (k + oversampling) (q + 1) flops, those of the power iterations in single precision where that is harmless
    (`dlscale.linalg.svd.kind.SVDOptions`).

    References
    ----------
    Halko, Martinsson, Tropp (2011), algorithms 4.4 and 5.1.
    """
    return _svd(
        A,
        SVDOptions(
            n_components=n_components, oversampling=oversampling, power_iterations=power_iterations, method=method, seed=seed
        ),
    )


def svd(A: Any) -> SVDResult:
    """Exact thin SVD of a tall or wide matrix, ``A = U S V^H``.

    Parameters
    ----------
    A : (m, n) NumPy, Dask or Zarr array, path or URL

    Returns
    -------
    SVDResult
        With k = min(m, n).

    Raises
    ------
    SpecError, InputError, CertificateError
        As for `randomized_svd`.

    Notes
    -----
    2 to 5 reads of A; about 6 m n^2 flops.
    """
    return _svd(A, SVDOptions(method="exact"))


def _svd(A: Any, options: SVDOptions) -> SVDResult:
    arrays = run_here(KIND, KIND.inputs({"matrix": A}), options).arrays
    return SVDResult(arrays["u"], arrays["s"], arrays["vh"])
