"""How the jobs of a sweep are, here and with --server: one table of them, shown anew until they rest where that is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from dlscale.cli.options import echo, open_console, print_json
from dlscale.cli.sweeping import heads, value_words
from dlscale.cli.watching import Changes, Look, drawing, is_live, sweep_goes_on, until_ctrl_c

if TYPE_CHECKING:
    from rich.text import Text

Table = dict[str, Any]


def show_how_far(table: Table, *, as_json: bool) -> None:
    """How far each job of a sweep is."""
    if as_json:
        print_json({key: table[key] for key in ("sweep", "kind", "keys", "jobs")})
        return
    from dlscale.cli.listing import terminal_width

    echo(f"{table['sweep']}: {_counted(table)}")
    click.echo("\n".join(_lines(table, terminal_width())))


def watch_how_far(
    sweep_id: str, wait: Callable[[Callable[[Table], None]], Table], *, url: str = "", quiet: bool, as_json: bool
) -> None:
    """Show the jobs of a sweep until they rest.

    Parameters
    ----------
    sweep_id : str
    wait : callable
        Waits for their rest and hands every table on its way to a function; the last one.
    url : str
        Of the server.
    """
    console = open_console(as_json)
    with until_ctrl_c(sweep_goes_on(sweep_id, url)):
        if quiet or not is_live(console):
            changes = Changes(quiet=quiet, err=as_json)
            table = wait(lambda table: changes(_looks(table)))
        else:
            with drawing(console) as draw:
                table = wait(lambda table: draw(lambda: _drawn(table, console.width, console.height)))
    if as_json:
        show_how_far(table, as_json=True)


def _looks(table: Table) -> Iterator[Look]:
    return (Look.of_record(row) for row in table["jobs"])


def _drawn(table: Table, width: int, height: int) -> Text:
    from rich.text import Text

    # Those that move stand first, so that none of them is below the end of the screen.
    rows = sorted(table["jobs"], key=lambda row: not Look.of_record(row).moves)[: max(height - 4, 1)]
    lines = [f"{table['sweep']}: {_counted(table)}", *_lines({**table, "jobs": rows}, width)]
    return Text("\n").join(map(Text.from_ansi, lines))


def _counted(table: Table) -> str:
    from dlscale.batch.sweeps.store import count, told

    return told(count(row["state"] for row in table["jobs"]))


def _lines(table: Table, width: int | None) -> Iterator[str]:
    """Id, state and what differs stay in a narrow terminal."""
    from dlscale.cli.listing import fitting_lines

    head = ("job", "state", *heads(table["keys"], ("job", "state", "time", "progress")), "time", "progress")
    rows = [_cells(row) for row in table["jobs"]]
    return fitting_lines([head, *rows], state=1, dropped=(len(head) - 2,), width=width)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    from dlscale.cli.listing import printable
    from dlscale.report import words

    look = Look.of_record(dict(row))
    seconds = "" if row["seconds"] is None else words.duration(row["seconds"])
    values = map(value_words, row["values"].values())
    return tuple(map(printable, (look.job, look.state, *values, seconds, look.how_far or look.message)))
