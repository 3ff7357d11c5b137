"""A network as a pure function of one vector: logits = flat(theta, x), theta in R^P.

Trajectories, distances, perturbation and matching then need no loop over layers.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .config import Refusal


class Flat:
    """`module` seen as a function of (theta (P,), x (n, c, h, w)).

    Raises:
        Refusal: the module has buffers (running statistics, say), which theta would not hold.
    """

    def __init__(self, module: nn.Module):
        buffers = [name for name, _ in module.named_buffers()]
        if buffers:
            raise Refusal(f"network keeps buffers outside its parameters ({', '.join(buffers)}): use a norm without running statistics")
        self.module = module
        self.shapes = {name: p.shape for name, p in module.named_parameters()}
        self.sizes = [p.numel() for p in module.parameters()]
        self.parameters = sum(self.sizes)  # P

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of theta in the shapes of the layers."""
        return {name: part.view(shape) for part, (name, shape) in zip(theta.split(self.sizes), self.shapes.items(), strict=True)}

    def __call__(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, K)."""
        return functional_call(self.module, self.unpack(theta), (x,))

    def features(self, theta: Tensor, x: Tensor) -> Tensor:
        """What the last linear map sees, (n, d)."""
        inner = {name.removeprefix("features."): p for name, p in self.unpack(theta).items() if name.startswith("features.")}
        return functional_call(self.module.features, inner, (x,))

    def initial(self, generator: torch.Generator) -> Tensor:
        """theta_0 by PyTorch's own rule: U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for weights and biases; norms start at scale 1, shift 0."""
        parts = []
        for layer in self.module.modules():
            shapes = [p.shape for p in layer.parameters(recurse=False)]
            if isinstance(layer, nn.GroupNorm):
                parts += [torch.ones(shapes[0]), torch.zeros(shapes[1])]
            elif isinstance(layer, nn.Conv2d | nn.Linear):
                bound = 1 / math.sqrt(shapes[0][1:].numel())
                parts += [torch.empty(s).uniform_(-bound, bound, generator=generator) for s in shapes]
            elif shapes:
                raise Refusal(f"no rule to initialise {type(layer).__name__}: expected convolutions, linear maps and group norms")
        return torch.cat([p.flatten() for p in parts])

    def kernels(self, theta: Tensor) -> list[Tensor]:
        """Views of the convolution kernels (the 4-D parameters) in theta."""
        return [p for p in self.unpack(theta).values() if p.dim() == 4]


def perturb(flat: Flat, theta: Tensor, alpha: float, form: str, generator: torch.Generator) -> Tensor:
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
