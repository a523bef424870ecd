"""Rows, targets and weights that a training, a prediction or covariate weights cannot take are refused by role, row and column."""

from __future__ import annotations

import numpy as np
import pytest

from dlscale.errors import DoesNotFitError, InputError, NonFiniteError, SpecError
from tests.learn.learning_jobs import job, parameters, record

RNG = np.random.default_rng(5)
X = RNG.standard_normal((120, 4))
SCORES = X @ [1.0, 2, 0, 0.3] + 0.5 * RNG.standard_normal(120)
TWO, THREE = (SCORES > 0).astype(float), np.digitize(SCORES, [-1, 1]).astype(float)


def with_entry(array, place, value):
    changed = np.array(array)
    changed[place] = value
    return changed


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "lars", "kfac", "lbfgs", "proximal"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_feature_that_is_not_finite_is_named(tmp_path, optimizer, value):
    # relu lets no minus infinity through to the loss.
    for model in ("linear", {"type": "mlp", "hidden": [5]}):
        with pytest.raises(NonFiniteError, match=f"input.features .*: {value} at row 77, column 2"):
            job(
                tmp_path, "train", {"features": with_entry(X, (77, 2), value), "targets": SCORES}, model=model, loss="squared",
                optimizer=optimizer, params={"epochs": 2},
            )  # fmt: skip


@pytest.mark.parametrize("model", ["linear", {"type": "mlp", "hidden": [5]}])
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_a_validation_row_that_is_not_finite_is_named(tmp_path, model, value):
    validation = {"validation_features": with_entry(X, (3, 1), value), "validation_targets": SCORES}
    for more in ({}, {"early_stopping": {"patience": 3}}):
        with pytest.raises(NonFiniteError, match=f"input.validation_features .*: {value} at row 3, column 1"):
            job(tmp_path, "train", {"features": X, "targets": SCORES, **validation}, model=model, loss="squared", **more)


def test_what_single_precision_cannot_hold_is_named(tmp_path):
    for optimizer in ("sgd", "lbfgs"):
        with pytest.raises(InputError, match=r"1e\+300 at row 9, column 1 is larger than float32 holds"):
            job(
                tmp_path, "train", {"features": with_entry(X, (9, 1), 1e300), "targets": SCORES}, model="linear",
                optimizer=optimizer, params={"dtype": "float32"},
            )  # fmt: skip


LABELS = [
    ("logistic", TWO + 1, "labels of a logistic model must be 0 and 1; got 2 labels from 1 to 2"),
    ("logistic", 2 * TWO - 1, r"whole numbers .*; got -1.0 in row"),
    ("logistic", THREE, "tells 2 classes apart; the targets have 3"),
    ("softmax", np.where(TWO > 0, 3_000_000_017, 12), r"whole numbers .*; got 3000000017.0 in row"),
    ("softmax", np.where(TWO > 0, 7012, 7005), "class numbers 0, 1, ...; got 2 labels from 7005 to 7012"),
    ("softmax", THREE + 0.5, r"whole numbers .*; got \d.5 in row 0"),
    ("softmax", np.full(120, np.nan), "got nan in row 0"),
    ("softmax", with_entry(THREE, 100, np.inf), "got inf in row 100"),
    ("softmax", np.eye(3)[THREE.astype(int)], "one column; got 3 columns"),
    ("softmax", THREE + 1j, "must be real; got complex"),
    ("linear", SCORES + 1j, "must be real; got complex"),
    ("linear", with_entry(SCORES, 5, np.nan), "got nan in row 5"),
    ("linear", with_entry(np.column_stack([SCORES, SCORES]), (7, 1), np.inf), "got inf in row 7, column 1"),
    ("linear", SCORES[:7], "must have 120 rows like the features; got 7"),
]


@pytest.mark.parametrize(("model", "targets", "message"), LABELS)
def test_targets_that_do_not_fit_are_refused(tmp_path, model, targets, message):
    with pytest.raises((InputError, SpecError), match=f"input.targets: .*{message}|{message}"):
        job(tmp_path, "train", {"features": X, "targets": targets}, model=model)


@pytest.mark.parametrize(
    ("model", "targets", "validation", "message"),
    [
        ("softmax", np.minimum(THREE, 1), THREE, r"from 0 to 1; got 2.0 in row"),
        ("softmax", THREE, THREE - 1, "got -1.0 in row"),
        ("softmax", THREE, np.eye(3)[THREE.astype(int)], r"Labels must be \(n,\)"),
        ("logistic", TWO, THREE, "from 0 to 1; got 2.0"),
        ("linear", SCORES, np.column_stack([SCORES, SCORES]), r"must be \(n, 1\); got \(120, 2\)"),
        ("linear", SCORES, SCORES + 1j, "must be real"),
        ("linear", SCORES, with_entry(SCORES, 8, np.nan), "got nan in row 8"),
        ("linear", SCORES, SCORES[:5], "must have 120 rows like the validation_features; got 5"),
    ],
)
def test_validation_and_known_targets_are_checked_like_those_of_the_training(tmp_path, model, targets, validation, message):
    inputs = {"features": X, "targets": targets, "validation_features": X, "validation_targets": validation}
    with pytest.raises((InputError, SpecError), match=f"input.validation_targets: .*{message}"):
        job(tmp_path, "train", inputs, model=model)
    trained = job(tmp_path, "train", {"features": X, "targets": targets}, model=model, params={"epochs": 1})
    known = message.replace("validation_features", "features")
    with pytest.raises((InputError, SpecError), match=f"input.targets: .*{known}"):
        job(tmp_path / "p", "predict", {"features": X, "model": str(trained.result), "targets": validation})


def test_features_are_real_and_as_wide_as_those_of_the_model(tmp_path):
    trained = job(tmp_path, "train", {"features": X, "targets": TWO}, model="logistic", optimizer="lbfgs", params={"epochs": 9})
    for features, message in ((X + 1j, "must be real"), (X[:, :3], "must have 4 columns")):
        with pytest.raises(SpecError, match=f"input.features: {message}"):
            job(tmp_path / "p", "predict", {"features": features, "model": str(trained.result)})
        validation = {"validation_features": features, "validation_targets": TWO}
        with pytest.raises(SpecError, match=f"input.validation_features: {message}"):
            job(tmp_path, "train", {"features": X, "targets": TWO, **validation}, model="logistic")
    for value in (np.nan, np.inf):
        with pytest.raises(NonFiniteError, match=f"{value} at row 4, column 1"):
            job(tmp_path / "p", "predict", {"features": with_entry(X, (4, 1), value), "model": str(trained.result)})


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (-np.ones(120), "got -1.0 in row 0"),
        (with_entry(np.ones(120), 9, -1e-9), "got -1e-09 in row 9"),
        (with_entry(np.ones(120), 9, np.nan), "got nan in row 9"),
        (with_entry(np.ones(120), 9, np.inf), "got inf in row 9"),
        (np.zeros(120), "every weight is 0"),
        (np.full(120, 1e308), "their sum overflows"),
        (np.ones((120, 2)), "must be one column"),
        (np.ones(120) * 1j, "must be real"),
        (np.ones(119), "must have 120 rows"),
    ],
)
def test_weights_that_weigh_nothing_are_refused(tmp_path, weights, message):
    for optimizer in ("adam", "lbfgs"):
        with pytest.raises((InputError, SpecError), match=f"input.weights: .*{message}"):
            job(tmp_path, "train", {"features": X, "targets": SCORES, "weights": weights}, model="linear", optimizer=optimizer)


@pytest.mark.parametrize(
    "weights", [np.arange(120) % 3 == 0, np.arange(120), np.full(120, 1e-310), np.linspace(0, 1, 120, dtype="f4")]
)
def test_weights_of_any_real_kind_count_by_their_ratios(tmp_path, weights):
    for column in (weights, weights[:, None]):
        done = job(
            tmp_path, "train", {"features": X, "targets": SCORES, "weights": column}, model="linear", optimizer="lbfgs",
            params={"epochs": 100},
        )  # fmt: skip
        root = np.sqrt(np.asarray(weights, float) / np.asarray(weights, float).max())[:, None]
        expected = np.linalg.lstsq(root * np.column_stack([X, np.ones(120)]), root[:, 0] * SCORES, rcond=None)[0]
        np.testing.assert_allclose(np.append(*map(np.ravel, parameters(done))), expected, rtol=1e-6, atol=1e-6)


def test_more_classes_than_memory_are_refused_before_anything_is_drawn(tmp_path):
    with pytest.raises(DoesNotFitError, match="million parameters"):
        job(tmp_path, "train", {"features": X, "targets": TWO}, model={"type": "softmax", "n_classes": 10**12})


# Weights under covariate shift.

HERE = RNG.standard_normal((1500, 2))
THERE = RNG.standard_normal((1200, 2)) + np.array([0.5, 0])


@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_covariate_weights_are_the_ratio_of_the_densities(tmp_path, offset):
    done = job(tmp_path, "covariate_weights", {"features": HERE + offset, "target_features": THERE + offset})
    weights = np.asarray(done.open()["weights"])[:, 0]
    assert np.corrcoef(weights, np.exp(0.5 * HERE[:, 0] - 0.125))[0, 1] > 0.99
    assert "Classifier: converged after" in record(done)["notes"][0]
    assert any("the classifier: no entry of the gradient" in check["meaning"] for check in record(done)["certificate"]["checks"])


def test_covariate_weights_say_when_their_classifier_did_not_converge(tmp_path):
    done = job(tmp_path, "covariate_weights", {"features": HERE, "target_features": THERE}, params={"iterations": 1})
    assert "Classifier: not converged" in record(done)["notes"][0]


@pytest.mark.parametrize("role", ["features", "target_features"])
def test_rows_of_covariate_weights_are_checked_by_role(tmp_path, role):
    rows = {"features": HERE, "target_features": THERE}
    with pytest.raises(NonFiniteError, match=f"input.{role} .*: nan at row 7, column 1"):
        job(tmp_path, "covariate_weights", rows | {role: with_entry(rows[role], (7, 1), np.nan)})
    with pytest.raises(SpecError, match=f"input.{role}: must be real"):
        job(tmp_path, "covariate_weights", rows | {role: rows[role] + 1j})


@pytest.mark.usefixtures("drawn_reports")
@pytest.mark.parametrize(
    ("labels", "note"),
    [
        (np.where(TWO > 0, 2, 0), "Class 1 has no row among the training targets"),
        (np.choose(THREE.astype(int), [1, 3, 4]), "2 classes 0, 2 have no row"),
        (THREE, ""),
        (TWO, ""),
    ],
)
def test_classes_without_rows_are_told(tmp_path, labels, note):
    """They take part with a score of their own, which a gap in the numbers seldom means."""
    done = job(tmp_path, "train", {"features": X, "targets": labels}, model="softmax", params={"epochs": 1})
    found = record(done)
    for notes in (found["notes"], found["plan"]["notes"]):
        said = [one for one in notes if "no row" in one]
        assert len(said) == bool(note)
        assert note in "".join(said)
    assert bool(note) == ("no row among the training" in (done.folder / "report.html").read_text())
    meant = job(
        tmp_path, "train", {"features": X, "targets": labels}, model={"type": "softmax", "n_classes": 5}, params={"epochs": 1}
    )
    assert not any("no row" in said for said in record(meant)["notes"])
