"""Jobs with several inputs: roles, results of earlier jobs as inputs, sections that one kind has."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import zarr
from pydantic import Field

from dlscale.batch import run as jobs
from dlscale.batch.kinds import MODULES
from dlscale.batch.spec import load_spec, to_data
from dlscale.batch.workspace import Workspace
from dlscale.certificates import Certificate
from dlscale.declaration.kind import Kind, Role
from dlscale.declaration.options import Options, Takes
from dlscale.declaration.sections import Section
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan
from dlscale.engine.ranks.outcome import Outcome
from dlscale.errors import InputError, SpecError
from dlscale.linalg.qr.tall import TallQROptions, plan_tall_qr
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

Spec = dict[str, Any]


class LossSection(Section):
    """A section that only this kind has."""

    name: Literal["squared", "huber"] = Field(default="squared", description="squared or huber")


@dataclass(frozen=True)
class FitOptions(Options):
    """What a fit gets from the job file."""

    shift: Annotated[float, Field(description="a number")] = 0.0
    loss: Annotated[Mapping[str, Any], Takes(LossSection), Field(description="a section with the key name")] = field(
        default_factory=dict
    )


def plan_fit(inputs: Inputs, options: FitOptions, facts: ClusterFacts) -> Plan:
    rhs = inputs.get("rhs")
    if rhs is not None and rhs.shape[0] != inputs["matrix"].shape[0]:
        raise SpecError(f"input.rhs: must have {inputs['matrix'].shape[0]} rows like the matrix; got {rhs.shape[0]}.")
    if options.loss["name"] == "huber":
        raise SpecError("loss.name: huber is not for this matrix.")
    return plan_tall_qr(inputs["matrix"], TallQROptions(), facts)


def compute_fit(passes: Passes, inputs: Inputs, options: FitOptions, plan: Plan) -> Outcome:
    arrays = {role: matrix.read(0, matrix.shape[0]).sum(axis=0) + options.shift for role, matrix in inputs.items()}
    arrays |= {f"{role}-r": result.arrays["r"][...] for role, result in inputs.results.items()}
    return Outcome(arrays, (), Certificate(()))


#: Two matrices, one of them a vector as well, and a result.
KIND = Kind(
    name="fit",
    title="Fit",
    words="Sums of what was given.",
    arrays="one by the name of each role",
    options=FitOptions,
    plan=plan_fit,
    compute=compute_fit,
    example="{kind: fit, input: {matrix: a.zarr, rhs: b.zarr}}",
    roles=(
        Role("matrix"),
        Role("rhs", optional=True, vector=True),
        Role("factors", "path or URL of the result of a qr job", optional=True, result_of=("qr",)),
    ),
    sections=("loss",),
    rule=lambda roles: None if {"rhs", "factors"} & set(roles) else "needs rhs or factors.",
)


@pytest.fixture(autouse=True)
def _a_kind_with_roles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULES, "fit", __name__)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, shape in (("a.zarr", (60, 4)), ("b.zarr", (60,)), ("short.zarr", (50,)), ("cube.zarr", (60, 2, 2))):
        array = zarr.create_array(tmp_path / name, shape=shape, chunks=(25, *shape[1:]), dtype="f8")
        array[...] = np.random.default_rng(len(name)).standard_normal(shape)
    return tmp_path


@pytest.fixture
def run(folder: Path) -> Callable[..., jobs.JobResult]:
    def run_(*overrides: str, **inputs: str) -> jobs.JobResult:
        spec = {"kind": "fit", "input": {role: str(folder / name) for role, name in inputs.items()}, "cluster": "threads"}
        return jobs.run(spec, overrides, workspace=folder / "ws")

    return run_


def test_roles_reach_the_algorithm_opened(run: Callable[..., jobs.JobResult], folder: Path) -> None:
    result = run("params.shift=1", matrix="a.zarr", rhs="b.zarr")
    arrays = {name: np.asarray(array) for name, array in result.open().items()}
    np.testing.assert_allclose(arrays["matrix"], zarr.open_array(folder / "a.zarr")[:].sum(axis=0) + 1)
    np.testing.assert_allclose(arrays["rhs"], [zarr.open_array(folder / "b.zarr")[:].sum() + 1])
    assert result.plan["inputs"]["rhs"]["shape"] == [60, 1]
    assert json.loads((result.folder / "plan.json").read_text())["inputs"] == result.plan["inputs"]


def test_the_result_of_a_job_is_an_input_whole_and_by_its_arrays(run: Callable[..., jobs.JobResult], folder: Path) -> None:
    qr = {"kind": "qr", "input": {"matrix": str(folder / "a.zarr")}, "cluster": "threads", "output": str(folder / "qr.zarr")}
    r = np.asarray(jobs.run(qr, workspace=folder / "ws").open()["r"])
    result = run(matrix="qr.zarr/q", factors="qr.zarr")
    np.testing.assert_array_equal(np.asarray(result.open()["factors-r"]), r)
    assert result.plan["inputs"]["factors"]["arrays"]["r"] == {"shape": [4, 4], "dtype": "float64"}
    with pytest.raises(SpecError, match=r"output: .*qr.zarr holds the input matrix"):
        run(f"output={folder / 'qr.zarr'}", "overwrite=true", matrix="qr.zarr/q", rhs="b.zarr")


@pytest.mark.parametrize(
    ("inputs", "overrides", "words"),
    [
        ({"matrix": "a.zarr"}, [], ["input: needs rhs or factors."]),
        ({"matrix": "a.zarr", "rhs": "absent.zarr"}, [], ["input.rhs: ", "absent.zarr", "no such file"]),
        ({"matrix": "b.zarr", "rhs": "b.zarr"}, [], ["input.matrix: ", "two dimensions", "(60,)"]),
        ({"matrix": "a.zarr", "rhs": "cube.zarr"}, [], ["input.rhs: ", "two dimensions", "(60, 2, 2)"]),
        ({"matrix": "a.zarr", "rhs": "short.zarr"}, [], ["input.rhs: must have 60 rows", "got 50"]),
        ({"matrix": "a.zarr", "factors": "b.zarr"}, [], ["input.factors: ", "no result of a dlscale job"]),
        ({"matrix": "a.zarr", "rsh": "b.zarr"}, [], ["input.rsh: unknown key; did you mean rhs?"]),
        ({"matrix": "a.zarr", "rhs": "b.zarr"}, ["loss.name=best"], ["loss.name: got 'best'", "squared or huber"]),
        ({"matrix": "a.zarr", "rhs": "b.zarr"}, ["loss.name=huber"], ["--set loss.name: loss.name: huber is not"]),
        ({"matrix": "a.zarr", "rhs": "b.zarr"}, ["los={}"], ["unknown key; did you mean loss?"]),
    ],
)
def test_a_fault_in_any_role_is_named_and_leaves_nothing(
    inputs: dict[str, str], overrides: list[str], words: list[str], run: Callable[..., jobs.JobResult], folder: Path
) -> None:
    with pytest.raises((SpecError, InputError)) as caught:
        run(*overrides, **inputs)
    for word in words:
        assert word in str(caught.value)
    assert not (folder / "ws").exists()


def test_a_result_of_another_kind_is_refused(run: Callable[..., jobs.JobResult], folder: Path) -> None:
    svd = {"kind": "svd", "input": {"matrix": str(folder / "a.zarr")}, "params": {"n_components": 2}, "cluster": "threads"}
    jobs.run({**svd, "output": str(folder / "svd.zarr")}, workspace=folder / "ws")
    with pytest.raises(InputError, match=r"input\.factors: must be the result of a job of kind qr; got svd"):
        run(matrix="a.zarr", factors="svd.zarr")


def test_an_input_that_changed_stops_a_job_from_going_on(
    run: Callable[..., jobs.JobResult], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> Outcome:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(sys.modules[__name__], "KIND", replace(KIND, compute=fail))
        with pytest.raises(OSError, match="the disk is gone"):
            run(matrix="a.zarr", rhs="b.zarr")
    workspace = Workspace(folder / "ws")
    job = workspace.find(None)
    zarr.create_array(folder / "b.zarr", shape=(60,), chunks=(25,), dtype="f4", overwrite=True)[:] = 1.0
    with pytest.raises(SpecError, match=r"input\.rhs: was \[60, 1\] float64 when the job began and is \[60, 1\] float32 now"):
        jobs.reopen(job, workspace)
    zarr.create_array(folder / "b.zarr", shape=(60,), chunks=(25,), dtype="f8", overwrite=True)[:] = 1.0
    with pytest.raises(SpecError, match=r"input\.rhs: .*b\.zarr has changed since the job began to read it: .*; run the job anew"):
        jobs.reopen(job, workspace)


def test_paths_of_all_roles_are_kept_absolute(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    spec = load_spec({"kind": "fit", "input": {"matrix": {"import": "a.npy"}, "rhs": "b.zarr", "factors": "qr.zarr"}})
    data = to_data(spec)["input"]
    assert data == {
        "matrix": {"import": str(folder / "a.npy")},
        "rhs": str(folder / "b.zarr"),
        "factors": str(folder / "qr.zarr"),
    }


@pytest.mark.parametrize("layout", [{}, {"shards": (50,)}, {"compressors": None}, {"zarr_format": 2}], ids=str)
def test_a_stored_vector_is_a_column(tmp_path: Path, layout: dict[str, Any]) -> None:
    array = zarr.create_array(tmp_path / "v.zarr", shape=(90,), chunks=(25,), dtype="i4", **layout)
    array[:] = np.arange(1, 91)
    v = open_matrix(str(tmp_path / "v.zarr"), vectors=True)
    v.check()
    assert (v.shape, v.is_vector, v.dtype) == ((90, 1), True, np.float64)
    np.testing.assert_array_equal(v.read(20, 80), np.arange(21.0, 81.0)[:, None])
    np.testing.assert_array_equal(v.T.read(0, 1), np.arange(1.0, 91.0)[None])
    with pytest.raises(InputError, match="two dimensions"):
        open_matrix(str(tmp_path / "v.zarr"))
    file = max(path for path in (tmp_path / "v.zarr").rglob("*") if path.is_file() and not path.name.startswith((".", "z")))
    file.unlink()
    with pytest.raises(InputError, match="missing"):
        v.check()
    with pytest.raises(InputError, match="missing"):
        v.read(60, 90)


def test_vectors_in_memory_are_columns() -> None:
    import dask.array

    for vector in (np.arange(5.0), dask.array.arange(5.0, chunks=2)):
        v = open_matrix(vector, vectors=True)
        assert (v.shape, v.is_vector) == ((5, 1), True)
        np.testing.assert_array_equal(v.read(1, 5), np.arange(1.0, 5.0)[:, None])
        with pytest.raises(InputError, match="two dimensions"):
            open_matrix(vector)
