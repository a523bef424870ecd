"""What the tests run under mpirun: programs for every rank, and a command that starts one of them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlscale.arrays import Array
from dlscale.engine.clusters import open_cluster
from dlscale.engine.clusters.launchers import across_ranks
from dlscale.engine.events import Event, Warned
from dlscale.engine.grids import RowGrid
from dlscale.engine.passes import Fold, Passes, State
from dlscale.engine.progress import send
from dlscale.engine.ranks import Communicator
from dlscale.engine.run import Run
from dlscale.errors import DlscaleError
from dlscale.storage.matrices import open_matrix


def total(communicator: Communicator, start: float) -> tuple[int, int, float]:
    """Rank, size, and the sum over ranks of (start + rank)."""
    send("events", Warned(f"from rank {communicator.rank}"))
    value = communicator.allreduce(np.array([start + communicator.rank]), name="total")
    return communicator.rank, communicator.size, float(value[0])


def misbehave(communicator: Communicator, how: str, rank: int) -> None:
    """Meet the others a few times; then one rank does what it should not."""
    for step in range(1000):
        communicator.allreduce(np.ones(10), name=f"step {step}")
        if step == 5 and communicator.rank == rank:
            if how in ("exit", "kill"):
                os.kill(os.getppid(), signal.SIGSTOP)
            match how:
                case "raise":
                    raise ZeroDivisionError("of all things")
                case "exit":
                    os._exit(7)
                case "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.01)


def until_stopped(communicator: Communicator, folder: str) -> int:
    """Meet the others until a signal asks to stop; the number of the step is in a file of each rank."""
    step = 0
    while not communicator.stopping:
        communicator.allreduce(np.ones(1), name=f"step {step}")
        step += 1
        time.sleep(0.01)
        if step == 3:
            Path(folder, f"running-{communicator.rank}").touch()
    Path(folder, f"stopped-{communicator.rank}").write_text(str(step))
    return step


@dataclass(frozen=True)
class Who(Fold):
    """Which ranks saw a block."""

    n_ranks: int

    def start(self) -> State:
        return {"ranks": np.zeros(self.n_ranks)}

    def update(self, state: State, A: Array, first_row: int) -> Sequence[Array]:
        state["ranks"][int(os.environ["OMPI_COMM_WORLD_RANK"])] += 1
        time.sleep(0.02)
        return ()


def sweep(path: str) -> int:
    """A program on every rank, then a pass over a matrix; says what came out, and which ranks took part."""
    A = open_matrix(path)
    n_ranks = int(os.environ["OMPI_COMM_WORLD_SIZE"])
    events: list[Event] = []
    with open_cluster("mpi") as cluster:
        print(cluster.on_every_rank(total, 1, token="events", listener=events.append), events)
        state = Passes(Run(cluster)).sweep("who", A, Who(n_ranks), RowGrid(A.shape[0], 500, 500))
    print([f"rank {rank}" for rank in np.flatnonzero(state["ranks"])])
    return 0


def command(name: str, *arguments: Any) -> int:
    """Run a program on all ranks and say what came out."""
    if name == "sweep":
        return sweep(*arguments)
    try:
        with open_cluster("mpi") as cluster:
            cluster.on_every_rank(globals()[name], *arguments)
    except DlscaleError as error:
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        print(said, flush=True)
        # Launchers may drop what is written in the moment in which a rank dies.
        if place := os.environ.get("SAID"):
            (begun := Path(f"{place}-begun")).write_text(said)
            begun.rename(place)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        return 75
    return 0


if __name__ == "__main__":
    from rank_programs import command as main

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    words = [int(word) if word.isdigit() else word for word in sys.argv[1:]]
    sys.exit(across_ranks(lambda: main(*words)))
