"""The network's space: z = (x - mean) / std by channel, then, with ZCA, W (z - m), W = U diag(1 / sqrt(s + eps)) U^T.

U, s: eigenvectors and eigenvalues of the covariance of z over the training images, d = c h w pixels; m their mean.
W turns each s into s / (s + eps): directions well above eps get unit variance, those of mere noise stay small.
eps = 0.1 as in the published trajectory-matching runs. Everything is measured on training images alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Space:
    """The way from pixels in [0, 1] to what a network sees, and back."""

    mean: Tensor  # (c,)
    std: Tensor  # (c,)
    zca: Tensor | None = None  # (d, d), W
    zca_mean: Tensor | None = None  # (d,), m

    def enter(self, x: Tensor) -> Tensor:
        z = (x - _by_channel(self.mean, x)) / _by_channel(self.std, x)
        if self.zca is None:
            return z
        return ((z.flatten(1) - self.zca_mean.to(z)) @ self.zca.to(z)).view_as(z)  # W is symmetric

    def leave(self, x: Tensor) -> Tensor:
        """The inverse of `enter`, not clipped: a synthetic image may leave [0, 1], and the viewer decides what to do then."""
        if self.zca is not None:
            x = (x.flatten(1) @ self._inverse.to(x) + self.zca_mean.to(x)).view_as(x)
        return x * _by_channel(self.std, x) + _by_channel(self.mean, x)

    @cached_property
    def _inverse(self) -> Tensor:
        # derived, not stored: for 3 x 32 x 32 pixels W is 38 MB of every artefact already
        return torch.linalg.inv(self.zca.double())

    def tensors(self) -> dict[str, Tensor]:
        """What an artefact stores to be usable alone; `from_tensors` reads it."""
        return {name: value for name, value in vars(self).items() if name in self.__match_args__ and value is not None}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> Space:
        return cls(**{name: tensors[name] for name in cls.__match_args__ if name in tensors})


def fit_space(x: Tensor, zca: bool, epsilon: float = 0.1) -> Space:
    """The space measured on training images `x`, (n, c, h, w) in [0, 1]."""
    std, mean = torch.std_mean(x.double(), dim=(0, 2, 3), correction=0)
    std = torch.where(std > 0, std, 1.0)  # a constant channel is centred and left at 0
    space = Space(mean.float(), std.float())
    if not zca:
        return space
    z = space.enter(x).flatten(1)
    m = z.mean(0, dtype=torch.float64)
    parts = (part.double() - m for part in z.split(5000))  # all of CIFAR would be 1 GB in float64
    covariance = sum(part.T @ part for part in parts) / max(len(z) - 1, 1)
    s, u = map(torch.from_numpy, np.linalg.eigh(covariance.numpy()))  # on two cores, several times faster than torch's
    w = u * (s.clamp(min=0) + epsilon).rsqrt() @ u.T
    return Space(space.mean, space.std, w.float(), m.float())


def _by_channel(value: Tensor, x: Tensor) -> Tensor:
    return value.to(x).view(-1, 1, 1)
