"""Triangular systems, stored in every layout: backward error, and each op of each triangle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import Array, each_of, eps, gaussian, norm, store, two_dtypes

from dlscale.engine.tiles.grid import PanelGrid
from dlscale.engine.tiles.methods import Factored
from dlscale.linalg.solve.factors import CholeskyFactors, Factorization, LUFactors, QRFactors
from dlscale.linalg.solve.substitution import Substitution
from dlscale.linalg.solve.triangular import How, solve_triangular
from dlscale.storage.matrices import open_matrix

OPS = {"N": lambda T: T, "T": lambda T: T.T, "C": lambda T: T.conj().T}


def triangle(n: int, dtype: str) -> Array:
    """Both triangles are well conditioned, with the diagonal as it is and with ones in its place."""
    A = gaussian(n, n, dtype, seed=n) / (2 * n)
    A[np.arange(n), np.arange(n)] += 2
    return A


def check(T: Array, X: Array, B: Array, *, lower: bool, op: str, unit: bool) -> None:
    """||B - op(T) X|| <= c n eps ||T|| ||X|| (Higham 2002, theorem 8.5)."""
    kept = np.tril(T) if lower else np.triu(T)
    if unit:
        np.fill_diagonal(kept, 1)
    assert X.dtype == T.dtype
    assert norm(OPS[op](kept) @ X - B) <= len(T) * eps(T) * norm(kept) * norm(X)


@each_of(dtype=two_dtypes)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("n", [1, 32, 33, 150])
def test_every_triangle(n: int, lower: bool, op: str, dtype: str) -> None:
    """One unknown, one panel, one over a panel, several."""
    T, B = triangle(n, dtype), gaussian(n, 3, dtype)
    for unit in (False, True):
        X = solve_triangular(open_matrix(T), B, lower=lower, op=op, unit=unit, how=How(panel=32, n_threads=2))
        check(T, X, B, lower=lower, op=op, unit=unit)


@pytest.mark.parametrize("chunks", [(150, 32), (20, 150), (33, 33), (150, 150), (7, 40)], ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("lower", [True, False])
def test_every_layout(chunks: tuple[int, int], lower: bool, op: str, tmp_path: Path) -> None:
    T, B = triangle(150, "c16"), gaussian(150, 2, "c16")
    stored = open_matrix(str(store(tmp_path / "t.zarr", T, chunks=chunks, compressors=None)))
    check(T, solve_triangular(stored, B, lower=lower, op=op, how=How(panel=32)), B, lower=lower, op=op, unit=False)


def test_the_bits_do_not_depend_on_the_threads() -> None:
    T, B = open_matrix(triangle(700, "f8")), gaussian(700, 2)
    for op in OPS:
        one, three = (solve_triangular(T, B, lower=True, op=op, how=How(panel=32, n_threads=count)) for count in (1, 3))
        np.testing.assert_array_equal(one, three)


def test_a_zero_on_the_diagonal_is_not_hidden() -> None:
    T = triangle(5, "f8")
    T[2, 2] = 0
    assert not np.isfinite(solve_triangular(open_matrix(T), np.ones((5, 1)), lower=True)).all()


@pytest.mark.parametrize("chunks", [(150, 32), (20, 150), (33, 33), (7, 40)], ids=str)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("lower", [True, False])
def test_slabs_know_nothing_of_each_other_and_take_what_is_said(
    chunks: tuple[int, int], lower: bool, op: str, tmp_path: Path
) -> None:
    """Zeros that a right-hand side begins with are left out, in the slab that has them."""
    T, B = triangle(150, "f8"), gaussian(150, 6, "f8")
    B[:70, 2:4], B[:149, 4:] = 0, 0
    stored = open_matrix(str(store(tmp_path / "t.zarr", T, chunks=chunks, compressors=None)))
    way = Substitution.of(stored, panel=32)
    told: list[tuple[float, int]] = []
    X = solve_triangular(
        stored, B, lower=lower, op=op, how=How(None, 2, 2, lambda flops, n_bytes: told.append((flops, n_bytes)), panel=32)
    )
    check(T, X, B, lower=lower, op=op, unit=False)
    firsts = (0, 70, 149)
    costs = [way.cost(lower=lower, op=op, first=first) for first in firsts]
    assert sum(flops for flops, _ in told) == sum(2 * cost.flops for cost in costs)
    assert sum(n_bytes for _, n_bytes in told) == max(cost.bytes_read for cost in costs) == costs[0].bytes_read
    for j in (0, 2, 4):
        alone = solve_triangular(stored, B[:, j : j + 2], lower=lower, op=op, how=How(panel=32))
        np.testing.assert_array_equal(X[:, j : j + 2], alone)


@pytest.mark.parametrize("kind", ["lu", "cholesky", "qr"])
def test_factors_in_memory_have_the_bits_of_those_on_disk(kind: str, tmp_path: Path) -> None:
    T, B = triangle(150, "f8"), gaussian(150, 3, "f8")
    stored = open_matrix(str(store(tmp_path / "t.zarr", T, chunks=(60, 32), compressors=None)))
    facts = [{"t": np.eye(min(32, 150 - i))} for i in range(0, 150, 32)]
    factors: Factorization = {
        "lu": LUFactors(stored, np.arange(150)),
        "cholesky": CholeskyFactors(stored),
        "qr": QRFactors(Factored(PanelGrid((150, 150), 32, 5), stored, facts)),
    }[kind]
    read: list[int] = []
    inside = factors.loaded(tell=lambda _, n_bytes: read.append(n_bytes))
    assert sum(read) == factors.stored_bytes == inside.stored_bytes
    for adjoint in (False, True):
        np.testing.assert_array_equal(inside.solve(B, adjoint=adjoint), factors.solve(B, adjoint=adjoint))
