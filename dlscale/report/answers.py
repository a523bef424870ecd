"""What each kind of job shows of its answer: a sentence on what was asked, its key numbers, its figures.

A kind may have an entry in `TELLINGS`, here or in the module of its family; without one, its title and what all jobs have are told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from dlscale.report import factors, figures, learning, pictures, products, spectra, words
from dlscale.report.components import planes
from dlscale.report.components.sections import loadings, names_of_columns, rows_in_the_plane
from dlscale.report.kinds import Telling, Tile, array
from dlscale.report.markup import NOTHING, Markup, div, join, tag
from dlscale.report.sections import Job, pair, section

_N_PICTURES = 24
_N_LINES = 8


def sentence(job: Job) -> str:
    """What was asked, in words."""
    record, matrix = job.record, job.record.matrix
    asked = (record.spec.get("input") or {}).get("matrix")
    # The name is enough for a sentence; the whole address stands further down.
    address = asked if isinstance(asked, str) else str(matrix.get("uri") or "")
    source = address.rstrip("/").rsplit("/", 1)[-1] or "a matrix"
    kind = TELLINGS.get(record.kind)
    goal = kind.goal(job) if kind else record.title or f"A job of kind {record.kind}"
    said = f"{goal} of {source}"
    if matrix.get("shape"):
        rows, columns = matrix["shape"]
        said += f", a matrix of {words.count(rows)} rows and {words.count(columns)} columns"
        stored, computed = matrix.get("stored_dtype"), matrix.get("dtype")
        if computed:
            said += f", stored as {stored} and computed in {computed}" if stored and stored != computed else f" in {computed}"
    said += "."
    method = record.plan.get("words")
    return f"{said} Method: {method}." if method else said


def key_numbers(job: Job) -> list[Tile]:
    """What says most about the answer: condition, rank, determinant, accuracy and the like, as the kind has them."""
    kind = TELLINGS.get(job.record.kind)
    return kind.tiles(job) if kind else []


def tiles(job: Job) -> list[Tile]:
    """The key numbers of the kind, then those of the run."""
    record, line = job.record, job.timeline
    shown = []
    if record.matrix.get("shape"):
        below = [str(record.matrix[key]) for key in ("stored_dtype", "dtype") if record.matrix.get(key)][:1]
        if record.matrix.get("stored_bytes"):
            below.append(f"{words.size(record.matrix['stored_bytes'])} stored")
        shown.append(Tile("Matrix", words.shape(record.matrix["shape"]), ", ".join(below)))
    shown += key_numbers(job)
    expected = record.plan.get("expected_seconds")
    in_passes = f"{words.duration(line.pass_seconds)} in passes" if line and line.pass_seconds > 0 else ""
    if expected:
        in_passes += f"{', ' if in_passes else ''}planned {words.duration(expected)}"
    if job.seconds is not None:
        shown.append(Tile("Wall time", words.duration(job.seconds), in_passes))
    if line and line.pass_seconds > 0:
        for name, done, unit, key in (
            ("Reading", line.bytes_read, "B", "read_bytes_per_second"),
            ("Computing", line.flops, "FLOP", "matmul_flops_per_second"),
        ):
            limit = record.rate(key)
            beside = f"machine's limit {words.quantity(limit, unit + '/s')}" if limit else f"{words.quantity(done, unit)} in all"
            shown.append(Tile(name, words.quantity(done / line.pass_seconds, unit + "/s"), beside))
    if line and line.peak_bytes:
        limit = record.limit_bytes
        bar = figures.meter(line.peak_bytes / limit) if limit else NOTHING
        shown.append(Tile("Peak memory", words.size(line.peak_bytes), f"of {words.size(limit)}" if limit else "all processes", bar))
    return shown


def _error_tiles(job: Job) -> list[Tile]:
    """What the answer leaves of the matrix, as a part of it: ``||A||² = Σ s² + ||A - U S V'||²``."""
    left, s = job.record.estimates.get("frobenius_error"), _singular_values(job)
    if not isinstance(left, int | float) or s is None:
        return []
    # Beside the largest of them, as squares are out of range long before the numbers are.
    largest = max(float(s.max()), left)
    part = left / largest / math.hypot(left / largest, *(s.astype(float) / largest).tolist()) if largest > 0 else 0.0
    of_what = "of the centred matrix" if job.record.kind == "pca" else "of the matrix"
    return [Tile("Left unexplained", words.share(part) if part >= 1e-4 else words.number(part), f"{of_what}, in Frobenius norm")]


def _singular_values(job: Job) -> np.ndarray | None:
    return array(job, "s", "singular_values")


def _spectrum_tile(job: Job) -> list[Tile]:
    s = _singular_values(job)
    return (
        []
        if s is None
        else [Tile("Singular values", words.number(float(s[0])), f"down to {words.number(float(s[-1]))} at number {len(s)}")]
    )


def _pca_tiles(job: Job) -> list[Tile]:
    components, shares = array(job, "components"), array(job, "explained_variance_ratio")
    shown = []
    if components is not None:
        shown.append(Tile("Components", words.count(len(components)), f"of {words.count(components.shape[1])} columns"))
    if shares is not None:
        shown.append(Tile("Variance explained", words.share(float(shares.sum())), f"{words.share(float(shares[0]))} by the first"))
    return shown + _error_tiles(job)


def _svd_tiles(job: Job) -> list[Tile]:
    s = _singular_values(job)
    shown = [Tile("Components", words.count(len(s)), "singular triplets")] if s is not None else []
    return shown + _spectrum_tile(job) + _error_tiles(job)


def _diagonal(job: Job) -> np.ndarray | None:
    """Magnitudes of the diagonal of R."""
    r = array(job, "r", "r_diagonal")
    return None if r is None else np.abs(np.diagonal(r) if r.ndim == 2 else r)


def _qr_tiles(job: Job) -> list[Tile]:
    r, condition = _diagonal(job), job.record.estimates.get("condition")
    shown = []
    if isinstance(condition, int | float):
        shown.append(Tile("Condition of R", words.number(float(condition)), "largest over smallest singular value"))
    elif r is not None and r.min() > 0:
        shown.append(Tile("Condition of R", f"≥ {words.number(float(r.max() / r.min()))}", "from its diagonal"))
    if r is not None:
        shown.append(Tile("Diagonal of R", words.number(float(r.max())), f"down to {words.number(float(r.min()))}"))
    rank, tolerance = (job.record.estimates.get(name) for name in ("rank", "rank_tolerance"))
    if isinstance(rank, int) and isinstance(tolerance, float):
        shown.append(Tile("Rank", words.count(rank), f"entries above {words.number(tolerance)} of the first"))
    return shown + _error_tiles(job) + factors.rate_tile(job)


def _rank_words(job: Job, one: str) -> str:
    n = job.record.params.get("n_components")
    if n is None:
        return f"All {one}s"
    if isinstance(n, float) and 0 < n < 1:
        return f"As many {one}s as explain {words.share(n)} of the variance"
    return f"The first {n} {one}s" if n != 1 else f"The first {one}"


def variance(job: Job) -> Markup | None:
    """Scree plot and cumulative share."""
    amounts, shares = array(job, "explained_variance"), array(job, "explained_variance_ratio")
    drawn = []
    if amounts is not None:
        unit = "" if shares is None else " of variance"
        drawn.append(figures.spectrum(amounts, "variance along each component", "component", unit=unit))
    if shares is not None:
        drawn.append(figures.cumulative(shares))
    lead = "How much of the data's spread each component carries, and how much the first ones carry together."
    return section("Variance", lead, pair(*drawn)) if drawn else None


def singular_values(job: Job) -> Markup | None:
    """Singular values with their estimated errors, and the errors by themselves, which are mostly too small for error bars."""
    s = _singular_values(job)
    if s is None:
        return None
    given = job.record.estimates.get("singular_value_errors")
    errors = np.asarray(given, dtype=float) if given is not None and len(given) == len(s) else None
    drawn = [figures.spectrum(s, "singular values", "number", errors=errors, style="s3")]
    lead = "The singular values on a logarithmic axis."
    if errors is not None:
        relative = np.divide(errors, s, out=np.full(len(s), np.nan), where=s > 0)
        drawn.append(figures.spectrum(relative, "estimated error of each, relative to its value", "number", style="s4"))
        lead = "The singular values on a logarithmic axis, with the error that this run estimated for each of them."
        if n_missing := int(np.isnan(errors).sum()):
            which = "one of them" if n_missing == 1 else f"{n_missing:,} of them"
            lead += f" That of {which} is not determined by what was read: it has no bar; one more power iteration tells more."
    return section("Singular values", lead, pair(*drawn))


def components(job: Job) -> Markup | None:
    """The first components, as pictures where rows are pictures and as lines elsewhere."""
    rows = array(job, "components", "vh")
    if rows is None or rows.ndim != 2:
        return None
    shares, centre, shape = array(job, "explained_variance_ratio"), array(job, "mean"), job.record.image_shape
    name = "component" if "components" in job.record.arrays else "right singular vector"
    if shape is not None and pictures.drawable(shape, rows.shape[1]):
        cells = [] if centre is None else [_picture(pictures.mean(centre, shape, "mean"), "mean", "")]
        for i, row in enumerate(rows[: _N_PICTURES - len(cells)]):
            below = words.share(float(shares[i])) if shares is not None else ""
            cells.append(_picture(pictures.component(row, shape, f"{name} {i + 1}"), str(i + 1), below))
        shown = len(cells) - (centre is not None)
        size = " × ".join(str(side) for side in shape[:2])
        zero = "mid-grey is zero" if len(shape) == 3 and shape[2] == 3 else "white is zero, red positive, blue negative"
        lead = f"The first {shown} of {len(rows)} {name}s as pictures of {size} pixels, each at its own full contrast; {zero}."
        return section("Components", lead, div("pictures", *cells))
    if job.record.labels.get("column") and rows.shape[1] <= planes.MOST_BARS:
        return None  # told by their names already
    names = names_of_columns(job, rows.shape[1])
    drawn = [] if centre is None else [figures.vector(centre, "mean", style="s5", names=names)]
    for i, row in enumerate(rows[: _N_LINES - len(drawn)]):
        part = f", {words.share(float(shares[i]))} of the variance" if shares is not None else ""
        drawn.append(figures.vector(row, f"{name} {i + 1}{part}", names=names))
    lead = f"The first {name}s over the columns of the matrix."
    lead += " Magnitudes are shown, since the entries are complex." if np.iscomplexobj(rows) else ""
    return section("Components", lead, pair(*drawn))


def _picture(image: Markup, label: str, below: str) -> Markup:
    caption = [tag("b", None, label), *([tag("span", None, below)] if below else [])]
    return tag("figure", None, image, tag("figcaption", None, *caption))


def triangle(job: Job) -> Markup | None:
    """The diagonal of R, and the whole of R by orders of magnitude."""
    r = _diagonal(job)
    if r is None:
        return None
    drawn = [figures.spectrum(r, "magnitude of each diagonal entry of R", "column", style="s3")]
    whole = array(job, "r")
    if whole is not None and whole.ndim == 2:
        image = pictures.magnitudes(whole, "R by orders of magnitude")
        said = "R by orders of magnitude: yellow is the largest entry, dark is 16 decades below it, clear is exactly zero."
        drawn.append(join([div("triangle", image), tag("figcaption", None, said)]))
    lead = "Small diagonal entries mark columns that nearly depend on those before them."
    return section("The triangle R", lead, pair(*drawn))


TELLINGS: Mapping[str, Telling] = {
    "svd": Telling(lambda job: _rank_words(job, "singular triplet"), _svd_tiles, (singular_values, loadings, components)),
    "pca": Telling(
        lambda job: _rank_words(job, "principal component"),
        _pca_tiles,
        (rows_in_the_plane, loadings, components, variance, singular_values),
    ),
    "qr": Telling(lambda job: "The QR factorization", _qr_tiles, (triangle,)),
    **factors.TELLINGS,
    **products.TELLINGS,
    **spectra.TELLINGS,
    **learning.TELLINGS,
}
