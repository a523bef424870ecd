from typing import Any

import numpy as np
import pytest
from job_records import START
from panel_records import lu_record, many_panels, two_panels
from test_html import Page

from dlscale.engine.events import StateChanged
from dlscale.report.html import render
from dlscale.report.record import JobRecord


def of_kind(kind: str, estimates: dict[str, Any], arrays: dict[str, np.ndarray], **changes: Any) -> JobRecord:
    return lu_record(kind=kind, estimates=estimates, arrays=arrays, **changes)


SOLVED = {"condition": 2.5e6, "backward_error": 3e-16, "forward_error_bound": 1.5e-9, "refinement_steps": 2, "norm": 9.0}
RECORDS = {
    "lu": (lu_record(), "Growth factor", "Row exchanges"),
    "lu, large": (lu_record(arrays={"piv": np.arange(40_000)}, events=many_panels(60)), "Row exchanges", "in 40,000 steps"),
    "lu, two groups": (lu_record(events=[*many_panels(9), *many_panels(12, "lu-2", start=1.0)]), "lu-2", "Panels and look-ahead"),
    "cholesky": (of_kind("cholesky", {}, {"l": np.tri(40)}), "The triangle L", "Factoring"),
    "solve": (of_kind("solve", SOLVED, {"x": np.ones(30)}), "costs about 6 digits", "after 2 refinement steps"),
    "solve, hopeless": (
        of_kind("solve", SOLVED | {"condition": None, "forward_error_bound": None}, {"x": np.ones((30, 6)) * 1j}),
        "no digit is sure",
        "the first 4 of 6",
    ),
    "lstsq": (of_kind("lstsq", {"rank": 7, "condition": 12.0}, {"x": np.ones(9)}), "Numerical rank", "minimum norm"),
    "inverse": (of_kind("inverse", {"condition": 12.0}, {}), "Condition", "The inverse of"),
    "slogdet": (
        of_kind("slogdet", {}, {"sign": np.array([-1.0]), "logabsdet": np.array([-230.2585])}),
        "|det| = 10 to the −100.00",
        "−1",
    ),
    "eigh": (
        of_kind("eigh", {"complete": True}, {"eigenvalues": np.arange(-3.0, 4.0), "residuals": np.full(7, 1e-15)}, plan={}),
        "none was missed",
        "gap to the next eigenvalue",
    ),
    "slogdet, singular": (
        of_kind("slogdet", {}, {"sign": np.array([0.6 + 0.8j]), "logabsdet": np.array([-np.inf])}),
        "singular to working precision",
        "0.6000 +0.8000 i",
    ),
    "polar": (
        of_kind("polar", {"distance": 3.5, "condition": 22.0, "iterations": 7}, {"p": np.eye(30)}),
        "The polar decomposition of",
        "3.50",
        "The Hermitian factor",
        "yellow is the largest entry",
    ),
    "norm": (
        of_kind("norm", {"error": 1e-15}, {"norm": np.array([7.98])}, spec={"kind": "norm", "params": {"ord": 2}}),
        "The 2-norm of",
        "7.98",
    ),
    "matmul": (
        of_kind(
            "matmul",
            {"largest": 12.5},
            {"product": np.eye(30)},
            spec={"kind": "matmul", "input": {"a": "x.zarr"}, "params": {"adjoint_b": True}},
        ),
        "The product A Aᴴ of",
        "12.5",
        "yellow is the largest entry",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_factorization_is_told(name: str) -> None:
    record, *told = RECORDS[name]
    html = render(record)
    page = Page(html)
    for words in told:
        assert words in page.text
    assert len(page.ids) == len(set(page.ids))
    assert len(html) < 800_000


def test_the_look_ahead_says_what_each_task_was() -> None:
    html = render(lu_record())
    assert "<title>apply panel 0 to panel 1: 1.00 s, 1.00 GFLOP/s</title>" in html
    assert "<title>factor panel 1: 500 ms, 2.00 GFLOP/s</title>" in html
    page = Page(html)
    assert "The matrix is factored in 2 panels of 24 columns, all of them in memory together" in page.text
    row = page.text[page.text.index("scheduling") :]
    assert "25.0 %" in row[:60]


def test_a_matrix_of_any_size_makes_a_small_page() -> None:
    # As many tasks as n = 80,000 has with panels of 512 columns.
    html = render(lu_record(events=many_panels(156), arrays={}))
    assert len(html) < 700_000
    assert "156 panels" not in html
    assert "<title>apply" not in html


def test_a_job_that_stopped_in_a_factorization_shows_how_far_it_came() -> None:
    stopped = StateChanged("interrupted", time=START + 2.8)
    record = lu_record(state="interrupted", certificate=None, arrays={}, events=[*two_panels()[:5], stopped])
    page = Page(render(record))
    assert "Panels and look-ahead" in page.text
    assert "the job stopped inside it" in page.text


def test_row_blocks_of_a_panel_are_not_told_apart() -> None:
    record = lu_record()
    tiled = lu_record(plan=record.plan | {"grids": {"panels": record.plan["grids"]["panels"] | {"row_blocks": 3}}})
    assert "scheduling" in Page(render(record)).text
    text = Page(render(tiled)).text
    assert "without a task" in text
    assert "scheduling" not in text
