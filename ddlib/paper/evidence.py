"""The figures that say what holds: the ablation, and the claims with their verdicts."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddlib.paper import style
from ddlib.paper.claims import distinct, in_words, part
from ddlib.paper.results import NoRows, Results
from ddlib.paper.style import Look, by_seed
from ddlib.paper.tables import span


def ablation(results: Results) -> Figure:
    """What one change is worth: accuracy won or lost against its base at the same seed."""
    rows = distinct(results.rows("ablation"))
    first, blocks = rows.cell.iloc[0], []
    changed = rows[rows.method != rows.base]
    for (cell, group, base), runs in changed.groupby(["cell", "group", "base"], sort=False):
        wide = 100 * by_seed(rows[rows.cell == cell], "distil_seed", "accuracy", "method")
        lost = {name: (wide[name] - wide[base]).dropna() for name in runs.method.unique()}
        place = "" if cell == first else f" on {style.named(cell)}"
        seeds = f"(n = {span(map(len, lost.values()))})".replace(" ", "\N{NO-BREAK SPACE}")
        heading = textwrap.wrap(f"{group}: against {base}{place} {seeds}", 46)
        blocks.append((heading, base, lost))
    heights = [len(heading) + len(lost) + 0.7 for heading, _, lost in blocks]
    columns = in_columns([*zip(blocks, heights, strict=True)], heights)
    tall = max(sum(height for _, height in column) for column in columns)
    figure, axes = style.canvas(style.WIDE, 0.7 + 0.18 * tall, 1, len(columns), sharex=True)
    for ax, column in zip(axes, columns, strict=True):
        changes(ax, [block for block, _ in column])
        ax.set_ylim(tall - 0.7, -0.6)
    figure.suptitle(f"{style.named(first)}: differences at the same seed, mean ± std over n seeds")
    return figure


def changes(ax: Axes, blocks: Iterable[tuple[list[str], str, dict[str, pd.Series]]]) -> None:
    """A column of the ablation: headings, and below each its changes with their differences."""
    ax.axvline(0, color=style.BLACK, linewidth=0.8)
    ticks, y = {}, 0.0
    right = {"transform": ax.get_yaxis_transform(), "ha": "right", "va": "center"}
    bold = {"weight": "bold", "fontsize": 7, "bbox": {"color": "white", "pad": 1}}
    for heading, base, lost in blocks:
        ax.text(1, y + (len(heading) - 1) / 2, "\n".join(heading), **right, **bold)
        y += len(heading)
        for method, values in lost.items():
            # an ingredient taken away is a dot; other experts and settings are squares
            look = Look(style.VERMILION) if "−" in method else Look(style.BLUE, "s")
            style.spread_dots(ax, y, values, look)
            ticks[y] = method.removeprefix(base).lstrip(", ").replace("_", " ")
            y += 1
        y += 0.7
    ax.set_yticks([*ticks], [*ticks.values()])
    ax.set_xlabel("difference in test accuracy (points)")


def in_columns(items: list, heights: list[float], most: float = 30.0) -> list[list]:
    """Items in their order in one column; in two of about equal height if it is above `most`."""
    tops = np.cumsum(heights)
    if tops[-1] <= most:
        return [items]
    cut = 1 + int(np.argmin(np.maximum(tops, tops[-1] - tops)[:-1]))
    return [items[:cut], items[cut:]]


def claims(results: Results) -> Figure:
    """What holds: effect and 95 % interval of each part of each claim, on a scale of its own.

    Right of zero speaks for the claim. A claim without rows is left out.
    """
    table = pd.read_csv(results.file("tables/claims.csv"), dtype={"claim": str})
    tested = table.n.groupby(table.claim.str.extract(r"(\d+)")[0]).transform("max") > 0
    if (table := table[tested]).empty:
        raise NoRows("no claim was tested")
    whole = table.claim.str.isdigit().to_numpy()
    lines = [
        textwrap.wrap(statement, 56 if claim else 64)
        for statement, claim in zip(table.statement, whole, strict=True)
    ]
    tall = np.array([0.4 + 0.9 * len(text) for text in lines])
    tops = np.cumsum(tall) - tall + 0.6 * whole.cumsum()  # a claim stands off from the one before
    figure, (ax,) = style.canvas(style.WIDE, 0.4 + 0.14 * (tops[-1] + tall[-1]))
    for top, text, claim, row in zip(tops, lines, whole, table.itertuples(), strict=True):
        look = style.LOOKS.get(row.verdict, style.PLAIN)
        words = {"fontsize": 7, "va": "top", "weight": "bold" if claim else "normal"}
        ax.text(-7.6, top, row.claim, **words)
        ax.text(-7.2, top, "\n".join(text), **words)
        color = look.color if claim else style.BLACK
        ax.text(1.3, top, row.verdict if claim else numbers(row), **words, color=color)
        if row.n and not claim:
            interval(ax, top + 0.34, row, look)
    ax.axvline(0, color=style.BLACK, linewidth=0.8, zorder=0)
    ax.set(xlim=(-7.6, 4.4), ylim=(tops[-1] + tall[-1], 0), xticks=[-1, 0, 1], yticks=[])
    ax.set_xticklabels(["against", "0", "for"])
    ax.set_xlabel("effect [95 % interval] (n seeds), each on a scale of its own", loc="right")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.grid(False)
    return figure


def convergence(results: Results) -> Figure:
    """Whether a verdict hangs on when the outer loops stop: accuracy and AST's lead at each check.

    Left: validation accuracy, mean and std over sets. Right: AST − another at the same seeds, with
    95 % intervals; a mark's colour is the verdict that would have been read there.
    """
    rows = results.rows("curves")
    rows = rows[(rows.study == "main") & (rows.cell == rows.cell.iloc[0])]
    wide = {
        method: 100 * by_seed(sets, "iteration", "validation_accuracy", "distil_seed")
        for method, sets in rows.groupby("method", sort=False)
    }
    rivals = sorted(wide.keys() - {"AST"}, key=lambda name: -wide[name].iloc[-1].mean())[:2]
    if "AST" not in wide or not rivals:
        raise NoRows("no outer loops of AST and of another method on the first cell")
    figure, axes = style.canvas(style.WIDE, 2.6, 1, 2, sharex=True)
    for method, checks in wide.items():
        style.band(axes[0], checks, method)
    for rival in rivals:
        leads = (wide["AST"] - wide[rival]).dropna(axis=1)
        parts = [(at, part("", lead)) for at, lead in leads.iterrows()]
        ends = [(one.effect - one.low, one.high - one.effect) for _, one in parts]
        line, at = style.line_of(rival), leads.index
        bars = np.nan_to_num(np.transpose(ends), posinf=0)
        axes[1].errorbar(at, leads.mean(axis=1), yerr=bars, **line, label=f"AST − {rival}")
        for x, one in parts:
            verdict = style.LOOKS.get(one.verdict, style.PLAIN)
            axes[1].plot([x], [one.effect], "o", color=verdict.color, markersize=6, zorder=3)
    axes[1].axhline(0, color=style.BLACK, linewidth=0.8)
    axes[0].set(ylabel="validation accuracy (%)", xlabel="outer iteration")
    axes[1].set(ylabel="difference (points)", xlabel="outer iteration")
    sets = span(len(checks.columns) for checks in wide.values())
    axes[0].set_title(f"{style.named(rows.cell.iloc[0])}: n = {sets} sets")
    style.name_ends(axes[0])
    axes[1].legend(loc="lower center", bbox_to_anchor=(0.5, 1))  # above, off the lines
    return figure


def numbers(row: Any) -> str:
    """The effect, its interval and n, as the ledger says them."""
    if not row.n:
        return "no rows"
    effect, *ends = (in_words(row.statement, x) for x in (row.effect, row.low, row.high))
    known = f" [{', '.join(end.removesuffix(' points') for end in ends)}]"
    words, _, unit = effect.partition(" ")
    return f"{words}{known if np.isfinite(row.low) else ''} {unit}".rstrip() + f" ({row.n})"


def interval(ax: Axes, y: float, row: Any, look: Look) -> None:
    """An effect and its interval, scaled to [-1, 1] about zero; dotted where there is none."""
    values = np.array([row.effect, row.low, row.high])
    known = np.isfinite(values)
    effect, *ends = np.clip(values / (np.abs(values[known]).max(initial=0) or 1), -1, 1)
    ax.plot(ends, [y, y], color=look.color, linestyle="-" if known.all() else style.DOT)
    fill = "white" if look is style.PLAIN else look.color
    ax.plot([effect], [y], look.marker, color=look.color, markerfacecolor=fill)
