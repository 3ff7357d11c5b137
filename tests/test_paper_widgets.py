"""Controls in notebooks redraw what the reader asks for; without a kernel they are the figure."""

import re
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from matplotlib.figure import Figure

from ddlib.data import datasets
from ddlib.method import smoothness, student
from ddlib.method.functional import network
from ddlib.method.student import InnerLoop, inner_loss
from ddlib.paper import figures, style, widgets
from ddlib.paper.results import Results
from ddlib.runs import run
from ddlib.runs.store import Store
from ddlib.settings import Data, Distillation, Expert, InputError, Network, Selection

HOME = Path(__file__).parent.parent
LAPTOP = Results(HOME / "results/laptop")
DATA, NET = Data(name="digits"), Network(width=8, depth=2)
EXPERT = Expert(data=DATA, network=NET, epochs=3, lr=0.02)
START = Selection(data=DATA, method="real")
INNER = {"inner_steps": 4, "matched_epochs": 2, "start_epochs": 2, "batch": 7, "momentum": 0.9}
SET = Distillation(experts=EXPERT, start=START, **INNER, iterations=2, checks=1, check_epochs=1)
STEPS, LR, MOMENTUM = 5, 0.03, 0.5


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store with one small set; to be read only."""
    store = Store(tmp_path_factory.mktemp("store"))
    run.get(SET, store)
    return store


@pytest.fixture
def paper(tmp_path, store):
    """What controls ask of a paper: committed rows, a store, and a printed figure."""
    (tmp_path / "rows").symlink_to(LAPTOP.folder / "rows")
    printed = Figure()
    return SimpleNamespace(
        results=Results(tmp_path),
        store=store,
        get=lambda settings: run.get(settings, store),
        figure=lambda name: printed,
    )


@pytest.fixture
def drawn(monkeypatch):
    """A front end, and the figures that are drawn for it, in their order."""
    every = []

    def png(draw, **values):
        with style.style():
            every.append(draw(**values))
        return f"picture {len(every)}".encode()

    monkeypatch.setattr(widgets, "live", lambda: True)
    monkeypatch.setattr(widgets, "png", png)
    return every


def names(figure):
    labels = [line.get_label() for line in figure.axes[-1].get_lines()]
    return [label for label in labels if not label.startswith("_")]


def test_without_a_kernel_a_control_is_the_printed_figure(paper):
    assert not widgets.live()
    assert widgets.quality(paper) is widgets.student(paper, SET) is paper.figure("quality")


def test_chosen_recipes_are_drawn_alone_and_from_their_rows(paper, drawn):
    recipes, words, *pictures = widgets.quality(paper).children
    rows = figures.first_data(LAPTOP.rows("smoothness"))
    every = [name.replace("_", " ") for name in rows.recipe.unique()]
    assert names(drawn[0]) == names(drawn[1]) == every
    recipes.value = ("sgd", "ast")
    assert [picture.value for picture in pictures] == [b"picture 3", b"picture 4"]
    assert names(drawn[2]) == names(drawn[3]) == ["sgd", "ast"]
    lines = [line for line in drawn[3].axes[0].get_lines() if line.get_label() in ("sgd", "ast")]
    means = rows.groupby("recipe")[["step", "test_accuracy"]].mean().loc[["sgd", "ast"]]
    np.testing.assert_allclose([line.get_xydata()[0] for line in lines], means * [1, 100])
    recipes.value = ()
    assert "choose one or more" in words.value
    assert [picture.value for picture in pictures] == [b"picture 3", b"picture 4"]
    recipes.value = ("adam",)
    assert words.value == "" and names(drawn[-1]) == ["adam"]


def test_a_walk_is_the_path_that_back_propagation_takes(store, paper):
    """In the plane of the expert's path, and by its distance from the expert's end."""
    rows = pd.DataFrame(widgets.walker(paper, SET)(STEPS, LR, MOMENTUM)).set_index("part")
    made, real = store.load(SET), datasets.load(DATA, store.root)
    expert = store.load(EXPERT).tensors["path"][: SET.matched_epochs + 1]
    assert rows.loc["expert"].step.tolist() == [0, 1, 2]
    assert rows.loc["expert"].iloc[0][["x", "y", "distance"]].tolist() == [0, 0, 1]
    assert rows.loc["expert"].iloc[2].distance == 0
    net = network(NET, real.shape, real.classes)
    inner = SET.model_copy(update={"inner_steps": STEPS})
    loss = inner_loss(net, made.tensors["labels"], inner, real.strategies, 0, 0)
    states = {"real": made.tensors["history"][0], "distilled": made.tensors["images"]}
    for part, images in states.items():
        a, images = torch.tensor(LR), images.requires_grad_()
        loop = InnerLoop(loss, expert[0], images, a, STEPS, MOMENTUM)
        path = torch.stack(student.path(loop)).detach()
        walk = rows.loc[f"{part} images"]
        assert walk.step.tolist() == list(range(STEPS + 1))
        across = (path - expert[0]) @ smoothness.plane(expert).T
        np.testing.assert_allclose(walk[["x", "y"]], across, atol=1e-4)
        distance = (path - expert[-1]).norm(dim=1) / (expert[0] - expert[-1]).norm()
        np.testing.assert_allclose(walk.distance, distance, rtol=1e-4)
        assert abs(walk.distance.iloc[-1] - 1) > 1e-3, "it walks"


def test_more_steps_lengthen_the_same_walk(paper):
    walk = widgets.walker(paper, SET)
    walks = (walk(steps, LR, MOMENTUM) for steps in (2, 4))
    short, long = ({(row["part"], row["step"]): row for row in rows} for rows in walks)
    assert short.items() <= long.items() and len(long) == len(short) + 2 * 2


def test_moving_a_slider_walks_anew(paper, drawn):
    steps, lr, momentum, words, picture = widgets.student(paper, SET).children
    learned = paper.get(SET).record["lr"]
    assert (steps.value, momentum.value) == (SET.inner_steps, SET.momentum)
    assert lr.value == learned and 10**lr.min < learned < 10**lr.max
    assert steps.max == 2 * SET.inner_steps
    assert not any(slider.continuous_update for slider in (steps, lr, momentum))
    ends = []
    for slider, value in ((steps, 3), (lr, learned / 2), (momentum, 0.0)):
        slider.value = value
        lines = {line.get_label(): line.get_ydata() for line in drawn[-1].axes[1].get_lines()}
        distances = lines["distilled images"]
        ends.append(float(distances[-1]))
        assert len(distances) == steps.value + 1
        assert picture.value == f"picture {len(drawn)}".encode()
        *_, last = widgets.walker(paper, SET)(steps.value, lr.value, momentum.value)
        assert (last["part"], last["distance"]) == ("distilled images", pytest.approx(ends[-1]))
    assert len(set(ends)) == 3 and len(drawn) == 4 and words.value == ""
    with pytest.raises(InputError, match=r"at a = 1e\+30 and μ = 0.9 .* lower a, or μ"):
        widgets.walker(paper, SET)(4, 1e30, 0.9)


def test_a_picture_is_drawn_in_the_papers_style():
    sizes = []

    def draw(size):
        sizes.append(plt.rcParams["font.size"])
        return Figure(figsize=(size, size))

    assert widgets.png(draw, size=1).startswith(b"\x89PNG")
    assert sizes == [style.STYLE["font"]["size"]] != [plt.rcParams["font.size"]]


def test_only_a_front_end_that_could_be_asked_is_live():
    """In a kernel of its own, asked as JupyterLab asks and as papermill does."""
    manager, client = start_new_kernel(kernel_name="python3")
    printed = []

    def note(message):
        printed.append(message["content"].get("text") or message["content"].get("evalue"))

    try:
        for allowed in (True, False):
            code = "from ddlib.paper import widgets; print(widgets.live())"
            options = {"allow_stdin": allowed, "output_hook": note, "timeout": 60}
            client.execute_interactive(code, **options)
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert [text for text in printed if text] == ["True\n", "False\n"]


def test_controls_are_named_as_the_figures_that_they_redraw():
    notebooks = [file.read_text() for file in (HOME / "notebooks").glob("*.ipynb")]
    used = {name for text in notebooks for name in re.findall(r"\b(?:play|widgets)\.(\w+)\(", text)}
    assert used == {"quality", "student"} and used <= figures.FIGURES.keys()
