from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from dlscale.bench import workloads
from dlscale.bench.commands import bench, parse_workers
from dlscale.bench.growth import grown, kinds_of
from dlscale.bench.measuring import cores
from dlscale.bench.plots import efficiency, model_of, problem_of
from dlscale.bench.replay import trace
from dlscale.bench.simulation import ModelCluster, simulate
from dlscale.bench.tracing import Trace, TracedGraph, replayed
from dlscale.errors import SpecError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def svd(folder):
    return trace("svd", folder, size=0.06), trace("svd", folder, size=0.03)


def test_one_worker_without_overheads_takes_the_traced_time(svd):
    job = replayed(svd[0])
    alone = ModelCluster(1, 1, 1e15, 0.0, 0.0)
    found = simulate(job, alone)
    graph_seconds, between_seconds = svd[0].overheads
    driver = sum(svd[0].driver_seconds) + graph_seconds * len(job.stages)
    assert found.seconds == pytest.approx(job.work_seconds + driver)
    assert found.critical_seconds <= found.seconds * (1 + 1e-9)
    between = simulate(job, replace(alone, between_seconds=between_seconds))
    assert between.seconds == pytest.approx(svd[0].ended - svd[0].started, rel=1e-6)


@pytest.mark.parametrize("waited", [(1.0, 1.9), (0.1, 2.0), (2.0, 0.1)], ids=["both", "tasks alone", "graphs alone"])
def test_overheads_are_all_that_was_waited_for(waited):
    graphs = [
        TracedGraph({}, {}, {}, started=10.0, ended=10.0 + 3.0 + seconds, seconds=dict.fromkeys(range(n), 3.0 / n))
        for n, seconds in zip((10, 100), waited, strict=True)
    ]
    graph_seconds, between_seconds = Trace(graphs, 10.0, 20.0, 1.0, (1, 1)).overheads
    assert min(graph_seconds, between_seconds) >= 0
    assert 2 * graph_seconds + 110 * between_seconds == pytest.approx(sum(waited))


def test_more_workers_are_never_slower_than_the_longest_chain_nor_faster_than_their_share(svd):
    job = replayed(svd[0])
    driver = sum(svd[0].driver_seconds)
    for n in (1, 2, 4, 64, 1024):
        found = simulate(job, ModelCluster(n))
        assert found.seconds >= max(found.critical_seconds, driver + job.work_seconds / n)
        assert 0 <= found.idle_share < 1


def test_a_larger_pass_is_the_engines_own_graph_with_the_traced_rates(svd):
    before = replayed(svd[0])
    same = grown(*svd, svd[0].shape, flops=1.0)
    assert len(same.stages) == len(before.stages)
    ten = grown(*svd, (10 * svd[0].shape[0], svd[0].shape[1]), flops=1.0)
    leaves = sum(task.seconds for task in before.tasks if task.kind == "run_leaf")
    for job, factor in ((same, 1), (ten, 10)):
        assert sum(task.seconds for task in job.tasks if task.kind == "run_leaf") == pytest.approx(factor * leaves)
    assert len(ten.tasks) > len(same.tasks)


def test_a_larger_factorization_is_the_engines_own_graph_with_the_traced_rates(folder):
    traced, smaller = trace("lu", folder, size=0.02), trace("lu", folder, size=0.01)
    assert {"factor_panel", "apply_panel", "load_panels", "write_panel"} <= kinds_of(traced.graphs[0]) | kinds_of(traced.graphs[1])
    same, before = grown(traced, smaller, traced.shape, flops=1.0), replayed(traced)
    for kind in ("factor_panel", "apply_panel"):
        seconds = [sum(task.seconds for task in job.tasks if task.kind == kind) for job in (same, before)]
        assert seconds[0] == pytest.approx(seconds[1])
    eight = grown(traced, smaller, (2 * traced.shape[0], 2 * traced.shape[1]), flops=1.0)
    seconds = [sum(task.seconds for task in job.tasks if task.kind == "apply_panel") for job in (eight, before)]
    assert 7 < seconds[0] / seconds[1] < 9
    found = simulate(eight, ModelCluster(4))
    assert found.moved_bytes > 0


def test_command_predicts_writes_and_draws(folder, tmp_path):
    output, plot = tmp_path / "runs.jsonl", tmp_path / "scaling.svg"
    arguments = ["scaling", "--kinds", "svd", "--size", "0.02", "--simulate", "1..4", "--mode", "weak", "--folder", str(folder)]
    ended = CliRunner().invoke(bench, [*arguments, "--output", str(output), "--plot", str(plot)], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [record["n_workers"] for record in records] == [1, 2, 4]
    assert [record["shape"][0] for record in records] == [2000, 4000, 8000]
    assert plot.read_text().count("<svg") == 1
    assert "predicted" in ended.output


def test_what_a_confined_thread_starts_is_confined():
    allowed = os.sched_getaffinity(0)
    count = [sys.executable, "-c", "import os; print(len(os.sched_getaffinity(0)))"]
    with cores(range(1)):
        assert subprocess.run(count, capture_output=True, text=True, check=True).stdout == "1\n"
    with cores(range(len(allowed) + 1)):  # there are not so many
        assert os.sched_getaffinity(0) == allowed
    assert os.sched_getaffinity(0) == allowed


def test_efficiency():
    assert efficiency({1: 8.0, 2: 4.0, 4: 4.0}, mode="strong") == {1: 1.0, 2: 1.0, 4: 0.5}
    assert efficiency({1: 8.0, 2: 8.0, 4: 16.0}, mode="weak") == {1: 1.0, 2: 1.0, 4: 0.5}


def test_numbers_of_workers():
    assert parse_workers("1..1024", "--simulate") == [2**i for i in range(11)]
    assert parse_workers("4,1,2", "--workers") == [1, 2, 4]
    for wrong in ("0", "1..", "a", "8..4", ""):
        with pytest.raises(SpecError, match=r"--workers: got .* allowed: numbers"):
            parse_workers(wrong, "--workers")
    with pytest.raises(SpecError, match="--kinds: got lx; allowed: svd"):
        workloads.workload("lx")


def test_drawing_takes_measured_and_predicted_runs(tmp_path):
    model = {"bandwidth_bytes_per_second": 1.25e9, "latency_seconds": 5e-5, "scheduler_seconds": 5e-4}
    runs = [
        {
            "kind": "svd",
            "mode": "strong",
            "shape": [1000, 100],
            "n_workers": n,
            "seconds": 8 / n**0.9,
            "measured": measured,
            **model,
        }
        for n in (1, 2)
        for measured in (True, False)
    ]
    (tmp_path / "runs.jsonl").write_text("\n".join(map(json.dumps, runs)))
    ended = CliRunner().invoke(bench, ["plot", str(tmp_path / "runs.jsonl"), str(tmp_path / "a.svg")], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    assert (tmp_path / "a.svg").stat().st_size > 5000
    assert problem_of(runs, "svd", "strong", True) == "1,000 x 100"
    assert "1.25 GB/s, 50 us" in model_of(runs)
    assert model_of([run for run in runs if run["measured"]]) == ""
