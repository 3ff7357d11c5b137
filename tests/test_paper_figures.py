"""Figures can be read: in grey, by their names, and with as many groups as the wider study has."""

import io
import os
import subprocess
import sys
from itertools import combinations, product
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from ddlib.paper import evidence, figures, style, tables
from ddlib.paper.results import NoRows, Results
from ddlib.paper.style import same_picture
from ddlib.runs import methods
from ddlib.runs.profile import Group

HOME = Path(__file__).parent.parent
LAPTOP = Results(HOME / "results/laptop")
DARK = """
axes.facecolor: black
figure.facecolor: black
text.color: white
savefig.transparent: True
image.cmap: gray
lines.antialiased: False
errorbar.capsize: 9
font.size: 20
"""


@pytest.fixture
def styled():
    with style.style():
        yield


def png(name, results=LAPTOP):
    content = io.BytesIO()
    with style.style():
        figure = figures.FIGURES[name](results)
        figure.savefig(content, format="png", dpi=150, bbox_inches="tight")
    return content.getvalue()


def test_a_matplotlibrc_of_the_readers_changes_no_figure(tmp_path):
    (tmp_path / "matplotlibrc").write_text(DARK)
    draw = (
        "import sys; sys.path.insert(0, 'tests'); import test_paper_figures as t;"
        "assert t.plt.rcParams['axes.facecolor'] == 'black', 'the dark one is read';"
        "sys.stdout.buffer.write(t.png('quality'))"
    )
    dark = {"MATPLOTLIBRC": str(tmp_path), "PYTHONPATH": str(HOME)}
    command = [sys.executable, "-W", "ignore", "-c", draw]
    drawn = subprocess.run(command, cwd=HOME, env=os.environ | dark, capture_output=True)
    assert drawn.returncode == 0, drawn.stderr.decode()
    assert drawn.stdout == png("quality")


def test_the_style_ends_with_its_block(styled):
    with plt.rc_context({"font.size": 20, "axes.facecolor": "black"}):
        with style.style():
            assert plt.rcParams["font.size"] == 8 and plt.rcParams["font.family"] == [style.FONT]
            assert plt.rcParams["axes.facecolor"] == "white"
        assert plt.rcParams["font.size"] == 20 and plt.rcParams["axes.facecolor"] == "black"


def test_pictures_are_the_same_when_drawn_again_and_differ_when_a_row_does(tmp_path):
    kept = png("quality")
    assert same_picture(kept, png("quality")) is None
    rows = LAPTOP.rows("smoothness")
    rows.loc[0, "test_accuracy"] += 0.05
    Results(tmp_path).keep_rows("smoothness", rows)
    difference = same_picture(kept, png("quality", Results(tmp_path)))
    assert difference.endswith("of its pixels differ by more than 48 of 255 levels")
    assert "pixels kept, " in same_picture(kept, png("main"))
    assert "no sound PNG" in same_picture(kept[:1000], kept)
    assert "no sound PNG" in same_picture(b"", kept)


def shape(look):
    return look.marker, str(look.line)


def test_recipes_and_methods_differ_in_more_than_colour():
    """In each figure that shows them as lines."""
    lines = methods.CONDENSED | methods.DISTILLED | methods.RIVALS
    for looks in (style.RECIPES, {name: style.METHODS[name] for name in lines}):
        assert not [(a, b) for a, b in combinations(looks, 2) if shape(looks[a]) == shape(looks[b])]


@pytest.mark.parametrize("rows", [1, 2])
def test_names_at_the_ends_keep_apart_and_show_what_they_name(rows, styled):
    figure, axes = style.canvas(style.WIDE, 2.4 * rows, rows)
    for i, name in enumerate(style.RECIPES):
        style.band(axes[0], pd.DataFrame({0: [0.0, 1 + 1e-3 * i]}), name)
    style.name_ends(axes[0])
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in axes[0].texts if text.get_text()}
    in_order = [style.named(name) for name in style.RECIPES]
    assert [*boxes] == in_order, "in the order of the ends, from below"
    assert not [(a, b) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    right = axes[0].get_window_extent().x1
    assert all(right < box.x0 and box.x1 <= figure.bbox.x1 for box in boxes.values())
    samples = [line for line in axes[0].get_lines() if line.get_label() == "_sample"]
    shown = [(line.get_marker(), line.get_color()) for line in samples]
    assert shown == [(look.marker, look.color) for look in style.RECIPES.values()]


def test_items_stand_in_two_columns_where_one_would_be_too_high():
    assert evidence.in_columns([*"abc"], [3.0, 4.0, 5.0]) == [[*"abc"]]
    heights = [9.0, 6, 9, 4, 8, 8, 4, 4, 8, 6]
    left, right = evidence.in_columns([*range(10)], heights)
    assert left + right == [*range(10)] and abs(sum(heights[: len(left)]) - 33) <= 4
    assert evidence.in_columns(["high", "low"], [40.0, 1.0]) == [["high"], ["low"]]


def test_claims_without_rows_are_not_drawn(tmp_path, styled):
    lines = [("1", 0), ("1a", 3), ("1b", 0), ("2", 0), ("2a", 0)]
    numbers = {"effect": 0.1, "low": 0.05, "high": 0.15, "verdict": "supported"}
    table = pd.DataFrame([{"claim": c, "statement": f"of {c}", "n": n} | numbers for c, n in lines])
    results = Results(tmp_path)
    results.keep_table("claims", table)
    shown = {text.get_text() for text in evidence.claims(results).axes[0].texts}
    assert {"of 1", "of 1a", "of 1b"} <= shown and not {"of 2", "of 2a"} & shown
    results.keep_table("claims", table.assign(n=0))
    with pytest.raises(NoRows):
        evidence.claims(results)


def test_an_ablation_of_every_group_fits_a_page(tmp_path, styled):
    """Every change stands under the heading of its group, with the difference that rows give."""
    random, rows = np.random.default_rng(0), []
    own = Group(base="AST", methods=["AST + soft labels"])
    for name, group in {**methods.GROUPS, "AST with a rival's part": own}.items():
        cell = "digits-ipc3" if group is own else "digits-ipc1"
        for method, seed in product((group.base, *group.methods), range(3)):
            row = {"cell": cell, "group": name, "base": group.base, "method": method}
            row |= {"distil_seed": seed, "net_seed": 0, "protocol": "lr_chosen"}
            rows.append(row | {"accuracy": random.random()})
    rows = Results(tmp_path).keep_rows("ablation", pd.DataFrame(rows))
    figure = figures.FIGURES["ablation"](Results(tmp_path))
    assert figure.get_figheight() < 9.5
    labels = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    changes = rows[rows.method != rows.base].drop_duplicates(["group", "method"])
    assert len(labels) == len(changes) and "− ramp" in labels
    words = " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
    headings = words.replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")
    for group, base in changes[["group", "base"]].drop_duplicates().itertuples(index=False):
        assert f"{group}: against {base}" in headings
    assert "against AST on digits, IPC 3 (n = 3)" in headings
    assert "AST minus one: against AST (n = 3)" in headings
    means = rows[rows.cell == rows.cell[0]].groupby("method", sort=False).accuracy.mean()
    lines = figure.axes[0].get_lines()
    point = next(x for x in lines if x.get_marker() == "o" and x.get_markersize() == 5)
    assert point.get_xdata()[0] == pytest.approx(100 * (means["AST − ramp"] - means["AST"]))


def test_a_figure_says_of_how_many_experts_its_lines_are():
    rows = LAPTOP.rows("experts")
    assert figures.of_experts(rows).endswith("n = 3–5")
    assert figures.of_experts(rows[rows.recipe == "sgd"]).endswith("n = 5")


def test_without_times_the_table_says_so(tmp_path):
    results = Results(tmp_path)
    names = {"study": "main", "cell": "a", "method": "AST", "distil_seed": 0, "settings_key": "k"}
    unknown = dict.fromkeys(("seconds", "processor_seconds", "megabytes", "experts_seconds"))
    cost = names | {"lr": 0.1, "iterations": 2} | unknown
    results.keep_rows("costs", pd.DataFrame([cost]))
    (line,) = tables.costs(results).to_dict("records")
    assert (line["sets"], line["noted"]) == (1, 0) and np.isnan(line["seconds"])
    results.keep_rows("costs", pd.DataFrame([cost | {"seconds": 8.0}]))
    assert tables.costs(results).noted.item() == 1
