"""Kind ``covariate_weights``: weights that make the rows at hand resemble another population.

A logistic classifier h tells the two populations apart, each with the same total weight; then ``exp(h(x))`` is the ratio of
their densities at x (Bickel, Brückner and Scheffer 2009), and ``min(exp(h(x)), cap)`` the weight of the row x.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from dlscale.certificates import Certificate, Check
from dlscale.declaration.kind import MATRIX, Kind, Role
from dlscale.declaration.options import Options
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import lay_out_sparse
from dlscale.engine.grids import RowGrid, plan_grid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import NonFiniteError, SpecError
from dlscale.learn.predict import ScoreFold
from dlscale.learn.train import plan_train, run_training
from dlscale.learn.training.checking import check_features
from dlscale.learn.training.sections import Sync
from dlscale.learn.training.task import Recipe, TrainOptions
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import ArrayMatrix, Matrix
from dlscale.storage.scaled import Stacked


@dataclass(frozen=True)
class CovariateOptions(Options):
    """What a job of kind ``covariate_weights`` asks for."""

    cap: Annotated[float, Field(gt=0, description="a number above 0: the largest weight")] = 20.0
    l2: Annotated[float, Field(ge=0, description="a number of at least 0: penalty of the domain classifier")] = 1e-4
    iterations: Annotated[int, Field(ge=1, description="an integer of at least 1: iterations of the domain classifier")] = 200
    sync: Sync = "auto"


def _domains(inputs: Inputs) -> Inputs:
    """Both populations as one set of rows: label 1 is the target population; each weighs as much as the other."""
    here, there = inputs["features"], inputs["target_features"]
    n_here, n_there = here.shape[0], there.shape[0]
    labels = np.repeat([0.0, 1.0], [n_here, n_there])[:, None]
    weights = np.repeat([0.5 / n_here, 0.5 / n_there], [n_here, n_there])[:, None] * (n_here + n_there)
    return Inputs({"features": Stacked(here, there), "targets": ArrayMatrix(labels), "weights": ArrayMatrix(weights)})


def _train_options(options: CovariateOptions) -> TrainOptions:
    return TrainOptions(
        epochs=options.iterations,
        sync=options.sync,
        model={"type": "logistic"},
        regularization={"l2": options.l2},
        optimizer={"type": "lbfgs", "tolerance": 1e-7},
    )


def plan_covariate(inputs: Inputs, options: CovariateOptions, facts: ClusterFacts) -> Plan:
    """What training the classifier and writing the weights cost."""
    here, there = inputs["features"], inputs["target_features"]
    check_features("features", here)
    check_features("target_features", there)
    if here.shape[1] != there.shape[1]:
        raise SpecError(f"input.target_features: must have {here.shape[1]} columns like the features; got {there.shape[1]}.")
    plan = plan_train(_domains(inputs), _train_options(options), facts)
    weighing = Step("weights", 2.0 * here.n_entries, here.n_stored_bytes, here.shape[0] * 8)
    return replace(plan, kind="covariate_weights", matrix=here.describe(), steps=(*plan.steps, weighing))


def compute_covariate(run: Run, inputs: Inputs, options: CovariateOptions, plan: Plan) -> Outcome:
    """Train the domain classifier and write the weight of every row."""
    passes = Passes(run)
    training = _train_options(options)
    features = inputs["features"]
    try:
        learned, times, why = run_training(passes.run, _domains(inputs), training, plan)
    except NonFiniteError as error:
        below = error.row - features.shape[0]
        if below < 0:
            raise
        raise NonFiniteError(below, error.column, error.value, matrix="input.target_features") from error
    model = Recipe.of(training).model
    grid = _grid(features, passes.run.cluster.facts)
    output = passes.run.output("weights", (features.shape[0], 1), np.dtype(np.float64), grid)
    state = passes.sweep("weights", features, ScoreFold(model, learned.parameters, options.cap), grid, outputs=[output])
    (total, squares), n_capped = state["sums"], int(state["capped"][0])
    estimates: dict[str, Any] = (
        learned.estimates()
        | times
        | {
            "mean_weight": float(np.ldexp(total / features.shape[0], int(state["exponent"][0]))),
            "effective_rows": float(total**2 / squares) if squares else 0.0,
            "capped_rows": n_capped,
        }
    )
    notes = [*(f"Classifier: {note[0].lower()}{note[1:]}" for note in learned.notes()), why]
    if n_capped > 0.05 * features.shape[0]:
        notes.append(f"{n_capped} rows have the largest weight: the populations overlap little; look at cap.")
    missing = features.shape[0] - int(state["rows"][0])
    every = Check("rows without a weight", float(missing), 0.0, "every row has its weight")
    arrays = {f"classifier/{name}": array for name, array in learned.parameters.items()}
    arrays |= {f"history/{name}": array for name, array in learned.history.items()}
    checks = [replace(check, meaning=f"the classifier: {check.meaning}") for check in learned.certificate().checks]
    return Outcome(arrays, ("weights",), Certificate((every, *checks)), estimates, tuple(notes))


def _grid(features: Matrix, facts: ClusterFacts) -> RowGrid:
    """Of the pass that weighs the rows."""
    if features.is_sparse:
        return lay_out_sparse(features, facts, state_bytes=4096, operand_bytes=3 * 8 * features.shape[1], width=2).grid
    row_bytes = features.shape[1] * features.dtype.itemsize
    return plan_grid(features, max_block_bytes=max(row_bytes, facts.work_bytes // 16))


KIND = Kind(
    name="covariate_weights",
    title="Weights under covariate shift",
    words="Weights for rows under covariate shift, from a classifier that tells the two populations apart.",
    arrays="`weights` (m, 1), `classifier/...`, `history/...`",
    options=CovariateOptions,
    plan=plan_covariate,
    compute=compute_covariate,
    dimensions={"weights": ("row",), "classifier/layer-0/weight": ("column",)},
    example="{kind: covariate_weights, input: {features: x.zarr, target_features: z.zarr}}",
    roles=(
        Role("features", f"{MATRIX}: the rows that get weights"),
        Role("target_features", f"{MATRIX}: rows of the population that the weighted ones shall resemble", transformed=True),
    ),
    collective=True,
)
