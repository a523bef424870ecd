"""Options of a kind: a frozen dataclass whose fields say what they take, so that one text holds wherever they come from."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import numpy as np
from pydantic import Field, ValidationError, create_model

from dlscale.declaration.faults import explain
from dlscale.declaration.sections import Section
from dlscale.errors import SpecError


@dataclasses.dataclass(frozen=True)
class Takes:
    """In an annotation: what a job file writes for a field, where that is a section; the field holds it as plain data."""

    section: Any


@dataclasses.dataclass(frozen=True)
class Options:
    """Base of the options of a kind.

    The annotation of a field is its declaration: type, bounds, and as ``description`` the words of the documentation and of the
    error. Options are checked when they are made, from a job file, by a function or anywhere else.

    Raises
    ------
    SpecError
        Naming each field that holds what it does not take, what was got and what is allowed.
    """

    #: The section of a job file whose keys the fields are; the params have no name of their own.
    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        given = {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}
        options: Any = type(self)
        model = section_of(options, options.__name__)
        try:
            checked = model.model_validate(given)
        except ValidationError as error:
            told = explain(error, model, given, where=lambda _: "").split("\n")
            raise SpecError(" ".join(f"{self.section}.{fault}" if self.section else fault for fault in told)) from None
        for name in given:
            object.__setattr__(self, name, _stored(getattr(checked, name)))


@functools.cache
def section_of(options: Any, name: str, words: str = "", *, without: tuple[str, ...] = ()) -> type[Section]:
    """The section of a job file that the fields of options make."""
    names = [field.name for field in dataclasses.fields(options) if field.name not in without]
    return create_model(name, __base__=Section, __doc__=words, **dict(declared_fields(options, names)))


def declared_fields(options: type[Options], names: Collection[str]) -> Iterator[tuple[str, Any]]:
    """Fields as pydantic takes them: the annotation and the default."""
    annotations = get_type_hints(options, include_extras=True)
    for field in dataclasses.fields(options):
        if field.name in names:
            yield field.name, (_taken(annotations[field.name]), _default(field))


def one_of(name: str, words: str, table: Mapping[str, Any], *, default: str | None = None, **more: Any) -> type[Section]:
    """The section of a job file that names one of a table of options by its type, with the fields of them all, and ``more``."""
    listed = [*table]
    said = f"{', '.join(listed[:-1])} or {listed[-1]}"
    chosen = Literal[tuple(table)]  # type: ignore[valid-type]
    fields = {"type": (chosen, Field(description=said) if default is None else Field(default=default, description=said)), **more}
    owners: dict[str, list[str]] = {}
    for type_name, options in table.items():
        for field, (annotation, _) in declared_fields(options, [field.name for field in dataclasses.fields(options)]):
            owners.setdefault(field, []).append(type_name)
            fields[field] = (annotation | None, annotation)
    for field, types in owners.items():
        words_of_field, colon, rest = _words(fields[field][1]).partition(":")
        suffix = f", for {' and '.join(filter(None, (', '.join(types[:-1]), types[-1])))}" if len(types) < len(table) else ""
        fields[field] = (fields[field][0], Field(default=None, description=f"{words_of_field}{suffix}{colon}{rest}"))
    return create_model(name, __base__=Section, __doc__=words, **fields)


def _words(annotation: Any) -> str:
    """The description in an annotation: the last one, as pydantic has it."""
    return next(str(mark.description) for mark in reversed(get_args(annotation)) if getattr(mark, "description", None))


def _taken(annotation: Any) -> Any:
    """An annotation with the section in it in place of the type that the options hold."""
    metadata = get_args(annotation)[1:] if get_origin(annotation) is Annotated else ()
    section = next((mark.section for mark in metadata if isinstance(mark, Takes)), None)
    rest = tuple(mark for mark in metadata if not isinstance(mark, Takes))
    return annotation if section is None else Annotated[(section, *rest)]


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return Field(default_factory=field.default_factory, validate_default=True)
    return ... if field.default is dataclasses.MISSING else field.default


def _plain(value: Any) -> Any:
    """NumPy's scalars as Python's, which is what a job file holds."""
    return value.item() if isinstance(value, np.generic) else value


def _stored(value: Any) -> Any:
    """A section as plain data, without what was left open."""
    return value.model_dump(exclude_none=True) if isinstance(value, Section) else value
