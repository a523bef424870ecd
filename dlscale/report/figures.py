"""Figures of results: spectra, shares of variance, component lines and pictures, certificate bars, the seal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlscale.report import svg, words
from dlscale.report.markup import Markup, tag
from dlscale.report.svg import Panel, Scale

_WIDTH, _HEIGHT = 510.0, 290.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 62.0, 496.0, 34.0, 240.0
#: More values than this are drawn as a line; dots would touch.
_MOST_DOTS = 80


def index_scale(n: int) -> Scale:
    """Components 1 .. n along the width of a half-page figure."""
    return Scale(0.5, n + 0.5, _LEFT, _RIGHT) if n < 30 else Scale(1.0, float(max(n, 2)), _LEFT, _RIGHT)


def index_ticks(scale: Scale) -> list[float]:
    """Whole numbers only, and the first component among them."""
    ticks = [t for t in scale.ticks(7) if t == round(t) and t >= 1]
    return ticks if ticks and ticks[0] == 1 else [1.0, *[t for t in ticks if t - 1 > (scale.high - scale.low) * 0.06]]


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
    values = np.asarray(values, dtype=float)
    index = np.arange(1, len(values) + 1)
    seen = np.isfinite(values) & (values > 0)
    n_zero = int(np.sum(values == 0))
    panel = Panel(index_scale(len(values)), svg.log_scale(values[seen], _BOTTOM, _TOP))
    heading = y_label + (f" ({n_zero} exactly zero, not drawn)" if n_zero else "")
    panel.axes(x_label=x_label, y_label=heading, x_ticks=index_ticks(panel.x))
    x, y = index[seen], values[seen]
    if errors is not None:
        low = np.maximum(y - np.asarray(errors, dtype=float)[seen], panel.y.low)
        high = y + np.asarray(errors, dtype=float)[seen]
        if len(x) > _MOST_DOTS:
            panel.area(x.tolist(), low.tolist(), high.tolist(), f"{style} soft")
        else:
            panel.marks.extend(
                svg.line(panel.x(a), panel.y(b), panel.x(a), panel.y(c), f"{style} bar")
                for a, b, c in zip(x, low, high, strict=True)
            )
    panel.polyline(x, y, f"{style} curve")
    if len(x) <= _MOST_DOTS:
        titles = [f"{i}: {words.number(float(v))}{unit}" for i, v in zip(x, y, strict=True)]
        panel.dots(x, y, f"{style} dot", titles, radius=3.2 if len(x) <= 40 else 2.2)
    return svg.drawing(_WIDTH, _HEIGHT, f"{y_label}, {len(values)} values", panel.marks)


def cumulative(shares: np.ndarray) -> Markup:
    """Cumulative share of the variance, and where it passes 50, 90, 95 and 99 percent."""
    total = np.cumsum(np.asarray(shares, dtype=float))
    index = np.arange(1, len(total) + 1)
    panel = Panel(index_scale(len(total)), Scale(0.0, 1.0, _BOTTOM, _TOP))
    panel.axes(
        x_label="number of components",
        y_label="variance explained by the first components together",
        x_ticks=index_ticks(panel.x),
        y_ticks=[0, 0.25, 0.5, 0.75, 1.0],
        y_text=lambda v: f"{100 * v:g} %",
    )
    panel.area(index.tolist(), [0.0] * len(total), total.tolist(), "s2 soft")
    panel.polyline(index, total, "s2 curve")
    if len(total) <= _MOST_DOTS:
        titles = [f"first {i}: {words.share(float(v))}" for i, v in zip(index, total, strict=True)]
        panel.dots(index, total, "s2 dot", titles, radius=3.2 if len(index) <= 40 else 2.2)
    rows = []
    for goal in (0.5, 0.9, 0.95, 0.99):
        if total[-1] >= goal:
            n = int(np.searchsorted(total, goal)) + 1
            rows.append(f"{goal * 100:g} % by {n:,} component{'s' if n > 1 else ''}")
    for i, row in enumerate(rows):
        panel.marks.append(svg.text(_RIGHT - 6, _BOTTOM - 12 - 16 * (len(rows) - 1 - i), row, "note", anchor="end"))
    return svg.drawing(_WIDTH, _HEIGHT, f"Cumulative variance, {words.share(float(total[-1]))} in all", panel.marks)


def vector(values: np.ndarray, label: str, *, style: str = "s1") -> Markup:
    """One component over its columns: stems where there are few, else a line (long ones by the extremes of each pixel)."""
    values = np.abs(values) if np.iscomplexobj(values) else np.asarray(values, dtype=float)
    n, reach = len(values), float(np.max(np.abs(values), initial=0.0)) or 1.0
    low = 0.0 if float(np.min(values, initial=0.0)) >= 0 else -reach
    panel = Panel(Scale(-0.5, n - 0.5, 46.0, 500.0), Scale(low, reach, 92.0, 26.0))
    panel.marks.append(svg.text(46, 14, label, "title"))
    for level in dict.fromkeys((low, 0.0, reach)):
        panel.marks.append(svg.line(46, panel.y(level), 500, panel.y(level), "axis" if level == 0 else "grid"))
        panel.marks.append(svg.text(40, panel.y(level) + 3.5, _signed(level), "tick", anchor="end"))
    columns = np.arange(n)
    if n <= 60:
        panel.marks.extend(
            svg.line(panel.x(i), panel.y(0.0), panel.x(i), panel.y(float(v)), f"{style} stem") for i, v in enumerate(values)
        )
        panel.dots(
            columns, values, f"{style} dot", [f"column {i}: {words.number(float(v))}" for i, v in enumerate(values)], radius=2.2
        )
    else:
        if n > 900:
            parts = np.array_split(columns, 450)
            columns = np.array([p[0] for p in parts for _ in (0, 1)])
            values = np.array([extreme(values[p]) for p in parts for extreme in (np.min, np.max)])
        panel.polyline(columns, values, f"{style} thin")
    panel.marks.append(svg.text(46, 107, "column 0", "tick"))
    panel.marks.append(svg.text(500, 107, f"{n - 1:,}", "tick", anchor="end"))
    return svg.drawing(510, 112, label, panel.marks)


def _signed(value: float) -> str:
    """Two digits in the width of an axis label."""
    plain = value == 0 or 1e-3 <= abs(value) < 1e4
    text = f"{float(f'{value:.2g}'):g}" if plain else f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return text.replace("-", "−")


#: The decades of value / limit that a certificate's bar spans.
_SPAN = (1e-6, 1e2)


def measured(check: Mapping[str, Any]) -> float:
    """A check's value; JSON has no NaN and holds null in its place."""
    return math.nan if check["value"] is None else float(check["value"])


def check_bar(check: Mapping[str, Any]) -> Markup:
    """Value over limit on a logarithmic bar; all bars share one axis, so that the limits stand under each other."""
    value, threshold = measured(check), float(check["threshold"])
    part = value / threshold if threshold > 0 and math.isfinite(value) else (0.0 if value == 0 else math.inf)
    scale = Scale(*_SPAN, 4.0, 316.0, log=True)
    at, limit = scale(part if math.isfinite(part) else _SPAN[1]), scale(1.0)
    style = "good" if check["passed"] else "bad"
    marks = [svg.box(4, 14, 312, 10, "track", radius=5), svg.box(limit, 14, 312 + 4 - limit, 10, "beyond", radius=5)]
    marks += [svg.line(scale(10.0**e), 16, scale(10.0**e), 22, "grid") for e in range(-5, 2)]
    marks.append(svg.box(4, 14, max(at - 4, 5.0), 10, style, radius=5, title=f"{words.number(part)} of the limit"))
    marks.append(svg.line(limit, 8, limit, 30, "mark"))
    marks.append(svg.text(limit, 41, "limit", "tick", anchor="middle"))
    marks += [svg.text(scale(10.0**e), 41, f"{words.power_of_ten(e)}", "tick", anchor="middle") for e in (-5, -3)]
    return svg.drawing(320, 46, f"{words.number(part)} of the limit", marks, style="chart bar-chart")


def seal(passed: bool, seed: str) -> Markup:
    """A rosette as on printed certificates, its number of petals from the job's id; with a tick or a cross inside."""
    style = "good" if passed else "bad"
    petals = 9 + sum(seed.encode()) % 7
    angle = np.linspace(0.0, 2 * math.pi, 40 * petals + 1)
    marks = []
    for turn in range(6):
        radius = 43.0 * (1 + 0.11 * np.cos(petals * angle + 2 * math.pi * turn / 6)) + 2.5
        points = " ".join(f"{60 + r * math.cos(a):.1f},{60 + r * math.sin(a):.1f}" for r, a in zip(radius, angle, strict=True))
        marks.append(tag("polyline", {"class": f"{style} rosette", "points": points}))
    marks.append(tag("circle", {"class": f"{style} disc", "cx": 60, "cy": 60, "r": 35}))
    glyph = "M44 61 L55 72 L77 48" if passed else "M47 47 L73 73 M73 47 L47 73"
    marks.append(tag("path", {"class": "glyph", "d": glyph}))
    return svg.drawing(120, 120, "Certified" if passed else "Failed its certificate", marks, style="seal")


def overrun(measured: float, planned: float) -> Markup:
    """A bar left (less) or right (more) of the plan, from a tenth to ten times."""
    scale = Scale(0.1, 10.0, 4.0, 136.0, log=True)
    at, middle = scale(measured / planned if measured > 0 else 0.1), scale(1.0)
    marks = [
        svg.box(4, 5, 132, 8, "track", radius=4),
        svg.box(min(at, middle), 5, max(abs(at - middle), 1.5), 8, "s1 solid", radius=2),
    ]
    marks.append(svg.line(middle, 1, middle, 17, "mark"))
    return svg.drawing(140, 18, f"{words.ratio(measured, planned)} of the plan", marks, style="chart ratio-chart")


def meter(part: float) -> Markup:
    """A thin bar for a share of a limit."""
    filled = {"class": "good" if part <= 1 else "bad", "style": f"width:{100 * min(max(part, 0.02), 1.0):.0f}%"}
    return tag("div", {"class": "meter", "role": "img", "aria-label": f"{words.share(part)} of the limit"}, tag("i", filled))


def legend(items: Sequence[tuple[str, str]]) -> Markup:
    """Colour keys beside their words."""
    keys = [tag("span", {"class": "key"}, tag("i", {"class": style}), label) for style, label in items]
    return tag("p", {"class": "legend"}, *keys)
