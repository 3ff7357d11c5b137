"""The bar under everything else: distilled images teach better than the real images that they
started from."""

from statistics import fmean, stdev

import pytest

from ddlib.runs import run
from ddlib.runs.store import Store
from ddlib.settings import Data, Distillation, Evaluation, Expert, Network, Selection

DATA, NET, SEEDS = Data(name="digits"), Network(width=8, depth=2), range(3)
EXPERTS = Expert(data=DATA, network=NET, lr=0.02, weight_decay=0.0, batch=64, epochs=3)
AST = {
    "inner_steps": 10,
    "matched_epochs": 1,
    "start_epochs": 2,
    "momentum": 0.9,
    "balance": True,
    "perturbation": 1.0,
}
BUDGET = {
    "n_experts": 2,
    "lr_images": 30.0,
    "a0": 0.02,
    "iterations": 30,
    "checks": 2,
    "check_epochs": 40,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("science"))


def test_distilled_images_beat_random_ones_by_more_than_the_spread(folder):
    """One image a class, three seeds; each seed's random images are judged as they are, and after
    distillation."""
    score = {"random": [], "distilled": []}
    for seed in SEEDS:
        random = Selection(data=DATA, method="real", lr=BUDGET["a0"], seed=seed)
        distilled = Distillation(experts=EXPERTS, start=random, seed=seed, **AST, **BUDGET)
        for name, made in (("random", random), ("distilled", distilled)):
            rows = run.get(Evaluation(of=made, network=NET, networks=2, epochs=40), folder).record[
                "rows"
            ]
            score[name].append(
                fmean(row["accuracy"] for row in rows if row["protocol"] == "lr_chosen")
            )
    gain = fmean(score["distilled"]) - fmean(score["random"])
    spread = max(stdev(values) for values in score.values())
    assert gain > spread, score
    assert all(after > before for before, after in zip(*score.values(), strict=True)), score
    assert fmean(score["random"]) > 0.2, score  # a bar that stands above chance, 0.1
