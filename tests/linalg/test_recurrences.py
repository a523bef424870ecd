"""Iterative methods on operators that are functions: what they call converged is measured, and how else they end."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from eigenproblems import with_eigenvalues
from helpers import Array, gaussian, wide_precision

from dlscale.engine.kept import State
from dlscale.errors import CorruptionError
from dlscale.kernels import safe_norm
from dlscale.linalg.iterative.cg import conjugate_gradients
from dlscale.linalg.iterative.gmres import GMRES
from dlscale.linalg.iterative.minres import MINRES
from dlscale.linalg.iterative.recurrence import GOES_ON, Limits, Problem, Recurrence, iterate

N = 120


def relative(A: Array, X: Array, B: Array) -> Array:
    """``||b - A x|| / ||b||`` of each column, in extended precision."""
    R = B.astype(np.clongdouble) - A.astype(np.clongdouble) @ X.astype(np.clongdouble)
    return np.sqrt((np.abs(R) ** 2).sum(axis=0) / (np.abs(wide_precision(B)) ** 2).sum(axis=0)).astype(float)


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_conjugate_gradients_of_several_columns(dtype: str) -> None:
    """Columns that converge at different times, and one that is zero."""
    A = with_eigenvalues(np.geomspace(1e-3, 1, N)).astype(dtype)
    if dtype == "c16":
        phases = np.exp(1j * np.arange(N))
        A = phases[:, None] * A * phases.conj()
    B = gaussian(N, 4, dtype)
    B[:, 1], B[:, 2] = A @ B[:, 1], 0
    found = conjugate_gradients(lambda X: A @ X, B, tolerance=1e-9)
    assert found.end == "converged"
    assert (relative(A, found.X[:, [0, 1, 3]], B[:, [0, 1, 3]]) <= 1e-9).all()
    assert not found.X[:, 2].any()
    assert found.iterations < 400
    assert len(found.claimed) == found.iterations


def test_a_preconditioner_saves_iterations() -> None:
    scales = np.geomspace(1, 1e4, N)
    A = scales[:, None] * with_eigenvalues(np.linspace(1, 2, N)) * scales
    D = np.diagonal(A)[:, None]
    found = conjugate_gradients(lambda X: A @ X, gaussian(N, 2), lambda R: R / D, tolerance=1e-10)
    assert found.end == "converged"
    assert found.iterations < 30


def test_a_claim_that_does_not_hold_is_not_believed() -> None:
    """The recurrence claims 1e-11 where rounding leaves 1e-8."""
    A, B = with_eigenvalues(np.geomspace(1e-7, 1, 40)), gaussian(40, 1)
    found = conjugate_gradients(lambda X: A @ X, B, tolerance=1e-11, max_iterations=5000)
    assert found.end == "converged" or found.reached[0] > 1e-11
    assert found.end != "converged" or relative(A, found.X, B)[0] <= 1.1e-11
    assert found.measured[:, 1].min() == pytest.approx(found.reached[0])


class Scripted(Recurrence):
    """Claims after one product that ``A D = R`` is solved, by a factor times R for each column."""

    def __init__(self, *factors: list[float]) -> None:
        self.factors = factors

    def begin(self, R: Array) -> State:
        k = R.shape[1]
        return {"R": R, "columns": self.columns, "size": np.ones(k), "code": np.full(k, GOES_ON)}

    def operand(self, state: State) -> Array:
        return state["R"]

    def advance(self, state: State, product: Array) -> State:
        return state | {"size": np.zeros_like(state["size"])}

    def correction(self, state: State) -> Array:
        # How often it has been begun is what is left of the residual.
        left = np.log10(1 / safe_norm(state["R"], axis=0)).round().astype(int)
        return np.array([self.factors[j][i] for j, i in zip(state["columns"], left, strict=True)]) * state["R"]


class Kept(Problem):
    """Keeps each state, and ends before one of a number."""

    def __init__(self, B: Array, states: dict[int, State], stop: int = -1) -> None:
        super().__init__(lambda X: X, B)
        self.states, self.stop = states, stop

    def newest(self) -> tuple[int, State] | None:
        return max(self.states.items(), key=lambda item: item[0]) if self.states else None

    def keep(self, number: int, compute: Callable[[], State]) -> State:
        if number == self.stop:
            raise InterruptedError
        self.states[number] = compute()
        return self.states[number]


def test_a_column_that_ends_goes_back_to_its_best_solution_wherever_it_is_stopped() -> None:
    """Residuals of 1, 0.1 and 0.2, of 1, 0.1 and 0.01, and of 1 and 2: no earlier one was measured."""
    B = np.eye(3)[:, :2]
    method = Scripted([0.9, -1.0], [0.9, 0.9])
    found = iterate(method, Kept(B, {}), Limits(1e-9, 99))
    assert (found.end, len(found.claimed)) == ("stagnated", 2)
    np.testing.assert_allclose(found.measured, [[1, 0.1], [2, 0.2], [2, 0.1]])
    np.testing.assert_allclose(found.reached, [0.1, 0.01])
    np.testing.assert_allclose(found.X, B * [0.9, 0.99])
    for stop in range(1, 6):
        problem = Kept(B, {}, stop)
        with pytest.raises(InterruptedError):
            iterate(method, problem, Limits(1e-9, 99))
        problem.stop = -1
        again = iterate(method, problem, Limits(1e-9, 99)).to_state()
        assert all(again[name].tobytes() == value.tobytes() for name, value in found.to_state().items())
    assert iterate(Scripted([-1.0]), Kept(B[:, :1], {}), Limits(1e-9, 99)).reached == [2.0]


def test_a_checkpoint_of_another_version_is_refused() -> None:
    states: dict[int, State] = {}
    iterate(Scripted([0.9, -1.0]), Kept(np.eye(3)[:, :1], states), Limits(1e-9, 99))
    for state in states.values():
        del state["kept"]
    with pytest.raises(CorruptionError, match="another version's, without kept: start the job again"):
        iterate(Scripted([0.9, -1.0]), Kept(np.eye(3)[:, :1], states), Limits(1e-9, 99))


@pytest.mark.parametrize(
    ("values", "end"),
    [
        (np.concatenate([-np.ones(20), np.full(100, 3.0)]), "not definite"),
        (np.concatenate([np.zeros(20), np.linspace(1, 2, 100)]), "broken down"),
        (np.geomspace(1e-6, 1, 120), "limit"),
    ],
    ids=["indefinite", "singular and inconsistent", "too few iterations"],
)
def test_how_conjugate_gradients_end(values: Array, end: str) -> None:
    A = with_eigenvalues(values)
    found = conjugate_gradients(lambda X: A @ X, gaussian(N, 2), tolerance=1e-8, max_iterations=200)
    assert found.end == end


def test_a_singular_system_that_has_a_solution() -> None:
    A = with_eigenvalues(np.concatenate([np.zeros(20), np.linspace(1, 2, 100)]))
    B = A @ gaussian(N, 2)
    found = conjugate_gradients(lambda X: A @ X, B, tolerance=1e-10)
    assert found.end == "converged"
    assert (relative(A, found.X, B) <= 1e-10).all()


@pytest.mark.parametrize("dtype", ["f8", "c16"])
def test_minimal_residuals_of_an_indefinite_matrix(dtype: str) -> None:
    """The residual that the recurrence carries is the true one, with a preconditioner too."""
    A = with_eigenvalues(np.concatenate([-np.linspace(0.1, 1, N // 2), np.linspace(0.1, 1, N // 2)])).astype(dtype)
    if dtype == "c16":
        phases = np.exp(1j * np.arange(N))
        A = phases[:, None] * A * phases.conj()
    B, D = gaussian(N, 3, dtype), np.linspace(1, 3, N)[:, None]
    method = MINRES(lambda R: R / D)
    state = method.begin(B)
    for _ in range(30):
        state = method.advance(state, A @ method.operand(state))
    np.testing.assert_allclose(B - A @ method.correction(state), state["R"], atol=1e-12)
    found = iterate(method, Problem(lambda X: A @ X, B), Limits(1e-10, 500))
    assert found.end == "converged"
    assert (relative(A, found.X, B) <= 1e-10).all()


@pytest.mark.parametrize("dtype", ["f8", "c16"])
@pytest.mark.parametrize("restart", [10, 200])
def test_gmres_claims_the_true_residual(dtype: str, restart: int) -> None:
    A, B = gaussian(N, N, dtype) / np.sqrt(N) + 3 * np.eye(N), gaussian(N, 3, dtype, seed=1)
    method = GMRES(lambda R: R / np.linspace(1, 3, N)[:, None], restart)
    state = method.begin(B)
    for _ in range(9):
        state = method.advance(state, A @ method.operand(state))
    np.testing.assert_allclose(np.linalg.norm(B - A @ method.correction(state), axis=0), state["size"], rtol=1e-10)
    found = iterate(method, Problem(lambda X: A @ X, B), Limits(1e-10, 500))
    assert found.end == "converged"
    assert (relative(A, found.X, B) <= 1e-10).all()


def test_full_gmres_solves_a_cycle_in_n_steps_and_a_short_one_stagnates() -> None:
    A, B = np.roll(np.eye(N), 1, axis=0), gaussian(N, 1)
    problem = Problem(lambda X: A @ X, B)
    found = iterate(GMRES(restart=N), problem, Limits(1e-12, 500))
    assert (found.end, found.iterations) == ("converged", N)
    unit = Problem(lambda X: A @ X, np.eye(N)[:, :1])
    assert iterate(GMRES(restart=10), unit, Limits(1e-12, 500)).end == "stagnated"
