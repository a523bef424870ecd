"""Two hundred sparse matrices as somebody may have written them: the dense answer to rounding, or a refusal with row and column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sparse_matrices import random_sparse

import dlscale
from dlscale.errors import DlscaleError, NonFiniteError
from dlscale.storage.matrices import open_matrix

#: By name what is asked, as numbers that do not depend on signs or on an order of equals.
ASKED: dict[str, Callable[[Any], Any]] = {
    "norms": lambda A: [dlscale.norm(A, ord) for ord in ("fro", 1, np.inf, 2)],
    "svd": lambda A: dlscale.svd(A).s,
    "leading": lambda A: dlscale.randomized_svd(A, min(A.shape), oversampling=30).s,
    "covariance": lambda A: dlscale.PCA(solver="covariance").fit(A).explained_variance_,
    "randomized": lambda A: dlscale.PCA(min(A.shape), solver="randomized", oversampling=30).fit(A).explained_variance_,
}


def answered(ask: Callable[[Any], Any], A: Any) -> Any:
    """The numbers; None where it is refused, as one row is for a PCA, which scikit-learn refuses where it is dense."""
    try:
        return np.asarray(ask(A))
    except (DlscaleError, ValueError):
        return None


@pytest.mark.parametrize("first", range(0, 200, 20))
def test_the_answer_of_the_dense_matrix_or_a_refusal(first: int) -> None:
    for seed in range(first, first + 20):
        with pytest.MonkeyPatch.context() as patch:
            if seed % 4 == 0:
                patch.setattr("dlscale.storage.sparse.matrix._SHORT_INDICES", 8)  # as if entries were beyond 2^31
            check(seed)


def check(seed: int) -> None:
    A, dense = random_sparse(seed)
    name, ask = list(ASKED.items())[seed % len(ASKED)]
    if dense.dtype.kind in "fc" and A.nnz and seed % 3 == 0:
        k = seed % A.nnz
        A.data[k] = np.nan
        row, column = int(np.searchsorted(A.indptr.astype(int), k, side="right")) - 1, int(A.indices[k])
        if A.shape[0] < 2 and name in ("covariance", "randomized"):
            return  # refused for its shape
        with pytest.raises(NonFiniteError, match=f"row {row}, column {column}"):
            ask(A)
        return
    want, got = answered(ask, dense), answered(ask, A)
    if want is None:
        assert got is None, seed
        return
    eps = float(np.finfo(open_matrix(A).dtype).eps)
    size = float(np.abs(dense).max(initial=0)) ** 2 * dense.size
    np.testing.assert_allclose(got, want, rtol=100 * eps, atol=100 * eps * max(size, 1.0), err_msg=f"seed {seed}")
