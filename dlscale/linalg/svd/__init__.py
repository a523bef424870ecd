"""Singular value decompositions."""

from dlscale.linalg.svd.kind import SVDOptions, compute_svd, plan_svd

__all__ = ["SVDOptions", "compute_svd", "plan_svd"]
