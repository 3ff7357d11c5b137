"""Trajectory matching in one picture: `python docs/schematic.py` writes docs/_static/schematic*.svg.

Beside the whole there is one picture per step, for the notebook that explains it.

The images are those of the kept AST set, before and after; the paths are drawn by hand.
"""

from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.patches import FancyArrowPatch

from ddlib.paper import pictures, style
from ddlib.paper.results import Results

HOME = Path(__file__).parent
STEPS = (None, 1, 2, 3, 4, 5)
SHOWN = slice(0, 4)  # classes
EXPERT = np.array([(0.0, 0.2), (0.9, 1.15), (2.0, 1.65), (3.2, 1.8), (4.4, 1.75), (5.5, 1.6)])
END = EXPERT[3] + (-0.25, -0.75)  # of the student
BLUE, RED, PALE = style.BLUE, style.VERMILION, 0.3
WORDS = {"fontsize": 8, "va": "center"}


def file(step):
    """Where a picture is kept."""
    return HOME / "_static" / f"schematic{f'-{step}' if step else ''}.svg"


def arrow(ax, start, end, color, bend=0.0, head="-|>", line="-"):
    """From one point to another."""
    look = {"arrowstyle": head, "mutation_scale": 9, "shrinkA": 3, "shrinkB": 3}
    curve = {"connectionstyle": f"arc3,rad={bend}", "linestyle": line, "linewidth": 1.3}
    ax.add_patch(FancyArrowPatch(start, end, color=color, **look, **curve))


def thumbnails(ax, images, left, bottom, size=0.5):
    """Images in a row."""
    for i, image in enumerate(images):
        x = left + i * size * 1.08
        cut = image.squeeze(-1) if image.shape[-1] == 1 else image
        ax.imshow(cut, extent=(x, x + size, bottom, bottom + size), cmap="gray", zorder=2)


def draw(step=None):
    """The figure; or as far as one of its five steps, with the steps before it pale."""
    kept, first, _ = pictures.distilled(Results(HOME.parent / "results" / "laptop"))
    before, after = (
        pictures.pixels(kept, images[first][SHOWN])
        for images in (kept.tensors["history"][0], kept.tensors["images"])
    )
    figure, (ax,) = style.canvas(style.WIDE, 2.4)
    steps = [
        partial(expert, ax),
        partial(start, ax, before),
        partial(student, ax),
        partial(loss, ax),
        partial(outer_loop, ax, after),
    ]
    for number, add in enumerate(steps[:step], 1):
        there = {*ax.get_children()}
        add()
        if step and number < step:
            for artist in {*ax.get_children()} - there:
                artist.set_alpha(PALE)
    ax.set(xlim=(-3, 6.4), ylim=(-0.6, 2.5), aspect="equal")
    ax.set_axis_off()
    return figure


def expert(ax):
    """Step 1."""
    ax.plot(*EXPERT.T, "o-", color=BLUE, markersize=5)
    for i, (x, y) in enumerate(EXPERT):
        name = {0: r"$\theta^*_0$", 1: r"$\theta^*_s$", 3: r"$\theta^*_{s+M}$", 5: r"$\theta^*_E$"}
        ax.text(x, y + 0.25, name.get(i, ""), color=BLUE, ha="center", parse_math=True, **WORDS)
    ax.text(0.0, 2.3, "1  an expert learns from the real images", color=BLUE, **WORDS)


def start(ax, images):
    """Step 2."""
    ax.text(-2.9, 0.75, "2  start: one real image\n    per class", **WORDS)
    thumbnails(ax, images, -2.85, -0.15)


def student(ax):
    """Step 3."""
    turn = np.linspace(0, 1, 8)[:, None]
    bow = EXPERT[1] + turn * (END - EXPERT[1])
    bow[:, 1] -= 0.35 * np.sin(np.pi * turn[:, 0])
    ax.plot(*bow.T, ".-", color=RED, markersize=5, zorder=3)
    ax.text(*END + [0.12, -0.14], r"$\theta_N$", color=RED, parse_math=True, **WORDS)
    ax.text(0.95, 0.2, "3  a student learns from\n    the synthetic images", color=RED, **WORDS)
    arrow(ax, (-0.65, 0.2), (0.85, 1.08), RED, bend=-0.15)


def loss(ax):
    """Step 4."""
    arrow(ax, END, EXPERT[3], style.BLACK, head="<|-|>", line=":")
    ax.text(3.35, 1.3, "4  matching loss:\n    how far from the target?", **WORDS)


def outer_loop(ax, images):
    """Step 5."""
    arrow(ax, (4.6, 1.05), (4.9, 0.4), style.BLACK, bend=-0.2)
    thumbnails(ax, images, 4.05, -0.15)
    ax.text(0.0, -0.42, "5  outer loop: the gradient of the loss moves the pixels; repeat", **WORDS)
    arrow(ax, (4.0, 0.05), (-0.65, 0.05), style.BLACK, bend=-0.1)


if __name__ == "__main__":
    with style.style():
        for part in STEPS:
            draw(part).savefig(file(part), metadata={"Date": None})
