"""Draws the newest results: `python plot.py [RESULTS] [OUTPUT]` writes times.svg and reading.svg (defaults: results/, results/)."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import harness
import matplotlib.pyplot as plt

OURS, PEER, INK, LINE = "#1f6feb", "#b6bdc9", "#1b2330", "#d1495b"
PANELS = {
    "SVD in memory f8": "Randomized SVD in memory\n200,000 × 2,000 float64",
    "SVD in memory f4": "Randomized SVD in memory\n200,000 × 2,000 float32",
    "SVD out of core": "Randomized SVD out of core\n1,000,000 × 2,000, 16 GB, 2 power iterations",
    "PCA in memory": "PCA in memory\n200,000 × 500",
    "PCA out of core": "PCA out of core\n1,000,000 × 2,000, 16 GB",
    "tall QR": "Tall QR, Q and R, in memory\n2,000,000 × 100",
}


def seconds_of(record: dict[str, Any]) -> float | None:
    """The bar's length: measured, extrapolated, or the time after which the case was given up."""
    if record["status"] not in ("ok", "timeout"):
        return None
    extrapolated = record["facts"].get("extrapolated_seconds")
    return float(extrapolated or record.get("median_seconds") or record["limit_seconds"])


def label_of(record: dict[str, Any], seconds: float, base: float | None) -> str:
    """Seconds, factor and peak memory, with what is not a measurement said."""
    late = record["status"] == "timeout"
    words = f"{'> ' if late else '≈ ' if 'extrapolated_seconds' in record['facts'] else ''}{seconds:.3g} s"
    if base and record["library"] != "dlscale":
        words += f"  ({'> ' if late else ''}{seconds / base:.1f}×)"
    if record.get("peak_rss_bytes"):
        words += f"  {record['peak_rss_bytes'] / 1e9:.1f} GB"
    return words


def bars(axes: Any, title: str, rows: list[tuple[str, float, str]], *, limit: float | None, unit: str) -> None:
    """Horizontal bars, ours on top in colour."""
    shorter_is_better = -1 if unit.startswith("GB/s") else 1
    rows = sorted(rows, key=lambda row: (not row[0].startswith("dlscale"), shorter_is_better * row[1]))
    places = range(len(rows))
    axes.barh(places, [row[1] for row in rows], color=[OURS if row[0].startswith("dlscale") else PEER for row in rows], height=0.68)
    longest = max((row[1] for row in rows), default=1.0)
    for place, (_, value, words) in zip(places, rows, strict=True):
        axes.text(value + 0.015 * longest, place, words, va="center", fontsize=7.5, color=INK)
    if limit and limit < 1.4 * longest:
        axes.axvline(limit, color=LINE, linewidth=1, linestyle="--")
        axes.text(limit, -0.68, "limit of the machine", color=LINE, fontsize=6.5, ha="left", va="center").set_in_layout(False)
    axes.set_yticks(list(places), [row[0] for row in rows], fontsize=8, color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.9)
    axes.set_xlim(0, 1.45 * longest)
    axes.set_title(title, fontsize=9, color=INK, loc="left", pad=8)
    axes.set_xlabel(unit, fontsize=7.5, color=INK)
    axes.tick_params(axis="x", labelsize=7, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)


def grid(n: int, *, height: float) -> tuple[Any, list[Any]]:
    """A figure of two columns of panels."""
    figure, axes = plt.subplots((n + 1) // 2, 2, figsize=(11, height * ((n + 1) // 2)), squeeze=False, layout="constrained")
    flat = list(axes.ravel())
    for spare in flat[n:]:
        spare.set_visible(False)
    return figure, flat


def draw_times(records: list[dict[str, Any]], output: Path) -> None:
    """One panel per problem: seconds, shorter is better."""
    groups = [g for g in PANELS if any(r["group"] == g and seconds_of(r) for r in records)]
    if not groups:
        return
    figure, panels = grid(len(groups), height=2.5)
    for axes, group in zip(panels, groups, strict=False):
        mine = [(r, s) for r in records if r["group"] == group and (s := seconds_of(r))]
        base = next((s for r, s in mine if r["library"] == "dlscale"), None)
        limit = next((r["facts"]["bound_seconds"] for r, _ in mine if "bound_seconds" in r["facts"]), None)
        bars(axes, PANELS[group], [(r["library"], s, label_of(r, s, base)) for r, s in mine], limit=limit, unit="seconds")
    figure.savefig(output / "times.svg", facecolor="white")


def draw_reading(records: list[dict[str, Any]], output: Path) -> None:
    """One panel per store and state of the page cache: GB/s, longer is better."""
    groups = list(dict.fromkeys(r["group"] for r in records if r["group"].startswith("read ") and r["status"] == "ok"))
    if not groups:
        return
    figure, panels = grid(len(groups), height=2.2)
    for axes, group in zip(panels, groups, strict=False):
        rates = [(r["library"], r["facts"]["gigabytes_per_second"]) for r in records if r["group"] == group and r["status"] == "ok"]
        limit = dict(rates).get("preadv of the files")
        rows = [(name, rate, f"{rate:.2f}") for name, rate in rates if name != "preadv of the files"]
        bars(axes, group.replace("none", "uncompressed"), rows, limit=limit, unit="GB/s of the matrix, 2 threads")
    figure.savefig(output / "reading.svg", facecolor="white")


if __name__ == "__main__":
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else harness.HERE / "results"
    target = Path(sys.argv[2]) if len(sys.argv) > 2 else harness.HERE / "results"
    found = harness.newest(sorted(source.glob("*.jsonl")))
    draw_times(found, target)
    draw_reading(found, target)
