"""Curves of speed-up and efficiency, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Colours of the report, light.
_COLOURS = ("#1f6fb2", "#c2601c", "#5b4fa8", "#a23b72", "#3c7d7a", "#8a7a2c")
_INK, _SOFT, _LINE = "#16212e", "#566373", "#dbe1e8"


def efficiency(seconds: Mapping[int, float], *, mode: str) -> dict[int, float]:
    """By numbers of workers: of a fixed problem ``t_1 / (n t_n)``, of one that grows with the workers ``t_1 / t_n``.

    Parameters
    ----------
    seconds : mapping
        Of each number of workers; the smallest number is the measure.
    mode : str
        ``strong`` or ``weak``.
    """
    first = min(seconds)
    share = (lambda n: n / first) if mode == "strong" else (lambda n: 1.0)
    return {n: seconds[first] / (seconds[n] * share(n)) for n in sorted(seconds)}


def draw_scaling(records: Sequence[Mapping[str, Any]], path: Path, *, title: str, note: str = "") -> None:
    """Draw efficiency over workers: measured runs as dots, predictions as lines.

    Parameters
    ----------
    records : sequence of mapping
        With ``kind mode n_workers seconds measured``.
    path : Path
        Of an SVG (or what else Matplotlib writes).
    title, note : str
        Above and below; the note says what the model assumes.
    """
    import matplotlib.style
    from matplotlib.figure import Figure

    kinds = list(dict.fromkeys(record["kind"] for record in records))
    with matplotlib.style.context(["default", {"svg.hashsalt": "dlscale", "font.size": 9, "axes.edgecolor": _LINE}]):
        figure = Figure(figsize=(7.2, 4.2), layout="constrained")
        axes = figure.subplots()
        for kind, colour in zip(kinds, _COLOURS * len(kinds), strict=False):
            for measured in (False, True):
                for mode in ("strong", "weak"):
                    found = {
                        int(r["n_workers"]): float(r["seconds"])
                        for r in records
                        if (r["kind"], r["measured"], r["mode"]) == (kind, measured, mode)
                    }
                    if found:
                        shown = efficiency(found, mode=mode)
                        line = "none" if measured else "-" if mode == "strong" else "--"
                        label = f"{kind}, {mode}, {'measured' if measured else 'predicted'}"
                        axes.plot(
                            list(shown),
                            list(shown.values()),
                            color=colour,
                            label=label,
                            linewidth=1.8,
                            linestyle=line,
                            marker="o" if measured else "",
                            markersize=5,
                        )
        workers = sorted({int(record["n_workers"]) for record in records})
        axes.set_xscale("log", base=2)
        axes.set_xticks(workers, [f"{n:,}" for n in workers])
        axes.minorticks_off()
        axes.set_ylim(0, 1.1)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25 %", "50 %", "75 %", "100 %"])
        axes.grid(color=_LINE, linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlabel("workers", color=_SOFT)
        axes.set_title(title, loc="left", color=_INK, fontsize=11, fontweight="bold")
        axes.tick_params(colors=_SOFT, length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="lower left")
        if note:
            figure.supxlabel(note, fontsize=7.5, color=_SOFT, x=0.01, horizontalalignment="left")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
