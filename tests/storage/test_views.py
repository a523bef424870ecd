"""Views say of themselves what the matrix behind them says, but for what they are there for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from helpers import Array, gaussian

from dlscale.learn.training import data
from dlscale.learn.training.on_passes import BatchRows
from dlscale.linalg.folds.centering import Centered
from dlscale.linalg.folds.least_squares import ColumnsTimesPowers
from dlscale.linalg.folds.residuals import Rounded
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import Dense, Matrix, RowRange
from dlscale.storage.scaled import Promoted, Scaled, Stacked

M, N = 12, 70_000
ORDER = np.array([7, 3, 3, 11])

#: Each with what it stands for, and where the entry (2, 5) of it is in the matrix.
VIEWS: dict[str, tuple[Callable[[Matrix], Matrix], Callable[[Array], Array], tuple[int, int]]] = {
    "transposed": (lambda A: A.T, lambda A: A.T, (5, 2)),
    "scaled": (lambda A: Scaled(A, 3), lambda A: 8 * A, (2, 5)),
    "promoted": (lambda A: Promoted(A, np.dtype("f8")), lambda A: A.astype("f8"), (2, 5)),
    "rounded": (lambda A: Rounded(A, 2.0), lambda A: 2 * A, (2, 5)),
    "centred": (lambda A: Centered(A, np.ones(N)), lambda A: A - np.float32(1), (2, 5)),
    "columns times powers": (lambda A: ColumnsTimesPowers(A, [1] * N), lambda A: 2 * A, (2, 5)),
    "some rows": (lambda A: RowRange(A, 3, 8), lambda A: A[3:8], (5, 5)),
    "rows of a batch": (lambda A: BatchRows(A, ORDER), lambda A: A[ORDER], (3, 5)),
    "stacked": (lambda A: Stacked(A, A), lambda A: np.vstack([A, A]), (2, 5)),
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("views") / "A.zarr"
    array = zarr.create_array(path, shape=(M, N), dtype="f4", chunks=(4, N), compressors=None)
    array[:] = gaussian(M, N, "f4")
    array.attrs["dlscale"] = {"image_shape": [2, 6]}
    return path


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_reads_what_it_stands_for_and_forwards_the_rest(stored: Path, name: str) -> None:
    make, meant, place = VIEWS[name]
    A = open_matrix(stored)
    view, expected = make(A), meant(gaussian(M, N, "f4"))
    assert view.shape == expected.shape
    whole = view.read(0, view.shape[0])
    assert whole.dtype == view.dtype
    np.testing.assert_array_equal(whole, expected)
    past_cache = view.past_the_cache()
    assert (past_cache is view) == isinstance(view, Stacked)
    np.testing.assert_array_equal(past_cache.read(0, view.shape[0]), expected)
    buffer: Array = np.empty((2, 3), view.dtype)
    np.testing.assert_array_equal(view.region((1, 3), (4, 7), buffer), expected[1:3, 4:7])
    assert view.place(2, 5) == place
    view.expect(0, 2)
    if name != "stacked":
        assert view.attributes == A.attributes
        assert view.check() == A.check()
        assert (view.by_columns, view.any_range) == (name == "transposed", True)


def test_compressed_rows_of_views_of_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "SMALL_BYTES", 0)
    dense = np.where(np.random.default_rng(0).random((30, 40)) < 0.05, 1.0, 0)
    A = open_matrix(scipy.sparse.csr_array(dense))
    order = np.array([7, 3, 3, 29, 11, 8])
    views = [
        (BatchRows(A, order), dense[order]),
        (BatchRows(A, order, 4), dense[order]),
        (Stacked(A, A), np.vstack([dense, dense])),
    ]
    for view, expected in views:
        assert view.is_sparse
        np.testing.assert_array_equal(view.sparse_rows(1, len(expected) - 1).toarray(), expected[1:-1])
        np.testing.assert_array_equal(view.read(1, len(expected) - 1), expected[1:-1])
        assert view.n_entries == pytest.approx(np.count_nonzero(dense) * len(expected) / 30, abs=1)
    assert not Stacked(A, Dense(A)).is_sparse


def test_a_strip_of_columns_reads_no_whole_rows(stored: Path) -> None:
    """Counted by the kernel, for pieces that lie far from each other."""
    A = open_matrix(stored)
    A.region((0, M), (0, 10))

    def bytes_read() -> int:
        return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["rchar"])

    before = bytes_read()
    strip: Any = A.region((0, M), (1_000, 2_000))
    n_read = bytes_read() - before
    np.testing.assert_array_equal(strip, gaussian(M, N, "f4")[:, 1_000:2_000])
    assert n_read < 2 * strip.nbytes
