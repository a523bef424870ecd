"""What jobs wrote, in their folders or by a server: one log as it is, those of a sweep with the job before each line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from dlscale.cli.options import echo
from dlscale.errors import SpecError

#: A log is read, and a line that does not end is printed, in pieces of this size.
_PIECE_BYTES = 2**20
_POLL_SECONDS = 0.5
#: An id ends with a time and a number.
_OF_AN_ID = len("-20261126-201500-ab12")


def print_logs(
    jobs: Iterable[str],
    read: Callable[[str, int], bytes],
    *,
    states: Callable[[], Mapping[str, str]] | None = None,
    marked: bool = False,
) -> None:
    """Print the logs of jobs.

    Parameters
    ----------
    jobs : iterable of str
        Their ids.
    read : callable
        What stands in the log of a job from a byte on.
    states : callable, optional
        How each job is: to go on until all of them rest.
    marked : bool
        Begin each line with the name of the job.
    """
    from dlscale.batch.jobs.states import MOVING

    logs = [_Log(job, f"{job[:-_OF_AN_ID]}: " if marked else "") for job in jobs]
    while True:
        # Asked before the logs are read: what a job wrote before it came to rest is in its log then.
        found = states() if states else {}
        for log in logs:
            state = found.get(log.job, "")
            moves = state in MOVING
            if not log.ended and state not in ("submitted", "removed"):
                log.tell(read, whole=moves)
            log.ended = not moves
        if all(log.ended for log in logs):
            return
        time.sleep(_POLL_SECONDS)


def read_piece(path: Path, offset: int) -> bytes:
    """What stands in a log from a byte on, as much as is read at once; nothing where it is not there."""
    from dlscale.storage.files.atomic import open_at_once

    try:
        with open(path, "rb", opener=open_at_once) as log:
            log.seek(offset)
            return log.read(_PIECE_BYTES)
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.") from error


class _Log:
    """A log that is printed as it grows, whole line by whole line."""

    def __init__(self, job: str, mark: str) -> None:
        self.job, self.mark, self.ended = job, mark, False
        self._offset, self._rest = 0, b""

    def tell(self, read: Callable[[str, int], bytes], *, whole: bool) -> None:
        """Print what is new; ``whole`` leaves the beginning of a line until it ends."""
        while piece := read(self.job, self._offset):
            self._offset += len(piece)
            *lines, self._rest = (self._rest + piece).split(b"\n")
            self._print(lines)
            if len(self._rest) >= _PIECE_BYTES:
                self._end()
        if self._rest and not whole:
            self._end()

    def _end(self) -> None:
        self._print([self._rest])
        self._rest = b""

    def _print(self, lines: list[bytes]) -> None:
        if lines:
            echo("\n".join(self.mark + line.decode(errors="replace") for line in lines))
