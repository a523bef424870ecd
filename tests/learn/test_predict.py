"""Jobs of kind predict: what a trained model says of new rows, and which models it refuses to be."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import zarr

from dlscale.errors import CorruptionError, InputError
from dlscale.learn.predict import ScoreFold
from dlscale.learn.training.task import Recipe, TrainOptions
from tests.learn.learning_jobs import job, put

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 5))
Y = X @ RNG.standard_normal((5, 2))


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """The result of training a small network."""
    folder = tmp_path_factory.mktemp("network")
    done = job(
        folder, "train", {"features": X, "targets": Y}, model={"type": "mlp", "hidden": [4]}, loss="squared", params={"epochs": 2}
    )
    return Path(done.result)


def predict(folder, model, features=X, **inputs):
    return job(folder, "predict", {"features": features, "model": str(model), **inputs})


def edit(model, change):
    path = model / "zarr.json"
    record = json.loads(path.read_text())
    change(record["attributes"]["dlscale"])
    path.write_text(json.dumps(record))


def replaced(name, array):
    def damage(model):
        shutil.rmtree(model / "parameters" / name)
        put(model / "parameters" / name, array)

    return damage


def test_predictions_are_those_of_the_network(network, tmp_path):
    done = predict(tmp_path, network, targets=Y)
    arrays = zarr.open_group(network, mode="r")
    W, b = ([arrays[f"parameters/layer-{i}/{part}"][...] for i in range(2)] for part in ("weight", "bias"))
    expected = np.maximum(X @ W[0] + b[0], 0) @ W[1] + b[1]
    np.testing.assert_allclose(done.open()["predictions"][...], expected, rtol=1e-12, atol=1e-12)
    estimates = zarr.open_group(done.result, mode="r").attrs["dlscale"]["estimates"]
    assert estimates["mean_squared_error"] == pytest.approx(np.mean((expected - Y) ** 2), rel=1e-12)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda model: shutil.rmtree(model / "parameters/layer-1"), "must hold the weight and the bias of 2 layers"),
        (lambda model: shutil.rmtree(model / "parameters/layer-0/bias"), "must hold the weight and the bias of 2 layers"),
        (replaced("layer-0/bias", np.ones(3)), r"layer-0/bias must have the shape .* \(4,\) float64; got \(3,\)"),
        (replaced("layer-1/weight", np.ones((5, 2))), r"layer-1/weight must have .* \(4, 2\) float64; got \(5, 2\)"),
        (replaced("layer-1/weight", np.ones((4, 2), "f4")), "float64; got .* float32"),
        (replaced("layer-0/weight", np.ones((5, 4), "i8")), "float32 or float64; got .* int64"),
        (replaced("layer-1/bias", np.array([1, np.inf])), r"layer-1/bias holds inf at \(1,\)"),
        (replaced("layer-0/weight", np.full((5, 4), np.nan)), r"layer-0/weight holds nan at \(0, 0\)"),
        (lambda model: edit(model, lambda record: record["spec"].update(model={"type": "linear"})), "of 1 layer "),
        (lambda model: edit(model, lambda record: record["spec"]["model"].update(hidden=[3])), r"\(5, 3\) float64; got \(5, 4\)"),
        (lambda model: edit(model, lambda record: record.pop("spec")), "describes the result, is damaged: spec"),
        (lambda model: edit(model, lambda record: record.update(spec="lost")), "describes the result, is damaged: spec"),
        (lambda model: edit(model, lambda record: record["spec"].update(loss={"type": "none"})), "does not say what model"),
    ],
)
def test_a_damaged_model_is_refused_by_name(network, tmp_path, damage, message):
    model = tmp_path / "model.zarr"
    shutil.copytree(network, model)
    damage(model)
    with pytest.raises(InputError, match=message):
        predict(tmp_path, model)


def test_a_model_whose_bytes_have_changed_is_refused_by_name(network, tmp_path):
    model = tmp_path / "model.zarr"
    shutil.copytree(network, model)
    chunk = model / "parameters/layer-0/bias/c/0"
    chunk.write_bytes(bytes([chunk.read_bytes()[0] ^ 1]) + chunk.read_bytes()[1:])
    with pytest.raises(CorruptionError, match="layer-0/bias cannot be decoded"):
        predict(tmp_path, model)


class Command:
    """Runs a command where it is unpickled."""

    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        return os.system, (self.text,)


@pytest.mark.parametrize(
    ("dtype", "filters", "compressor"),
    [
        ("|O", [{"id": "vlen-utf8"}, {"id": "pickle", "protocol": 4}], None),
        ("<f8", [{"id": "pickle", "protocol": 4}], None),
        ("<f8", None, {"id": "pickle", "protocol": 4}),
    ],
    ids=["objects", "a filter of numbers", "a compressor of numbers"],
)
def test_nothing_is_unpickled(tmp_path, monkeypatch, dtype, filters, compressor):
    # The decoder of a numcodecs that still unpickles.
    monkeypatch.setenv("NUMCODECS_ALLOW_UNSAFE_PICKLE_DECODE", "1")
    model, mark = tmp_path / "model.zarr", tmp_path / "mark"
    spec = {"kind": "train", "model": {"type": "linear"}, "params": {}, "input": {}}
    record = {"kind": "train", "job": "g", "spec": spec, "plan": {}, "seconds": 1.0, "estimates": {}, "notes": []}
    record["certificate"] = {"passed": True, "checks": []}
    for group in ("", "parameters", "parameters/layer-0"):
        (model / group).mkdir()
        (model / group / ".zgroup").write_text('{"zarr_format": 2}')
    (model / ".zattrs").write_text(json.dumps({"dlscale": record}))
    layout = {"zarr_format": 2, "compressor": None, "fill_value": 0.0, "order": "C", "filters": None, "dtype": "<f8"}
    pickled = {"dtype": dtype, "filters": filters, "compressor": compressor, "fill_value": "" if dtype == "|O" else 0.0}
    command = pickle.dumps(Command(f"touch {mark}"))
    for name, shape, more, chunk in (("weight", [5, 1], {}, np.ones(5).tobytes()), ("bias", [1], pickled, command)):
        folder = model / "parameters/layer-0" / name
        folder.mkdir()
        (folder / ".zarray").write_text(json.dumps(layout | {"shape": shape, "chunks": shape} | more))
        (folder / ".".join("0" * len(shape))).write_bytes(chunk)
    with pytest.raises(InputError, match=r"layer-0/bias must hold numbers|No Zarr data type"):
        predict(tmp_path, model)
    assert not mark.exists()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("loss", ["squared", "huber"])
@pytest.mark.parametrize("offset", [0.0, 1e7, -1e10])
def test_metrics_of_targets_far_from_zero_are_those_of_the_predictions(tmp_path, dtype, loss, offset):
    targets = Y + offset
    inputs = {"features": X, "targets": targets, "validation_features": X, "validation_targets": targets}
    model = job(tmp_path, "train", inputs, model="linear", loss=loss, params={"epochs": 2, "dtype": dtype})
    done = predict(tmp_path, model.result, targets=targets)
    residual = done.open()["predictions"][...].astype(np.longdouble) - targets
    squares = float((residual**2).mean())
    far = np.abs(residual)
    rows = {"squared": residual**2 / 2, "huber": np.where(far <= 1, far**2 / 2, far - 0.5)}[loss].sum(axis=1)
    expected = {"loss": float(rows.mean()), "mean_squared_error": squares, "r2": 1 - squares / float(targets.var())}
    told = [zarr.open_group(path, mode="r").attrs["dlscale"]["estimates"] for path in (done.result, model.result)]
    for name, value in expected.items():
        assert told[0][name] == pytest.approx(value, rel=1e-5)
        assert told[1][f"final_validation_{name}"] == pytest.approx(value, rel=1e-5)


def test_the_loss_of_float32_predictions_is_that_of_the_targets_as_they_are(tmp_path):
    targets = 1e7 + np.arange(60) / 8
    model = job(
        tmp_path, "train", {"features": X, "targets": targets}, model="linear", loss="huber", optimizer="lbfgs",
        params={"epochs": 60, "dtype": "float32"},
    )  # fmt: skip
    done = predict(tmp_path, model.result, targets=targets)
    far = np.abs(done.open()["predictions"][...][:, 0].astype(float) - targets)
    told = zarr.open_group(done.result, mode="r").attrs["dlscale"]["estimates"]
    assert told["loss"] == pytest.approx(np.where(far <= 1, far**2 / 2, far - 0.5).mean(), rel=1e-12)


def test_constant_targets_have_no_r2(tmp_path):
    targets = np.full(60, 100.1)
    model = job(tmp_path, "train", {"features": X, "targets": targets}, model="linear")
    done = predict(tmp_path, model.result, targets=targets)
    assert zarr.open_group(done.result, mode="r").attrs["dlscale"]["estimates"]["r2"] is None


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("cap", [1e-200, 1e-3, 1.0, 7.3, 20.0, 1e300])
@pytest.mark.parametrize("shift", [0.0, 1.0, 40.0])
def test_weights_keep_to_their_cap_and_their_counts_are_those_of_the_weights(tmp_path, dtype, cap, shift):
    inputs = {"features": X.astype(dtype), "target_features": (X + shift * (X[:, :1] > 0)).astype(dtype)}
    done = job(tmp_path, "covariate_weights", inputs, params={"cap": cap, "iterations": 20})
    weights = done.open()["weights"][...]
    told = zarr.open_group(done.result, mode="r").attrs["dlscale"]["estimates"]
    assert weights.max() <= cap
    assert told["capped_rows"] == np.count_nonzero(weights == cap)
    assert told["mean_weight"] == pytest.approx(weights.mean(), rel=1e-12)
    near = weights / weights.max()
    assert told["effective_rows"] == pytest.approx(near.sum() ** 2 / (near**2).sum(), rel=1e-12)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)], ids=["falling", "rising"])
def test_effective_rows_do_not_depend_on_the_scale_of_the_weights(order):
    """Weights of 1e-200, 1 and 1e200 times the same, in blocks of which each has its own size, and one vanishes."""
    model, scores = Recipe.of(TrainOptions(model={"type": "logistic"}, epochs=1)).model, np.sort(RNG.standard_normal((40, 1)) * 3)
    blocks = [*np.split(scores, 4), np.full((5, 1), -1e4)][order]
    rows = np.exp(np.concatenate(blocks))
    for power in (-200, -100, 0, 100, 200):
        fold = ScoreFold(model, {"layer-0/weight": np.ones((1, 1)), "layer-0/bias": np.array([power * np.log(10)])}, 1e300)
        total, other = fold.start(), fold.start()
        for state, mine in ((total, blocks[:2]), (other, blocks[2:])):
            for block in mine:
                fold.update(state, block, 0)
        total = fold.merge(total, other)
        (sums, squares), exponent = total["sums"], int(total["exponent"][0])
        assert sums**2 / squares == pytest.approx(rows.sum() ** 2 / (rows**2).sum(), rel=1e-9)
        assert np.ldexp(sums, exponent - 100) == pytest.approx(rows.sum() * 10.0**power * 2.0**-100, rel=1e-9)
