"""How a system is solved: its options, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.declaration.sections import Panel
from dlscale.errors import SpecError
from dlscale.kernels import accumulator_dtype
from dlscale.linalg.iterative.options import Method, SystemIterations
from dlscale.linalg.solve.factoring import Assume
from dlscale.storage.matrix import Matrix

AssumeOfSystem = Annotated[
    Literal["general", "pos", "sym", "her", "lower", "upper"],
    Field(
        description="general, pos (Hermitian positive definite), sym or her (symmetric, Hermitian where it is complex), lower or "
        "upper (triangular)"
    ),
]
Precision = Literal["double", "mixed"]
Refine = Literal["auto", "never"]
Transposed = bool | Literal["conjugate"]

#: Params of a factorization, and of what is solved with it.
_DIRECT = ("precision", "refine", "panel", "transposed", "only_triangle", "unit_diagonal")
#: Right-hand sides that are solved together, where they are few.
BATCH_BYTES = 2**26
#: From this order on the growth of LU on random matrices leaves backward errors of a few eps, which one step refines.
REFINED_ORDER = 1600


@dataclass(frozen=True)
class SolveOptions(SystemIterations):
    """How to solve.

    Notes
    -----
    What is assumed of the matrix must hold: ``pos`` takes Cholesky and half of the work, and the backward error shows where it does
    not hold; ``sym`` takes LDL^T in the memory of one worker, half of the work too, and refuses what is not symmetric.
    ``refine: never`` only measures, and is not for ``mixed``. With ``lower`` and ``upper`` nothing is factored; a matrix whose
    other triangle is not zero is refused, unless ``only_triangle`` says that it is no part of
    the matrix, as in the ``lu`` of an LU factorization, whose L has a ``unit_diagonal`` besides.
    """

    method: Annotated[
        Literal["auto", "direct"] | Method,
        Field(
            description="auto, direct (a factorization), or iterations: cg of a positive definite matrix, minres of a symmetric "
            "one, gmres of any, jacobi and gauss_seidel of a dominant diagonal"
        ),
    ] = "auto"
    assume: AssumeOfSystem = "general"
    transposed: Annotated[
        Transposed, Field(description="false, true (A^T x = b) or conjugate (A^H x = b); lower and upper say what A is")
    ] = False
    only_triangle: Annotated[
        bool, Field(description="true or false: whether what stands beside the triangle is no part of the matrix, and not read")
    ] = False
    unit_diagonal: Annotated[
        bool, Field(description="true or false: whether the diagonal of a triangular matrix counts as ones")
    ] = False
    precision: Annotated[Precision, Field(description="double, or mixed (factored in single precision, refined to double)")] = (
        "double"
    )
    refine: Annotated[Refine, Field(description="auto (while the backward error asks for it) or never")] = "auto"
    panel: Panel = None

    def check(self) -> None:
        """Check what goes together (SpecError)."""
        if self.refine == "never" and self.precision == "mixed":
            raise SpecError("params.refine: must be auto with precision mixed, whose factors alone have 7 digits; got never.")
        if self.method not in ("auto", "direct"):
            for name in _DIRECT:
                if (got := getattr(self, name)) != getattr(SolveOptions, name):
                    raise SpecError(f"params.{name}: goes with method direct; got {got} with method {self.method}.")
            if self.triangular:
                raise SpecError(f"params.assume: {self.assume} goes with method direct; got method {self.method}.")
        if not self.triangular:
            if self.only_triangle or self.unit_diagonal:
                name = "only_triangle" if self.only_triangle else "unit_diagonal"
                raise SpecError(f"params.{name}: is for assume lower or upper; got true with assume {self.assume}.")
        elif self.precision == "mixed" or self.panel is not None:
            name = "panel" if self.panel is not None else "precision: mixed"
            raise SpecError(f"params.{name} is for what is factored, and with assume {self.assume} nothing is; leave it out.")

    @property
    def triangular(self) -> bool:
        return self.assume in ("lower", "upper")

    @property
    def factored_as(self) -> Assume:
        """What a factorization assumes; a triangular matrix has none."""
        match self.assume:
            case "lower" | "upper":
                return "general"
            case assume:
                return assume

    @property
    def lower(self) -> bool:
        """Whether the triangular matrix that systems are solved with, transposed or not, is a lower one."""
        return (self.assume == "lower") != bool(self.transposed)


def is_mixed(A: Matrix, options: SolveOptions) -> bool:
    """Whether there is a lower precision to factor in."""
    return options.precision == "mixed" and lower_dtype(A.dtype) != A.dtype


def lower_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.complex64 if dtype.kind == "c" else np.float32)


def batch_columns(n: int, dtype: np.dtype[Any]) -> int:
    """Right-hand sides that are solved together."""
    return max(1, BATCH_BYTES // (n * accumulator_dtype(dtype).itemsize))


def solution_dtype(A: Matrix, B: Matrix) -> np.dtype[Any]:
    """What X is of where ``A X = B``: as precise as A, and complex where B is."""
    return np.result_type(A.dtype, A.dtype if B.dtype.kind != "c" else np.complex64)


def usual_solves(n: int, options: SolveOptions, *, mixed: bool) -> int:
    """How often a system is solved, with what refines it; where a matrix is harmless once may be enough."""
    if options.refine == "never" or options.triangular or (options.assume == "pos" and not mixed):
        return 1
    return 6 if mixed else 1 + (n >= REFINED_ORDER)
