"""What commands share: their options, how a job file becomes a plan, how a job is followed, how errors are said."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dlscale.errors import DlscaleError
from dlscale.showing import shown

if TYPE_CHECKING:
    from rich.console import Console

    from dlscale.batch.assumed import Assumed
    from dlscale.batch.document import Document
    from dlscale.batch.prepare import Prepared
    from dlscale.batch.run import JobResult
    from dlscale.batch.workspace import Workspace

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_FAILED = 1


def workspace_option(command: Command) -> Command:
    return click.option(
        "--workspace",
        metavar="PLACE",
        help="Where jobs are kept: a folder, or s3://bucket/name [DLSCALE_WORKSPACE or ./dlscale-workspace].",
    )(command)


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of standard output.")(
        command
    )


def job_filters(command: Command) -> Command:
    """Which jobs are meant: ``states``, ``kinds`` and ``name``."""
    for option in (
        click.option("--name", metavar="NAME", help="Only jobs whose id begins so."),
        click.option("--kind", "kinds", multiple=True, metavar="KIND", help="Only jobs of this kind; may be given again."),
        click.option("--state", "states", multiple=True, metavar="STATE", callback=_known_states, help="Only jobs in this state."),
    ):
        command = option(command)
    return command


def _known_states(_: click.Context, __: click.Parameter, states: tuple[str, ...]) -> tuple[str, ...]:
    from dlscale.batch.jobs.states import ENDED, RUNNING

    known = ("submitted", *RUNNING, *ENDED, "lost")
    if unknown := [state for state in states if state not in known]:
        raise click.BadParameter(f"{unknown[0]!r} is no state of a job; the states are {', '.join(known)}.")
    return states


def spec_options(command: Command) -> Command:
    for option in (
        click.option("--output", metavar="PATH", help="Where the result goes."),
        click.option("--cluster", metavar="C", help="local, threads or tcp://host:port."),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key, such as params.n_components=20."
        ),
    ):
        command = option(command)
    return click.argument("spec", type=click.Path(path_type=Path))(command)


def say(error: BaseException) -> None:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        message = f"{os.fspath(error.filename)} cannot be read or written: {error.strerror}."
    else:
        message = str(error) if isinstance(error, DlscaleError) else f"{type(error).__name__}: {error}"
    echo(message, prefix=f"{click.style('error:', fg='red')} ", err=True)


def echo(text: str, *, prefix: str = "", err: bool = False, nl: bool = True) -> None:
    """Print a text in which control characters and the secrets of URLs cannot do harm."""
    click.echo(prefix + shown(text), err=err, nl=nl)


@contextmanager
def refusal_as_json(as_json: bool) -> Iterator[None]:
    try:
        yield
    except DlscaleError as error:
        if as_json:
            empty = dict.fromkeys(("job", "kind", "result", "seconds", "certificate", "plan"))
            print_json({"state": "refused", **empty, "error": str(error)})
        raise


def open_console(as_json: bool = False) -> Console:
    from dlscale.cli.terminal import SafeConsole

    return SafeConsole(stderr=as_json, soft_wrap=False, force_terminal=None if owns_terminal() else False)


def owns_terminal() -> bool:
    """Whether a terminal that this process writes to is the user's.

    Open MPI gives each of its processes one, and passes on to a file or a pipe what is written there.
    """
    from dlscale.engine.clusters.launchers import launched

    return "OMPI_COMM_WORLD_RANK" not in os.environ and (launched() or (0, 1))[1] == 1


def open_workspace(root: str | None) -> Workspace:
    from dlscale.batch.remote.opening import open_workspace as opened

    return opened(root)


def read_job_file(spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None) -> Document:
    from dlscale.batch.document import parse_scalar, read_document, set_value

    document = read_document(spec, overrides)
    if cluster is not None:
        document = set_value(document, ["cluster"], parse_scalar(cluster, "--cluster"), "--cluster")
    return document if output is None else set_value(document, ["output"], output, "--output")


def plan_job(
    document: Document, root: Workspace, console: Console, *, assumed: Assumed | None = None, only_looks: bool = False
) -> Prepared:
    from dlscale.batch.spec import parse_spec

    spec = parse_spec(document)  # before the slow imports, so that a bad file is refused at once
    from dlscale.batch.prepare import prepare
    from dlscale.cli.terminal import import_bar

    with import_bar(console) as bar:
        return prepare(spec, document, root, progress=bar, assumed=assumed, only_looks=only_looks)


def follow(console: Console, title: str, prepared: Prepared, work: Callable[[Any], JobResult], *, as_json: bool) -> None:
    """Show a job's plan, its progress and its end; leave with its exit code."""
    from dlscale.batch.workspace import Job
    from dlscale.cli.terminal import JobProgress, plan_panel, show_result

    console.print(plan_panel(title, prepared.describe_plan()))
    progress = JobProgress(console, prepared.plan.flops, len(prepared.plan.worker_steps))
    with progress.live():
        result = work(progress)
    show_result(console, result)
    if result.error:
        say(result.error)
        if result.state == "failed":
            echo(f"log: {Job(result.folder).log}", err=True)
    if as_json:
        print_json(result.to_dict())
    if result.error:
        sys.exit(getattr(result.error, "exit_code", EXIT_FAILED))


def print_json(value: Any) -> None:
    from dlscale.batch.recorder import plain

    click.echo(json.dumps(plain(value)))
