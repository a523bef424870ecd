"""Whether a Kubernetes object is what a schema says, names of fields included: a misspelt one would be dropped without a word.

`operator_schema.json` holds the schemas of DaskCluster and DaskJob from the Dask operator's custom resource definitions
(dask-kubernetes 2026.3.0), each repeated part written once under ``$defs``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMAS = json.loads((Path(__file__).parent / "operator_schema.json").read_text())
TYPES = {"object": Mapping, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def faults(value: Any, schema: Mapping[str, Any], place: str = "") -> Iterator[str]:
    """What is wrong with a value, each fault with its place."""
    while "$ref" in schema:
        schema = SCHEMAS["$defs"][schema["$ref"].rpartition("/")[2]]
    if schema.get("x-kubernetes-int-or-string"):
        if not isinstance(value, int | str):
            yield f"{place}: must be an integer or text; got {value!r}"
        return
    wanted = TYPES[schema["type"]] if "type" in schema else object
    if not isinstance(value, wanted) or (isinstance(value, bool) and schema.get("type") in ("integer", "number")):
        yield f"{place}: must be of type {schema['type']}; got {value!r}"
        return
    if value not in schema.get("enum", [value]):
        yield f"{place}: must be one of {schema['enum']}; got {value!r}"
    if isinstance(value, Mapping):
        yield from _faults_of_fields(value, schema, place)
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from faults(item, schema.get("items", {}), f"{place}[{i}]")


def _faults_of_fields(value: Mapping[str, Any], schema: Mapping[str, Any], place: str) -> Iterator[str]:
    fields, others = schema.get("properties", {}), schema.get("additionalProperties")
    for name in schema.get("required", []):
        if name not in value:
            yield f"{place}.{name}: missing"
    for name, item in value.items():
        if name in fields:
            yield from faults(item, fields[name], f"{place}.{name}")
        elif isinstance(others, Mapping):
            yield from faults(item, others, f"{place}.{name}")
        elif not (others or schema.get("x-kubernetes-preserve-unknown-fields") or not fields):
            yield f"{place}.{name}: unknown field"
