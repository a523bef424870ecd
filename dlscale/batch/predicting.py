"""Kind ``predict``: what its model is the result of says who predicts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from dlscale.declaration.kind import Kind
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.plan import Plan
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.learn import predict as training
from dlscale.linalg import predictions
from dlscale.storage.inputs import Inputs


class _Way(NamedTuple):
    plan: Any
    compute: Any


_REGRESSION = _Way(predictions.plan_predictions, predictions.compute_predictions)
#: By the kind of the job that made the model.
WAYS: Mapping[str, _Way] = {
    "train": _Way(training.KIND.plan, training.KIND.compute),
    "ridge": _REGRESSION,
    "kernel_ridge": _REGRESSION,
}


def _plan(inputs: Inputs, options: Any, facts: ClusterFacts) -> Plan:
    plan: Plan = WAYS[inputs.results["model"].kind].plan(inputs, options, facts)
    return plan


def _compute(run: Run, inputs: Inputs, options: Any, plan: Plan) -> Outcome:
    outcome: Outcome = WAYS[inputs.results["model"].kind].compute(run, inputs, options, plan)
    return outcome


_NAMED = "path or URL of the result of a train, ridge or kernel_ridge job"
KIND: Kind = replace(
    training.KIND,
    words="Predictions of a trained model, or of a regression.",
    plan=_plan,
    compute=_compute,
    roles=tuple(replace(role, words=_NAMED, result_of=tuple(WAYS)) if role.result_of else role for role in training.KIND.roles),
)
