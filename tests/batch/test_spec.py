"""Specs: what is accepted, and what a wrong one is told."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from dlscale.batch.kinds import KINDS
from dlscale.batch.spec import json_schema, load_spec, to_data
from dlscale.declaration.kind import Kind
from dlscale.errors import SpecError
from dlscale.linalg.svd import SVDOptions
from dlscale.storage.importers.options import ReadOptions

HEAD = "kind: pca\ninput: {matrix: a.zarr}\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (HEAD + "params:\n  n_componets: 4\n", ["job.yaml:4", "params.n_componets", "did you mean n_components?", "whiten"]),
        (HEAD + "outptu: x\n", ["job.yaml:3", "outptu", "did you mean output?"]),
        (HEAD + "params: {n_components: many}\n", ["job.yaml:3", "params.n_components", "got 'many' (text)", "an integer"]),
        (HEAD + "params: {n_components: 1.5}\n", ["params.n_components", "got 1.5", "between 0 and 1"]),
        (HEAD + "params: {n_components: 0}\n", ["params.n_components", "got 0"]),
        (HEAD + "params: {scores: 1}\n", ["params.scores", "got 1 (an integer)", "true or false"]),
        (HEAD + "params: {solver: best}\n", ["params.solver", "got 'best'", "covariance"]),
        (HEAD + "params:\n", ["params", "got nothing"]),
        (HEAD + "cluster: yarn\n", ["job.yaml:3", "cluster", "got 'yarn'", "tcp://"]),
        (HEAD + "cluster: {memory: lots}\n", ["cluster.memory", "got 'lots'", "4GB"]),
        (HEAD + "cluster: {memory: 4}\nstall: 1GB\n", ["stall", "got '1GB'", "30min"]),
        (HEAD + "checkpoint: {every: soon}\n", ["checkpoint.every", "got 'soon'", "10min"]),
        (HEAD + "name: a/b\n", ["name", "got 'a/b'", "letters"]),
        ("kind: pca\ninput: {matrix: {import: 'sample:photos', patchs: 8}}\n", ["job.yaml:2", "input.matrix.patchs", "patches?"]),
        ("kind: pca\ninput: {matrix: {patches: 8}}\n", ["input.matrix.import", "missing"]),
        ("kind: pca\ninput: {matrix: 4}\n", ["input.matrix", "got 4", "path or URL"]),
        ("kind: pca\n", ["job.yaml", "input", "missing"]),
        ("kind: pac\ninput: {matrix: a.zarr}\n", ["job.yaml:1", "kind", "got 'pac'", "svd, pca, lu"]),
        ("input: {matrix: a.zarr}\n", ["kind", "missing"]),
    ],
)
def test_an_error_names_line_key_got_and_allowed(text: str, words: list[str], tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(text)
    with pytest.raises(SpecError) as caught:
        load_spec(job)
    for word in words:
        assert word in str(caught.value)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(HEAD + "params: {seed: x}\nname: 3\n")
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_a_job_file_makes_the_options_that_python_makes(kind: Kind) -> None:
    example = {"kind": kind.name, "input": {role.name: "a.zarr" for role in kind.roles if not role.optional}}
    assert kind.options(**load_spec(example).option_values()) == kind.options()


@pytest.mark.parametrize(
    ("kind", "option", "value"),
    [
        ("svd", "n_components", 0),
        ("svd", "tolerance", 1.0),
        ("svd", "power_iterations", 101),
        ("pca", "n_components", 1.5),
        ("pca", "solver", "streaming"),
        ("lu", "panel", 0),
        ("qr", "mode", "full"),
        ("solve", "assume", "spd"),
        ("lstsq", "rcond", -0.5),
        ("inverse", "assume", None),
        ("train", "epochs", True),
        ("predict", "block_rows", "all"),
        ("covariate_weights", "cap", float("nan")),
    ],
)
def test_a_bound_is_told_in_one_text_wherever_it_is_broken(kind: str, option: str, value: Any) -> None:
    inputs = {role.name: "a.zarr" for role in KINDS[kind].roles if not role.optional}
    with pytest.raises(SpecError) as in_a_file:
        load_spec({"kind": kind, "input": inputs, "params": {option: value}})
    with pytest.raises(SpecError) as in_python:
        KINDS[kind].options(**{option: value})
    assert str(in_a_file.value) == f"spec: params.{in_python.value}"
    assert "allowed: " in str(in_python.value)


def test_options_take_the_numbers_of_numpy() -> None:
    options = SVDOptions(n_components=np.int64(3), tolerance=None, seed=np.uint8(1))  # type: ignore[arg-type]
    assert options == SVDOptions(n_components=3, seed=1)
    assert type(options.n_components) is int


def test_sizes_and_durations() -> None:
    data: dict[str, Any] = {"kind": "svd", "input": {"matrix": "a.zarr"}, "cluster": {"memory": "1.5GiB"}, "stall": "1.5h"}
    spec = load_spec(data | {"checkpoint": {"every": "10min"}})
    assert not isinstance(spec.cluster, str)
    assert (spec.cluster.memory, spec.stall, spec.checkpoint.every) == (1610612736, 5400.0, 600.0)


@pytest.mark.parametrize(("kind", "names"), [("qr", ["panel", "row_blocks", "block_rows"]), ("svd", ["block_rows"])])
def test_auto_leaves_a_size_to_the_planner(kind: str, names: list[str]) -> None:
    given = {"kind": kind, "input": {"matrix": "a.zarr"}}
    assert load_spec(given | {"params": dict.fromkeys(names, "auto")}) == load_spec(given)
    with pytest.raises(SpecError, match="or auto"):
        load_spec(given | {"params": {names[0]: "some"}})


def test_data_means_the_same_from_any_folder() -> None:
    spec = load_spec({"kind": "qr", "input": {"matrix": Path("a.zarr")}, "output": "out.zarr"})
    data = to_data(spec)
    assert data == {"kind": "qr", "input": {"matrix": os.path.abspath("a.zarr")}, "output": os.path.abspath("out.zarr")}
    assert to_data(load_spec(data)) == data
    remote = to_data(load_spec({"kind": "qr", "input": {"matrix": {"import": "s3://bucket/a.npy"}}}))
    assert remote["input"]["matrix"] == {"import": "s3://bucket/a.npy"}


def test_schema_and_parser_take_the_same_signs_for_quotation_marks() -> None:
    """What is a blank is another thing to each that reads a pattern."""
    takes = Draft202012Validator(ReadOptions.model_json_schema()).is_valid
    for sign in map(chr, (*range(0x300), 0x180E, *range(0x2000, 0x2070), 0x3000, 0xFEFF)):
        try:
            ReadOptions(quote=sign, comment="#" if sign != "#" else "!")
            taken = True
        except ValidationError as error:
            taken = any(fault["type"] == "rule" for fault in error.errors())
        assert takes({"quote": sign}) == taken, hex(ord(sign))
        assert not (taken and (sign.isspace() or sign == "\ufeff"))


def test_the_schema_tells_kinds_apart() -> None:
    schema = json_schema()
    assert set(schema["discriminator"]["mapping"]) == set(KINDS)
    assert "n_components" in schema["$defs"]["PCAParams"]["properties"]


def test_a_name_alone_stands_for_the_section_with_that_type():
    job = {"kind": "train", "input": {"features": "x.zarr", "targets": "y.zarr"}}
    names = {"model": "linear", "loss": "squared", "optimizer": "sgd", "schedule": "constant"}
    short, long = load_spec({**job, **names}), load_spec({**job, **{key: {"type": name} for key, name in names.items()}})
    assert short == long
    assert to_data(short) == to_data(long)
    with pytest.raises(SpecError, match=r"spec:3: loss.type: got 'cross' \(text\); allowed: squared, huber"):
        load_spec("kind: train\ninput: {features: x, targets: y}\nloss: cross\n")
