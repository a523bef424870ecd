"""The one table that binds a kind of job to its algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import Plan
from dlscale.engine.passes import Passes
from dlscale.linalg.outcome import Outcome
from dlscale.linalg.pca import PCAOptions, compute_pca, plan_pca
from dlscale.linalg.svd import SVDOptions, compute_svd, plan_svd
from dlscale.linalg.tall_qr import QROptions, compute_qr, plan_qr
from dlscale.storage.matrices import Matrix


@dataclass(frozen=True)
class Kind:
    """An algorithm as a job sees it.

    Parameters
    ----------
    options : type
        Frozen dataclass made from the spec's ``params``.
    plan, compute : callable
        From (matrix, options, facts) to a plan, and from (passes, matrix, options, plan) to an outcome.
    """

    options: type[Any]
    plan: Callable[[Matrix, Any, ClusterFacts], Plan]
    compute: Callable[[Passes, Matrix, Any, Plan], Outcome]


KINDS: Mapping[str, Kind] = {
    "svd": Kind(SVDOptions, plan_svd, compute_svd),
    "pca": Kind(PCAOptions, plan_pca, compute_pca),
    "qr": Kind(QROptions, plan_qr, compute_qr),
}
