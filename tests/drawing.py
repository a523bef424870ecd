"""Whether processes that tests start draw the reports of their jobs."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

#: On the module path, reports are left without content.
WITHOUT_PAGES = str(Path(__file__).parent / "without_pages")


def leave_pages_empty() -> None:
    """Of all processes that this one starts, unless they get an environment by `with_pages`."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [WITHOUT_PAGES, os.environ.get("PYTHONPATH")]))


def with_pages(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment in which reports are drawn, as users have them."""
    places = environment.get("PYTHONPATH", "").split(os.pathsep)
    return {**environment, "PYTHONPATH": os.pathsep.join(place for place in places if place != WITHOUT_PAGES)}
