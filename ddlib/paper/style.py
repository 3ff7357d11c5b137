"""How figures look: one look (colour, marker, line) per method or recipe, the same in all figures.

Looks are distinct in grey, too. Coresets are grey, methods without experts green, MTT and the
rivals that came of it blue, AST and its experts vermilion. Bands and bars are one standard
deviation, unless a figure says otherwise.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from PIL import Image

WIDE, NARROW = 7.0, 3.4  # inches: a page, a column
BLACK, ORANGE, SKY, GREEN = "#000000", "#E69F00", "#56B4E9", "#009E73"  # by Okabe & Ito
BLUE, VERMILION, PURPLE = "#0072B2", "#D55E00", "#CC79A7"
GREY, SILVER = "#666666", "#999999"
DASH, DOT, MIXED, LONG = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.5, 1, 1.5)), (0, (8, 2))
LEVELS, SHARE = 48, 0.002  # of 255, and of all pixels: what `same_picture` lets pass


class Look(NamedTuple):
    """How a method or a recipe is drawn, in every figure."""

    color: str
    marker: str = "o"
    line: str | tuple = "-"


_HERE = Path(__file__).parent
_KNOWN = yaml.safe_load((_HERE / "looks.yaml").read_text("utf-8"))
# the colours and lines above, as looks.yaml calls them
_WORDS = {name.lower(): value for name, value in globals().items() if name.isupper()}


def _looks(kind: str) -> dict[str, Look]:
    """Those of a part of looks.yaml."""
    rows = _KNOWN[kind].items()
    return {name: Look(*(_WORDS.get(word, word) for word in words)) for name, words in rows}


METHODS, RECIPES = _looks("methods"), _looks("recipes")
LOOKS = METHODS | RECIPES | _looks("others")
NAMES: dict[str, str] = _KNOWN["names"]
PLAIN = Look(GREY)
FONT = "DejaVu Sans"  # ships with matplotlib: the same letters everywhere


@contextmanager
def style() -> Iterator[None]:
    """The publication style on matplotlib's defaults: the same rows give the same bytes.

    A matplotlibrc of the reader's own changes nothing.
    """
    with plt.rc_context():
        matplotlib.rcdefaults()
        plt.style.use(_HERE / "ddlib.mplstyle")
        yield


def canvas(
    width: float, height: float, rows: int = 1, columns: int = 1, **options: Any
) -> tuple[Figure, np.ndarray]:
    """A figure and its axes in one row. It shows as the last word of a cell and stays open nowhere.

    `options` are those of `Figure.subplots`.
    """
    figure = plt.figure(figsize=(width, height), layout="constrained")
    plt.close(figure)
    return figure, figure.subplots(rows, columns, squeeze=False, **options).ravel()


def by_seed(rows: pd.DataFrame, x: str, y: str, seed: str) -> pd.DataFrame:
    """x down, seeds across: the mean of y."""
    return rows.dropna(subset=y).pivot_table(index=x, columns=seed, values=y)


def named(name: str) -> str:
    """A recipe, a method, a data set or a cell as a reader knows it."""
    data, cell, ipc = name.partition("-ipc")
    words = NAMES.get(data, data.replace("_", " "))
    return f"{words}, IPC {ipc.replace('-', ', ')}" if cell else words


def line_of(name: str) -> dict[str, Any]:
    """The look of a line, as `Axes.plot` takes it."""
    look = LOOKS.get(name, PLAIN)
    return {"color": look.color, "linestyle": look.line, "marker": look.marker}


def thin(ax: Axes, wide: pd.DataFrame, label: str) -> None:
    """The mean over the columns as a thin grey line, behind the others."""
    ax.plot(wide.index, wide.mean(axis=1), color=SILVER, linewidth=0.7, zorder=1.5, label=label)


def band(ax: Axes, wide: pd.DataFrame, name: str) -> None:
    """The mean over the columns against the index, and one std about it if there are several."""
    average, x, line = wide.mean(axis=1), wide.index, line_of(name)
    marks = {"markersize": 3.2, "markevery": max(1, len(x) // 6)}
    ax.plot(x, average, **line, **marks, label=named(name))
    if wide.shape[1] > 1:
        std = wide.std(axis=1, ddof=1)
        ends = average - std, average + std
        ax.fill_between(x, *ends, color=line["color"], alpha=0.15, linewidth=0)
    ax.xaxis.get_major_locator().set_params(integer=True)


def cross(ax: Axes, x: float, y: float, bars: dict[str, float], name: str) -> None:
    """The point of a recipe, and its standard deviations `xerr` and `yerr`."""
    look = LOOKS.get(name, PLAIN)
    ax.errorbar(x, y, **bars, fmt="none", ecolor=look.color, elinewidth=0.8, alpha=0.6)
    ax.plot([x], [y], look.marker, color=look.color, markersize=5, label=named(name))


def spread_dots(ax: Axes, y: float, values: pd.Series, look: Look) -> None:
    """Small dots for values, a large one for their mean, a bar of one standard deviation."""
    if len(values) > 1:
        ax.plot(values, np.full(len(values), y + 0.24), ".", color=look.color, markersize=2.5)
        ax.plot(values.mean() + values.std(ddof=1) * np.array([-1, 1]), [y, y], color=look.color)
    ax.plot([values.mean()], [y], look.marker, color=look.color, markersize=5)


def name_ends(ax: Axes) -> None:
    """Names of the lines beside their right ends, moved apart until all can be read.

    A sample of the line before each name makes them a key to other panels, too, and in grey.
    """
    from sklearn.isotonic import isotonic_regression  # here: it takes seconds to import

    ax.autoscale_view()  # before it, the ends are not yet where they will be
    size = plt.rcParams["xtick.labelsize"]
    lines = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
    ends = [(line.get_xdata()[-1], line.get_ydata()[-1]) for line in lines]
    heights = ax.transAxes.inverted().transform(ax.transData.transform(ends))[:, 1]
    order = np.argsort(heights, kind="stable")
    tall = 0.75 * ax.figure.get_figheight() / ax.get_gridspec().nrows  # inches, about
    gaps = 1.3 * size / (72 * tall) * np.arange(len(order))
    # the places nearest to the ends that keep the gaps
    nearest = isotonic_regression(heights[order] - gaps, y_min=0, y_max=max(1 - gaps[-1], 0))
    # x in inches from the right edge of the panel, y in parts of its height
    inches = ax.figure.dpi_scale_trans + ScaledTranslation(1, 0, ax.transAxes)
    beside = blended_transform_factory(inches, ax.transAxes)
    for i, place in zip(order, nearest + gaps, strict=True):
        color, label = lines[i].get_color(), lines[i].get_label()
        arrow = {"arrowstyle": "-", "color": color, "linewidth": 0.5, "shrinkA": 0, "shrinkB": 2}
        ax.annotate("", ends[i], (0.12, place), "data", beside, arrow)
        sample = Line2D([0.14, 0.27, 0.4], [place] * 3)
        sample.update_from(lines[i])
        sample.set(transform=beside, clip_on=False, markevery=[1], label="_sample")
        ax.add_artist(sample)
        ax.text(0.46, place, label, transform=beside, color=color, fontsize=size, va="center")


def plain_ticks(axis: Axis) -> None:
    """Ticks of a logarithmic axis as plain numbers."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_formatter(NullFormatter())


def logarithmic(ax: Axes) -> None:
    """A logarithmic height about the lines: a band of one std may reach below zero."""
    heights = np.concatenate([line.get_ydata() for line in ax.get_lines()])
    ax.set_yscale("log")
    ax.set_ylim(np.nanmin(heights) / 1.2, np.nanmax(heights) * 1.2)
    plain_ticks(ax.yaxis)


def same_picture(kept: bytes, made: bytes) -> str | None:
    """How two PNGs differ, in words; None if they are the same to the eye.

    More than SHARE of all pixels must differ by more than LEVELS in a channel: fonts and lines are
    not rendered alike everywhere.
    """
    try:
        a, b = (np.array(Image.open(io.BytesIO(png)).convert("RGBA"), int) for png in (kept, made))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"one of them is no sound PNG ({error})"
    if a.shape != b.shape:
        sizes = (f"{x.shape[1]} × {x.shape[0]} pixels" for x in (a, b))
        return "{} kept, {} made".format(*sizes)
    differ = (np.abs(a - b) > LEVELS).any(-1).mean()
    if differ > SHARE:
        return f"{differ:.2%} of its pixels differ by more than {LEVELS} of 255 levels"
    return None
