"""What sets are good for besides: forgetting, paired differences and rank correlations follow their definitions on rows made by hand; arms differ in the set alone."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from ddlib import settings as config
from ddlib.data import datasets as data
from ddlib.method import networks
from ddlib.paper import build as press
from ddlib.paper import figures as plots
from ddlib.paper import paper, reuse, tables
from ddlib.paper.results import Results
from ddlib.runs import studies
from ddlib.settings import Continual, Evaluation

R = [[0.9], [0.5, 0.8], [0.6, 0.7, 0.4]]  # of one network through three tasks
SMOKE = config.profile("smoke")


def stream(method, seed, shift=0.0):
    shared = {
        "cell": "c",
        "data": "d",
        "method": method,
        "ipc": None if method == "no memory" else 1,
        "seed": seed,
    }
    return [
        shared | {"after": t, "on": j, "accuracy": R[t][j] + shift * (t == 2)}
        for t in range(3)
        for j in range(t + 1)
    ]


def judged(method, network, seed, validation, test=0.5):
    shared = {
        "cell": "c",
        "data": "d",
        "method": method,
        "ipc": 1,
        "distil_seed": seed,
        "network": network,
        "protocol": "lr_chosen",
    }
    return [
        shared | {"validation_accuracy": validation + e, "accuracy": test + e}
        for e in (-0.01, 0.01)
    ]  # two networks


NAMES, TRUTH = (
    [f"convnet {n} × 1" for n in range(6)] + ["vit 4"],
    [0.3, 0.7, 0.5, 0.9, 0.8, 0.2, 0.6],
)


@pytest.fixture
def kept(tmp_path):
    """Results with rows of both studies: `AST` helps the memory by the same at every seed and ranks as the truth does, `random` ranks the other way."""
    held = Results(tmp_path)
    found = []
    for seed in range(5):
        for method, shift in (
            ("random", 0.0),
            ("AST", 0.1),
            ("no memory", 0.1 if seed % 2 else -0.1),
        ):
            found += stream(method, seed, 0.02 * seed + shift)
    held.keep_rows("continual", pd.DataFrame(found))
    found = [
        row for n, t in zip(NAMES, TRUTH, strict=True) for row in judged("full data", n, 0, t, t)
    ]
    found += [
        row
        for seed in range(2)
        for n, t in zip(NAMES, TRUTH, strict=True)
        for row in judged("AST", n, seed, t / 2) + judged("random", n, seed, 1 - t)
    ]
    held.keep_rows("architectures", pd.DataFrame(found))
    return held


def test_forgetting_is_what_was_once_known_and_is_no_more():
    found = reuse.remembered(pd.DataFrame(stream("random", 0)))
    assert found.accuracy.item() == pytest.approx((0.6 + 0.7 + 0.4) / 3)
    assert found.forgetting.item() == pytest.approx(((0.9 - 0.6) + (0.8 - 0.7)) / 2)
    one = reuse.remembered(pd.DataFrame(stream("random", 0))[:1])
    assert one.accuracy.item() == 0.9 and one.forgetting.isna().all()


def test_memories_are_paired_with_random_images_by_seed(kept):
    table = tables.TABLES["continual"](kept).set_index("memory")
    for name in ("accuracy", "forgetting"):
        ends = [table[f"{name}_{column}"]["AST"] for column in ("difference", "low", "high")]
        assert ends == pytest.approx([10, 10, 10])  # by seed no spread is left
        assert table[f"{name}_verdict"]["AST"] == "better than random real images" and pd.isna(
            table[f"{name}_verdict"]["random"]
        )
    assert (
        table.accuracy_difference["no memory"] == pytest.approx(-2)
        and table.accuracy_verdict["no memory"] == "no difference shown"
    )
    assert table.seeds.eq(5).all() and table.accuracy_std["AST"] == pytest.approx(
        100 * np.std([0.02 * seed for seed in range(5)], ddof=1)
    )


def test_identical_rows_rank_alike(kept):
    held, table = reuse.points(kept), tables.TABLES["architectures"](kept).set_index("method")
    assert held.truth.loc[NAMES].tolist() == pytest.approx(TRUTH) and held["full data"].equals(
        held.truth.rename("full data")
    )
    for method, expected in (("full data", 1), ("AST", 1), ("random", -1)):
        assert [
            table[column][method] for column in ("correlation", "low", "high")
        ] == pytest.approx([expected] * 3)
        assert table.correlation[method] == pytest.approx(
            spearmanr(held[method], held.truth).statistic
        )
    assert table.taken["AST"] == NAMES[3] and table.missed["AST"] == pytest.approx(0)
    assert (
        table.taken["random"] == NAMES[5]
        and table.missed["random"] == pytest.approx(70)
        and table.true_accuracy["random"] == pytest.approx(20)
    )


def test_two_methods_are_compared_on_the_same_networks(kept):
    forth, back, same = (
        reuse.better(kept, *pair)
        for pair in (("AST", "random"), ("random", "AST"), ("AST", "full data"))
    )
    assert (
        forth.effect == pytest.approx(2)
        and forth.verdict == "supported"
        and back.verdict == "not supported"
    )
    assert (back.effect, back.low, back.high) == pytest.approx(
        (-forth.effect, -forth.high, -forth.low)
    )
    assert (same.effect, same.low, same.high, same.n) == pytest.approx(
        (0, 0, 0, len(NAMES))
    ) and same.verdict == "inconclusive at this scale"


def test_seconds_are_summed_over_networks_and_a_set_costs_its_experts(kept):
    assert (
        reuse.seconds(kept) == {}
        and tables.TABLES["architectures"](kept).training_seconds.isna().all()
    )
    lines = [
        {
            "method": m,
            "distil_seed": s,
            "network": n,
            "processor_seconds": 2.0 + s,
            "experts_seconds": 0.0,
        }
        for m in ("random", "AST")
        for s in (0, 1)
        for n in "ab"
    ]
    lines += [
        {
            "method": "AST",
            "distil_seed": s,
            "network": "the set itself",
            "processor_seconds": 30.0 + 2 * s,
            "experts_seconds": 50.0,
        }
        for s in (0, 1)
    ]
    kept.keep_rows("choices", pd.DataFrame(lines))
    assert reuse.seconds(kept) == {
        "random": {"training_seconds": 5.0, "making_seconds": 0.0},
        "AST": {"training_seconds": 5.0, "making_seconds": 81.0},
    }
    kept.keep_rows(
        "choices", pd.DataFrame(lines).assign(processor_seconds=None, experts_seconds=None)
    )
    assert np.isnan(list(reuse.seconds(kept)["AST"].values())).all()


def differing(one, other):
    one, other = (settings.model_dump() for settings in (one, other))
    return {name for name in one if one[name] != other[name]}


@pytest.mark.parametrize("name", ["smoke", "laptop", "laptop-full", "cifar10-ipc1"])
def test_arms_differ_in_the_memory_and_in_the_set_alone(name):
    profile = config.profile(name)
    arms, seeds = {}, set()
    for label, settings in studies.continual(profile):
        arms.setdefault(label["seed"], {})[label["method"]] = settings
        seeds.add(label["seed"])
    expected = [
        studies.NOTHING,
        "random",
        "k-means",
        *["DM"] * (name != "cifar10-ipc1"),
        "AST",
        studies.CEILING,
    ]
    assert len(seeds) == len(studies.seeds(profile, profile.cross_architecture.cells[0])) and all(
        list(mine) == expected for mine in arms.values()
    )
    for seed, mine in arms.items():
        assert {settings.seed for settings in mine.values()} == {seed} and mine[
            studies.NOTHING
        ].memory is None
        assert all(
            differing(settings, mine["random"]) == {"memory"}
            for method, settings in mine.items()
            if method != "random"
        )
    judged = list(studies.architectures(profile))
    pool, shape = studies.pool(profile), data.about(judged[0][1].of.data).shape
    assert (
        10 <= len(pool) <= 13
        and profile.network in pool.values()
        and all(networks.build(one, shape, 10) for one in pool.values())
    )
    for method in ("random", "AST"):
        mine = [
            (label["network"], settings)
            for label, settings in judged
            if (label["method"], label["distil_seed"]) == (method, 0)
        ]
        assert {words: settings.network for words, settings in mine} == pool and all(
            differing(settings, mine[0][1]) <= {"network"} for _, settings in mine
        )


def test_a_store_keeps_them_and_the_plan_of_a_cell_is_as_it_was():
    wanted = {
        settings for _, settings in (*studies.continual(SMOKE), *studies.architectures(SMOKE))
    }
    assert wanted <= set(studies.asked(SMOKE)) and not any(
        isinstance(settings, Continual) for settings in studies.everything(SMOKE)
    )
    noted = [settings for _, settings in paper.STUDIES["choices"].asks(SMOKE)]
    assert {settings for settings in noted if isinstance(settings, Evaluation)} == {
        settings for settings in wanted if isinstance(settings, Evaluation)
    }
    assert {settings.seed for settings in noted if not isinstance(settings, Evaluation)} == {0}
    assert press.NEEDS["12_continual"] == ["continual"] and set(
        press.NEEDS["13_architectures"]
    ) == {"architectures", "choices"}


def test_figures_are_drawn_from_rows_alone(kept):
    scored = [
        (m, s, n, mean + 0.01 * (s + n))
        for m, mean in (("random", 0.3), ("AST", 0.4))
        for s in (0, 1)
        for n in (0, 1)
    ]
    rows = pd.DataFrame(
        [*scored, ("full data", 0, 0, 0.9)],
        columns=["method", "distil_seed", "net_seed", "accuracy"],
    )
    kept.keep_rows("own", rows.assign(cell="mine", protocol="lr_chosen"))
    with plots.style():
        figures = {
            name: plots.FIGURES[name](kept) for name in ("own", "continual", "architectures")
        }
    left, right = figures["continual"].axes
    assert [line.get_label() for line in left.lines if not line.get_label().startswith("_")] == [
        "random",
        "AST",
        "no memory",
    ] and [text.get_text() for text in right.get_yticklabels()] == ["AST"]
    assert left.lines[1].get_ydata()[-1] == pytest.approx(100 * (np.mean(R[2]) + 0.1 + 0.04))
    assert [ax.get_title().splitlines()[0] for ax in figures["architectures"].axes] == [
        "AST: rank correlation",
        "random: rank correlation",
    ]
    assert figures["own"].axes[0].get_title().startswith("mine\nn = 2 × 2")
