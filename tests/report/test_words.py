import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlscale.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (1.0, "1.00"),
        (0.99999, "1.00"),
        (1.797e308, "1.80 × 10³⁰⁸"),
        (123.4, "123"),
        (45678.0, "45,700"),
        (1.234e-12, "1.23 × 10⁻¹²"),
        (-2.5e9, "−2.50 × 10⁹"),
        (math.inf, "∞"),
        (math.nan, "not a number"),
        (None, "–"),
    ],
)
def test_numbers_have_three_significant_digits(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.00002, "20.0 µs"), (0.25, "250 ms"), (4.561, "4.56 s"), (123, "2 min 03 s"), (3900, "1 h 05 min"), (183600, "2 d 3 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert words.duration(seconds) == text


def test_quantities_move_to_the_next_prefix_before_they_show_four_digits() -> None:
    assert words.size(999) == "999 B"
    assert words.size(999_600) == "1.00 MB"
    assert words.quantity(4.1e10, "FLOP/s") == "41.0 GFLOP/s"
    assert words.quantity(math.inf, "B/s") == "–"


def test_nearly_everything_is_not_called_everything() -> None:
    assert words.share(0.999999) == "99.999 %"
    assert words.share(1.0) == words.share(1 - 2e-16) == "100 %"
    assert words.share(0.0213) == "2.13 %"
    assert (words.part(0.99963), words.part(0.9999999), words.part(0.9994)) == ("0.99963", "0.99999", "0.999")
    assert words.part(1.0) == words.part(1 - 2e-16) == "1.00"
    assert words.fact("explained", 0.99999) == ("Explained", "0.99999")
    assert words.fact("final_validation_accuracy", 0.9996)[1] == "0.9996"


@given(st.floats(0, 1))
def test_no_share_is_rounded_to_all_or_to_none(value: float) -> None:
    if 0 < value < 1 - 1e-11:
        assert words.share(value) not in ("0 %", "100 %")
        assert words.part(value) not in ("0", "1.00", "1")


def test_words_are_in_number() -> None:
    assert words.workers({"n_workers": 1, "threads_per_worker": 1}) == "1 worker with 1 thread"
    assert words.workers({"n_workers": 1, "threads_per_worker": 4}) == "1 worker with 4 threads"
    assert words.workers({"n_workers": 1200, "threads_per_worker": 1}) == "1,200 workers with 1 thread each"


def test_units_of_facts_come_from_their_names() -> None:
    assert words.fact("read_bytes_per_second", 8e8) == ("Read", "800 MB/s")
    assert words.fact("memory_bytes", 4_000_000_000) == ("Memory", "4.00 GB")
    assert words.fact("n_workers", 12) == ("Number of workers", "12")
    assert words.fact("chunks", [4096, 192]) == ("Chunks", "4,096 × 192")
    assert words.fact("shards", None) == ("Shards", "–")
