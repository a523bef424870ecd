"""Charts by Matplotlib, as SVG inside the page.

Text stays text in the page's type face, and colours are the page's own, so that a chart follows the reader's light or dark
setting, prints, and can be searched. Matplotlib is imported when the first chart is drawn.
"""

from __future__ import annotations

import io
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from xml.etree import ElementTree

import numpy as np

from dlscale.report import words
from dlscale.report.markup import NOTHING, Markup

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Colours of categories, which colour-blind eyes tell apart too, and of numbers from the lowest to the highest: viridis.
CATEGORIES, SCALE = tuple(f"c{k}" for k in range(8)), tuple(f"v{k}" for k in range(12))
_NAMES = ("ink", "soft", "line", "none", "sheet", "s1", "s2", "s3", "s4", "s5", "s6", "good", "bad", "warn", *CATEGORIES, *SCALE)
#: The page's colours as Matplotlib takes them: each is drawn in a colour of its own, which becomes the page's variable.
COLOURS: Mapping[str, str] = {name: f"#fe{i:04x}" for i, name in enumerate(_NAMES)}

#: Widths are measured in a face that Matplotlib brings along: the same on every machine, and wider than what pages are set in.
_FACE = "DejaVu Sans"
#: A patch under words, so that what is drawn behind them does not make them hard to read.
BACKING = {"facecolor": COLOURS["sheet"], "linewidth": 0, "pad": 0, "alpha": 0.85}
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.family": _FACE,
    "font.size": 11.5,
    "figure.frameon": False,
    "text.color": COLOURS["ink"],
    "axes.facecolor": "none",
    "axes.edgecolor": COLOURS["soft"],
    "axes.linewidth": 1.0,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": COLOURS["line"],
    "grid.linewidth": 1.0,
    "axes.titlelocation": "left",
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlepad": 10,
    # No ticks stand above axes, and a title that looks for them has all labels measured once more.
    "axes.titley": 1.0,
    "axes.labelcolor": COLOURS["ink"],
    "axes.labelsize": 12,
    "axes.labelweight": "bold",
    "axes.labelpad": 7,
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.major.size": 4,
    "xtick.major.width": 1,
    "ytick.major.size": 0,
    "ytick.major.pad": 8,
    "lines.linewidth": 1.8,
    "lines.markeredgewidth": 0,
}


@dataclass(eq=False)
class Chart:
    """A figure being drawn, measured in pixels of the page; `markup` is there when it is done."""

    figure: Figure
    markup: Markup = NOTHING
    tips: dict[str, Sequence[str]] = field(default_factory=dict)

    def axes(self, left: float, top: float, right: float, bottom: float, *, title: str = "", x_label: str = "") -> Axes:
        """Axes between these distances from the left and the top of the chart; the title stands above, where it is easily read."""
        width, height = self.figure.get_size_inches() * 72
        place = (left / width, 1 - bottom / height, (right - left) / width, (bottom - top) / height)
        axes: Axes = self.figure.add_axes(place)
        axes.set_title(title)
        axes.set_xlabel(x_label)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(tick_text)
        return axes

    def tip(self, artist: Artist, *titles: str) -> None:
        """Text shown when a mark of `artist` is pointed at: one for each of its marks."""
        gid = f"tip-{len(self.tips)}"
        artist.set_gid(gid)
        self.tips[gid] = titles


@contextmanager
def chart(width: float, height: float, label: str, *, style: str = "chart") -> Iterator[Chart]:
    """Draw in the page's style; on leaving, the chart's `markup` is an SVG that scales to the width of its place.

    Parameters
    ----------
    width, height : float
        Size in pixels where the chart is not scaled.
    label : str
        What a screen reader says. Unlike that of any other chart on the page, since it keeps their ids apart.
    style : str
        Class of the SVG.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    # From the defaults, so that the reader's own Matplotlib settings do not show.
    with matplotlib.style.context(["default", _STYLE | {"svg.hashsalt": label}]):
        drawn = Chart(Figure(figsize=(width / 72, height / 72)))
        yield drawn
        written = io.StringIO()
        # Ticks beyond what an axis shows may be beyond all numbers.
        with warnings.catch_warnings(), np.errstate(over="ignore"):
            # The page's type face has letters that the one which is measured has not.
            warnings.filterwarnings("ignore", "Glyph .* missing from font")
            drawn.figure.savefig(written, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    drawn.markup = _inline(written.getvalue(), label, style, drawn.tips)


def _inline(document: str, label: str, style: str, tips: Mapping[str, Sequence[str]]) -> Markup:
    """An SVG file as an element of a page: no prolog, no name spaces, no style sheet, no ids but those that are referred to."""
    root = ElementTree.fromstring(document)
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        for name in [name for name in element.attrib if name.startswith("{")]:
            element.set(name.rpartition("}")[2], element.attrib.pop(name))
    for sheet in [defs for defs in root.findall("defs") if defs.find("style") is not None]:
        root.remove(sheet)
    for group in root.iter("g"):
        titles = tips.get(group.attrib.pop("id", ""))
        if titles:
            marks = list(group.iter("use")) or list(group.iter("path"))
            for mark, title in zip(marks, titles, strict=True):
                ElementTree.SubElement(mark, "title").text = title
    root.attrib = {"viewBox": root.attrib["viewBox"], "class": style, "role": "img", "aria-label": label}
    text = ElementTree.tostring(root, encoding="unicode")
    for name, sentinel in COLOURS.items():
        text = text.replace(sentinel, f"var(--{name})")
    return Markup(text)


def text_width(text: str, size: float) -> float:
    """Width in pixels of a bold line."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    bold = FontProperties(family=_FACE, weight="bold", size=size)
    return float(text_to_path.get_text_width_height_descent(text, bold, ismath=False)[0])


def boxes(
    axes: Axes, edges: Iterable[tuple[float, float, float, float]], style: str, alpha: float = 1.0, *, split: bool = False
) -> Artist:
    """Boxes (left, right, low, high), all of them as one mark or each as one of its own."""
    from matplotlib.collections import PathCollection
    from matplotlib.path import Path

    paths = [Path([(a, low), (b, low), (b, high), (a, high), (a, low)], closed=True) for a, b, low, high in edges]
    if not split:
        paths = [Path.make_compound_path(*paths)]
    drawn = PathCollection(paths, facecolors=COLOURS[style], alpha=alpha, linewidths=0.0)
    axes.add_collection(drawn, autolim=False)
    return drawn


def rule(axes: Axes, y: float, label: str, *, planned: bool = False, below: bool = False) -> None:
    """A dashed line across the axes with its label above (or below) one end: a limit at the right, a plan at the left."""
    colour, dashes = (COLOURS["soft"], (2, 4)) if planned else (COLOURS["ink"], (6, 4))
    axes.axhline(y, color=colour, linewidth=1.3, dashes=dashes)
    axes.annotate(
        label,
        (0 if planned else 1, y),
        (6 if planned else 0, -3 if below else 2),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        horizontalalignment="left" if planned else "right",
        verticalalignment="top" if below else "bottom",
        color=colour,
        fontweight="normal" if planned else "bold",
        bbox=BACKING,
    )


def logarithmic(axes: Axes, low: float, high: float, *, along: Literal["x", "y"] = "y") -> None:
    """A logarithmic axis around positive values, with a little air and never less than half a decade."""
    decades = math.log10(high) - math.log10(low)
    air = 10 ** (0.06 * decades + 0.02 + max(math.log10(3) - decades, 0.0) / 2)
    axes.autoscale(False, axis=along)
    axes.set(**{f"{along}scale": "log"})
    # As far as numbers reach.
    axes.set(**{f"{along}lim": (low / air or low, min(high * air, sys.float_info.max))})
    axes.minorticks_off()
    axis = axes.yaxis if along == "y" else axes.xaxis
    axis.set_major_formatter(tick_text)
    # Less than two decades have too few powers of ten.
    axis.get_major_locator().set_params(numticks=7, subs=(1.0,) if decades > 2 else (1.0, 2.0, 5.0))  # type: ignore[call-arg]


def tick_text(value: float, _position: float | None = None) -> str:
    """A short label for a tick: ``0.25``, ``5 × 10⁻⁷``; none where it is beyond all numbers."""
    if not math.isfinite(value):
        return ""
    if value == 0 or 1e-2 <= abs(value) < 1e4:
        return f"{value:.6g}".replace("-", "−")
    mantissa, exponent = f"{value:.6e}".split("e")
    power = words.power_of_ten(int(exponent))
    return power if float(mantissa) == 1 else f"{float(mantissa):g} × {power}".replace("-", "−")
