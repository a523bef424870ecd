"""Products of two matrices: ``op(A) op(B)``, where each op is nothing or the adjoint.

Three ways, by what A is and by the shapes:

- where A is sparse by its rows, and a worker holds B: one pass over A, of which only what is stored is multiplied (`sparse_rows`);
- tiles of C, each owned by one task that streams strips of A and B past it (`tiling`);
- where the inner dimension is long beside C: one pass over it, which reads A and B once (`long_products`).

``A^H A`` and ``A A^H`` are computed by half of the products, and are exactly Hermitian.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.arrays import Array
from dlscale.certificates import Certificate
from dlscale.declaration.kind import Kind, Role
from dlscale.declaration.options import Options
from dlscale.declaration.sections import Planned
from dlscale.engine.clusters import ClusterFacts
from dlscale.engine.columns import Columns
from dlscale.engine.costs import Layout, bytes_of, lay_out, libraries, measured_rates
from dlscale.engine.grids import OUTPUT_BYTES, RowGrid
from dlscale.engine.passes import Passes
from dlscale.engine.plan import LARGE_PRODUCT_EFFICIENCY, PRODUCT_EFFICIENCY, Grids, Need, Plan, Step
from dlscale.engine.ranks.outcome import Outcome
from dlscale.engine.run import Run
from dlscale.engine.targets import MemoryTarget, StoreTarget, Target
from dlscale.errors import DoesNotFitError, NumericalError, SpecError
from dlscale.kernels import accumulator_dtype, largest_part, times_power_of_two
from dlscale.linalg.multiply.long_products import lay_out_long, multiply_long
from dlscale.linalg.multiply.operands import Operand
from dlscale.linalg.multiply.probing import N_SIGNS, compare, probe_both, signs
from dlscale.linalg.multiply.sparse_rows import SparseRowsTimes, lay_out_rows
from dlscale.linalg.multiply.tiles import Tiles
from dlscale.linalg.multiply.tiling import MIN_TILES, MIN_TILES_ALONE, Tiling, choose_tiling, cut
from dlscale.linalg.scaling import digits_kept, power_words
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import Promoted

Symmetric = Literal["auto", "never"]
#: Of a worker's memory, what tiles and strips may take: the rest is what writes and readers need beside them.
_SHARE = 0.9


@dataclass(frozen=True)
class MatmulOptions(Options):
    """What to multiply, and how."""

    adjoint_a: Annotated[bool, Field(description="true or false: A^H in the place of A")] = False
    adjoint_b: Annotated[bool, Field(description="true or false: B^H in the place of B")] = False
    symmetric: Annotated[
        Symmetric, Field(description="auto (A^H A and A A^H by half of the products) or never (all entries computed)")
    ] = "auto"
    tile: Annotated[
        Planned,
        Field(description="an integer of at least 1, or auto: rows and columns of a tile; the planner chooses when absent"),
    ] = None


@dataclass(frozen=True)
class Problem:
    """``op(A) op(B)``, both in one precision.

    Parameters
    ----------
    a : Operand (m, k)
    b : Operand (k, n)
    symmetric : bool
        Whether one is the adjoint of the other, which halves the work.
    """

    a: Operand
    b: Operand
    symmetric: bool

    @classmethod
    def of(cls, inputs: Inputs, options: MatmulOptions) -> Problem:
        """What is asked for.

        Raises
        ------
        SpecError
            If the shapes do not fit, or b is absent and the product is not ``A^H A`` or ``A A^H``.
        """
        A, B = inputs["a"], inputs.get("b")
        if B is None and options.adjoint_a == options.adjoint_b:
            raise SpecError(
                "input.b: missing; without it the product is A^H A (params.adjoint_a: true) or A A^H (params.adjoint_b: true), "
                "so that exactly one of the two must be true."
            )
        same = B is None or B is A or (A.uri == B.uri and not A.in_memory and not B.in_memory)
        B = A if B is None or same else B
        dtype = np.result_type(A.dtype, B.dtype)
        a, b = Operand(_in(A, dtype, "input.b"), options.adjoint_a), Operand(_in(B, dtype, "input.a"), options.adjoint_b)
        if a.shape[1] != b.shape[0]:
            raise SpecError(
                f"input.b: must have {a.shape[1]} {'columns' if b.adjoint else 'rows'}, as many as input.a has "
                f"{'rows' if a.adjoint else 'columns'}{_adjoint_words(options)}; got {b.matrix.shape[0]} x {b.matrix.shape[1]} "
                f"beside {a.matrix.shape[0]} x {a.matrix.shape[1]}."
            )
        return cls(a, b, same and a.adjoint != b.adjoint and options.symmetric == "auto")

    @property
    def shape(self) -> tuple[int, int]:
        return self.a.shape[0], self.b.shape[1]

    @property
    def k(self) -> int:
        return self.a.shape[1]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.a.dtype


def _in(M: Matrix, dtype: np.dtype[Any], whose: str) -> Matrix:
    return M if M.dtype == dtype else Promoted(M, dtype, whose)


def _adjoint_words(options: MatmulOptions) -> str:
    names = [name for name in ("a", "b") if getattr(options, f"adjoint_{name}")]
    return f" (params.adjoint_{' and adjoint_'.join(names)}: true)" if names else ""


def plan_matmul(inputs: Inputs, options: MatmulOptions, facts: ClusterFacts) -> Plan:
    """Plan a product.

    Raises
    ------
    SpecError
        If the operands do not fit each other.
    DoesNotFitError
    """
    problem = Problem.of(inputs, options)
    a, b, (m, n), item = problem.a, problem.b, problem.shape, problem.dtype.itemsize
    rows = None if options.tile or problem.symmetric else lay_out_rows(a, b, facts)
    long = None if options.tile or rows else lay_out_long(a, b, facts)
    tiling = None if rows or long else _tiling(problem, options, facts)
    memory: Sequence[Need]
    if rows:
        words, memory = "one pass over the rows of the sparse matrix, whose entries are multiplied", rows.memory
        product = Step("product", 2.0 * a.matrix.n_entries * n, a.matrix.n_stored_bytes, m * n * item)
    elif long:
        flops = (1.0 if problem.symmetric else 2.0) * m * n * problem.k
        n_bytes = a.matrix.n_stored_bytes + (0 if problem.symmetric else b.matrix.n_stored_bytes)
        words, memory = "one pass along the inner dimension, which reads the operands once", long.memory
        product = Step("product", flops, n_bytes, m * n * item)
    else:
        assert tiling is not None
        memory, n_tiles = _memory(problem, tiling, facts), len(tiling.tiles)
        at_once = n_tiles / -(-n_tiles // facts.n_workers) * facts.threads_per_worker
        efficiency = PRODUCT_EFFICIENCY if problem.symmetric else LARGE_PRODUCT_EFFICIENCY
        product = Step("tiles", tiling.flops, tiling.bytes_read(a, b), m * n * item, n_threads=at_once, efficiency=efficiency)
        words = (
            f"{n_tiles} tile{'s' if n_tiles > 1 else ''} of {tiling.rows} x {tiling.columns}, "
            f"{'each ' if n_tiles > 1 else ''}in one task that streams strips "
            f"of {tiling.strip_a} and {tiling.strip_b} of the inner dimension past it"
        )
    probing = _layouts(problem, facts, chunk_rows=_chunks(problem, tiling, rows.grid if rows else None)[0])
    peak = max(memory, *(layout.memory for layout in probing.values()), key=lambda needs: sum(need.n_bytes for need in needs))
    return Plan(
        kind="matmul",
        method="tiles" if tiling else "rows" if rows else "pass",
        words=words + (", by symmetric products" if problem.symmetric else ""),
        matrix=inputs["a"].describe(),
        grids=Grids(rows=layout.grid if (layout := rows or long) else None),
        steps=_steps(problem, product),
        memory=tuple(peak),
        memory_limit_bytes=facts.memory_bytes,
        cluster=facts,
        rates=measured_rates(a.matrix, facts, grid=rows.grid if rows else None, sparse=rows is not None),
        notes=tuple(dict.fromkeys(note for M in (a.matrix, b.matrix) for note in M.notes)),
        choices={"tiling": tiling.to_dict()} if tiling else {},
    )


def _tiling(problem: Problem, options: MatmulOptions, facts: ClusterFacts) -> Tiling:
    a, b, item = problem.a, problem.b, problem.dtype.itemsize
    found = choose_tiling(
        a,
        b,
        symmetric=problem.symmetric,
        room_bytes=int(facts.work_bytes * _SHARE),
        n_threads=facts.threads_per_worker,
        tile=options.tile,
        n_tiles=MIN_TILES if facts.n_workers > 1 else MIN_TILES_ALONE,
    )
    if found is None:
        (m, n), side = problem.shape, options.tile or 64
        least = cut((m, n, problem.k), (side, side), (64, 64), itemsize=item, symmetric=problem.symmetric)
        needed = sum(least.work_entries) * item / _SHARE + sum(need.n_bytes for need in libraries(facts))
        advice = "raise cluster.memory" + (", or lower params.tile" if options.tile else "")
        raise DoesNotFitError(
            f"One worker needs {needed / 1e9:.2f} GB or more (a tile of {least.rows} x {least.columns} of the product, and strips "
            f"beside it), and has {facts.memory_bytes / 1e9:.2f} GB; {advice}."
        )
    return found


def _memory(problem: Problem, tiling: Tiling, facts: ClusterFacts) -> list[Need]:
    item = problem.dtype.itemsize
    tile, strips = tiling.work_entries
    return [
        Need("a tile of the product", tile * item),
        Need("strips of the operands", strips * item),
        # Of the shapes of a tile, its chunks on their way to the disk, or the adjoint of a piece.
        Need("what is written", (facts.threads_per_worker + 1) * min(tiling.written_rows, tiling.rows) * tiling.columns * item),
        *libraries(facts),
    ]


def _layouts(problem: Problem, facts: ClusterFacts, *, chunk_rows: int) -> dict[str, Layout]:
    """Grids of the passes that probe the operands and the product."""
    wide = accumulator_dtype(problem.dtype)

    def of(M: Matrix, *, n_state: int, n_operand: int) -> Layout:
        s = N_SIGNS + 1
        return lay_out(M, facts, state_bytes=bytes_of(n_state, s, dtype=wide), operand_bytes=bytes_of(n_operand, s, dtype=wide))

    layouts = {}
    for name, operand in (("a", problem.a), ("b", problem.b)):
        n = operand.matrix.shape[1]
        layouts[name] = of(operand.matrix, n_state=n if operand.adjoint else 1, n_operand=0 if operand.adjoint else n)
    layouts["check"] = of(_AtRest(problem, chunk_rows), n_state=1, n_operand=problem.shape[1])
    return layouts


class _AtRest(Matrix):
    """The product as it will be stored, for the plan of a pass over it."""

    uri = "product"

    def __init__(self, problem: Problem, chunk_rows: int) -> None:
        self.shape, self.stored_dtype, self.row_unit = problem.shape, problem.dtype, chunk_rows

    def region(self, rows: tuple[int, int], columns: tuple[int, int], out: Array | None = None) -> Array:
        raise AssertionError("a product that is only planned has no entries")


def _steps(problem: Problem, product: Step) -> tuple[Step, ...]:
    """The product between the passes that probe the operands and the one that probes what was stored."""
    (m, n), k, s, item = problem.shape, problem.k, N_SIGNS + 1, problem.dtype.itemsize
    A, B, wide = problem.a.matrix, problem.b.matrix, accumulator_dtype(problem.dtype)
    of_b, of_a = bytes_of(k, s, dtype=wide), bytes_of(m, s, dtype=wide)
    return (
        Step("probes-b", 2.0 * s * k * n, B.n_stored_bytes, of_b),
        Step("probes-a", 2.0 * s * m * k, A.n_stored_bytes + (of_b if problem.a.adjoint else 0), of_a),
        product,
        Step("check", 2.0 * s * m * n, m * n * item + of_a),
    )


def compute_matmul(run: Run, inputs: Inputs, options: MatmulOptions, plan: Plan) -> Outcome:
    """Multiply by a plan; ``product`` (m, n) goes to the outputs of the run.

    Raises
    ------
    NonFiniteError
        Naming the input and the place of a NaN or infinity.
    NumericalError
        If the product overflows, or is too small for the digits of its dtype.

    Notes
    -----
    2 m n k flops, half of it where one operand is the other's adjoint; ``k m n (1 / b_m + 1 / b_n)`` words read for tiles of
    ``b_m x b_n``, and one more read of each operand and of the product for the check.
    """
    passes, problem = Passes(run), Problem.of(inputs, options)
    n, dtype = problem.shape[1], problem.dtype
    tiling = Tiling(**plan.choices["tiling"]) if plan.method == "tiles" else None
    chunks = _chunks(problem, tiling, plan.rows if plan.method == "rows" else None)
    layouts = _layouts(problem, plan.cluster, chunk_rows=chunks[0])
    X = signs(n, dtype)
    role = "a" if inputs.get("b") is None else "b"
    grids = {name: layout.grid for name, layout in layouts.items()}
    a, b = probe_both(passes, problem.a, problem.b, X, grids, role=role, symmetric=problem.symmetric)
    exponent, output = a.exponent + b.exponent, _target(run, problem, chunks, once=tiling is not None)
    if plan.method == "rows":
        fold = SparseRowsTimes(b.operand, exponent, dtype)
        largest = float(passes.sweep("product", a.operand.matrix, fold, plan.rows, outputs=[output])["largest"][0])
        _require_range(largest, exponent, dtype)
    elif tiling is not None:
        work = Tiles(a.operand, b.operand, tiling, output, exponent, plan.cluster.threads_per_worker)
        run.require_shared(output)
        found = Columns(run, plan.cluster).apply("tiles", work, n_columns=len(tiling.tiles), width=1, writers=output.writers)
        largest = max(float(state["largest"][0]) for state in found)
    else:
        product = multiply_long(passes, a.operand, b.operand, plan.rows, symmetric=problem.symmetric)
        largest = largest_part(product)
        output.write(0, _at_scale(product, exponent, dtype))
        for writer in output.writers:
            writer.flush()
    _require_digits(largest, exponent, dtype)
    check = compare(passes, output.matrix(), X, a, b, grids["check"])
    with np.errstate(over="ignore", under="ignore"):
        estimates = {"largest": float(np.ldexp(largest, exponent))}
    kept = digits_kept(max(a.exponent, b.exponent))
    notes = (f"multiplied at 2^{-exponent} times its scale, as the entries are out of a safe range: {kept}",) if exponent else ()
    return Outcome({}, ("product",), Certificate((check,)), estimates, notes)


def _chunks(problem: Problem, tiling: Tiling | None, rows: RowGrid | None) -> tuple[int, int]:
    """Of the stored product."""
    if rows is not None:
        return rows.output_chunk_rows(problem.shape[1] * problem.dtype.itemsize), problem.shape[1]
    if tiling is not None:
        return tiling.chunk_rows, tiling.columns
    m, n = problem.shape
    return max(1, min(m, OUTPUT_BYTES // (n * problem.dtype.itemsize))), n


def _target(run: Run, problem: Problem, chunks: tuple[int, int], *, once: bool) -> Target:
    """Where the product goes: an array of the result, in memory where the job has no files.

    Parameters
    ----------
    once : bool
        Whether threads of their own write it, which may wait for the disk, so that only its check reads it (see `ArrayWriter`).
    """
    if run.result is None:
        array = run.outputs["product"] = np.empty(problem.shape, problem.dtype)
        return MemoryTarget(array)
    return StoreTarget(run.result.create("product", problem.shape, problem.dtype, chunks=chunks, once=once))


def _at_scale(product: Array, exponent: int, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", under="ignore"):
        found = times_power_of_two(product, exponent).astype(dtype)
    _require_range(largest_part(product), exponent, dtype)
    return np.ascontiguousarray(found)


def _require_range(largest: float, exponent: int, dtype: np.dtype[Any]) -> None:
    """Refuse a product whose largest entry overflows its dtype."""
    with np.errstate(over="ignore", under="ignore"):
        found = np.ldexp(largest, exponent).astype(np.dtype(dtype.char.lower()))
    if not np.isfinite(found):
        raise NumericalError(
            f"The product overflows {dtype}: its largest entry is about {power_words(largest, exponent)}. "
            "Multiply an operand by a power of two."
        )


def _require_digits(largest: float, exponent: int, dtype: np.dtype[Any]) -> None:
    """Refuse a product whose largest entry has fewer digits than its dtype."""
    tiny = float(np.finfo(dtype).tiny)
    if exponent and largest > 0 and np.ldexp(largest, exponent) < tiny:
        raise NumericalError(
            f"The product is too small for the digits of {dtype}: its largest entry is about {power_words(largest, exponent)}, and "
            f"numbers below {tiny:.1e} have fewer. Multiply an operand by a power of two."
        )


_WORDS = "path or URL of a Zarr array, or a section with import: SOURCE"
KIND = Kind(
    name="matmul",
    title="Product of matrices",
    words="The product of two matrices or their adjoints, or of one with its own adjoint.",
    arrays="`product` (m, n)",
    options=MatmulOptions,
    plan=plan_matmul,
    compute=compute_matmul,
    example="{kind: matmul, input: {a: a.zarr, b: b.zarr}}",
    roles=(Role("a"), Role("b", "as a; absent for A^H A (adjoint_a) and A A^H (adjoint_b)", optional=True, like_first=True)),
)
