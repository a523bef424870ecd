"""A small chart library: scales, a panel with axes, marks.

Charts are SVG inside the page, so that their colours are the page's own: they follow the reader's light or dark setting and
print in black on white, their text can be selected, and a figure costs kilobytes and milliseconds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from dlscale.report import words
from dlscale.report.markup import Markup, tag

#: Mean width of a character over its font size in a sans-serif face, on the generous side.
_CHARACTER = 0.58


def text_width(text: str, font_size: float = 11.0) -> float:
    """Estimated width in pixels, for keeping labels apart."""
    return _CHARACTER * font_size * len(text)


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] to pixels from `start` to `stop`, linearly or by logarithm; values outside are clipped."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.stop - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """At most about `most` round values within the scale."""
        if self.log:
            return self._decades(most)
        step = _nice_step((self.high - self.low) / most)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _decades(self, most: int) -> list[float]:
        low, high = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
        if high - low < 2:
            within = [m * 10.0**e for e in range(low - 1, high + 1) for m in (1, 2, 5)]
            return [v for v in within if self.low * (1 - 1e-9) <= v <= self.high * (1 + 1e-9)]
        stride = max(1, math.ceil((high - low) / most))
        return [10.0**e for e in range(low, high + 1, stride)]


def _nice_step(rough: float) -> float:
    scale = 10.0 ** math.floor(math.log10(rough))
    return next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= rough * (1 - 1e-9))


def log_scale(values: Iterable[float], start: float, stop: float) -> Scale:
    """A logarithmic scale around the positive `values`, with a little air and never less than half a decade."""
    positive = [v for v in values if v > 0 and math.isfinite(v)]
    low, high = (min(positive), max(positive)) if positive else (0.1, 1.0)
    air = max(high / low, 1.0) ** 0.06 * 1.05
    if high / low < 3:
        air *= math.sqrt(3 / (high / low))
    return Scale(low / air, high * air, start, stop, log=True)


def tick_label(value: float, *, log: bool = False) -> str:
    """A short label for a tick."""
    if log and value > 0 and abs(math.log10(value) - round(math.log10(value))) < 1e-9:
        return words.power_of_ten(round(math.log10(value)))
    if value == 0 or 1e-4 <= abs(value) < 1e4:
        return f"{value:.6g}".replace("-", "−")
    if not log and abs(value) < 1e7:
        return f"{value:,.0f}".replace("-", "−")
    mantissa, exponent = f"{value:.6e}".split("e")
    return f"{float(mantissa):g} × {words.power_of_ten(int(exponent))}".replace("-", "−")


@dataclass
class Panel:
    """A plotting area with its two scales; marks are appended to it and drawn in their order."""

    x: Scale
    y: Scale
    marks: list[Markup] = field(default_factory=list)

    def axes(
        self,
        *,
        x_label: str = "",
        y_label: str = "",
        x_ticks: Sequence[float] | None = None,
        y_ticks: Sequence[float] | None = None,
        x_text: Callable[[float], str] | None = None,
        y_text: Callable[[float], str] | None = None,
        label_x: bool = True,
    ) -> None:
        """Grid lines, tick labels and titles; the title of y stands above the axis, where it can be read without turning."""
        left, right, bottom, top = self.x.start, self.x.stop, self.y.start, self.y.stop
        for value in self.y.ticks(5) if y_ticks is None else y_ticks:
            at = self.y(value)
            self.marks.append(line(left, at, right, at, "grid"))
            shown = y_text(value) if y_text else tick_label(value, log=self.y.log)
            self.marks.append(text(left - 8, at + 3.5, shown, "tick", anchor="end"))
        self.marks.append(line(left, bottom, right, bottom, "axis"))
        if label_x:
            for value in self.x.ticks(8) if x_ticks is None else x_ticks:
                at = self.x(value)
                self.marks.append(line(at, bottom, at, bottom + 4, "axis"))
                shown = x_text(value) if x_text else tick_label(value, log=self.x.log)
                self.marks.append(text(at, bottom + 17, shown, "tick", anchor="middle"))
        if x_label:
            self.marks.append(text((left + right) / 2, bottom + 36, x_label, "title", anchor="middle"))
        if y_label:
            self.marks.append(text(left, top - 10, y_label, "title"))

    def polyline(self, x: Iterable[float], y: Iterable[float], style: str) -> None:
        points = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x, y, strict=True) if math.isfinite(b))
        self.marks.append(tag("polyline", {"class": style, "points": points}))

    def area(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], style: str) -> None:
        """Fill between two curves on the same x."""
        there = [f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x, high, strict=True)]
        back = [f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in zip(x, low, strict=True)]
        self.marks.append(tag("polygon", {"class": style, "points": " ".join(there + back[::-1])}))

    def steps(self, edges: np.ndarray, values: np.ndarray, style: str) -> None:
        """A histogram's outline, filled down to the axis."""
        x, y = np.repeat(edges, 2)[1:-1], np.repeat(values, 2)
        self.area(x.tolist(), [self.y.low] * len(x), y.tolist(), f"{style} soft")
        self.polyline(x.tolist(), y.tolist(), f"{style} curve")

    def dots(self, x: Iterable[float], y: Iterable[float], style: str, titles: Iterable[str], radius: float = 3.2) -> None:
        for a, b, title in zip(x, y, titles, strict=True):
            at: dict[str, str | float] = {"class": style, "cx": float(self.x(a)), "cy": float(self.y(b)), "r": radius}
            self.marks.append(tag("circle", at, tag("title", None, title)))

    def rule(self, y: float, label: str, style: str = "limit", *, anchor: str = "end") -> None:
        """A horizontal line across the panel with its label above one end."""
        at = self.y(y)
        self.marks.append(line(self.x.start, at, self.x.stop, at, style))
        edge = self.x.stop if anchor == "end" else self.x.start + 6
        self.marks.append(text(edge, at - 6, label, f"{style}-text", anchor=anchor))


def text(x: float, y: float, content: str, style: str, *, anchor: str = "start") -> Markup:
    """A line of text."""
    return tag("text", {"x": float(x), "y": float(y), "class": style, "text-anchor": anchor}, content)


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    """A straight line."""
    return tag("line", {"x1": float(x1), "y1": float(y1), "x2": float(x2), "y2": float(y2), "class": style})


def box(x: float, y: float, width: float, height: float, style: str, *, title: str = "", radius: float = 0) -> Markup:
    """A rectangle, with a title shown when pointed at."""
    at: dict[str, str | float] = {
        "x": float(x),
        "y": float(y),
        "width": float(width),
        "height": float(height),
        "class": style,
        "rx": float(radius),
    }
    return tag("rect", at, tag("title", None, title)) if title else tag("rect", at)


def drawing(width: float, height: float, label: str, marks: Iterable[Markup], *, style: str = "chart") -> Markup:
    """An SVG that scales to the width of its place; `label` is what a screen reader says."""
    frame = {"viewBox": f"0 0 {width:g} {height:g}", "class": style, "role": "img", "aria-label": label}
    return tag("svg", frame, *marks)
