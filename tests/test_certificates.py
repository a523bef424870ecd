"""Certificates: what passes, what does not, and what is said."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from dlscale.certificates import LAPACK_THRESHOLD, Certificate, Check, factorization, orthogonality, scaled, solution
from dlscale.errors import CertificateError


@pytest.mark.parametrize(("value", "passed"), [(0.0, True), (30.0, True), (30.1, False), (math.nan, False), (math.inf, False)])
def test_a_check_passes_up_to_its_threshold(value: float, passed: bool) -> None:
    assert Check("||x||", value, 30.0, "it is small").passed is passed


def test_a_certificate_needs_all_of_its_checks() -> None:
    good, bad = Check("a", 1.0, 30.0, "a holds"), Check("||b||", 1e7, 30.0, "b holds")
    assert Certificate((good,)).passed
    Certificate((good,)).require()
    assert not Certificate((good, bad)).passed
    with pytest.raises(CertificateError, match=r"\|\|b\|\| = 1e\+07, must be under 30 \(b holds\)"):
        Certificate((good, bad)).require()


def test_through_json_and_back() -> None:
    certificate = Certificate((Check("a", 1.5, 30.0, "a holds"), Check("b", 31.0, 30.0, "b holds")))
    record = json.loads(json.dumps(certificate.to_dict()))
    assert Certificate.from_dict(record) == certificate
    assert record["passed"] is False
    assert [check["passed"] for check in record["checks"]] == [True, False]


@pytest.mark.parametrize("dtype", ["f4", "f8", "c8", "c16"])
def test_orthogonality_in_units_of_size_and_precision(dtype: str) -> None:
    """An orthonormal matrix passes; one column too long by 100 k eps does not; no columns at all do."""
    k, kind = 20, np.dtype(dtype)
    eps = float(np.finfo(kind).eps)
    Q = np.linalg.qr(np.random.default_rng(0).standard_normal((300, k)))[0]
    assert orthogonality("Q", Q.T @ Q, kind, "").passed
    Q[:, 3] *= 1 + 50 * k * eps
    check = orthogonality("Q", Q.T @ Q, kind, "")
    assert check.value == pytest.approx(100, rel=0.3)
    assert check.threshold == LAPACK_THRESHOLD
    assert not check.passed
    assert orthogonality("Q", np.zeros((0, 0)), kind, "").passed
    assert not orthogonality("Q", np.full((2, 2), np.nan), kind, "").passed


def test_scaled_residuals() -> None:
    double = np.dtype("f8")
    assert factorization("A - QR", 3 * 2.0**-52, 2.0, size=3, dtype=double).value == 0.5
    assert scaled("r", 1.0, 1e200, 1e200, dtype=double, meaning="").passed
    assert scaled("r", 0.0, 0.0, dtype=double, meaning="").value == 0
    assert not scaled("r", 1e-300, 0.0, dtype=double, meaning="").passed
    assert not scaled("r", 1.0, math.inf, dtype=double, meaning="").passed


def test_the_worst_column_of_a_solution_decides() -> None:
    single = np.dtype("f4")
    assert solution(np.array([0.0, 2.0**-22]), 1.0, np.array([0.0, 2.0]), single).value == 1
    assert not solution(np.array([math.nan, 0.0]), 1.0, np.ones(2), single).passed
