"""Differentiable Siamese augmentation A (DSA; Zhao & Bilen 2021): draw first, then apply.

One strategy per step, drawn from those that keep the data's labels, and parameters per image. Each
strategy is a pure function, affine in the pixels, so A passes gradients to the images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

BRIGHTNESS, SATURATION, CONTRAST = 1.0, 2.0, 0.5
CROP, CUTOUT, SCALE, ROTATE = 0.125, 0.5, 1.2, 15.0  # fraction, fraction, factor, degrees


@dataclass(frozen=True)
class Draws:
    """A strategy's name, and three numbers U(0, 1) for each image, (3, n)."""

    strategy: str | None
    u: Tensor


def draw(n: int, strategies: Sequence[str], generator: torch.Generator) -> Draws:
    """One step's augmentation of n images; no strategies: none."""
    name = None
    if strategies:
        name = strategies[int(torch.randint(len(strategies), (), generator=generator))]
    return Draws(name, torch.rand(3, n, generator=generator))


def draws(
    sizes: list[int], strategies: Sequence[str], generator: torch.Generator, device: Any
) -> list[Draws]:
    """One step's draws for each of `sizes`, moved to the device at once."""
    steps = [draw(n, strategies, generator) for n in sizes]
    parts = torch.cat([step.u for step in steps], 1).to(device).split(sizes, 1)
    return [Draws(step.strategy, part) for step, part in zip(steps, parts, strict=True)]


def apply(x: Tensor, draws: Draws) -> Tensor:
    """A(x) for x (n, c, h, w), in the space in which the network sees it."""
    return STRATEGIES[draws.strategy](x, draws.u.to(x.dtype)) if draws.strategy else x


def apply_all(x: Tensor, draws: Sequence[Draws]) -> list[Tensor]:
    """A(x) of several steps, whose images lie one after the other: each strategy is applied once.

    A device then gets few large calls in place of many small ones.
    """
    sizes = [step.u.shape[1] for step in draws]
    parts = list(x.split(sizes))
    for name in dict.fromkeys(step.strategy for step in draws):
        steps = [i for i, step in enumerate(draws) if step.strategy == name]
        u = torch.cat([draws[i].u for i in steps], 1)
        done = apply(torch.cat([parts[i] for i in steps]), Draws(name, u))
        for i, part in zip(steps, done.split([sizes[i] for i in steps]), strict=True):
            parts[i] = part
    return parts


def color(x: Tensor, u: Tensor) -> Tensor:
    """Brightness, then saturation (which leaves grey images alone), then contrast."""
    brightness, saturation, contrast = u[:, :, None, None, None]
    x = x + (brightness - 0.5) * BRIGHTNESS
    grey = x.mean(1, keepdim=True)
    x = (x - grey) * (saturation * SATURATION) + grey
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * (contrast + CONTRAST) + mean


def whole(u: Tensor, low: int, high: int) -> Tensor:
    """Whole numbers low ... high inclusive from U(0, 1)."""
    return (u * (high - low + 1)).floor().clamp(max=high - low).long() + low


def crop(x: Tensor, u: Tensor) -> Tensor:
    """Shift by up to an eighth of the size, zeros coming in."""
    n, c, h, w = x.shape
    pad_h, pad_w = int(h * CROP + 0.5), int(w * CROP + 0.5)
    rows = whole(u[0], 0, 2 * pad_h)[:, None] + torch.arange(h, device=x.device)  # (n, h)
    columns = whole(u[1], 0, 2 * pad_w)[:, None] + torch.arange(w, device=x.device)  # (n, w)
    x = F.pad(x, (pad_w, pad_w, pad_h, pad_h))
    x = x.gather(2, rows[:, None, :, None].expand(n, c, h, x.shape[3]))
    return x.gather(3, columns[:, None, None, :].expand(n, c, h, w))


def cutout(x: Tensor, u: Tensor) -> Tensor:
    """A square of half the size set to zero, its centre anywhere."""
    _, _, h, w = x.shape

    def hidden(u: Tensor, size: int) -> Tensor:  # (n, size)
        hole = int(size * CUTOUT + 0.5)
        first = whole(u, 0, size - hole % 2)[:, None] - hole // 2
        place = torch.arange(size, device=x.device)
        return (place >= first) & (place < first + hole)

    return x * ~(hidden(u[0], h)[:, :, None] & hidden(u[1], w)[:, None, :])[:, None]


def flip(x: Tensor, u: Tensor) -> Tensor:
    """Left and right exchanged, one time in two."""
    return torch.where(u[0, :, None, None, None] < 0.5, x.flip(3), x)


def warp(x: Tensor, matrix: Tensor) -> Tensor:
    """Bilinear, zeros outside; matrix (n, 2, 2) maps coordinates of the result to those of x."""
    n = len(x)
    theta = torch.cat([matrix, matrix.new_zeros(n, 2, 1)], 2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False)


def scale(x: Tensor, u: Tensor) -> Tensor:
    """Each axis by its own factor between 1 / 1.2 and 1.2."""
    return warp(x, torch.diag_embed(u[:2].T * (SCALE - 1 / SCALE) + 1 / SCALE))


def rotate(x: Tensor, u: Tensor) -> Tensor:
    """By up to 15 degrees either way."""
    angle = (u[0] - 0.5) * 2 * math.radians(ROTATE)
    cos, sin = angle.cos(), angle.sin()
    return warp(x, torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2))


STRATEGIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    strategy.__name__: strategy for strategy in (color, crop, cutout, flip, scale, rotate)
}
