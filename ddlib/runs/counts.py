"""What a step costs, from its settings alone: operations from the layers' shapes, bytes and kernels from a run on the meta device.

There tensors have shapes and no numbers, so the real code runs through a whole inner loop in no memory. n images, P parameters, N
steps. One multiplication and addition are 2 FLOP. What other devices than a CPU do is counted: plain PyTorch in float32.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddlib.method import augment, networks
from ddlib.method import train as fit
from ddlib.method.distill import InnerLoss
from ddlib.method.fast import convnet as fused
from ddlib.method.student import EXACT, GRADIENTS
from ddlib.settings import Network, generator

Form = Literal["forward", "gradient", "penalty", "adjoint", "unroll"]
Counts = tuple[
    tuple[int, int, int], tuple[int, int, int]
]  # forward, image gradient, weight gradient: of the first layer, of a later one
GRADIENT: Counts = ((1, 0, 1), (1, 1, 1))
PENALTY: Counts = ((2, 1, 2), (2, 2, 2))
PULL: Counts = (
    (2, 2, 2),
    (3, 3, 3),
)  # of automatic differentiation, which walks forward and back once more
FUSED_PULL: Counts = ((2, 2, 1), (3, 3, 2))  # forward over reverse
FORMS: dict[Form, tuple[Counts, ...]] = {
    "forward": (((1, 0, 0), (1, 0, 0)),),
    "gradient": (GRADIENT,),
    "penalty": (GRADIENT, PENALTY),
    "adjoint": (GRADIENT, PULL),
    "unroll": (PULL,),
}
FUSED = FORMS | {"adjoint": (GRADIENT, FUSED_PULL)}
VECTORS = {
    "forward": 2,
    "gradient": 8,
    "penalty": 10,
    "adjoint": 10,
}  # numbers a parameter that the fused forms hold at once
REAL = 4  # bytes of a number


@dataclass(frozen=True)
class Work:
    """`steps` steps on so many images each, with augmentation: of training ("gradient", "penalty"), of an inner loop, or looks at images."""

    network: Network
    shape: tuple[int, int, int]
    classes: int
    form: Form
    images: int
    steps: int = 1


@dataclass(frozen=True)
class Cost:
    """FLOP, bytes that kernels read and write, kernels, and the most bytes held at once."""

    flops: float
    moved: float
    kernels: float
    peak: float


@cache
def layers(network: Network, shape: tuple[int, int, int], classes: int) -> tuple[int, ...]:
    """FLOP of each layer's forward pass of one image, in order; a ViT's attention products are a layer each encoder."""
    module = networks.build(network, shape, classes)
    found: list[int] = []

    def seen(layer: Any, given: tuple[Tensor, ...], made: Tensor) -> None:
        if isinstance(layer, networks.Encoder):
            found.append(4 * given[0].shape[1] ** 2 * given[0].shape[2])
        else:
            found.append(2 * made[0].numel() * prod(layer.weight.shape[1:]))

    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | networks.Encoder):
            layer.register_forward_hook(seen)
    module(torch.empty(1, *shape, device="meta"))
    return tuple(found)


def flops(work: Work, forms: dict[Form, tuple[Counts, ...]] = FORMS) -> float:
    """FLOP of convolutions and linear maps; the rest is bytes, not operations."""
    first, *later = layers(work.network, work.shape, work.classes)
    each = sum(first * sum(a) + sum(later) * sum(b) for a, b in forms[work.form])
    return float(each * work.images * work.steps)


@cache
def parameters(network: Network, shape: tuple[int, int, int], classes: int) -> int:
    """P."""
    return sum(p.numel() for p in networks.build(network, shape, classes).parameters())


class Ledger(TorchDispatchMode):
    """Bytes held now and at most, bytes moved and kernels run by what happens inside."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = self.moved = self.kernels = 0
        self.held: dict[weakref.ref, int] = {}

    def free(self, storage: weakref.ref) -> None:
        """A storage is gone."""
        self.live -= self.held.pop(storage)

    def __torch_dispatch__(
        self, function: Any, types: Any, given: Any = (), options: Any = None
    ) -> Any:
        made = function(*given, **(options or {}))
        fresh, tensors = (
            function._schema.is_mutable,
            [t for t in tree_leaves(made) if isinstance(t, Tensor)],
        )
        for tensor in tensors:
            storage = tensor.untyped_storage()
            reference = weakref.ref(storage, self.free)
            if reference not in self.held:
                fresh, self.held[reference] = True, storage.nbytes()
                self.live += storage.nbytes()
                self.peak = max(self.peak, self.live)
        if fresh:  # a view moves nothing
            self.kernels += 1
            self.moved += sum(
                t.numel() * t.element_size()
                for t in tree_leaves((given, options, made))
                if isinstance(t, Tensor)
            )
        return made


def prepare(work: Work, device: str) -> Callable[[], object]:
    """The real code of that work, on random images (on the meta device: on shapes), ready to be run as often as wanted."""
    flat, n, chance = (
        fused.flat(networks.build(work.network, work.shape, work.classes), work.network.precision),
        work.images,
        generator("counts"),
    )

    def numbers(*size: int) -> Tensor:
        return (
            torch.rand(*size, generator=chance)
            if device == "cpu"
            else torch.empty(*size, device=device)
        )

    theta, target = (
        flat.initial(chance) if device == "cpu" else numbers(flat.parameters) for _ in range(2)
    )
    x, labels = numbers(n, *work.shape), torch.arange(n, device=device) % work.classes
    draws = [augment.Draws("rotate", numbers(3, n))] * work.steps
    if work.form == "forward":
        return lambda: [flat.logits(theta, x) for _ in range(work.steps)]
    if work.form in EXACT:
        loss, lr, steps = (
            InnerLoss(flat, labels, [torch.arange(n, device=device)] * work.steps, draws, 1.0),
            torch.tensor(0.01, device=device),
            work.steps,
        )
        return lambda: GRADIENTS[work.form](
            loss,
            theta,
            x,
            lr,
            steps,
            0.9,
            lambda path: (path[steps] - target).square().sum(),
            [steps],
        )
    recipe = fit.Recipe(
        1, n, 0.01, penalty="per_pixel" if work.form == "penalty" else "none", penalty_weight=1.0
    )
    optimiser = fit.optimiser_for(theta, recipe, recipe.lr)

    def train() -> None:
        for drawn in draws:
            theta.grad = fit.gradient(flat, theta, x, labels, drawn, recipe)[1]
            optimiser.step()

    return train


def counted(work: Work) -> Cost:
    """By a run on the meta device, every step of it."""
    plain = replace(work, network=work.network.model_copy(update={"precision": "float32"}))
    with Ledger() as ledger:
        prepare(plain, "meta")()
    return Cost(flops(plain), ledger.moved, ledger.kernels, ledger.peak)


@cache
def cost(work: Work) -> Cost:
    """The same from runs of two steps and of three: all but the first two steps cost the same."""
    if work.steps <= 3:
        return counted(work)
    two, three = (cost(replace(work, steps=n)) for n in (2, 3))
    more = work.steps - 2
    grown = (
        getattr(two, name) + more * (getattr(three, name) - getattr(two, name))
        for name in ("moved", "kernels", "peak")
    )
    return Cost(flops(work), *grown)


@cache
def by_hand(work: Work) -> bool:
    """Whether this machine's CPU has kernels for it."""
    flat = fused.flat(
        networks.build(work.network, work.shape, work.classes), work.network.precision
    )
    return (
        work.form != "unroll"
        and isinstance(flat, fused.Fused)
        and flat.fits(torch.empty(1, *work.shape))
    )


def peak_here(work: Work) -> float:
    """The most bytes held at once on this machine's CPU: as anywhere, or by the fused forms, which take a few images at a time."""
    if not by_hand(work):
        return cost(work).peak
    (c, h, w), width, p = (
        work.shape,
        work.network.width,
        parameters(work.network, work.shape, work.classes),
    )
    most = max(1, fused.PIECE // (width * h * w))
    piece = -(-work.images // -(-work.images // most))
    sides = [(h >> i) * (w >> i) for i in range(work.network.depth + 1)]
    z, x = width * sum(sides[:-1]), c * h * w + width * sum(sides[1:])
    copies, extra = {"forward": (1, 0), "gradient": (2, 0), "penalty": (3, 1), "adjoint": (3, 2)}[
        work.form
    ]
    path = 2 * (work.steps + 1) * p if work.form == "adjoint" else 0
    return REAL * (
        path
        + VECTORS[work.form] * p
        + piece * (copies * (z + x) + extra * width * h * w)
        + 4 * work.images * c * h * w
    )
