"""A job file as data that remembers its lines: YAML in, plain values and the place of every key out.

The loader knows scalars, lists and mappings and nothing else: no tags, no anchors, no objects, so that a file from a
stranger can neither execute nor explode.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dlscale.errors import SpecError
from dlscale.storage.locations import expand_home

#: A job file is a page of text; anything longer is something else.
MAX_BYTES = 1_000_000

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Document:
    """The data of a job file and where each key stands.

    Attributes
    ----------
    data : dict
        Plain scalars, lists and mappings.
    places : mapping of key path to str
        ``job.yaml:7`` for a key of a file, ``--set params.seed`` for a key given on the command line.
    source : str
        What to call the document in a message.
    """

    data: dict[str, Any]
    places: Mapping[KeyPath, str]
    source: str

    def where(self, path: KeyPath) -> str:
        """The place of a key, or of the nearest section around it when the key is absent."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.source


class _Loader(yaml.SafeLoader):
    """Plain YAML: ``1e-6`` is a number, dates are text, tags and anchors are refused."""

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = parent.start_mark if parent else None
            raise yaml.composer.ComposerError(None, None, "anchors and aliases are not used in job files", mark)
        return super().compose_node(parent, index)


# YAML 1.1 reads 1e-6 as text; a tolerance is written so.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def read_document(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> Document:
    """Read a job description.

    Parameters
    ----------
    source : str, Path or mapping
        A file, YAML text (a string with a line break), or the data itself.
    overrides : iterable of str
        ``section.key=value``; the value is YAML.

    Returns
    -------
    Document

    Raises
    ------
    SpecError
        If the file cannot be read or is not a YAML mapping of plain data.
    """
    if isinstance(source, Mapping):
        document = Document(_plain(source), {}, "spec")
    elif isinstance(source, str) and "\n" in source:
        document = parse_yaml(source, "spec")
    else:
        document = parse_yaml(_read_text(Path(expand_home(source))), str(source))
    for override in overrides:
        document = _override(document, override)
    return document


def parse_yaml(text: str, source: str) -> Document:
    """Parse YAML text to plain data and the line of every key (SpecError if it is not a mapping)."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            places = {path: f"{source}:{line}" for path, line in _lines(node, ())} if node else {}
            data = loader.construct_document(node) if node else {}
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}:{mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or str(error)
        raise SpecError(f"{place}: not readable as YAML: {problem}.") from error
    except RecursionError as error:
        raise SpecError(f"{source}: nested too deeply; a job file has at most a few levels.") from error
    if not isinstance(data, dict):
        raise SpecError(f"{source}: a job file is a mapping (key: value lines); got {describe_type(data)}.")
    return Document(_plain(data), places, source)


def parse_scalar(text: str, source: str) -> Any:
    """The value of a YAML fragment such as ``3``, ``1e-6``, ``[1, 2]`` or ``4GB``."""
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise SpecError(f"{source}: {text!r} is not readable as a value.") from error


def _read_text(path: Path) -> str:
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise SpecError(f"{path}: a job file has at most {MAX_BYTES:,} bytes; this one has {path.stat().st_size:,}.")
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SpecError(f"{path}: there is no such file; give the path of a job file (YAML).") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{path}: cannot be read as a job file: {error}.") from error


def _lines(node: yaml.Node, path: KeyPath) -> Iterable[tuple[KeyPath, int]]:
    """Every key path under a node with its line, counted from 1; refuses a key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.composer.ComposerError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add(key.value)
            yield (*path, key.value), key.start_mark.line + 1
            yield from _lines(value, (*path, key.value))
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield (*path, index), item.start_mark.line + 1
            yield from _lines(item, (*path, index))


def _override(document: Document, override: str) -> Document:
    name, separator, text = override.partition("=")
    keys = name.strip().split(".")
    place = f"--set {name.strip()}"
    if not separator or not all(keys):
        raise SpecError(f"--set {override}: must read section.key=value, such as params.n_components=20.")
    return set_value(document, keys, parse_scalar(text, place), place)


def set_value(document: Document, keys: Sequence[str], value: Any, place: str) -> Document:
    """A document with one key set, and the sections above it made where they are absent (SpecError if one is no section)."""
    data = _plain(document.data)
    section = data
    for depth, key in enumerate(keys[:-1]):
        inner = section.get(key)
        if key == "cluster" and inner in (None, "local", "threads"):
            inner = {"type": inner or "local"}
        if inner is not None and not isinstance(inner, dict):
            raise SpecError(f"{place}: {'.'.join(keys[: depth + 1])} is {inner!r}, not a section with keys.")
        section[key] = inner = inner or {}
        section = inner
    section[keys[-1]] = _plain(value)
    return Document(data, {**document.places, tuple(keys): place}, document.source)


def _plain(value: Any) -> Any:
    """A deep copy in plain types; paths become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def describe_type(value: Any) -> str:
    names = {
        str: "text",
        int: "an integer",
        float: "a number",
        bool: "true/false",
        list: "a list",
        dict: "a section",
        type(None): "nothing",
    }
    return names.get(type(value), type(value).__name__)
