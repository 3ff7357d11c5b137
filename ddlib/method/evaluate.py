"""How good is a set? Fresh networks trained on it from scratch, scored on the test images after the last epoch (METHOD section 6).

The lr is a factor times the set's own a; the factor is chosen on the validation images, and the row with factor 1 is kept beside it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean

from torch import Tensor

from ddlib.data.datasets import Images
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.train import Diverged, Epoch, Recipe, accuracy, train
from ddlib.runs.checkpoint import Inside, Keeper
from ddlib.runs.store import Artefact
from ddlib.settings import Evaluation, generator


@dataclass(frozen=True)
class Score:
    """One network: accuracies after the last epoch, and the best test accuracy seen, by two choosers. Fractions in [0, 1]."""

    validation: float
    test: float | None
    best_on_validation: float | None  # test accuracy at the look where validation was best
    best_on_test: float | None  # the most flattering look


def recipe(settings: Evaluation, lr: float, strategies: Sequence[str]) -> Recipe:
    """SGD with momentum 0.9, lr x 0.1 at half time."""
    usable = [s for s in settings.strategies if s in strategies]
    return Recipe(
        settings.epochs,
        settings.batch,
        lr,
        weight_decay=settings.weight_decay,
        drop=0.1,
        strategies=usable,
    )


def trained_on(held: Artefact, hard: bool = False) -> Tensor:
    """The labels to train on a set with: probabilities (n, K), the softmax of its `soft`, where it has soft ones, else, or if `hard`, its `labels` (n,)."""
    return (
        held.tensors["soft"].softmax(1)
        if "soft" in held.tensors and not hard
        else held.tensors["labels"]
    )


def score(
    settings: Evaluation,
    flat: FunctionalNetwork,
    x: Tensor,
    y: Tensor,
    lr: float,
    images: Images,
    seed: int,
    test: bool = True,
    keep: Keeper | Inside | None = None,
) -> Score:
    """Train the network with `seed` on (x, y), y hard or soft; without `test` the test images stay unseen. A network that diverges scores chance, and says so."""
    keep, how = keep or Keeper(), recipe(settings, lr, images.strategies)
    theta = flat.initial(generator(seed, "network")).to(x)
    looks = (
        {settings.epochs * (i + 1) // settings.looks - 1 for i in range(settings.looks)}
        if test
        else {settings.epochs - 1}
    )
    seen: list[tuple[float, float]] = []
    after = None
    if held := keep.left("looks", *Epoch.names(how)):
        seen, after = held["looks"], Epoch.of(held, how)

    def so_far() -> dict:
        return {"looks": seen} | last.state()

    try:
        for last in train(flat, theta, x, y, how, (seed, "network"), after):
            if last.index in looks:
                validation = accuracy(flat, last.theta, images.x_val, images.y_val)
                seen.append(
                    (
                        validation,
                        accuracy(flat, last.theta, images.x_test, images.y_test) if test else 0.0,
                    )
                )
            keep(so_far)
    except Diverged as error:
        print(f"network {seed} scores chance: {error}", file=sys.stderr, flush=True)
        seen.append((1 / images.classes, 1 / images.classes))
    if not test:
        return Score(seen[-1][0], None, None, None)
    return Score(
        *seen[-1],
        best_on_validation=max(seen, key=lambda look: look[0])[1],
        best_on_test=max(t for _, t in seen),
    )


def evaluate(
    settings: Evaluation,
    flat: FunctionalNetwork,
    x: Tensor,
    y: Tensor,
    lr: float,
    images: Images,
    keep: Keeper | None = None,
) -> list[dict]:
    """Rows, one a network: protocol "lr_chosen" (factor chosen on validation) and "lr_a" (factor 1, where it is among the factors)."""
    keep = keep or Keeper()
    held = keep.left("scores") or {"scores": []}
    known = [
        Score(**fields) for fields in held["scores"]
    ]  # of the networks that an earlier run trained, in their order
    done: list[Score] = []
    inside = keep.inside(lambda: {"scores": [asdict(one) for one in done]})

    def judge(factor: float, seed: int, test: bool) -> Score:
        done.append(
            known[len(done)]
            if len(done) < len(known)
            else score(settings, flat, x, y, lr * factor, images, seed, test, inside)
        )
        return done[-1]

    found = {}
    for factor in settings.factors if len(settings.factors) > 1 else ():
        seeds = range(
            1000, 1000 + settings.search_networks
        )  # seeds of their own: choosing and scoring share no network
        found[factor] = fmean(judge(factor, seed, False).validation for seed in seeds)
    chosen = max(found, key=lambda factor: found[factor]) if found else settings.factors[0]
    rows = []
    for factor in dict.fromkeys([chosen, *(f for f in settings.factors if f == 1.0)]):
        protocols = ["lr_chosen"] * (factor == chosen) + ["lr_a"] * (factor == 1.0)
        for seed in range(settings.networks):
            result = judge(factor, seed, settings.test)
            shared = {
                "net_seed": seed,
                "architecture": settings.network.architecture,
                "lr": lr * factor,
                "lr_factor": factor,
            }
            scores = {"accuracy": result.test, "validation_accuracy": result.validation}
            best = {
                "best_on_validation": result.best_on_validation,
                "best_on_test": result.best_on_test,
            }
            rows += [
                shared | scores | best | {"protocol": protocol, "epochs": settings.epochs}
                for protocol in protocols
            ]
    return rows
