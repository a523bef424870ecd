"""Large linear algebra as batch jobs: planned, checkpointed, certified.

import dlscale
dlscale.randomized_svd(A, 50)          # u, s, vh of a NumPy, Dask or Zarr array, a path or a URL
dlscale.svd(A)                         # exact, tall or wide
dlscale.qr(A)                          # q, r of a tall matrix
dlscale.solve(A, b), dlscale.lstsq(A, b), dlscale.inverse(A), dlscale.slogdet(A)
dlscale.cg(S, b), dlscale.minres(S, b), dlscale.gmres(A, b)  # iterations that end with a residual that was measured
dlscale.ridge(A, b, penalties=[0.1, 1, 10]), dlscale.kernel_ridge(X, y, penalties=[0.1, 1]).predict(Z)
dlscale.matmul(A, B), dlscale.matmul(A, adjoint_a=True), dlscale.matrix_power(A, 5)
dlscale.norm(A), dlscale.cond(A), dlscale.matrix_rank(A), dlscale.pinv(A), dlscale.det(A), dlscale.trace(A)
dlscale.eigh(S), dlscale.eigsh(S, 6)    # of a symmetric matrix, proved to be complete
dlscale.polar(A)                       # the nearest matrix with orthonormal columns, and the Hermitian factor
dlscale.PCA(20).fit(A)                 # scikit-learn's estimator contract
dlscale.run("jobs/photo-pca.yaml")     # a job, as `dlscale run` would
dlscale.submit("jobs/photo-pca.yaml")  # the same without waiting for it, as `dlscale submit` would
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlscale.batch.run import run as run
    from dlscale.batch.submit import jobs as jobs
    from dlscale.batch.submit import submit as submit
    from dlscale.linalg.eigen.functions import eigh as eigh
    from dlscale.linalg.eigen.functions import eigsh as eigsh
    from dlscale.linalg.eigen.functions import eigvalsh as eigvalsh
    from dlscale.linalg.factor_functions import cholesky as cholesky
    from dlscale.linalg.factor_functions import lu as lu
    from dlscale.linalg.factor_functions import qr as qr
    from dlscale.linalg.functions import randomized_svd as randomized_svd
    from dlscale.linalg.functions import svd as svd
    from dlscale.linalg.given_operators import Operator as Operator
    from dlscale.linalg.iterative_functions import cg as cg
    from dlscale.linalg.iterative_functions import gmres as gmres
    from dlscale.linalg.iterative_functions import minres as minres
    from dlscale.linalg.kernel_ridge.functions import kernel_ridge as kernel_ridge
    from dlscale.linalg.kernel_ridge.model import KernelRidgeModel as KernelRidgeModel
    from dlscale.linalg.multiply.exponential import expm as expm
    from dlscale.linalg.multiply.functions import matmul as matmul
    from dlscale.linalg.multiply.functions import matrix_power as matrix_power
    from dlscale.linalg.pca.estimator import PCA as PCA
    from dlscale.linalg.polar.functions import polar as polar
    from dlscale.linalg.ridge.functions import ridge as ridge
    from dlscale.linalg.solve_functions import inverse as inverse
    from dlscale.linalg.solve_functions import lstsq as lstsq
    from dlscale.linalg.solve_functions import slogdet as slogdet
    from dlscale.linalg.solve_functions import solve as solve
    from dlscale.linalg.solve_functions import solve_triangular as solve_triangular
    from dlscale.linalg.statistics.functions import cond as cond
    from dlscale.linalg.statistics.functions import det as det
    from dlscale.linalg.statistics.functions import matrix_rank as matrix_rank
    from dlscale.linalg.statistics.functions import norm as norm
    from dlscale.linalg.statistics.functions import pinv as pinv
    from dlscale.linalg.statistics.functions import trace as trace
    from dlscale.service.client import Client as Client

__version__ = "0.1.0"

_PLACES = {
    "randomized_svd": "dlscale.linalg.functions",
    "svd": "dlscale.linalg.functions",
    "lu": "dlscale.linalg.factor_functions",
    "qr": "dlscale.linalg.factor_functions",
    "cholesky": "dlscale.linalg.factor_functions",
    "solve": "dlscale.linalg.solve_functions",
    "lstsq": "dlscale.linalg.solve_functions",
    "solve_triangular": "dlscale.linalg.solve_functions",
    "ridge": "dlscale.linalg.ridge.functions",
    "kernel_ridge": "dlscale.linalg.kernel_ridge.functions",
    "KernelRidgeModel": "dlscale.linalg.kernel_ridge.model",
    "inverse": "dlscale.linalg.solve_functions",
    "slogdet": "dlscale.linalg.solve_functions",
    "norm": "dlscale.linalg.statistics.functions",
    "cond": "dlscale.linalg.statistics.functions",
    "matrix_rank": "dlscale.linalg.statistics.functions",
    "pinv": "dlscale.linalg.statistics.functions",
    "det": "dlscale.linalg.statistics.functions",
    "trace": "dlscale.linalg.statistics.functions",
    "cg": "dlscale.linalg.iterative_functions",
    "gmres": "dlscale.linalg.iterative_functions",
    "minres": "dlscale.linalg.iterative_functions",
    "expm": "dlscale.linalg.multiply.exponential",
    "matmul": "dlscale.linalg.multiply.functions",
    "matrix_power": "dlscale.linalg.multiply.functions",
    "Operator": "dlscale.linalg.given_operators",
    "PCA": "dlscale.linalg.pca.estimator",
    "eigh": "dlscale.linalg.eigen.functions",
    "eigvalsh": "dlscale.linalg.eigen.functions",
    "eigsh": "dlscale.linalg.eigen.functions",
    "polar": "dlscale.linalg.polar.functions",
    "Client": "dlscale.service.client",
    "jobs": "dlscale.batch.submit",
    "run": "dlscale.batch.run",
    "submit": "dlscale.batch.submit",
}
__all__ = [
    "PCA",
    "Client",
    "KernelRidgeModel",
    "Operator",
    "cg",
    "cholesky",
    "cond",
    "det",
    "eigh",
    "eigsh",
    "eigvalsh",
    "expm",
    "gmres",
    "inverse",
    "jobs",
    "kernel_ridge",
    "lstsq",
    "lu",
    "matmul",
    "matrix_power",
    "matrix_rank",
    "minres",
    "norm",
    "pinv",
    "polar",
    "qr",
    "randomized_svd",
    "ridge",
    "run",
    "slogdet",
    "solve",
    "solve_triangular",
    "submit",
    "svd",
    "trace",
]


def __getattr__(name: str) -> Any:
    """Load what is asked for: importing dlscale alone must stay fast."""
    if name not in _PLACES:
        raise AttributeError(f"module 'dlscale' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)
