"""A small training that tests start under mpirun.

``python training_programs.py curves FOLDER`` trains on 1, 2, 3 and 4 of the ranks, then stops on 4, goes on on 2, and ends on 3.
``python training_programs.py objectives FOLDER`` trains with weights and an L1 penalty on 1, 2 and 3 of the ranks.
``python training_programs.py fault FOLDER FAULT MOMENT VICTIM`` trains on all of them, and one goes wrong.
"""

import os
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.sparse

from dlscale.engine.programs import run_here
from dlscale.engine.ranks import Communicator, MPICommunicator
from dlscale.engine.ranks.communicator import import_mpi
from dlscale.learn.models.packing import unpack
from dlscale.learn.training.data import SMALL_BYTES, Order
from dlscale.learn.training.loop import Training, train
from dlscale.learn.training.task import Task, TrainOptions
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import open_matrix
from dlscale.storage.matrix import ArrayMatrix
from dlscale.storage.sparse.matrix import SparseMatrix

N_ROWS, BATCH, EPOCHS = 1013, 50, 10
SAVE_STEPS = 40
#: Steps of a fault; "saving" is in the second checkpoint.
MOMENTS = {"first": 0, "middle": 100}


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Rows that divide by none of 2, 3, 4, with three classes."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((N_ROWS, 20))
    return X, (X[:, 0] * X[:, 1] > 0).astype(float) + (X[:, 2] > 1)


class Large(SparseMatrix):
    """A sparse matrix that is not kept in memory with its zeros."""

    n_bytes = SMALL_BYTES + 1


def sparse_rows() -> SparseMatrix:
    """Counts, as many rows of them; one column is in all rows."""
    generator = np.random.default_rng(2)
    A = scipy.sparse.random_array((N_ROWS, 60), density=0.07, rng=generator, format="lil")
    A[:, [3]] = 8 + 0.3 * generator.standard_normal((N_ROWS, 1))
    return Large(open_matrix(scipy.sparse.csr_array(A)).parts)


def task(folder: Path, **options: object) -> Task:
    X, y = rows()
    given = {
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "model": {"type": "mlp", "hidden": [16, 8], "activation": "tanh"},
        "optimizer": {"type": "momentum", "learning_rate": 0.1},
        "regularization": {"l2": 1e-3},
        "checkpoint_steps": SAVE_STEPS,
        "log_rows": True,
    }
    chosen = TrainOptions(**{**given, **options})
    order = Order(N_ROWS, 37, 12, BATCH, 0, True)
    return Task(
        ArrayMatrix(X),
        ArrayMatrix(y[:, None]),
        None,
        None,
        None,
        chosen,
        order,
        3,
        "float64",
        str(folder / "checkpoint"),
        0.0,
        "t",
        str(folder / "rows") if chosen.log_rows else None,
    )


#: Optimizers, and their options, of trainings with weights.
OBJECTIVES = {
    "adam": {
        "optimizer": {"type": "adam", "learning_rate": 0.01},
        "regularization": {"l1": 1e-3},
        "batch_size": BATCH,
        "epochs": 3,
    },
    "momentum": {"optimizer": {"type": "momentum"}, "regularization": {"l1": 1e-3}, "batch_size": BATCH, "epochs": 3},
    "lbfgs": {"optimizer": {"type": "lbfgs"}, "regularization": {"l2": 1e-2}, "epochs": 20},
    "proximal": {"optimizer": {"type": "proximal"}, "regularization": {"l1": 1e-2}, "epochs": 20},
    "sparse": {"optimizer": {"type": "nesterov"}, "batch_size": BATCH, "epochs": 3},
}


def weighted_task(folder: Path, name: str) -> Task:
    """A softmax regression on rows with weights; for methods on all rows, far from zero and in different units."""
    X, y = rows()
    weights = np.random.default_rng(1).gamma(0.5, 3.0, (N_ROWS, 1))
    options = {"model": {"type": "softmax"}, "log_rows": False, "checkpoint_steps": None, "batch_size": None, **OBJECTIVES[name]}
    given = task(folder, **options)
    if name == "sparse":
        return replace(given, features=sparse_rows(), weights=ArrayMatrix(weights))
    units, offset = (np.arange(1, 21), 100) if options["batch_size"] is None else (1, 0)
    return replace(given, features=ArrayMatrix(X * units + offset), weights=ArrayMatrix(weights), targets=ArrayMatrix(y[:, None]))


def learned(folder: Path) -> dict[str, np.ndarray]:
    packed = Checkpoint(folder / "checkpoint").load("trained")
    assert packed is not None
    return unpack(packed)


def strike(fault: str, folder: Path) -> None:
    """Go wrong, after a note that it came to this."""
    (folder / "struck").touch()
    match fault:
        case "raise":
            raise ValueError("a fault of this rank")
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGTERM)


class Faulty(Training):
    """A training in which one rank goes wrong: in a step, or in a checkpoint, which rank 0 is writing then."""

    def __init__(self, communicator: Communicator, job: Task, fault: str, moment: str | int, victim: int) -> None:
        super().__init__(communicator, job)
        folder, here = Path(job.directory).parent, communicator.rank == victim
        self.fault_step = MOMENTS.get(str(moment), moment) if here else None
        self.strike = lambda: strike(fault, folder)
        if moment == "saving" and here:
            save, write = self.saver._save, self.saver.checkpoint._write

            def striking(*arguments: object, **named: object) -> object:
                written = write(*arguments) if communicator.rank == 0 else None
                if self.at.step >= 2 * SAVE_STEPS:
                    self.strike()
                return written if communicator.rank == 0 else save(*arguments, **named)

            if communicator.rank == 0:
                self.saver.checkpoint._write = striking
            else:
                self.saver._save = striking

    def _step(self):
        if self.at.step == self.fault_step:
            self.strike()
        return super()._step()


def faulty(communicator: Communicator, job: Task, fault: str, moment: str | int, victim: int) -> dict:
    training = Faulty(communicator, job, fault, moment, victim)
    try:
        return training.run()
    finally:
        training.close()


def meet(world: object) -> None:
    """Wait for all ranks; MPI's own barrier would take the cores from those that compute."""
    everybody = world.Ibarrier()
    while not everybody.Test():
        time.sleep(0.005)


def curves(folder: Path) -> None:
    """Trainings on the first few ranks."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # it comes again when a training has stopped
    world = import_mpi().COMM_WORLD
    whole = [(str(size), size, None) for size in (1, 2, 3, 4)]
    for place, size, stop in [*whole, ("r", 4, (50, 2)), ("r", 2, (110, 1)), ("r", 3, None)]:
        part = world.Split(0 if world.rank < size else 1, world.rank)
        if world.rank < size:
            communicator, job = MPICommunicator(part), task(folder / place)
            program, more = (train, ()) if stop is None else (faulty, ("stop", *stop))
            found = run_here(program, (job, *more), communicator=communicator, token="t")
            assert found["stopped"] == (stop is not None)
            communicator.close()
        meet(world)


def objectives(folder: Path) -> None:
    """Weighted trainings on the first few ranks."""
    world = import_mpi().COMM_WORLD
    for name in OBJECTIVES:
        for size in (1, 2, 3):
            part = world.Split(0 if world.rank < size else 1, world.rank)
            if world.rank < size:
                communicator = MPICommunicator(part)
                run_here(train, (weighted_task(folder / f"{name}-{size}", name),), communicator=communicator, token="t")
                communicator.close()
            meet(world)


if __name__ == "__main__":
    name, place, *rest = sys.argv[1:]
    if name == "curves":
        curves(Path(place))
    elif name == "objectives":
        objectives(Path(place))
    else:
        fault, moment, victim = rest
        run_here(faulty, (task(Path(place)), fault, moment, int(victim)), communicator=MPICommunicator(), token="t")
