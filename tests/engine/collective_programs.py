"""Programs that tests start under mpirun: ``python collective_programs.py NAME FOLDER ARGUMENTS...``."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import numpy as np

from dlscale.engine.guard import Guard
from dlscale.engine.ranks import Communicator, MPICommunicator
from dlscale.engine.ranks import communicator as ranks
from dlscale.engine.ranks.communicator import n_launched_ranks

N_STEPS, FAULT_STEP = 60, 30


def communicator() -> Communicator:
    return MPICommunicator() if n_launched_ranks() > 1 else Communicator()


def collectives(folder: Path) -> None:
    """Every verb, blocking and started, with counts beyond a (small) limit of MPI."""
    ranks.MAX_COUNT = 1000
    comm = communicator()
    with Guard(comm):
        for dtype in (np.float32, np.float64, np.int64):
            mine = (np.arange(2503) % 7 + comm.rank).astype(dtype)
            together = sum((np.arange(2503) % 7 + rank).astype(dtype) for rank in range(comm.size))
            pending = [comm.start_allreduce(mine.copy(), name="a"), comm.start_allreduce(started := mine.copy(), name="b")]
            blocking = comm.allreduce(mine.copy(), name="c")
            for request in pending:
                request.wait()
            assert (blocking == together).all()
            assert (started == together).all()
        high = comm.allreduce(np.array([float(comm.rank)]), name="d", op="max")
        assert high[0] == comm.size - 1
        sent = comm.bcast(np.arange(2503) if comm.rank == 0 else np.zeros(2503, int), name="e")
        assert (sent == np.arange(2503)).all()
        table = comm.allgather(np.array([comm.rank, 1]), name="f")
        assert (table == [[rank, 1] for rank in range(comm.size)]).all()
        comm.barrier("g")
        if comm.rank == 1:
            while len(list(folder.glob("waits-*"))) < comm.size - 1:
                time.sleep(0.01)
        late = comm.start_allreduce(np.ones(10), name="h")
        if comm.rank != 1:
            threading.Timer(0.5, (folder / f"waits-{comm.rank}").touch).start()
        late.wait()
        # The time for a rank that is late, here until the others have waited for half a second, is not that of the reduction.
        assert late.exposed_seconds <= late.waited_seconds
        assert comm.rank == 1 or late.waited_seconds - late.exposed_seconds > 0.05
    comm.close()


def fault(folder: Path, kind: str, victim: str) -> None:
    """Steps with a reduction under way, in one of which a rank goes wrong."""
    comm = communicator()

    def note(failure: dict) -> None:
        # The launcher may kill this rank in the middle of it.
        (begun := folder / f"begun-{comm.rank}").write_text(json.dumps(failure))
        begun.rename(folder / f"failure-{comm.rank}.json")

    class Slow(Guard):
        """Takes its time to tell another rank something."""

        def _say(self, message: dict, rank: int = 0) -> bool:
            time.sleep(0.5)
            return super()._say(message, rank)

    with (Slow if kind == "slow" else Guard)(comm, on_failure=note):
        for step in range(N_STEPS):
            pending = comm.start_allreduce(gradients := np.ones(100_000), name=f"gradients {step}")
            if step == FAULT_STEP and comm.rank == int(victim):
                if kind in ("raise", "slow"):
                    raise ValueError("a fault of this rank")
                if kind in ("exit", "kill"):
                    os.kill(os.getppid(), signal.SIGSTOP)
                if kind == "exit":
                    os._exit(3)
                if kind == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                if kind == "early":
                    break
                if kind == "stop":
                    os.kill(os.getpid(), signal.SIGTERM)
            wrong = kind == "disagree" and step == FAULT_STEP and comm.rank == int(victim)
            comm.allreduce(np.zeros(3 if wrong else 2), name=f"loss {step}")
            pending.wait()
            assert gradients[0] == comm.size
            time.sleep(0.001)
            if comm.stopping:
                (folder / f"stopped-{comm.rank}").write_text(str(step))
                comm.barrier("all have written it")
                # The signal comes again at the end of the guard; without a handler of its own this process ends by it.
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                os._exit(75)


if __name__ == "__main__":
    name, place, *rest = sys.argv[1:]
    globals()[name](Path(place), *rest)
