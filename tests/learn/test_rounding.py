"""What a training states of rounding holds: loss and gradient of what it publishes, computed anew in long doubles."""

from __future__ import annotations

import numpy as np
import pytest

from tests.learn.learning_jobs import job, parameters, record

RNG = np.random.default_rng(11)
N_ROWS = 90
PLAIN = RNG.standard_normal((N_ROWS, 3))
FEATURES = {
    "plain": PLAIN,
    "far from zero": PLAIN + 1e7,
    "a column that is large": PLAIN * [1, 1e9, 1e-3],
    "huge": PLAIN * 1e30,
    "tiny": PLAIN * 1e-30,
    "the same twice": PLAIN[:, [0, 0, 1]],
    "a constant column": PLAIN * [1, 1, 0] + [0, 0, 1e5],
    "nothing": PLAIN * 0,
    "integers": np.rint(50 * PLAIN).astype(np.int64),
}
SCORES = PLAIN @ [1.0, -2.0, 0.5] + 0.3 * RNG.standard_normal(N_ROWS)
TARGETS = {
    "squared": {"plain": SCORES, "far from zero": SCORES + 1e9, "huge": SCORES * 1e20, "constant": np.full(N_ROWS, 2.5e9 + 0.1)},
    "huber": {"plain": SCORES, "far from zero": SCORES + 1e9},
    "logistic": {"plain": (SCORES > 0).astype(float)},
    "softmax": {"plain": np.digitize(SCORES, [-1, 1])},
}
PROBLEMS = [(loss, features, targets) for loss in TARGETS for features in FEATURES for targets in TARGETS[loss]]


def truth(loss, W, b, X, y, w, *, l1, l2):
    """The objective and its least subgradient at these parameters, in long doubles."""
    W, b, X, w = (np.asarray(array, np.longdouble) for array in (W, b, X, w))
    S, rows = X @ W + b, np.arange(len(X))
    if loss in ("squared", "huber"):
        far = S - np.asarray(y, np.longdouble)[:, None]
        R = far if loss == "squared" else np.clip(far, -1, 1)
        losses = (R * (far - R / 2)).sum(axis=1)
    else:
        S = np.column_stack([0 * S, S]) if loss == "logistic" else S
        P = np.exp(S - S.max(axis=1, keepdims=True))
        losses = np.log(P.sum(axis=1)) + S.max(axis=1) - S[rows, y.astype(int)]
        R = P / P.sum(axis=1, keepdims=True)
        R[rows, y.astype(int)] -= 1
        R = R[:, 1:] if loss == "logistic" else R
    G = X.T @ (w[:, None] * R) / w.sum() + l2 * W
    G = np.where(W == 0, np.sign(G) * np.maximum(np.abs(G) - l1, 0), G + l1 * np.sign(W))
    largest = max(np.abs(G).max(), np.abs((w[:, None] * R).sum(axis=0) / w.sum()).max())
    return w @ losses / w.sum() + l1 * np.abs(W).sum() + l2 / 2 * (W**2).sum(), largest


@pytest.mark.parametrize("penalties", [{"l1": 0.0, "l2": 0.0}, {"l1": 0.01, "l2": 0.1}])
@pytest.mark.parametrize(("loss", "features", "targets"), PROBLEMS)
def test_what_is_told_is_within_its_rounding(tmp_path, loss, features, targets, penalties):
    X, y, w = FEATURES[features], TARGETS[loss][targets], RNG.gamma(0.5, 4.0, N_ROWS)
    model = "linear" if loss in ("squared", "huber") else loss
    done = job(
        tmp_path, "train", {"features": X, "targets": y, "weights": w}, model=model, regularization=penalties,
        loss=loss if model == "linear" else None, optimizer="proximal" if penalties["l1"] else "lbfgs", params={"epochs": 60},
    )  # fmt: skip
    told = record(done)
    found = told["estimates"]
    value, largest = truth(loss, *parameters(done), X, y, w, **penalties)
    assert abs(found["final_loss"] - value) <= found["final_loss_rounding"]
    assert abs(found["final_optimality"] - largest) <= found["final_gradient_rounding"]
    for check in told["certificate"]["checks"]:
        if "with its rounding / tolerance" in check["name"]:
            assert largest <= 1e-8
            assert "no change of the parameters improves it" in check["meaning"]


def test_a_gradient_that_rounding_hides_is_not_called_small(tmp_path):
    inputs = {"features": FEATURES["integers"], "targets": TARGETS["squared"]["constant"]}
    done = job(
        tmp_path, "train", inputs, model="linear", optimizer="proximal", regularization={"l2": 1e-4}, params={"epochs": 300},
    )  # fmt: skip
    told = record(done)
    assert told["estimates"]["ended"] == "converged"
    meaning = told["certificate"]["checks"][-1]["meaning"]
    assert "as float64 computes it" in meaning
    assert "rounding may have changed entries by up to" in meaning
    assert "rounding may have changed entries by up to" in told["notes"][0]


def test_of_hidden_layers_no_bound_is_stated(tmp_path):
    done = job(
        tmp_path, "train", {"features": PLAIN, "targets": SCORES}, model={"type": "mlp", "hidden": [2], "activation": "tanh"},
        loss="squared", optimizer={"type": "lbfgs", "tolerance": 1e-3}, params={"epochs": 500},
    )  # fmt: skip
    told = record(done)
    assert told["estimates"]["ended"] == "converged"
    assert "final_gradient_rounding" not in told["estimates"]
    assert "as float64 computes it, exceeds the tolerance" in told["certificate"]["checks"][-1]["meaning"]
