"""Systems that are solved by iterations: what is hard for them, how they are run, stopped and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from eigenproblems import with_eigenvalues
from helpers import THREADS, Array

from dlscale import gallery
from dlscale.declaration.kind import run_here
from dlscale.engine.clusters import open_cluster
from dlscale.engine.plan import Plan
from dlscale.engine.run import Run
from dlscale.linalg.solve.kind import KIND, SolveOptions
from dlscale.storage.checkpoints import Checkpoint

#: Their order, but for the hard ones.
N = 150


def computed(A: Any, B: Any, **options: Any) -> Any:
    return run_here(KIND, KIND.inputs({"matrix": A, "rhs": B}), SolveOptions(**options))


def relative(A: Array, X: Array, B: Array) -> float:
    """The largest ``||b - A x|| / ||b||``, in extended precision."""
    A, X, B = (array.astype(np.clongdouble) for array in (A, X, B))
    sizes = np.sqrt((np.abs(B) ** 2).sum(axis=0))
    return float((np.sqrt((np.abs(B - A @ X) ** 2).sum(axis=0)) / np.where(sizes > 0, sizes, 1)).max())


def definite(cond: float, n: int = N) -> Array:
    return with_eigenvalues(np.geomspace(1 / cond, 1, n))


def hard_systems() -> dict[str, Array]:
    """Matrices of order 40, most of them hard for one method or another; what for is in their names."""
    n, rng = 40, np.random.default_rng(5)
    signs, grades = np.where(np.arange(n) % 2, 1.0, -1.0), np.geomspace(1e-4, 1e4, n)
    Q, P = (np.linalg.qr(rng.standard_normal((n, n)))[0] for _ in range(2))
    near = rng.standard_normal((n, n)) / 13 + 2 * np.eye(n)
    gaps = {f"condition 1e{p}": np.geomspace(10.0**-p, 1, n) for p in (1, 4, 8, 12)}
    zeros = np.concatenate([np.zeros(6), np.linspace(1, 2, n - 6)])
    return {
        **{f"definite, {name}": with_eigenvalues(values) for name, values in gaps.items()},
        **{f"indefinite, {name}": with_eigenvalues(values * signs) for name, values in gaps.items()},
        **{f"no symmetry, {name}": (Q * values) @ P.T for name, values in gaps.items()},
        "few eigenvalues are small": with_eigenvalues(np.concatenate([np.geomspace(1e-8, 1e-6, 6), np.ones(n - 6)])),
        "second differences": 2 * np.eye(n) - np.eye(n, k=1) - np.eye(n, k=-1),
        "hilbert": gallery.hilbert(n),
        "definite, badly scaled": grades[:, None] * with_eigenvalues(np.linspace(1, 2, n)) * grades,
        "indefinite, badly scaled": grades[:, None] * with_eigenvalues(signs) * grades,
        "no symmetry, rows badly scaled": grades[:, None] * near,
        "no symmetry, columns badly scaled": near * grades,
        "plus and minus one": np.diag(signs),
        "semidefinite": with_eigenvalues(zeros),
        "singular and indefinite": with_eigenvalues(zeros * signs),
        "singular without symmetry": (Q * zeros) @ P.T,
        "rank one": np.outer(Q[0], Q[0]),
        "zeros": np.zeros((n, n)),
        "identity": np.eye(n),
        "near the identity": near,
        "a cycle": np.roll(np.eye(n), 1, axis=0),
        "a Jordan block": np.eye(n) + 0.9 * np.eye(n, k=1),
        "nilpotent": np.eye(n, k=1),
        "grcar": np.eye(n) - np.eye(n, k=-1) + sum(np.eye(n, k=k) for k in (1, 2, 3)),
        "kahan": gallery.kahan(n),
    }


def resumed_or_whole(path: Path, rhs: Path, folder: Path | None, method: Any, *, stop_at: str = "", **more: Any) -> Any:
    """x and the steps that were computed; a run with a checkpoint may be stopped by a disk that is gone."""
    inputs, options = KIND.inputs({"matrix": str(path), "rhs": str(rhs)}), SolveOptions(method=method, tolerance=1e-10, **more)
    plan: Plan = KIND.plan(inputs, options, THREADS)
    steps: list[str] = []

    def emit(event: Any) -> None:
        if event.word == "pass_started":
            steps.append(event.step)
            if event.step == stop_at:
                raise OSError("the disk is gone")

    with open_cluster(THREADS) as cluster:
        run = Run(cluster, checkpoint=folder and Checkpoint(folder), emit=emit)
        outcome = KIND.compute(run, inputs, options, plan)
    return [outcome.arrays[name].tobytes() for name in sorted(outcome.arrays)], steps
