"""SciPy's own tests of linear algebra on dlscale's functions: no wrong answer, and what is refused is refused for a reason."""

from __future__ import annotations

from pathlib import Path

import pytest
from peers.running import run_peer

_WORDS = "the warning is SciPy's LinAlgWarning in other words: nearly singular"

#: Tests that do not hold, and why.
OTHERWISE = {
    **{
        f"TestSolve::test_ill_condition_warning[{structure}]": _WORDS
        for structure in ("symmetric", "hermitian", "positive definite", "general", "lower triangular", "upper triangular", "None")
    },
    "TestSolve::test_exactly_singular_gh22263[positive definite]": "refused in other words: not positive definite",
    "TestDet::test_simple_check_finite": "refused in other words, which say where the NaN stands",
    "TestSVD_GESDD::test_degenerate": "options of LAPACK's drivers do not go through",
    "TestSVD_GESVD::test_degenerate": "options of LAPACK's drivers do not go through",
}

#: What is looked at of each module, and which functions of dlscale answer there. Overwriting and the signs of one QR beside those
#: of another are not dlscale's.
MODULES = {
    "test_basic": (
        "(TestSolve or TestInv or TestDet or TestLstsq or TestDTypes) and not overwrite and not structure and not Banded",
        ["solve", "solve_triangular", "inverse", "slogdet", "lstsq"],
    ),
    "test_decomp": ("TestSVD or TestQR and not left and not right and not pivoting and not lwork", ["svd", "qr"]),
    "test_decomp_lu": ("Test", ["lu", "solve"]),
    "test_decomp_cholesky": ("TestCholesky and not Banded", ["cholesky"]),
}


@pytest.mark.parametrize("module", MODULES)
def test_scipy(module: str, tmp_path: Path) -> None:
    names, functions = MODULES[module]
    found = run_peer(f"scipy.linalg.tests.{module}", names, tmp_path)
    assert not {name: words for name, words in found["failed"].items() if name not in OTHERWISE}
    assert found["passed"] > 10
    for name in functions:
        assert found["served"][name] > 1, name


def test_scipy_with_pivoting(tmp_path: Path) -> None:
    """By themselves: they hold the pivoted factors beside others of the same columns, which must have the same signs."""
    found = run_peer("scipy.linalg.tests.test_decomp", "TestQR and pivoting and not left and not right and not lwork", tmp_path)
    assert not found["failed"]
    assert found["passed"] > 10
    assert found["served"]["qr"] > 20
