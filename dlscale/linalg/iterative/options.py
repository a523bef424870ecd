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

Method = Literal["cg", "minres", "gmres"]
LeastSquaresMethod = Literal["cgls", "sketch"]
#: What methods are called in words.
NAMES: Mapping[str, str] = {
    "cg": "Conjugate gradients",
    "minres": "Minimal residuals (MINRES)",
    "gmres": "GMRES",
    "cgls": "CGLS",
    "sketch": "Sketch and precondition",
}
#: Iterations where nothing is said, or ten times the order of a small matrix.
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Iterations(Options):
    """When iterations end."""

    preconditioner: Annotated[
        Preconditioner,
        Field(description="none, jacobi or block_jacobi: what an iterative method is helped by"),
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
