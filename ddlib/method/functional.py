"""A network as a pure function of one vector: logits = network(theta, x), theta in R^P.

Trajectories, distances, perturbation and matching then need no loop over layers. Its derivatives
are pure functions too, so they compile and batch (`torch.compile`, `torch.vmap`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vjp
from torch.nn import functional as F

from ddlib.method import networks
from ddlib.settings import InputError, Network

Cost = Callable[[Tensor], Tensor]  # of an input gradient


@dataclass(frozen=True)
class CrossEntropy:
    """weight / n times the sum over images of -log p_label; labels (n,), or probabilities (n, K).

    `bar` is the derivative for the logits; a `dot` is a direction in which the logits move.
    """

    labels: Tensor
    weight: float = 1.0
    of: int | None = None  # n, where `labels` are a part of all

    @property
    def scale(self) -> float:
        """What each image's term is multiplied by."""
        return self.weight / (self.of or len(self.labels))

    def part(self, first: int, last: int) -> CrossEntropy:
        """The terms of images first ... last - 1."""
        return CrossEntropy(self.labels[first:last], self.weight, self.of or len(self.labels))

    def value(self, logits: Tensor) -> Tensor:
        """The loss."""
        return self.scale * F.cross_entropy(logits, self.labels, reduction="sum")

    def bar(self, logits: Tensor) -> Tensor:
        """Its derivative for the logits, (n, K)."""
        target = self.labels
        if not target.is_floating_point():
            target = F.one_hot(target, logits.shape[1])
        return self.scale * (logits.softmax(1) - target)

    def bar_along(self, logits: Tensor, dot: Tensor) -> Tensor:
        """How `bar` changes where the logits move by `dot`."""
        p = logits.softmax(1)
        return self.scale * p * (dot - (p * dot).sum(1, keepdim=True))

    def labels_bar(self, logits: Tensor, dot: Tensor) -> Tensor:
        """How <`bar`, dot> changes with the soft labels, (n, K)."""
        return self.scale * ((logits.softmax(1) * dot).sum(1, keepdim=True) - dot)


class FunctionalNetwork:
    """`module` as a function of (theta (P,), x (n, c, h, w)); "bfloat16" is mixed precision.

    Raises:
        InputError: the module has buffers (such as running statistics), which theta cannot hold.
    """

    def __init__(self, module: nn.Module, precision: str = "float32"):
        if buffers := [name for name, _ in module.named_buffers()]:
            raise InputError(
                f"network keeps buffers outside its parameters ({', '.join(buffers)}): use a norm "
                "without running statistics"
            )
        self.module, self.mixed = module, precision == "bfloat16"
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        self.sizes = [p.numel() for p in module.parameters()]
        self.parameters = sum(self.sizes)  # P

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of theta in the shapes of the layers."""
        parts = zip(theta.split(self.sizes), self.shapes.items(), strict=True)
        return {name: part.view(shape) for part, (name, shape) in parts}

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, K)."""
        return self._call(self.module, self.unpack(theta), x)

    def _call(self, module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        if not self.mixed:
            return functional_call(module, parameters, (x,))
        with torch.autocast(x.device.type, torch.bfloat16):
            return functional_call(module, parameters, (x,)).to(x.dtype)

    @torch.no_grad()
    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, K), without derivatives."""
        return self(theta, x)

    def gradient(self, theta: Tensor, x: Tensor, head: CrossEntropy) -> tuple[Tensor, Tensor]:
        """The loss `head`, and its gradient for theta."""
        d_theta, value = grad_and_value(lambda theta: head.value(self(theta, x)))(theta)
        return value, d_theta

    def input_gradient(self, theta: Tensor, x: Tensor) -> Tensor:
        """g = d sum_k f_k(x) / dx, shaped like x."""
        return grad(lambda x: self(theta, x).sum())(x)

    def penalty(self, theta: Tensor, x: Tensor, cost: Cost) -> tuple[Tensor, Tensor]:
        """cost(g) of the input gradient g, and its gradient for theta; a sum over images."""
        d_theta, value = grad_and_value(lambda theta: cost(self.input_gradient(theta, x)))(theta)
        return value, d_theta

    def pull(
        self, theta: Tensor, x: Tensor, head: CrossEntropy, rho: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Derivatives of <rho, gradient of the loss for theta> for theta and x."""

        def gradient(theta: Tensor, x: Tensor) -> Tensor:
            return grad(lambda theta: head.value(self(theta, x)))(theta)

        return vjp(gradient, theta, x)[1](rho)

    def pull_soft(
        self, theta: Tensor, x: Tensor, head: CrossEntropy, rho: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `pull`, and the derivative for the soft labels, (n, K)."""

        def gradient(theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
            return grad(lambda theta: replace(head, labels=labels).value(self(theta, x)))(theta)

        return vjp(gradient, theta, x, head.labels)[1](rho)

    def features(self, theta: Tensor, x: Tensor) -> Tensor:
        """What the last linear map sees, (n, d)."""
        parts = self.unpack(theta).items()
        inner = {n.removeprefix("features."): p for n, p in parts if n.startswith("features.")}
        return self._call(self.module.get_submodule("features"), inner, x)

    @torch.no_grad()
    def embedding(self, theta: Tensor, x: Tensor) -> Tensor:
        """`features` without derivatives."""
        return self.features(theta, x)

    def initial(self, generator: torch.Generator) -> Tensor:
        """theta_0 by PyTorch's rule: U(-1/sqrt(fan_in), 1/sqrt(fan_in)), norms at scale 1, shift 0.

        A layer with a method `draw` draws its own parameters.
        """
        parts: list[Tensor] = []
        layer: Any
        for layer in self.module.modules():
            shapes = [p.shape for p in layer.parameters(recurse=False)]
            if hasattr(layer, "draw"):
                parts += layer.draw(generator)
            elif isinstance(layer, nn.GroupNorm | nn.LayerNorm):
                parts += [torch.ones(shapes[0]), torch.zeros(shapes[1])]
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                b = 1 / math.sqrt(shapes[0][1:].numel())
                parts += [torch.empty(s).uniform_(-b, b, generator=generator) for s in shapes]
            elif shapes:
                raise InputError(
                    f"no rule to initialise {type(layer).__name__}: expected convolutions, linear "
                    "maps and norms"
                )
        return torch.cat([p.flatten() for p in parts])

    def kernels(self, theta: Tensor) -> list[Tensor]:
        """Views of the convolution kernels (the 4-D parameters) in theta."""
        return [p for p in self.unpack(theta).values() if p.dim() == 4]


@cache
def network(settings: Network, shape: tuple[int, int, int], classes: int) -> FunctionalNetwork:
    """The network for (c, h, w) images of K classes; the fast one where it fits and is there."""
    module = networks.build(settings, shape, classes)
    with suppress(ImportError):  # the folder may be deleted, and it imports this module
        from ddlib.method.fast.convnet import FastConvNet, is_convnet

        if settings.precision == "float32" and is_convnet(module):
            return FastConvNet(module)
    return FunctionalNetwork(module, settings.precision)


def perturb(
    network: FunctionalNetwork, theta: Tensor, alpha: float, form: str, generator: torch.Generator
) -> Tensor:
    """Weight perturbation P of convolution kernels: ``W + alpha d / |d|_F * W``, d ~ N(0, I).

    `form` is "elementwise", the authors' code, or "norm_matched": ``W + alpha d / |d|_F |W|_F``.
    """
    theta = theta.clone()
    if alpha:
        for kernel in network.kernels(theta):
            d = torch.randn(kernel.shape, generator=generator).to(kernel)
            d /= d.norm()
            kernel += alpha * d * (kernel if form == "elementwise" else kernel.norm())
    return theta
