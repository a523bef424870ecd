"""Gradients against finite differences for every combination, and shares that add up however rows are split."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm as normal_distribution

from dlscale.errors import SpecError
from dlscale.learn.models.activations import ACTIVATIONS
from dlscale.learn.models.model import LOSSES_OF_MODELS, Room, model
from dlscale.learn.models.parameters import backward_buffer
from dlscale.learn.optimizers.regularization import Regularization

ARCHITECTURES = [(type, "relu", (), loss) for type in ("linear", "logistic", "softmax") for loss in LOSSES_OF_MODELS[type]]
ARCHITECTURES += [("mlp", activation, (5, 2), loss) for activation, loss in product(ACTIVATIONS, LOSSES_OF_MODELS["mlp"])]
PENALTIES = [
    {},
    {"l1": 0.3},
    {"l2": 0.7},
    {"l1": 0.3, "l2": 0.7},
    {"decorrelation": 2.0},
    {"decorrelation": 2.0, "l1": 0.3, "l2": 0.7},
]


def outputs_of(type: str, loss: str) -> tuple[int, ...]:
    return {"logistic": (1,), "softmax": (3,)}.get(type, (1, 3))


CASES = [(*architecture, n_outputs) for architecture in ARCHITECTURES for n_outputs in outputs_of(architecture[0], architecture[3])]


def data(n_rows, n_outputs, loss, *, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_rows, 4))
    y = rng.standard_normal((n_rows, n_outputs)) * 2 if loss in ("squared", "huber") else rng.integers(0, max(2, n_outputs), n_rows)
    return X, y, rng.uniform(0.1, 2, n_rows)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("type", "activation", "hidden", "loss", "n_outputs"), CASES)
def test_gradients_equal_central_differences(type, activation, hidden, loss, n_outputs, weighted):
    for penalty in PENALTIES:
        if hidden or "decorrelation" not in penalty:
            check_gradients(type, activation, hidden, loss, n_outputs, penalty, weighted)


def check_gradients(type, activation, hidden, loss, n_outputs, penalty, weighted):
    m = model(type, hidden=hidden, activation=activation, loss=loss, decorrelation=penalty.get("decorrelation", 0.0))
    regularization = Regularization(l1=penalty.get("l1", 0.0), l2=penalty.get("l2", 0.0))
    X, y, weights = data(9, n_outputs, loss)
    weights = weights if weighted else None
    normalizer = 9.0 if weights is None else weights.sum()
    rng = np.random.default_rng(1)
    parameters = m.initialize(4, n_outputs, init="xavier", rng=rng, dtype=np.dtype(np.float64))
    for name in parameters:
        parameters[name] += 0.1 * rng.standard_normal(parameters[name].shape)

    def objective():
        sums = m.statistics(parameters, X, weights)
        value, gradients = m.loss_and_gradients(parameters, X, y, weights=weights, normalizer=normalizer, statistics=sums)
        return value + regularization.add(parameters, gradients), gradients

    gradients = objective()[1]
    h = 1e-6
    for name, array in parameters.items():
        expected = np.zeros_like(array)
        for place in np.ndindex(array.shape):
            before = array[place]
            array[place] = before + h
            up = objective()[0]
            array[place] = before - h
            expected[place] = (up - objective()[0]) / (2 * h)
            array[place] = before
        # The L1 penalty's own slope belongs to the proximal step; away from zero it is the sign.
        slope = gradients[name] + (regularization.l1 * np.sign(array) if name.endswith("weight") else 0)
        # Rounding of the loss, eps |f| / h, beside 1e-6 of the gradient.
        allowed = 1e-6 * np.linalg.norm(slope) + 1e-9
        assert np.linalg.norm(slope - expected) <= allowed, (name, penalty)


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(1, 40),
    cuts=st.lists(st.integers(0, 40), max_size=4),
    case=st.sampled_from([(a, n) for a in ARCHITECTURES for n in outputs_of(a[0], a[3])]),
    decorrelation=st.sampled_from([0.0, 1.5]),
    zero_weights=st.booleans(),
)
def test_shares_of_a_split_add_up_to_the_whole(n_rows, cuts, case, decorrelation, zero_weights):
    (type, activation, hidden, loss), n_outputs = case
    m = model(type, hidden=hidden, activation=activation, loss=loss, decorrelation=decorrelation if hidden else 0.0)
    X, y, weights = data(n_rows, n_outputs, loss, seed=n_rows)
    if zero_weights:
        weights[: n_rows // 2] = 0
    total = weights.sum()
    parameters = m.initialize(4, n_outputs, init="he", rng=np.random.default_rng(2), dtype=np.dtype(np.float64))
    edges = [0, *sorted(min(cut, n_rows) for cut in cuts), n_rows]
    parts = [slice(a, b) for a, b in pairwise(edges)]

    def shares(parts):
        sums = [m.statistics(parameters, X[part], weights[part]) for part in parts]
        statistics = None if sums[0] is None else sum(sums)
        found = [
            m.loss_and_gradients(parameters, X[p], y[p], weights=weights[p], normalizer=total, statistics=statistics) for p in parts
        ]
        return sum(value for value, _ in found), {name: sum(g[name] for _, g in found) for name in parameters}

    whole, split = shares([slice(0, n_rows)]), shares(parts)
    assert split[0] == pytest.approx(whole[0], rel=1e-12, abs=1e-13)
    for name in parameters:
        scale = max(1.0, np.abs(whole[1][name]).max())
        np.testing.assert_allclose(split[1][name], whole[1][name], rtol=0, atol=1e-12 * scale)


def test_a_row_of_weight_three_is_three_rows():
    m = model("softmax")
    X, y, _ = data(5, 3, "cross_entropy")
    parameters = m.initialize(4, 3, init="normal", rng=np.random.default_rng(0), dtype=np.dtype(np.float64))
    weights = np.array([1.0, 3, 1, 0, 2])
    a, g = m.loss_and_gradients(parameters, X, y, weights=weights, normalizer=7)
    rows = [0, 1, 1, 1, 2, 4, 4]
    b, h = m.loss_and_gradients(parameters, X[rows], y[rows], normalizer=7)
    assert a == pytest.approx(b, rel=1e-13)
    for name in g:
        np.testing.assert_allclose(g[name], h[name], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("architecture", [("mlp", "gelu", (6, 5), "cross_entropy"), ("linear", "relu", (), "huber")])
def test_no_rows_give_zero_and_overwrite_what_was_there(architecture):
    type, activation, hidden, loss = architecture
    m = model(type, hidden=hidden, activation=activation, loss=loss, decorrelation=1.0 if hidden else 0.0)
    parameters = m.initialize(4, 3, init="he", rng=np.random.default_rng(0), dtype=np.dtype(np.float32))
    buffer, gradients = backward_buffer(parameters)
    buffer[:] = np.nan
    X, y, _ = data(3, 3, loss)
    statistics = m.statistics(parameters, X)
    value, _ = m.loss_and_gradients(parameters, X[:0], y[:0], normalizer=3, room=Room(gradients), statistics=statistics)
    assert value == 0
    assert not buffer.any()
    assert m.statistics(parameters, X[:0]) is None or not m.statistics(parameters, X[:0]).any()
    assert m.predict(parameters, X[:0]).shape == (0, 3)


def test_gradients_become_ready_last_layer_first_and_final():
    m = model("mlp", hidden=(6, 5, 4))
    X, y, _ = data(8, 3, "cross_entropy")
    parameters = m.initialize(4, 3, rng=np.random.default_rng(0), dtype=np.dtype(np.float64))
    buffer, gradients = backward_buffer(parameters)
    seen = {}

    def ready(name, gradient):
        # A large weight comes in parts, its first rows first.
        assert np.shares_memory(gradient, gradients[name])
        seen[name] = np.concatenate([seen[name], gradient]) if name in seen else gradient.copy()
        # What the caller does to it meanwhile must not reach the layers before.
        gradient *= -5

    m.loss_and_gradients(parameters, X, y, normalizer=8, room=Room(gradients, ready))
    assert list(seen) == list(reversed(parameters))
    # What is ready stands side by side from the front of the buffer.
    np.testing.assert_array_equal(np.concatenate([g.ravel() for g in seen.values()]) * -5, buffer)
    _, expected = m.loss_and_gradients(parameters, X, y, normalizer=8)
    for name in parameters:
        np.testing.assert_array_equal(seen[name], expected[name])


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("loss", LOSSES_OF_MODELS["mlp"])
def test_float32_stays_float32_and_near_float64(activation, loss):
    m = model("mlp", hidden=(16, 8), activation=activation, loss=loss, decorrelation=0.1)
    X, y, weights = data(20, 3, loss)
    results = {}
    for dtype in (np.float32, np.float64):
        parameters = m.initialize(4, 3, init="xavier", rng=np.random.default_rng(0), dtype=np.dtype(dtype))
        A = X.astype(dtype)
        statistics = m.statistics(parameters, A, weights)
        value, gradients = m.loss_and_gradients(
            parameters, A, y, weights=weights.astype(dtype), normalizer=weights.sum(), statistics=statistics
        )
        assert {g.dtype for g in gradients.values()} == {np.dtype(dtype)}
        assert m.predict(parameters, A).dtype == dtype
        results[dtype] = value, gradients
    single, double = results[np.float32], results[np.float64]
    assert single[0] == pytest.approx(double[0], rel=1e-5)
    for name in double[1]:
        scale = np.abs(double[1][name]).max()
        np.testing.assert_allclose(single[1][name], double[1][name], rtol=0, atol=2e-5 * scale)


def test_activations_have_their_values():
    z = np.linspace(-30, 30, 601).reshape(1, -1)
    expected = {
        "relu": np.maximum(z, 0),
        "tanh": np.tanh(z),
        "sigmoid": np.where(z >= 0, 1 / (1 + np.exp(-np.abs(z))), np.exp(-np.abs(z)) / (1 + np.exp(-np.abs(z)))),
        "gelu": z * normal_distribution.cdf(z),
    }
    for name, activation in ACTIVATIONS.items():
        Z = z.copy()
        activation.apply(Z, np.empty_like(z))
        np.testing.assert_allclose(Z, expected[name], rtol=1e-12, atol=1e-14, err_msg=name)


def test_gelu_keeps_its_digits_in_single_precision():
    z = np.linspace(-9, 9, 100_001).astype(np.float32)
    H, slope = z.copy(), np.empty_like(z)
    ACTIVATIONS["gelu"].apply(H, slope)
    exact = z.astype(np.float64) * normal_distribution.cdf(z.astype(np.float64))
    eps = np.finfo(np.float32).eps
    # exp(-z^2 / 2) in single precision is itself only good to z^2 / 2 roundings.
    np.testing.assert_array_less(np.abs(H - exact), (10 + z.astype(np.float64) ** 2) * eps * np.abs(exact) + 1e-30)
    exact = normal_distribution.cdf(z.astype(np.float64)) + z * normal_distribution.pdf(z.astype(np.float64))
    np.testing.assert_allclose(slope, exact, rtol=0, atol=4 * eps)


def test_predictions_are_probabilities_and_new_arrays():
    X, _, _ = data(5000, 3, "squared")
    for type, n_outputs in (("softmax", 3), ("logistic", 1)):
        m = model(type)
        parameters = m.initialize(4, n_outputs, init="he", rng=np.random.default_rng(0), dtype=np.dtype(np.float64))
        p, again = m.predict(parameters, X), m.predict(parameters, X[:10])
        assert ((p > 0) & (p < 1)).all()
        np.testing.assert_allclose(p[:10], again, rtol=1e-13)
        S = X @ parameters["layer-0/weight"] + parameters["layer-0/bias"]
        expected = np.exp(S) / np.exp(S).sum(axis=1, keepdims=True) if n_outputs > 1 else 1 / (1 + np.exp(-S))
        np.testing.assert_allclose(p, expected, rtol=1e-12)
        labels = S.argmax(axis=1) if n_outputs > 1 else (S[:, 0] > 0).astype(int)
        np.testing.assert_array_equal(m.loss.decide(p), labels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"type": "forest"}, "linear, logistic, softmax, mlp; got 'forest'"),
        ({"type": "mlp"}, "at least one layer"),
        ({"type": "mlp", "hidden": [0]}, "integer of at least 1; got 0"),
        ({"type": "mlp", "hidden": [4], "activation": "swish"}, "relu, tanh, sigmoid, gelu; got 'swish'"),
        ({"type": "linear", "hidden": [4]}, "no hidden layers"),
        ({"type": "logistic", "loss": "squared"}, "cross_entropy or hinge; got squared"),
        ({"type": "linear", "loss": {"type": "huber", "delta": 0}}, "loss.delta: got 0 .*allowed: a number above 0"),
        ({"type": "linear", "loss": {"type": "huber", "width": 1}}, "no option 'width'"),
        ({"type": "linear", "loss": "cubic"}, "loss.type must be one of"),
        ({"type": "linear", "decorrelation": 1.0}, "acts on hidden layers"),
        ({"type": "mlp", "hidden": [4], "decorrelation": -1.0}, "at least 0; got -1.0"),
    ],
)
def test_models_that_cannot_be_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        model(**options)


def test_decorrelation_without_statistics_and_integer_parameters_are_refused():
    m = model("mlp", hidden=(4,), decorrelation=1.0)
    parameters = m.initialize(4, 3, rng=np.random.default_rng(0), dtype=np.dtype(np.float64))
    X, y, _ = data(5, 3, "cross_entropy")
    with pytest.raises(SpecError, match="call statistics first"):
        m.loss_and_gradients(parameters, X, y, normalizer=5)
    with pytest.raises(SpecError, match="float32 or float64; got int32"):
        m.initialize(4, 3, rng=np.random.default_rng(0), dtype=np.dtype(np.int32))
    with pytest.raises(SpecError, match="Choose type softmax"):
        model("logistic").n_outputs(3)


def test_decorrelation_is_the_penalty_of_the_covariance():
    m = model("mlp", hidden=(5,), activation="tanh", loss="squared", decorrelation=2.0)
    plain = model("mlp", hidden=(5,), activation="tanh", loss="squared")
    X, y, weights = data(30, 1, "squared")
    parameters = m.initialize(4, 1, rng=np.random.default_rng(0), dtype=np.dtype(np.float64))
    parameters["layer-0/bias"] += 3
    H = np.tanh(X @ parameters["layer-0/weight"] + parameters["layer-0/bias"])
    C = np.cov(H.T, aweights=weights, ddof=0)
    penalty = (C**2).sum() - (np.diag(C) ** 2).sum()
    total = weights.sum()
    statistics = m.statistics(parameters, X, weights)
    with_penalty, _ = m.loss_and_gradients(parameters, X, y, weights=weights, normalizer=total, statistics=statistics)
    without, _ = plain.loss_and_gradients(parameters, X, y, weights=weights, normalizer=total)
    assert with_penalty - without == pytest.approx(penalty, rel=1e-10)
