"""Zarr groups and arrays as folders: making, finding, replacing and removing them."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.errors import SpecError
from dlscale.storage.files.atomic import PARTIAL, hidden, make_folder, read_plain, write_atomically

FORMAT_2 = "array or group of format 2"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def check_name(name: str) -> str:
    """Check that a name, or a path of names with ``/``, is safe as one of a Zarr node and of a folder."""
    if all(_NAME.fullmatch(part) and not part.endswith(PARTIAL) and part != "zarr.json" for part in name.split("/")):
        return name
    raise SpecError(f"A name must begin with a letter or digit and go on with those and _ . - (at most 100), got {name!r}.")


def place_node(root: Path, name: str, *, parents: bool = True) -> Path:
    """Folder of the node `name` under `root`; `root` and the folders between become Zarr groups.

    Without ``parents``, `root` must be one already: a folder that somebody has moved meanwhile does not come back.
    """
    parts = check_name(name).split("/")
    for i in range(0 if parents else 1, len(parts)):
        make_group(root.joinpath(*parts[:i]), parents=parents)
    return root.joinpath(*parts)


def make_group(path: Path, *, parents: bool = True) -> None:
    """Make a folder a Zarr group where it is not one, and without ``parents`` only in a folder that is there.

    Where its zarr.json is damaged, it is written anew: what the group holds stands in files of its own.

    Raises
    ------
    SpecError
        If it is a Zarr array, or a group of format 2.
    """
    found = find_node(path)
    if found is None:
        make_folder(path) if parents else path.mkdir(exist_ok=True)
    elif found.get("node_type") == "group":
        return
    elif (path / "c").exists() or found.get("node_type") in ("array", FORMAT_2):
        raise SpecError(f"{path} must be a Zarr group of format 3, got another node there; choose another name.")
    write_atomically(path / "zarr.json", group_metadata({}), fsync=False)


def remove_node(path: Path) -> None:
    """Remove a Zarr array or group, as one step for whoever reads it; anything else stays."""
    aside = set_aside(path) if find_node(path) is not None else None
    if aside:
        shutil.rmtree(aside)


def set_aside(path: Path) -> Path | None:
    """Give a file or folder a hidden name beside its own, for removal; None where there is none."""
    if not os.path.lexists(path):
        return None
    aside = hidden(path, f".{uuid.uuid4().hex}{PARTIAL}")
    os.rename(path, aside)
    return aside


def find_node(path: Path) -> dict[str, Any] | None:
    """Metadata of the Zarr node at a path, or None where there is none."""
    try:
        found = json.loads(read_plain(path / "zarr.json"))
    except (FileNotFoundError, NotADirectoryError):
        old = any((path / name).is_file() for name in (".zarray", ".zgroup"))
        return {"node_type": FORMAT_2} if old else None
    except (ValueError, RecursionError):
        return {"node_type": "unreadable node"}
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return {"node_type": "unreadable node"}  # a pipe, say
    return found if isinstance(found, dict) else {}


def attributes_of(path: Path) -> dict[str, Any]:
    """What dlscale wrote beside the array or group of format 3 at a path, or nothing."""
    found = ((find_node(path) or {}).get("attributes") or {}).get("dlscale")
    return found if isinstance(found, dict) else {}


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """Content of the ``zarr.json`` of a group; NumPy numbers and arrays in its attributes become JSON's."""
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    return json.dumps(group, indent=2, default=_plain).encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"An attribute must be what JSON can hold, got {type(value).__name__}")
