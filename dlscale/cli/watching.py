"""Watching jobs until they rest: in its place on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlscale.cli.options import echo, open_console

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from dlscale.batch.jobs.progress import Progress
    from dlscale.batch.workspace import JobState, ListedJob

#: What a shell says of a command that Ctrl-C ended.
EXIT_WATCHED = 130
#: How far a job is, is said so often; a state that changed, at once.
EVERY_SECONDS = 10.0
_DRAW_SECONDS = 0.5
#: Jobs are listed again after a second, or after so many times what listing them takes.
_LIST_SECONDS, _LIST_SHARE = 1.0, 5.0


def ended_words(job: str, state: str, message: str) -> str:
    """How a job ended, and why, where that is known and says more than the state does."""
    why = message.removeprefix(f"{state}: ")
    return f"{job} {state}: {why}" if why else f"{job} {state}"


@dataclass(frozen=True)
class Look:
    """What is told of a job at one moment, wherever it was asked for."""

    job: str
    state: str
    message: str
    progress: Progress | None

    @classmethod
    def of(cls, state: JobState | ListedJob) -> Look:
        return cls(state.job, state.state, state.message, state.progress)

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Look:
        """Of a server's answer."""
        from dlscale.batch.jobs.progress import Progress

        told = record["progress"]
        return cls(record["job"], record["state"], record["message"], None if told is None else Progress(**told))

    @property
    def runs(self) -> bool:
        from dlscale.batch.workspace import RUNNING

        return self.state in RUNNING

    @property
    def waits(self) -> bool:
        return self.state in ("submitted", "queued")

    @property
    def moves(self) -> bool:
        return self.runs or self.waits

    @property
    def how_far(self) -> str:
        from dlscale.batch.jobs.progress import progress_words

        return progress_words(self.progress, runs=True) if self.progress is not None and self.runs else ""


class Lines:
    """Says how a job is: its state when that has changed, how far it is now and then.

    Parameters
    ----------
    states : bool
        Whether new states are said, beside how far it is.
    known : str
        The state that is known already.
    quiet : bool
        Say only how it ended.
    err : bool
        On standard error.
    """

    def __init__(self, *, states: bool = True, known: str = "", quiet: bool = False, err: bool = False) -> None:
        self._states, self._quiet, self._err = states, quiet, err
        self._state, self._said, self._at = known, "", time.monotonic()

    def __call__(self, look: Look) -> None:
        if self._states and look.state != self._state:
            self._state = look.state
            if not (self._quiet and look.moves):
                self._say(look, look.message or look.how_far)
            return
        if self._quiet or time.monotonic() - self._at < EVERY_SECONDS or look.how_far in ("", self._said):
            return
        self._say(look, look.how_far)

    def _say(self, look: Look, more: str) -> None:
        self._said, self._at = look.how_far, time.monotonic()
        echo(f"{look.job} {look.state}{': ' if more else ''}{more}", err=self._err)


@contextmanager
def until_ctrl_c(said: str) -> Iterator[None]:
    """Ctrl-C in the body ends the watching, and no job: that is said, and the exit code is a shell's."""
    try:
        yield
    except KeyboardInterrupt:
        echo(said, err=True)
        sys.exit(EXIT_WATCHED)


def goes_on(job_id: str, server: str = "") -> str:
    """What is said of one job that is not watched any more."""
    asked = f"--server {server} " if server else ""
    return f"\nJob {job_id} goes on; `dlscale {asked}cancel {job_id}` stops it."


def sweep_goes_on(sweep_id: str, server: str = "") -> str:
    """What is said of a sweep that is not watched any more."""
    asked = f"--server {server} " if server else ""
    return f"\nSweep {sweep_id} goes on; `dlscale {asked}cancel {sweep_id}` stops it."


def is_live(console: Console) -> bool:
    """Whether something can be drawn in its place."""
    return console.is_terminal and not console.is_dumb_terminal


@contextmanager
def drawing(console: Console) -> Iterator[Callable[[Callable[[], RenderableType]], None]]:
    """Draws what a function gives, in the place of what was drawn before; as often as an eye can follow, and in the end."""
    from rich.live import Live

    last: list[Callable[[], RenderableType]] = []
    drawn = 0.0
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as live:

        def draw(made: Callable[[], RenderableType]) -> None:
            nonlocal drawn
            last[:] = [made]
            if time.monotonic() - drawn > _DRAW_SECONDS:
                live.update(made(), refresh=True)
                drawn = time.monotonic()

        try:
            yield draw
        finally:
            if last:
                live.update(last[0](), refresh=True)


def watch_jobs(listed: Callable[[], list[ListedJob]], *, quiet: bool, err: bool) -> list[ListedJob]:
    """Show jobs anew until none of them runs or waits; those that are left."""
    from rich.text import Text

    from dlscale.cli.listing import table_lines

    console = open_console(err)
    if not is_live(console) or quiet:
        changes = Changes(quiet=quiet, err=err)
        return _until_rest(listed, lambda jobs: changes(map(Look.of, jobs)))

    def fitting(jobs: list[ListedJob]) -> Text:
        # Those that move stand first, so that none of them is below the end of the screen.
        ordered = sorted(jobs, key=lambda job: not _moves(job))[: max(console.height - 3, 1)]
        lines = table_lines(ordered, width=console.width)
        return Text("\n").join(map(Text.from_ansi, lines))

    with drawing(console) as draw:
        return _until_rest(listed, lambda jobs: draw(lambda: fitting(list(jobs))))


class Changes:
    """Says of many jobs what changes: of each that moves at first, and of those that come or move later."""

    def __init__(self, *, quiet: bool, err: bool) -> None:
        self._quiet, self._err = quiet, err
        self._lines: dict[str, Lines] | None = None

    def __call__(self, looks: Iterable[Look]) -> None:
        first = self._lines is None
        lines = self._lines = self._lines or {}
        for look in looks:
            if look.job not in lines:
                known = look.state if first and not look.moves else ""
                lines[look.job] = Lines(known=known, quiet=self._quiet, err=self._err)
            lines[look.job](look)


def _until_rest(listed: Callable[[], list[ListedJob]], show: Callable[[list[ListedJob]], None]) -> list[ListedJob]:
    while True:
        began = time.monotonic()
        jobs = listed()
        show(jobs)
        if not any(map(_moves, jobs)):
            return jobs
        time.sleep(max(_LIST_SECONDS, _LIST_SHARE * (time.monotonic() - began)))


def _moves(job: ListedJob) -> bool:
    return Look.of(job).moves


def now_and_then(seconds: float) -> Callable[[str], None]:
    """Says on standard error what has changed, and not more often than so many seconds."""
    said, at = "", time.monotonic()

    def say(text: str) -> None:
        nonlocal said, at
        if text != said and time.monotonic() - at >= seconds:
            said, at = text, time.monotonic()
            echo(text, err=True)

    return say
