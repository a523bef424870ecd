"""What is to be trained, in the form that travels to every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.declaration.options import Options, Takes
from dlscale.declaration.sections import Seed
from dlscale.errors import SpecError
from dlscale.learn.models.model import Model, model
from dlscale.learn.optimizers.first_order import NO_L1
from dlscale.learn.optimizers.regularization import Regularization
from dlscale.learn.optimizers.schedules import Schedule, schedule
from dlscale.learn.optimizers.stepping import Optimizer
from dlscale.learn.options import choose
from dlscale.learn.training.data import Order
from dlscale.learn.training.metrics import EarlyStopping
from dlscale.learn.training.sections import (
    EVERY_OPTIMIZER,
    EarlyStoppingSection,
    LossSection,
    ModelSection,
    OptimizerSection,
    RegularizationSection,
    ScheduleSection,
    Sync,
    or_name,
)
from dlscale.storage.matrix import Matrix

LEARNING_RATES = {"sgd": 0.1, "momentum": 0.01, "nesterov": 0.01, "adam": 1e-3, "adamw": 1e-3, "lars": 1.0, "kfac": 0.1}
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64)}
#: What to do where a loss grows instead of falling.
IF_IT_DIVERGES = "lower optimizer.learning_rate, set params.clip_norm, or scale the features."


@dataclass(frozen=True)
class TrainOptions(Options):
    """What a job of kind ``train`` asks for."""

    batch_size: Annotated[int | None, Field(ge=1, description="an integer of at least 1: rows of a step, over all ranks")] = None
    epochs: Annotated[int, Field(ge=1, description="an integer of at least 1; iterations for lbfgs and proximal")] = 10
    seed: Seed = 0
    sync: Sync = "auto"
    dtype: Annotated[Literal["float32", "float64"] | None, Field(description="float32 or float64; the features' when absent")] = (
        None
    )
    clip_norm: Annotated[float | None, Field(gt=0, description="a number above 0: largest norm of the gradients")] = None
    shuffle: Annotated[bool, Field(description="true or false")] = True
    checkpoint_steps: Annotated[int | None, Field(ge=1, description="an integer of at least 1: also save after so many steps")] = (
        None
    )
    log_rows: Annotated[bool, Field(description="true or false: write down which rows each rank used")] = False
    model: Annotated[
        Mapping[str, Any], Takes(or_name(ModelSection)), Field(description="a name, or a section with the key type")
    ] = field(default_factory=dict)
    loss: Annotated[
        Mapping[str, Any] | str | None,
        Takes(or_name(LossSection | None)),
        Field(description="a name, or a section with the key type; what suits the model when absent"),
    ] = None
    regularization: Annotated[
        Mapping[str, Any], Takes(RegularizationSection), Field(description="a section with l1, l2, decorrelation")
    ] = field(default_factory=dict)
    optimizer: Annotated[
        Mapping[str, Any], Takes(or_name(OptimizerSection)), Field(description="a name, or a section with type and learning_rate")
    ] = field(default_factory=dict)
    schedule: Annotated[
        Mapping[str, Any] | str, Takes(or_name(ScheduleSection)), Field(description="a name, or a section with the key type")
    ] = field(default_factory=dict)
    early_stopping: Annotated[
        Mapping[str, Any] | None, Takes(EarlyStoppingSection | None), Field(description="a section with the key patience")
    ] = None


@dataclass(frozen=True)
class Recipe:
    """The objects that the options stand for."""

    model: Model
    optimizer: Optimizer
    learning_rate: float
    schedule: Schedule
    regularization: Regularization
    early_stopping: EarlyStopping | None

    @property
    def full_batch(self) -> bool:
        """Whether a step reads all rows."""
        return self.optimizer.takes_all_rows

    @classmethod
    def of(cls, options: TrainOptions) -> Recipe:
        """Build and check everything.

        Raises
        ------
        SpecError
            Naming the section.
        """
        described = {key: value for key, value in options.model.items() if value is not None}
        for key in ("init", "n_classes"):
            described.pop(key, None)
        penalties = dict(options.regularization)
        decorrelation = float(penalties.pop("decorrelation", 0.0) or 0.0)
        described.setdefault("type", "softmax")
        kind = model(**described, loss=options.loss, decorrelation=decorrelation)
        chosen = dict(options.optimizer)
        name = str(chosen.get("type", "adam"))
        rate = chosen.pop("learning_rate", None)
        optimizer: Optimizer = choose("optimizer", {"type": name, **chosen}, EVERY_OPTIMIZER)
        if rate is not None and optimizer.takes_all_rows:
            raise SpecError(f"optimizer.learning_rate is not for {name}, which finds its own steps; remove it.")
        stopping = None if options.early_stopping is None else EarlyStopping(**options.early_stopping)
        recipe = cls(
            kind,
            optimizer,
            float(rate if rate is not None else LEARNING_RATES.get(name, 1.0)),
            schedule(options.schedule),
            Regularization(**penalties),
            stopping,
        )
        if recipe.full_batch and options.batch_size is not None:
            raise SpecError(f"params.batch_size is not for the optimizer {name}, which takes all rows at once; remove it.")
        if name in NO_L1 and recipe.regularization.l1:
            raise SpecError(NO_L1[name])
        return recipe


@dataclass(frozen=True)
class Task:
    """A training as it travels to the ranks.

    Parameters
    ----------
    features, targets : Matrix
    weights, validation_features, validation_targets : Matrix, optional
    options : TrainOptions
    order : Order
    n_outputs : int
    dtype : str
    directory : str
        Of the checkpoint: a folder, or a URL in an object store.
    every_seconds : float
        Least time between checkpoints; 0 is as often as costs little.
    token : str
        Under which rank 0 sends its events.
    rows_directory : str, optional
        Where it is written down which rows each rank used; None where it is not.
    """

    features: Matrix
    targets: Matrix
    weights: Matrix | None
    validation_features: Matrix | None
    validation_targets: Matrix | None
    options: TrainOptions
    order: Order
    n_outputs: int
    dtype: str
    directory: str
    every_seconds: float
    token: str
    rows_directory: str | None = None


def measuring_dtype(model: Model, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """In which precision a trained model is measured: near a minimum, where models of one layer end, gradients cancel."""
    return dtype if model.hidden else np.dtype(np.float64)


def measured_apart(recipe: Recipe, dtype: np.dtype[Any]) -> bool:
    """Whether measuring what is published takes a read of its own: not if the last iteration has evaluated just that."""
    known = recipe.full_batch and recipe.early_stopping is None
    return not (known and measuring_dtype(recipe.model, dtype) == dtype)
