"""The options of `dlscale jobs`, here and with --server: which jobs, and how they are shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from dlscale.cli.options import Command, echo, job_filters, json_option
from dlscale.cli.sweeping import sweep_options
from dlscale.cli.watching import until_ctrl_c, watch_jobs

if TYPE_CHECKING:
    from dlscale.batch.workspace import ListedJob

#: Without a choice, a list of more jobs is cut to so many: a hundred thousand lines help nobody, and take seconds.
MOST_SHOWN, N_SHOWN_OF_MORE = 20_000, 1000


class Listing(NamedTuple):
    """Jobs, and what is damaged, by id; ``of`` says how many jobs there are where these are only the newest."""

    jobs: list[ListedJob]
    faults: dict[str, str]
    of: str = ""


@dataclass(frozen=True)
class Chosen:
    """What `dlscale jobs` was asked for; see the help of its options."""

    limit: int | None
    states: tuple[str, ...]
    kinds: tuple[str, ...]
    name: str | None
    sweep: str | None
    to_csv: Path | None
    watch: bool
    quiet: bool
    as_json: bool
    workspace: str | None = None

    def __post_init__(self) -> None:
        require_watch(self.watch, self.quiet)
        if self.to_csv is not None and self.sweep is None:
            raise click.UsageError("--csv goes with --sweep.")
        if self.sweep is not None and (self.limit or self.filters or self.watch):
            raise click.UsageError("--sweep shows all jobs of a sweep; `dlscale wait SWEEP` waits for them.")

    @property
    def filters(self) -> bool:
        """Whether only some jobs are wanted."""
        return bool(self.states or self.kinds or self.name)

    @property
    def n_wanted(self) -> int | None:
        """How many jobs tell whether there are too many to be shown; None where all are wanted, as a program does."""
        return self.limit or (None if self.filters or self.as_json or self.watch else MOST_SHOWN + 1)

    def cut_to(self, n_jobs: int) -> int | None:
        """How many of so many jobs are shown, where that is not all that was asked for."""
        return N_SHOWN_OF_MORE if not self.limit and self.n_wanted and n_jobs >= self.n_wanted else None


def choosing(command: Callable[[Chosen], None]) -> Callable[..., None]:
    """Give a command the options that make a `Chosen`."""

    def decorated(**options: Any) -> None:
        command(Chosen(**options))

    asked: Callable[..., None] = update_wrapper(decorated, command)
    for option in (
        json_option,
        watch_options("Show them anew until none of them runs or waits."),
        sweep_options,
        job_filters,
        click.option(
            "--limit",
            type=click.IntRange(1),
            metavar="N",
            help=f"Only the N newest [all; of more than {MOST_SHOWN:,} the newest {N_SHOWN_OF_MORE:,}, and all with --json].",
        ),
    ):
        asked = option(asked)
    return asked


def watch_options(what: str) -> Callable[[Command], Command]:
    """``watch`` and ``quiet``."""

    def decorate(command: Command) -> Command:
        command = click.option("--quiet", "-q", is_flag=True, help="With --watch: only say how they end.")(command)
        return click.option("--watch", "-w", is_flag=True, help=what)(command)

    return decorate


def require_watch(watch: bool, quiet: bool) -> None:
    if quiet and not watch:
        raise click.UsageError("--quiet goes with --watch.")


def show_jobs(chosen: Chosen, listed: Callable[[], Listing], where: object) -> None:
    """A table of jobs, or a JSON list; and what is damaged."""
    if chosen.watch:
        with until_ctrl_c("\nThe jobs go on."):
            watch_jobs(lambda: listed().jobs, quiet=chosen.quiet, err=chosen.as_json)
        if not chosen.as_json:
            return
    found, faults, of = listed()
    if chosen.kinds and not found:
        _require_known(chosen.kinds)
    if chosen.as_json:
        _print_json(found, faults)
        return
    from dlscale.cli.listing import table_lines, terminal_width

    nothing = "No job can be read." if faults else "No such jobs." if chosen.filters else f"No jobs yet in {where}."
    click.echo("\n".join(table_lines(found, width=terminal_width())) if found else nothing)
    for job, message in sorted(faults.items()):
        echo(f"{job}: {message}", prefix=f"{click.style('damaged:', fg='red')} ", err=True)
    if of:
        echo(
            f"These are the newest {len(found) + len(faults):,} of {of} jobs; --limit N shows N of them, --name, --kind and "
            "--state those that are meant, --json all.",
            err=True,
        )


def _require_known(kinds: tuple[str, ...]) -> None:
    """Refuse what is no kind of job; where jobs were found, nothing is loaded for that."""
    from dlscale.batch.kinds import KINDS

    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise click.BadParameter(f"{unknown[0]!r} is no kind of job; the kinds are {', '.join(KINDS)}.", param_hint="'--kind'")


def _print_json(found: list[ListedJob], faults: dict[str, str]) -> None:
    # `asdict` goes through every value: of a hundred thousand jobs it took more than all else.
    listed = [{**vars(job), "progress": job.progress and vars(job.progress)} for job in found]
    for row in listed:
        del row["message"]
    empty = {"kind": None, "created": None, "seconds": None, "progress": None}
    damaged = [{"job": job, "state": "damaged", **empty, "message": message} for job, message in sorted(faults.items())]
    click.echo(json.dumps(listed + damaged))
