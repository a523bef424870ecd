"""The sections that a training has in a job file beside its params, and the words of their keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dlscale.declaration.sections import AboveZero, Fraction, NotNegative, Positive, Section

Sync = Annotated[
    Literal["auto", "mpi", "dask", "none"],
    Field(description="auto, mpi (allreduce between ranks), dask (passes on a cluster) or none (one process)"),
]


def _by_name(value: object) -> object:
    return {"type": value} if isinstance(value, str) else value


def or_name(section: Any) -> Any:
    """A section that a name alone stands for, which is its type."""
    return Annotated[section, BeforeValidator(_by_name, json_schema_input_type=str | section)]


class ModelSection(Section):
    """What is trained."""

    type: Literal["linear", "logistic", "softmax", "mlp"] = Field(default="softmax", description="linear, logistic, softmax or mlp")
    hidden: list[Positive] = Field(default_factory=list, description="units of the hidden layers, such as [128, 64]; for mlp")
    activation: Literal["relu", "tanh", "sigmoid", "gelu"] = Field(default="relu", description="relu, tanh, sigmoid or gelu")
    init: Literal["zeros", "normal", "xavier", "he", "orthogonal"] | None = Field(
        default=None, description="zeros, normal, xavier, he or orthogonal; what suits the model when absent"
    )
    n_classes: Annotated[int, Field(ge=2)] | None = Field(
        default=None, description="an integer of at least 2; the largest label and one when absent"
    )


class LossSection(Section):
    """What is minimised."""

    type: Literal["squared", "huber", "cross_entropy", "hinge"] = Field(description="squared, huber, cross_entropy or hinge")
    delta: AboveZero | None = Field(default=None, description="a number above 0: where huber turns from square to linear")


class RegularizationSection(Section):
    """Penalties beside the mean loss: (l2/2) ||W||^2 + l1 ||W||_1, and squared covariances between hidden units."""

    l1: NotNegative = Field(default=0.0, description="a number of at least 0")
    l2: NotNegative = Field(default=0.0, description="a number of at least 0")
    decorrelation: NotNegative = Field(default=0.0, description="a number of at least 0, for mlp")


class OptimizerSection(Section):
    """How the parameters move. Which keys go with which type is checked when the job is planned."""

    type: Literal["sgd", "momentum", "nesterov", "adam", "adamw", "lars", "kfac", "lbfgs", "proximal"] = Field(
        default="adam", description="sgd, momentum, nesterov, adam, adamw, lars, kfac, lbfgs or proximal"
    )
    learning_rate: AboveZero | None = Field(default=None, description="a number above 0")
    momentum: Fraction | None = Field(default=None, description="a number from 0 to below 1")
    beta1: Fraction | None = Field(default=None, description="a number from 0 to below 1, for adam and adamw")
    beta2: Fraction | None = Field(default=None, description="a number from 0 to below 1, for adam and adamw")
    epsilon: AboveZero | None = Field(default=None, description="a number above 0, for adam and adamw")
    weight_decay: NotNegative | None = Field(default=None, description="a number of at least 0, for adamw and lars")
    trust: AboveZero | None = Field(default=None, description="a number above 0, for lars")
    damping: AboveZero | None = Field(default=None, description="a number above 0, for kfac")
    decay: Fraction | None = Field(default=None, description="a number from 0 to below 1, for kfac")
    every: Positive | None = Field(default=None, description="an integer of at least 1, for kfac: steps between renewals")
    kl_clip: AboveZero | None = Field(default=None, description="a number above 0, for kfac")
    memory: Positive | None = Field(default=None, description="an integer of at least 1, for lbfgs")
    tolerance: NotNegative | None = Field(default=None, description="a number of at least 0, for lbfgs and proximal")
    max_evaluations: Positive | None = Field(default=None, description="an integer of at least 1, for lbfgs")


class ScheduleSection(Section):
    """How the learning rate changes."""

    type: Literal["constant", "step", "exponential", "cosine", "warmup_cosine", "inverse_square_root"] = Field(
        default="constant", description="constant, step, exponential, cosine, warmup_cosine or inverse_square_root"
    )
    every: Positive | None = Field(default=None, description="an integer of at least 1: steps")
    factor: AboveZero | None = Field(default=None, description="a number above 0, at most 1")
    n_steps: Positive | None = Field(default=None, description="an integer of at least 1")
    n_warmup_steps: Positive | None = Field(default=None, description="an integer of at least 1")
    final: NotNegative | None = Field(default=None, description="a number from 0 to 1")


class EarlyStoppingSection(Section):
    """End when the validation loss (without validation rows, the training loss) stops improving, and keep the best."""

    patience: Positive = Field(default=5, description="an integer of at least 1: epochs without improvement that are borne")
    min_improvement: NotNegative = Field(default=0.0, description="a number of at least 0")
