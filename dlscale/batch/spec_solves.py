"""Jobs that solve: solve, lstsq, inverse, slogdet. The defaults of params are those of the algorithms' options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from dlscale.batch.sections import MATRIX, InputSection, JobSpec, MatrixInput, MatrixSource, Planned, ResultSource, Section

_ASSUME = "general, pos (Hermitian positive definite) or sym (Hermitian)"
_PANEL = "an integer of at least 1, or auto: columns of a panel; the planner chooses when absent"
_RHS = "path or URL of a Zarr array with as many rows as the matrix, of one or two dimensions, or a section with import: SOURCE"


class SolveInput(InputSection):
    """The system, and factors of its matrix where an earlier job left them."""

    vectors: ClassVar[frozenset[str]] = frozenset({"rhs"})
    results: ClassVar[Mapping[str, tuple[str, ...]]] = {"factors": ("lu", "cholesky")}

    matrix: MatrixSource = Field(description=MATRIX)
    rhs: MatrixSource = Field(description=_RHS)
    factors: ResultSource | None = Field(default=None, description="path of the result of a lu or cholesky job on the same matrix")


class LstsqInput(InputSection):
    """The matrix and its right-hand sides."""

    vectors: ClassVar[frozenset[str]] = frozenset({"rhs"})

    matrix: MatrixSource = Field(description=MATRIX)
    rhs: MatrixSource = Field(description=_RHS)


class SolveParams(Section):
    """Parameters of ``kind: solve``."""

    assume: Literal["general", "pos", "sym"] = Field(default="general", description=_ASSUME)
    precision: Literal["double", "mixed"] = Field(
        default="double", description="double, or mixed (factored in single precision, refined to double)"
    )
    refine: Literal["auto", "never"] = Field(default="auto", description="auto (while the backward error asks for it) or never")
    panel: Planned = Field(default=None, description=_PANEL)


class LstsqParams(Section):
    """Parameters of ``kind: lstsq``."""

    rcond: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        default=None, description="a number from 0 to 1: relative size at which a singular value counts as zero; absent: as NumPy"
    )
    panel: Planned = Field(default=None, description=_PANEL)
    block_rows: Planned = Field(
        default=None, description="an integer of at least 1, or auto: rows of a block; the planner chooses when absent"
    )


class SquareParams(Section):
    """Parameters of ``kind: inverse`` and ``kind: slogdet``."""

    assume: Literal["general", "pos", "sym"] = Field(default="general", description=_ASSUME)
    panel: Planned = Field(default=None, description=_PANEL)


class SolveSpec(JobSpec):
    """Linear systems with one matrix and any number of right-hand sides."""

    kind: Literal["solve"] = Field(description="solve")
    input: SolveInput = Field(description="a section with the keys matrix and rhs")
    params: SolveParams = Field(default_factory=SolveParams, description="a section")


class LstsqSpec(JobSpec):
    """Least squares: the solution of minimum norm, and the numerical rank."""

    kind: Literal["lstsq"] = Field(description="lstsq")
    input: LstsqInput = Field(description="a section with the keys matrix and rhs")
    params: LstsqParams = Field(default_factory=LstsqParams, description="a section")


class InverseSpec(JobSpec):
    """The inverse of a square matrix."""

    kind: Literal["inverse"] = Field(description="inverse")
    input: MatrixInput = Field(description="a section with the key matrix")
    params: SquareParams = Field(default_factory=SquareParams, description="a section")


class SlogdetSpec(JobSpec):
    """Sign and logarithm of a determinant."""

    kind: Literal["slogdet"] = Field(description="slogdet")
    input: MatrixInput = Field(description="a section with the key matrix")
    params: SquareParams = Field(default_factory=SquareParams, description="a section")
