"""The form of a job file over the network: its schema in the description of the API, and what lacks that form.

A schema says what a job file is made of. What it cannot say (options that contradict each other, a matrix that is not there, a
place that is taken) is no fault of form, and is answered with another status.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from dlscale.batch.document import Document
from dlscale.batch.spec import json_schema
from dlscale.errors import SpecError

_COMPONENTS = "#/components/schemas/"
JOB = {"$ref": f"{_COMPONENTS}Job"}


class FormError(SpecError):
    """What was sent does not have the form of a job file."""


@contextmanager
def form_told(document: Document) -> Iterator[None]:
    """Around the parsing of a job file: what the schema refuses too lacks the form (FormError)."""
    try:
        yield
    except SpecError as error:
        if _validator().is_valid(document.data):
            raise
        raise FormError(str(error)) from error


def components() -> dict[str, Any]:
    """The schema ``Job`` and those that it is made of, as a description of an API holds them."""
    schema = json_schema(references=f"{_COMPONENTS}{{model}}")
    parts: dict[str, Any] = schema.pop("$defs")
    return {**parts, "Job": {key: value for key, value in schema.items() if key != "$schema"}}


@cache
def job_schema() -> dict[str, Any]:
    """What `dlscale schema` prints."""
    return json_schema()


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(job_schema())
