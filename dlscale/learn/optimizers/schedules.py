"""Learning-rate schedules: a factor of the base learning rate as a pure function of the step.

Nothing is remembered between steps, so a resumed run needs only the step's number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from pydantic import Field

from dlscale.declaration.options import Options
from dlscale.declaration.sections import Count
from dlscale.errors import SpecError
from dlscale.learn.options import choose


@dataclass(frozen=True)
class Schedule(Options):
    """A factor of the learning rate for each step, counted from 0; this one is always 1."""

    section: ClassVar[str] = "schedule"

    def __call__(self, step: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Exponential(Schedule):
    """``factor ** (step / every)``."""

    every: Annotated[int, Field(ge=1, description="an integer of at least 1: steps")]
    factor: Annotated[float, Field(gt=0, le=1, description="a number above 0, at most 1")] = 0.1

    def __call__(self, step: int) -> float:
        return float(self.factor ** (step / self.every))


@dataclass(frozen=True)
class Step(Exponential):
    """The same in stairs: multiplied by ``factor`` after every ``every`` steps."""

    def __call__(self, step: int) -> float:
        return super().__call__(step // self.every * self.every)


@dataclass(frozen=True)
class Cosine(Schedule):
    """From 1 down to ``final`` on half a cosine over ``n_steps``, then ``final`` (Loshchilov and Hutter 2017)."""

    n_steps: Count
    final: Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")] = 0.0

    def __call__(self, step: int) -> float:
        done = min(1.0, step / self.n_steps)
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class WarmupCosine(Schedule):
    """Linear from ``1 / n_warmup_steps`` to 1 over the first steps, then the cosine down to ``final`` at step ``n_steps``."""

    n_steps: Count
    n_warmup_steps: Count
    final: Annotated[float, Field(ge=0, le=1, description="a number from 0 to 1")] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.n_warmup_steps >= self.n_steps:
            raise SpecError(
                f"schedule.n_warmup_steps must be less than schedule.n_steps; got {self.n_warmup_steps} of {self.n_steps}. "
                "Train longer or warm up for less."
            )

    def __call__(self, step: int) -> float:
        if step < self.n_warmup_steps:
            return (step + 1) / self.n_warmup_steps
        return Cosine(self.n_steps - self.n_warmup_steps, self.final)(step - self.n_warmup_steps)


@dataclass(frozen=True)
class InverseSquareRoot(Schedule):
    """Linear over the first steps, then ``sqrt(n_warmup_steps / (step + 1))`` (Vaswani et al. 2017, eq. 3, scaled to peak at 1)."""

    n_warmup_steps: Count = 1

    def __call__(self, step: int) -> float:
        return min((step + 1) / self.n_warmup_steps, math.sqrt(self.n_warmup_steps / (step + 1)))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Schedule,
    "step": Step,
    "exponential": Exponential,
    "cosine": Cosine,
    "warmup_cosine": WarmupCosine,
    "inverse_square_root": InverseSquareRoot,
}


def schedule(options: Mapping[str, Any] | str = "constant") -> Schedule:
    """The schedule that ``{"type": "cosine", "n_steps": 1000}`` or ``"constant"`` asks for."""
    return choose("schedule", options, SCHEDULES)
