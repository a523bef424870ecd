"""What a training says of its objective is true of the parameters that it publishes, computed anew by NumPy in a few lines."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from rich.console import Console
from sklearn.linear_model import Lasso, LogisticRegression

from dlscale.batch.run import JobResult
from dlscale.batch.workspace import Workspace
from dlscale.cli.terminal import show_result
from dlscale.engine.ranks import Communicator
from dlscale.errors import CertificateError, NumericalError, SpecError
from dlscale.kernels import one_blas_thread
from dlscale.learn.models.model import model
from dlscale.learn.training.data import Column, Order
from dlscale.learn.training.shards import Shard
from dlscale.storage.matrix import ArrayMatrix
from tests.learn.learning_jobs import job, parameters, record

RNG = np.random.default_rng(3)
N_ROWS = 250
X = RNG.standard_normal((N_ROWS, 6)) * [1, 2, 0.5, 1, 1, 3] + [0, 0, 1, 0, -2, 0]
SCORES = X @ [1.0, -0.5, 0, 0, 0.7, 0] + 0.5 * RNG.standard_normal(N_ROWS)
TARGETS = {"linear": SCORES + 2, "logistic": (SCORES > 0).astype(float)}
WEIGHTS = RNG.gamma(0.5, 4.0, N_ROWS) * (RNG.random(N_ROWS) > 0.1)


def objective(kind, W, b, features, targets, weights, *, l1=0.0, l2=0.0):
    """``F`` and its least subgradient at W, b: loss, largest entry, Euclidean norm."""
    w = np.ones(len(features)) if weights is None else weights
    s = features @ W[:, 0] + b[0]
    if kind == "linear":
        loss, r = (s - targets) ** 2 / 2, s - targets
    else:
        loss, r = np.logaddexp(0, s) - targets * s, 1 / (1 + np.exp(-s)) - targets
    v = W[:, 0]
    g = features.T @ (w * r) / w.sum() + l2 * v
    g = np.where(v == 0, np.sign(g) * np.maximum(np.abs(g) - l1, 0), g + l1 * np.sign(v))
    whole = np.array([*g, w @ r / w.sum()])
    return w @ loss / w.sum() + l1 * np.abs(v).sum() + l2 / 2 * v @ v, np.abs(whole).max(), np.linalg.norm(whole)


def check_told(found, kind, done, weights, penalties, *, rtol=1e-9):
    """Loss, largest entry and norm, at the start (zeros) and of what was published."""
    W, b = (array.astype(np.float64) for array in parameters(done))
    for prefix, at in (("first", (0 * W, 0 * b)), ("final", (W, b))):
        truth = objective(kind, *at, X, TARGETS[kind], weights, **penalties)
        told = [found[f"{prefix}_{name}"] for name in ("loss", "optimality", "gradient_norm")]
        # A gradient is a sum that cancels: it is known to rounding of its terms.
        np.testing.assert_allclose(told, truth, rtol=rtol, atol=1e-14 * truth[0] * 100)


PENALTIES = ({"l2": 0.1}, {"l1": 0.05}, {"l1": 0.03, "l2": 0.05})
PROBLEMS = list(itertools.product(("linear", "logistic"), (False, True), PENALTIES, ("mini-batches", "full")))


@pytest.mark.parametrize(("kind", "weighted", "penalties", "way"), PROBLEMS)
def test_the_told_subgradient_is_that_of_the_stated_objective(tmp_path, kind, weighted, penalties, way):
    inputs = {"features": X, "targets": TARGETS[kind]} | ({"weights": WEIGHTS} if weighted else {})
    if way == "full":
        how = {"optimizer": "proximal" if "l1" in penalties else "lbfgs", "params": {"epochs": 3000}}
    else:
        how = {
            "optimizer": {"type": "adam", "learning_rate": 0.05},
            "schedule": {"type": "cosine", "n_steps": 25 * 20},
            "params": {"epochs": 20, "batch_size": 10},
        }
    done = job(tmp_path, "train", inputs, model=kind, regularization=penalties, **how)
    told = record(done)
    found, weights = told["estimates"], WEIGHTS if weighted else None
    check_told(found, kind, done, weights, penalties)
    if way == "full":
        assert found["ended"] == "converged"
        assert found["final_optimality"] <= 1e-8
        assert any("tolerance" in check["name"] for check in told["certificate"]["checks"])
    else:
        # Mini-batches end near the minimum of the very same objective.
        assert found["final_gradient_norm"] < 0.15 * found["first_gradient_norm"]
        assert "after all 20 epochs" in told["notes"][0]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", ["sgd", "lbfgs"])
def test_linear_models_are_measured_in_double_precision(tmp_path, dtype, optimizer):
    done = job(
        tmp_path, "train", {"features": X, "targets": TARGETS["linear"]}, model="linear", optimizer=optimizer,
        params={"dtype": dtype, "epochs": 60},
    )  # fmt: skip
    check_told(record(done)["estimates"], "linear", done, None, {})


@pytest.mark.parametrize(
    ("optimizer", "rate", "clip_norm"),
    [
        ("sgd", 0.1, None),
        ("sgd", 0.1, 0.5),
        ("momentum", 0.02, None),
        ("nesterov", 0.02, 0.5),
        ("adam", 0.03, None),
        ("adam", 0.03, 0.5),
        ({"type": "adamw", "weight_decay": 0.0}, 0.03, None),
    ],
)
def test_l1_has_one_minimum_whatever_moves_towards_it(tmp_path, optimizer, rate, clip_norm):
    options = {"type": optimizer} if isinstance(optimizer, str) else optimizer
    epochs = 700
    done = job(
        tmp_path, "train", {"features": X[:, :4], "targets": TARGETS["linear"]}, model="linear", regularization={"l1": 0.2},
        optimizer={**options, "learning_rate": rate}, schedule={"type": "cosine", "n_steps": epochs},
        params={"epochs": epochs, "batch_size": N_ROWS, "clip_norm": clip_norm},
    )  # fmt: skip
    theirs = Lasso(0.2, tol=1e-12).fit(X[:, :4], TARGETS["linear"])
    W, b = parameters(done)
    np.testing.assert_allclose(W[:, 0], theirs.coef_, atol=2e-3)
    np.testing.assert_allclose(b, theirs.intercept_, atol=1e-2)
    assert ((W[:, 0] == 0) == (theirs.coef_ == 0)).all()


@pytest.mark.parametrize("optimizer", ["lars", "kfac", "lbfgs"])
def test_l1_is_refused_where_no_proximal_step_fits(tmp_path, optimizer):
    with pytest.raises(SpecError, match=f"optimizer.type: {optimizer}|optimizer.type {optimizer}|{optimizer}.*l1"):
        job(tmp_path, "train", {"features": X, "targets": SCORES}, model="linear", optimizer=optimizer, regularization={"l1": 0.1})


class RankOf3(Communicator):
    """One of three ranks that never meet."""

    size = 3

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.rank = rank


@pytest.mark.parametrize("batch_size", [1, 7, 50, 300])
def test_the_gradients_of_an_epoch_are_those_of_the_weighted_objective(batch_size):
    m, order = model("linear"), Order(N_ROWS, 37, 4, min(batch_size, N_ROWS), seed=1)
    start = {"layer-0/weight": RNG.standard_normal((6, 1)), "layer-0/bias": np.ones(1)}
    weights = Column(ArrayMatrix(WEIGHTS[:, None]), keep=True)
    total = {name: np.zeros_like(array) for name, array in start.items()}
    shards = [
        Shard(
            ArrayMatrix(X), Column(ArrayMatrix(SCORES[:, None])), weights=weights, order=order,
            communicator=RankOf3(rank), dtype=np.dtype("f8"),
        )
        for rank in range(3)
    ]  # fmt: skip
    with one_blas_thread():
        for shares in zip(*(shard.shares(0) for shard in shards), strict=True):
            n_rows = sum(len(share.rows) for share in shares)
            for share in shares:
                _, gradients = m.loss_and_gradients(start, share.X, share.y, weights=share.weights, normalizer=share.normalizer)
                for name, gradient in gradients.items():
                    total[name] += n_rows / N_ROWS * gradient
        whole = m.loss_and_gradients(start, X, SCORES, weights=WEIGHTS, normalizer=WEIGHTS.sum())[1]
    for shard in shards:
        shard.close()
    for name in start:
        np.testing.assert_allclose(total[name], whole[name], rtol=1e-12)


def test_a_batch_of_weight_zero_does_not_end_a_training(tmp_path):
    weights = (np.arange(N_ROWS) < 40).astype(float)
    done = job(
        tmp_path, "train", {"features": X, "targets": SCORES, "weights": weights}, model="linear",
        optimizer={"type": "sgd", "learning_rate": 0.01}, params={"batch_size": 20, "epochs": 60, "shuffle": False},
    )  # fmt: skip
    A = np.column_stack([X[:40], np.ones(40)])
    expected = np.linalg.lstsq(A, SCORES[:40], rcond=None)[0]
    assert np.abs(np.append(*map(np.ravel, parameters(done))) - expected).max() < 0.3


# What ended it.


def test_a_step_that_diverges_is_not_published(tmp_path):
    how = {"model": "linear", "optimizer": {"type": "sgd", "learning_rate": 1e8}, "params": {"epochs": 1, "batch_size": N_ROWS}}
    advice = "diverged: lower optimizer.learning_rate, set params.clip_norm, or scale the features."
    with pytest.raises(CertificateError, match=f"objective / objective at the start.* The training {advice}"):
        job(tmp_path, "train", {"features": X, "targets": SCORES}, **how)
    # Notes of a job that failed say why, and nothing of more epochs.
    failed = Workspace(tmp_path / "jobs").find(None)
    note = failed.read_state().summary["notes"][0]
    assert note.endswith(f"It {advice}")
    assert "More epochs" not in note
    console = Console(file=io.StringIO(), width=400)
    show_result(console, JobResult(failed.id, "failed", "train", None, 1.0, None, {}, failed.folder))
    assert note in console.file.getvalue()
    how["optimizer"]["learning_rate"] = 1e200
    with pytest.raises((CertificateError, NumericalError), match=r"not finite|became"):
        job(tmp_path, "train", {"features": X, "targets": SCORES}, **how)


def test_the_best_epoch_is_the_one_that_is_told_of(tmp_path):
    rng = np.random.default_rng(0)
    A = rng.standard_normal((400, 20))
    y = (A[:, 0] + 1.5 * rng.standard_normal(400) > 0).astype(float)
    done = job(
        tmp_path, "train",
        {"features": A[:200], "targets": y[:200], "validation_features": A[200:], "validation_targets": y[200:]},
        model={"type": "mlp", "hidden": [32]}, optimizer={"type": "adam", "learning_rate": 0.02},
        early_stopping={"patience": 5}, params={"epochs": 60, "batch_size": 32},
    )  # fmt: skip
    told = record(done)["estimates"]
    assert told["ended"] == "early stopping"
    assert told["best_epoch"] == told["epochs"] - 5
    assert f"Published are the parameters of epoch {told['best_epoch']}" in record(done)["notes"][1]
    for part, names in ((slice(200, None), {"loss": "final_validation_loss"}), (slice(200), {"loss": "final_loss"})):
        inputs = {"features": A[part], "model": str(done.result), "targets": y[part]}
        seen = record(job(tmp_path / "seen", "predict", inputs))["estimates"]
        for theirs, ours in names.items():
            assert told[ours] == pytest.approx(seen[theirs], rel=1e-9)


def test_an_epoch_is_called_the_best_only_where_it_is(tmp_path):
    done = job(
        tmp_path, "train", {"features": X, "targets": SCORES}, model="linear", optimizer={"type": "sgd", "learning_rate": 1e-4},
        early_stopping={"patience": 2, "min_improvement": 100.0},
    )  # fmt: skip
    losses = np.asarray(done.open()["history/epoch_loss"])
    assert losses.argmin() > 0
    said = record(done)["notes"][1]
    assert (
        said
        == "Published are the parameters of epoch 1 of 3, the last that improved by more than early_stopping.min_improvement (100)."
    )


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({}, r"after all 10 epochs; the gradient .* of its start.*More epochs"),
        ({"optimizer": "lbfgs", "params": {"epochs": 2}}, r"Not converged: all 2 iterations were spent.*Raise params.epochs"),
        ({"optimizer": "proximal", "params": {"epochs": 3}}, r"Not converged: all 3 iterations were spent"),
        ({"optimizer": "lbfgs", "params": {"epochs": 100}}, r"Converged after \d+ iterations: .* within optimizer.tolerance"),
        ({"optimizer": {"type": "lbfgs", "tolerance": 0.0}, "params": {"epochs": 300}}, r"Converged to rounding after \d+ iter"),
        ({"optimizer": {"type": "proximal", "tolerance": 0.0}, "params": {"epochs": 900}}, r"Converged to rounding after \d+ iter"),
        ({"optimizer": "adamw"}, r"after all 10 epochs"),
    ],
)
def test_a_training_says_how_it_ended(tmp_path, how, words):
    import re

    done = job(tmp_path, "train", {"features": X, "targets": SCORES}, model="linear", **how)
    told = record(done)
    assert re.search(words, told["notes"][0])
    sealed = any("tolerance" in check["name"] for check in told["certificate"]["checks"])
    assert sealed == (told["estimates"]["ended"] == "converged")
    assert ("no part of the objective" in " ".join(told["notes"])) == (how.get("optimizer") == "adamw")


def test_a_swing_over_a_flat_minimum_is_no_standstill(tmp_path):
    rng = np.random.default_rng(5)
    A = rng.standard_normal((200, 5))
    y = (A @ [1, -0.2, 2, 0, 0.5] + 0.3 * rng.standard_normal(200) > 0).astype(float)
    done = job(
        tmp_path, "train", {"features": A, "targets": y}, model="logistic", optimizer="proximal", regularization={"l2": 1e-6},
        params={"epochs": 3000},
    )  # fmt: skip
    assert record(done)["estimates"]["ended"] == "converged"
    theirs = LogisticRegression(C=1e6 / 200, solver="newton-cholesky", tol=1e-12).fit(A, y)
    np.testing.assert_allclose(parameters(done)[0][:, 0], theirs.coef_[0], rtol=1e-3)


# Any units.


@pytest.mark.parametrize("optimizer", ["lbfgs", "proximal"])
@pytest.mark.parametrize(
    ("offset", "unit", "target_unit"),
    [(1e4, 1, 1), (1e6, 1, 1), (-1e5, 0.1, 1), (0, 1e-200, 1), (0, 1e-9, 1e12), (0, 1e150, 1e-30), (0, 1, 1e15), (3, 1, 1e150)],
)
def test_units_and_offsets_do_not_matter(tmp_path, optimizer, offset, unit, target_unit):
    A, y = X * unit + offset, SCORES * target_unit
    done = job(tmp_path, "train", {"features": A, "targets": y}, model="linear", optimizer=optimizer, params={"epochs": 2000})
    assert record(done)["estimates"]["ended"].startswith("converged")
    expected = np.linalg.lstsq(np.column_stack([X, np.ones(N_ROWS)]), SCORES, rcond=None)[0][:-1]
    # Of an offset, as many digits are lost in the rows as in the answer.
    lost = 1e-14 * (1 + (offset / unit) ** 2)
    np.testing.assert_allclose(parameters(done)[0][:, 0] * unit / target_unit, expected, atol=1e-6 + lost)


@pytest.mark.parametrize("unit", [1e-100, 1e-10, 1e10, 1e100])
def test_logistic_regression_in_any_unit(tmp_path, unit):
    done = job(
        tmp_path, "train", {"features": X * unit + unit, "targets": TARGETS["logistic"]}, model="logistic", optimizer="lbfgs",
        params={"epochs": 500},
    )  # fmt: skip
    theirs = LogisticRegression(C=np.inf, solver="newton-cholesky", tol=1e-12).fit(X, TARGETS["logistic"])
    np.testing.assert_allclose(parameters(done)[0][:, 0] * unit, theirs.coef_[0], rtol=1e-5, atol=1e-5)


def test_losses_beyond_double_precision_are_refused_by_name(tmp_path):
    for unit, words in ((1e200, "loss became inf"), (1e-200, "below what float64 holds")):
        for optimizer in ("lbfgs", "proximal", "adam"):
            with pytest.raises(NumericalError, match=words):
                job(tmp_path, "train", {"features": X, "targets": SCORES * unit}, model="linear", optimizer=optimizer)
