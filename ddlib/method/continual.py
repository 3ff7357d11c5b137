"""Does a memory help? Class-incremental learning: one network meets the classes task by task, and of those before keeps a memory of a few images each.

R[t, j] is its accuracy on the test images of task j after task t, among all classes; T tasks, n images (n, c, h, w), K classes. Replay as in
arXiv 1902.10486, but balanced: in an epoch of a task every class met so far is shown as often as it has real images, the new ones by these, each once, those
before by what the memory has of them, over and over. With no memory they are not shown again; with all real images the last task goes through everything.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from ddlib.data.datasets import Images
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.train import Epoch, Recipe, accuracy, train
from ddlib.runs.checkpoint import Keeper
from ddlib.settings import Continual, generator

Memory = Mapping[str, Tensor]  # `images` (m, c, h, w) in the network's space, `labels` (m,)


def tasks(classes: int, number: int) -> list[Tensor]:
    """The classes of each task, in their order, as evenly as can be; as many tasks as classes, where these are fewer."""
    return list(torch.arange(classes).tensor_split(min(number, classes)))


def lesson(
    real: Images, memory: Memory | None, now: Tensor, before: Tensor
) -> tuple[Tensor, Tensor]:
    """Images and labels of an epoch: of the classes `now` all real ones, of each of those `before` as many from the memory."""

    def shown(images: Tensor, labels: Tensor, c: int) -> tuple[Tensor, Tensor]:
        mine = (labels == c).nonzero().flatten()
        times = int((real.y_train == c).sum()) if len(mine) else 0
        mine = mine[torch.arange(times, device=mine.device) % max(1, len(mine))]
        return images[mine], labels[mine]

    parts = (
        [shown(memory["images"], memory["labels"], c) for c in before.tolist()] if memory else []
    )
    parts += [shown(real.x_train, real.y_train, c) for c in now.tolist()]
    x, y = zip(*parts, strict=True)
    return torch.cat(x), torch.cat(y)


def learn(
    settings: Continual,
    flat: FunctionalNetwork,
    real: Images,
    memory: Memory | None,
    keep: Keeper | None = None,
) -> list[dict]:
    """Go through all tasks; a row each R[t, j]: `after` task t, `on` task j <= t, from 0, and the `accuracy`, a fraction.

    Raises:
        Diverged: a number stopped being finite.
    """
    keep, groups = keep or Keeper(), tasks(real.classes, settings.tasks)
    usable = [s for s in settings.strategies if s in real.strategies]
    how = Recipe(
        settings.epochs,
        settings.batch,
        settings.lr,
        weight_decay=settings.weight_decay,
        strategies=usable,
    )
    theta, rows, first, after = (
        flat.initial(generator(settings.seed, "network")).to(real.x_train),
        [],
        0,
        None,
    )
    if held := keep.left("rows", "task", *Epoch.names(how)):
        rows, first, after = held["rows"], held["task"], Epoch.of(held, how)

    def so_far(task: int, epoch: Epoch) -> dict:
        return {"rows": rows, "task": task} | epoch.state()

    for t in range(first, len(groups)):
        x, y = lesson(real, memory, groups[t], torch.arange(real.classes)[: int(groups[t][0])])
        last = after
        for last in train(flat, theta, x, y, how, (settings.seed, f"task-{t}"), after):
            keep(partial(so_far, t, last))
        theta, after = last.theta.to(real.x_train), None
        for j, classes in enumerate(groups[: t + 1]):
            asked = torch.isin(real.y_test, classes.to(real.y_test.device))
            rows.append(
                {
                    "after": t,
                    "on": j,
                    "accuracy": accuracy(flat, theta, real.x_test[asked], real.y_test[asked]),
                }
            )
    return rows
