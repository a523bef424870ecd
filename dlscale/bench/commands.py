"""`dlscale bench`: the scaling laboratory on the command line."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dlscale.errors import SpecError

if TYPE_CHECKING:
    from dlscale.bench.simulation import ModelCluster
    from dlscale.bench.workloads import Scale

#: A network of 10 Gbit/s.
_BANDWIDTH = "1.25GB"
_LATENCY_MICROSECONDS = 50.0
#: What Dask's scheduler takes for a task that does nothing, all in all.
_SCHEDULER_MICROSECONDS = 500.0


@click.group()
def bench() -> None:
    """Measure this machine, how jobs scale on it, and predict how they would on a larger cluster."""


@bench.command()
@click.option("--folder", type=click.Path(path_type=Path), help="On the disk whose speed counts [a temporary one].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object as the last line of standard output.")
def machine(folder: Path | None, as_json: bool) -> None:
    """Measure products, memory, disk, store, network and allreduce (10 s)."""
    from dlscale.bench.machine import measure_machine
    from dlscale.engine.machine import describe_machine

    with _folder(folder) as place:
        rates = measure_machine(place)
    if as_json:
        click.echo(json.dumps({"machine": describe_machine(), "rates": [rate.to_dict() for rate in rates]}))
        return
    _table(("", "rate", "", "measured"), [(rate.what, f"{rate.value:.3g}", rate.unit, rate.note) for rate in rates])


@bench.command()
@click.option("--kinds", default="svd", metavar="A,B,...", help="Kinds of jobs: svd, pca, qr, lu, train [svd].")
@click.option("--workers", metavar="1,2,...", help="Run with so many workers of one thread and core each.")
@click.option("--mode", type=click.Choice(["strong", "weak"]), default="strong", help="One problem for all, or one that grows.")
@click.option("--launcher", type=click.Choice(["dask", "mpirun"]), default="dask", help="Local worker processes, or ranks.")
@click.option("--size", type=click.FloatRange(0, min_open=True), default=1.0, help="Times the work of the usual problem [1].")
@click.option("--repeat", type=click.IntRange(1), default=1, help="Measure so often, by turns, and keep the fastest [1].")
@click.option("--simulate", metavar="1..1024", help="Predict the time on so many modelled workers.")
@click.option("--grow", type=click.FloatRange(1), default=1.0, help="Simulate so many times the work that was measured [1].")
@click.option("--shared", is_flag=True, help="The modelled workers share this machine, as those of --workers do.")
@click.option("--bandwidth", default=_BANDWIDTH, metavar="SIZE", help=f"Of the modelled network, bytes a second [{_BANDWIDTH}].")
@click.option("--latency", default=_LATENCY_MICROSECONDS, metavar="US", help="Of a message, microseconds [50].")
@click.option("--scheduler", default=_SCHEDULER_MICROSECONDS, metavar="US", help="The scheduler's time for a task, us [500].")
@click.option("--folder", type=click.Path(path_type=Path), help="Where matrices are made and kept [a temporary one].")
@click.option("--output", type=click.Path(path_type=Path), metavar="FILE", help="Add each run to FILE as a line of JSON.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw efficiency over workers (SVG, PNG or PDF).")
@click.option("--json", "as_json", is_flag=True, help="Print the runs as lines of JSON instead of a table.")
def scaling(
    kinds: str,
    workers: str | None,
    mode: str,
    launcher: str,
    size: float,
    repeat: int,
    simulate: str | None,
    grow: float,
    shared: bool,
    bandwidth: str,
    latency: float,
    scheduler: float,
    folder: Path | None,
    output: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Run jobs with more and more workers, and predict the rest.

    What the machine allows is measured too: as many processes as workers, each multiplying matrices.
    A prediction replays the task graphs of a job, traced on one thread of this machine, on modelled workers.
    """
    from dask.utils import parse_bytes

    from dlscale.bench.simulation import ModelCluster
    from dlscale.bench.workloads import Scale, workload

    for kind in kinds.split(","):
        workload(kind)  # is refused before anything is measured
    measured, modelled = parse_workers(workers, "--workers"), parse_workers(simulate, "--simulate")
    if not (measured or modelled):
        raise click.UsageError("say --workers 1,2 to measure, --simulate 1..1024 to predict, or both.")
    network = ModelCluster(1, 1, float(parse_bytes(bandwidth)), latency * 1e-6, scheduler * 1e-6)
    records: list[dict[str, Any]] = []
    with _folder(folder) as place:
        for kind in kinds.split(","):
            runs = _measure(kind, measured, place, mode=mode, launcher=launcher, size=size, repeat=repeat)
            predictions = _predict(kind, modelled, place, scale=Scale(mode, size, grow), network=network, shared=shared)
            for record in chain(runs, predictions):
                _keep(record, output, as_json)
                records.append(record)
    if not as_json:
        _table(
            ("kind", "problem", "workers", "", "seconds", "efficiency", "rate", "idle", "moved"),
            [row for kind in dict.fromkeys(r["kind"] for r in records) for row in _rows([r for r in records if r["kind"] == kind])],
        )
    if plot is not None:
        from dlscale.bench.plots import draw_scaling

        draw_scaling(records, plot)


@bench.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.argument("picture", type=click.Path(path_type=Path))
def plot(runs: Sequence[Path], picture: Path) -> None:
    """Draw efficiency over workers from files of RUNS (see `scaling --output`) as PICTURE (SVG, PNG or PDF)."""
    from dlscale.bench.plots import draw_scaling

    draw_scaling([json.loads(line) for path in runs for line in path.read_text().splitlines()], picture)


def parse_workers(text: str | None, option: str) -> list[int]:
    """``1,2,8`` or ``1..1024`` (powers of two) as numbers.

    Raises
    ------
    SpecError
        If it is neither.
    """
    if text is None:
        return []
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", text):
        first, last = int(match[1]), int(match[2])
        numbers = [first * 2**i for i in range(64) if 0 < first * 2**i <= last]
    else:
        numbers = [int(part) for part in text.split(",")] if re.fullmatch(r"\d+(,\d+)*", text) else []
    if not numbers or min(numbers) < 1:
        raise SpecError(f"{option}: got {text!r}; allowed: numbers of at least 1, such as 1,2,4, or a range such as 1..1024.")
    return sorted(set(numbers))


def _measure(
    kind: str, workers: Sequence[int], folder: Path, *, mode: str, launcher: str, size: float, repeat: int
) -> Iterator[dict[str, Any]]:
    from dlscale.bench.limit import measure_limit
    from dlscale.bench.measuring import Run, measure

    def fastest(runs: Sequence[Run]) -> dict[str, Any]:
        return min(runs, key=lambda run: run.seconds).to_dict()

    jobs: dict[int, list[Run]] = {n: [] for n in workers}
    products: dict[int, list[Run]] = {n: [] for n in workers}
    for _ in range(repeat):
        for n in workers:
            products[n].append(replace(measure_limit(n), kind=f"product, beside {kind}"))
            jobs[n].append(measure(kind, n, folder, mode=mode, launcher=launcher, size=size))
    yield from (fastest(products[n]) for n in workers)
    yield from (fastest(jobs[n]) for n in workers)


def _predict(
    kind: str, workers: Sequence[int], folder: Path, *, scale: Scale, network: ModelCluster, shared: bool
) -> Iterator[dict[str, Any]]:
    if not workers:
        return
    from dlscale.bench.replay import predict

    yield from predict(kind, workers, folder, scale=scale, network=network, shared=shared)


def _keep(record: dict[str, Any], output: Path | None, as_json: bool) -> None:
    line = json.dumps(record)
    if as_json:
        click.echo(line)
    if output is not None:
        with open(output, "a", encoding="utf-8") as file:
            file.write(line + "\n")


def _rows(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, ...]]:
    from dlscale.bench.plots import efficiency

    for measured in (True, False):
        mine = [record for record in records if record["measured"] is measured]
        shares = efficiency({r["n_workers"]: r["seconds"] for r in mine}, mode=mine[0]["mode"]) if mine else {}
        for r in mine:
            m, n = r["shape"]
            yield (
                r["kind"],
                f"{m:,} x {n:,}",
                f"{r['n_workers']:,}",
                "measured" if measured else "predicted",
                f"{r['seconds']:.3g}",
                f"{shares[r['n_workers']]:.0%}",
                f"{r['flops'] / r['seconds'] / 1e9:.3g} GFLOP/s",
                "" if measured else f"{r['idle_share']:.0%}",
                "" if measured else f"{r['moved_bytes'] / 1e9:.3g} GB",
            )


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*titles, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 110)  # a table whose rows are broken cannot be read
    console.print(table)


@contextmanager
def _folder(folder: Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="dlscale-bench-") as place:
            yield Path(place)
    else:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
