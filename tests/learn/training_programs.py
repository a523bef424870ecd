"""A small training that tests start with and without mpirun: ``python training_programs.py FOLDER FAULT VICTIM STEP``."""

import os
import signal
import sys
from pathlib import Path

import numpy as np

from dlscale.engine.programs import run_here
from dlscale.engine.ranks import Communicator, MPICommunicator, n_launched_ranks
from dlscale.learn.data import Order
from dlscale.learn.loop import Training
from dlscale.learn.packing import unpack
from dlscale.learn.task import Task, TrainOptions
from dlscale.storage.checkpoints import Checkpoint
from dlscale.storage.matrices import ArrayMatrix

N_ROWS, BATCH, EPOCHS = 1013, 50, 10


def rows() -> tuple[np.ndarray, np.ndarray]:
    """Rows that divide by none of 2, 3, 4, with three classes."""
    generator = np.random.default_rng(0)
    X = generator.standard_normal((N_ROWS, 20))
    return X, (X[:, 0] * X[:, 1] > 0).astype(float) + (X[:, 2] > 1)


def task(folder: Path, **options: object) -> Task:
    X, y = rows()
    given = {
        "batch_size": BATCH,
        "epochs": EPOCHS,
        "model": {"type": "mlp", "hidden": [16, 8], "activation": "tanh"},
        "optimizer": {"type": "momentum", "learning_rate": 0.1},
        "regularization": {"l2": 1e-3},
        "checkpoint_steps": 40,
        "log_rows": True,
    }
    chosen = TrainOptions(**{**given, **options})
    order = Order(N_ROWS, 37, 12, BATCH, 0, True)
    return Task(
        ArrayMatrix(X), ArrayMatrix(y[:, None]), None, None, None, chosen, order, 3, "float64", str(folder / "checkpoint"), 0.0, "t"
    )


def learned(folder: Path) -> dict[str, np.ndarray]:
    packed = Checkpoint(folder / "checkpoint").load("trained")
    assert packed is not None
    return unpack(packed)


def faulty(communicator: Communicator, job: Task, fault: str, victim: int, step: int) -> dict:
    """The training, with a fault on one rank in one step."""

    class Faulty(Training):
        def _take_step(self, share):
            if self.step == step and self.communicator.rank == victim:
                if fault == "raise":
                    raise ValueError("a fault of this rank")
                if fault == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if fault == "stop":
                    os.kill(os.getpid(), signal.SIGTERM)
            super()._take_step(share)

        def _save(self, name):
            if fault == "kill-saving" and self.step >= step and self.communicator.rank == victim:
                if self.communicator.rank == 0:
                    self.checkpoint._write = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
                else:
                    os.kill(os.getpid(), signal.SIGKILL)
            super()._save(name)

    training = Faulty(communicator, job)
    try:
        return training.run()
    finally:
        training.close()


if __name__ == "__main__":
    folder, fault, victim, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    comm = MPICommunicator() if n_launched_ranks() > 1 else Communicator()
    signal.signal(signal.SIGTERM, lambda *_: None)
    found = run_here(faulty, (task(folder), fault, victim, step), communicator=comm, token="t")
    if found["stopped"]:
        os._exit(75)
