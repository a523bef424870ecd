"""What a result says of itself in its attribute ``dlscale``, checked before anything uses it: others may have written it."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError
from typing_extensions import TypedDict

from dlscale.errors import InputError


class CheckRecord(TypedDict):
    """See `Check.to_dict`."""

    name: str
    value: float | None
    threshold: float | None
    passed: bool
    meaning: str


class CertificateRecord(TypedDict):
    """See `Certificate.to_dict`."""

    passed: bool
    checks: list[CheckRecord]


class ResultRecord(TypedDict):
    """The attribute ``dlscale`` of a result."""

    kind: str
    job: str
    spec: dict[str, Any]
    seconds: float
    certificate: CertificateRecord
    estimates: dict[str, Any]
    notes: list[str]


def check_description(record: Mapping[str, Any], uri: str) -> None:
    """Check the attribute ``dlscale`` of the result at a path or URL.

    Raises
    ------
    InputError
        Naming what is wrong with it.
    """
    try:
        _adapter().validate_python(record)
    except (ValidationError, RecursionError) as error:
        raise InputError(
            f"{uri}: its attribute dlscale, which describes the result, is damaged: {first_fault(error)}. "
            "Its arrays can still be opened with zarr; for a certified result run the job anew."
        ) from error


@cache
def _adapter() -> TypeAdapter[ResultRecord]:
    return TypeAdapter(ResultRecord)


def first_fault(error: Exception) -> str:
    """The first thing that is wrong, and where; without the value, which may be anything."""
    if not isinstance(error, ValidationError):
        return type(error).__name__
    fault = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join("".join(c for c in str(step)[:40] if c.isprintable()) for step in fault["loc"])
    what = fault["msg"][:1].lower() + fault["msg"][1:160]
    return f"{place}: {what}" if place else what
