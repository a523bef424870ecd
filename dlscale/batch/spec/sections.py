"""The sections that the job files of all kinds have; `spec` adds those of a kind from its declaration.

Every field has the words that an error message shows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from dlscale.declaration.sections import Positive, Section
from dlscale.declaration.transforms import TRANSFORMS_WORDS, Transforms
from dlscale.engine.clusters.started import ADDRESS, OPTIONS, TIME_LIMIT, WORD
from dlscale.errors import SpecError
from dlscale.storage.importers.options import ReadOptions

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

_MAX_BYTES = 2**63


def _bytes(value: object) -> int:
    number, scale = _quantity(str(value).lower().removesuffix("b") if isinstance(value, str) else value, SIZE_UNITS)
    if number * scale >= _MAX_BYTES:
        raise ValueError("too large")
    return int(number * scale)


def _seconds(value: object) -> float:
    number, scale = _quantity(value, TIME_UNITS)
    return number * scale


def _quantity(value: object, units: Mapping[str, float]) -> tuple[float, float]:
    """A number and what its unit stands for (ValueError if it is not one, which pydantic reports)."""
    match = re.fullmatch(r"\s*(\d{1,40}\.?\d{0,40})\s*([a-z]*)\s*", str(value)[:100], re.ASCII)
    if isinstance(value, bool) or not match or match[2] not in units:
        raise ValueError("not a number with a unit")
    return float(match[1]), units[match[2]]


#: For editors: of text, the pattern holds, and of numbers the least one.
_NUMBER = r"[0-9]{1,40}(\.[0-9]{0,40})?[ \t\n\r\f\v]*"
_SIZE = {"type": ["string", "integer"], "pattern": rf"^{_NUMBER}([KMGTkmgt]i?)?[Bb]?$", "exclusiveMinimum": 0}
_DURATION = {"type": ["string", "number"], "pattern": rf"^{_NUMBER}({'|'.join(TIME_UNITS)})$", "minimum": 0}

Size = Annotated[int, BeforeValidator(_bytes), Field(gt=0), WithJsonSchema({**_SIZE, "examples": ["4GB", "512MiB"]})]
Duration = Annotated[float, BeforeValidator(_seconds), WithJsonSchema({**_DURATION, "examples": ["10min", "30s"]})]
Word = Annotated[str, Field(pattern=rf"^{WORD}$")]


class ImportSpec(ReadOptions, Section):
    """A source that the run imports once into the workspace and uses again."""

    source: str = Field(alias="import", min_length=1, description="a file, a folder of images, or sample:photos")
    chunks: tuple[Positive, Positive] | None = Field(default=None, strict=False, description="[rows, columns] of a stored chunk")
    dtype: Literal["f4", "f8", "c8", "c16", "float32", "float64", "complex64", "complex128"] | None = Field(
        default=None, description="f4, f8, c8 or c16: convert while importing"
    )

    def read_options(self) -> dict[str, Any]:
        """The options of the reader, as `import_matrix` takes them."""
        return self.model_dump(include=set(ReadOptions.model_fields))


#: What every role with a matrix takes.
MatrixSource = Annotated[str, Field(min_length=1)] | ImportSpec
#: What a role takes that goes on from the result of an earlier job.
ResultSource = Annotated[str, Field(min_length=1)]


class InputSection(Section):
    """Base of a kind's input: every other field is a role."""

    missing_chunks: Literal["refuse", "fill"] = Field(
        default="refuse",
        description="refuse, or fill: chunks that Zarr left out because they hold nothing but the fill value are meant so",
    )

    transforms: Transforms = Field(default_factory=list, description=TRANSFORMS_WORDS)

    color: Annotated[str, Field(min_length=1)] | None = Field(
        default=None,
        description="text: the column of AnnData's obs, or the array beside the matrix in Zarr, that colours its rows in reports",
    )

    def roles(self) -> dict[str, str | ImportSpec]:
        """What was given, by role."""
        names = type(self).model_fields.keys() - InputSection.model_fields.keys()
        return {role: source for role in type(self).model_fields if role in names and (source := getattr(self, role)) is not None}


class ClusterSpec(Section):
    """A cluster that the job starts, with stated resources."""

    type: Literal["local", "threads", "slurm", "pbs", "kubernetes"] = Field(
        default="local",
        description="local (worker processes), threads (this process; nothing to start, for small jobs), slurm, pbs or kubernetes",
    )
    workers: Positive | None = Field(default=None, description="an integer of at least 1: worker processes")
    threads: Positive | None = Field(default=None, description="an integer of at least 1: threads per worker")
    memory: Size | None = Field(default=None, description="a size such as 4GB: the limit of the whole job, all processes together")
    dashboard: bool = Field(
        default=False, description="true or false: Dask's dashboard of worker processes (type local), for this user"
    )
    queue: Word | None = Field(default=None, description="a word: queue or partition of slurm or pbs")
    account: Word | None = Field(default=None, description="a word: account of slurm or pbs")
    walltime: Annotated[str, Field(pattern=rf"^{TIME_LIMIT}$")] | None = Field(
        default=None, description="a time such as 02:00:00: limit of slurm or pbs"
    )
    interface: Word | None = Field(default=None, description="a word such as ib0: network interface on slurm or pbs")
    image: Word | None = Field(default=None, description="a word: container image with dlscale, for kubernetes")
    namespace: Annotated[str, Field(pattern=rf"^{OPTIONS['kubernetes']['namespace']}$")] | None = Field(
        default=None, description="a word of small letters, digits and dashes: namespace of kubernetes"
    )


class CheckpointSpec(Section):
    """How often finished work is made safe."""

    every: Duration = Field(
        default=0.0, description="a duration such as 10min: least time between checkpoints; 0 is after every pass"
    )
    at: Annotated[str, Field(pattern=r"^(s3|gs|az)://[^/@?#]+(/[^@?#]*)?$")] | None = Field(
        default=None, description="a URL such as s3://bucket/checkpoints: where they go instead of the job's folder"
    )


class JobSpec(Section):
    """What every kind has. A kind narrows ``kind``, ``input`` and ``params`` and may add sections of its own."""

    kind: str

    name: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$",
        description="up to 64 letters, digits, dots, dashes and underscores",
    )
    input: InputSection
    params: Section
    output: str | None = Field(
        default=None,
        min_length=1,
        description="a local path or s3://bucket/name.zarr for the result; the job's own result.zarr when absent",
    )
    overwrite: bool = Field(default=False, description="true or false: replace an earlier result at output")
    cluster: Annotated[str, Field(pattern=rf"^(local|threads|mpi|{ADDRESS})$")] | ClusterSpec = Field(
        default="local", description="local, threads, mpi, tcp://host:port, or a section with workers, threads, memory"
    )
    checkpoint: CheckpointSpec = Field(default_factory=CheckpointSpec, description="a section with the key every")
    stall: Annotated[Duration, Field(gt=0)] = Field(
        default=1800.0, description="a duration such as 30min: fail after so long without progress"
    )

    def option_values(self) -> dict[str, Any]:
        """What the options of the algorithm are made from: the params, and each section of the kind's own as plain data."""
        data = self.model_dump(include={"params", *(type(self).model_fields.keys() - JobSpec.model_fields.keys())})
        return {**data.pop("params"), **data}


def parse_pair(text: str, what: str) -> list[int]:
    """``1000x200`` as two numbers (SpecError if it is not)."""
    match = re.fullmatch(r"\s*(\d[\d_]*)\s*[x,×]\s*(\d[\d_]*)\s*", text)
    if not match:
        raise SpecError(f"{what}: got {text!r}; allowed: ROWSxCOLUMNS, such as 100000x500.")
    return [int(match[1]), int(match[2])]
