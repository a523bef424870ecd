"""Kind ``train``: plan, run where the job is to run, and judge what was learned."""

from __future__ import annotations

import signal
import uuid
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlscale.certificates import Certificate, Check
from dlscale.engine.clusters import BASELINE_BYTES, ClusterFacts
from dlscale.engine.costs import PassCost, Plan, measured_rates
from dlscale.engine.grids import RowGrid
from dlscale.engine.outcome import Outcome
from dlscale.engine.passes import Passes
from dlscale.engine.programs import run_here
from dlscale.errors import CorruptionError, DoesNotFitError, Interrupted, SpecError
from dlscale.kernels import Array
from dlscale.learn.data import SMALL_BYTES, Order, plan_order
from dlscale.learn.gradients import Seconds
from dlscale.learn.loop import flops_per_row, train
from dlscale.learn.losses import LOSSES
from dlscale.learn.packing import unpack
from dlscale.learn.saving import FINISHED
from dlscale.learn.task import DTYPES, Recipe, Task, TrainOptions, count_outputs
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import Matrix

#: Part of a rank's memory that the rows in flight may take.
_ROWS_SHARE = 0.35


@dataclass(frozen=True)
class TrainPlan(Plan):
    """A plan with the order of rows, which fixes every batch.

    Parameters
    ----------
    training : dict
        ``unit_rows``, ``n_lanes``, ``batch_size``, ``n_outputs``, ``dtype``.
    """

    training: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_dict(cls, record: Any) -> TrainPlan:
        return cls(**{**vars(Plan.from_dict(record)), "training": record["training"]})


def plan_train(inputs: Inputs, options: TrainOptions, facts: ClusterFacts) -> TrainPlan:
    """Check that inputs and options go together, and say what the training costs.

    Raises
    ------
    SpecError, InputError, DoesNotFitError
    """
    recipe = Recipe.of(options)
    features, targets = inputs["features"], inputs["targets"]
    _require_rows("targets", targets, features)
    if features.dtype.kind == "c":
        raise SpecError("input.features: must be real; got complex numbers.")
    if (weights := inputs.get("weights")) is not None:
        _require_rows("weights", weights, features)
    if ("validation_features" in inputs) != ("validation_targets" in inputs):
        raise SpecError("input.validation_features: needs validation_targets too, and the other way round.")
    if "validation_features" in inputs:
        _require_rows("validation_targets", inputs["validation_targets"], inputs["validation_features"])
        if inputs["validation_features"].shape[1] != features.shape[1]:
            got = inputs["validation_features"].shape[1]
            raise SpecError(f"input.validation_features: must have {features.shape[1]} columns like the features; got {got}.")
    n_outputs = count_outputs(targets, recipe.model, options.model.get("n_classes"))
    dtype: np.dtype[Any] = DTYPES[options.dtype] if options.dtype else features.dtype
    batch_size = None if recipe.full_batch else options.batch_size or 256
    order = plan_order(
        features,
        batch_size=batch_size,
        seed=options.seed,
        memory_bytes=int(facts.work_bytes * _ROWS_SHARE),
        shuffle=options.shuffle,
    )
    parameters = recipe.model.initialize(
        features.shape[1], n_outputs, init=options.model.get("init"), rng=np.random.default_rng(0), dtype=dtype
    )
    n_parameters = sum(array.size for array in parameters.values())
    state_bytes = sum(array.nbytes for array in recipe.optimizer.start(parameters).values())
    peak = _peak_bytes(features, order, n_parameters * dtype.itemsize, state_bytes)
    if peak > facts.memory_bytes:
        raise DoesNotFitError(
            f"One rank needs {peak / 1e9:.2f} GB ({n_parameters / 1e6:.1f} million parameters with their optimizer, and rows in "
            f"flight), and has {facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory, or choose a smaller model or optimizer."
        )
    passes = PassCost(
        "training", options.epochs * features.shape[0] * flops_per_row(parameters), options.epochs * features.n_stored_bytes
    )
    return TrainPlan(
        kind="train",
        algorithm=_algorithm(recipe, options, order, n_parameters),
        matrix=features.describe(),
        grid=RowGrid(features.shape[0], order.unit_rows, order.unit_rows),
        transposed=False,
        passes=(passes,),
        peak_bytes_per_worker=peak,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(features, facts),
        notes=tuple(features.notes),
        training={
            "unit_rows": order.unit_rows,
            "n_lanes": order.n_lanes,
            "batch_size": order.batch_size,
            "n_outputs": n_outputs,
            "dtype": dtype.name,
        },
    )


def _require_rows(role: str, matrix: Matrix, features: Matrix) -> None:
    if matrix.shape[0] != features.shape[0]:
        raise SpecError(f"input.{role}: must have {features.shape[0]} rows like the features; got {matrix.shape[0]}.")


def _peak_bytes(features: Matrix, order: Order, parameter_bytes: int, state_bytes: int) -> int:
    row_bytes = features.shape[1] * features.dtype.itemsize
    rows = min(2 * order.n_lanes * order.unit_rows, 2 * features.shape[0]) * row_bytes
    whole = features.n_bytes if features.n_bytes <= SMALL_BYTES else 0
    batch = 3 * order.batch_size * row_bytes
    return int(BASELINE_BYTES + max(rows, whole) + batch + 4 * parameter_bytes + state_bytes)


def _algorithm(recipe: Recipe, options: TrainOptions, order: Order, n_parameters: int) -> str:
    model = recipe.model
    layers = f" {'-'.join(map(str, model.hidden))} {model.activation}" if model.hidden else ""
    rows = "all rows a step" if recipe.full_batch else f"{order.batch_size} rows a step"
    name = dict(options.optimizer).get("type", "adam")
    loss = next(key for key, kind in LOSSES.items() if type(model.loss) is kind).replace("_", "-")
    return f"{model.type}{layers} ({n_parameters:,} parameters), {loss} loss, {name}, {rows}"


def choose_sync(asked: str, facts: ClusterFacts) -> tuple[str, str]:
    """How gradients are added up here, and a sentence that says why."""
    if asked != "auto":
        return asked, f"sync: {asked}, as asked for"
    if facts.kind == "mpi":
        return "mpi", f"sync: mpi, on the {facts.n_workers} rank(s) of the launcher"
    if facts.kind == "tcp" and facts.n_workers > 1:
        return "dask", "sync: dask, because the workers of this cluster are not known to be MPI ranks"
    return "none", "sync: none, one process with one thread; `mpirun -n 2 dlscale run` uses more cores"


@dataclass(frozen=True)
class Learned:
    """What a training came to.

    Parameters
    ----------
    parameters, history : dict of arrays
    estimates : dict
    notes : tuple of str
    """

    parameters: dict[str, Array]
    history: dict[str, Array]
    estimates: dict[str, Any]
    notes: tuple[str, ...]


def compute_train(passes: Passes, inputs: Inputs, options: TrainOptions, plan: TrainPlan) -> Outcome:
    """Train, and hand back parameters, history and where the time went."""
    learned = run_training(passes, inputs, options, plan)
    arrays = {f"parameters/{name}": array for name, array in learned.parameters.items()}
    arrays |= {f"history/{name}": array for name, array in learned.history.items()}
    return Outcome(arrays, (), _certificate(learned), learned.estimates, learned.notes)


def run_training(passes: Passes, inputs: Inputs, options: TrainOptions, plan: TrainPlan) -> Learned:
    """Train where the job runs; what was learned is in the checkpoint too.

    Raises
    ------
    Interrupted
        A rank was asked to stop. The state is in the checkpoint.
    """
    if passes.checkpoint is None:
        raise SpecError("A training needs a checkpoint; run it as a job.")
    sync, why = choose_sync(options.sync, passes.cluster.facts)
    task = _task(passes, inputs, options, plan)
    passes.emit({"event": "sync", "message": why, "sync": sync})
    passes.emit({"event": "pass_started", "step": "training", "flops": plan.passes[0].flops, "bytes": plan.passes[0].bytes_read})
    if sync == "dask":
        from dlscale.learn.tasks import train_on_passes

        result = train_on_passes(passes, task)
    elif sync == "mpi":
        result = passes.cluster.on_every_rank(
            train, task, token=task.token, listener=passes.emit, stall_seconds=passes.stall_seconds
        )[0]
    else:
        result = run_here(train, (task,), token=task.token, listener=passes.emit)
    if result["stopped"]:
        # Another rank may have been the one that was asked to stop; the job ends as if this process had been.
        signal.raise_signal(signal.SIGTERM)
        raise Interrupted("Stopped after a step; what was learned is checkpointed.")
    return _learned(passes, options, plan, result, why)


def _task(passes: Passes, inputs: Inputs, options: TrainOptions, plan: TrainPlan) -> Task:
    assert passes.checkpoint is not None
    planned = plan.training
    order = Order(
        inputs["features"].shape[0],
        planned["unit_rows"],
        planned["n_lanes"],
        planned["batch_size"],
        options.seed,
        options.shuffle,
    )
    return Task(
        features=inputs["features"],
        targets=inputs["targets"],
        weights=inputs.get("weights"),
        validation_features=inputs.get("validation_features"),
        validation_targets=inputs.get("validation_targets"),
        options=options,
        order=order,
        n_outputs=planned["n_outputs"],
        dtype=planned["dtype"],
        directory=str(passes.checkpoint.directory),
        every_seconds=getattr(passes.checkpoint, "every_seconds", 0.0),
        token=f"dlscale-{uuid.uuid4().hex[:12]}",
    )


def _learned(passes: Passes, options: TrainOptions, plan: TrainPlan, result: dict[str, Any], why: str) -> Learned:
    assert passes.checkpoint is not None
    packed = passes.checkpoint.load(FINISHED)
    if packed is None:
        raise CorruptionError(f"The trained parameters in {passes.checkpoint.directory} cannot be read; resume the job.")
    arrays = unpack(packed)

    def under(prefix: str) -> dict[str, Array]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    parameters, history = under("best/" if options.early_stopping is not None else "parameters/"), under("history/")
    seconds = dict(zip(Seconds.names(), np.array(result["seconds"]).T.tolist(), strict=True))
    part = sum(seconds["rows"]) / (plan.grid.n_rows * options.epochs)
    passes.emit(
        {
            "event": "pass_finished",
            "step": "training",
            "seconds": max(seconds["total"]),
            "bytes_read": int(part * plan.passes[0].bytes_read),
            "flops": part * plan.passes[0].flops,
            "resumed": result["reason"] == "finished before",
        }
    )
    estimates: dict[str, Any] = {
        "final_loss": float(history["loss"][-1]),
        "steps": int(arrays["position"][0]),
        "epochs": int(arrays["position"][1]),
        "ended": result["reason"] or "all epochs",
        "n_ranks": len(seconds["rows"]),
        "seconds_by_rank": seconds,
    }
    for name in sorted(history):
        if name.startswith("validation_") or name in ("optimality", "epoch_loss"):
            estimates[f"final_{name}"] = float(history[name][-1])
    return Learned(parameters, history, estimates, (why,))


def _certificate(learned: Learned) -> Certificate:
    loss = learned.history["loss"]
    n_bad = sum(int((~np.isfinite(array)).sum()) for array in (*learned.parameters.values(), loss))
    finite = Check("entries that are not finite", float(n_bad), 0.0, "every parameter and every loss is a number")
    some = max(1, len(loss) // 20)
    first, last = float(np.mean(loss[:some])), float(np.mean(loss[-some:]))
    ratio = last / first if first > 0 else float(last > first)
    meaning = "the loss did not rise: the parameters fit at least as well as the first ones"
    return Certificate((finite, Check("last loss / first loss", ratio, 1.0, meaning)))
