"""The options of `dlscale import` that say how a source is read, made from their one declaration when the command runs."""

from __future__ import annotations

import csv
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

import click

if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # generic since click 8.4
    _ParamType = click.ParamType


class ImportCommand(click.Command):
    """A command with an option for each of `ReadOptions`, which is loaded only when the command or its help is asked for."""

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        if not any(parameter.name == "columns" for parameter in self.params):
            from dlscale.storage.importers.options import ReadOptions

            self.params += [_option(name, field) for name, field in ReadOptions.model_fields.items()]
        return super().get_params(ctx)


def _option(name: str, field: Any) -> click.Option:
    members = [member for member in get_args(field.annotation) or (field.annotation,) if member is not type(None)]
    kind, metavar = _click_type(members[0]) if len(members) == 1 else (_NumberOr(get_args(members[1])), "X|WORD")
    return click.Option([f"--{name.replace('_', '-')}"], type=kind, metavar=metavar, help=field.title)


def _click_type(member: Any) -> tuple[click.ParamType[Any], str | None]:
    """How a value of this type is written on the command line."""
    origin = get_origin(member)
    if origin is not None and not isinstance(member, type) and hasattr(member, "__metadata__"):  # Annotated
        return _click_type(get_args(member)[0])
    if origin is Literal:
        return click.Choice(get_args(member)), None
    if origin is list:
        return _List(), "A,B,..."
    if member is bool:
        return _YesNo(), "yes|no|auto"
    if member is int:
        return click.INT, "N"
    return (click.FLOAT, "X") if member is float else (click.STRING, "TEXT")


class _YesNo(_ParamType):
    name = "yes|no|auto"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool | None:
        words = {"yes": True, "true": True, "no": False, "false": False, "auto": None}
        if str(value).lower() not in words:
            self.fail(f"{value!r} is not one of yes, no, auto.", param, ctx)
        return words[str(value).lower()]


class _NumberOr(_ParamType):
    """A number, or one of some words."""

    name = "number or word"

    def __init__(self, words: tuple[str, ...]) -> None:
        self._words = words

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | str:
        if value in self._words:
            return str(value)
        try:
            return float(value)
        except ValueError:
            self.fail(f"{value!r} is neither a number nor {' or '.join(self._words)}.", param, ctx)


class _List(_ParamType):
    name = "list"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[str]:
        return (next(csv.reader([value]), []) or [""]) if isinstance(value, str) else value
