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
    assert "more seeds" in part("", [0.3]).settled_by
    assert part("", []).verdict == claims.UNTESTED


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
    away = [np.abs(x - np.median(x)).mean() for x in map(np.array, (random_images, k_means))]
    assert narrower.effect == pytest.approx(away[0] - away[1])


@pytest.mark.parametrize("step, read", [(2.1, True), (1.9, False), (None, True)])
def test_claims_about_smoothness_are_read_only_where_experts_are_rough(step, read, tmp_path):
    """Momentum's step is so many times SGD's; without rows of it the other parts decide."""
    results, lines = Results(tmp_path), []
    for recipe, longer in (("sgd", 1.0), ("momentum", step), ("ast", 0.5), ("adam", 1.0)):
        for seed in range(3 if longer else 0):
            row = {"data": "d", "recipe": recipe, "expert_seed": seed, "test_accuracy": 0.9}
            lines.append(row | {"step": longer * (1 + seed / 9), "longest_step": longer})
    results.keep_rows("smoothness", pd.DataFrame(lines))
    accuracy = {"AST, SGD experts": 0.8, "AST, unsmoothed experts": 0.6}
    rows = [
        {
            "cell": "c",
            "method": m,
            "distil_seed": s,
            "accuracy": a + s / 99,
            "protocol": "lr_chosen",
        }
        for m, a in accuracy.items()
        for s in range(3)
    ]
    results.keep_rows("ablation", pd.DataFrame(rows))
    table = claims.table(results).set_index("claim")
    assert (table.verdict["1"] != claims.UNTESTED) == read
    words = "decided by the precondition: momentum's steps are 1.90 times as long as SGD's"
    assert (words in table.statement["1"]) == (not read)
    assert table.settled_by["1"] == "experts that move more abruptly" or read
    assert words in claims.ledger(results) or read, "the ledger says it, too"
    assert table.verdict["1b"] != claims.UNTESTED, "the parts stay as they were measured"


def test_the_ledger_says_all_of_the_table(tmp_path, monkeypatch):
    parts = [
        part("test accuracy, one − other", [0.01, -0.02, 0.04]),
        part("mean step length", [0.34, 0.35, 0.36]),
    ]
    monkeypatch.setattr(claims, "CLAIMS", {1: ("Strong experts", lambda results: parts)})
    text = claims.ledger(Results(tmp_path))
    assert "## 1. Strong experts\n" in text
    assert "**inconclusive at this scale**, decided by 1a." in text
    line = "| 1a | test accuracy, one − other | +1.0 points | −6.5 points to +8.5 points | 3 |"
    assert f"{line} inconclusive at this scale | about " in text
    assert "| 1b | mean step length | +0.350 | +0.325 to +0.375 | 3 | supported |  |" in text
    table = claims.table(Results(tmp_path))
    assert table.claim.tolist() == ["1", "1a", "1b"] and table.effect[0] == table.effect[1]


DRAWS = {  # of a difference between two sides
    "normal": lambda chance, n: chance.normal(size=n),
    "of flat ones": lambda chance, n: chance.uniform(size=n) - chance.uniform(size=n),
    "peaked": lambda chance, n: chance.laplace(size=n),
}


@pytest.mark.parametrize("n", [3, 4, 5, 10])
@pytest.mark.parametrize("shape", DRAWS)
def test_intervals_cover_the_truth_as_often_as_they_say(shape, n):
    """Of the mean, and of the spread, where two sides are alike; 2 000 times."""
    chance = np.random.default_rng(n)
    missed = {"mean": 0, "spread": 0}
    index = pd.MultiIndex.from_product([["c"], range(n)], names=["cell", "seed"])
    for i in range(2000):
        measured = part("", DRAWS[shape](chance, n))
        missed["mean"] += not measured.low <= 0 <= measured.high
        if i % 8 == 0:
            one, other = (pd.Series(DRAWS[shape](chance, n), index) for _ in range(2))
            measured = part("", claims.strays(one) - claims.strays(other), spare=1)
            missed["spread"] += 8 * (not measured.low <= 0 <= measured.high)
    room = 3 * np.sqrt(0.05 * 0.95 * np.array([1, 8]) / 2000)
    assert missed["mean"] / 2000 <= 0.05 + room[0] and missed["spread"] / 2000 <= 0.05 + room[1]


@pytest.mark.parametrize("parts", [1, 3, 8])
def test_null_parts_refute_a_claim_no_more_often_than_one_may(parts):
    """Nor do they support it: that takes all of them."""
    chance, verdicts = np.random.default_rng(parts), []
    for _ in range(1500):
        some = [part("", chance.normal(size=4)) for _ in range(parts)]
        verdicts.append(claims.decide(some).verdict)
    assert verdicts.count(claims.NOT) / 1500 <= 0.05
    assert verdicts.count(claims.SUPPORTED) / 1500 <= 0.05


def test_a_claim_is_decided_by_all_its_parts():
    good, bad = (
        part(word, sign * np.array([1.0, 1.1, 0.9])) for word, sign in (("g", 1), ("b", -1))
    )
    open_ = part("o", [-1.0, 1.2, 0.3])
    assert claims.decide([good, good]).verdict == claims.SUPPORTED
    assert claims.decide([good, open_]).verdict == claims.OPEN
    decided = claims.decide([good, open_, bad])
    assert (decided.verdict, decided.statement) == (claims.NOT, "b")
    assert claims.decide([good, part("", [])]).verdict == claims.OPEN
    assert claims.decide([part("", [])]).verdict == claims.UNTESTED
    # refuted at 95 %, but not where three parts had the chance to be
    near = part("n", [-1.0, -1.15, -0.45, -0.9, -0.1])
    assert near.high < 0 < near.at(1 - 0.05 / 30).high


def network(cell, method, seed, accuracy, content):
    names = {"cell": cell, "method": method, "distil_seed": seed, "net_seed": 0}
    return names | {"accuracy": accuracy, "set": content, "protocol": "lr_chosen"}


def test_seeds_that_made_the_same_set_count_once():
    rows = [network("c", "a", seed, 0.5 + 0.1 * seed, f"{seed % 3}") for seed in range(5)]
    rows += [network("c", "b", seed, 0.4, f"b{seed}") for seed in range(5)]
    rows = pd.DataFrame(rows)
    assert len(claims.accuracy(rows, "a")) == 3 and len(claims.accuracy(rows, "b")) == 5
    assert len(claims.paired(rows, "a", "b")) == 3


def test_a_method_on_two_cells_of_the_ablation_is_not_pooled(tmp_path):
    rows = [
        network(cell, method, seed, level + 0.01 * seed * (method == "AST"), f"{method}{seed}")
        for cell, level in (("first", 0.3), ("second", 0.9))
        for method in ("AST", "AST, SGD experts")
        for seed in range(3)
    ]
    rows = pd.DataFrame(rows)
    rows.loc[rows.cell == "second", "accuracy"] *= 0.5
    Results(tmp_path).keep_rows("ablation", rows)
    sgd, *others = claims.smooth_experts(Results(tmp_path))
    assert sgd.effect == pytest.approx(0.01) and sgd.n == 3
    assert [other.verdict for other in others] == [claims.UNTESTED] * 2


def test_every_claim_has_a_verdict_whatever_a_profile_lacks(tmp_path):
    for study in (None, "main", "ablation", "smoothness", "following", "curves"):
        if study:
            one = pd.DataFrame([network("c", "random", seed, 0.5, f"{seed}") for seed in (0, 1)])
            more = {"data": "d", "recipe": "sgd", "step": 1.0, "longest_step": 2.0}
            more |= {"test_accuracy": 0.5, "error": 1.0, "epoch": 1, "iteration": 1, "loss": 1.0}
            rows = one.assign(**more, expert_seed=one.distil_seed, start=0, study="ablation")
            Results(tmp_path).keep_rows(study, rows)
        table = claims.table(Results(tmp_path))
        whole = table[table.claim.str.isdigit()]
        assert len(whole) == 8 and set(whole.verdict) <= {claims.UNTESTED, claims.OPEN}
        assert claims.ledger(Results(tmp_path)).count("\n## ") == 8


def test_a_small_number_is_never_printed_as_zero():
    assert (
        claims.in_words("step", -0.0004) == "−0.0004" and claims.in_words("step", 0.0) == "+0.000"
    )
    assert claims.in_words("test accuracy", 0.0004) == "+0.04 points"
    assert claims.in_words("test accuracy", -0.0) == "+0.0 points"
