"""The outer loop of the rivals that follow no expert: images S that look to a network drawn anew as real images do (DC, DSA, DM).

On each network theta, class by class, S is drawn down the gap between a batch of the class's real images X and its own synthetic ones:
DC   D(grad CE(theta, X), grad CE(theta, S)), D = sum over layers and their outputs of 1 - cos  (arXiv 2006.05929)
DSA  the same of A(X) and A(S), one augmentation A for all images of both                       (arXiv 2102.08259)
DM   |mean f(theta, A(X)) - mean f(theta, A(S))|^2, f what the last linear map sees             (arXiv 2110.04181)
DC and DSA train theta on S between `outer` such steps; DM takes one on each network. S <- S - lr_images v, v <- 0.5 v + d gap / dS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from statistics import fmean

import torch
from torch import Tensor

from ddlib.data.datasets import Images
from ddlib.method import augment
from ddlib.method.distill import MOMENTUM, State, Step
from ddlib.method.functional import CrossEntropy, FunctionalNetwork
from ddlib.method.train import Diverged, Recipe, finite, train
from ddlib.settings import Condensation, generator

NEAR_ZERO = 1e-6  # beside the product of two norms, as in the authors' code

Members = Sequence[Tensor]  # of each class, the indices of its images
Gap = Callable[
    [Tensor, Tensor, int], tuple[Tensor, Tensor]
]  # (real images, synthetic ones, their class) -> how far apart, gradient for the latter


def members(labels: Tensor, classes: int) -> Members:
    """Which images are whose."""
    return [(labels == c).nonzero().flatten() for c in range(classes)]


def distance(flat: FunctionalNetwork, a: Tensor, b: Tensor) -> Tensor:
    """D(a, b) of two vectors like theta: 1 - cos of the weights into each output of each layer, summed; parameters of one axis, biases and norms, are left out."""
    total = a.new_zeros(())
    for u, v in zip(flat.unpack(a).values(), flat.unpack(b).values(), strict=True):
        if u.dim() > 1:
            u, v = u.flatten(1), v.flatten(1)  # (outputs, weights into each)
            total = total + (1 - (u * v).sum(1) / (u.norm(dim=1) * v.norm(dim=1) + NEAR_ZERO)).sum()
    return total


def gradient_gap(
    flat: FunctionalNetwork, theta: Tensor, real: Tensor, x: Tensor, c: int
) -> tuple[Tensor, Tensor]:
    """D of the gradients on `real` and on x, all of class c, and its gradient for x: what the adjoint pulls, with rho the gradient of D."""
    heads = [CrossEntropy(torch.full((len(part),), c, device=part.device)) for part in (real, x)]
    wanted, found = (
        flat.gradient(theta, part, head)[1] for part, head in zip((real, x), heads, strict=True)
    )
    value = distance(flat, found.requires_grad_(), wanted)
    (rho,) = torch.autograd.grad(value, found)
    return value.detach(), flat.pull(theta, x, heads[1], rho)[1]


def feature_gap(
    flat: FunctionalNetwork, theta: Tensor, real: Tensor, x: Tensor, c: int
) -> tuple[Tensor, Tensor]:
    """The squared distance between the mean features of `real` and of x, and its gradient for x; the class has no say."""
    wanted = flat.embedding(theta, real).mean(0)
    x = x.detach().requires_grad_()
    value = (flat.features(theta, x).mean(0) - wanted).square().sum()
    (d_x,) = torch.autograd.grad(value, x)
    return value.detach(), d_x


GAPS = {"dc": gradient_gap, "dsa": gradient_gap, "dm": feature_gap}


def siamese(x: Tensor, draws: augment.Draws) -> Tensor:
    """A(x), all images alike by one image's draws: those that are compared with them are changed in the same way."""
    return augment.apply(x, augment.Draws(draws.strategy, draws.u.expand(-1, len(x))))


def batches(
    settings: Condensation,
    real: Images,
    theirs: Members,
    strategies: Sequence[str],
    place: tuple[int, int],
) -> Iterator[tuple[Tensor, augment.Draws]]:
    """For each class a batch of its real images, and one image's augmentation; all chance is that of `place`, the iteration and the step in it."""
    chance = generator(settings.seed, "real", *place)
    drawn = augment.draws(
        [1] * len(theirs),
        strategies,
        generator(settings.seed, "augment", *place),
        real.x_train.device,
    )
    for mine, one in zip(theirs, drawn, strict=True):
        taken = torch.randperm(len(mine), generator=chance)[: settings.batch_real].to(mine.device)
        yield real.x_train[mine[taken]], one


def matching(
    gap: Gap, images: Tensor, ours: Members, batches: Iterable[tuple[Tensor, augment.Draws]]
) -> tuple[Tensor, Tensor]:
    """The gap summed over the classes and its gradient for the images, one class's graph at a time."""
    total, gradient = images.new_zeros(()), torch.zeros_like(images)
    for c, (mine, (real, one)) in enumerate(zip(ours, batches, strict=True)):
        x = images[mine].requires_grad_()
        seen = siamese(x, one)
        value, d_seen = gap(siamese(real, one), seen.detach(), c)
        (gradient[mine],) = torch.autograd.grad(seen, x, d_seen)
        total += value
    return total, gradient


def trained(
    settings: Condensation,
    flat: FunctionalNetwork,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    strategies: Sequence[str],
    place: tuple[int, int],
) -> Tensor:
    """theta after `inner` epochs on the images, by plain SGD, each augmented by draws of its own.

    The authors' code trains so since DSA; its first release had momentum 0.5.
    """
    recipe = Recipe(settings.inner, settings.batch, settings.lr_net, "sgd", strategies=strategies)
    try:
        *_, last = train(flat, theta, images, labels, recipe, (settings.seed, "train", *place))
    except Diverged as error:
        raise Diverged(
            f"training on the images (its lr is lr_net) after step {place[1] + 1} of outer iteration {place[0] + 1}: {error}"
        ) from None
    return last.theta


def condense(
    settings: Condensation, flat: FunctionalNetwork, real: Images, labels: Tensor, state: State
) -> Iterator[Step]:
    """One network a turn, for ever, from `state`; continuing from a kept state gives the same bytes as never having stopped. The inner lr stays.

    A step's loss is the mean gap of a class; its start is 0, for every network is new.

    Raises:
        Diverged: the gap, the images or a network on its way stopped being finite.
    """
    strategies = () if settings.method == "dc" else real.strategies
    theirs, ours = members(real.y_train, real.classes), members(labels, real.classes)
    while True:
        t, images, v_images, losses = state.iteration, state.images, state.v_images, []
        theta = flat.initial(generator(settings.seed, "network", t)).to(images)
        for k in range(settings.outer):
            gap = partial(GAPS[settings.method], flat, theta)
            value, gradient = matching(
                gap, images, ours, batches(settings, real, theirs, strategies, (t, k))
            )
            v_images = MOMENTUM * v_images + gradient
            images = images - settings.lr_images * v_images
            losses.append(checked(settings, t + 1, value, gradient, images) / real.classes)
            if k + 1 < settings.outer:
                theta = trained(settings, flat, theta, images, labels, strategies, (t, k))
        state = replace(state, iteration=t + 1, images=images, v_images=v_images)
        yield Step(state, fmean(losses), 0)


def checked(
    settings: Condensation, iteration: int, value: Tensor, gradient: Tensor, images: Tensor
) -> float:
    """The gap as a number, if it and what came of it is finite; one look at the device.

    Raises:
        Diverged: names the first that is not, the iteration, and what to lower.
    """
    good = finite(value, gradient, images)
    if all(good):
        return float(value)
    name = ("matching loss", "gradient for the images", "synthetic images")[good.index(False)]
    raise Diverged(
        f"the {name} stopped being finite at outer iteration {iteration} (lr_images {settings.lr_images:g}): "
        "lower lr_images; the last good state is kept, but as it is the run stops there again"
    )
