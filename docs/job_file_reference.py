"""Writes job-file-reference.md from the JSON Schema of job files: the same words that an error message shows.

python docs/job_file_reference.py
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dlscale.batch.kinds import KINDS
from dlscale.batch.spec import json_schema
from dlscale.batch.spec.models import model_of

Schema = Mapping[str, Any]

HEADER = """# Every key of the job file

Written from the declarations of the kinds, as is the JSON Schema that `dlscale schema` prints. Keys without a default are required.

## The shortest job of every kind

Most jobs need no more than one of these, or the same as lines of block YAML.

```yaml
{examples}
```
"""
#: Keys that every kind has, and sections that several kinds share: shown once.
SHARED = ("name", "output", "overwrite", "cluster", "checkpoint", "stall")


def reference() -> str:
    """The page as Markdown."""
    return "\n".join(_page(json_schema()["$defs"]))


def _page(definitions: Mapping[str, Schema]) -> Iterator[str]:
    yield HEADER.format(examples="\n".join(kind.example for kind in KINDS.values()))
    shown: set[str] = set()
    specs = {name: definitions[model_of(kind).__name__] for name, kind in KINDS.items()}
    yield from _table("Every kind", {key: specs["svd"]["properties"][key] for key in SHARED}, specs["svd"])
    for key in ("cluster", "checkpoint"):
        yield from _nested(specs["svd"]["properties"][key], definitions, shown)
    for kind, spec in specs.items():
        yield f"## `{kind}`\n\n{spec['description']}\n\nArrays of the result: {KINDS[kind].arrays}.\n"
        own = {key: value for key, value in spec["properties"].items() if key not in (*SHARED, "kind")}
        for key, value in own.items():
            sections = list(_sections(value, definitions))
            if not sections:
                yield from _table(f"`{key}`", {key: value}, spec, level=3)
            for name in sections:
                if key in ("input", "params"):
                    section = {**definitions[name], **spec["then"]["properties"].get(key, {})}
                    yield from _table(f"`{key}`", section["properties"], section, level=3)
                    yield from _below(definitions[name], definitions, shown)
                elif name not in shown:
                    shown.add(name)
                    yield from _table(f"`{key}`: {_kind_of(definitions[name], name)}", *_body(definitions[name]), level=3)
                    yield from _below(definitions[name], definitions, shown)


def _body(section: Schema) -> tuple[Mapping[str, Schema], Schema]:
    return section.get("properties", {}), section


def _kind_of(section: Schema, name: str) -> str:
    constant = section.get("properties", {}).get("type", {}).get("const")
    return f"`{constant}`" if constant else f"`{name.removesuffix('Spec').removesuffix('Section').lower()}`"


def _below(section: Schema, definitions: Mapping[str, Schema], shown: set[str]) -> Iterator[str]:
    for value in section.get("properties", {}).values():
        yield from _nested(value, definitions, shown)


def _nested(value: Schema, definitions: Mapping[str, Schema], shown: set[str]) -> Iterator[str]:
    """The sections that a key may hold, each once in the page."""
    for name in _sections(value, definitions):
        if name not in shown and definitions[name].get("properties"):
            shown.add(name)
            yield from _table(f"A section of {_kind_of(definitions[name], name)}", *_body(definitions[name]), level=3)
            yield from _below(definitions[name], definitions, shown)


def _sections(value: Any, definitions: Mapping[str, Schema]) -> Iterator[str]:
    """Names of the definitions that a schema refers to."""
    if isinstance(value, Mapping):
        if "$ref" in value:
            yield value["$ref"].rsplit("/", 1)[1]
        for key, part in value.items():
            if key not in ("$ref", "default", "examples", "mapping"):
                yield from _sections(part, definitions)
    elif isinstance(value, list):
        for part in value:
            yield from _sections(part, definitions)


def _table(title: str, keys: Mapping[str, Schema], section: Schema, *, level: int = 2) -> Iterator[str]:
    if not keys:
        return
    yield f"{'#' * level} {title}\n"
    if level > 2 and section.get("description") and not title.startswith("`input") and not title.startswith("`params"):
        yield section["description"] + "\n"
    yield "| key | what it takes | default |\n| --- | --- | --- |"
    required = section.get("required", [])
    for key, value in keys.items():
        words = (value.get("description") or "").replace("|", "\\|").replace("\n", " ")
        default = "required" if key in required else _default(value)
        yield f"| `{key}` | {words} | {default} |"
    yield ""


def _default(value: Schema) -> str:
    if "default" not in value or value["default"] is None:
        return ""
    return f"`{json.dumps(value['default'])}`"


if __name__ == "__main__":
    Path(__file__).with_name("job-file-reference.md").write_text(reference(), encoding="utf-8")
