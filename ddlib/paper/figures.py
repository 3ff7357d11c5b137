"""The figures of the paper: `FIGURES[name](results)`, drawn inside `style()`.

Those here are functions of rows alone; those of kept sets are in `pictures`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddlib.paper import style, tables
from ddlib.paper.claims import distinct
from ddlib.paper.evidence import ablation, claims, convergence
from ddlib.paper.pictures import images, initialisation
from ddlib.paper.results import NoRows, Results
from ddlib.paper.style import by_seed
from ddlib.paper.tables import in_reading_order, span
from ddlib.runs.methods import CEILING, CORESETS

WITHOUT_EXPERTS = ("DC", "DSA", "DM")  # their loss is another quantity, and they learn no lr


def dots(rows: pd.DataFrame, by: str, methods: list[str]) -> Figure:
    """A panel per value of `by`: each method's mean, the mean of each seed, and their std."""
    rows, panels = distinct(rows), list(rows[by].unique())
    down = -(-len(panels) // 3)
    across = -(-len(panels) // down)
    wide = style.NARROW if across == 1 else style.WIDE
    tall = down * (0.75 + 0.19 * max(5, len(methods)))
    figure, axes = style.canvas(wide, tall, down, across, sharey=True, sharex=by != "cell")
    for ax, panel in zip(axes, panels, strict=False):
        every = rows[rows[by] == panel]
        scored = every[every.method.isin(methods)]
        for y, method in enumerate(methods):
            seeds = scored[scored.method == method].groupby("distil_seed").accuracy.mean()
            style.spread_dots(ax, y, 100 * seeds, style.LOOKS.get(method, style.PLAIN))
        ceiling = 100 * every[every.method == CEILING].accuracy.mean()
        if not np.isnan(ceiling):
            ax.axvline(ceiling, color=style.BLACK, linestyle=style.DASH, linewidth=0.9)
            above(ax, ceiling, f"{CEILING} {ceiling:.1f}", "right")
        sets = span(scored.groupby("method").distil_seed.nunique())
        networks = span(scored.groupby(["method", "distil_seed"]).net_seed.nunique())
        title = f"{style.named(panel)}\nn = {sets} × {networks} (sets × networks)"
        ax.set_title(title, pad=6 if np.isnan(ceiling) else 14)
        ax.tick_params(labelbottom=True)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    axes[0].set_yticks(range(len(methods)), [*map(style.named, methods)])
    axes[0].set_ylim(len(methods) - 0.4, -0.6)
    figure.supxlabel("test accuracy (%), mean ± std over sets")
    return figure


def above(ax: Axes, x: float, words: str, side: str) -> None:
    """Words above a panel, at an x of its data."""
    place = {"ha": side, "va": "bottom", "transform": ax.get_xaxis_transform()}
    ax.text(x, 1.01, words, fontsize=7, **place)


def main(results: Results) -> Figure:
    """How well each method's sets teach a new network, cell by cell, and how far the ceiling is."""
    rows = results.rows("main")
    return dots(rows, "cell", [m for m in in_reading_order(rows) if m != CEILING])


def benchmark(results: Results) -> Figure:
    """Published accuracies (open) beside ours (filled), mean ± std over networks, IPC by IPC."""
    table = tables.benchmark(results).dropna(subset="ipc")
    panels = [*table.groupby("ipc")]
    if not panels:
        raise NoRows("no cell is on data with published accuracies")
    points: list[list[tuple]] = [[] for _ in panels]
    for some, (_, lines) in zip(points, panels, strict=True):
        for line in lines.itertuples():
            look, ours = style.LOOKS.get(line.method, style.PLAIN), line.ours == line.ours
            for x, std, width, fill in (
                (line.published, line.published_std, 128 if ours else line.width, "white"),
                (line.ours, line.ours_std, line.width, look.color),
            ):
                name = line.method + f" w{width}" * (width != 128)
                some += [(name, x, std, look, fill)] * (x == x)
    most = max(len({name for name, *_ in some}) for some in points)
    figure, axes = style.canvas(style.WIDE, 0.9 + 0.19 * most, 1, len(panels))
    for ax, some, (ipc, lines) in zip(axes, points, panels, strict=True):
        places = {name: y for y, name in enumerate(dict.fromkeys(name for name, *_ in some))}
        for name, x, std, look, fill in some:
            shown = {"color": look.color, "markerfacecolor": fill, "markersize": 5}
            y = places[name] + 0.28 * (fill == "white")  # below, so that neither hides the other
            ax.errorbar(x, y, xerr=std, fmt=look.marker, elinewidth=1, **shown)
        ax.set_yticks([*places.values()], [*places])
        ax.set_ylim(len(places) - 0.4, -0.6)
        ax.set_title(f"{lines.data.iloc[0]}, IPC {ipc:.0f}")
    figure.supxlabel("test accuracy (%), mean ± std over networks; open: published, filled: ours")
    return figure


def coresets(results: Results) -> Figure:
    """How well real images teach, by the way they were picked."""
    rows = results.rows("coresets")
    return dots(rows, "cell", [m for m in CORESETS if (rows.method == m).any()])


def own(results: Results) -> Figure:
    """The user's own images: how well one distilled set teaches, beside real images and all."""
    rows = results.rows("own")
    return dots(rows, "cell", [m for m in rows.method.unique() if m != CEILING])


def cross_architecture(results: Results) -> Figure:
    """Whether sets made with one architecture teach the others."""
    rows = results.rows("cross_architecture")
    methods = list(rows.method.unique())
    if rows.cell.nunique() > 1:
        panel = rows.architecture.map(style.named) + ", " + rows.cell.map(style.named)
        return dots(rows.assign(panel=panel), "panel", methods)
    figure = dots(rows, "architecture", methods)
    figure.suptitle(style.named(rows.cell.iloc[0]))
    return figure


def first_data(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows of the main data."""
    return rows[rows.data == rows.data.iloc[0]]


def of_experts(rows: pd.DataFrame) -> str:
    """A title: the data, and how many experts each line is of."""
    name, n = style.named(rows.data.iloc[0]), rows.groupby("recipe").expert_seed.nunique()
    return f"{name}: mean ± std over experts, n = {span(n)}"


def of_recipes(ax: Axes, rows: pd.DataFrame, column: str, scale: float = 1.0) -> None:
    """A quantity of the experts by epoch, one line per recipe; those without a colour thin."""
    label = "other recipes"
    for recipe, experts in rows.groupby("recipe", sort=False):
        wide = scale * by_seed(experts, "epoch", column, "expert_seed")
        if style.LOOKS.get(recipe, style.PLAIN).color == style.SILVER:
            style.thin(ax, wide, label)
            label = "_others"  # they have one name together
        else:
            style.band(ax, wide, recipe)
    ax.set_xlabel("epoch")


def experts(results: Results) -> Figure:
    """How fast experts of each recipe learn, and where they end."""
    rows = first_data(results.rows("experts"))
    figure, (ax,) = style.canvas(style.WIDE, 3.0)
    of_recipes(ax, rows, "test_accuracy", 100)
    ax.set(ylabel="test accuracy (%)", title=of_experts(rows))
    style.name_ends(ax)
    return figure


def expert_panels(results: Results, titles: dict[str, str], straight: Sequence[str] = ()) -> Figure:
    """A panel per column of the experts' rows, logarithmic unless `straight`."""
    rows = first_data(results.rows("experts"))
    figure, axes = style.canvas(style.WIDE, 2.7, 1, len(titles))
    for ax, (column, title) in zip(axes, titles.items(), strict=True):
        of_recipes(ax, rows, column)
        if column not in straight:
            style.logarithmic(ax)
        ax.set_title(title)
    figure.suptitle(of_experts(rows))
    style.name_ends(axes[-1])
    return figure


def smoothness(results: Results) -> Figure:
    """How far an expert moves in each epoch, how much it turns, how far it moves for its size."""
    titles = {"step": "step length", "turning": "cosine to the next step"}
    return expert_panels(results, titles | {"relative_step": "relative step"}, ["turning"])


def norms(results: Results) -> Figure:
    """How sensitive experts are to their input, with the gradient penalty and without, two ways."""
    of_pixel, of_sample = (f"input-gradient norm, per {unit}" for unit in ("pixel", "sample"))
    return expert_panels(results, {"norm_per_pixel": of_pixel, "norm_per_sample": of_sample})


def quality(results: Results) -> Figure:
    """Whether smoothness costs accuracy: short steps to the left, good experts at the top."""
    rows = first_data(results.rows("smoothness"))
    figure, (ax,) = style.canvas(style.WIDE * 0.85, 3.2)
    for recipe, experts in rows.groupby("recipe", sort=False):
        x, y = experts.step, 100 * experts.test_accuracy
        bars = {"xerr": x.std(), "yerr": y.std()} if len(experts) > 1 else {}
        style.cross(ax, x.mean(), y.mean(), bars, recipe)
    count = span(rows.groupby("recipe").size())
    ax.set_xlabel(f"mean step length: mean ± std over experts, n = {count}")
    ax.set(ylabel="final test accuracy (%)", title=style.named(rows.data.iloc[0]))
    style.name_ends(ax)
    return figure


def student(results: Results) -> Figure:
    """One inner loop: do students follow the expert, and how near do they come to its end?"""
    return walks(results.rows("student"))


def walks(rows: pd.DataFrame) -> Figure:
    """Walks that start together, rows as `smoothness.beside` gives them: plane, and distance."""
    last = rows.step.max()  # N, the inner step that meets the expert's last epoch
    figure, (plane, near) = style.canvas(style.WIDE, 2.4, 1, 2)
    for part, walk in rows.groupby("part", sort=False):
        marks = {"markersize": 3.2, "markevery": max(1, len(walk) // 5), "label": part}
        plane.plot(walk.x, walk.y, **style.line_of(part), **marks)
        near.plot(walk.step * last / walk.step.max(), walk.distance, **style.line_of(part), **marks)
    expert = rows[rows.part == "expert"]
    for end, words, side in ((0, "start ", "right"), (-1, " target", "left")):
        x, y = expert.x.iloc[end], expert.y.iloc[end]
        plane.text(x, y, words, ha=side, va="bottom", fontsize=7)
    plane.set(xlabel="along the expert's way", ylabel="across it")
    plane.margins(x=0.25, y=0.1)
    plane.set_aspect("equal", adjustable="datalim")
    near.set(xlabel="inner step", ylabel="relative distance to the target")
    near.set_ylim(bottom=0)
    near.xaxis.get_major_locator().set_params(integer=True)
    style.name_ends(near)
    return figure


def memory(results: Results) -> Figure:
    """What a longer inner loop costs each gradient: memory and time."""
    rows = results.rows("memory")
    figure, axes = style.canvas(style.WIDE, 2.2, 1, 2)
    for ax, column, words in zip(
        axes, ("megabytes", "seconds"), ("peak memory (MB)", "time (s)"), strict=True
    ):
        for gradient, measured in rows.groupby("gradient", sort=False):
            style.band(ax, measured.pivot_table(index="inner_steps", values=column), gradient)
        ax.set(xlabel="inner steps N", ylabel=words)
        ax.set_ylim(bottom=0)
        style.name_ends(ax)
    return figure


def distillation(results: Results) -> Figure:
    """The outer loop on the main cell: its loss, what new networks learn, the inner lr."""
    rows = results.rows("curves")
    rows = rows[(rows.study == "main") & (rows.cell == rows.cell.iloc[0])]
    rows = rows[~rows.method.isin(WITHOUT_EXPERTS)]
    if rows.empty:
        raise NoRows("no outer loop on the first cell follows experts")
    figure, axes = style.canvas(style.WIDE, 2.4, 1, 3)
    columns = ("loss", "validation_accuracy", "lr")
    for method, sets in rows.groupby("method", sort=False):
        loss, accuracy, lr = (by_seed(sets, "iteration", y, "distil_seed") for y in columns)
        window, every = max(1, len(loss) // 50), max(1, len(loss) // 200)
        style.band(axes[0], loss.rolling(window, min_periods=1).mean()[::every], method)
        style.band(axes[1], 100 * accuracy, method)
        style.band(axes[2], lr[::every], method)
    titles = ("matching loss, smoothed", "validation accuracy (%)", "learned inner lr a")
    for ax, title in zip(axes, titles, strict=True):
        ax.set(xlabel="outer iteration", title=title)
    style.logarithmic(axes[2])
    sets = span(rows.groupby("method").distil_seed.nunique())
    figure.suptitle(f"{style.named(rows.cell.iloc[0])}: mean ± std over sets, n = {sets}")
    style.name_ends(axes[2])
    return figure


def following(results: Results) -> Figure:
    """How far a student left to itself strays from the expert that it follows."""
    rows = results.rows("following")
    figure, (ax,) = style.canvas(style.WIDE * 0.75, 2.4)
    for method in ("AST", "AST − intermediate matching", "AST − weight perturbation"):
        wide = by_seed(rows[rows.method == method], "epoch", "error", "distil_seed")
        if len(wide):
            style.band(ax, wide, method)
    name, sets = style.named(rows.cell.iloc[0]), span(rows.groupby("method").distil_seed.nunique())
    ax.set_title(f"{name}: mean ± std over sets, n = {sets}")
    experts = rows.expert_seed.nunique()
    ax.set_xlabel(f"expert epoch (mean over experts, n = {experts})")
    ax.set_ylabel("relative distance to the expert")
    style.name_ends(ax)
    return figure


FIGURES: dict[str, Callable[[Results], Figure]] = {
    figure.__name__: figure
    for figure in (
        *(main, benchmark, experts, smoothness, quality, norms, initialisation, coresets),
        *(student, memory),
        *(distillation, convergence, images, cross_architecture, ablation),
        *(following, claims, own),
    )
}
