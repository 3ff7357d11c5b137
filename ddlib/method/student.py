"""The student's path theta_k = theta_{k-1} - a b_k, b_k = mu b_{k-1} + grad_k, and its exact gradient (METHOD sections 3 and 5).

P parameters, N steps. `loss(theta, images, k)` is the inner loss of step k = 1 ... N: it picks its batch, augments it by draws made
beforehand and weighs it, so calling it again replays it; `loss.gradient` and `loss.pull` are its derivatives. `objective(path)` sees
theta_k as path[k], at `matched` only. A loss with soft labels, logits (n, K) in its `soft`, is a dataclass with these as its `labels`, and
its `pull` gives their cotangent too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vjp

Objective = Callable[[Mapping[int, Tensor] | Sequence[Tensor]], Tensor]


class Loss:
    """An inner loss from a plain function of (theta, images, k), its derivatives by automatic differentiation."""

    def __init__(self, function: Callable[[Tensor, Tensor, int], Tensor]):
        self.function = function

    @property
    def soft(self) -> Tensor | None:
        """The logits of soft labels, if they are."""
        return None

    def __call__(self, theta: Tensor, images: Tensor, k: int) -> Tensor:
        """The loss of step k."""
        return self.function(theta, images, k)

    def gradient(self, theta: Tensor, images: Tensor, k: int) -> Tensor:
        """Its gradient for theta."""
        return grad(lambda theta: self(theta, images, k))(theta)

    def pull(self, theta: Tensor, images: Tensor, k: int, rho: Tensor) -> tuple[Tensor, ...]:
        """Cotangents of theta and of the images where that of `gradient` is rho."""
        back = vjp(lambda theta, images: self.gradient(theta, images, k), theta, images)[1]
        return back(rho)


class Gradient(NamedTuple):
    """An objective's value, its gradients for the images, for the inner lr a and for the logits of soft labels, and where the student ended, (P,)."""

    value: Tensor
    images: Tensor
    lr: Tensor
    end: Tensor
    labels: Tensor | None = None


def path(
    loss: Loss,
    theta: Tensor,
    images: Tensor,
    lr: Tensor,
    steps: int,
    momentum: float = 0.0,
    differentiable: bool = True,
) -> list[Tensor]:
    """theta_0 ... theta_N. If `differentiable`, through every step to `images` and `lr`: N graphs are kept alive."""
    visited, b = [theta], torch.zeros_like(theta)
    for k in range(1, steps + 1):
        if differentiable:
            leaf = (
                visited[-1] if visited[-1].requires_grad else visited[-1].detach().requires_grad_()
            )
            (gradient,) = torch.autograd.grad(loss(leaf, images, k), leaf, create_graph=True)
        else:
            leaf, gradient = visited[-1], loss.gradient(visited[-1], images, k)
        b = momentum * b + gradient
        visited.append(leaf - lr * b)
    return visited


def walk(
    loss: Loss, theta: Tensor, b: Tensor, images: Tensor, lr: Tensor, steps: range, momentum: float
) -> tuple[Tensor, Tensor]:
    """theta and b after these steps, k by k, of a student that has theta and b before them; without derivatives, and nothing kept on the way."""
    for k in steps:
        b = momentum * b + loss.gradient(theta, images, k)
        theta = theta - lr * b
    return theta, b


def unroll(
    loss: Loss,
    theta: Tensor,
    images: Tensor,
    lr: Tensor,
    steps: int,
    momentum: float,
    objective: Objective,
    matched: Sequence[int],
) -> Gradient:
    """The plain form: back-propagate through the whole path. Memory grows with N."""
    images, lr = images.detach().requires_grad_(), lr.detach().requires_grad_()
    soft = [] if loss.soft is None else [loss.soft.detach().requires_grad_()]
    given: Any = loss  # a dataclass, where labels are soft
    visited = path(
        replace(given, labels=soft[0]) if soft else loss,
        theta.detach(),
        images,
        lr,
        steps,
        momentum,
    )
    value = objective(visited)
    d_images, d_lr, *d_soft = torch.autograd.grad(value, (images, lr, *soft))
    return Gradient(value.detach(), d_images, d_lr, visited[-1].detach(), *d_soft)


def adjoint(
    loss: Loss,
    theta: Tensor,
    images: Tensor,
    lr: Tensor,
    steps: int,
    momentum: float,
    objective: Objective,
    matched: Sequence[int],
) -> Gradient:
    """The same gradient with the graph of one step at a time: walk the path, then walk back.

    With lambda the cotangent of theta and rho that of b, from k = N down to 1:
    lambda += dL/dtheta_k;  rho -= a lambda;  dL/da -= <b_k, lambda>;
    (lambda, dL/dx) += vjp of (theta, x) -> grad CE(theta_{k-1}, x) applied to rho;  rho *= mu.
    """
    return sweep(loss, theta, images, lr, steps, momentum, objective, matched, exact=True)


def tesla(
    loss: Loss,
    theta: Tensor,
    images: Tensor,
    lr: Tensor,
    steps: int,
    momentum: float,
    objective: Objective,
    matched: Sequence[int],
) -> Gradient:
    """Not the gradient, but TESLA's (arXiv 2211.10586): the terms through theta_k are dropped, lambda is not changed by h_theta.

    It is the gradient of the objective where the step gradients g_k = grad CE(theta_{k-1}, x) keep their theta_{k-1} fixed, in theta_n =
    theta_0 - a sum_{k<=n} b_k. With inner momentum, which TESLA has not, b_k = sum_{j<=k} mu^{k-j} g_j stays as it is: all that is dropped is
    dg_k / dtheta_{k-1}.
    """
    return sweep(loss, theta, images, lr, steps, momentum, objective, matched, exact=False)


def sweep(
    loss: Loss,
    theta: Tensor,
    images: Tensor,
    lr: Tensor,
    steps: int,
    momentum: float,
    objective: Objective,
    matched: Sequence[int],
    exact: bool,
) -> Gradient:
    """Walk the path, then walk back, as `adjoint` says, or, not `exact`, as `tesla` does."""
    images, lr = images.detach(), lr.detach()
    thetas, bs = theta.new_empty(steps + 1, len(theta)), theta.new_zeros(steps + 1, len(theta))
    thetas[0] = theta.detach()
    for k in range(1, steps + 1):
        torch.add(loss.gradient(thetas[k - 1], images, k), bs[k - 1], alpha=momentum, out=bs[k])
        torch.addcmul(thetas[k - 1], lr, bs[k], value=-1, out=thetas[k])

    leaves = {k: thetas[k].detach().requires_grad_() for k in matched}
    value = objective(leaves | {0: thetas[0]})
    direct = dict(zip(leaves, torch.autograd.grad(value, list(leaves.values())), strict=True))

    cotangent, rho = torch.zeros_like(theta), torch.zeros_like(theta)  # lambda, rho
    d_images, d_lr = torch.zeros_like(images), torch.zeros_like(lr)
    d_soft = [] if loss.soft is None else [torch.zeros_like(loss.soft)]
    for k in range(steps, 0, -1):
        if k in direct:
            cotangent += direct[k]
        rho -= lr * cotangent
        d_lr -= torch.dot(bs[k], cotangent)
        h_theta, h_images, *h_soft = loss.pull(thetas[k - 1], images, k, rho)
        if exact:
            cotangent += h_theta
        d_images += h_images
        for total, h in zip(d_soft, h_soft, strict=True):
            total += h
        rho *= momentum
    return Gradient(value.detach(), d_images, d_lr, thetas[steps], *d_soft)


Way = Callable[[Loss, Tensor, Tensor, Tensor, int, float, Objective, Sequence[int]], Gradient]
EXACT: dict[Literal["adjoint", "unroll"], Way] = {
    "adjoint": adjoint,
    "unroll": unroll,
}  # one gradient in two forms
GRADIENTS: dict[str, Way] = {"adjoint": adjoint, "unroll": unroll, "tesla": tesla}
