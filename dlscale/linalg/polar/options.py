"""What to compute of a polar decomposition, and how."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from dlscale.declaration.options import Options
from dlscale.declaration.sections import Panel
from dlscale.errors import SpecError
from dlscale.storage.matrix import Matrix
from dlscale.storage.scaled import conjugated

Side = Literal["right", "left"]


@dataclass(frozen=True)
class PolarOptions(Options):
    """What to compute: ``A = U P`` (right) or ``A = P U`` (left), or U alone, the nearest matrix with orthonormal columns.

    Notes
    -----
    ``direct`` takes an orthonormal basis in a few reads and LAPACK's SVD of the triangle, which a worker must hold; ``newton`` is
    Newton's iteration on the triangle by panels, of any size. ``panel`` is for that one.
    """

    side: Annotated[Side, Field(description="right (A = U P, of at least as many rows as columns) or left (A = P U)")] = "right"
    mode: Annotated[Literal["both", "u"], Field(description="both (U and P) or u (U alone)")] = "both"
    method: Annotated[Literal["auto", "direct", "newton"], Field(description="auto, direct or newton")] = "auto"
    panel: Panel = None

    def check(self, shape: tuple[int, int]) -> None:
        """Check the options against the matrix.

        Raises
        ------
        SpecError
        """
        m, n = shape
        if (m < n) if self.side == "right" else (m > n):
            many, few, other = ("rows", "columns", "left") if self.side == "right" else ("columns", "rows", "right")
            raise SpecError(
                f"params.side: {self.side} is for a matrix of at least as many {many} as {few}; got {m} x {n}: use side: {other}."
            )
        if self.panel is not None and self.method == "direct":
            raise SpecError("params.panel: goes with method newton, which factors by panels.")
        if self.panel is not None and self.panel > min(shape):
            raise SpecError(f"params.panel must be from 1 to {min(shape)} for a {m} x {n} matrix; got {self.panel}.")

    def tall(self, A: Matrix) -> Matrix:
        """The matrix whose right decomposition this is: A, or its adjoint."""
        return A if self.side == "right" else conjugated(A.T)
