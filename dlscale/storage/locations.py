"""Locations as people write them."""

from __future__ import annotations

import os


def expand_home(location: str | os.PathLike[str]) -> str:
    """A path with the home folder in place of a leading ``~`` or ``~user``; URLs and all other locations as they are."""
    location = os.fspath(location)
    return os.path.expanduser(location) if location.startswith("~") else location
