from __future__ import annotations

import pytest

from dlscale.bench.simulation import ModelCluster, SimulatedJob, SimulatedTask, Stage, simulate

FREE = {"latency_seconds": 0.0, "scheduler_seconds": 0.0, "bandwidth_bytes_per_second": 1e9}


def leaf(seconds: float, n_bytes: int = 0, **more: object) -> SimulatedTask:
    return SimulatedTask("leaf", (), seconds, n_bytes, **more)


def job(*tasks: SimulatedTask, driver_seconds: float = 0.0) -> SimulatedJob:
    return SimulatedJob(list(tasks), [Stage("all", range(len(tasks)), driver_seconds)])


@pytest.mark.parametrize(("n_workers", "threads", "seconds", "idle"), [(1, 1, 8, 0), (2, 1, 4, 0), (1, 4, 2, 0), (16, 1, 1, 0.5)])
def test_equal_tasks_share_the_workers(n_workers, threads, seconds, idle):
    found = simulate(job(*(leaf(1.0) for _ in range(8))), ModelCluster(n_workers, threads, **FREE))
    assert found.seconds == pytest.approx(seconds)
    assert found.idle_share == pytest.approx(idle)
    assert (found.n_tasks, found.critical_seconds, found.moved_bytes) == (8, 1.0, 0)


def test_a_chain_takes_its_length_on_any_number_of_workers():
    tasks = [SimulatedTask("link", (i - 1,) if i else (), 0.5, 0) for i in range(10)]
    for n_workers in (1, 3, 100):
        found = simulate(job(*tasks, driver_seconds=1.0), ModelCluster(n_workers, **FREE))
        assert found.seconds == found.critical_seconds == pytest.approx(6.0)


def test_a_merge_goes_where_an_input_is_and_fetches_the_other():
    merge = SimulatedTask("merge", (0, 1), 1.0, 0)
    network = FREE | {"latency_seconds": 0.25, "bandwidth_bytes_per_second": 100.0}
    found = simulate(job(leaf(1.0, 50), leaf(1.0, 50), merge), ModelCluster(2, **network))
    # To the worker; leaf; to the scheduler; to the worker; half a second of bytes and one more latency; merge; to the driver.
    assert found.moved_bytes == 50
    assert found.seconds == pytest.approx(0.25 + 1 + 0.25 + 0.25 + 0.5 + 0.25 + 1 + 0.5)


def test_a_value_that_all_need_reaches_them_as_a_tree():
    value = SimulatedTask("data", (), 0.0, 100, is_data=True)
    users = [SimulatedTask("leaf", (0,), 0.0, 0) for _ in range(8)]
    found = simulate(job(value, *users), ModelCluster(8, **FREE | {"bandwidth_bytes_per_second": 100.0}))
    # One has it; after each second twice as many do.
    assert found.seconds == pytest.approx(3.0)
    assert found.moved_bytes == 700


def test_the_scheduler_is_one():
    found = simulate(job(*(leaf(0.0) for _ in range(1000))), ModelCluster(100, **FREE | {"scheduler_seconds": 1e-3}))
    assert found.seconds == pytest.approx(1.0, rel=0.01)


def test_smaller_priorities_start_first_and_preferred_workers_are_kept():
    tasks = [leaf(1.0, priority=p, worker=0) for p in (2.0, 0.0, 1.0)]
    after = SimulatedTask("after", (1,), 1.0, 0, priority=-1.0, worker=1)
    found = simulate(job(*tasks, after), ModelCluster(2, **FREE))
    # Worker 0 takes what comes first, then by priority; the one that worker 1 waits for is second at the latest.
    assert found.seconds == pytest.approx(3.0)
    alone = simulate(job(*tasks), ModelCluster(2, **FREE))
    assert alone.idle_share == pytest.approx(0.5)


def test_what_a_stage_computed_is_there_for_the_next():
    tasks = [leaf(1.0, 80, worker=0), SimulatedTask("next", (0,), 1.0, 0, worker=0), SimulatedTask("far", (0,), 1.0, 0, worker=1)]
    stages = [Stage("first", range(1), 0.0), Stage("second", range(1, 3), 0.5)]
    found = simulate(SimulatedJob(tasks, stages), ModelCluster(2, **FREE | {"bandwidth_bytes_per_second": 160.0}))
    assert found.moved_bytes == 80
    assert found.seconds == pytest.approx(1 + 0.5 + 0.5 + 1)
