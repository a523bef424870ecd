"""How a source is read: the options of all formats, declared once for `import_matrix`, job files and the command line.

The title of a field is its help on the command line; the description says in an error what is allowed. Which formats know an
option stands in `FORMATS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from dlscale.errors import SpecError

Count = Annotated[int, Field(ge=1)]
#: Signs that only some know as blanks are named: what reads the schema means by a blank what it likes.
Character = Annotated[str, Field(pattern=r"^[^\s\x00-\x1f\x7f-\x9f\u180e\ufeffA-Za-z0-9.+\-]$")]
Names = Annotated[list[str], Field(min_length=1, strict=False)]

#: What to do about a column of words where no other one holds numbers.
AS_NUMBERS = "write numbers for the words of its column, such as 0, 1, 2 for those of three classes"


def _known_encoding(name: str) -> str:
    try:
        "a".encode(name)
    except (LookupError, ValueError) as error:
        raise ValueError("no encoding of text") from error
    return name


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
    sparse: bool | None = Field(
        default=None,
        title="Whether the copy is sparse [auto: of sparse groups of HDF5 it is].",
        description="true or false: whether the copy is a sparse matrix in compressed rows or columns",
    )
    dataset: str | None = Field(
        default=None,
        title="Which array or sparse group of an HDF5 file, or array of an .npz; targets of SVMlight are its labels.",
        description="text: dataset or sparse group inside an HDF5 file, member of an .npz, or targets of SVMlight",
    )
    n_columns: Count | None = Field(
        default=None,
        title="How many columns the matrix of an SVMlight text has [up to the last with an entry].",
        description="an integer of at least 1: how many columns the matrix of an SVMlight text has",
    )
    columns: Names | None = Field(
        default=None,
        title="Which columns of a table, in this order.",
        description="a list of column names of a table, at least one",
    )
    drop: Names | None = Field(
        default=None,
        title="Which columns of a table to leave out.",
        description="a list of column names of a table, at least one",
    )
    color: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        title="Which column of a table or of AnnData's obs, or dataset of HDF5, colours the rows in reports.",
        description="text: the column of a table or of AnnData's obs, or dataset of HDF5, that colours the rows in reports",
    )
    triplets: Annotated[Names, Field(min_length=2, max_length=3)] | None = Field(
        default=None,
        title="The columns of a table that hold row, column and value of the entries of a sparse matrix; without a value it is 1.",
        description="a list of two or three column names of a table: of the row, the column and the value of an entry",
    )
    keys: Literal["names", "numbers"] | None = Field(
        default=None,
        title="What triplets call rows and columns [auto: numbers from 0 where all are whole numbers].",
        description="names or numbers: what rows and columns of triplets are called; needs triplets",
    )
    numeric: bool | None = Field(
        default=None,
        title="Leave out the columns of a table that hold no numbers [they are refused].",
        description="true or false: whether columns of a table that hold no numbers are left out",
    )
    header: bool | None = Field(
        default=None,
        title="Whether the first line of a table names the columns [auto: it does if it holds no number].",
        description="true or false: whether the first line of a table names the columns",
    )
    index: bool | None = Field(
        default=None,
        title="Leave the first column out, as the rows' names or numbers [auto: if it has no name and holds such].",
        description="true or false: whether the first column holds the rows' names or numbers and is left out",
    )
    delimiter: Annotated[str, Field(pattern=r"^(tab|blank|[^\nA-Za-z0-9.+\-\"])$")] | None = Field(
        default=None,
        title="Between cells: a character, tab, or blank for any run of blanks [auto].",
        description="a character that is no letter or digit, or the word tab, or blank for any run of blanks",
    )
    decimal: Literal[".", ","] | None = Field(
        default=None,
        title="The decimal point of a table [auto].",
        description="'.' or ','",
    )
    thousands: Annotated[str, Field(pattern=r"^[^\nA-Za-z0-9+\-\"]$")] | None = Field(
        default=None,
        title="What separates thousands in a table [auto].",
        description="a character that is no letter, digit or sign",
    )
    comment: Character | None = Field(
        default=None,
        title="Lines that begin so are left out [auto: # above the first row].",
        description="a character that is no letter, digit, blank, sign or point",
    )
    quote: Character = Field(
        default='"',
        title='The quotation mark of a table ["].',
        description="a character that is no letter, digit, blank, sign or point",
    )
    booleans: Annotated[list[str], Field(min_length=2, max_length=2, strict=False)] | None = Field(
        default=None,
        title="Words for 0 and 1, besides false and true.",
        description="a list of two words: the one that stands for 0 and the one for 1, besides false and true",
    )
    fill: Annotated[float, Field(allow_inf_nan=False)] | Literal["mean", "median"] | None = Field(
        default=None,
        title="What missing values of a table become: a number, or mean or median of their column [they are refused].",
        description="a number, or mean or median of their column: what missing values of a table become",
    )
    missing: Annotated[list[str], Field(min_length=1, strict=False)] | None = Field(
        default=None,
        title="Cells that are missing values, to be filled [empty, NA, NaN, NULL, None].",
        description="a list of words that stand for missing values; needs fill",
    )
    encoding: Annotated[str, AfterValidator(_known_encoding)] | None = Field(
        default=None,
        title="Of a text [utf-8, or what its first bytes say].",
        description="the name of an encoding that Python knows, such as latin-1 or utf-16",
    )

    @property
    def mark(self) -> float | None:
        """What stands for a missing value while a table is read: the number that it becomes, or NaN until that is known."""
        return float("nan") if isinstance(self.fill, str) else self.fill

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.missing is not None and self.fill is None:
            raise PydanticCustomError("rule", "missing says which cells are filled; set fill to the number that they become")
        if self.keys is not None and self.triplets is None:
            raise PydanticCustomError("rule", "keys says what triplets are called by; set triplets to the columns that hold them")
        beside = [name for name in ("columns", "drop", "color", "index", "numeric") if getattr(self, name) is not None]
        if self.triplets is not None and beside:
            raise PydanticCustomError(
                "rule", "triplets says which columns are read; leave {names} out", {"names": ", ".join(beside)}
            )
        if self.triplets is not None and isinstance(self.fill, str):
            raise PydanticCustomError("rule", "entries of triplets that are missing can be filled with a number only")
        marks = [self.delimiter, self.thousands, self.comment, self.quote]
        given = [mark for mark in marks if mark is not None]
        if len(set(given)) < len(given) - (self.delimiter == self.thousands and self.delimiter == ","):
            raise PydanticCustomError("rule", "delimiter, thousands, comment and quote must differ")
        if self.thousands is not None and self.thousands == (self.decimal or "."[self.thousands == "." :]):
            raise PydanticCustomError("rule", "thousands and decimal must differ")
        return self


def setting(name: str, value: Any) -> str:
    """How an option is set in a job file and in Python, and on the command line: ``index: false or --index no``."""
    if isinstance(value, bool):
        return f"{name}: {str(value).lower()} or --{name} {'yes' if value else 'no'}"
    return f"{name}: {value} or --{name} {','.join(value) or repr('') if isinstance(value, list) else value}"


def parse_options(options: Mapping[str, Any]) -> ReadOptions:
    """Check options given by keyword (SpecError with one sentence for each faulty one)."""
    try:
        return ReadOptions(**options)
    except ValidationError as error:
        raise SpecError("\n".join(dict.fromkeys(map(_sentence, error.errors(include_url=False))))) from error


def _sentence(fault: Mapping[str, Any]) -> str:
    if not fault["loc"]:
        return f"{fault['msg']}."
    name = str(fault["loc"][0])
    if name not in ReadOptions.model_fields:
        return f"{name} is not an option of imports; known are {', '.join(ReadOptions.model_fields)}."
    return f"{name}: got {fault['input']!r}; allowed: {ReadOptions.model_fields[name].description}."
