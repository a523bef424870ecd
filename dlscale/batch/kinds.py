"""The one table that binds a kind of job to its algorithm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import Plan
from dlscale.engine.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.learn.covariate import CovariateOptions, compute_covariate, plan_covariate
from dlscale.learn.predicting import PredictOptions, compute_predict, plan_predict
from dlscale.learn.task import TrainOptions
from dlscale.learn.training import TrainPlan, compute_train, plan_train
from dlscale.linalg.cholesky import CholeskyOptions, compute_cholesky, plan_cholesky
from dlscale.linalg.factor_plan import PanelPlan
from dlscale.linalg.inverse import InverseOptions, compute_inverse, plan_inverse
from dlscale.linalg.lstsq import LstsqOptions, compute_lstsq, plan_lstsq
from dlscale.linalg.lu import LUOptions, compute_lu, plan_lu
from dlscale.linalg.pca import PCAOptions, compute_pca, plan_pca
from dlscale.linalg.qr import QROptions, compute_qr, plan_qr
from dlscale.linalg.slogdet import SlogdetOptions, compute_slogdet, plan_slogdet
from dlscale.linalg.solve import SolveOptions, compute_solve, plan_solve
from dlscale.linalg.svd import SVDOptions, compute_svd, plan_svd
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import Matrix


@dataclass(frozen=True)
class Kind:
    """An algorithm as a job sees it.

    Parameters
    ----------
    options : type
        Frozen dataclass made from the spec's ``params`` and, by their names, the sections that only this kind has.
    plan, compute : callable
        From (inputs, options, facts) to a plan, and from (run, inputs, options, plan) to an outcome.
    plan_type : type
        What ``plan`` returns; its ``from_dict`` reads back what ``to_dict`` wrote when a job goes on.
    collective : bool
        Whether its workers wait for each other (allreduce): it then needs all of them at once, and runs alone on a cluster.
    """

    options: type[Any]
    plan: Callable[[Inputs, Any, ClusterFacts], Any]
    compute: Callable[[Run, Inputs, Any, Any], Outcome]
    plan_type: type[Any] = Plan
    collective: bool = False


def on_matrix(
    options: type[Any],
    plan: Callable[[Matrix, Any, ClusterFacts], Any],
    compute: Callable[[Run, Matrix, Any, Any], Outcome],
    plan_type: type[Any] = Plan,
) -> Kind:
    """A kind whose algorithm takes the one matrix itself."""
    return Kind(
        options,
        lambda inputs, options, facts: plan(inputs["matrix"], options, facts),
        lambda run, inputs, options, plan: compute(run, inputs["matrix"], options, plan),
        plan_type,
    )


KINDS: Mapping[str, Kind] = {
    "svd": on_matrix(SVDOptions, plan_svd, compute_svd),
    "pca": on_matrix(PCAOptions, plan_pca, compute_pca),
    "lu": on_matrix(LUOptions, plan_lu, compute_lu, PanelPlan),
    "qr": on_matrix(QROptions, plan_qr, compute_qr, PanelPlan),
    "cholesky": on_matrix(CholeskyOptions, plan_cholesky, compute_cholesky, PanelPlan),
    "solve": Kind(SolveOptions, plan_solve, compute_solve, PanelPlan),
    "lstsq": Kind(LstsqOptions, plan_lstsq, compute_lstsq, PanelPlan),
    "inverse": on_matrix(InverseOptions, plan_inverse, compute_inverse, PanelPlan),
    "slogdet": on_matrix(SlogdetOptions, plan_slogdet, compute_slogdet, PanelPlan),
    "train": Kind(TrainOptions, plan_train, compute_train, TrainPlan, collective=True),
    "predict": Kind(PredictOptions, plan_predict, compute_predict),
    "covariate_weights": Kind(CovariateOptions, plan_covariate, compute_covariate, TrainPlan, collective=True),
}
