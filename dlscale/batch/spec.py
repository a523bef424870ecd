"""What a job asks for: one model per kind, every field with the words that an error message shows.

`load_spec` turns a YAML file, YAML text or a mapping into a frozen model, or raises one `SpecError` that names the line,
the key, what was got and what is allowed. The defaults of ``params`` are those of the algorithms' options (a test
compares them).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, WithJsonSchema

from dlscale.batch.document import Document, read_document
from dlscale.batch.messages import explain
from dlscale.errors import SpecError

SIZE_UNITS: Mapping[str, int] = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
TIME_UNITS: Mapping[str, float] = {"": 1.0, "s": 1.0, "sec": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def _bytes(value: object) -> int:
    number, scale = _quantity(str(value).lower().removesuffix("b") if isinstance(value, str) else value, SIZE_UNITS)
    return int(number * scale)


def _seconds(value: object) -> float:
    number, scale = _quantity(value, TIME_UNITS)
    return number * scale


def _quantity(value: object, units: Mapping[str, float]) -> tuple[float, float]:
    """A number and what its unit stands for (ValueError if it is not one, which pydantic reports)."""
    match = re.fullmatch(r"\s*(\d+\.?\d*)\s*([a-z]*)\s*", str(value))
    if isinstance(value, bool) or not match or match[2] not in units:
        raise ValueError("not a number with a unit")
    return float(match[1]), units[match[2]]


Size = Annotated[
    int, BeforeValidator(_bytes), Field(gt=0), WithJsonSchema({"type": ["string", "integer"], "examples": ["4GB", "512MiB"]})
]
Duration = Annotated[float, BeforeValidator(_seconds), WithJsonSchema({"type": ["string", "number"], "examples": ["10min", "30s"]})]
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of every section: unknown keys are errors, types are taken as written."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class ImportSpec(Section):
    """A source that the run imports once into the workspace and uses again."""

    source: str = Field(alias="import", min_length=1, description="a file, a folder of images, or sample:photos")
    patches: Positive | None = Field(
        default=None, description="an integer of at least 1: side of the square image patches, in pixels"
    )
    stride: Positive = Field(default=1, description="an integer of at least 1: pixels between patches")
    chunks: tuple[Positive, Positive] | None = Field(default=None, strict=False, description="[rows, columns] of a stored chunk")
    dtype: Literal["f4", "f8", "c8", "c16", "float32", "float64", "complex64", "complex128"] | None = Field(
        default=None, description="f4, f8, c8 or c16: convert while importing"
    )
    dataset: str | None = Field(default=None, description="text: dataset inside an HDF5 file, member of an .npz")
    columns: list[str] | None = Field(default=None, description="a list of column names of a table")


class InputSpec(Section):
    """Where the matrix is."""

    matrix: Annotated[str, Field(min_length=1)] | ImportSpec = Field(
        description="path or URL of a Zarr array, or a section with import: SOURCE"
    )


class ClusterSpec(Section):
    """An embedded local cluster with stated resources."""

    type: Literal["local", "threads"] = Field(
        default="local", description="local (worker processes) or threads (this process; nothing to start, for small jobs)"
    )
    workers: Positive | None = Field(default=None, description="an integer of at least 1: worker processes")
    threads: Positive | None = Field(default=None, description="an integer of at least 1: threads per worker")
    memory: Size | None = Field(default=None, description="a size such as 4GB: the limit of the whole job, all processes together")


class CheckpointSpec(Section):
    """How often finished work is made safe."""

    every: Duration = Field(
        default=0.0, description="a duration such as 10min: least time between checkpoints; 0 is after every pass"
    )


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
    block_rows: Positive | None = Field(
        default=None, description="an integer of at least 1: rows of a block; the planner chooses when absent"
    )


class PCAParams(Section):
    """Parameters of ``kind: pca``."""

    n_components: Positive | Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="an integer of at least 1, or a fraction of the variance between 0 and 1"
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
    block_rows: Positive | None = Field(
        default=None, description="an integer of at least 1: rows of a block; the planner chooses when absent"
    )


class QRParams(Section):
    """Parameters of ``kind: qr``."""

    mode: Literal["reduced", "r"] = Field(default="reduced", description="reduced (Q and R) or r (R alone)")
    block_rows: Positive | None = Field(
        default=None, description="an integer of at least 1: rows of a block; the planner chooses when absent"
    )


class _Job(Section):
    """What every kind has."""

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="up to 64 letters, digits, dots, dashes and underscores",
    )
    input: InputSpec = Field(description="a section with the key matrix")
    output: str | None = Field(
        default=None, min_length=1, description="a local path for the result; the job's own result.zarr when absent"
    )
    overwrite: bool = Field(default=False, description="true or false: replace an earlier result at output")
    cluster: Annotated[str, Field(pattern=r"^(local|threads|tcp://.+|tls://.+)$")] | ClusterSpec = Field(
        default="local", description="local, threads, tcp://host:port, or a section with workers, threads, memory"
    )
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec, description="a section with the key every")
    stall: Annotated[Duration, Field(gt=0)] = Field(
        default=1800.0, description="a duration such as 30min: fail after so long without progress"
    )


class SVDSpec(_Job):
    """Singular value decomposition: the leading triplets, or all of them."""

    kind: Literal["svd"] = Field(description="svd")
    params: SVDParams = Field(default_factory=SVDParams, description="a section")


class PCASpec(_Job):
    """Principal component analysis."""

    kind: Literal["pca"] = Field(description="pca")
    params: PCAParams = Field(default_factory=PCAParams, description="a section")


class QRSpec(_Job):
    """QR factorization of a tall matrix."""

    kind: Literal["qr"] = Field(description="qr")
    params: QRParams = Field(default_factory=QRParams, description="a section")


Spec = SVDSpec | PCASpec | QRSpec

MODELS: Mapping[str, type[SVDSpec] | type[PCASpec] | type[QRSpec]] = {"svd": SVDSpec, "pca": PCASpec, "qr": QRSpec}


def load_spec(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Spec:
    """Read and validate a job description.

    Parameters
    ----------
    source : str, Path or mapping
        A YAML file, YAML text (a string with a line break), or the data itself.
    overrides : iterable of str
        ``section.key=value``.

    Returns
    -------
    SVDSpec, PCASpec or QRSpec

    Raises
    ------
    SpecError
        Every fault on a line of its own: place, key, what was got, what is allowed.
    """
    return parse_spec(read_document(source, overrides))


def parse_spec(document: Document) -> Spec:
    """Validate a document against the model of its kind (SpecError if it does not match)."""
    kind = document.data.get("kind")
    if not isinstance(kind, str) or kind not in MODELS:
        got = f"got {kind!r}" if "kind" in document.data else "missing"
        raise SpecError(f"{document.where(('kind',))}: kind: {got}; allowed: {', '.join(MODELS)}.")
    try:
        return MODELS[kind].model_validate(document.data)
    except ValidationError as error:
        raise SpecError(explain(error, MODELS[kind], document)) from error


def to_data(spec: Spec) -> dict[str, Any]:
    """The spec as plain data, only what was written, with absolute paths: it means the same from any folder."""
    data = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    matrix = data["input"]["matrix"]
    if isinstance(matrix, str):
        data["input"]["matrix"] = absolute(matrix)
    else:
        matrix["import"] = absolute(matrix["import"])
    if data.get("output") is not None:
        data["output"] = absolute(data["output"])
    return data


def absolute(location: str) -> str:
    """A relative path from the current folder; URLs and sample: names as they are."""
    return location if "://" in location or location.startswith("sample:") else os.path.abspath(location)


def json_schema() -> dict[str, Any]:
    """JSON Schema of a job file, for editors."""
    schema = TypeAdapter(Annotated[Spec, Field(discriminator="kind")]).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "dlscale job", **schema}
