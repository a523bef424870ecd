"""The one table of the kinds of job; each is declared in its own file."""

from __future__ import annotations

from collections.abc import Mapping

from dlscale.batch import predicting
from dlscale.declaration.kind import Kind
from dlscale.learn import covariate
from dlscale.learn import train as training
from dlscale.linalg.cholesky import kind as cholesky
from dlscale.linalg.eigen import kind as eigh
from dlscale.linalg.kernel_ridge import kind as kernel_ridge
from dlscale.linalg.lstsq import kind as lstsq
from dlscale.linalg.lu import kind as lu
from dlscale.linalg.multiply import kind as matmul
from dlscale.linalg.pca import kind as pca
from dlscale.linalg.polar import kind as polar
from dlscale.linalg.qr import kind as qr
from dlscale.linalg.ridge import kind as ridge
from dlscale.linalg.solve import inverse, slogdet
from dlscale.linalg.solve import kind as solve
from dlscale.linalg.statistics import kind as norm
from dlscale.linalg.statistics import moments as statistics
from dlscale.linalg.svd import kind as svd

_TABLE = (
    svd.KIND,
    pca.KIND,
    lu.KIND,
    qr.KIND,
    cholesky.KIND,
    solve.KIND,
    lstsq.KIND,
    ridge.KIND,
    kernel_ridge.KIND,
    inverse.KIND,
    slogdet.KIND,
    matmul.KIND,
    norm.KIND,
    statistics.KIND,
    eigh.KIND,
    polar.KIND,
    training.KIND,
    predicting.KIND,
    covariate.KIND,
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _TABLE}
