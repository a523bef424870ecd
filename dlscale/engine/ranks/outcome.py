"""What an algorithm hands back to the job that ran it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from dlscale.arrays import Array
from dlscale.certificates import Certificate


@dataclass(frozen=True)
class Outcome:
    """The answer of one job.

    Parameters
    ----------
    arrays : dict
        The small arrays of the result, by their names in the result's layout.
    stored : tuple of str
        Names of the tall arrays, already written by row blocks to the outputs of the run.
    certificate : Certificate
        What was measured of the answer.
    estimates : dict
        Error estimates and other numbers to report, ready for JSON.
    notes : tuple of str
        Decisions taken on the way, in words.
    """

    arrays: dict[str, Array]
    stored: tuple[str, ...]
    certificate: Certificate
    estimates: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
