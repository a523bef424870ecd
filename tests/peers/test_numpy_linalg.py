"""NumPy's own tests of linear algebra on dlscale's functions: no wrong answer, and what is refused is refused for a reason."""

from __future__ import annotations

from pathlib import Path

from peers.running import run_peers

NAMES = (
    "TestSolve or TestInv or TestDet or TestLstsq or TestQR or TestCholesky or TestSVD or TestCond or TestPinv or TestNorm or "
    "TestMatrixRank or TestMatrixPower or test_matmul or test_trace"
)

#: Tests that do not hold, and why.
OTHERWISE = {
    "TestLstsq::test_rcond": "rcond: -1, for a rank that rounding decides, is no option: rcond must be at least 0",
    "TestQR::test_mode_all_but_economic": "in float32 it allows 1.5e-6 whatever the norm; here a few units of rounding",
}


def test_numpy(tmp_path: Path) -> None:
    found = run_peers({"numpy": ("numpy.linalg.tests.test_linalg", NAMES)}, tmp_path)["numpy"]
    assert not {name: words for name, words in found["failed"].items() if name not in OTHERWISE}
    assert found["passed"] > 100
    names = ("solve", "inverse", "slogdet", "lstsq", "qr", "cholesky", "svd", "det", "norm", "cond", "matrix_rank", "pinv")
    for name in (*names, "matrix_power"):
        assert found["served"][name] > 1, name
