"""scikit-learn's own tests of its randomized SVD, run on dlscale's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from peer_modules import adapted, chosen

import dlscale


def randomized_svd(
    M: Any,
    n_components: int,
    *,
    n_oversamples: int = 10,
    n_iter: Any = "auto",
    power_iteration_normalizer: str = "auto",
    transpose: Any = "auto",
    flip_sign: bool = True,
    random_state: Any = None,
    svd_lapack_driver: str = "gesdd",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """dlscale's under scikit-learn's names; what a normalizer, a transposition or a driver would change is decided by itself."""
    return dlscale.randomized_svd(
        M.toarray() if hasattr(M, "toarray") else M,
        min(n_components, *M.shape),
        oversampling=n_oversamples,
        power_iterations=7 if n_iter == "auto" else n_iter,
        seed=random_state if isinstance(random_state, int) else 0,
    )


module = adapted("sklearn.utils.tests.test_extmath", {"randomized_svd": randomized_svd})
_NOT_OURS = "it tests a function that has no counterpart here"
_ARRAY_API = "arrays of other libraries are taken as NumPy's; what is asked for is that they stay on their device"
EXCLUDED = {name: _NOT_OURS for name in vars(module) if name.startswith("test") and "randomized_svd" not in name} | {
    "test_randomized_svd_array_api_compliance": _ARRAY_API,
    "test_randomized_svd_sparse_warnings": "there are no sparse matrices whose format is slow",
}
DIFFERENT = {
    "test_randomized_svd_power_iteration_normalizer": "without a normalizer theirs is worse, as asserted; ours has one",
}
globals().update(chosen(module, EXCLUDED))
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")
