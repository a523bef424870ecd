"""Certificates: what a finished job measured of its own answer.

A check is one number with the threshold it must stay under, scaled as LAPACK's testers scale (by the matrix's norm, its
size and the precision), and a sentence that says in plain words what it means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlscale.errors import CertificateError

#: LAPACK's test programs accept a scaled residual under this (``THRESH`` in ``dtest.in``).
LAPACK_THRESHOLD = 30.0

_NEARLY_SINGULAR = "the matrix is nearly singular"


@dataclass(frozen=True)
class Check:
    """One measured property of an answer.

    Parameters
    ----------
    name : str
        The formula, such as ``||I - U'U|| / (256 eps)``.
    value, threshold : float
        The measurement, and what it must not exceed.
    meaning : str
        What it says, in words for a reader who does not know the formula.
    """

    name: str
    value: float
    threshold: float
    meaning: str

    @property
    def passed(self) -> bool:
        return math.isfinite(self.value) and self.value <= self.threshold

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value,
            "threshold": self.threshold,
            "passed": self.passed,
            "meaning": self.meaning,
        }


@dataclass(frozen=True)
class Certificate:
    """All checks of one answer, passed when every check passed, and what to do if one did not."""

    checks: tuple[Check, ...]
    advice: str = ""

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

    def also(self, *checks: Check) -> Certificate:
        """With further checks."""
        return replace(self, checks=self.checks + checks)

    def to_dict(self) -> dict[str, Any]:
        return {"passed": self.passed, "checks": [check.to_dict() for check in self.checks]}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Certificate:
        fields = ("name", "value", "threshold", "meaning")
        return cls(tuple(Check(**{field: check[field] for field in fields}) for check in record["checks"]))

    def require(self) -> None:
        """Raise if a check failed.

        Raises
        ------
        CertificateError
            Naming each failed check, its value and its threshold, with the advice.
        """
        failed = [f"{c.name} = {c.value:.3g}, must be under {c.threshold:.3g} ({c.meaning})" for c in self.checks if not c.passed]
        if failed:
            raise CertificateError(f"The answer failed its certificate: {'; '.join(failed)}. {self.advice}".rstrip())


#: Sums that BLAS makes one term after the other: as many equal products are all rounded to the same side.
_BLAS_TERMS = 256


def orthogonality(name: str, gram: np.ndarray, dtype: np.dtype[Any], meaning: str, *, length: int = 1) -> Check:
    """Check ``||I - Q^H Q||_2`` in units of rounding, from the Gram matrix ``Q^H Q`` (k, k) of a computed Q (length, k).

    Notes
    -----
    Divided by eps and by k or the length of the columns, whichever is more, but not by more than BLAS adds up in one go: in
    long columns LAPACK's division by their length would let pass what is not orthonormal at all.

    References
    ----------
    LAPACK ``dort01``.
    """
    k = gram.shape[0]
    finite = bool(np.isfinite(gram).all())
    deviation = (float(np.linalg.norm(gram - np.eye(k), 2)) if k else 0.0) if finite else math.inf
    size = max(k, min(length, _BLAS_TERMS), 1)
    return Check(
        f"||I - {name}'{name}|| / ({size} eps)", deviation / (size * float(np.finfo(dtype).eps)), LAPACK_THRESHOLD, meaning
    )


def scaled(name: str, value: float, *norms: float, size: int = 1, dtype: np.dtype[Any], meaning: str) -> Check:
    """Check ``value / (norm_1 norm_2 ... size eps)``; the norms divide one by one, so that their product cannot overflow.

    Parameters
    ----------
    name : str
        The formula.
    value : float
        Such as the norm of a residual; 0 passes whatever the norms are.
    norms : float
        Not negative.
    size : int
        Such as max(m, n), where LAPACK's tester divides by it.
    dtype : numpy.dtype
        Its eps is meant.
    meaning : str
    """
    ratio = value / float(np.finfo(dtype).eps) / size
    for norm in norms:
        if ratio == 0:
            break
        ratio = ratio / norm if 0 < norm < math.inf else math.inf
    return Check(name, ratio, LAPACK_THRESHOLD, meaning)


def factorization(name: str, residual: float, norm: float, *, size: int, dtype: np.dtype[Any]) -> Check:
    """Check ``||A - product of the factors|| / (||A|| n eps)``.

    Parameters
    ----------
    name : str
        The difference, such as ``PA - LU``.
    residual, norm : float
        Of the difference and of A: both 1-norms, or both measured on the same random vectors.
    size : int
        max(m, n).
    dtype : numpy.dtype

    References
    ----------
    LAPACK ``dget01``, ``dpot01``, ``dqrt01``.
    """
    meaning = f"{name} is zero to working precision"
    return scaled(f"||{name}|| / (||A|| n eps)", residual, norm, size=size, dtype=dtype, meaning=meaning)


def solution(residuals: np.ndarray, norm: float, sizes: np.ndarray, dtype: np.dtype[Any]) -> Check:
    """Check ``max_j ||b_j - A x_j|| / (||A|| ||x_j|| eps)``, the backward error of a solve in units of rounding.

    Parameters
    ----------
    residuals, sizes : (k,)
        1-norms of ``b_j - A x_j`` and of ``x_j``.
    norm : float
        ``||A||_1``.
    dtype : numpy.dtype

    References
    ----------
    LAPACK ``dget02``. Rigal and Gaches (1967): the smallest relative change of A that makes x exact has this size.
    """
    errors = [scaled("", float(r), norm, float(x), dtype=dtype, meaning="").value for r, x in zip(residuals, sizes, strict=True)]
    value = max(errors) if all(map(math.isfinite, errors)) else math.inf
    meaning = "every column of x solves exactly a system whose matrix differs from A by rounding only"
    return Check("||b - Ax|| / (||A|| ||x|| eps)", value, LAPACK_THRESHOLD, meaning)


def near_singular_words(number: float, dtype: np.dtype[Any]) -> str:
    """The note that a condition number leaves no digit of a solution sure."""
    size = f"about {number:.1e} or more" if np.isfinite(number) else "out of range"
    return f"{_NEARLY_SINGULAR}: the condition number is {size}, so that no digit of an answer in {dtype} is sure"


def leaves_no_digit(note: object) -> bool:
    """Whether a note is that of `near_singular_words`."""
    return str(note).startswith(_NEARLY_SINGULAR)
