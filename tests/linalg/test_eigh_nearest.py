"""The eigenvalues nearest to a value: right on hard spectra, none missed, or refused in words."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import scipy.linalg
import scipy.sparse.linalg
from eigenproblems import frequencies_of_plate, plate, wilkinson, with_eigenvalues
from helpers import DTYPES, Array, departure, each_of, eps, norm, wide_precision

import dlscale
from dlscale.declaration.kind import planned_here, run_here
from dlscale.engine.clusters import ClusterFacts
from dlscale.errors import DlscaleError, DoesNotFitError, InputError, NumericalError, SpecError
from dlscale.kernels import times_power_of_two
from dlscale.linalg.eigen import counting, nearest
from dlscale.linalg.eigen.counting import Interval, prove_nearest
from dlscale.linalg.eigen.kind import KIND, EighOptions
from dlscale.linalg.eigen.shift_invert import Nearest
from dlscale.linalg.eigen.shifted import Pencil
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

N = 60
JOBS_DATA = Path(__file__).parents[2] / "jobs" / "data"
#: What each is hard for is in its name; the values about which others are looked for.
HARD: dict[str, tuple[Array, tuple[float, ...]]] = {
    "separate": (np.linspace(-1, 2, N), (0.3, -5.0)),
    "clusters of three": (np.repeat(np.linspace(-1, 1, N // 3), 3) * (1 + 1e-6 * np.tile([0, 0.4, 1], N // 3)), (0.26, 1.0)),
    "multiplicity forty": (np.concatenate([np.linspace(-1, 0.5, N - 40), np.full(40, 0.75)]), (0.74, 0.75)),
    "graded": (np.geomspace(1e-15, 1, N), (0.0, 1e-9)),
    "one but for rounding": (1 + 1e-15 * np.arange(N), (0.5, 1.0)),
    "zeros": (np.zeros(N), (0.0, 1.0)),
}


def found_by(A: Array, sigma: float, k: int = 5, B: Array | None = None, **options: Any) -> Any:
    inputs = KIND.inputs({"matrix": A} | ({} if B is None else {"b": B}))
    return run_here(KIND, inputs, EighOptions(n_components=k, sigma=sigma, **options))


def check(A: Array, values: Array, sigma: float, k: int) -> None:
    found = found_by(A, sigma, k)
    w, V = wide_precision(found.arrays["eigenvalues"]), wide_precision(found.arrays["eigenvectors"])
    unit = 10 * len(A) * eps(A) * max(norm(A), np.finfo(float).tiny)
    assert (np.diff(w) >= 0).all()
    assert norm(wide_precision(A) @ V - V * w) <= 3 * unit
    assert departure(V) <= 30 * len(A) * eps(A)
    distances = np.sort(np.abs(values - sigma))
    assert np.abs(np.sort(np.abs(w - sigma)) - distances[:k]).max() <= unit
    assert found.outcome.certificate.passed
    assert found.outcome.estimates["complete"] is True
    goes_on = any("a cluster goes on" in note for note in found.outcome.notes)
    assert not goes_on or distances[k] - distances[k - 1] <= unit


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("name", HARD)
def test_hard_spectra(name: str, dtype: str) -> None:
    values, about = HARD[name]
    for sigma in about:
        check(with_eigenvalues(values, dtype), values, sigma, 5)


def test_wilkinson_all_pairs_and_the_smallest_sizes() -> None:
    for A, sigma, k in (
        (wilkinson(41), 19.2, 3),
        (wilkinson(41), 20.7, 2),
        (np.array([[-3.0]]), 1.0, 1),
        (np.zeros((2, 2)), 0.0, 1),
    ):
        check(A, np.linalg.eigvalsh(A), sigma, k)
    values = HARD["separate"][0]
    check(with_eigenvalues(values), values, 0.1, N)
    check(with_eigenvalues(values), values, 0.1, N - 1)


@pytest.mark.parametrize("k", [1, 3, 8])
@pytest.mark.parametrize("name", ["separate", "clusters of three", "graded"])
def test_a_pair_that_was_left_out_fails_the_proof(name: str, k: int) -> None:
    """The set without one of its pairs, the next one taken in its place: each pair in turn, and the whole set passes."""
    values = HARD[name][0]
    sigma = 0.256 if name != "graded" else 1e-7
    A = with_eigenvalues(values)
    # As it is read: its largest entry just below 1.
    A = A / 2.0 ** np.frexp(np.abs(A).max())[1]
    w, V = np.linalg.eigh(A)
    order = np.argsort(np.abs(w - sigma), kind="stable")[: k + 1]

    def proved(chosen: Array) -> bool:
        inputs = KIND.inputs({"matrix": A})
        with planned_here(KIND, inputs, EighOptions(n_components=k, sigma=sigma)) as (run, plan):
            bars = np.linalg.norm(A @ V[:, chosen] - V[:, chosen] * w[chosen], axis=0)
            interval = Interval(sigma, w[chosen], V[:, chosen], bars, departure(V), 1e-13, 1.0, 1e-14, 2.0, 1.0, 0)
            proof = prove_nearest(run, Pencil(inputs["matrix"], None), interval, plan.cluster, seed=0, n_threads=1)
            assert proof.check.passed == proof.complete
            return proof.complete

    assert proved(order[:k])
    for missing in range(k):
        assert not proved(np.delete(order, missing))


def test_a_wrong_answer_is_not_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that overlooks the nearest pair."""

    def overlooking(self: Nearest, goal: float) -> tuple[Array, Array]:
        theta, X = search(self, goal)
        return theta[1:], X[:, 1:]

    search = Nearest.search
    monkeypatch.setattr(Nearest, "search", overlooking)
    with pytest.raises(DlscaleError, match="no eigenvalue is nearer to sigma than"):
        found_by(with_eigenvalues(HARD["separate"][0]), 0.3)


def test_what_is_said_of_clusters_and_of_a_sigma_that_is_an_eigenvalue() -> None:
    A = with_eigenvalues(HARD["multiplicity forty"][0])
    notes = found_by(A, 0.75, 3).outcome.notes
    assert any("sigma is an eigenvalue to rounding" in note and "shifted by 1e-1" in note for note in notes)
    assert any("a cluster goes on beyond the 3 eigenvalues" in note and "from sigma" in note for note in notes)
    assert not found_by(A, 0.74, 40).outcome.notes
    # As near on the other side.
    assert any("a cluster goes on" in note for note in found_by(np.diag(np.arange(9.0)), 4.0, 2).outcome.notes)
    (note,) = found_by(np.diag(np.arange(9.0)), 1e30, 2).outcome.notes
    assert "sigma is beyond all eigenvalues" in note


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_generalized_problem_at_any_scale(dtype: str) -> None:
    A, B = with_eigenvalues(np.linspace(-1, 2, N), dtype), with_eigenvalues(np.geomspace(0.01, 1, N), dtype, seed=5)
    every = scipy.linalg.eigh(wide_precision(A), wide_precision(B))[0]
    for sigma in (0.3, float(every[20])):
        found = found_by(A, sigma, 6, B)
        w, X = wide_precision(found.arrays["eigenvalues"]), wide_precision(found.arrays["eigenvectors"])
        unit = 100 * N * eps(A)
        expected = np.sort(np.abs(every - sigma))[:6]
        np.testing.assert_allclose(np.sort(np.abs(w - sigma)), expected, atol=unit)
        assert norm(wide_precision(A) @ X - wide_precision(B) @ X * w) <= unit * norm(X)
        assert norm(X.conj().T @ wide_precision(B) @ X - np.eye(6)) <= unit
        distances = np.abs(w[:, None] - every).min(axis=1)
        assert (distances <= found.arrays["residuals"] + 1e3 * np.finfo(float).eps).all()
    for a, b in ((3, 0), (0, 2), (-40, 6)):
        again = found_by(times_power_of_two(A, a), float(np.ldexp(0.3, a - b)), 6, times_power_of_two(B, b)).arrays
        found = found_by(A, 0.3, 6, B).arrays
        assert (again["eigenvalues"] == times_power_of_two(found["eigenvalues"], a - b)).all()
        assert (again["eigenvectors"] == times_power_of_two(found["eigenvectors"], -(b // 2))).all()


def test_the_slowest_vibrations_of_a_plate() -> None:
    """The ready job's matrices are those of the elements, whose frequencies are those of the plate but for a little more."""
    K, M = plate(8)
    for name, made in (("stiffness", K), ("mass", M)):
        assert (scipy.io.mmread(JOBS_DATA / f"plate-{name}.mtx").toarray() == made).all()
    found = found_by(K, 0.0, 8, M)
    surplus = found.arrays["eigenvalues"] / frequencies_of_plate(8, 8) - 1
    assert (surplus > 0).all()
    assert (surplus < 0.003).all()
    assert found.outcome.estimates["complete"] is True
    (note,) = found_by(K, 0.0, 2, M).outcome.notes
    assert "a cluster goes on beyond the 2 eigenvalues" in note


def test_the_function_is_that_of_scipy() -> None:
    A, B = with_eigenvalues(HARD["separate"][0]), with_eigenvalues(np.geomspace(0.1, 1, N), seed=5)
    for M in (None, B):
        w, V = dlscale.eigsh(A, 4, M=M, sigma=0.3)
        np.testing.assert_allclose(w, np.sort(scipy.sparse.linalg.eigsh(A, 4, M=M, sigma=0.3)[0]), atol=1e-12)
        assert V.shape == (N, 4)
        w = dlscale.eigsh(A, 4, M=M, which="LA", return_eigenvectors=False)
        np.testing.assert_allclose(w, np.sort(scipy.sparse.linalg.eigsh(A, 4, M=M, which="LA")[0]), atol=1e-12)
    with pytest.raises(SpecError, match="which must be LM with sigma; got SA"):
        dlscale.eigsh(A, sigma=0.3, which="SA")
    with pytest.raises(SpecError, match="sigma and M go with a matrix"):
        dlscale.eigsh(scipy.sparse.linalg.aslinearoperator(A), sigma=0.3)


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    A = with_eigenvalues(HARD["separate"][0])
    for options, words in (
        ({"sigma": 0.3}, "params.sigma: finds some eigenpairs; give params.n_components"),
        ({"sigma": 0.3, "n_components": 2, "which": "smallest"}, "params.which: is left out with sigma; got smallest"),
        ({"sigma": 0.3, "n_components": 2, "method": "direct"}, "params.method: is left out with sigma"),
        ({"sigma": np.inf, "n_components": 2}, "sigma: got inf"),
    ):
        with pytest.raises(SpecError, match=words):
            run_here(KIND, KIND.inputs({"matrix": A}), EighOptions(**options))
    spoilt = A.copy()
    spoilt[9, 3] += 1
    with pytest.raises(InputError, match=r"input\.matrix: must be symmetric; its entries \(3, 9\) and \(9, 3\)"):
        found_by(spoilt, 0.3)
    with pytest.raises(NumericalError, match=r"input\.b: must be positive definite"):
        found_by(A, 0.3, B=A)
    with pytest.raises(NumericalError, match="nothing of the matrix is left"):
        found_by(A, 1e30, B=np.eye(N))
    facts = ClusterFacts("local", 1, 2, 10**9)
    big = open_matrix(np.lib.stride_tricks.as_strided(np.zeros(1), (20_000, 20_000), (0, 0)))
    with pytest.raises(DoesNotFitError, match=r"one worker, which needs 3\.\d\d GB and has 1\.00 GB"):
        KIND.plan(Inputs({"matrix": big}), EighOptions(n_components=2, sigma=0.0), facts)
    monkeypatch.setattr(nearest, "_MOVES", 0)
    with pytest.raises(NumericalError, match="rounding does not tell them apart"):
        found_by(np.diag(np.arange(9.0)), 4.0)


def test_an_error_of_the_factorizations_is_taken_off_what_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Factors that are wrong by more than the distance prove nothing, and say so."""
    A = with_eigenvalues(HARD["separate"][0])
    right = counting.factored
    monkeypatch.setattr(counting, "factored", lambda *arguments: right(*arguments)._replace(lost=1.0))
    found = found_by(A, 0.3)
    assert found.outcome.estimates["complete"] is False
    assert "and rounding tells no more" in found.outcome.certificate.checks[-1].meaning


def test_a_nearly_singular_b_is_refused_in_a_sentence_or_answered() -> None:
    for seed in range(60):
        rng = np.random.default_rng(seed)
        Q, s = np.linalg.qr(rng.standard_normal((5, 5))).Q, np.ones(5)
        s[0] = 10.0 ** -rng.uniform(15.5, 16.5)
        B = (Q * s) @ Q.T
        with suppress(DlscaleError):  # and no error of another library
            run_here(KIND, KIND.inputs({"matrix": np.eye(5), "b": (B + B.T) / 2}), EighOptions(n_components=3, sigma=1.3))


@pytest.mark.parametrize("options", [{}, {"sigma": 1.64}, {"method": "iterative"}], ids=str)
def test_errors_in_single_precision_count_the_rounding_of_values(options: dict[str, Any]) -> None:
    A = wilkinson(5).astype("f4")
    found = run_here(KIND, KIND.inputs({"matrix": A}), EighOptions(n_components=2, **options)).arrays
    distances = np.abs(found["eigenvalues"].astype(float) - np.linalg.eigvalsh(A.astype(float))[:, None]).min(axis=0)
    assert (distances <= found["residuals"]).all()


def test_the_eigenvalues_of_zeros_beside_a_matrix() -> None:
    found = dlscale.eigh(np.zeros((3, 3)), np.eye(3), subset_by_index=(0, 0))
    assert found.eigenvalues == 0


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("scale", [2.0**-900, 1.0, 2.0**900])
def test_what_inertias_do_not_tell_from_zero_refuses_no_right_answer(scale: float, k: int) -> None:
    """Of eigenvalues with hundreds of others as far from sigma as the last one that is wanted."""
    for n in (4, 8, 30, 80):
        for seed in range(12):
            rng = np.random.default_rng(seed)
            A, sigma = np.diag(rng.choice([-1.0, 1.0], n)), float(rng.uniform(-1, 1))
            if seed % 3 == 2:
                Q = np.linalg.qr(rng.standard_normal((n, n))).Q
                A = Q @ A @ Q.T
                A = (A + A.T) / 2
            found = found_by(A * scale, sigma * scale, k)
            expected = np.sort(np.abs(np.linalg.eigvalsh(A) - sigma))[:k]
            assert np.sort(np.abs(found.arrays["eigenvalues"] / scale - sigma)) == pytest.approx(expected, rel=1e-12)
            assert found.outcome.estimates["complete"] is True


@pytest.mark.parametrize(("sigma", "beyond"), [(5e-324, False), (-1e-310, False), (1e-20, False), (2.5e302, True), (-1e303, True)])
def test_a_sigma_that_vanishes_beside_the_matrix_is_not_beyond_it(sigma: float, beyond: bool) -> None:
    notes = found_by(np.diag([-2.0, 1.0, 5.0]) * 2.0**1000, sigma, 1).outcome.notes
    assert any("sigma is beyond all eigenvalues" in note for note in notes) == beyond


@pytest.mark.parametrize(
    ("A", "sigma", "k", "words"),
    [
        (np.zeros((3, 3)), 1e-300, 1, "all 1 eigenvalues are within 0 of 0.0, and"),
        (np.diag([1, 1, 1 + 2.0**-50]) * 2.0**-1015, 2.0**-1015, 1, r"all 1 eigenvalues are within \d(\.\d)?e-3[12]\d of sigma"),
        (np.diag([-1.0, 1.0, 1.0]) * 1.7e308, -1.7e308, 2, r"is nearer to sigma than [\d.]+ 2\^1\d\d\d:"),
    ],
)
def test_distances_that_are_no_numbers_are_said_all_the_same(A: Array, sigma: float, k: int, words: str) -> None:
    certificate = found_by(A, sigma, k).outcome.certificate
    assert any(re.search(words, each.meaning) for each in certificate.checks)
