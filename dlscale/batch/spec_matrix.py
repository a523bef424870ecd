"""Jobs on one matrix that factor or decompose it: svd, pca, qr. The defaults of params are those of the algorithms' options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dlscale.batch.sections import JobSpec, MatrixInput, Planned, Positive, Section


class SVDParams(Section):
    """Parameters of ``kind: svd``."""

    n_components: Positive | None = Field(default=None, description="an integer of at least 1: singular triplets wanted")
    tolerance: float | None = Field(
        default=None, gt=0, lt=1, description="a number between 0 and 1: stop at this relative error instead of at n_components"
    )
    oversampling: int = Field(default=10, ge=0, description="an integer of at least 0: extra random directions")
    power_iterations: int = Field(default=4, ge=0, le=100, description="an integer from 0 to 100: one read of the matrix each")
    method: Literal["randomized", "krylov", "streaming", "exact"] = Field(
        default="randomized", description="randomized, krylov, streaming or exact"
    )
    seed: int = Field(default=0, ge=0, description="an integer of at least 0")
    block_rows: Planned = Field(
        default=None, description="an integer of at least 1, or auto: rows of a block; the planner chooses when absent"
    )


class PCAParams(Section):
    """Parameters of ``kind: pca``."""

    n_components: Positive | Annotated[float, Field(gt=0, lt=1)] | Literal["mle"] | None = Field(
        default=None, description="an integer of at least 1, a fraction of the variance between 0 and 1, or mle"
    )
    solver: Literal["auto", "covariance", "randomized", "full"] = Field(
        default="auto", description="auto, covariance, randomized or full"
    )
    whiten: bool = Field(default=False, description="true or false: scores with unit variance")
    scores: bool = Field(default=False, description="true or false: also write the scores (m, k)")
    oversampling: int = Field(default=10, ge=0, description="an integer of at least 0: extra random directions")
    power_iterations: int = Field(default=4, ge=0, le=100, description="an integer from 0 to 100: one read of the matrix each")
    tolerance: float | None = Field(default=None, gt=0, lt=1, description="a number between 0 and 1: stop at this relative error")
    method: Literal["randomized", "krylov"] = Field(default="randomized", description="randomized or krylov")
    seed: int = Field(default=0, ge=0, description="an integer of at least 0")
    block_rows: Planned = Field(
        default=None, description="an integer of at least 1, or auto: rows of a block; the planner chooses when absent"
    )


class SVDSpec(JobSpec):
    """Singular value decomposition: the leading triplets, or all of them."""

    kind: Literal["svd"] = Field(description="svd")
    input: MatrixInput = Field(description="a section with the key matrix")
    params: SVDParams = Field(default_factory=SVDParams, description="a section")


class PCASpec(JobSpec):
    """Principal component analysis."""

    kind: Literal["pca"] = Field(description="pca")
    input: MatrixInput = Field(description="a section with the key matrix")
    params: PCAParams = Field(default_factory=PCAParams, description="a section")
