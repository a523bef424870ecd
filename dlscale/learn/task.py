"""What is to be trained, in the form that travels to every rank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlscale.errors import SpecError
from dlscale.learn.data import Order
from dlscale.learn.kfac import KFAC
from dlscale.learn.lbfgs import LBFGS
from dlscale.learn.metrics import EarlyStopping
from dlscale.learn.models import Model, model
from dlscale.learn.optimizers import NO_L1, OPTIMIZERS, Optimizer
from dlscale.learn.options import choose, require_count, require_number
from dlscale.learn.proximal import ProximalGradient
from dlscale.learn.regularization import Regularization
from dlscale.learn.schedules import Schedule, schedule
from dlscale.storage.matrices import Matrix

#: Optimizers whose one step reads all rows, several times; an epoch is one of their iterations.
FULL_BATCH = {"lbfgs": LBFGS, "proximal": ProximalGradient}
LEARNING_RATES = {"sgd": 0.1, "momentum": 0.01, "nesterov": 0.01, "adam": 1e-3, "adamw": 1e-3, "lars": 1.0, "kfac": 0.1}
DTYPES: dict[str, np.dtype[Any]] = {"float32": np.dtype(np.float32), "float64": np.dtype(np.float64)}
SYNCS = ("auto", "mpi", "dask", "none")


@dataclass(frozen=True)
class TrainOptions:
    """What a job of kind ``train`` asks for.

    Parameters
    ----------
    batch_size : int, optional
        Rows of a step, over all ranks; None is 256, or all rows for an optimizer that needs them.
    epochs : int
        Passes over the rows; iterations of an optimizer that takes all rows at once.
    seed : int
        Of the first parameters and of the order of rows.
    sync : {"auto", "mpi", "dask", "none"}
        How gradients are added up.
    dtype : {"float32", "float64"}, optional
        None is that of the features.
    clip_norm : float, optional
        Largest Euclidean norm of the gradients.
    shuffle : bool
    checkpoint_steps : int, optional
        Also save after so many steps.
    log_rows : bool
        Write down which rows each rank used in each step.
    model, loss, regularization, optimizer, schedule, early_stopping : dict
        Sections of the job file.
    """

    batch_size: int | None = None
    epochs: int = 10
    seed: int = 0
    sync: str = "auto"
    dtype: str | None = None
    clip_norm: float | None = None
    shuffle: bool = True
    checkpoint_steps: int | None = None
    log_rows: bool = False
    model: Mapping[str, Any] = field(default_factory=dict)
    loss: Mapping[str, Any] | str | None = None
    regularization: Mapping[str, Any] = field(default_factory=dict)
    optimizer: Mapping[str, Any] = field(default_factory=lambda: {"type": "adam"})
    schedule: Mapping[str, Any] | str = "constant"
    early_stopping: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.sync not in SYNCS:
            raise SpecError(f"params.sync must be one of {', '.join(SYNCS)}; got {self.sync!r}.")
        if self.clip_norm is not None:
            require_number("params.clip_norm", self.clip_norm, above=0)
        require_count("params.epochs", self.epochs)


@dataclass(frozen=True)
class Recipe:
    """The objects that the options stand for."""

    model: Model
    optimizer: Optimizer | KFAC | LBFGS | ProximalGradient
    learning_rate: float
    schedule: Schedule
    regularization: Regularization
    early_stopping: EarlyStopping | None

    @property
    def full_batch(self) -> bool:
        """Whether a step reads all rows."""
        return isinstance(self.optimizer, LBFGS | ProximalGradient)

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
        table: dict[str, type[Any]] = {**OPTIMIZERS, "kfac": KFAC, **FULL_BATCH}
        optimizer = choose("optimizer", {"type": name, **chosen}, table)
        if rate is not None:
            if name in FULL_BATCH:
                raise SpecError(f"optimizer.learning_rate is not for {name}, which finds its own steps; remove it.")
            require_number("optimizer.learning_rate", rate, above=0)
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
        Of the checkpoint.
    every_seconds : float
        Least time between checkpoints; 0 is as often as costs little.
    token : str
        Under which rank 0 sends its events.
    rows_directory : str, optional
        Where the log of rows goes.
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


def measuring_dtype(model: Model, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """In which precision a trained model is measured: near a minimum, where models of one layer end, gradients cancel."""
    return dtype if model.hidden else np.dtype(np.float64)


def measured_apart(recipe: Recipe, dtype: np.dtype[Any]) -> bool:
    """Whether measuring what is published takes a read of its own: not if the last iteration has evaluated just that."""
    known = recipe.full_batch and recipe.early_stopping is None
    return not (known and measuring_dtype(recipe.model, dtype) == dtype)
