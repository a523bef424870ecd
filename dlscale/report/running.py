"""Figures of a run: passes with their throughput against the machine's limits, and memory against its limit."""

from __future__ import annotations

import numpy as np

from dlscale.report import svg, words
from dlscale.report.figures import legend
from dlscale.report.markup import Markup, join, tag
from dlscale.report.svg import Panel, Scale
from dlscale.report.timeline import PassRun, Timeline

_WIDTH, _LEFT, _RIGHT = 1060.0, 62.0, 1044.0
#: Processes drawn by themselves; the rest are summed.
_MOST_BANDS = 6
#: A limit more than this many times above the data is named beside the chart instead of flattening it.
_FAR_LIMIT = 5.0


def throughput(timeline: Timeline, read_limit: float | None, flops_limit: float | None) -> Markup:
    """Bars of the passes over reading (bytes/s) and computing (FLOP/s), on one axis of running time."""
    x, unit = _time_scale(timeline.seconds)
    per = _unit_seconds(timeline.seconds)
    marks = [svg.text(_LEFT, 14, "passes", "title")]
    for i, run in enumerate(timeline.passes):
        marks += _pass_bar(run, x, per, i)
    for at, step in timeline.checkpoints:
        spot = x(at / per)
        marks.append(
            tag("path", {"class": "diamond", "d": f"M{spot:.1f} 52 l4 4 l-4 4 l-4 -4 z"}, tag("title", None, f"checkpoint {step}"))
        )
    series = (
        ("reading", "B/s", timeline.read_rate, read_limit, "s1", 96.0, 206.0),
        ("computing", "FLOP/s", timeline.flop_rate, flops_limit, "s2", 248.0, 358.0),
    )
    for title, base, values, limit, style, top, bottom in series:
        last = style == "s2"
        marks += _rate_panel(timeline, x, per, title, base, values, limit, style, top, bottom, unit if last else "")
    for at, left_out in timeline.pauses:
        marks.append(svg.line(x(at / per), 22, x(at / per), 358, "pause"))
        near_end = x(at / per) > _RIGHT - 190
        said = f"stopped; resumed {words.duration(left_out)} later"
        marks.append(svg.text(x(at / per) + (-5 if near_end else 5), 72, said, "note", anchor="end" if near_end else "start"))
    figure = svg.drawing(_WIDTH, 404, "Passes and throughput over time", marks)
    keys = [
        ("s1 solid", "read from storage"),
        ("s2 solid", "floating-point work"),
        ("limit-key", "this machine's limit, measured before the run"),
    ]
    if timeline.checkpoints:
        keys.append(("diamond-key", "checkpoint written"))
    return join([tag("div", {"class": "wide"}, figure), legend(keys)])


def memory(timeline: Timeline, limit: float | None, planned: float | None) -> Markup:
    """Resident memory of the processes on top of each other, against the plan and the limit of them all together."""
    x, unit = _time_scale(timeline.seconds)
    per = _unit_seconds(timeline.seconds)
    times, bands = _bands(timeline)
    peak = timeline.peak_bytes or 1.0
    shown = [value for value in (limit, planned) if value and value <= _FAR_LIMIT * peak]
    high = max(peak, *shown, 0.0) * 1.15
    prefix, scale = _prefix(high)
    panel = Panel(x, Scale(0.0, high / scale, 206.0, 34.0))
    far = f" (limit {words.size(limit)}, above the chart)" if limit and limit not in shown else ""
    panel.axes(x_label=unit, y_label=f"resident memory, {prefix}B{far}")
    ground = np.zeros(len(times))
    for i, (_, band) in enumerate(bands):
        top = ground + band / scale
        panel.area((times / per).tolist(), ground.tolist(), top.tolist(), f"s{i + 1} band")
        ground = top
    panel.polyline(times / per, ground, "outline")
    if limit in shown and limit:
        panel.rule(limit / scale, f"limit {words.size(limit)}")
    if planned in shown and planned:
        panel.rule(planned / scale, f"planned peak {words.size(planned)}", "plan", anchor="start")
    figure = svg.drawing(_WIDTH, 252, f"Memory over time, peak {words.size(peak)}", panel.marks)
    return join([tag("div", {"class": "wide"}, figure), legend([(f"s{i + 1} solid", name) for i, (name, _) in enumerate(bands)])])


def _unit_seconds(seconds: float) -> float:
    return 1.0 if seconds < 180 else 60.0 if seconds < 3 * 3600 else 3600.0


def _time_scale(seconds: float) -> tuple[Scale, str]:
    per = _unit_seconds(seconds)
    return Scale(0.0, seconds / per, _LEFT, _RIGHT), {1.0: "seconds", 60.0: "minutes", 3600.0: "hours"}[per] + " of running time"


def _prefix(value: float) -> tuple[str, float]:
    for name, scale in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return name, scale
    return "", 1.0


def _pass_bar(run: PassRun, x: Scale, per: float, i: int) -> list[Markup]:
    start, stop = x(run.start / per), x(run.stop / per)
    ends = {"done": "", "loaded": ", loaded from its checkpoint", "cut": ", the job stopped inside it"}[run.outcome]
    rates = (
        f"{words.quantity(run.bytes_read / run.seconds, 'B/s')}, {words.quantity(run.flops / run.seconds, 'FLOP/s')}"
        if run.seconds
        else ""
    )
    title = f"{run.step}: {words.duration(run.seconds)}{ends}" + (f"; {rates}" if rates else "")
    shade = "pass-cut" if run.outcome == "cut" else f"pass-{i % 2}"
    marks = [svg.box(start, 22, max(stop - start - 1.5, 1.0), 28, f"pass {shade}", title=title, radius=2)]
    label, room = run.step, stop - start - 12
    if svg.text_width(label, 11.5) <= room:
        timed = f"{label}  {words.duration(run.seconds)}"
        marks.append(svg.text(start + 7, 40, timed if svg.text_width(timed, 11.5) <= room else label, "pass-label"))
    return marks


def _rate_panel(
    timeline: Timeline,
    x: Scale,
    per: float,
    title: str,
    base: str,
    values: np.ndarray,
    limit: float | None,
    style: str,
    top: float,
    bottom: float,
    unit: str,
) -> list[Markup]:
    peak = float(values.max(initial=0.0))
    shown = limit if limit and (peak == 0 or limit <= _FAR_LIMIT * peak) else None
    prefix, scale = _prefix(max(peak, shown or 0.0) or 1.0)
    panel = Panel(x, Scale(0.0, (max(peak, shown or 0.0) or 1.0) * 1.15 / scale, bottom, top))
    far = f"  (limit {words.quantity(limit, base)}, above the chart)" if limit and not shown else ""
    panel.axes(x_label=unit, y_label=f"{title}, {prefix}{base}{far}", y_ticks=panel.y.ticks(4), label_x=bool(unit))
    panel.steps(timeline.edges / per, values / scale, style)
    if shown:
        panel.rule(shown / scale, f"limit {words.quantity(shown, base)}")
    return panel.marks


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
