"""Pictures of sets: the images that were picked, what distillation makes of them, and a film."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import partial
from math import inf

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ddlib.data.space import Space
from ddlib.paper.results import NoRows, Results
from ddlib.paper.style import FONT, WIDE, canvas
from ddlib.runs.methods import CORESETS
from ddlib.runs.store import Artefact

SHOWN = "AST"  # the method whose images a figure shows before and after
CLASSES, FEW = 20, 5  # columns of an image grid, at most; images per class in one
COLOURS = 252  # of a film, beside black and white; two are left over for what stays transparent
TALL = 32  # pixels that an image of a film is high, at least


def unclipped(artefact: Artefact, images: Tensor | None = None) -> Tensor:
    """A set's images, or others of its space, as pixels, of which some may leave [0, 1]."""
    parts = {k.removeprefix("space."): t for k, t in artefact.tensors.items() if "space." in k}
    return Space.from_tensors(parts).leave(artefact.tensors["images"] if images is None else images)


def pixels(artefact: Artefact, images: Tensor | None = None) -> np.ndarray:
    """The same in [0, 1]: (n, h, w, 3), or (n, h, w) if there is one channel."""
    x = unclipped(artefact, images).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return x[..., 0] if x.shape[-1] == 1 else x


def grid(
    ax: Axes, images: np.ndarray, labels: Sequence | np.ndarray, rows: Sequence[str] = ()
) -> None:
    """Images (n, h, w) or (n, h, w, 3), one column per class; `rows` names the rows."""
    labels = np.asarray(labels)
    classes = list(dict.fromkeys(labels.tolist()))
    down, (h, w) = max((labels == c).sum() for c in classes), images.shape[1:3]
    high, wide = h + 1 + h // 32, w + 1 + w // 32  # with the gaps
    page = np.ones((down * high, len(classes) * wide, 3))
    for j, c in enumerate(classes):
        for i, image in enumerate(images[labels == c]):
            colours = image if image.ndim == 3 else image[..., None]
            page[i * high : i * high + h, j * wide : j * wide + w] = colours
    ax.imshow(page, interpolation="nearest")
    names = [name if legible(f"{name}") else f"class {j}" for j, name in enumerate(classes)]
    ax.set_xticks(np.arange(len(classes)) * wide + w / 2 - 0.5, names)
    ax.set_yticks(np.arange(len(rows)) * high + h / 2 - 0.5, rows)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def legible(name: str) -> bool:
    """Whether the figures' font, which comes with matplotlib, has all letters of a name."""
    font = get_font(findfont(FontProperties(family=FONT)))
    return all(font.get_char_index(ord(letter)) for letter in name)


def sheet(images: np.ndarray, labels: np.ndarray, rows: Sequence[str]) -> Figure:
    """A figure of rows of images, one image per class in each row."""
    figure, (ax,) = canvas(WIDE, 0.3 + len(rows) * 6.0 / max(len(labels), 8))
    grid(ax, images, np.tile(labels, len(rows)), rows)
    return figure


def first_of_each(labels: Tensor) -> np.ndarray:
    """The index of the first image of each class, of at most CLASSES."""
    return np.unique(labels.numpy(), return_index=True)[1][:CLASSES]


def smallest_cell(rows: pd.DataFrame) -> str:
    """The first cell with the fewest images per class."""
    return rows.loc[rows.ipc.idxmin(), "cell"]


def initialisation(results: Results) -> Figure:
    """Which real images stand for a class, by the way they were picked."""
    cell, picked = smallest_cell(results.rows("coresets")), {}
    for method in CORESETS:
        try:
            coreset = results.set(cell, method, 0)
        except NoRows:  # a cell need not try them all
            continue
        first = first_of_each(coreset.tensors["labels"])
        picked[method] = coreset.tensors["images"][first]
    if not picked:
        raise NoRows(
            f"no coreset of {cell} in {results.folder / 'sets'}: expected one of "
            f"{', '.join(CORESETS)} at seed 0; keep the sets first"
        )
    labels = coreset.tensors["labels"].numpy()[first]
    return sheet(pixels(coreset, torch.cat([*picked.values()])), labels, list(picked))


def distilled(results: Results) -> tuple[Artefact, np.ndarray, np.ndarray]:
    """SHOWN's set of the smallest cell, the first image of each class in it, and their labels."""
    distilled_set = results.set(smallest_cell(results.rows("curves")), SHOWN, 0)
    if "history" not in distilled_set.tensors:
        raise NoRows(
            f"the {SHOWN} set at seed 0 holds no 'history': it is kept for one image per class; "
            "add such a cell to the profile"
        )
    first = first_of_each(distilled_set.tensors["labels"])
    return distilled_set, first, distilled_set.tensors["labels"].numpy()[first]


def before_after(artefact: Artefact, class_names: Sequence[str]) -> Figure:
    """The first few images per class, below what they began as where the set holds that."""
    y, start = artefact.tensors["labels"], artefact.settings.get("start")
    classes = y.unique()[:CLASSES]
    down = min(FEW, *(int((y == k).sum()) for k in classes))
    of_classes = [(y == k).nonzero().flatten()[:down] for k in classes]
    shown = torch.stack(of_classes, 1).flatten()  # row after row
    now = "distilled" if start else "given" if artefact.settings["method"] == "given" else "picked"
    states = {now: artefact.tensors["images"][shown]}
    if start and "history" in artefact.tensors:
        began = {"noise": "noise", "given": "before"}.get(start["method"], "picked")
        states = {began: artefact.tensors["history"][0][shown]} | states
    rows = [name if i == 0 else "" for name in states for i in range(down)]
    images = pixels(artefact, torch.cat([*states.values()]))
    return sheet(images, np.array(class_names)[classes], rows)


def images(results: Results) -> Figure:
    """What distillation did to the images: before, after, and the difference about grey.

    The scale is one that 99 % of all changes of a pixel lie within.
    """
    distilled_set, first, labels = distilled(results)
    states = distilled_set.tensors["history"][0][first], distilled_set.tensors["images"][first]
    both = pixels(distilled_set, torch.cat(states))
    difference = np.subtract(*np.split(both, 2)[::-1])
    most = float(np.quantile(np.abs(difference), 0.99)) or 1.0
    about_grey = (0.5 + difference / (2 * most)).clip(0, 1)
    rows = ["before", "after", f"difference\n(± {most:.2f})"]
    return sheet(np.concatenate([both, about_grey]), labels, rows)


def film(artefact: Artefact, until: int | None = None) -> bytes:
    """The frames of a film as a GIF that repeats: images under their classes, and the iteration.

    The last frame is that of the outer iteration `until`, or the last there is.
    All frames share one palette, the colours that serve all of them best: a pixel is near to what
    it was, not equal.
    """
    rows = [row for row in artefact.record["rows"] if row["iteration"] <= (until or inf)]
    frames, labels = artefact.tensors["frames"][: len(rows)], artefact.tensors["labels"].tolist()
    (n, k), (h, w) = frames.shape[:2], frames.shape[3:]  # frames (n, k, c, h, w), labels (k,)
    levels = (255 * pixels(artefact, frames.flatten(0, 1))).round().astype(np.uint8)
    colours = np.broadcast_to(levels.reshape(n, k, h, w, -1), (n, k, h, w, 3))
    strip = colours.transpose(0, 2, 1, 3, 4).reshape(n * h, k * w, 3)  # frame below frame
    coloured = Image.fromarray(strip).quantize(COLOURS, dither=Image.Dither.NONE)
    white, black, palette = 0, 1, [255] * 3 + [0] * 3 + coloured.getpalette()
    scale = max(1, TALL // h)
    tiles = (np.asarray(coloured) + 2).reshape(n, h, k, w).repeat(scale, 1).repeat(scale, 3)
    top, tall, wide = 18, scale * h, scale * w + 3
    pages = np.full((n, top + tall + 18, k * wide - 3), white, np.uint8)
    for j in range(k):
        pages[:, top : top + tall, j * wide : j * wide + scale * w] = tiles[:, :, j]
    shown = [Image.fromarray(page) for page in pages]
    for page, row in zip(shown, rows, strict=True):
        page.putpalette(palette[:768])
        write = partial(ImageDraw.Draw(page).text, font=ImageFont.load_default(12), fill=black)
        for j, label in enumerate(labels):
            write((j * wide + scale * w / 2, top / 2), f"{label}", anchor="mm")
        words = f"outer iteration {row['iteration']} of {rows[-1]['iteration']}"
        write((0, top + tall + 9), words, anchor="lm")
    content, durations = io.BytesIO(), [100] * (n - 1) + [1000]  # ms
    first, *others = shown
    first.save(content, "GIF", save_all=True, append_images=others, duration=durations, loop=0)
    return content.getvalue()
