"""NumPy's and SciPy's own tests of linear algebra on dlscale's functions: no wrong answer, and each refusal for a reason."""

from __future__ import annotations

from typing import Any

import pytest
from peers.running import run_peers

_WORDS = "the warning is SciPy's LinAlgWarning in other words: nearly singular"

#: Tests that do not hold, and why.
OTHERWISE_IN_NUMPY = {
    "TestLstsq::test_rcond": "rcond: -1, for a rank that rounding decides, is no option: rcond must be at least 0",
    "TestNormSingle::test_axis": "it compares float32 norms of 36, whose last digits are 4e-6 apart, to 6 decimals",
    "TestQR::test_mode_all_but_economic": "in float32 it allows 1.5e-6 whatever the norm; here a few units of rounding",
}
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
#: of another are not dlscale's, nor is long double; of LAPACK's three drivers of least squares, tests of one are enough.
MODULES = {
    "test_basic": (
        "(TestSolve or TestInv or TestDet or TestLstsq or TestDTypes) and not overwrite and not structure and not Banded "
        "and not gelss and not gelsy and not longdouble",
        ["solve", "solve_triangular", "inverse", "slogdet", "lstsq"],
    ),
    "test_decomp": ("TestSVD or TestQR and not left and not right and not pivoting and not lwork", ["svd", "qr"]),
    "test_decomp_lu": ("Test", ["lu", "solve"]),
    "test_decomp_cholesky": ("TestCholesky and not Banded", ["cholesky"]),
}


NUMPY = (
    "TestSolve or TestInv or TestDet or TestLstsq or TestQR or TestCholesky or TestSVD or TestCond or TestPinv or TestNorm or "
    "TestMatrixRank or TestMatrixPower or test_matmul or test_trace"
)

#: By themselves: they hold the pivoted factors beside others of the same columns, which must have the same signs.
PIVOTING = "TestQR and pivoting and not left and not right and not lwork"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of the tests of each module, and of those with pivoting."""
    chosen = {module: (f"scipy.linalg.tests.{module}", names) for module, (names, _) in MODULES.items()}
    chosen |= {"pivoting": ("scipy.linalg.tests.test_decomp", PIVOTING), "numpy": ("numpy.linalg.tests.test_linalg", NUMPY)}
    return run_peers(chosen, tmp_path_factory.mktemp("peers"))


def test_numpy(found: dict[str, dict[str, Any]]) -> None:
    assert not {name: words for name, words in found["numpy"]["failed"].items() if name not in OTHERWISE_IN_NUMPY}
    assert found["numpy"]["passed"] > 100
    names = ("solve", "inverse", "slogdet", "lstsq", "qr", "cholesky", "svd", "det", "norm", "cond", "matrix_rank", "pinv")
    for name in (*names, "matrix_power"):
        assert found["numpy"]["served"][name] > 1, name


@pytest.mark.parametrize("module", MODULES)
def test_scipy(module: str, found: dict[str, dict[str, Any]]) -> None:
    assert not {name: words for name, words in found[module]["failed"].items() if name not in OTHERWISE}
    assert found[module]["passed"] > 10
    for name in MODULES[module][1]:
        assert found[module]["served"][name] > 1, name


def test_scipy_with_pivoting(found: dict[str, dict[str, Any]]) -> None:
    assert not found["pivoting"]["failed"]
    assert found["pivoting"]["passed"] > 10
    assert found["pivoting"]["served"]["qr"] > 20
