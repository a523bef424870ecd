"""URLs with a password or a signature in a job's input: no file holds them, and whoever goes on with the job gives them again.

A process that runs a submitted job gets them through its environment, which only its user can read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from dlscale.batch.document import Document, set_value
from dlscale.errors import SpecError
from dlscale.showing import HIDDEN, without_address, without_secrets


def secret_environment(data: Mapping[str, Any]) -> dict[str, str]:
    """The environment variables that tell the URLs of a spec which files do not, by role: ``DLSCALE_INPUT_MATRIX``."""
    return {_variable(role): url for role, url in _locations(data).items() if without_secrets(url) != url}


def restore_secrets(document: Document) -> Document:
    """A stored spec with the whole URLs in it, from the environment.

    Raises
    ------
    SpecError
        If one is not there, or is another URL.
    """
    for role, url in _locations(document.data).items():
        if HIDDEN not in url:
            continue
        variable, place = _variable(role), f"{document.where(('input', role))}: input.{role}"
        whole = os.environ.get(variable)
        if whole is None:
            raise SpecError(f"{place}: the password or signature in {url} is kept in no file; give the whole URL in {variable}.")
        if without_address(whole) != without_address(url):
            raise SpecError(f"{place}: {variable} holds another URL than {url}; give the one that the job began with.")
        source = document.data["input"][role]
        keys = ["input", role] if isinstance(source, str) else ["input", role, "import"]
        document = set_value(document, keys, whole, document.where(("input", role)))
    return document


def _locations(data: Mapping[str, Any]) -> dict[str, str]:
    """Where each input is, by role."""
    section = data.get("input")
    given = section.items() if isinstance(section, dict) else ()
    found = {role: source.get("import") if isinstance(source, dict) else source for role, source in given}
    return {role: location for role, location in found.items() if isinstance(location, str) and "://" in location}


def _variable(role: str) -> str:
    return f"DLSCALE_INPUT_{role.upper()}"
