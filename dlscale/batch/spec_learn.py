"""Jobs that train a model by gradient steps, or use a trained one: train, predict, covariate_weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, model_validator

from dlscale.batch.sections import MATRIX, InputSection, JobSpec, MatrixSource, Positive, ResultSource, Section, broken_rule

NotNegative = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Sync = Literal["auto", "mpi", "dask", "none"]
_SYNC = "auto, mpi (allreduce between ranks), dask (passes on a cluster) or none (one process)"


def _by_name(value: object) -> object:
    """A name alone stands for the section with this type."""
    return {"type": value} if isinstance(value, str) else value


class TrainInput(InputSection):
    """Rows with what is to be predicted of them."""

    vectors: ClassVar[frozenset[str]] = frozenset({"targets", "weights", "validation_targets"})

    features: MatrixSource = Field(description=MATRIX)
    targets: MatrixSource = Field(description=f"{MATRIX}: labels 0, 1, ... or numbers, one row for each row of the features")
    weights: MatrixSource | None = Field(default=None, description=f"{MATRIX}: one number for each row")
    validation_features: MatrixSource | None = Field(default=None, description=MATRIX)
    validation_targets: MatrixSource | None = Field(default=None, description=MATRIX)


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


class TrainParams(Section):
    """Parameters of ``kind: train``."""

    batch_size: Positive | None = Field(default=None, description="an integer of at least 1: rows of a step, over all ranks")
    epochs: Positive = Field(default=10, description="an integer of at least 1; iterations for lbfgs and proximal")
    seed: int = Field(default=0, ge=0, description="an integer of at least 0")
    sync: Sync = Field(default="auto", description=_SYNC)
    dtype: Literal["float32", "float64"] | None = Field(default=None, description="float32 or float64; the features' when absent")
    clip_norm: AboveZero | None = Field(default=None, description="a number above 0: largest norm of the gradients")
    shuffle: bool = Field(default=True, description="true or false")
    checkpoint_steps: Positive | None = Field(default=None, description="an integer of at least 1: also save after so many steps")
    log_rows: bool = Field(default=False, description="true or false: write down which rows each rank used")


class TrainSpec(JobSpec):
    """A model trained by gradient steps."""

    kind: Literal["train"] = Field(description="train")
    input: TrainInput = Field(description="a section with features and targets")
    params: TrainParams = Field(default_factory=TrainParams, description="a section")
    model: Annotated[ModelSection, BeforeValidator(_by_name, json_schema_input_type=str | ModelSection)] = Field(
        default_factory=ModelSection, description="a name, or a section with the key type"
    )
    loss: Annotated[LossSection | None, BeforeValidator(_by_name, json_schema_input_type=str | LossSection | None)] = Field(
        default=None, description="a name, or a section with the key type; what suits the model when absent"
    )
    regularization: RegularizationSection = Field(
        default_factory=RegularizationSection, description="a section with l1, l2, decorrelation"
    )
    optimizer: Annotated[OptimizerSection, BeforeValidator(_by_name, json_schema_input_type=str | OptimizerSection)] = Field(
        default_factory=OptimizerSection, description="a name, or a section with type and learning_rate"
    )
    schedule: Annotated[ScheduleSection, BeforeValidator(_by_name, json_schema_input_type=str | ScheduleSection)] = Field(
        default_factory=ScheduleSection, description="a name, or a section with the key type"
    )
    early_stopping: EarlyStoppingSection | None = Field(default=None, description="a section with the key patience")

    @model_validator(mode="after")
    def _validation_is_whole(self) -> TrainSpec:
        if (self.input.validation_features is None) != (self.input.validation_targets is None):
            raise broken_rule("input needs validation_features and validation_targets together.")
        return self

    def option_values(self) -> dict[str, Any]:
        return {key: _without_none(value) for key, value in super().option_values().items()}


def _without_none(value: Any) -> Any:
    return {key: item for key, item in value.items() if item is not None} if isinstance(value, dict) else value


class PredictInput(InputSection):
    """Rows to predict, and the result of a training."""

    vectors: ClassVar[frozenset[str]] = frozenset({"targets"})
    results: ClassVar[Mapping[str, tuple[str, ...]]] = {"model": ("train",)}

    features: MatrixSource = Field(description=MATRIX)
    model: ResultSource = Field(description="path or URL of the result of a train job")
    targets: MatrixSource | None = Field(default=None, description=f"{MATRIX}: what is known, to judge the predictions")


class PredictParams(Section):
    """Parameters of ``kind: predict``."""

    block_rows: Positive | None = Field(
        default=None, description="an integer of at least 1: rows of a block; the planner chooses when absent"
    )


class PredictSpec(JobSpec):
    """Predictions of a trained model."""

    kind: Literal["predict"] = Field(description="predict")
    input: PredictInput = Field(description="a section with features and model")
    params: PredictParams = Field(default_factory=PredictParams, description="a section")


class CovariateInput(InputSection):
    """Rows that are there, and rows like those that the model will meet."""

    features: MatrixSource = Field(description=f"{MATRIX}: the rows that get weights")
    target_features: MatrixSource = Field(description=f"{MATRIX}: rows of the population that the weighted ones shall resemble")


class CovariateParams(Section):
    """Parameters of ``kind: covariate_weights``."""

    cap: AboveZero = Field(default=20.0, description="a number above 0: the largest weight")
    l2: NotNegative = Field(default=1e-4, description="a number of at least 0: penalty of the domain classifier")
    iterations: Positive = Field(default=200, description="an integer of at least 1: iterations of the domain classifier")
    sync: Sync = Field(default="auto", description=_SYNC)


class CovariateSpec(JobSpec):
    """Weights for rows under covariate shift, from a classifier that tells the two populations apart."""

    kind: Literal["covariate_weights"] = Field(description="covariate_weights")
    input: CovariateInput = Field(description="a section with features and target_features")
    params: CovariateParams = Field(default_factory=CovariateParams, description="a section")
