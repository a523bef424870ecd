"""Rows in the plane of the first two components: dots where there are few, their density where there are many; and a biplot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dlscale.report import words
from dlscale.report.charts import BACKING, COLOURS, Chart, boxes, chart
from dlscale.report.components.colors import Coloring
from dlscale.report.markup import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Up to so many rows are dots with their names, and up to so many dots without.
_NAMED_DOTS, MOST_DOTS = 500, 4000
#: Names in a plane, of rows far from its middle and of columns with long arrows.
_MOST_NAMES, _MOST_ARROWS = 8, 10
#: Cells of a density across and upwards, and its shades.
_CELLS, _SHADES = (62, 42), 6
_WIDTH, _HEIGHT = 434, 290
_MOST_LETTERS = 24
#: Entries of a component that are told by names.
MOST_BARS = 12


class Colored(NamedTuple):
    """Rows of a plane in the colours of a column: which they are, what the column tells of each, and how that is coloured."""

    rows: np.ndarray
    told: Sequence[str]
    colors: Coloring


def scores(points: np.ndarray, names: Sequence[str], axes_names: tuple[str, str], colored: Colored | None = None) -> Markup:
    """Rows at their scores (r, 2), with the names of those that lie far out; of many rows, those in colours over the density."""
    with chart(510, 372, f"scores of {len(points):,} rows") as drawn:
        axes = _plane(drawn, points, "rows", axes_names)
        if colored is None:
            _rows(drawn, axes, points, names, alpha=0.75)
        else:
            if len(points) > MOST_DOTS:
                _density(axes, points, "soft", 0.4)
            _colored_rows(drawn, axes, points, names, colored)
        if len(names) == len(points):
            far = np.argsort(-np.sum((points / _reach(points)) ** 2, axis=1), kind="stable")
            most = len(points) if len(points) <= 2 * _MOST_NAMES else _MOST_NAMES
            for k in _apart(axes, points, far.tolist(), most):
                _write(axes, points[k], names[k])
    return drawn.markup


def biplot(points: np.ndarray, loadings: np.ndarray, names: Sequence[str], axes_names: tuple[str, str]) -> Markup:
    """The same rows, faint, and columns as arrows along their loadings (n, 2), at a scale for each axis; the longest are drawn."""
    lengths = np.hypot(*loadings.T)
    longest = np.argsort(-lengths, kind="stable")[:_MOST_ARROWS]
    longest = longest[lengths[longest] > 0]
    with chart(510, 372, f"biplot of {len(points):,} rows and {len(longest)} columns") as drawn:
        ends = arrow_ends(points, loadings[longest])
        axes = _plane(drawn, np.concatenate([points, ends]), "rows, and columns as arrows", axes_names)
        _rows(drawn, axes, points, (), alpha=0.3)
        for end in ends:
            axes.annotate("", end, (0, 0), arrowprops={"arrowstyle": "-|>", "color": COLOURS["s2"], "linewidth": 1.4})
        for k in _apart(axes, ends, range(len(ends)), _MOST_ARROWS):
            _write(axes, ends[k], names[longest[k]], above=9 if ends[k, 1] >= 0 else -19)
    return drawn.markup


def arrow_ends(points: np.ndarray, loadings: np.ndarray) -> np.ndarray:
    """Where arrows end: along each axis the longest goes nearly as far as the points."""
    return np.asarray(loadings / _reach(loadings) * (0.9 * _reach(points)))


def _reach(points: np.ndarray) -> np.ndarray:
    """How far the points go along each axis from 0."""
    reach = np.max(np.abs(points), axis=0, initial=0)
    return np.where(reach > 0, reach, 1.0)


def _plane(drawn: Chart, points: np.ndarray, title: str, axes_names: tuple[str, str]) -> Axes:
    axes = drawn.axes(62, 34, 62 + _WIDTH, 34 + _HEIGHT, title=f"{axes_names[1]} — {title}", x_label=axes_names[0])
    low, high = np.min(points, axis=0, initial=0), np.max(points, axis=0, initial=0)
    air = 0.08 * np.where(high > low, high - low, 1.0)
    axes.set(xlim=(low[0] - air[0], high[0] + air[0]), ylim=(low[1] - air[1], high[1] + air[1]))
    axes.locator_params(nbins=6)
    axes.axhline(0, color=COLOURS["soft"], linewidth=1)
    axes.axvline(0, color=COLOURS["soft"], linewidth=1)
    return axes


def _rows(drawn: Chart, axes: Axes, points: np.ndarray, names: Sequence[str], *, alpha: float) -> None:
    if len(points) > MOST_DOTS:
        _density(axes, points, "s1", alpha)
    elif len(points) > _NAMED_DOTS or len(names) != len(points):
        _small_dots(axes, points, "s1", alpha, half=2.2 if len(points) <= _NAMED_DOTS else 1.3)
    else:
        _dots(drawn, axes, points, "s1", names, alpha=alpha)


def _colored_rows(drawn: Chart, axes: Axes, points: np.ndarray, names: Sequence[str], colored: Colored) -> None:
    """The rows that have colours, each with its name, where there is one, and what it is coloured by."""
    for style, which in colored.colors.parts():
        rows = colored.rows[which]
        if len(colored.rows) > _NAMED_DOTS:
            _small_dots(axes, points[rows], style, 0.85, half=1.6)
            continue
        told = [colored.told[k] for k in which.tolist()]
        if len(names) == len(points):
            told = [f"{words.printable(names[i])}, {text}" for i, text in zip(rows.tolist(), told, strict=True)]
        _dots(drawn, axes, points[rows], style, told, alpha=0.85)


def _small_dots(axes: Axes, points: np.ndarray, style: str, alpha: float, *, half: float) -> None:
    """All of them as one mark."""
    wide, high = (np.diff((axes.get_xlim(), axes.get_ylim())).ravel() / (_WIDTH, _HEIGHT)).tolist()
    boxes(axes, [(x - half * wide, x + half * wide, y - half * high, y + half * high) for x, y in points], style, alpha)


def _dots(drawn: Chart, axes: Axes, points: np.ndarray, style: str, told: Sequence[str], *, alpha: float) -> None:
    """Each as a mark that tells a name."""
    dots = axes.plot(points[:, 0], points[:, 1], "o", color=COLOURS[style], alpha=alpha, markersize=5, clip_on=False)[0]
    drawn.tip(dots, *map(words.printable, told))


def _density(axes: Axes, points: np.ndarray, style: str, alpha: float) -> None:
    """Shades by how many rows lie in a cell, each twice and more as many as the one below."""
    ranges = axes.get_xlim(), axes.get_ylim()
    counts, xs, ys = np.histogram2d(points[:, 0], points[:, 1], bins=_CELLS, range=ranges)
    shades = np.ceil(_SHADES * np.log1p(counts) / np.log1p(counts.max()))
    for shade in range(1, _SHADES + 1):
        cells = [(xs[i], xs[i + 1], ys[j], ys[j + 1]) for i, j in np.argwhere(shades == shade).tolist()]
        if cells:
            boxes(axes, cells, style, alpha * (0.12 + 0.88 * shade / _SHADES))


def _apart(axes: Axes, points: np.ndarray, order: Sequence[int], most: int) -> Iterator[int]:
    """Of points in this order, those beside which there is room for a name."""
    size = np.diff((axes.get_xlim(), axes.get_ylim())).ravel() / (_WIDTH, _HEIGHT)
    taken: list[np.ndarray] = []
    for k in order[: 4 * most]:
        place = points[k] / size
        if len(taken) < most and all(abs(place[1] - y) > 15 or abs(place[0] - x) > 90 for x, y in taken):
            taken.append(place)
            yield k


def _write(axes: Axes, place: np.ndarray, name: str, *, above: float = 5) -> None:
    """A name beside a place, on the side of the middle."""
    low, high = axes.get_xlim()
    right = place[0] > (low + high) / 2
    axes.annotate(
        words.printable(name, _MOST_LETTERS),
        (float(place[0]), float(place[1])),
        (-6 if right else 6, above),
        textcoords="offset points",
        horizontalalignment="right" if right else "left",
        fontsize=11,
        bbox=BACKING | {"alpha": 0.6},
    )


def bars(values: np.ndarray, names: Sequence[str], title: str) -> Markup:
    """The largest entries of a component, each beside the name of its column."""
    order = np.argsort(-np.abs(values), kind="stable")[:MOST_BARS]
    reach = float(np.max(np.abs(values), initial=0.0)) or 1.0
    low = -reach if values.min(initial=0.0) < 0 else 0.0
    bottom = 40 + 22 * len(order)
    with chart(510, bottom + 26, title) as drawn:
        axes = drawn.axes(176, 32, 492, bottom, title="")
        axes.set(xlim=(low * 1.05, reach * 1.05), ylim=(len(order) - 0.4, -0.6))
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        axes.axvline(0, color=COLOURS["soft"], linewidth=1)
        axes.set_yticks(range(len(order)), [words.printable(names[j], 22) for j in order.tolist()])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.locator_params(axis="x", nbins=5)
        axes.text(0, 1, words.printable(title, 80), transform=drawn.figure.transFigure, fontweight="bold", fontsize=12, va="top")
        edges = [(min(0.0, v), max(0.0, v), y - 0.34, y + 0.34) for y, v in enumerate(values[order].tolist())]
        told = [f"{words.printable(names[j], 80)}: {words.number(float(values[j]))}" for j in order.tolist()]
        drawn.tip(boxes(axes, edges, "s1", 0.85, split=True), *told)
    return drawn.markup
