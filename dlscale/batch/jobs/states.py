"""How a job stands: what state.json and handed-over.json hold."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from pydantic import Field

from dlscale.batch.jobs.progress import Progress
from dlscale.batch.jobs.records import Seconds, State, Summary
from dlscale.engine.events import UnixTime
from dlscale.errors import Interrupted
from dlscale.storage.files.processes import Owner

#: A running job writes its state again so often; on another machine it counts as lost after `LOST_SECONDS` without. On the
#: same machine its process is looked up.
HEARTBEAT_SECONDS = 5.0
LOST_SECONDS = 15.0
#: A client on another machine has so long to hand a job over; one of this machine is looked up.
HAND_OVER_SECONDS = 600.0

#: Some process works on the job, or waits for its turn to.
RUNNING = ("planned", "queued", "running", "checkpointed", "certifying")
#: Somebody works on it, or is about to.
MOVING = (*RUNNING, "submitted")
ENDED = ("succeeded", "failed", "interrupted", "cancelled")
RESUMABLE = ("submitted", "interrupted", "cancelled", "lost", "failed")


class Heartbeat(NamedTuple):
    """Who works on a job, and when it last said so.

    Parameters
    ----------
    host, pid, started, machine
        See `Owner`.
    time : float
        Unix time.
    """

    host: str
    pid: Annotated[int, Field(ge=0)]
    started: float
    time: UnixTime
    machine: str = ""

    @classmethod
    def now(cls) -> Heartbeat:
        owner = Owner.here()
        return cls(owner.host, owner.pid, owner.started, time.time(), owner.machine)

    @property
    def owner(self) -> Owner:
        return Owner(self.host, self.pid, self.started, self.machine)

    @property
    def alive(self) -> bool:
        """Whether its process is there, or on another machine said so lately by the clocks of both."""
        return self.owner.is_alive if self.owner.is_near else abs(time.time() - self.time) < LOST_SECONDS


@dataclass(frozen=True)
class JobState:
    """What state.json holds.

    Parameters
    ----------
    job, name, kind : str
    state : str
        submitted (handed to a cluster or a batch system, taken by no process yet), queued (a process waits for its turn),
        planned, running, checkpointed, certifying, succeeded, failed, interrupted, cancelled, or lost: its process or its
        cluster vanished.
    created : float
        Unix time.
    seconds : float
        Wall time over all runs of the job.
    message : str
        Why it failed or was interrupted.
    result : str or None
        Where the result was published.
    summary : dict
        Of the outcome: certificate, estimates, notes, image_shape, machine.
    final : bool
        The job failed in a way that another run would only repeat.
    failure_code : int
        Exit code of a job that failed.
    checksums : dict
        File of the folder to its crc32c, of those that are written once.
    progress : Progress or None
        How far it was at the last heartbeat; None before it ran.
    sweep : str
        The sweep that it is a job of; empty where it is none.
    slurm : str
        Its number in Slurm, where it was queued there; empty elsewhere.
    """

    job: str
    name: str
    kind: str
    state: State
    created: UnixTime
    heartbeat: Heartbeat
    seconds: Seconds = 0.0
    message: str = ""
    result: str | None = None
    summary: Summary = field(default_factory=dict)
    final: bool = False
    failure_code: int = 1
    checksums: dict[str, int] = field(default_factory=dict)
    progress: Progress | None = None
    sweep: str = ""
    slurm: str = ""

    @property
    def exit_code(self) -> int:
        """What a command that waits for the job ends with."""
        codes = {"succeeded": 0, "interrupted": Interrupted.exit_code, "cancelled": Interrupted.exit_code}
        return codes.get(self.state, self.failure_code)

    @property
    def moves(self) -> bool:
        """Whether somebody works on it, or is about to."""
        return self.state in MOVING

    @property
    def resumable(self) -> bool:
        return self.state in RESUMABLE and not self.final

    @property
    def certificate(self) -> dict[str, Any] | None:
        return self.summary.get("certificate")


@dataclass(frozen=True)
class ListedJob:
    """What a list of jobs shows of each; see `JobState`. Of thousands, the rest is not even made into objects."""

    job: str
    kind: str
    state: State
    created: UnixTime
    seconds: Seconds = 0.0
    message: str = ""
    progress: Progress | None = None


@dataclass(frozen=True)
class HandOver:
    """Who a submitted job was given to.

    Parameters
    ----------
    scheduler : str
        Address of the cluster whose workers will take it, when one is free.
    driver : Heartbeat or None
        A process of this machine that was started for it.
    """

    scheduler: str = ""
    driver: Heartbeat | None = None
