"""Claims: parts, their intervals and verdicts from rows made by hand, and the ledger of them."""

import random
import statistics

import numpy as np
import pandas as pd
import pytest

from ddlib.paper import claims
from ddlib.paper.claims import Part, mean, part, std
from ddlib.paper.results import Results


def test_mean_and_std_depend_on_no_order():
    values = [*np.random.default_rng(0).lognormal(0, 9, 100), float("nan")]
    known = values[:-1]
    assert std(values) == pytest.approx(statistics.stdev(known), rel=1e-12)
    assert mean(values) == statistics.fmean(known)
    shuffled = random.Random(0).sample(values, len(values))
    assert (mean(shuffled), std(shuffled)) == (mean(values), std(values))
    assert np.isnan(mean([])) and np.isnan(std([1.0]))


def test_what_would_settle_an_open_part():
    # half the interval needs four times as many
    assert Part("1a", "", effect=0.5, low=-0.5, high=1.5, n=5).settled_by == "about 20 seeds"
    assert Part("1a", "", -0.5, -1.0, 0.5, 4).settled_by == "about 16 seeds"
    assert Part("1a", "", 0.5, 0.1, 1.0, 5).settled_by == ""
    assert Part("1a", "", -0.5, -1.0, -0.1, 5).settled_by == ""
    assert "above 200" in Part("1a", "", 0.001, -1.0, 1.0, 5).settled_by
    assert "second seed" in part("", [0.3]).settled_by


def test_claim_four_asks_the_cells_that_have_every_seed(tmp_path):
    """A cell with fewer seeds than another takes no part."""
    full = {"random": [0.2, 0.4, 0.3, 0.5], "k-means": [0.5, 0.6, 0.55, 0.6]}
    full |= dict.fromkeys(("AST", "AST − representative start"), [0.5] * 4)
    few = {"random": [0.9, 0.1], "k-means": [0.1, 0.9]}
    lines = [
        (cell, method, seed, accuracy, "lr_chosen")
        for cell, methods in (("full", full), ("few", few))
        for method, seeds in methods.items()
        for seed, accuracy in enumerate(seeds)
    ]
    columns = ["cell", "method", "distil_seed", "accuracy", "protocol"]
    for study in ("main", "ablation"):
        Results(tmp_path).keep_rows(study, pd.DataFrame(lines, columns=columns))
    better, _, narrower = claims.CLAIMS[4][1](Results(tmp_path))
    random_images, k_means = full["random"], full["k-means"]
    assert better.n == narrower.n == 4
    assert better.effect == pytest.approx(np.mean(k_means) - np.mean(random_images))
    assert narrower.effect == pytest.approx(np.std(random_images, ddof=1) - np.std(k_means, ddof=1))


def test_the_ledger_says_all_of_the_table(tmp_path, monkeypatch):
    parts = [
        part("test accuracy, one − other", [0.01, -0.02, 0.04]),
        part("mean step length", [0.3, 0.4]),
    ]
    monkeypatch.setattr(claims, "CLAIMS", {1: ("Strong experts", lambda results: parts)})
    text = claims.ledger(Results(tmp_path))
    assert "## 1. Strong experts\n" in text
    assert "**inconclusive at this scale**, decided by 1a." in text
    line = "| 1a | test accuracy, one − other | +1.0 points | −2.0 points to +4.0 points | 3 |"
    assert f"{line} inconclusive at this scale | about " in text
    assert "| 1b | mean step length | +0.350 | +0.300 to +0.400 | 2 | supported |  |" in text
    table = claims.table(Results(tmp_path))
    assert table.claim.tolist() == ["1", "1a", "1b"] and table.effect[0] == table.effect[1]
