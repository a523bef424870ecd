"""The command line. Exit codes: 0 succeeded, 1 failed, 2 bad spec or usage, 75 interrupted and can be resumed.

Only `click` is imported here; a command imports what it needs when it runs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dlscale.bench.commands import bench
from dlscale.errors import DlscaleError, Interrupted

if TYPE_CHECKING:
    from rich.console import Console

    from dlscale.batch.document import Document
    from dlscale.batch.prepare import Prepared
    from dlscale.batch.run import JobResult
    from dlscale.batch.workspace import Job, JobState, Workspace

Command = TypeVar("Command", bound=Callable[..., Any])

EXIT_FAILED = 1


def main() -> None:
    """The entry point: this process belongs to the command."""
    if not sys.warnoptions:
        warnings.simplefilter("ignore")
        os.environ["PYTHONWARNINGS"] = "ignore"  # for worker processes
    # Until a job runs and handles it better, SIGTERM cleans up as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from dlscale.engine.launchers import across_ranks

    code = across_ranks(_run)
    if code != Interrupted.exit_code:
        sys.exit(code)
    # All is said and saved. Threads that still compute, or wait for a lock that the signal tore, must not hold the process.
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)


def _run() -> int:
    try:
        commands(prog_name="dlscale")
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else EXIT_FAILED if ended.code else 0
    return 0


class _Group(click.Group):
    """Says errors in one line and turns them into exit codes."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except DlscaleError as error:
            _say(error)
            ctx.exit(error.exit_code)
        except (OSError, MemoryError) as error:
            _say(error)
            ctx.exit(EXIT_FAILED)
        except KeyboardInterrupt:
            _say(Interrupted("stopped by a signal before any work was done; run the command again."))
            ctx.exit(Interrupted.exit_code)


def _say(error: BaseException) -> None:
    message = str(error) if isinstance(error, DlscaleError) else f"{type(error).__name__}: {error}"
    click.echo(f"{click.style('error:', fg='red')} {message}", err=True)


def _workspace_option(command: Command) -> Command:
    return click.option("--workspace", metavar="DIR", help="Where jobs are kept [DLSCALE_WORKSPACE or ./dlscale-workspace].")(
        command
    )


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of standard output.")(
        command
    )


def _spec_options(command: Command) -> Command:
    for option in (
        click.option("--output", metavar="PATH", help="Where the result goes."),
        click.option("--cluster", metavar="C", help="local, threads or tcp://host:port."),
        click.option(
            "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Change a key, such as params.n_components=20."
        ),
    ):
        command = option(command)
    return click.argument("spec", type=click.Path(path_type=Path))(command)


def _slurm_options(command: Command) -> Command:
    for option in (
        click.option("--account", metavar="A", help="With --slurm: who pays."),
        click.option("--partition", metavar="P", help="With --slurm: where to."),
        click.option("--memory", metavar="SIZE", help="With --slurm: of a node, such as 64G."),
        click.option("--cpus-per-task", type=click.IntRange(1), help="With --slurm: threads of each rank."),
        click.option("--ntasks", type=click.IntRange(1), help="With --slurm: ranks; more than one run under MPI [1]."),
        click.option("--nodes", type=click.IntRange(1), help="With --slurm."),
        click.option("--time", metavar="T", help="With --slurm: limit of one start, such as 2:00:00; a job may take many."),
        click.option("--slurm", is_flag=True, help="Queue it with sbatch; at the time limit it queues itself again until done."),
    ):
        command = option(command)
    return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dlscale")
def commands() -> None:
    """Large linear algebra as batch jobs: planned, checkpointed, certified."""


@commands.command()
@_spec_options
@_workspace_option
@_json_option
def run(
    spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None, workspace: str | None, as_json: bool
) -> None:
    """Plan, compute, certify and publish the job of the file SPEC."""
    console, root = _console(as_json), _workspace(workspace)
    with _refusal_as_json(as_json):
        prepared = _prepare(_document(spec, overrides, cluster, output), root, console)
    from dlscale.batch.run import start

    job = root.new_job(prepared.name)
    _follow(console, job.id, prepared, lambda listener: start(job, prepared, listener=listener), as_json=as_json)


@commands.command()
@_spec_options
@click.option("--priority", type=int, default=0, help="Jobs with a higher one go first [0].")
@click.option("--concurrency", type=click.IntRange(1), help="Submitted jobs of the workspace that run at once, from now on [1].")
@_slurm_options
@_workspace_option
@_json_option
def submit(
    spec: Path,
    overrides: tuple[str, ...],
    cluster: str | None,
    output: str | None,
    priority: int,
    concurrency: int | None,
    slurm: bool,
    workspace: str | None,
    as_json: bool,
    **asked: Any,
) -> None:
    """Hand the job of the file SPEC over and print its ID; it goes on when this command, or its terminal, is gone.

    On a running Dask cluster (tcp://host:port) a worker drives the job, and another one if that dies; with local or threads a
    process of its own on this machine does.
    """
    request = {name: value for name, value in asked.items() if value is not None}
    if request and not slurm:
        raise click.UsageError(f"--{next(iter(request)).replace('_', '-')} goes with --slurm.")
    console, root = _console(as_json=True), _workspace(workspace)
    with _refusal_as_json(as_json):
        prepared = _prepare(_document(spec, overrides, cluster, output), root, console)
        from dlscale.batch import slurm as slurm_jobs
        from dlscale.batch.submit import submit_prepared

        if slurm:
            job = slurm_jobs.submit_prepared(root, prepared, slurm_jobs.SlurmRequest(**request))
            click.echo(f"Slurm's number is {slurm_jobs.slurm_number(job.folder)}.", err=True)
        else:
            job = submit_prepared(root, prepared, priority=priority, concurrency=concurrency)
    _show_submitted(job, as_json)


@commands.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--timeout", type=click.FloatRange(0), metavar="SECONDS", help="Fail if the job has not ended by then.")
@_workspace_option
@_json_option
def wait(job_id: str | None, timeout: float | None, workspace: str | None, as_json: bool) -> None:
    """Wait for the end of the job ID (by default the newest), and end with its exit code."""
    from dlscale.batch.submit import wait as wait_for

    job = _workspace(workspace).find(job_id)
    state = wait_for(job, timeout_seconds=timeout)
    if as_json:
        _print_json(_state_record(state))
    else:
        click.echo(f"{job.id} {state.state}{': ' if state.message else ''}{state.message}")
    sys.exit(state.exit_code)


@commands.command()
@click.argument("job_id", metavar="ID")
@_workspace_option
def cancel(job_id: str, workspace: str | None) -> None:
    """Stop the job ID within seconds, wherever it runs or waits; its checkpoint stays."""
    from dlscale.batch.submit import cancel as stop

    root = _workspace(workspace)
    job = root.find(job_id)
    state = stop(job, root)
    click.echo(f"{job.id} {state.state}{': ' if state.message else ''}{state.message}")


@commands.command()
@click.argument("job_id", metavar="ID")
@click.option("--cluster", metavar="C", help="Where to go on, if not where it began: local, threads or tcp://host:port.")
@click.option("--detach", is_flag=True, help="Hand it over, as `submit` does, instead of waiting for its end here.")
@_workspace_option
@_json_option
def resume(job_id: str, cluster: str | None, detach: bool, workspace: str | None, as_json: bool) -> None:
    """Go on with the interrupted, cancelled, lost or failed job ID from its last checkpoint."""
    console, root = _console(as_json), _workspace(workspace)
    from dlscale.batch import run as jobs
    from dlscale.terminal import import_bar

    with _refusal_as_json(as_json):
        job = root.find(job_id)
        with import_bar(console) as bar:
            prepared = jobs.reopen(job, root, cluster=cluster, progress=bar)
        if detach:
            from dlscale.batch.submit import resubmit

            resubmit(job, root, prepared)
    if detach:
        _show_submitted(job, as_json)
        return
    _follow(console, job.id, prepared, lambda listener: jobs.resume(job, prepared, listener=listener), as_json=as_json)


@commands.command()
@_spec_options
@_workspace_option
@_json_option
def plan(
    spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None, workspace: str | None, as_json: bool
) -> None:
    """Show what the job of the file SPEC would do and take; compute nothing."""
    console, root = _console(as_json), _workspace(workspace)
    with _refusal_as_json(as_json):
        prepared = _prepare(_document(spec, overrides, cluster, output), root, console)
    if as_json:
        _print_json(prepared.describe_plan())
        return
    from dlscale.terminal import plan_panel

    console.print(plan_panel(prepared.name, prepared.describe_plan()))


@commands.command()
@_spec_options
def validate(spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None) -> None:
    """Check the file SPEC: keys, types, ranges. Reads no matrix."""
    from dlscale.batch.spec import parse_spec

    kind = parse_spec(_document(spec, overrides, cluster, output)).kind
    click.echo(f"{spec} is a valid job of kind {kind}.")


@commands.command()
def schema() -> None:
    """Print the JSON Schema of job files, for editors."""
    from dlscale.batch.spec import json_schema

    click.echo(json.dumps(json_schema(), indent=2))


@commands.command(name="import")
@click.argument("source")
@click.argument("destination", type=click.Path(path_type=Path))
@click.option("--chunks", metavar="ROWSxCOLUMNS", help="Shape of a stored chunk.")
@click.option("--dtype", type=click.Choice(["f4", "f8", "c8", "c16"]), help="Convert to this dtype.")
@click.option("--patches", type=click.IntRange(1), metavar="N", help="Cut images into N x N patches, one a row.")
@click.option("--stride", type=click.IntRange(1), default=1, help="Pixels from one patch to the next.")
@click.option("--dataset", help="Which array of an HDF5 or .npz file.")
@click.option("--columns", metavar="A,B,...", help="Which columns of a table.")
@click.option("--overwrite", is_flag=True, help="Replace a Zarr array at DESTINATION.")
def import_(
    source: str,
    destination: Path,
    chunks: str | None,
    dtype: str | None,
    patches: int | None,
    stride: int,
    dataset: str | None,
    columns: str | None,
    overwrite: bool,
) -> None:
    """Turn .npy, .npz, CSV, Parquet, HDF5, Matrix Market or images (SOURCE) into a Zarr array (DESTINATION)."""
    from dlscale.batch.generate import parse_pair
    from dlscale.batch.places import only_importer
    from dlscale.storage.importers import import_matrix
    from dlscale.terminal import import_bar

    shape = parse_pair(chunks, "--chunks") if chunks else None
    with import_bar(_console()) as bar, only_importer(destination):
        import_matrix(
            source,
            destination,
            chunks=(shape[0], shape[1]) if shape else None,
            dtype=dtype,
            patches=patches,
            stride=stride,
            dataset=dataset,
            columns=columns.split(",") if columns else None,
            progress=bar,
            overwrite=overwrite,
        )
    _show_info(str(destination))


@commands.command()
@click.argument("paths", nargs=-1, required=True, metavar="[SPEC] DESTINATION")
@click.option("--shape", metavar="ROWSxCOLUMNS", help="Such as 1000000x2000.")
@click.option("--spectrum", help="power:-0.5, step:20 or flat.")
@click.option("--condition", type=float, help="Singular values fall geometrically from 1 to 1/condition.")
@click.option("--rank", type=click.IntRange(1), help="How many singular values are not zero [all].")
@click.option("--dtype", type=click.Choice(["f4", "f8", "c8", "c16"]))
@click.option("--seed", type=click.IntRange(0))
@click.option("--offset", type=float, help="Added to every entry.")
@click.option("--chunks", metavar="ROWSxCOLUMNS", help="Shape of a stored chunk.")
@click.option("--cluster", metavar="C", help="local, threads or tcp://host:port.")
def generate(paths: tuple[str, ...], shape: str | None, chunks: str | None, **options: Any) -> None:
    """Make a matrix with known singular values at DESTINATION, from a file SPEC or the options."""
    if len(paths) > 2:
        raise click.UsageError("give one SPEC and one DESTINATION, or DESTINATION and options.")
    from dlscale.batch.document import Document, read_document, set_value
    from dlscale.batch.generate import generate as write_matrix
    from dlscale.batch.generate import parse_generate, parse_pair
    from dlscale.terminal import JobProgress

    document = read_document(Path(paths[0])) if len(paths) == 2 else Document({}, {}, "options")
    given: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    given |= {key: parse_pair(text, f"--{key}") for key, text in (("shape", shape), ("chunks", chunks)) if text}
    for key, value in given.items():
        document = set_value(document, [key], value, f"--{key}")
    spec, console = parse_generate(document), _console()
    progress = JobProgress(console, spec.n_bytes, measure="bytes")
    with progress.live():
        write_matrix(spec, Path(paths[-1]), emit=progress)
    _show_info(paths[-1])


@commands.command()
@click.argument("uri")
@_json_option
def info(uri: str, as_json: bool) -> None:
    """Show what is in a store: a matrix, or a result with its certificate."""
    _show_info(uri, as_json=as_json)


@commands.command()
@_workspace_option
@_json_option
def jobs(workspace: str | None, as_json: bool) -> None:
    """List the jobs of the workspace, the newest first."""
    states = [job.read_state() for job in _workspace(workspace).jobs()]
    if as_json:
        _print_json([{"job": s.job, "kind": s.kind, "state": s.state, "created": s.created, "seconds": s.seconds} for s in states])
        return
    from dlscale.terminal import jobs_table

    _console().print(jobs_table(states) if states else "No jobs yet.")


@commands.command()
@click.argument("job_id", metavar="[ID]", required=False)
@_workspace_option
@_json_option
def status(job_id: str | None, workspace: str | None, as_json: bool) -> None:
    """Show how far the job ID (by default the newest) is."""
    job = _workspace(workspace).find(job_id)
    state = job.read_state()
    if as_json:
        _print_json(_state_record(state))
        return
    from dlscale.terminal import status_rows

    console = _console()
    console.print(job.id, style="bold", highlight=False)
    console.print(status_rows(job, state))


@commands.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@_workspace_option
def logs(job_id: str | None, follow: bool, workspace: str | None) -> None:
    """Print the log of the job ID (by default the newest)."""
    from dlscale.batch.workspace import RUNNING

    job = _workspace(workspace).find(job_id)
    offset = 0
    while True:
        running = job.read_state().state in (*RUNNING, "submitted")
        text = b""
        if job.log.exists():
            with open(job.log, "rb") as log:
                log.seek(offset)
                text = log.read()
        offset += len(text)
        click.echo(text.decode(errors="replace"), nl=False)
        if not (follow and running):
            return
        time.sleep(0.5)


@commands.command()
@click.argument("job_id", metavar="[ID]", required=False)
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
@_workspace_option
def report(job_id: str | None, show: bool, workspace: str | None) -> None:
    """Draw the report of the job ID (by default the newest) anew, and print its path."""
    from dlscale.batch.reporting import write_report

    path = write_report(_workspace(workspace).find(job_id))
    click.echo(str(path))
    if show:
        click.launch(str(path))


commands.add_command(bench)


def _console(as_json: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=as_json, soft_wrap=False)


def _workspace(root: str | None) -> Workspace:
    from dlscale.batch.workspace import Workspace

    return Workspace(root)


def _document(spec: Path, overrides: tuple[str, ...], cluster: str | None, output: str | None) -> Document:
    from dlscale.batch.document import parse_scalar, read_document, set_value

    document = read_document(spec, overrides)
    if cluster is not None:
        document = set_value(document, ["cluster"], parse_scalar(cluster, "--cluster"), "--cluster")
    return document if output is None else set_value(document, ["output"], output, "--output")


def _prepare(document: Document, root: Workspace, console: Console) -> Prepared:
    from dlscale.batch.spec import parse_spec

    spec = parse_spec(document)  # before the slow imports, so that a bad file is refused at once
    from dlscale.batch.prepare import prepare
    from dlscale.terminal import import_bar

    with import_bar(console) as bar:
        return prepare(spec, document, root, progress=bar)


def _follow(console: Console, title: str, prepared: Prepared, work: Callable[[Any], JobResult], *, as_json: bool) -> None:
    """Show a job's plan, its progress and its end; leave with its exit code."""
    from dlscale.terminal import JobProgress, plan_panel, show_result

    console.print(plan_panel(title, prepared.describe_plan()))
    progress = JobProgress(console, prepared.plan.flops)
    with progress.live():
        result = work(progress)
    show_result(console, result)
    if result.error:
        _say(result.error)
        if result.state == "failed":
            click.echo(f"log: {result.folder / 'log.txt'}", err=True)
    if as_json:
        _print_json(result.to_dict())
    if result.error:
        sys.exit(getattr(result.error, "exit_code", EXIT_FAILED))


@contextmanager
def _refusal_as_json(as_json: bool) -> Iterator[None]:
    try:
        yield
    except DlscaleError as error:
        if as_json:
            empty = dict.fromkeys(("job", "kind", "result", "seconds", "certificate", "plan"))
            _print_json({"state": "refused", **empty, "error": str(error)})
        raise


def _state_record(state: JobState) -> dict[str, Any]:
    record = {"job": state.job, "state": state.state, "kind": state.kind, "result": state.result, "seconds": state.seconds}
    return record | {"message": state.message, "heartbeat": state.heartbeat._asdict()}


def _show_submitted(job: Job, as_json: bool) -> None:
    state = job.read_state().state
    if as_json:
        _print_json({"job": job.id, "state": state, "folder": str(job.folder)})
        return
    click.echo(job.id)
    if state == "submitted" and not (job.folder / "slurm.json").exists():
        click.echo("No worker has taken the job yet: they are busy. It starts when one is free.", err=True)


def _show_info(uri: str, *, as_json: bool = False) -> None:
    from dlscale.storage.groups import result_attributes
    from dlscale.storage.matrices import open_matrix
    from dlscale.terminal import facts_rows, result_facts

    result = result_attributes(uri)
    facts = open_matrix(uri).describe() if result is None else {"uri": uri, **result}
    if as_json:
        _print_json(facts)
    else:
        _console().print(facts_rows(facts if result is None else result_facts(uri, result)))


def _print_json(value: Any) -> None:
    from dlscale.batch.recorder import plain

    click.echo(json.dumps(plain(value)))
