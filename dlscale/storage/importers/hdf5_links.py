"""Where the numbers of an HDF5 dataset really lie: links, virtual datasets and external storage lead to other files.

HDF5 reads as zeros (or another fill value) what it does not find in a source of a virtual dataset, and external storage may be
any file of this machine. So what is in other files is looked up before it is read, and only files beside the source, or in
folders below it, are taken.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dlscale.errors import InputError
from dlscale.storage.importers.tables import is_url

MAX_DEPTH = 16  # of sources of sources, and of links to links


def follow(h5py: Any, store: Any, name: str, source: str) -> Any:
    """The object of that path, by hard, soft and external links; None where there is none.

    Raises
    ------
    InputError
        If the path leads into a file that is not beside the source.
    """
    item, left, n_soft = store, [part for part in name.split("/") if part], 0
    while left:
        if not isinstance(item, h5py.Group):
            return None
        part = left.pop(0)
        link = item.get(part, getlink=True)
        if isinstance(link, h5py.SoftLink):
            n_soft += 1
            if n_soft > MAX_DEPTH:
                raise InputError(f"{source}: the links of {name!r} lead round in circles.")
            item = item.file if link.path.startswith("/") else item
            left = [piece for piece in link.path.split("/") if piece not in ("", ".")] + left
            continue
        if isinstance(link, h5py.ExternalLink):
            beside(source, link.filename, f"{source}, link {part!r}", [item.file.filename])
        found = item.get(part)
        if found is None and link is not None:
            raise InputError(f"{source}: the link {part!r} leads nowhere.")
        if found is None:
            return None
        item = found
    return item


def check_sources(h5py: Any, dataset: Any, source: str, *, depth: int = 0) -> set[Path]:
    """The other files that the numbers of a dataset come from, all of them found.

    Raises
    ------
    InputError
        If one is lost, too short, or not beside the source.
    """
    what = f"{source}, dataset {dataset.name!r}"
    if dataset.external:
        raise InputError(f"{what} has its numbers in another file, {dataset.external[0][0]}, as plain bytes, which is not read.")
    own = Path(dataset.file.filename)
    others = set() if is_url(source) or own.resolve() == Path(source).resolve() else {own.resolve()}
    if not dataset.is_virtual:
        return others
    if depth > MAX_DEPTH:
        raise InputError(f"{what}: its sources lead round in circles.")
    n_mapped = 0
    for part in dataset.virtual_sources():
        n_mapped += part.vspace.get_select_npoints()
        with_file = own if part.file_name == "." else beside(source, part.file_name, what, [str(own)])
        others |= _check_source(h5py, part, with_file, what, source=source, depth=depth)
    if n_mapped != int(np.prod(dataset.shape, dtype=object)):
        raise InputError(
            f"{what} is virtual, and its sources give {n_mapped} of its {dataset.size} entries; write it as a plain one."
        )
    return others


def _check_source(h5py: Any, part: Any, path: Path, what: str, *, source: str, depth: int) -> set[Path]:
    with h5py.File(path, "r") as file:
        found = follow(h5py, file, part.dset_name, str(path))
        if not isinstance(found, h5py.Dataset):
            raise InputError(f"{what} is virtual, and {path} has no dataset {part.dset_name!r}, which it needs.")
        if not _holds(h5py, found, part):
            raise InputError(f"{what} is virtual, and needs more than the {found.shape} entries of {part.dset_name!r} in {path}.")
        return check_sources(h5py, found, source, depth=depth + 1)


def _holds(h5py: Any, found: Any, part: Any) -> bool:
    """Whether a dataset has all that is mapped from it."""
    if part.src_space.get_select_type() == h5py.h5s.SEL_ALL:
        return bool(found.size == part.vspace.get_select_npoints())
    last = part.src_space.get_select_bounds()[1]
    return len(last) == len(found.shape) and all(k < length for k, length in zip(last, found.shape, strict=True))


def beside(source: str, name: str, what: str, homes: list[str]) -> Path:
    """The file of that name beside the file that names it; it must lie in the folder of the source or below."""
    if is_url(source):
        raise InputError(f"{what} has its numbers in another file, {name}, which is not read by way of a URL.")
    root = Path(source).resolve().parent
    for home in homes:
        path = Path(home).resolve().parent / name
        if path.is_file():
            if root not in path.resolve().parents:
                raise InputError(f"{what} has its numbers in {path}, which does not lie beside it; only what does is read.")
            return path
    raise InputError(f"{what} has its numbers in another file, {name}, which is not there; restore it.")
