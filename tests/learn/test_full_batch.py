"""Methods on all rows at once against scikit-learn's solutions of the same problems."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import ElasticNet, HuberRegressor, Lasso, LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from dlscale.errors import SpecError
from dlscale.kernels import one_blas_thread
from dlscale.learn.models.model import model
from dlscale.learn.optimizers.lbfgs import LBFGS
from dlscale.learn.optimizers.proximal import ProximalGradient
from dlscale.learn.optimizers.regularization import Regularization, soft_threshold

FLOAT64 = np.dtype(np.float64)


@pytest.fixture(autouse=True)
def _one_blas_thread():
    with one_blas_thread():
        yield


def minimize(method, m, X, y, *, regularization=None, weights=None, n_ranks=1, n_outputs=1, limit=20_000, dtype=FLOAT64):
    """Iterate until converged, with rows split as if over ranks."""
    total = float(len(X) if weights is None else weights.sum())
    parts = np.array_split(np.arange(len(X)), n_ranks)
    parameters = m.initialize(X.shape[1], n_outputs, rng=np.random.default_rng(0), dtype=dtype)

    def evaluate(parameters):
        shares = [
            m.loss_and_gradients(parameters, X[p], y[p], weights=None if weights is None else weights[p], normalizer=total)
            for p in parts
        ]
        return sum(loss for loss, _ in shares), {name: sum(g[name] for _, g in shares) for name in parameters}

    state = method.start(parameters)
    for _ in range(limit):
        iteration = method.iterate(evaluate, parameters, state, regularization=regularization)
        if iteration.converged or iteration.stalled:
            break
    return parameters["layer-0/weight"], parameters["layer-0/bias"], iteration


def assert_same_fit(coefficients, bias, peer, *, to=1e-6):
    np.testing.assert_allclose(coefficients.ravel(), peer.coef_.ravel(), rtol=to, atol=to)
    np.testing.assert_allclose(bias, np.ravel(peer.intercept_), rtol=to, atol=to)


def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.mark.parametrize("C", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_logistic_regression_is_scikit_learns(C, weighted):
    X, y = cancer()
    weights = np.random.default_rng(0).uniform(0, 2, len(y)) if weighted else None
    total = len(y) if weights is None else weights.sum()
    peer = LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(X, y, sample_weight=weights)
    coefficients, bias, iteration = minimize(
        LBFGS(tolerance=1e-10),
        model("logistic"),
        X,
        y,
        regularization=Regularization(l2=1 / (C * total)),
        weights=weights,
        n_ranks=3,
    )
    assert iteration.converged
    assert_same_fit(coefficients, bias, peer)


def test_softmax_on_digits_reaches_scikit_learns_accuracy():
    X, y = load_digits(return_X_y=True)
    X = X / 16
    train, test = slice(0, 1200), slice(1200, None)
    peer = LogisticRegression(C=1.0, tol=1e-9, max_iter=2000).fit(X[train], y[train])
    m = model("softmax")
    W, bias, iteration = minimize(
        LBFGS(tolerance=1e-9), m, X[train], y[train], regularization=Regularization(l2=1 / 1200), n_outputs=10
    )
    assert iteration.converged
    p = m.predict({"layer-0/weight": W, "layer-0/bias": bias}, X[test])
    assert (p.argmax(axis=1) == y[test]).mean() >= peer.score(X[test], y[test])
    np.testing.assert_allclose(p, peer.predict_proba(X[test]), atol=1e-4)


@pytest.mark.parametrize("alpha", [1e-3, 0.1, 1.0])
def test_ridge_is_scikit_learns(alpha):
    X, y = load_diabetes(return_X_y=True)
    peer = Ridge(alpha=alpha, solver="cholesky").fit(X, y)
    for method in (LBFGS(tolerance=1e-11), ProximalGradient(tolerance=1e-11)):
        coefficients, bias, _ = minimize(method, model("linear"), X, y, regularization=Regularization(l2=alpha / len(y)), n_ranks=2)
        assert_same_fit(coefficients, bias, peer)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 1.0, 10.0])
def test_lasso_is_scikit_learns(alpha):
    X, y = load_diabetes(return_X_y=True)
    peer = Lasso(alpha=alpha, tol=1e-14, max_iter=1_000_000).fit(X, y)
    coefficients, bias, iteration = minimize(
        ProximalGradient(tolerance=1e-10), model("linear"), X, y, regularization=Regularization(l1=alpha), n_ranks=2, limit=500
    )
    # 5000 iterations were needed if intercept and weights had one bound on their curvature in common.
    assert iteration.converged
    assert_same_fit(coefficients, bias, peer)
    np.testing.assert_array_equal(coefficients.ravel() == 0, peer.coef_ == 0)


def test_elastic_net_is_scikit_learns():
    X, y = load_diabetes(return_X_y=True)
    peer = ElasticNet(alpha=0.01, l1_ratio=0.7, tol=1e-14, max_iter=1_000_000).fit(X, y)
    coefficients, bias, iteration = minimize(
        ProximalGradient(tolerance=1e-10), model("linear"), X, y, regularization=Regularization(l1=0.007, l2=0.003)
    )
    assert iteration.converged
    assert_same_fit(coefficients, bias, peer)


def test_l1_logistic_regression_is_scikit_learns():
    X, y = cancer()
    peer = LogisticRegression(C=0.5, l1_ratio=1.0, solver="saga", tol=1e-10, max_iter=100_000).fit(X, y)
    coefficients, bias, iteration = minimize(
        ProximalGradient(tolerance=1e-10), model("logistic"), X, y, regularization=Regularization(l1=1 / (0.5 * len(y)))
    )
    assert iteration.converged
    assert_same_fit(coefficients, bias, peer, to=1e-5)
    assert 0 < np.count_nonzero(coefficients) < coefficients.size


def test_huber_regression_bounds_the_pull_of_outliers():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 3))
    y = X @ [1.0, -2.0, 3.0] + 0.5 + 0.01 * rng.standard_normal(300)
    y[:30] += 1000
    coefficients, bias, iteration = minimize(LBFGS(tolerance=1e-10), model("linear", loss={"type": "huber", "delta": 0.05}), X, y)
    assert iteration.converged
    np.testing.assert_allclose(coefficients.ravel(), [1, -2, 3], atol=0.02)
    # scikit-learn estimates its scale along with the rest; at that scale the problems are the same.
    peer = HuberRegressor(epsilon=1.35, alpha=0.0, tol=1e-10, max_iter=1000).fit(X, y)
    coefficients, bias, _ = minimize(
        LBFGS(tolerance=1e-12), model("linear", loss={"type": "huber", "delta": 1.35 * peer.scale_}), X, y
    )
    assert_same_fit(coefficients, bias, peer, to=1e-4)


@pytest.mark.parametrize("method", [LBFGS(memory=4), ProximalGradient()])
def test_a_resumed_run_goes_on_bit_for_bit(method):
    X, y = cancer()
    m = model("logistic")
    parameters = m.initialize(X.shape[1], 1, rng=np.random.default_rng(0), dtype=FLOAT64)

    def evaluate(parameters):
        return m.loss_and_gradients(parameters, X, y, normalizer=len(X))

    regularization = Regularization(l2=1e-3)
    state = method.start(parameters)
    copies = []
    for i in range(12):
        if i == 6:
            copies = [{k: v.copy() for k, v in parameters.items()}, {k: v.copy() for k, v in state.items()}]
        method.iterate(evaluate, parameters, state, regularization=regularization)
    for _ in range(6):
        method.iterate(evaluate, *copies, regularization=regularization)
    for name in parameters:
        np.testing.assert_array_equal(copies[0][name], parameters[name])
    for name in state:
        np.testing.assert_array_equal(copies[1][name], state[name])


@pytest.mark.parametrize("method", [LBFGS(tolerance=0.0), ProximalGradient(tolerance=0.0)])
def test_at_the_end_of_the_precision_nothing_breaks(method):
    X, y = cancer()
    coefficients, _, iteration = minimize(method, model("logistic"), X, y, regularization=Regularization(l2=0.01), limit=1500)
    assert np.isfinite(coefficients).all()
    assert iteration.optimality < 1e-12


def test_float32_parameters_converge_to_their_precision():
    X, y = cancer()
    peer = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12).fit(X, y)
    X = X.astype(np.float32)
    coefficients, _, _ = minimize(
        LBFGS(tolerance=1e-5),
        model("logistic"),
        X,
        y,
        regularization=Regularization(l2=1 / len(y)),
        dtype=np.dtype(np.float32),
        limit=500,
    )
    assert coefficients.dtype == np.float32
    np.testing.assert_allclose(coefficients.ravel(), peer.coef_.ravel(), atol=1e-2)


def test_lbfgs_finds_the_bottom_of_rosenbrocks_valley():
    parameters = {"layer-0/weight": np.array([[-1.2, 1.0, -1.0, 1.0]]), "layer-0/bias": np.zeros(0)}

    def evaluate(parameters):
        a, b = parameters["layer-0/weight"][0, ::2], parameters["layer-0/weight"][0, 1::2]
        gradient = np.zeros((1, 4))
        gradient[0, ::2] = -400 * a * (b - a**2) - 2 * (1 - a)
        gradient[0, 1::2] = 200 * (b - a**2)
        return float((100 * (b - a**2) ** 2 + (1 - a) ** 2).sum()), {"layer-0/weight": gradient, "layer-0/bias": np.zeros(0)}

    method = LBFGS(tolerance=1e-10)
    state = method.start(parameters)
    n_evaluations, losses = 0, []
    for _ in range(100):
        iteration = method.iterate(evaluate, parameters, state)
        n_evaluations += iteration.n_evaluations
        losses.append(iteration.loss)
        if iteration.converged:
            break
    np.testing.assert_allclose(parameters["layer-0/weight"], np.ones((1, 4)), atol=1e-8)
    assert n_evaluations < 100
    assert (np.diff(losses) <= 1e-14).all()


def test_bad_options_are_refused():
    with pytest.raises(SpecError, match=r"optimizer.memory: got 0 \(an integer\); allowed: an integer of at least 1\."):
        LBFGS(memory=0)
    with pytest.raises(SpecError, match=r"optimizer.tolerance: got -1 .*allowed: a number of at least 0"):
        ProximalGradient(tolerance=-1)
    with pytest.raises(SpecError, match="choose proximal"):
        minimize(LBFGS(), model("linear"), np.eye(3), np.ones(3), regularization=Regularization(l1=1.0))
    with pytest.raises(SpecError, match=r"regularization.l2: got nan \(a number\); allowed: a number of at least 0\."):
        Regularization(l2=float("nan"))


def test_the_soft_threshold_solves_its_little_problem():
    x = np.array([-3.0, -0.5, 0.0, 0.5, 1.0, 3.0])
    soft_threshold(x, 1.0)
    np.testing.assert_array_equal(x, [-2.0, 0, 0, 0, 0, 2.0])
