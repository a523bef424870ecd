"""K-FAC: exact where the Kronecker product is exact, additive over rows, better than the plain gradient where it is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from dlscale.errors import NumericalError, SpecError
from dlscale.learn.models.model import model
from dlscale.learn.optimizers.first_order import optimizer
from dlscale.learn.optimizers.kfac import KFAC, factor_buffer, factor_sums

FLOAT64 = np.dtype(np.float64)


def step(method, m, parameters, X, y, state, *, rate, weights=None):
    total = float(len(X) if weights is None else weights.sum())
    if method.needs_factors(state):
        _, factors = factor_buffer(parameters)
        factor_sums(m, parameters, X, y, weights=weights, normalizer=total, factors=factors)
        method.absorb(factors, state)
    loss, gradients = m.loss_and_gradients(parameters, X, y, weights=weights, normalizer=total)
    method.update(parameters, gradients, state, learning_rate=rate)
    return loss


@pytest.mark.parametrize("weighted", [False, True])
def test_one_step_solves_linear_least_squares(weighted):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 6)) * np.logspace(-1, 1, 6)
    y = rng.standard_normal((40, 2))
    weights = rng.uniform(0.1, 2, 40) if weighted else None
    m = model("linear")
    parameters = m.initialize(6, 2, rng=rng, dtype=FLOAT64)
    method = KFAC(damping=1e-24, momentum=0.0, kl_clip=math.inf)
    step(method, m, parameters, X, y, method.start(parameters), rate=1.0, weights=weights)
    root = np.sqrt(np.ones(40) if weights is None else weights)[:, None]
    expected = np.linalg.lstsq(np.column_stack([X, np.ones(40)]) * root, y * root, rcond=None)[0]
    np.testing.assert_allclose(parameters["layer-0/weight"], expected[:-1], rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(parameters["layer-0/bias"], expected[-1], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "huber"])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_the_output_factor_is_the_mean_hessian_of_the_loss(loss, n_outputs):
    rng = np.random.default_rng(1)
    m = model("mlp", hidden=(5,), activation="tanh", loss=loss)
    parameters = m.initialize(4, n_outputs, rng=rng, dtype=FLOAT64)
    X = rng.standard_normal((30, 4))
    y = rng.standard_normal((30, n_outputs)) * 2 if loss != "cross_entropy" else rng.integers(0, max(2, n_outputs), 30)
    weights = rng.uniform(0, 1, 30)
    weights[3] = 0
    _, factors = factor_buffer(parameters)
    factor_sums(m, parameters, X, y, weights=weights, normalizer=weights.sum(), factors=factors)
    S = m.scores(parameters, X)
    expected, h = np.zeros((n_outputs, n_outputs)), 1e-5
    for j in range(n_outputs):
        up, down = S.copy(), S.copy()
        up[:, j] += h
        down[:, j] -= h
        m.loss.differentiate(up, y)
        m.loss.differentiate(down, y)
        expected[j] = weights @ (up - down) / (2 * h) / weights.sum()
    np.testing.assert_allclose(factors["outputs/layer-1"], expected, atol=1e-9)
    H = np.column_stack([np.tanh(X @ parameters["layer-0/weight"] + parameters["layer-0/bias"]), np.ones(30)])
    np.testing.assert_allclose(factors["inputs/layer-1"], H.T @ (weights[:, None] * H) / weights.sum(), atol=1e-12)


def test_factors_of_a_split_add_up_to_the_whole():
    rng = np.random.default_rng(2)
    m = model("mlp", hidden=(5, 4), activation="gelu")
    parameters = m.initialize(4, 3, rng=rng, dtype=FLOAT64)
    X, y, weights = rng.standard_normal((20, 4)), rng.integers(0, 3, 20), rng.uniform(0, 2, 20)

    def factors(parts):
        buffer, views = factor_buffer(parameters)
        for p in parts:
            factor_sums(m, parameters, X[p], y[p], weights=weights[p], normalizer=weights.sum(), factors=views)
        return buffer

    whole = factors([slice(0, 20)])
    np.testing.assert_allclose(factors([slice(0, 0), slice(0, 7), slice(7, 8), slice(8, 20)]), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_fewer_steps_than_momentum_on_badly_scaled_features(dtype):
    rng = np.random.default_rng(3)
    X = (rng.standard_normal((200, 8)) * np.logspace(-1.5, 1, 8)).astype(dtype)
    y = (np.tanh(X @ (1 / np.logspace(-1.5, 1, 8))) > 0).astype(int)
    m = model("mlp", hidden=(16,), activation="tanh")
    start = m.initialize(8, 1, rng=rng, dtype=np.dtype(dtype))
    losses = {}
    for name, method, rate in (("kfac", KFAC(every=5), 0.3), ("momentum", optimizer("momentum"), 0.1)):
        parameters = {k: v.copy() for k, v in start.items()}
        state = method.start(parameters)
        for _ in range(100):
            if name == "kfac":
                losses[name] = step(method, m, parameters, X, y, state, rate=rate)
            else:
                losses[name], gradients = m.loss_and_gradients(parameters, X, y, normalizer=200)
                method.update(parameters, gradients, state, learning_rate=rate)
        assert {array.dtype for array in parameters.values()} == {np.dtype(dtype)}
    assert losses["kfac"] < 0.5 * losses["momentum"]


def test_a_copied_state_goes_on_bit_for_bit_between_renewals():
    rng = np.random.default_rng(4)
    X, y = rng.standard_normal((30, 4)), rng.integers(0, 3, 30)
    m, method = model("mlp", hidden=(5,)), KFAC(every=4)
    parameters = m.initialize(4, 3, rng=rng, dtype=FLOAT64)
    state = method.start(parameters)
    for _ in range(6):
        step(method, m, parameters, X, y, state, rate=0.1)
    copy, copied_state = ({k: v.copy() for k, v in d.items()} for d in (parameters, state))
    for _ in range(6):
        step(method, m, parameters, X, y, state, rate=0.1)
        step(method, m, copy, X, y, copied_state, rate=0.1)
    for name in parameters:
        np.testing.assert_array_equal(copy[name], parameters[name])


def test_what_cannot_be_is_refused():
    with pytest.raises(SpecError, match=r"optimizer.damping: got 0 .*allowed: a number above 0"):
        KFAC(damping=0)
    with pytest.raises(SpecError, match=r"optimizer.every: got .*; allowed: an integer of at least 1: steps between renewals"):
        KFAC(every=0)
    rng = np.random.default_rng(0)
    m = model("logistic", loss="hinge")
    parameters = m.initialize(3, 1, rng=rng, dtype=FLOAT64)
    _, factors = factor_buffer(parameters)
    with pytest.raises(SpecError, match="no curvature"):
        factor_sums(m, parameters, np.ones((2, 3)), np.ones(2), normalizer=2, factors=factors)
    factors["inputs/layer-0"][:] = -np.eye(4)
    method = KFAC(damping=1e-8)
    with pytest.raises(NumericalError, match="not positive definite"):
        method.absorb(factors, method.start(parameters))
