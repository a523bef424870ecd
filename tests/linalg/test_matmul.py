"""Products of matrices in tiles and in passes: right in every form, precision and layout, at every scale, and checked."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
import zarr
from helpers import DTYPES, LAYOUTS, THREADS, M, N, each_of, eps, gaussian, store, wide_precision
from hypothesis import given, settings
from hypothesis import strategies as st

import dlscale
from dlscale.declaration.kind import run_here
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.clusters.opening import open_cluster
from dlscale.engine.events import Event, StepFinished
from dlscale.engine.plan import Step
from dlscale.engine.run import Run
from dlscale.errors import CertificateError, DoesNotFitError, NonFiniteError, NumericalError, SpecError
from dlscale.lapack import multiply_add
from dlscale.linalg.multiply import tiles, tiling
from dlscale.linalg.multiply.kind import KIND, MatmulOptions
from dlscale.linalg.multiply.operands import Operand
from dlscale.linalg.multiply.tiling import choose_tiling, cut
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.chunk_files import GAP_BYTES, LONG_BYTES
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import ArrayMatrix
from dlscale.storage.results import ResultGroup
from dlscale.storage.zarr_matrices import ZarrMatrix

Array = np.ndarray[Any, Any]


def product(a: Any, b: Any = None, **options: Any) -> Array:
    inputs = KIND.inputs({"a": a} | ({} if b is None else {"b": b}))
    return run_here(KIND, inputs, MatmulOptions(**options)).arrays["product"]


def assert_product(C: Array, A: Array, B: Array) -> None:
    """``|C - A B| <= k eps |A| |B|``, entry by entry."""
    A, B = wide_precision(A), wide_precision(B)
    scale = np.abs(A) @ np.abs(B)
    assert C.shape == scale.shape
    assert (np.abs(C - A @ B) <= 2 * A.shape[1] * (eps(C) + 1e-15) * scale).all()


SEVERAL_PIECES = "several pieces of a tile"
#: m, n, k; a tile, why.
SHAPES = {
    "1 x 1": (1, 1, 1, None),
    "several tiles, none of them whole": (100, 130, 70, 32),
    "one tile": (100, 130, 70, None),
    SEVERAL_PIECES: (150, 200, 40, None),
    "a row": (1, 90, 60, 32),
    "a column": (90, 1, 60, 32),
    "a long inner dimension, in a pass": (30, 20, 2000, None),
    "a long inner dimension, in tiles": (30, 20, 2000, 16),
    "a short one": (70, 80, 1, 32),
}


@pytest.fixture
def shape(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, int, int | None]:
    """Of a product, and a tile; where it has to be cut in pieces, these are small ones."""
    m, n, k, tile = SHAPES[name]
    if name == SEVERAL_PIECES:
        for limit, value in {"PIECE_ROWS": 64, "DIAGONAL_ROWS": 64, "PIECE_COLUMNS": 96, "WRITTEN_ROWS": 32}.items():
            monkeypatch.setattr(tiling, limit, value)
        (tile_of_all,) = (cut := tiling.cut((m, n, k), (m, n), (k, k), itemsize=8)).tiles
        assert [len(list(cut.products(*tile_of_all, rows))) for rows in cut.pieces(*tile_of_all)] == [3, 3, 3]
    return m, n, k, tile


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_products_of_every_form(shape: tuple[int, int, int, int | None], dtype: str) -> None:
    m, n, k, tile = shape
    for of_a, of_b in itertools.product((False, True), (False, True)):
        A, B = gaussian(*((k, m) if of_a else (m, k)), dtype, 1), gaussian(*((n, k) if of_b else (k, n)), dtype, 2)
        C = product(A, B, adjoint_a=of_a, adjoint_b=of_b, tile=tile)
        assert C.dtype == A.dtype
        assert_product(C, A.conj().T if of_a else A, B.conj().T if of_b else B)


@each_of(dtype=DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_symmetric_products_are_exactly_hermitian(shape: tuple[int, int, int, int | None], dtype: str) -> None:
    m, _, k, tile = shape
    for adjoint in ("adjoint_a", "adjoint_b"):
        A = gaussian(*((k, m) if adjoint == "adjoint_a" else (m, k)), dtype)
        C = product(A, **{adjoint: True}, tile=tile)
        assert (C == C.conj().T).all()
        AH = A.conj().T
        assert_product(C, *((AH, A) if adjoint == "adjoint_a" else (A, AH)))


def test_symmetric_products_take_half_of_the_flops(tmp_path: Path) -> None:
    path = store(tmp_path / "a.zarr", np.ones((9000, 40)), chunks=(1000, 40), compressors=None)

    def step(options: dict[str, Any], *roles: str) -> Step:
        plan = KIND.plan(KIND.inputs(dict.fromkeys(roles, path)), MatmulOptions(**options), THREADS)
        return next(step for step in plan.steps if step.id == "tiles")

    whole, large = 2.0 * 9000**2 * 40, step({"adjoint_b": True, "symmetric": "never"}, "a")
    assert large.flops == whole
    half = step({"adjoint_b": True}, "a")
    assert half.flops == pytest.approx(whole / 2, rel=0.15)
    assert half == step({"adjoint_b": True}, "a", "b")  # the same store twice
    assert half.efficiency < large.efficiency < 1  # parts of the rate of a square product


@pytest.mark.parametrize("layout", LAYOUTS)
def test_matrices_stored_in_any_layout(layout: str, tmp_path: Path) -> None:
    A, B = gaussian(M, N, seed=3), gaussian(N, 50, seed=4)
    path = store(tmp_path / "a.zarr", A, **LAYOUTS[layout])
    for tile in (None, 64):
        assert_product(product(path, B, tile=tile), A, B)
        assert_product(product(path, A, adjoint_a=True, tile=tile), A.T, A)
        assert_product(product(B, path, adjoint_a=True, adjoint_b=True, tile=tile), B.T, A.T)


def test_arrays_of_any_order_in_memory() -> None:
    A, B = gaussian(90, 80), gaussian(80, 70)
    for left, right in ((np.asfortranarray(A), B[:, ::-1]), (A[::-1], np.asfortranarray(B)), (A[:, ::2], B[::2])):
        assert_product(product(left, right, tile=32), left, right)
    assert_product(product(np.broadcast_to(A[:1], (50, 80)), B, tile=32), np.broadcast_to(A[:1], (50, 80)), B)


def in_files(folder: Path, A: Path, options: MatmulOptions, facts: ClusterFacts, **more: Any) -> Array:
    """The product as a job computes it: with a result and a checkpoint in files."""
    inputs = KIND.inputs({"a": A, "b": A})
    plan = replace(KIND.plan(inputs, options, THREADS), cluster=facts)
    group = ResultGroup(folder / "result.zarr")
    with open_cluster(facts) as cluster:
        run = Run(cluster, checkpoint=Checkpoint(folder / "checkpoint.zarr"), result=group, **more)
        outcome = KIND.compute(run, inputs, options, plan)
    outcome.certificate.require()
    group.publish({})
    return np.asarray(zarr.open_array(folder / "result.zarr" / "product"))


def test_the_same_bits_from_any_number_of_threads_and_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Each tile is a group.
    monkeypatch.setattr("dlscale.engine.columns.GROUP_FLOPS", 1.0)
    path = store(tmp_path / "a.zarr", gaussian(500, 500), chunks=(50, 500), compressors=None)
    options = MatmulOptions(tile=128)
    whole = in_files(tmp_path / "1", path, options, THREADS)
    assert in_files(tmp_path / "2", path, options, replace(THREADS, threads_per_worker=5)).tobytes() == whole.tobytes()
    assert product(path, path, tile=128).tobytes() == whole.tobytes()

    def stop(event: Event) -> None:
        if isinstance(event, StepFinished) and event.step == "tiles-7":
            raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        in_files(tmp_path / "3", path, options, THREADS, emit=stop)
    resumed: list[Event] = []
    assert in_files(tmp_path / "3", path, options, THREADS, emit=resumed.append).tobytes() == whole.tobytes()
    again = [event.step for event in resumed if isinstance(event, StepFinished) and not event.resumed]
    assert again == [f"tiles-{i}" for i in range(8, 17)] + ["check"]


@pytest.mark.parametrize("adjoint", [False, True], ids=["A A", "A^H A"])
def test_one_task_of_all_tiles_computes_the_bits_of_a_task_for_each(
    adjoint: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Strips that the next tile needs too stay, and it is computed where the one before is being written."""
    for name, value in (("STRIPS", (64,)), ("PIECE_ROWS", 48), ("DIAGONAL_ROWS", 32), ("WRITTEN_ROWS", 16)):
        monkeypatch.setattr(f"dlscale.linalg.multiply.tiling.{name}", value)
    path = store(tmp_path / "a.zarr", gaussian(500, 500), chunks=(50, 500), compressors=None)
    options = MatmulOptions(tile=128, adjoint_a=adjoint)
    found = in_files(tmp_path / "1", path, options, replace(THREADS, threads_per_worker=5))
    monkeypatch.setattr("dlscale.engine.columns.GROUP_FLOPS", 1.0)
    assert found.tobytes() == in_files(tmp_path / "2", path, options, THREADS).tobytes()


def test_a_wrong_tile_is_always_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One product of two pieces is left out, or one entry of it is off by a millionth, at a place that is drawn."""
    A, B = gaussian(120, 90), gaussian(90, 110)
    multiply, n_calls, found = tiles.multiply_add, 4 * 4, 0
    for trial in range(100):
        rng = np.random.default_rng(trial)
        calls = iter([False] * int(rng.integers(n_calls)) + [True])

        def spoilt(A: Array, B: Array, C: Array, *, calls: Any = calls, rng: Any = rng, **more: Any) -> Array:
            multiply(A, B, C, **more)
            if next(calls, False):
                if rng.integers(2):
                    C[...] = 0
                else:
                    C[tuple(rng.integers(C.shape))] *= 1 + 1e-6
            return C

        monkeypatch.setattr(tiles, "multiply_add", spoilt)
        with pytest.raises(CertificateError, match="vectors of random signs"):
            product(A, B, tile=32)
        found += 1
    assert found == 100


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_scale_has_the_same_bits(dtype: str, tile: int | None) -> None:
    A, B = gaussian(40, 300, dtype, 1), gaussian(300, 35, dtype, 2)
    whole, real = product(A, B, tile=tile), np.dtype(dtype).char.lower()
    limits = np.finfo(dtype)
    for of_a, of_b in ((limits.maxexp - 4, 0), (limits.maxexp - 4, -limits.maxexp // 2), (limits.minexp + 30, limits.maxexp - 4)):
        two = np.ones(1, real)
        C = product(A * np.ldexp(two, of_a), B * np.ldexp(two, of_b), tile=tile) if of_a + of_b < limits.maxexp - 20 else None
        if C is None:
            with pytest.raises(NumericalError, match="The product overflows"):
                product(A * np.ldexp(two, of_a), B * np.ldexp(two, 20), tile=tile)
        else:
            np.testing.assert_array_equal(C, whole * np.ldexp(two, of_a + of_b))
    small = np.ldexp(np.ones(1, real), limits.minexp + 30)
    with pytest.raises(NumericalError, match="too small for the digits"):
        product(A * small, B * small, tile=tile)
    assert (product(np.zeros_like(A), B, tile=tile) == 0).all()


def test_constant_matrices_pass_their_check() -> None:
    """Sums of equal terms are rounded to the same side; zeros and huge ranges within a matrix are no fault either."""
    for dtype in DTYPES:
        for value in (0.1, 1 / 3, 0.0):
            A = np.full((70, 3000), value, dtype)
            for tile in (None, 64):
                assert_product(product(A, adjoint_b=True, tile=tile), A, A.T)
    graded = gaussian(60, 60) * 10.0 ** np.linspace(-150, 150, 60)[:, None]
    assert_product(product(graded, graded, tile=16), graded, graded)


@pytest.mark.parametrize("role", ["a", "b"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_named(role: str, value: float) -> None:
    given = {"a": gaussian(50, 40), "b": gaussian(40, 30)}
    given[role][17, 9] = value
    with pytest.raises(NonFiniteError, match=rf"input\.{role} contains NaN or infinity: \S+ at row 17, column 9"):
        product(given["a"], given["b"], tile=16)
    if role == "a":
        with pytest.raises(NonFiniteError, match=r"input\.a contains NaN or infinity: \S+ at row 17, column 9"):
            product(given["a"], adjoint_a=True, tile=16)


def test_operands_that_do_not_fit_are_refused_before_any_work() -> None:
    A, B = gaussian(5, 4), gaussian(5, 3)
    with pytest.raises(SpecError, match=r"input\.b: must have 4 rows, as many as input\.a has columns; got 5 x 3 beside 5 x 4"):
        product(A, B)
    with pytest.raises(SpecError, match=r"input\.b: must have 5 columns, as many as input\.a has rows \(params.adjoint_a and adj"):
        product(A, B, adjoint_a=True, adjoint_b=True)
    for both in (False, True):
        with pytest.raises(SpecError, match=r"input\.b: missing; .* exactly one of the two must be true"):
            product(A, adjoint_a=both, adjoint_b=both)
    with pytest.raises(DoesNotFitError, match=r"One worker needs .* raise cluster.memory, or lower params.tile"):
        KIND.plan(KIND.inputs({"a": A, "b": A.T}), MatmulOptions(tile=5000), ClusterFacts("threads", 1, 1, 500))
    assert_product(product(A, B, adjoint_a=True), A.T, B)


def test_mixed_precisions_are_computed_in_the_higher_one() -> None:
    for of_a, of_b in (("f4", "f8"), ("c8", "f8"), ("f8", "c8"), ("i4", "f4")):
        A, B = (3 * gaussian(40, 30)).astype(of_a), gaussian(30, 20).astype(of_b)
        C = product(A, B, tile=16)
        assert C.dtype == np.result_type(A.dtype if of_a != "i4" else "f8", B.dtype)
        assert_product(C, A.astype(C.dtype), B.astype(C.dtype))
    plan = KIND.plan(KIND.inputs({"a": gaussian(9, 9, "f4"), "b": gaussian(9, 9)}), MatmulOptions(), THREADS)
    assert "the matrix is read in float64, the precision of input.b" in plan.notes


@settings(deadline=None, max_examples=100)
@given(
    st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 100_000), st.sampled_from([4, 8, 16]), st.booleans(),
    st.integers(100, 4000),
)  # fmt: skip
def test_tiles_cover_a_product_once_in_whole_chunks(m: int, n: int, k: int, item: int, symmetric: bool, size: int) -> None:
    n = m if symmetric else n
    tiling = cut((m, n, k), (size, size), (512, 512), itemsize=item, symmetric=symmetric)
    covered = np.zeros((len(tiling.row_spans), len(tiling.column_spans)), int)
    for rows, columns in tiling.tiles:
        covered[tiling.row_spans.index(rows), tiling.column_spans.index(columns)] += 1
    assert (covered == (np.triu(np.ones_like(covered)) if symmetric else 1)).all()
    assert tiling.row_spans[-1][1] == m
    assert tiling.column_spans[-1][1] == n
    assert not symmetric or tiling.row_spans == tiling.column_spans
    assert all(top % tiling.chunk_rows == 0 for top, _ in tiling.row_spans)
    spans = [*tiling.written((0, tiling.rows)), *tiling.pieces((0, tiling.rows), (0, tiling.columns))]
    assert all(top % tiling.chunk_rows == 0 for top, _ in spans)
    ahead = [rows == before[0] or columns == before[1] for before, (rows, columns) in itertools.pairwise(tiling.tiles)]
    assert symmetric or all(ahead)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60_000), st.integers(1, 60_000), st.integers(1, 60_000), st.integers(27, 34))
def test_tiles_read_what_the_formula_says_and_fit(m: int, n: int, k: int, memory: int) -> None:
    a, b = (Operand(ArrayMatrix(np.broadcast_to(np.zeros(1), shape))) for shape in ((m, k), (k, n)))
    tiling = choose_tiling(a, b, symmetric=False, room_bytes=2**memory, n_threads=2)
    assert tiling is not None
    assert sum(tiling.work_entries) * 8 <= 2**memory
    n_down, n_across = len(tiling.row_spans), len(tiling.column_spans)
    assert tiling.bytes_read(a, b) == 8 * k * (m * n_across + n * n_down)
    assert tiling.flops == 2.0 * m * n * k


@pytest.mark.parametrize(
    ("adjoint", "chunks", "most"), [(False, (10, 6000), 1.01), (True, (10, 6000), 1.01), (False, (700, 700), 1.2)]
)
def test_bytes_read_are_counted_by_the_chunks(adjoint: bool, chunks: tuple[int, int], most: float, tmp_path: Path) -> None:
    """What is read for parts of chunks is in the plan, which chooses strips and tiles that read little in vain."""
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(6000, 6000), chunks=chunks, dtype="f8", compressors=None)
    a, b = Operand(open_matrix(path), adjoint), Operand(open_matrix(path))
    tiling = choose_tiling(a, b, symmetric=False, room_bytes=9 * 10**8, n_threads=2)
    assert tiling is not None
    formula = 8 * 6000**2 * (len(tiling.column_spans) + len(tiling.row_spans))
    assert formula <= tiling.bytes_read(a, b) <= most * formula


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 60_000), st.integers(1, 60_000), st.integers(0, 59_999), st.integers(1, 60_000))
def test_of_a_chunk_its_columns_are_read_alone_where_they_or_the_others_are_long(n: int, unit: int, start: int, width: int) -> None:
    unit, start = max(min(unit, n), n // 100), min(start, n - 1)
    stop = min(n, start + width)
    matrix = ArrayMatrix(np.broadcast_to(np.zeros(1), (1, n)))
    matrix.in_memory, matrix.any_range, matrix.column_unit = False, True, unit
    expected = 0
    for left in range(0, n, unit):
        wanted = 8 * max(0, min(stop, left + unit) - max(start, left))
        alone = wanted >= LONG_BYTES or 8 * unit - wanted >= GAP_BYTES
        expected += 0 if not wanted else wanted if alone else 8 * min(unit, n - left)
    assert Operand(matrix).bytes_read([(0, 1)], [(start, stop)]) == expected


@pytest.mark.parametrize(("adjoint", "far"), [(False, False), (True, False), (False, True)])
def test_a_tile_goes_across_whole_rows_of_chunks_where_little_more_is_read(adjoint: bool, far: bool, tmp_path: Path) -> None:
    """Whole rows are read past the page cache; of the other operand as little as possible comes in pieces of rows. From another
    machine as little as possible is read."""
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(20000, 20000), chunks=(64, 20000), dtype="f8", compressors=None)
    a, b = Operand(open_matrix(path)), Operand(open_matrix(path), adjoint)
    a.matrix.is_far = b.matrix.is_far = far
    found = choose_tiling(a, b, symmetric=False, room_bytes=13 * 10**8, n_threads=2, n_tiles=4)
    assert found is not None
    # Four tiles of equal sides read each operand twice.
    assert found.bytes_read(a, b) <= 1.3 * 2 * (a.matrix.n_stored_bytes + b.matrix.n_stored_bytes)
    assert (found.columns == 20000) == (not adjoint and not far)
    assert b.reads_whole_rows(found.strips_b, found.column_spans) == (not adjoint and not far)


def test_tiles_fill_the_memory_and_each_thread_has_its_pieces_of_one(tmp_path: Path) -> None:
    """Of tiles that differ by an eighth one fits that reads a fifth less than where they differ by half; two threads have two
    pieces each, not three of which one waits for the other."""
    path = tmp_path / "a.zarr"
    zarr.create_array(path, shape=(20000, 20000), chunks=(4096, 4096), dtype="f8", compressors=None)
    operand = Operand(open_matrix(path))
    found = choose_tiling(operand, operand, symmetric=False, room_bytes=1234 * 10**6, n_threads=2, n_tiles=4)
    assert found is not None
    assert found.bytes_read(operand, operand) <= 19.3e9
    symmetric = choose_tiling(Operand(operand.matrix, adjoint=True), operand, symmetric=True, room_bytes=2 * 10**9, n_threads=2)
    assert symmetric is not None
    for tiling_of, tile in ((found, found.tiles[0]), (symmetric, symmetric.tiles[1])):
        assert sum(len(list(tiling_of.products(*tile, piece))) for piece in tiling_of.pieces(*tile)) == 4


@pytest.mark.parametrize("slow", [False, True])
def test_whole_rows_are_read_past_the_page_cache_where_the_disk_keeps_up(
    slow: bool, on_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where products wait for the disk the cache may have them; the bits are the same."""
    A, B = gaussian(64, 384), gaussian(384, 512, seed=1)
    a = store(on_disk / "a.zarr", A, chunks=(64, 384), compressors=None)
    b = store(on_disk / "b.zarr", B, chunks=(64, 512), compressors=None)
    for name, value in (("STRIPS", (64,)), ("LONG_STRIP", 64)):
        monkeypatch.setattr(f"dlscale.linalg.multiply.tiling.{name}", value)
    reads, read = list[bool](), ZarrMatrix.region

    def multiplying(*given: Any, **named: Any) -> None:
        time.sleep(0.0 if slow else 0.1)
        multiply_add(*given, **named)

    def reading(self: ZarrMatrix, rows: Any, columns: Any, out: Any = None) -> Array:
        if rows[1] - rows[0] == 64 and columns == (0, 512):
            reads.append(self.past_cache)
            time.sleep(0.1 if slow and self.past_cache else 0.0)
        return read(self, rows, columns, out)

    monkeypatch.setattr(ZarrMatrix, "region", reading)
    monkeypatch.setattr(tiles, "multiply_add", multiplying)
    found = product(a, b, tile=512)
    assert sum(reads[-6:]) == (tiles._OFTEN + 1 if slow else 6)
    assert found.tobytes() == product(A, B, tile=512).tobytes()


def test_matmul_takes_what_numpy_takes() -> None:
    A, B, x, y = gaussian(30, 20), gaussian(20, 25), gaussian(20, 1)[:, 0], gaussian(30, 1)[:, 0]
    for left, right in ((A, B), (A, x), (y, A), (x, x)):
        found, expected = dlscale.matmul(left, right), np.matmul(left, right)
        assert np.shape(found) == np.shape(expected)
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(dlscale.matmul(A, adjoint_a=True), A.T @ A, rtol=1e-12, atol=1e-12)
    gram = dlscale.matmul(A, A, adjoint_b=True)
    assert (gram == gram.T).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_powers_of_matrices(dtype: str) -> None:
    A = gaussian(20, 20, dtype) / 4 + 2 * np.eye(20, dtype=dtype)
    for n in (0, 1, 2, 3, 6, 7, -1, -3):
        found, expected = dlscale.matrix_power(A, n), np.linalg.matrix_power(A, n)
        assert found.dtype == A.dtype
        np.testing.assert_allclose(found, expected, rtol=0, atol=2000 * eps(A) * np.abs(expected).max())
    with pytest.raises(SpecError, match=r"n must be an integer; got 1\.5"):
        dlscale.matrix_power(A, 1.5)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="must be square to have powers; got 3 x 4"):
        dlscale.matrix_power(np.ones((3, 4)), 2)
    with pytest.raises(NumericalError, match="singular to working precision"):
        dlscale.matrix_power(np.zeros((3, 3)), -2)
    A = np.eye(3, dtype=dtype)
    A[1, 2] = np.nan
    for n in (-1, 1, 2, 3):
        with pytest.raises(NonFiniteError, match=r"nan.* at row 1, column 2"):
            dlscale.matrix_power(A, n)


@pytest.mark.parametrize("form", ["plain", "gram", "compressed", "tiles"])
@each_of(dtype=DTYPES)
def test_what_is_large_takes_nothing_of_what_is_small(dtype: str, form: str) -> None:
    """Products of rows and columns of sizes as far apart as a product in range allows, entry by entry."""
    limits, rng = np.finfo(dtype), np.random.default_rng(5)
    reach = limits.maxexp // 2 - 14 if form == "gram" else limits.maxexp - 30
    A, B = gaussian(12, 7, dtype), gaussian(7, 9, dtype, seed=1)
    rows, columns = rng.integers(-reach, reach, 12), rng.integers(-20, 10, 9)
    rows[0], rows[1] = reach, -reach
    wide = np.clongdouble if A.dtype.kind == "c" else np.longdouble
    big = (A.astype(wide) * np.ldexp(np.longdouble(1), rows)[:, None]).astype(dtype)
    other = big.conj().T if form == "gram" else (B * np.ldexp(1.0, columns)).astype(dtype)
    left: Any = scipy.sparse.csr_array(big) if form == "compressed" else big
    options = MatmulOptions(adjoint_b=True) if form == "gram" else MatmulOptions(tile=4 if form == "tiles" else None)
    here = run_here(KIND, KIND.inputs({"a": left} if form == "gram" else {"a": left, "b": other}), options)
    with np.errstate(under="ignore"):
        exact, sizes = big.astype(wide) @ other.astype(wide), np.abs(big.astype(wide)) @ np.abs(other.astype(wide))
    lost = np.longdouble(limits.smallest_subnormal) * 60
    assert (np.abs(here.arrays["product"] - exact) <= 60 * limits.eps * sizes + lost).all()
    assert "is what underflow may take" in here.outcome.certificate.checks[0].meaning
    assert not here.outcome.notes or not any("scale" in note for note in here.outcome.notes)
