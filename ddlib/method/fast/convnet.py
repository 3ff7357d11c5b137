"""The derivatives of a ConvNet by hand, equal to automatic differentiation up to rounding.

Convolutions come from PyTorch; all that lies between them is one pass each (`kernels`). Two facts
make this fast. The derivative of <rho, grad_theta L> is that of grad L along rho; and the
derivative of cost(g), g = dF/dx, for theta is that of grad_theta F along u = d cost / dg (forward
over reverse). So one function, `along`, serves the outer loop and the gradient penalty. Both are
sums over images, so a few images are taken at a time, which stay in the processor's cache.

A bar is a cotangent, a dot a derivative along the direction. Blocks: z = W * x, p = mean 2 x 2 of
relu(gamma x^ + beta). A convolution's bias is left out: the norm behind it removes it, and its
gradient is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor, nn

from ddlib.method import networks
from ddlib.method.fast import kernels
from ddlib.method.functional import Cost, CrossEntropy, FunctionalNetwork
from ddlib.settings import Network, generator

PIECE = 1 << 21  # numbers in the largest z of the images taken at a time
# Of aten's convolution: stride, padding, dilation, transposed, output padding, groups.
HOW = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
FEW = 4  # the most channels of images that the kernels of the first convolution take


class First:
    """The first convolution, of few channels."""

    def __init__(self, weight: Tensor):
        self.weight = weight.permute(2, 3, 1, 0).contiguous()  # (3, 3, c, k)

    def forward(self, x: Tensor) -> Tensor:
        """z = W * x."""
        return kernels.first_forward(x, self.weight)

    def weight_bar(self, x: Tensor, zbar: Tensor) -> Tensor:
        """Cotangent of W, (k, c, 3, 3)."""
        return kernels.first_weight(x, zbar).permute(3, 2, 0, 1)

    def image_bar(self, x: Tensor, zbar: Tensor, add: Tensor | None = None) -> Tensor:
        """Cotangent of x, and what is added to it."""
        return kernels.first_image(zbar, self.weight, torch.zeros_like(x) if add is None else add)


class Later:
    """A convolution of many channels."""

    def __init__(self, weight: Tensor):
        self.weight = kernels.last(weight)

    def forward(self, x: Tensor) -> Tensor:
        """z = W * x."""
        return kernels.last(torch.ops.aten.convolution(x, self.weight, None, *HOW))

    def weight_bar(self, x: Tensor, zbar: Tensor) -> Tensor:
        """Cotangent of W, (k, c, 3, 3)."""
        mask = [False, True, False]
        return torch.ops.aten.convolution_backward(zbar, x, self.weight, None, *HOW, mask)[1]

    def image_bar(self, x: Tensor, zbar: Tensor) -> Tensor:
        """Cotangent of x."""
        mask = [True, False, False]
        bars = torch.ops.aten.convolution_backward(zbar, x, self.weight, None, *HOW, mask)
        return kernels.last(bars[0])


@dataclass
class Block:
    """What a block's passes leave for each other."""

    x: Tensor
    z: Tensor
    stats: Tensor
    pbar: Tensor | None = None
    zbar: Tensor | None = None
    sums: Tensor | None = None


@dataclass
class Tape:
    """A forward pass and, once walked back, the cotangents along it."""

    blocks: list[Block]
    p: Tensor  # the last block's
    features: Tensor  # p, flattened, (n, d)
    logits: Tensor
    bar: Tensor | None = None  # of the logits
    dot: Tensor | None = None  # of the logits, where theta or x move


@dataclass
class Weights:
    """theta, or a direction in its space, by layer."""

    convolutions: list[Any]  # one First, then Later ones
    affines: list[Tensor]  # gamma and beta of each norm, (2k,)
    head: Tensor
    shift: Tensor


class Sum:
    """F = sum_k f_k over all images, in place of a CrossEntropy: the penalty looks at dF/dx."""

    def bar(self, logits: Tensor) -> Tensor:
        """The derivative of F for the logits."""
        return torch.ones_like(logits)

    def bar_along(self, logits: Tensor, dot: Tensor) -> Tensor:
        """How `bar` changes: not at all."""
        return torch.zeros_like(logits)


def by_hand(method: Callable[..., Any]) -> Any:
    """`method` where the kernels take the images x; else its twin in `FunctionalNetwork`."""
    twin = getattr(FunctionalNetwork, method.__name__)

    @wraps(method)
    def chosen(self: FastConvNet, theta: Tensor, x: Tensor, *rest: Any) -> Any:
        if not self.fits(x, theta, *rest):
            return twin(self, theta, x, *rest)
        with torch.no_grad():
            return method(self, theta, x, *rest)

    return chosen


class FastConvNet(FunctionalNetwork):
    """A ConvNet whose derivatives are taken by hand where `fits` allows."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        *blocks, head, shift = self.sizes
        self.depth = len(blocks) // 4
        self.lengths = []  # a norm's scale and shift are one part
        for kernel, bias, gamma, beta in zip(*(blocks[i::4] for i in range(4)), strict=True):
            self.lengths += [kernel, bias, gamma + beta]
        self.lengths += [head, shift]
        self.first: Any = module.get_submodule("features.0")  # the first convolution

    def fits(self, x: Tensor, *others: Any) -> bool:
        """Whether the kernels take these tensors; if not, the log says why, once per reason."""
        kinds = {(t.dtype, t.device) for t in (x, *others) if isinstance(t, Tensor)}
        if x.device.type != "cpu" or len(kinds) > 1:
            return False  # plain suits other devices, and raises where tensors do not go together
        if x.dtype not in kernels.REAL:
            return plain_because(f"images of type {x.dtype}")
        width, lanes = self.first.out_channels, kernels.lanes(x.dtype)
        if width % lanes:
            return plain_because(f"a width of {width}, no multiple of {lanes}")
        if x.dim() != 4 or x.shape[1] != self.first.in_channels or x.shape[1] > FEW:
            return plain_because(f"images of shape {tuple(x.shape[1:])}")
        return trusted(x.dtype)

    def weights(self, theta: Tensor) -> Weights:
        """theta by layer, the kernels laid out as they are used."""
        *blocks, head, shift = theta.contiguous().split(self.lengths)
        width = self.first.out_channels
        first = First(blocks[0].view(width, -1, 3, 3))
        later = [Later(w.view(width, width, 3, 3)) for w in blocks[3::3]]
        return Weights([first, *later], blocks[2::3], head.view(len(shift), -1), shift)

    def pieces(self, x: Tensor) -> Iterator[tuple[Tensor, slice]]:
        """A few images at a time, laid out channels last, and which they are."""
        most = max(1, PIECE // (self.first.out_channels * x.shape[2] * x.shape[3]))
        first = 0
        for piece in x.chunk(-(-len(x) // most)):
            yield kernels.last(piece), slice(first, first + len(piece))
            first += len(piece)

    def ahead(self, w: Weights, x: Tensor) -> Tape:
        """The forward pass."""
        blocks = []
        for convolution, affine in zip(w.convolutions, w.affines, strict=True):
            z = convolution.forward(x)
            p, stats = kernels.forward(z, affine)
            blocks.append(Block(x, z, stats))
            x = p
        features = x.flatten(1)
        return Tape(blocks, x, features, torch.addmm(w.shift, features, w.head.T))

    def back(self, w: Weights, tape: Tape, bar: Tensor) -> None:
        """Cotangents along the tape from that of the logits."""
        tape.bar = bar
        pbar = kernels.last((bar @ w.head).view(tape.p.shape))
        for i in reversed(range(self.depth)):
            b = tape.blocks[i]
            b.pbar = pbar
            b.zbar, b.sums = kernels.backward(b.z, w.affines[i], b.stats, pbar)
            if i:
                pbar = w.convolutions[i].image_bar(b.x, b.zbar)

    def collect(self, weights: list, sums: list, head: Tensor, shift: Tensor) -> Tensor:
        """Cotangents by layer as one vector like theta."""
        parts: list[Tensor] = []
        for weight, each in zip(weights, sums, strict=True):
            parts += [weight.flatten(), each.new_zeros(each.shape[2]), each.sum(1).flatten()]
        return torch.cat([*parts, head.flatten(), shift])

    def along(
        self, w: Weights, tape: Tape, head: Any, v: Weights | None, xdot: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """How the gradients for theta and x change where theta moves along v and x along xdot.

        v and xdot may be None: no move. Where theta does not move, that of x is not computed.
        """
        moves = []  # xdot, zdot, moved by block
        for i, b in enumerate(tape.blocks):
            terms = [v.convolutions[i].forward(b.x)] if v else []
            if xdot is not None:
                terms.append(w.convolutions[i].forward(xdot))
            zdot, more = terms if len(terms) == 2 else (*terms, None)
            adot = v.affines[i] if v else None
            pdot, moved = kernels.forward_along(b.z, w.affines[i], b.stats, zdot, more, adot)
            moves.append((xdot, zdot, moved))
            xdot = pdot

        features = xdot.flatten(1)
        dot = features @ w.head.T
        if v:
            dot += torch.addmm(v.shift, tape.features, v.head.T)
        tape.dot, bardot = dot, head.bar_along(tape.logits, dot)
        head_bar = torch.addmm(tape.bar.T @ features, bardot.T, tape.features)
        pbardot = torch.addmm(tape.bar @ v.head, bardot, w.head) if v else bardot @ w.head
        pbardot, more = kernels.last(pbardot.view(tape.p.shape)), None

        weights, sums, image = [], [], None
        for i in reversed(range(self.depth)):
            b, (xdot, zdot, moved) = tape.blocks[i], moves.pop()
            adot = v.affines[i] if v else None
            zbardot, each = kernels.backward_along(
                b.z, w.affines[i], b.stats, b.pbar, b.sums, zdot, adot, moved, pbardot, more
            )
            weight = w.convolutions[i].weight_bar(b.x, zbardot)
            if xdot is not None:
                weight += w.convolutions[i].weight_bar(xdot, b.zbar)
            weights.append(weight)
            sums.append(each)
            if i:
                pbardot = w.convolutions[i].image_bar(b.x, zbardot)
                more = v.convolutions[i].image_bar(b.x, b.zbar) if v else None
            elif v:
                image = w.convolutions[0].image_bar(b.x, zbardot)
                image = v.convolutions[0].image_bar(b.x, b.zbar, image)
        return self.collect(weights[::-1], sums[::-1], head_bar, bardot.sum(0)), image

    @by_hand
    def logits(self, theta: Tensor, x: Tensor) -> Tensor:
        """Logits (n, K), without derivatives."""
        w = self.weights(theta)
        return torch.cat([self.ahead(w, piece).logits for piece, _ in self.pieces(x)])

    @by_hand
    def embedding(self, theta: Tensor, x: Tensor) -> Tensor:
        """What the last linear map sees, (n, d), without derivatives."""
        w = self.weights(theta)
        return torch.cat([self.ahead(w, piece).features for piece, _ in self.pieces(x)])

    @by_hand
    def gradient(self, theta: Tensor, x: Tensor, head: CrossEntropy) -> tuple[Tensor, Tensor]:
        """As `FunctionalNetwork.gradient`."""
        w, value, total = self.weights(theta), x.new_zeros(()), torch.zeros_like(theta)
        for piece, which in self.pieces(x):
            part, tape = head.part(which.start, which.stop), self.ahead(w, piece)
            value += part.value(tape.logits)
            self.back(w, tape, part.bar(tape.logits))
            pairs = zip(w.convolutions, tape.blocks, strict=True)
            bars, sums = (
                [c.weight_bar(b.x, b.zbar) for c, b in pairs],
                [b.sums for b in tape.blocks],
            )
            total += self.collect(bars, sums, tape.bar.T @ tape.features, tape.bar.sum(0))
        return value, total

    @by_hand
    def input_gradient(self, theta: Tensor, x: Tensor) -> Tensor:
        """As `FunctionalNetwork.input_gradient`."""
        w = self.weights(theta)
        return torch.cat([self._g(w, piece)[1] for piece, _ in self.pieces(x)])

    def _g(self, w: Weights, x: Tensor) -> tuple[Tape, Tensor]:
        tape = self.ahead(w, x)
        self.back(w, tape, Sum().bar(tape.logits))
        return tape, w.convolutions[0].image_bar(x, tape.blocks[0].zbar)

    @by_hand
    def penalty(self, theta: Tensor, x: Tensor, cost: Cost) -> tuple[Tensor, Tensor]:
        """As `FunctionalNetwork.penalty`."""
        w, value, total = self.weights(theta), x.new_zeros(()), torch.zeros_like(theta)
        for piece, _ in self.pieces(x):
            tape, g = self._g(w, piece)
            with torch.enable_grad():
                each = cost(g.requires_grad_())
                (u,) = torch.autograd.grad(each, g)
            value += each.detach()
            total += self.along(w, tape, Sum(), None, kernels.last(u))[0]
        return value, total

    @by_hand
    def pull(
        self, theta: Tensor, x: Tensor, head: CrossEntropy, rho: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `FunctionalNetwork.pull`."""
        return self.pull_soft(theta, x, head, rho)[:2]

    @by_hand
    def pull_soft(
        self, theta: Tensor, x: Tensor, head: CrossEntropy, rho: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `FunctionalNetwork.pull_soft`; it costs no more than `pull`."""
        w, v, total = self.weights(theta), self.weights(rho), torch.zeros_like(theta)
        images, labels = [], []
        for piece, which in self.pieces(x):
            part, tape = head.part(which.start, which.stop), self.ahead(w, piece)
            self.back(w, tape, part.bar(tape.logits))
            d_theta, d_x = self.along(w, tape, part, v, None)
            total += d_theta
            images.append(d_x)
            labels.append(part.labels_bar(tape.logits, tape.dot))
        return total, torch.cat(images), torch.cat(labels)


@cache
def plain_because(reason: str) -> bool:
    """Log once that something is done the plain way; False."""
    kernels.log.warning("%s: %s", reason, kernels.PLAIN)
    return False


@cache
def trusted(dtype: torch.dtype) -> bool:
    """Whether there are kernels that agree with PyTorch on a small network: compilers err."""
    if kernels.library(dtype) is None:
        return False
    shape, chance = (2, 6, 7), generator("trusted")
    module = networks.build(Network(width=2 * kernels.lanes(dtype), depth=2), shape, 3)
    fast, plain = FastConvNet(module), FunctionalNetwork(module)
    theta, rho = (torch.randn(plain.parameters, generator=chance, dtype=dtype) for _ in range(2))
    x, head = torch.randn(3, *shape, generator=chance, dtype=dtype), CrossEntropy(torch.arange(3))
    with torch.no_grad():
        results = FastConvNet.pull_soft.__wrapped__(fast, theta, x, head, rho)
    pairs = zip(results, plain.pull(theta, x, head, rho), strict=False)  # labels are left out
    worst = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return worst < 1e4 * torch.finfo(dtype).eps or plain_because(
        f"kernels that are wrong by {worst:.0e} on {dtype}, as this compiler makes them"
    )


def is_convnet(module: nn.Module) -> bool:
    """Whether its features are those of `networks.convnet`, which this file differentiates."""
    layers = list(getattr(module, "features", []))
    if not layers or not isinstance(layers[0], nn.Conv2d):
        return False
    depth = len(layers) // 4
    with torch.device("meta"):
        shape = (layers[0].in_channels, 1 << depth, 1 << depth)
        like = networks.convnet(shape, 1, layers[0].out_channels, depth)
    return repr(module.features) == repr(like.features)  # which names every option
