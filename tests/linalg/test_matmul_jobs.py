"""Products and norms as jobs: refused with their place in the file, planned for a shape alone, read back as they were written."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
import zarr
from click.testing import CliRunner
from helpers import gaussian, store

import dlscale
from dlscale.cli.main import commands
from dlscale.errors import DlscaleError, InputError, NonFiniteError, SpecError
from dlscale.storage import writers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    broken = gaussian(30, 20, seed=2)
    broken[11, 3] = np.inf
    for name, A in {"a": gaussian(40, 30), "b": gaussian(30, 20, seed=1), "broken": broken}.items():
        store(tmp_path / f"{name}.zarr", A, chunks=(7, 9))
    return tmp_path


def run(folder: Path, given: dict[str, str], kind: str = "matmul", **params: Any) -> Any:
    places = {role: str(folder / f"{name}.zarr") for role, name in given.items()}
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({"kind": kind, "input": places, "params": params, "cluster": "threads"}))
    return dlscale.run(path, workspace=folder / "ws")


@pytest.mark.usefixtures("drawn_reports")
def test_a_product_is_read_back_in_tiles(folder: Path) -> None:
    result = run(folder, {"a": "a", "b": "b"}, tile=16)
    product = zarr.open_array(Path(result.result) / "product", mode="r")
    np.testing.assert_allclose(product[:], gaussian(40, 30) @ gaussian(30, 20, seed=1), rtol=1e-12, atol=1e-12)
    assert product.chunks == (14, 10)
    assert "The product A B of a.zarr" in (result.folder / "report.html").read_text()
    (check,) = result.certificate["checks"]
    assert check["passed"]
    assert check["threshold"] == 1


@pytest.mark.parametrize("given", [{"a": "wide", "b": "tall"}, {"a": "wide"}])
def test_a_large_product_is_written_and_checked_past_the_page_cache(
    on_disk: Path, given: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the same bits; where its chunks are whole pages, and a tile below the diagonal is the adjoint of one above."""
    store(on_disk / "wide.zarr", gaussian(1024, 96), chunks=(64, 96))
    store(on_disk / "tall.zarr", gaussian(96, 1024, seed=1), chunks=(96, 64))
    params = {} if len(given) == 2 else {"adjoint_b": True}
    usual = run(on_disk, given, tile=512, **params)
    direct: set[str] = set()

    def counting(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(fd: int, data: Any, *more: Any) -> Any:
            if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                direct.add(name)
            return call(fd, data, *more)

        return counted

    monkeypatch.setattr(writers, "_ONCE_BYTES", 0)
    monkeypatch.setattr(os, "write", counting("written", os.write))
    monkeypatch.setattr(os, "preadv", counting("read", os.preadv))
    past = run(on_disk, given, tile=512, **params)
    assert direct == {"read", "written"}
    products = [zarr.open_array(Path(result.result) / "product", mode="r")[:] for result in (usual, past)]
    assert products[0].tobytes() == products[1].tobytes()


#: Inputs and params, the error, and what it says.
REFUSED: dict[str, tuple[dict[str, str], dict[str, Any], type[DlscaleError], str]] = {
    "shapes that do not fit": (
        {"a": "b", "b": "a"},
        {},
        SpecError,
        r"job\.yaml:\d+: input\.b: must have 20 rows, as many as input\.a",
    ),
    "no second matrix": ({"a": "a"}, {}, SpecError, r"job\.yaml:\d+: input\.b: missing; without it the product is A\^H A"),
    "no number": ({"a": "a", "b": "broken"}, {}, NonFiniteError, r"input\.b contains NaN or infinity: inf at row 11, column 3"),
    "no matrix": ({"a": "a", "b": "nothing"}, {}, InputError, r"job\.yaml:\d+: input\.b: "),
    "another name": ({"a": "a", "b": "b"}, {"transpose_a": True}, SpecError, r"params\.transpose_a: unknown key"),
    "no first matrix": ({"b": "b"}, {"adjoint_b": True}, SpecError, r"input\.a: missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_multiplied_is_refused_in_a_sentence(name: str, folder: Path) -> None:
    given, params, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        run(folder, given, **params)


def test_a_norm_is_asked_for_by_a_number_or_a_word(folder: Path) -> None:
    for given, expected in ((1, 1), (float("inf"), np.inf), ("fro", "fro"), (2, 2)):
        result = run(folder, {"matrix": "a"}, "norm", ord=given)
        assert np.asarray(result.open()["norm"])[0] == pytest.approx(np.linalg.norm(gaussian(40, 30), expected), rel=1e-13)
    with pytest.raises(SpecError, match=r"job\.yaml:\d+: params\.ord: got 3 \(an integer\); allowed: fro"):
        run(folder, {"matrix": "a"}, "norm", ord=3)


def test_a_product_is_planned_for_a_shape_alone(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text("{kind: matmul, input: {a: none.zarr, b: none-either.zarr}, params: {adjoint_a: true}}")
    done = CliRunner().invoke(
        commands, ["plan", str(path), "--shape", "100000x100000", "--workers", "4", "--worker-memory", "4GB", "--json"]
    )
    assert done.exit_code == 0, done.output
    plan = yaml.safe_load(done.stdout)
    assert plan["flops"] == pytest.approx(2e15, rel=0.01)
    assert plan["peak_bytes_per_worker"] <= 4e9
