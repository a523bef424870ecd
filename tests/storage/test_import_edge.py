"""The edge of an import: whatever a library raises is one of our errors, no number becomes infinite, no promise fills a disk."""

from __future__ import annotations

import errno
import gzip
import os
import sys
from contextlib import contextmanager

import numpy as np
import pytest
import zarr

from dlscale.cli.main import commands
from dlscale.errors import DoesNotFitError, ImportNote, InputError, SpecError
from dlscale.storage import importers
from dlscale.storage.importers import import_matrix
from dlscale.storage.importers.options import ReadOptions
from dlscale.storage.importers.tables import Table


class Strange(Exception):
    """What some library may raise."""


ERRORS = [ValueError("a"), Strange("b"), OSError(22, "c"), RuntimeError("d"), RecursionError("e"), MemoryError(), KeyError("f")]


def reader(error, where):
    @contextmanager
    def read(request):
        if where == "opening":
            raise error

        def blocks():
            yield np.ones((2, 3))
            if where == "reading":
                raise error

        yield Table(4, 3, np.dtype(np.float64), blocks())
        if where == "closing":
            raise error

    return importers.Format(read)


@pytest.mark.parametrize("where", ["opening", "reading", "closing"])
@pytest.mark.parametrize("error", ERRORS, ids=repr)
def test_whatever_a_reader_raises_names_the_file(tmp_path, monkeypatch, error, where):
    monkeypatch.setitem(importers.FORMATS, ".odd", reader(error, where))
    (tmp_path / "a.odd").touch()
    with pytest.raises(InputError, match=r"a\.odd cannot be read: ") as caught:
        import_matrix(tmp_path / "a.odd", tmp_path / "y.zarr")
    assert caught.value.__cause__ is error
    assert os.listdir(tmp_path) == ["a.odd"]


@pytest.mark.parametrize("with_isal", [True, False])
def test_gzip_with_either_library(tmp_path, monkeypatch, with_isal):
    """Two members are one text; whatever is cut, changed or added is refused."""
    if not with_isal:
        monkeypatch.setitem(sys.modules, "isal.igzip", None)
    rows = [f"{i},{i**2}\n".encode() for i in range(5000)]
    packed = gzip.compress(b"".join(rows[:2000])) + gzip.compress(b"".join(rows[2000:]))
    (tmp_path / "a.csv.gz").write_bytes(packed)
    found = zarr.open_array(import_matrix(tmp_path / "a.csv.gz", tmp_path / "y.zarr", index=False), mode="r")
    np.testing.assert_array_equal(found[:], [[i, i**2] for i in range(5000)])
    for damaged in (packed[:-20], packed[:-8] + b"\0\0\0\0" + packed[-4:], packed + b"more", b"1,2\n"):
        (tmp_path / "a.csv.gz").write_bytes(damaged)
        with pytest.raises(InputError, match=r"a\.csv\.gz cannot be read: "):
            import_matrix(tmp_path / "a.csv.gz", tmp_path / "z.zarr", index=False)


def test_a_full_disk_is_not_blamed_on_the_source(tmp_path, monkeypatch):
    monkeypatch.setitem(importers.FORMATS, ".odd", reader(OSError(errno.ENOSPC, "full"), "reading"))
    (tmp_path / "a.odd").touch()
    with pytest.raises(OSError, match="full"):
        import_matrix(tmp_path / "a.odd", tmp_path / "y.zarr")


@pytest.mark.parametrize(
    ("stored", "dtype", "value"),
    [
        ("f8", "f2", 65520.0),
        ("f8", "f4", -3.5e38),
        ("i8", "f2", 70000),
        ("c16", "c8", 1e39j),
        ("f4", "f2", 1e30),
        ("u8", "f2", 2**63),
    ],
)
@pytest.mark.parametrize("n_rows", [5, 3000])
def test_a_number_that_would_become_infinite(tmp_path, stored, dtype, value, n_rows):
    A = np.ones((n_rows, 4), stored)
    A[n_rows - 2, 3] = value
    np.save(tmp_path / "a.npy", A)
    with pytest.raises(InputError, match=rf"a\.npy, row {n_rows - 2}, column 3 .* infinite in {np.dtype(dtype)}"):
        import_matrix(tmp_path / "a.npy", tmp_path / "y.zarr", dtype=dtype, chunks=(64, 4))
    assert os.listdir(tmp_path) == ["a.npy"]


def test_infinities_of_the_source_stay(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[np.inf, -np.inf, np.nan, 1e-300]]))
    with pytest.warns(ImportNote, match="3 entries that are not finite, the first inf in row 0, column 0, counted"):
        got = zarr.open_array(import_matrix(tmp_path / "a.npy", tmp_path / "y.zarr", dtype="f4"))[...]
    np.testing.assert_array_equal(got, np.array([[np.inf, -np.inf, np.nan, 0]], "f4"))


def test_what_a_header_promises_must_fit_on_the_disk(tmp_path):
    (tmp_path / "a.mtx").write_text("%%MatrixMarket matrix coordinate real general\n100000000 9000000 1\n1 1 1.0\n")
    with pytest.raises(DoesNotFitError, match=r"a\.mtx is a matrix of 100000000 x 9000000 float64: .* requires .* of free disk"):
        import_matrix(tmp_path / "a.mtx", tmp_path / "y.zarr")
    (tmp_path / "a.mtx").write_text("%%MatrixMarket matrix coordinate real general\n1 200000000 1\n1 1 1.0\n")
    with pytest.raises(InputError, match=r"a\.mtx: a row of 200000000 columns .* takes 1\.6 GB"):
        import_matrix(tmp_path / "a.mtx", tmp_path / "y.zarr")
    assert os.listdir(tmp_path) == ["a.mtx"]


def test_every_option_is_known_to_a_format_and_to_the_command_line():
    options = set(ReadOptions.model_fields)
    known = {option for kind in importers.FORMATS.values() for option in options if kind.knows(option)}
    assert known == options
    command = commands.commands["import"]
    assert known <= {parameter.name for parameter in command.get_params(command.make_context("import", ["a", "b"]))}


def test_options_of_the_wrong_kind(tmp_path):
    (tmp_path / "a.csv").write_text("a,b\n1,2\n")
    for options, message in (
        ({"columns": []}, r"columns: got \[\]; allowed: a list"),
        ({"header": 2}, "header: got 2"),
    ):
        with pytest.raises(SpecError, match=message):
            import_matrix(tmp_path / "a.csv", tmp_path / "y.zarr", **options)
