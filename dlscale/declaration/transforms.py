"""What is done to rows as they are read, as a job file and Python write it: a list of steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from dlscale.declaration.faults import explain
from dlscale.declaration.sections import AboveZero, Positive, Section
from dlscale.errors import SpecError
from dlscale.storage.sparse.column_steps import Center, CenterMedian, MostVariable, ScaleColumns, ScaleQuartiles, TfIdf
from dlscale.storage.sparse.steps import Map, Mapped, Ppmi, ScaleRows, Step

_FITTED_MAPS: dict[str, Step] = {"tfidf": TfIdf(), "ppmi": Ppmi()}


class ScaleRowsSection(Section):
    """Rows are scaled to one sum."""

    to: Annotated[float, Field(gt=0, description="a number above 0: what each row sums to")]


class ScaleColumnsSection(Section):
    """Columns are scaled to one standard deviation."""

    to: Annotated[AboveZero, Field(description="a number above 0: the standard deviation of each column")]


class SelectColumnsSection(Section):
    """Some columns are kept."""

    most_variable: Annotated[
        Positive, Field(description="an integer of at least 1: so many columns with the largest variances are kept")
    ]


class TransformSpec(Section):
    """One step of what is done to rows as they are read, of the rows of the first matrix, and of new ones later."""

    scale_rows: ScaleRowsSection | None = Field(
        default=None, description="a section with the key to: what each row is scaled to sum to"
    )
    scale_columns: Literal["std", "robust"] | ScaleColumnsSection | None = Field(
        default=None,
        description="std, robust (interquartile range 1), or a section with the key to: the standard deviation that each column is "
        "scaled to, 1 for std",
    )
    center: Literal[True, "median"] | None = Field(
        default=None, description="true, or median: columns less their means, or their medians; the last step"
    )
    select_columns: SelectColumnsSection | None = Field(
        default=None,
        description="a section with the key most_variable: how many columns are kept, those with the largest variances",
    )
    map: Map | Literal["tfidf", "ppmi"] | None = Field(
        default=None, description="log1p, sqrt, binary, tfidf or ppmi: what becomes of each entry"
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(getattr(self, name) is not None for name in type(self).model_fields) != 1:
            raise PydanticCustomError("rule", f"a transform has one of the keys {', '.join(type(self).model_fields)}")
        return self

    def step(self) -> Step:
        """The step that it asks for."""
        if self.scale_rows is not None:
            return ScaleRows(self.scale_rows.to)
        if self.scale_columns == "robust":
            return ScaleQuartiles()
        if self.scale_columns is not None:
            return ScaleColumns(1.0 if isinstance(self.scale_columns, str) else self.scale_columns.to)
        if self.select_columns is not None:
            return MostVariable(self.select_columns.most_variable)
        if self.center is not None:
            return CenterMedian() if self.center == "median" else Center()
        name: Any = self.map
        return _FITTED_MAPS[name] if name in _FITTED_MAPS else Mapped(name)


#: What a section with rows takes.
Transforms = Annotated[list[TransformSpec], Field(max_length=16)]
TRANSFORMS_WORDS = (
    "a list of steps, such as {scale_rows: {to: 10000}}, {map: log1p}, {scale_columns: std}: done to rows of the first matrix as "
    "they are read"
)


class _Given(Section):
    transforms: Transforms = Field(description=TRANSFORMS_WORDS)


def steps_of(transforms: Sequence[Mapping[str, Any]]) -> list[Step]:
    """The steps that a list of sections asks for.

    Raises
    ------
    SpecError
        Naming each key that holds what it does not take.
    """
    given = {"transforms": [dict(step) if isinstance(step, Mapping) else step for step in transforms]}
    try:
        return [step.step() for step in _Given.model_validate(given).transforms]
    except ValidationError as error:
        raise SpecError(explain(error, _Given, given, where=lambda _: "")) from None
