"""What is refused of the rows of a training or a prediction before work starts: each by its role, its row and what was found."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dlscale.arrays import Array
from dlscale.errors import InputError, SpecError
from dlscale.learn.models.model import Model
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import Matrix

#: Class numbers below it are counted in a table; whoever has more classes has numbered them otherwise.
_MOST_CLASSES = 2**24


def check_features(role: str, features: Matrix) -> None:
    """Rows must be real."""
    if features.dtype.kind == "c":
        raise SpecError(f"input.{role}: must be real; got complex numbers.")


def check_rows(role: str, matrix: Matrix, features: Matrix, *, like: str = "features") -> None:
    """There must be one for each row of the features, and it must be real."""
    if matrix.shape[0] != features.shape[0]:
        raise SpecError(f"input.{role}: must have {features.shape[0]} rows like the {like}; got {matrix.shape[0]}.")
    check_features(role, matrix)


def check_weights(weights: Matrix, features: Matrix) -> None:
    """Weights must be one finite number of at least 0 a row, and not all of them 0."""
    check_rows("weights", weights, features)
    if weights.shape[1] != 1:
        raise SpecError(f"input.weights: must be one column, a number for each row; got {weights.shape[1]} columns.")
    total = 0.0
    for first_row, block in _blocks(weights):
        wrong = ~(np.isfinite(block[:, 0]) & (block[:, 0] >= 0))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise InputError(f"input.weights: must be finite and at least 0; got {block[row, 0]} in row {first_row + row}.")
        with np.errstate(over="ignore"):
            total += float(block.sum(dtype=np.float64))
    if total == 0:
        raise InputError("input.weights: every weight is 0; at least one row must count.")
    if not np.isfinite(total):
        raise InputError("input.weights: their sum overflows; divide them by the largest one, which changes nothing else.")


def check_targets(role: str, targets: Matrix, model: Model, n_outputs: int) -> None:
    """Every target must fit the model: see `Loss.check_targets`."""
    check_features(role, targets)
    for first_row, block in _blocks(targets):
        _check_block(role, block, first_row, model, n_outputs)


def _check_block(role: str, block: Array, first_row: int, model: Model, n_outputs: int) -> None:
    try:
        model.loss.check_targets(block[:, 0] if block.shape[1] == 1 else block, n_outputs, first_row=first_row)
    except InputError as error:
        raise InputError(f"input.{role}: {error}") from error


def count_outputs(targets: Matrix, model: Model, n_classes: int | None) -> tuple[int, str]:
    """Scores that a model needs for its targets, and what is to be known of its classes; every target is looked at.

    Raises
    ------
    SpecError, InputError
        Labels that are no class numbers, or targets that are not finite or not real.
    """
    check_features("targets", targets)
    n_outputs, note = targets.shape[1], ""
    if model.loss.classifies:
        if n_outputs != 1:
            raise InputError(f"input.targets: labels must be one column; got {n_outputs} columns.")
        if n_classes is None:
            n_classes, note = _count_classes(targets, model)
            n_classes = n_classes if model.type == "softmax" else max(2, n_classes)
        n_outputs = model.n_outputs(n_classes)
    check_targets("targets", targets, model, n_outputs)
    return n_outputs, note


def _count_classes(targets: Matrix, model: Model) -> tuple[int, str]:
    """One more than the largest label, and which classes below it have no row."""
    counts, first, last = np.zeros(0, np.int64), np.inf, -np.inf
    for first_row, block in _blocks(targets):
        _check_block("targets", block, first_row, model, _MOST_CLASSES)
        labels = block[:, 0].astype(np.int64)
        first, last = min(first, labels.min()), max(last, labels.max())
        found = np.bincount(labels, minlength=len(counts))
        found[: len(counts)] += counts
        counts = found
    n_classes, n_found = int(last) + 1, int(np.count_nonzero(counts))
    if model.type == "logistic" and n_classes > 2 and n_found <= 2:
        raise InputError(
            f"input.targets: labels of a logistic model must be 0 and 1; got {n_found} labels from {int(first)} to {int(last)}. "
            "Number the classes from 0."
        )
    if n_found < n_classes / 2:
        raise InputError(
            f"input.targets: labels must be class numbers 0, 1, ...; got {n_found} labels from {int(first)} to {int(last)}. "
            f"Number the classes from 0, or set model.n_classes to {n_classes} if so many are meant."
        )
    unused = np.flatnonzero(counts == 0)
    if not len(unused):
        return n_classes, ""
    named = ", ".join(map(str, unused[:5])) + (" ..." if len(unused) > 5 else "")
    classes, have = ("Class", "has") if len(unused) == 1 else (f"{len(unused)} classes", "have")
    return n_classes, (
        f"{classes} {named} {have} no row among the training targets, and the model has a score for each class up to {int(last)} "
        "all the same; number the classes without gaps if none is meant there."
    )


def check_validation(inputs: Inputs, model: Model, n_outputs: int) -> None:
    """Validation rows are rows like those of the training, with targets that fit the same model."""
    if ("validation_features" in inputs) != ("validation_targets" in inputs):
        raise SpecError("input.validation_features: needs validation_targets too, and the other way round.")
    if "validation_features" not in inputs:
        return
    features, targets = inputs["validation_features"], inputs["validation_targets"]
    n_columns = inputs["features"].shape[1]
    check_features("validation_features", features)
    if features.shape[1] != n_columns:
        raise SpecError(f"input.validation_features: must have {n_columns} columns like the features; got {features.shape[1]}.")
    check_rows("validation_targets", targets, features, like="validation_features")
    check_targets("validation_targets", targets, model, n_outputs)


def _blocks(matrix: Matrix) -> Iterator[tuple[int, Array]]:
    """First row and rows of each block."""
    step = max(1, 2**24 // (matrix.shape[1] * matrix.dtype.itemsize) // matrix.row_unit * matrix.row_unit or 1)
    return ((start, matrix.read(start, min(matrix.shape[0], start + step))) for start in range(0, matrix.shape[0], step))
