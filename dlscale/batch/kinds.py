"""The one table of the kinds of job; each is declared in its own file."""

from __future__ import annotations

from collections.abc import Mapping

from dlscale.declaration.kind import Kind
from dlscale.learn import covariate, predicting, training
from dlscale.linalg import cholesky, inverse, lstsq, lu, pca, qr, slogdet, solve, svd

_TABLE = (
    svd.KIND,
    pca.KIND,
    lu.KIND,
    qr.KIND,
    cholesky.KIND,
    solve.KIND,
    lstsq.KIND,
    inverse.KIND,
    slogdet.KIND,
    training.KIND,
    predicting.KIND,
    covariate.KIND,
)
KINDS: Mapping[str, Kind] = {kind.name: kind for kind in _TABLE}
