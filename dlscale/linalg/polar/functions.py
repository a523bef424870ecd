"""The polar decomposition as a function: an array or a URI in, arrays out, in this process."""

from __future__ import annotations

from typing import Any, NamedTuple

from dlscale.arrays import Array
from dlscale.declaration.kind import run_here
from dlscale.errors import SpecError
from dlscale.linalg.polar.kind import KIND
from dlscale.linalg.polar.options import PolarOptions, Side


class PolarResult(NamedTuple):
    """``A = U P``, or ``A = P U``.

    Parameters
    ----------
    u : (m, n)
        With orthonormal columns, or rows where there are fewer of these.
    p : (n, n), or (m, m) of the left decomposition
        Hermitian, positive semidefinite.
    """

    u: Array
    p: Array


def polar(a: Any, side: Side = "right") -> PolarResult:
    """Polar decomposition of a matrix, as `scipy.linalg.polar`: ``A = U P`` (right) or ``A = P U`` (left).

    Parameters
    ----------
    a : (m, n) NumPy, Dask or Zarr array, path or URL
    side : {"right", "left"}

    Returns
    -------
    PolarResult
        U is the nearest matrix with orthonormal columns (or rows) to A, in every unitarily invariant norm.

    Raises
    ------
    SpecError, InputError
        If the side is none, or the matrix cannot be read.
    CertificateError
        If the answer fails its own check.

    Notes
    -----
    Of a matrix without full rank U is one of several; P is not.

    References
    ----------
    Higham (2008), Functions of Matrices, chapter 8.
    """
    if side not in ("right", "left"):
        raise SpecError(f"side must be right or left; got {side!r}.")
    inputs = KIND.inputs({"matrix": a})
    m, n = inputs["matrix"].shape
    own: Side = side if m == n else "right" if m > n else "left"
    arrays = run_here(KIND, inputs, PolarOptions(side=own)).arrays
    u, p = arrays["u"], arrays["p"]
    if own != side:
        # The other Hermitian factor is this one between U and its adjoint: U P = (U P U^H) U.
        p = u @ p @ u.conj().T if side == "left" else u.conj().T @ p @ u
        p = (p + p.conj().T) / 2
    return PolarResult(u, p)
