"""The sections that a training has in a job file beside its params, and the words of their keys."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from dlscale.declaration.options import one_of, section_of
from dlscale.declaration.sections import AboveZero, Positive, Section
from dlscale.learn.models.losses import LOSSES
from dlscale.learn.optimizers.first_order import OPTIMIZERS
from dlscale.learn.optimizers.kfac import KFAC
from dlscale.learn.optimizers.lbfgs import LBFGS
from dlscale.learn.optimizers.proximal import ProximalGradient
from dlscale.learn.optimizers.regularization import Penalties
from dlscale.learn.optimizers.schedules import SCHEDULES
from dlscale.learn.optimizers.stepping import Optimizer
from dlscale.learn.training.metrics import EarlyStopping

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


#: Every optimizer by its type.
EVERY_OPTIMIZER: dict[str, type[Optimizer]] = {**OPTIMIZERS, "kfac": KFAC, "lbfgs": LBFGS, "proximal": ProximalGradient}

LossSection = one_of("LossSection", "What is minimised.", LOSSES)
RegularizationSection = section_of(
    Penalties,
    "RegularizationSection",
    "Penalties beside the mean loss: (l2/2) ||W||^2 + l1 ||W||_1, and squared covariances between hidden units.",
)
OptimizerSection = one_of(
    "OptimizerSection",
    "How the parameters move. Which keys go with which type is checked when the job is planned.",
    EVERY_OPTIMIZER,
    default="adam",
    learning_rate=(AboveZero | None, Field(default=None, description="a number above 0")),
)
ScheduleSection = one_of("ScheduleSection", "How the learning rate changes.", SCHEDULES, default="constant")
EarlyStoppingSection = section_of(
    EarlyStopping,
    "EarlyStoppingSection",
    "End when the validation loss (without validation rows, the training loss) stops improving, and keep the best.",
)
