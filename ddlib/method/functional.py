"""A network as a pure function of one vector: logits = flat(theta, x), theta in R^P; and its derivatives, plain.

Trajectories, distances, perturbation and matching then need no loop over layers. The derivatives are pure functions too, so
they compile and batch (`torch.compile`, `torch.vmap`); `fused` has them again, faster.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value, vjp
from torch.nn import functional as F

from ddlib.settings import InputError


@dataclass(frozen=True)
class CrossEntropy:
    """weight times the mean over n images of -log p_label, as a sum over images; labels (n,), or soft ones: probabilities (n, K)."""

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
        """The sum."""
        return self.scale * F.cross_entropy(logits, self.labels, reduction="sum")

    def bar(self, logits: Tensor) -> Tensor:
        """Its derivative for the logits, (n, K)."""
        target = (
            self.labels
            if self.labels.is_floating_point()
            else F.one_hot(self.labels, logits.shape[1])
        )
        return self.scale * (logits.softmax(1) - target)

    def bar_along(self, logits: Tensor, dot: Tensor) -> Tensor:
        """How `bar` changes where the logits move by `dot`."""
        p = logits.softmax(1)
        return self.scale * p * (dot - (p * dot).sum(1, keepdim=True))

    def labels_bar(self, logits: Tensor, dot: Tensor) -> Tensor:
        """How <`bar`, dot> changes with soft labels, (n, K)."""
        return self.scale * ((logits.softmax(1) * dot).sum(1, keepdim=True) - dot)


class FunctionalNetwork:
    """`module` seen as a function of (theta (P,), x (n, c, h, w)), in automatic mixed precision if `precision` is "bfloat16".

    Raises:
        InputError: the module has buffers (running statistics, say), which theta would not hold.
    """

    def __init__(self, module: nn.Module, precision: str = "float32"):
        buffers = [name for name, _ in module.named_buffers()]
        if buffers:
            raise InputError(
                f"network keeps buffers outside its parameters ({', '.join(buffers)}): use a norm without running statistics"
            )
        self.module, self.mixed = module, precision == "bfloat16"
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        self.sizes = [p.numel() for p in module.parameters()]
        self.parameters = sum(self.sizes)  # P

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of theta in the shapes of the layers."""
        return {
            name: part.view(shape)
            for part, (name, shape) in zip(
                theta.split(self.sizes), self.shapes.items(), strict=True
            )
        }

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, K)."""
        if not self.mixed:
            return functional_call(self.module, self.unpack(theta), (x,))
        with torch.autocast(x.device.type, torch.bfloat16):
            return functional_call(self.module, self.unpack(theta), (x,)).to(x.dtype)

    @torch.no_grad()
    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """The same without derivatives."""
        return self(theta, x)

    def gradient(self, theta: Tensor, x: Tensor, head: CrossEntropy) -> tuple[Tensor, Tensor]:
        """The loss that `head` makes of the logits, and its gradient for theta."""
        d_theta, value = grad_and_value(lambda theta: head.value(self(theta, x)))(theta)
        return value, d_theta

    def input_gradient(self, theta: Tensor, x: Tensor) -> Tensor:
        """g = d sum_k f_k(x) / dx, shaped like x."""
        return grad(lambda x: self(theta, x).sum())(x)

    def penalty(
        self, theta: Tensor, x: Tensor, cost: Callable[[Tensor], Tensor]
    ) -> tuple[Tensor, Tensor]:
        """cost(g) of the input gradient g, and its gradient for theta; `cost` is a sum over images."""
        d_theta, value = grad_and_value(lambda theta: cost(self.input_gradient(theta, x)))(theta)
        return value, d_theta

    def pull(
        self, theta: Tensor, x: Tensor, head: CrossEntropy, rho: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cotangents of theta and x where that of the loss's gradient for theta is rho: the derivatives of <rho, gradient>."""
        back = vjp(
            lambda theta, x: grad(lambda theta: head.value(self(theta, x)))(theta), theta, x
        )[1]
        return back(rho)

    def pull_soft(
        self, theta: Tensor, x: Tensor, head: CrossEntropy, rho: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `pull`, and the cotangent of the soft labels, (n, K)."""

        def gradient(theta: Tensor, x: Tensor, labels: Tensor) -> Tensor:
            return grad(lambda theta: replace(head, labels=labels).value(self(theta, x)))(theta)

        back = vjp(gradient, theta, x, head.labels)[1]
        return back(rho)

    def features(self, theta: Tensor, x: Tensor) -> Tensor:
        """What the last linear map sees, (n, d)."""
        inner = {
            name.removeprefix("features."): p
            for name, p in self.unpack(theta).items()
            if name.startswith("features.")
        }
        return functional_call(self.module.get_submodule("features"), inner, (x,))

    @torch.no_grad()
    def embedding(self, theta: Tensor, x: Tensor) -> Tensor:
        """The same without derivatives."""
        return self.features(theta, x)

    def initial(self, generator: torch.Generator) -> Tensor:
        """theta_0 by PyTorch's own rule: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases; norms start at scale 1, shift 0; `draw` is a layer's own."""
        parts: list[Tensor] = []
        layer: Any
        for layer in self.module.modules():
            shapes = [p.shape for p in layer.parameters(recurse=False)]
            if hasattr(layer, "draw"):
                parts += layer.draw(generator)
            elif isinstance(layer, nn.GroupNorm | nn.LayerNorm):
                parts += [torch.ones(shapes[0]), torch.zeros(shapes[1])]
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                bound = 1 / math.sqrt(shapes[0][1:].numel())
                parts += [
                    torch.empty(s).uniform_(-bound, bound, generator=generator) for s in shapes
                ]
            elif shapes:
                raise InputError(
                    f"no rule to initialise {type(layer).__name__}: expected convolutions, linear maps and norms"
                )
        return torch.cat([p.flatten() for p in parts])

    def kernels(self, theta: Tensor) -> list[Tensor]:
        """Views of the convolution kernels (the 4-D parameters) in theta."""
        return [p for p in self.unpack(theta).values() if p.dim() == 4]


def perturb(
    flat: FunctionalNetwork, theta: Tensor, alpha: float, form: str, generator: torch.Generator
) -> Tensor:
    """Weight perturbation P (METHOD section 3): W + alpha (d / |d|_F) * W on convolution kernels, d ~ N(0, I).

    `form` is "elementwise", the authors' code, or "norm_matched": W + alpha (d / |d|_F) |W|_F.
    """
    theta = theta.clone()
    if alpha:
        for kernel in flat.kernels(theta):
            d = torch.randn(kernel.shape, generator=generator).to(kernel)
            d /= d.norm()
            kernel += alpha * d * (kernel if form == "elementwise" else kernel.norm())
    return theta
