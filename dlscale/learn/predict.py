"""Kind ``predict``: a trained model on new rows, one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, Check
from dlscale.declaration.kind import MATRIX, Kind, Role
from dlscale.declaration.options import Options
from dlscale.declaration.sections import BlockRows
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import lay_out, lay_out_sparse, measured_rates
from dlscale.engine.passes import Fold, Passes, RowOutput, State
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import InputError, SpecError
from dlscale.kernels import times_power_of_two
from dlscale.learn.models.model import Model
from dlscale.learn.models.parameters import Parameters
from dlscale.learn.training.checking import check_features, check_rows, check_targets
from dlscale.learn.training.metrics import Metric, metrics_near
from dlscale.learn.training.task import DTYPES, Recipe, TrainOptions
from dlscale.learn.training.telling import forward_flops_per_row
from dlscale.sparse_rows import SparseRows, all_finite
from dlscale.storage.inputs import Inputs, StoredResult


@dataclass(frozen=True)
class PredictOptions(Options):
    """What a job of kind ``predict`` asks for."""

    block_rows: BlockRows = None


class PredictFold(Fold):
    """Predictions of a block of rows, and sums of metrics where the truth is known: the second matrix of the pass."""

    takes_sparse = True

    def __init__(self, model: Model, parameters: Parameters, metrics: Mapping[str, Metric]) -> None:
        self.model, self.parameters, self.metrics = model, parameters, metrics

    @property
    def flops_per_row(self) -> float:
        return forward_flops_per_row(self.parameters)

    def start(self) -> State:
        return {"rows": np.zeros(1), **{name: np.zeros(metric.n_sums) for name, metric in self.metrics.items()}}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        A, *targets = A if isinstance(A, list) else [A]
        S = self.model.scores(self.parameters, A)
        # A state that is not finite has the entry named that spoilt it; relu would hide some of them.
        state["rows"] += len(A) if all_finite(A) and np.isfinite(S).all() else np.nan
        for Y in (Y.toarray() if isinstance(Y, SparseRows) else Y for Y in targets):
            y = Y[:, 0] if Y.shape[1] == 1 else Y
            for name, metric in self.metrics.items():
                state[name] += metric.sums(self.model.loss, S, y)
        predictions = self.model.loss.link(S)
        if not self.model.loss.classifies:
            return (predictions,)
        return predictions, self.model.loss.decide(predictions).astype(np.int64)[:, None]


#: No positive number has a binary exponent below.
LOWEST = np.finfo(np.float64).minexp - np.finfo(np.float64).nmant


class ScoreFold(Fold):
    """``min(exp(h(x)), cap)`` of a block of rows, for the scores h of a logistic model.

    ``sums`` are those of the weights and of their squares, of weights times ``2^-exponent``, by which the largest is near 1.
    """

    takes_sparse = True

    def __init__(self, model: Model, parameters: Parameters, cap: float) -> None:
        self.model, self.parameters, self.cap = model, parameters, cap

    @property
    def flops_per_row(self) -> float:
        return forward_flops_per_row(self.parameters)

    def start(self) -> State:
        return {"rows": np.zeros(1), "capped": np.zeros(1), "exponent": np.full(1, LOWEST), "sums": np.zeros(2)}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        h = self.model.scores(self.parameters, A).astype(np.float64)
        with np.errstate(over="ignore"):
            weights = np.minimum(np.exp(h), self.cap)
        state["rows"] += len(A) if all_finite(A) and np.isfinite(h).all() else np.nan
        state["capped"] += np.count_nonzero(weights == self.cap)
        largest = weights.max(initial=0.0)
        exponent = int(np.frexp(largest)[1]) if largest else LOWEST
        near = times_power_of_two(weights, -exponent)
        self._add(state, np.array([exponent]), np.array([near.sum(), np.vdot(near, near)]))
        return (weights,)

    def merge(self, left: State, right: State) -> State:
        for name in ("rows", "capped"):
            left[name] += right[name]
        return self._add(left, right["exponent"], right["sums"])

    def _add(self, state: State, exponent: Array, sums: Array) -> State:
        larger, powers = np.maximum(state["exponent"], exponent), np.array([1, 2])
        state["sums"] = np.ldexp(state["sums"], powers * (state["exponent"] - larger)) + np.ldexp(
            sums, powers * (exponent - larger)
        )
        state["exponent"] = larger
        return state


def load_model(result: StoredResult) -> tuple[Model, Parameters]:
    """The model of a training with its parameters, which are what its job file says.

    Raises
    ------
    InputError
        A layer is lost, or has another shape or dtype than the model's, or holds a NaN or an infinity.
    """
    model = _model(result)
    prefix = "parameters/"
    stored = {name.removeprefix(prefix): array for name, array in result.arrays.items() if name.startswith(prefix)}
    n_layers = len(model.hidden) + 1
    names = [f"layer-{layer}/{part}" for layer in range(n_layers) for part in ("weight", "bias")]
    if set(names) != set(stored):
        raise InputError(
            f"input.model: {result.uri} must hold the weight and the bias of {n_layers} layer{'s'[: n_layers > 1]} "
            f"({model.type}{' ' + str(list(model.hidden)) if model.hidden else ''}); got {', '.join(sorted(stored)) or 'none'}."
        )
    n_inputs, dtype = None, stored[names[0]].dtype
    for layer in range(n_layers):
        weight, bias = stored[f"layer-{layer}/weight"], stored[f"layer-{layer}/bias"]
        n_units = model.hidden[layer] if layer < len(model.hidden) else bias.shape[0] if bias.ndim == 1 else None
        rows = weight.shape[0] if n_inputs is None and weight.ndim == 2 else n_inputs
        for part, array, shape in (("weight", weight, (rows, n_units)), ("bias", bias, (n_units,))):
            if array.shape != shape or array.dtype != dtype or dtype not in DTYPES.values():
                raise InputError(
                    f"input.model: {result.uri}/{prefix}layer-{layer}/{part} must have the shape and dtype of the model's layer, "
                    f"{shape} {dtype if dtype in DTYPES.values() else 'float32 or float64'}; got {array.shape} {array.dtype}."
                )
        n_inputs = n_units
    if model.type == "logistic" and n_inputs != 1:
        raise InputError(f"input.model: {result.uri} is of a logistic model, which has one output; got {n_inputs}.")
    parameters = {name: np.ascontiguousarray(result.read(prefix + name)) for name in names}
    for name, array in parameters.items():
        if not np.isfinite(array).all():
            place = tuple(int(index) for index in np.argwhere(~np.isfinite(array))[0])
            raise InputError(f"input.model: {result.uri}/{prefix}{name} holds {array[place]} at {place}; train the model anew.")
    return model, parameters


def _model(result: StoredResult) -> Model:
    """The model that the job file of a training describes."""
    spec: Any = result.attributes.get("spec")
    try:
        sections = {name: spec[name] for name in ("model", "loss", "regularization") if spec.get(name) is not None}
        return Recipe.of(TrainOptions(**sections)).model
    except (TypeError, ValueError, AttributeError) as error:  # whatever stands in the place of the spec
        raise InputError(f"input.model: {result.uri} does not say what model its job trained ({error}); train it anew.") from error


def plan_predict(inputs: Inputs, options: PredictOptions, facts: ClusterFacts) -> Plan:
    """What the pass costs; refuses rows that the model cannot take."""
    features = inputs["features"]
    model, parameters = load_model(inputs.results["model"])
    n_features, n_outputs = parameters["layer-0/weight"].shape[0], list(parameters.values())[-1].shape[0]
    if features.shape[1] != n_features:
        raise SpecError(f"input.features: must have {n_features} columns, as the model was trained with; got {features.shape[1]}.")
    check_features("features", features)
    if (targets := inputs.get("targets")) is not None:
        check_rows("targets", targets, features)
        check_targets("targets", targets, model, n_outputs)
    itemsize = parameters["layer-0/weight"].dtype.itemsize
    n_bytes, block_rows = sum(array.nbytes for array in parameters.values()), options.block_rows
    if sparse := features.is_sparse:
        # Of the first layer products are made in double precision; the rows of others are few at a time.
        layout = lay_out_sparse(
            features, facts, operand_bytes=3 * n_bytes, width=n_outputs + 1, state_bytes=4096, block_rows=block_rows
        )
    else:
        layout = lay_out(features, facts, operand_bytes=n_bytes, state_bytes=4096, block_rows=block_rows)
    fold = PredictFold(model, parameters, {})
    cost = Step(
        "predict",
        fold.flops_per_row * (features.n_entries / features.shape[1] if sparse else features.shape[0]),
        features.n_stored_bytes + (targets.n_stored_bytes if targets else 0),
        features.shape[0] * (n_outputs * itemsize + (8 if model.loss.classifies else 0)),
    )
    return Plan(
        kind="predict",
        method="forward",
        words=f"{model.type}, one pass",
        matrix=features.describe(),
        grids=Grids(rows=layout.grid),
        steps=(cost,),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(features, facts, grid=layout.grid if sparse else None, sparse=sparse),
        notes=(*layout.notes, *features.notes),
    )


def compute_predict(run: Run, inputs: Inputs, options: PredictOptions, plan: Plan) -> Outcome:
    """Write the predictions of all rows, and of classifiers the labels."""
    passes = Passes(run)
    features, targets = inputs["features"], inputs.get("targets")
    model, parameters = load_model(inputs.results["model"])
    dtype, n_outputs = parameters["layer-0/weight"].dtype, list(parameters.values())[-1].shape[0]
    outputs: list[RowOutput] = [passes.run.output("predictions", (features.shape[0], n_outputs), dtype, plan.rows)]
    if model.loss.classifies:
        outputs.append(passes.run.output("labels", (features.shape[0], 1), np.dtype(np.int64), plan.rows))
    fold = PredictFold(model, parameters, {} if targets is None else metrics_near(model.loss, targets.read(0, 1)))
    state = passes.sweep("predict", [features, targets] if targets else [features], fold, plan.rows, outputs=outputs)
    estimates: dict[str, Any] = {name: metric.value(state[name]) for name, metric in fold.metrics.items()}
    missing = features.shape[0] - int(state["rows"][0])
    check = Check("rows without a prediction", float(missing), 0.0, "every row has its prediction")
    names = ("predictions", "labels")[: len(outputs)]
    return Outcome({}, names, Certificate((check,)), estimates)


KIND = Kind(
    name="predict",
    title="Prediction",
    words="Predictions of a trained model.",
    arrays="`predictions` (m, outputs), `labels` of a classifier",
    options=PredictOptions,
    plan=plan_predict,
    compute=compute_predict,
    dimensions={"predictions": ("row",), "labels": ("row",)},
    example="{kind: predict, input: {features: x.zarr, model: results/model.zarr}}",
    roles=(
        Role("features"),
        Role("model", "path or URL of the result of a train job", result_of=("train",), carries_transforms=True),
        Role("targets", f"{MATRIX}: what is known, to judge the predictions", optional=True, vector=True),
    ),
)
