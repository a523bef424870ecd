"""What a job reads is one content from its first read to its result: across stops, imports and changes underneath."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from PIL import Image

import dlscale
from dlscale.batch import prepare as preparing
from dlscale.batch import run as jobs
from dlscale.batch.document import read_document
from dlscale.batch.prepare import prepare
from dlscale.batch.spec import parse_spec
from dlscale.batch.workspace import Workspace
from dlscale.errors import InputError, SpecError

RNG = np.random.default_rng(0)
X, Y, LABELS = RNG.standard_normal((60, 4)), RNG.standard_normal((60, 1)), (np.arange(60) % 3).astype("i4")


def put(path: Path, array: np.ndarray[Any, Any]) -> str:
    shutil.rmtree(path, ignore_errors=True)
    chunks = (20, *array.shape[1:])
    options: dict[str, Any] = {"compressors": None, "config": {"write_empty_chunks": True}}
    zarr.create_array(path, shape=array.shape, chunks=chunks, dtype=array.dtype, **options)[...] = array
    return str(path)


def stop(event: dict[str, Any]) -> None:
    if event["event"] == "checkpoint":
        raise ConnectionError("the line is cut")


def train(folder: Path) -> dict[str, Any]:
    arrays = {"features": X, "targets": LABELS, "weights": LABELS + 1.0}
    arrays |= {"validation_features": X[:20], "validation_targets": LABELS[:20]}
    rows = {role: put(folder / f"{role}.zarr", array) for role, array in arrays.items()}
    return {"kind": "train", "input": rows, "params": {"epochs": 3}, "model": "softmax", "loss": "cross_entropy"}


def predict(folder: Path) -> dict[str, Any]:
    spec = {**train(folder), "cluster": "threads", "output": str(folder / "model.zarr")}
    model = dlscale.run(spec, workspace=folder / "models").result
    return {"kind": "predict", "input": {"features": str(folder / "features.zarr"), "model": model}}


def lstsq(folder: Path) -> dict[str, Any]:
    return {"kind": "lstsq", "input": {"matrix": put(folder / "a.zarr", X), "rhs": put(folder / "b.zarr", Y)}}


def imported(folder: Path) -> dict[str, Any]:
    np.save(folder / "a.npy", X)
    return {"kind": "qr", "input": {"matrix": {"import": str(folder / "a.npy")}}}


def changed(folder: Path, name: str) -> None:
    if name.endswith(".npy"):
        np.save(folder / name, 2 * X)
        return
    stored = zarr.open(folder / name, mode="r+")
    if isinstance(stored, zarr.Group):
        stored = next(array for _, array in stored.members(max_depth=None) if isinstance(array, zarr.Array))
    stored[...] = np.asarray(stored[...]) + 1


@pytest.mark.parametrize(
    ("make", "role", "name"),
    [
        (lstsq, "matrix", "a.zarr"),
        (lstsq, "rhs", "b.zarr"),
        (imported, "matrix", "a.npy"),
        (train, "features", "features.zarr"),
        (train, "targets", "targets.zarr"),
        (train, "weights", "weights.zarr"),
        (train, "validation_features", "validation_features.zarr"),
        (train, "validation_targets", "validation_targets.zarr"),
        (predict, "features", "features.zarr"),
        (predict, "model", "model.zarr"),
    ],
)
def test_a_job_does_not_go_on_with_another_input(
    tmp_path: Path, make: Callable[[Path], dict[str, Any]], role: str, name: str
) -> None:
    spec = {**make(tmp_path), "cluster": "threads"}
    workspace = Workspace(tmp_path / "ws")
    with pytest.raises(ConnectionError):
        dlscale.run(spec, workspace=workspace.root, listener=stop)
    job = workspace.find(None)
    jobs.reopen(job, workspace)
    changed(tmp_path, name)
    with pytest.raises(SpecError, match=rf"input\.{role}: .* has changed since the job began to read it: .*; run the job anew\."):
        jobs.reopen(job, workspace)


def test_a_job_goes_on_with_what_it_read(tmp_path: Path) -> None:
    spec = {**imported(tmp_path), "cluster": "threads"}
    workspace = Workspace(tmp_path / "ws")
    expected = dlscale.run(spec, workspace=tmp_path / "other").open()["r"][...]
    with pytest.raises(ConnectionError):
        dlscale.run(spec, workspace=workspace.root, listener=stop)
    job = workspace.find(None)
    # A copy that was thrown away is imported again: other files, the same content.
    shutil.rmtree(workspace.imports_folder)
    done = jobs.resume(job, jobs.reopen(job, workspace))
    np.testing.assert_array_equal(done.open()["r"][...], expected)
    assert not job.checkpoint.exists()


@pytest.mark.parametrize("url", [False, True])
def test_a_matrix_that_changes_under_a_job(tmp_path: Path, url: bool) -> None:
    place: Any = f"memory://under/{tmp_path.name}.zarr" if url else tmp_path / "a.zarr"
    array = zarr.create_array(place, shape=X.shape, chunks=(20, 4), dtype="f8", overwrite=True)
    array[...] = X

    def rewrite(event: dict[str, Any]) -> None:
        if event["event"] == "pass_finished":
            array[20:40] = 0.5

    with pytest.raises(InputError, match=r"input\.matrix: .* was changed while the job read it .*; run the job anew"):
        dlscale.run(
            {"kind": "qr", "input": {"matrix": str(place)}, "cluster": "threads"}, workspace=tmp_path / "ws", listener=rewrite
        )
    job = Workspace(tmp_path / "ws").find(None)
    assert not job.read_state().resumable
    assert not job.result.exists()


def test_missing_chunks_are_filled_where_the_job_says_so(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a.zarr", shape=(60, 4), chunks=(20, 4), dtype="f8")
    array[:20] = X[:20]
    spec = {"kind": "svd", "input": {"matrix": str(tmp_path / "a.zarr")}, "params": {"n_components": 4}, "cluster": "threads"}
    with pytest.raises(InputError, match="missing_chunks: fill"):
        dlscale.run(spec, workspace=tmp_path / "ws")
    done = dlscale.run(spec, ["input.missing_chunks=fill"], workspace=tmp_path / "ws")
    np.testing.assert_allclose(done.open()["s"][...], np.linalg.svd(X[:20], compute_uv=False))
    with pytest.raises(SpecError, match=r"input\.missing_chunks: got 'zeros'"):
        dlscale.run(spec, ["input.missing_chunks=zeros"], workspace=tmp_path / "ws")


# Imports


def save_npy(path: Path, A: np.ndarray[Any, Any]) -> None:
    np.save(path, A)


def save_images(path: Path, A: np.ndarray[Any, Any]) -> None:
    path.mkdir(exist_ok=True)
    for i, row in enumerate(A):
        Image.fromarray(row[None].astype("f4")).save(path / f"{i}.tif")


def save_parts(path: Path, A: np.ndarray[Any, Any]) -> None:
    path.mkdir(exist_ok=True)
    for i in (0, 1):
        pq.write_table(pa.table({f"{j}": A[30 * i : 30 * i + 30, j] for j in range(4)}), path / f"{i}.parquet")


def save_virtual(path: Path, A: np.ndarray[Any, Any]) -> None:
    with h5py.File(path.with_name("part.hdf5"), "w") as file:
        file["A"] = A
    if not path.exists():
        layout = h5py.VirtualLayout(A.shape, A.dtype)
        layout[...] = h5py.VirtualSource("part.hdf5", "A", A.shape)
        with h5py.File(path, "w") as file:
            file.create_virtual_dataset("A", layout)


SOURCES = [("a.npy", save_npy), ("images", save_images), ("a.parquet", save_parts)]


@pytest.mark.parametrize(
    ("name", "save", "url"), [*((*source, url) for source in SOURCES for url in (False, True)), ("a.h5", save_virtual, False)]
)
@pytest.mark.parametrize("keep_times", [False, True])
def test_a_source_that_has_changed_is_imported_again(
    tmp_path: Path, name: str, save: Callable[[Path, np.ndarray[Any, Any]], None], url: bool, keep_times: bool
) -> None:
    path, workspace = tmp_path / name, Workspace(tmp_path / "ws")
    source = f"file://{path}" if url else str(path)
    spec = {"kind": "qr", "input": {"matrix": {"import": source}}, "cluster": "threads"}
    for scale in (1, 2):
        A = (np.round(X, 2) * scale).astype("f4")
        save(path, A)
        for file in tmp_path.rglob("*") if keep_times else ():
            if workspace.root not in (file, *file.parents):
                os.utime(file, (1.7e9, 1.7e9))
        for _ in range(2):
            document = read_document(spec)
            inputs = prepare(parse_spec(document), document, workspace).inputs
            np.testing.assert_array_equal(inputs["matrix"].read(0, 60), A)
    assert len(list(workspace.imports_folder.iterdir())) <= 2


def test_a_source_of_which_nobody_says_when_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = fsspec.filesystem("memory")
    known = type(files).info
    monkeypatch.setattr(type(files), "info", lambda *given: {**known(*given), "created": None})
    spec = {"kind": "qr", "input": {"matrix": {"import": "memory://mute/a.npy"}}, "cluster": "threads"}
    for A in (X, 2 * X, X, X):
        with fsspec.open("memory://mute/a.npy", "wb") as file:
            np.save(file, A)
        r = dlscale.run(spec, workspace=tmp_path / "ws").open()["r"][...]
        np.testing.assert_allclose(np.abs(r), np.abs(np.linalg.qr(A)[1]), atol=1e-12)
    assert len(list((tmp_path / "ws" / "imports").iterdir())) == 2


def test_a_source_that_changes_while_it_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", X)

    def during(*given: Any, **options: Any) -> Path:
        made = real(*given, **options)
        np.save(tmp_path / "a.npy", 2 * X)
        os.utime(tmp_path / "a.npy", (2e9, 2e9))  # by more than the clock of a file system tells apart
        return made

    real = preparing.import_matrix
    monkeypatch.setattr(preparing, "import_matrix", during)
    spec = {"kind": "qr", "input": {"matrix": {"import": str(tmp_path / "a.npy")}}, "cluster": "threads"}
    with pytest.raises(InputError, match=r"a\.npy was changed while it was imported"):
        dlscale.run(spec, workspace=tmp_path / "ws")
    assert not list((tmp_path / "ws").rglob("*.zarr"))


def test_options_of_an_import_are_part_of_it(tmp_path: Path) -> None:
    pq.write_table(pa.table({"a": X[:, 0], "b": X[:, 1]}), tmp_path / "x.parquet")
    for columns in (["a"], ["b"], ["b", "a"]):
        request = {"import": str(tmp_path / "x.parquet"), "columns": columns}
        spec = {"kind": "qr", "input": {"matrix": request}, "cluster": "threads"}
        r = dlscale.run(spec, workspace=tmp_path / "ws").open()["r"][...]
        expected = np.linalg.qr(X[:, ["ab".index(name) for name in columns]])[1]
        np.testing.assert_allclose(np.abs(r), np.abs(expected), atol=1e-12)


def test_a_query_is_no_part_of_a_name(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    path = workspace.import_path({"import": "https://bucket/x.npy?X-Amz-Signature=SECRET"}, "1")
    assert path.name.startswith("x-npy-")
    assert "SECRET" not in path.name
