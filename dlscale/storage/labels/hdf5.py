"""Names of rows and columns in HDF5 files: of AnnData and 10x, of pandas, and dimension scales, as xarray and netCDF have them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dlscale.errors import SpecError
from dlscale.storage.labels.columns import ColumnTexts, column_texts
from dlscale.storage.labels.names import Color, Labels, Names, counts, text_of


class DatasetNames:
    """A dataset of one dimension as names, read by ranges."""

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return int(self._dataset.shape[0])

    def __getitem__(self, part: slice) -> list[str]:
        return list(map(text_of, self._dataset[part].tolist()))


def labels_of_dataset(h5py: Any, store: Any, dataset: Any, shape: tuple[int, int]) -> Labels:
    """What the file says of the rows and columns of a dataset."""
    beside = dataset.parent
    if "axis0" in beside and dataset.name.endswith("_values"):  # pandas, by way of PyTables
        items = dataset.name.rpartition("/")[2].removesuffix("_values") + "_items"
        found = Labels(_names(h5py, beside, "axis1"), _names(h5py, beside, items))
    elif len(dataset.shape) == 2 and any(len(dimension) for dimension in dataset.dims):
        found = Labels.of(_scale(h5py, dimension) for dimension in dataset.dims)
    else:
        return labels_of_group(h5py, store, dataset, shape)
    return found.fitting(shape)


def labels_of_group(h5py: Any, store: Any, group: Any, shape: tuple[int, int]) -> Labels:
    """What the file says of the rows and columns of AnnData's ``X`` or a layer, or of the cells and genes of 10x."""
    if isinstance(group, h5py.Group) and "barcodes" in group:
        features = group.get("features", group)
        genes = next((name for name in ("id", "genes", "gene_names") if name in features), "")
        return Labels(_names(h5py, group, "barcodes"), _names(h5py, features, genes)).fitting(shape)
    if group.name != "/X" and not group.name.startswith("/layers/"):
        return Labels()
    return Labels.of(_index(h5py, store, table) for table in ("obs", "var")).fitting(shape)


class FieldOfTable:
    """A field of a compound dataset of one dimension, as an array."""

    def __init__(self, table: Any, name: str) -> None:
        self._table, self._name = table, name
        self.shape, self.dtype = table.shape, table.dtype[name]

    def __getitem__(self, part: slice) -> Any:
        return self._table[self._name, part]


def color_of(h5py: Any, matrix: Any, n_rows: int, name: str, item: Callable[[str], Any], what: str) -> Color:
    """A column of AnnData's ``obs``, or a dataset or a field of one at that path, as what colours the rows of a matrix.

    Parameters
    ----------
    matrix : h5py.Dataset or h5py.Group
    n_rows : int
        Of the matrix.
    name : str
        Of the column, or its path.
    item : callable
        From a path to what stands there in the file; None where nothing does.
    what : str
        The file, in messages.

    Raises
    ------
    SpecError
        If there is none, or what there is has not a text or a number for each row.
    """
    table = item("obs") if matrix.name == "/X" or matrix.name.startswith(("/layers/", "/obsm/")) else None
    texts = None if table is None else _texts_at(h5py, f"obs/{name}", item)
    if texts is None:
        texts = _texts_at(h5py, name, item)
    if texts is None and table is not None:
        columns = table.dtype.names or () if isinstance(table, h5py.Dataset) else table
        listed = ", ".join([column for column in columns if not column.startswith("_")][:50])
        raise SpecError(f"{what} has no column {name!r} of text or numbers in obs to colour rows by; there are: {listed}.")
    if texts is None:
        raise SpecError(f"{what} has no dataset {name!r} of one dimension, of text or numbers, to colour rows by.")
    if len(texts) != n_rows:
        raise SpecError(f"{what}: {name!r} has {len(texts)} values, and the matrix {n_rows} rows to be coloured.")
    return Color(name.rpartition("/")[2], texts)


def _texts_at(h5py: Any, path: str, item: Callable[[str], Any]) -> ColumnTexts | None:
    found = item(path)
    if found is None:
        above, _, field = path.rpartition("/")
        table = item(above) if above else None
        if not isinstance(table, h5py.Dataset) or field not in (table.dtype.names or ()):
            return None
        found = FieldOfTable(table, field)
    elif isinstance(found, h5py.Dataset) and isinstance(found.attrs.get("categories"), h5py.Reference):  # before 0.8
        categories = item(found.file[found.attrs["categories"]].name)
        return ColumnTexts(found, ColumnTexts(categories)[:]) if _is_plain(h5py, categories) else None
    return column_texts(found, lambda name: item(f"{path}/{name}"), lambda array: _is_plain(h5py, array))


def _is_plain(h5py: Any, array: Any) -> bool:
    return h5py.check_string_dtype(array.dtype) is not None or array.dtype.kind in "biufS"


def _index(h5py: Any, store: Any, name: str) -> Names | None:
    table = store.get(name)
    if isinstance(table, h5py.Group):
        return _names(h5py, table, text_of(table.attrs.get("_index", "index")))
    if isinstance(table, h5py.Dataset) and "index" in (table.dtype.names or ()):  # as versions before 0.7 wrote it
        return list(map(text_of, table["index"].tolist()))
    return None


def _scale(h5py: Any, dimension: Any) -> Names | None:
    scale = dimension[0] if len(dimension) else None
    # A dimension without coordinates has a scale that says so.
    if scale is None or text_of(scale.attrs.get("NAME", b"")).startswith("This is a netCDF dimension but not a netCDF variable"):
        return None
    return _as_names(h5py, scale)


def _names(h5py: Any, group: Any, name: str) -> Names | None:
    return _as_names(h5py, group.get(name) if name else None)


def _as_names(h5py: Any, found: Any) -> Names | None:
    """A dataset of text or numbers in this file as names; None of anything else, such as what Python pickled."""
    if not isinstance(found, h5py.Dataset) or len(found.shape or ()) != 1 or found.external or found.is_virtual:
        return None
    if h5py.check_string_dtype(found.dtype) is None and (found.dtype.kind not in "iufS" or counts(found)):
        return None
    return DatasetNames(found)
