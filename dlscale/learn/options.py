"""Choosing one of a table of frozen dataclasses by the options of a job file, with errors in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeVar

from dlscale.errors import SpecError

Choice = TypeVar("Choice")


def choose(what: str, options: Mapping[str, Any] | str, table: Mapping[str, type[Choice]]) -> Choice:
    """Build the dataclass of ``table`` that ``options["type"]`` names, with the other options as its fields.

    Parameters
    ----------
    what : str
        What is chosen, for the messages: "optimizer".
    options : mapping, or str for a type without options
    table : mapping of type names to dataclasses

    Raises
    ------
    SpecError
        An unknown type or option, a missing option, or a value that the dataclass refuses.
    """
    fields: dict[str, Any] = {"type": options} if isinstance(options, str) else dict(options)
    name = str(fields.pop("type", None))
    if name not in table:
        raise SpecError(f"{what}.type must be one of {', '.join(table)}; got {name!r}.")
    chosen: Any = table[name]
    allowed = {field.name: field for field in dataclasses.fields(chosen) if field.init}
    if unknown := sorted(set(fields) - set(allowed)):
        raise SpecError(f"{what} {name} has no option {unknown[0]!r}; its options are {', '.join(allowed) or 'none'}.")
    for field in allowed.values():
        if field.name not in fields and field.default is dataclasses.MISSING:
            raise SpecError(f"{what} {name} needs the option {field.name!r}; add it.")
    result: Choice = chosen(**fields)
    return result


def require_number(
    name: str, value: object, *, above: float | None = None, at_least: float | None = None, below: float | None = None,
    at_most: float | None = None,
) -> None:  # fmt: skip
    """Refuse what is not a finite number in the interval."""
    limits = {"above": above, "at least": at_least, "below": below, "at most": at_most}
    wanted = " and ".join(f"{word} {limit:g}" for word, limit in limits.items() if limit is not None)
    good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if good:
        number = float(value)  # type: ignore[arg-type]
        good = not (
            (above is not None and not number > above)
            or (at_least is not None and not number >= at_least)
            or (below is not None and not number < below)
            or (at_most is not None and not number <= at_most)
        )
    if not good:
        raise SpecError(f"{name} must be a finite number{' ' + wanted if wanted else ''}; got {value!r}.")


def require_count(name: str, value: object, *, at_least: int = 1) -> None:
    """Refuse what is not an integer of at least so much."""
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise SpecError(f"{name} must be an integer of at least {at_least}; got {value!r}.")
