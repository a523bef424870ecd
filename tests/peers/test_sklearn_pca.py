"""scikit-learn's own tests of its PCA, run on dlscale's: no wrong answer, and each refusal on purpose."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from peer_modules import adapted, chosen

import dlscale


class PCA(dlscale.PCA):
    """dlscale's PCA under scikit-learn's names of parameters."""

    def __init__(
        self,
        n_components: Any = None,
        *,
        copy: bool = True,
        whiten: bool = False,
        svd_solver: str = "auto",
        tol: float = 0.0,
        iterated_power: Any = "auto",
        n_oversamples: int = 10,
        power_iteration_normalizer: str = "auto",
        random_state: Any = None,
    ) -> None:
        self.n_components = n_components
        self.copy = copy
        self.whiten = whiten
        self.svd_solver = svd_solver
        self.tol = tol
        self.iterated_power = iterated_power
        self.n_oversamples = n_oversamples
        self.power_iteration_normalizer = power_iteration_normalizer
        self.random_state = random_state

    def _fit(self, X: Any, y: Any, *, scores: bool) -> dict[str, Any]:
        solver = {"covariance_eigh": "covariance", "arpack": "full"}.get(self.svd_solver, self.svd_solver)
        k = self.n_components
        if solver == "randomized" and k is None:
            k = min(np.shape(X))
        inner = dlscale.PCA(
            k,
            solver=solver,  # type: ignore[arg-type]
            whiten=self.whiten,
            oversampling=self.n_oversamples,
            power_iterations=self.iterated_power if isinstance(self.iterated_power, int) else 7,
            seed=self.random_state if isinstance(self.random_state, int) else 0,
        )
        arrays = inner._fit(X, y, scores=scores)
        vars(self).update({name: value for name, value in vars(inner).items() if name.endswith("_") or name == "_mean_low"})
        return arrays


_ARRAY_API = "arrays of other libraries are taken as NumPy's; what is asked for is that they stay on their device"
EXCLUDED = {
    "test_sparse_pca_solver_error": "every solver takes sparse matrices here; theirs refuses most of them",
    "test_sparse_pca_auto_arpack_singular_values_consistency": "our auto may be randomized; they ask for more digits",
    "test_pca_array_api_compliance": _ARRAY_API,
    "test_pca_mle_array_api_compliance": _ARRAY_API,
    "test_array_api_error_and_warnings_on_unsupported_params": _ARRAY_API,
}
REFUSED = {
    "test_pca_score3": "no components at all (n_components=0) are refused: nothing is computed",
    r"test_pca_zero_noise_variance_edge_cases\[.*\]": "a singular covariance matrix has no likelihood",
}
_WORDS = "it is refused as well, in our own words"
_ARPACK = "arpack stands for the exact solver here, which takes what arpack cannot"
DIFFERENT = {
    r"test_pca_validation\[(randomized|auto)-[^2].*\]": _WORDS,
    r"test_pca_validation\[arpack-.*\]": _ARPACK,
    r"test_n_components_none\[.*arpack.*\]": _ARPACK,
    r"test_n_components_mle_error\[arpack\]": _ARPACK,
    r"test_n_components_mle_error\[randomized\]": _WORDS,
    "test_fit_mle_too_few_samples": _WORDS,
    r"test_pca_svd_solver_auto\[.*\]": "our auto plans by memory and time; it looks into theirs (_fit_svd_solver)",
    r"test_pca_score\[.*\]": "the likelihood of rows does not depend on whitening of scores, and they ask for another",
}

module = adapted("sklearn.decomposition.tests.test_pca", {"PCA": PCA})
globals().update(chosen(module, EXCLUDED))
pytestmark = pytest.mark.filterwarnings("ignore:.*:FutureWarning")
