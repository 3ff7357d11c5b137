"""The training loop of experts, of networks on distilled sets, and of the full-data ceiling.

L = c_e CE(f(A(x)), y) + lambda mean (norm(g) - target)^2, g = d sum_k f_k(x) / dx. Plain training
has c_e = 1 and lambda = 0. n images (n, c, h, w); labels are classes (n,) or probabilities (n, K);
P parameters in one vector theta.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ddlib.method import augment
from ddlib.method.functional import CrossEntropy, FunctionalNetwork
from ddlib.settings import Recipe, generator

MEMORY = {  # what torch's optimisers carry from step to step
    "sgd": (),
    "momentum": ("momentum_buffer",),
    "adam": ("step", "exp_avg", "exp_avg_sq"),
}
Seed = tuple[int | str, ...]  # the first names of every generator of a training


class Diverged(ArithmeticError):
    """A number stopped being finite: says which, when, and what to lower."""


@dataclass(frozen=True)
class Epoch:
    """What an epoch left, which is all that the next one needs."""

    index: int  # from 0; -1 before the first
    theta: Tensor  # (P,)
    loss: Tensor  # mean training loss
    memory: dict[str, Tensor]  # of the optimiser

    @classmethod
    def first(cls, theta: Tensor) -> Epoch:
        """What a training starts from."""
        return cls(-1, theta, theta.new_zeros(()), {})

    def state(self) -> dict[str, Any]:
        """All of it by name, for a checkpoint."""
        return {"epoch": self.index, "theta": self.theta, "loss": self.loss, **self.memory}

    @staticmethod
    def names(recipe: Recipe) -> tuple[str, ...]:
        """The names in `state`."""
        return ("epoch", "theta", "loss", *MEMORY[recipe.optimiser])

    @classmethod
    def of(cls, state: dict[str, Any], recipe: Recipe) -> Epoch:
        """The epoch with that `state`."""
        memory = {name: state[name] for name in MEMORY[recipe.optimiser]}
        return cls(state["epoch"], state["theta"], state["loss"], memory)


@dataclass(frozen=True)
class Batch:
    """Images and labels of one step, and how the images are augmented."""

    x: Tensor
    y: Tensor
    draws: augment.Draws


def ramp(epoch: int, epochs: int) -> float:
    """Clipping factor c_e: from 0.5 in equal steps to 1 at epoch `epochs`."""
    return min(1.0, 0.5 + 0.5 * epoch / epochs)


def gradient_norms(g: Tensor, reading: str) -> Tensor:
    """Norms of g: per pixel, (n, h, w) (the authors' code), or per image, (n,) (WGAN-GP)."""
    squares = g.square().sum(1 if reading == "per_pixel" else (1, 2, 3))
    return (squares + torch.finfo(g.dtype).tiny).sqrt()  # the root of 0 has no derivative


def finite(*tensors: Tensor) -> list[bool]:
    """Whether all numbers of each tensor are finite, in one transfer from the device."""
    device = tensors[0].device
    # A NaN anywhere is carried into both extremes.
    extremes = torch.stack([end.to(device) for t in tensors for end in t.aminmax()])
    return extremes.isfinite().view(-1, 2).all(1).tolist()


def not_finite(numbers: dict[str, Tensor]) -> str | None:
    """The name of the first that has a number that is not finite."""
    good = finite(*numbers.values())
    return None if all(good) else list(numbers)[good.index(False)]


def accuracy(
    network: FunctionalNetwork, theta: Tensor, x: Tensor, y: Tensor, batch: int = 250
) -> float:
    """Fraction of x that theta classifies as y."""
    pairs = zip(x.split(batch), y.split(batch), strict=True)
    return float(sum((network.logits(theta, a).argmax(1) == b).sum() for a, b in pairs)) / len(x)


def slope(
    network: FunctionalNetwork, theta: Tensor, batch: Batch, recipe: Recipe, factor: float
) -> tuple[Tensor, Tensor]:
    """The loss on one batch and its gradient for theta, `factor` being c_e."""
    x = augment.apply(batch.x, batch.draws)
    value, d_theta = network.gradient(theta, x, CrossEntropy(batch.y, factor))
    if recipe.penalty == "none":
        return value, d_theta

    def cost(g: Tensor) -> Tensor:
        norms = gradient_norms(g, recipe.penalty)
        weight = recipe.penalty_weight / (len(batch.x) * norms[0].numel())
        return weight * (norms - recipe.penalty_target).square().sum()

    extra, d_extra = network.penalty(theta, batch.x, cost)  # of the images as they are
    return value + extra, d_theta + d_extra


def gradient(
    network: FunctionalNetwork, theta: Tensor, batch: Batch, recipe: Recipe, factor: float = 1.0
) -> tuple[Tensor, Tensor]:
    """The loss on one batch, and the direction that a step descends.

    The direction is the gradient g; with `sharpness` rho it is that at ``theta + rho g / |g|``
    (SAM, arXiv 2010.01412); with `sharpness_alpha` too, alpha times the part of g orthogonal to it
    is subtracted (GSAM, arXiv 2203.08065). FTD's authors use SAM's adaptive form.
    """
    value, g = slope(network, theta, batch, recipe, factor)
    if recipe.sharpness is None:
        return value, g
    tiny = torch.finfo(g.dtype).tiny  # a gradient of zero leads nowhere
    ahead = theta + recipe.sharpness * g / g.norm().clamp_min(tiny)
    uphill = slope(network, ahead, batch, recipe, factor)[1]
    if recipe.sharpness_alpha is not None:
        along = (g @ uphill) / (uphill @ uphill).clamp_min(tiny) * uphill
        uphill -= recipe.sharpness_alpha * (g - along)
    return value, uphill


def optimiser_for(theta: Tensor, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """A fresh optimiser on the one vector theta."""
    decay = recipe.weight_decay
    if recipe.optimiser == "adam":
        return torch.optim.Adam([theta], lr=lr, weight_decay=decay)
    momentum = 0.9 if recipe.optimiser == "momentum" else 0.0
    return torch.optim.SGD([theta], lr=lr, momentum=momentum, weight_decay=decay)


def optimiser_after(last: Epoch, theta: Tensor, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimiser of the epoch after `last`, at that epoch's lr and with what it remembers."""
    epoch, middle = last.index + 1, recipe.epochs // 2 + 1
    lr = recipe.lr * (recipe.drop if epoch > middle else 1.0)
    if recipe.ramp == "lr":
        lr = lr * ramp(epoch, recipe.ramp_epochs)
    optimiser = optimiser_for(theta, recipe, lr)
    if last.memory and (epoch != middle + 1 or recipe.drop == 1.0):  # it restarts at the drop
        optimiser.state[theta] = {  # Adam counts its steps, a scalar, on the CPU
            name: (t.to(theta.device) if t.dim() else t).clone() for name, t in last.memory.items()
        }
    return optimiser


def batches(x: Tensor, y: Tensor, recipe: Recipe, epoch: int, seed: Seed) -> Iterator[Batch]:
    """Once through all images in random order; what an epoch sees depends on `seed` and `epoch`."""
    order = torch.randperm(len(x), generator=generator(*seed, "order", epoch)).to(x.device)
    parts = order.split(recipe.batch)
    chance = generator(*seed, "augment", epoch)
    sizes = [len(part) for part in parts]
    draws = augment.draws(sizes, recipe.strategies, chance, x.device)
    return (Batch(x[part], y[part], drawn) for part, drawn in zip(parts, draws, strict=True))


def train(
    network: FunctionalNetwork, start: Epoch, x: Tensor, y: Tensor, recipe: Recipe, seed: Seed
) -> Iterator[Epoch]:
    """Train on images x and labels y, one epoch at a time, from the epoch after `start` on.

    Each epoch is a function of the one before: continuing gives the same bytes as never stopping.

    Raises:
        Diverged: a number stopped being finite in an epoch.
    """
    last = start
    while last.index + 1 < (recipe.until or recipe.epochs):
        index = last.index + 1
        theta = last.theta.to(x.device, copy=True)
        optimiser = optimiser_after(last, theta, recipe)
        factor = ramp(index, recipe.ramp_epochs) if recipe.ramp == "loss" else 1.0
        total = torch.zeros((), device=x.device)  # nothing is read back from the device on the way
        for batch in batches(x, y, recipe, index, seed):
            value, theta.grad = gradient(network, theta, batch, recipe, factor)
            optimiser.step()
            total += value * len(batch.y)
        memory = {name: optimiser.state[theta][name] for name in MEMORY[recipe.optimiser]}
        last = Epoch(index, theta, total / len(x), memory)
        if fault := diagnosis(last, x, recipe):
            raise Diverged(fault)
        yield last


def diagnosis(epoch: Epoch, x: Tensor, recipe: Recipe) -> str | None:
    """Which number of the epoch is not finite, and what to lower; None where all are finite."""
    memory = {f"optimiser's {name}": t for name, t in epoch.memory.items()}
    numbers = {"training loss": epoch.loss, **memory, "parameters": epoch.theta}
    if (name := not_finite(numbers)) is None:
        return None
    advice, penalty = "lower lr", ""
    if recipe.penalty != "none":
        advice, penalty = (
            "lower lr or penalty_weight",
            f", penalty_weight {recipe.penalty_weight:g}",
        )
    if not all(finite(x)):
        advice = "the images themselves are not finite: correct them"
    return (
        f"the {name} stopped being finite in epoch {epoch.index + 1} of {recipe.epochs} "
        f"({recipe.optimiser}, lr {recipe.lr:g}{penalty}): {advice}; started again as it is, it "
        "stops there again"
    )
