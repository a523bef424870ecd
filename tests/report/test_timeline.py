import numpy as np
import pytest
from job_records import START, run_events

from dlscale.engine.events import MemoryTaken, StateChanged, StepFinished, StepStarted, Warned
from dlscale.report.timeline import PassRun, folded, read_timeline


def test_the_throughput_integrates_to_what_the_passes_read() -> None:
    timeline = read_timeline(run_events(["sketch", "project"]))
    assert timeline is not None
    read = np.sum(timeline.read_rate * np.diff(timeline.edges))
    assert read == pytest.approx(timeline.bytes_read)
    assert np.sum(timeline.flop_rate * np.diff(timeline.edges)) == pytest.approx(timeline.flops)
    assert [run.step for run in timeline.passes] == ["sketch", "project"]


def test_a_pass_without_block_events_has_its_mean_rate() -> None:
    events = [
        StepStarted("gram", time=START),
        StepFinished("gram", 10.0, bytes_read=5_000_000_000, flops=2e10, time=START + 10),
    ]
    timeline = read_timeline(events)
    assert timeline is not None
    np.testing.assert_allclose(timeline.read_rate, 5e8)


def test_the_pause_before_a_resumed_run_is_left_out_of_the_axis() -> None:
    first = [e for e in run_events(["sketch", "power-1"]) if e.time < START + 4.2]
    second = run_events(["power-1", "project"], start=START + 7200)
    loaded = StepFinished("sketch", 0.1, bytes_read=800_000_000, flops=8e9, resumed=True, time=START + 7200.2)
    # Planning may log before the run begins.
    warning = Warned("a worker was lost", time=START + 7199)
    timeline = read_timeline([*first, warning, loaded, *second])
    assert timeline is not None
    assert timeline.seconds < 15
    assert [round(gap) for _, gap in timeline.pauses] == [7195]
    assert [(run.step, run.outcome) for run in timeline.passes] == [
        ("sketch", "done"),
        ("power-1", "cut"),
        ("sketch", "loaded"),
        ("power-1", "done"),
        ("project", "done"),
    ]
    assert next(run for run in timeline.passes if run.outcome == "loaded").bytes_read == 0


def test_memory_is_summed_over_the_processes_that_live_at_a_time() -> None:
    def sample(second: float, process: str, rss: int) -> MemoryTaken:
        return MemoryTaken(process, rss, time=START + second)

    timeline = read_timeline(
        [sample(0, "driver", 10), sample(0, "0", 100), sample(1, "driver", 10), sample(9, "driver", 20), sample(9, "1", 50)]
    )
    assert timeline is not None
    assert timeline.peak_bytes == 110
    assert list(timeline.memory) == ["driver", "0", "1"]
    assert timeline.memory["0"].tolist() == [100, 100, 0]


def test_tasks_in_the_drivers_process_are_not_counted_twice() -> None:
    events = [MemoryTaken(process, 7, time=START) for process in ("driver", "pid 4711")]
    timeline = read_timeline(events)
    assert timeline is not None
    assert timeline.peak_bytes == 7


def test_no_events_no_timeline() -> None:
    assert read_timeline([]) is None
    assert read_timeline([StateChanged("running")]) is None


def test_many_passes_of_one_name_are_one_row() -> None:
    passes = [PassRun("begin", 0.0, 1.0, 5.0, 7.0, "done")]
    for k in range(1, 52):
        passes.append(PassRun(f"product-{k}", k, k + 0.5, 2.0, 3.0, "loaded" if k < 4 else "done"))
        passes.append(PassRun(f"iteration-{k}", k + 0.5, k + 0.75, 0.0, 0.0, "done"))
    found = folded(passes)
    assert [run.step for run in found] == [
        "begin", "product-1", "iteration-1 to 51 (51)", "product-2", "product-3", "product-4 to 51 (48)"
    ]  # fmt: skip
    assert sum(run.seconds for run in found) == sum(run.seconds for run in passes)
    assert (sum(run.flops for run in found), sum(run.bytes_read for run in found)) == (5.0 + 2.0 * 51, 7.0 + 3.0 * 51)
    assert folded(passes[:9]) == passes[:9]
