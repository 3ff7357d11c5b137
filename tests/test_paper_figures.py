"""Figures can be read: in grey, by their names, and with as many methods and groups as the wider study has."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest
from test_project import LAPTOP

from ddlib import settings as config
from ddlib.paper import figures as plots
from ddlib.paper.results import Results
from ddlib.runs import studies

FULL = config.profile("laptop-full")


@pytest.fixture
def styled():
    with plots.style():
        yield


def shape(look):
    return look.marker, str(look.line)


def test_recipes_and_methods_differ_in_more_than_colour():
    """In each figure that shows them as lines: recipes, and the methods whose distillation is followed."""
    made = studies.methods(FULL)
    lines = {
        method
        for cell in FULL.cells.values()
        for method in cell.methods
        if made[method].recipe or method in plots.WITHOUT_EXPERTS
    }
    for looks in (
        {name: plots.RECIPES[name] for name in FULL.recipes},
        {name: plots.DISTILLED[name] for name in lines},
    ):
        assert not [(a, b) for a, b in combinations(looks, 2) if shape(looks[a]) == shape(looks[b])]


def test_a_method_and_the_same_without_the_balanced_loss_have_two_looks():
    rows = [method for one in studies.groups(FULL).values() for method in (one.base, *one.methods)]
    pairs = [
        (name, name + plots.UNBALANCED)
        for name in dict.fromkeys(rows)
        if name + plots.UNBALANCED in rows
    ]
    assert len(pairs) == 2 and all(shape(plots.LOOKS[a]) != shape(plots.LOOKS[b]) for a, b in pairs)


@pytest.mark.parametrize("rows", [1, 2])
def test_names_at_the_ends_keep_apart_and_show_what_they_name(rows, styled):
    figure, axes = plots.canvas(plots.WIDE, 2.4 * rows, rows)
    for i, name in enumerate(plots.RECIPES):
        plots.band(axes[0], pd.DataFrame({0: [0.0, 1 + 1e-3 * i]}), name)
    plots.name_ends(axes[0])
    figure.draw_without_rendering()
    boxes = {text.get_text(): text.get_window_extent() for text in axes[0].texts if text.get_text()}
    assert [*boxes] == [name.replace("_", " ") for name in plots.RECIPES], (
        "in the order of the ends, from below"
    )
    assert not [(a, b) for a, b in combinations(boxes, 2) if boxes[a].overlaps(boxes[b])]
    assert all(
        box.x0 > axes[0].get_window_extent().x1 and box.x1 <= figure.bbox.x1
        for box in boxes.values()
    )
    samples = [line for line in axes[0].get_lines() if line.get_label() == "_sample"]
    assert [(line.get_marker(), line.get_color()) for line in samples] == [
        (look.marker, look.color) for look in plots.RECIPES.values()
    ]


def test_a_difference_of_images_is_scaled_by_all_but_the_largest_changes(styled):
    held, first, _ = plots.distilled(LAPTOP)
    before, after = (
        plots.pixels(held, images[first])
        for images in (held.tensors["history"][0], held.tensors["images"])
    )
    (ax,) = plots.images(LAPTOP).axes
    said = float(ax.get_yticklabels()[2].get_text().split("± ")[1].rstrip(")"))
    assert (
        said == pytest.approx(np.quantile(np.abs(after - before), 0.99), abs=0.005)
        and (np.abs(after - before) < said + 0.005).mean() > 0.98
    )
    page, (h, w) = ax.get_images()[0].get_array(), before.shape[1:3]
    top = 2 * (h + 1 + h // 32)
    np.testing.assert_allclose(
        page[top : top + h, :w], np.clip(0.5 + (after - before)[0] / (2 * said), 0, 1), atol=0.02
    )


def test_items_stand_in_two_columns_where_one_would_be_too_high():
    assert plots.in_columns([*"abc"], [3.0, 4.0, 5.0]) == [[*"abc"]]
    left, right = plots.in_columns([*range(10)], [9.0, 6, 9, 4, 8, 8, 4, 4, 8, 6])
    assert (
        left + right == [*range(10)]
        and abs(sum([9, 6, 9, 4, 8, 8, 4, 4, 8, 6][: len(left)]) - 33) <= 4
    )
    assert plots.in_columns(["high", "low"], [40.0, 1.0]) == [["high"], ["low"]]


def test_the_ablation_of_the_wider_study_fits_a_page(tmp_path, styled):
    """Made-up rows; every change stands under the heading of its group, with the difference that the rows give."""
    chance, rows = np.random.default_rng(0), []
    for run in studies.ablation(FULL):
        rows.append(
            run.label(FULL.cells[run.cell])
            | run.place
            | {"net_seed": 0, "accuracy": chance.random(), "protocol": "lr_chosen"}
        )
    rows = Results(tmp_path).keep_rows("ablation", pd.DataFrame(rows))
    figure = plots.ablation(Results(tmp_path))
    assert len(figure.axes) == 2 and figure.get_figheight() < 9.5
    labels = [label.get_text() for ax in figure.axes for label in ax.get_yticklabels()]
    changes = rows[rows.method != rows.base].drop_duplicates(["group", "method"])
    assert len(labels) == len(changes) and "− ramp" in labels and "ast natural experts" in labels
    headings = (
        " ".join(text.get_text() for ax in figure.axes for text in ax.texts)
        .replace("\n", " ")
        .replace("\N{NO-BREAK SPACE}", " ")
    )
    assert all(
        f"{group}: against {base}" in headings
        for group, base in changes[["group", "base"]].drop_duplicates().itertuples(index=False)
    )
    assert (
        "on mnist_m_5k-ipc10 (n = 3)" in headings
        and "AST minus one: against AST (n = 5)" in headings
    )
    means = rows[rows.group == "AST minus one"].groupby("method", sort=False).accuracy.mean()
    point = next(
        line
        for line in figure.axes[0].get_lines()
        if line.get_marker() == "o" and line.get_markersize() == 5
    )
    assert point.get_xdata()[0] == pytest.approx(100 * (means["AST − ramp"] - means["AST"]))
