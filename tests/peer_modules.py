"""Test modules of the libraries whose names we share, with our functions in the place of theirs."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest


def adapted(name: str, replacements: Mapping[str, Any]) -> ModuleType:
    """A copy of an installed test module in which names stand for something else; the module itself stays as it is."""
    found = importlib.util.find_spec(name)
    assert found is not None, name
    assert found.origin is not None
    spec = importlib.util.spec_from_file_location(f"adapted_{name.replace('.', '_')}", found.origin)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pytest.PytestUnknownMarkWarning)  # of marks that the peer registers for itself
        spec.loader.exec_module(module)
    vars(module).update(replacements)
    return module


def chosen(module: ModuleType, excluded: Mapping[str, str]) -> dict[str, Any]:
    """The module's tests, and the fixtures that they use, but for those excluded, each with its reason.

    An excluded name must be there, so that no reason outlives its test.
    """
    tests = {name: test for name, test in vars(module).items() if name.startswith("test")}
    assert excluded.keys() <= tests.keys(), excluded.keys() - tests.keys()
    fixtures = {name: value for name, value in vars(module).items() if type(value).__name__ == "FixtureFunctionDefinition"}
    return fixtures | {name: test for name, test in tests.items() if name not in excluded}
