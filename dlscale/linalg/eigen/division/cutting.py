"""How the parts of a division of n rows are cut: for its plan, and again when its size is known."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.costs import Layout, bytes_of, lay_out
from dlscale.engine.plan import Plan
from dlscale.errors import DoesNotFitError
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.eigen import direct
from dlscale.linalg.multiply.operands import Operand
from dlscale.linalg.multiply.tiling import Tiling, choose_tiling
from dlscale.linalg.panels.plan import FactorOptions, factor_chunks, plan_panels
from dlscale.linalg.polar.start import AtRest
from dlscale.linalg.solve.factoring import assuming, orthogonally

#: Of a worker's memory, what a tile of a product and the strips beside it may take.
_TILE_SHARE = 0.5
#: Columns of panels that are tried beside the usual ones.
_NARROWER = (256, 128, 64)
#: Random vectors on which the pairs are measured.
N_PROBES = direct.N_PROBES


@dataclass(frozen=True)
class Cutting:
    """Of one division.

    Parameters
    ----------
    qr, lu : Plan
        Of the factorizations, with their grids.
    tiling : Tiling
        Of the product of U with random vectors.
    rows : Layout
        Of passes with a few vectors over a matrix that is stored by panels, whose columns are read.
    """

    qr: Plan
    lu: Plan
    tiling: Tiling
    rows: Layout


def cut_division(n: int, dtype: np.dtype[Any], facts: ClusterFacts) -> Cutting:
    """How to divide a matrix (n, n).

    Raises
    ------
    DoesNotFitError
    """
    A = AtRest((n, n), dtype)
    qr, lu = _panels(A, facts)
    tiling = choose_tiling(
        Operand(A), Operand(A), symmetric=False, room_bytes=int(facts.work_bytes * _TILE_SHARE), n_threads=facts.threads_per_worker
    )
    if tiling is None:
        raise DoesNotFitError(
            f"One worker has {facts.memory_bytes / 1e9:.2f} GB, which do not hold a tile of a product of {n} columns; raise "
            "cluster.memory."
        )
    chunks = factor_chunks((n, n), dtype.itemsize, qr.panels)
    return Cutting(qr, lu, tiling, lay_out_rows(AtRest((n, n), dtype, chunks[::-1]), facts))


def _panels(A: AtRest, facts: ClusterFacts) -> tuple[Plan, Plan]:
    """Of the factorizations, with narrower panels than usual where these do not fit."""
    for panel in (None, *(width for width in _NARROWER if width < A.shape[1])):
        try:
            qr = plan_panels(replace(orthogonally("eigh"), step="qr"), A, FactorOptions(panel, row_blocks=1), facts)
            return qr, plan_panels(replace(assuming("eigh", "general"), step="lu"), A, FactorOptions(panel), facts)
        except DoesNotFitError:
            continue
    raise DoesNotFitError(
        f"One worker has {facts.memory_bytes / 1e9:.2f} GB, which do not hold panels of {A.shape[0]} rows; raise cluster.memory, "
        "or use fewer threads."
    )


def lay_out_rows(A: AtRest, facts: ClusterFacts) -> Layout:
    """Of the passes over the rows of the matrix and of its eigenvectors."""
    state = bytes_of(3 * A.shape[0], N_PROBES, dtype=accumulator_dtype(A.dtype))
    # A fold takes a multiple of the identity from a copy of a block.
    return lay_out(A, facts, state_bytes=state, operand_bytes=state, block_factor=4.0)


def largest_at_once(n: int, dtype: np.dtype[Any], facts: ClusterFacts) -> int:
    """The most rows, up to n, of which a worker finds all eigenpairs at once; 0 if it finds none."""
    low, high = 0, n
    while low < high:
        middle = (low + high + 1) // 2
        if direct.choose(middle, middle, "largest", dtype, facts) is None:
            high = middle - 1
        else:
            low = middle
    return low
