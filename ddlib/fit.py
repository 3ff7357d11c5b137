"""The one training loop: experts, networks on distilled sets and the full-data ceiling are all made by it.

L_SC = c_e CE(f(A(x)), y) + lambda mean (|g| - target)^2 with g = d sum_k f_k(x) / dx (METHOD section 1); plain training has c_e = 1, lambda = 0.
n images (n, c, h, w), P parameters in one vector theta.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import augment
from .config import generator
from .flat import CrossEntropy, Flat


class Diverged(ArithmeticError):
    """A number stopped being finite: says which, where, and the likely cause."""


@dataclass(frozen=True)
class Recipe:
    """How to train; `lr` is multiplied by `drop` once, after epoch index E // 2 + 1, where the optimiser starts afresh."""

    epochs: int
    batch: int
    lr: float
    optimiser: str = "momentum"  # sgd, momentum (0.9) or adam
    weight_decay: float = 0.0
    drop: float = 1.0
    strategies: Sequence[str] = ()
    ramp: str = "none"  # "loss": clipping loss; "lr": its control, a warm-up by the same factors
    ramp_epochs: int = 10
    penalty: str = "none"
    penalty_weight: float = 0.0
    penalty_target: float = 1.0


@dataclass(frozen=True)
class Epoch:
    """What an epoch left: its index from 0, theta (P,) after it, the mean training loss over it."""

    index: int
    theta: Tensor
    loss: Tensor


def ramp(epoch: int, epochs: int) -> float:
    """Clipping factor c_e: from 0.5 in equal steps to 1 at epoch `epochs` (10 epochs: 0.50, 0.55 ... 0.95, then 1)."""
    return min(1.0, 0.5 + 0.5 * epoch / epochs)


def gradient_norms(g: Tensor, reading: str) -> Tensor:
    """|g| over channels at every pixel, (n, h, w) ("per_pixel", the authors' code), or over the whole image, (n,) ("per_sample", as WGAN-GP)."""
    squares = g.square().sum(1 if reading == "per_pixel" else (1, 2, 3))
    return (squares + torch.finfo(g.dtype).tiny).sqrt()  # the root of an exact zero has no derivative


def optimiser_for(theta: Tensor, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """A fresh optimiser on the one vector theta."""
    if recipe.optimiser == "adam":
        return torch.optim.Adam([theta], lr=lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD([theta], lr=lr, momentum=0.9 if recipe.optimiser == "momentum" else 0.0, weight_decay=recipe.weight_decay)


def gradient(flat: Flat, theta: Tensor, x: Tensor, y: Tensor, draws: augment.Draws, recipe: Recipe, factor: float = 1.0) -> tuple[Tensor, Tensor]:
    """L_SC on one batch and its gradient for theta; the penalty sees the images as they are."""
    value, d_theta = flat.gradient(theta, augment.apply(x, draws), CrossEntropy(y, factor))
    if recipe.penalty != "none":

        def cost(g: Tensor) -> Tensor:
            norms = gradient_norms(g, recipe.penalty)
            return recipe.penalty_weight / (len(x) * norms[0].numel()) * (norms - recipe.penalty_target).square().sum()

        extra, d_extra = flat.penalty(theta, x, cost)
        value, d_theta = value + extra, d_theta + d_extra
    return value, d_theta


def one_epoch(
    flat: Flat, theta: Tensor, optimiser: torch.optim.Optimizer, x: Tensor, y: Tensor, recipe: Recipe, epoch: int, factor: float, seed: tuple[int | str, ...]
) -> Tensor:
    """Walk once through all images, moving theta; the mean training loss. Nothing is read back from the device."""
    order = torch.randperm(len(x), generator=generator(*seed, "order", epoch)).to(x.device)
    batches = order.split(recipe.batch)
    draws = augment.draws([len(batch) for batch in batches], recipe.strategies, generator(*seed, "augment", epoch), x.device)
    total = torch.zeros((), device=x.device)
    for batch, drawn in zip(batches, draws, strict=True):
        value, theta.grad = gradient(flat, theta, x[batch], y[batch], drawn, recipe, factor)
        optimiser.step()
        total += value * len(batch)
    return total / len(x)


def fit(flat: Flat, theta: Tensor, x: Tensor, y: Tensor, recipe: Recipe, seed: tuple[int | str, ...]) -> Iterator[Epoch]:
    """Train theta on images x and labels y, an epoch a turn; all chance comes from `seed`.

    Raises:
        Diverged: the training loss of an epoch is not finite.
    """
    theta = theta.clone()
    middle = recipe.epochs // 2 + 1
    optimiser = optimiser_for(theta, recipe, recipe.lr)
    for epoch in range(recipe.epochs):
        lr, factor = recipe.lr * (recipe.drop if epoch > middle else 1.0), 1.0
        if epoch == middle + 1 and recipe.drop != 1.0:
            optimiser = optimiser_for(theta, recipe, lr)
        if recipe.ramp == "loss":
            factor = ramp(epoch, recipe.ramp_epochs)
        elif recipe.ramp == "lr":
            optimiser.param_groups[0]["lr"] = lr * ramp(epoch, recipe.ramp_epochs)
        loss = one_epoch(flat, theta, optimiser, x, y, recipe, epoch, factor, seed)
        if not torch.isfinite(loss):
            raise Diverged(
                f"training loss is {float(loss)} in epoch {epoch} (lr {recipe.lr:g}, penalty {recipe.penalty} x {recipe.penalty_weight:g}): "
                "expected a finite number; lower the lr or the penalty weight"
            )
        yield Epoch(epoch, theta.clone(), loss)


def accuracy(flat: Flat, theta: Tensor, x: Tensor, y: Tensor, batch: int = 250) -> float:
    """Fraction of x that theta classifies as y."""
    right = sum((flat.logits(theta, a).argmax(1) == b).sum() for a, b in zip(x.split(batch), y.split(batch), strict=True))
    return float(right) / len(x)
