"""Controls for a reader at a live notebook: `play.NAME(...)` draws the figure NAME anew, of what the reader asks for.

Where nobody could move a control it is the figure as it is printed. So a printed copy, its page in the book and a rendering without a kernel hold a picture
and no dead widget, whose number would differ from run to run.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from math import log10
from typing import Any

import ipywidgets as widgets
import pandas as pd
import torch
from IPython import get_ipython
from matplotlib.figure import Figure

from ddlib.data import datasets as data
from ddlib.method import smoothness
from ddlib.method import student as unroll
from ddlib.method.distill import inner_loss
from ddlib.paper import figures as plots
from ddlib.paper.paper import Paper
from ddlib.paper.results import Results
from ddlib.runs import stages as pipeline
from ddlib.settings import Distillation, InputError

REACH = 10.0  # a slider's lr: from so many times less than the learned one to so many times more
MOMENTUM = 0.99  # the most that a slider gives


def live() -> bool:
    """Whether somebody can move a control: the cell that runs came from a front end that could answer `input()`, as JupyterLab says of itself.

    Papermill, nbconvert and whatever else runs a notebook through nbclient say that nobody could; of a plain Python process there is no cell.
    """
    message: dict[str, Any] = getattr(get_ipython(), "get_parent", dict)()
    return bool(message.get("content", {}).get("allow_stdin"))


def quality(paper: Paper) -> Figure | widgets.VBox:
    """Choose recipes: the figures `smoothness` and `quality` of their experts alone, from rows."""
    printed = paper.figure("quality")
    if not live():
        return printed
    names = list(plots.first_data(paper.results.rows("smoothness")).recipe.unique())
    options = [(name.replace("_", " "), name) for name in names]
    recipes = widgets.SelectMultiple(
        options=options, value=names, rows=len(names), description="recipes"
    )
    draws = [
        lambda recipes, draw=draw: draw(Chosen(paper.results, recipes))
        for draw in (plots.smoothness, plots.quality)
    ]
    return panel(draws, recipes=recipes)


class Chosen(Results):
    """Results with the experts of some recipes alone."""

    def __init__(self, results: Results, recipes: Sequence[str]):
        super().__init__(results.folder)
        self.recipes = recipes

    def rows(self, name: str) -> pd.DataFrame:
        """Theirs, of a study of experts.

        Raises:
            InputError: none is chosen.
        """
        rows = super().rows(name)
        rows = rows[rows.recipe.isin(self.recipes)]
        if rows.empty:
            raise InputError("no recipe is chosen: choose one or more")
        return rows


def student(paper: Paper, settings: Distillation) -> Figure | widgets.VBox:
    """Move N, a and mu of an inner loop: the figure `student` of the walks that they lead to, on the set of `settings`."""
    printed = paper.figure("student")
    if not live():
        return printed
    walk, a, n = walker(paper, settings), paper.get(settings).record["lr"], settings.inner_steps
    return panel(
        [lambda steps, lr, momentum: plots.walks(pd.DataFrame(walk(steps, lr, momentum)))],
        steps=slider(widgets.IntSlider, "N", n, settings.matched_epochs, 2 * n),
        lr=slider(
            widgets.FloatLogSlider,
            "a",
            a,
            log10(a / REACH),
            log10(a * REACH),
            step=0.02,
            readout_format=".4f",
        ),
        momentum=slider(widgets.FloatSlider, "μ", settings.momentum, 0.0, MOMENTUM, step=0.01),
    )


def slider(
    kind: Callable[..., widgets.ValueWidget],
    name: str,
    value: float,
    low: float,
    high: float,
    **how: object,
) -> widgets.ValueWidget:
    """A slider that tells its value once it is let go."""
    return kind(value=value, min=low, max=high, description=name, continuous_update=False, **how)


def walker(paper: Paper, settings: Distillation) -> Callable[[int, float, float], list[dict]]:
    """(N, a, mu) -> rows as `smoothness.beside` gives them: students on the images that a set began with and on its own, from the first expert's theta*_0.

    The draws of a step do not depend on N, so moving it makes the same walk longer or shorter.

    Raises:
        InputError: when it walks, a student's parameters stop being finite.
    """
    real, made = data.load(settings.start.data, paper.store.root), paper.get(settings)
    flat = pipeline.network(settings.network, real.shape, real.classes)
    way = paper.get(pipeline.expert(settings.experts, 0)).tensors["path"][
        : settings.matched_epochs + 1
    ]  # (M + 1, P), s = 0
    sets = {"real images": made.tensors["history"][0], "distilled images": made.tensors["images"]}

    def walk(steps: int, lr: float, momentum: float) -> list[dict]:
        loss = inner_loss(
            flat,
            made.tensors["labels"],
            settings.model_copy(update={"inner_steps": steps}),
            real.strategies,
            start=0,
            t=0,
        )
        walks = {}
        for name, images in sets.items():
            walks[name] = torch.stack(
                unroll.path(
                    loss, way[0], images, torch.tensor(lr), steps, momentum, differentiable=False
                )
            )  # (N + 1, P)
            if not walks[name].isfinite().all():
                raise InputError(
                    f"at a = {lr:.3g} and μ = {momentum:g} a student's parameters stop being finite within {steps} steps: lower a, or μ"
                )
        return smoothness.beside(way, walks)

    return walk


def panel(draws: Sequence[Callable[..., Figure]], **controls: widgets.ValueWidget) -> widgets.VBox:
    """Controls above pictures, which are what `draws` make of the controls' values, by name; what is refused is said, and the pictures stay."""
    words, pictures = (
        widgets.HTML(),
        [widgets.Image(format="png", layout={"max_width": "100%"}) for _ in draws],
    )

    def redraw(_: object = None) -> None:
        values = {name: control.value for name, control in controls.items()}
        words.value = ""
        try:
            for picture, draw in zip(pictures, draws, strict=True):
                picture.value = png(draw, **values)
        except InputError as error:
            words.value = html.escape(str(error))

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    return widgets.VBox([*controls.values(), words, *pictures])


def png(draw: Callable[..., Figure], **values: object) -> bytes:
    """What a figure looks like, in the style of the paper."""
    content = io.BytesIO()
    with plots.style():
        draw(**values).savefig(content, format="png", bbox_inches="tight")
    return content.getvalue()
