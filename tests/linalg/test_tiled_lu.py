"""LU of panels in row blocks: the pivots of a tournament, for every matrix that LAPACK factors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
from factorizations import factor, row_order, scaled_residual
from helpers import DTYPES, each_of, eps, gaussian, two_dtypes

from dlscale import gallery
from dlscale.arrays import Array
from dlscale.certificates import LAPACK_THRESHOLD
from dlscale.engine.clusters.facts import describe_cluster
from dlscale.engine.clusters.opening import open_cluster
from dlscale.engine.passes import Passes
from dlscale.engine.run import Run
from dlscale.engine.tiles.grid import PANEL_COLUMNS, WIDE_PANEL_COLUMNS, PanelGrid
from dlscale.errors import SpecError
from dlscale.linalg.lu.kind import LUOptions, factor_panels, plan_lu, row_move
from dlscale.storage.matrices import open_matrix


def matrices(m: int, n: int) -> Iterator[tuple[str, Array]]:
    rng = np.random.default_rng(0)
    yield "random", rng.standard_normal((m, n))
    yield "rank one", np.ones((m, n))
    yield "rows of zeros", np.concatenate([np.zeros((m // 2, n)), rng.standard_normal((m - m // 2, n))])
    singular = rng.standard_normal((m, n))
    singular[:, n // 2] = 0
    yield "column of zeros", singular
    if m == n:
        yield "exchange", np.fliplr(np.eye(n))


@pytest.mark.parametrize(("row_blocks", "group"), [(2, 2), (5, 2), (5, 100)])
@pytest.mark.parametrize("shape", [(1, 1), (129, 129), (200, 70), (70, 200)])
def test_factors_multiply_to_the_matrix(shape: tuple[int, int], row_blocks: int, group: int) -> None:
    m, n = shape
    grid = PanelGrid(shape, min(16, n), group, row_blocks, 2)
    for name, A in matrices(m, n):
        with open_cluster(describe_cluster("threads")) as cluster:
            lu, pivots, _, seen = factor_panels(Passes(Run(cluster)), open_matrix(A), grid, probes=np.eye(n)[:, :4].copy())
        packed, k = lu.region((0, m), (0, n)), min(m, n)
        L, U = np.tril(packed[:, :k], -1) + np.eye(m, k), np.triu(packed[:k])
        move = row_move(0, pivots)
        PA = A.copy()
        PA[move.targets] = A[move.sources]
        residual = np.linalg.norm(PA - L @ U) / (max(np.linalg.norm(A), 1e-300) * max(m, n) * np.finfo(float).eps)
        assert residual < 30, name
        np.testing.assert_array_equal(seen.products, A[:, :4] if n >= 4 else A @ np.eye(n)[:, :4])


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("name", gallery.HARD_SQUARE)
def test_hard_matrices(name: str, dtype: str) -> None:
    """Panels of 32: one column, one panel, one column over it, two panels and a quarter; the residual of LAPACK's testers."""
    for n, group in ((1, None), (32, 1), (33, 1), (73, 2)):
        A = gallery.HARD_SQUARE[name](n, dtype)
        outcome, arrays = factor("lu", A, panel=min(n, 32), row_blocks=min(3, -(-n // 32)), group=group)
        if outcome.estimates["growth_factor"] * eps(A) > 1e-3:
            continue  # see `test_growth`
        assert outcome.certificate.passed, (n, outcome.certificate)
        lu, piv = arrays["lu"], arrays["piv"]
        L, U = np.tril(lu, -1) + np.eye(n, dtype=A.dtype), np.triu(lu)
        assert scaled_residual(A[row_order(piv, n)], L, U) < LAPACK_THRESHOLD


def test_growth() -> None:
    """It is that of partial pivoting; where it costs all digits the certificate says so."""
    for n in (12, 73):
        outcome, _ = factor("lu", gallery.wilkinson_growth(n), panel=6, row_blocks=2, group=2)
        assert outcome.estimates["growth_factor"] == 2.0 ** (n - 1)
        assert outcome.certificate.passed == (n == 12)


def test_panels_that_do_not_divide_the_order() -> None:
    A = gaussian(2321, 2321)
    outcome, arrays = factor("lu", A, panel=1024, row_blocks=2)
    assert outcome.certificate.passed
    x = scipy.linalg.lu_solve((arrays["lu"], arrays["piv"]), np.ones(2321))
    assert np.linalg.norm(A @ x - 1) / (np.linalg.norm(A) * np.linalg.norm(x) * eps(A)) < LAPACK_THRESHOLD


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_result_solves(dtype: str) -> None:
    A, b = gaussian(150, 150, dtype), np.ones(150, dtype)
    _, arrays = factor("lu", A, panel=16, row_blocks=3, group=4)
    x = scipy.linalg.lu_solve((arrays["lu"], arrays["piv"]), b)
    assert np.linalg.norm(A @ x - b) / (np.linalg.norm(A) * np.linalg.norm(x) * eps(A)) < 150


def test_too_many_row_blocks_are_refused() -> None:
    with pytest.raises(SpecError, match="row_blocks must be at most 4"):
        plan_lu(open_matrix(np.eye(64)), LUOptions(panel=16, row_blocks=5), describe_cluster("threads"))


def test_panels_are_only_so_wide_that_there_are_as_many_row_blocks_as_asked_for() -> None:
    """Whole panels of a matrix that fits in memory are wide; those in row blocks are not, so that 20 of them fit 16,384 rows."""
    A = open_matrix(np.broadcast_to(np.zeros(()), (16384, 16384)))
    facts = replace(describe_cluster("threads"), memory_bytes=2**36)
    assert plan_lu(A, LUOptions(), facts).panels.panel == WIDE_PANEL_COLUMNS
    assert plan_lu(A, LUOptions(row_blocks=20), facts).panels.panel == PANEL_COLUMNS
