"""Some eigenpairs by iterations: right on hard spectra from any start, or refused; resumed to the same bits; read as planned."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eigenproblems import wanted, wilkinson, with_eigenvalues, with_large_parts
from helpers import DTYPES, THREADS, Array, departure, each_of, eps, gaussian, norm, store, wide_precision

import dlscale
from dlscale.declaration.kind import planned_here, run_here
from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.passes import Passes
from dlscale.engine.plan import Plan
from dlscale.engine.run import Run
from dlscale.errors import DlscaleError, InputError, NumericalError, SpecError
from dlscale.kernels import times_power_of_two
from dlscale.linalg.eigen import iterative
from dlscale.linalg.eigen.completeness import prove
from dlscale.linalg.eigen.filtered import Aim, Iterate, advance, started
from dlscale.linalg.eigen.kind import KIND, EighOptions, plan_eigh
from dlscale.linalg.eigen.pairs import Pairs
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix

N, K = 160, 7
#: Starts of each hard spectrum; a long night has more, of a larger order.
STARTS = int(os.environ.get("DLSCALE_EIGH_STARTS", "1"))
ORDER = int(os.environ.get("DLSCALE_EIGH_ORDER", str(N)))


def hard(name: str, n: int) -> Array:
    """A matrix that is hard for what is in its name."""
    gaps = np.random.default_rng(3).standard_normal((n, n)) / np.sqrt(2 * n)
    if name == "wilkinson":
        return wilkinson(n)
    values = {
        "separate": lambda: np.linspace(-1, 2, n),
        "three in a cluster": lambda: np.concatenate([np.linspace(0, 0.9, n - 3), 1 + np.array([0, 4e-7, 7e-7])]),
        "multiplicity five": lambda: np.concatenate([np.linspace(-1, 0.5, n - 5), np.full(5, 0.75)]),
        "graded": lambda: np.geomspace(1e-15, 1, n),
        "indefinite": lambda: np.concatenate([-np.linspace(0.1, 1, n // 2), np.linspace(0.1, 1, n - n // 2)]),
        "semicircle": lambda: np.linalg.eigvalsh(gaps + gaps.T),
        "five that are not zero": lambda: np.concatenate([np.zeros(n - 5), np.arange(1.0, 6)]),
        "two": lambda: np.repeat([1.0, 2.0], [n // 3, n - n // 3]),
        "one": lambda: np.ones(n),
        "zeros": lambda: np.zeros(n),
    }[name]()
    return with_eigenvalues(values)


NAMES = (
    "separate",
    "three in a cluster",
    "multiplicity five",
    "graded",
    "indefinite",
    "semicircle",
    "five that are not zero",
    "two",
    "one",
    "zeros",
    "wilkinson",
)


def computed(A: Any, **options: Any) -> Any:
    given = {"n_components": K, "method": "iterative"} | options
    return run_here(KIND, KIND.inputs({"matrix": A}), EighOptions(**given))


def check(A: Array, found: Any, which: str, *, tolerance: float | None = None) -> None:
    w, V = wide_precision(found.arrays["eigenvalues"]), wide_precision(found.arrays["eigenvectors"])
    n, size, k = len(A), max(norm(A), np.finfo(float).tiny), len(w)
    allowed = max(30 * n * eps(A), 1.1 * (tolerance or 0)) * size
    residuals = np.linalg.norm(wide_precision(A) @ V - V * w, axis=0)
    assert residuals.max() <= allowed
    assert (residuals <= 1.01 * found.arrays["residuals"] + 4 * eps(A) * size).all()
    assert departure(V) <= 30 * n * eps(A)
    own = np.linalg.eigvalsh(wide_precision(A))
    expected = wanted(own, k, which)
    if which == "magnitude":
        w, expected = np.sort(np.abs(w)), np.sort(np.abs(expected))
    assert np.abs(w - expected).max() <= allowed


@pytest.mark.parametrize("completeness", ["cholesky", "random"])
@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("name", NAMES)
def test_hard_spectra_are_right_from_any_start_or_refused(name: str, which: Any, completeness: Any) -> None:
    A, refused = hard(name, ORDER), 0
    for seed in range(STARTS):
        try:
            found = computed(A, which=which, completeness=completeness, seed=seed, max_reads=120)
        except NumericalError as error:
            refused += "eigenpairs have converged in 120 reads" in str(error)
            continue
        check(A, found, which)
        assert found.outcome.estimates["complete"] == (True if completeness == "cholesky" else 1 - iterative.CHECK_FAILURE)
    # What is small beside the norm, and close together there, is too much to ask of products.
    assert refused in (0, STARTS)
    assert (refused > 0) <= (name == "graded" and which == "smallest") or ORDER > N


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@each_of(dtype=DTYPES)
def test_every_precision(dtype: str, which: Any) -> None:
    A = with_eigenvalues(np.concatenate([-np.geomspace(0.1, 1, 70), np.geomspace(0.1, 1.1, 70)]), dtype)
    for options in ({}, {"completeness": "random"}, {"tolerance": 1e-3}):
        found = computed(A, which=which, **options)
        check(A, found, which, tolerance=options.get("tolerance"))
        assert found.arrays["eigenvectors"].dtype == dtype
        assert found.arrays["eigenvalues"].dtype == np.finfo(dtype).dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_power_of_two_gives_the_same_bits(dtype: str) -> None:
    A, info = with_large_parts(np.geomspace(0.05, 2, 60), dtype, 2.0**-12), np.finfo(dtype)
    found = computed(A, n_components=3).arrays
    for k in (info.minexp + 16, -150, -41, 1, 60, info.maxexp - 3):
        if not info.minexp + 16 <= k <= info.maxexp - 3:
            continue
        scaled = computed(times_power_of_two(A, k), n_components=3).arrays
        assert (scaled["eigenvalues"] == times_power_of_two(found["eigenvalues"], k)).all()
        assert (scaled["eigenvectors"] == found["eigenvectors"]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_that_is_not_symmetric_is_refused(dtype: str) -> None:
    A = with_eigenvalues(np.linspace(-1, 2, N), dtype)
    computed(A * (1 + eps(A) * np.sign(gaussian(N, N).astype(dtype).real)).astype(dtype), tolerance=1e-2)
    A[40, 3] += np.asarray(3e-3 * np.linalg.norm(A), dtype)
    with pytest.raises(InputError, match=r"must be (symmetric|Hermitian); A - A' is \d\.\de-03 of A"):
        computed(A)


def test_what_does_not_converge_says_so() -> None:
    with pytest.raises(NumericalError, match=r"0 of 7 eigenpairs have converged in 10 reads .* must be 3\.6e-14"):
        computed(hard("separate", N), max_reads=10)


def test_options_that_do_not_go_together() -> None:
    for options, words in (
        ({"method": "iterative"}, "give params.n_components"),
        ({"tolerance": 1e-3}, "tolerance goes with n_components"),
        ({"tolerance": 1e-3, "n_components": 3, "method": "direct"}, "tolerance goes with n_components"),
        ({"completeness": "random"}, "random goes with n_components"),
        ({"completeness": "random", "n_components": 3, "method": "direct"}, "random goes with n_components"),
    ):
        with pytest.raises(SpecError, match=words):
            plan_eigh(open_matrix(np.eye(20)), EighOptions(**options), THREADS)


def assumed(n: int, *, stored: bool = False) -> Any:
    matrix = open_matrix(np.lib.stride_tricks.as_strided(np.zeros(1), (n, n), (0, 0)))
    matrix.in_memory = not stored
    return matrix


@pytest.mark.parametrize(
    ("n", "k", "memory", "method", "proved"),
    [
        (1000, 10, 2e9, "direct", True),
        (20_000, 10, 8e9, "iterative", True),
        (50_000, 50, 4e9, "iterative", False),
    ],
)
def test_the_way_is_chosen_by_counted_cost(n: int, k: int, memory: float, method: str, proved: bool) -> None:
    facts = ClusterFacts("local", 1, 2, int(memory))
    plan = plan_eigh(assumed(n), EighOptions(n_components=k), facts)
    assert plan.method == method
    assert (plan.grids.panels is not None) == proved
    assert plan.peak_bytes_per_worker <= memory


@pytest.mark.parametrize(("memory", "width"), [(40e9, 72), (4e9, 152), (1.2e9, 72)])
def test_a_matrix_that_is_read_each_time_is_multiplied_by_more_columns(memory: float, width: int) -> None:
    """Where there is room for them; one that workers hold is multiplied by no more than it takes."""
    options = EighOptions(n_components=50, method="iterative", completeness="random")
    plan = plan_eigh(assumed(50_000, stored=True), options, ClusterFacts("local", 1, 2, int(memory)))
    assert plan.choices == {"resident": memory == 40e9, "width": width}
    assert plan.peak_bytes_per_worker <= memory


def test_more_columns_save_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    A = hard("semicircle", N)
    path = store(tmp_path / "a.zarr", A, chunks=(50, N))
    monkeypatch.setattr(iterative, "resident_bytes", lambda *_: 10**15)
    reads = []
    for rows_beside in (iterative.ROWS_BESIDE, 2):
        monkeypatch.setattr(iterative, "ROWS_BESIDE", rows_beside)
        found = computed(str(path), completeness="random")
        check(A, found, "largest")
        reads.append(found.outcome.estimates["reads"])
    assert reads[1] < 0.8 * reads[0]


def resumed_or_whole(path: Path, folder: Path | None, stop_at: str | None = None) -> tuple[bytes, list[str]]:
    """The answer's bits and the steps that were computed; of a run that fails when a step has ended, none."""
    told: list[str] = []

    def listen(event: Any) -> None:
        if type(event).__name__ == "StepFinished" and not event.resumed:
            told.append(event.step)
            if event.step == stop_at:
                raise OSError("the disk is gone")

    A, options = open_matrix(str(path)), EighOptions(n_components=K, method="iterative", completeness="random")
    facts = ClusterFacts("threads", 1, 2, 2**31)
    plan: Plan = plan_eigh(A, options, facts)
    checkpoint = Checkpoint(folder) if folder else None
    with open_cluster(facts) as cluster:
        outcome = KIND.compute(Run(cluster, checkpoint=checkpoint, emit=listen), KIND.inputs({"matrix": str(path)}), options, plan)
    return outcome.arrays["eigenvectors"].tobytes() + outcome.arrays["eigenvalues"].tobytes(), told


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes, list[str]]:
    """A matrix, and the answer and the steps of a search in it that nothing stops."""
    path = store(tmp_path_factory.mktemp("searched") / "a.zarr", hard("semicircle", N), chunks=(50, N))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(iterative, "KEPT_FLOPS", 1.0)
        return path, *resumed_or_whole(path, None)


@pytest.mark.parametrize("stop_at", ["iteration-1", "read-7", "iteration-12", "check-0-4", "check-0-last"])
def test_a_search_goes_on_where_it_was_stopped_to_the_same_bits(
    stop_at: str, searched: tuple[Path, bytes, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iterative, "KEPT_FLOPS", 1.0)
    path, whole, every = searched
    with pytest.raises(OSError, match="the disk is gone"):
        resumed_or_whole(path, tmp_path / "checkpoint", stop_at)
    again, rest = resumed_or_whole(path, tmp_path / "checkpoint")
    assert again == whole
    assert "symmetry" not in rest
    assert len(rest) < len(every)


def test_a_pair_that_is_left_out_is_found_again_or_fails_the_proof() -> None:
    """A Cholesky factorization breaks down without any of the pairs; random vectors find one that is far enough from any start."""
    A = hard("three in a cluster", N)
    w, V = np.linalg.eigh(A)
    chosen = np.arange(N - K - 1, N)
    inputs = KIND.inputs({"matrix": A})
    for missing in range(1, K + 1):
        left = np.delete(chosen, missing)
        with planned_here(KIND, inputs, EighOptions(n_components=K, method="iterative", completeness="cholesky")) as (run, plan):
            pairs = Pairs(w[left], np.full(K, 1e-15), 0.0, norm(A), 0.0, None, 0)
            assert not prove(Passes(run), inputs["matrix"], pairs, V[:, left], which="largest", grid=plan.panels).complete
    for start in range(max(5, STARTS)):
        left = np.delete(chosen, K)
        aim = Aim(K, "largest", N * eps(A))
        it = Iterate(A[:, :0], A[:, :0], V[:, left], w[left], np.zeros(0), low=0.0, norm=1.0, cycle=9, finished=1)
        with planned_here(KIND, inputs, EighOptions(n_components=K, method="iterative", completeness="random")) as (run, plan):
            search = iterative.Search(aim, start, 200, 32, sampled=True)
            with iterative.Reader(Passes(run), inputs["matrix"], plan.rows, resident=False) as reader:
                found, again = iterative._sampled(Passes(run), reader, it, search)
        assert found is None
        assert again.finished == 0


def test_a_state_is_read_as_it_was_written() -> None:
    A = hard("separate", 60)
    it = started(np.linalg.qr(gaussian(60, 24))[0], np.zeros((60, 0)), np.zeros(0))
    for _ in range(9):
        it = advance(it, A @ it.W, A @ (A @ it.W), Aim(3, "smallest", 1e-12))
        again = Iterate.from_state(it.to_state())
        assert {name: np.asarray(value).tobytes() for name, value in vars(again).items()} == {
            name: np.asarray(value).tobytes() for name, value in vars(it).items()
        }


def test_eigsh_stops_at_its_tolerance() -> None:
    A = hard("semicircle", N)
    w, V = dlscale.eigsh(A, 5, which="SA", tol=1e-4)
    np.testing.assert_allclose(w, np.linalg.eigvalsh(A)[:5], atol=1e-4)
    assert np.linalg.norm(A @ V - V * w, axis=0).max() <= 1.1e-4 * norm(A)
    with pytest.raises(DlscaleError):
        dlscale.eigsh(A, 5, tol=1.5)
