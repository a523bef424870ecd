"""What regressions with a penalty show: the error of rows left out for each penalty, and the coefficients along the path."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlscale.report import figures, words
from dlscale.report.charts import COLOURS, chart, logarithmic
from dlscale.report.kinds import Telling, Tile, array
from dlscale.report.markup import Markup
from dlscale.report.sections import Job, pair, section

#: Coefficients that are drawn along the path, the largest.
_MOST_LINES = 12


def _tiles(job: Job) -> list[Tile]:
    shown, found = [], job.record.estimates
    penalties = array(job, "path/penalties")
    if isinstance(penalty := found.get("penalty"), int | float):
        below = f"the best of {words.count(len(penalties))}" if penalties is not None and len(penalties) > 1 else ""
        shown.append(Tile("Penalty", words.number(float(penalty)), below))
    if isinstance(error := found.get("error"), int | float):
        shown.append(Tile("Error", words.number(float(error) ** 0.5), f"root mean square of {_left_out(job)}"))
    if (r2 := found.get("r2")) and len(r2) == 1:
        shown.append(Tile("R²", words.number(float(r2[0])), "on the rows that were fitted"))
    if isinstance(freedom := found.get("degrees_of_freedom"), int | float):
        shown.append(Tile("Degrees of freedom", words.number(float(freedom)), "what the penalty leaves of them"))
    return shown


def _left_out(job: Job) -> str:
    cv = job.record.params.get("cv", "loo")
    return "rows left out one by one" if cv == "loo" else f"{cv} folds left out"


def path(job: Job) -> Markup | None:
    """The error over the penalty, the chosen one marked; and the coefficients of the first target, where they were kept."""
    penalties, errors = array(job, "path/penalties"), array(job, "path/errors")
    chosen = job.record.estimates.get("penalty")
    if penalties is None or len(penalties) < 2 or not isinstance(chosen, int | float):
        return None
    drawn = []
    if errors is not None:
        total = errors.sum(axis=1)
        drawn.append(_over_penalty(penalties, total[:, None], float(chosen), "mean squared error", log=True))
    kept = array(job, "path/coefficients")
    if kept is not None:
        first = kept.reshape(len(kept), kept.shape[1], -1)[:, :, 0]
        lines = np.abs(first) if np.iscomplexobj(first) else first
        largest = np.argsort(-np.abs(lines).max(axis=0), kind="stable")[:_MOST_LINES]
        some = "coefficients" if len(largest) == lines.shape[1] else "largest coefficients"
        drawn.append(_over_penalty(penalties, lines[:, largest], float(chosen), some, log=False))
    lead = f"What {_left_out(job)} differ from what the other rows say of them, for each penalty; the chosen one is marked."
    return section("The path of penalties", lead, pair(*drawn)) if drawn else None


def _over_penalty(penalties: np.ndarray, values: np.ndarray, chosen: float, title: str, *, log: bool) -> Markup:
    order = np.argsort(penalties, kind="stable")
    seen = order[(penalties[order] > 0) & np.isfinite(values[order]).all(axis=1)]
    x, y = penalties[seen], values[seen]
    with chart(510, 290, f"{title} over {len(penalties)} penalties") as drawn:
        axes = drawn.axes(62, 34, 496, 240, title=title, x_label="penalty")
        if len(x) and x[-1] > x[0]:
            axes.set_xscale("log")
        if log and len(y) and y.min() > 0:
            logarithmic(axes, float(y.min()), float(y.max()))
        if y.shape[1] > 1:
            axes.plot(x, y, color=COLOURS["s2"], linewidth=1.3)
        elif len(x):
            titles = [f"{words.number(float(a))}: {words.number(float(v))}" for a, v in zip(x, y[:, 0], strict=True)]
            drawn.tip(axes.plot(x, y[:, 0], "o-", color=COLOURS["s1"], markersize=4.4)[0], *titles)
        if chosen > 0:
            axes.axvline(chosen, color=COLOURS["s3"], linewidth=1.6, linestyle="--")
    return drawn.markup if len(x) else figures.legend([])


TELLINGS: Mapping[str, Telling] = {"ridge": Telling(lambda job: "A ridge regression", _tiles, (path,))}
