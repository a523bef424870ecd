"""Matrices in other formats become Zarr arrays: streamed, in bounded memory, there as a whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fsspec.core
import numpy as np
from numpy.typing import DTypeLike

from dlscale.errors import DlscaleError, InputError, SpecError
from dlscale.storage.importers.delimited import read_delimited
from dlscale.storage.importers.hdf5 import read_hdf5
from dlscale.storage.importers.images import IMAGE_SUFFIXES, read_images, read_sample_photos
from dlscale.storage.importers.matrix_market import read_matrix_market
from dlscale.storage.importers.numpy_files import read_npy, read_npz
from dlscale.storage.importers.parquet import read_parquet
from dlscale.storage.importers.samples import is_sample, read_sample
from dlscale.storage.importers.strips import StripWriter
from dlscale.storage.importers.tables import KEPT_DTYPES, Reader, Request, Table, is_url

__all__ = ["FORMATS", "import_matrix"]


class Format(NamedTuple):
    """How a kind of file is read, and which options it knows."""

    read: Reader
    options: tuple[str, ...] = ()


SAMPLE_PHOTOS = "sample:photos"
_IMAGES = Format(read_images, ("patches", "stride"))
FORMATS: dict[str, Format] = {
    ".npy": Format(read_npy),
    ".npz": Format(read_npz, ("dataset",)),
    ".csv": Format(read_delimited, ("columns", "header")),
    ".csv.gz": Format(read_delimited, ("columns", "header")),
    ".tsv": Format(read_delimited, ("columns", "header")),
    ".tsv.gz": Format(read_delimited, ("columns", "header")),
    ".parquet": Format(read_parquet, ("columns",)),
    ".h5": Format(read_hdf5, ("dataset",)),
    ".hdf5": Format(read_hdf5, ("dataset",)),
    ".mtx": Format(read_matrix_market),
    ".mtx.gz": Format(read_matrix_market),
    **dict.fromkeys(IMAGE_SUFFIXES, _IMAGES),
}


def import_matrix(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    chunks: tuple[int, int] | None = None,
    dtype: DTypeLike | None = None,
    patches: int | None = None,
    stride: int = 1,
    dataset: str | None = None,
    columns: list[str] | None = None,
    header: bool | None = None,
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
) -> Path:
    """Copy a matrix from another format into an uncompressed Zarr v3 array, streaming.

    Parameters
    ----------
    source : path or URL
        .npy .npz .csv .tsv (also .gz) .parquet .h5 .hdf5 .mtx (also .gz), an image or a folder of images, or
        "sample:photos" for two photographs in patches, or "sample:digits" and others (see `samples`).
        URLs are opened by fsspec. One-dimensional arrays of n numbers
        become n x 1. Booleans become uint8.
    destination : path
        Folder of the new array; appears when complete.
    chunks : (int, int), optional
        Rows and columns of a chunk. None: all columns and a power of two of rows, about 16 MiB.
    dtype : dtype, optional
        None keeps the source's (float64 for text). Otherwise one to which every value converts without wrapping round:
        wider, or floating.
    patches, stride : int, optional
        For images: side of square patches, one a row, and the distance in pixels from one to the next.
    dataset : str, optional
        For .npz and HDF5: which array. Needed when there are several.
    columns : list of str, optional
        For CSV and Parquet: which columns, in this order. Columns without names are called "0", "1", ...
    header : bool, optional
        For CSV: whether the first line names the columns. None: it does if no cell of it is a number.
    progress : callable, optional
        Called as progress(done, total) in bytes: of the source for text, of the matrix otherwise.
    overwrite : bool
        Replace an existing Zarr array. Anything else that stands there is never replaced.

    Returns
    -------
    Path
        The destination.

    Raises
    ------
    SpecError
        If the format or an option is unknown, a package is missing, or the destination exists.
    InputError
        If the source is missing, damaged, empty, or not a matrix of numbers. Nothing is left behind.

    Notes
    -----
    Memory: below 200 MB with the default chunks, whatever the size of the source, as long as a row is below 16 MiB; of
    images, one at a time. Disk: Matrix Market files, and column-major arrays in .npz, take scratch space beside the
    destination.
    """
    source, destination = os.fspath(source), Path(destination)
    partial = destination.parent / f".{destination.name}.{uuid.uuid4().hex[:8]}.partial"
    names = None if columns is None else tuple(columns)
    kind = _format(source)
    request = Request(source, partial / "scratch", dataset, names, patches, stride, header, _wanted_dtype(dtype))
    _check_options(request, kind)
    _check_destination(destination, overwrite=overwrite)
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        _copy(request, kind.read, partial / "array", chunks=chunks, progress=progress)
        _publish(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return destination


def _publish(partial: Path, destination: Path) -> None:
    """Give the complete array its name; what stood there comes back if that fails."""
    replaced = partial / "replaced"
    try:
        if destination.exists():
            destination.rename(replaced)
        (partial / "array").rename(destination)
    except BaseException:
        if replaced.exists() and not destination.exists():
            replaced.rename(destination)
        raise


def _copy(
    request: Request, read: Reader, path: Path, *, chunks: tuple[int, int] | None, progress: Callable[[int, int], None] | None
) -> None:
    with ExitStack() as stack:
        with _explained(request.source):
            table = stack.enter_context(read(request))
        blocks = stack.enter_context(closing(table.blocks))
        if table.n_columns < 1 or table.n_rows == 0:
            raise InputError(f"{request.source} is a matrix without entries; it needs at least one row and one column.")
        dtype = _final_dtype(table, request)
        attributes = {"dlscale": {**table.attributes, "source": request.source}}
        writer = StripWriter(path, table.n_columns, dtype=dtype, chunks=chunks, attributes=attributes)
        row_bytes = table.n_columns * dtype.itemsize
        while True:
            with _explained(request.source):
                block = next(blocks, None)
            if block is None:
                break
            writer.append(block)
            if progress is not None:
                progress(*(table.position() if table.position else (writer.n_rows * row_bytes, (table.n_rows or 0) * row_bytes)))
        writer.finish()


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Errors of the libraries that read a damaged file, as one of ours; those of the operating system as they are."""
    try:
        yield
    except DlscaleError:
        raise
    except (ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{source} cannot be read: {error}. The file is damaged or not what its name says.") from error
    except OSError as error:
        if error.errno is not None:
            raise
        raise InputError(f"{source} cannot be read: {error}. The file is damaged or not what its name says.") from error


def _format(source: str) -> Format:
    """How a source is read, by its name; it must exist."""
    if source == SAMPLE_PHOTOS:
        return Format(read_sample_photos, _IMAGES.options)
    if is_sample(source):
        return Format(read_sample)
    try:
        files, path = fsspec.core.url_to_fs(source)
    except (ImportError, ValueError) as error:
        raise SpecError(f"{source} cannot be opened: {error}") from error
    if not files.exists(path):
        raise InputError(f"There is no file or folder {source}.")
    if files.exists(f"{path.rstrip('/')}/zarr.json") or files.exists(f"{path.rstrip('/')}/.zarray"):
        raise SpecError(f"{source} is a Zarr array already; use it as it is.")
    name = source.partition("?")[0].rstrip("/").lower() if is_url(source) else source.rstrip("/").lower()
    suffix = max((known for known in FORMATS if name.endswith(known)), key=len, default="")
    if suffix:
        return FORMATS[suffix]
    if files.isdir(path):
        return _IMAGES
    known = " ".join(FORMATS)
    raise SpecError(f"The format of {source} is told by the end of its name; known are {known}, and folders of images.")


def _check_options(request: Request, kind: Format) -> None:
    """Refuse what this format does not know, and values that no format knows."""
    for option in dict.fromkeys(option for known in FORMATS.values() for option in known.options):
        if getattr(request, option) != getattr(Request, option) and option not in kind.options:
            suffixes = [suffix for suffix, known in FORMATS.items() if option in known.options]
            raise SpecError(f"{option} does not apply to {request.source}; it is for {' '.join(suffixes)}.")
    if request.stride < 1 or (request.patches is not None and request.patches < 1) or request.columns == ():
        raise SpecError("patches and stride must be at least 1, and columns must not be empty.")


def _wanted_dtype(dtype: DTypeLike | None) -> np.dtype[Any] | None:
    if dtype is None:
        return None
    wanted = np.dtype(dtype).newbyteorder("=")
    if wanted.str[1:] not in KEPT_DTYPES - {"b1"}:
        raise SpecError(f"dtype must be an integer, float or complex type of at most 64 bits a part; got {wanted}.")
    return wanted


def _final_dtype(table: Table, request: Request) -> np.dtype[Any]:
    if request.dtype is None:
        return table.dtype
    narrower = request.dtype.kind in "fc" and np.can_cast(table.dtype, request.dtype, "same_kind")
    if not narrower and not np.can_cast(table.dtype, request.dtype, "safe"):
        raise SpecError(
            f"{request.source} holds {table.dtype}, which does not convert to {request.dtype} without changing values; "
            "ask for a wider or a floating dtype."
        )
    return request.dtype


def _check_destination(destination: Path, *, overwrite: bool) -> None:
    if not destination.exists():
        return
    if not overwrite:
        raise SpecError(f"{destination} exists; choose another destination, or overwrite it on purpose.")
    if not (destination / "zarr.json").exists():
        raise SpecError(f"{destination} is not a Zarr v3 array and is not overwritten; choose another destination.")
