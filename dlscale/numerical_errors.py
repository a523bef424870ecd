"""The exceptions that are NumPy's too; `dlscale.errors` offers them, and loads NumPy only where they are asked for."""

from __future__ import annotations

from numpy.linalg import LinAlgError

from dlscale.errors import DlscaleError


class NumericalError(DlscaleError, LinAlgError, ArithmeticError):
    """The computation cannot be completed as asked (overflow, loss of rank); `numpy.linalg.LinAlgError` catches it too."""


class OutOfRange(NumericalError):
    """Sums of squares left the range in which they are safe; the same computation can be made at another scale.

    Parameters
    ----------
    message : str
    squares : float, optional
        The sum of squares, where it is known: neither zero nor infinite.
    """

    def __init__(self, message: str, squares: float | None = None) -> None:
        super().__init__(message)
        self.squares = squares
