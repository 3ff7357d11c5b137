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
    """weight / n times the sum over images of -log p_label; labels (n,) or probabilities (n, K)."""

    labels: Tensor
    weight: float | Tensor = 1.0

    @property
    def soft(self) -> bool:
        """Whether the labels are probabilities."""
        return self.labels.is_floating_point()

    @property
    def scale(self) -> float | Tensor:
        """What each image's term is multiplied by."""
        return self.weight / len(self.labels)

    def value(self, logits: Tensor) -> Tensor:
        """The loss."""
        return self.scale * F.cross_entropy(logits, self.labels, reduction="sum")


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

    def gradient(
        self, theta: Tensor, x: Tensor, head: CrossEntropy, tape: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The loss `head`, and its gradient for theta; `tape`, if any, is filled for `pull`."""
        d_theta, value = grad_and_value(lambda theta: head.value(self(theta, x)))(theta)
        return value, d_theta

    def input_gradient(self, theta: Tensor, x: Tensor) -> Tensor:
        """g = d sum_k f_k(x) / dx, shaped like x."""
        return grad(lambda x: self(theta, x).sum())(x)

    def penalty(self, theta: Tensor, x: Tensor, cost: Cost) -> tuple[Tensor, Tensor]:
        """cost(g) of the input gradient g, and its gradient for theta; a sum over images."""
        d_theta, value = grad_and_value(lambda theta: cost(self.input_gradient(theta, x)))(theta)
        return value, d_theta

    def tape(self, x: Tensor) -> Tensor | None:
        """Room for what `gradient` on x can leave to `pull`; None: nothing is left."""
        return None

    def pull(
        self, theta: Tensor, x: Tensor, head: CrossEntropy, rho: Tensor, tape: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Derivatives of <rho, gradient of the loss> for theta, x and soft labels, if they are.

        `tape` holds what `gradient` left for the same arguments; without it, it is computed again.
        """

        def gradient(theta: Tensor, x: Tensor, *soft: Tensor) -> Tensor:
            loss = replace(head, labels=soft[0]) if soft else head
            return grad(lambda theta: loss.value(self(theta, x)))(theta)

        return vjp(gradient, theta, x, *[head.labels] * head.soft)[1](rho)

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
            elif isinstance(layer, nn.GroupNorm | nn.LayerNorm | nn.BatchNorm2d):
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
        from ddlib.method.fast.convnet import FastConvNet

        if settings == Network(width=settings.width, depth=settings.depth):
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
