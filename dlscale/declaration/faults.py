"""What is wrong with the values of a job, in words: place, key, what was got, what is allowed."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticCustomError

KeyPath = tuple[str | int, ...]

#: Values whose text is longer are described by their type.
_MAX_SHOWN = 80
#: Faults that are told; a file with more of them is something else than a job file.
_MAX_FAULTS = 30


def broken_rule(message: str) -> PydanticCustomError:
    """What a validator of a whole section raises: the message is shown as it is, after the place and the section's key."""
    return PydanticCustomError("rule", "{message}", {"message": message})


def explain(error: ValidationError, model: type[BaseModel], data: Any, *, where: Callable[[KeyPath], str]) -> str:
    """One line for each fault.

    Parameters
    ----------
    error : ValidationError
        What pydantic found.
    model : type
        What the data were checked against.
    data : dict
        What was given.
    where : callable
        The place of a key, such as a line of a file; empty where there is none to tell.

    Returns
    -------
    str
    """
    messages: dict[KeyPath, str] = {}
    faults = error.errors(include_url=False)
    for fault in faults[:_MAX_FAULTS]:
        path, section = _locate(fault["loc"], model, unknown_key=fault["type"] == "extra_forbidden")
        # A rule that a section breaks is told in its own words.
        message = fault["msg"] if fault["type"] == "rule" else _sentence(fault["type"], path, section, data)
        text = ": ".join(filter(None, (where(path), ".".join(map(str, path)), message)))
        if fault["type"] == "rule":  # another member of the union says less
            messages[path] = text
        messages.setdefault(path, text)
    # Each member of a union reports its fault; the deepest one is about the member that was meant.
    told = [
        text for path, text in messages.items() if not any(path == deeper[: len(path)] for deeper in messages if deeper != path)
    ]
    if len(faults) > _MAX_FAULTS:
        told.append(f"... and {len(faults) - _MAX_FAULTS:,} more.")
    return "\n".join(told)


def _locate(loc: tuple[int | str, ...], model: type[BaseModel], *, unknown_key: bool) -> tuple[KeyPath, type[BaseModel]]:
    """The key path of a fault, without the names that pydantic gives to union members, and the model of its section."""
    path: list[int | str] = []
    section, inner, listed = model, model, False
    for step in loc:
        if listed and isinstance(step, int):
            path.append(step)
        annotations = {field.alias or name: field.annotation for name, field in inner.model_fields.items()}
        if step in annotations:
            path.append(step)
            found = _model_in(annotations[step])
            # A list of sections: which one it is comes next.
            listed = found is not None and get_origin(annotations[step]) is list
            section, inner = inner, found or inner
    if unknown_key:
        path.append(loc[-1])
        section = inner
    return tuple(path), section


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for member in get_args(annotation) if (found := _model_in(member))), None)


def _sentence(fault: str, path: KeyPath, section: type[BaseModel], data: Any) -> str:
    allowed = {field.alias or name: field.description for name, field in section.model_fields.items()}
    key = next(step for step in reversed(path) if isinstance(step, str))
    if fault == "extra_forbidden":
        close = difflib.get_close_matches(key, allowed, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"unknown key; {hint}allowed here: {', '.join(allowed)}."
    if fault == "missing":
        return f"missing; allowed: {allowed[key]}."
    for step in path:
        # A section that is written as its type alone has no keys.
        data = data if isinstance(data, str) else data[step]
    got = shown(data)
    described = f"{got} ({describe_type(data)})" if got == repr(data) else got
    return f"got {described}; allowed: {allowed[key]}."


def shown(value: Any) -> str:
    """A value as it was written; only its type if it is long."""
    vague = value is None or isinstance(value, dict) or len(repr(value)) > _MAX_SHOWN
    return describe_type(value) if vague else repr(value)


def describe_type(value: Any) -> str:
    """What a value is, in words."""
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
