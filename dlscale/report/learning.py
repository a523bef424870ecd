"""What trainings, their uses and regressions show: curves, gradients by layer, times, predictions, weights, paths of penalties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dlscale.report import figures, words
from dlscale.report.charts import COLOURS, chart, logarithmic
from dlscale.report.components.sections import names_of_columns
from dlscale.report.kinds import Telling, Tile, array
from dlscale.report.markup import Markup, join, tag
from dlscale.report.sections import Job, pair, section, table

_STYLES = ("s1", "s2", "s3", "s4", "s5", "s6")
#: Points of a curve; longer ones are drawn as means of as many stretches.
_MOST_POINTS = 400
#: Weights in a table, the largest.
_MOST_WEIGHTS = 12
#: Coefficients that are drawn along the path, the largest.
_MOST_LINES = 12
#: A layer whose gradients are so much smaller, or larger, than the largest or smallest of the others.
_VANISHING, _EXPLODING = 1e-3, 1e2


def _estimate(job: Job, name: str) -> float | None:
    value = job.record.estimates.get(name)
    return float(value) if isinstance(value, int | float) else None


def _train_tiles(job: Job) -> list[Tile]:
    shown = []
    final, first, steps = (_estimate(job, name) for name in ("final_loss", "first_loss", "steps"))
    if final is not None:
        below = f"on all rows, from {words.number(first)}" if first is not None else ""
        shown.append(Tile("Loss", words.number(final), below + (f", in {words.count(int(steps))} steps" if steps else "")))
    final, first = _estimate(job, "final_gradient_norm"), _estimate(job, "first_gradient_norm")
    if final is not None and first:
        shown.append(Tile("Gradient", words.number(final / first), f"of its start, norm {words.number(final)}"))
    for name in ("accuracy", "r2", "mean_squared_error"):
        if (value := _estimate(job, f"final_validation_{name}")) is not None:
            shown.append(_metric(name, value, "on the validation rows"))
    if (ended := job.record.estimates.get("ended")) is not None and (epochs := _estimate(job, "epochs")) is not None:
        shown.append(Tile("Epochs", words.count(int(epochs)), str(ended)))
    seconds = _seconds(job)
    if seconds and max(seconds["total"]) > 0:
        n_ranks = len(seconds["rows"])
        rate = sum(seconds["rows"]) / max(seconds["total"])
        shown.append(Tile("Rows", words.quantity(rate, "rows/s"), f"{n_ranks} rank{'s' if n_ranks != 1 else ''} together"))
    return shown


def _seconds(job: Job) -> Mapping[str, Sequence[float]]:
    found = job.record.estimates.get("seconds_by_rank")
    return found if isinstance(found, Mapping) else {}


def curves(job: Job) -> Markup | None:
    """Loss over steps, and loss and metrics of the validation rows over epochs."""
    drawn, loss = [], array(job, "history/loss")
    if loss is not None and len(loss) > 1:
        drawn.append(_lines({"loss of a step": (np.arange(1, len(loss) + 1), loss)}, "loss, with its penalties", "step"))
    epochs = {}
    for name, label in (("epoch_loss", "training rows"), ("validation_loss", "validation rows")):
        values = array(job, f"history/{name}")
        if values is not None and len(values) > 1:
            epochs[label] = (np.arange(1, len(values) + 1), values)
    if len(epochs) > 1:
        drawn.append(_lines(epochs, "loss of an epoch, without penalties", "epoch"))
    for name, label in (("accuracy", "accuracy"), ("r2", "R²")):
        values = array(job, f"history/validation_{name}")
        if values is not None and len(values) > 1:
            places = {label: (np.arange(1, len(values) + 1), values)}
            drawn.append(_lines(places, f"{label} on the validation rows", "epoch", log=False, first_style=2))
    optimality = array(job, "history/optimality")
    if optimality is not None and len(optimality) > 1:
        places = {"optimality": (np.arange(1, len(optimality) + 1), optimality)}
        drawn.append(_lines(places, "largest entry of the least subgradient", "iteration", first_style=3))
    agree = ", and whether rows that were not trained on agree" if array(job, "history/validation_loss") is not None else ""
    return section("Learning", f"How far the loss came down{agree}.", pair(*drawn)) if drawn else None


def coefficients(job: Job) -> Markup | None:
    """The weights of a model of one layer and one output, the largest first."""
    weight = array(job, "parameters/layer-0/weight", "classifier/layer-0/weight")
    if weight is None or weight.shape[1] > 1 or "parameters/layer-1/weight" in job.record.arrays:
        return None
    w = weight[:, 0]
    order = [int(column) for column in np.argsort(-np.abs(w), kind="stable")[:_MOST_WEIGHTS] if w[column] != 0]
    n_zero = int(np.count_nonzero(w == 0))
    zeros = f"{words.count(n_zero)} of the {words.count(len(w))} weights are exactly zero. " if n_zero else ""
    names = names_of_columns(job, len(w))
    numbered = "" if job.record.labels.get("column") else "Columns are numbered from 0. "
    lead = f"{zeros}{numbered}Sizes compare where the columns are scaled alike."
    rows = [(words.printable(names[column]), words.number(float(w[column]))) for column in order]
    largest = "Largest weights" if len(order) < len(w) - n_zero else "Weights"
    title = f"{largest} of the classifier" if array(job, "classifier/layer-0/weight") is not None else largest
    return section(title, lead, table(("", "weight"), rows))


def gradients(job: Job) -> Markup | None:
    """Norms of the gradients of every layer, with a warning in words where they vanish or explode."""
    names = sorted(name for name in job.record.arrays if name.startswith("history/gradient_norm/"))
    steps = array(job, "history/norm_step")
    if not names or steps is None or len(steps) < 2:
        return None
    norms = {name.rsplit("/", 1)[-1]: np.asarray(job.record.arrays[name], float) for name in names}
    figure = _lines({name: (steps + 1, values) for name, values in norms.items()}, "norm of the gradient", "step")
    found = warnings(norms)
    said = [tag("p", {"class": "warning"}, text) for text in found] or [
        tag("p", {"class": "legend"}, "No layer's gradients vanish or explode.")
    ]
    lead = "Layers are numbered from the features on. In a sound network the curves stay within a few orders of magnitude."
    return section("Gradients by layer", lead, pair(figure), *said)


def warnings(norms: Mapping[str, np.ndarray]) -> list[str]:
    """Sentences about layers whose gradients vanish beside those of the others, or explode with time."""
    medians = {name: float(np.median(values[np.isfinite(values)])) for name, values in norms.items() if np.isfinite(values).any()}
    largest = max(medians.values(), default=0.0)
    said = []
    for name, median in medians.items():
        if largest > 0 and median < _VANISHING * largest:
            said.append(
                f"Vanishing gradients: those of {name} are {words.number(median / largest)} of the largest layer's, so it hardly "
                "learns. Use relu or gelu, he or orthogonal initial weights, fewer layers, or kfac."
            )
    for name, values in norms.items():
        start = float(np.median(values[: max(1, len(values) // 10)]))
        peak = float(np.max(values)) if np.isfinite(values).all() else np.inf
        if start > 0 and peak > _EXPLODING * start:
            said.append(
                f"Exploding gradients: those of {name} rose to {words.number(peak / start)} times those of the first steps. Set "
                "params.clip_norm, lower optimizer.learning_rate, or scale the features."
            )
    return said


def times(job: Job) -> Markup | None:
    """What a step of each rank took, and what was hidden of the communication."""
    seconds = _seconds(job)
    if not seconds or not max(seconds.get("steps", [0])):
        return None
    rows = []
    for rank in range(len(seconds["rows"])):
        of = {name: float(values[rank]) for name, values in seconds.items()}
        steps = max(of["steps"], 1.0)
        hidden = max(0.0, 1 - of["exposed"] / of["communicate"]) if of["communicate"] > 0 else None
        rows.append(
            (
                f"rank {rank}",
                words.duration(of["total"] / steps),
                words.duration(of["read"] / steps),
                words.duration(of["compute"] / steps),
                words.duration(of["communicate"] / steps),
                words.share(hidden) if hidden is not None else words.MISSING,
                words.duration(of.get("wait", 0.0) / steps),
                words.quantity(of["rows"] / of["total"], "rows/s") if of["total"] > 0 else words.MISSING,
            )
        )
    head = ("", "a step", "reading", "computing", "communicating", "of which hidden", "waiting for ranks", "throughput")
    lead = "Where the time of a step went. Communication is hidden when it goes on while the rank computes."
    return section("Time by rank", lead, table(head, rows))


def _lines(
    curves_: Mapping[str, tuple[np.ndarray, np.ndarray]], title: str, x_label: str, *, log: bool = True, first_style: int = 0
) -> Markup:
    """Curves by name over a common axis; a logarithmic one where all values are positive and differ much."""
    thin = {name: _thinned(np.asarray(x, float), np.asarray(y, float)) for name, (x, y) in curves_.items()}
    every = np.concatenate([y[np.isfinite(y)] for _, y in thin.values()])
    log = log and len(every) > 0 and float(every.min()) > 0 and float(every.max() / every.min()) > 20
    styles = [_STYLES[(first_style + i) % len(_STYLES)] for i in range(len(thin))]
    with chart(510, 290, f"{title} over {x_label}s") as drawn:
        axes = drawn.axes(62, 34, 496, 240, title=title, x_label=x_label)
        if log:
            logarithmic(axes, float(every.min()), float(every.max()))
        for (x, y), style in zip(thin.values(), styles, strict=True):
            axes.plot(x, np.where(y > 0, y, np.nan) if log else y, color=COLOURS[style])
        axes.locator_params(axis="x", nbins=7, integer=True)
        axes.xaxis.set_major_formatter("{x:,.0f}")
    keys = (
        figures.legend([(f"{style} solid", name) for style, name in zip(styles, thin, strict=True)])
        if len(thin) > 1
        else Markup("")
    )
    return join([drawn.markup, keys])


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if len(x) <= _MOST_POINTS:
        return x, y
    parts = np.array_split(np.arange(len(x)), _MOST_POINTS)
    return np.array([x[part].mean() for part in parts]), np.array([y[part].mean() for part in parts])


def _goal(job: Job) -> str:
    model = job.record.spec.get("model") or {}
    names = {"mlp": "A neural network", "linear": "A linear regression", "logistic": "A logistic regression"}
    return f"{names.get(model.get('type', 'softmax'), 'A softmax regression')}, trained on the rows"


def _predict_tiles(job: Job) -> list[Tile]:
    return [
        _metric(name, value, "against the targets")
        for name in ("accuracy", "loss", "r2", "mean_squared_error")
        if (value := _estimate(job, name)) is not None
    ]


def _metric(name: str, value: float, of_what: str) -> Tile:
    """A metric of predictions; neither accuracy nor R² is called all where it is less."""
    as_text = {"accuracy": words.share, "r2": words.part}.get(name, words.number)
    title = "R²" if name == "r2" else words.label(name)
    return Tile(title, as_text(value), of_what)


def _covariate_tiles(job: Job) -> list[Tile]:
    shown = []
    rows, effective, capped = (
        (job.record.matrix.get("shape") or [0])[0],
        _estimate(job, "effective_rows"),
        _estimate(job, "capped_rows"),
    )
    if effective is not None:
        below = f"of {words.count(rows)}: as many unweighted rows tell as much"
        shown.append(Tile("Effective rows", words.count(round(effective)), below))
    if capped is not None:
        shown.append(Tile("Rows at the cap", words.count(int(capped)), "they would weigh more"))
    return shown


def row_weights(job: Job) -> Markup | None:
    """The weights that rows were given, sorted."""
    weights = array(job, "weights")
    if weights is None or len(weights) < 2:
        return None
    places = {"weight": (np.arange(1, len(weights) + 1), np.sort(weights[:, 0])[::-1])}
    lead = "A weight of 1 is a row as common in one population as in the other."
    return section("Weights of the rows", lead, pair(_lines(places, "weights, the largest first", "row")))


def _ridge_tiles(job: Job) -> list[Tile]:
    shown, found = [], job.record.estimates
    penalties = array(job, "path/penalties")
    if isinstance(penalty := found.get("penalty"), int | float):
        below = f"the best of {words.count(len(penalties))}" if penalties is not None and len(penalties) > 1 else ""
        shown.append(Tile("Penalty", words.number(float(penalty)), below))
    if isinstance(error := found.get("error"), int | float):
        shown.append(Tile("Error", words.number(float(error) ** 0.5), f"root mean square of {_left_out(job)}"))
    if (r2 := found.get("r2")) and len(r2) == 1:
        shown.append(_metric("r2", float(r2[0]), "on the rows that were fitted"))
    if isinstance(products := found.get("iterations"), int):
        below = f"with {words.count(found.get('n_centers', 0))} columns that precondition"
        shown.append(Tile("Products", words.count(products), below))
    if isinstance(freedom := found.get("degrees_of_freedom"), int | float):
        shown.append(Tile("Degrees of freedom", words.number(float(freedom)), "what the penalty leaves of them"))
    return shown


def _left_out(job: Job) -> str:
    cv = job.record.params.get("cv") or (5 if job.record.kind == "kernel_ridge" else "loo")
    return "rows left out one by one" if cv == "loo" else f"the rows of {cv} folds"


def penalty_path(job: Job) -> Markup | None:
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
            logarithmic(axes, float(x[0]), float(x[-1]), along="x")
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


def convergence(job: Job) -> Markup | None:
    """What the iterations claimed of the residual, product by product, and what was measured at the end."""
    claimed, reached = array(job, "history/residual"), job.record.estimates.get("true_residual")
    if claimed is None or len(claimed) < 2 or not isinstance(reached, int | float):
        return None
    drawn = figures.spectrum(claimed, "largest residual that the iterations claimed", "product", style="s4")
    lead = f"Of the targets. In the end it was measured, all of the kernel matrix made anew: {words.number(float(reached))}."
    return section("Convergence", lead, pair(drawn))


TELLINGS: Mapping[str, Telling] = {
    "train": Telling(_goal, _train_tiles, (curves, coefficients, gradients, times)),
    "predict": Telling(lambda job: "Predictions for the rows", _predict_tiles, ()),
    "covariate_weights": Telling(
        lambda job: "Weights for the rows",
        _covariate_tiles,
        (row_weights, curves, coefficients, times),
    ),
    "ridge": Telling(lambda job: "A ridge regression", _ridge_tiles, (penalty_path,)),
    "kernel_ridge": Telling(lambda job: "A kernel ridge regression", _ridge_tiles, (penalty_path, convergence)),
}
