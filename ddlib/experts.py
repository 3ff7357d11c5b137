"""One expert trained on the real images, and the trajectory theta*_0 ... theta*_E that it leaves (METHOD section 1)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import config, smoothness
from .config import generator
from .data import Images
from .fit import Recipe, accuracy, fit, gradient_norms
from .flat import Flat

PROBE = 256  # test images on which the natural input-gradient norm is read


@dataclass(frozen=True)
class Snapshot:
    """An expert after `epoch` epochs: theta (P,), and how good and how sensitive it is."""

    epoch: int
    theta: Tensor
    row: dict[str, float]


def recipe(settings: config.Expert, strategies: Sequence[str]) -> Recipe:
    """The training that `settings` ask for, with the strategies that the data allow."""
    shared = settings.model_dump(exclude={"data", "network", "seed", "strategies"})
    return Recipe(**shared, strategies=[s for s in settings.strategies if s in strategies])


def look(flat: Flat, theta: Tensor, images: Images) -> dict[str, float]:
    """Accuracies, and the mean norm of d sum_k f_k / dx in both readings of the penalty."""
    g = flat.input_gradient(theta, images.x_test[:PROBE])
    return {
        "validation_accuracy": accuracy(flat, theta, images.x_val, images.y_val),
        "test_accuracy": accuracy(flat, theta, images.x_test, images.y_test),
        "norm_per_pixel": float(gradient_norms(g, "per_pixel").mean()),
        "norm_per_sample": float(gradient_norms(g, "per_sample").mean()),
    }


def train(settings: config.Expert, flat: Flat, images: Images) -> Iterator[Snapshot]:
    """Snapshots 0 ... E of the expert with `settings.seed`."""
    theta = flat.initial(generator(settings.seed, "expert")).to(images.x_train)
    yield Snapshot(0, theta, look(flat, theta, images) | {"epoch": 0, "loss": float("nan")})
    seed = (settings.seed, "expert")
    for done in fit(flat, theta, images.x_train, images.y_train, recipe(settings, images.strategies), seed):
        row = look(flat, done.theta, images) | {"epoch": done.index + 1, "loss": float(done.loss)}
        yield Snapshot(done.index + 1, done.theta, row)


def imported(path: Tensor, flat: Flat, images: Images) -> Iterator[Snapshot]:
    """Snapshots 0 ... E of an expert that was trained elsewhere, its path (E + 1, P); what its training loss was is not known."""
    for epoch, theta in enumerate(path):
        theta = theta.to(images.x_train)
        yield Snapshot(epoch, theta, look(flat, theta, images) | {"epoch": epoch, "loss": float("nan")})


def trajectory(snapshots: Iterator[Snapshot], report: Callable[[int], None] = lambda epoch: None) -> tuple[Tensor, list[dict], dict]:
    """All snapshots as (E + 1, P), one row an epoch with the step that follows it, and the path's smoothness."""
    path, rows = [], []
    for snapshot in snapshots:
        path.append(snapshot.theta.cpu())  # a device holds one snapshot, not all
        rows.append(snapshot.row)
        report(snapshot.epoch)
    path = torch.stack(path)  # (E + 1, P)
    for name, values in smoothness.steps(path).items():
        for row, value in zip(rows, values.tolist(), strict=False):
            row[name] = value
    return path, rows, smoothness.summary(path)
