"""The outer loop of DC, DSA and DM, which follow no expert: images S that look like real ones.

They look so to networks theta drawn anew. On each, S descends the gap between a batch X of each
class's real images and its own synthetic ones, S <- S - lr_images v, v <- 0.5 v + d gap / dS::

  DC   D(grad CE(theta, X), grad CE(theta, S)), D = sum over outputs of 1 - cos   (arXiv 2006.05929)
  DSA  the same of A(X) and A(S), one augmentation A for all images of both       (arXiv 2102.08259)
  DM   |mean f(theta, A(X)) - mean f(theta, A(S))|^2, f the penultimate features  (arXiv 2110.04181)

DC and DSA train theta on S between `outer` such steps; DM takes one step per network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ddlib.data.datasets import Images
from ddlib.method import augment
from ddlib.method.distill import MOMENTUM, State, Step
from ddlib.method.functional import CrossEntropy, FunctionalNetwork
from ddlib.method.train import Diverged, Epoch, not_finite, train
from ddlib.settings import Condensation, Recipe, generator

NEAR_ZERO = 1e-6  # beside the product of two norms, as in the authors' code

Members = Sequence[Tensor]  # for each class, the indices of its images
# (real images, synthetic ones, their class) -> the gap, and its gradient for the latter
Gap = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def members(labels: Tensor, classes: int) -> Members:
    """The indices of each class's images."""
    return [(labels == c).nonzero().flatten() for c in range(classes)]


def distance(network: FunctionalNetwork, a: Tensor, b: Tensor) -> Tensor:
    """D(a, b) of two vectors like theta: 1 - cos of the weights into each output, summed.

    Biases and norms, the parameters with one axis, are left out.
    """
    total = a.new_zeros(())
    for u, v in zip(network.unpack(a).values(), network.unpack(b).values(), strict=True):
        if u.dim() > 1:
            u, v = u.flatten(1), v.flatten(1)  # (outputs, weights into each)
            total = total + (1 - (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1) + NEAR_ZERO)).sum()
    return total


def gradient_gap(
    network: FunctionalNetwork, theta: Tensor, real: Tensor, x: Tensor, c: int
) -> tuple[Tensor, Tensor]:
    """D of the gradients on `real` and on x, all of class c, and its gradient for x.

    The latter is what `pull` gives, rho being the gradient of D.
    """
    theirs, ours = (CrossEntropy(torch.full((len(part),), c).to(part.device)) for part in (real, x))
    target, tape = network.gradient(theta, real, theirs)[1], network.tape(x)
    own = network.gradient(theta, x, ours, tape=tape)[1].requires_grad_()
    value = distance(network, own, target)
    (rho,) = torch.autograd.grad(value, own)
    return value.detach(), network.pull(theta, x, ours, rho, tape=tape)[1]


def feature_gap(
    network: FunctionalNetwork, theta: Tensor, real: Tensor, x: Tensor, c: int
) -> tuple[Tensor, Tensor]:
    """The squared distance between the mean features of `real` and of x, and its gradient for x."""
    target = network.embedding(theta, real).mean(0)
    x = x.detach().requires_grad_()
    value = (network.features(theta, x).mean(0) - target).square().sum()
    (d_x,) = torch.autograd.grad(value, x)
    return value.detach(), d_x


GAPS = {"dc": gradient_gap, "dsa": gradient_gap, "dm": feature_gap}


def siamese(x: Tensor, draws: augment.Draws) -> Tensor:
    """A(x), all images changed alike by one image's draws."""
    return augment.apply(x, augment.Draws(draws.strategy, draws.u.expand(-1, len(x))))


def batches(
    settings: Condensation,
    real: Images,
    groups: Members,
    strategies: Sequence[str],
    place: tuple[int, int],
) -> Iterator[tuple[Tensor, augment.Draws]]:
    """For each class a batch of its real images and one image's augmentation.

    All chance is that of `place`, the iteration and the step in it.
    """
    chance = generator(settings.seed, "real", *place)
    other = generator(settings.seed, "augment", *place)
    draws = augment.draws([1] * len(groups), strategies, other, real.x_train.device)
    for group, drawn in zip(groups, draws, strict=True):
        taken = torch.randperm(len(group), generator=chance)[: settings.batch_real]
        yield real.x_train[group[taken.to(group.device)]], drawn


def matching(
    gap: Gap, images: Tensor, groups: Members, batches: Iterable[tuple[Tensor, augment.Draws]]
) -> tuple[Tensor, Tensor]:
    """The gap summed over classes and its gradient for the images, one graph at a time."""
    total, gradient = images.new_zeros(()), torch.zeros_like(images)
    for c, (group, (real, drawn)) in enumerate(zip(groups, batches, strict=True)):
        x = images[group].requires_grad_()
        seen = siamese(x, drawn)
        value, d_seen = gap(siamese(real, drawn), seen.detach(), c)
        (gradient[group],) = torch.autograd.grad(seen, x, d_seen)
        total += value
    return total, gradient


def trained(epochs: Iterator[Epoch], t: int, k: int) -> Tensor:
    """theta after training on the images, in iteration t after step k."""
    try:
        *_, last = epochs
    except Diverged as error:
        raise Diverged(
            f"training on the images (its lr is lr_net) after step {k + 1} of outer iteration "
            f"{t + 1}: {error}"
        ) from None
    return last.theta


def condense(
    settings: Condensation, network: FunctionalNetwork, real: Images, labels: Tensor, state: State
) -> Iterator[Step]:
    """Outer iterations from `state` on, without end, each with one new network.

    Continuing from a kept state gives the same bytes as never stopping. The inner lr stays. A
    step's loss is the mean gap over classes; its start is 0.

    Raises:
        Diverged: the gap, the images or a network stopped being finite.
    """
    strategies: tuple[Any, ...] = () if settings.method == "dc" else real.strategies
    theirs, ours = members(real.y_train, real.classes), members(labels, real.classes)
    # The authors' code since DSA; its first release had momentum 0.5.
    same: dict[str, Any] = {"lr": settings.lr_net, "batch": settings.batch, "weight_decay": 0.0}
    same |= {"epochs": settings.inner, "drop": 1.0, "strategies": strategies}
    recipe = Recipe(optimiser="sgd", **same)
    while True:
        t, images, v_images, losses = state.iteration, state.images, state.v_images, []
        theta = network.initial(generator(settings.seed, "network", t)).to(images)
        for k in range(settings.outer):
            gap = partial(GAPS[settings.method], network, theta)
            pairs = batches(settings, real, theirs, strategies, (t, k))
            value, gradient = matching(gap, images, ours, pairs)
            v_images = MOMENTUM * v_images + gradient
            images = images - settings.lr_images * v_images
            names = ("matching loss", "gradient for the images", "synthetic images")
            numbers = dict(zip(names, (value, gradient, images), strict=True))
            if name := not_finite(numbers):
                raise Diverged(
                    f"the {name} stopped being finite at outer iteration {t + 1} (lr_images "
                    f"{settings.lr_images:g}): lower lr_images; the last good state is kept, but "
                    "as it is the run stops there again"
                )
            losses.append(float(value) / real.classes)
            if k + 1 < settings.outer:
                start, seed = Epoch.first(theta), (settings.seed, "train", t, k)
                theta = trained(train(network, start, images, labels, recipe, seed), t, k)
        state = replace(state, iteration=t + 1, images=images, v_images=v_images)
        yield Step(state, fmean(losses), 0)
