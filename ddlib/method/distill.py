"""The outer loop: images S and inner lr a that make a student land where the experts went (METHOD sections 3 to 5).

S <- S - lr_images v_S, v <- 0.5 v + dL/dS; log a likewise, so a stays positive: a step on log a of lr_lr / a0^2 is, at a0, the
published step lr_lr on a. K classes, n = K * IPC images (n, c, h, w).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ddlib.method import augment
from ddlib.method.functional import CrossEntropy, FunctionalNetwork, perturb
from ddlib.method.matching import balance, matched_steps, objective
from ddlib.method.student import GRADIENTS, Gradient, Loss, path
from ddlib.method.train import Diverged, finite
from ddlib.settings import Distillation, Distilled, InputError, generator

MOMENTUM = 0.5
LABEL_MOMENTUM = 0.9  # DATM's authors' code
STEEP, FAR, GROWN = (
    1.0,
    1e3,
    10.0,
)  # beyond them: |d loss / d pixel| of a loss near 1; a pixel of whitened images; a / a0

Segment = Callable[
    [int, int, int], Tensor
]  # (expert, start epoch s, M) -> theta*_s ... theta*_{s+M}, (M + 1, P)


@dataclass(frozen=True)
class State:
    """All that the outer loop carries from one iteration to the next."""

    iteration: int
    images: Tensor
    log_lr: Tensor
    v_images: Tensor
    v_lr: Tensor
    average: Tensor | None = None  # of the images over the iterations, where it is asked for
    labels: Tensor | None = None  # logits (n, K) of soft labels, where there are any
    v_labels: Tensor | None = None  # where they are learned

    @property
    def lr(self) -> float:
        """The learned inner learning rate a."""
        return float(self.log_lr.exp())

    @property
    def kept(self) -> Tensor:
        """The images to judge and to keep: their average, where it is asked for."""
        return self.images if self.average is None else self.average

    def tensors(self) -> dict[str, Tensor]:
        """For saving."""
        return {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}


@dataclass(frozen=True)
class Step:
    """One outer iteration: the state after it, its loss, start epoch, and the largest step in a pixel."""

    state: State
    loss: float
    start: int


def begin(settings: Distilled, images: Tensor, soft: Tensor | None = None) -> State:
    """The state before the first iteration; `soft` are the logits (n, K) that soft labels start from."""
    log_lr = torch.tensor(settings.a0, dtype=images.dtype, device=images.device).log()
    average, v_labels = (
        images.clone() if settings.ema else None,
        torch.zeros_like(soft) if settings.labels == "learned" else None,
    )
    return State(
        0,
        images,
        log_lr,
        torch.zeros_like(images),
        torch.zeros_like(log_lr),
        average,
        soft,
        v_labels,
    )


def batches(n: int, size: int | None, steps: int, chance: torch.Generator) -> list[Tensor]:
    """Which images each inner step sees: walks through all n in shuffled order, again and again; all at once if they fit."""
    if size is None or size >= n:
        return [torch.arange(n)] * steps
    order: list[Tensor] = []
    while len(order) < steps:
        order += torch.randperm(n, generator=chance).split(size)
    return order[:steps]


@dataclass(frozen=True)
class InnerLoss(Loss):
    """weight times the CE of `flat` on the k-th batch of A(S): which images, and how augmented, was drawn beforehand.

    `labels` are classes (n,), or the logits (n, K) of soft labels.
    """

    flat: FunctionalNetwork
    labels: Tensor
    which: Sequence[Tensor]
    draws: Sequence[augment.Draws]
    weight: float

    @property
    def soft(self) -> Tensor | None:
        """The logits of soft labels, if they are."""
        return self.labels if self.labels.is_floating_point() else None

    def batch(self, images: Tensor, k: int) -> Tensor:
        """What step k sees of the images."""
        which = self.which[k - 1]
        return augment.apply(
            images if len(which) == len(images) else images[which], self.draws[k - 1]
        )

    def head(self, k: int) -> CrossEntropy:
        """What step k makes of the logits."""
        labels = self.labels[self.which[k - 1]]
        return CrossEntropy(labels if self.soft is None else labels.softmax(1), self.weight)

    def __call__(self, theta: Tensor, images: Tensor, k: int) -> Tensor:
        """The loss of step k."""
        return self.head(k).value(self.flat(theta, self.batch(images, k)))

    def gradient(self, theta: Tensor, images: Tensor, k: int) -> Tensor:
        """Its gradient for theta."""
        return self.flat.gradient(theta, self.batch(images, k), self.head(k))[1]

    def pull(self, theta: Tensor, images: Tensor, k: int, rho: Tensor) -> tuple[Tensor, ...]:
        """Cotangents of theta, of the images and of the logits of soft labels, if they are, where that of `gradient` is rho."""
        images = images.detach().requires_grad_()
        x = self.batch(images, k)
        if self.soft is None:
            h_theta, h_x = self.flat.pull(theta, x.detach(), self.head(k), rho)
            return h_theta, *torch.autograd.grad(x, images, h_x)
        labels = self.labels.detach().requires_grad_()
        target = replace(self, labels=labels).head(k).labels
        h_theta, h_x, h_target = self.flat.pull_soft(
            theta, x.detach(), CrossEntropy(target.detach(), self.weight), rho
        )
        return h_theta, *torch.autograd.grad((x, target), (images, labels), (h_x, h_target))


def inner_loss(
    flat: FunctionalNetwork,
    labels: Tensor,
    settings: Distillation,
    strategies: tuple[str, ...],
    start: int,
    t: int,
) -> InnerLoss:
    """w(s) CE on the batches of A(S); all chance of outer iteration t is drawn here."""
    which = batches(
        len(labels), settings.batch, settings.inner_steps, generator(settings.seed, "batches", t)
    )
    sizes = [len(batch) for batch in which]
    draws = augment.draws(sizes, strategies, generator(settings.seed, "augment", t), labels.device)
    weight = balance(start, settings.start_epochs) if settings.balance else 1.0
    return InnerLoss(flat, labels, torch.cat(which).to(labels.device).split(sizes), draws, weight)


def window(settings: Distillation, t: int) -> tuple[int, int]:
    """Of iteration t from 0: the first start epoch, and the one after the last, which grows as DATM's does: T + floor((T+ - T) t / growth), at most T+."""
    first, early, last = settings.first_start or 0, settings.early_epochs, settings.start_epochs
    return first, last if early is None else min(
        early + (last - early) * t // settings.growth, last
    )


def distil(
    settings: Distillation,
    flat: FunctionalNetwork,
    segment: Segment,
    labels: Tensor,
    strategies: tuple[str, ...],
    state: State,
) -> Iterator[Step]:
    """One outer iteration a turn, for ever, from `state`; continuing from a kept state gives the same bytes as never having stopped.

    `labels` (n,) are the images' classes. Soft ones are the state's own: learned, or in each iteration what the expert that is followed makes of the
    images at the end of the way (TESLA's "soft label assignment"). DATM also leaves out a step whose loss is above a threshold; here each is taken.

    Raises:
        Diverged: loss, images or inner lr stopped being finite.
    """
    matched = matched_steps(settings.inner_steps, settings.matched_epochs, settings.intermediate)
    while True:
        t = state.iteration
        chance = generator(settings.seed, "start", t)
        expert = int(torch.randint(settings.n_experts, (), generator=chance))
        start = int(torch.randint(*window(settings, t), (), generator=chance))
        target = segment(expert, start, settings.matched_epochs).to(state.images)  # (M + 1, P)
        theta = perturb(
            flat,
            target[0],
            settings.perturbation,
            settings.perturbation_form,
            generator(settings.seed, "perturb", t),
        )

        if settings.labels == "expert":
            state = replace(state, labels=flat.logits(target[-1], state.images))
        inner = inner_loss(
            flat, labels if state.labels is None else state.labels, settings, strategies, start, t
        )
        gradient = GRADIENTS[settings.gradient](
            inner,
            theta,
            state.images,
            state.log_lr.exp(),
            settings.inner_steps,
            settings.momentum,
            partial(objective, expert=target, matched=matched, intermediate=settings.intermediate),
            list(matched),
        )
        v_images = MOMENTUM * state.v_images + gradient.images
        v_lr = MOMENTUM * state.v_lr + gradient.lr * state.log_lr.exp()  # d/d log a = a d/da
        images = state.images - settings.lr_images * v_images
        log_lr = state.log_lr - settings.lr_lr / settings.a0**2 * v_lr
        more = moved(settings, state, images, gradient.labels)
        after = replace(
            state,
            iteration=t + 1,
            images=images,
            log_lr=log_lr,
            v_images=v_images,
            v_lr=v_lr,
            **more,
        )
        value = checked(settings, inner, theta, target, state, gradient, after)
        state = after
        yield Step(state, value, start)


def moved(
    settings: Distillation, state: State, images: Tensor, d_labels: Tensor | None
) -> dict[str, Tensor]:
    """What else an iteration moves: the average A <- d A + (1 - d) S of the images after the step (FTD's, A_0 = S_0), and soft labels."""
    more = {}
    if state.average is not None:
        more["average"] = settings.ema * state.average + (1 - settings.ema) * images
    if state.v_labels is not None:
        more["v_labels"] = LABEL_MOMENTUM * state.v_labels + d_labels
        more["labels"] = state.labels - settings.lr_labels * more["v_labels"]
    return more


def checked(
    settings: Distillation,
    inner: InnerLoss,
    theta: Tensor,
    target: Tensor,
    state: State,
    gradient: Gradient,
    after: State,
) -> float:
    """The loss as a number, if it and all that came of an iteration is finite; two looks at the device.

    Raises:
        Diverged: names the first that is not, the iteration, and what to lower.
        InputError: the student starts where it should end, and the loss divides by zero.
    """
    looked = {
        "student's parameters": gradient.end,
        "matching loss": gradient.value,
        "gradient for the images": gradient.images,
        "gradient for the inner lr": gradient.lr,
        "synthetic images": after.images,
        "inner lr": after.log_lr.exp(),
    }
    if after.labels is not None:
        looked |= {"gradient for the labels": gradient.labels, "labels": after.labels}
    good = finite(*looked.values())
    if all(good):
        return float(gradient.value)
    for i, point in enumerate(target[1:], 1):
        if torch.equal(theta, point):
            raise InputError(
                f"expert epoch s + {i} equals the student's start: nothing to match; check that the expert moves (its lr, its data)"
            )
    name = where = list(looked)[good.index(False)]
    if not good[0]:
        walked = path(
            inner,
            theta,
            state.images,
            state.log_lr.exp(),
            settings.inner_steps,
            settings.momentum,
            differentiable=False,
        )
        if False in (steps := finite(*walked)):  # the plain form may round to the other side
            where = f"{name}, at inner step {steps.index(False)} of {settings.inner_steps},"
    raise Diverged(
        f"the {where} stopped being finite at outer iteration {after.iteration} (lr_images {settings.lr_images:g}, lr_lr {settings.lr_lr:g}, a0 {settings.a0:g}): "
        f"{cause(settings, name, state, gradient)}; the last good state is kept, but as it is the run stops there again"
    )


def cause(settings: Distillation, name: str, state: State, gradient: Gradient) -> str:
    """Why `name` overflowed, likely, and what to lower: by how steep the matching loss had been in a pixel, how far pixels had gone, and how a had grown."""
    steepest = float(
        (gradient.images if all(finite(gradient.images)) else state.v_images).abs().max()
    )
    largest = float(state.images.abs().max())
    if steepest <= STEEP and name == "inner lr":
        return "a step on the inner lr was too long: lower lr_lr first, then a0"
    if name == "labels":
        return "a step on the labels was too long: lower lr_labels first, then a0"
    if steepest <= STEEP and (name == "synthetic images" or largest > FAR):
        return (
            f"the images had run away, to pixels of {largest:.1g}: lower lr_images first, then a0"
        )
    grown = state.lr > GROWN * settings.a0
    steep = (
        f", the matching loss was as steep as {steepest:.1g} a pixel" if steepest > STEEP else ""
    )
    return f"the inner loop overflowed at an inner lr of {state.lr:.3g}{steep}: lower {'lr_lr first, then a0' if grown else 'a0 first, then lr_images'}"
