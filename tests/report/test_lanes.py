import time

import numpy as np
import pytest
from job_records import START, run_events
from panel_records import FLOPS, block, many_panels, two_panels

from dlscale.engine.events import Event, StateChanged
from dlscale.report.lanes import TASKS, Lanes, read_lanes, shares, steps
from dlscale.report.lookahead import fill


def lanes_of(events: list[Event]) -> Lanes:
    lanes = read_lanes(events)
    assert lanes is not None
    return lanes


def test_the_time_of_all_threads_is_tasks_scheduling_and_waiting() -> None:
    where = shares(lanes_of(two_panels()))
    # Two threads for four seconds.
    assert where.thread_seconds == pytest.approx(8.0)
    assert where.tasks == pytest.approx({"load": 2 / 8, "factor": 1 / 8, "apply": 1 / 8, "write": 1 / 8})
    # The apply was ready at 1.5 s and began at 1.75 s, and so for the write of panel 1; that of panel 0 was ready at 1.5 s.
    assert where.scheduling == pytest.approx((0.25 + 0.25 + 1.5) / 8)
    assert sum(where.tasks.values()) + where.scheduling + where.waiting == pytest.approx(1.0)


def test_a_thread_without_any_task_has_waited() -> None:
    where = shares(lanes_of(two_panels()), 4)
    assert where.thread_seconds == pytest.approx(16.0)
    assert where.waiting == pytest.approx(1 - 5 / 16 - 2 / 16)


def test_a_task_waits_for_its_transform_and_for_its_panel() -> None:
    lanes = lanes_of(two_panels())
    ready = {(TASKS[t], int(p)): float(r) for t, p, r in zip(lanes.task, lanes.panel, lanes.ready, strict=True)}
    assert ready["factor", 0] == pytest.approx(1.0)
    assert ready["apply", 1] == pytest.approx(1.5)
    assert ready["factor", 1] == pytest.approx(2.75)
    assert ready["write", 1] == pytest.approx(3.25)


def test_steps_hold_all_the_work_and_their_rates() -> None:
    first, second = steps(lanes_of(two_panels()))
    assert (first.panel, first.flops) == (0, 2 * FLOPS)
    assert (first.start, first.stop) == pytest.approx((1.0, 2.75))
    assert first.rate == pytest.approx(2 * FLOPS / 1.75)
    # Two threads that compute all the time: 2 x 2 GFLOP in 1.5 s of one thread.
    assert first.kernel_rate == pytest.approx(2 * 2 * FLOPS / 1.5)
    assert second.rate == pytest.approx(FLOPS / 0.5)


def test_steps_of_a_large_factorization_cover_its_time() -> None:
    n = 160
    events = many_panels(n)
    started = time.process_time()
    lanes = lanes_of(events)
    found = steps(lanes)
    where = shares(lanes)
    assert time.process_time() - started < 2
    assert [step.panel for step in found] == list(range(n))
    assert sum(step.flops for step in found) == pytest.approx(len(lanes.start) * FLOPS)
    assert found[-1].stop == pytest.approx(lanes.stop.max())
    # While one panel is factored the other thread has nothing to do, and at the end of every second step.
    assert where.scheduling == pytest.approx(0.0, abs=0.01)
    assert where.waiting == pytest.approx((n + n // 2) * 0.001 / where.thread_seconds, rel=0.05)


def test_who_follows_another_has_its_lane() -> None:
    one = [block("lu-1", "factor", j, 2.0 * j, thread=10 + j) for j in range(3)]
    assert lanes_of(one).names == ("thread 1",)
    resumed = [*one, block("lu-1", "factor", 3, 9.0, worker="tcp://b")]
    assert lanes_of(resumed).names == ("thread 1",)
    two = [*one, block("lu-1", "factor", 3, 1.0, worker="tcp://b")]
    assert lanes_of(two).names == ("worker 0, thread 1", "worker 1, thread 1")
    at_once = [block("lu-1", "factor", j, 0.1 * j, thread=j) for j in range(3)]
    assert lanes_of(at_once).names == ("thread 1", "thread 2", "thread 3")


def test_a_pass_that_ran_again_is_measured_by_itself() -> None:
    running = StateChanged("running", time=START + 999.0)
    lanes = lanes_of([*two_panels()[:5], running, *many_panels(4, start=1000.0)])
    assert lanes.parts == ("lu-1", "lu-1")
    # The pause between the two runs is left out.
    assert lanes.stop.max() < 10
    assert shares(lanes).thread_seconds < 2 * (2.75 + 0.1)


def test_passes_over_rows_have_no_lanes() -> None:
    assert read_lanes(run_events(["sketch"])) is None
    assert read_lanes([]) is None


def test_strips_show_what_fills_most_of_them() -> None:
    start, stop = np.array([0.0, 1.0, 2.5]), np.array([1.0, 2.0, 4.0])
    runs = fill(start, stop, np.array([0, 3, 0]), (0.0, 4.0), n_strips=8)
    assert runs[0].tolist() == [[0.0, 1.0], [2.5, 4.0]]
    assert runs[3].tolist() == [[1.0, 2.0]]
    assert fill(start, stop, np.array([0, 3, 0]), (0.0, 4.0), n_strips=1) == {0: pytest.approx(np.array([[0.0, 4.0]]))}
