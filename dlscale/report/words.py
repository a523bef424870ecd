"""Numbers and facts as a person reads them: three significant digits and a unit."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from dlscale.showing import several

MISSING = "–"
#: Of the states of a job in a terminal; the others are under way.
STATE_COLORS = {"succeeded": "green", "failed": "red", "lost": "red", "interrupted": "yellow", "cancelled": "yellow"}
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def number(value: float | None) -> str:
    """Three significant digits; powers of ten outside 0.001 .. 100,000."""
    if value is None or math.isnan(value):
        return MISSING if value is None else "not a number"
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    # The largest numbers round up to infinity.
    value = rounded if math.isfinite(rounded := float(f"{value:.3g}")) else value
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        digits = max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:,.{digits}f}".replace("-", "−")
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}".replace("-", "−")


def power_of_ten(exponent: int) -> str:
    """``10⁻³`` for an axis; 0.1 to 1000 stay as they are."""
    return f"{10.0**exponent:g}" if -1 <= exponent <= 3 else f"10{str(exponent).translate(_SUPERSCRIPT)}"


def count(value: int | None) -> str:
    """A whole number, exact, in groups of three digits."""
    return MISSING if value is None else f"{value:,}"


def workers(plan: Mapping[str, Any]) -> str:
    """Of a plan: ``4 workers with 1 thread each``."""
    n_workers, n_threads = plan.get("n_workers") or 1, plan.get("threads_per_worker") or 1
    return f"{several(n_workers, 'worker')} with {several(n_threads, 'thread')}{' each'[: 5 * (n_workers > 1)]}"


def quantity(value: float | None, unit: str) -> str:
    """A value with a metric prefix before `unit`: ``1.23 GB``, ``45.6 GFLOP/s``."""
    if value is None or not math.isfinite(value):
        return MISSING
    scaled, step = float(value), 0
    while abs(scaled) >= 999.5 and step < len(_PREFIXES) - 1:
        scaled, step = scaled / 1000, step + 1
    if step == 0:
        return f"{scaled:.3g} {unit}"
    return f"{number(scaled)} {_PREFIXES[step]}{unit}"


def size(n_bytes: float | None) -> str:
    """Bytes with a decimal prefix."""
    return quantity(n_bytes, "B")


def duration(seconds: float | None) -> str:
    """``12.3 ms``, ``4.56 s``, ``2 min 03 s``, ``1 h 05 min``, ``2 d 3 h``."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    if seconds == 0:
        return "0 s"
    if abs(seconds) < 1e-3:
        return f"{number(seconds * 1e6)} µs"
    if abs(seconds) < 1:
        return f"{number(seconds * 1e3)} ms"
    if seconds < 60:
        return f"{number(seconds)} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def share(fraction: float | None) -> str:
    """A fraction as percent; what is nearly but not quite everything is not rounded up to 100, but for what sums lose of all."""
    if fraction is None or not math.isfinite(fraction):
        return MISSING
    percent = 100 * fraction
    if 99.9 <= percent < 100 * (1 - 1e-12):
        return f"{math.floor(percent * 1000) / 1000:g} %"
    return f"{number(percent)} %"


def part(value: float | None) -> str:
    """A number of which 1 is all, as R²; what is nearly but not quite 1 is not rounded up to it."""
    if value is not None and 0.9995 <= value < 1 - 1e-14:
        return f"{math.floor(value * 1e5) / 1e5:g}"
    return number(value)


def ratio(measured: float | None, planned: float | None) -> str:
    """How many times the plan was measured."""
    if not planned or measured is None:
        return MISSING
    return f"{number(measured / planned)} ×"


def moment(unix_seconds: float | None) -> str:
    """A time of day in UTC, to the minute."""
    if unix_seconds is None:
        return MISSING
    return datetime.fromtimestamp(unix_seconds, tz=UTC).strftime("%-d %B %Y, %H:%M UTC")


def shape(dimensions: Any) -> str:
    """``60,000 × 192``."""
    return " × ".join(count(int(d)) for d in dimensions)


def printable(name: str, most: int = 80) -> str:
    """A name of anything as a chart can show it."""
    text = "".join(letter if letter.isprintable() else " " for letter in name[: most + 1])
    return text if len(text) <= most else f"{text[: most - 1]}…"


def sentence(text: str) -> str:
    """Text with a capital at its start and a full stop at its end."""
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "…")) else ".")


#: Ends of the names of numbers of which 1 is all.
_PARTS = ("explained", "accuracy", "r2")


def fact(key: str, value: Any) -> tuple[str, str]:
    """A fact of the machine as a label and a text; the unit comes from the key's suffix."""
    formatted = {
        "_flops_per_second": lambda v: quantity(v, "FLOP/s"),
        "_bytes_per_second": lambda v: quantity(v, "B/s"),
        "_bytes": size,
        "_seconds": duration,
    }
    if isinstance(value, int | float) and not isinstance(value, bool):
        for suffix, text in formatted.items():
            if key.endswith(suffix):
                return label(key.removesuffix(suffix)), text(value)
        of_all = part if key.endswith(_PARTS) else number
        return label(key), count(value) if isinstance(value, int) else of_all(value)
    if isinstance(value, list | tuple):
        whole = bool(value) and all(isinstance(item, int) for item in value)
        return label(key), shape(value) if whole else ", ".join(str(item) for item in value)
    if isinstance(value, dict):
        return label(key), ", ".join(f"{item} {fact(item, inner)[1]}" for item, inner in value.items())
    return label(key), MISSING if value is None else str(value)


def label(key: str) -> str:
    """``n_workers`` as ``Number of workers``."""
    text = f"number of {key[2:]}" if key.startswith("n_") else key
    text = text.replace("_", " ").strip()
    text = text.replace("uri", "URI").replace("dtype", "type").replace("frobenius", "Frobenius")
    return text[:1].upper() + text[1:]
