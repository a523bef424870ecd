"""What a column of a table says of rows, as colours: few categories by colours of their own, many numbers by shades."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dlscale.report import words
from dlscale.report.charts import CATEGORIES, SCALE, tick_text
from dlscale.report.markup import Markup, tag

#: Fractions of the numbers that lie below and above the ends of the shades, where these are not the least and the largest of all.
_TAILS = (0.01, 0.99)
_MOST_LETTERS = 40
_NO_VALUE = "no value"


@dataclass(frozen=True)
class Coloring:
    """Rows in colours.

    Parameters
    ----------
    styles : sequence of str
        Names of colours; those that are drawn first, below others, come first.
    which : (r,) of int
        The colour of each row.
    legend : Markup
    """

    styles: Sequence[str]
    which: np.ndarray
    legend: Markup

    def parts(self) -> Iterator[tuple[str, np.ndarray]]:
        """The rows of each colour that there is."""
        for k, style in enumerate(self.styles):
            rows = np.flatnonzero(self.which == k)
            if rows.size:
                yield style, rows


def coloring(name: str, texts: Sequence[str]) -> Coloring:
    """Colours for the rows of which a column of this name has these texts; a text of no letters is no value."""
    numbers = _numbers(texts)
    if numbers is not None and len(np.unique(numbers[~np.isnan(numbers)])) > len(CATEGORIES):
        return _shades(name, numbers)
    return _categories(name, texts, numbers)


def _numbers(texts: Sequence[str]) -> np.ndarray | None:
    """The texts as numbers, NaN where there is none; None if one is no number."""
    try:
        found = np.array([float(text.replace("_", "?")) if text else np.nan for text in texts])
    except ValueError:
        return None
    found[~np.isfinite(found)] = np.nan
    return found


def _categories(name: str, texts: Sequence[str], numbers: np.ndarray | None) -> Coloring:
    """The most frequent texts in colours of their own, and all others in one."""
    counts = Counter(filter(None, texts))
    own = sorted(counts, key=lambda text: (-counts[text], text))[: len(CATEGORIES)]
    places = dict(zip(own, CATEGORIES, strict=False))
    if numbers is not None:
        own = sorted(own, key=float)
    keys = [(places[text], words.printable(text, _MOST_LETTERS)) for text in own]
    n_others = len(counts) - len(own)
    keys += [("soft", f"{words.count(n_others)} others")] if n_others > 1 else [("soft", "another")] if n_others else []
    keys += [("none", _NO_VALUE)] if "" in texts else []
    styles = ("none", "soft", *CATEGORIES)
    which = [styles.index(places.get(text, "soft") if text else "none") for text in texts]
    return Coloring(styles, np.array(which, np.intp), _legend(name, [_key(style, text) for style, text in keys]))


def _shades(name: str, numbers: np.ndarray) -> Coloring:
    """Numbers by shades from the lowest to the highest, in equal steps; those of long tails by the first and the last shade."""
    there = numbers[~np.isnan(numbers)]
    low, high = float(there.min()), float(there.max())
    inner = np.quantile(there, _TAILS)
    # A few numbers far away would leave all others in one shade.
    cut = bool(inner[0] < inner[1]) and (high / 2 - low / 2) > (inner[1] / 2 - inner[0] / 2) * 2
    low, high = (float(inner[0]), float(inner[1])) if cut else (low, high)
    edges = low + (high / len(SCALE) - low / len(SCALE)) * np.arange(len(SCALE) + 1)
    which = np.where(np.isnan(numbers), 0, 1 + np.searchsorted(edges[1:-1], numbers, side="right"))
    marks = ("≤ ", "≥ ") if cut else ("", "")
    told = [tag("i", {"style": f"background:var(--{style})", "title": _span(edges, k)}) for k, style in enumerate(SCALE)]
    ends = [tag("span", None, mark + _number(end)) for mark, end in zip(marks, (low, high), strict=True)]
    keys = [tag("span", {"class": "key shades"}, ends[0], *told, ends[1])]
    keys += [_key("none", _NO_VALUE)] if np.isnan(numbers).any() else []
    return Coloring(("none", *SCALE), which, _legend(name, keys))


def _span(edges: np.ndarray, k: int) -> str:
    return f"{_number(float(edges[k]))} to {_number(float(edges[k + 1]))}"


def _number(value: float) -> str:
    """Four digits, which years have, and no mark of thousands."""
    rounded = float(f"{value:.4g}")  # the largest numbers round up to infinity
    return tick_text(rounded if np.isfinite(rounded) else value)


def _key(style: str, text: str) -> Markup:
    return tag("span", {"class": "key"}, tag("i", {"style": f"background:var(--{style})"}), text)


def _legend(name: str, keys: Sequence[Markup]) -> Markup:
    return tag("p", {"class": "legend"}, tag("b", None, words.printable(name, _MOST_LETTERS)), *keys)
