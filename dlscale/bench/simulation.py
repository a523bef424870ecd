"""A job on a cluster that is not there: list scheduling of its task graphs on modelled workers.

The model is a central scheduler that handles one task after the other, workers that compute one task a thread, and a network
in which each worker sends and receives one message at a time: latency + bytes / bandwidth. Placement follows Dask: a task
without inputs waits in a queue for the next free worker; a task with a preferred worker goes there; any other goes to the
worker that holds an input and could start it first. Among what is ready, the smallest priority starts first.

References
----------
Graham (1969), Bounds on multiprocessing timing anomalies: list scheduling. Hockney (1994): latency and bandwidth.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import asdict, dataclass
from typing import Any

from dlscale.engine.clusters.started import WORKER_SATURATION


@dataclass(frozen=True)
class SimulatedTask:
    """A task as the simulation sees it.

    Parameters
    ----------
    kind : str
        Tasks of a kind cost alike.
    inputs : sequence of int
        Positions, in the job, of the tasks whose results it takes.
    seconds : float
        On one thread.
    result_bytes : int
    priority : float
        Smaller is sooner.
    worker : int, optional
        The worker that it prefers, modulo how many there are.
    is_data : bool
        A value in the graph: costs nothing, and is nowhere until it is needed.
    """

    kind: str
    inputs: tuple[int, ...]
    seconds: float
    result_bytes: int
    priority: float = 0.0
    worker: int | None = None
    is_data: bool = False


@dataclass(frozen=True)
class Stage:
    """One graph that the driver waits for.

    Parameters
    ----------
    name : str
    tasks : range
        Its positions in the job's tasks.
    driver_seconds : float
        What the driver alone does before it.
    result_bytes : int
        What comes to the driver at its end.
    """

    name: str
    tasks: range
    driver_seconds: float
    result_bytes: int = 0


@dataclass(frozen=True)
class SimulatedJob:
    """Stages one after the other; results stay where they are between them.

    Parameters
    ----------
    tasks : list of SimulatedTask
    stages : list of Stage
    last_seconds : float
        What the driver does after the last stage.
    flops : float
    """

    tasks: list[SimulatedTask]
    stages: list[Stage]
    last_seconds: float = 0.0
    flops: float = 0.0

    @property
    def work_seconds(self) -> float:
        """Of all tasks, on one thread."""
        return sum(task.seconds for task in self.tasks)


@dataclass(frozen=True)
class ModelCluster:
    """The cluster of a simulation.

    Parameters
    ----------
    n_workers : int
    threads_per_worker : int
    bandwidth_bytes_per_second, latency_seconds : float
        Of a message from one worker to another.
    scheduler_seconds : float
        What the scheduler takes for a task.
    between_seconds : float
        What a worker takes from the end of a task to the start of the next.
    slowdown : float
        How many times longer tasks take because workers share a machine's memory.
    """

    n_workers: int
    threads_per_worker: int = 1
    bandwidth_bytes_per_second: float = 1.25e9
    latency_seconds: float = 50e-6
    scheduler_seconds: float = 500e-6
    between_seconds: float = 0.0
    slowdown: float = 1.0


@dataclass(frozen=True)
class Prediction:
    """What a simulation found.

    Parameters
    ----------
    n_workers, n_tasks : int
    seconds : float
        From the start of the first stage to the end of the job.
    idle_share : float
        Part of the threads' time without a task.
    moved_bytes : int
        Between workers.
    critical_seconds : float
        The longest chain of tasks and driver work: no number of workers is faster.
    """

    n_workers: int
    n_tasks: int
    seconds: float
    idle_share: float
    moved_bytes: int
    critical_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def simulate(job: SimulatedJob, cluster: ModelCluster) -> Prediction:
    """Predict how long a job takes on a cluster.

    Parameters
    ----------
    job : SimulatedJob
    cluster : ModelCluster
    """
    state = _State(job, cluster)
    now = 0.0
    for stage in job.stages:
        now = state.run(stage, now + stage.driver_seconds)
    now += job.last_seconds
    n_tasks = sum(not task.is_data for task in job.tasks)
    idle = 1 - state.busy / (now * cluster.n_workers * cluster.threads_per_worker) if now else 0.0
    return Prediction(cluster.n_workers, n_tasks, now, max(0.0, idle), state.moved_bytes, _critical_seconds(job, cluster.slowdown))


def _critical_seconds(job: SimulatedJob, slowdown: float) -> float:
    ends = [0.0] * len(job.tasks)
    now = 0.0
    for stage in job.stages:
        now += stage.driver_seconds
        for i in stage.tasks:
            task = job.tasks[i]
            ends[i] = max((ends[j] for j in task.inputs), default=0.0)
            ends[i] = max(ends[i], now) + task.seconds * slowdown
        now = max((ends[i] for i in stage.tasks), default=now)
    return now + job.last_seconds


_ASSIGNED, _ARRIVED, _ENDED = range(3)


class _State:
    """Workers, network and scheduler while a job runs."""

    def __init__(self, job: SimulatedJob, cluster: ModelCluster) -> None:
        self.job, self.cluster = job, cluster
        n = cluster.n_workers
        self.free = [cluster.threads_per_worker] * n
        self.assigned = [0] * n
        self.occupied_seconds = [0.0] * n
        self.ready: list[list[tuple[float, int]]] = [[] for _ in range(n)]
        self.sending, self.receiving = [0.0] * n, [0.0] * n
        #: For each task, when its result is on a worker.
        self.places: list[dict[int, float]] = [{} for _ in job.tasks]
        self.queue: list[tuple[float, int]] = []
        self.events: list[tuple[float, int, int, int, int]] = []
        self.n_events = 0
        self.scheduler_free = 0.0
        self.busy = 0.0
        self.moved_bytes = 0
        self.room = math.ceil(WORKER_SATURATION * cluster.threads_per_worker)

    def run(self, stage: Stage, now: float) -> float:
        """When the stage that begins now ends."""
        tasks = self.job.tasks
        self.waits_for = {}
        self.feeds: dict[int, list[int]] = {}
        computed = [i for i in stage.tasks if not tasks[i].is_data]
        for i in computed:
            inputs = [j for j in tasks[i].inputs if j in stage.tasks and not tasks[j].is_data]
            self.waits_for[i] = len(inputs)
            for j in inputs:
                self.feeds.setdefault(j, []).append(i)
        self.scheduler_free = max(self.scheduler_free, now)
        for i in computed:
            if not self.waits_for[i]:
                self._is_ready(i, now)
        self._hand_out(now)
        n_left = len(computed)
        while n_left:
            now, _, what, i, worker = heapq.heappop(self.events)
            if what == _ASSIGNED:
                self._fetch(i, worker, now)
            elif what == _ARRIVED:
                heapq.heappush(self.ready[worker], (tasks[i].priority, i))
                self._start(worker, now)
            else:
                n_left -= 1
                self._end(i, worker, now)
        return now + 2 * self.cluster.latency_seconds + stage.result_bytes / self.cluster.bandwidth_bytes_per_second

    def _later(self, time: float, what: int, i: int, worker: int) -> None:
        self.n_events += 1
        heapq.heappush(self.events, (time, self.n_events, what, i, worker))

    def _is_ready(self, i: int, now: float) -> None:
        """All that a task needs was computed: place it."""
        task = self.job.tasks[i]
        if task.worker is not None:
            self._assign(i, task.worker % self.cluster.n_workers, now)
            return
        holders = {w for j in task.inputs if not self.job.tasks[j].is_data for w in self.places[j]}
        if not holders:
            heapq.heappush(self.queue, (task.priority, i))
            return
        self._assign(i, min(holders, key=lambda w: (self._start_after(i, w), w)), now)

    def _start_after(self, i: int, worker: int) -> float:
        """Seconds after which a worker could start a task, as the scheduler estimates it."""
        missing = sum(self.job.tasks[j].result_bytes for j in self.job.tasks[i].inputs if worker not in self.places[j])
        return self.occupied_seconds[worker] / self.cluster.threads_per_worker + missing / self.cluster.bandwidth_bytes_per_second

    def _assign(self, i: int, worker: int, now: float) -> None:
        self.scheduler_free = max(self.scheduler_free, now) + self.cluster.scheduler_seconds
        self.assigned[worker] += 1
        self.occupied_seconds[worker] += self.job.tasks[i].seconds
        self._later(self.scheduler_free + self.cluster.latency_seconds, _ASSIGNED, i, worker)

    def _hand_out(self, now: float) -> None:
        """Give queued tasks to workers with room, the least loaded first."""
        if not self.queue:
            return
        roomy = [(load, worker) for worker, load in enumerate(self.assigned) if load < self.room]
        heapq.heapify(roomy)
        while self.queue and roomy:
            load, worker = heapq.heappop(roomy)
            self._assign(heapq.heappop(self.queue)[1], worker, now)
            if load + 1 < self.room:
                heapq.heappush(roomy, (load + 1, worker))

    def _fetch(self, i: int, worker: int, now: float) -> None:
        """Bring a task's inputs to its worker."""
        ready = now
        for j in self.job.tasks[i].inputs:
            places = self.places[j]
            if worker not in places:
                places[worker] = self._send(j, worker, now) if places else now
            ready = max(ready, places[worker])
        self._later(ready, _ARRIVED, i, worker)

    def _send(self, j: int, worker: int, now: float) -> float:
        """Send a result to a worker from whoever has it and can send first; when it is there."""
        places, n_bytes = self.places[j], self.job.tasks[j].result_bytes
        source = min(places, key=lambda w: (max(places[w], self.sending[w]), w))
        start = max(now, places[source], self.sending[source], self.receiving[worker])
        end = start + n_bytes / self.cluster.bandwidth_bytes_per_second
        self.sending[source] = self.receiving[worker] = end
        self.moved_bytes += n_bytes
        return end + self.cluster.latency_seconds

    def _start(self, worker: int, now: float) -> None:
        while self.free[worker] and self.ready[worker]:
            i = heapq.heappop(self.ready[worker])[1]
            seconds = self.job.tasks[i].seconds * self.cluster.slowdown
            self.free[worker] -= 1
            self.busy += seconds
            self._later(now + seconds + self.cluster.between_seconds, _ENDED, i, worker)

    def _end(self, i: int, worker: int, now: float) -> None:
        self.free[worker] += 1
        self.assigned[worker] -= 1
        self.occupied_seconds[worker] -= self.job.tasks[i].seconds
        self.places[i][worker] = now
        self._start(worker, now)
        heard = now + self.cluster.latency_seconds
        for j in self.feeds.get(i, ()):
            self.waits_for[j] -= 1
            if not self.waits_for[j]:
                self._is_ready(j, heard)
        self._hand_out(heard)
