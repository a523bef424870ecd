"""Random sparse matrices: as many entries as asked, everywhere alike, the same for a seed, there as a whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse
from click.testing import CliRunner

from dlscale.batch.document import read_document
from dlscale.batch.generate import parse_generate
from dlscale.cli.main import commands
from dlscale.errors import SpecError
from dlscale.storage.matrices import open_matrix
from dlscale.storage.sparse.random import random_blocks, write_random


@pytest.mark.parametrize("density", [1e-4, 0.01, 0.3, 1.0])
def test_each_entry_is_there_with_the_same_probability(density: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlscale.storage.sparse.random._BLOCK_NONZEROS", 5000)
    m, n = 800, 500
    A = scipy.sparse.vstack(list(random_blocks((m, n), density, dtype=np.dtype("f8"), seed=3)), format="csr")
    assert A.shape == (m, n)
    assert A.has_canonical_format
    spread = (m * n * density * (1 - density)) ** 0.5
    assert abs(A.nnz - m * n * density) <= 5 * spread
    for half in (A[: m // 2], A[:, : n // 2]):
        assert abs(half.nnz - m * n * density / 2) <= 5 * spread
    if density >= 0.01:
        assert abs(A.data.std() - 1) < 5 / A.nnz**0.5
    again = scipy.sparse.vstack(list(random_blocks((m, n), density, dtype=np.dtype("f8"), seed=3)), format="csr")
    np.testing.assert_array_equal(again.data, A.data)


@pytest.mark.parametrize("dtype", ["f4", "c16"])
def test_written_and_read(tmp_path: Path, dtype: str) -> None:
    path = write_random(tmp_path / "x.zarr", (300, 200), 0.02, dtype=np.dtype(dtype), seed=1)
    matrix = open_matrix(path)
    matrix.check()
    assert (matrix.shape, matrix.stored_dtype, matrix.is_sparse) == ((300, 200), np.dtype(dtype), True)
    assert os.listdir(tmp_path) == ["x.zarr"]
    with pytest.raises(SpecError, match="exists already"):
        write_random(path, (3, 3), 0.5, dtype=np.dtype(dtype), seed=1)


def test_nothing_is_left_of_one_that_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dlscale.storage.sparse.random.CompressedWriter.finish", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_random(tmp_path / "x.zarr", (30, 20), 0.5, dtype=np.dtype("f8"), seed=1)
    assert os.listdir(tmp_path) == []


def test_by_the_command(tmp_path: Path) -> None:
    said = CliRunner().invoke(commands, ["generate", str(tmp_path / "x.zarr"), "--shape", "200x300", "--density", "0.05"])
    assert said.exit_code == 0, said.output
    assert "Sparse" in said.output


@pytest.mark.parametrize("more", ["spectrum: flat", "condition: 10", "rank: 3", "offset: 2.0", "chunks: [3, 3]", "density: 2"])
def test_what_does_not_go_together(more: str) -> None:
    key = "" if more.startswith("density") else "density: 0.1\n"
    with pytest.raises(SpecError, match="density"):
        parse_generate(read_document(f"shape: [10, 10]\n{key}{more}\n"))
