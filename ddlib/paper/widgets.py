"""Controls at a live notebook: `widgets.NAME(...)` draws the figure NAME anew as the reader asks.

Where nobody could move a control it is the figure as it is printed. So an executed copy and its
page in the book hold a picture and no dead widget, whose number would differ from run to run.
"""

from __future__ import annotations

import html
import io
from collections.abc import Callable, Sequence
from math import log10
from typing import Any

import ipywidgets
import pandas as pd
import torch
from IPython import get_ipython
from matplotlib.figure import Figure

from ddlib.data import datasets
from ddlib.method import smoothness
from ddlib.method.functional import network as network_of
from ddlib.method.student import InnerLoop, inner_loss, walk
from ddlib.paper import figures
from ddlib.paper.paper import Paper
from ddlib.paper.results import Results
from ddlib.paper.style import style
from ddlib.settings import Distillation, InputError

REACH = 10.0  # a slider's lr: from so many times less than the learned one to so many times more
MOMENTUM = 0.99  # the most that a slider gives


def live() -> bool:
    """Whether somebody can move a control: the running cell came from a front end with stdin.

    JupyterLab says so of itself. Papermill, nbconvert and all that runs a notebook through nbclient
    say that nobody can; a plain Python process has no cell.
    """
    message: dict[str, Any] = getattr(get_ipython(), "get_parent", dict)()
    return bool(message.get("content", {}).get("allow_stdin"))


class Chosen(Results):
    """Results with the experts of some recipes alone."""

    def __init__(self, results: Results, recipes: Sequence[str]):
        super().__init__(results.folder)
        self.recipes = recipes

    def rows(self, name: str) -> pd.DataFrame:
        """The rows of these recipes, of a study of experts.

        Raises:
            InputError: none is chosen.
        """
        rows = super().rows(name)
        rows = rows[rows.recipe.isin(self.recipes)]
        if rows.empty:
            raise InputError("no recipe is chosen: choose one or more")
        return rows


def quality(paper: Paper) -> Figure | ipywidgets.VBox:
    """Choose recipes: the figures `smoothness` and `quality` of their experts alone, from rows."""
    printed = paper.figure("quality")
    if not live():
        return printed
    names = list(figures.first_data(paper.results.rows("smoothness")).recipe.unique())
    shown = [(name.replace("_", " "), name) for name in names]
    how = {"value": names, "rows": len(names), "description": "recipes"}
    return panel(
        lambda recipes: figures.smoothness(Chosen(paper.results, recipes)),
        lambda recipes: figures.quality(Chosen(paper.results, recipes)),
        recipes=ipywidgets.SelectMultiple(options=shown, **how),
    )


def student(paper: Paper, settings: Distillation) -> Figure | ipywidgets.VBox:
    """Move N, a and mu of an inner loop: the figure `student` of the walks on a distilled set."""
    printed = paper.figure("student")
    if not live():
        return printed
    walk, a, n = walker(paper, settings), paper.get(settings).record["lr"], settings.inner_steps
    lrs = {"min": log10(a / REACH), "max": log10(a * REACH), "step": 0.02}
    once = {"continuous_update": False}  # a slider tells its value once it is let go
    sliders = {
        "steps": ipywidgets.IntSlider(
            value=n, min=settings.matched_epochs, max=2 * n, description="N", **once
        ),
        "lr": ipywidgets.FloatLogSlider(
            value=a, **lrs, readout_format=".4f", description="a", **once
        ),
        "momentum": ipywidgets.FloatSlider(
            value=settings.momentum, min=0.0, max=MOMENTUM, step=0.01, description="μ", **once
        ),
    }
    return panel(
        lambda steps, lr, momentum: figures.walks(pd.DataFrame(walk(steps, lr, momentum))),
        **sliders,
    )


def walker(paper: Paper, settings: Distillation) -> Callable[[int, float, float], list[dict]]:
    """(N, a, mu) -> rows as `smoothness.beside` gives them, from the first expert's theta*_0.

    One student walks on the images that a set began with, one on its own. The draws of a step do
    not depend on N, so moving it makes the same walk longer or shorter.

    Raises:
        InputError: when it walks, a student's parameters stop being finite.
    """
    real, artefact = datasets.load(settings.start.data, paper.store.root), paper.get(settings)
    network = network_of(settings.network, real.shape, real.classes)
    path = paper.get(settings.experts.at(0)).tensors["path"]
    path = path[: settings.matched_epochs + 1]  # (M + 1, P), s = 0
    sets = {
        "real images": artefact.tensors["history"][0],
        "distilled images": artefact.tensors["images"],
    }

    def rows(steps: int, lr: float, momentum: float) -> list[dict]:
        inner = settings.model_copy(update={"inner_steps": steps})
        loss = inner_loss(network, artefact.tensors["labels"], inner, real.strategies, start=0, t=0)
        walks, a = {}, torch.tensor(lr)
        for name, images in sets.items():
            loop = InnerLoop(loss, path[0], images, a, steps, momentum)
            walks[name] = torch.stack([path[0], *walk(loop)])  # (N + 1, P)
            if not walks[name].isfinite().all():
                raise InputError(
                    f"at a = {lr:.3g} and μ = {momentum:g} a student's parameters stop being "
                    f"finite within {steps} steps: lower a, or μ"
                )
        return smoothness.beside(path, walks)

    return rows


def panel(*draws: Callable[..., Figure], **controls: ipywidgets.ValueWidget) -> ipywidgets.VBox:
    """Controls above the pictures that `draws` make of the controls' values, by name.

    An error is shown in words, and the pictures stay as they were.
    """
    words = ipywidgets.HTML()
    pictures = [ipywidgets.Image(format="png", layout={"max_width": "100%"}) for _ in draws]

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
    return ipywidgets.VBox([*controls.values(), words, *pictures])


def png(draw: Callable[..., Figure], **values: object) -> bytes:
    """A figure as a PNG, in the style of the paper."""
    content = io.BytesIO()
    with style():
        draw(**values).savefig(content, format="png", bbox_inches="tight")
    return content.getvalue()
