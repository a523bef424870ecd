"""The public names of dlscale."""

from __future__ import annotations

import inspect
from dataclasses import is_dataclass

import pytest

import dlscale

#: Results have as many fields as they need.
CALLED = [name for name in dlscale.__all__ if callable(getattr(dlscale, name)) and not is_dataclass(getattr(dlscale, name))]


@pytest.mark.parametrize("name", CALLED)
def test_no_function_takes_more_than_seven_parameters(name: str) -> None:
    assert len(inspect.signature(getattr(dlscale, name)).parameters) <= 7
