"""What a job file that came over the network may name: files in the allowed folders, and URLs that begin as allowed.

A job runs with the rights of whoever runs the server, so a path in its file is a question for that person's files.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from dlscale.batch.document import Document
from dlscale.batch.jobs.places import OPTIONS
from dlscale.batch.workspace import Workspace
from dlscale.errors import SpecError
from dlscale.storage.files.locations import local_path

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")


class NotAllowedError(SpecError):
    """A job file names what this server does not touch."""


class Allowed:
    """The folders and the beginnings of URLs that jobs may name.

    Parameters
    ----------
    roots : sequence of str
        Folders, and URLs such as ``s3://bucket/data``.
    workspace : Workspace
        What is in it may be read, such as the result of an earlier job; jobs write there only to their own folder.

    Raises
    ------
    SpecError
        If a root is no folder.
    """

    def __init__(self, roots: Sequence[str], workspace: Workspace) -> None:
        self.urls = tuple(root for root in roots if "://" in root and not root.startswith("file://"))
        folders = [local_path(root, "--allow") for root in roots if root not in self.urls]
        for folder in folders:
            if not folder.is_dir():
                raise SpecError(f"--allow: {folder} is no folder.")
        self.folders = tuple(Path(os.path.realpath(folder)) for folder in folders)
        self._workspace, self._place = Path(os.path.realpath(workspace.root)), str(workspace.place)

    def check(self, data: Mapping[str, Any], document: Document) -> None:
        """Refuse a job that names anything else.

        Parameters
        ----------
        data : mapping
            The spec as plain data with absolute paths.
        document : Document
            Gives the places for messages.

        Raises
        ------
        NotAllowedError
        """
        for path, location, writes in _locations(data):
            if not self._allows(location, writes=writes):
                raise NotAllowedError(
                    f"{document.where(path)}: {'.'.join(path)}: got {location}; allowed on this server: {self.words}."
                )

    @property
    def words(self) -> str:
        return ", ".join([*(f"paths in {folder}" for folder in self.folders), *(f"URLs in {url}" for url in self.urls)]) or (
            "results of its workspace"
        )

    def _allows(self, location: str, *, writes: bool) -> bool:
        # A chain of file systems (a::b), or a scheme with merged slashes, is read in more than one way.
        if "::" in location or any(ord(character) < 32 for character in location):
            return False
        if location.startswith("sample:"):
            return not writes
        if _URL.match(location) and not location.startswith("file://"):
            if _begins(location, self._place):
                return not writes
            return any(_begins(location, url) for url in self.urls)
        path = location.removeprefix("file://")
        if _URL.search(path):
            return False
        place = Path(os.path.realpath(path))
        if _lies_in(place, self._workspace):
            return not writes
        return any(_lies_in(place, folder) for folder in self.folders)


def _locations(data: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str, bool]]:
    """Every path and URL of a spec: its key, where it leads, and whether it is written to."""
    for role, source in data["input"].items():
        if role in OPTIONS or source is None:
            continue
        yield ("input", role), source["import"] if isinstance(source, dict) else source, False
    if data.get("output") is not None:
        yield ("output",), data["output"], True
    if data.get("checkpoint", {}).get("at") is not None:
        yield ("checkpoint", "at"), data["checkpoint"]["at"], True


def _lies_in(place: Path, folder: Path) -> bool:
    return place == folder or folder in place.parents


def _begins(url: str, allowed: str) -> bool:
    """Whether a URL has the scheme and host of an allowed one, and a path in the allowed one's folder."""
    try:
        asked, given = urlsplit(url), urlsplit(allowed)
    except ValueError:
        return False
    if (asked.scheme.lower(), asked.netloc) != (given.scheme.lower(), given.netloc) or "\\" in url or "%" in asked.path:
        return False
    folder = given.path.rstrip("/")
    path = posixpath.normpath(asked.path or "/")
    return path == folder or path.startswith(f"{folder}/")
