"""Every figure of the paper, as a function of rows and kept sets: `FIGURES[name](results)`, drawn inside `style()`.

One look (colour, marker, line) a method or recipe, the same in all figures and distinct in grey. Coresets are grey, the MTT family
blue, AST vermilion; an expert recipe wears the colour of the method that follows it. Bands and bars are one standard deviation.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .config import Refusal
from .results import Results
from .store import Artefact
from .whiten import Space

WIDE, NARROW = 7.0, 3.4  # inches: a page, a column
BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7"  # Okabe & Ito
GREY, SILVER = "#666666", "#999999"
DASH, DOT, MIXED, LONG = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2))


class Look(NamedTuple):
    """How a method or a recipe is drawn, wherever it is drawn."""

    color: str
    marker: str = "o"
    line: str | tuple = "-"


LOOKS = {
    "random": Look(SILVER, "x"),
    "herding": Look(SILVER, "^"),
    "k-center": Look(SILVER, "s"),
    "k-means": Look(GREY, "D"),
    "MTT": Look(BLUE, "s", DASH),
    "MTT + inner momentum": Look(SKY, "^", MIXED),
    "MTT, strong experts": Look(BLUE, "v", DOT),
    "AST": Look(VERMILION),
    "AST − balanced loss": Look(BLUE, "s", DASH),
    "AST − intermediate matching": Look(BLUE, "s", DASH),
    "AST − weight perturbation": Look(GREEN, "^", DOT),
    "sgd": Look(BLACK, "s", DASH),
    "momentum": Look(BLUE, "v"),
    "adam": Look(PURPLE, "^", MIXED),
    "momentum_ramp": Look(SKY, "P", LONG),
    "momentum_penalty": Look(GREEN, "D", DASH),
    "momentum_penalty_per_pixel": Look(GREEN, "X", DOT),
    "ast": Look(VERMILION),
    "momentum_lr_matched": Look(SILVER, "h", DASH),
    "momentum_warmup_penalty": Look(ORANGE, "p", MIXED),
    "adjoint": Look(VERMILION),
    "unroll": Look(BLUE, "s", DASH),
    "expert": Look(BLACK, "s", DASH),
    "student": Look(VERMILION, "o"),
    "supported": Look(GREEN, "o"),
    "not supported": Look(VERMILION, "X"),
}
PLAIN = Look(GREY)
CORESETS = ("random", "herding", "k-center", "k-means")
CEILING = "full data"
CLASSES = 20  # columns of an image grid, at most


def style() -> AbstractContextManager:
    """The publication style; the same rows give the same bytes."""
    return plt.rc_context(
        {
            "font.family": "DejaVu Sans",  # ships with matplotlib
            "font.size": 8,
            "axes.titlesize": 8.5,
            "axes.labelsize": 8,
            "xtick.labelsize": 7.5,
            "ytick.labelsize": 7.5,
            "legend.fontsize": 7.5,
            "legend.frameon": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": "#e4e4e4",
            "grid.linewidth": 0.6,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.7,
            "lines.linewidth": 1.3,
            "lines.markersize": 4,
            "figure.dpi": 120,
            "svg.hashsalt": "ddlib",
            "svg.fonttype": "path",
        }
    )


def canvas(width: float, height: float, rows: int = 1, columns: int = 1, **shared) -> tuple[Figure, np.ndarray]:
    """A figure that shows where it is the last word of a cell and stays open nowhere, and its axes in one row."""
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **shared).ravel()


def shown(name: str) -> str:
    """A recipe as it is written in a figure."""
    return name.replace("_", " ")


def present(names: Iterable[str], column: pd.Series) -> list[str]:
    """Those of `names` that the rows hold."""
    return [name for name in names if (column == name).any()]


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
    every = max(1, len(x) // 6)
    ax.plot(x, mean, color=look.color, linestyle=look.line, marker=look.marker, markevery=every, markersize=3.2, label=label or shown(name))
    if wide.shape[1] > 1:
        std = wide.std(axis=1, ddof=1)
        ax.fill_between(x, mean - std, mean + std, color=look.color, alpha=0.15, linewidth=0)


def name_ends(ax: Axes) -> None:
    """Names of the lines beside their right ends, moved apart until all can be read."""
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in lines]
    heights = ax.transAxes.inverted().transform(ax.transData.transform(ends))[:, 1]
    gap = 1.2 * plt.rcParams["xtick.labelsize"] / (72 * 0.75 * ax.figure.get_figheight())
    order = np.argsort(heights, kind="stable")
    places = heights[order] - gap * np.arange(len(order))
    places = isotonic(places) + gap * np.arange(len(order))
    for i, place in zip(order, places, strict=True):
        arrow = {"arrowstyle": "-", "color": lines[i].get_color(), "linewidth": 0.5, "shrinkA": 1, "shrinkB": 1}
        words = {"color": lines[i].get_color(), "fontsize": plt.rcParams["xtick.labelsize"], "va": "center"}
        ax.annotate(lines[i].get_label(), ends[i], (1.05, place), xycoords="data", textcoords="axes fraction", arrowprops=arrow, annotation_clip=False, **words)


def isotonic(values: np.ndarray) -> np.ndarray:
    """The nearest values that never fall (pool adjacent violators)."""
    pools: list[list[float]] = []
    for value in values:
        pools.append([value])
        while len(pools) > 1 and np.mean(pools[-2]) > np.mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    return np.concatenate([np.full(len(pool), np.mean(pool)) for pool in pools])


def key_below(figure: Figure, ax: Axes, columns: int) -> None:
    """One key for all panels."""
    handles, labels = ax.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(columns, len(labels)), handlelength=3)


def pixels(artefact: Artefact, images: torch.Tensor | None = None) -> np.ndarray:
    """A set's images, or others of its space, as pixels in [0, 1]: (n, h, w, 3), or (n, h, w) where there is one channel."""
    held = {name.removeprefix("space."): t for name, t in artefact.tensors.items() if name.startswith("space.")}
    images = artefact.tensors["images"] if images is None else images
    x = Space.from_tensors(held).leave(images).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return x[..., 0] if x.shape[-1] == 1 else x


def grid(ax: Axes, images: np.ndarray, labels: Sequence, rows: Sequence[str] = ()) -> None:
    """Images (n, h, w) or (n, h, w, 3) under their classes, each class's down its column in the order given; `rows` names the rows."""
    labels = np.asarray(labels)
    classes = list(dict.fromkeys(labels.tolist()))
    down, (h, w) = max((labels == c).sum() for c in classes), images.shape[1:3]
    sheet = np.ones((down * (h + 2), len(classes) * (w + 2), 3))
    for j, c in enumerate(classes):
        for i, image in enumerate(images[labels == c]):
            sheet[i * (h + 2) : i * (h + 2) + h, j * (w + 2) : j * (w + 2) + w] = image if image.ndim == 3 else image[..., None]
    ax.imshow(sheet, interpolation="nearest")
    ax.set_xticks(np.arange(len(classes)) * (w + 2) + w / 2 - 0.5, classes)
    ax.set_yticks(np.arange(len(rows)) * (h + 2) + h / 2 - 0.5, rows)
    ax.tick_params(length=0, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    ax.grid(False)


def sheet(images: list[np.ndarray], labels: np.ndarray, rows: Sequence[str]) -> Figure:
    """A figure of rows of images, one of each class a row."""
    figure, (ax,) = canvas(WIDE, 0.3 + len(rows) * 6.0 / max(len(labels), 8))
    grid(ax, np.concatenate(images), np.tile(labels, len(rows)), rows)
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
    across = min(len(wheres), 3)
    down = -(-len(wheres) // across)
    figure, axes = canvas(NARROW if across == 1 else WIDE, down * (0.75 + 0.19 * len(methods)), down, across, sharey=True)
    for ax, where in zip(axes, wheres, strict=False):
        here = rows[rows[by] == where]
        scored = here[here.method.isin(methods)]
        for y, method in enumerate(methods):
            spread_dots(ax, y, 100 * scored[scored.method == method].groupby("distil_seed").accuracy.mean(), LOOKS.get(method, PLAIN))
        ceiling = 100 * here[here.method == CEILING].accuracy.mean()
        if not np.isnan(ceiling):
            ax.axvline(ceiling, color=BLACK, linestyle=DASH, linewidth=0.9)
            ax.text(ceiling, 0.5, f"{CEILING} {ceiling:.1f} ", rotation=90, ha="right", va="center", fontsize=7, transform=ax.get_xaxis_transform())
        sets, networks = (span(scored.groupby(["method", *also])[what].nunique()) for also, what in ([[], "distil_seed"], [["distil_seed"], "net_seed"]))
        ax.set_title(f"{where}\nn = {sets} sets × {networks} networks")
    for ax in axes[len(wheres) :]:
        ax.set_axis_off()
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    figure.supxlabel("test accuracy (%), mean ± std over sets", fontsize=8)
    return figure


def spread_dots(ax: Axes, y: float, values: pd.Series, look: Look) -> None:
    """Small dots for the values, a large one for their mean and a bar of one standard deviation."""
    if values.empty:
        return
    ax.plot(values, np.full(len(values), y + 0.22), ".", color=look.color, markersize=2.5, alpha=0.8)
    ax.errorbar(values.mean(), y, xerr=values.std(ddof=1) if len(values) > 1 else None, fmt=look.marker, color=look.color, markersize=5, capsize=0)


def main(results: Results) -> Figure:
    """How well each method's sets teach a fresh network, cell by cell, and how far the ceiling is."""
    rows = results.rows("main")
    return dots(rows, "cell", [m for m in rows.method.unique() if m != CEILING])


def coresets(results: Results) -> Figure:
    """How well real images teach, by the way they were picked."""
    rows = results.rows("main")
    rows = rows[rows.method.isin(CORESETS)]
    return dots(rows, "cell", present(CORESETS, rows.method))


def cross_architecture(results: Results) -> Figure:
    """Whether sets made with one architecture teach the others."""
    rows = results.rows("cross_architecture")
    return dots(rows, "architecture", list(rows.method.unique()))


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
    ax.set_title(f"{rows.data.iloc[0]}: mean ± std of {rows.expert_seed.nunique()} experts a recipe")
    name_ends(ax)
    return figure


def expert_panels(results: Results, columns: dict[str, str], straight: Sequence[str] = ()) -> Figure:
    """A panel a column of the experts' rows, logarithmic unless `straight`."""
    rows = first_data(results.rows("experts"))
    figure, axes = canvas(WIDE, 3.1, 1, len(columns))
    for ax, (column, title) in zip(axes, columns.items(), strict=True):
        ax.set_yscale("linear" if column in straight else "log")
        of_recipes(ax, rows, column)
        ax.set_title(title)
    figure.suptitle(f"{rows.data.iloc[0]}: mean ± std of {rows.expert_seed.nunique()} experts a recipe", fontsize=8.5)
    key_below(figure, axes[0], 4)
    return figure


def smoothness(results: Results) -> Figure:
    """How far an expert moves in each epoch, how much it turns, how far it moves for its size."""
    return expert_panels(results, {"step": "step length", "turning": "cosine to the next step", "relative_step": "relative step"}, ["turning"])


def norms(results: Results) -> Figure:
    """How sensitive experts are to their input with no penalty asked for or with it, in both readings."""
    return expert_panels(results, {"norm_per_pixel": "input-gradient norm, per pixel", "norm_per_sample": "input-gradient norm, per sample"})


def quality(results: Results) -> Figure:
    """Whether a recipe buys its smoothness with accuracy: short steps to the left, good experts at the top."""
    rows = first_data(results.rows("smoothness"))
    figure, (ax,) = canvas(WIDE * 0.75, 3.2)
    for recipe, mine in rows.groupby("recipe", sort=False):
        look, x, y = LOOKS.get(recipe, PLAIN), mine.step, 100 * mine.test_accuracy
        bars = {"xerr": x.std(), "yerr": y.std()} if len(mine) > 1 else {}
        ax.errorbar(x.mean(), y.mean(), **bars, fmt="none", ecolor=look.color, elinewidth=1)
        ax.plot([x.mean()], [y.mean()], look.marker, color=look.color, markersize=5, label=shown(recipe))
    ax.set_xlabel(f"mean step length, mean ± std of {span(rows.groupby('recipe').size())} experts")
    ax.set_ylabel("final test accuracy (%)")
    ax.set_title(rows.data.iloc[0])
    name_ends(ax)
    return figure


def initialisation(results: Results) -> Figure:
    """Which real images stand for a class, by the way they were picked."""
    cell, images, rows = smallest_cell(results.rows("main")), [], []
    for method in CORESETS:
        try:
            held = results.set(cell, method, 0)
        except Refusal:  # a cell need not try them all
            continue
        first = first_of_each(held.tensors["labels"])
        images.append(pixels(held, held.tensors["images"][first]))
        labels, rows = held.tensors["labels"].numpy()[first], [*rows, method]
    if not rows:
        raise Refusal(f"no coreset of {cell} is kept in {results.folder / 'sets'}: expected one of {', '.join(CORESETS)} at seed 0; keep the sets first")
    return sheet(images, labels, rows)


def distilled(results: Results) -> tuple[Artefact, np.ndarray, np.ndarray]:
    """AST's set of the smallest cell, where the first image of each class is, and their labels."""
    held = results.set(smallest_cell(results.rows("main")), "AST", 0)
    if "history" not in held.tensors:
        raise Refusal("the AST set at seed 0 holds no 'history': it is kept for one image per class; add such a cell to the profile")
    first = first_of_each(held.tensors["labels"])
    return held, first, held.tensors["labels"].numpy()[first]


def images(results: Results) -> Figure:
    """What distillation did to the images: before, after, and the difference about grey."""
    held, first, labels = distilled(results)
    before, after = (pixels(held, x[first]) for x in (held.tensors["history"][0], held.tensors["images"]))
    most = float(np.abs(after - before).max()) or 1.0
    return sheet([before, after, 0.5 + (after - before) / (2 * most)], labels, ["before", "after", f"difference\n(± {most:.2f})"])


def history(results: Results) -> Figure:
    """How the images change over the outer iterations; an arrow marks those taken, chosen on the validation split."""
    held, first, labels = distilled(results)
    looks = [0, *(row["iteration"] for row in held.record["curve"] if row.get("validation_accuracy") is not None)]
    rows = [f"→ {t}" if t == held.record.get("chosen_iteration") else f"{t}" for t in looks]
    figure = sheet([pixels(held, x[first]) for x in held.tensors["history"]], labels, rows)
    figure.axes[0].set_ylabel("outer iteration")
    return figure
