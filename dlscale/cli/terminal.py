"""What a person sees of a job in a terminal: the plan, the progress, the result."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.panel import Panel
from rich.progress import BarColumn, DownloadColumn, TaskProgressColumn, TextColumn, TransferSpeedColumn
from rich.progress import Progress as Bars
from rich.progress_bar import ProgressBar
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from dlscale.batch.jobs.in_slurm import slurm_facts, slurm_words
from dlscale.batch.jobs.progress import Follower, learned, progress_words, rates_of, step_words, time_left
from dlscale.engine.events import DashboardOpened, Event, StateChanged, StepFinished, StepStarted, Warned, WorkDone
from dlscale.errors import SpecError
from dlscale.report import words
from dlscale.showing import several, visible, without_secrets

if TYPE_CHECKING:
    from dlscale.batch.run import JobResult
    from dlscale.batch.workspace import Job, JobState

#: The array of a result whose first entries say most about it.
_TELLING = {"explained_variance_ratio": "variance explained", "s": "singular values"}
_N_VALUES = 6
_N_PASSES = 10
#: Part of the expected time from which on what steps take beside their work is told.
_SEEN = 0.05
_BAR_WIDTH = 40
#: After so many passes a line a second tells enough of those that are faster; the log has them all.
_N_LINES = 20
_LINE_SECONDS = 1.0


class SafeConsole(Console):
    """A terminal that obeys no control characters of a name or a message: they are written out."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


#: Labels of places, which are told in one piece however narrow the terminal is: they are copied, and read by programs.
_PLACES = ("result", "report", "files")


class WholePlaces:
    """Labels and texts in two columns; a place stands in a line of its own, which a console that crops nothing leaves whole."""

    def __init__(self, pairs: Sequence[tuple[str, str]]) -> None:
        self.pairs = pairs

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        width = max((cell_len(Text.from_markup(label).plain) for label, _ in self.pairs), default=0)
        for are_places, some in groupby(self.pairs, lambda pair: pair[0] in _PLACES):
            if not are_places:
                yield rows(list(some), width)
                continue
            for label, place in some:
                line = Text(label.ljust(width), style="dim", no_wrap=True, overflow="ignore")
                yield line.append(f"  {visible(without_secrets(place))}", style="not dim")


def rows(pairs: Sequence[tuple[str, str]], width: int | None = None) -> Table:
    """Labels, in a column of a width or as wide as they are, and texts in two columns."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=width)
    table.add_column(overflow="fold")
    for label, text in pairs:
        table.add_row(label, escape(visible(without_secrets(text))))
    return table


def plan_panel(title: str, plan: Mapping[str, Any]) -> Panel:
    """The plan of a job, before it runs."""
    names = [str(step["id"]) for step in plan["steps"] if step["where"] == "workers"]
    n_steps = len(names)
    if len(names) > _N_PASSES:
        names = [*names[:3], "…", *names[-3:]]
    cluster = f"{plan['cluster']['kind']}, {words.workers(plan)}"
    pairs = [
        ("method", str(plan["words"])),
        *((role.replace("_", " "), _input_words(described)) for role, described in plan["inputs"].items()),
        ("passes", f"{n_steps}: {', '.join(names)}"),
        ("work", f"{words.quantity(plan['flops'], 'FLOP')}, {words.size(plan['bytes_read'])} read"),
        ("memory", f"{words.size(plan['peak_bytes_per_worker'])} of {words.size(plan['memory_limit_bytes'])} per worker"),
        *_panel_words(plan),
        ("cluster", cluster),
        ("expected", _expected_words(plan, n_steps)),
        *(("note", str(note)) for note in plan["notes"]),
    ]
    return Panel(rows(pairs), title=f"{escape(title)} ({plan['kind']})", title_align="left", border_style="cyan")


def _expected_words(plan: Mapping[str, Any], n_steps: int) -> str:
    """The time that the passes take, and at what rates."""
    expected, rates, each = plan["expected_seconds"], plan["rates"], plan.get("step_seconds", 0.0)
    said = f"{words.duration(expected)} at {words.quantity(rates['matmul_flops_per_second'], 'FLOP/s')} "
    said += f"and {words.quantity(rates['read_bytes_per_second'], 'B/s')}"
    if write := rates.get("write_bytes_per_second"):
        said += f", written at {words.quantity(write, 'B/s')}"
    if n_steps * each > _SEEN * expected:
        said += f", and {words.duration(each)} a step"
    return said


def _panel_words(plan: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How a factorization is cut, and what that asks of a cluster."""
    panels = plan["grids"]["panels"]
    if panels is None:
        return []
    groups = several(panels["n_groups"], "group")
    cut = f"{words.count(panels['n_panels'])} of {words.count(panels['panel'])} columns, {groups} in memory"
    if panels["row_blocks"] > 1:
        cut += f", {panels['row_blocks']} row blocks each"
    graphs = f"up to {words.count(plan['n_tasks'])} tasks; {words.size(plan['bytes_moved'])} between workers in all"
    return [("panels", cut), ("graphs", graphs)]


def _input_words(described: Mapping[str, Any]) -> str:
    if "arrays" in described:
        return f"{', '.join(described['arrays'])} of kind {described['kind']}, {shown_path(described['uri'])}"
    size = f"{words.shape(described['shape'])} {described['dtype']}, {words.size(described['stored_bytes'])}"
    return f"{size}, {shown_path(described['uri'])}"


class JobProgress:
    """Follows a job's events: a live bar in a terminal, one line a pass elsewhere. A listener for `start` and `resume`.

    Parameters
    ----------
    console : Console
    total : float
        Of the whole plan, in the measure.
    n_steps : int
        Planned ones; 0 where there are none.
    measure : str
        ``flops`` or ``bytes``: what the bar moves by, so that its remaining time means something.
    """

    def __init__(self, console: Console, total: float, n_steps: int = 0, *, measure: Literal["flops", "bytes"] = "flops") -> None:
        self.console, self.follower = console, Follower(total, n_steps, measure=measure)
        self._lock, self._unheard = threading.Lock(), False
        self._n_lines, self._line_at, self._n_untold = 0, 0.0, 0
        self._bar_width = min(_BAR_WIDTH, console.width // 4)
        columns = (
            TextColumn("{task.description}", justify="left"),
            BarColumn(self._bar_width),
            TaskProgressColumn(),
            TextColumn("{task.fields[more]}"),
        )
        self._bar = Bars(*columns, console=console, transient=True) if console.is_terminal else None
        self._task = self._bar.add_task("starting", total=1.0, more="") if self._bar else None

    @contextmanager
    def live(self) -> Iterator[JobProgress]:
        """Show the bar while the body runs."""
        if self._bar is None:
            yield self
            return
        with self._bar:
            yield self

    def __call__(self, event: Event) -> None:
        """Show an event; where nobody can be told any more the job goes on, and its log has what would have been said."""
        with self._lock:
            if not self._unheard:
                try:
                    self._follow(event)
                except (OSError, SystemExit):  # with which Rich leaves a pipe that has no reader
                    self._unheard = True

    def _follow(self, event: Event) -> None:
        self.follower(event)
        if isinstance(event, StateChanged):
            self._tell_rest()
        match event:
            case StepStarted() | WorkDone():
                self._show()
            case StepFinished():
                self._finished(event)
            case StateChanged(state="running"):
                self._show("starting workers")
            case StateChanged(state="certifying"):
                self._show("checking the answer")
            case DashboardOpened():
                self.console.print(f"  [dim]dashboard[/] {event.url}", highlight=False)
            case Warned():
                self.console.print(f"[yellow]warning[/] {escape(without_secrets(event.message))}")

    def _show(self, what: str = "") -> None:
        """What is done now: something, or the step that runs."""
        if self._bar is None or self._task is None:
            return
        progress = self.follower.progress()
        what = what or (step_words(progress) if progress.n_steps else progress.step)
        more = [*time_left(progress), *learned(progress), *rates_of(progress, self.follower.measure)]
        # What is missed least goes first: Rich would cut all columns alike.
        room = self.console.width - len(what) - self._bar_width - len(" 100%  ")
        while more and len(", ".join(more)) > room:
            more.pop()
        self._bar.update(self._task, description=what, completed=progress.fraction, more=", ".join(more))

    def _finished(self, event: StepFinished) -> None:
        if self._n_lines >= _N_LINES and time.monotonic() - self._line_at < _LINE_SECONDS:
            self._n_untold += 1
            return
        self._tell_rest()
        self._n_lines, self._line_at = self._n_lines + 1, time.monotonic()
        seconds = max(event.seconds, 1e-9)
        if event.resumed:
            text = "from the checkpoint"
        else:
            rates = [words.quantity(event.flops / seconds, "FLOP/s")] if event.flops else []
            text = ", ".join([words.duration(seconds), *rates, words.quantity(event.bytes_read / seconds, "B/s")])
        self.console.print(f"  [dim]pass[/] {escape(event.step)}  {text}", highlight=False)

    def _tell_rest(self) -> None:
        """How many passes had no line of their own."""
        if self._n_untold:
            self.console.print(f"  [dim]…[/] {words.count(self._n_untold)} more passes, all in the log", highlight=False)
        self._n_untold = 0


@contextmanager
def import_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """A progress bar that appears with the first news of an import."""
    columns = (TextColumn("importing"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Bars(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("importing", total=None, visible=False)

    def update(done: int, total: int) -> None:
        bar.start()
        bar.update(task, completed=done, total=total or None, visible=True)

    try:
        yield update
    finally:
        bar.stop()


def show_result(console: Console, result: JobResult) -> None:
    """How a job ended: what it found, its certificate, and where everything is."""
    from dlscale.batch.workspace import Job

    job = Job(result.folder)

    tick = "✓" if "utf" in console.encoding.lower() else "ok"
    cross = "✗" if "utf" in console.encoding.lower() else "FAILED"
    style = words.STATE_COLORS.get(result.state, "cyan")
    console.print(f"[{style}]{result.state}[/] {result.job} after {words.duration(result.seconds)}", highlight=False)
    pairs = []
    if result.result:
        arrays = result.open()
        telling = next((name for name in _TELLING if name in arrays), "")
        if telling:
            as_text = words.share if telling == "explained_variance_ratio" else words.number
            values = "  ".join(as_text(float(value)) for value in arrays[telling][:_N_VALUES])
            pairs.append((_TELLING[telling], values + ("  …" if arrays[telling].shape[0] > _N_VALUES else "")))
        pairs += [(name, text) for name, text in _key_numbers(job) if name != _TELLING.get(telling)]
        pairs.append(("arrays", ", ".join(f"{name} ({words.shape(array.shape)})" for name, array in sorted(arrays.items()))))
    for check in (result.certificate or {}).get("checks", ()):
        mark, limit = tick if check["passed"] else cross, words.number(check["threshold"])
        pairs.append((f"check {mark}", f"{check['meaning']} ({words.number(check['value'])}, limit {limit})"))
    with suppress(SpecError):  # the folder of a job may be gone
        from dlscale.certificates import leaves_no_digit

        notes = job.kept_state().summary.get("notes") or ()
        pairs += [("[yellow]warning[/]" if leaves_no_digit(note) else "note", str(note)) for note in notes]
    if result.result:
        pairs.append(("result", shown_path(result.result)))
    if job.report.exists():
        pairs.append(("report", shown_path(str(job.report))))
    console.print(WholePlaces(pairs), crop=False)


def _key_numbers(job: Job) -> list[tuple[str, str]]:
    """The numbers at the head of the report."""
    from dlscale.batch.reporting import read_record
    from dlscale.report.answers import key_numbers
    from dlscale.report.sections import Job as Told

    tiles = key_numbers(Told(read_record(job, drawn=False)))
    return [(tile.name[0].lower() + tile.name[1:], tile.value + (f" ({tile.below})" if tile.below else "")) for tile in tiles]


def status_rows(job: Job, state: JobState) -> WholePlaces:
    """One job: how far it is, why it stopped, how to go on."""
    from dlscale.batch.workspace import RUNNING

    pairs = [
        ("state", state.state),
        ("kind", state.kind),
        *([("sweep", state.sweep)] if state.sweep else []),
        ("started", words.moment(state.created)),
        ("time", words.duration(state.seconds)),
    ]
    if state.progress is not None and state.state != "succeeded":
        pairs.append(("progress", progress_words(state.progress, runs=state.state in RUNNING)))
    can_go_on = state.resumable and not state.moves
    try:
        finished = {event.step for event in job.read_events() if isinstance(event, StepFinished) and event.is_planned}
        planned = [step for step in job.read_plan().get("steps", []) if step["where"] == "workers"]
        pairs.append(("passes", f"{len(finished)} finished of {len(planned)} planned"))
        if can_go_on:
            job.check_files()
    except SpecError as error:
        pairs.append(("damaged", str(error)))
        can_go_on = False
    pairs += slurm_rows(slurm_facts(job))
    if state.message:
        pairs.append(("reason", state.message))
    if state.result:
        pairs.append(("result", shown_path(state.result)))
    if can_go_on:
        pairs.append(("go on", f"dlscale resume {job.id}"))
    pairs.append(("files", shown_path(str(job.place))))
    return WholePlaces(pairs)


def slurm_rows(said: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Where a job is in Slurm's queue, or what it said last where Slurm ended it."""
    if said is None:
        return []
    labels = ["last lines", *[""] * len(said["last_lines"])]
    return [("slurm", slurm_words(said)), *zip(labels, said["last_lines"], strict=False)]


def watched_rows(state: JobState) -> Table:
    """One job while it is watched: what `status_rows` says, as far as its state tells it, and a bar."""
    from dlscale.batch.workspace import RUNNING

    runs = state.state in RUNNING
    pairs = [("state", state.state), ("kind", state.kind), ("time", words.duration(state.seconds))]
    if state.progress is not None and state.state != "succeeded":
        pairs.append(("progress", progress_words(state.progress, runs=runs)))
    pairs += [("reason", state.message)] if state.message else []
    pairs += [("result", shown_path(state.result))] if state.result else []
    table = rows(pairs)
    if runs:
        table.add_row("", ProgressBar(total=1.0, completed=state.progress.fraction if state.progress else 0.0, width=_BAR_WIDTH))
    return table


def facts_rows(facts: Mapping[str, Any]) -> Table:
    """A mapping of facts, the units of its keys' suffixes applied."""
    pairs = list[tuple[str, str]]()
    for key, value in facts.items():
        if key == "notes" and value:  # sentences, each in a row
            pairs += zip([words.label(key), *[""] * len(value)], map(str, value), strict=False)
        elif value not in ([], {}, None):
            pairs.append(words.fact(key, value))
    return rows(pairs)


def result_facts(uri: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What `dlscale info` says of a result: its arrays, what was asked, what was checked."""
    from dlscale.storage.groups import open_arrays

    arrays = {
        name: f"{words.shape(array.shape)} {'text' if array.dtype.kind == 'T' else array.dtype}"
        for name, array in sorted(open_arrays(uri).items())
    }
    facts: dict[str, Any] = {"uri": uri, "kind": attributes["kind"], "job": attributes["job"], "arrays": arrays}
    facts |= {"params": attributes["spec"].get("params"), "seconds": attributes["seconds"]}
    facts["estimates"] = {key: value for key, value in attributes["estimates"].items() if not isinstance(value, list)}
    for check in attributes["certificate"]["checks"]:
        facts[f"check: {check['name']}"] = (
            f"{words.number(check['value'])}, limit {words.number(check['threshold'])}: {check['meaning']}"
        )
    return facts | {"notes": attributes["notes"]}


def shown_path(path: str) -> str:
    """A path relative to the current folder where that is shorter; anything else as it is."""
    if "://" not in path and Path(path).is_absolute() and not (relative := os.path.relpath(path)).startswith(".."):
        path = relative
    return path.replace("\n", "\\n")  # one line, whatever the name
