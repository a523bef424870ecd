"""The parts of a source that is a folder: which files belong to it, and in which order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import fsspec.core


class Parts(NamedTuple):
    """The files of a source, in order, and for each the folders below the source that it lies in."""

    files: Any
    paths: list[str]
    folders: list[str]


def parts_of(source: str, suffixes: Sequence[str]) -> Parts:
    """The file at a path or URL, or the files below it that end in one of `suffixes`.

    Numbers in names count as numbers: part.2 comes before part.10. Names that begin with a dot or an underscore, and what lies in
    folders of such names, are no parts: Spark, Dask and macOS write their own records so.
    """
    files, root = fsspec.core.url_to_fs(source)
    if not files.isdir(root):
        return Parts(files, [root], [""])
    found = [path for path in files.find(root) if path.lower().endswith(tuple(suffixes))]
    names = [path[len(root.rstrip("/")) + 1 :] for path in found]
    chosen = [(_natural(name), path, name.rpartition("/")[0]) for name, path in zip(names, found, strict=True) if not _hidden(name)]
    chosen.sort()
    return Parts(files, [path for _, path, _ in chosen], [folder for _, _, folder in chosen])


def _hidden(name: str) -> bool:
    return re.search(r"(^|/)[._]", name) is not None


def _natural(name: str) -> list[list[tuple[int, int, str]]]:
    pieces = ([text for text in re.split(r"([0-9]+)", part) if text] for part in name.split("/"))
    return [[(0, int(text), "") if text.isdecimal() else (1, 0, text) for text in part] for part in pieces]
