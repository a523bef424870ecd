"""Eigenvalues of symmetric and Hermitian matrices: right, scaled, complete, or refused in words."""

from __future__ import annotations

import threading
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
from eigenproblems import wanted, wilkinson, with_eigenvalues, with_large_parts
from helpers import DTYPES, Array, departure, each_of, eps, gaussian, norm, store, wide_precision

import dlscale
from dlscale.declaration.kind import planned_here, run_here
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.passes import Passes
from dlscale.errors import CertificateError, DlscaleError, DoesNotFitError, InputError, NonFiniteError, NumericalError, SpecError
from dlscale.kernels import times_power_of_two
from dlscale.linalg import in_memory
from dlscale.linalg.eigen import direct, generalized, tridiagonal
from dlscale.linalg.eigen.completeness import prove
from dlscale.linalg.eigen.kind import KIND, EighOptions, plan_eigh
from dlscale.linalg.eigen.pairs import Pairs
from dlscale.linalg.scaling import bound_words
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrices import open_matrix

N = 90


#: What each is hard for is in its name.
HARD: dict[str, Array] = {
    "separate": np.linspace(-1, 2, N),
    "three in a cluster": np.concatenate([np.linspace(0, 0.9, N - 3), 1 + np.array([0, 4e-7, 7e-7])]),
    "multiplicity five": np.concatenate([np.linspace(-1, 0.5, N - 5), np.full(5, 0.75)]),
    "graded": np.geomspace(1e-15, 1, N),
    "negative": -np.geomspace(1e-3, 1, N),
    "as large on both sides": np.concatenate([-np.linspace(0.1, 1, N // 2), np.linspace(0.1, 1, N - N // 2)]),
    "one but for rounding": 1 + 1e-15 * np.arange(N),
    "zeros": np.zeros(N),
}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"n_components": 7},
    {"n_components": 7, "which": "smallest"},
    {"n_components": 7, "which": "magnitude"},
    {"n_components": N - 1},
]


def computed(A: Any, **options: Any) -> Any:
    return run_here(KIND, KIND.inputs({"matrix": A}), EighOptions(**options))


def check(A: Array, found: Any, values: Array, options: dict[str, Any]) -> None:
    w, V = wide_precision(found.arrays["eigenvalues"]), wide_precision(found.arrays["eigenvectors"])
    size = max(norm(A), np.finfo(float).tiny)
    k = len(w)
    assert V.shape == (len(A), k)
    assert (np.diff(w) >= 0).all()
    assert norm(wide_precision(A) @ V - V * w) <= 30 * len(A) * eps(A) * size
    assert departure(V) <= 30 * len(A) * eps(A)
    expected = wanted(values, **options)
    if options.get("which") == "magnitude":
        w, expected = np.sort(np.abs(w)), np.sort(np.abs(expected))
    assert np.abs(w - expected).max() <= 10 * len(A) * eps(A) * size
    # So far from each value there is an eigenvalue, and that is what is said of it; the reference is rounded too.
    own = np.linalg.eigvalsh(wide_precision(A))
    distances = np.abs(wide_precision(found.arrays["eigenvalues"])[:, None] - own).min(axis=1)
    assert (distances <= found.arrays["residuals"] + N / 2 * np.finfo(float).eps * size).all()


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("name", HARD)
def test_hard_spectra(name: str, dtype: str) -> None:
    A = with_eigenvalues(HARD[name], dtype)
    for options in OPTIONS:
        found = computed(A, **options)
        check(A, found, HARD[name], options)
        assert found.outcome.certificate.passed
        assert found.outcome.estimates["complete"] is True


def test_wilkinson_and_the_smallest_sizes() -> None:
    for A in (wilkinson(21), wilkinson(2), np.array([[-3.0]]), np.array([[0.0]])):
        found = dlscale.eigh(A)
        np.testing.assert_allclose(found.eigenvalues, np.linalg.eigvalsh(A), atol=1e-13)
        assert departure(found.eigenvectors) < 1e-13


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@each_of(dtype=DTYPES)
def test_a_power_of_two_gives_the_same_bits(dtype: str, options: dict[str, Any]) -> None:
    A, info = with_large_parts(np.linspace(-1, 2, N), dtype, 2.0**-10), np.finfo(dtype)
    found = computed(A, **options).arrays
    for k in (info.minexp + 12, -150, -1, 1, 60, info.maxexp - 3):
        if not info.minexp + 12 <= k <= info.maxexp - 3:
            continue
        scaled = computed(times_power_of_two(A, k), **options).arrays
        assert (scaled["eigenvalues"] == times_power_of_two(found["eigenvalues"], k)).all()
        assert (scaled["eigenvectors"] == found["eigenvectors"]).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_matrix_that_is_not_symmetric_is_refused(dtype: str) -> None:
    A = with_eigenvalues(np.linspace(-1, 2, N), dtype)
    dlscale.eigh(A * (1 + eps(A) * np.sign(gaussian(N, N).astype(dtype).real)).astype(dtype))
    for row, column in ((70, 3), (3, 70), (4, 5)):
        spoilt = A.copy()
        spoilt[row, column] += np.asarray(1e-3 * norm(A)).astype(dtype)
        with pytest.raises(InputError, match=rf"must be (symmetric|Hermitian).*\({max(row, column)}, {min(row, column)}\)"):
            dlscale.eigh(spoilt)
    if np.dtype(dtype).kind == "c":
        with pytest.raises(InputError, match="must be Hermitian"):
            dlscale.eigh(A + 1j * np.eye(N, dtype=dtype))
        with pytest.raises(InputError, match="must be Hermitian"):
            dlscale.eigh(A + A.T * np.asarray(1j, dtype))


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_a_stored_matrix_that_is_read_by_its_columns(dtype: str, tmp_path: Path) -> None:
    A = with_eigenvalues(np.linspace(-1, 2, N), dtype)
    matrix = open_matrix(store(tmp_path / "a.zarr", A, chunks=(13, N))).T
    found = run_here(KIND, Inputs({"matrix": matrix}), EighOptions())
    check(A.T, found, np.linspace(-1, 2, N), {})


def test_what_is_no_number_is_named() -> None:
    A = np.eye(50)
    A[17, 30] = np.inf
    with pytest.raises(NonFiniteError, match="row 17, column 30"):
        dlscale.eigh(A)


@pytest.mark.parametrize(
    ("shape", "options", "words"),
    [
        ((5, 4), {}, "must be square to have eigenvalues; got 5 x 4"),
        ((5, 5), {"n_components": 6}, r"n_components must be between 1 and 5 .* got 6"),
        ((5, 5), {"n_components": 0}, "n_components: got 0"),
        ((5, 5), {"which": "largst"}, "which: got 'largst'"),
    ],
)
def test_options_that_do_not_suit(shape: tuple[int, int], options: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        plan_eigh(open_matrix(np.ones(shape)), EighOptions(**options), ClusterFacts("threads", 1, 2, 2**31))


#: Order, pairs wanted, bytes of a worker; the routine, or what is refused.
ROUTINES = [
    (10_000, 10_000, 3e9, "evd"),
    (10_000, 10_000, 2e9, "evr"),
    (40_000, 40_000, 64e9, "evr"),
    (10_000, 20, 1e9, "evr"),
    (10_000, 10_000, 1e9, None),
    (50_000, 50_000, 1e12, None),
]


@pytest.mark.parametrize(("n", "k", "room", "expected"), ROUTINES)
def test_the_routine_fits_the_memory_and_32_bit_lapack(n: int, k: int, room: float, expected: str | None) -> None:
    found = direct.choose(n, k, "largest", np.dtype("f8"), ClusterFacts("threads", 1, 2, int(room)))
    assert (found.routine if found else None) == expected
    assert found is None or found.n_bytes <= room


def test_what_does_not_fit_is_refused_with_what_would() -> None:
    A = open_matrix(np.lib.stride_tricks.as_strided(np.zeros(1), (20_000, 20_000), (0, 0)))
    with pytest.raises(DoesNotFitError, match=r"One worker needs 6.71 GB .* and has 4.00 GB"):
        plan_eigh(A, EighOptions(method="direct"), ClusterFacts("local", 1, 2, 4 * 10**9))
    A = open_matrix(np.lib.stride_tricks.as_strided(np.zeros(1), (50_000, 50_000), (0, 0)))
    with pytest.raises(DoesNotFitError, match="more than the 46340"):
        plan_eigh(A, EighOptions(method="direct"), ClusterFacts("local", 1, 2, 10**12))


@pytest.mark.parametrize("routine", ["evd", "evr"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_each_routine_of_lapack(dtype: str, routine: Any) -> None:
    A = with_eigenvalues(HARD["multiplicity five"], dtype)
    inputs = KIND.inputs({"matrix": A})
    with planned_here(KIND, inputs, EighOptions()) as (run, plan):
        outcome = KIND.compute(
            run, inputs, EighOptions(), replace(plan, choices=plan.choices | {"routine": routine, "n_threads": 2})
        )
    outcome.certificate.require()
    assert departure(run.outputs["eigenvectors"]) <= 30 * N * eps(A)


@pytest.mark.parametrize("n", [300, 600])
@each_of(dtype=DTYPES)
def test_vectors_of_robust_representations_are_orthonormal(dtype: str, n: int) -> None:
    """LAPACK leaves them up to 25 ``n eps`` from it where eigenvalues lie as evenly as here."""
    A = with_eigenvalues(np.linspace(-1, 1, n) ** 3, dtype)
    values, VH, info = tridiagonal.evr(A.copy(), 0, n)
    assert info == 0
    assert departure(VH.conj().T) <= n * eps(A)
    assert norm(VH @ A - values[:, None] * VH) <= n * eps(A)


@each_of(dtype=DTYPES)
def test_columns_become_orthonormal(dtype: str) -> None:
    A = with_eigenvalues(HARD["separate"], dtype)
    VH = np.linalg.eigh(A)[1].conj().T
    k, spoilt = 40, np.random.default_rng(0).standard_normal((40, 40)) * np.sqrt(eps(A)) / 100
    found = np.ascontiguousarray(VH[:k] + spoilt @ VH[:k], dtype)
    before = np.linalg.norm(found @ found.conj().T - np.eye(k))
    assert tridiagonal.departure(found) == pytest.approx(before, rel=0.5)
    tridiagonal.orthonormalize(found, np.empty((k, k), dtype))
    assert departure(found.conj().T) <= min(before / 10, 10 * k * eps(A))


@pytest.mark.parametrize("n", [1, 2, 8, 9, 10, 90])
@each_of(dtype=DTYPES)
def test_reflectors_are_applied_some_at_a_time(dtype: str, n: int) -> None:
    A = with_eigenvalues(np.linspace(-1, 2, n), dtype)
    values, VH, info = tridiagonal.evd(A.copy())
    assert info == 0
    assert norm(VH @ A - values[:, None] * VH) <= 10 * n * eps(A)
    assert departure(VH.conj().T) <= 10 * n * eps(A)


@pytest.mark.parametrize("which", ["largest", "smallest", "magnitude"])
@pytest.mark.parametrize("name", ["separate", "three in a cluster", "multiplicity five", "negative"])
def test_a_pair_that_was_left_out_fails_the_proof(name: str, which: Any) -> None:
    """The set without one of its pairs, the next one taken in its place: each pair in turn, and the whole set passes."""
    k, values = 8, np.unique(np.round(HARD[name], 9)) if name == "multiplicity five" else HARD[name]
    A = with_eigenvalues(values)
    w, V = np.linalg.eigh(A)
    order = {"largest": -w, "smallest": w, "magnitude": -np.abs(w)}[which]
    best = np.argsort(order, kind="stable")[: k + 1]

    def proved(chosen: Array) -> bool:
        chosen = np.sort(chosen)
        inputs = KIND.inputs({"matrix": A})
        with planned_here(KIND, inputs, EighOptions(n_components=k, which=which)) as (run, plan):
            residuals = np.linalg.norm(A @ V[:, chosen] - V[:, chosen] * w[chosen], axis=0)
            pairs = Pairs(w[chosen], residuals, 0.0, norm(A), departure(V), None, 0)
            return prove(Passes(run), inputs["matrix"], pairs, V[:, chosen], which=which, grid=plan.panels).complete

    assert proved(best[:k])
    for missing in range(k):
        assert not proved(np.delete(best, missing))


def test_a_cluster_that_goes_on_is_said() -> None:
    found = computed(with_eigenvalues(HARD["multiplicity five"]), n_components=3)
    assert any("a cluster goes on beyond the 3 eigenvalues" in note for note in found.outcome.notes)
    assert not computed(with_eigenvalues(HARD["multiplicity five"]), n_components=5).outcome.notes


def test_a_wrong_answer_fails_its_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    A = with_eigenvalues(HARD["separate"])

    def spoilt(*arguments: Any, **options: Any) -> Any:
        values, VH, info = lapack(*arguments, **options)
        values[4] += 1e-8
        return values, VH, info

    lapack = direct.evd
    monkeypatch.setattr(direct, "evd", spoilt)
    with pytest.raises(CertificateError, match=r"\|\|AV - V L\|\|"):
        dlscale.eigh(A)


def test_the_functions_are_those_of_scipy() -> None:
    A = with_eigenvalues(HARD["separate"], "c16")
    w = dlscale.eigh(A)[0]
    np.testing.assert_allclose(w, scipy.linalg.eigh(A)[0], atol=1e-13)
    np.testing.assert_allclose(dlscale.eigvalsh(A), w)
    for subset in ((0, 4), (80, N - 1)):
        expected = scipy.linalg.eigh(A, subset_by_index=subset)[0]
        np.testing.assert_allclose(dlscale.eigh(A, subset_by_index=subset).eigenvalues, expected, atol=1e-13)
    with pytest.raises(SpecError, match=r"subset_by_index must be \(0, last\) or \(first, 89\)"):
        dlscale.eigh(A, subset_by_index=(3, 5))
    for which in ("LM", "LA", "SA"):
        found, vectors = dlscale.eigsh(A, 4, which=which)
        expected = scipy.sparse.linalg.eigsh(A, 4, which=which)[0]
        np.testing.assert_allclose(found, np.sort(expected), atol=1e-12)
        assert vectors.shape == (N, 4)
    assert dlscale.eigsh(A, return_eigenvectors=False).shape == (6,)
    with pytest.raises(SpecError, match="which must be LM, LA or SA; got 'BE'"):
        dlscale.eigsh(A, which="BE")


def test_the_thread_of_the_task_says_that_lapack_is_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_memory, "_TICK_SECONDS", 1e-4)
    threads = set()
    work = partial(tridiagonal.evd, with_eigenvalues(np.linspace(-1, 2, 400)))
    values, _, info = in_memory.patiently(lambda *_: threads.add(threading.get_ident()), work)
    assert (len(values), info) == (400, 0)
    assert threads == {threading.get_ident()}


def definite(n: int, dtype: str, condition: float = 100.0) -> Array:
    return with_eigenvalues(np.geomspace(1 / condition, 1, n), dtype, seed=5)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@each_of(dtype=DTYPES)
def test_a_generalized_problem(dtype: str, options: dict[str, Any]) -> None:
    A, B = with_eigenvalues(np.linspace(-1, 2, N), dtype), definite(N, dtype)
    inputs = KIND.inputs({"matrix": A, "b": B})
    found = run_here(KIND, inputs, EighOptions(**options))
    w, X = wide_precision(found.arrays["eigenvalues"]), wide_precision(found.arrays["eigenvectors"])
    every = scipy.linalg.eigh(wide_precision(A), wide_precision(B))[0]
    unit = N * eps(A) * 100
    np.testing.assert_allclose(w, wanted(every, **options), atol=unit)
    assert norm(wide_precision(A) @ X - wide_precision(B) @ X * w) <= unit * norm(X)
    assert norm(X.conj().T @ wide_precision(B) @ X - np.eye(len(w))) <= unit
    distances = np.abs(w[:, None] - every).min(axis=1)
    assert (distances <= found.arrays["residuals"] + 1e3 * np.finfo(float).eps).all()
    assert found.outcome.estimates["complete"] is True
    # A changes the values alone, and B the vectors by half of its exponent.
    for a, b in ((3, 0), (0, 2), (-40, 6), (20, -16)):
        inputs = KIND.inputs({"matrix": times_power_of_two(A, a), "b": times_power_of_two(B, b)})
        scaled = run_here(KIND, inputs, EighOptions(**options)).arrays
        assert (scaled["eigenvalues"] == times_power_of_two(found.arrays["eigenvalues"], a - b)).all()
        assert (scaled["eigenvectors"] == times_power_of_two(found.arrays["eigenvectors"], -(b // 2))).all()


@pytest.mark.parametrize("kind", ["spread", "one small", "graded"])
@each_of(dtype=DTYPES)
def test_pencils_with_an_ill_conditioned_b(dtype: str, kind: str) -> None:
    """Every pair is exact up to rounding, where those of LAPACK's ``sygvd`` are off by up to the condition of B."""
    unit, A = N * eps(np.empty(0, dtype)), with_eigenvalues(np.linspace(-1, 2, N), dtype)
    smallest = 50 * unit / N
    if kind == "graded":
        d = np.geomspace(np.sqrt(smallest), 1, N)
        B = np.asarray(d[:, None] * definite(N, dtype) * d, dtype)
    else:
        B = with_eigenvalues(np.geomspace(smallest, 1, N) if kind == "spread" else [smallest] + [1] * (N - 1), dtype, seed=5)
    w, X = (wide_precision(array) for array in dlscale.eigh(A, B))
    A, B = wide_precision(A), wide_precision(B)

    def backward(w: Array, X: Array) -> float:
        size = (norm(A) + np.abs(w) * norm(B)) * np.linalg.norm(X, axis=0)
        return float((np.linalg.norm(A @ X - B @ X * w, axis=0) / size).max() / unit)

    assert backward(w, X) < 10
    assert norm(X.conj().T @ B @ X - np.eye(N)) <= unit * norm(B) * np.linalg.norm(X, axis=0).max() ** 2
    if dtype == "f8":
        assert backward(*scipy.linalg.eigh(A, B)) > 1e3


def test_a_b_that_is_singular_up_to_rounding_is_told() -> None:
    with pytest.raises(NumericalError, match=r"input\.b: is singular to working precision, of rank 1 of 2; multiply both"):
        generalized.factor_b(np.ones((2, 2)), graded=True)


def test_a_generalized_problem_in_python_and_what_it_refuses() -> None:
    A, B = with_eigenvalues(np.linspace(-1, 2, N)), definite(N, "f4", 10)
    np.testing.assert_allclose(dlscale.eigvalsh(A, B), scipy.linalg.eigh(A, B.astype("f8"))[0], atol=1e-12)
    assert dlscale.eigh(A, B, subset_by_index=(0, 4)).eigenvectors.shape == (N, 5)
    assert dlscale.eigh(A, definite(N, "f8", 1e4)).eigenvalues.shape == (N,)
    spoilt = B.copy()
    spoilt[5, 3] += 1
    for b, words in (
        (-B, r"input\.b: must be positive definite; its leading minor of order 1 is not positive to working precision"),
        (spoilt, r"input\.b: must be symmetric; its entries \(3, 5\) and \(5, 3\)"),
        (B[:5, :5], r"input\.b: must have the shape of input\.matrix, 90 x 90; got 5 x 5"),
    ):
        with pytest.raises(DlscaleError, match=words):
            dlscale.eigh(A, b)
    with pytest.raises(SpecError, match=r"with input\.b all pairs are found in memory"):
        run_here(KIND, KIND.inputs({"matrix": A, "b": B}), EighOptions(n_components=3, method="iterative"))


@pytest.mark.parametrize("options", [{}, {"n_components": 1, "sigma": 2.0}, {"n_components": 1, "method": "iterative"}], ids=str)
@pytest.mark.parametrize(("dtype", "power"), [("f4", -31), ("f8", -56), ("f8", -57)])
def test_rounding_counts_as_error(dtype: str, power: int, options: dict[str, Any]) -> None:
    """The eigenvalues 1 + 2^power and 1 - 2^power are no numbers of the dtype, and products show nothing of them."""
    A = np.array([[1, 2.0**power], [2.0**power, 1]], dtype)
    found = run_here(KIND, KIND.inputs({"matrix": A}), EighOptions(**options)).arrays
    assert (np.abs(np.abs(found["eigenvalues"] - 1.0) - 2.0**power) <= found["residuals"]).all()


@pytest.mark.parametrize("gap", [2.0**-20, 2.0**-30])
def test_errors_where_b_is_ill_conditioned(gap: float) -> None:
    """The eigenvalues of I and B are the inverses of 2 - gap and gap."""
    B = np.array([[1, 1 - gap], [1 - gap, 1]])
    for options in ({}, {"n_components": 2, "sigma": 1.0}):
        found = run_here(KIND, KIND.inputs({"matrix": np.eye(2), "b": B}), EighOptions(**options)).arrays
        assert (np.abs(found["eigenvalues"] - [1 / (2 - gap), 1 / gap]) <= found["residuals"]).all()


@pytest.mark.parametrize(("value", "exponent"), [(2.8e-14, 0), (9.97, 0), (1.0, 0), (0.3, -2000), (0.7, 2000)])
def test_bounds_are_rounded_up_in_words(value: float, exponent: int) -> None:
    digits, _, power = bound_words(value, exponent).partition("e")
    true = Fraction(value) * Fraction(2) ** exponent
    assert true <= Fraction(digits) * Fraction(10) ** int(power) <= true * Fraction(112, 100)
