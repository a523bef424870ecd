"""The process that runs a submitted job, and whoever waits for the job's turn and starts that process.

On a Dask cluster a long-running task waits, starts the process on the machine of its worker, and starts it again if it dies;
when the worker dies, the process ends with it and the scheduler starts the task on another worker. On this machine one detached
process waits and runs the job itself. At each start the job goes on from its checkpoint.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

from dlscale.batch.jobs.folder import Claim
from dlscale.batch.queue import Queue, Ticket
from dlscale.batch.remote.opening import job_in, open_workspace
from dlscale.batch.workspace import ENDED, HEARTBEAT_SECONDS, Heartbeat, Job, Workspace
from dlscale.errors import DlscaleError, Interrupted, SpecError
from dlscale.showing import shown, without_secrets
from dlscale.storage.files.atomic import open_at_once
from dlscale.storage.files.processes import Owner, start_of

#: A process that dies so many times on one worker is not started again.
N_STARTS = 3

_POLL_SECONDS = 0.5
_COMMAND = (sys.executable, "-m", "dlscale.batch.driver")


def drive_on_worker(folder: str, ticket: Ticket, secrets: Mapping[str, str]) -> int:
    """Drive a job from a worker of a Dask cluster; the task of `submit`.

    Parameters
    ----------
    folder : str
        Of the job.
    ticket : Ticket
    secrets : mapping
        See `dlscale.batch.spec.secrets.secret_environment`.

    Returns
    -------
    int
        Exit code of the job.
    """
    from distributed import get_worker, secede

    secede()  # type: ignore[no-untyped-call]  # the thread is free for the tasks of jobs
    job, queue = job_in(Path(folder)), _queue_of(Path(folder))
    code = Interrupted.exit_code
    for _ in range(N_STARTS):
        if not wait_for_turn(job, queue, ticket):
            return code
        code = _run_beside(job, get_worker().scheduler.address, secrets)
        if code >= 0:
            break
        _note(job, f"The driver's process was ended by signal {-code}; the job goes on from its checkpoint.")
    queue.leave(job.id)
    return code


def drive_here(folder: str, ticket: Ticket) -> int:
    """Drive a job in this process, which nobody waits for."""
    job, queue = job_in(Path(folder)), _queue_of(Path(folder))
    if not wait_for_turn(job, queue, ticket):
        return Interrupted.exit_code
    try:
        return run_submitted(job)
    finally:
        queue.leave(job.id)


def wait_for_turn(job: Job, queue: Queue, ticket: Ticket) -> bool:
    """Keep a job's state beating until it may run; False if it has ended, or was cancelled meanwhile."""
    try:
        claim = _claim(job)
    except SpecError as error:  # such as a folder in place of its lock
        _note(job, str(error))
        _mark_failed(job, error)
        return False
    if claim is None:
        return False
    try:
        if job.stored_state().state in ENDED:  # by whoever resumed it, because it seemed lost, before it could be taken here
            return False
        queue.join(ticket)
        said, last = "", 0.0
        ahead: list[str] | None = None
        while ahead is None or ahead:
            if job.is_asked_to_stop():
                mark_cancelled(job, queue)
                return False
            waits = f"waits for {', '.join(ahead[:3])}{' ...' if ahead[3:] else ''}" if ahead else ""
            # A ticket counts for others only while its job is seen to live, so first of all the state is written.
            if time.monotonic() - last > HEARTBEAT_SECONDS or waits != said:
                last, said = time.monotonic(), waits
                job.write_state(replace(job.read_state(), state="queued", message=waits, heartbeat=Heartbeat.now()), fsync=False)
            if ahead:
                time.sleep(_POLL_SECONDS)
            ahead = queue.take_turn(ticket)
        return True
    except (SpecError, OSError) as error:  # such as a link in place of the queue's lock
        _note(job, f"{type(error).__name__}: {error}")
        _mark_failed(job, error)
        return False
    finally:
        claim.release()


def mark_cancelled(job: Job, queue: Queue) -> None:
    """Note that a job that no process runs was cancelled; whoever calls has the claim on it."""
    message = f"cancelled: nothing ran; go on with `dlscale resume {job.id}`."
    job.write_state(replace(job.read_state(), state="cancelled", message=message, heartbeat=Heartbeat.now()))
    job.forget_stop()
    queue.leave(job.id)


def run_submitted(job: Job, cluster: str | None = None) -> int:
    """Run a job that was created, or go on with one that stopped, in this process; its exit code.

    Parameters
    ----------
    job : Job
    cluster : str, optional
        The cluster's address as this machine knows it, if not as in the spec.
    """
    from dlscale.batch.run import reopen, resume

    try:
        prepared = reopen(job, _workspace_of(job.folder), cluster=cluster)
        result = resume(job, prepared)
    except Exception as error:
        # Nothing was computed: what the client saw is not what this machine sees.
        _note(job, f"{type(error).__name__}: {error}")
        with suppress(DlscaleError), job.claim():
            _mark_failed(job, error)
        return _exit_code(error)
    return getattr(result.error, "exit_code", DlscaleError.exit_code) if result.error else 0


def _mark_failed(job: Job, error: Exception) -> None:
    """Let the state tell why a job cannot run; whoever calls has the claim on it."""
    with suppress(DlscaleError, OSError):
        state = job.read_state()
        if state.state == "succeeded":  # by whoever resumed it meanwhile
            return
        failed = replace(state, state="failed", message=without_secrets(str(error)), failure_code=_exit_code(error))
        job.write_state(failed)


def _exit_code(error: Exception) -> int:
    return error.exit_code if isinstance(error, DlscaleError) else DlscaleError.exit_code


def detach(job: Job, ticket: Ticket, secrets: Mapping[str, str]) -> Heartbeat:
    """Start a process on this machine that drives a job, with the secrets of its URLs, and does not end with its parent.

    Returns
    -------
    Heartbeat
        Its number and start.
    """
    return start_detached([*_COMMAND, str(job.folder), "--ticket", json.dumps(asdict(ticket))], job.log, secrets)


def start_detached(command: list[str], log: Path, secrets: Mapping[str, str]) -> Heartbeat:
    """Start a process that does not end with this one, and writes to a log."""
    # Not a Popen: nobody here waits for its end.
    pid = os.posix_spawn(
        command[0],
        command,
        environment_with(secrets),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ],
        setsid=True,
    )
    owner = Owner.here()
    return Heartbeat(owner.host, pid, start_of(pid) or 0.0, time.time(), owner.machine)


def run_apart(job: Job, ticket: Ticket) -> subprocess.Popen[bytes]:
    """Start a process of this machine that drives a job, in a session of its own, for whoever waits for its end."""
    with open(job.log, "ab", opener=open_at_once) as log:
        command = [*_COMMAND, str(job.folder), "--ticket", json.dumps(asdict(ticket))]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment_with({}), start_new_session=True
        )


def _claim(job: Job) -> Claim | None:
    """Take a job for this process when it is free; None when it has ended.

    A driver on a worker that the scheduler has lost may still run: it keeps the job until it ends.
    """
    while True:
        state = job.read_state()
        if state.state in ENDED:
            return None
        if (lock := job.take()) is not None:
            return lock
        time.sleep(_POLL_SECONDS)


def _run_beside(job: Job, cluster: str, secrets: Mapping[str, str]) -> int:
    """Run a job in a process of its own; negative is the signal that ended it."""
    with open(job.log, "ab", opener=open_at_once) as log:
        command = [*_COMMAND, str(job.folder), "--cluster", cluster]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment_with(secrets))
    with process:
        return process.wait()


def _queue_of(folder: Path) -> Queue:
    return Queue(_workspace_of(folder))


def _workspace_of(folder: Path) -> Workspace:
    return open_workspace(folder.parent.parent)


def environment_with(secrets: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, "PYTHONWARNINGS": "ignore", **secrets}


def _note(job: Job, text: str) -> None:
    with suppress(OSError), open(job.log, "a", encoding="utf-8", opener=open_at_once) as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {shown(text)}\n")


def _end_with_parent() -> None:
    """End this process when the worker that started it is gone: its end of the pipe closes."""
    os.read(0, 1)
    os._exit(DlscaleError.exit_code)


def main(folder: str, role: str, argument: str) -> int:
    """The process's work: ``FOLDER --cluster ADDRESS`` for a worker, ``FOLDER --ticket JSON`` on its own."""
    if role == "--ticket":
        return drive_here(folder, Ticket(**json.loads(argument)))
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    return run_submitted(job_in(Path(folder)), argument)


if __name__ == "__main__":
    code = main(*sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # Threads that still compute for a job that was cancelled must not hold the process.
    os._exit(code)
