"""Solves as functions: arrays or URIs in, arrays out, in this process."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from scipy.linalg import LinAlgWarning

from dlscale.engine.clusters import describe_cluster, open_cluster
from dlscale.engine.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.linalg.factoring import Assume
from dlscale.linalg.inverse import InverseOptions, compute_inverse, plan_inverse
from dlscale.linalg.lstsq import LstsqOptions, compute_lstsq, plan_lstsq
from dlscale.linalg.slogdet import SlogdetOptions, compute_slogdet, plan_slogdet
from dlscale.linalg.solve import NEARLY_SINGULAR, Precision, Refine, SolveOptions, compute_solve, plan_solve
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import Array, open_matrix


class LstsqResult(NamedTuple):
    """A least squares solution, in the order of `numpy.linalg.lstsq`.

    Parameters
    ----------
    x : (n,) or (n, k)
        Of minimum norm.
    residuals : list of k floats
        ``||b_j - A x_j||^2``, whatever the rank.
    rank : int
    s : (min(m, n),), optional
        Singular values of A; None of a matrix that is large both ways and of full rank, which did not need them.
    """

    x: Array
    residuals: list[float]
    rank: int
    s: Array | None


class SlogdetResult(NamedTuple):
    """``det A = sign exp(logabsdet)``."""

    sign: complex
    logabsdet: float


def solve(
    A: Any,
    b: Any,
    *,
    assume: Assume = "general",
    precision: Precision = "double",
    refine: Refine = "auto",
    panel: int | None = None,
) -> Array:
    """Solve ``A x = b``.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL
    b : (n,) or (n, k), the same
    assume : str
        ``general``; ``pos``: Hermitian positive definite, half of the work; ``sym``: Hermitian.
    precision : str
        ``mixed`` factors in single precision, in half of the time, and refines to double precision; where that does not
        converge the matrix is factored in double precision.
    refine : str
        ``auto``: while the backward error asks for it; ``never``.
    panel : int, optional
        Columns of a panel.

    Returns
    -------
    x : (n,) or (n, k)

    Raises
    ------
    NumericalError
        If the matrix is exactly singular (naming the step), or not positive definite where that was assumed.
    SpecError, InputError
        If an argument does not suit the matrix, or it cannot be read.
    NonFiniteError
        Naming the row and column of a NaN or infinity.
    CertificateError
        If the backward error is not at rounding level.

    Warns
    -----
    scipy.linalg.LinAlgWarning
        If the matrix is so nearly singular that no digit of x is sure.

    Notes
    -----
    2/3 n^3 flops. x has the wider precision of A and b.

    References
    ----------
    Golub and Van Loan (2013), section 3.5; Carson and Higham (2018) for mixed precision.
    """
    options = SolveOptions(assume=assume, precision=precision, refine=refine, panel=panel)
    _, arrays = _run(_system(A, b), options, plan_solve, compute_solve)
    return arrays["x"]


def lstsq(A: Any, b: Any, *, rcond: float | None = None) -> LstsqResult:
    """The x of minimum norm among those that minimize ``||b - A x||``.

    Parameters
    ----------
    A : (m, n) NumPy, Dask or Zarr array, path or URL
    b : (m,) or (m, k), the same
    rcond : float, optional
        Singular values up to this part of the largest count as zero; eps max(m, n) when absent.

    Returns
    -------
    LstsqResult

    Raises
    ------
    SpecError, InputError, NonFiniteError, CertificateError
        As for `solve`.

    Notes
    -----
    2 m n^2 flops of a tall matrix, and 2 reads of it.

    References
    ----------
    Golub and Van Loan (2013), section 5.5.
    """
    outcome, arrays = _run(_system(A, b), LstsqOptions(rcond=rcond), plan_lstsq, compute_lstsq)
    return LstsqResult(arrays["x"], outcome.estimates["residuals"], outcome.estimates["rank"], arrays.get("s"))


def inverse(A: Any, *, assume: Assume = "general") -> Array:
    """The inverse of a square matrix.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL
    assume : str
        As for `solve`, which needs a quarter of the work and is more accurate where a product with the inverse is wanted.

    Returns
    -------
    (n, n)

    Raises
    ------
    NumericalError, SpecError, InputError, NonFiniteError, CertificateError
        As for `solve`.

    Notes
    -----
    8/3 n^3 flops.
    """
    _, arrays = _run(
        Inputs({"matrix": open_matrix(A)}), InverseOptions(assume=assume), _on(plan_inverse), _on_passes(compute_inverse)
    )
    return arrays["inverse"]


def slogdet(A: Any, *, assume: Assume = "general") -> SlogdetResult:
    """Sign and logarithm of the determinant of a square matrix.

    Parameters
    ----------
    A : (n, n) NumPy, Dask or Zarr array, path or URL
    assume : str
        As for `solve`.

    Returns
    -------
    SlogdetResult
        0 and -inf of a singular matrix.

    Raises
    ------
    SpecError, InputError, NonFiniteError, CertificateError
        As for `solve`.

    Notes
    -----
    2/3 n^3 flops.
    """
    _, arrays = _run(
        Inputs({"matrix": open_matrix(A)}), SlogdetOptions(assume=assume), _on(plan_slogdet), _on_passes(compute_slogdet)
    )
    return SlogdetResult(arrays["sign"][0].item(), arrays["logabsdet"][0].item())


def _system(A: Any, b: Any) -> Inputs:
    return Inputs({"matrix": open_matrix(A), "rhs": open_matrix(b, vectors=True)})


def _on(plan: Callable[..., Any]) -> Callable[..., Any]:
    return lambda inputs, options, facts: plan(inputs["matrix"], options, facts)


def _on_passes(compute: Callable[..., Outcome]) -> Callable[..., Outcome]:
    return lambda run, inputs, options, plan: compute(run, inputs["matrix"], options, plan)


def _run(
    inputs: Inputs, options: Any, plan_of: Callable[..., Any], compute: Callable[..., Outcome]
) -> tuple[Outcome, dict[str, Array]]:
    """Plan, compute and require the certificate; the outcome with all its arrays."""
    facts = describe_cluster("threads")
    plan = plan_of(inputs, options, facts)
    with open_cluster(facts) as cluster:
        run = Run(cluster)
        outcome = compute(run, inputs, options, plan)
    outcome.certificate.require()
    for note in outcome.notes:
        if note.startswith(NEARLY_SINGULAR):
            warnings.warn(f"{note[0].upper()}{note[1:]}.", LinAlgWarning, stacklevel=3)
    return outcome, outcome.arrays | run.outputs
