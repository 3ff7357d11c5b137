"""The student's path theta_k = theta_{k-1} - a b_k, b_k = mu b_{k-1} + grad_k, and its gradient.

s start epoch, M expert epochs matched, N inner steps, P parameters, n images, K classes. Step
k = 1 ... N sees x, its batch of the images, augmented by draws made beforehand (`loss.seen`), so
that a second call sees the same; `loss(theta, x, k)` is its loss. An `objective(path)` sees theta_k
as path[k], at the `matched` k and at 0 only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

from ddlib.method import augment
from ddlib.method.functional import CrossEntropy, FunctionalNetwork
from ddlib.settings import Distillation, generator

MEMORY = 160 << 20  # bytes: see `InnerLoop.memory`
SEEN = 2 << 20  # bytes of images that are augmented at once

Path = Mapping[int, Tensor] | Sequence[Tensor]
Objective = Callable[[Path], Tensor]


class Loss:
    """An inner loss from a plain function of (theta, x, k), derived automatically."""

    soft: Tensor | None = None  # the logits (n, K) of soft labels, where a loss has them

    def __init__(self, function: Callable[[Tensor, Tensor, int], Tensor]):
        self.function = function

    def __call__(self, theta: Tensor, x: Tensor, k: int) -> Tensor:
        """The loss of step k."""
        return self.function(theta, x, k)

    def seen(self, images: Tensor, steps: Sequence[int]) -> list[Tensor]:
        """What each of these steps sees of the images, differentiable for them."""
        return [images for _ in steps]

    def tape(self, x: Tensor) -> Tensor | None:
        """Room for what `gradient` can leave to `pull`; None: nothing is left."""
        return None

    def gradient(self, theta: Tensor, x: Tensor, k: int, tape: Tensor | None = None) -> Tensor:
        """Its gradient for theta; `tape`, if any, is filled."""
        return grad(lambda theta: self(theta, x, k))(theta)

    def pull(
        self, theta: Tensor, x: Tensor, k: int, rho: Tensor, tape: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Derivatives of <rho, `gradient`> for theta, x and `soft`, where there is one."""
        return vjp(lambda theta, x: self.gradient(theta, x, k), theta, x)[1](rho)


@dataclass(frozen=True)
class InnerLoss(Loss):
    """`weight` times the cross-entropy on the k-th batch of A(S), all chance drawn beforehand."""

    network: FunctionalNetwork
    labels: Tensor  # classes (n,), or the logits (n, K) of soft labels
    batches: Sequence[Tensor]  # which images each step sees
    draws: Sequence[augment.Draws]
    weight: float | Tensor  # a tensor: what a device has captured follows it

    @property
    def soft(self) -> Tensor | None:  # type: ignore[override]
        """The logits of soft labels."""
        return self.labels if self.labels.is_floating_point() else None

    def seen(self, images: Tensor, steps: Sequence[int]) -> list[Tensor]:
        every = torch.cat([self.batches[k - 1] for k in steps])
        return augment.apply_all(images[every], [self.draws[k - 1] for k in steps])

    def head(self, k: int) -> CrossEntropy:
        """What step k makes of the logits."""
        labels = self.labels[self.batches[k - 1]]
        return CrossEntropy(labels if self.soft is None else labels.softmax(1), self.weight)

    def __call__(self, theta: Tensor, x: Tensor, k: int) -> Tensor:
        return self.head(k).value(self.network(theta, x))

    def tape(self, x: Tensor) -> Tensor | None:
        return self.network.tape(x)

    def gradient(self, theta: Tensor, x: Tensor, k: int, tape: Tensor | None = None) -> Tensor:
        return self.network.gradient(theta, x, self.head(k), tape=tape)[1]

    def pull(
        self, theta: Tensor, x: Tensor, k: int, rho: Tensor, tape: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        if self.soft is None:
            return self.network.pull(theta, x, self.head(k), rho, tape=tape)
        labels = self.labels.detach().requires_grad_()
        head = replace(self, labels=labels).head(k)
        plain = replace(head, labels=head.labels.detach())
        h_theta, h_x, h_target = self.network.pull(theta, x, plain, rho, tape=tape)
        return h_theta, h_x, *torch.autograd.grad(head.labels, labels, h_target)


def batches(n: int, size: int | None, steps: int, generator: torch.Generator) -> list[Tensor]:
    """Which images each step sees: all, or walks through all n in shuffled order, over and over."""
    if size is None or size >= n:
        return [torch.arange(n)] * steps
    order: list[Tensor] = []
    while len(order) < steps:
        order += torch.randperm(n, generator=generator).split(size)
    return order[:steps]


def inner_loss(
    network: FunctionalNetwork,
    labels: Tensor,
    settings: Distillation,
    strategies: tuple[str, ...],
    start: int,
    t: int,
) -> InnerLoss:
    """w(s) CE on the batches of A(S), with all chance of outer iteration t."""
    chance, steps = generator(settings.seed, "batches", t), settings.inner_steps
    which = batches(len(labels), settings.batch, steps, chance)
    sizes = [len(batch) for batch in which]
    draws = augment.draws(sizes, strategies, generator(settings.seed, "augment", t), labels.device)
    w = balance(start, settings.start_epochs) if settings.balance else 1.0
    weight = torch.tensor(w, dtype=torch.float64, device=labels.device)
    which = list(torch.cat(which).to(labels.device).split(sizes))  # to the device at once
    return InnerLoss(network, labels, which, draws, weight)


def balance(s: int, t_max: int) -> float:
    """w(s) = log_5(s - m + 8) from m = T_max // 2 on, 1 / log_5(m - s + 8) before."""
    m = t_max // 2
    return math.log(s - m + 8, 5) if s >= m else 1 / math.log(m - s + 8, 5)


def matched_steps(steps: int, epochs: int, intermediate: str) -> dict[int, int]:
    """Inner step -> expert epoch: {n_i = i (N // M): i} for i < M, if asked for, and {N: M}."""
    between = range(1, epochs) if intermediate != "none" else ()
    return {i * (steps // epochs): i for i in between} | {steps: epochs}


def objective(path: Path, expert: Tensor, matched: Mapping[int, int], intermediate: str) -> Tensor:
    """L_TM + sum beta_i l_i, ``l_i = |theta_{n_i} - theta*_{s+i}|^2 / |theta_0 - theta*_{s+i}|^2``.

    theta_0 is the perturbed start, `expert` (M + 1, P) starts at epoch s, and beta_i is 1
    ("equal") or i / M ("adaptive"). Not finite where the expert stands at the start.
    """
    total: Any = 0.0
    last = max(matched.values())
    for k, i in matched.items():
        start = (path[0] - expert[i]).square().sum()
        beta = i / last if intermediate == "adaptive" else 1.0
        total = total + beta * (path[k] - expert[i]).square().sum() / start
    return total


@dataclass(frozen=True)
class InnerLoop:
    """N steps of a student on images with inner learning rate `lr` (a), from theta on."""

    loss: Loss
    theta: Tensor
    images: Tensor
    lr: Tensor
    steps: int
    momentum: float = 0.0
    memory: int = MEMORY  # bytes that `adjoint` may keep to save work; its result is the same

    def parts(self) -> list[range]:
        """The steps in a row, in parts whose images are augmented at once."""
        most = max(1, SEEN // max(1, self.images.nbytes))
        return [range(k, min(k + most, self.steps + 1)) for k in range(1, self.steps + 1, most)]


class Gradient(NamedTuple):
    """An objective's value, its derivatives, and where the student ended."""

    value: Tensor
    images: Tensor
    lr: Tensor
    end: Tensor  # theta_N
    labels: Tensor | None = None  # for the logits of soft labels


def walk(loop: InnerLoop) -> Iterator[Tensor]:
    """theta_1 ... theta_N, without derivatives."""
    theta, b = loop.theta, torch.zeros_like(loop.theta)
    for part in loop.parts():
        for k, x in zip(part, loop.loss.seen(loop.images, part), strict=True):
            b = loop.momentum * b + loop.loss.gradient(theta, x, k)
            theta = theta - loop.lr * b
            yield theta


def path(loop: InnerLoop) -> list[Tensor]:
    """theta_0 ... theta_N, differentiable for images and lr: N graphs are kept alive."""
    theta, b = loop.theta, torch.zeros_like(loop.theta)
    visited, steps = [theta], range(1, loop.steps + 1)
    for k, x in zip(steps, loop.loss.seen(loop.images, steps), strict=True):
        theta = theta if theta.requires_grad else theta.detach().requires_grad_()
        value = loop.loss(theta, x, k)
        (gradient,) = torch.autograd.grad(value, theta, create_graph=True)
        b = loop.momentum * b + gradient
        theta = theta - loop.lr * b
        visited.append(theta)
    return visited


def unroll(loop: InnerLoop, objective: Objective, matched: Sequence[int]) -> Gradient:
    """The plain form: back-propagate through the whole path. Memory grows with N."""
    loss: Any = loop.loss  # a dataclass, where labels are soft
    images, lr = loop.images.detach().requires_grad_(), loop.lr.detach().requires_grad_()
    soft = [] if loss.soft is None else [loss.soft.detach().requires_grad_()]
    if soft:
        loss = replace(loss, labels=soft[0])
    visited = path(replace(loop, loss=loss, theta=loop.theta.detach(), images=images, lr=lr))
    value = objective(visited)
    d_images, d_lr, *d_soft = torch.autograd.grad(value, (images, lr, *soft))
    return Gradient(value.detach(), d_images, d_lr, visited[-1].detach(), *d_soft)


def adjoint(
    loop: InnerLoop, objective: Objective, matched: Sequence[int], exact: bool = True
) -> Gradient:
    """The same gradient with the graph of one step at a time: walk the path, then walk back.

    With lambda the cotangent of theta and rho that of b, from k = N down to 1:
    ``lambda += dL/dtheta_k;  rho -= a lambda;  dL/da -= <b_k, lambda>;``
    ``(lambda, dL/dx) += vjp of (theta, x) -> grad CE(theta_{k-1}, x) applied to rho;  rho *= mu``.
    What the first steps computed is kept for the way back, as far as `loop.memory` goes.
    """
    loss, theta, steps = loop.loss, loop.theta, loop.steps
    images, lr = loop.images.detach(), loop.lr.detach()
    thetas, bs = theta.new_empty(steps + 1, len(theta)), theta.new_zeros(steps + 1, len(theta))
    thetas[0] = theta.detach()
    tapes: dict[int, Tensor] = {}
    room = loop.memory
    for part in loop.parts():
        for k, x in zip(part, loss.seen(images, part), strict=True):
            tape = loss.tape(x) if room > 0 else None
            if tape is not None and (room := room - tape.nbytes) >= 0:
                tapes[k] = tape
            g = loss.gradient(thetas[k - 1], x, k, tapes.get(k))
            torch.add(g, bs[k - 1], alpha=loop.momentum, out=bs[k])
            torch.addcmul(thetas[k - 1], lr, bs[k], value=-1, out=thetas[k])

    leaves = {k: thetas[k].detach().requires_grad_() for k in matched}
    value = objective(leaves | {0: thetas[0]})
    direct = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))

    cotangent, rho = torch.zeros_like(theta), torch.zeros_like(theta)  # lambda, rho
    d_images, d_lr = torch.zeros_like(images), torch.zeros_like(lr)
    d_soft = [] if loss.soft is None else [torch.zeros_like(loss.soft)]
    for part in reversed(loop.parts()):
        leaf = images.detach().requires_grad_()
        seen, bars = loss.seen(leaf, part), []
        for k, x in zip(reversed(part), reversed(seen), strict=True):
            if k in direct:
                cotangent += direct[k]
            rho -= lr * cotangent
            d_lr -= torch.dot(bs[k], cotangent)
            x, tape = x.detach(), tapes.pop(k, None)
            h_theta, h_x, *h_soft = loss.pull(thetas[k - 1], x, k, rho, tape)
            if exact:
                cotangent += h_theta
            bars.append(h_x)
            for total, h in zip(d_soft, h_soft, strict=True):
                total += h
            rho *= loop.momentum
        d_images += torch.autograd.grad(seen, leaf, bars[::-1])[0]
        del seen, bars  # before the next part's are made
    return Gradient(value.detach(), d_images, d_lr, thetas[steps], *d_soft)


def tesla(loop: InnerLoop, objective: Objective, matched: Sequence[int]) -> Gradient:
    """Not the gradient but TESLA's (arXiv 2211.10586): lambda is not changed by h_theta.

    It is the gradient where the step gradients grad CE(theta_{k-1}, x) keep their theta_{k-1}
    fixed. Inner momentum, which TESLA has not, is differentiated in full.
    """
    return adjoint(loop, objective, matched, exact=False)


Form = Callable[[InnerLoop, Objective, Sequence[int]], Gradient]
# One gradient in two forms.
EXACT: dict[Literal["adjoint", "unroll"], Form] = {"adjoint": adjoint, "unroll": unroll}
GRADIENTS: dict[str, Form] = {"adjoint": adjoint, "unroll": unroll, "tesla": tesla}


def follow(
    settings: Distillation,
    network: FunctionalNetwork,
    synthetic: tuple[Tensor, Tensor, Tensor],
    strategies: tuple[str, ...],
    expert: Tensor,
    index: int,
) -> list[dict]:
    """One row per epoch of a student that walks an expert's whole way, never put back on its path.

    `synthetic` are images, labels (classes, or logits of soft ones) and lr; `expert` (E + 1, P) is
    the path of expert number `index`. Its error is ``|theta - theta*_e| / |theta*_0 - theta*_e|``.
    """
    images, labels, lr = synthetic
    expert, rows = expert.to(images), []
    epochs = settings.start_epochs - 1 + settings.matched_epochs  # the last that is ever matched
    each = settings.inner_steps // settings.matched_epochs
    long = settings.model_copy(update={"inner_steps": epochs * each, "balance": False})
    # Outer iterations count from 0, so that -1, -2, ... name chance of their own.
    loss = inner_loss(network, labels, long, strategies, 0, -1 - index)
    loop = InnerLoop(loss, expert[0], images, lr, epochs * each, settings.momentum)
    for k, theta in enumerate(walk(loop), 1):
        if k % each == 0:
            e = k // each
            error = float((theta - expert[e]).norm() / (expert[0] - expert[e]).norm())
            rows.append({"expert_seed": index, "epoch": e, "error": error})
    return rows
