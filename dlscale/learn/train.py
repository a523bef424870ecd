"""Kind ``train``: plan, run where the job is to run, and judge what was learned."""

from __future__ import annotations

import signal
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from dlscale.declaration.kind import MATRIX, Kind, Role
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.clusters.facts import BASELINE_BYTES
from dlscale.engine.costs import measured_rates
from dlscale.engine.events import StepStarted, SyncChosen
from dlscale.engine.grids import RowGrid
from dlscale.engine.plan import Grids, Need, Plan, Step
from dlscale.engine.programs import run_here
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import CorruptionError, DoesNotFitError, Interrupted, SpecError
from dlscale.learn.models.losses import LOSSES
from dlscale.learn.models.packing import unpack
from dlscale.learn.models.parameters import Parameters
from dlscale.learn.training.checking import check_features, check_rows, check_validation, check_weights, count_outputs
from dlscale.learn.training.data import SMALL_BYTES, Order, bytes_of_row, is_compressed, is_kept, plan_order
from dlscale.learn.training.gradients import Seconds
from dlscale.learn.training.judging import all_rows
from dlscale.learn.training.loop import train
from dlscale.learn.training.saving import FINISHED
from dlscale.learn.training.task import DTYPES, Recipe, Task, TrainOptions, measured_apart
from dlscale.learn.training.telling import flops_per_row, used_density
from dlscale.learn.training.verdict import Learned, learned_from
from dlscale.showing import several
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import Matrix

#: Part of a rank's memory that the rows in flight may take.
_ROWS_SHARE = 0.35


def plan_train(inputs: Inputs, options: TrainOptions, facts: ClusterFacts) -> Plan:
    """Check that inputs and options go together, and say what the training costs.

    Raises
    ------
    SpecError, InputError, DoesNotFitError
    """
    recipe = Recipe.of(options)
    features, targets = inputs["features"], inputs["targets"]
    check_features("features", features)
    check_rows("targets", targets, features)
    if (weights := inputs.get("weights")) is not None:
        check_weights(weights, features)
    n_outputs, classes_note = count_outputs(targets, recipe.model, options.model.get("n_classes"))
    check_validation(inputs, recipe.model, n_outputs)
    dtype: np.dtype[Any] = DTYPES[options.dtype] if options.dtype else features.dtype
    batch_size = None if recipe.full_batch else options.batch_size or 256
    memory_bytes = int(facts.work_bytes * _ROWS_SHARE)
    order = plan_order(features, batch_size=batch_size, seed=options.seed, memory_bytes=memory_bytes, shuffle=options.shuffle)
    n_parameters = recipe.model.n_parameters(features.shape[1], n_outputs)
    parameters: Parameters = {}
    if n_parameters * dtype.itemsize < facts.memory_bytes:
        init, rng = options.model.get("init"), np.random.default_rng(0)
        parameters = recipe.model.initialize(features.shape[1], n_outputs, init=init, rng=rng, dtype=dtype)
    batch_rows = all_rows(features, 1, 1).batch_size if recipe.full_batch else order.batch_size
    memory = _memory(features, order, batch_rows, n_parameters * dtype.itemsize, _state_bytes(recipe, parameters))
    _require_fit(memory, n_parameters, facts)
    grid, sparse = RowGrid(features.shape[0], order.unit_rows, order.unit_rows), is_compressed(features)
    return Plan(
        kind="train",
        method=str(options.optimizer.get("type", "adam")),
        words=_words(recipe, options, order, n_parameters),
        matrix=features.describe(),
        grids=Grids(rows=grid),
        steps=_steps(features, recipe, options, dtype, facts, flops_per_row(parameters, used_density(features))),
        memory=memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(features, facts, grid=grid if sparse else None, sparse=sparse),
        notes=(*features.notes, *filter(None, (classes_note,))),
        choices={
            "unit_rows": order.unit_rows,
            "n_lanes": order.n_lanes,
            "batch_size": order.batch_size,
            "n_outputs": n_outputs,
            "dtype": dtype.name,
            "classes_note": classes_note,
        },
    )


def _state_bytes(recipe: Recipe, parameters: Parameters) -> int:
    return sum(array.nbytes for array in recipe.optimizer.start(parameters).values()) if parameters else 0


def _require_fit(memory: Sequence[Need], n_parameters: int, facts: ClusterFacts) -> None:
    peak = sum(need.n_bytes for need in memory)
    if peak > facts.memory_bytes:
        raise DoesNotFitError(
            f"One rank needs {peak / 1e9:.2f} GB ({n_parameters / 1e6:.1f} million parameters with their optimizer, and rows in "
            f"flight), and has {facts.memory_bytes / 1e9:.2f} GB; raise cluster.memory, or choose a smaller model or optimizer."
        )


def _steps(
    features: Matrix, recipe: Recipe, options: TrainOptions, dtype: np.dtype[Any], facts: ClusterFacts, row_flops: float
) -> tuple[Step, ...]:
    """The training, and the measurement of what it learned where that takes a read of its own."""
    flops = features.shape[0] * row_flops
    kept = is_kept(features) and choose_sync(options.sync, facts)[0] != "dask"
    training = Step("training", options.epochs * flops, (1 if kept else options.epochs) * features.n_stored_bytes)
    if not measured_apart(recipe, dtype):
        return (training,)
    # The objective and its gradient at the first parameters and at the published ones, in one read.
    return training, Step("measure", 2 * flops, 0 if kept else features.n_stored_bytes)


def _memory(features: Matrix, order: Order, batch_rows: int, parameter_bytes: int, state_bytes: int) -> tuple[Need, ...]:
    """What a rank holds."""
    row_bytes = bytes_of_row(features)
    rows = min(2 * order.n_lanes * order.unit_rows, 2 * features.shape[0]) * row_bytes
    whole = features.n_bytes if features.n_bytes <= SMALL_BYTES else 0
    return (
        Need("the program and its libraries", BASELINE_BYTES),
        Need("rows", max(rows, whole)),
        Need("a batch", 3 * batch_rows * row_bytes),
        # Gradients, what is saved and the best epoch's; to measure, the first parameters and two more gradients.
        Need("parameters, gradients and what is kept of them", 7 * parameter_bytes),
        Need("the optimizer's state", state_bytes),
    )


def _words(recipe: Recipe, options: TrainOptions, order: Order, n_parameters: int) -> str:
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
        return "mpi", f"sync: mpi, on the {several(facts.n_workers, 'rank')} of the launcher"
    if facts.kind == "tcp" and facts.n_workers > 1:
        return "dask", "sync: dask, because the workers of this cluster are not known to be MPI ranks"
    return "none", "sync: none, one process with one thread; `mpirun -n 2 dlscale run` uses more cores"


def compute_train(run: Run, inputs: Inputs, options: TrainOptions, plan: Plan) -> Outcome:
    """Train, and hand back parameters, history and where the time went."""
    learned, times, why = run_training(run, inputs, options, plan)
    arrays = {f"parameters/{name}": array for name, array in learned.parameters.items()}
    arrays |= {f"history/{name}": array for name, array in learned.history.items()}
    notes = tuple(filter(None, (*learned.notes(), plan.choices["classes_note"], why)))
    return Outcome(arrays, (), learned.certificate(), learned.estimates() | times, notes)


def run_training(run: Run, inputs: Inputs, options: TrainOptions, plan: Plan) -> tuple[Learned, dict[str, Any], str]:
    """Train where the job runs; what was learned is in the checkpoint too.

    Returns
    -------
    learned : Learned
    times : dict
        ``n_ranks`` and ``seconds_by_rank``, for the estimates.
    why : str
        How gradients were added up.

    Raises
    ------
    Interrupted
        A rank was asked to stop. The state is in the checkpoint.
    """
    if run.checkpoint is None:
        raise SpecError("A training needs a checkpoint; run it as a job.")
    sync, why = choose_sync(options.sync, run.cluster.facts)
    task = _task(run, inputs, options, plan)
    run.emit(SyncChosen(why, sync))
    run.emit(StepStarted("training", plan.steps[0].flops, plan.steps[0].bytes_read))
    if sync == "dask":
        from dlscale.learn.training.on_passes import train_on_passes

        result = train_on_passes(run, task)
    elif sync == "mpi":
        result = run.cluster.on_every_rank(train, task, token=task.token, listener=run.emit, stall_seconds=run.stall_seconds)[0]
    else:
        result = run_here(train, (task,), token=task.token, listener=run.emit)
    if result["stopped"]:
        # Another rank may have been the one that was asked to stop; the job ends as if this process had been.
        signal.raise_signal(signal.SIGTERM)
        raise Interrupted("Stopped after a step; what was learned is checkpointed.")
    run.checkpoint.look_again()
    packed = run.checkpoint.load(FINISHED)
    if packed is None:
        raise CorruptionError(f"The trained parameters in {run.checkpoint.uri} cannot be read; resume the job.")
    seconds = dict(zip(Seconds.names(), np.array(result["seconds"]).T.tolist(), strict=True))
    times = {"n_ranks": len(seconds["rows"]), "seconds_by_rank": seconds}
    features = inputs["features"]
    block = all_rows(features, 1, 1).batch_size
    n_added = block + -(-features.shape[0] // block) + len(seconds["rows"])
    return learned_from(Recipe.of(options), unpack(packed), n_added=n_added), times, why


def _task(run: Run, inputs: Inputs, options: TrainOptions, plan: Plan) -> Task:
    assert run.checkpoint is not None
    planned = plan.choices
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
        directory=run.checkpoint.uri,
        every_seconds=getattr(run.checkpoint, "every_seconds", 0.0),
        token=run.token("training"),
        rows_directory=str(run.rows_folder) if options.log_rows and run.rows_folder else None,
    )


def _validation_is_whole(roles: Collection[str]) -> str | None:
    if ("validation_features" in roles) == ("validation_targets" in roles):
        return None
    return "needs validation_features and validation_targets together."


KIND = Kind(
    name="train",
    title="Training",
    words="A model trained by gradient steps.",
    arrays="`parameters/...`, `history/...`",
    options=TrainOptions,
    plan=plan_train,
    compute=compute_train,
    dimensions={"parameters/layer-0/weight": ("column",)},
    example="{kind: train, input: {features: x.zarr, targets: y.zarr}, model: {type: softmax}, params: {epochs: 20}}",
    roles=(
        Role("features"),
        Role("targets", f"{MATRIX}: labels 0, 1, ... or numbers, one row for each row of the features", vector=True),
        Role("weights", f"{MATRIX}: one number for each row", optional=True, vector=True),
        Role("validation_features", optional=True, transformed=True),
        Role("validation_targets", optional=True, vector=True),
    ),
    sections=("model", "loss", "regularization", "optimizer", "schedule", "early_stopping"),
    rule=_validation_is_whole,
    collective=True,
)
