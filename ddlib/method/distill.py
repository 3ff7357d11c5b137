"""The outer loop: images S and inner lr a that make a student land where the experts went.

S <- S - lr_images v_S, v <- 0.5 v + dL/dS, and log a likewise, so that a stays positive: a step on
log a of lr_lr / a0^2 is, at a0, the published step lr_lr on a. K classes, n = K * IPC images.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ddlib.method import student
from ddlib.method.functional import FunctionalNetwork, perturb
from ddlib.method.train import Diverged, not_finite
from ddlib.settings import Distillation, Distilled, InputError, generator

MOMENTUM = 0.5
LABEL_MOMENTUM = 0.9  # DATM's authors' code

# (expert, start epoch s, M) -> theta*_s ... theta*_{s+M}, (M + 1, P)
Segment = Callable[[int, int, int], Tensor]


@dataclass(frozen=True)
class State:
    """All that the outer loop carries from one iteration to the next."""

    iteration: int
    images: Tensor
    log_lr: Tensor
    v_images: Tensor
    v_lr: Tensor
    average: Tensor | None = None  # of the images over the iterations, with `ema`
    labels: Tensor | None = None  # logits (n, K) of soft labels
    v_labels: Tensor | None = None  # where they are learned

    @property
    def lr(self) -> float:
        """The learned inner learning rate a."""
        return float(self.log_lr.exp())

    @property
    def kept(self) -> Tensor:
        """The images to evaluate and to keep: their average, with `ema`."""
        return self.images if self.average is None else self.average

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, for a checkpoint."""
        return {name: part for name, part in vars(self).items() if isinstance(part, Tensor)}


@dataclass(frozen=True)
class Step:
    """One outer iteration: the state after it, its loss and its start epoch."""

    state: State
    loss: float
    start: int


def begin(settings: Distilled, images: Tensor, soft: Tensor | None = None) -> State:
    """The state before the first iteration; soft labels start from the logits `soft` (n, K)."""
    log_lr = torch.tensor(settings.a0, dtype=images.dtype, device=images.device).log()
    average = images.clone() if settings.ema else None
    v_images, v_lr = torch.zeros_like(images), torch.zeros_like(log_lr)
    v_labels = torch.zeros_like(soft) if settings.labels == "learned" else None
    return State(0, images, log_lr, v_images, v_lr, average, soft, v_labels)


def window(settings: Distillation, t: int) -> tuple[int, int]:
    """The first start epoch of iteration t (from 0), and the one after the last.

    The latter grows as DATM's: T + floor((T+ - T) t / growth), at most T+.
    """
    first, early, last = settings.first_start or 0, settings.early_epochs, settings.start_epochs
    if early is None:
        return first, last
    return first, min(early + (last - early) * t // settings.growth, last)


def marks(iterations: int, number: int) -> set[int]:
    """So many outer iterations, evenly spaced, the last at the end; all, where there are fewer."""
    return {iterations * (i + 1) // number for i in range(number)} - {0}


def distill(
    settings: Distillation,
    network: FunctionalNetwork,
    segment: Segment,
    labels: Tensor,
    strategies: tuple[str, ...],
    state: State,
    memory: int = student.MEMORY,  # no setting, for no result depends on it
) -> Iterator[Step]:
    """Outer iterations from `state` on, without end: the caller decides when to stop.

    Continuing from a kept state gives the same bytes as never stopping. `labels` (n,) are the
    images' classes; soft labels are in the state. DATM skips steps whose loss exceeds a threshold;
    here each is taken. `memory` is that of `student.InnerLoop`.

    Raises:
        Diverged: loss, images or inner lr stopped being finite.
    """
    epochs, intermediate = settings.matched_epochs, settings.intermediate
    matched = student.matched_steps(settings.inner_steps, epochs, intermediate)
    while True:
        t = state.iteration
        chance = generator(settings.seed, "start", t)
        expert = int(torch.randint(settings.n_experts, (), generator=chance))
        start = int(torch.randint(*window(settings, t), (), generator=chance))
        target = segment(expert, start, epochs).to(state.images)  # (M + 1, P)
        alpha, form = settings.perturbation, settings.perturbation_form
        theta = perturb(network, target[0], alpha, form, generator(settings.seed, "perturb", t))

        y = labels if state.labels is None else state.labels
        loss = student.inner_loss(network, y, settings, strategies, start, t)
        lr, steps = state.log_lr.exp(), settings.inner_steps
        momentum = settings.momentum
        loop = student.InnerLoop(loss, theta, state.images, lr, steps, momentum, memory)
        measured = partial(
            student.objective, expert=target, matched=matched, intermediate=intermediate
        )
        gradient = student.GRADIENTS[settings.gradient](loop, measured, list(matched))
        state = stepped(settings, state, gradient)
        yield Step(state, checked(settings, theta, target, gradient, state), start)


def stepped(settings: Distillation, state: State, gradient: student.Gradient) -> State:
    """The state after a step down `gradient`."""
    v_images = MOMENTUM * state.v_images + gradient.images
    v_lr = MOMENTUM * state.v_lr + gradient.lr * state.log_lr.exp()  # d/d log a = a d/da
    images = state.images - settings.lr_images * v_images
    log_lr = state.log_lr - settings.lr_lr / settings.a0**2 * v_lr
    average, labels, v_labels = state.average, state.labels, state.v_labels
    if average is not None:  # A <- d A + (1 - d) S, A_0 = S_0 (FTD)
        average = settings.ema * average + (1 - settings.ema) * images
    if v_labels is not None:
        v_labels = LABEL_MOMENTUM * v_labels + gradient.labels
        labels = labels - settings.lr_labels * v_labels
    return State(state.iteration + 1, images, log_lr, v_images, v_lr, average, labels, v_labels)


def checked(
    settings: Distillation, theta: Tensor, target: Tensor, gradient: student.Gradient, after: State
) -> float:
    """The loss as a number, if it and everything that an iteration made is finite.

    Raises:
        Diverged: names the first that is not, the iteration, and what to lower.
        InputError: the student starts, at theta, where it should end: the loss divides by zero.
    """
    parts = {
        "student's parameters": gradient.end,
        "matching loss": gradient.value,
        "gradient for the images": gradient.images,
        "gradient for the inner lr": gradient.lr,
        "synthetic images": after.images,
        "inner lr": after.log_lr.exp(),
    }
    if after.labels is not None:
        parts |= {"gradient for the labels": gradient.labels, "labels": after.labels}
    if (name := not_finite(parts)) is None:
        return float(gradient.value)
    for i, point in enumerate(target[1:], 1):
        if torch.equal(theta, point):
            raise InputError(
                f"expert epoch s + {i} equals the student's start: nothing to match; check that "
                "the expert moves (its lr, its data)"
            )
    lower = {"labels": "lr_labels", "inner lr": "lr_lr", "synthetic images": "lr_images"}.get(name)
    raise Diverged(
        f"the {name} stopped being finite at outer iteration {after.iteration} (lr_images "
        f"{settings.lr_images:g}, lr_lr {settings.lr_lr:g}, a0 {settings.a0:g}): lower "
        f"{f'{lower} first, then a0' if lower else 'a0, lr_images or lr_lr'}; the last good state "
        "is kept, but as it is the run stops there again"
    )
