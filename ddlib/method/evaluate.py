"""How good is a set? Fresh networks are trained on it and scored on the test images.

The score is that of the last epoch. The lr is chosen on the validation images from one grid, the
same for every method. Where a set's own lr was learned, it is judged beside the chosen one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from ddlib.data.datasets import Images
from ddlib.files import digest
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.train import Diverged, Epoch, accuracy, train
from ddlib.settings import Distillation, Evaluation, InputError, Recipe, generator

SEARCH_SEED = 1000  # choosing the lr and scoring share no network
WIDER = 3.0  # times an end of the grid: the next lr to try where that end is best
MOST = 3  # such steps
FEW = 50  # validation images, below which a set's own lr is trusted more than a choice

log = logging.getLogger("ddlib")


@dataclass(frozen=True)
class SyntheticSet:
    """Images to train on, their labels, and the lr to train with."""

    images: Tensor  # (n, c, h, w)
    labels: Tensor  # classes (n,), or probabilities (n, K)
    lr: float

    @classmethod
    def of(cls, artefact: Any, hard: bool = False, last: bool = False) -> SyntheticSet:
        """The stored set, with its soft labels if it has any and `hard` does not rule them out.

        `last`: as its outer loop left it, not as the validation split chose it.

        Raises:
            InputError: the artefact is no set, or one that nobody could train on.
        """
        tensors, lr = artefact.tensors, artefact.record.get("lr")
        lacking = [name for name in ("images", "labels") if name not in tensors]
        if lacking or isinstance(lr, bool) or not isinstance(lr, int | float):
            raise InputError(
                f"an artefact of {', '.join(tensors) or 'no tensors'} with lr {lr!r} is no set: "
                "expected images, labels and lr, as distil and pick_images make them"
            )
        images, soft = tensors["images"], None if hard else tensors.get("soft")
        if last and "history" in tensors:
            images, lr = tensors["history"][-1], artefact.record["curve"][-1]["lr"]
            soft = None if soft is None else tensors["soft_history"][-1]
        return cls(images, tensors["labels"] if soft is None else soft.softmax(-1), float(lr))

    def check(self, shape: Sequence[int], classes: int) -> None:
        """Refuse what no network for images of that (c, h, w) and number of classes can learn.

        Raises:
            InputError: says all that was found, and all that was expected.
        """
        x, y = self.images, self.labels
        n, soft = len(x) if x.dim() else 0, y.is_floating_point()
        good = (
            n > 0 and x.is_floating_point() and x.shape == (n, *shape) and bool(x.isfinite().all())
        )
        good = good and y.shape == ((n, classes) if soft else (n,)) and y.dtype != torch.bool
        good = good and bool(y.isfinite().all() and y.min() >= 0 and (soft or y.max() < classes))
        if not good or not 0 <= self.lr < float("inf"):
            bad = int((~x.isfinite()).sum()) if x.is_floating_point() else 0
            raise InputError(
                f"the set has images {tuple(x.shape)} of {x.dtype} ({bad} numbers not finite), "
                f"labels {tuple(y.shape)} of {y.dtype} and lr {self.lr:g}: expected finite images "
                f"{('n', *shape)}, classes (n,) below {classes} or probabilities (n, {classes}), "
                "and an lr of 0 or more; take a sound set"
            )


@dataclass(frozen=True)
class Score:
    """One network's accuracies after the last epoch, and the best on the way by two choosers."""

    validation: float
    test: float | None
    best_on_validation: float | None  # test accuracy where the validation accuracy was best
    best_on_test: float | None  # the most flattering choice

    def columns(self) -> dict[str, float | None]:
        """Columns of a row."""
        best = {"best_on_validation": self.best_on_validation, "best_on_test": self.best_on_test}
        return {"accuracy": self.test, "validation_accuracy": self.validation} | best


def recipe(settings: Evaluation, lr: float, strategies: tuple[str, ...]) -> Recipe:
    """SGD with momentum 0.9, lr x 0.1 at half time."""
    usable = tuple(s for s in settings.strategies if s in strategies)
    same = settings.model_dump(include={"weight_decay", "batch", "epochs"})
    # Not validated: a learned lr may have gone to 0.
    return Recipe.model_construct(optimiser="momentum", lr=lr, drop=0.1, strategies=usable, **same)


def score(
    settings: Evaluation,
    network: FunctionalNetwork,
    synthetic: SyntheticSet,
    real: Images,
    seed: int,
    test: bool = True,
) -> Score:
    """Train the network with `seed`; without `test` the test images stay unseen.

    A network that diverges scores chance, and the log says so.
    """
    x, y, epochs, n = synthetic.images, synthetic.labels, settings.epochs, settings.looks
    start = Epoch.first(network.initial(generator(seed, "network")).to(x))
    how = recipe(settings, synthetic.lr, real.strategies)
    checks = {epochs * (i + 1) // n - 1 for i in range(n)} if test else {epochs - 1}
    seen: list[tuple[float, float]] = []  # validation and test accuracy at each check
    try:
        for epoch in train(network, start, x, y, how, (seed, "network")):
            if epoch.index in checks:
                validation = accuracy(network, epoch.theta, real.x_val, real.y_val)
                tested = accuracy(network, epoch.theta, real.x_test, real.y_test) if test else 0.0
                seen.append((validation, tested))
    except Diverged as error:
        log.warning("network %d scores chance: %s", seed, error)
        seen.append((1 / real.classes, 1 / real.classes))
    if not test:
        return Score(seen[-1][0], None, None, None)
    best_on_validation = max(seen, key=lambda pair: pair[0])[1]
    return Score(*seen[-1], best_on_validation, max(tested for _, tested in seen))


@dataclass(frozen=True)
class Choice:
    """The lr that is best on validation images, and how sure that is."""

    lr: float
    networks: int  # that each lr was tried with
    ties: int  # lrs that are as good, this one counted
    at_edge: bool  # the best of all that were tried lies at an end of them


def choose(lrs: Sequence[float], networks: int, judge: Callable[[float, int], float]) -> Choice:
    """The lr with the best mean of `judge(lr, seed)`; of several the one in their middle.

    The grid is widened while one of its ends is best, MOST times at the most.
    """
    if len(lrs) == 1:
        return Choice(lrs[0], 0, 1, False)
    seeds = range(SEARCH_SEED, SEARCH_SEED + networks)
    means = {lr: fmean(judge(lr, seed) for seed in seeds) for lr in lrs}
    for _ in range(MOST + 1):
        tied = sorted(lr for lr in means if means[lr] == max(means.values()))
        best = tied[len(tied) // 2]
        more = {max(means): best * WIDER, min(means): best / WIDER}.get(best)
        if more is None or len(means) == len(lrs) + MOST:
            break
        means[more] = fmean(judge(more, seed) for seed in seeds)
    return Choice(best, networks, len(tied), more is not None)


def evaluate(
    settings: Evaluation,
    network: FunctionalNetwork,
    synthetic: SyntheticSet,
    real: Images,
    done: Callable[[], None] = lambda: None,
) -> list[dict]:
    """One row per network and protocol; `done` is called after each network.

    Protocols: "lr_chosen" (the lr chosen on validation) and, for a set that has learned an lr,
    "lr_a" (that one).
    """
    synthetic.check(real.shape, real.classes)
    images, labels = synthetic.images.to(real.x_train), synthetic.labels.to(real.y_train.device)
    content = digest({"images": synthetic.images, "labels": synthetic.labels})[:16]

    def judge(lr: float, seed: int, test: bool = False) -> Score:
        result = score(settings, network, SyntheticSet(images, labels, lr), real, seed, test)
        done()
        return result

    lrs, learned = settings.lrs, isinstance(settings.of, Distillation)
    if len(lrs) > 1 and len(real.y_val) < FEW:  # for every set, so that they can be compared
        lrs = (synthetic.lr,)
        words = "%d validation images are too few to choose a learning rate: the set's own is kept"
        log.warning(words, len(real.y_val))
    choice = choose(lrs, settings.search_networks, lambda lr, seed: judge(lr, seed).validation)
    protocols = {"lr_chosen": choice.lr} | ({"lr_a": synthetic.lr} if learned else {})
    rows = []
    for protocol, lr in protocols.items():
        for seed in range(settings.networks):
            row: dict[str, Any] = {"net_seed": seed}
            row |= settings.network.model_dump(include={"architecture", "width", "norm"})
            row |= {"lr": lr, "lr_networks": choice.networks, "lr_ties": choice.ties}
            row |= {"lr_at_edge": choice.at_edge, "set": content}
            row |= judge(lr, seed, settings.test).columns()
            row |= {"protocol": protocol, "epochs": settings.epochs}
            rows.append(row | {"evaluation": settings.protocol})
    return rows
