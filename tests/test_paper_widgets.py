"""Controls in notebooks: they redraw what the reader asks for, and where nobody could move them there is the figure as it is printed."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from jupyter_client.manager import start_new_kernel
from matplotlib.figure import Figure
from test_pipeline import SET
from test_pipeline import done as done
from test_project import LAPTOP

from ddlib.method import smoothness
from ddlib.method import student as unroll
from ddlib.method.distill import inner_loss
from ddlib.paper import build as press
from ddlib.paper import figures as plots
from ddlib.paper import widgets as play
from ddlib.paper.results import Results
from ddlib.runs import stages as pipeline

STEPS, LR, MOMENTUM = 5, 0.03, 0.5


@pytest.fixture
def paper(tmp_path, done):
    """What controls ask of a paper: committed rows, a store with one small set, and a printed figure."""
    (tmp_path / "rows").symlink_to(LAPTOP.folder / "rows")
    printed = Figure()
    return SimpleNamespace(
        results=Results(tmp_path),
        store=done,
        get=lambda settings: pipeline.get(settings, done),
        figure=lambda name: printed,
    )


@pytest.fixture
def drawn(monkeypatch):
    """A front end, and the figures that are drawn for it, in their order."""
    figures = []

    def png(draw, **values):
        with plots.style():
            figures.append(draw(**values))
        return f"picture {len(figures)}".encode()

    monkeypatch.setattr(play, "live", lambda: True)
    monkeypatch.setattr(play, "png", png)
    return figures


def names(figure):
    return [
        line.get_label()
        for line in figure.axes[-1].get_lines()
        if not line.get_label().startswith("_")
    ]


def test_without_a_kernel_a_control_is_the_printed_figure(paper):
    assert not play.live()
    assert play.quality(paper) is paper.figure("quality") and play.student(
        paper, SET
    ) is paper.figure("student")


def test_chosen_recipes_are_drawn_alone_and_from_their_rows(paper, drawn):
    panel = play.quality(paper)
    recipes, words, *pictures = panel.children
    rows = plots.first_data(LAPTOP.rows("smoothness"))
    every = [name.replace("_", " ") for name in rows.recipe.unique()]
    assert names(drawn[0]) == names(drawn[1]) == every and [
        picture.value for picture in pictures
    ] == [b"picture 1", b"picture 2"]
    recipes.value = ("sgd", "ast")
    assert [picture.value for picture in pictures] == [b"picture 3", b"picture 4"]
    assert names(drawn[2]) == names(drawn[3]) == ["sgd", "ast"]
    points = [
        line.get_xydata()[0]
        for line in drawn[3].axes[0].get_lines()
        if line.get_label() in ("sgd", "ast")
    ]
    means = rows.groupby("recipe")[["step", "test_accuracy"]].mean().loc[
        ["sgd", "ast"]
    ].to_numpy() * [1, 100]
    np.testing.assert_allclose(points, means)
    recipes.value = ()
    assert "choose one or more" in words.value and [picture.value for picture in pictures] == [
        b"picture 3",
        b"picture 4",
    ]
    recipes.value = ("adam",)
    assert words.value == "" and names(drawn[-1]) == ["adam"]


def test_a_walk_is_the_path_that_back_propagation_takes(done, paper):
    """Against the plain form of the path; in the plane of the expert's way, and by its distance from the expert's end."""
    rows = play.walker(paper, SET)(STEPS, LR, MOMENTUM)
    made, real = done.load(SET), pipeline.images(SET.start.data, done)
    way = done.load(SET.experts).tensors["path"][: SET.matched_epochs + 1]
    flat = pipeline.network(SET.network, real.shape, real.classes)
    loss = inner_loss(
        flat,
        made.tensors["labels"],
        SET.model_copy(update={"inner_steps": STEPS}),
        real.strategies,
        0,
        0,
    )
    assert [(row["part"], row["step"]) for row in rows[:3]] == [("expert", e) for e in range(3)]
    assert (rows[0]["x"], rows[0]["y"], rows[0]["distance"]) == (0, 0, 1) and rows[2][
        "distance"
    ] == 0
    for part, images in (
        ("real images", made.tensors["history"][0]),
        ("distilled images", made.tensors["images"]),
    ):
        path = torch.stack(
            unroll.path(loss, way[0], images.requires_grad_(), torch.tensor(LR), STEPS, MOMENTUM)
        ).detach()
        mine = [row for row in rows if row["part"] == part]
        assert [row["step"] for row in mine] == list(range(STEPS + 1))
        across = smoothness.plane(way)
        np.testing.assert_allclose(
            [(row["x"], row["y"]) for row in mine], (path - way[0]) @ across.T, atol=1e-4
        )
        np.testing.assert_allclose(
            [row["distance"] for row in mine],
            (path - way[-1]).norm(dim=1) / (way[0] - way[-1]).norm(),
            rtol=1e-4,
        )
        assert abs(mine[-1]["distance"] - 1) > 1e-3, "it walks"


def test_more_steps_lengthen_the_same_walk(paper):
    walk = play.walker(paper, SET)
    short, long = (
        {(row["part"], row["step"]): row for row in walk(steps, LR, MOMENTUM)} for steps in (2, 4)
    )
    assert short.items() <= long.items() and len(long) == len(short) + 2 * 2


def test_moving_a_slider_walks_anew(paper, drawn):
    steps, lr, momentum, words, picture = play.student(paper, SET).children
    made = paper.get(SET).record["lr"]
    assert (steps.value, lr.value, momentum.value) == (SET.inner_steps, made, SET.momentum)
    assert not any(slider.continuous_update for slider in (steps, lr, momentum)), (
        "only when it is let go"
    )
    assert 10**lr.min < made < 10**lr.max and steps.max == 2 * SET.inner_steps
    ends = []
    for slider, value in ((steps, 3), (lr, made / 2), (momentum, 0.0)):
        slider.value = value
        distances = {line.get_label(): line.get_ydata() for line in drawn[-1].axes[1].get_lines()}
        ends.append(float(distances["distilled images"][-1]))
        assert (
            len(distances["distilled images"]) == steps.value + 1
            and picture.value == f"picture {len(drawn)}".encode()
        )
        expected = play.walker(paper, SET)(steps.value, lr.value, momentum.value)[-1]
        assert (expected["part"], expected["distance"]) == (
            "distilled images",
            pytest.approx(ends[-1]),
        )
    assert len(set(ends)) == 3 and len(drawn) == 4
    with pytest.raises(play.InputError, match=r"at a = 1e\+30 and μ = 0.9 .* lower a, or μ"):
        play.walker(paper, SET)(4, 1e30, 0.9)
    assert words.value == ""


def test_a_picture_is_drawn_in_the_papers_style():
    sizes = []
    content = play.png(
        lambda **values: (
            sizes.append(plots.plt.rcParams["font.size"]) or plots.walks(walk(**values))
        ),
        steps=3,
    )
    assert content.startswith(b"\x89PNG") and sizes == [plots.STYLE["font"]["size"]] != [
        plots.plt.rcParams["font.size"]
    ]


def walk(steps):
    """Rows of an expert and a student that go straight on."""
    way = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    return plots.pd.DataFrame(
        smoothness.beside(
            way,
            {
                "real images": torch.stack(
                    [torch.tensor([k / steps, 0.0]) for k in range(steps + 1)]
                )
            },
        )
    )


def test_only_a_front_end_that_could_be_asked_is_live():
    """In a kernel of its own, asked as JupyterLab asks and as papermill does."""
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        said = []
        for allowed in (True, False):
            client.execute_interactive(
                "from ddlib import play; print(play.live())",
                allow_stdin=allowed,
                output_hook=lambda message: said.append(
                    message["content"].get("text") or message["content"].get("evalue")
                ),
                timeout=60,
            )
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert [text for text in said if text] == ["True\n", "False\n"]


def test_controls_are_named_as_the_figures_that_they_redraw():
    used = {
        name
        for file in press.notebooks()
        for name in re.findall(r"\bplay\.(\w+)\(", file.read_text())
    }
    assert used == {"quality", "student"} and used <= plots.FIGURES.keys()
