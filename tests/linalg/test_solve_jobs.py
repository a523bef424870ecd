"""Solves as jobs: on worker processes, with their results in Zarr, and going on from stored factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import zarr
from helpers import Array, gaussian, store

import dlscale
from dlscale import gallery
from dlscale.errors import InputError, NonFiniteError, NumericalError, SpecError

N = 90
Job = Any


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Runs a kind on arrays, in panels of 32."""

    def run(kind: str, inputs: dict[str, Any], cluster: Any = "threads", **params: Any) -> dict[str, Array]:
        places = {}
        for role, value in inputs.items():
            places[role] = str(value) if isinstance(value, Path) else str(_stored(tmp_path / f"{role}.zarr", value))
        output = tmp_path / f"{kind}-{len(list(tmp_path.iterdir()))}.zarr"
        spec = {"kind": kind, "input": places, "params": params, "output": str(output), "cluster": cluster}
        result = dlscale.run(spec, workspace=tmp_path / "workspace")
        assert result.certificate is not None
        assert result.certificate["passed"]
        assert result.result is not None
        return {"path": Path(result.result)} | {name: np.asarray(array) for name, array in result.open().items()}  # type: ignore[dict-item]

    return run


def _stored(path: Path, A: Array) -> Path:
    if A.ndim == 2:
        return path if path.exists() else store(path, A, chunks=(33, min(33, A.shape[1])), compressors=None)
    if not path.exists():
        zarr.create_array(path, shape=A.shape, dtype=A.dtype, chunks=(50,))[:] = A
    return path


@pytest.mark.usefixtures("jobs_on_shared_clusters")
def test_solve_on_worker_processes(job: Job) -> None:
    """The same bits as in this process."""
    A, b = gaussian(N, N), gaussian(N, 1)[:, 0]
    cluster = {"type": "local", "workers": 2, "threads": 1}
    x = job("solve", {"matrix": A, "rhs": b}, cluster, precision="mixed", panel=32)["x"]
    assert x.shape == (N,)
    np.testing.assert_allclose(x, np.linalg.solve(A, b), rtol=1e-9)
    np.testing.assert_array_equal(job("solve", {"matrix": A, "rhs": b}, precision="mixed", panel=32)["x"], x)


@pytest.mark.parametrize(
    ("role", "spoilt"),
    [
        ("rhs", lambda S, b: dlscale.solve(S, b)),
        ("rhs", lambda S, b: dlscale.solve(S, b, assume="sym")),
        ("rhs", lambda S, b: dlscale.solve_triangular(np.tril(S), b, lower=True)),
        ("rhs", lambda S, b: dlscale.lu(S).solve(b)),
        ("rhs", dlscale.cg),
        ("rhs", dlscale.gmres),
        ("rhs", lambda S, b: dlscale.lstsq(S[:, :3], b)),
        ("rhs", lambda S, b: dlscale.lstsq(S[:20], b[:20])),
        ("rhs", lambda S, b: dlscale.ridge(S[:, :3], b, penalties=[1.0, 2.0])),
        ("targets", lambda S, b: dlscale.kernel_ridge(S[:, :3], b, penalties=[1.0, 2.0])),
        ("features", lambda S, b: dlscale.kernel_ridge(np.c_[b, S[:, 0]], S[:, 1], penalties=[1.0, 2.0])),
    ],
)
def test_the_input_that_holds_no_number_is_named(role: str, spoilt: Any) -> None:
    """A right-hand side and its matrix have the same rows: without its name the place says little."""
    b = np.ones(30)
    b[7] = np.nan
    with pytest.raises(NonFiniteError, match=rf"^input\.{role} contains NaN or infinity: nan at row 7, column 0\."):
        spoilt(gallery.positive_definite(30), b)


@pytest.mark.parametrize("kind", ["lu", "cholesky"])
def test_stored_factors_are_used_again(kind: str, job: Job, tmp_path: Path) -> None:
    A, B = gallery.positive_definite(N), gaussian(N, 3)
    factors = job(kind, {"matrix": A}, panel=32)
    x = job("solve", {"matrix": A, "rhs": B, "factors": factors["path"]})["x"]
    np.testing.assert_allclose(x, np.linalg.solve(A, B), rtol=1e-9)
    if kind == "lu":
        np.testing.assert_allclose(scipy.linalg.lu_solve((factors["lu"], factors["piv"]), B), x, rtol=1e-9)
    events = [path.read_text() for path in (tmp_path / "workspace" / "jobs").glob("solve*/events.jsonl")]
    assert events
    assert "factors-1" not in events[0]


def test_stored_factors_of_another_matrix(job: Job, tmp_path: Path) -> None:
    """Of another order they are refused; else their products show that they do not belong to the matrix, and it is factored."""
    factors = job("lu", {"matrix": gaussian(N, N)}, panel=32)["path"]
    small = store(tmp_path / "small.zarr", gaussian(50, 50), chunks=(50, 50))
    with pytest.raises((SpecError, InputError), match="order 50"):
        job("solve", {"matrix": small, "rhs": gaussian(50, 1), "factors": factors})
    other, B = gaussian(N, N, seed=5), gaussian(N, 2)
    places = {"matrix": store(tmp_path / "c.zarr", other, chunks=(N, N)), "rhs": store(tmp_path / "d.zarr", B, chunks=(N, 2))}
    found = job("solve", places | {"factors": factors}, panel=32)
    np.testing.assert_allclose(found["x"], np.linalg.solve(other, B), rtol=1e-8)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_stored_factors_of_a_matrix_nearby_tell_nothing_of_the_condition(job: Job, dtype: str, tmp_path: Path) -> None:
    """The matrix has a null vector, its neighbour has none; in single precision the two differ by hardly more than rounding."""
    U, s, Vh = np.linalg.svd(gaussian(N, N))
    s[-1] = 1e-6 * s[0] if dtype == "f4" else s[-1]
    near = store(tmp_path / "near.zarr", ((U * s) @ Vh).astype(dtype), chunks=(N, N))
    factors = job("lu", {"matrix": near}, panel=32)["path"]
    A = (U[:, :-1] * s[:-1]) @ Vh[:-1]
    places = {"matrix": store(tmp_path / "c.zarr", A, chunks=(N, N)), "rhs": store(tmp_path / "d.zarr", A.sum(axis=1), chunks=(N,))}
    path = job("solve", places | {"factors": factors}, panel=32)["path"]
    said = dict(zarr.open_group(path).attrs)["dlscale"]
    assert said["estimates"]["condition"] > 1e14
    assert said["estimates"]["forward_error_bound"] is None
    assert any("nearly singular" in note for note in said["notes"])


def test_stored_factors_that_do_not_fit_are_refused_by_name(job: Job, tmp_path: Path) -> None:
    A, b = gaussian(N, N), gaussian(N, 1)
    factors = job("lu", {"matrix": A + 1j * A.T})["path"]
    inputs = {"matrix": store(tmp_path / "a.zarr", A, chunks=(N, N)), "rhs": store(tmp_path / "b.zarr", b, chunks=(N, 1))}
    with pytest.raises(InputError, match=r"input\.factors: must be of a real matrix"):
        job("solve", inputs | {"factors": factors})
    zarr.open_array(factors / "piv", mode="r+")[-1] = N
    with pytest.raises(InputError, match=f"piv must hold the {N} row numbers"):
        job("solve", inputs | {"factors": factors})


def test_lstsq_inverse_slogdet(job: Job) -> None:
    A, b = gaussian(N, N), gaussian(N, 1)[:, 0]
    np.testing.assert_allclose(job("inverse", {"matrix": A}, panel=32)["inverse"] @ A, np.eye(N), atol=1e-10)
    determinant = job("slogdet", {"matrix": A}, panel=32)
    sign, logarithm = np.linalg.slogdet(A)
    assert determinant["sign"][0] == sign
    assert determinant["logabsdet"][0] == pytest.approx(logarithm)
    np.testing.assert_allclose(job("lstsq", {"matrix": A, "rhs": b})["x"], np.linalg.solve(A, b), rtol=1e-8)


def test_a_singular_matrix_fails_with_its_step(job: Job) -> None:
    with pytest.raises(NumericalError, match="pivot of step 8"):
        job("solve", {"matrix": gallery.singular_at(N, 7), "rhs": np.ones(N)})


def test_functions() -> None:
    A, b = gaussian(60, 60), gaussian(60, 1)[:, 0]
    expected = np.linalg.solve(A, b)
    np.testing.assert_allclose(dlscale.solve(A, b), expected, rtol=1e-9)
    np.testing.assert_allclose(dlscale.solve(A, b, precision="mixed"), expected, rtol=1e-9)
    np.testing.assert_allclose(dlscale.inverse(A), np.linalg.inv(A), rtol=1e-8)
    assert dlscale.slogdet(A) == pytest.approx(np.linalg.slogdet(A))
    found, reference = dlscale.lstsq(A[:, :7], b), np.linalg.lstsq(A[:, :7], b)
    np.testing.assert_allclose(found.x, reference[0], rtol=1e-9)
    np.testing.assert_allclose(found.residuals, reference[1])
    assert found.rank == reference[2]
    np.testing.assert_allclose(found.s, reference[3])
