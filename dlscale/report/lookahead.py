"""The section on a factorization by panels: lanes of tasks, the rate of every panel's step, where the time went."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from dlscale.report import words
from dlscale.report.charts import BACKING, COLOURS, Chart, boxes, chart, rule, text_width
from dlscale.report.figures import legend
from dlscale.report.lanes import TASKS, Lanes, Shares, Step, read_lanes, shares, steps
from dlscale.report.markup import Markup, div, join, tag
from dlscale.report.running import LEFT, RIGHT, WIDTH, prefix, time_unit
from dlscale.report.sections import Job, section, table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: More tasks than this are drawn by what fills each strip of a pixel, without a text for each.
_MOST_TASKS = 600
_MOST_LANES = 16
_MOST_STEPS = 400
_LANE_PIXELS, _BAR_PIXELS = 26, 20
_COLOURS = {"load": "s1", "fetch": "s5", "factor": "s2", "apply": "s3", "write": "s6"}
_MEANINGS = {
    "load": "load: read the matrix",
    "fetch": "fetch: read a finished panel",
    "factor": "factor a panel",
    "apply": "apply it to another",
    "write": "write a finished panel",
}


def lookahead(job: Job) -> Markup | None:
    """What every thread did, panel by panel."""
    lanes = read_lanes(job.record.events)
    if lanes is None:
        return None
    plan = job.record.plan
    n_threads = max(len(lanes.names), (plan.get("n_workers") or 1) * (plan.get("threads_per_worker") or 1))
    limit = job.record.rate("matmul_flops_per_second")
    where, by_panel = shares(lanes, n_threads), steps(lanes, n_threads)
    tiled = (job.record.panels.get("row_blocks") or 1) > 1
    present = [name for name in TASKS if name in where.tasks]
    keys = legend(
        [
            *((f"{_COLOURS[name]} solid", _MEANINGS[name]) for name in present),
            ("line-key", "rate of the step's tasks alone, without what threads waited"),
            ("limit-key", "this machine's limit, measured before the run"),
        ]
    )
    lead = (
        "Each lane is a thread. The shade of “apply” changes from panel to panel: the next panel is factored while the updates by "
        "the one before it still run, so that no thread waits for it."
    )
    if any("-single" in name for name in lanes.parts):
        lead += " Single precision can be faster than the limit, which was measured with products in the matrix's own precision."
    parts = [div("wide", _figure(lanes, by_panel, limit)), keys, _table(lanes, where, limit, n_threads, tiled=tiled)]
    return section("Panels and look-ahead", lead, *parts)


def overall(job: Job) -> tuple[float, float | None] | None:
    """The rate of all factorizations by panels together, and its part of the machine's limit; None without any."""
    lanes = read_lanes(job.record.events)
    if lanes is None or not lanes.flops.any():
        return None
    worked = set(lanes.part[lanes.flops > 0].tolist())
    rate = float(lanes.flops.sum()) / sum(stop - start for i, (start, stop) in enumerate(lanes.spans()) if i in worked)
    limit = job.record.rate("matmul_flops_per_second")
    return rate, rate / limit if limit else None


def _figure(lanes: Lanes, by_panel: Sequence[Step], limit: float | None) -> Markup:
    n_lanes = min(len(lanes.names), _MOST_LANES)
    begin, end = float(lanes.start.min()), float(lanes.stop.max())
    per, unit = time_unit(end - begin)
    # Names of several passes stand between the title and the lanes.
    top = 32 + (16 if len(lanes.parts) > 1 else 0)
    foot = top + 4 + n_lanes * _LANE_PIXELS
    height = foot + (196 if by_panel else 46)
    with chart(WIDTH, height, "Tasks of every thread, and the rate of every panel") as drawn:
        hidden = len(lanes.names) - n_lanes
        title = "tasks of each thread" + (f" ({hidden} more threads are not drawn)" if hidden else "")
        axes = drawn.axes(LEFT, top, RIGHT, foot, title=title)
        axes.set_title(title, pad=top - 22)
        axes.set(xlim=(begin / per, end / per), ylim=(n_lanes * _LANE_PIXELS, 0))
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.set_yticks([(i + 0.5) * _LANE_PIXELS for i in range(n_lanes)], _short(lanes.names[:n_lanes]))
        axes.tick_params(axis="x", labelbottom=False, bottom=False)
        _tasks(drawn, axes, lanes, n_lanes, per)
        last = axes
        if by_panel:
            last = drawn.axes(LEFT, foot + 36, RIGHT, foot + 146)
            last.set_xlim(begin / per, end / per)
            _rates(drawn, last, by_panel, limit, per)
        _names_of_parts(axes, lanes, per, (RIGHT - LEFT) / (end - begin))
        last.set_xlabel(unit)
        last.tick_params(axis="x", labelbottom=True, bottom=True)
    return drawn.markup


def _short(names: Sequence[str]) -> list[str]:
    """``thread 1`` as ``1``, ``worker 0, thread 1`` as ``0: 1``: the axis has little room."""
    return [name.removeprefix("worker ").replace(", thread ", ": ").removeprefix("thread ") for name in names]


def _names_of_parts(axes: Axes, lanes: Lanes, per: float, pixels: float) -> None:
    """The name of each pass over its first task, where there are several and there is room."""
    if len(lanes.parts) < 2:
        return
    free = -np.inf
    for name, (start, stop) in zip(lanes.parts, lanes.spans(), strict=True):
        axes.axvline(start / per, color=COLOURS["soft"], linewidth=1, dashes=(2, 3))
        spot = start * pixels
        if spot > free and text_width(name, 11.5) < (stop - start) * pixels + 40:
            free = spot + text_width(name, 11.5) + 10
            axes.annotate(name, (start / per, 0), (3, 3), textcoords="offset points", color=COLOURS["soft"], bbox=BACKING)


def _tasks(drawn: Chart, axes: Axes, lanes: Lanes, n_lanes: int, per: float) -> None:
    """The lanes' bars. Both shades of one colour are drawn by themselves, each with the texts of its tasks."""
    shade = 2 * lanes.task + (lanes.transform % 2) * (lanes.task == TASKS.index("apply"))
    detailed = len(lanes.start) <= _MOST_TASKS
    for lane in range(n_lanes):
        mine = np.flatnonzero(lanes.lane == lane)
        if detailed:
            bars = {int(s): mine[shade[mine] == s] for s in np.unique(shade[mine])}
            runs = {s: np.stack([lanes.start[i], lanes.stop[i]], axis=1) for s, i in bars.items()}
        else:
            runs = fill(lanes.start[mine], lanes.stop[mine], shade[mine], (float(lanes.start.min()), float(lanes.stop.max())))
        low = lane * _LANE_PIXELS + (_LANE_PIXELS - _BAR_PIXELS) / 2
        for s, run in runs.items():
            edges = [(start / per, stop / per, low, low + _BAR_PIXELS) for start, stop in run]
            drawn_bars = boxes(axes, edges, _COLOURS[TASKS[s // 2]], 0.62 if s % 2 else 1.0, split=detailed)
            if detailed:
                drawn.tip(drawn_bars, *(_task_words(lanes, int(i)) for i in bars[s]))


def fill(
    start: np.ndarray, stop: np.ndarray, shade: np.ndarray, span: tuple[float, float], n_strips: int = 1200
) -> dict[int, np.ndarray]:
    """What most of each strip of time is: runs (start, stop) of equal strips for each shade; those mostly idle are left out.

    Parameters
    ----------
    start, stop : (n,)
        Of tasks that do not overlap, in order.
    shade : (n,)
        Small non-negative integers.
    span : (float, float)
        What is cut in strips.
    """
    edges = np.linspace(*span, n_strips + 1)
    shades = np.unique(shade)
    busy = np.zeros((len(shades) + 1, n_strips))
    for i, s in enumerate(shades):
        mine = np.flatnonzero(shade == s)
        times = np.stack([start[mine], np.maximum(stop[mine], start[mine])], axis=1).ravel()
        done = np.concatenate([[0.0], np.cumsum(np.diff(times) * (np.arange(len(times) - 1) % 2 == 0))])
        busy[i] = np.diff(np.interp(edges, times, done))
    busy[-1] = np.maximum(np.diff(edges) - busy.sum(axis=0), 0.0)
    most = busy.argmax(axis=0)
    cuts = np.concatenate([[0], np.flatnonzero(np.diff(most)) + 1, [n_strips]])
    kinds, runs = most[cuts[:-1]], np.stack([edges[cuts[:-1]], edges[cuts[1:]]], axis=1)
    return {int(s): runs[kinds == i] for i, s in enumerate(shades) if (kinds == i).any()}


def _task_words(lanes: Lanes, i: int) -> str:
    name, took = TASKS[lanes.task[i]], float(lanes.stop[i] - lanes.start[i])
    what = f"apply panel {lanes.transform[i]} to panel {lanes.panel[i]}" if name == "apply" else f"{name} panel {lanes.panel[i]}"
    amount, unit = (lanes.flops[i], "FLOP/s") if lanes.flops[i] else (lanes.bytes[i], "B/s")
    rate = f", {words.quantity(float(amount) / took, unit)}" if took > 0 and amount else ""
    return f"{what}: {words.duration(took)}{rate}"


def _rates(drawn: Chart, axes: Axes, by_panel: Sequence[Step], limit: float | None, per: float) -> None:
    """The rate of every step as bars over the time that its work took, and that of its tasks alone as a line."""
    shown = _merged(by_panel)
    values = np.array([s.rate for s in shown])
    # A very short step may have any rate; most of the work decides how high the axis is.
    weights = np.array([s.stop - s.start for s in shown])
    order = np.argsort(values)
    usual = values[order][np.searchsorted(np.cumsum(weights[order]), 0.98 * weights.sum())]
    high = max(usual, limit or 0.0) * 1.18
    name, scale = prefix(high)
    axes.set_title(f"rate of each panel's step, {name}FLOP/s")
    axes.set_ylim(0, high / scale)
    axes.locator_params(axis="y", nbins=4)
    for odd in (0, 1):
        mine = [s for s in shown if s.panel % 2 == odd]
        edges = [(s.start / per, s.stop / per, 0.0, min(s.rate, high) / scale) for s in mine]
        if edges:
            drawn.tip(boxes(axes, edges, "s3", 0.3 if odd else 0.55, split=True), *map(_step_words, mine))
    for part in dict.fromkeys(s.part for s in shown):
        mine = [s for s in shown if s.part == part]
        ends = [s.start / per for s in mine] + [mine[-1].stop / per]
        alone = [min(s.kernel_rate, high) / scale for s in mine]
        axes.stairs(alone, ends, baseline=None, color=COLOURS["s4"], linewidth=1.6)
    if limit:
        rule(axes, limit / scale, f"limit {words.quantity(limit, 'FLOP/s')}")


def _merged(by_panel: Sequence[Step]) -> list[Step]:
    """Neighbours of one pass as one step where there are too many to draw."""
    length = -(-len(by_panel) // _MOST_STEPS)
    merged = []
    for part in dict.fromkeys(step.part for step in by_panel):
        mine = [step for step in by_panel if step.part == part]
        for i, few in enumerate(mine[at : at + length] for at in range(0, len(mine), length)):
            flops = sum(step.flops for step in few)
            alone = flops / sum(step.flops / step.kernel_rate for step in few)
            merged.append(Step(few[0].panel if length == 1 else i, part, few[0].start, few[-1].stop, flops, alone))
    return merged


def _step_words(step: Step) -> str:
    rates = (words.quantity(step.rate, "FLOP/s"), words.quantity(step.kernel_rate, "FLOP/s"))
    return f"panel {step.panel}: {rates[0]}; its tasks alone {rates[1]}; {words.quantity(step.flops, 'FLOP')}"


def _table(lanes: Lanes, where: Shares, limit: float | None, n_threads: int, *, tiled: bool) -> Markup:
    """Time, work and rate of each task, and the time in which threads had none.

    Events do not tell the row blocks of a panel apart, so that what a task waited for is not known where there are several
    (`tiled`).
    """
    free = [("scheduling", where.scheduling), ("waiting", where.waiting)]
    if tiled:
        free = [("without a task", where.scheduling + where.waiting)]
    took = lanes.stop - lanes.start
    rows = []
    for i, name in enumerate(TASKS):
        mine = lanes.task == i
        if not mine.any():
            continue
        seconds, flops, n_bytes = float(took[mine].sum()), float(lanes.flops[mine].sum()), float(lanes.bytes[mine].sum())
        amount, unit = (flops, "FLOP") if flops else (n_bytes, "B")
        rate = amount / seconds if seconds > 0 and amount else None
        part = rate * n_threads / limit if limit and rate and flops else None
        cells = (words.count(int(mine.sum())), words.duration(seconds), words.share(where.tasks[name]))
        rows.append((name, *cells, words.quantity(amount, unit), words.quantity(rate, f"{unit}/s"), words.share(part)))
    rest = (words.MISSING,) * 3
    for name, part in free:
        rows.append((name, words.MISSING, words.duration(part * where.thread_seconds), words.share(part), *rest))
    said = (
        "Scheduling: a thread was free although its next task was ready. Waiting: its next task was not ready, or it had none left."
    )
    head = ("", "tasks", "time of all threads", "share", "work", "rate of a thread", "of its limit")
    return join([table(head, rows), *([tag("p", {"class": "legend"}, said)] if len(free) > 1 else [])])
