"""The command line. Exit codes: 0 succeeded, 1 failed, 2 bad spec or usage, 75 interrupted and can be resumed.

Only `click` is imported here; a command imports what it needs when it runs.
"""

from __future__ import annotations

import gc
import json
import os
import re
import sys
import traceback
import warnings
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import click

from dlscale.bench.commands import bench
from dlscale.cli import jobs, looking
from dlscale.cli.imports import ImportCommand
from dlscale.cli.options import (
    EXIT_FAILED,
    echo,
    follow,
    json_option,
    open_console,
    open_workspace,
    owns_terminal,
    plan_job,
    print_json,
    read_job_file,
    refusal_as_json,
    say,
    spec_options,
    workspace_option,
)
from dlscale.cli.removing import prune, rm
from dlscale.cli.serving import serve
from dlscale.cli.sweeping import is_sweep, plan_of_sweep, show_plan_of_sweep
from dlscale.cli.watching import EXIT_WATCHED
from dlscale.errors import DlscaleError, Interrupted
from dlscale.interrupts import ends, handle_signals
from dlscale.showing import shown


def main() -> None:
    """The entry point: this process belongs to the command."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ["PYTHONWARNINGS"] = "ignore"  # for worker processes
    # What a command makes mostly stays, its modules above all: to look for garbage among it takes a tenth of a short job.
    gc.set_threshold(10_000)
    sys.excepthook = _show_traceback
    _open_standard_streams()
    from dlscale.engine.clusters.launchers import across_ranks

    code = across_ranks(_run)
    gc.freeze()  # what is left goes with the process: to look through it once more takes a quarter of a second
    if code not in (Interrupted.exit_code, EXIT_WATCHED):
        sys.exit(code)
    # All is said and saved. Threads that still compute, or wait for a lock that the signal tore, must not hold the process.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _open_standard_streams() -> None:
    """Streams that were closed lead nowhere: a file that takes the number of one would be given what is said."""
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(number, True)
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))


def _show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Of what nobody foresaw: as Python shows it, but for what a terminal obeys and what opens a URL."""
    sys.stderr.write(shown("".join(traceback.format_exception(kind, error, trace))))


def _run() -> int:
    try:
        # Until a job runs and handles them better, other signals clean up as Ctrl-C does.
        commands(prog_name="dlscale", obj=handle_signals)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED if ended.code else 0
    return 0


#: Commands that only look at jobs.
_LOOKING = {command.name for command in looking.COMMANDS}


class _Group(click.Group):
    """Says errors in one line and turns them into exit codes; knows the home folder wherever a path is given."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        # A shell expands a word that begins with ~, but not --output=~/a, and no shell stands before a batch system.
        return super().parse_args(ctx, [re.sub(r"^(--[\w-]+=)?(~.*)", _at_home, argument) for argument in args])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            if ctx.obj is not None:
                ctx.obj()
            return super().invoke(ctx)
        except click.ClickException as error:
            if (message := shown(error.format_message())) == error.format_message():
                raise
            raise click.UsageError(message, getattr(error, "ctx", None)) from None
        except DlscaleError as error:
            say(error)
            ctx.exit(error.exit_code)
        except (OSError, MemoryError) as error:
            say(error)
            ctx.exit(EXIT_FAILED)
        except KeyboardInterrupt:
            ends()
            if ctx.invoked_subcommand in _LOOKING:
                echo("\nThe jobs go on.", err=True)
                ctx.exit(EXIT_WATCHED)
            if places := sys.modules.get("dlscale.batch.jobs.places"):
                places.clean_up()
            say(Interrupted("stopped by a signal; run the command again."))
            ctx.exit(Interrupted.exit_code)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if ctx.params.get("server") is None:
            return super().get_command(ctx, cmd_name)
        from dlscale.cli.remote import COMMANDS as REMOTE

        if cmd_name not in REMOTE:
            raise click.UsageError(f"--server goes with {', '.join(REMOTE)}; got {cmd_name}.", ctx)
        return REMOTE[cmd_name]


def _at_home(option: re.Match[str]) -> str:
    from dlscale.storage.files.locations import expand_home

    return (option[1] or "") + expand_home(option[2])


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dlscale")
@click.option("--server", metavar="URL", help="Ask a server (`dlscale serve`), with the token in DLSCALE_TOKEN if it needs one.")
def commands(server: str | None) -> None:
    """Large linear algebra as batch jobs: planned, checkpointed, certified."""
    if os.environ.get("NO_COLOR") or not owns_terminal():
        click.get_current_context().color = False


@commands.command()
@spec_options
@workspace_option
@json_option
def run(
    spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None, workspace: str | None, as_json: bool
) -> None:
    """Plan, compute, certify and publish the job of the file SPEC."""
    console, root = open_console(as_json), open_workspace(workspace)
    with refusal_as_json(as_json):
        prepared = plan_job(read_job_file(spec, overrides, cluster, output), root, console)
    from dlscale.batch.run import start

    job = root.new_job(prepared.name)
    follow(console, job.id, prepared, lambda listener: start(job, prepared, listener=listener), as_json=as_json)


@commands.command()
@spec_options
@click.option("--shape", metavar="ROWSxCOLUMNS", help="As if the matrix had this shape; none needs to be there.")
@click.option("--workers", type=click.IntRange(1), metavar="N", help="As if on so many workers; none needs to be there.")
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Of each of these workers [this machine's cores].")
@click.option("--worker-memory", metavar="SIZE", help="Of each of these workers, such as 64GB.")
@workspace_option
@json_option
def plan(
    spec: Path,
    overrides: tuple[str, ...],
    cluster: str | None,
    output: str | None,
    shape: str | None,
    workers: int | None,
    threads: int | None,
    worker_memory: str | None,
    workspace: str | None,
    as_json: bool,
) -> None:
    """Show what the job of the file SPEC would do and take, here or elsewhere; compute nothing."""
    from dlscale.batch.assumed import Assumed

    console, root = open_console(as_json), open_workspace(workspace)
    with refusal_as_json(as_json):
        assumed = Assumed.from_options(shape, workers, threads, worker_memory)
        document = read_job_file(spec, overrides, cluster, output)
        if is_sweep(document):
            name = document.source
            described = plan_of_sweep(document, root, console, assumed)
        else:
            prepared = plan_job(document, root, console, assumed=assumed, only_looks=True)
            name, described = prepared.name, prepared.describe_plan()
    if as_json:
        print_json(described)
    elif "jobs" in described:
        show_plan_of_sweep(name, described)
    else:
        from dlscale.cli.terminal import plan_panel

        console.print(plan_panel(name, described))


@commands.command()
@spec_options
def validate(spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None) -> None:
    """Check the file SPEC: keys, types, ranges. Reads no matrix."""
    from dlscale.batch.spec import parse_spec

    document = read_job_file(spec, overrides, cluster, output)
    if is_sweep(document):
        from dlscale.batch.sweeps.planning import members_of

        members = members_of(document)
        echo(f"{spec} is a valid sweep of {len(members)} jobs of kind {members[0].spec.kind}.")
        return
    kind = parse_spec(document).kind
    echo(f"{spec} is a valid job of kind {kind}.")


@commands.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors."""
    from dlscale.batch.spec import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@commands.command(name="import", cls=ImportCommand)
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--chunks", metavar="ROWSxCOLUMNS", help="Shape of a stored chunk.")
@click.option("--dtype", type=click.Choice(["f4", "f8", "c8", "c16"]), help="Convert to this dtype.")
@click.option("--overwrite", is_flag=True, help="Replace a Zarr array at DESTINATION.")
def import_(source: str, destination: Path, chunks: str | None, dtype: str | None, overwrite: bool, **options: Any) -> None:
    """Turn .npy, .npz, CSV, Parquet, HDF5, Matrix Market, SVMlight or images (SOURCE) into a Zarr array (DESTINATION)."""
    from dlscale.batch.jobs.places import only_importer
    from dlscale.cli.terminal import import_bar
    from dlscale.storage.files.locations import local_path
    from dlscale.storage.importers import import_matrix

    shape = _pair(chunks) if chunks else None
    destination = local_path(destination, "The destination of an import")
    with import_bar(open_console()) as bar, only_importer(destination):
        import_matrix(
            source,
            destination,
            chunks=(shape[0], shape[1]) if shape else None,
            dtype=dtype,
            progress=bar,
            overwrite=overwrite,
            **{option: value for option, value in options.items() if value is not None},
        )
    _show_info(str(destination))


@commands.command()
@click.argument("paths", nargs=-1, required=True, metavar="[SPEC] DESTINATION")
@click.option("--shape", metavar="ROWSxCOLUMNS", help="Such as 1000000x2000.")
@click.option("--spectrum", help="power:-0.5, step:20 or flat.")
@click.option("--condition", type=float, help="Singular values fall geometrically from 1 to 1/condition.")
@click.option("--density", type=float, help="A sparse matrix of normal entries, each there with this probability.")
@click.option("--rank", type=click.IntRange(1), help="How many singular values are not zero [all].")
@click.option("--dtype", type=click.Choice(["f4", "f8", "c8", "c16"]))
@click.option("--seed", type=click.IntRange(0))
@click.option("--offset", type=float, help="Added to every entry.")
@click.option("--chunks", metavar="ROWSxCOLUMNS", help="Shape of a stored chunk.")
@click.option("--cluster", metavar="C", help="local, threads or tcp://host:port.")
def generate(paths: tuple[str, ...], shape: str | None, chunks: str | None, **options: Any) -> None:
    """Make a matrix with known singular values, or a sparse one, at DESTINATION, from a file SPEC or the options."""
    if len(paths) > 2:
        raise click.UsageError("give one SPEC and one DESTINATION, or DESTINATION and options.")
    from dlscale.batch.document import Document, read_document, set_value
    from dlscale.batch.generate import generate as write_matrix
    from dlscale.batch.generate import parse_generate
    from dlscale.batch.spec.sections import parse_pair
    from dlscale.cli.terminal import JobProgress

    document = read_document(Path(paths[0])) if len(paths) == 2 else Document({}, {}, "options")
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    given |= {key: parse_pair(text, f"--{key}") for key, text in (("shape", shape), ("chunks", chunks)) if text}
    for key, value in given.items():
        document = set_value(document, [key], value, f"--{key}")
    spec, console = parse_generate(document), open_console()
    progress = JobProgress(console, spec.n_bytes, measure="bytes")
    with progress.live():
        write_matrix(spec, Path(paths[-1]), emit=progress)
    _show_info(paths[-1])


@commands.command()
@click.argument("uri")
@json_option
def info(uri: str, as_json: bool) -> None:
    """Show what is in a store: a matrix, or a result with its certificate."""
    _show_info(uri, as_json=as_json)


for command in (*jobs.COMMANDS, *looking.COMMANDS, rm, prune, serve, bench):
    commands.add_command(command)


def _pair(chunks: str) -> list[int]:
    from dlscale.batch.spec.sections import parse_pair  # which loads every kind of job

    return parse_pair(chunks, "--chunks")


def _show_info(uri: str, *, as_json: bool = False) -> None:
    from dlscale.cli.terminal import facts_rows, result_facts
    from dlscale.storage.groups import result_attributes
    from dlscale.storage.matrices import open_matrix
    from dlscale.storage.zarr_stores import look_first

    look_first(uri)
    result = result_attributes(uri)
    if result is None:
        matrix = open_matrix(uri)
        facts = matrix.describe() | matrix.labels.describe()
    else:
        facts = {"uri": uri, **result}
    if as_json:
        print_json(facts)
    else:
        open_console().print(facts_rows(facts if result is None else result_facts(uri, result)))
