"""The pass: one sweep over the rows of a matrix."""

from dlscale.engine.passes.driver import Fold, Held, Passes, RowOutput, State

__all__ = ["Fold", "Held", "Passes", "RowOutput", "State"]
