"""What a job asks for: one model per kind, every field with the words that an error message shows.

`load_spec` turns a YAML file, YAML text or a mapping into a frozen model, or raises one `SpecError` that names the line,
the key, what was got and what is allowed. The models stand in one module for each family of kinds.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from dlscale.batch import spec_factors, spec_learn, spec_matrix, spec_solves
from dlscale.batch.document import Document, read_document
from dlscale.batch.messages import explain, shown
from dlscale.batch.sections import JobSpec
from dlscale.errors import SpecError
from dlscale.storage.locations import expand_home

#: Every kind of job by its name.
MODELS: Mapping[str, type[JobSpec]] = {
    "svd": spec_matrix.SVDSpec,
    "pca": spec_matrix.PCASpec,
    "lu": spec_factors.LUSpec,
    "qr": spec_factors.QRSpec,
    "cholesky": spec_factors.CholeskySpec,
    "solve": spec_solves.SolveSpec,
    "lstsq": spec_solves.LstsqSpec,
    "inverse": spec_solves.InverseSpec,
    "slogdet": spec_solves.SlogdetSpec,
    "train": spec_learn.TrainSpec,
    "predict": spec_learn.PredictSpec,
    "covariate_weights": spec_learn.CovariateSpec,
}


def load_spec(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> JobSpec:
    """Read and validate a job description.

    Parameters
    ----------
    source : str, Path or mapping
        A YAML file, YAML text (a string with a line break), or the data itself.
    overrides : iterable of str
        ``section.key=value``.

    Returns
    -------
    JobSpec
        Of its kind.

    Raises
    ------
    SpecError
        Every fault on a line of its own: place, key, what was got, what is allowed.
    """
    return parse_spec(read_document(source, overrides))


def parse_spec(document: Document) -> JobSpec:
    """Validate a document against the model of its kind (SpecError if it does not match)."""
    kind = document.data.get("kind")
    if not isinstance(kind, str) or kind not in MODELS:
        got = f"got {shown(kind)}" if "kind" in document.data else "missing"
        raise SpecError(f"{document.where(('kind',))}: kind: {got}; allowed: {', '.join(MODELS)}.")
    try:
        return MODELS[kind].model_validate(document.data)
    except ValidationError as error:
        raise SpecError(explain(error, MODELS[kind], document)) from error


def to_data(spec: JobSpec) -> dict[str, Any]:
    """The spec as plain data, only what was written, with absolute paths: it means the same from any folder."""
    data = spec.model_dump(mode="json", by_alias=True, exclude_unset=True)
    for role in spec.input.roles().keys() & data["input"].keys():
        source = data["input"][role]
        if isinstance(source, str):
            data["input"][role] = absolute(source)
        elif source is not None:
            source["import"] = absolute(source["import"])
    if data.get("output") is not None:
        data["output"] = absolute(data["output"])
    return data


def absolute(location: str) -> str:
    """A path from the home folder or the current one, absolute; URLs and sample: names as they are."""
    return location if "://" in location or location.startswith("sample:") else os.path.abspath(expand_home(location))


def json_schema() -> dict[str, Any]:
    """JSON Schema of a job file, for editors."""
    union: Any = functools.reduce(operator.or_, MODELS.values())
    schema = TypeAdapter(Annotated[union, Field(discriminator="kind")]).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "dlscale job", **schema}
