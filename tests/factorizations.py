"""Factorizations as tests run them: small panels, few of them a group, and the residuals of LAPACK's testers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import zarr
from helpers import THREADS, Array, eps, wide_precision

from dlscale.certificates import LAPACK_THRESHOLD
from dlscale.engine.clusters import Cluster, ClusterFacts, open_cluster
from dlscale.engine.events import Emit, ignore
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.linalg.cholesky.kind import CholeskyOptions, compute_cholesky, plan_cholesky
from dlscale.linalg.lu.kind import LUOptions, compute_lu, plan_lu
from dlscale.linalg.qr.kind import QROptions, compute_qr, plan_qr
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix
from dlscale.storage.results import ResultGroup

KINDS: Mapping[str, tuple[type[Any], Callable[..., Any], Callable[..., Outcome]]] = {
    "lu": (LUOptions, plan_lu, compute_lu),
    "qr": (QROptions, plan_qr, compute_qr),
    "cholesky": (CholeskyOptions, plan_cholesky, compute_cholesky),
}


def factor(
    kind: str,
    source: Any,
    *,
    group: int | None = None,
    facts: ClusterFacts = THREADS,
    cluster: Cluster | None = None,
    passes: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[Outcome, dict[str, Array]]:
    """The outcome, and the arrays of a factorization, certified or not.

    A group of so many panels, instead of what memory asks for, and two finished panels a graph. ``options`` are those of the
    kind, ``passes`` what `Run` takes.
    """
    chosen, plan_of, run = KINDS[kind]
    A = open_matrix(source)
    plan = plan_of(A, chosen(**options), facts)
    if group:
        plan = replace(plan, grids=replace(plan.grids, panels=replace(plan.panels, group=group, streamed=2)))
    with nullcontext(cluster) if cluster else open_cluster(facts) as opened:
        job = Run(opened, **(passes or {}))
        outcome = run(job, A, chosen(**options), plan)
    return outcome, outcome.arrays | job.outputs


def factor_in_files(
    kind: str, source: Any, folder: Path, cluster: Cluster, *, emit: Emit = ignore, **more: Any
) -> dict[str, Array]:
    """The same with the result, finished panels and checkpoints in files, as jobs do; the arrays of the result."""
    group = ResultGroup(folder / "result.zarr")
    given = {"checkpoint": Checkpoint(folder / "checkpoint.zarr"), "result": group, "emit": emit}
    outcome, arrays = factor(kind, source, facts=cluster.facts, cluster=cluster, passes=given, **more)
    outcome.certificate.require()
    for name, array in arrays.items():
        group.put(name, array)
    group.publish({})
    return {name: np.asarray(array) for name, array in zarr.open_group(folder / "result.zarr", mode="r").arrays()}


def lapack_lu(A: Array) -> tuple[Array, Array]:
    """LAPACK's factors and pivots of a matrix of any shape."""
    (getrf,) = scipy.linalg.get_lapack_funcs(("getrf",), (A,))
    lu, piv, _ = getrf(A)
    return lu, piv


def row_order(piv: Array, m: int) -> Array:
    """The order in which LAPACK's exchanges put the rows."""
    order = np.arange(m)
    for i, p in enumerate(piv.tolist()):
        order[[i, p]] = order[[p, i]]
    return order


def scaled_residual(A: Array, *factors: Array) -> float:
    """``||A - product of the factors||_1 / (||A||_1 max(m, n) eps)``: LAPACK's dget01, dpot01, dqrt01; 0 where A is zero."""
    size = np.abs(A).max() or 1.0  # the same for a matrix near the limits of its dtype
    product = wide_precision(factors[0])
    for factor_ in factors[1:]:
        product = product @ wide_precision(factor_)
    difference, scale = np.linalg.norm(wide_precision(A) / size - product / size, 1), np.linalg.norm(wide_precision(A) / size, 1)
    return float(difference / max(scale, np.finfo(float).tiny) / max(A.shape) / eps(A))


def assert_lu(A: Array, lu: Array, piv: Array) -> None:
    """P A = L U to working precision."""
    m, n = A.shape
    k = min(m, n)
    assert lu.shape == A.shape
    assert lu.dtype == A.dtype
    assert piv.shape == (k,)
    L, U = np.tril(lu[:, :k], -1) + np.eye(m, k, dtype=A.dtype), np.triu(lu[:k])
    assert scaled_residual(A[row_order(piv, m)], L, U) < LAPACK_THRESHOLD
    assert np.abs(L).max() <= 1 + eps(A) or np.iscomplexobj(A)


def assert_qr(A: Array, Q: Array, R: Array) -> None:
    """A = Q R to working precision, Q orthonormal, R upper triangular with a positive diagonal."""
    m, n = A.shape
    k = min(m, n)
    assert (Q.shape, R.shape) == ((m, k), (k, n))
    assert Q.dtype == R.dtype == A.dtype
    assert scaled_residual(A, Q, R) < LAPACK_THRESHOLD
    gram = wide_precision(Q).conj().T @ wide_precision(Q)
    assert np.linalg.norm(gram - np.eye(k), 1) / (m * eps(A)) < LAPACK_THRESHOLD
    assert (np.tril(R, -1) == 0).all()
    diagonal = np.diag(R)
    assert (diagonal.real >= 0).all()
    assert (np.abs(diagonal.imag) <= eps(A) * np.abs(diagonal)).all()


def assert_cholesky(A: Array, L: Array) -> None:
    """A = L L^H to working precision, L lower triangular with a positive diagonal."""
    assert L.shape == A.shape
    assert L.dtype == A.dtype
    assert (np.triu(L, 1) == 0).all()
    assert (np.diag(L).real > 0).all()
    assert scaled_residual(A, L, L.conj().T) < LAPACK_THRESHOLD
