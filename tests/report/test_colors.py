"""Rows in the colours of a column: which colours they are, and what is said of them."""

from __future__ import annotations

import html
import re
from collections import Counter

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from dlscale.report import style
from dlscale.report.charts import CATEGORIES, COLOURS, SCALE
from dlscale.report.components.colors import coloring
from dlscale.report.components.sections import rows_in_the_plane
from dlscale.report.record import JobRecord, RowColor
from dlscale.report.sections import Job
from dlscale.storage.groups import open_arrays, sampled_color, sampled_rows
from dlscale.storage.labels.names import Text
from dlscale.storage.labels.writing import write_text
from dlscale.storage.writers import Layout, create_array

#: From linear sRGB to the cones of Oklab, and from their cube roots to lightness and two opponent colours (Ottosson 2020).
CONES = [
    [0.4122214708, 0.5363325363, 0.0514459929],
    [0.2119034982, 0.6806995451, 0.1073969566],
    [0.0883024619, 0.2817188376, 0.6299787005],
]
OPPONENT = [
    [0.2104542553, 0.793617785, -0.0040720468],
    [1.9779984951, -2.428592205, 0.4505937099],
    [0.0259040371, 0.7827717662, -0.808675766],
]
#: What eyes without one kind of cones see of linear sRGB (Machado, Oliveira and Fernandes 2009).
EYES = {
    "all cones": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def oklab(colours: str, eyes: str = "all cones") -> np.ndarray:
    s = np.array([[int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)] for colour in colours.split()])
    linear = np.where(s <= 0.04045, s / 12.92, ((s + 0.055) / 1.055) ** 2.4)
    return np.cbrt(np.clip(linear @ np.transpose(EYES[eyes]), 0, 1) @ np.transpose(CONES)) @ np.transpose(OPPONENT)


@pytest.mark.parametrize("eyes", EYES)
@pytest.mark.parametrize(("colours", "soft"), [(style._LIGHT, "#566373"), (style._DARK, "#9aa8b7")], ids=["light", "dark"])
def test_eyes_of_any_kind_tell_categories_apart(colours, soft, eyes):
    assert soft in style.STYLE
    seen = oklab(f"{colours['c']} {soft} {colours['none']}", eyes)  # in which a just noticeable difference is about 0.02
    distances = np.linalg.norm(seen[:, None] - seen, axis=-1) + np.eye(len(seen))
    assert distances.min() > 0.1
    assert len(seen) == len(CATEGORIES) + 2


@pytest.mark.parametrize("colours", [style._LIGHT, style._DARK], ids=["light", "dark"])
def test_shades_become_lighter_in_equal_steps(colours):
    steps = np.diff(oklab(colours["v"])[:, 0])
    assert len(steps) + 1 == len(SCALE)
    assert 0.01 < steps.min() < steps.max() < 4 * steps.min()


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=50), st.lists(st.sampled_from([*"abcdefghijklm", "", "<b>&", "\x1b[31m"]) | st.text(), min_size=1, max_size=40)
)
def test_each_row_has_one_colour_that_its_legend_explains(name, texts):
    colors = coloring(name, texts)
    parts = list(colors.parts())
    assert sorted(np.concatenate([rows for _, rows in parts]).tolist()) == list(range(len(texts)))
    assert {style for style, _ in parts} <= set(COLOURS)
    legend = str(colors.legend)
    assert set(re.findall(r"var\(--(\w+)\)", legend)) >= {style for style, _ in parts}
    assert not re.search(r"<(?!/?(p|b|i|span)[ >])|[\x00-\x1f]", legend)
    for part, rows in parts:
        kinds = {texts[k] for k in rows.tolist()}
        assert part in SCALE or (kinds == {""}) == (part == "none")
        assert part not in CATEGORIES or len(kinds) == 1


def test_the_most_frequent_categories_have_colours_of_their_own():
    texts = [letter for k, letter in enumerate("abcdefghijkl") for _ in range(20 - k)] + [""]
    colors = coloring("group", texts)
    counts = Counter({part: len(rows) for part, rows in colors.parts()})
    assert counts == {"none": 1, "soft": 12 + 11 + 10 + 9, **{f"c{k}": 20 - k for k in range(8)}}
    assert "4 others" in colors.legend
    assert "no value" in colors.legend
    assert re.findall(r"</i>([^<]*)", coloring("class", ["10", "2", "2", "-1"]).legend) == ["-1", "2", "10"]


def test_numbers_have_shades_and_those_far_away_do_not_take_them_all():
    numbers = np.arange(1200.0)
    colors = coloring("age", [*map(repr, numbers.tolist()), "", "nan"])
    parts = dict(colors.parts())
    assert [len(parts[shade]) for shade in SCALE] == [100] * 12
    assert parts["none"].tolist() == [1200, 1201]
    assert re.findall(r"<span>([^<]*)</span>", colors.legend) == ["0", "1199"]
    far = coloring("age", [*map(repr, numbers.tolist()), "-1e300", "1e308"])
    assert min(len(rows) for _, rows in far.parts()) > 80
    assert html.unescape(" ".join(re.findall(r"<span>([^<]*)</span>", far.legend))) == "≤ 11.01 ≥ 1188"


@pytest.mark.parametrize("n_rows", [1, 40, 700, 5000])
@pytest.mark.parametrize("kind", ["words", "numbers", "nothing"])
def test_planes_of_any_number_of_rows_in_colours(n_rows, kind):
    rng = np.random.default_rng(0)
    points, rows = rng.standard_normal((n_rows, 2)), np.unique(rng.integers(n_rows, size=2000))
    texts = {"words": ["<script>", "名"], "numbers": list(map(repr, rng.standard_normal(3000).tolist())), "nothing": [""]}[kind]
    color = RowColor("<i>\x07", rows, [texts[k % len(texts)] for k in range(len(rows))])
    labels = {"row": [f"row {i}" for i in range(n_rows)]}
    drawn = rows_in_the_plane(Job(JobRecord("pca-1", "pca", "pca", "succeeded", labels=labels, sample=points, color=color)))
    assert drawn is not None
    assert "&lt;i&gt; " in drawn
    assert "<script>" not in drawn
    assert ("1,500 of them, spread evenly, in the colours of their &lt;i&gt;" in drawn) == (n_rows == 5000)


def test_what_colours_rows_is_read_of_the_rows_that_are_drawn(tmp_path):
    group = zarr.create_group(tmp_path / "g.zarr")
    create_array(tmp_path / "g.zarr" / "scores", Layout((100, 3), "f8", (10, 3))).write(0, np.arange(300.0).reshape(100, 3))
    uri = str(group.store_path.store.root)
    assert sampled_color(uri, open_arrays(uri), "scores", max_bytes=500, most=100) is None
    write_text(tmp_path / "g.zarr" / "color", Text("color", "row", [f"{3.0 * i}" for i in range(100)], {"long_name": "number"}))
    for max_bytes, most in ((10_000, 100), (500, 100), (500, 7), (10_000, 33)):
        sample = sampled_rows(uri, open_arrays(uri), "scores", 2, max_bytes=max_bytes)
        name, rows, texts = sampled_color(uri, open_arrays(uri), "scores", max_bytes=max_bytes, most=most)
        assert (name, len(rows), len(set(rows.tolist()))) == ("number", min(len(sample), most), len(rows))
        np.testing.assert_array_equal(sample[rows, 0], np.array(texts, float))
