"""A table with names, words, missing values and an index becomes a labelled score plot by one job file."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

import dlscale
from dlscale.report.components import planes
from dlscale.report.components.sections import rows_in_the_plane
from dlscale.report.record import JobRecord
from dlscale.report.sections import Job
from dlscale.storage.groups import open_arrays, sampled_rows
from dlscale.storage.writers import Layout, create_array

NAMES = ["height", "weight <kg>", "価格", "a very long name of a column, which a chart cuts"]


def write_table(path, n_rows: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    A = rng.standard_normal((n_rows, 4)) * [5, 3, 1, 0.5] + [0, 10, 20, 30]
    cells = [[f"person {i}", *(f"{x:.6f}" for x in row[:2]), "Rome", *(f"{x:.6f}" for x in row[2:])] for i, row in enumerate(A)]
    cells[1][2], cells[3][5] = "", "NA"
    lines = [["", *NAMES[:2], "city", *(f'"{name}"' for name in NAMES[2:])], *cells]
    path.write_text("\n".join(map(",".join, lines)) + "\n", encoding="utf-8")
    return A


@pytest.mark.usefixtures("drawn_reports")
@pytest.mark.filterwarnings("ignore::dlscale.errors.ImportNote")
def test_one_job_file_from_a_table_to_named_scores(tmp_path):
    A = write_table(tmp_path / "people.csv", 40)
    (tmp_path / "job.yaml").write_text(
        "kind: pca\n"
        f"input: {{matrix: {{import: '{tmp_path}/people.csv', numeric: true, fill: median, color: city}}}}\n"
        "params: {n_components: 3, scores: true}\n"
        "cluster: threads\n"
    )
    result = dlscale.run(tmp_path / "job.yaml", workspace=tmp_path / "w")
    group = zarr.open_group(result.result, mode="r")
    A[1, 1] = np.median(np.round(np.delete(A[:, 1], 1), 6))
    A[3, 3] = np.median(np.round(np.delete(A[:, 3], 3), 6))
    np.testing.assert_allclose(group["mean"][:], A.mean(axis=0), atol=1e-6)
    assert list(group["column"][:]) == NAMES
    assert list(group["row"][:3]) == ["person 0", "person 1", "person 2"]
    assert group["scores"].metadata.dimension_names == ("row", "component")
    page = (result.folder / "report.html").read_text()
    assert (list(group["color"][:]), group["color"].attrs["long_name"]) == (["Rome"] * 40, "city")
    assert group["color"].metadata.dimension_names == ("row",)
    assert "person 7, city: Rome" in page
    assert "its colour tells city" in page
    for words in ("Scores", "biplot of 40 rows", "Loadings", "weight &lt;kg&gt;", "価格", "a very long name of a…", "person 7"):
        assert words in page
    assert not [name for name in ("column 0", "damaged") if name in page]


@pytest.mark.usefixtures("drawn_reports")
def test_the_report_of_a_regression_names_its_weights(tmp_path):
    A = np.random.default_rng(0).standard_normal((30, 2))
    targets = A @ [[3.0], [-1.0]]
    import pyarrow as pa

    spec = {"kind": "train", "input": {"features": pa.table({"dose": A[:, 0], "age": A[:, 1]}), "targets": targets}}
    spec |= {"model": {"type": "linear"}, "optimizer": {"type": "lbfgs"}, "params": {"epochs": 20}, "cluster": "threads"}
    result = dlscale.run(spec, workspace=tmp_path)
    page = (result.folder / "report.html").read_text()
    assert '<th scope="row">dose</th>' in page
    assert "Columns are numbered" not in page


@pytest.mark.parametrize("n_rows", [1, 3, 700, 5000])
def test_planes_of_any_number_of_rows(n_rows):
    points = np.random.default_rng(0).standard_normal((n_rows, 2)) * [1e5, 1e-7]
    labels = {"row": ["\x00\x1b[31m名"] * n_rows, "column": ["\x07", "b", ""]}
    arrays = {"components": np.eye(2, 3)}
    for sample in (points, np.zeros_like(points), np.full_like(points, np.nan)):
        record = JobRecord("pca-1", "pca", "pca", "succeeded", arrays=arrays, labels=labels, sample=sample)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            drawn = rows_in_the_plane(Job(record))
        assert (drawn is not None) == bool(np.isfinite(sample).all())
        assert "\x1b" not in (drawn or "")


def test_of_many_rows_chunks_that_are_spread_evenly_are_read(tmp_path):
    group = zarr.create_group(tmp_path / "g.zarr")
    scores = np.arange(300.0).reshape(100, 3)
    create_array(tmp_path / "g.zarr" / "scores", Layout((100, 3), "f8", (10, 3))).write(0, scores)
    uri = str(group.store_path.store.root)
    arrays = open_arrays(uri)
    np.testing.assert_array_equal(sampled_rows(uri, arrays, "scores", 2, max_bytes=10_000), scores[:, :2])
    np.testing.assert_array_equal(sampled_rows(uri, arrays, "scores", 2, max_bytes=500), scores[[*range(10), *range(90, 100)], :2])
    assert sampled_rows(uri, arrays, "absent", 2, max_bytes=500) is None


@given(st.integers(0, 2**32 - 1), st.floats(-300, 300), st.floats(-300, 300))
def test_arrows_of_large_loadings_are_seen_beside_any_scores(seed: int, x: float, y: float) -> None:
    """Along each axis they go as far as the points do, whatever its scale, and no further."""
    rng = np.random.default_rng(seed)
    points = rng.standard_normal((30, 2)) * [10**x, 10**y]
    loadings = np.linalg.qr(rng.standard_normal((5, 2)) * rng.choice([1e-9, 1.0], (5, 1)))[0]
    shown = np.abs(planes.arrow_ends(points, loadings)) / np.abs(points).max(axis=0)
    assert (shown.max(axis=1)[np.hypot(*loadings.T) > 0.7] > 0.4).all()
    assert shown.max() <= 0.9 * (1 + 1e-12)
