"""The derivatives of a ConvNet by hand, equal to automatic differentiation up to rounding.

The derivative of <rho, grad_theta L> is that of grad L along rho; the derivative of cost(g),
g = dF/dx, for theta is that of grad_theta F along u = d cost / dg (forward over reverse). So one
function, `along` in kernels.c, serves the outer loop and the gradient penalty.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddlib.method import networks
from ddlib.method.fast import kernels
from ddlib.method.functional import Cost, CrossEntropy, FunctionalNetwork
from ddlib.settings import Network, generator

PENALISED = 8  # images whose tapes lie in the cache at once
ONE = ctypes.c_double(1)


def by_hand(method: Callable[..., Any]) -> Any:
    """`method` where the kernels take its arguments; else its twin in `FunctionalNetwork`."""
    twin = getattr(FunctionalNetwork, method.__name__)

    @wraps(method)
    def chosen(self: FastConvNet, theta: Tensor, x: Tensor, *rest: Any, **tape: Any) -> Any:
        if not self.fits(theta, x, *rest):
            return twin(self, theta, x, *rest, **tape)
        with torch.no_grad():
            return method(self, theta, x, *rest, **tape)

    chosen.__doc__ = twin.__doc__
    return chosen


class FastConvNet(FunctionalNetwork):
    """A ConvNet whose derivatives are taken by hand where `fits` allows."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.width, self.channels = module.get_parameter("features.0.weight").shape[:2]
        self.classes, self.inputs = module.get_parameter("head.weight").shape
        self.depth = (len(self.sizes) - 2) // 4
        first: Any = module.get_submodule("features.0")
        self.margin = first.padding[0] - 1

    def fits(self, theta: Tensor, x: Tensor, *rest: Any) -> bool:
        """Whether the kernels take these; the twin refuses what does not go together."""
        vectors = [theta, *(v for v in rest if isinstance(v, Tensor))]
        kinds = {(t.dtype, t.device.type) for t in (x, *vectors)}
        if x.dim() != 4 or kinds != {(x.dtype, "cpu")}:
            return False
        n, c, h, w = self._wide(x).shape
        inputs = self.width * (h >> self.depth) * (w >> self.depth)
        good = (c, inputs) == (self.channels, self.inputs)
        good &= all(v.shape == (self.parameters,) for v in vectors)
        good &= all(len(head.labels) == n for head in rest if isinstance(head, CrossEntropy))
        return good and trusted(x.dtype)

    def _wide(self, x: Tensor) -> Tensor:
        """x with the zeros around it that the first layer adds."""
        return F.pad(x, [self.margin] * 4) if self.margin else x

    def _narrow(self, wide: Tensor) -> Tensor:
        """The inverse of `_wide`."""
        return F.pad(wide, [-self.margin] * 4) if self.margin else wide

    def _numbers(self, what: str, x: Tensor) -> tuple[Any, Tensor]:
        """What kernels.c is told of the network and x, and a tensor of the size that it names."""
        shape = (ctypes.c_long * 7)(*x.shape, self.width, self.depth, self.classes)
        size = getattr(kernels.library(x.dtype), what)
        size.restype = ctypes.c_long
        return shape, x.new_empty(size(shape))

    def _run(self, name: str, theta: Tensor, x: Tensor, *arguments: Any) -> None:
        """Call a function of kernels.c with its room; None is a null pointer."""
        x = self._wide(x)
        shape, room = self._numbers("room_numbers", x)
        kept = [a.contiguous() if isinstance(a, Tensor) else a for a in (x, theta, *arguments)]
        given = (ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in kept)
        getattr(kernels.library(x.dtype), name)(shape, ctypes.c_void_p(room.data_ptr()), *given)

    def _head(self, x: Tensor, head: CrossEntropy) -> tuple[Tensor, Any]:
        """The target probabilities (n, K), and what each image's term is multiplied by."""
        target = head.labels if head.soft else F.one_hot(head.labels, self.classes)
        return target.to(x.dtype), ctypes.c_double(float(head.scale))

    def tape(self, x: Tensor) -> Tensor | None:
        known = x.device.type == "cpu" and trusted(x.dtype)
        return self._numbers("tape_numbers", self._wide(x))[1] if known else None

    @by_hand
    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        logits = x.new_empty(len(x), self.classes)
        self._run("ahead", theta, x, logits, None)
        return logits

    @by_hand
    def embedding(self, theta: Tensor, x: Tensor) -> Tensor:
        features = x.new_empty(len(x), self.inputs)
        self._run("ahead", theta, x, None, features)
        return features

    @by_hand
    def gradient(self, theta: Tensor, x: Tensor, head: CrossEntropy, **tape: Any) -> Any:
        found = (x.new_empty(()), torch.empty_like(theta))
        self._run("back", theta, x, *self._head(x, head), tape.get("tape"), *found, None)
        return found

    @by_hand
    def input_gradient(self, theta: Tensor, x: Tensor, **tape: Any) -> Tensor:
        g = x.new_empty(self._wide(x).shape)
        self._run("back", theta, x, None, ONE, tape.get("tape"), None, None, g)
        return self._narrow(g)

    @by_hand
    def penalty(self, theta: Tensor, x: Tensor, cost: Cost) -> tuple[Tensor, Tensor]:
        value, total, part = x.new_zeros(()), torch.zeros_like(theta), torch.empty_like(theta)
        for piece in x.split(PENALISED):
            tape = self.tape(piece)
            g = self.input_gradient(theta, piece, tape=tape)
            with torch.enable_grad():
                each = cost(g.requires_grad_())
                (u,) = torch.autograd.grad(each, g)
            along = (None, self._wide(u), part, None, None)
            self._run("along", theta, piece, None, ONE, tape, *along)
            value += each.detach()
            total += part
        return value, total

    @by_hand
    def pull(self, theta: Tensor, x: Tensor, head: CrossEntropy, rho: Tensor, **tape: Any) -> Any:
        target, scale = self._head(x, head)
        shapes = (theta.shape, self._wide(x).shape, target.shape)
        d_theta, d_x, d_soft = map(x.new_empty, shapes)
        self._run(
            "along", theta, x, target, scale, tape.get("tape"), rho, None, d_theta, d_x, d_soft
        )
        return d_theta, self._narrow(d_x), *[d_soft] * head.soft


@cache
def trusted(dtype: torch.dtype) -> bool:
    """Whether there are kernels that agree with PyTorch on a small network: compilers err."""
    if kernels.library(dtype) is None:
        return False
    shape, chance = (2, 6, 7), generator("trusted")
    module = networks.build(Network(width=20, depth=2), shape, 3)
    fast, plain = FastConvNet(module), FunctionalNetwork(module)
    theta, rho = (torch.randn(plain.parameters, generator=chance, dtype=dtype) for _ in range(2))
    x, head = torch.randn(3, *shape, generator=chance, dtype=dtype), CrossEntropy(torch.arange(3))
    found = FastConvNet.pull.__wrapped__(fast, theta, x, head, rho)
    pairs = zip(found, plain.pull(theta, x, head, rho), strict=True)
    worst = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    if not (good := worst < 1e4 * torch.finfo(dtype).eps):
        words = "no fast kernels: as compiled here they are wrong by %.0e; %s"
        kernels.log.warning(words, worst, kernels.PLAIN)
    return good
