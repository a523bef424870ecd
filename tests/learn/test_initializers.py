"""Initial weights have the variance, or the orthogonality, that their papers ask for."""

from __future__ import annotations

import numpy as np
import pytest

from dlscale.errors import SpecError
from dlscale.learn.models.model import model


def weights(init, widths=(300, 200, 400), dtype=np.float64, seed=0):
    m = model("mlp", hidden=widths[1:], loss="squared")
    return m.initialize(widths[0], 1, init=init, rng=np.random.default_rng(seed), dtype=np.dtype(dtype))


@pytest.mark.parametrize(
    ("init", "variance"),
    [
        ("normal", lambda n_in, n_out: 1e-4),
        ("xavier", lambda n_in, n_out: 2 / (n_in + n_out)),
        ("he", lambda n_in, n_out: 2 / n_in),
    ],
)
def test_variances(init, variance):
    parameters = weights(init)
    for layer in (0, 1):
        W = parameters[f"layer-{layer}/weight"]
        # The variance of N draws is known to about sqrt(2 / N); five of those.
        assert W.var() == pytest.approx(variance(*W.shape), rel=5 * np.sqrt(2 / W.size))
        assert abs(W.mean()) < 5 * np.sqrt(variance(*W.shape) / W.size)
        assert not parameters[f"layer-{layer}/bias"].any()


def test_orthogonal_columns_or_rows():
    parameters = weights("orthogonal")
    tall, wide = parameters["layer-0/weight"], parameters["layer-1/weight"]
    eps = np.finfo(float).eps
    assert np.abs(tall.T @ tall - np.eye(200)).max() < 300 * eps
    assert np.abs(wide @ wide.T - np.eye(200)).max() < 400 * eps
    # Uniform over such matrices: without the signs of R the diagonal of Q would be negative throughout.
    assert 50 < (np.diag(tall) > 0).sum() < 150


@pytest.mark.parametrize("init", ["normal", "glorot", "he", "orthogonal"])
def test_one_seed_gives_the_same_values_in_either_dtype(init):
    single, double = weights(init, dtype=np.float32), weights(init)
    for name in double:
        assert single[name].dtype == np.float32
        assert single[name].flags.c_contiguous
        np.testing.assert_array_equal(single[name], double[name].astype(np.float32))
    assert (weights(init, seed=1)["layer-0/weight"] != double["layer-0/weight"]).any()


def test_zeros_suit_convex_models_and_are_refused_for_hidden_layers():
    m = model("softmax")
    parameters = m.initialize(4, 3, init="zeros", rng=np.random.default_rng(0), dtype=np.dtype(np.float64))
    assert not any(array.any() for array in parameters.values())
    with pytest.raises(SpecError, match="never separate"):
        weights("zeros")
    with pytest.raises(SpecError, match="init must be one of zeros, normal, xavier, glorot, he, orthogonal; got 'lecun'"):
        weights("lecun")


def test_defaults_suit_the_activation():
    assert model("linear").default_init() == "zeros"
    assert model("mlp", hidden=(3,), activation="relu").default_init() == "he"
    assert model("mlp", hidden=(3,), activation="tanh").default_init() == "xavier"
