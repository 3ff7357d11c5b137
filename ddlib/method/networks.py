"""The networks: ConvNet (Gidaris & Komodakis 2018), AlexNet, VGG11, ResNet18 and a small ViT.

All have the shapes of DC's and MTT's code (github.com/VICO-UoE/DatasetCondensation), where grey
images of 28 pixels enter the first layer as 32. No norm keeps running statistics, so each network
is a pure function of its parameters. Images (n, c, h, w) in, logits (n, K) out; `features` gives
the penultimate (n, d).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddlib.settings import InputError, Network

Shape = tuple[int, int, int]  # (c, h, w)
GROUPS = 4  # of group norm


def norm(kind: str, width: int) -> nn.Module:
    """A norm with learned scale and shift; batch norm uses the statistics of its batch alone."""
    if kind == "batch":
        return nn.BatchNorm2d(width, track_running_stats=False)
    groups = {"instance": width, "group": GROUPS}
    return nn.Identity() if kind == "none" else nn.GroupNorm(groups[kind], width)


def margin(shape: Shape) -> int:
    """Rows of zeros that the first layer adds on each side, beyond those that keep the size."""
    return 2 if shape == (1, 28, 28) else 0


class Pool(nn.Module):
    """Mean over 2 x 2, odd edges dropped."""

    def forward(self, x: Tensor) -> Tensor:
        # Strided sums are four times faster than `avg_pool2d` on a CPU, and so is their backward.
        h, w = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        rows = x[..., 0:h:2, :] + x[..., 1:h:2, :]
        return (rows[..., 0:w:2] + rows[..., 1:w:2]) * 0.25


def block(channels: int, width: int, kind: str, more: int = 0) -> list[nn.Module]:
    """3 x 3 convolution, norm and ReLU."""
    return [nn.Conv2d(channels, width, 3, padding=1 + more), norm(kind, width), nn.ReLU()]


class Plain(nn.Module):
    """A stack of layers, then one linear map."""

    def __init__(self, layers: list[nn.Module], shape: Shape, classes: int):
        super().__init__()
        self.features = nn.Sequential(*layers, nn.Flatten())
        with torch.device("meta"):  # shapes only
            size = self.features.to("meta")(torch.empty(1, *shape)).shape[1]
        self.head = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def convnet(shape: Shape, classes: int, settings: Network) -> Plain:
    """`depth` blocks of 3 x 3 convolution, norm, ReLU and 2 x 2 mean."""
    channels, more = shape[0], margin(shape)
    layers: list[nn.Module] = []
    for _ in range(settings.depth):
        layers += [*block(channels, settings.width, settings.norm, more), Pool()]
        channels, more = settings.width, 0
    return Plain(layers, shape, classes)


def alexnet(shape: Shape, classes: int, settings: Network) -> Plain:
    """Five convolutions, three poolings, no norm; `width` stands for AlexNet's 128."""
    width, sizes, pooled = settings.width, (5, 5, 3, 3, 3), (True, True, False, False, True)
    channels = [shape[0], width, width * 3 // 2, width * 2, width * 3 // 2, width * 3 // 2]
    layers: list[nn.Module] = []
    for i, size in enumerate(sizes):
        padding = size // 2 + margin(shape) * (i == 0)
        layers += [nn.Conv2d(channels[i], channels[i + 1], size, padding=padding), nn.ReLU()]
        layers += [nn.MaxPool2d(2)] * pooled[i]
    return Plain(layers, shape, classes)


def vgg11(shape: Shape, classes: int, settings: Network) -> Plain:
    """VGG configuration A with norms; `width` stands for VGG's 64."""
    layers: list[nn.Module] = []
    channels, more = shape[0], margin(shape)
    side = min(shape[1:]) + 2 * more
    steps = (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0)  # 0: a pooling
    for place, step in enumerate(steps, 1):
        if step:
            width = settings.width * step
            layers += block(channels, width, settings.norm, more)
            channels, more = width, 0
        # on small images some are left out: a norm over a single pixel would leave nothing
        elif side >= 4 or (place == len(steps) and side >= 2):
            layers.append(nn.MaxPool2d(2))
            side //= 2
    return Plain(layers, shape, classes)


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, channels: int, width: int, stride: int, kind: str, mean_pool: bool):
        super().__init__()
        pool = stride > 1 and mean_pool
        self.conv1 = nn.Conv2d(channels, width, 3, 1 if pool else stride, padding=1, bias=False)
        self.norm1, self.pool = norm(kind, width), Pool() if pool else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm(kind, width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            projection = nn.Conv2d(channels, width, 1, 1 if pool else stride, bias=False)
            shrink = Pool() if pool else nn.Identity()
            self.shortcut = nn.Sequential(projection, shrink, norm(kind, width))

    def forward(self, x: Tensor) -> Tensor:
        inner = self.pool(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def resnet18(shape: Shape, classes: int, settings: Network, mean_pool: bool = False) -> Plain:
    """ResNet18 with a 3 x 3 stem and no first pooling; `width` stands for 64."""
    width, kind = settings.width, settings.norm
    stem = nn.Conv2d(shape[0], width, 3, padding=1, bias=False)
    layers: list[nn.Module] = [stem, norm(kind, width), nn.ReLU()]
    channels = width
    for wide, stride in ((width, 1), (2 * width, 2), (4 * width, 2), (8 * width, 2)):
        layers += [Residual(channels, wide, stride, kind, mean_pool)]
        layers += [Residual(wide, wide, 1, kind, mean_pool)]
        channels = wide
    return Plain([*layers, *[nn.AdaptiveAvgPool2d(1)] * (not mean_pool)], shape, classes)


def resnet18_ap(shape: Shape, classes: int, settings: Network) -> Plain:
    """ResNet18 that shrinks by 2 x 2 means, not by strides; its head sees all that is left."""
    return resnet18(shape, classes, settings, mean_pool=True)


class Patches(nn.Module):
    """An image as 8 x 8 tokens: (n, c, h, w) -> (n, 64, width), positions added."""

    def __init__(self, shape: Shape, width: int):
        super().__init__()
        patch = (shape[1] // 8, shape[2] // 8)
        self.positions = nn.Parameter(torch.zeros(64, width))
        self.conv = nn.Conv2d(shape[0], width, patch, stride=patch)

    def draw(self, generator: torch.Generator) -> list[Tensor]:
        """The first positions, N(0, 0.02^2)."""
        return [torch.empty(self.positions.shape).normal_(0, 0.02, generator=generator)]

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)[:, :, :8, :8].flatten(2).transpose(1, 2) + self.positions


class Encoder(nn.Module):
    """Attention, then a perceptron per token, each behind a norm (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int):
        super().__init__()
        most = max(1, width // 32)
        self.heads = next(heads for heads in range(most, 0, -1) if width % heads == 0)
        self.norm1, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2, self.wide = nn.LayerNorm(width), nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.out(mixed)
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class Mean(nn.Module):
    """Mean over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def vit(shape: Shape, classes: int, settings: Network) -> Plain:
    """Six encoders on 8 x 8 patches, then the mean of the tokens; for evaluation only."""
    width = settings.width
    encoders = [Encoder(width) for _ in range(6)]
    return Plain([Patches(shape, width), *encoders, nn.LayerNorm(width), Mean()], shape, classes)


NETWORKS: dict[str, Callable[[Shape, int, Network], Plain]] = {
    network.__name__: network for network in (convnet, alexnet, vgg11, resnet18, resnet18_ap, vit)
}


def build(settings: Network, shape: Shape, classes: int) -> nn.Module:
    """The network for (c, h, w) images of K classes, on the meta device, its parameters not drawn.

    Raises:
        InputError: the images are too small for the network's poolings.
    """
    try:
        with torch.device("meta"):
            module = NETWORKS[settings.architecture](shape, classes, settings)
        if not module.head.in_features:
            raise ValueError("no pixel is left")
        return module
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{settings.architecture} of depth {settings.depth} does not fit images of "
            f"{shape[1]} x {shape[2]} pixels ({error}): lower the depth or use larger images"
        ) from error
