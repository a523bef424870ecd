"""Products of compressed rows less a row of all of them: those of the dense block, to rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.sparse
from sparse_matrices import random_sparse

from dlscale import sparse_rows
from dlscale.kernels import Moments, add_gram, add_normal_product
from dlscale.sparse_rows import SparseRows, stacked
from dlscale.storage.matrices import open_matrix


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_every_product_is_that_of_the_dense_block(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(first, first + 20):
        check_products(seed, monkeypatch)


def check_products(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    A, dense = random_sparse(seed)
    matrix = open_matrix(A)
    block, rng = SparseRows(matrix.rows(0, A.shape[0])), np.random.default_rng(seed)
    (m, n), dtype = A.shape, block.dtype
    B = dense.astype(np.result_type(dtype, "f8"))
    size = max(np.abs(B).max(), 1) ** 2 * (m + n)
    for shift in (None, rng.standard_normal(n) * 3, block.typical_row()):
        if shift is not None:
            centred, B = block.less(shift), dense.astype(np.result_type(dtype, "f8")) - shift
        else:
            centred = block
        W, Y = rng.standard_normal((n, 3)).astype(dtype), rng.standard_normal((m, 2)).astype(dtype)
        rtol = 1e-6 if dtype in ("f4", "c8") else 1e-12
        tolerance: dict[str, Any] = {"rtol": rtol, "atol": size * rtol, "err_msg": f"seed {seed}"}
        np.testing.assert_allclose(centred.times(W), B @ W, **tolerance)
        np.testing.assert_allclose(centred.adjoint_times(Y), Y.conj().T @ B, **tolerance)
        np.testing.assert_allclose(centred.transposed_times(Y), B.T @ Y, **tolerance)
        some, half = rng.integers(0, m, 5), m // 2
        parts = [part if shift is None else part.less(shift) for part in (block[:half], block[half:]) if len(part)]
        np.testing.assert_allclose(stacked([centred[some], *parts]).toarray(), np.vstack([B[some], B]), **tolerance)
        np.testing.assert_allclose(centred.sums(), B.sum(axis=0), **tolerance)
        np.testing.assert_allclose(centred.squares(), np.vdot(B, B).real, **tolerance)
        ZH, moments = np.zeros((3, n), B.dtype), Moments(np.zeros(n, B.dtype), 0.0, probe=W[:, 0])
        product = add_normal_product(block, W, ZH, mean=shift, moments=moments)
        np.testing.assert_allclose(product, B @ W, **tolerance)
        np.testing.assert_allclose(ZH, product.astype(B.dtype).conj().T @ B, **tolerance)
        np.testing.assert_allclose(moments.met, (dense.astype(B.dtype) @ W[:, 0]).sum(), **tolerance)
        monkeypatch.setattr(sparse_rows, "_SPARSE_GRAM_UNTIL", seed % 2)
        G, moments = np.zeros((n, n), B.dtype), Moments(probe=W[:, 0], probed=np.zeros(n, B.dtype))
        add_gram(block, G, mean=shift, moments=moments)
        np.testing.assert_allclose(np.triu(G), np.triu(B.conj().T @ B), **tolerance)
        np.testing.assert_allclose(moments.probed, (B @ W[:, 0]).conj() @ B, **tolerance)


@pytest.mark.parametrize("width", [0, 1, 3, 16])
def test_parts_beside_the_diagonal(width: int) -> None:
    dense = np.random.default_rng(0).standard_normal((17, 17)) * (np.arange(17) % 3 > 0)
    block = SparseRows(scipy.sparse.csr_array(dense)[5:12])
    expected = np.zeros((7, width))
    for i in range(7):
        start = (5 + i) // width * width if width else 0
        part = dense[5 + i, start : start + width]
        expected[i, : len(part)] = part
    np.testing.assert_array_equal(block.blocks_beside(5, width), expected)
    np.testing.assert_allclose(block.column_squares(), (dense[5:12] ** 2).sum(axis=0))


def test_constant_columns_leave_zeros() -> None:
    dense = np.zeros((7, 3))
    dense[:, 1] = 0.1
    dense[2, 2] = 5
    block = SparseRows(open_matrix(scipy.sparse.csr_array(dense)).rows(0, 7))
    centred = block.less(block.typical_row())
    np.testing.assert_allclose(centred.squares(), np.sum((dense[:, 2] - 5 / 7) ** 2), rtol=1e-14)
    assert (centred.adjoint_times(np.ones((7, 1)))[0, :2] == 0).all()


def test_the_first_entry_that_is_no_number() -> None:
    dense = np.zeros((7, 3))
    dense[5, 1], dense[3, 2] = np.nan, np.inf
    block = SparseRows(open_matrix(scipy.sparse.csr_array(dense)).rows(0, 7))
    assert block.first_not_finite() == (3, 2, np.inf)
    np.testing.assert_array_equal(block.places_not_finite(), [[3, 2], [5, 1]])
