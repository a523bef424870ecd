"""Locations as people write them."""

from __future__ import annotations

import os
import re
from pathlib import Path

from dlscale.errors import SpecError

#: How a URL begins, or a chain of them, also one whose slashes a path has merged; a drive of one letter is none.
_SCHEME = re.compile(r"((?:[A-Za-z][A-Za-z0-9+.-]*::)*[A-Za-z][A-Za-z0-9+.-]+):/")


def expand_home(location: str | os.PathLike[str]) -> str:
    """A path with the home folder in place of a leading ``~`` or ``~user``; URLs and all other locations as they are."""
    location = os.fspath(location)
    return os.path.expanduser(location) if location.startswith("~") else location


def local_path(location: str | os.PathLike[str], what: str) -> Path:
    """A path on the file systems of this machine, where alone dlscale writes.

    Parameters
    ----------
    location : path, or URL of the scheme file
    what : str
        Its name in the message.

    Raises
    ------
    SpecError
        If it is the URL of anything else.
    """
    text = expand_home(location)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return Path(text)
    if scheme[1].lower() != "file":
        raise SpecError(
            f"{what} must be a path on a file system of this machine; got a URL of {scheme[1]}:, which is only read from."
        )
    return Path("/" + text[scheme.end() :].lstrip("/"))


def named(source: str) -> str:
    """A location by which its format is told: in small letters, without what follows the path of a URL."""
    return (source.partition("?")[0].partition("#")[0] if "://" in source else source).rstrip("/").lower()
