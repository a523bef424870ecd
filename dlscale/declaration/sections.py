"""The words of a declaration: what a field may hold, as types that pydantic checks, describes and puts in a schema."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

Positive = Annotated[int, Field(ge=1)]


def _chosen_by_planner(value: object) -> object:
    return None if value == "auto" else value


#: A size that the planner chooses where it is absent or ``auto``.
Planned = Annotated[
    int | None,
    Field(ge=1),
    BeforeValidator(_chosen_by_planner, json_schema_input_type=Positive | Literal["auto"] | None),
]
#: What several kinds take.
Panel = Annotated[
    Planned, Field(description="an integer of at least 1, or auto: columns of a panel; the planner chooses when absent")
]
RowBlocks = Annotated[
    Planned, Field(description="an integer of at least 1, or auto: row blocks of a panel; the planner chooses when absent")
]
BlockRows = Annotated[
    Planned, Field(description="an integer of at least 1, or auto: rows of a block; the planner chooses when absent")
]
NotNegative = Annotated[float, Field(ge=0, description="a number of at least 0")]
AboveZero = Annotated[float, Field(gt=0, description="a number above 0")]
Fraction = Annotated[float, Field(ge=0, lt=1, description="a number from 0 to below 1")]
Count = Annotated[int, Field(ge=1, description="an integer of at least 1")]
Seed = Annotated[int, Field(ge=0, description="an integer of at least 0")]


class Section(BaseModel):
    """Base of every section of a job file: unknown keys are errors, types are taken as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
