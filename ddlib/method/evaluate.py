"""How good is a set? Fresh networks are trained on it and scored on the test images.

The score is that of the last epoch. The lr is a factor times the set's own a; the factor is chosen
on the validation images, and the rows with factor 1 are kept beside it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from ddlib.data.datasets import Images
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.train import Diverged, Epoch, accuracy, train
from ddlib.settings import Evaluation, Recipe, generator

SEARCH_SEED = 1000  # choosing the factor and scoring share no network

log = logging.getLogger("ddlib")


@dataclass(frozen=True)
class SyntheticSet:
    """Images to train on, their labels, and the lr to train with."""

    images: Tensor  # (n, c, h, w)
    labels: Tensor  # classes (n,), or probabilities (n, K)
    lr: float

    @classmethod
    def of(cls, artefact: Any, hard: bool = False) -> SyntheticSet:
        """The stored set, with its soft labels if it has any and `hard` does not rule them out."""
        tensors = artefact.tensors
        soft = "soft" in tensors and not hard
        labels = tensors["soft"].softmax(1) if soft else tensors["labels"]
        return cls(tensors["images"], labels, artefact.record["lr"])


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


def evaluate(
    settings: Evaluation,
    network: FunctionalNetwork,
    synthetic: SyntheticSet,
    real: Images,
    done: Callable[[], None] = lambda: None,
) -> list[dict]:
    """One row per network and protocol; `done` is called after each network.

    Protocols: "lr_chosen" (factor chosen on validation), "lr_a" (factor 1, if it was tried).
    """
    images, labels = synthetic.images.to(real.x_train), synthetic.labels.to(real.y_train.device)

    def judge(factor: float, seed: int, test: bool) -> Score:
        scaled = SyntheticSet(images, labels, synthetic.lr * factor)
        result = score(settings, network, scaled, real, seed, test)
        done()
        return result

    chosen = settings.factors[0]
    if len(settings.factors) > 1:
        seeds = range(SEARCH_SEED, SEARCH_SEED + settings.search_networks)
        means = [
            fmean(judge(factor, seed, False).validation for seed in seeds)
            for factor in settings.factors
        ]
        chosen = settings.factors[means.index(max(means))]
    rows = []
    for factor in dict.fromkeys([chosen, *(f for f in settings.factors if f == 1.0)]):
        protocols = ["lr_chosen"] * (factor == chosen) + ["lr_a"] * (factor == 1.0)
        for seed in range(settings.networks):
            result = judge(factor, seed, settings.test)
            row: dict[str, Any] = {"net_seed": seed}
            row |= {"architecture": settings.network.architecture}
            row |= {"lr": synthetic.lr * factor, "lr_factor": factor}
            row |= result.columns()
            rows += [row | {"protocol": p, "epochs": settings.epochs} for p in protocols]
    return rows
