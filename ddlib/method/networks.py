"""The networks: ConvNet (Gidaris & Komodakis 2018), AlexNet, VGG11, ResNet18 and a small ViT, sized for small images.

The convolutional ones normalise per image and channel (instance norm), so none keeps running statistics and every network is
a pure function of its parameters. (n, c, h, w) images in, (n, K) logits out; `features` gives the penultimate (n, d).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ddlib.settings import InputError, Network


def norm(width: int) -> nn.Module:
    """Instance norm with learned scale and shift, as one group a channel."""
    return nn.GroupNorm(width, width)


class Pool(nn.Module):
    """Mean over 2 x 2, odd edges dropped, as strided sums: four times faster than `avg_pool2d` on a CPU, and so is its backward."""

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
        rows = x[..., 0:h:2, :] + x[..., 1:h:2, :]
        return (rows[..., 0:w:2] + rows[..., 1:w:2]) * 0.25


class Plain(nn.Module):
    """A stack of layers, then one linear map."""

    def __init__(self, layers: list[nn.Module], shape: tuple[int, int, int], classes: int):
        super().__init__()
        self.features = nn.Sequential(*layers, nn.Flatten())
        with torch.device("meta"):  # shapes only
            size = self.features.to("meta")(torch.empty(1, *shape)).shape[1]
        self.head = nn.Linear(size, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def convnet(shape: tuple[int, int, int], classes: int, width: int, depth: int) -> Plain:
    """`depth` blocks of 3 x 3 convolution, instance norm, ReLU and 2 x 2 mean: the network that the field distils on."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for _ in range(depth):
        layers += [nn.Conv2d(channels, width, 3, padding=1), norm(width), nn.ReLU(), Pool()]
        channels = width
    return Plain(layers, shape, classes)


def alexnet(shape: tuple[int, int, int], classes: int, width: int, depth: int) -> Plain:
    """Five convolutions, three poolings; width w stands for AlexNet's 128 (1 : 1.5 : 2 : 2 : 1.5)."""
    wide, wider = width * 3 // 2, width * 2
    layers: list[nn.Module] = [nn.Conv2d(shape[0], width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [nn.Conv2d(width, wide, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    layers += [
        nn.Conv2d(wide, wider, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(wider, wider, 3, padding=1),
        nn.ReLU(),
    ]
    layers += [nn.Conv2d(wider, wide, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return Plain(layers, shape, classes)


def vgg11(shape: tuple[int, int, int], classes: int, width: int, depth: int) -> Plain:
    """VGG configuration A with instance norm; width w stands for VGG's 64. The last poolings go where no pixels are left."""
    layers: list[nn.Module] = []
    channels, side = shape[0], min(shape[1:])
    for step in (1, 0, 2, 0, 4, 4, 0, 8, 8, 0, 8, 8, 0):  # 0: a pooling
        if not step:
            if side >= 4:
                layers.append(nn.MaxPool2d(2))
                side //= 2
            continue
        layers += [nn.Conv2d(channels, width * step, 3, padding=1), norm(width * step), nn.ReLU()]
        channels = width * step
    return Plain(layers, shape, classes)


class Residual(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (He et al. 2016)."""

    def __init__(self, channels: int, width: int, stride: int, mean_pool: bool):
        super().__init__()
        pool = stride > 1 and mean_pool
        self.conv1 = nn.Conv2d(channels, width, 3, 1 if pool else stride, padding=1, bias=False)
        self.norm1, self.pool = norm(width), Pool() if pool else nn.Identity()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = norm(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels != width:
            projection = nn.Conv2d(channels, width, 1, 1 if pool else stride, bias=False)
            self.shortcut = nn.Sequential(
                projection, Pool() if pool else nn.Identity(), norm(width)
            )

    def forward(self, x: Tensor) -> Tensor:
        inner = self.pool(F.relu(self.norm1(self.conv1(x))))
        return F.relu(self.norm2(self.conv2(inner)) + self.shortcut(x))


def resnet18(
    shape: tuple[int, int, int], classes: int, width: int, depth: int, mean_pool: bool = False
) -> Plain:
    """ResNet18 for small images (3 x 3 stem, no first pooling); width w stands for 64. `mean_pool` shrinks by 2 x 2 means, not strides."""
    layers: list[nn.Module] = [
        nn.Conv2d(shape[0], width, 3, padding=1, bias=False),
        norm(width),
        nn.ReLU(),
    ]
    channels = width
    for stage in range(4):
        for block in range(2):
            stride = 2 if stage and not block else 1
            layers.append(Residual(channels, width << stage, stride, mean_pool))
            channels = width << stage
    return Plain([*layers, nn.AdaptiveAvgPool2d(1)], shape, classes)


def resnet18_ap(shape: tuple[int, int, int], classes: int, width: int, depth: int) -> Plain:
    """ResNet18 that shrinks by means."""
    return resnet18(shape, classes, width, depth, mean_pool=True)


class Patches(nn.Module):
    """An image as 8 x 8 tokens: (n, c, h, w) -> (n, 64, width), positions added."""

    def __init__(self, shape: tuple[int, int, int], width: int):
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
    """Attention among tokens, then a perceptron on each, both behind a norm and beside a shortcut (Dosovitskiy et al. 2021)."""

    def __init__(self, width: int):
        super().__init__()
        self.heads = next(
            heads for heads in range(max(1, width // 32), 0, -1) if width % heads == 0
        )
        self.norm1, self.qkv, self.out = (
            nn.LayerNorm(width),
            nn.Linear(width, 3 * width),
            nn.Linear(width, width),
        )
        self.norm2, self.wide, self.narrow = (
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )

    def forward(self, x: Tensor) -> Tensor:
        n, tokens, width = x.shape
        q, k, v = (
            self.qkv(self.norm1(x))
            .view(n, tokens, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, width)
        x = x + self.out(seen)
        return x + self.narrow(F.gelu(self.wide(self.norm2(x))))


class Mean(nn.Module):
    """Over tokens."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def vit(shape: tuple[int, int, int], classes: int, width: int, depth: int) -> Plain:
    """Six encoders on 8 x 8 patches of any size, the mean of the tokens read out; one more evaluator, nothing is distilled with it."""
    return Plain(
        [Patches(shape, width), *(Encoder(width) for _ in range(6)), nn.LayerNorm(width), Mean()],
        shape,
        classes,
    )


Make = Callable[[tuple[int, int, int], int, int, int], Plain]
NETWORKS: dict[str, Make] = {
    "convnet": convnet,
    "alexnet": alexnet,
    "vgg11": vgg11,
    "resnet18": resnet18,
    "resnet18_ap": resnet18_ap,
    "vit": vit,
}


def build(settings: Network, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network for (c, h, w) images of K classes, its parameters still to be drawn (on the meta device).

    Raises:
        InputError: the images are too small for the network's poolings.
    """
    try:
        with torch.device("meta"):
            made = NETWORKS[settings.architecture](shape, classes, settings.width, settings.depth)
        if not made.head.in_features:
            raise ValueError("no pixel is left")
        return made
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"{settings.architecture} of depth {settings.depth} does not fit images of {shape[1]} x {shape[2]} pixels ({error}): lower the depth or use larger images"
        ) from error
