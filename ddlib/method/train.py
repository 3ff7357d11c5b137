"""The one training loop: experts, networks on distilled sets and the full-data ceiling are all made by it.

L_SC = c_e CE(f(A(x)), y) + lambda mean (|g| - target)^2 with g = d sum_k f_k(x) / dx (METHOD section 1); plain training has c_e = 1, lambda = 0.
n images (n, c, h, w) of classes (n,) or soft labels, probabilities (n, K); P parameters in one vector theta.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddlib.method import augment
from ddlib.method.functional import CrossEntropy, FunctionalNetwork
from ddlib.settings import generator

MEMORY = {
    "sgd": (),
    "momentum": ("momentum_buffer",),
    "adam": ("step", "exp_avg", "exp_avg_sq"),
}  # what torch's optimisers carry from step to step


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
    sharpness: float | None = None  # rho of sharpness-aware steps
    sharpness_alpha: float | None = None


@dataclass(frozen=True)
class Epoch:
    """What an epoch left, and all that the next one needs: its index from 0, theta (P,) after it, the mean training loss over it, what the optimiser remembers."""

    index: int
    theta: Tensor
    loss: Tensor
    memory: dict[str, Tensor]

    def state(self) -> dict[str, Any]:
        """For keeping."""
        return {"epoch": self.index, "theta": self.theta, "loss": self.loss, **self.memory}

    @staticmethod
    def names(recipe: Recipe) -> tuple[str, ...]:
        """Those in `state`."""
        return ("epoch", "theta", "loss", *MEMORY[recipe.optimiser])

    @classmethod
    def of(cls, state: dict[str, Any], recipe: Recipe) -> Epoch:
        """The epoch that was kept."""
        return cls(
            state["epoch"],
            state["theta"],
            state["loss"],
            {name: state[name] for name in MEMORY[recipe.optimiser]},
        )


def ramp(epoch: int, epochs: int) -> float:
    """Clipping factor c_e: from 0.5 in equal steps to 1 at epoch `epochs` (10 epochs: 0.50, 0.55 ... 0.95, then 1)."""
    return min(1.0, 0.5 + 0.5 * epoch / epochs)


def gradient_norms(g: Tensor, reading: str) -> Tensor:
    """|g| over channels at every pixel, (n, h, w) ("per_pixel", the authors' code), or over the whole image, (n,) ("per_sample", as WGAN-GP)."""
    squares = g.square().sum(1 if reading == "per_pixel" else (1, 2, 3))
    return (
        squares + torch.finfo(g.dtype).tiny
    ).sqrt()  # the root of an exact zero has no derivative


def optimiser_for(theta: Tensor, recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    """A fresh optimiser on the one vector theta."""
    if recipe.optimiser == "adam":
        return torch.optim.Adam([theta], lr=lr, weight_decay=recipe.weight_decay)
    return torch.optim.SGD(
        [theta],
        lr=lr,
        momentum=0.9 if recipe.optimiser == "momentum" else 0.0,
        weight_decay=recipe.weight_decay,
    )


def gradient(
    flat: FunctionalNetwork,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    draws: augment.Draws,
    recipe: Recipe,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """L_SC on one batch, and what a step goes down: its gradient for theta, or, with `sharpness` rho, that at theta + rho g / |g| (SAM, arXiv 2010.01412).

    With `sharpness_alpha` alpha as well, alpha times the part of g that is orthogonal to it is taken away (GSAM, arXiv 2203.08065). FTD's authors train
    experts so, at a rho that is relative to each parameter (the adaptive form, rho theta^2 g / |theta g|), which this is not.
    """
    value, g = slope(flat, theta, x, y, draws, recipe, factor)
    if recipe.sharpness is None:
        return value, g
    tiny = torch.finfo(g.dtype).tiny  # a gradient of zero leads nowhere
    uphill = slope(
        flat, theta + recipe.sharpness * g / g.norm().clamp_min(tiny), x, y, draws, recipe, factor
    )[1]
    if recipe.sharpness_alpha is not None:
        uphill -= recipe.sharpness_alpha * (
            g - (g @ uphill) / (uphill @ uphill).clamp_min(tiny) * uphill
        )
    return value, uphill


def slope(
    flat: FunctionalNetwork,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    draws: augment.Draws,
    recipe: Recipe,
    factor: float,
) -> tuple[Tensor, Tensor]:
    """L_SC on one batch and its gradient for theta; the penalty sees the images as they are."""
    value, d_theta = flat.gradient(theta, augment.apply(x, draws), CrossEntropy(y, factor))
    if recipe.penalty != "none":

        def cost(g: Tensor) -> Tensor:
            norms = gradient_norms(g, recipe.penalty)
            return (
                recipe.penalty_weight
                / (len(x) * norms[0].numel())
                * (norms - recipe.penalty_target).square().sum()
            )

        extra, d_extra = flat.penalty(theta, x, cost)
        value, d_theta = value + extra, d_theta + d_extra
    return value, d_theta


def finite(*tensors: Tensor) -> list[bool]:
    """Whether all numbers of each are finite, by their extremes, which carry a NaN along; one look at the device."""
    first = tensors[0].device
    return (
        torch.stack([end.to(first) for t in tensors for end in t.aminmax()])
        .isfinite()
        .view(-1, 2)
        .all(1)
        .tolist()
    )


def optimiser_at(
    epoch: int, theta: Tensor, recipe: Recipe, memory: dict[str, Tensor]
) -> torch.optim.Optimizer:
    """The optimiser of an epoch, at its lr, with what it remembers of those before it."""
    middle = recipe.epochs // 2 + 1
    lr = recipe.lr * (recipe.drop if epoch > middle else 1.0)
    optimiser = optimiser_for(
        theta, recipe, lr * ramp(epoch, recipe.ramp_epochs) if recipe.ramp == "lr" else lr
    )
    if memory and (epoch != middle + 1 or recipe.drop == 1.0):
        optimiser.state[theta] = {
            name: (t.to(theta.device) if t.dim() else t).clone() for name, t in memory.items()
        }  # Adam counts its steps on the CPU
    return optimiser


def steps(
    x: Tensor, recipe: Recipe, epoch: int, seed: tuple[int | str, ...]
) -> list[tuple[Tensor, augment.Draws]]:
    """Which images each step of an epoch sees, and how they are augmented: once through all of them."""
    order = torch.randperm(len(x), generator=generator(*seed, "order", epoch)).to(x.device)
    batches = order.split(recipe.batch)
    draws = augment.draws(
        [len(batch) for batch in batches],
        recipe.strategies,
        generator(*seed, "augment", epoch),
        x.device,
    )
    return list(zip(batches, draws, strict=True))


def one_epoch(
    flat: FunctionalNetwork,
    theta: Tensor,
    optimiser: torch.optim.Optimizer,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    epoch: int,
    factor: float,
    seed: tuple[int | str, ...],
) -> Tensor:
    """Walk once through all images, moving theta; the mean training loss. Nothing is read back from the device."""
    total = torch.zeros((), device=x.device)
    for batch, drawn in steps(x, recipe, epoch, seed):
        value, theta.grad = gradient(flat, theta, x[batch], y[batch], drawn, recipe, factor)
        optimiser.step()
        total += value * len(batch)
    return total / len(x)


def train(
    flat: FunctionalNetwork,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    seed: tuple[int | str, ...],
    after: Epoch | None = None,
) -> Iterator[Epoch]:
    """Train theta on images x and labels y, an epoch a turn, each a function of the one before: going on `after` one gives the same bytes.

    All chance comes from `seed`.

    Raises:
        Diverged: a number stopped being finite in an epoch; says which, at which step, and what to lower.
    """
    last = after or Epoch(-1, theta, theta.new_zeros(()), {})
    for index in range(last.index + 1, recipe.epochs):
        theta = last.theta.to(x.device, copy=True)
        optimiser = optimiser_at(index, theta, recipe, last.memory)
        factor = ramp(index, recipe.ramp_epochs) if recipe.ramp == "loss" else 1.0
        loss = one_epoch(flat, theta, optimiser, x, y, recipe, index, factor, seed)
        memory = {name: optimiser.state[theta][name] for name in MEMORY[recipe.optimiser]}
        if not all(finite(loss, theta, *memory.values())):
            raise Diverged(blame(flat, last, x, y, recipe, index, factor, seed))
        last = Epoch(index, theta, loss, memory)
        yield last


def blame(
    flat: FunctionalNetwork,
    last: Epoch,
    x: Tensor,
    y: Tensor,
    recipe: Recipe,
    epoch: int,
    factor: float,
    seed: tuple[int | str, ...],
) -> str:
    """Walk a bad epoch again, looking at every number: which was the first that is not finite, where, and what to lower."""
    theta = last.theta.to(x.device, copy=True)
    optimiser = optimiser_at(epoch, theta, recipe, last.memory)
    plan, steep, found = steps(x, recipe, epoch, seed), False, "a number stopped being finite"
    for step, (batch, drawn) in enumerate(plan, 1):
        value, theta.grad = gradient(flat, theta, x[batch], y[batch], drawn, recipe, factor)
        if step == 1 and recipe.penalty != "none":
            plain = gradient(
                flat, theta, x[batch], y[batch], drawn, replace(recipe, penalty="none"), factor
            )[1]
            steep = (
                all(finite(plain)) and not (theta.grad - plain).abs().max() <= plain.abs().max()
            )  # the penalty pulls harder than the images
        optimiser.step()
        memory = {
            f"optimiser's {name}": optimiser.state[theta][name] for name in MEMORY[recipe.optimiser]
        }
        looked = {"training loss": value, "gradient": theta.grad, **memory, "parameters": theta}
        good = finite(*looked.values())
        if not all(good):
            found = f"the {list(looked)[good.index(False)]} stopped being finite at step {step} of {len(plan)}"
            break
    penalty = "" if recipe.penalty == "none" else f", penalty_weight {recipe.penalty_weight:g}"
    lower = (
        ["lr"] if not penalty else ["penalty_weight", "lr"] if steep else ["lr", "penalty_weight"]
    )
    advice = (
        f"lower {' first, then '.join(lower)}"
        if all(finite(x))
        else "the images themselves are not finite: correct them"
    )
    return f"{found} in epoch {epoch + 1} of {recipe.epochs} ({recipe.optimiser}, lr {recipe.lr:g}{penalty}): {advice}; begun again as it is, it stops there again"


def accuracy(
    flat: FunctionalNetwork, theta: Tensor, x: Tensor, y: Tensor, batch: int = 250
) -> float:
    """Fraction of x that theta classifies as y."""
    right = sum(
        (flat.logits(theta, a).argmax(1) == b).sum()
        for a, b in zip(x.split(batch), y.split(batch), strict=True)
    )
    return float(right) / len(x)
