"""Systems by iterations: the true residual holds or the job fails and says how it ended; the same bits after any stop."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from eigenproblems import with_eigenvalues
from helpers import DTYPES, Array, eps, gaussian, store, wide_precision
from linear_systems import N, computed, definite, hard_systems, relative, resumed_or_whole

import dlscale
from dlscale.batch.assumed import AssumedMatrix
from dlscale.engine.clusters import ClusterFacts
from dlscale.errors import InputError, NumericalError, SpecError
from dlscale.linalg.iterative import stored
from dlscale.linalg.solve.kind import KIND, SolveOptions
from dlscale.storage.inputs import Inputs


@pytest.mark.parametrize("dtype", DTYPES)
def test_conjugate_gradients_in_every_precision(dtype: str) -> None:
    A = definite(100).astype(dtype)
    if A.dtype.kind == "c":
        phases = np.exp(1j * np.arange(N)).astype(dtype)
        A = phases[:, None] * A * phases.conj()
        A = (A + A.conj().T) / 2
    B = gaussian(N, 3, dtype)
    here = computed(A, B, method="cg")
    assert here.arrays["x"].dtype == A.dtype
    assert relative(A, here.arrays["x"], B) <= eps(A) ** 0.5
    estimates = here.outcome.estimates
    assert estimates["ended"] == "converged"
    assert estimates["true_residual"] == pytest.approx(relative(A, here.arrays["x"], B), rel=0.01)
    assert len(here.arrays["history/residual"]) == estimates["iterations"]
    assert here.arrays["history/true_residual"][-1].tolist() == [estimates["iterations"], estimates["true_residual"]]


@pytest.mark.parametrize(("scale", "rhs_scale"), [(1e-250, 1.0), (1e200, 1e-30), (1e-150, 1e-160), (1.0, 1e300)])
def test_any_scale(scale: float, rhs_scale: float) -> None:
    A, b = definite(100), gaussian(N, 1)[:, 0]
    x = computed(A, b, method="cg", tolerance=1e-9).arrays["x"]
    np.testing.assert_allclose(
        computed(A * scale, b * rhs_scale, method="cg", tolerance=1e-9).arrays["x"] * scale / rhs_scale, x, rtol=1e-6
    )


def test_a_complex_right_hand_side_of_a_real_matrix_and_one_of_zeros() -> None:
    A, B = definite(50), gaussian(N, 2, "c16")
    B[:, 1] = 0
    X = computed(A, B, method="cg", tolerance=1e-10).arrays["x"]
    assert relative(A, X, B) <= 1e-10
    assert not X[:, 1].any()


@pytest.mark.parametrize("preconditioner", ["jacobi", "block_jacobi"])
def test_preconditioners_save_iterations(preconditioner: Any) -> None:
    """A matrix that is graded, with strong neighbours within blocks of 64."""
    scales = np.geomspace(1, 1e3, N)
    A = scales[:, None] * with_eigenvalues(np.linspace(1, 3, N)) * scales
    B = gaussian(N, 2)
    here = computed(A, B, method="cg", preconditioner=preconditioner, tolerance=1e-10)
    assert relative(A, here.arrays["x"], B) <= 1e-10
    with pytest.raises(NumericalError, match="limit"):
        computed(A, B, method="cg", tolerance=1e-10, max_iterations=5 * here.outcome.estimates["iterations"])


@pytest.mark.parametrize(
    ("A", "b", "words"),
    [
        (definite(2) - 0.8 * np.eye(N), None, "ended not definite after"),
        (definite(1e9), None, r"at the limit of 200 iterations: the true residual is .* must be at most 1.0e-10"),
        (definite(1e3)[:40, :40] * 0, None, "broken down"),
        (np.diag(np.r_[np.arange(1.0, 40), 0.0]), np.ones(40), "broken down"),
    ],
    ids=["indefinite", "limit", "zeros", "singular"],
)  # fmt: skip
def test_what_does_not_converge_fails_in_a_sentence(A: Array, b: Array | None, words: str) -> None:
    with pytest.raises(NumericalError, match=words):
        computed(A, gaussian(len(A), 1) if b is None else b, method="cg", tolerance=1e-10, max_iterations=200)


@pytest.mark.parametrize("preconditioner", ["none", "block_jacobi"])
@pytest.mark.parametrize("method", ["cg", "minres", "gmres"])
def test_the_true_residual_holds_or_the_job_fails_and_says_how_it_ended(method: Any, preconditioner: Any) -> None:
    """For right-hand sides that have a solution and for those that may have none; most matrices are solved by one method."""
    n_solved, matrices = 0, hard_systems()
    for name, A in matrices.items():
        for B in (gaussian(len(A), 1), A @ gaussian(len(A), 1, seed=1)):
            said = ""
            try:
                here = computed(A, B, method=method, preconditioner=preconditioner, tolerance=1e-10, max_iterations=50)
            except (NumericalError, InputError) as error:
                said = str(error)
            else:
                assert relative(A, here.arrays["x"], B) <= 1e-10, name
                n_solved += 1
            allowed = "ended .*the true residual is|is not positive definite" + "|must be symmetric" * (method != "gmres")
            assert not said or re.search(allowed, said), name
    assert len(matrices) == 32
    assert n_solved >= {"cg": 10, "minres": 14, "gmres": 16}[method]


def test_what_is_not_symmetric_is_refused() -> None:
    A = definite(10)
    A[3, 4] += 1e-6
    with pytest.raises(InputError, match="must be symmetric"):
        computed(A, gaussian(N, 1), method="cg")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "direct", "tolerance": 1e-3}, "params.tolerance: goes with an iterative method"),
        ({"method": "direct", "preconditioner": "jacobi"}, "params.preconditioner"),
        ({"method": "cg", "precision": "mixed"}, "params.precision: goes with method direct"),
        ({"method": "cg", "panel": 64}, "params.panel"),
        ({"method": "cg", "tolerance": 1.5}, "tolerance"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        computed(definite(10), gaussian(N, 1), **options)


@pytest.mark.parametrize(
    ("options", "n", "memory", "method", "why"),
    [
        ({}, 20_000, 8e9, "panels", None),
        ({"assume": "pos"}, 20_000, 8e9, "panels", None),
        ({"assume": "pos", "tolerance": 1e-8}, 20_000, 8e9, "panels", None),
        ({"assume": "pos", "tolerance": 1e-8, "max_iterations": 10}, 20_000, 2e9, "cg", "10 iterations take at most half of"),
        ({"max_iterations": 10, "tolerance": 1e-8}, 20_000, 2e9, "gmres", "10 iterations take"),
        ({"max_iterations": 10, "tolerance": 1e-8, "assume": "sym"}, 20_000, 16e9, "minres", "10 iterations take"),
        ({"assume": "pos"}, 1_000_000, 2e9, "cg", "a factorization does not fit"),
        ({"tolerance": 1e-8}, 1_000_000, 2e9, "gmres", "a factorization does not fit"),
    ],
)
def test_auto_chooses_by_counted_cost_and_says_so(
    options: dict[str, Any], n: int, memory: float, method: str, why: str | None
) -> None:
    inputs = Inputs({"matrix": AssumedMatrix((n, n)), "rhs": AssumedMatrix((n, 1))})
    plan = KIND.plan(inputs, SolveOptions(**options), ClusterFacts("local", 1, 2, int(memory)))
    assert plan.method == method
    assert plan.peak_bytes_per_worker <= memory
    said = [note for note in plan.notes if "method auto" in note]
    assert [why is not None and why in note for note in said] == [True] * (why is not None)


@pytest.mark.parametrize(
    ("method", "stop_at"),
    [("cg", "survey"), ("cg", "product-17"), ("cg", "iteration-20"), ("minres", "iteration-20"), ("gmres", "iteration-20")],
)
def test_iterations_go_on_to_the_same_bits(method: str, stop_at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "KEPT_FLOPS", 10 * 2.0 * N * N * 2)
    path, rhs = store(tmp_path / "a.zarr", definite(20), chunks=(50, N)), store(tmp_path / "b.zarr", gaussian(N, 2), chunks=(N, 2))
    whole, every = resumed_or_whole(path, rhs, None, method)
    with pytest.raises(OSError, match="the disk is gone"):
        resumed_or_whole(path, rhs, tmp_path / "checkpoint", method, stop_at=stop_at)
    again, rest = resumed_or_whole(path, rhs, tmp_path / "checkpoint", method)
    assert again == whole
    assert len(rest) < len(every) or stop_at == "survey"


@pytest.mark.usefixtures("jobs_on_shared_clusters", "drawn_reports")
def test_a_job_on_worker_processes_has_the_same_bits_and_a_report(tmp_path: Path) -> None:
    store(tmp_path / "a.zarr", definite(10), chunks=(50, N))
    zarr.create_array(tmp_path / "b.zarr", shape=(N,), dtype="f8", chunks=(50,))[:] = gaussian(N, 1)[:, 0]
    found = []
    for cluster in ("threads", {"type": "local", "workers": 2, "threads": 1}):
        params = {"method": "cg", "preconditioner": "block_jacobi", "tolerance": 1e-6}
        places = {"matrix": str(tmp_path / "a.zarr"), "rhs": str(tmp_path / "b.zarr")}
        output = {"output": str(tmp_path / "x.zarr"), "overwrite": True}
        spec = {"kind": "solve", "input": places, "params": params, "cluster": cluster} | output
        result = dlscale.run(spec, workspace=tmp_path / "workspace")
        arrays = result.open()
        found.append(np.asarray(arrays["x"]).tobytes())
        page = (result.folder / "report.html").read_text()
        assert "Convergence" in page
        assert "True residual" in page
        assert np.asarray(arrays["history/true_residual"]).shape[1] == 2
    assert found[0] == found[1]


def test_a_function_with_the_arguments_of_scipy() -> None:
    A, b = definite(100), gaussian(N, 1)[:, 0]
    for solver in (dlscale.cg, dlscale.minres, dlscale.gmres):
        x, info = solver(A, b, rtol=1e-9, M="jacobi")
        assert info == 0
        assert x.shape == (N,)
        assert np.linalg.norm(b - wide_precision(A) @ x) <= 1e-9 * np.linalg.norm(b)
    with pytest.raises(NumericalError, match="at the limit of 3 iterations"):
        dlscale.cg(A, b, rtol=1e-9, maxiter=3)
