"""The instruments of the evidence: published numbers keep apart, scores and rank correlations follow their definitions, costs are noted and no artefact holds them."""

import mmap
import os
import signal
import time

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr
from test_keeper import dies_at, in_a_child
from test_pipeline import SET, START
from test_pipeline import done as done  # a store filled by one process
from test_pipeline import halfway as halfway

from ddlib import settings as config
from ddlib.paper import build as press
from ddlib.paper import figures as plots
from ddlib.paper import paper, scores, tables, teaching
from ddlib.paper.paper import HOME
from ddlib.paper.published import published
from ddlib.paper.results import NoRows, Results
from ddlib.runs import stages as pipeline
from ddlib.runs import status as upkeep
from ddlib.runs import studies
from ddlib.runs.meter import Meter
from ddlib.settings import InputError, key

LAPTOP = Results(HOME / "results/laptop")


def test_every_published_number_has_a_source_and_none_is_of_ast():
    rows = published()
    assert (
        len(rows) > 80
        and rows.source.str.len().gt(5).all()
        and rows.accuracy.between(0, 100).all()
        and rows["std"].dropna().between(0, 10).all()
    )
    assert set(rows.labels) == {"hard", "soft"} and not rows.method.str.contains("AST").any()
    assert not rows.duplicated(["method", "labels", "dataset", "ipc"]).any()


def test_the_table_of_published_numbers_shows_all_of_them_and_shares_no_column_with_measured_ones():
    rows, table = published(), tables.TABLES["published"](LAPTOP)
    cells = [column for column in table if column not in ("data", "method", "labels", "source")]
    assert (table[cells] != "").sum().sum() == len(rows) and (table.source != "").all()
    assert (
        table[(table.data == "CIFAR10") & (table.method == "MTT")]["IPC 10"].item() == "65.4 ± 0.7"
    )
    ours = table[table.method == "AST"]
    assert (
        set(ours.data) == set(rows.dataset)
        and (ours[cells] == "").all(axis=None)
        and set(ours.source) == {"not available"}
    )
    for name in ("main", "summary", "ablation", "cross_architecture"):
        assert not set(cells) & set(tables.TABLES[name](LAPTOP).columns)


def test_robust_scores_at_known_points():
    assert scores.squash(-1.0) == pytest.approx(0) and scores.squash(1.0) == pytest.approx(1)
    assert scores.label_robust(1.0, -1.0) == pytest.approx(1) and scores.label_robust(
        -1.0, 1.0
    ) == pytest.approx(0)
    assert scores.label_robust(0.3, 0.7, weight=1.0) == scores.squash(0.3) and scores.label_robust(
        0.3, 0.7, weight=0.0
    ) == scores.squash(-0.7)
    assert scores.augmentation_robust(0.2, 0.4) == pytest.approx(scores.squash(0.3))


def network(method, seed, augmented, accuracy):
    return {
        "cell": "c",
        "method": method,
        "distil_seed": seed,
        "augmented": augmented,
        "labels": "own",
        "accuracy": accuracy,
        "protocol": "lr_chosen",
    }


HAND = pd.DataFrame(
    [network("full data", 0, True, 0.9), network("full data", 0, True, 1.0)]
    + [
        network("random", seed, augmented, 0.2 + 0.1 * seed - 0.1 * (not augmented))
        for seed in (0, 1)
        for augmented in (True, False)
    ]
    + [
        network("good", seed, augmented, 0.65 if augmented else 0.5)
        for seed in (0, 1)
        for augmented in (True, False)
    ]
)


def test_robust_scores_of_rows_are_paired_by_seed():
    found = scores.by_seed(HAND)
    assert found.loc["random"][["ior", "ior_plain"]].eq(0).all(axis=None)
    assert found.loc["good"].hlr.tolist() == pytest.approx([0.3, 0.3])
    assert found.loc["good"].ior.tolist() == pytest.approx([0.45, 0.35]) and found.loc[
        "good"
    ].ior_plain.tolist() == pytest.approx([0.4, 0.3])
    assert found.loc["good"].lrs.tolist() == pytest.approx(
        [scores.squash(x) for x in (0.075, 0.025)]
    )
    assert found.loc["good"].ars.tolist() == pytest.approx(
        [scores.squash(x) for x in (0.425, 0.325)]
    )
    with pytest.raises(InputError, match="lack full data"):
        scores.by_seed(HAND[HAND.method != "full data"])


def test_scores_add_only_evaluations_without_augmentation():
    profile = config.profile("smoke")
    paid = {run.settings for run in studies.main(profile)}
    runs = list(studies.scores(profile))
    assert all(run.settings in paid for run, how in runs if how["augmented"])
    assert all(
        run.settings.strategies == () and run.settings not in paid
        for run, how in runs
        if not how["augmented"]
    )
    assert {run.method for run, how in runs if not how["augmented"]} == set(
        next(iter(profile.cells.values())).methods
    )
    assert {run.settings for run, _ in runs} <= set(studies.asked(profile))
    assert {how["labels"] for _, how in runs} == {"own"}  # no set of these has soft ones


def test_hard_labels_are_what_hlr_is_made_of_where_a_set_has_soft_ones():
    hard = HAND[(HAND.method == "good") & HAND.augmented].assign(
        labels="hard", accuracy=lambda rows: rows.accuracy - 0.2
    )
    found, soft = scores.by_seed(pd.concat([HAND, hard])), scores.by_seed(HAND)
    assert found.loc["good"].hlr.tolist() == pytest.approx([0.5, 0.5])
    assert found[["ior", "ior_plain", "ars"]].equals(
        soft[["ior", "ior_plain", "ars"]]
    ) and found.loc["random"].equals(soft.loc["random"])
    assert found.loc["good"].lrs.tolist() == pytest.approx(
        [scores.squash(x) for x in (-0.025, -0.075)]
    )


def test_rank_correlations_are_scipys():
    chance = np.random.default_rng(1)
    for n in (4, 9):
        x, y = chance.integers(0, 5, (2, n)).astype(float)  # with ties
        assert teaching.correlations(x, y) == pytest.approx(spearmanr(x, y).statistic)
    x = np.arange(12.0)
    assert teaching.correlations(x, np.exp(x)) == pytest.approx(1) and teaching.interval(
        x, np.exp(x)
    ) == pytest.approx((1, 1))
    low, high = teaching.interval(x, chance.permutation(x))
    assert low < 0 < high and (low, high) != teaching.interval(x, -x)
    assert np.isnan(teaching.interval(x, np.ones(12))).all()


def test_teachers_differ_in_their_experts_alone():
    ours = {"AST": studies.AST} | studies.COMPOSED | studies.MINUS | studies.CONTROLS
    alike = {
        name: how.recipe
        for name, how in ours.items()
        if (how.start, how.switches) == (studies.AST.start, studies.AST.switches)
    }
    assert alike == teaching.TAUGHT


def test_what_no_rows_are_there_for_is_left_out_and_named(tmp_path, monkeypatch, capsys):
    some = tmp_path / "laptop"
    some.mkdir()
    for part in ("rows", "sets"):
        (some / part).symlink_to(LAPTOP.folder / part)
    monkeypatch.setenv("RESULTS", str(tmp_path))
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    few = {name: plots.FIGURES[name] for name in ("teachers", "walltime")}
    monkeypatch.setattr(plots, "FIGURES", few)
    monkeypatch.setattr(
        tables, "TABLES", {name: tables.TABLES[name] for name in ("published", "costs")}
    )
    monkeypatch.setattr(
        Results,
        "rows",
        lambda self, name, rows=Results.rows: absent(name) if name == "costs" else rows(self, name),
    )
    press.figures("laptop")
    said = capsys.readouterr().out
    assert (
        "The table costs is left out: no costs" in said
        and "The figure walltime is left out: no costs" in said
        and "1 tables and 1 figures" in said
    )
    assert (some / "figures/teachers.png").exists() and (some / "tables/published.md").exists()


def absent(name):
    raise NoRows(f"no {name}")


def test_costs_are_noted_beside_the_artefact_over_all_its_runs(done, halfway, monkeypatch):
    """Killed, really, after its third checkpoint; the slept seconds of both runs are in the note, and the artefact has the bytes of an undisturbed one."""
    monkeypatch.setenv("CHECKPOINT", "0")

    def slowly(*arguments):
        for step in distil(*arguments):
            time.sleep(0.1)
            yield step

    distil = pipeline.distil
    monkeypatch.setattr(pipeline, "distil", slowly)

    def life():
        dies_at(3, half=False)
        pipeline.get(SET, halfway)

    assert in_a_child(life) == -signal.SIGKILL and halfway.note(SET) is None
    kept = halfway.resume(SET).record["spent"]
    assert kept["runs"] == 1 and kept["seconds"] > 0.1
    pipeline.get(SET, halfway)
    note = halfway.note(SET)
    assert (
        note["runs"] == 2
        and note["seconds"] >= 0.6
        and note["seconds"] > note["processor_seconds"] > kept["processor_seconds"]
    )
    assert halfway.file(SET).read_bytes() == done.file(SET).read_bytes()


def test_a_row_of_costs_and_what_it_lacks_without_notes(done):
    (line,) = paper.cost(done.load(SET).record | {"spent": pipeline.spent(SET, done)})
    assert (
        line["iterations"] == SET.iterations
        and line["lr"] == done.load(SET).record["lr"]
        and line["runs"] == 1
    )
    assert (
        0 < line["seconds"] < 600
        and 0 < line["processor_seconds"] < 600
        and 50 < line["megabytes"] < 1e5
        and line["experts_seconds"] > 0
    )
    note = done.note_file(SET)
    content = note.read_bytes()
    for broken in (b"", b"[]", b"{}"):
        note.write_bytes(broken)
        (older,) = paper.cost(done.load(SET).record | {"spent": pipeline.spent(SET, done)})
        assert (
            older["seconds"] is None
            and older["megabytes"] is None
            and older["experts_seconds"] == line["experts_seconds"]
        )
    note.write_bytes(content)


def test_without_times_the_figure_and_the_table_say_so(tmp_path):
    some = Results(tmp_path)
    curves = [
        {
            "study": "main",
            "cell": "a",
            "method": "AST",
            "distil_seed": 0,
            "iteration": i,
            "validation_accuracy": 0.1 * i,
            "settings_key": "k",
        }
        for i in (1, 2)
    ]
    some.keep_rows("curves", pd.DataFrame(curves))
    nothing = dict.fromkeys(("seconds", "processor_seconds", "megabytes", "experts_seconds"))
    cost = {
        "study": "main",
        "cell": "a",
        "method": "AST",
        "distil_seed": 0,
        "lr": 0.1,
        "iterations": 2,
        **nothing,
        "settings_key": "k",
    }
    some.keep_rows("costs", pd.DataFrame([cost]))
    words = [text.get_text() for text in plots.walltime(some).axes[0].texts]
    assert words == ["made before\ntimes were noted"]
    (line,) = tables.costs(some).to_dict("records")
    assert (line["sets"], line["noted"]) == (1, 0) and np.isnan(line["seconds"])
    some.keep_rows("costs", pd.DataFrame([cost | {"seconds": 8.0}]))
    axes = plots.walltime(some).axes[0]
    assert not axes.texts and axes.get_lines()[0].get_xdata().tolist() == [4.0, 8.0]
    assert tables.costs(some).noted.item() == 1


def test_notes_that_nobody_needs_are_leftovers(done):
    needed = {key(SET), key(START)}
    found = {
        file
        for file, why in upkeep.leftovers(done, needed, set())
        if file.parent.name == "notes" and why == "no profile needs it"
    }
    assert found and done.note_file(SET) not in found and done.note_file(START) not in found
    assert "files there: making them took" in upkeep.time_spent(done, [SET, START])


@pytest.mark.skipif(
    not os.path.exists("/proc/self/clear_refs"),
    reason="only Linux counts anew what a process held at most",
)
def test_a_meter_counts_the_memory_of_its_own_time():
    meter = Meter()
    block = mmap.mmap(-1, 100 << 20)  # not of the heap, which may keep what is freed
    for page in range(0, len(block), 4096):
        block[page] = 1
    grown = meter.read()
    block.close()
    later = Meter().read()
    assert grown["megabytes"] > later["megabytes"] + 80
    after = Meter(grown).read()  # of another run of the same task
    assert (
        after["megabytes"] == grown["megabytes"]
        and after["runs"] == 2
        and after["seconds"] > grown["seconds"]
    )
