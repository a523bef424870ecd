"""Predictions of regressions for new rows, one pass: what a job of kind predict does with their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.certificates import Certificate, Check
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import lay_out, lay_out_sparse, measured_rates
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.plan import Grids, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.errors import InputError, SpecError
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.folds.least_squares import finite
from dlscale.linalg.kernel_ridge.model import KernelRidgeModel
from dlscale.sparse_rows import SparseRows
from dlscale.storage.inputs import Inputs, StoredResult


class Predictor(ABC):
    """A function of rows.

    Attributes
    ----------
    n_features, n_targets : int
    dtype : numpy.dtype
        Of the predictions.
    n_bytes : int
        Of what it holds.
    flops_per_row : float
    takes_sparse : bool
        Whether it takes compressed rows too.
    """

    n_features: int
    n_targets: int
    dtype: np.dtype[Any]
    n_bytes: int
    flops_per_row: float
    takes_sparse = False

    @abstractmethod
    def of(self, A: Any) -> Array:
        """(b, n_targets) of rows (b, n_features)."""


class Linear(Predictor):
    """``A W + c``."""

    takes_sparse = True

    def __init__(self, W: Array, c: Array) -> None:
        self.W, self.c = W, c
        (self.n_features, self.n_targets), self.dtype, self.n_bytes = W.shape, W.dtype, W.nbytes
        self.flops_per_row = 2.0 * W.size

    def of(self, A: Any) -> Array:
        if isinstance(A, SparseRows):
            return A.times(self.W) + self.c
        return np.asarray(A.astype(accumulator_dtype(A.dtype), copy=False) @ self.W + self.c)


class Kernelized(Predictor):
    """``K(A, X) x``."""

    def __init__(self, model: KernelRidgeModel) -> None:
        self.rows, self.P = model.rows, model.dual_coefficients.reshape(len(model.features), -1)
        (n, self.n_features), self.n_targets, self.dtype = model.features.shape, self.P.shape[1], self.P.dtype
        self.n_bytes = 4 * model.features.nbytes + self.P.nbytes
        self.flops_per_row = n * (model.kernel.flops(self.n_features) + 2.0 * self.n_targets)

    def of(self, A: Any) -> Array:
        return self.rows.product(A, self.P)


@dataclass(frozen=True)
class Predictions(Fold):
    """Predictions of a block of rows, for the first output of the pass; with targets, the second matrix, how far these are.

    Notes
    -----
    State: ``rows`` that have a prediction; ``squares`` (k,) of what targets differ; ``count``, ``mean`` and ``spread`` of targets.
    """

    predictor: Predictor

    @property
    def takes_sparse(self) -> bool:  # type: ignore[override]
        return self.predictor.takes_sparse

    @property
    def flops_per_row(self) -> float:
        return self.predictor.flops_per_row

    def start(self) -> State:
        k, wide = self.predictor.n_targets, accumulator_dtype(self.predictor.dtype)
        zeros = {name: np.zeros(k) for name in ("squares", "spread")}
        return {"rows": np.zeros(1), "count": np.zeros(1), "mean": np.zeros(k, wide), **zeros}

    def update(self, state: State, A: Any, first_row: int) -> Sequence[Array]:
        A, *targets = A if isinstance(A, list) else [A]
        Y = self.predictor.of(A)
        # A state that is not finite has the entry named that spoilt it.
        state["rows"] += len(A) if np.isfinite(Y).all() else np.nan
        for T in (T.toarray() if isinstance(T, SparseRows) else T for T in targets):
            mean = finite(T, first_row, role="targets").mean(axis=0, dtype=state["mean"].dtype)
            block = {"count": np.array([float(len(T))]), "mean": mean, "spread": (np.abs(T - mean) ** 2).sum(axis=0)}
            _combine(state, block)
            state["squares"] += (np.abs(T - Y) ** 2).sum(axis=0)
        return (Y.astype(self.predictor.dtype, copy=False),)

    def merge(self, left: State, right: State) -> State:
        if right["count"][0]:
            _combine(left, right)
        left["rows"] += right["rows"]
        left["squares"] += right["squares"]
        return left


def _combine(left: State, right: State) -> None:
    """Counts, means and sums of squares about them, of the union (Chan, Golub, LeVeque, 1983)."""
    n, more = float(left["count"][0]), float(right["count"][0])
    delta = right["mean"] - left["mean"]
    left["mean"] = left["mean"] + delta * (more / (n + more))
    left["spread"] = left["spread"] + right["spread"] + np.abs(delta) ** 2 * (n * more / (n + more))
    left["count"] = left["count"] + more


def predictor_of(result: StoredResult) -> Predictor:
    """What the result of a job of kind ridge or kernel_ridge says of new rows.

    Raises
    ------
    InputError
        If it has lost what that takes.
    """
    if result.kind == "kernel_ridge":
        return Kernelized(KernelRidgeModel.of(result))
    W, c = result.read("coefficients"), result.read("intercept")
    W = W.reshape(len(W), -1)
    if c.shape != (W.shape[1],) or not (np.isfinite(W).all() and np.isfinite(c).all()):
        raise InputError(
            f"input.model: {result.uri} must hold finite coefficients, and an intercept for each target; run its job anew."
        )
    return Linear(W, c)


def plan_predictions(inputs: Inputs, options: Any, facts: ClusterFacts) -> Plan:
    """What the pass costs; refuses rows that the regression cannot take."""
    A, T, predictor = inputs["features"], inputs.get("targets"), predictor_of(inputs.results["model"])
    if A.shape[1] != predictor.n_features:
        raise SpecError(f"input.features: must have {predictor.n_features} columns, like what was fitted; got {A.shape[1]}.")
    if T is not None and T.shape != (A.shape[0], predictor.n_targets):
        raise SpecError(
            f"input.targets: must have {A.shape[0]} rows and {predictor.n_targets} columns; got {T.shape[0]} x {T.shape[1]}."
        )
    if predictor.dtype.kind != "c" and any(M is not None and M.dtype.kind == "c" for M in (A, T)):
        raise SpecError("input.features and input.targets: must be real, as what was fitted is.")
    sparse, block_rows = predictor.takes_sparse and A.is_sparse, options.block_rows
    if sparse:
        # Multiplied in double precision.
        layout = lay_out_sparse(
            A, facts, operand_bytes=2 * predictor.n_bytes, width=predictor.n_targets, state_bytes=4096, block_rows=block_rows
        )
    else:
        layout = lay_out(A, facts, operand_bytes=predictor.n_bytes, state_bytes=4096, block_rows=block_rows)
    written = A.shape[0] * predictor.n_targets * predictor.dtype.itemsize
    read = A.n_stored_bytes + (T.n_stored_bytes if T else 0)
    return Plan(
        kind="predict",
        method="regression",
        words=f"{inputs.results['model'].kind.replace('_', ' ')}, one pass",
        matrix=A.describe(),
        grids=Grids(rows=layout.grid),
        steps=(Step("predict", predictor.flops_per_row * (A.n_entries / A.shape[1] if sparse else A.shape[0]), read, written),),
        memory=layout.memory,
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(A, facts, grid=layout.grid if sparse else None, sparse=sparse),
        notes=(*layout.notes, *A.notes),
    )


def compute_predictions(run: Run, inputs: Inputs, options: Any, plan: Plan) -> Outcome:
    """Write ``predictions`` (m, k) of all rows; with targets, the mean squared error and R^2 of each."""
    A, T, predictor = inputs["features"], inputs.get("targets"), predictor_of(inputs.results["model"])
    output = run.output("predictions", (A.shape[0], predictor.n_targets), predictor.dtype, plan.rows)
    state = Passes(run).sweep("predict", [A, T] if T else [A], Predictions(predictor), plan.rows, outputs=[output])
    estimates: dict[str, Any] = {}
    if T is not None:
        estimates["mean_squared_error"] = float(state["squares"].sum() / A.shape[0])
        spread = float(state["spread"].sum())
        estimates["r2"] = 1 - float(state["squares"].sum()) / spread if spread > 0 else 0.0
    check = Check("rows without a prediction", float(A.shape[0] - state["rows"][0]), 0.0, "every row has its prediction")
    return Outcome({}, ("predictions",), Certificate((check,)), estimates)
