"""What a job asks for: one model per kind, made from the kind's declaration; every field has the words of an error message.

`load_spec` turns a YAML file, YAML text or a mapping into a frozen model, or raises one `SpecError` that names the line,
the key, what was got and what is allowed.
"""

from __future__ import annotations

import functools
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, create_model

from dlscale.batch.document import Document, read_document
from dlscale.batch.kinds import KINDS
from dlscale.batch.spec.expanding import KEY, MAX_JOBS, MAX_KEYS, refuse_sweep
from dlscale.batch.spec.sections import InputSection, JobSpec, MatrixSource, ResultSource
from dlscale.declaration.faults import broken_rule, explain, shown
from dlscale.declaration.kind import Kind
from dlscale.declaration.options import declared_fields, section_of
from dlscale.errors import SpecError
from dlscale.storage.files.locations import expand_home

#: What makes a job file a sweep.
_MATRIX = {
    "type": "object",
    "description": f"keys such as params.seed with lists of values: a sweep of at most {MAX_JOBS:,} jobs, one for each combination",
    "additionalProperties": {"type": "array", "minItems": 1},
    "minProperties": 1,
    "maxProperties": MAX_KEYS,
}


def model_of(kind: Kind) -> type[JobSpec]:
    """The model of a kind's job files."""
    return _model_of(kind)


@functools.cache
def _model_of(kind: Any) -> type[JobSpec]:
    stem = kind.options.__name__.removesuffix("Options")
    params = section_of(kind.options, f"{stem}Params", f"Parameters of ``kind: {kind.name}``.", without=kind.sections)
    needed = any(field.is_required() for field in params.model_fields.values())
    required = [role.name for role in kind.roles if not role.optional]
    keys = f"a section with the key{'s' if len(required) > 1 else ''} {' and '.join(required)}"
    fields: dict[str, Any] = {
        "kind": (Literal[kind.name], Field(description=kind.name)),
        "input": (_input_of(kind, stem), Field(description=keys)),
        "params": (params, Field(description="a section") if needed else Field(default_factory=params, description="a section")),
        **dict(declared_fields(kind.options, kind.sections)),
    }
    return create_model(f"{stem}Spec", __base__=JobSpec, __doc__=kind.words, **fields)


def _input_of(kind: Kind, stem: str) -> Any:
    """The section with a kind's roles, which keeps the kind's rule on what goes together."""
    model = create_model(f"{stem}Input", __base__=InputSection, __doc__="Where the inputs are.", **dict(_role_fields(kind)))
    rule = kind.rule
    if rule is None:
        return model

    def kept(section: InputSection) -> InputSection:
        if problem := rule(section.roles().keys()):
            raise broken_rule(problem)
        return section

    return Annotated[model, AfterValidator(kept)]


def _role_fields(kind: Kind) -> Iterator[tuple[str, Any]]:
    for role in kind.roles:
        source: Any = ResultSource if role.result_of else MatrixSource
        if role.optional:
            yield role.name, (source | None, Field(default=None, description=role.words))
        else:
            yield role.name, (source, Field(description=role.words))


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
    refuse_sweep(document)
    kind = document.data.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        got = f"got {shown(kind)}" if "kind" in document.data else "missing"
        raise SpecError(f"{document.where(('kind',))}: kind: {got}; allowed: {', '.join(KINDS)}.")
    model = model_of(KINDS[kind])
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        raise SpecError(explain(error, model, document.data, where=document.where)) from error


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


def json_schema(*, references: str = "#/$defs/{model}") -> dict[str, Any]:
    """JSON Schema of a job file, for editors; ``references`` is how it refers to one of the parts in its ``$defs``."""
    union: Any = functools.reduce(operator.or_, map(model_of, KINDS.values()))
    schema = TypeAdapter(Annotated[union, Field(discriminator="kind")]).json_schema(ref_template=references)
    for reference in schema["discriminator"]["mapping"].values():
        _let_sweep(schema["$defs"][reference.rpartition("/")[2]], schema["$defs"])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "dlscale job", **schema}


def _let_sweep(spec: dict[str, Any], definitions: Mapping[str, dict[str, Any]]) -> None:
    """Let the schema of a kind take sweeps too, which leave out what their jobs get from ``matrix``."""
    sections = {key: definitions[spec["properties"][key]["$ref"].rpartition("/")[2]] for key in ("input", "params")}
    needed = {key: {"required": section.pop("required")} for key, section in sections.items() if "required" in section}
    given = {"required": [key for key in spec["required"] if key in sections], "properties": needed}
    spec["required"] = [key for key in spec["required"] if key not in sections]
    spec["properties"][KEY] = _MATRIX
    spec |= {"if": {"not": {"required": [KEY]}}, "then": given}
