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


def draw_scaling(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw efficiency over workers: measured runs as dots, predictions as lines, with what the model assumes.

    Parameters
    ----------
    records : sequence of mapping
        What `dlscale bench scaling` writes, a record a run.
    path : Path
        Of an SVG (or what else Matplotlib writes).
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
                        label = f"{kind} {problem_of(records, kind, mode, measured)}, {'measured' if measured else 'predicted'}"
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
        axes.set_title("Scaling efficiency", loc="left", color=_INK, fontsize=11, fontweight="bold")
        axes.tick_params(colors=_SOFT, length=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, labelcolor=_INK, fontsize=8, loc="lower left")
        if note := model_of(records):
            figure.supxlabel(note, fontsize=7.5, color=_SOFT, x=0.01, horizontalalignment="left")
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


def problem_of(records: Sequence[Mapping[str, Any]], kind: str, mode: str, measured: bool) -> str:
    """The size of a problem, or how it grows with the workers."""
    shapes = [tuple(r["shape"]) for r in records if (r["kind"], r["mode"], r["measured"]) == (kind, mode, measured)]
    m, n = min(shapes)
    return f"{m:,} x {n:,}{' a worker' if mode == 'weak' else ''}"


def model_of(records: Sequence[Mapping[str, Any]]) -> str:
    """What the predictions among the records assume; nothing if there are none."""
    for r in records:
        if not r["measured"]:
            rate, micro = r["bandwidth_bytes_per_second"] / 1e9, 1e6
            return (
                f"Predicted: the task graphs of a traced job, its task times, workers of one thread; a network of {rate:g} GB/s, "
                f"{r['latency_seconds'] * micro:g} us,\none scheduler that takes {r['scheduler_seconds'] * micro:g} us a task; "
                "every worker reads the store as fast as the traced one."
            )
    return ""
