"""How a source is read: the options of all formats, declared once for `import_matrix`, job files and the command line.

The title of a field is its help on the command line; the description says in an error what is allowed. Which formats know an
option stands in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dlscale.errors import SpecError

Count = Annotated[int, Field(ge=1)]
Names = Annotated[list[str], Field(min_length=1, strict=False)]


class ReadOptions(BaseModel):
    """What a format's reader may be told; each option applies to some formats, and None leaves it to the reader."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    patches: Count | None = Field(
        default=None,
        title="Cut images into N x N patches, one a row.",
        description="an integer of at least 1: side of the square image patches, in pixels",
    )
    stride: Count = Field(
        default=1,
        title="Pixels from one patch to the next [1].",
        description="an integer of at least 1: pixels between patches",
    )
    dataset: str | None = Field(
        default=None,
        title="Which array of an HDF5 or .npz file.",
        description="text: dataset inside an HDF5 file, member of an .npz",
    )
    columns: Names | None = Field(
        default=None,
        title="Which columns of a table, in this order.",
        description="a list of column names of a table, at least one",
    )
    header: bool | None = Field(
        default=None,
        title="Whether the first line of a table names the columns [auto: it does if it holds no number].",
        description="true or false: whether the first line of a table names the columns",
    )


def parse_options(options: Mapping[str, Any]) -> ReadOptions:
    """Check options given by keyword (SpecError with one sentence for each faulty one)."""
    try:
        return ReadOptions(**options)
    except ValidationError as error:
        raise SpecError("\n".join(dict.fromkeys(map(_sentence, error.errors(include_url=False))))) from error


def _sentence(fault: Mapping[str, Any]) -> str:
    name = str(fault["loc"][0])
    if name not in ReadOptions.model_fields:
        return f"{name} is not an option of imports; known are {', '.join(ReadOptions.model_fields)}."
    return f"{name}: got {fault['input']!r}; allowed: {ReadOptions.model_fields[name].description}."
