"""Models of the factorizations: lu, qr, cholesky."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dlscale.batch.sections import JobSpec, MatrixInput, Planned, Section


class FactorParams(Section):
    """How to cut a matrix for a factorization."""

    panel: Planned = Field(
        default=None, description="an integer of at least 1, or auto: columns of a panel; the planner chooses when absent"
    )
    row_blocks: Planned = Field(
        default=None, description="an integer of at least 1, or auto: row blocks of a panel; the planner chooses when absent"
    )


class QRParams(FactorParams):
    """Parameters of ``kind: qr``."""

    mode: Literal["reduced", "r", "raw"] = Field(
        default="reduced", description="reduced (Q and R), r (R alone) or raw (reflectors, as LAPACK stores them)"
    )
    block_rows: Planned = Field(
        default=None,
        description="an integer of at least 1, or auto: rows of a block of a tall matrix; the planner chooses when absent",
    )


class LUSpec(JobSpec):
    """LU factorization with partial pivoting: P A = L U."""

    kind: Literal["lu"] = Field(description="lu")
    input: MatrixInput = Field(description="a section with the key matrix")
    params: FactorParams = Field(default_factory=FactorParams, description="a section")


class CholeskySpec(JobSpec):
    """Cholesky factorization of a Hermitian positive definite matrix: A = L L^H."""

    kind: Literal["cholesky"] = Field(description="cholesky")
    input: MatrixInput = Field(description="a section with the key matrix")
    params: FactorParams = Field(default_factory=FactorParams, description="a section")


class QRSpec(JobSpec):
    """QR factorization: A = Q R."""

    kind: Literal["qr"] = Field(description="qr")
    input: MatrixInput = Field(description="a section with the key matrix")
    params: QRParams = Field(default_factory=QRParams, description="a section")
