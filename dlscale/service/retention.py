"""Which jobs a server removes by itself: those that are done and too old, or too many."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from dlscale.batch.removing import DONE
from dlscale.errors import SpecError

#: The server looks so often, and removes so many at a time, so that others have the disk in between.
LOOK_SECONDS, N_AT_ONCE = 600.0, 100
_DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class Retention:
    """How long, and how many.

    Parameters
    ----------
    days : float, optional
        Jobs that are done are removed so long after they began; never when None.
    jobs : int, optional
        Of the jobs that are done, only the newest so many stay; all when None.

    Raises
    ------
    SpecError
        If days is not positive.
    """

    days: float | None = None
    jobs: int | None = None

    def __post_init__(self) -> None:
        if self.days is not None and not 0 < self.days < float("inf"):
            raise SpecError(f"--keep-days must be more than 0; got {self.days:g}.")

    @property
    def removes(self) -> bool:
        return self.days is not None or self.jobs is not None

    def expired(self, newest_first: Iterable[tuple[float, str, str]], now: float) -> Iterator[str]:
        """The jobs to remove, of all jobs as (created, id, state)."""
        n_kept = itertools.count()
        for created, job, state in newest_first:
            if state not in DONE:  # it runs, or waits for somebody to resume it
                continue
            too_old = self.days is not None and now - created > self.days * _DAY_SECONDS
            too_many = self.jobs is not None and next(n_kept) >= self.jobs
            if too_old or too_many:
                yield job


#: Nothing is removed.
ALL_STAY = Retention()
