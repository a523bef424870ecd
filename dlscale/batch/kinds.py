"""The one table of the kinds of job; each is declared in its own file, which is loaded when a job of that kind is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from dlscale.declaration.kind import Kind

#: Where the ``KIND`` of each name is.
MODULES = {
    "svd": "dlscale.linalg.svd.kind",
    "pca": "dlscale.linalg.pca.kind",
    "lu": "dlscale.linalg.lu.kind",
    "qr": "dlscale.linalg.qr.kind",
    "cholesky": "dlscale.linalg.cholesky.kind",
    "solve": "dlscale.linalg.solve.kind",
    "lstsq": "dlscale.linalg.lstsq.kind",
    "ridge": "dlscale.linalg.ridge.kind",
    "kernel_ridge": "dlscale.linalg.kernel_ridge.kind",
    "inverse": "dlscale.linalg.solve.inverse",
    "slogdet": "dlscale.linalg.solve.slogdet",
    "matmul": "dlscale.linalg.multiply.kind",
    "norm": "dlscale.linalg.statistics.kind",
    "statistics": "dlscale.linalg.statistics.moments",
    "eigh": "dlscale.linalg.eigen.kind",
    "polar": "dlscale.linalg.polar.kind",
    "train": "dlscale.learn.train",
    "predict": "dlscale.batch.predicting",
    "covariate_weights": "dlscale.learn.covariate",
}


class _Kinds(Mapping[str, Kind]):
    def __getitem__(self, name: str) -> Kind:
        kind: Kind = import_module(MODULES[name]).KIND
        return kind

    def __contains__(self, name: object) -> bool:
        return name in MODULES

    def __iter__(self) -> Iterator[str]:
        return iter(MODULES)

    def __len__(self) -> int:
        return len(MODULES)


KINDS: Mapping[str, Kind] = _Kinds()
