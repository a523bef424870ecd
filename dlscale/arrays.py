"""What an array is: of NumPy, of any shape and dtype; and which ones BLAS takes as they lie."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

Array = NDArray[Any]


def is_laid_out(array: Array) -> bool:
    """Whether every entry has a place of its own, whole entries apart, with rows and columns in ascending order.

    Reversed, repeated and overlapping rows, and those of packed records, are not: BLAS has no name for their distance.
    """
    reach = array.itemsize
    for stride, length in sorted(zip(array.strides, array.shape, strict=True)):
        if length > 1:
            if stride < reach or stride % array.itemsize:
                return False
            reach += stride * (length - 1)
    return array.flags.aligned
