"""Each optimizer takes the step of its paper, finds the optimum of a convex problem, and goes on bit for bit from its state."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dlscale.errors import SpecError
from dlscale.learn.models.model import model
from dlscale.learn.models.parameters import TILE_ELEMENTS
from dlscale.learn.optimizers.clipping import clip_by_norm
from dlscale.learn.optimizers.first_order import OPTIMIZERS, optimizer
from dlscale.learn.optimizers.regularization import Regularization

WEIGHT, BIAS = "layer-0/weight", "layer-0/bias"


def textbook(name, w, gradients, rate):
    """The published recursion on one array, written out plainly."""
    w, v, m, s = w.copy(), np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(gradients, start=1):
        if name == "sgd":
            w = w - rate * g
        elif name == "momentum":
            v = 0.9 * v + g
            w = w - rate * v
        elif name == "nesterov":
            v = 0.9 * v + g
            w = w - rate * (g + 0.9 * v)
        elif name in ("adam", "adamw"):
            m = 0.9 * m + 0.1 * g
            s = 0.999 * s + 0.001 * g**2
            if name == "adamw":
                w = w - rate * 0.01 * w
            w = w - rate * (m / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)
        elif name == "lars":
            local = 0.001 * np.linalg.norm(w) / np.linalg.norm(g)
            v = 0.9 * v + rate * local * g
            w = w - v
    return w


@pytest.mark.parametrize("name", list(OPTIMIZERS))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_steps_are_the_published_ones(name, dtype):
    rng = np.random.default_rng(0)
    # More than two tiles, the last one ragged.
    shape = (2, TILE_ELEMENTS + 5)
    w = rng.standard_normal(shape).astype(dtype)
    gradients = [rng.standard_normal(shape).astype(dtype) for _ in range(4)]
    method = optimizer(name)
    parameters = {WEIGHT: w.copy()}
    state = method.start(parameters)
    for g in gradients:
        kept = g.copy()
        method.update(parameters, {WEIGHT: g}, state, learning_rate=0.1)
        np.testing.assert_array_equal(g, kept)
    assert parameters[WEIGHT].dtype == dtype
    assert state["step"][0] == 4
    expected = textbook(name, w.astype(np.float64), [g.astype(np.float64) for g in gradients], 0.1)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(parameters[WEIGHT], expected, rtol=200 * eps, atol=200 * eps)


@pytest.mark.parametrize(
    ("options", "rate", "n_steps"),
    [
        ("sgd", 0.3, 400),
        ("momentum", 0.1, 400),
        ("nesterov", 0.1, 400),
        ("adam", 0.1, 1500),
        ({"type": "adamw", "weight_decay": 0.0}, 0.1, 1500),
        ({"type": "lars", "trust": 0.02}, 1.0, 1500),
    ],
)
def test_a_convex_problem_is_brought_to_its_optimum(options, rate, n_steps):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((50, 5))
    y = X @ rng.standard_normal(5) + 2 + 0.1 * rng.standard_normal(50)
    m = model("linear")
    regularization = Regularization(l2=0.1)
    centred = X - X.mean(axis=0)
    optimum = np.linalg.solve(centred.T @ centred / 50 + 0.1 * np.eye(5), centred.T @ (y - y.mean()) / 50)
    method = optimizer(options)
    parameters = m.initialize(5, 1, init="normal", rng=rng, dtype=np.dtype(np.float64))
    state = method.start(parameters)
    for step in range(n_steps):
        _, gradients = m.loss_and_gradients(parameters, X, y, normalizer=50)
        regularization.add(parameters, gradients)
        method.update(parameters, gradients, state, learning_rate=rate * (1 - step / n_steps) ** 3)
    np.testing.assert_allclose(parameters[WEIGHT].ravel(), optimum, atol=1e-5)
    np.testing.assert_allclose(parameters[BIAS], y.mean() - X.mean(axis=0) @ optimum, atol=1e-5)


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_copied_state_goes_on_bit_for_bit(name):
    rng = np.random.default_rng(0)
    method = optimizer(name)
    parameters = {WEIGHT: rng.standard_normal((7, 3)), BIAS: rng.standard_normal(3)}
    state = method.start(parameters)
    gradients = [{k: rng.standard_normal(v.shape) for k, v in parameters.items()} for _ in range(6)]
    for g in gradients[:3]:
        method.update(parameters, g, state, learning_rate=0.01)
    copy, copied_state = ({k: v.copy() for k, v in d.items()} for d in (parameters, state))
    for g in gradients[3:]:
        method.update(parameters, g, state, learning_rate=0.01)
        method.update(copy, g, copied_state, learning_rate=0.01)
    for name in parameters:
        np.testing.assert_array_equal(copy[name], parameters[name])


def test_biases_do_not_decay_and_follow_the_global_rate():
    parameters = {WEIGHT: np.ones((2, 2)), BIAS: np.ones(2)}
    zeros = {name: np.zeros_like(array) for name, array in parameters.items()}
    method = optimizer({"type": "adamw", "weight_decay": 0.5})
    method.update(parameters, zeros, method.start(parameters), learning_rate=0.1)
    np.testing.assert_allclose(parameters[WEIGHT], 0.95)
    np.testing.assert_array_equal(parameters[BIAS], 1)
    parameters = {WEIGHT: np.zeros((2, 2)), BIAS: np.ones(2)}
    method = optimizer("lars")
    method.update(parameters, {WEIGHT: np.ones((2, 2)), BIAS: np.ones(2)}, method.start(parameters), learning_rate=0.1)
    np.testing.assert_allclose(parameters[BIAS], 0.9)
    # A layer of zeros would have the local rate 0 and never move.
    np.testing.assert_allclose(parameters[WEIGHT], -0.1)


def test_proximal_steps_make_exact_zeros():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((200, 10))
    y = X[:, 0] * 3 + 0.01 * rng.standard_normal(200)
    m, method, regularization = model("linear"), optimizer("sgd"), Regularization(l1=0.2)
    parameters = m.initialize(10, 1, init="normal", rng=rng, dtype=np.dtype(np.float64))
    state = method.start(parameters)
    for _ in range(200):
        _, gradients = m.loss_and_gradients(parameters, X, y, normalizer=200)
        regularization.add(parameters, gradients)
        method.update(parameters, gradients, state, learning_rate=0.3, l1=regularization.l1)
    assert np.count_nonzero(parameters[WEIGHT]) == 1
    assert parameters[WEIGHT][0, 0] == pytest.approx(2.8, abs=0.1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_clipping_scales_all_gradients_by_one_factor(dtype):
    gradients = {WEIGHT: np.full((2, 2), 3.0, dtype), BIAS: np.array([8.0], dtype)}
    before = {name: g.copy() for name, g in gradients.items()}
    parts = clip_by_norm(gradients, 100.0)
    assert parts == {WEIGHT: 6.0, BIAS: 8.0}
    np.testing.assert_array_equal(gradients[WEIGHT], before[WEIGHT])
    assert clip_by_norm(gradients, 5.0) == {WEIGHT: 6.0, BIAS: 8.0}
    assert math.hypot(*clip_by_norm(gradients, math.inf).values()) == pytest.approx(5.0, rel=1e-6)
    np.testing.assert_allclose(gradients[WEIGHT] * 2, before[WEIGHT], rtol=1e-6)
    gradients[BIAS][0] = np.inf
    kept = gradients[WEIGHT].copy()
    assert clip_by_norm(gradients, 1.0)[BIAS] == np.inf
    np.testing.assert_array_equal(gradients[WEIGHT], kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("rmsprop", "optimizer.type must be one of sgd, momentum, nesterov, adam, adamw, lars; got 'rmsprop'"),
        ({"momentum": 0.9}, "optimizer.type must be one of"),
        ({"type": "sgd", "momentum": 0.9}, "optimizer sgd has no option 'momentum'; its options are none"),
        ({"type": "momentum", "momentum": 1.0}, "optimizer.momentum: got 1.0 .*allowed: a number from 0 to below 1"),
        ({"type": "adam", "beta2": "0.9"}, "optimizer.beta2: got '0.9' .text.; allowed: a number from 0 to below 1"),
        ({"type": "adam", "epsilon": 0.0}, "optimizer.epsilon: got 0.0 .*allowed: a number above 0"),
        ({"type": "adamw", "weight_decay": -0.1}, "optimizer.weight_decay: got -0.1 .*allowed: a number of at least 0"),
        ({"type": "lars", "trust": 0}, "optimizer.trust: got 0 .*allowed: a number above 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        optimizer(options)
