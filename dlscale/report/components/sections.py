"""The sections of a report that show a plane of scores, and components by the names of their columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlscale.report import words
from dlscale.report.components import planes
from dlscale.report.components.colors import coloring
from dlscale.report.kinds import array
from dlscale.report.markup import Markup, join
from dlscale.report.sections import Job, pair, section

#: Components that are told by names.
_N_TOLD = 6
#: Of many rows, so many are in colours.
_MOST_COLORED = 1500


def _axes_names(job: Job) -> tuple[str, str]:
    shares = array(job, "explained_variance_ratio")
    told = [f", {words.share(float(share))} of the variance" for share in (() if shares is None else shares[:2])]
    first, second = (f"component {k + 1}{told[k] if k < len(told) else ''}" for k in range(2))
    return first, second


def names_of_columns(job: Job, n: int) -> Sequence[str]:
    """What the columns are called; by their numbers where nobody says."""
    names = job.record.labels.get("column", ())
    return names if len(names) == n else [f"column {j}" for j in range(n)]


def _colored(job: Job, n_points: int) -> planes.Colored | None:
    """The rows that have colours."""
    color = job.record.color
    if color is None or not len(color.rows):
        return None
    rows, texts = color.rows, color.texts
    if n_points > planes.MOST_DOTS and len(rows) > _MOST_COLORED:
        some = np.linspace(0, len(rows) - 1, _MOST_COLORED).astype(int)
        rows, texts = rows[some], [texts[k] for k in some.tolist()]
    told = [f"{color.name}: {text or 'no value'}" for text in texts]
    return planes.Colored(rows, told, coloring(color.name, texts))


def rows_in_the_plane(job: Job) -> Markup | None:
    """Scores of rows along the first two components, and a biplot."""
    points = job.record.sample
    if points is None or points.ndim != 2 or points.shape[1] != 2 or np.iscomplexobj(points) or not np.isfinite(points).all():
        return None
    colored = _colored(job, len(points))
    drawn = [planes.scores(points, job.record.labels.get("row", ()), _axes_names(job), colored)]
    if colored is not None:
        drawn = [join([drawn[0], colored.colors.legend])]
    components = array(job, "components")
    if components is not None and len(components) > 1 and job.record.image_shape is None and not np.iscomplexobj(components):
        names = names_of_columns(job, components.shape[1])
        drawn.append(planes.biplot(points, components[:2].T, names, _axes_names(job)))
    n_rows = (job.record.matrix.get("shape") or [len(points)])[0]
    lead = "Each row at its scores along the first two components"
    if len(points) < n_rows:
        lead += f"; drawn are {words.count(len(points))} of the {words.count(n_rows)} rows, spread evenly"
    if len(points) > planes.MOST_DOTS:
        shade = "colour" if colored is None else "grey"
        lead += f"; the stronger the {shade}, the more rows lie there, on a logarithmic scale"
    if colored is not None and job.record.color is not None:
        name, n_colored = words.printable(job.record.color.name), words.count(len(colored.rows))
        some = f"; above that {n_colored} of them, spread evenly, in the colours of their {name}"
        lead += f"; its colour tells {name}" if len(colored.rows) == len(points) else some
    lead += "." if len(drawn) == 1 else ". Arrows go along the columns whose loadings there are largest, at a scale for each axis."
    return section("Scores", lead, pair(*drawn))


def loadings(job: Job) -> Markup | None:
    """The largest entries of the first components beside the names of their columns, where these have names."""
    rows = array(job, "components", "vh")
    if rows is None or rows.ndim != 2 or len(job.record.labels.get("column", ())) != rows.shape[1]:
        return None
    names, shares = names_of_columns(job, rows.shape[1]), array(job, "explained_variance_ratio")
    word = "component" if "components" in job.record.arrays else "right singular vector"
    drawn = []
    for i, row in enumerate(rows[:_N_TOLD]):
        part = f", {words.share(float(shares[i]))} of the variance" if shares is not None else ""
        drawn.append(planes.bars(np.abs(row) if np.iscomplexobj(row) else row, names, f"{word} {i + 1}{part}"))
    lead = f"The columns that each {word} is made of, the largest entries first."
    lead += " Magnitudes are shown, since the entries are complex." if np.iscomplexobj(rows) else ""
    return section("Loadings", lead, pair(*drawn))
