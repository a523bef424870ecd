"""A pytest plugin: NumPy's and SciPy's own tests of linear algebra, with dlscale's functions where theirs were.

It runs in a process of its own (`running.py`), for their tests come with their own options, marks and warnings. What dlscale does
not take by design (stacks, empty arrays, long double, options of LAPACK's drivers) goes to the original function.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.linalg
from numpy.linalg._linalg import QRResult, SlogdetResult, SVDResult

import dlscale

#: How often each function of dlscale answered.
served: Counter[str] = Counter()


#: Calls with the same function, shapes and dtypes that are answered by dlscale; all of them with DLSCALE_PEERS=all.
LIMIT = 10**9 if os.environ.get("DLSCALE_PEERS") == "all" else 2

LARGE_POWER = 2**60

_asked: Counter[Any] = Counter()


def ours(name: str, *arrays: Any, square: bool = False) -> bool:
    """Whether these are a matrix, and right-hand sides, that dlscale is for, and it was not asked the like often enough."""
    given = [np.asarray(array) for array in arrays]
    for array, dimensions in zip(given, ((2,), (1, 2)), strict=False):
        narrow = array.dtype.kind in "biufc" and array.dtype.itemsize <= (16 if array.dtype.kind == "c" else 8)
        if not narrow or array.dtype == np.float16 or array.ndim not in dimensions or 0 in array.shape:
            return False
    if any(array.shape[0] != given[0].shape[0] for array in given) or (square and given[0].shape[0] != given[0].shape[1]):
        return False
    _asked[name, *((array.shape, array.dtype) for array in given)] += 1
    return _asked[name, *((array.shape, array.dtype) for array in given)] <= LIMIT


def is_whole(a: Any) -> bool:
    """Whether a matrix is Hermitian as it stands; SciPy takes one triangle for the whole, and dlscale what it is given."""
    return np.array_equal(a, np.asarray(a).conj().T)


def call(name: str, *arguments: Any, **options: Any) -> Any:
    """An answer of dlscale; what it cannot compute is a `numpy.linalg.LinAlgError`."""
    served[name] += 1
    return getattr(dlscale, name)(*map(np.asarray, arguments), **options)


def like(result: Any, given: Any) -> Any:
    """A result as the subclass of ndarray that was given."""
    return result.view(type(given)) if isinstance(given, np.ndarray) and type(given) is not np.ndarray else result


class NumPy:
    """`numpy.linalg` by dlscale."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np.linalg, name)

    def solve(self, a: Any, b: Any) -> Any:
        if not ours("solve", a, b, square=True):
            return np.linalg.solve(a, b)
        return like(call("solve", a, b), b)

    def inv(self, a: Any) -> Any:
        return like(call("inverse", a), a) if ours("inverse", a, square=True) else np.linalg.inv(a)

    def slogdet(self, a: Any) -> Any:
        if not ours("slogdet", a, square=True):
            return np.linalg.slogdet(a)
        sign, logarithm = call("slogdet", a)
        dtype = np.result_type(np.asarray(a).dtype, np.float32) if np.asarray(a).dtype.kind in "fc" else np.dtype(float)
        return SlogdetResult(dtype.type(sign), np.zeros(0, dtype).real.dtype.type(logarithm))

    def det(self, a: Any) -> Any:
        if not ours("det", a, square=True):
            return np.linalg.det(a)
        return call("det", a)

    def norm(self, x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
        vector = np.ndim(x) == 1
        column = np.asarray(x)[:, None] if vector else x
        orders = (None, 2, 1, np.inf, -np.inf) if vector else (None, "fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf)
        if axis is not None or keepdims or ord not in orders or not ours(f"norm {ord}", column):
            return np.linalg.norm(x, ord, axis, keepdims)
        return call("norm", x, ord=ord)

    def cond(self, x: Any, p: Any = None) -> Any:
        if not ours(f"cond {p}", x, square=p not in (None, 2, -2)) or p == "nuc":
            return np.linalg.cond(x, p)
        return call("cond", x, p=p)

    def matrix_rank(self, A: Any, tol: Any = None, hermitian: bool = False, *, rtol: Any = None) -> Any:
        if (tol is not None and rtol is not None) or np.ndim(tol) or np.ndim(rtol) or not ours("matrix_rank", A):
            return np.linalg.matrix_rank(A, tol, hermitian, rtol=rtol)
        return call("matrix_rank", A, tol=tol, rtol=rtol)

    def pinv(self, a: Any, rcond: Any = None, hermitian: bool = False, **options: Any) -> Any:
        if options or np.ndim(rcond) or not ours("pinv", a):
            return np.linalg.pinv(a, rcond, hermitian, **options)
        return like(call("pinv", a, rcond=1e-15 if rcond is None else rcond), a)

    def matrix_power(self, a: Any, n: Any) -> Any:
        if not isinstance(n, int) or np.asarray(a).dtype.kind not in "fc" or not ours("matrix_power", a, square=True):
            return np.linalg.matrix_power(a, n)
        if abs(n) >= LARGE_POWER:  # a hundred products, in whatever dtype
            _asked["large power"] += 1
            if _asked["large power"] > LIMIT:
                return np.linalg.matrix_power(a, n)
        return like(call("matrix_power", a, n=n), a)

    def trace(self, x: Any, /, *, offset: int = 0, dtype: Any = None) -> Any:
        if dtype is not None or np.asarray(x).dtype.kind not in "fc" or not ours("trace", x):
            return np.linalg.trace(x, offset=offset, dtype=dtype)
        return call("trace", x, offset=offset)

    def matmul(self, x1: Any, x2: Any, /) -> Any:
        if np.ndim(x2) != 2 or not ours("matmul", x1) or not ours("matmul", x2) or np.asarray(x1).dtype.kind not in "fc":
            return np.linalg.matmul(x1, x2)
        return call("matmul", x1, x2)

    def lstsq(self, a: Any, b: Any, rcond: Any = None) -> Any:
        if not ours("lstsq", a, b):
            return np.linalg.lstsq(a, b, rcond)
        x, residuals, rank, s = call("lstsq", a, b, rcond=np.finfo(float).eps if rcond == -1 else rcond)
        m, n = np.asarray(a).shape
        real = x.real.dtype
        return like(x, b), like(np.array(residuals if rank == n < m else [], real), b), rank, like(s, b)

    def qr(self, a: Any, mode: str = "reduced") -> Any:
        if mode not in ("reduced", "r") or not ours(f"qr {mode}", a):
            return np.linalg.qr(a, mode)
        if mode == "r":
            return like(call("qr", a, mode="r"), a)
        q, r = call("qr", a)
        return QRResult(like(q, a), like(r, a))

    def cholesky(self, a: Any, *, upper: bool = False) -> Any:
        if not ours("cholesky", a, square=True):
            return np.linalg.cholesky(a, upper=upper)
        L = call("cholesky", a).l
        return like(L.T.conj() if upper else L, a)

    def svd(self, a: Any, full_matrices: bool = True, compute_uv: bool = True, hermitian: bool = False) -> Any:
        if hermitian or not ours("svd", a, square=compute_uv and full_matrices):
            return np.linalg.svd(a, full_matrices, compute_uv, hermitian)
        u, s, vh = call("svd", a)
        return SVDResult(like(u, a), s, like(vh, a)) if compute_uv else s


class NumPyWithout:
    """NumPy, whose ``linalg`` is dlscale's."""

    linalg = NumPy()

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


OVERWRITE = ("overwrite_a", "overwrite_b")
ASSUMED = {None: "general", "gen": "general", "general": "general", "sym": "sym", "her": "sym", "pos": "pos"}
TRIANGULAR = {"lower triangular": True, "upper triangular": False}
ASSUMED |= {"symmetric": "sym", "hermitian": "sym", "positive definite": "pos"}


def solve(a: Any, b: Any, lower: bool = False, assume_a: Any = None, transposed: bool = False, **options: Any) -> Any:
    if lower or any(options.get(key) for key in OVERWRITE) or not ours(f"solve {assume_a} {transposed}", a, b, square=True):
        return scipy.linalg.solve(a, b, lower=lower, assume_a=assume_a, transposed=transposed, **options)
    if assume_a in TRIANGULAR:
        return call("solve_triangular", a, b, trans=int(transposed), lower=TRIANGULAR[assume_a])
    if assume_a not in ASSUMED or (ASSUMED[assume_a] != "general" and not is_whole(a)):
        return scipy.linalg.solve(a, b, assume_a=assume_a, transposed=transposed, **options)
    return call("solve", a, b, assume=ASSUMED[assume_a], transposed=transposed)


def solve_triangular(
    a: Any, b: Any, trans: Any = 0, lower: bool = False, unit_diagonal: bool = False, overwrite_b: bool = False, **options: Any
) -> Any:
    if overwrite_b or not ours(f"solve_triangular {trans} {lower}", a, b, square=True):
        return scipy.linalg.solve_triangular(a, b, trans, lower, unit_diagonal, overwrite_b, **options)
    return call("solve_triangular", a, b, trans=trans, lower=lower, unit_diagonal=unit_diagonal)


def inv(a: Any, *, assume_a: Any = None, lower: bool = False, **options: Any) -> Any:
    if lower or options.get("overwrite_a") or assume_a not in ASSUMED or not ours("inverse", a, square=True):
        return scipy.linalg.inv(a, assume_a=assume_a, lower=lower, **options)
    if ASSUMED[assume_a] != "general" and not is_whole(a):
        return scipy.linalg.inv(a, assume_a=assume_a, **options)
    return call("inverse", a, assume=ASSUMED[assume_a])


def det(a: Any, **options: Any) -> Any:
    if options.get("overwrite_a") or not ours("det", a, square=True):
        return scipy.linalg.det(a, **options)
    sign, logarithm = call("slogdet", a)
    return np.result_type(np.asarray(a).dtype, float).type(sign * np.exp(logarithm))


def lstsq(a: Any, b: Any, cond: Any = None, **options: Any) -> Any:
    if not ours("lstsq", a, b):
        return scipy.linalg.lstsq(a, b, cond, **options)
    x, residuals, rank, s = call("lstsq", a, b, rcond=cond)
    m, n = np.asarray(a).shape
    squares = np.array(residuals if m > n and rank == n else [], x.real.dtype)
    return x, squares[0] if np.ndim(b) == 1 and len(squares) else squares, rank, s


def lu_factor(a: Any, **options: Any) -> Any:
    return tuple(call("lu", a)) if ours("lu", a) else scipy.linalg.lu_factor(a, **options)


def lu(a: Any, permute_l: bool = False, p_indices: bool = False, **options: Any) -> Any:
    if not ours("lu", a):
        return scipy.linalg.lu(a, permute_l=permute_l, p_indices=p_indices, **options)
    packed, piv = call("lu", a)
    m, k = len(packed), min(packed.shape)
    rows = np.arange(m)
    for i, j in enumerate(piv):
        rows[[i, j]] = rows[[j, i]]
    L, U = np.tril(packed[:, :k], -1) + np.eye(m, k, dtype=packed.dtype), np.triu(packed[:k])
    P = np.eye(m, dtype=packed.real.dtype)[:, rows]
    if permute_l:
        return P @ L, U
    return (np.argsort(rows) if p_indices else P), L, U


def cholesky(a: Any, lower: bool = False, **options: Any) -> Any:
    if not ours("cholesky", a, square=True):
        return scipy.linalg.cholesky(a, lower=lower, **options)
    L = call("cholesky", a).l
    return L if lower else L.T.conj()


def qr(a: Any, overwrite_a: bool = False, lwork: Any = None, mode: str = "full", pivoting: bool = False, **options: Any) -> Any:
    full = mode == "full" and np.asarray(a).ndim == 2 and np.asarray(a).shape[0] <= np.asarray(a).shape[1]
    if lwork is not None or not (full or mode == "economic") or not ours(f"qr {mode} {pivoting}", a):
        return scipy.linalg.qr(a, overwrite_a, lwork, mode, pivoting, **options)
    q, r, *p = call("qr", a, pivoting=pivoting)
    return (q, r, *(order.astype(np.int32) for order in p))


def svd(a: Any, full_matrices: bool = True, compute_uv: bool = True, overwrite_a: bool = False, **options: Any) -> Any:
    if not ours("svd", a, square=compute_uv and full_matrices):
        return scipy.linalg.svd(a, full_matrices, compute_uv, overwrite_a, **options)
    found = call("svd", a)
    return tuple(found) if compute_uv else found.s


def svdvals(a: Any, **options: Any) -> Any:
    return call("svd", a).s if ours("svd", a) else scipy.linalg.svdvals(a, **options)


FUNCTIONS = (solve, solve_triangular, inv, det, lstsq, lu_factor, lu, cholesky, qr, svd, svdvals)
SCIPY: dict[str, Callable[..., Any]] = {f.__name__: f for f in FUNCTIONS}

#: What NumPy's tests import by name.
IMPORTED = ("norm", "matrix_rank", "matrix_power")
_failed: dict[str, str] = {}
_passed: list[str] = []


def pytest_sessionstart() -> None:
    """One session may follow another."""
    for counted in (served, _asked, _failed, _passed):
        counted.clear()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Put dlscale's functions in the modules of the tests."""
    for module in {item.module for item in items}:
        if module.__name__.startswith("numpy."):
            module.linalg, module.np = NumPy(), NumPyWithout()
            vars(module).update({name: getattr(module.linalg, name) for name in IMPORTED if name in vars(module)})
        else:
            vars(module).update({name: function for name, function in SCIPY.items() if name in vars(module)})


def pytest_runtest_logreport(report: Any) -> None:
    if report.failed:
        _failed[report.nodeid.split("::", 1)[1]] = str(report.longrepr)[-3000:]
    elif report.when == "call" and report.passed:
        _passed.append(report.nodeid)


def pytest_sessionfinish() -> None:
    with open(os.environ["PEERS_RECORD"], "w", encoding="utf-8") as file:
        json.dump({"failed": _failed, "passed": len(_passed), "served": served}, file)
