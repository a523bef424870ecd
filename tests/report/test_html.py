import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from job_records import START, certificate, pca_record, qr_record, run_events, svd_record
from sklearn.datasets import load_sample_images

from dlscale.engine.events import Warned
from dlscale.report.charts import chart, logarithmic
from dlscale.report.html import render
from dlscale.report.record import JobRecord

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
VOID = {"meta", "img", "br", "hr"}


class Page(HTMLParser):
    """Checks that tags balance, and collects visible text and the values of attributes that load something."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "xlink:href", "action")]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text += data + " "


def photo_patches(n: int = 1500, side: int = 8) -> np.ndarray:
    rng = np.random.default_rng(0)
    photos = load_sample_images().images
    corners = rng.integers(0, 400, (n, 2))
    return np.array([photos[i % 2][r : r + side, c : c + side].ravel() for i, (r, c) in enumerate(corners)], dtype=float)


PATCHES = photo_patches()


def records() -> dict[str, JobRecord]:
    stopped = [e for e in run_events(["sketch", "power-1"]) if e.time < START + 4]
    return {
        "pca of pictures": pca_record(PATCHES, image_shape=(8, 8, 3)),
        "pca of grey pictures": pca_record(PATCHES[:, ::3], image_shape=(8, 8)),
        "pca of columns": pca_record(PATCHES[:, :40], image_shape=None),
        "pca of two columns": pca_record(PATCHES[:, :2], image_shape=None),
        "wrong image shape": pca_record(PATCHES, image_shape=(8, 8)),
        "svd": svd_record(),
        "svd, complex": svd_record(arrays={"s": np.array([3.0, 0.0]), "vh": np.eye(2, 9) * 1j}, estimates={}),
        "svd, one value": svd_record(
            arrays={"s": np.array([2.0]), "vh": np.ones((1, 1))}, estimates={"singular_value_errors": [0.1]}
        ),
        "svd, one error not determined": svd_record(
            arrays={"s": np.array([2.0, 1.0]), "vh": np.eye(2)}, estimates={"singular_value_errors": [0.1, None]}
        ),
        "svd, all zero": svd_record(arrays={"s": np.zeros(3), "vh": np.eye(3)}, estimates={"singular_value_errors": [0.0] * 3}),
        "svd, a thousand": svd_record(arrays={"s": np.geomspace(1, 1e-12, 1000), "vh": np.ones((3, 5000))}, estimates={}),
        "qr": qr_record(),
        "qr, singular": qr_record(arrays={"r": np.diag([1.0, 0.0])}),
        "no events": svd_record(events=[]),
        "no plan": svd_record(plan={}),
        "no arrays": pca_record(PATCHES, image_shape=(8, 8, 3), arrays={}),
        "in memory": svd_record(
            plan=svd_record().plan | {"rates": {"read_bytes_per_second": float("inf"), "matmul_flops_per_second": None}}
        ),
        "interrupted": svd_record(state="interrupted", certificate=None, arrays={}, seconds=None, events=stopped),
        "unknown kind": JobRecord(id="a", name="", kind="permanent", state="running"),
    }


RECORDS = records()


@pytest.mark.parametrize("name", RECORDS)
def test_a_page_is_whole_and_needs_nothing_else(name: str) -> None:
    record = RECORDS[name]
    # Of this process alone: what else runs on the machine does not make the page slow to draw.
    started = time.process_time()
    html = render(record)
    assert time.process_time() - started < 3
    assert len(html.encode()) < 3_000_000
    page = Page(html)
    assert len(page.ids) == len(set(page.ids))
    assert all(load.startswith("data:image/png;base64,") or load[1:] in page.ids for load in page.loads)
    assert set(re.findall(r"url\((.*?)\)", html)) <= {f"#{name}" for name in page.ids}
    assert not re.search(r"https?://|@import|<script|<link", html)
    assert not re.search(r"\bnan\b|\binf\b", re.sub(r"base64,[^\"]*", "", html))


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium here")
def test_no_number_at_the_head_of_a_page_is_cut(tmp_path: Path) -> None:
    """A number that lost its last digits reads as another number."""
    from playwright.sync_api import sync_playwright

    long = 'class="value">−4.34 × 10⁻¹⁹ to 0.00222<'
    html, n_long = re.subn(r'class="value">8\.90 s<', long, render(svd_record()))
    assert n_long == 1
    (tmp_path / "page.html").write_text(html)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"] if os.geteuid() == 0 else [])
        for width in (1200, 900, 360):
            page = chromium.new_page(viewport={"width": width, "height": 800})
            page.goto(f"file://{tmp_path}/page.html")
            cut = (
                "[...document.querySelectorAll('.tile .value')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.textContent)"
            )
            assert page.evaluate(cut) == []
        chromium.close()


def test_a_pca_of_pictures_shows_its_components_as_pictures() -> None:
    page = Page(render(pca_record(PATCHES, image_shape=(8, 8, 3))))
    assert page.tags.count("img") == 24
    assert "The first 32 principal components of photos.zarr" in page.text
    assert "Variance explained" in page.text
    assert "of the centred matrix, in Frobenius norm" in page.text
    assert Page(render(RECORDS["pca of columns"])).tags.count("img") == 0


def test_the_certificate_is_told_in_words() -> None:
    record = svd_record()
    page = Page(render(record))
    assert record.certificate is not None
    for check in record.certificate["checks"]:
        assert check["meaning"] in page.text
        assert check["name"] in page.text
    assert "Every check passed." in page.text
    assert "2 of 2 checks passed" in page.text


@pytest.mark.parametrize("value", [412.0, float("inf"), float("nan"), None])
def test_a_failed_certificate_is_shown_as_failed(value: float | None) -> None:
    page = Page(
        render(svd_record(state="failed", certificate=certificate(0.8, value), reason="The answer failed its certificate."))
    )
    assert "This job failed." in page.text
    assert "The answer failed its certificate." in page.text
    assert "1 of 2 checks failed" in page.text
    assert "Every check passed." not in page.text
    assert "dlscale resume" not in page.text


@pytest.mark.parametrize("state", ["interrupted", "cancelled", "lost"])
def test_a_stopped_job_says_why_and_how_to_go_on(state: str) -> None:
    stopped = [e for e in run_events(["sketch", "power-1"]) if e.time < START + 4]
    page = Page(render(svd_record(state=state, certificate=None, arrays={}, reason="SIGTERM arrived.", events=stopped)))
    assert f"This job was {state}." in page.text
    assert "SIGTERM arrived." in page.text
    assert "after the checkpoint of step “sketch”" in page.text
    assert "dlscale resume 20260812-1511-spectrum-11bc" in page.text
    assert "the job stopped inside it" in page.text


def test_text_from_a_job_cannot_become_markup() -> None:
    evil = "</style><script>alert('x')</script>&\"<b"
    events = [*run_events([evil]), Warned(evil, time=START + 1)]
    record = svd_record(
        id=evil,
        name=evil,
        spec={"kind": "svd", "input": {"matrix": evil}, "params": {"n_components": evil}},
        reason=evil,
        notes=[evil],
        events=events,
        machine={evil: evil},
        versions={evil: evil},
        result=evil,
        certificate={"passed": True, "checks": [{"name": evil, "value": 1.0, "threshold": 30.0, "passed": True, "meaning": evil}]},
    )
    html = render(record)
    assert "<script" not in html
    assert html.count("</style>") == 1
    assert Page(html).text.count("<script>alert('x')</script>") > 6


def test_plan_and_measurement_stand_side_by_side() -> None:
    page = Page(render(svd_record()))
    for word in (
        "Planned for each worker: blocks 600 MB, 6 partial results 300 MB.",
        "planned",
        "measured",
        "floating-point work",
        "peak memory",
        "worker 0",
        "limit 800 MB/s",
    ):
        assert word in page.text


def test_the_same_record_gives_the_same_page() -> None:
    assert render(svd_record()) == render(svd_record())


def test_charts_have_the_pages_colours_and_type_and_say_their_numbers_when_pointed_at() -> None:
    html = render(svd_record())
    figure = html[html.index("singular values, 20 values") : html.index("</svg>", html.index("singular values, 20 values"))]
    assert set(re.findall(r"(?:fill|stroke): ([^;\"]+)", figure)) <= {
        "none",
        "var(--ink)",
        "var(--soft)",
        "var(--line)",
        "var(--s3)",
    }
    assert html.count("<style>") == 1
    assert figure.count("<title>") == 20
    assert "<title>1: 40.0</title>" in figure


def test_matplotlib_comes_with_the_first_chart_and_keeps_its_settings() -> None:
    program = """
import sys
from job_records import svd_record
from dlscale.report.charts import chart, logarithmic
from dlscale.report.html import render
assert "matplotlib" not in sys.modules
import matplotlib
matplotlib.rcParams["lines.linewidth"] = 17
before = matplotlib.rcParams.copy()
page = render(svd_record())
assert matplotlib.rcParams.copy() == before
assert "matplotlib.pyplot" not in sys.modules
assert "stroke-width: 17" not in page
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("low", [5e-324, 1e-310, 1e-200, 1.0, 1.7e308])
@pytest.mark.parametrize("high", [5e-324, 1e-300, 1.5, 1e308, 1.7e308])
def test_a_logarithmic_axis_shows_numbers_of_any_size(low: float, high: float) -> None:
    low, high = sorted((low, high))
    with chart(300, 200, "any size") as drawn:
        axes = drawn.axes(40, 10, 290, 180)
        drawn.tip(axes.plot([0.5, 1], [low, high], ".")[0], "the lower", "the higher")
        logarithmic(axes, low, high)
        logarithmic(axes, 0.5, 1.0, along="x")
    assert drawn.markup.count("<title>") == 2
    assert "$" not in drawn.markup  # no tick is written as a formula


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("power", [-1000, 0, 1015])
def test_what_is_left_unexplained_is_a_part_at_any_scale(power: int) -> None:
    record = svd_record()
    s = np.ldexp([4.0, 2.0, 2.0], power)
    record = replace(record, arrays=record.arrays | {"s": s}, estimates=record.estimates | {"frobenius_error": 5 * 2.0**power})
    assert re.search(r'Left unexplained</h3><p class="value">71\.4 %', render(record))
