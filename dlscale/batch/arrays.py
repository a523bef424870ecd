"""Arrays of a program as inputs of its jobs."""

from __future__ import annotations

import os
import uuid
import warnings
from collections.abc import Mapping
from typing import Any

from dlscale.batch.jobs.places import OPTIONS, only_importer
from dlscale.batch.workspace import Workspace
from dlscale.errors import InexactNote
from dlscale.storage.exactness import inexact_words
from dlscale.storage.files.durable import PARTIAL
from dlscale.storage.importers.held import store_matrix
from dlscale.storage.matrices import open_matrix
from dlscale.storage.zarr_stores import local_root


def with_arrays_stored(spec: Any, workspace: Workspace) -> Any:
    """A job, the arrays among its inputs stored in the workspace under their content, where each process and `resume` finds them.

    Parameters
    ----------
    spec : str, Path or mapping
        In a mapping, ``input`` may hold whatever `open_matrix` takes.
    workspace : Workspace

    Returns
    -------
    str, Path or mapping

    Raises
    ------
    SpecError, InputError
        If one is no matrix of numbers.
    """
    inputs = spec.get("input") if isinstance(spec, Mapping) else None
    if not isinstance(inputs, Mapping):
        return spec
    arrays = {key: _stored(value, workspace) for key, value in inputs.items() if key not in OPTIONS and _is_array(value)}
    return {**spec, "input": {**inputs, **arrays}}


def _is_array(value: Any) -> bool:
    return isinstance(value, list | tuple) or (hasattr(value, "__array__") or hasattr(value, "shape"))


def _stored(array: Any, workspace: Workspace) -> str:
    """Where an array is: its own folder, or a copy."""
    if type(array).__module__.startswith("zarr.") and (root := local_root(array)):
        return os.path.abspath(root)
    workspace.require_folder("an array of this program as an input")
    A = open_matrix(array, vectors=True)
    folder = workspace.imports_folder
    destination = folder / "array.zarr"
    with only_importer(destination, make_folder=workspace.make_folder):
        draft = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}{PARTIAL}") / "array"
        copy = folder / f"array-{store_matrix(A, draft)[:12]}.zarr"
        for uri in A.inexact():
            warnings.warn(inexact_words(uri), InexactNote, stacklevel=4)
        if not copy.exists():
            draft.rename(copy)
    return str(copy)
