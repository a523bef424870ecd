"""What a finished training says of itself: what its seal stands for, what ended it, and how far its gradient has fallen."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, Check
from dlscale.learn.optimizers.full_batch import FullBatch
from dlscale.learn.optimizers.measuring import Measured
from dlscale.learn.training.rounding import Rounding, rounding
from dlscale.learn.training.saving import ENDINGS
from dlscale.learn.training.task import IF_IT_DIVERGES, Recipe, measuring_dtype

#: A gradient that has fallen to less of its start is small enough to be left without advice.
_SMALL = 1e-3


@dataclass(frozen=True)
class Learned:
    """What a training came to.

    Parameters
    ----------
    recipe : Recipe
    parameters, history : dict of arrays
        The parameters are the published ones: of the best epoch with early stopping, else of the last step.
    first, last : Measured
        The objective on all rows at the first parameters, and at the published ones.
    ending : str
        One of `dlscale.learn.training.saving.ENDINGS`.
    rounding : Rounding or None
        Of what was measured at the published parameters; None where no bound is known.
    n_epochs, n_steps : int
        That were done.
    best_epoch : int or None
        That is published, counted from 1; None without early stopping.
    """

    recipe: Recipe
    parameters: dict[str, Array]
    history: dict[str, Array]
    first: Measured
    last: Measured
    rounding: Rounding | None
    ending: str
    n_epochs: int
    n_steps: int
    best_epoch: int | None

    def estimates(self) -> dict[str, Any]:
        """What was measured, and of the validation rows what the published parameters made of them."""
        found: dict[str, Any] = {"ended": self.ending, "steps": self.n_steps, "epochs": self.n_epochs}
        if self.best_epoch is not None:
            found["best_epoch"] = self.best_epoch
        for prefix, measured in (("first", self.first), ("final", self.last)):
            found |= {
                f"{prefix}_loss": measured.loss,
                f"{prefix}_gradient_norm": measured.norm,
                f"{prefix}_optimality": measured.optimality,
            }
        if self.rounding is not None:
            found |= {"final_loss_rounding": self.rounding.loss, "final_gradient_rounding": self.rounding.gradient}
        for name, values in sorted(self.history.items()):
            if name.startswith("validation_"):
                found[f"final_{name}"] = float(values[-1 if self.best_epoch is None else self.best_epoch - 1])
        return found

    def certificate(self) -> Certificate:
        """Measured on the published parameters; whether they are the best that there are is said only where it is known."""
        numbers = [*self.parameters.values(), self.last.to_array()]
        n_bad = sum(int((~np.isfinite(array)).sum()) for array in numbers)
        limit = self._limit
        checks = [
            Check("entries that are not finite", float(n_bad), 0.0, "all parameters are numbers, and so are loss and gradient"),
            Check(
                "objective / objective at the start",
                self._ratio,
                limit,
                "on all training rows, the published parameters fit no worse than those that the training began with, but for a "
                f"part of {limit - 1:.0e} that is left to rounding",
            ),
        ]
        if self.converged:
            method = self.recipe.optimizer
            assert isinstance(method, FullBatch)
            largest = self._surely if self._surely <= method.tolerance else self.last.optimality
            name, meaning = f"largest entry of the {self._gradient}", f"no entry of the {self._gradient} of the objective"
            if self._surely <= method.tolerance:
                name = f"{name}, with its rounding"
                meaning += " exceeds the tolerance: no change of the parameters improves it by more than that times the sum of the "
                meaning += "changes"
            else:
                meaning += f", as {self._computed_in} computes it, exceeds the tolerance{self._rounded}"
            checks.append(Check(f"{name} / tolerance", largest / method.tolerance if largest else 0.0, 1.0, meaning))
        is_full_batch = isinstance(self.recipe.optimizer, FullBatch)
        return Certificate(tuple(checks), "" if is_full_batch else f"The training diverged: {IF_IT_DIVERGES}")

    @property
    def _ratio(self) -> float:
        """The objective at the published parameters by that of the start."""
        first, last = self.first.loss, self.last.loss
        if not math.isfinite(last):
            return math.inf
        return last / first if first > 0 else 1.0 if last <= first else math.inf

    @property
    def _limit(self) -> float:
        """Two sums over all rows that are equal differ by rounding."""
        return 1 + math.sqrt(np.finfo(self._dtype).eps)

    @property
    def converged(self) -> bool:
        """Whether what is published is within the optimizer's tolerance, as far as it was computed."""
        method = self.recipe.optimizer
        return self.ending == "converged" and isinstance(method, FullBatch) and self.last.optimality <= method.tolerance

    def notes(self) -> tuple[str, ...]:
        """What ended the training, and how far it came."""
        fell = self._fell()
        iterations = f"{self.n_steps:,} iteration{'s'[: self.n_steps != 1]}"
        method = self.recipe.optimizer
        if isinstance(method, FullBatch):
            tolerance = f"optimizer.tolerance ({method.tolerance:g})"
            above = "above" if self.last.optimality > method.tolerance else "which beside features and targets is above"
            said = {
                "converged": self._converged_words(method, iterations, tolerance),
                "converged to rounding": f"Converged to rounding after {iterations}: no step lowers the loss any more; {fell}.",
                "stalled": f"Not converged: after {iterations} no step lowers the loss in {self._dtype}, and {fell}. "
                "Scale the features or the targets.",
                "all epochs": f"Not converged: all {iterations} were spent, and {fell}, {above} {tolerance}. Raise params.epochs.",
                "early stopping": f"Ended by early stopping after {iterations}; {fell}.",
            }[self.ending]
        else:
            epochs = f"{self.n_epochs:,} epoch{'s'[: self.n_epochs != 1]}"
            began = f"Ended by early stopping after {epochs}" if self.ending == "early stopping" else f"Ended after all {epochs}"
            said = f"{began}; {fell}."
            if not self._ratio <= self._limit:
                said += f" It diverged: {IF_IT_DIVERGES}"
            elif self.ending == "all epochs" and not self.last.norm <= _SMALL * self.first.norm:
                said += " More epochs, another optimizer.learning_rate or a schedule bring it further down."
        notes = [said]
        if self.best_epoch is not None:
            notes.append(f"Published are the parameters of epoch {self.best_epoch:,} of {self.n_epochs:,}, {self._chosen}.")
        if getattr(method, "weight_decay", 0):
            notes.append("The weight_decay of the optimizer is no part of the objective that was measured; regularization.l2 is.")
        return tuple(notes)

    def _converged_words(self, method: FullBatch, iterations: str, tolerance: str) -> str:
        fell = self._fell()
        if not self.converged:
            return f"Converged after {iterations} as far as {self._dtype} tells; {fell}, and {tolerance} is not reached."
        said = f"Converged after {iterations}: {fell}, within {tolerance}"
        if self.rounding is None or self._surely <= method.tolerance:
            return f"{said}."
        return f"{said}{self._rounded}. Features or targets with means near 0 and sizes near 1 are told more of."

    @property
    def _surely(self) -> float:
        """What no entry of the least subgradient exceeds; infinite where that is not known."""
        return self.last.optimality + (math.inf if self.rounding is None else self.rounding.gradient)

    @property
    def _computed_in(self) -> np.dtype[Any]:
        return measuring_dtype(self.recipe.model, self._dtype)

    @property
    def _rounded(self) -> str:
        return "" if self.rounding is None else f"; rounding may have changed entries by up to {1.05 * self.rounding.gradient:.1e}"

    @property
    def _chosen(self) -> str:
        assert self.recipe.early_stopping is not None
        least = self.recipe.early_stopping.min_improvement
        return f"the last that improved by more than early_stopping.min_improvement ({least:g})" if least else "the best"

    @property
    def _dtype(self) -> np.dtype[Any]:
        return self.parameters["layer-0/weight"].dtype

    @property
    def _gradient(self) -> str:
        return "least subgradient" if self.recipe.regularization.l1 else "gradient"

    def _fell(self) -> str:
        first, last = self.first, self.last
        norm = f"{last.norm:.3g}" + (f", {last.norm / first.norm:.2g} of its start" if first.norm > 0 else "")
        return f"the {self._gradient} of the objective on all rows has norm {norm}, largest entry {last.optimality:.3g}"


def learned_from(recipe: Recipe, arrays: Mapping[str, Array], *, n_added: int) -> Learned:
    """From the arrays of the last checkpoint of a training, which adds up so many rows and sums one after the other."""

    def under(prefix: str) -> dict[str, Array]:
        return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}

    history, stopping = under("history/"), recipe.early_stopping
    best = None
    if stopping is not None:
        best = 1 + stopping.best(history.get("validation_loss", history["epoch_loss"]).tolist())
    first, last = (Measured(*map(float, row)) for row in arrays["measured"])
    steps, epochs, ended = (int(arrays["position"][i]) for i in (0, 1, 4))
    parameters = under("parameters/" if stopping is None else "best/")
    known = None
    if isinstance(recipe.optimizer, FullBatch):
        columns = np.stack([arrays["optimizer/mean"], arrays["optimizer/scale"]])
        loss, penalties = recipe.model.loss, recipe.regularization
        known = rounding(parameters, loss, penalties, columns=columns, measured=last.loss, n_added=n_added)
    return Learned(recipe, parameters, history, first, last, known, ENDINGS[ended], epochs, steps, best)
