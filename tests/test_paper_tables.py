"""Tables follow their definitions, from rows made by hand, and are the same on every processor."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__

from ddlib.paper import figures, scores, tables
from ddlib.paper.results import Results
from ddlib.settings import InputError

HOME = Path(__file__).parent.parent
LAPTOP = Results(HOME / "results/laptop")
RENDER = """
import sys
from ddlib.paper.results import Results
from ddlib.paper.tables import TABLES
for name, table in TABLES.items():
    Results(sys.argv[2]).keep_table(name, table(Results(sys.argv[1])))
"""


def test_tables_are_the_same_with_and_without_wide_vectors(tmp_path):
    """In a process where numpy and torch may use none but the oldest instructions."""
    narrow = {
        "ATEN_CPU_CAPABILITY": "default",
        "NPY_DISABLE_CPU_FEATURES": " ".join(__cpu_dispatch__),
    }
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RENDER, LAPTOP.folder, tmp_path / "narrow"],
        env=os.environ | narrow | {"PYTHONPATH": str(HOME)},
        check=True,
    )
    for name, table in tables.TABLES.items():
        Results(tmp_path / "wide").keep_table(name, table(LAPTOP))
        for kind in ("csv", "md"):
            wide, other = (tmp_path / p / f"tables/{name}.{kind}" for p in ("wide", "narrow"))
            assert wide.read_bytes() == other.read_bytes(), f"{name}.{kind}"


def test_every_published_number_has_a_source_and_none_is_of_ast():
    rows = tables.published_rows()
    assert len(rows) > 80 and rows.source.str.len().gt(5).all()
    assert rows.accuracy.between(0, 100).all() and rows["std"].dropna().between(0, 10).all()
    assert set(rows.labels) == {"hard", "soft"} and not rows.method.str.contains("AST").any()
    assert not rows.duplicated(["method", "labels", "dataset", "ipc"]).any()


def test_published_numbers_are_all_shown_and_share_no_column_with_measured_ones():
    rows, table = tables.published_rows(), tables.published(LAPTOP)
    cells = [column for column in table if column not in ("data", "method", "labels", "source")]
    assert (table[cells] != "").sum().sum() == len(rows) and (table.source != "").all()
    mtt = table[(table.data == "CIFAR10") & (table.method == "MTT")]
    assert mtt["IPC 10"].item() == "65.4 ± 0.7"
    ours = table[table.method == "AST"]
    assert set(ours.data) == set(rows.dataset) and set(ours.source) == {"not available"}
    assert (ours[cells] == "").all(axis=None)
    for name in ("main", "summary", "ablation", "cross_architecture"):
        assert not set(cells) & set(tables.TABLES[name](LAPTOP).columns)


def judged(method, accuracy, **other):
    names = {"study": "main", "cell": "c", "data": "fashion_mnist, space mtt", "method": method}
    names |= {"ipc": 1, "protocol": "lr_chosen", "evaluation": "dc", "width": 128, "lr": 0.01}
    names |= {"norm": "instance", "architecture": "convnet", "lr_ties": 1, "lr_at_edge": False}
    return [
        names | {"distil_seed": s, "net_seed": 0, "accuracy": a} | other
        for s, a in enumerate(accuracy)
    ]


def test_ours_is_compared_with_what_was_published(tmp_path):
    rows = judged("DC", [0.70, 0.71]) + judged("DSA", [0.60, 0.61]) + judged("random", [0.5])
    rows += judged("DC", [0.7, 0.8], width=32) + judged("full data", [0.9], ipc=None)
    looks = [0.5, 0.6, 0.7, 0.8, 0.8, 0.804], [0.5, 0.6, 0.7, 0.8, 0.8, 0.806]
    curves = [
        {"study": "main", "cell": "c", "method": m, "iteration": i, "validation_accuracy": v}
        for m, some in zip(("DC", "DSA"), looks, strict=True)
        for i, v in enumerate(some)
    ]
    results = Results(tmp_path)
    results.keep_rows("main", pd.DataFrame(rows))
    results.keep_rows("curves", pd.DataFrame(curves))
    table = tables.benchmark(results)

    def line(method, width=128):
        (one,) = table[(table.method == method) & (table.width == width)].itertuples()
        return one

    dc, dsa = line("DC"), line("DSA")
    assert (dc.published, dc.verdict, dc.rising) == (70.5, "they meet", "")
    assert dc.iterations == 5 and np.isnan(line("random").iterations)
    assert dc.difference == pytest.approx(0) and (dc.sets, dc.networks) == (2, 2)
    assert (dsa.verdict, dsa.rising) == ("ours is below", "still rising")
    assert line("DC", 32).verdict == "another network or other labels"
    assert line("random").verdict == line("full data").verdict == "no published number"
    others = table[table.verdict == "not run here"]
    known = tables.published_rows()
    known = known[(known.dataset == "FashionMNIST") & (known.ipc == 1)]
    assert set(others.method) == set(known.method) - {"DC", "DSA"}
    assert not len(tables.benchmark(LAPTOP))


def test_robust_scores_at_known_points():
    assert scores.squash(-1.0) == pytest.approx(0) and scores.squash(1.0) == pytest.approx(1)


def network(method, seed, augmented, accuracy):
    names = {"cell": "c", "method": method, "distil_seed": seed, "augmented": augmented}
    return names | {"labels": "own", "accuracy": accuracy, "protocol": "lr_chosen"}


SETS = [(seed, augmented) for seed in (0, 1) for augmented in (True, False)]
HAND = pd.DataFrame(
    [network("full data", 0, True, accuracy) for accuracy in (0.9, 1.0)]
    + [network("random", s, a, 0.2 + 0.1 * s - 0.1 * (not a)) for s, a in SETS]
    + [network("good", s, a, 0.65 if a else 0.5) for s, a in SETS]
)


def squashed(*values):
    return pytest.approx([scores.squash(x) for x in values])


def test_robust_scores_of_rows_are_paired_by_seed():
    by_seed = scores.by_seed(HAND)
    assert by_seed.loc["random"][["ior", "ior_plain"]].eq(0).all(axis=None)
    good = by_seed.loc["good"]
    assert good.hlr.tolist() == pytest.approx([0.3, 0.3])
    assert good.ior.tolist() == pytest.approx([0.45, 0.35])
    assert good.ior_plain.tolist() == pytest.approx([0.4, 0.3])
    assert good.lrs.tolist() == squashed(0.075, 0.025)
    assert good.ars.tolist() == squashed(0.425, 0.325)
    with pytest.raises(InputError, match="lack full data"):
        scores.by_seed(HAND[HAND.method != "full data"])


def test_hlr_is_of_hard_labels_where_a_set_has_soft_ones():
    good = HAND[(HAND.method == "good") & HAND.augmented]
    hard = good.assign(labels="hard", accuracy=good.accuracy - 0.2)
    both, soft = scores.by_seed(pd.concat([HAND, hard])), scores.by_seed(HAND)
    assert both.loc["good"].hlr.tolist() == pytest.approx([0.5, 0.5])
    others = ["ior", "ior_plain", "ars"]
    assert both[others].equals(soft[others]) and both.loc["random"].equals(soft.loc["random"])
    assert both.loc["good"].lrs.tolist() == squashed(-0.025, -0.075)


def test_soft_labels_of_one_expert_may_take_the_lead_over_random_away():
    same = [network(m, s, True, 0.7 + 0.1 * s) for m in ("random", "good") for s in (0, 1)]
    by_seed = scores.by_seed(pd.concat([HAND, pd.DataFrame(same).assign(labels="teacher")]))
    assert by_seed.taught.tolist() == pytest.approx([0.7, 0.8] * 2)
    assert by_seed.ior_taught.abs().max() < 1e-12 and (by_seed.loc["good"].ior > 0.3).all()
    assert scores.by_seed(HAND).taught.isna().all()


def test_the_matching_loss_is_ranked_beside_the_error_at_each_check(tmp_path):
    losses = {"follows": [4, 2, 3, 1, 2, 0], "opposes": [0, 1, 2, 3, 4, 5], "short": [2, 1]}
    curves = [
        {"study": "main", "cell": "c", "method": m, "distil_seed": s, "iteration": i, "loss": x}
        | {"validation_accuracy": 0.5 + 0.1 * i if i % 2 else np.nan}
        for m, some in losses.items()
        for s in (0, 1)
        for i, x in enumerate(some)
    ]
    results = Results(tmp_path)
    results.keep_rows("curves", pd.DataFrame(curves))
    table = tables.tracking(results).set_index("method")
    assert table.correlation.to_dict() == pytest.approx({"follows": 1, "opposes": -1})
    assert (table.seeds == 2).all()


def run(method, group, base, seed, accuracy):
    names = {"cell": "c", "method": method, "group": group, "base": base, "distil_seed": seed}
    names |= {"net_seed": 0, "protocol": "lr_chosen", "accuracy": accuracy}
    return names | {"lr": 0.01, "lr_ties": 1, "lr_at_edge": False}


def test_a_change_is_paired_with_its_own_base_by_seed(tmp_path):
    values = {"AST": 0.3, "AST − ramp": 0.25}
    rows = [run(m, "g", "AST", s, x + 0.1 * s) for s in range(5) for m, x in values.items()]
    values = {"MTT": 0.6, "MTT + balanced loss": 0.63}
    rows += [run(m, "h", "MTT", s, x - 0.05 * s) for s in range(5) for m, x in values.items()]
    for row in rows:
        row["accuracy"] += 0.001 * row["distil_seed"] * (row["method"] == "AST − ramp")
    Results(tmp_path).keep_rows("ablation", pd.DataFrame(rows))
    table = tables.ablation(Results(tmp_path)).set_index("method")
    assert table.difference["AST − ramp"] == pytest.approx(-4.8)
    assert table.difference["MTT + balanced loss"] == pytest.approx(3)
    # by seed only that of the last line but two is left
    assert table.high["AST − ramp"] == pytest.approx(-4.8 + 2.776 * 0.1581 / 5**0.5, rel=1e-3)
    assert table.pairs["AST − ramp"] == 5 and table.accuracy["AST"] == "50.0 ± 15.8 (5 × 1)"
    assert table.difference[["AST", "MTT"]].isna().all()


def test_the_best_of_each_search_is_starred_with_ties_and_edges(tmp_path):
    names = ("choosing", "method", "tried", "validation_accuracy")
    lines = [
        ("settings", "AST", "lr_images = 1, a0 = 0.1", 0.1),
        ("settings", "AST", "lr_images = 3, a0 = 0.1", 0.3),
        ("settings", "AST", "lr_images = 9, a0 = 0.2", 0.3),
        ("settings", "MTT", "lr_images = 1", 0.2),
        ("method", "AST", "as it is", 0.4),
        ("method", "MTT", "as it is", 0.5),
    ]
    rows = pd.DataFrame(lines, columns=names).assign(cell="c", iterations=5, protocol="lr_chosen")
    assert tables.tuning(Results(tmp_path)).empty
    Results(tmp_path).keep_rows("tuning", rows.assign(distil_seed=0))
    table = tables.tuning(Results(tmp_path))
    assert table.best.tolist() == ["", "*", "*", "*", "", "*"]
    assert table.edge.tolist() == ["", "a0", "lr_images, a0", "", "", ""]


def test_table_and_figure_show_the_same_spread():
    """The one in the README and the bar in the figure: over sets, of each its networks' mean."""
    rows = pd.DataFrame(
        run("AST", "g", "AST", seed, 0.1 * seed + 0.01 * net) | {"net_seed": net}
        for seed in range(3)
        for net in range(4)
    )
    sets = rows.groupby("distil_seed").accuracy.mean()
    expected = f"{100 * sets.mean():.1f} ± {100 * sets.std():.1f} (3 × 4)"
    assert tables.scored(rows)["accuracy"] == tables.spread(rows) == expected
    figure = figures.dots(rows.assign(cell="c"), "cell", ["AST"])
    bar = next(line for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2)
    assert np.ptp(bar.get_xdata()) / 2 == pytest.approx(100 * sets.std())
