"""A program on Dask workers that are MPI ranks."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Sequence
from typing import Any

from dlscale.engine import progress
from dlscale.engine.clusters.client import list_workers
from dlscale.engine.events import ignore
from dlscale.engine.guard import Guard
from dlscale.engine.programs import Program
from dlscale.engine.ranks import Communicator, MPICommunicator
from dlscale.engine.ranks.communicator import import_mpi
from dlscale.errors import RankError, SpecError

#: Programs that run in this worker, for requests to stop.
_running: dict[str, Communicator] = {}


def run_on_workers(
    client: Any, program: Program, arguments: Sequence[Any], *, token: str, stall_seconds: float | None
) -> list[Any]:
    """Run a program on all workers of a Dask cluster at once; the results by rank.

    Raises
    ------
    SpecError
        If there are several workers, and they are not ranks of one MPI world.
    RankError
        If it failed or was killed on some rank; the others end, and their workers with them.
    """
    from distributed import Semaphore

    addresses = sorted(list_workers(client))
    members = _members(client, addresses)
    # Two such jobs that each had some of the workers would wait for each other; a driver that dies loses its lease.
    lease = Semaphore(1, name="dlscale-ranks", scheduler_rpc=client.scheduler, loop=client.loop)  # type: ignore[no-untyped-call]
    with lease:
        call = uuid.uuid4().hex
        ranks = list(members.values())
        futures = [
            client.submit(_as_rank, program, arguments, ranks, call, token, stall_seconds, workers=[address], pure=False)
            for address in members
        ]
        try:
            return _results(client, futures)
        except KeyboardInterrupt:
            client.run(_request_stop, call)
            _results(client, futures)
            raise


def _members(client: Any, addresses: Sequence[str]) -> dict[str, int]:
    """Workers with their ranks in the MPI world, in its order."""
    if len(addresses) == 1:
        return {addresses[0]: 0}
    worlds = client.run(_world)
    by_rank = sorted((worlds[address] or (0, 1), address) for address in addresses)
    ranks = [rank for (rank, _), _ in by_rank]
    if len(set(ranks)) < len(addresses) or by_rank[0][0][1] < len(addresses):
        raise SpecError(
            f"The {len(addresses)} workers of this cluster are not ranks of one MPI world; start them with "
            "`mpirun -n N dask-mpi --worker-class distributed.Worker`, or run the job under mpirun itself, or set sync: dask."
        )
    return {address: rank for (rank, _), address in by_rank}


def _world() -> tuple[int, int] | None:
    """Rank and size of MPI in a worker that is a rank; to start MPI anywhere else would end the process."""
    if "mpi4py.MPI" not in sys.modules:
        return None
    world = import_mpi().COMM_WORLD
    return world.Get_rank(), world.Get_size()


def _as_rank(
    program: Program, arguments: Sequence[Any], ranks: Sequence[int], call: str, token: str, stall_seconds: float | None
) -> Any:
    """A task that is one of the ranks of a program."""
    communicator = Communicator()
    if len(ranks) > 1:
        world = import_mpi().COMM_WORLD
        communicator = MPICommunicator(world.Create_group(world.Get_group().Incl(ranks)))
    communicator.stall_seconds = stall_seconds
    _running[call] = communicator
    if communicator.rank > 0:
        progress.listen(token, ignore)
    try:
        with Guard(communicator):
            result = program(communicator, *arguments)
    finally:
        progress.unlisten(token)
        del _running[call]
    communicator.close()
    return result


def _request_stop(call: str) -> None:
    if call in _running:
        _running[call].request_stop()


def _results(client: Any, futures: Sequence[Any]) -> list[Any]:
    from distributed import as_completed
    from distributed.scheduler import KilledWorker

    try:
        for future in as_completed(futures, loop=client.loop):  # type: ignore[no-untyped-call]
            future.result()
    except KilledWorker as error:
        raise RankError(f"The worker of a rank is lost: {error}") from error
    return list(client.gather(list(futures)))
