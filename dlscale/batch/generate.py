"""Synthetic matrices from a description: shape, spectrum or condition, dtype, seed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from dlscale.batch.document import Document
from dlscale.batch.jobs.places import check_writable
from dlscale.batch.prepare import blame, cluster_request
from dlscale.batch.spec.consent import require_consent
from dlscale.batch.spec.sections import ClusterSpec
from dlscale.declaration.faults import explain
from dlscale.declaration.sections import Positive, Section
from dlscale.engine.clusters import open_cluster
from dlscale.engine.clusters.started import ADDRESS
from dlscale.engine.events import Emit, ignore
from dlscale.engine.passes import Passes
from dlscale.engine.run import Run
from dlscale.errors import SpecError
from dlscale.gallery import SpectrumMatrix, flat, geometric, power, step
from dlscale.linalg.synthesis import generate_matrix
from dlscale.storage.files.durable import require_free_space
from dlscale.storage.files.locations import local_path
from dlscale.storage.sparse.random import write_random

_CHUNK_BYTES = 16 * 2**20
#: Where fewer rows than that make a chunk, as many are made at a time as take so many bytes, and cut in columns: then what a strip
#: of columns needs lies together (`dlscale.engine.grids.reads_pieces`).
_FEW_ROWS, _STRIP_BYTES, _PIECE_BYTES = 8, 128 * 2**20, 2**20


class GenerateSpec(Section):
    """What `dlscale generate` makes."""

    shape: tuple[Positive, Positive] = Field(strict=False, description="[rows, columns]")
    spectrum: str | None = Field(
        default=None,
        pattern=r"^(power:-?\d+(\.\d+)?|step:\d+|flat)$",
        description="power:-0.5 (singular values i**-0.5), step:20 (20 large ones) or flat",
    )
    condition: float | None = Field(
        default=None, ge=1, description="a number of at least 1: singular values fall geometrically to 1/condition"
    )
    density: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="a number above 0 and at most 1: a sparse matrix of normal entries, each there with this probability",
    )
    rank: Positive | None = Field(default=None, description="an integer of at least 1: singular values that are not zero")
    dtype: Literal["f4", "f8", "c8", "c16"] = Field(default="f8", description="f4, f8, c8 or c16")
    seed: int = Field(default=0, ge=0, description="an integer of at least 0")
    offset: float = Field(default=0.0, description="a number added to every entry")
    chunks: tuple[Positive, Positive] | None = Field(default=None, strict=False, description="[rows, columns] of a stored chunk")
    cluster: Annotated[str, Field(pattern=rf"^(local|threads|{ADDRESS})$")] | ClusterSpec = Field(
        default="local", description="local, threads, tcp://host:port, or a section with workers, threads, memory"
    )

    @property
    def n_bytes(self) -> int:
        """Size of the matrix."""
        (m, n), item = self.shape, np.dtype(self.dtype).itemsize
        return m * n * item if self.density is None else int(m * n * self.density) * (item + 4) + 8 * m


def parse_generate(document: Document) -> GenerateSpec:
    """Validate a description (SpecError naming each faulty key)."""
    model: type[BaseModel] = GenerateSpec
    try:
        spec = GenerateSpec.model_validate(document.data)
    except ValidationError as error:
        raise SpecError(explain(error, model, document.data, where=document.where)) from error
    if [spec.spectrum, spec.condition, spec.density].count(None) != 2:
        raise SpecError(
            f"{document.source}: give one of spectrum (such as power:-0.5), condition (such as 1e8) and density (such as 0.01)."
        )
    if spec.density is not None and (spec.rank or spec.offset or spec.chunks):
        raise SpecError(f"{document.source}: rank, offset and chunks are of dense matrices, and density makes a sparse one.")
    with blame(document, "cluster"):
        require_consent(spec.cluster, document)
    return spec


def generate(spec: GenerateSpec, destination: Path, *, emit: Emit = ignore) -> Path:
    """Write the matrix as a Zarr array, in parallel, its exact singular values in its attributes; or a sparse one as a group.

    Raises
    ------
    SpecError
        If the description contradicts itself, or something is at the destination.
    DoesNotFitError
        If the disk has no room for it.
    """
    destination = local_path(destination, "The destination")
    dtype = np.dtype(spec.dtype)
    check_writable(destination.absolute().parent)
    require_free_space(destination, spec.n_bytes)
    if spec.density is not None:
        return write_random(destination, spec.shape, spec.density, dtype=dtype, seed=spec.seed)
    matrix = SpectrumMatrix(spec.shape, _singular_values(spec), spec.seed, dtype, spec.offset)
    chunks = spec.chunks or default_chunks(spec.shape, dtype.itemsize)
    with open_cluster(cluster_request(spec.cluster)) as cluster:
        cluster.tell_dashboard(emit)
        return Path(generate_matrix(Passes(Run(cluster, emit=emit)), matrix, destination, chunks=chunks))


def default_chunks(shape: tuple[int, int], item: int) -> tuple[int, int]:
    """Rows and columns of a chunk: whole rows, unless these are so long that few of them make one."""
    m, n = shape
    if _power_of_two(_CHUNK_BYTES / (n * item)) >= _FEW_ROWS:
        return min(_power_of_two(_CHUNK_BYTES / (n * item)), m), n
    rows = min(_power_of_two(_STRIP_BYTES / (n * item)), m)
    return rows, min(_power_of_two(_PIECE_BYTES / (rows * item)), n)


def _power_of_two(most: float) -> int:
    return 1 << max(0, int(most).bit_length() - 1)


def _singular_values(spec: GenerateSpec) -> Any:
    k = min(spec.rank or min(spec.shape), *spec.shape)
    if spec.condition is not None:
        return geometric(k, spec.condition)
    name, _, argument = (spec.spectrum or "").partition(":")
    if name == "power":
        if float(argument) > 0:
            raise SpecError(
                f"spectrum: got {spec.spectrum}; singular values descend, so the power must be at most 0, such as power:-0.5."
            )
        return power(k, -float(argument))
    return step(k, min(int(argument), k)) if name == "step" else flat(k)
