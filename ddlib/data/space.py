"""The network's space: z = (x - mean) / std by channel, then, with ZCA, W (z - m),
W = U diag(1 / sqrt(s + eps)) U^T.

U, s: eigenvectors and eigenvalues of the covariance of z over the training images, d = c h w
pixels; m their mean. W turns each s into s / (s + eps): directions well above eps get unit
variance, those of mere noise stay small. eps = 0.1 as in the published trajectory-matching runs.
Everything is measured on training images alone, part by part: they may be a file's. Pixels are
numbers in [0, 1] or, as files keep them, levels 0 ... 255.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from threadpoolctl import threadpool_limits
from torch import Tensor

PART = 5000 * 3 * 32 * 32  # numbers measured at a time: 120 MB in float64


@dataclass(frozen=True, eq=False)
class Space:
    """The way from pixels in [0, 1] to what a network sees, and back."""

    mean: Tensor  # (c,)
    std: Tensor  # (c,)
    zca: Tensor | None = None  # (d, d), W
    zca_mean: Tensor | None = None  # (d,), m

    def enter(self, x: Tensor) -> Tensor:
        x = unit(x)
        z = (x - _by_channel(self.mean, x)) / _by_channel(self.std, x)
        if self.zca is None:
            return z
        return ((z.flatten(1) - self.zca_mean.to(z)) @ self.zca.to(z)).view_as(z)  # W is symmetric

    def leave(self, x: Tensor) -> Tensor:
        """The inverse of `enter`, not clipped: a synthetic image may leave [0, 1]."""
        if self.zca is not None:
            x = (x.flatten(1) @ self._inverse.to(x) + self.zca_mean.to(x)).view_as(x)
        return x * _by_channel(self.std, x) + _by_channel(self.mean, x)

    @cached_property
    def _inverse(self) -> Tensor:
        # derived, not stored: for 3 x 32 x 32 pixels W is 38 MB of every artefact already
        return torch.linalg.inv(self.zca.double())

    def tensors(self) -> dict[str, Tensor]:
        """What an artefact stores to be usable alone; `from_tensors` reads it."""
        known = {name: getattr(self, name) for name in self.__match_args__}
        return {name: value for name, value in known.items() if value is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Space:
        return cls(**{name: tensors[name] for name in cls.__match_args__ if name in tensors})


def fit_space(x: Tensor, zca: bool, epsilon: float = 0.1, given: Space | None = None) -> Space:
    """The space measured on training images `x` (n, c, h, w); mean and std from `given`, if any."""
    parts = x.split(max(1, PART // x[0].numel()))
    space = given or _by_channels(parts, len(x))
    if not zca:
        return space

    def entered() -> Iterator[Tensor]:
        return (space.enter(part).flatten(1) for part in parts)

    m: Any = sum(z.sum(0, dtype=torch.float64) for z in entered()) / len(x)
    centred = (z.double() - m for z in entered())
    covariance: Any = sum(z.T @ z for z in centred) / max(len(x) - 1, 1)
    with threadpool_limits(1):  # the same bytes on any number of cores
        s, u = map(torch.from_numpy, np.linalg.eigh(covariance.numpy()))
    w = u * (s.clamp(min=0) + epsilon).rsqrt() @ u.T
    return Space(space.mean, space.std, w.float(), m.float())


def _by_channels(parts: tuple[Tensor, ...], n: int) -> Space:
    """Mean and std of each channel over n images."""
    share = torch.tensor([len(part) / n for part in parts], dtype=torch.float64).unsqueeze(1)
    each = [torch.std_mean(unit(part).double(), dim=(0, 2, 3), correction=0) for part in parts]
    stds, means = map(torch.stack, zip(*each, strict=True))
    mean = (share * means).sum(0)
    std = (share * (stds.square() + (means - mean).square())).sum(0).sqrt()
    std = torch.where(std > 0, std, 1.0)  # a constant channel is centred and left at 0
    return Space(mean.float(), std.float())


def unit(x: Tensor) -> Tensor:
    """Levels 0 ... 255 as numbers in [0, 1]; numbers as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x


def _by_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x).view(-1, 1, 1)
