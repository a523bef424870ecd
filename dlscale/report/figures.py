"""Figures of results: spectra, shares of variance, component lines, certificate bars, the seal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from dlscale.report import words
from dlscale.report.charts import COLOURS, Chart, boxes, chart, logarithmic
from dlscale.report.markup import Markup, div, join, tag

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: More values than this are drawn as a line; dots would touch.
_MOST_DOTS = 80


def _over_index(drawn: Chart, n: int, title: str, x_label: str) -> Axes:
    """Axes over components 1 .. n in a figure of half the page's width, with whole numbers below, the first among them."""
    axes = drawn.axes(62, 34, 496, 240, title=title, x_label=x_label)
    air = max(0.5, 0.015 * n)
    axes.set_xlim(1 - air, n + air)
    axes.locator_params(axis="x", nbins=7, integer=True)
    axes.set_xticks([1, *(at for at in axes.get_xticks() if 1 + 0.06 * n < at <= n)])
    axes.xaxis.set_major_formatter("{x:,.0f}")
    return axes


def _curve(drawn: Chart, axes: Axes, x: np.ndarray, y: np.ndarray, colour: str, titles: Sequence[str]) -> None:
    if len(x) > _MOST_DOTS:
        axes.plot(x, y, color=colour)
    else:
        drawn.tip(axes.plot(x, y, "o-", color=colour, markersize=6.4 if len(x) <= 40 else 4.4, clip_on=False)[0], *titles)


def spectrum(
    values: np.ndarray, y_label: str, x_label: str, *, style: str = "s1", errors: np.ndarray | None = None, unit: str = ""
) -> Markup:
    """Values over their index on a logarithmic axis, with error bars where they are given.

    Parameters
    ----------
    values : ndarray of shape (k,)
        Non-negative. Zeros cannot be drawn; the label says how many there are.
    errors : ndarray of shape (k,), optional
        Absolute.
    """
    values, colour = np.asarray(values, dtype=float), COLOURS[style]
    seen = np.isfinite(values) & (values > 0)
    x, y = np.arange(1, len(values) + 1)[seen], values[seen]
    n_zero = int(np.sum(values == 0))
    heading = y_label + (f" ({n_zero} exactly zero, not drawn)" if n_zero else "")
    with chart(510, 290, f"{y_label}, {len(values)} values") as drawn:
        axes = _over_index(drawn, len(values), heading, x_label)
        logarithmic(axes, float(y.min(initial=np.inf)) if len(y) else 0.1, float(y.max(initial=0.0)) or 1.0)
        if errors is not None:
            above = np.asarray(errors, dtype=float)[seen]
            # A bar that would reach zero ends at the foot of the chart.
            below = np.minimum(above, np.maximum(y - axes.get_ylim()[0], 0.0))
            if len(x) > _MOST_DOTS:
                axes.fill_between(x, y - below, y + above, color=colour, alpha=0.16, linewidth=0)
            else:
                axes.errorbar(x, y, (below, above), fmt="none", color=colour, elinewidth=1.4, capsize=3, capthick=1.4, alpha=0.7)
        _curve(drawn, axes, x, y, colour, [f"{i}: {words.number(float(v))}{unit}" for i, v in zip(x, y, strict=True)])
    return drawn.markup


def convergence(claimed: np.ndarray, measured: np.ndarray) -> Markup:
    """Residuals over iterations on a logarithmic axis: those that a recurrence claims, and those that were measured.

    Parameters
    ----------
    claimed : ndarray of shape (i,)
        After each iteration.
    measured : ndarray of shape (r, 2)
        After which iteration, and what it was.
    """
    x, y = np.arange(1, len(claimed) + 1), np.asarray(claimed, dtype=float)
    seen = np.isfinite(y) & (y > 0)
    dots = measured[np.isfinite(measured[:, 1]) & (measured[:, 1] > 0)]
    every = np.concatenate([y[seen], dots[:, 1]])
    with chart(510, 290, f"residual over {len(claimed)} iterations") as drawn:
        axes = _over_index(drawn, max(1, len(claimed)), "largest residual, of its right-hand side", "iteration")
        logarithmic(axes, float(every.min(initial=1.0)), float(every.max(initial=1e-16)))
        axes.plot(x[seen], y[seen], color=COLOURS["s1"])
        titles = [f"iteration {i:.0f}: {words.number(float(v))}" for i, v in dots]
        if titles:
            drawn.tip(axes.plot(dots[:, 0], dots[:, 1], "o", color=COLOURS["s2"], markersize=6.4, clip_on=False)[0], *titles)
    return join([drawn.markup, legend([("s1 solid", "claimed by the recurrence"), ("s2 solid", "measured on the matrix")])])


def cumulative(shares: np.ndarray) -> Markup:
    """Cumulative share of the variance, and where it passes 50, 90, 95 and 99 percent."""
    total = np.cumsum(np.asarray(shares, dtype=float))
    index = np.arange(1, len(total) + 1)
    rows = []
    for goal in (0.5, 0.9, 0.95, 0.99):
        if total[-1] >= goal:
            n = int(np.searchsorted(total, goal)) + 1
            rows.append(f"{goal * 100:g} % by {n:,} component{'s' if n > 1 else ''}")
    with chart(510, 290, f"Cumulative variance, {words.share(float(total[-1]))} in all") as drawn:
        axes = _over_index(drawn, len(total), "variance explained by the first components together", "number of components")
        axes.set_ylim(0, 1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.fill_between(index, total, color=COLOURS["s2"], alpha=0.16, linewidth=0)
        _curve(
            drawn,
            axes,
            index,
            total,
            COLOURS["s2"],
            [f"first {i}: {words.share(float(v))}" for i, v in zip(index, total, strict=True)],
        )
        axes.annotate(
            "\n".join(rows), (1, 0), (-8, 8), xycoords="axes fraction", textcoords="offset points", ha="right", linespacing=1.3
        )
    return drawn.markup


def vector(
    values: np.ndarray, label: str, *, style: str = "s1", over: str = "column", names: Sequence[str] | None = None
) -> Markup:
    """One component over its columns, or what else its entries belong to: stems where there are few, else a line."""
    values, colour = np.abs(values) if np.iscomplexobj(values) else np.asarray(values, dtype=float), COLOURS[style]
    n, reach = len(values), float(np.max(np.abs(values), initial=0.0)) or 1.0
    low = 0.0 if float(np.min(values, initial=0.0)) >= 0 else -reach
    columns = np.arange(n)
    with chart(510, 116, label) as drawn:
        axes = drawn.axes(78, 26, 490, 92, title=label)
        axes.set(xlim=(-0.5, n - 0.5), ylim=(low, reach))
        axes.spines["bottom"].set_visible(False)
        axes.axhline(0, color=COLOURS["soft"], linewidth=1)
        levels = sorted({low, 0.0, reach})
        axes.set_yticks(levels, [words.number(level) for level in levels])
        ends = sorted({0, n - 1})
        axes.set_xticks(ends, [f"{over} 0", f"{n - 1:,}"][: len(ends)])
        axes.tick_params(axis="x", length=0, pad=6)
        if n > 1:
            # Inwards from the ends, clear of the numbers of the other axis.
            first, last = axes.get_xticklabels()
            first.set_horizontalalignment("left")
            last.set_horizontalalignment("right")
        if n <= 60:
            axes.vlines(columns, 0, values, color=colour, linewidth=1.5)
            called = names or [f"{over} {i}" for i in range(n)]
            titles = [f"{words.printable(name)}: {words.number(float(v))}" for name, v in zip(called, values, strict=True)]
            drawn.tip(axes.plot(columns, values, "o", color=colour, markersize=4.4, clip_on=False)[0], *titles)
        else:
            axes.plot(columns, values, color=colour, linewidth=1.2)
    return drawn.markup


def scatter(x: np.ndarray, y: np.ndarray, n: int, title: str, x_label: str, *, style: str = "s3") -> Markup:
    """Points (x, y) of 1 .. n, as one mark: there may be thousands."""
    with chart(510, 290, f"{title}, {len(x)} points") as drawn:
        axes = _over_index(drawn, n, title, x_label)
        axes.set_ylim(1 - max(0.5, 0.015 * n), n + max(0.5, 0.015 * n))
        axes.locator_params(axis="y", nbins=6, integer=True)
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.plot([1, n], [1, n], color=COLOURS["line"], linewidth=1)
        size = 1.5 if len(x) > 400 else 3.0
        # Half a mark, in steps: the axes are 434 x 206 pixels.
        wide, high = size / 2 * n / 434, size / 2 * n / 206
        boxes(axes, [(a - wide, a + wide, b - high, b + high) for a, b in zip(x, y, strict=True)], style)
    return drawn.markup


#: The decades of value / limit that a certificate's bar spans.
_SPAN = (1e-6, 1e2)


def _place(part: float, low: float, high: float) -> float:
    """Where `part` lies on a logarithmic bar, in percent."""
    part = min(max(part, low), high)
    return 100 * math.log(part / low) / math.log(high / low)


def _bar(label: str, style: str, start: float, stop: float, *marks: Markup) -> Markup:
    """A bar filled from `start` to `stop` percent."""
    filled = tag("i", {"class": style, "style": f"left:{start:.2f}%;width:{stop - start:.2f}%"})
    return tag("div", {"class": "bar", "role": "img", "aria-label": label, "title": label}, filled, *marks)


def measured(check: Mapping[str, Any]) -> float:
    """A check's value; JSON has no NaN and holds null in its place."""
    return math.nan if check["value"] is None else float(check["value"])


def check_bar(check: Mapping[str, Any]) -> Markup:
    """Value over limit on a logarithmic bar; all bars share one axis, so that the limits stand under each other."""
    value, threshold = measured(check), float(check["threshold"])
    part = value / threshold if threshold > 0 and math.isfinite(value) else (0.0 if value == 0 else math.inf)
    limit = _place(1.0, *_SPAN)
    marks = [tag("i", {"class": "bad beyond", "style": f"left:{limit:.2f}%;right:0"})]
    marks.append(tag("b", {"style": f"left:{limit:.2f}%"}))
    labels = [("limit", 1.0), *((words.power_of_ten(e), 10.0**e) for e in (-5, -3))]
    marks += [tag("span", {"style": f"left:{_place(at, *_SPAN):.2f}%"}, text) for text, at in labels]
    style = "good" if check["passed"] else "bad"
    return div("scaled", _bar(f"{words.number(part)} of the limit", style, 0.0, max(_place(part, *_SPAN), 1.5), *marks))


def overrun(measured: float, planned: float) -> Markup:
    """A bar left (less) or right (more) of the plan, from a tenth to ten times."""
    at = _place(measured / planned, 0.1, 10.0)
    mark = tag("b", {"style": "left:50%"})
    return div("ratio", _bar(f"{words.ratio(measured, planned)} of the plan", "s1 solid", min(at, 50.0), max(at, 50.0), mark))


def meter(part: float) -> Markup:
    """A thin bar for a share of a limit."""
    filled = 100 * min(max(part, 0.02), 1.0)
    return div("meter", _bar(f"{words.share(part)} of the limit", "good" if part <= 1 else "bad", 0.0, filled))


def seal(state: Literal["passed", "doubtful", "failed"], seed: str) -> Markup:
    """A rosette as on printed certificates, its number of petals from the job's id; with a tick, an exclamation mark or a cross."""
    name, title, strokes = {
        "passed": ("good", "Certified", ([(-16, -5, 17), (-1, -12, 12)],)),
        "doubtful": ("warn", "Certified, but no digit is sure", ([(0, 0), (18, -2)], [(0, 0), (-15, -15.1)])),
        "failed": ("bad", "Failed its certificate", ([(-13, 13), (13, -13)], [(13, -13), (13, -13)])),
    }[state]
    petals = 9 + sum(seed.encode()) % 7
    angle = np.linspace(0.0, 2 * math.pi, 40 * petals + 1)
    with chart(120, 120, title, style="seal") as drawn:
        axes = drawn.axes(0, 0, 120, 120)
        axes.set(xlim=(-60, 60), ylim=(-60, 60))
        axes.set_axis_off()
        for turn in range(6):
            radius = 43.0 * (1 + 0.11 * np.cos(petals * angle + 2 * math.pi * turn / 6)) + 2.5
            axes.plot(radius * np.cos(angle), radius * np.sin(angle), color=COLOURS[name], linewidth=0.7)
        axes.plot(0, 0, "o", color=COLOURS[name], markersize=70)
        for stroke in strokes:
            axes.plot(*stroke, color=COLOURS["sheet"], linewidth=6.5, solid_capstyle="round", solid_joinstyle="round")
    return drawn.markup


def legend(items: Sequence[tuple[str, str]]) -> Markup:
    """Colour keys beside their words."""
    keys = [tag("span", {"class": "key"}, tag("i", {"class": style}), label) for style, label in items]
    return tag("p", {"class": "legend"}, *keys)
