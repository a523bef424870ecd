"""Training: the same curve on any number of ranks, faults and resumption, the answers of scikit-learn."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn import datasets
from sklearn.linear_model import Lasso, LogisticRegression, Ridge

import dlscale
from dlscale.engine.clusters import describe_cluster, open_cluster
from dlscale.engine.programs import run_here
from dlscale.engine.run import Run
from dlscale.learn.models.model import model
from dlscale.learn.train import plan_train
from dlscale.learn.training.data import Order, plan_order
from dlscale.learn.training.loop import train
from dlscale.learn.training.on_passes import train_on_passes
from dlscale.learn.training.task import TrainOptions
from dlscale.storage.importers import import_matrix
from dlscale.storage.inputs import Inputs
from dlscale.storage.matrix import ArrayMatrix
from tests.learn import training_programs as programs

PROGRAM = Path(programs.__file__)


def mpirun(n_ranks, *arguments):
    pytest.importorskip("mpi4py", reason="mpi4py is not installed")
    command = [str(Path(sys.executable).with_name("mpirun")), "--oversubscribe", "-n", str(n_ranks), sys.executable, str(PROGRAM)]
    environment = os.environ | {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    return subprocess.run(
        [*command, *map(str, arguments)], env=environment, capture_output=True, text=True, timeout=550, check=False
    )


@pytest.fixture(scope="module")
def on_ranks(tmp_path_factory):
    """Trainings on 1, 2, 3 and 4 ranks, and in ``r`` one that was stopped on 4, then on 2, and ended on 3."""
    folder = tmp_path_factory.mktemp("ranks")
    done = mpirun(4, "curves", folder)
    assert (done.returncode, done.stderr) == (0, "")
    return folder


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The training in this process, without MPI."""
    folder = tmp_path_factory.mktemp("alone")
    run_here(train, (programs.task(folder),), token="t")
    return programs.learned(folder)


def plain_numpy():
    """Losses of the same training, written down as in a textbook."""
    X, y = programs.rows()
    first = model("mlp", hidden=[16, 8], activation="tanh").initialize(
        20, 3, rng=np.random.default_rng([0, 2**32 - 1]), dtype=np.dtype(np.float64)
    )
    W = [first[f"layer-{i}/weight"].copy() for i in range(3)]
    b = [first[f"layer-{i}/bias"].copy() for i in range(3)]
    velocity = [np.zeros_like(p) for p in (*W, *b)]
    order, losses = Order(programs.N_ROWS, 37, 12, programs.BATCH, 0, True), []
    for epoch in range(programs.EPOCHS):
        for batch in order.batches(epoch):
            rows = np.concatenate([order.row_ids(piece) for piece in batch])
            H = [X[rows]]
            for i in range(2):
                H.append(np.tanh(H[i] @ W[i] + b[i]))
            S = H[2] @ W[2] + b[2]
            P = np.exp(S - S.max(axis=1, keepdims=True))
            P /= P.sum(axis=1, keepdims=True)
            truth = np.eye(3)[y[rows].astype(int)]
            losses.append(-np.log(P[truth == 1]).mean() + 5e-4 * sum((w**2).sum() for w in W))
            D = (P - truth) / len(rows)
            dW, db = [None] * 3, [None] * 3
            for i in (2, 1, 0):
                dW[i], db[i] = H[i].T @ D + 1e-3 * W[i], D.sum(axis=0)
                if i:
                    D = (D @ W[i].T) * (1 - H[i] ** 2)
            for v, p, g in zip(velocity, (*W, *b), (*dW, *db), strict=True):
                v *= 0.9
                v += g
                p -= 0.1 * v
    return np.array(losses)


def test_the_curve_is_that_of_plain_numpy(alone):
    assert len(alone["history/loss"]) >= 200
    np.testing.assert_allclose(alone["history/loss"], plain_numpy(), rtol=1e-10)


@pytest.mark.parametrize("n_ranks", [1, 2, 3, 4])
def test_the_curve_is_the_same_on_any_number_of_ranks(on_ranks, alone, n_ranks):
    np.testing.assert_allclose(programs.learned(on_ranks / str(n_ranks))["history/loss"], alone["history/loss"], rtol=1e-10)


def test_weighted_objectives_are_the_same_on_any_number_of_ranks_and_from_passes(tmp_path):
    done = mpirun(3, "objectives", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    for name in programs.OBJECTIVES:
        one = programs.learned(tmp_path / f"{name}-1")
        assert one["measured"][1, 0] < one["measured"][0, 0]
        others = [programs.learned(tmp_path / f"{name}-{size}") for size in (2, 3)]
        if name in ("momentum", "proximal", "sparse"):
            with open_cluster("threads") as cluster:
                train_on_passes(Run(cluster), programs.weighted_task(tmp_path / f"{name}-p", name))
            others.append(programs.learned(tmp_path / f"{name}-p"))
        for other in others:
            for key in ("parameters/layer-0/weight", "parameters/layer-0/bias", "measured"):
                np.testing.assert_allclose(other[key], one[key], rtol=1e-8, atol=1e-10, err_msg=f"{name} {key}")


def test_the_curve_is_the_same_from_passes(tmp_path, alone):
    with open_cluster("threads") as cluster:
        train_on_passes(Run(cluster), programs.task(tmp_path, epochs=2))
    found = programs.learned(tmp_path)["history/loss"]
    np.testing.assert_allclose(found, alone["history/loss"][: len(found)], rtol=1e-10)


def test_stopped_on_four_ranks_and_resumed_on_two_and_three(on_ranks, alone):
    found = programs.learned(on_ranks / "r")
    for name in found:
        if name.startswith("parameters/"):
            np.testing.assert_allclose(found[name], alone[name], rtol=0, atol=1e-10)
    used = [np.load(path) for path in (on_ranks / "r" / "rows").glob("*.npz")]
    assert len(used) == 9
    steps, rows = (np.concatenate([log[key] for log in used]) for key in ("step", "row"))
    per_epoch = -(-programs.N_ROWS // programs.BATCH)
    for epoch in range(programs.EPOCHS):
        assert sorted(rows[steps // per_epoch == epoch]) == list(range(programs.N_ROWS))


@pytest.mark.parametrize(
    ("fault", "moment", "victim"), [("raise", "first", 2), ("kill", "middle", 2), ("exit", "saving", 0), ("kill", "saving", 1)]
)
def test_a_fault_ends_all_ranks_and_resuming_completes(tmp_path, alone, fault, moment, victim):
    done = mpirun(3, "fault", tmp_path, fault, moment, victim)
    assert (tmp_path / "struck").exists()
    assert done.returncode != 0
    run_here(train, (programs.task(tmp_path),), token="t")
    np.testing.assert_allclose(programs.learned(tmp_path)["history/loss"], alone["history/loss"], rtol=1e-10)


@pytest.mark.parametrize(
    ("n_rows", "unit", "lanes", "batch"), [(1013, 37, 12, 50), (7, 3, 2, 100), (500, 500, 1, 64), (96, 8, 4, 5)]
)
def test_every_row_once_an_epoch_for_any_number_of_ranks(n_rows, unit, lanes, batch):
    order = Order(n_rows, unit, lanes, batch, seed=3)
    for epoch in range(2):
        whole = [np.sort(np.concatenate([order.row_ids(piece) for piece in pieces])) for pieces in order.batches(epoch)]
        assert sorted(np.concatenate(whole)) == list(range(n_rows))
        assert [len(rows) for rows in whole[:-1]] == [batch] * (len(whole) - 1)
        for size in (2, 3, 5, 16):
            for rows, pieces in zip(whole, order.batches(epoch), strict=True):
                shares = [order.row_ids(piece.share(rank, size)) for rank in range(size) for piece in pieces]
                assert np.array_equal(np.sort(np.concatenate(shares)), rows)
    later = list(order.batches(1, first_step=1))
    assert len(later) == order.steps_per_epoch - 1
    assert not np.array_equal(*[np.concatenate([order.row_ids(p) for p in next(order.batches(e))]) for e in (0, 1)])


@pytest.mark.parametrize(
    ("chunk_rows", "unit_rows"),
    [(4096, 4096), (100, 2000), (32768, 2048), (20_000, 2000), (30_011, 2048)],
    ids=["a chunk", "several small ones", "whole pages of a large one", "equal parts", "a prime number of rows"],
)
def test_units_follow_the_chunks(chunk_rows, unit_rows):
    class Stored(ArrayMatrix):
        in_memory, row_unit = False, chunk_rows

    features = Stored(np.broadcast_to(np.float32(0), (60_000, 1024)))
    assert plan_order(features, batch_size=64, seed=0, memory_bytes=10**9).unit_rows == unit_rows


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_rows_in_flight_do_not_grow_with_the_matrix(optimizer):
    """40 GB of features, planned for 2 GB."""

    class Stored(ArrayMatrix):
        in_memory = False

    features, targets = Stored(np.broadcast_to(np.float32(0), (1_000_000, 10_000))), ArrayMatrix(np.zeros((1_000_000, 1)))
    facts = describe_cluster({"type": "local", "workers": 1, "threads": 1, "memory": "2GB"})
    options = TrainOptions(model={"type": "linear"}, optimizer={"type": optimizer})
    plan = plan_train(Inputs({"features": features, "targets": targets}), options, facts)
    assert sum(need.n_bytes for need in plan.memory) < 2e9


# Beside scikit-learn.


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """Standardized data sets as Zarr arrays."""
    folder = tmp_path_factory.mktemp("data")
    loaders = {"cancer": datasets.load_breast_cancer, "digits": datasets.load_digits, "diabetes": datasets.load_diabetes}
    found = {}
    for name, load in loaders.items():
        X, y = load(return_X_y=True)
        X = (X - X.mean(axis=0)) / np.where(X.std(axis=0) > 0, X.std(axis=0), 1)
        for part, array in (("X", X), ("y", y.astype(float)[:, None])):
            np.save(folder / f"{name}-{part}.npy", array)
            import_matrix(folder / f"{name}-{part}.npy", folder / f"{name}-{part}.zarr")
        found[name] = X, y
    return folder, found


def fit(stored, tmp_path, name, **sections):
    folder, _ = stored
    spec = {
        "kind": "train",
        "cluster": "threads",
        "input": {"features": str(folder / f"{name}-X.zarr"), "targets": str(folder / f"{name}-y.zarr")},
        "params": {"epochs": 2000},
        **sections,
    }
    result = dlscale.run(spec, workspace=tmp_path)
    assert json.loads((result.folder / "state.json").read_text())["state"] == "succeeded"
    return {key: np.asarray(array) for key, array in result.open().items()}


def test_logistic_regression_on_breast_cancer(stored, tmp_path):
    X, y = stored[1]["cancer"]
    found = fit(
        stored, tmp_path, "cancer", model={"type": "logistic"}, optimizer={"type": "lbfgs", "tolerance": 1e-10},
        regularization={"l2": 1 / len(X)},
    )  # fmt: skip
    theirs = LogisticRegression(C=1.0, solver="newton-cholesky", tol=1e-12, max_iter=1000).fit(X, y)
    np.testing.assert_allclose(found["parameters/layer-0/weight"][:, 0], theirs.coef_[0], atol=1e-6)
    np.testing.assert_allclose(found["parameters/layer-0/bias"], theirs.intercept_, atol=1e-6)


def test_softmax_on_digits_is_as_accurate(stored, tmp_path):
    X, y = stored[1]["digits"]
    found = fit(
        stored, tmp_path, "digits", model={"type": "softmax"}, optimizer={"type": "lbfgs", "tolerance": 1e-6},
        regularization={"l2": 1 / len(X)},
    )  # fmt: skip
    scores = X @ found["parameters/layer-0/weight"] + found["parameters/layer-0/bias"]
    theirs = LogisticRegression(tol=1e-8, max_iter=10000).fit(X, y)
    assert (scores.argmax(axis=1) == y).mean() >= theirs.score(X, y)


def test_ridge_and_lasso_on_diabetes(stored, tmp_path):
    X, y = stored[1]["diabetes"]
    ridge = fit(
        stored, tmp_path / "ridge", "diabetes", model={"type": "linear"}, optimizer={"type": "lbfgs", "tolerance": 1e-10},
        regularization={"l2": 1 / len(X)},
    )  # fmt: skip
    np.testing.assert_allclose(ridge["parameters/layer-0/weight"][:, 0], Ridge(alpha=1.0).fit(X, y).coef_, atol=1e-6)
    lasso = fit(
        stored, tmp_path / "lasso", "diabetes", model={"type": "linear"}, optimizer={"type": "proximal", "tolerance": 1e-8},
        regularization={"l1": 1.0},
    )  # fmt: skip
    theirs = Lasso(alpha=1.0, tol=1e-12, max_iter=100000).fit(X, y).coef_
    np.testing.assert_allclose(lasso["parameters/layer-0/weight"][:, 0], theirs, atol=1e-6)
    assert ((lasso["parameters/layer-0/weight"][:, 0] == 0) == (theirs == 0)).all()
