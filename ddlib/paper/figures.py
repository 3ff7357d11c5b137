"""Every figure of the paper, as a function of rows and kept sets: `FIGURES[name](results)`, drawn inside `style()`.

One look (colour, marker, line) a method or recipe, the same in all figures and distinct in grey. Coresets are grey, methods without experts green, the MTT
family and the rivals that came of it blue, AST and the experts that it follows vermilion. Bands and bars are one standard deviation, unless they say otherwise.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from PIL import Image, ImageDraw, ImageFont
from sklearn.isotonic import isotonic_regression

from ddlib.data.space import Space
from ddlib.paper import reuse, teaching
from ddlib.paper.claims import UNBALANCED
from ddlib.paper.results import Results, in_reading_order
from ddlib.runs.store import Artefact
from ddlib.settings import InputError

WIDE, NARROW = 7.0, 3.4  # inches: a page, a column
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000",
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#0072B2",
    "#D55E00",
    "#CC79A7",
)  # Okabe & Ito
GREY, SILVER = "#666666", "#999999"
DASH, DOT, MIXED, LONG = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2))


class Look(NamedTuple):
    """How a method or a recipe is drawn, wherever it is drawn."""

    color: str
    marker: str = "o"
    line: str | tuple = "-"


CORESETS = {
    "random": Look(SILVER, "x"),
    "herding": Look(SILVER, "^"),
    "k-center": Look(SILVER, "s"),
    "k-means": Look(GREY, "D"),
}
OWN = {"picked": Look(GREY, "D"), "distilled": Look(VERMILION)}  # of images of one's own
DISTILLED = {
    "MTT": Look(BLUE, "s", DASH),
    "MTT + inner momentum": Look(SKY, "^", MIXED),
    "MTT, strong experts": Look(BLUE, "v", DOT),
    "DC": Look(GREEN, "<", DOT),
    "DSA": Look(GREEN, ">", DASH),
    "DM": Look(GREEN, "h", MIXED),
    "FTD": Look(SKY, "D", LONG),
    "TESLA": Look(SKY, "X", DOT),
    "TESLA + soft labels": Look(SKY, "P", DASH),
    "DATM": Look(PURPLE, "p", MIXED),
    "AST": Look(VERMILION),
    "AST+": Look(ORANGE, "*", LONG),
    "AST − balanced loss": Look(PURPLE, "s", DASH),
    "AST − intermediate matching": Look(BLUE, "s", DASH),
    "AST − weight perturbation": Look(GREEN, "^", DOT),
    "AST, T_max 6": Look(VERMILION),
    "AST, T_max 6 − balanced loss": Look(PURPLE, "s", DASH),
}
RECIPES = {
    "sgd": Look(BLACK, "s", DASH),
    "ftd": Look(BLACK, "D", DOT),
    "momentum": Look(BLUE, "v"),
    "adam": Look(PURPLE, "^", MIXED),
    "momentum_ramp": Look(SKY, "P", LONG),
    "momentum_penalty": Look(GREEN, "D", DASH),
    "momentum_penalty_per_pixel": Look(GREEN, "X", DOT),
    "ast": Look(VERMILION),
    "momentum_lr_matched": Look(SILVER, "h", DASH),
    "momentum_warmup_penalty": Look(ORANGE, "p", MIXED),
    "momentum_warmup": Look(ORANGE, "d", DOT),
    "ast_weak": Look(VERMILION, "<", DASH),
    "ast_strong": Look(VERMILION, ">", LONG),
    "ast_natural": Look(VERMILION, "*", DOT),
}
CEILING = "full data"
VERDICTS = {"supported": Look(GREEN), "not supported": Look(VERMILION, "X")}
GRADIENTS = {"adjoint": Look(VERMILION), "unroll": Look(BLUE, "s", DASH)}
WALKS = {
    "expert": Look(BLACK, "s", DASH),
    "real images": Look(GREY, "D", DOT),
    "distilled images": Look(VERMILION),
}
BOUNDS = {
    "no memory": Look(BLACK, "x", DOT),
    CEILING: Look(BLACK, "s", DASH),
}  # of what a memory can do
KINDS = {
    "convnet": Look(VERMILION),
    "alexnet": Look(BLUE, "^"),
    "vgg11": Look(GREEN, "s"),
    "resnet18": Look(PURPLE, "D"),
    "vit": Look(BLACK, "X"),
}
LOOKS = CORESETS | OWN | DISTILLED | RECIPES | VERDICTS | GRADIENTS | WALKS | BOUNDS | KINDS
PLAIN = Look(GREY)
WITHOUT_EXPERTS = ("DC", "DSA", "DM")  # their loss is another quantity, and they learn no lr
CLASSES, FEW = 20, 5  # columns of an image grid, at most; images a class in one
COLOURS, TALL = (
    252,
    64,
)  # of a film: colours beside black and white, two left over, so that what stays can be transparent; pixels that an image is high, about
STYLE: dict[str, dict[str, Any]] = {
    "font": {
        "family": "DejaVu Sans",
        "size": 8,
    },  # ships with matplotlib: the same letters everywhere
    "axes": {
        "titlesize": 8.5,
        "labelsize": 8,
        "linewidth": 0.7,
        "grid": True,
        "axisbelow": True,
        "spines.top": False,
        "spines.right": False,
    },
    "xtick": {"labelsize": 7.5},
    "ytick": {"labelsize": 7.5},
    "legend": {"fontsize": 7.5, "frameon": False},
    "grid": {"color": "#e4e4e4", "linewidth": 0.6},
    "lines": {"linewidth": 1.3, "markersize": 4},
    "figure": {"dpi": 120, "titlesize": 8.5, "labelsize": 8},
    "svg": {"hashsalt": "ddlib", "fonttype": "path"},
}


def style() -> AbstractContextManager:
    """The publication style; the same rows give the same bytes."""
    return plt.rc_context(
        {
            f"{group}.{name}": value
            for group, values in STYLE.items()
            for name, value in values.items()
        }
    )


def blank(width: float, height: float) -> Figure:
    """A figure that shows where it is the last word of a cell and stays open nowhere."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **how: Any
) -> tuple[Figure, np.ndarray]:
    """A blank figure, and its axes in one row."""
    figure = blank(width, height)
    return figure, figure.subplots(rows, columns, squeeze=False, **how).ravel()


def span(counts: Iterable[int]) -> str:
    """5, or 3–5 where not all have as many."""
    counts = sorted(set(counts))
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def by_seed(rows: pd.DataFrame, x: str, y: str, seed: str) -> pd.DataFrame:
    """x down, seeds across: the mean of y."""
    return rows.dropna(subset=y).pivot_table(index=x, columns=seed, values=y)


def band(ax: Axes, wide: pd.DataFrame, name: str, label: str | None = None) -> None:
    """The mean over the columns against the index, and one standard deviation about it where there are several."""
    look, mean, x = LOOKS.get(name, PLAIN), wide.mean(axis=1), wide.index
    marks = {"marker": look.marker, "markersize": 3.2, "markevery": max(1, len(x) // 6)}
    ax.plot(
        x,
        mean,
        color=look.color,
        linestyle=look.line,
        label=label or name.replace("_", " "),
        **marks,
    )
    if wide.shape[1] > 1:
        std = wide.std(axis=1, ddof=1)
        ax.fill_between(x, mean - std, mean + std, color=look.color, alpha=0.15, linewidth=0)
    ax.xaxis.get_major_locator().set_params(integer=True)


def name_ends(ax: Axes) -> None:
    """Names of the lines beside their right ends, moved apart until all can be read; a sample before each makes them a key to other panels too, and in grey."""
    ax.autoscale_view()  # or the ends are not yet where they will be
    size = plt.rcParams["xtick.labelsize"]
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in lines]
    heights = ax.transAxes.inverted().transform(ax.transData.transform(ends))[:, 1]
    order = np.argsort(heights, kind="stable")
    tall = 0.75 * ax.figure.get_figheight() / ax.get_gridspec().nrows  # inches, about
    gaps = 1.3 * size / (72 * tall) * np.arange(len(order))
    places = (
        isotonic_regression(heights[order] - gaps, y_min=0, y_max=max(1 - gaps[-1], 0)) + gaps
    )  # the nearest that keep the gaps
    inches = ax.figure.dpi_scale_trans + ScaledTranslation(
        1, 0, ax.transAxes
    )  # to the right of the panel
    beside = blended_transform_factory(inches, ax.transAxes)  # and parts of its height
    for i, place in zip(order, places, strict=True):
        color = lines[i].get_color()
        ax.annotate(
            "",
            ends[i],
            (0.12, place),
            "data",
            beside,
            {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2},
        )
        sample = Line2D([0.14, 0.27, 0.4], [place] * 3)
        sample.update_from(lines[i])
        sample.set(transform=beside, clip_on=False, markevery=[1], label="_sample")
        ax.add_artist(sample)
        ax.text(
            0.46,
            place,
            lines[i].get_label(),
            transform=beside,
            color=color,
            fontsize=size,
            va="center",
        )


def logarithmic(ax: Axes) -> None:
    """A logarithmic height about the lines that are there, its ticks as plain numbers: a band of one standard deviation may reach below zero."""
    heights = np.concatenate([line.get_ydata() for line in ax.get_lines()])
    ax.set_yscale("log")
    ax.set_ylim(np.nanmin(heights) / 1.2, np.nanmax(heights) * 1.2)
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def key_below(figure: Figure, axes: Iterable[Axes], columns: int) -> None:
    """One key for all that any of these panels shows."""
    held = {
        label: handle
        for ax in axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    if held:
        figure.legend(
            held.values(),
            held.keys(),
            loc="outside lower center",
            ncols=min(columns, len(held)),
            handlelength=3,
        )


def pixels(artefact: Artefact, images: torch.Tensor | None = None) -> np.ndarray:
    """A set's images, or others of its space, as pixels in [0, 1]: (n, h, w, 3), or (n, h, w) where there is one channel."""
    held = {
        name.removeprefix("space."): t
        for name, t in artefact.tensors.items()
        if name.startswith("space.")
    }
    images = artefact.tensors["images"] if images is None else images
    x = Space.from_tensors(held).leave(images).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return x[..., 0] if x.shape[-1] == 1 else x


def grid(
    ax: Axes, images: np.ndarray, labels: Sequence | np.ndarray, rows: Sequence[str] = ()
) -> None:
    """Images (n, h, w) or (n, h, w, 3) under their classes, each class's down its column in the order given; `rows` names the rows."""
    labels = np.asarray(labels)
    classes = list(dict.fromkeys(labels.tolist()))
    down, (h, w) = max((labels == c).sum() for c in classes), images.shape[1:3]
    high, wide = h + 1 + h // 32, w + 1 + w // 32  # with the gaps
    page = np.ones((down * high, len(classes) * wide, 3))
    for j, c in enumerate(classes):
        for i, image in enumerate(images[labels == c]):
            page[i * high : i * high + h, j * wide : j * wide + w] = (
                image if image.ndim == 3 else image[..., None]
            )
    ax.imshow(page, interpolation="nearest")
    ax.set_xticks(np.arange(len(classes)) * wide + w / 2 - 0.5, classes)
    ax.set_yticks(np.arange(len(rows)) * high + h / 2 - 0.5, rows)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def sheet(images: np.ndarray, labels: np.ndarray, rows: Sequence[str]) -> Figure:
    """A figure of rows of images, one of each class a row."""
    figure, (ax,) = canvas(WIDE, 0.3 + len(rows) * 6.0 / max(len(labels), 8))
    grid(ax, images, np.tile(labels, len(rows)), rows)
    return figure


def first_of_each(labels: torch.Tensor) -> np.ndarray:
    """Where the first image of each class is."""
    return np.unique(labels.numpy(), return_index=True)[1][:CLASSES]


def smallest_cell(rows: pd.DataFrame) -> str:
    """The first cell with the fewest images per class."""
    return rows.loc[rows.ipc.idxmin(), "cell"]


def dots(rows: pd.DataFrame, by: str, methods: list[str]) -> Figure:
    """A panel for each value of `by`: a method's mean, each seed's mean and their standard deviation; the ceiling dashed."""
    rows, wheres = rows[rows.protocol == "lr_chosen"], list(rows[by].unique())
    down = -(-len(wheres) // 3)
    across = -(-len(wheres) // down)
    height = down * (0.75 + 0.19 * len(methods))
    figure, axes = canvas(
        NARROW if across == 1 else WIDE, height, down, across, sharey=True, sharex=by != "cell"
    )
    for ax, where in zip(axes, wheres, strict=False):
        here = rows[rows[by] == where]
        scored = here[here.method.isin(methods)]
        for y, method in enumerate(methods):
            spread_dots(
                ax,
                y,
                100 * scored[scored.method == method].groupby("distil_seed").accuracy.mean(),
                LOOKS.get(method, PLAIN),
            )
        ceiling = 100 * here[here.method == CEILING].accuracy.mean()
        if not np.isnan(ceiling):
            ax.axvline(ceiling, color=BLACK, linestyle=DASH, linewidth=0.9)
            ax.text(
                ceiling,
                1.01,
                f"{CEILING} {ceiling:.1f}",
                ha="right",
                va="bottom",
                fontsize=7,
                transform=ax.get_xaxis_transform(),
            )
        sets = span(scored.groupby("method").distil_seed.nunique())
        networks = span(scored.groupby(["method", "distil_seed"]).net_seed.nunique())
        ax.set_title(
            f"{where}\nn = {sets} × {networks} (sets × networks)",
            pad=6 if np.isnan(ceiling) else 14,
        )
        ax.tick_params(labelbottom=True)
    for ax in axes[len(wheres) :]:
        ax.set_axis_off()
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    figure.supxlabel("test accuracy (%), mean ± std over sets")
    return figure


def spread_dots(ax: Axes, y: float, values: pd.Series, look: Look) -> None:
    """Small dots for the values, a large one for their mean and a bar of one standard deviation."""
    if len(values) > 1:
        ax.plot(values, np.full(len(values), y + 0.24), ".", color=look.color, markersize=2.5)
        ax.plot(values.mean() + values.std(ddof=1) * np.array([-1, 1]), [y, y], color=look.color)
    ax.plot([values.mean()], [y], look.marker, color=look.color, markersize=5)


def main(results: Results) -> Figure:
    """How well each method's sets teach a fresh network, cell by cell, and how far the ceiling is."""
    rows = results.rows("main")
    return dots(rows, "cell", [m for m in in_reading_order(rows) if m != CEILING])


def coresets(results: Results) -> Figure:
    """How well real images teach, by the way they were picked."""
    rows = results.rows("coresets")
    return dots(rows, "cell", [m for m in CORESETS if (rows.method == m).any()])


def cross_architecture(results: Results) -> Figure:
    """Whether sets made with one architecture teach the others."""
    rows = results.rows("cross_architecture")
    if rows.cell.nunique() == 1:
        figure = dots(rows, "architecture", list(rows.method.unique()))
        figure.suptitle(rows.cell.iloc[0])
        return figure
    return dots(
        rows.assign(where=rows.architecture + ", " + rows.cell), "where", list(rows.method.unique())
    )


def first_data(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the main data."""
    return rows[rows.data == rows.data.iloc[0]]


def of_recipes(ax: Axes, rows: pd.DataFrame, column: str, scale: float = 1.0) -> None:
    """A quantity of the experts by epoch, a line a recipe."""
    for recipe, mine in rows.groupby("recipe", sort=False):
        band(ax, scale * by_seed(mine, "epoch", column, "expert_seed"), recipe)
    ax.set_xlabel("epoch")


def experts(results: Results) -> Figure:
    """How fast experts of each recipe learn, and where they end."""
    rows = first_data(results.rows("experts"))
    figure, (ax,) = canvas(WIDE, 3.0)
    of_recipes(ax, rows, "test_accuracy", 100)
    ax.set_ylabel("test accuracy (%)")
    ax.set_title(f"{rows.data.iloc[0]}: mean ± std over experts, n = {rows.expert_seed.nunique()}")
    name_ends(ax)
    return figure


def expert_panels(
    results: Results, columns: dict[str, str], straight: Sequence[str] = ()
) -> Figure:
    """A panel a column of the experts' rows, logarithmic unless `straight`."""
    rows = first_data(results.rows("experts"))
    figure, axes = canvas(WIDE, 2.7, 1, len(columns))
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        of_recipes(ax, rows, column)
        if column not in straight:
            logarithmic(ax)
        ax.set_title(title)
    figure.suptitle(
        f"{rows.data.iloc[0]}: mean ± std over experts, n = {rows.expert_seed.nunique()}"
    )
    name_ends(axes[-1])
    return figure


def smoothness(results: Results) -> Figure:
    """How far an expert moves in each epoch, how much it turns, how far it moves for its size."""
    return expert_panels(
        results,
        {
            "step": "step length",
            "turning": "cosine to the next step",
            "relative_step": "relative step",
        },
        ["turning"],
    )


def norms(results: Results) -> Figure:
    """How sensitive experts are to their input with no penalty asked for or with it, in both readings."""
    return expert_panels(
        results,
        {
            "norm_per_pixel": "input-gradient norm, per pixel",
            "norm_per_sample": "input-gradient norm, per sample",
        },
    )


def quality(results: Results) -> Figure:
    """Whether a recipe buys its smoothness with accuracy: short steps to the left, good experts at the top."""
    rows = first_data(results.rows("smoothness"))
    figure, (ax,) = canvas(WIDE * 0.85, 3.2)
    for recipe, mine in rows.groupby("recipe", sort=False):
        x, y = mine.step, 100 * mine.test_accuracy
        cross(
            ax,
            x.mean(),
            y.mean(),
            {"xerr": x.std(), "yerr": y.std()} if len(mine) > 1 else {},
            recipe,
        )
    ax.set_xlabel(
        f"mean step length: mean ± std over experts, n = {span(rows.groupby('recipe').size())}"
    )
    ax.set_ylabel("final test accuracy (%)")
    ax.set_title(rows.data.iloc[0])
    name_ends(ax)
    return figure


def cross(ax: Axes, x: float, y: float, bars: dict[str, float], name: str) -> None:
    """A recipe's or method's point, and its standard deviations, `xerr` and `yerr`, either way."""
    look = LOOKS.get(name, PLAIN)
    ax.errorbar(x, y, **bars, fmt="none", ecolor=look.color, elinewidth=0.8, alpha=0.6)
    ax.plot([x], [y], look.marker, color=look.color, markersize=5, label=name.replace("_", " "))


def initialisation(results: Results) -> Figure:
    """Which real images stand for a class, by the way they were picked."""
    cell, found = smallest_cell(results.rows("coresets")), {}
    for method in CORESETS:
        try:
            held = results.set(cell, method, 0)
        except InputError:  # a cell need not try them all
            continue
        first = first_of_each(held.tensors["labels"])
        found[method], labels = held.tensors["images"][first], held.tensors["labels"].numpy()[first]
    if not found:
        raise InputError(
            f"no coreset of {cell} in {results.folder / 'sets'}: expected one of {', '.join(CORESETS)} at seed 0; keep the sets first"
        )
    return sheet(pixels(held, torch.cat([*found.values()])), labels, list(found))


def distilled(results: Results) -> tuple[Artefact, np.ndarray, np.ndarray]:
    """AST's set of the smallest cell, where the first image of each class is, and their labels."""
    held = results.set(smallest_cell(results.rows("curves")), "AST", 0)
    if "history" not in held.tensors:
        raise InputError(
            "the AST set at seed 0 holds no 'history': it is kept for one image per class; add such a cell to the profile"
        )
    first = first_of_each(held.tensors["labels"])
    return held, first, held.tensors["labels"].numpy()[first]


def before_after(held: Artefact, class_names: Sequence[str]) -> Figure:
    """The images of each class, the first few where they are many: what they began as, where the set holds that, above what they became."""
    y, start = held.tensors["labels"], held.settings.get("start")
    classes = y.unique()[:CLASSES]
    down = min(FEW, *(int((y == k).sum()) for k in classes))
    shown = torch.stack(
        [(y == k).nonzero().flatten()[:down] for k in classes], 1
    ).flatten()  # row after row
    found = {"distilled" if start else "picked": held.tensors["images"][shown]}
    if start and "history" in held.tensors:
        found = {
            "noise" if start["method"] == "noise" else "picked": held.tensors["history"][0][shown]
        } | found
    rows = [name if i == 0 else "" for name in found for i in range(down)]
    return sheet(pixels(held, torch.cat([*found.values()])), np.array(class_names)[classes], rows)


def images(results: Results) -> Figure:
    """What distillation did to the images: before, after, and the difference about grey, on a scale that 99 % of all changes of a pixel lie within."""
    held, first, labels = distilled(results)
    both = pixels(
        held, torch.cat([held.tensors["history"][0][first], held.tensors["images"][first]])
    )
    difference = np.subtract(*np.split(both, 2)[::-1])
    most = float(np.quantile(np.abs(difference), 0.99)) or 1.0
    return sheet(
        np.concatenate([both, (0.5 + difference / (2 * most)).clip(0, 1)]),
        labels,
        ["before", "after", f"difference\n(± {most:.2f})"],
    )


def history(results: Results) -> Figure:
    """How the images change over the outer iterations; an arrow marks those taken, chosen on the validation split."""
    held, first, labels = distilled(results)
    looks = [
        0,
        *(
            row["iteration"]
            for row in held.record["curve"]
            if row.get("validation_accuracy") is not None
        ),
    ]
    rows = [f"→ {t}" if t == held.record.get("chosen_iteration") else f"{t}" for t in looks]
    figure = sheet(pixels(held, held.tensors["history"][:, first].flatten(0, 1)), labels, rows)
    figure.axes[0].set_ylabel("outer iteration")
    return figure


def film(held: Artefact) -> bytes:
    """The frames of a set on its way, a film's artefact, as a GIF that begins again: its images in a row under their classes, enlarged, and the outer iteration.

    All frames share one palette, the colours that serve all of them best: a pixel is near to what it was, not equal.
    """
    frames, labels = (
        held.tensors["frames"],
        held.tensors["labels"].tolist(),
    )  # (n, k, c, h, w), (k,)
    (n, k), (h, w) = frames.shape[:2], frames.shape[3:]
    levels = (
        (255 * pixels(held, frames.flatten(0, 1))).round().astype(np.uint8).reshape(n, k, h, w, -1)
    )
    strip = (
        np.broadcast_to(levels, (n, k, h, w, 3)).transpose(0, 2, 1, 3, 4).reshape(n * h, k * w, 3)
    )  # frame below frame
    coloured = Image.fromarray(strip).quantize(COLOURS, dither=Image.Dither.NONE)
    white, black, palette = 0, 1, [255] * 3 + [0] * 3 + coloured.getpalette()
    scale = max(1, TALL // h)
    tiles = (np.asarray(coloured) + 2).reshape(n, h, k, w).repeat(scale, 1).repeat(scale, 3)
    top, tall, wide = 18, scale * h, scale * w + 3
    pages = np.full((n, top + tall + 18, k * wide - 3), white, np.uint8)
    for j in range(k):
        pages[:, top : top + tall, j * wide : j * wide + scale * w] = tiles[:, :, j]
    shown, rows = [], held.record["rows"]
    for page, row in zip(pages, rows, strict=True):
        shown.append(Image.fromarray(page))
        shown[-1].putpalette(palette[:768])
        write = partial(ImageDraw.Draw(shown[-1]).text, font=ImageFont.load_default(12), fill=black)
        for j, label in enumerate(labels):
            write((j * wide + scale * w / 2, top / 2), f"{label}", anchor="mm")
        write(
            (0, top + tall + 9),
            f"outer iteration {row['iteration']} of {rows[-1]['iteration']}",
            anchor="lm",
        )
    content = io.BytesIO()
    shown[0].save(
        content,
        "GIF",
        save_all=True,
        append_images=shown[1:],
        duration=[100] * (n - 1) + [1000],
        loop=0,
    )  # ms
    return content.getvalue()


def student(results: Results) -> Figure:
    """One inner loop: do students go the expert's way, and how near do they come to where the expert went?"""
    return walks(results.rows("student"))


def walks(rows: pd.DataFrame) -> Figure:
    """Walks that start together, rows as `smoothness.beside` gives them: in the plane of the expert's way, and how far from its end."""
    last = rows.step.max()  # N, the inner step that meets the expert's last epoch
    figure, (plane, near) = canvas(WIDE, 2.4, 1, 2)
    for part, mine in rows.groupby("part", sort=False):
        look = LOOKS.get(part, PLAIN)
        how = {
            "color": look.color,
            "linestyle": look.line,
            "marker": look.marker,
            "markersize": 3.2,
            "markevery": max(1, len(mine) // 5),
            "label": part,
        }
        plane.plot(mine.x, mine.y, **how)
        near.plot(mine.step * last / mine.step.max(), mine.distance, **how)
    ends = rows[rows.part == "expert"].iloc[[0, -1]]
    for (_, row), words, side in zip(
        ends.iterrows(), ("start ", " target"), ("right", "left"), strict=True
    ):
        plane.text(row.x, row.y, words, ha=side, va="bottom", fontsize=7)
    plane.set(xlabel="along the expert's way", ylabel="across it")
    plane.margins(x=0.25, y=0.1)
    plane.set_aspect("equal", adjustable="datalim")
    near.set(xlabel="inner step", ylabel="relative distance to the target")
    near.set_ylim(bottom=0)
    near.xaxis.get_major_locator().set_params(integer=True)
    name_ends(near)
    return figure


def memory(results: Results) -> Figure:
    """What a longer inner loop costs each gradient: memory and time."""
    rows = results.rows("memory")
    figure, axes = canvas(WIDE, 2.2, 1, 2)
    for ax, column, words in zip(
        axes, ("megabytes", "seconds"), ("peak memory (MB)", "time (s)"), strict=True
    ):
        for gradient, mine in rows.groupby("gradient", sort=False):
            band(ax, mine.pivot_table(index="inner_steps", values=column), gradient)
        ax.set(xlabel="inner steps N", ylabel=words)
        ax.set_ylim(bottom=0)
        name_ends(ax)
    return figure


def distillation(results: Results) -> Figure:
    """How the outer loop goes on the main cell where experts are followed: its loss, what fresh networks learn from the images, the inner lr."""
    rows = results.rows("curves")
    rows = rows[
        (rows.study == "main")
        & (rows.cell == rows.cell.iloc[0])
        & ~rows.method.isin(WITHOUT_EXPERTS)
    ]
    figure, axes = canvas(WIDE, 2.4, 1, 3)
    for method, mine in rows.groupby("method", sort=False):
        loss, lr = (by_seed(mine, "iteration", column, "distil_seed") for column in ("loss", "lr"))
        window, every = max(1, len(loss) // 50), max(1, len(loss) // 200)
        band(axes[0], loss.rolling(window, min_periods=1).mean()[::every], method)
        band(
            axes[1], 100 * by_seed(mine, "iteration", "validation_accuracy", "distil_seed"), method
        )
        band(axes[2], lr[::every], method)
    for ax, title in zip(
        axes,
        ("matching loss, smoothed", "validation accuracy (%)", "learned inner lr a"),
        strict=True,
    ):
        ax.set(xlabel="outer iteration", title=title)
    logarithmic(axes[2])
    figure.suptitle(
        f"{rows.cell.iloc[0]}: mean ± std over sets, n = {span(rows.groupby('method').distil_seed.nunique())}"
    )
    name_ends(axes[2])
    return figure


def walltime(results: Results) -> Figure:
    """What an hour buys: validation accuracy at each look against the time taken until then, cell by cell, a line an iterative method."""
    looks = results.rows("curves").dropna(subset="validation_accuracy")
    rows = looks[looks.study == "main"].merge(
        results.rows("costs")[["settings_key", "study", "seconds", "iterations"]],
        on=["settings_key", "study"],
    )
    rows["time"] = rows.seconds * rows.iteration / rows.iterations
    cells = list(rows.cell.unique())
    down = -(-len(cells) // 3)
    figure, axes = canvas(WIDE, 0.6 + 2.3 * down, down, -(-len(cells) // down))
    for ax, cell in zip(axes, cells, strict=False):
        here = rows[rows.cell == cell]
        noted = here.dropna(subset="time")
        ax.set_title(f"{cell}, n = {span(here.groupby('method').distil_seed.nunique())}")
        if len(noted):
            for method, mine in noted.groupby("method", sort=False):
                at, look = mine.groupby("iteration"), LOOKS.get(method, PLAIN)
                bars = (
                    {"yerr": 100 * at.validation_accuracy.std(ddof=1)}
                    if mine.distil_seed.nunique() > 1
                    else {}
                )
                ax.errorbar(
                    at.time.mean(),
                    100 * at.validation_accuracy.mean(),
                    **bars,
                    color=look.color,
                    linestyle=look.line,
                    marker=look.marker,
                    label=method,
                )
            ax.set(
                xscale="log", xlim=(noted.time.min() / 2, noted.time.max() * 2), xlabel="seconds"
            )
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_formatter(NullFormatter())
        else:
            ax.text(
                0.5,
                0.5,
                "made before\ntimes were noted",
                ha="center",
                va="center",
                transform=ax.transAxes,
            )
    for ax in axes[len(cells) :]:
        ax.set_axis_off()
    axes[0].set_ylabel("validation accuracy (%)")
    figure.suptitle(
        "mean ± std over sets; time of distillation and its looks, not of experts,\neach iteration and each look taken to be as long as the others"
    )
    key_below(figure, axes, 4)
    return figure


def teachers(results: Results) -> Figure:
    """Does smoother teach better? A point a recipe of experts: how smooth, or how good, they are, and how well AST's sets from them teach."""
    held, said = teaching.points(results), teaching.table(results).set_index("measure")
    panels = {
        "step": "mean step length",
        "turning": "cosine to the next step",
        "test_accuracy": "expert test accuracy (%)",
    }
    figure, axes = canvas(WIDE, 2.8, 1, len(panels), sharey=True)
    for ax, (name, words) in zip(axes, panels.items(), strict=True):
        scale = 100 if name == "test_accuracy" else 1
        for row in held.to_dict("records"):
            bars = {"xerr": scale * row[f"{name}_std"], "yerr": 100 * row["accuracy_std"]}
            cross(ax, scale * row[name], 100 * row["accuracy"], bars, row["recipe"])
        rank = said.loc[name]
        question = textwrap.fill(rank["do these teach better"], 20)
        ax.set(
            xlabel=words,
            title=f"{question}:\n{rank.correlation:+.2f} [{rank.low:+.2f}, {rank.high:+.2f}]",
        )
    axes[0].set_ylabel("test accuracy of AST's sets (%)")
    figure.suptitle(
        f"Rank correlation over {len(held)} recipes and its 95 % interval; mean ± std over experts, over {span(held.seeds)} sets"
    )
    name_ends(axes[-1])
    return figure


def ablation(results: Results) -> Figure:
    """What one thing is worth: accuracy lost or won with it changed, against what it was changed from at the same seed, group by group."""
    rows = results.rows("ablation")
    rows = rows[rows.protocol == "lr_chosen"]
    first, found = rows.cell.iloc[0], []
    for (cell, group, base), mine in rows[rows.method != rows.base].groupby(
        ["cell", "group", "base"], sort=False
    ):
        wide = 100 * by_seed(rows[rows.cell == cell], "distil_seed", "accuracy", "method")
        lost = {name: (wide[name] - wide[base]).dropna() for name in mine.method.unique()}
        words = f"{group}: against {base}{'' if cell == first else f' on {cell}'} (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}{span(map(len, lost.values()))})"
        found.append((textwrap.wrap(words, 46), base, lost))
    columns = in_columns(found, [len(words) + len(lost) + 0.7 for words, _, lost in found])
    tall = max(sum(len(words) + len(lost) + 0.7 for words, _, lost in column) for column in columns)
    figure, axes = canvas(WIDE, 0.7 + 0.18 * tall, 1, len(columns), sharex=True)
    for ax, column in zip(axes, columns, strict=True):
        ax.axvline(0, color=BLACK, linewidth=0.8)
        places, y = {}, 0.0
        for words, base, lost in column:
            about = {
                "transform": ax.get_yaxis_transform(),
                "ha": "right",
                "va": "center",
                "weight": "bold",
                "fontsize": 7,
            }
            ax.text(
                1,
                y + (len(words) - 1) / 2,
                "\n".join(words),
                **about,
                bbox={"color": "white", "pad": 1},
            )
            y += len(words)
            for method, values in lost.items():
                spread_dots(
                    ax, y, values, Look(VERMILION) if "−" in method else Look(BLUE, "s")
                )  # an ingredient taken away, or other experts and settings
                places[y] = (
                    method.removeprefix(base).lstrip(", ").replace("_", " ")
                )  # the base is in the heading
                y += 1
            y += 0.7
        ax.set_yticks([*places], [*places.values()])
        ax.set_ylim(tall - 0.7, -0.6)
        ax.set_xlabel("difference in test accuracy (points)")
    figure.suptitle(f"{first}: differences at the same seed, mean ± std over n seeds")
    return figure


def in_columns(items: list, heights: list[float], most: float = 30.0) -> list[list]:
    """Items in their order in one column; where it would be higher than `most`, in two, as equal in height as they can be."""
    tops = np.cumsum(heights)
    if tops[-1] <= most:
        return [items]
    cut = 1 + int(np.argmin(np.maximum(tops, tops[-1] - tops)[:-1]))
    return [items[:cut], items[cut:]]


def contrast(
    ax: Axes,
    rows: pd.DataFrame,
    x: str,
    y: str,
    methods: Sequence[str],
    note: Callable = lambda wide: "",
) -> None:
    """y against x for a method and for the same without a part; `note` says something of the values after each name."""
    for method in methods:
        wide = by_seed(rows[rows.method == method], x, y, "distil_seed")
        if len(wide):
            band(ax, wide, method, method + (note(wide) if len(wide) > 1 else ""))
    ax.set_title(f"{rows.cell.iloc[0]}: mean ± std over sets, n = {rows.distil_seed.nunique()}")
    name_ends(ax)


def start_epochs(results: Results) -> Figure:
    """Whether the balanced loss evens out how hard the start epochs are; a panel for each length of the window that was tried."""
    rows = results.rows("curves")
    rows, uneven = rows[rows.study == "ablation"], ": {:.2f}"  # one line, for ends that lie close
    pairs = [
        (method, method + UNBALANCED)
        for method in rows.method.unique()
        if (rows.method == method + UNBALANCED).any()
    ]
    figure, axes = canvas(WIDE * 0.75, 2.4 * len(pairs), len(pairs))
    for ax, pair in zip(axes, pairs, strict=True):
        mine = rows[rows.method.isin(pair)]
        mine = mine[mine.iteration > mine.iteration.max() // 2]
        contrast(
            ax,
            mine,
            "start",
            "loss",
            pair,
            lambda wide: uneven.format((wide.std() / wide.mean()).mean()),
        )
        ax.set_ylabel("matching loss, second half")
    axes[-1].set_xlabel("start epoch s (at the names: std / mean over s)")
    return figure


def following(results: Results) -> Figure:
    """How far a student left to itself strays from the expert that it follows."""
    rows = results.rows("following")
    figure, (ax,) = canvas(WIDE * 0.75, 2.4)
    contrast(
        ax,
        rows,
        "epoch",
        "error",
        ["AST", "AST − intermediate matching", "AST − weight perturbation"],
    )
    ax.set(
        xlabel=f"expert epoch (mean over experts, n = {rows.expert_seed.nunique()})",
        ylabel="relative distance to the expert",
    )
    return figure


def claims(results: Results) -> Figure:
    """What holds: the effect and 95 % interval of each part of each claim, on a scale of its own; right of zero speaks for the claim."""
    table = pd.read_csv(results.folder / "tables" / "claims.csv", dtype={"claim": str})
    lines = [
        textwrap.wrap(row.statement, 56 if row.claim.isdigit() else 64)
        for row in table.itertuples()
    ]
    tall = np.array([0.4 + 0.9 * len(text) for text in lines])
    tops = (
        np.cumsum(tall) - tall + 0.6 * table.claim.str.isdigit().cumsum().to_numpy()
    )  # a claim stands off from the one before
    figure, (ax,) = canvas(WIDE, 0.4 + 0.14 * (tops[-1] + tall[-1]))
    for top, text, row in zip(tops, lines, table.itertuples(), strict=True):
        whole, look = row.claim.isdigit(), LOOKS.get(row.verdict, PLAIN)
        words = {"fontsize": 7, "va": "top", "weight": "bold" if whole else "normal"}
        ax.text(-7.6, top, row.claim, **words)
        ax.text(-7.2, top, "\n".join(text), **words)
        ax.text(
            1.3,
            top,
            row.verdict if whole else numbers(row),
            **words,
            color=look.color if whole else BLACK,
        )
        if row.n and not whole:
            interval(ax, top + 0.34, row, look)
    ax.axvline(0, color=BLACK, linewidth=0.8, zorder=0)
    ax.set(xlim=(-7.6, 4.4), ylim=(tops[-1] + tall[-1], 0), xticks=[-1, 0, 1], yticks=[])
    ax.set_xticklabels(["against", "0", "for"])
    ax.set_xlabel("effect [95 % interval] (n seeds), each on a scale of its own", loc="right")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return figure


def numbers(row: Any) -> str:
    """The effect, its interval and n; accuracies in points."""
    if not row.n:
        return "no rows"
    points = "accuracy" in row.statement
    effect, low, high = (
        f"{100 * value:+.1f}" if points else f"{value:+.3f}"
        for value in (row.effect, row.low, row.high)
    )
    known = f" [{low}, {high}]" if np.isfinite(row.low) else ""
    return f"{effect}{known}{' points' if points else ''} ({row.n})".replace("-", "−")


def interval(ax: Axes, y: float, row: Any, look: Look) -> None:
    """An effect and its interval scaled to fit [-1, 1] about zero; dotted from end to end where one seed gives no interval."""
    values = np.array([row.effect, row.low, row.high])
    effect, *ends = np.clip(
        values / (np.abs(values[np.isfinite(values)]).max(initial=0) or 1), -1, 1
    )
    ax.plot(ends, [y, y], color=look.color, linestyle="-" if np.isfinite(values).all() else DOT)
    ax.plot(
        [effect],
        [y],
        look.marker,
        color=look.color,
        markerfacecolor="white" if look is PLAIN else look.color,
    )


def scaling(results: Results) -> Figure:
    """What a larger run would cost: predicted memory and time of one distillation as one size grows, and disk and time of the experts."""
    rows = results.rows("scaling")
    parts = ["inner steps N", "images per class", "pixels a side", "experts"]
    figure, axes = canvas(WIDE, 3.9, 2, 4)
    for column, part in enumerate(parts):
        mine = rows[rows.part == part]
        for row, (value, words) in enumerate(
            {
                "gigabytes": "GB of memory" if part != "experts" else "GB of disk",
                "hours": "hours",
            }.items()
        ):
            ax = axes[4 * row + column]
            for gradient, line in mine.groupby("gradient", sort=False):
                look = LOOKS.get(gradient, PLAIN)
                ax.plot(
                    line.x,
                    line[value],
                    color=look.color,
                    linestyle=look.line,
                    marker=look.marker,
                    label=gradient,
                )
            ax.set_xscale("log")
            ax.set_xticks(mine.x.unique(), [f"{x:g}" for x in mine.x.unique()])
            ax.xaxis.set_minor_formatter(NullFormatter())
            logarithmic(ax)
            ax.set_xlabel(part if row else "")
            ax.set_title(words)
    figure.suptitle(
        f"Predicted for one {rows.gpu.iloc[0]}; the middle is 3 × 32 × 32 pixels, ten classes, ten images a class, N = 30, width 128"
    )
    key_below(figure, axes, 2)
    return figure


def peers(results: Results) -> Figure:
    """What users of trajectory matching report as needing several GPUs: predicted memory with each gradient, beside what GPUs hold."""
    rows = results.rows("scaling")
    mine = rows[rows.part.str.contains("IPC")]
    names = list(mine.part.unique())
    figure, (ax,) = canvas(WIDE * 0.75, 0.9 + 0.25 * len(names))
    for gradient, line in mine.groupby("gradient", sort=False):
        look = LOOKS.get(gradient, PLAIN)
        ax.plot(
            line.gigabytes,
            [names.index(part) for part in line.part],
            look.marker,
            color=look.color,
            label=gradient,
        )
    for memory in (24, 40, 80):
        ax.axvline(memory, color=BLACK, linestyle=DASH, linewidth=0.8)
        ax.text(
            memory,
            1.01,
            f"{memory} GB",
            ha="center",
            va="bottom",
            fontsize=7,
            transform=ax.get_xaxis_transform(),
        )
    ax.set_xscale("log")
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlabel("predicted peak memory of one outer iteration (GB)")
    key_below(figure, [ax], 2)
    return figure


def own(results: Results) -> Figure:
    """Images of one's own: how well one distilled set teaches, beside real images, picked or random, and all of them."""
    rows = results.rows("own")
    return dots(rows, "cell", [method for method in rows.method.unique() if method != CEILING])


def continual(results: Results) -> Figure:
    """A network that meets the classes task by task: its accuracy on all met so far, by memory; and what each is worth beside random real images."""
    rows, said = results.rows("continual"), reuse.memories(results)
    said = said[~said.memory.isin([reuse.RANDOM, *BOUNDS])]
    figure, (ax, beside) = canvas(WIDE, 2.6, 1, 2, width_ratios=[1.2, 1])
    for method, mine in rows.groupby("method", sort=False):
        band(
            ax, 100 * by_seed(mine.assign(task=mine.after + 1), "task", "accuracy", "seed"), method
        )
    ax.set(
        xlabel="tasks learned",
        ylabel="accuracy on their classes (%)",
        title=f"{rows.cell.iloc[0]}: mean ± std, n = {rows.seed.nunique()}",
    )
    name_ends(ax)
    for y, row in enumerate(said.itertuples()):
        look, ends = LOOKS.get(row.memory, PLAIN), np.array([row.accuracy_low, row.accuracy_high])
        if np.isfinite(ends).all():
            beside.plot(ends, [y, y], color=look.color)
        beside.plot([row.accuracy_difference], [y], look.marker, color=look.color, markersize=5)
    beside.axvline(0, color=BLACK, linewidth=0.8)
    beside.set_yticks(range(len(said)), said.memory)
    beside.set_ylim(len(said) - 0.5, -0.5)
    beside.set(
        xlabel="points beside random real images",
        title="at the end, by seed: mean and 95 % interval",
    )
    return figure


def architectures(results: Results) -> Figure:
    """Architectures, by how they score trained on a set and trained on all real images; ringed is the one that the set would choose."""
    held, said = reuse.points(results), reuse.choices(results).set_index("method")
    methods = [method for method in said.index if method != CEILING]
    figure, axes = canvas(WIDE * 0.8, 3.1, 1, len(methods), sharey=True)
    for ax, method in zip(axes, methods, strict=True):
        for kind in dict.fromkeys(name.split()[0] for name in held.index):
            mine, look = held[held.index.str.split().str[0] == kind], LOOKS.get(kind, PLAIN)
            ax.plot(100 * mine[method], 100 * mine.truth, look.marker, color=look.color, label=kind)
        row = said.loc[method]
        ax.plot(
            [100 * held[method][row.taken]],
            [row.true_accuracy],
            "o",
            markersize=10,
            markerfacecolor="none",
            color=BLACK,
        )
        ax.set(
            xlabel="validation accuracy on such sets (%)",
            title=f"{method}: rank correlation\n{row.correlation:+.2f} [{row.low:+.2f}, {row.high:+.2f}]",
        )
    axes[0].set_ylabel("test accuracy on all images (%)")
    figure.suptitle(f"{len(held)} architectures, 95 % intervals over them")
    key_below(figure, axes, 5)
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {
    figure.__name__: figure
    for figure in (
        *(main, experts, smoothness, quality, norms, initialisation, coresets, student, memory),
        *(
            distillation,
            walltime,
            images,
            history,
            cross_architecture,
            ablation,
            teachers,
            start_epochs,
            following,
            claims,
            scaling,
            peers,
        ),
        *(own, continual, architectures),
    )
}
