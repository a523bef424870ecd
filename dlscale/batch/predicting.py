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
from dlscale.errors import InputError
from dlscale.learn import predict as training
from dlscale.linalg import predictions
from dlscale.storage.inputs import Inputs
from dlscale.storage.labels.names import CHUNK, pieces


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


def _require_same_columns(inputs: Inputs) -> None:
    """Refuse features whose columns are called otherwise than those that the model was made of (InputError)."""
    names, known = inputs["features"].labels.column, inputs.results["model"].labels.column
    if names is None or known is None or len(names) != len(known):
        return
    for start, (found, wanted) in enumerate(zip(pieces(names), pieces(known), strict=True)):
        for j, (name, model_name) in enumerate(zip(found, wanted, strict=True), start * CHUNK):
            if name != model_name:
                wrong = f"column {j} is {name!r}, and the model was made with {model_name!r} there"
                raise InputError(f"input.features: {wrong}; give the columns in the model's order.")


def _plan(inputs: Inputs, options: Any, facts: ClusterFacts) -> Plan:
    _require_same_columns(inputs)
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
