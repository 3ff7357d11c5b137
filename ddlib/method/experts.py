"""One expert trained on the real images, and the trajectory theta*_0 ... theta*_E that it leaves (METHOD section 1)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ddlib import settings as config
from ddlib.data.datasets import Images
from ddlib.method import smoothness
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.train import Diverged, Epoch, Recipe, accuracy, gradient_norms, train
from ddlib.runs.checkpoint import Keeper
from ddlib.settings import generator

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


def look(flat: FunctionalNetwork, theta: Tensor, images: Images) -> dict[str, float]:
    """Accuracies, and the mean norm of d sum_k f_k / dx in both readings of the penalty."""
    g = flat.input_gradient(theta, images.x_test[:PROBE])
    return {
        "validation_accuracy": accuracy(flat, theta, images.x_val, images.y_val),
        "test_accuracy": accuracy(flat, theta, images.x_test, images.y_test),
        "norm_per_pixel": float(gradient_norms(g, "per_pixel").mean()),
        "norm_per_sample": float(gradient_norms(g, "per_sample").mean()),
    }


def train_expert(
    settings: config.Expert, flat: FunctionalNetwork, images: Images, keep: Keeper | None = None
) -> Iterator[Snapshot]:
    """Snapshots 0 ... E of the expert with `settings.seed`, on the CPU: a device holds one, not all. Those that an earlier run kept come as they were.

    Raises:
        Diverged: a number stopped being finite; the last good epoch is kept.
    """
    keep, how = keep or Keeper(), recipe(settings, images.strategies)
    theta = flat.initial(generator(settings.seed, "expert")).to(images.x_train)
    last = after = None
    if held := keep.left("path", "rows", *Epoch.names(how)):
        last = after = Epoch.of(held, how)
        made = [
            Snapshot(row["epoch"], point, row)
            for point, row in zip(held["path"], held["rows"], strict=True)
        ]
    else:
        made = [
            Snapshot(0, theta.cpu(), look(flat, theta, images) | {"epoch": 0, "loss": float("nan")})
        ]
    yield from made

    def so_far() -> dict:
        return {
            "path": torch.stack([s.theta for s in made]),
            "rows": [s.row for s in made],
        } | last.state()

    try:
        for last in train(
            flat, theta, images.x_train, images.y_train, how, (settings.seed, "expert"), after
        ):
            row = look(flat, last.theta, images) | {
                "epoch": last.index + 1,
                "loss": float(last.loss),
            }
            made.append(Snapshot(last.index + 1, last.theta.cpu(), row))
            keep(so_far)
            yield made[-1]
    except Diverged:
        if last:
            keep.now(so_far)
        raise


def imported(path: Tensor, flat: FunctionalNetwork, images: Images) -> Iterator[Snapshot]:
    """Snapshots 0 ... E of an expert that was trained elsewhere, its path (E + 1, P); what its training loss was is not known."""
    for epoch, theta in enumerate(path):
        theta = theta.to(images.x_train)
        yield Snapshot(
            epoch, theta, look(flat, theta, images) | {"epoch": epoch, "loss": float("nan")}
        )


def trajectory(snapshots: Iterator[Snapshot]) -> tuple[Tensor, list[dict], dict]:
    """All snapshots as (E + 1, P), one row an epoch with the step that follows it, and the path's smoothness."""
    points, rows = [], []
    for snapshot in snapshots:
        points.append(snapshot.theta)
        rows.append(snapshot.row)
    path = torch.stack(points)  # (E + 1, P)
    for name, values in smoothness.steps(path).items():
        for row, value in zip(rows, values.tolist(), strict=False):
            row[name] = value
    return path, rows, smoothness.summary(path)
