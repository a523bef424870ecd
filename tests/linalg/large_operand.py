"""A driver that multiplies by an operand at rest on two workers, and prints by how many bytes its peak memory grew (Linux).

usage: large_operand.py FOLDER N_COLUMNS
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np

from dlscale.engine.clusters import ClusterFacts, open_cluster
from dlscale.engine.clusters.lost_workers import peak_bytes
from dlscale.engine.passes import Passes
from dlscale.engine.run import Run
from dlscale.linalg.operators import MatrixOperator, plan_operator
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix
from dlscale.storage.writers import Layout, create_array

M, WIDTH, STRIP = 20, 64, 10_000


def main(folder: Path, n: int) -> None:
    A = create_array(folder / "A", Layout((M, n), "f8", (M, STRIP)), name="A", checksum=False)
    X = create_array(folder / "X", Layout((n, WIDTH), "f8", (STRIP, WIDTH)), name="X", checksum=False)
    for start in range(0, n, STRIP):
        A.write(0, np.full((M, STRIP), 1.0), start)
        X.write(start, np.full((STRIP, WIDTH), 2.0))
    facts = ClusterFacts("local", 2, 1, 600 * 2**20)
    plan = plan_operator(A.matrix(), WIDTH, facts)
    with open_cluster(facts) as cluster:
        run = Run(cluster, checkpoint=Checkpoint(folder / "checkpoint"))
        operator = MatrixOperator(Passes(run), open_matrix(folder / "A"), plan)
        run.cluster.workers()
        before = peak_bytes(os.getpid())
        Y = operator.apply_at_rest(open_matrix(folder / "X"), "Y")
        Z = operator.adjoint_at_rest(Y, "Z")
        grown = peak_bytes(os.getpid()) - before
    assert (Y.read(0, M) == 2.0 * n).all()
    assert (Z.read(n - 1, n) == 2.0 * n * M).all()
    print(plan.way, grown)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
