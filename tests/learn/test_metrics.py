"""Metrics equal scikit-learn's, from sums over parts; early stopping is a function of the history."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as peer

from dlscale.errors import InputError, SpecError
from dlscale.learn.models.losses import CrossEntropy, Hinge, Huber, Squared
from dlscale.learn.training.metrics import METRICS, R2, EarlyStopping, metrics_of


def over_parts(metric, loss, S, y, weights, n_parts=3):
    parts = [*np.array_split(np.arange(len(S)), n_parts), np.arange(0)]
    return metric.value(sum(metric.sums(loss, S[p], y[p], weights=None if weights is None else weights[p]) for p in parts))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_outputs", [1, 4])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_metrics_are_scikit_learns(weighted, n_outputs, dtype):
    rng = np.random.default_rng(0)
    S = (3 * rng.standard_normal((50, n_outputs))).astype(dtype)
    kept = S.copy()
    w = rng.uniform(0, 2, 50) if weighted else None
    labels = rng.integers(0, max(2, n_outputs), 50)
    p = CrossEntropy().link(S.astype(np.float64))
    decided = p.argmax(axis=1) if n_outputs > 1 else (p[:, 0] > 0.5).astype(int)
    expected = peer.accuracy_score(labels, decided, sample_weight=w)
    for loss in (CrossEntropy(), Hinge()):
        assert over_parts(METRICS["accuracy"], loss, S, labels, w) == pytest.approx(expected, rel=1e-12)
    expected = peer.log_loss(labels, p if n_outputs > 1 else p[:, 0], sample_weight=w)
    assert over_parts(METRICS["log_loss"], CrossEntropy(), S, labels, w) == pytest.approx(expected, rel=1e-12)
    y = rng.standard_normal((50, n_outputs)) + 1
    expected = peer.mean_squared_error(y, S, sample_weight=w)
    assert over_parts(METRICS["mean_squared_error"], Squared(), S, y, w) == pytest.approx(expected, rel=1e-6)
    np.testing.assert_array_equal(S, kept)


@pytest.mark.parametrize("origin", [0.0, 1e7])
def test_r2_is_scikit_learns_and_keeps_its_digits_far_from_zero(origin):
    rng = np.random.default_rng(0)
    y = rng.standard_normal(1000) + origin
    S = (y + 0.3 * rng.standard_normal(1000))[:, None]
    w = rng.uniform(0, 2, 1000)
    got = over_parts(R2(origin=origin), Squared(), S, y, w)
    assert got == pytest.approx(peer.r2_score(y, S, sample_weight=w), rel=1e-9)


def test_the_mean_loss_is_weighted():
    S, y = np.array([[0.0], [3.0]]), np.array([0.0, 0.0])
    assert METRICS["loss"].value(METRICS["loss"].sums(Huber(1.0), S, y, weights=np.array([3.0, 1.0]))) == 2.5 / 4
    assert np.isnan(METRICS["loss"].value(METRICS["loss"].sums(Huber(), S[:0], y[:0])))


def test_metrics_fit_their_losses():
    assert metrics_of(CrossEntropy()) == ("loss", "accuracy", "log_loss")
    assert metrics_of(Hinge()) == ("loss", "accuracy")
    assert metrics_of(Squared()) == ("loss", "mean_squared_error", "r2")
    with pytest.raises(SpecError, match="accuracy is for classification"):
        METRICS["accuracy"].check(Squared())


def test_extreme_scores_do_not_overflow():
    for k in (1, 3):
        S = np.full((2, k), 1e4)
        S[1] = -1e4
        if k > 1:
            S[:, 1] = 0
        losses = CrossEntropy().differentiate(S, np.array([1, 1]))
        assert np.isfinite(S).all()
        assert np.isfinite(losses).all()
        assert losses.max() == pytest.approx(1e4 + (np.log(2) if k > 1 else 0), rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "y", "n_outputs", "message"),
    [
        (CrossEntropy(), np.array([0, 3, 1]), 3, "from 0 to 2; got 3 in row 1"),
        (CrossEntropy(), np.array([0.0, 0.5]), 1, "count from 0; got 0.5 in row 1. Number the classes 0, 1, ..., or"),
        (Hinge(), np.array([1, -1]), 1, "got -1 in row 1"),
        (Squared(), np.ones((4, 2)), 3, r"must be \(n, 3\); got \(4, 2\)"),
        (Squared(), np.array([1.0, np.nan]), 1, "must be finite"),
    ],
)
def test_targets_that_do_not_fit_are_refused(loss, y, n_outputs, message):
    with pytest.raises(InputError, match=message):
        loss.check_targets(y, n_outputs)
    loss.check_targets(np.zeros(4) if n_outputs == 1 or loss.classifies else np.zeros((4, 3)), n_outputs)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=30), st.integers(1, 5))
def test_stopping_comes_after_patience_without_a_new_best(history, patience):
    rule = EarlyStopping(patience=patience)
    best = int(np.argmin(history))
    assert rule.best(history) == best
    assert rule.stops(history) == (len(history) - 1 - best >= patience)
    assert rule.best([-v for v in history], higher_is_better=True) == best


def test_small_improvements_and_nan_do_not_count():
    rule = EarlyStopping(patience=2, min_improvement=0.1)
    assert rule.stops([1.0, 0.95, 0.91])
    assert not rule.stops([1.0, 0.95, 0.85])
    assert rule.best([float("nan"), 2.0, float("nan")]) == 1
    assert rule.stops([float("nan")] * 2)
    assert not rule.stops([])
    with pytest.raises(SpecError, match=r"early_stopping.patience: got 0 .*; allowed: an integer of at least 1"):
        EarlyStopping(patience=0)
