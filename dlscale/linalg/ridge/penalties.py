"""What a path of penalties is: a number, some numbers, or a range of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Self

import numpy as np
from pydantic import Field, model_validator

from dlscale.arrays import Array
from dlscale.declaration.faults import broken_rule
from dlscale.declaration.options import Takes
from dlscale.declaration.sections import AboveZero, NotNegative, Section

#: scikit-learn's.
DEFAULT = (0.1, 1.0, 10.0)


class PenaltiesSection(Section):
    """Penalties at equal ratios."""

    smallest: AboveZero
    largest: AboveZero
    count: Annotated[int, Field(ge=2, description="an integer of at least 2: how many, both ends included")] = 20

    @model_validator(mode="after")
    def _ascends(self) -> Self:
        if self.largest <= self.smallest:
            raise broken_rule(f"largest must be above smallest, which is {self.smallest:g}; got {self.largest:g}.")
        return self


Penalties = Annotated[
    Any,
    Takes(NotNegative | Annotated[list[NotNegative], Field(min_length=1)] | PenaltiesSection),
    Field(description="a number of at least 0, a list of such, or a section with smallest, largest and count; absent: 0.1, 1, 10"),
]

PenaltiesAboveZero = Annotated[
    Any,
    Takes(AboveZero | Annotated[list[AboveZero], Field(min_length=1)] | PenaltiesSection),
    Field(description="a number above 0, a list of such, or a section with smallest, largest and count; absent: 1"),
]


def path_of(penalties: Any) -> Array:
    """The penalties, in the order in which they were given; those of a range ascend."""
    if isinstance(penalties, Mapping):
        return np.geomspace(penalties["smallest"], penalties["largest"], penalties["count"])
    return np.atleast_1d(np.asarray(penalties, float))
