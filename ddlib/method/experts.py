"""One expert trained on the real images, and its trajectory theta*_0 ... theta*_E."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ddlib.data.datasets import Images
from ddlib.method import smoothness
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.train import Epoch, accuracy, gradient_norms, train
from ddlib.settings import Expert, generator

PROBE = 256  # test images, evenly spread, on which the natural input-gradient norm is measured


@dataclass(frozen=True)
class Snapshot:
    """An expert after `epoch` epochs: theta (P,) on the CPU, and what was measured of it."""

    epoch: int
    theta: Tensor
    row: dict[str, float]
    state: Epoch | None = None  # to continue from; None at epoch 0 and for imported experts


def measure(network: FunctionalNetwork, theta: Tensor, images: Images) -> dict[str, float]:
    """Accuracies, and the mean norm of d sum_k f_k / dx in both readings of the penalty."""
    # data sets list their test images class after class
    spread = (
        torch.linspace(0, len(images.x_test) - 1, min(PROBE, len(images.x_test))).round().long()
    )
    g = network.input_gradient(theta, images.x_test[spread])
    return {
        "validation_accuracy": accuracy(network, theta, images.x_val, images.y_val),
        "test_accuracy": accuracy(network, theta, images.x_test, images.y_test),
        "norm_per_pixel": float(gradient_norms(g, "per_pixel").mean()),
        "norm_per_sample": float(gradient_norms(g, "per_sample").mean()),
    }


def train_expert(
    settings: Expert, network: FunctionalNetwork, images: Images, after: Snapshot | None = None
) -> Iterator[Snapshot]:
    """Snapshots 0 ... E of the expert with `settings.seed`, or those after `after`.

    Raises:
        Diverged: a number stopped being finite.
    """
    usable = tuple(s for s in settings.strategies if s in images.strategies)
    recipe = settings.model_copy(update={"strategies": usable})
    if after is None:
        theta = network.initial(generator(settings.seed, "expert")).to(images.x_train)
        row = measure(network, theta, images) | {"epoch": 0, "loss": float("nan")}
        after = Snapshot(0, theta.cpu(), row)
        yield after
    start = after.state or Epoch.first(after.theta.to(images.x_train))
    seed = (settings.seed, "expert")
    for state in train(network, start, images.x_train, images.y_train, recipe, seed):
        epoch = state.index + 1
        row = measure(network, state.theta, images) | {"epoch": epoch, "loss": float(state.loss)}
        yield Snapshot(epoch, state.theta.cpu(), row, state)


def imported(path: Tensor, network: FunctionalNetwork, images: Images) -> Iterator[Snapshot]:
    """Snapshots 0 ... E of an expert trained elsewhere, whose losses are not known."""
    for epoch, theta in enumerate(path):  # (E + 1, P)
        theta = theta.to(images.x_train)
        row = measure(network, theta, images) | {"epoch": epoch, "loss": float("nan")}
        yield Snapshot(epoch, theta, row)


def trajectory(snapshots: Iterable[Snapshot]) -> tuple[Tensor, list[dict], dict]:
    """The path (E + 1, P), one row per epoch with the step that follows it, and its smoothness."""
    points, rows = [], []
    for snapshot in snapshots:  # states are let go one by one: all of them would fill a device
        points.append(snapshot.theta)
        rows.append(dict(snapshot.row))
    path = torch.stack(points)
    for name, values in smoothness.steps(path).items():
        for row, value in zip(rows, values.tolist(), strict=False):
            row[name] = value
    return path, rows, smoothness.summary(path)


def convexified(path: Tensor, sizes: Sequence[int]) -> Tensor:
    """The path (E + 1, P) on straight lines from its first to its last snapshot, layer by layer.

    At each epoch a layer is as far along its line as it had gone of its whole way (MCT, arXiv
    2406.19827). A layer that never moves, as a bias before an instance norm, stays.
    """
    steps = [part.norm(dim=1) for part in path.diff(dim=0).split(list(sizes), dim=1)]
    gone = F.pad(torch.stack(steps, 1).double().cumsum(0), (0, 0, 1, 0))  # (E + 1, layers)
    shares = (gone / gone[-1].where(gone[-1] > 0, 1.0)).to(path)
    return torch.lerp(path[0], path[-1], shares.repeat_interleave(torch.tensor(sizes), dim=1))
