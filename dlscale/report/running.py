"""Figures of a run: passes with their throughput against the machine's limits, and memory against its limit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlscale.report import words
from dlscale.report.charts import BACKING, COLOURS, Chart, chart, rule, text_width
from dlscale.report.figures import legend
from dlscale.report.markup import Markup, join, tag
from dlscale.report.timeline import PassRun, Timeline

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, LEFT, RIGHT = 1060.0, 62.0, 1044.0
#: Processes drawn by themselves; the rest are summed.
_MOST_BANDS = 6
#: A limit more than this many times above the data is named beside the chart instead of flattening it.
_FAR_LIMIT = 5.0


def throughput(timeline: Timeline, read_limit: float | None, flops_limit: float | None) -> Markup:
    """Bars of the passes over reading (bytes/s) and computing (FLOP/s), on one axis of running time."""
    per, unit = time_unit(timeline.seconds)
    with chart(WIDTH, 404, "Passes and throughput over time") as drawn:
        _pass_bars(drawn, timeline, per)
        _draw_rate(drawn, timeline, _Rate("reading", "B/s", timeline.read_rate, read_limit, "s1"), 96)
        last = _draw_rate(drawn, timeline, _Rate("computing", "FLOP/s", timeline.flop_rate, flops_limit, "s2"), 248)
        last.xaxis.set_visible(True)
        last.set_xlabel(unit)
        free = -np.inf
        for at, left_out in timeline.pauses:
            # The line goes up through the axes above, to the top of the passes.
            last.axvline(at / per, 0, (358 - 22) / (358 - 248), color=COLOURS["warn"], linewidth=1.4, dashes=(2, 3), clip_on=False)
            spot = LEFT + at / timeline.seconds * (RIGHT - LEFT)
            said = f"stopped; resumed {words.duration(left_out)} later"
            width = text_width(said, 11.5)
            start = spot + 5 if spot + width < RIGHT else spot - 5 - width
            # Stops in quick succession have room for the words of the first.
            if start > free:
                free = start + width
                drawn.figure.text(start / WIDTH, 1 - 72 / 404, said, bbox=BACKING)
    keys = [
        ("s1 solid", "read from storage"),
        ("s2 solid", "floating-point work"),
        ("limit-key", "this machine's limit, measured before the run"),
    ]
    if timeline.checkpoints:
        keys.append(("diamond-key", "checkpoint written"))
    return join([tag("div", {"class": "wide"}, drawn.markup), legend(keys)])


def memory(timeline: Timeline, limit: float | None, planned: float | None) -> Markup:
    """Resident memory of the processes on top of each other, against the plan and the limit of them all together."""
    per, unit = time_unit(timeline.seconds)
    times, bands = _bands(timeline)
    peak = timeline.peak_bytes or 1.0
    shown = [value for value in (limit, planned) if value and value <= _FAR_LIMIT * peak]
    high = max(peak, *shown, 0.0) * 1.15
    unit_prefix, scale = prefix(high)
    far = f" (limit {words.size(limit)}, above the chart)" if limit and limit not in shown else ""
    with chart(WIDTH, 252, f"Memory over time, peak {words.size(peak)}") as drawn:
        axes = drawn.axes(LEFT, 34, RIGHT, 206, title=f"resident memory, {unit_prefix}B{far}", x_label=unit)
        axes.set(xlim=(0, timeline.seconds / per), ylim=(0, high / scale))
        series = np.array([band for _, band in bands]) / scale
        axes.stackplot(times / per, series, colors=[COLOURS[f"s{i + 1}"] for i in range(len(bands))], alpha=0.75, linewidth=0)
        axes.plot(times / per, series.sum(axis=0), color=COLOURS["ink"], linewidth=1.2)
        if limit in shown and limit:
            rule(axes, limit / scale, f"limit {words.size(limit)}")
        if planned in shown and planned:
            # Words above the plan's line would lie across that of a limit just above it.
            below = limit is not None and 0 < limit - planned < 0.1 * high
            rule(axes, planned / scale, f"planned peak {words.size(planned)}", planned=True, below=below)
    keys = [(f"s{i + 1} solid", name) for i, (name, _) in enumerate(bands)]
    return join([tag("div", {"class": "wide"}, drawn.markup), legend(keys)])


def time_unit(seconds: float) -> tuple[float, str]:
    """Seconds of an axis' unit, and what stands below the axis."""
    per, name = (1.0, "seconds") if seconds < 180 else (60.0, "minutes") if seconds < 3 * 3600 else (3600.0, "hours")
    return per, f"{name} of running time"


def prefix(value: float) -> tuple[str, float]:
    """The metric prefix for values up to this one, and its factor."""
    for name, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return name, scale
    return "", 1.0


#: Pixels of a bar with room for a letter or two.
_LEAST_LABEL = 28.0


def _pass_bars(drawn: Chart, timeline: Timeline, per: float) -> None:
    from matplotlib.patches import Rectangle

    axes = drawn.axes(LEFT, 22, RIGHT, 62, title="passes")
    axes.set(xlim=(0, timeline.seconds / per), ylim=(0, 40))
    axes.set_axis_off()
    axes.set_title("passes", pad=8)
    pixel = timeline.seconds / (RIGHT - LEFT)
    for i, run in enumerate(timeline.passes):
        width = max(run.seconds / pixel - 1.5, 1.0)
        shade, alpha = ("bad", 0.75) if run.outcome == "cut" else ("s3", 0.78 if i % 2 else 1.0)
        bar = Rectangle((run.start / per, 12), width * pixel / per, 28, facecolor=COLOURS[shade], alpha=alpha)
        drawn.tip(axes.add_patch(bar), _pass_title(run))
        timed = f"{run.step}\u2002{words.duration(run.seconds)}"
        # Measuring a text opens its font: not for bars where nothing fits.
        texts = (timed, run.step) if width > _LEAST_LABEL else ()
        label = next((text for text in texts if text_width(text, 11.5) <= width - 12), "")
        if not label:
            continue
        start = run.start / per + 7 * pixel / per
        axes.text(start, 25.5, label, verticalalignment="center_baseline", color=COLOURS["sheet"], fontweight="bold")
    if timeline.checkpoints:
        times = [at / per for at, _ in timeline.checkpoints]
        diamonds = axes.plot(times, [6.0] * len(times), "D", color=COLOURS["s5"], markersize=5.6, clip_on=False)
        drawn.tip(diamonds[0], *(f"checkpoint {step}" for _, step in timeline.checkpoints))


def _pass_title(run: PassRun) -> str:
    ends = {"done": "", "loaded": ", loaded from its checkpoint", "cut": ", the job stopped inside it"}[run.outcome]
    title = f"{run.step}: {words.duration(run.seconds)}{ends}"
    if not run.seconds:
        return title
    rates = (words.quantity(run.bytes_read / run.seconds, "B/s"), words.quantity(run.flops / run.seconds, "FLOP/s"))
    return f"{title}; {', '.join(rates)}"


@dataclass(frozen=True, eq=False)
class _Rate:
    """What is drawn of a rate: its values over time in a unit, the machine's limit, and a colour."""

    title: str
    unit: str
    values: np.ndarray
    limit: float | None
    style: str


def _draw_rate(drawn: Chart, timeline: Timeline, rate: _Rate, top: float) -> Axes:
    """A rate over time, as axes without labels below them."""
    values, limit = rate.values, rate.limit
    peak = float(values.max(initial=0.0))
    shown = limit if limit and (peak == 0 or limit <= _FAR_LIMIT * peak) else None
    high = max(peak, shown or 0.0) or 1.0
    unit_prefix, scale = prefix(high)
    per, _ = time_unit(timeline.seconds)
    far = f"  (limit {words.quantity(limit, rate.unit)}, above the chart)" if limit and not shown else ""
    axes = drawn.axes(LEFT, top, RIGHT, top + 110, title=f"{rate.title}, {unit_prefix}{rate.unit}{far}")
    axes.set(xlim=(0, timeline.seconds / per), ylim=(0, high * 1.15 / scale))
    axes.locator_params(axis="y", nbins=4)
    axes.xaxis.set_visible(False)
    axes.stairs(values / scale, timeline.edges / per, fill=True, color=COLOURS[rate.style], alpha=0.16, linewidth=0)
    axes.stairs(values / scale, timeline.edges / per, color=COLOURS[rate.style], linewidth=1.8)
    if shown:
        rule(axes, shown / scale, f"limit {words.quantity(shown, rate.unit)}")
    return axes


def _bands(timeline: Timeline) -> tuple[np.ndarray, list[tuple[str, np.ndarray]]]:
    """Processes to draw, thinned to the largest values of at most 400 spans of time."""
    series = list(timeline.memory.items())
    named = [(_process(name, i), rss) for i, (name, rss) in enumerate(series)]
    if len(named) > _MOST_BANDS:
        rest = named[_MOST_BANDS - 1 :]
        named = [*named[: _MOST_BANDS - 1], (f"{len(rest)} other workers", np.sum([rss for _, rss in rest], axis=0))]
    times = timeline.memory_times
    starts = np.unique(np.linspace(0, len(times), min(len(times), 400), endpoint=False).astype(int))
    bands = [(name, np.maximum.reduceat(rss, starts)) for name, rss in named]
    return times[starts], bands


def _process(name: str, i: int) -> str:
    return name if name == "driver" else f"worker {name}" if name.isdigit() else f"worker {i} ({name.removeprefix('tcp://')})"
