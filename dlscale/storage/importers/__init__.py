"""Matrices in other formats become Zarr arrays: streamed, in bounded memory, there as a whole or not at all."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import fsspec.core
import numpy as np
from numpy.typing import DTypeLike

from dlscale.errors import DlscaleError, DoesNotFitError, ImportNote, InputError, SpecError
from dlscale.showing import without_secrets
from dlscale.storage.exactness import NotFinite, inexact_words
from dlscale.storage.files.durable import require_free_space
from dlscale.storage.files.locations import expand_home, local_path, named
from dlscale.storage.importers.columns.filling import is_statistic, with_statistics
from dlscale.storage.importers.delimited import read_delimited
from dlscale.storage.importers.entries.svmlight import read_svmlight
from dlscale.storage.importers.entries.triplets import parquet_triplets, text_triplets
from dlscale.storage.importers.folders import parts_of
from dlscale.storage.importers.hdf5 import read_hdf5
from dlscale.storage.importers.images import IMAGE_SUFFIXES, read_images, read_sample_photos
from dlscale.storage.importers.matrix_market import read_matrix_market
from dlscale.storage.importers.numpy_files import read_npy, read_npz
from dlscale.storage.importers.options import ReadOptions, parse_options, setting
from dlscale.storage.importers.parquet import PARQUET_SUFFIXES, read_parquet
from dlscale.storage.importers.samples import is_sample, read_sample
from dlscale.storage.importers.strips import StripWriter
from dlscale.storage.importers.tables import KEPT_DTYPES, OutOfOrderError, Reader, Request, Table, is_url
from dlscale.storage.labels.names import COLOR
from dlscale.storage.labels.writing import LabelsWriter
from dlscale.storage.sparse.writing import CompressedWriter, write_vector

__all__ = ["FORMATS", "ReadOptions", "import_matrix"]


class Format(NamedTuple):
    """How a kind of file is read, and which options it knows."""

    read: Reader
    options: tuple[str, ...] = ()
    read_triplets: Reader | None = None

    def knows(self, option: str) -> bool:
        """Whether the option applies to it: whatever is read may become a sparse copy."""
        return option in (*self.options, "sparse")


MAX_WORDS = 400  # of what a library says of a damaged file, which may quote it
MAX_ENTRIES = 1 << 60
SAMPLE_PHOTOS = "sample:photos"
_TEXT = ("delimiter", "decimal", "thousands", "comment", "quote", "booleans", "fill", "missing", "encoding")
_TABLES = Format(
    read_delimited, ("columns", "drop", "color", "numeric", "header", "index", "triplets", "keys", *_TEXT), text_triplets
)
_PARQUET = Format(read_parquet, ("columns", "drop", "color", "numeric", "triplets", "keys", "fill"), parquet_triplets)
_SVMLIGHT = Format(read_svmlight, ("dataset", "n_columns"))
_IMAGES = Format(read_images, ("patches", "stride"))
FORMATS: dict[str, Format] = {
    ".npy": Format(read_npy),
    ".npz": Format(read_npz, ("dataset",)),
    **dict.fromkeys((".csv", ".csv.gz", ".tsv", ".tsv.gz"), _TABLES),
    ".parquet": _PARQUET,
    **dict.fromkeys((".h5", ".hdf5", ".h5ad"), Format(read_hdf5, ("dataset", "color"))),
    **dict.fromkeys((".svmlight", ".svmlight.gz", ".libsvm", ".libsvm.gz", ".svm", ".svm.gz"), _SVMLIGHT),
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
    progress: Callable[[int, int], None] | None = None,
    overwrite: bool = False,
    **options: Any,
) -> Path:
    """Copy a matrix from another format into an uncompressed Zarr v3 array, or a sparse one into a group, streaming.

    Parameters
    ----------
    source : path or URL
        In a format of docs/importing.md, or "sample:photos" (see `samples`). n numbers become n x 1, booleans uint8.
    destination : path
        Folder of the new array; appears when complete.
    chunks : (int, int), optional
        Rows and columns of a chunk. None: all columns and a power of two of rows, about 16 MiB.
    dtype : dtype, optional
        To which every value converts without wrapping round. None: the source's; float64 for text.
    progress : callable(done, total), optional
        In bytes: of the source for text, of the matrix otherwise.
    overwrite : bool
        Replace an existing Zarr array, and nothing else.
    **options
        How the source is read: the fields of `ReadOptions`; without one, the reader decides.

    Raises
    ------
    SpecError
        If the format or an option is unknown, a package is missing, or the destination exists.
    InputError
        If the source is missing, damaged, empty, no matrix of numbers, or beyond the range of `dtype`; nothing is left behind.
    DoesNotFitError
        If the disk has no room for the matrix.

    Warns
    -----
    ImportNote
        How something was understood, where the user should know; also kept in the array's attributes.
    """
    source, destination = expand_home(source), local_path(destination, "The destination of an import")
    partial = destination.parent / f".{destination.name}.{uuid.uuid4().hex[:8]}.partial"
    request, read = _request(source, partial / "scratch", dtype, options)
    _check_destination(destination, overwrite=overwrite)
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            notes = _copy(request, read, partial / "array", chunks=chunks, progress=progress)
        except OutOfOrderError:
            shutil.rmtree(partial)
            spilling = request.model_copy(update={"in_order": False})
            notes = _copy(spilling, read, partial / "array", chunks=chunks, progress=progress)
        _publish(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for note in notes:
        warnings.warn(note, ImportNote, stacklevel=2)
    return destination


def _request(source: str, scratch: Path, dtype: DTypeLike | None, options: dict[str, Any]) -> tuple[Request, Reader]:
    """What is asked for, checked, and what reads it."""
    given, kind = parse_options(options), _format(source)
    _check_options(given, kind, source=source)
    read = kind.read_triplets if given.triplets is not None and kind.read_triplets is not None else kind.read
    return Request(source=source, scratch=scratch, dtype=_wanted_dtype(dtype), **given.model_dump()), read


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
) -> list[str]:
    """Write the array; what is to be said of the source."""
    source = request.source
    with ExitStack() as reading:
        with _explained(source):
            table = reading.enter_context(read(request))
            if is_statistic(request.fill):
                table = with_statistics(table, request)
            blocks = reading.enter_context(closing(table.blocks))
        if table.n_columns < 1 or table.n_rows == 0:
            raise InputError(f"{source} is a matrix without entries; it needs at least one row and one column.")
        dtype = _final_dtype(table, request)
        row_bytes = table.n_columns * dtype.itemsize
        _require_room(table, dtype, request=request)
        writer, labels = _writer(path, table, dtype, request, chunks=chunks), LabelsWriter(path, color=request.color or "")
        not_finite = NotFinite()
        while True:
            with _explained(source):
                block = next(blocks, None)
            if block is None:
                break
            not_finite.look(block, writer.n_rows, table.labels.column, by_rows=table.by_rows)
            writer.append(block)
            for array, texts in (("row", table.row_names), (COLOR, table.colors)):
                labels.append(array, texts)
                texts.clear()
            if progress is not None:
                progress(*(table.position() if table.position else (writer.n_rows * row_bytes, (table.n_rows or 0) * row_bytes)))
        with _explained(source):
            labels.copy(table.labels)
            reading.close()
        notes = [
            *table.notes,
            *not_finite.words(without_secrets(source)),
            *([inexact_words(without_secrets(source))] if writer.is_inexact else []),
        ]
        writer.finish(notes, labels.finish())
        for name, vector in table.beside.items() if isinstance(writer, CompressedWriter) else ():
            write_vector(path / name, vector)
    return notes


def _writer(
    path: Path, table: Table, dtype: np.dtype[Any], request: Request, *, chunks: tuple[int, int] | None
) -> StripWriter | CompressedWriter:
    attributes = {"dlscale": {**table.attributes, "source": without_secrets(request.source)}}
    if not (table.sparse or request.sparse):
        return StripWriter(path, table.n_columns, dtype=dtype, chunks=chunks, attributes=attributes)
    if chunks is not None:
        raise SpecError(
            f"chunks are of dense copies, and that of {request.source} is sparse; leave them out, or set "
            f"{setting('sparse', False)}."
        )
    return CompressedWriter(path, table.n_columns, dtype=dtype, by_rows=table.by_rows, attributes=attributes)


def _require_room(table: Table, dtype: np.dtype[Any], *, request: Request) -> None:
    """What a header promises must fit on the disk before a byte of it is written."""
    m, n = table.n_rows or 1, table.n_columns
    if table.sparse or request.sparse:
        # An entry has a number and a column.
        require_free_space(request.scratch.parent.parent, (table.n_entries or 0) * (dtype.itemsize + 4) + 8 * m)
        return
    if m * n > MAX_ENTRIES:
        raise DoesNotFitError(
            f"{request.source} says that it is a matrix of {len(str(m))}-digit x {len(str(n))}-digit {dtype}, which no disk holds."
        )
    try:
        require_free_space(request.scratch.parent.parent, m * n * dtype.itemsize)
    except DoesNotFitError as error:
        raise DoesNotFitError(f"{request.source} is a matrix of {m} x {n} {dtype}: {error}") from None


@contextmanager
def _explained(source: str) -> Iterator[None]:
    """Whatever a library raises on what it reads, as one of our errors; a full disk, which scratch files meet, as it is."""
    try:
        yield
    except DlscaleError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        why = " ".join(str(error).split())[:MAX_WORDS] or type(error).__name__
        if isinstance(error, MemoryError):
            raise InputError(f"{source} cannot be read: what it promises does not fit into memory ({why}).") from error
        advice = "" if isinstance(error, OSError) and error.errno else " The file is damaged or not what its name says."
        raise InputError(f"{source} cannot be read: {why.rstrip('.')}.{advice}") from error


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
    with _explained(source):
        found = files.exists(path)
    if not found:
        raise InputError(f"There is no file or folder {source}.")
    name, place = named(source), path.rstrip("/")
    # What stands behind a query is no folder, and servers give the same object whatever is added to it.
    if not (is_url(source) and "?" in source) and any(files.exists(f"{place}/{node}") for node in ("zarr.json", ".zarray")):
        raise SpecError(f"{source} is a Zarr array already; use it as it is.")
    suffix = max((known for known in FORMATS if name.endswith(known)), key=len, default="")
    if suffix:
        return FORMATS[suffix]
    if files.isdir(path):
        return _PARQUET if parts_of(source, PARQUET_SUFFIXES).paths else _IMAGES
    known = " ".join(FORMATS)
    raise SpecError(
        f"The end of the name of {source} must tell its format; known are {known}, and folders of images or of Parquet parts."
    )


def _check_options(given: ReadOptions, kind: Format, *, source: str) -> None:
    """Refuse what this format does not know."""
    for option, field in ReadOptions.model_fields.items():
        if getattr(given, option) != field.default and not kind.knows(option):
            suffixes = [suffix for suffix, known in FORMATS.items() if option in known.options]
            raise SpecError(f"{option} does not apply to {source}; it is for {' '.join(suffixes)}.")


def _wanted_dtype(dtype: DTypeLike | None) -> np.dtype[Any] | None:
    if dtype is None:
        return None
    try:
        wanted = np.dtype(dtype).newbyteorder("=")
    except TypeError as error:
        raise SpecError(f"dtype must be an integer, float or complex type of at most 64 bits a part; got {dtype!r}.") from error
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
