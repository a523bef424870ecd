"""What eigenvalue problems show of their answers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from dlscale.report import figures, words
from dlscale.report.kinds import Telling, Tile, array
from dlscale.report.markup import Markup
from dlscale.report.sections import Job, pair, section


def _goal(job: Job) -> str:
    n = job.record.params.get("n_components")
    if n is None:
        return "All eigenvalues and eigenvectors"
    if (sigma := job.record.params.get("sigma")) is not None:
        return (
            f"The {words.count(n)} eigenvalues nearest to {sigma:g}, and their vectors,"
            if n != 1
            else f"The eigenvalue nearest to {sigma:g}"
        )
    ends = {"smallest": "smallest", "magnitude": "largest in modulus"}
    end = ends.get(str(job.record.params.get("which")), "largest")
    return f"The {words.count(n)} eigenvalues that are {end}, and their vectors," if n != 1 else f"The eigenvalue that is {end}"


def _tiles(job: Job) -> list[Tile]:
    values, complete = array(job, "eigenvalues"), job.record.estimates.get("complete")
    shown = []
    if values is not None:
        reach = f"from {words.number(float(values[0]))} to {words.number(float(values[-1]))}"
        shown.append(Tile("Eigenvalues", words.count(len(values)), reach))
    if complete is True:
        shown.append(Tile("Complete", "yes", "none was missed: proved"))
    elif isinstance(complete, float):
        shown.append(Tile("Complete", f"{complete:.6%}".replace("%", " %"), "probability that none was missed"))
    return shown


def spectrum(job: Job) -> Markup | None:
    """The eigenvalues, and the gaps between them beside the errors that were measured."""
    values, residuals = array(job, "eigenvalues"), array(job, "residuals")
    if values is None:
        return None
    same = residuals if residuals is not None and len(residuals) == len(values) else None
    drawn = [figures.spectrum(np.abs(values), "moduli of the eigenvalues, ascending", "number", errors=same, style="s3")]
    if len(values) > 1:
        drawn.append(figures.spectrum(np.diff(values), "gap to the next eigenvalue", "number", style="s4"))
    lead = "The eigenvalues on a logarithmic axis"
    lead += ", with the distance within which each has one of the matrix's." if same is not None else "."
    return section("Spectrum", f"{lead} Vectors of eigenvalues with small gaps turn among each other.", pair(*drawn))


TELLINGS: Mapping[str, Telling] = {"eigh": Telling(_goal, _tiles, (spectrum,))}
