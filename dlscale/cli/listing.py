"""Jobs as lines of a table: thousands of them take a blink, and an id stays whole in a narrow terminal."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import click

from dlscale.cli.options import owns_terminal

if TYPE_CHECKING:
    from dlscale.batch.workspace import ListedJob

_HEAD = ("job", "kind", "state", "started", "time", "message")
_STATE = 2
#: What goes first where a terminal is narrow: started, time, kind.
_DROPPED = (3, 4, 1)
#: Of a message, fewer characters say too little: they hold ``42%, 3 min 02 s left``.
_MESSAGE_CHARACTERS = 22


def terminal_width() -> int | None:
    """Of standard output; None where it is no terminal, and nothing is cut."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() and owns_terminal() else None


def table_lines(jobs: Sequence[ListedJob], *, width: int | None = None) -> Iterator[str]:
    """A line of heads, and one a job.

    Parameters
    ----------
    jobs : sequence of ListedJob
    width : int, optional
        Of the terminal: where it does not hold all columns, some are left out, and messages are cut.
    """
    return fitting_lines([_HEAD, *map(_cells, jobs)], state=_STATE, dropped=_DROPPED, width=width)


def fitting_lines(table: Sequence[Sequence[str]], *, state: int, dropped: Sequence[int], width: int | None) -> Iterator[str]:
    """A line of heads, and one a row.

    Parameters
    ----------
    table : sequence of rows of str
        The heads first; the last column is cut where a line is longer than the terminal.
    state : int
        The column that is coloured by what it says.
    dropped : sequence of int
        The columns that are left out where a terminal is narrow, in this order.
    width : int, optional
        Of the terminal; None where there is none.
    """
    from dlscale.report import words

    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    columns = list(range(len(widths)))
    left = widths[-1]
    if width is not None:
        longest = max((len(row[-1]) for row in table[1:]), default=0)
        for column in dropped:
            if _taken(widths, columns) + min(longest, _MESSAGE_CHARACTERS) <= width:
                break
            columns.remove(column)
        left = width - _taken(widths, columns)
    for number, row in enumerate(table):
        message = row[-1] if len(row[-1]) <= left else f"{row[-1][: max(left - 1, 0)]}…"[: max(left, 0)]
        line = "  ".join([*(row[column].ljust(widths[column]) for column in columns[:-1]), message]).rstrip()
        said = row[state]
        color = words.STATE_COLORS.get(said, "cyan") if number else None
        yield line.replace(f"  {said}", f"  {click.style(said, fg=color)}", 1) if color else click.style(line, dim=True)


def _cells(job: ListedJob) -> tuple[str, ...]:
    from dlscale.batch.jobs.progress import progress_words
    from dlscale.batch.workspace import RUNNING
    from dlscale.report import words

    message = job.message or (progress_words(job.progress, runs=True) if job.progress and job.state in RUNNING else "")
    cells = (job.job, job.kind, job.state, words.moment(job.created), words.duration(job.seconds), message)
    return cells if "".join(cells).isprintable() else tuple(map(printable, cells))


def printable(text: str) -> str:
    """A text that stays in its cell."""
    return "".join(c if c.isprintable() else " " for c in text)


def _taken(widths: Sequence[int], columns: Sequence[int]) -> int:
    """By all columns but the last, with the gaps."""
    return sum(widths[column] + 2 for column in columns[:-1])
