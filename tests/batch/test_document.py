"""Job files as data: lines of keys, plain values only, overrides."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from dlscale.batch.document import parse_scalar, parse_yaml, read_document, set_value
from dlscale.errors import SpecError


def test_each_key_has_its_line() -> None:
    document = parse_yaml("kind: svd\nparams:\n  seed: 3\n  sizes: [1, 2]\n", "job.yaml")
    assert document.data == {"kind": "svd", "params": {"seed": 3, "sizes": [1, 2]}}
    assert document.where(("params", "seed")) == "job.yaml:3"
    assert document.where(("params", "absent")) == "job.yaml:2"
    assert document.where(("absent",)) == "job.yaml"


@pytest.mark.parametrize(
    ("text", "value"), [("1e-6", 1e-6), ("2E3", 2000.0), ("4GB", "4GB"), ("2024-01-01", "2024-01-01"), ("true", True)]
)
def test_scalars_are_what_people_mean(text: str, value: object) -> None:
    assert parse_yaml(f"x: {text}\n", "job.yaml").data == {"x": value}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-007", -7),
        ("0o10", 8),
        ("0x1F", 31),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("no", "no"),
        ("On", "On"),
        ("y", "y"),
        ("TRUE", True),
        ("~", None),
        ("", None),
        ("'010'", "010"),
        (".5", 0.5),
        ("5.", 5.0),
        ("+1.5e+3", 1500.0),
        ("-.INF", -math.inf),
        ("2001-12-14t21:59:43.10-05:00", "2001-12-14t21:59:43.10-05:00"),
        ("=", "="),
        ("<<", "<<"),
    ],
)
def test_words_mean_what_yaml_1_2_says(text: str, value: object) -> None:
    data = parse_yaml(f"x: {text}\n", "job.yaml").data["x"]
    assert (data, type(data)) == (value, type(value))
    assert parse_scalar(text, "--set x") == value


def test_a_key_is_text() -> None:
    assert parse_yaml("1: a\ntrue: b\n<<: {c: d}\n~: e\n", "job.yaml").data == {"1": "a", "true": "b", "<<": {"c": "d"}, "~": "e"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: !!python/object/apply:os.system [ls]\n", ["job.yaml:1", "tag"]),
        ("a: &x 1\nb: *x\n", ["job.yaml", "anchors"]),
        ("a: 1\na: 2\n", ["job.yaml:2", "'a'", "twice"]),
        ("- 1\n", ["mapping", "got a list"]),
        ("a: [1,\n", ["job.yaml:2", "YAML"]),
        ("? [1, 2]\n: 3\n", ["a key must be a word"]),
        ("a: {" * 3000, ["deeply"]),
        ("x: 1\na: &b 1\n", ["job.yaml:2", "anchors"]),
        ("x: 1\na: !!int 3\n", ["job.yaml:2", "tags"]),
        ("x: 1\na: ! 3\n", ["job.yaml:2", "tags"]),
        ("x: 1\na: 1\n'a': 2\n", ["job.yaml:3", "twice"]),
        ("x: 1\na: {b: 1, b: 2}\n", ["job.yaml:2", "twice"]),
        ('x: 1\na: "b\\0c"\n', ["job.yaml:2", "NUL"]),
        ('x: 1\na: "\\ud800"\n', ["job.yaml:2", "surrogate"]),
        ('a: "\\U00110000"\n', ["job.yaml", "YAML"]),
        ("x: 1\na: \x00\n", ["job.yaml:2", "0x0"]),
        ("x: 1\na: " + "9" * 5000 + "\n", ["job.yaml:2", "digits"]),
        ("x: 1\na: " + "9" * 40 + "\n", ["job.yaml:2", "2^64"]),
        ("a: 1\n---\nb: 2\n", ["job.yaml", "YAML"]),
    ],
)
def test_anything_but_plain_data_is_refused(text: str, words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_yaml(text, "job.yaml")
    for word in words:
        assert word in str(caught.value)


def test_overrides_reach_into_sections_and_make_them() -> None:
    document = read_document({"kind": "svd"}, ["params.tolerance=1e-3", "cluster.memory=4GB", "params.n_components="])
    assert document.data == {
        "kind": "svd",
        "params": {"tolerance": 1e-3, "n_components": None},
        "cluster": {"type": "local", "memory": "4GB"},
    }
    assert document.where(("params", "tolerance")) == "--set params.tolerance"


@pytest.mark.parametrize("override", ["params", "=3", "params..seed=1", "kind.x=1"])
def test_a_bad_override_is_named(override: str) -> None:
    with pytest.raises(SpecError, match="--set"):
        read_document({"kind": "svd"}, [override])


def test_setting_a_value_leaves_the_document_alone() -> None:
    document = read_document({"params": {"seed": 1}})
    assert set_value(document, ["params", "seed"], 2, "here").data == {"params": {"seed": 2}}
    assert document.data == {"params": {"seed": 1}}


def test_a_long_file_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    long = tmp_path / "long.yaml"
    long.write_text("# " + "x" * 1_000_001)
    with pytest.raises(SpecError, match="at most"):
        read_document(long)
    with pytest.raises(SpecError, match="no such file"):
        read_document(tmp_path / "absent.yaml")


@pytest.mark.parametrize("source", ["/dev/zero", "a\0b", "x" * 5000, "/", "/proc/self/mem"])
def test_what_is_no_file_is_refused_at_once(source: str) -> None:
    with pytest.raises(SpecError):
        read_document(source)
