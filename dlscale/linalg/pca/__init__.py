"""Principal component analysis."""

from dlscale.linalg.pca.kind import PCAOptions, compute_pca, plan_pca

__all__ = ["PCAOptions", "compute_pca", "plan_pca"]
