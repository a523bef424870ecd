"""Models as stacks of layers: forward, and matrix-form backpropagation.

Linear, logistic and softmax regression are a multilayer perceptron without hidden layers; what differs is the loss.
Activations and deltas live in workspaces that are kept from step to step: memory touched for the first time is slow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.buffers import workspace
from dlscale.errors import SpecError
from dlscale.kernels import tile_rows
from dlscale.learn.models.activations import ACTIVATIONS, Activation
from dlscale.learn.models.decorrelation import covariance_sums, penalty_and_slope
from dlscale.learn.models.initializers import initializer
from dlscale.learn.models.losses import Loss
from dlscale.learn.models.losses import loss as make_loss
from dlscale.learn.models.parameters import Parameters, backward_buffer, n_layers
from dlscale.learn.options import require_count, require_number
from dlscale.sparse_rows import SparseRows, rows_of

#: Losses that a type of model is trained with, the default first.
LOSSES_OF_MODELS = {
    "linear": ("squared", "huber"),
    "logistic": ("cross_entropy", "hinge"),
    "softmax": ("cross_entropy", "hinge"),
    "mlp": ("cross_entropy", "squared", "huber", "hinge"),
}

#: A part of a gradient that is reduced while the rest of it is computed has at least so many bytes.
_SLICE_BYTES = 2**19


def _untold(name: str, gradient: Array) -> None:
    """Of a gradient that is final, nobody is told."""


@dataclass(frozen=True)
class Room:
    """Where gradients go.

    Parameters
    ----------
    gradients : Parameters
        Overwritten, such as the views of `backward_buffer`.
    ready : callable
        Called as ``ready(name, gradient)`` as soon as a gradient is final, in the reverse order of the parameters (last layer
        first, its bias before its weight), while the layers before are still to come; a large weight comes in several calls, some
        rows each, the first rows first. It may read and reduce the array in place; nothing touches it again.
    """

    gradients: Parameters
    ready: Callable[[str, Array], None] = _untold


@dataclass(frozen=True)
class Forward:
    """What a forward sweep leaves: workspaces, overwritten by the next one of this thread.

    Parameters
    ----------
    inputs : list of (b, n_in)
        What each layer read: the features, compressed or not, then the hidden activations.
    slopes : list of (b, n_in) or None
        Derivatives that an activation kept, one for each of ``inputs``.
    scores : (b, n_outputs)
    """

    inputs: list[Any]
    slopes: list[Array | None]
    scores: Array


@dataclass(frozen=True)
class Model:
    """A stack of layers with its loss.

    Parameters
    ----------
    type : {"linear", "logistic", "softmax", "mlp"}
    loss : Loss
    hidden : tuple of int
        Units of the hidden layers; empty for all but mlp.
    activation : {"relu", "tanh", "sigmoid", "gelu"}
        Of the hidden layers.
    decorrelation : float
        Strength of the penalty on squared covariances between units of the last hidden layer; 0 is none.
    """

    type: str
    loss: Loss
    hidden: tuple[int, ...] = ()
    activation: str = "relu"
    decorrelation: float = 0.0
    function: Activation = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.type not in LOSSES_OF_MODELS:
            raise SpecError(f"model.type must be one of {', '.join(LOSSES_OF_MODELS)}; got {self.type!r}.")
        if self.activation not in ACTIVATIONS:
            raise SpecError(f"model.activation must be one of {', '.join(ACTIVATIONS)}; got {self.activation!r}.")
        if self.type == "mlp" and not self.hidden:
            raise SpecError(
                "model.hidden of an mlp must name at least one layer, as [128, 64]; or choose linear, logistic or softmax."
            )
        if self.type != "mlp" and self.hidden:
            raise SpecError(f"model.hidden is for type mlp; {self.type} has no hidden layers. Remove hidden, or set type: mlp.")
        for units in self.hidden:
            require_count("model.hidden", units)
        require_number("regularization.decorrelation", self.decorrelation, at_least=0)
        if self.decorrelation and not self.hidden:
            raise SpecError(
                "regularization.decorrelation acts on hidden layers; this model has none. Set it to 0, or choose type mlp."
            )
        object.__setattr__(self, "function", ACTIVATIONS[self.activation])

    def n_outputs(self, n_classes_or_targets: int) -> int:
        """Scores a row, from the number of classes (classification) or of target columns (regression)."""
        binary = self.loss.classifies and n_classes_or_targets <= 2 and self.type != "softmax"
        if self.type == "logistic" and n_classes_or_targets > 2:
            raise SpecError(
                f"model.type logistic tells 2 classes apart; the targets have {n_classes_or_targets}. Choose type softmax."
            )
        return 1 if binary else n_classes_or_targets

    def n_parameters(self, n_features: int, n_outputs: int) -> int:
        """Numbers that are learned."""
        return sum((n_in + 1) * n_out for n_in, n_out in pairwise((n_features, *self.hidden, n_outputs)))

    def default_init(self) -> str:
        """The initializer that suits this model: zeros when convex, else He or Xavier by activation."""
        if not self.hidden:
            return "zeros"
        return "he" if self.activation in ("relu", "gelu") else "xavier"

    def initialize(
        self, n_features: int, n_outputs: int, *, init: str | None = None, rng: np.random.Generator, dtype: np.dtype[Any]
    ) -> Parameters:
        """First parameters; the same generator state gives the same values, rounded, in either dtype.

        Parameters
        ----------
        n_features, n_outputs : int
        init : str, optional
            A name of `initializers.INITIALIZERS`; None is `default_init`.
        rng : Generator
        dtype : float32 or float64

        Raises
        ------
        SpecError
            An unknown initializer or dtype, or zeros for hidden layers.
        """
        dtype = np.dtype(dtype)
        if dtype not in (np.dtype(np.float32), np.dtype(np.float64)):
            raise SpecError(f"Models are trained in float32 or float64; got {dtype}.")
        draw = initializer(init or self.default_init(), has_hidden=bool(self.hidden))
        widths = (n_features, *self.hidden, n_outputs)
        parameters: Parameters = {}
        for layer, shape in enumerate(pairwise(widths)):
            parameters[f"layer-{layer}/weight"] = np.ascontiguousarray(draw(shape, rng), dtype)
            parameters[f"layer-{layer}/bias"] = np.zeros(shape[1], dtype)
        return parameters

    def forward(self, parameters: Parameters, X: Any, *, keep_slopes: bool = True) -> Forward:
        """All activations of the rows X (b, n_features), in workspaces; of compressed rows what is stored is multiplied."""
        inputs, slopes = [X], list[Array | None]([None])
        last = n_layers(parameters) - 1
        for layer in range(last + 1):
            W, bias = parameters[f"layer-{layer}/weight"], parameters[f"layer-{layer}/bias"]
            Z = workspace(f"learn/activation-{layer}", (len(X), W.shape[1]), W.dtype)
            if layer == 0 and isinstance(X, SparseRows):
                Z[...] = X.times(W)
            else:
                np.matmul(inputs[layer], W, out=Z)
            Z += bias
            if layer == last:
                break
            slope = None
            if self.function.keeps_slope and keep_slopes:
                slope = workspace(f"learn/slope-{layer}", Z.shape, Z.dtype)
            self.function.apply(Z, slope)
            inputs.append(Z)
            slopes.append(slope)
        return Forward(inputs, slopes, Z)

    def backward(self, parameters: Parameters, forward: Forward, layer: int, delta: Array, *, extra: Array | None = None) -> Array:
        """Derivatives in what the layer before put out before its activation, from those in what this layer put out.

        Parameters
        ----------
        layer : int, at least 1
        delta : (b, n_out)
        extra : (b, n_in), optional
            Added to the derivatives in this layer's inputs.

        Returns
        -------
        (b, n_in) : a workspace
        """
        W = parameters[f"layer-{layer}/weight"]
        below = workspace(f"learn/delta-{layer}", (len(delta), W.shape[0]), W.dtype)
        np.matmul(delta, W.T, out=below)
        if extra is not None:
            below += extra
        self.function.backpropagate(below, forward.inputs[layer], forward.slopes[layer])
        return below

    def scores(self, parameters: Parameters, X: Any) -> Array:
        """What the last layer puts out, (b, n_outputs), a new array; rows, compressed ones too, go through in cache-sized tiles."""
        widths = [array.shape[0] for name, array in parameters.items() if name.endswith("/bias")]
        dtype = parameters["layer-0/bias"].dtype
        step = tile_rows(max(X.shape[1], *widths), dtype.itemsize)
        result = np.empty((len(X), widths[-1]), dtype)
        for start in range(0, len(X), step):
            rows = X[start : start + step]
            rows = rows if isinstance(rows, SparseRows) else np.asarray(rows, dtype)
            result[start : start + step] = self.forward(parameters, rows, keep_slopes=False).scores
        return result

    def predict(self, parameters: Parameters, X: Array) -> Array:
        """Predictions (b, n_outputs), a new array: probabilities for cross-entropy, else the scores.

        With a single output and cross-entropy it is the probability of label 1. ``model.loss.decide`` turns predictions into
        labels.
        """
        return self.loss.link(self.scores(parameters, X))

    def statistics(self, parameters: Parameters, X: Any, weights: Array | None = None) -> Array | None:
        """First phase of a step, to be added up over ranks and given to `loss_and_gradients`; None when there is nothing to add up.

        Parameters
        ----------
        X : (b, n_features)
        weights : (b,), optional
            None is ones.

        Returns
        -------
        (n + 2, n), double precision, or None
            Sums of the n units of the last hidden layer (`covariance_sums`); zeros for no rows.
        """
        if not self.decorrelation:
            return None
        dtype = parameters["layer-0/weight"].dtype
        H = self.forward(parameters, rows_of(X, dtype), keep_slopes=False).inputs[-1]
        return covariance_sums(H, np.ones(len(X), dtype) if weights is None else np.asarray(weights, dtype))

    def loss_and_gradients(
        self,
        parameters: Parameters,
        X: Any,
        y: Array,
        *,
        weights: Array | None = None,
        normalizer: float,
        room: Room | None = None,
        statistics: Array | None = None,
    ) -> tuple[float, Parameters]:
        """This rank's share of ``(1 / normalizer) sum_r w_r loss(x_r, y_r)``, and of its gradient.

        Parameters
        ----------
        parameters : Parameters
        X : (b, n_features)
            This rank's rows of the batch, compressed or not, of the parameters' dtype (others are converted); b may be 0.
        y : (b,) or (b, n_outputs)
        weights : (b,), optional
            None is ones.
        normalizer : float
            Of the whole batch over all ranks: its rows times the mean weight of all rows that there are. Rows are weighted, not
            ranks, so shares simply add up; and not batches, so that the gradient of a random batch is on average that of all rows.
        room : Room, optional
            Where the gradients go; None makes new ones.
        statistics : array, optional
            `statistics`, added up over ranks; needed with decorrelation (SpecError).

        Returns
        -------
        loss : float
            Without L1 and L2 penalties, which are the same on every rank: see `regularization`. The decorrelation penalty
            is in it, in proportion to this rank's weights.
        gradients : Parameters

        Notes
        -----
        6 flops per row and weight, less 2 in the first layer. The workspaces hold 2 numbers per row and hidden unit.
        """
        if self.decorrelation and statistics is None:
            raise SpecError("A model with decorrelation needs its statistics, added up over ranks; call statistics first.")
        dtype = parameters["layer-0/weight"].dtype
        X = rows_of(X, dtype)
        room = room or Room(backward_buffer(parameters)[1])
        forward = self.forward(parameters, X)
        delta = forward.scores
        losses = self.loss.differentiate(delta, y)
        share = np.full(len(X), 1.0 / normalizer) if weights is None else np.divide(weights, normalizer, dtype=np.float64)
        value = float(np.dot(losses, share))
        factor = share.astype(dtype)[:, None]
        delta *= factor
        extra = None
        if statistics is not None and self.decorrelation:
            penalty, extra = penalty_and_slope(forward.inputs[-1], statistics, self.decorrelation)
            extra *= factor
            value += penalty * float(share.sum())
        self._backpropagate(parameters, forward, delta, room, extra)
        return value, room.gradients

    def _backpropagate(self, parameters: Parameters, forward: Forward, delta: Array, room: Room, extra: Array | None) -> None:
        """Gradients from the derivatives in the scores; ``extra`` is added to those in the last hidden activations."""
        ones = np.ones(len(delta), delta.dtype)
        for layer in reversed(range(n_layers(parameters))):
            bias, weight = f"layer-{layer}/bias", f"layer-{layer}/weight"
            np.matmul(ones, delta, out=room.gradients[bias])
            room.ready(bias, room.gradients[bias])
            inputs = forward.inputs[layer]
            whole = inputs.transposed_times(delta) if isinstance(inputs, SparseRows) else None
            for rows in _slices(room.gradients[weight]):
                if whole is None:
                    np.matmul(inputs[:, rows].T, delta, out=room.gradients[weight][rows])
                else:
                    room.gradients[weight][rows] = whole[rows]
                room.ready(weight, room.gradients[weight][rows])
            if layer > 0:
                delta = self.backward(parameters, forward, layer, delta, extra=extra)
                extra = None


def _slices(weight: Array) -> list[slice]:
    """Rows of a weight whose gradients are computed together: all, or a quarter where that is worth a reduction of its own."""
    n_slices = 4 if weight.nbytes >= 4 * _SLICE_BYTES else 1
    step = -(-len(weight) // n_slices)
    return [slice(start, start + step) for start in range(0, len(weight), step)]


def model(
    type: str,
    *,
    hidden: tuple[int, ...] | list[int] = (),
    activation: str = "relu",
    loss: Mapping[str, Any] | str | None = None,
    decorrelation: float = 0.0,
) -> Model:
    """The model that a job file asks for; a loss of None is the default of its type.

    Raises
    ------
    SpecError
        Options that do not go together, such as a logistic model with the squared loss.
    """
    if type not in LOSSES_OF_MODELS:
        raise SpecError(f"model.type must be one of {', '.join(LOSSES_OF_MODELS)}; got {type!r}.")
    allowed = LOSSES_OF_MODELS[type]
    chosen = make_loss(allowed[0] if loss is None else loss)
    name = loss if isinstance(loss, str) else (loss or {"type": allowed[0]})["type"]
    if name not in allowed:
        raise SpecError(
            f"loss.type: a {type} model is trained with {' or '.join(allowed)}; got {name}. Change the loss or the model."
        )
    return Model(type, chosen, tuple(hidden), activation, decorrelation)
