"""Certificates: what a finished job measured of its own answer.

A check is one number with the threshold it must stay under, scaled as LAPACK's testers scale (by the matrix's norm, its
size and the precision), and a sentence that says in plain words what it means.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.errors import CertificateError

#: LAPACK's test programs accept a scaled residual under this (``THRESH`` in ``dtest.in``).
LAPACK_THRESHOLD = 30.0


@dataclass(frozen=True)
class Check:
    """One measured property of an answer.

    Parameters
    ----------
    name : str
        The formula, such as ``||I - U'U|| / (k eps)``.
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
    """All checks of one answer; passed when every check passed."""

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        return all(check.passed for check in self.checks)

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
            Naming each failed check, its value and its threshold.
        """
        failed = [f"{c.name} = {c.value:.3g}, must be under {c.threshold:.3g} ({c.meaning})" for c in self.checks if not c.passed]
        if failed:
            raise CertificateError("The answer failed its certificate: " + "; ".join(failed) + ".")


def orthogonality(name: str, gram: np.ndarray, dtype: np.dtype[Any], meaning: str) -> Check:
    """Check ``||I - Q^H Q||_2 / (k eps)`` from the Gram matrix ``Q^H Q`` (k, k) of a computed Q.

    References
    ----------
    LAPACK ``dort01``.
    """
    k = gram.shape[0]
    finite = bool(np.isfinite(gram).all())
    deviation = (float(np.linalg.norm(gram - np.eye(k), 2)) if k else 0.0) if finite else math.inf
    scale = max(k, 1) * float(np.finfo(dtype).eps)
    return Check(f"||I - {name}'{name}|| / (k eps)", deviation / scale, LAPACK_THRESHOLD, meaning)
