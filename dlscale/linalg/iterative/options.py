"""How a job says that it iterates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from dlscale.declaration.options import Options
from dlscale.errors import SpecError
from dlscale.linalg.iterative.preconditioners import Preconditioner

Method = Literal["cg", "minres", "gmres", "jacobi", "gauss_seidel"]
LeastSquaresMethod = Literal["cgls", "sketch"]
#: What methods are called in words.
NAMES: Mapping[str, str] = {
    "cg": "Conjugate gradients",
    "minres": "Minimal residuals (MINRES)",
    "gmres": "GMRES",
    "jacobi": "Jacobi's iteration",
    "gauss_seidel": "Gauss and Seidel's iteration",
    "cgls": "CGLS",
    "sketch": "Sketch and precondition",
}
#: Iterations where nothing is said, or ten times the order of a small matrix.
MAX_ITERATIONS = 1000
#: Methods whose steps are all the same, and take a relaxation.
STATIONARY = ("jacobi", "gauss_seidel")
#: Methods for Hermitian matrices.
SYMMETRIC = ("cg", "minres")


@dataclass(frozen=True)
class Iterations(Options):
    """When iterations end."""

    preconditioner: Annotated[
        Preconditioner,
        Field(description="none, jacobi, block_jacobi or nystrom: what an iterative method is helped by"),
    ] = "none"
    tolerance: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="a number between 0 and 1: what an iterative method may leave of the right-hand side; absent: eps^(1/2)",
        ),
    ] = None
    max_iterations: Annotated[
        int | None,
        Field(ge=1, description="an integer of at least 1: iterations at most; absent: 1000, or 10 n where that is less"),
    ] = None

    def tolerance_for(self, dtype: np.dtype[Any]) -> float:
        return self.tolerance or float(np.finfo(dtype).eps) ** 0.5

    def iterations_for(self, n: int) -> int:
        """The limit for a matrix of this order."""
        return self.max_iterations or min(MAX_ITERATIONS, 10 * n)

    def require_direct(self) -> None:
        """Check that nothing was said of iterations (SpecError)."""
        for name in ("preconditioner", "tolerance", "max_iterations"):
            if getattr(self, name) != getattr(type(self), name):
                raise SpecError(f"params.{name}: goes with an iterative method; got method direct.")


@dataclass(frozen=True)
class SystemIterations(Iterations):
    """When iterations on a square system end, how long their steps are, and of how many columns a preconditioner is made."""

    rank: Annotated[
        int | None,
        Field(
            ge=1,
            description="an integer of at least 1: columns for preconditioner nystrom; absent: 256, or n / 4 where that is less",
        ),
    ] = None

    relaxation: Annotated[
        float,
        Field(
            gt=0,
            lt=2,
            description="a number between 0 and 2: what steps of jacobi and gauss_seidel are multiplied by; above 1, gauss_seidel "
            "is successive over-relaxation (SOR)",
        ),
    ] = 1.0

    def require_suited(self, method: str) -> None:
        """Check what goes with a method (SpecError)."""
        if self.relaxation != 1 and method not in STATIONARY:
            got = f"{self.relaxation} with method {method}"
            raise SpecError(f"params.relaxation: goes with method jacobi or gauss_seidel; got {got}.")
        if self.rank is not None and self.preconditioner != "nystrom":
            raise SpecError(f"params.rank: goes with preconditioner nystrom; got {self.rank} with {self.preconditioner}.")
        if self.preconditioner == "nystrom" and method not in (*SYMMETRIC, "auto", "direct"):
            raise SpecError(f"params.preconditioner: nystrom goes with method cg or minres; got method {method}.")
        if method in STATIONARY and self.preconditioner not in (allowed := _OWN[method]):
            said = " or ".join(allowed)
            raise SpecError(f"params.preconditioner: must be {said} with method {method}; got {self.preconditioner}.")


#: What a stationary method takes: blocks of 64 unknowns at a time, or nothing.
_OWN: Mapping[str, tuple[str, ...]] = {"jacobi": ("none", "block_jacobi"), "gauss_seidel": ("none",)}
