"""Schedules at the steps that define them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlscale.errors import SpecError
from dlscale.learn.optimizers.schedules import SCHEDULES, schedule

EXAMPLES = {
    "constant": {},
    "step": {"every": 10, "factor": 0.5},
    "exponential": {"every": 10, "factor": 0.5},
    "cosine": {"n_steps": 100, "final": 0.1},
    "warmup_cosine": {"n_steps": 110, "n_warmup_steps": 10, "final": 0.1},
    "inverse_square_root": {"n_warmup_steps": 4},
}


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("constant", {0: 1, 10**6: 1}),
        ("step", {0: 1, 9: 1, 10: 0.5, 19: 0.5, 20: 0.25}),
        ("exponential", {0: 1, 5: math.sqrt(0.5), 10: 0.5, 20: 0.25}),
        ("cosine", {0: 1, 50: 0.55, 100: 0.1, 1000: 0.1}),
        ("warmup_cosine", {0: 0.1, 4: 0.5, 9: 1, 10: 1, 60: 0.55, 110: 0.1, 1000: 0.1}),
        ("inverse_square_root", {0: 0.25, 3: 1, 15: 0.5, 63: 0.25}),
    ],
)
def test_values(name, values):
    rate = schedule({"type": name, **EXAMPLES[name]})
    for step, value in values.items():
        assert rate(step) == pytest.approx(value, rel=1e-12)


@given(name=st.sampled_from(list(SCHEDULES)), step=st.integers(0, 10_000))
def test_factors_are_between_zero_and_one_and_fall_after_warming_up(name, step):
    rate = schedule({"type": name, **EXAMPLES[name]})
    assert 0 <= rate(step) <= 1
    if step >= 10:
        assert rate(step + 1) <= rate(step)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("linear", "schedule.type must be one of constant, step"),
        ("cosine", "schedule cosine needs the option 'n_steps'; add it"),
        ({"type": "step", "every": 0}, "schedule.every: got 0 .an integer.; allowed: an integer of at least 1: steps"),
        ({"type": "exponential", "every": 10, "factor": 2}, "schedule.factor: got 2 .*allowed: a number above 0, at most 1"),
        ({"type": "warmup_cosine", "n_steps": 5, "n_warmup_steps": 5}, "must be less than schedule.n_steps; got 5 of 5"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(SpecError, match=message):
        schedule(options)
