"""All eigenpairs by division of the spectrum: of hard spectra, of one that no worker holds, and after any stop."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from eigenproblems import wilkinson, with_eigenvalues
from helpers import DTYPES, THREADS, Array, departure, eps, gaussian, norm, wide_precision

from dlscale.engine import costs
from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.events import StepFinished, StepStarted
from dlscale.engine.run import Run
from dlscale.errors import DlscaleError, DoesNotFitError, InputError, NonFiniteError, SpecError
from dlscale.linalg.eigen import kind as eigh
from dlscale.linalg.eigen.division import splitting
from dlscale.linalg.eigen.kind import EighOptions, compute_eigh, plan_eigh
from dlscale.linalg.polar import kind as polar
from dlscale.linalg.polar.start import AtRest
from dlscale.storage import chunk_files
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix
from dlscale.storage.results import ResultGroup

N, LARGEST = 72, 25
RNG = np.random.default_rng(0)
#: What each is hard for is in its name.
SPECTRA: dict[str, Array] = {
    "random": RNG.standard_normal(N),
    "two values": np.repeat([1.0, 2.0], [54, 18]),
    "three values, one of them zero": np.repeat([-1.0, 0.0, 2.0], [30, 30, 12]),
    "a cluster that no worker holds": np.r_[np.linspace(-1, 0.4, 32), 0.5 + 1e-9 * RNG.standard_normal(40)],
    "a cluster within rounding": np.r_[np.linspace(-1, 0.4, 32), 0.5 + 1e-16 * RNG.standard_normal(40)],
    "all in a cluster": 1 + 1e-10 * RNG.standard_normal(N),
    "one outlier": np.r_[-5.0, np.ones(N - 1)],
    "graded": np.geomspace(1e-30, 1, N),
    "most of it below rounding": np.r_[1e-20 * RNG.standard_normal(50), np.linspace(1, 2, N - 50)],
    "as large on both sides": np.r_[-np.geomspace(1e-3, 1, N // 2), np.geomspace(1e-3, 1, N // 2)],
}
MATRICES: dict[str, Array] = {
    "zeros": np.zeros((N, N)),
    "a multiple of the identity": -3.0 * np.eye(N),
    "diagonal": np.diag(RNG.standard_normal(N)),
    "diagonal, with repeated entries": np.diag(RNG.integers(0, 3, N).astype(float)),
    "blocks": np.kron(np.diag([1.0, 2.0, 2.0]), with_eigenvalues(np.linspace(0, 1, N // 3))),
    "an exchange": np.eye(N)[::-1].copy(),
    "ones": np.ones((N, N)),
    "wilkinson": wilkinson(N),
    "out of the range of squares": 1e300 * with_eigenvalues(RNG.standard_normal(N)),
}


def run(A: Any, *, largest: int = LARGEST, job: Run | None = None, **options: Any) -> tuple[Any, Array, Array]:
    """With parts of so many rows to LAPACK."""
    source, chosen = open_matrix(A), EighOptions(method="divided", **options)
    plan = replace(plan_eigh(source, chosen, THREADS), choices={"largest": largest})
    if job is not None:
        outcome = compute_eigh(job, source, chosen, plan)
        return outcome, outcome.arrays["eigenvalues"], np.zeros(0)
    with open_cluster(THREADS) as cluster:
        own = Run(cluster)
        outcome = compute_eigh(own, source, chosen, plan)
    return outcome, outcome.arrays["eigenvalues"], own.outputs["eigenvectors"]


def check(A: Array, outcome: Any, w: Array, V: Array) -> None:
    assert outcome.certificate.passed, outcome.certificate
    assert outcome.estimates["complete"] is True
    assert V.dtype == A.dtype
    scale = float(np.abs(A).max()) or 1.0
    A, w = wide_precision(A) / scale, w.astype(float) / scale
    size, limit = max(norm(A), np.finfo(float).tiny), 30 * len(A) * eps(V)
    assert (np.diff(w) >= 0).all()
    assert departure(V) <= limit
    assert norm(A @ V - V * w) <= limit * size
    assert np.abs(w - np.linalg.eigvalsh(A)).max() <= limit / 3 * size
    distances = np.abs(w[:, None] - np.linalg.eigvalsh(A)).min(axis=1)
    assert (distances <= outcome.arrays["residuals"] / scale + len(A) * np.finfo(float).eps * size).all()


@pytest.mark.parametrize("name", SPECTRA)
def test_hard_spectra(name: str) -> None:
    A = with_eigenvalues(SPECTRA[name])
    check(A, *run(A))


@pytest.mark.parametrize("name", MATRICES)
def test_structured_matrices(name: str) -> None:
    check(MATRICES[name], *run(MATRICES[name]))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *(("random", dtype) for dtype in DTYPES if dtype != "f8"),
        ("two values", "c16"),
        *((name, "f4") for name in ("a cluster within rounding", "graded", "most of it below rounding")),
    ],
)
def test_other_precisions(name: str, dtype: str) -> None:
    A = with_eigenvalues(SPECTRA[name], dtype)
    check(A, *run(A))


def test_projections_are_taken_again_where_random_vectors_are_badly_conditioned(monkeypatch: pytest.MonkeyPatch) -> None:
    A = with_eigenvalues(SPECTRA["random"])
    monkeypatch.setattr(splitting, "_SHARP", 0.0)
    check(A, *run(A))


def test_a_place_that_hits_an_eigenvalue_is_left_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    A = np.diag(np.r_[np.zeros(30), np.ones(N - 30)])  # divided near 1, where they are 0 and 0.5
    monkeypatch.setattr(splitting.Density, "cuts", lambda self, n_cuts, eps: np.array([0.0, 0.5, 0.25]))
    check(A, *run(A, largest=50))
    monkeypatch.setattr(splitting.Density, "cuts", lambda self, n_cuts, eps: np.array([0.0, 0.5]))
    with pytest.raises(DlscaleError, match="cannot be divided"):
        run(A, largest=50)


class StoppedError(Exception):
    """What a listener raises to stop a job."""


def through(A: Array, folder: Path, stops: list[str], computed: Counter[str]) -> tuple[Any, Array, Array]:
    """A job with files, begun again after each stop; what it computed is counted by steps."""

    def stopping(event: Any) -> None:
        if isinstance(event, StepFinished) and not event.resumed:
            computed[event.step] += 1
        if stops and (
            (isinstance(event, StepFinished) and event.step == stops[0] and not event.resumed)
            or (isinstance(event, StepStarted) and f"{event.step} begins" == stops[0])
        ):
            stops.pop(0)
            raise StoppedError

    while True:
        group = ResultGroup(folder / "result.zarr")
        with open_cluster(THREADS) as cluster:
            job = Run(cluster, checkpoint=Checkpoint(folder / "checkpoint.zarr"), result=group, emit=stopping)
            try:
                outcome, w, _ = run(A, largest=40, job=job)
                break
            except StoppedError:
                group.close()
    vectors = np.asarray(zarr.open_group(group.publish({}), mode="r")["eigenvectors"])
    group.close()
    return outcome, w, vectors


def test_stopped_anywhere_it_ends_with_the_same_bits(tmp_path: Path) -> None:
    A = with_eigenvalues(SPECTRA["random"])
    _, w, V = through(A, tmp_path / "whole", [], Counter())
    #: Within the polar factor, between it and the halves, in a half, between halves, and in the product of their vectors.
    stops = ["0-iterate-2", "0-z", "0-low", "split-1", "a-pairs-1", "b-eigenpairs", "v", "pairs-1 begins", "images"]
    computed = Counter[str]()
    outcome, again, vectors = through(A, tmp_path / "stopped", stops, computed)
    assert not stops
    assert again.tobytes() == w.tobytes()
    # An iteration that has ended is not repeated, though its iterates are removed.
    assert {n for step, n in computed.items() if "newton-" in step} == {1}
    assert vectors.tobytes() == V.tobytes()
    check(A, outcome, again, vectors)
    # What is read no more is removed.
    assert [path.name for path in (tmp_path / "stopped" / "checkpoint.zarr" / "scratch").iterdir()] == ["zarr.json"]


def test_what_no_worker_holds_is_divided() -> None:
    A = AtRest((20_000, 20_000), np.dtype(float))
    plan = plan_eigh(A, EighOptions(), ClusterFacts("local", 1, 2, 2 * 10**9))
    assert plan.method == "divided"
    assert plan.peak_bytes_per_worker <= 2e9
    assert 40 < plan.flops / 20_000**3 < 55
    # What is read no more is removed: of all that is written there is less at a time.
    assert plan.disk_bytes == 28_800_000_000 < plan.bytes_written / 3
    assert plan_eigh(A, EighOptions(), ClusterFacts("local", 1, 2, 16 * 10**9)).method == "direct"


def test_without_files_it_is_not_begun() -> None:
    A = open_matrix(np.lib.stride_tricks.as_strided(np.zeros(1), (20_000, 20_000), (0, 0)))
    facts = ClusterFacts("threads", 1, 2, 4 * 10**9)
    for kind, options, words in ((eigh, eigh.EighOptions(), "22.40 GB"), (polar, polar.PolarOptions(), "19.20 GB")):
        plan = kind.KIND.plan(Inputs({"matrix": A}), options, facts)
        with open_cluster(facts) as cluster, pytest.raises(DoesNotFitError, match=f"{words}, and this process has 4.00 GB; run"):
            kind.KIND.compute(Run(cluster), Inputs({"matrix": A}), options, plan)


@pytest.mark.parametrize("chunks", [(16, 600), (600, 16), (100, 100)])
def test_no_more_is_read_of_the_matrix_than_was_planned(
    chunks: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matrix stored by rows, whose mirror is its columns: in passes over both, each block had read all of it."""
    A, read = with_eigenvalues(np.random.default_rng(0).standard_normal(600)), 0
    zarr.create_array(tmp_path / "a.zarr", shape=A.shape, dtype=A.dtype, chunks=chunks, compressors=None)[:] = A
    original = chunk_files._read_exactly

    def counting(fd: int, path: Path, view: memoryview, offset: int, flags: int = 0) -> None:
        nonlocal read
        original(fd, path, view, offset, flags)
        read += len(view) if "a.zarr" in str(path) else 0

    monkeypatch.setattr(chunk_files, "_read_exactly", counting)
    monkeypatch.setattr(costs, "read_rate", lambda *args, **options: 1e9)
    outcome, w, V = run(tmp_path / "a.zarr", largest=400)
    check(A, outcome, w, V)
    plan = plan_eigh(open_matrix(tmp_path / "a.zarr"), EighOptions(method="divided"), THREADS)
    planned = sum(step.bytes_read for step in plan.steps if step.id in ("largest", "symmetric", "images"))
    assert 3 * A.nbytes < read <= 1.1 * planned
    assert planned <= 7 * A.nbytes


def test_refused() -> None:
    with pytest.raises(SpecError, match=r"params\.method: divided finds all eigenpairs"):
        run(np.eye(5), n_components=2)
    with pytest.raises(InputError, match="must be symmetric"):
        run(gaussian(60, 60))
    A = np.eye(60)
    A[7, 7] = np.nan
    with pytest.raises(NonFiniteError, match="row 7, column 7"):
        run(A)
