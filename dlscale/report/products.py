"""What products and norms of matrices show of their answers."""

from __future__ import annotations

from collections.abc import Mapping

from dlscale.report import pictures, words
from dlscale.report.components.sections import names_of_columns
from dlscale.report.kinds import Telling, Tile, array
from dlscale.report.markup import Markup, div, tag
from dlscale.report.sections import Job, section


def _formula(job: Job) -> str:
    """Such as ``A^H B``."""
    params, inputs = job.record.params, job.record.spec.get("input") or {}
    sides = [("A", "adjoint_a"), ("B" if "b" in inputs else "A", "adjoint_b")]
    return " ".join(name + ("ᴴ" if params.get(adjoint) else "") for name, adjoint in sides)


def _tiles(job: Job) -> list[Tile]:
    shown = []
    tiling = (job.record.plan.get("choices") or {}).get("tiling")
    if tiling:
        shown.append(Tile("Product", words.shape((tiling["m"], tiling["n"])), f"inner dimension {words.count(tiling['k'])}"))
        step = min(tiling["strip_a"], tiling["strip_b"])
        step = min(tiling["strip_a"], tiling["strip_b"])
        shown.append(Tile("Tiles", words.shape((tiling["rows"], tiling["columns"])), f"in steps of {words.count(step)}"))
    largest = job.record.estimates.get("largest")
    if isinstance(largest, int | float):
        shown.append(Tile("Largest entry", words.number(float(largest)), "of the product"))
    return shown


def _magnitudes(job: Job) -> Markup | None:
    """The product by orders of magnitude, where it is small enough to be drawn."""
    product = array(job, "product")
    if product is None or product.ndim != 2:
        return None
    said = f"{_formula(job)}: yellow is the largest entry, dark is 16 decades below it, clear is exactly zero."
    image = div("triangle", pictures.magnitudes(product, "the product by orders of magnitude"))
    return section("The product", "", div("wide", image, tag("figcaption", None, said)))


_NORMS = {
    "fro": "Frobenius norm",
    "max": "largest entry",
    "nuc": "nuclear norm",
    "-2": "smallest singular value",
    "-1": "smallest sum of a column",
    "-inf": "smallest sum of a row",
}


def _norm(job: Job) -> str:
    ord_ = job.record.params.get("ord", "fro")
    name = f"{ord_:g}" if isinstance(ord_, int | float) else str(ord_)
    return _NORMS.get(name, f"{name}-norm")


def _norm_tiles(job: Job) -> list[Tile]:
    norm, error = array(job, "norm"), job.record.estimates.get("error")
    below = f"± {words.number(float(error))}" if isinstance(error, int | float) else ""
    if error is None and "error" in job.record.estimates:
        below = "its error is not determined by what was read"
    return [] if norm is None else [Tile(words.sentence(_norm(job)).rstrip("."), words.number(float(norm[0])), below)]


def _statistics_tiles(job: Job) -> list[Tile]:
    """Of columns: how much they vary, and which are always the same."""
    mean, variance = array(job, "columns/mean"), array(job, "columns/variance")
    if mean is None or variance is None or not len(mean):
        return []
    constant = int((variance == 0).sum())
    most = words.printable(names_of_columns(job, len(variance))[int(variance.argmax())], 40)
    return [
        Tile("Largest variance", words.number(float(variance.max())), f"of {most}"),
        Tile("Means", f"{words.number(float(mean.min()))} to {words.number(float(mean.max()))}", "of the columns"),
        Tile("Constant columns", words.count(constant), f"of {words.count(len(mean))}"),
    ]


TELLINGS: Mapping[str, Telling] = {
    "statistics": Telling(lambda job: f"Statistics of the {job.record.plan.get('method', 'columns')}", _statistics_tiles, ()),
    "norm": Telling(lambda job: f"The {_norm(job)}", _norm_tiles, ()),
    "matmul": Telling(lambda job: f"The product {_formula(job)}", _tiles, (_magnitudes,)),
}
