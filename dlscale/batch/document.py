"""A job file as data that remembers its lines: YAML in, plain values and the place of every key out.

Text, numbers, true and false, nothing, lists and mappings are all that there is: no tags, no anchors, no objects, and words mean
what the core schema of YAML 1.2 says (``010`` is ten, ``0o10`` eight, ``no`` a word). A file from a stranger can neither execute
nor explode.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from dlscale.declaration.faults import KeyPath, describe_type
from dlscale.errors import SpecError
from dlscale.storage.files.atomic import open_at_once
from dlscale.storage.files.locations import expand_home

#: A job file is a page of text; anything longer is something else.
MAX_BYTES = 1_000_000
#: The most lists, mappings, keys and values of a document, and the most of them inside one another.
_MAX_NODES, _MAX_DEPTH = 50_000, 20
#: Integers beyond are no sizes, counts or seeds.
_MAX_INTEGER = 2**64


class UnusableValueError(SpecError):
    """A value, of whatever key, that no later step can bear."""


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
    given : set of key path
        What came from whoever runs the job (an option, a program's own data), and not from a file.
    """

    data: dict[str, Any]
    places: Mapping[KeyPath, str]
    source: str
    given: frozenset[KeyPath] = frozenset()

    def where(self, path: KeyPath) -> str:
        """The place of a key, or of the nearest section around it when the key is absent."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.places:
                return self.places[path[:length]]
        return self.source

    def is_given(self, path: KeyPath) -> bool:
        """Whether the value there, or a section around it, came from whoever runs the job."""
        return any(path[:length] in self.given for length in range(len(path) + 1))


_TAG = "tag:yaml.org,2002:"
#: What a plain word is, by its form (YAML 1.2.2, section 10.3.2); everything else is text.
_CORE_SCHEMA = {
    "null": r"(null|Null|NULL|~|)",
    "bool": r"(true|True|TRUE|false|False|FALSE)",
    "int": r"([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)",
    "float": r"([-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))",
}


class _Composer(yaml.reader.Reader, yaml.scanner.Scanner, yaml.parser.Parser, yaml.composer.Composer, yaml.resolver.BaseResolver):
    """YAML to nodes of plain kinds, in bounded time and memory."""

    def __init__(self, text: str) -> None:
        yaml.reader.Reader.__init__(self, text)
        yaml.scanner.Scanner.__init__(self)
        yaml.parser.Parser.__init__(self)
        yaml.composer.Composer.__init__(self)
        yaml.resolver.BaseResolver.__init__(self)
        self.n_nodes = self.depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.anchor is not None:
            raise _refusal("anchors and aliases are not used in job files", event)
        if event.tag is not None:
            raise _refusal("tags are not used in job files", event)
        self.n_nodes, self.depth = self.n_nodes + 1, self.depth + 1
        if self.n_nodes > _MAX_NODES:
            raise _refusal(f"a job file has at most {_MAX_NODES:,} values", event)
        if self.depth > _MAX_DEPTH:
            raise _refusal("nested too deeply; a job file has at most a few levels", event)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


for _kind, _pattern in _CORE_SCHEMA.items():
    _Composer.add_implicit_resolver(_TAG + _kind, re.compile(rf"^(?:{_pattern})\Z", re.ASCII), None)


def _refusal(problem: str, event: Any) -> yaml.YAMLError:
    return yaml.composer.ComposerError(None, None, problem, event.start_mark)


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
        document = Document(_checked(_plain(source), "spec"), {}, "spec", frozenset({()}))
    elif isinstance(source, str) and "\n" in source:
        document = parse_yaml(source, "spec")
    else:
        document = parse_yaml(_read_text(Path(expand_home(source))), str(source))
    for override in overrides:
        document = _override(document, override)
    return document


def read_stored(path: Path) -> Document:
    """The job file that a job keeps (SpecError if it is none, such as a pipe, which is not waited for)."""
    return parse_yaml(_read_text(path, open_at_once), str(path))


def parse_yaml(text: str, source: str) -> Document:
    """Parse YAML text to plain data and the line of every key (SpecError if it is not a mapping)."""
    node = _compose(text, source)
    data = {} if node is None else _value(node, source)
    if not isinstance(data, dict):
        raise SpecError(f"{source}: a job file is a mapping (key: value lines); got {describe_type(data)}.")
    places = {path: f"{source}:{line}" for path, line in _lines(node, ())} if node else {}
    return Document(data, places, source)


def parse_scalar(text: str, source: str) -> Any:
    """The value of a YAML fragment such as ``3``, ``1e-6``, ``[1, 2]`` or ``4GB``."""
    node = _compose(text, source)
    return None if node is None else _value(node, source)


def _compose(text: str, source: str) -> yaml.Node | None:
    try:
        return _Composer(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise SpecError(f"{source}:{line}: not readable as YAML: character {error.character:#x} is not text.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}:{mark.line + 1}" if mark else source
        raise SpecError(f"{place}: not readable as YAML: {error.problem}.") from error
    except Exception as error:  # PyYAML's scanner lets what Python says of an escape such as \\U00110000 pass
        raise SpecError(f"{source}: not readable as YAML: {error}.") from error


def _read_text(path: Path, opener: Callable[[str, int], int] | None = None) -> str:
    try:
        with open(path, "rb", opener=opener) as file:
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise SpecError(f"{path}: a job file has at most {MAX_BYTES:,} bytes; this one has more.")
        return data.decode("utf-8")
    except FileNotFoundError as error:
        raise SpecError(f"{path}: there is no such file; give the path of a job file (YAML).") from error
    except SpecError:
        raise
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: cannot be read as a job file: {error}.") from error


def _value(node: yaml.Node, source: str) -> Any:
    """The plain value of a node; keys are text."""
    place = f"{source}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.MappingNode):
        section: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise SpecError(f"{source}:{key.start_mark.line + 1}: a key must be a word.")
            if key.value in section:
                raise SpecError(f"{source}:{key.start_mark.line + 1}: the key {key.value!r} stands twice.")
            section[_checked(key.value, place)] = _value(value, source)
        return section
    if isinstance(node, yaml.SequenceNode):
        return [_value(item, source) for item in node.value]
    return _checked(_scalar(node.tag.removeprefix(_TAG), node.value, place), place)


def _scalar(kind: str, text: str, place: str) -> Any:
    if kind == "null":
        return None
    if kind == "bool":
        return text.lower() == "true"
    if kind == "int":
        if len(text) > 100:
            raise UnusableValueError(f"{place}: an integer has at most 20 digits; got one of {len(text):,}.")
        base = {"0o": 8, "0x": 16}.get(text[:2], 10)
        return int(text[2:] if base != 10 else text, base)
    if kind == "float":
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


def _checked(value: Any, place: str) -> Any:
    """A value that every later step can bear: no NUL, no half of a character, no number of a thousand digits."""
    if isinstance(value, str):
        if "\0" in value:
            raise UnusableValueError(f"{place}: text must not hold the character NUL.")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise UnusableValueError(f"{place}: text must be Unicode; got half of a surrogate pair.") from error
    elif isinstance(value, int) and abs(value) > _MAX_INTEGER:
        raise UnusableValueError(f"{place}: an integer must be at most 2^64; got a larger one.")
    elif isinstance(value, dict):
        for key, item in value.items():
            _checked(key, place)
            _checked(item, f"{place}: {key}")
    elif isinstance(value, list):
        for item in value:
            _checked(item, place)
    return value


def _lines(node: yaml.Node, path: KeyPath) -> Iterator[tuple[KeyPath, int]]:
    """Every key path under a node with its line, counted from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
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
    section[keys[-1]] = _checked(_plain(value), place)
    return replace(document, data=data, places={**document.places, tuple(keys): place}, given=document.given | {tuple(keys)})


def _plain(value: Any) -> Any:
    """A deep copy in plain types; paths become text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
