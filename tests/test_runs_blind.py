"""Experts, selections, distilled sets and the search for settings cannot see the test images: with noise and shuffled labels in their place they keep their bytes."""

from dataclasses import replace

import pytest
import torch

from ddlib import settings as config
from ddlib.runs import stages as pipeline
from ddlib.runs import studies
from ddlib.runs.store import Store
from ddlib.settings import Distillation, Expert, Selection, generator

PROFILE = config.profile("smoke")
CELL = next(iter(PROFILE.cells))


def tasks():
    """Of every method and ablation of the profile's main cell one set; every recipe of experts that they follow; every candidate of the search."""
    sets = [
        run.settings.of
        for study in (studies.main, studies.ablation)
        for run in study(PROFILE)
        if run.cell == CELL and run.distil_seed == 0
    ]
    return list(
        pipeline.missing([*sets, *(run.settings for run, _ in studies.tuning(PROFILE))], None)
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two stores of the same tasks: one made with the test images, one with noise for them and with their labels shuffled."""
    sighted, blind = (Store(tmp_path_factory.mktemp(name)) for name in ("sighted", "blind"))
    real, chance = pipeline.images(PROFILE.cells[CELL].data, sighted), generator("test_blind")
    other = replace(
        real,
        x_test=torch.randn(real.x_test.shape, generator=chance),
        y_test=real.y_test[torch.randperm(len(real.y_test), generator=chance)],
    )
    assert (other.y_test != real.y_test).float().mean() > 0.5
    for store, images in ((sighted, real), (blind, other)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pipeline, "images", lambda *_, images=images: images)
            for settings in tasks():
                pipeline.get(settings, store)
    return sighted, blind


def test_experts_walk_the_same_way(both):
    mine = [settings for settings in tasks() if isinstance(settings, Expert)]
    assert {e.optimiser for e in mine} == {"sgd", "momentum"} and {e.penalty for e in mine} == {
        "none",
        "per_sample",
    }
    for settings in mine:
        seen, unseen = (store.load(settings) for store in both)
        assert seen.tensors["path"].numpy().tobytes() == unseen.tensors["path"].numpy().tobytes()
        for name in ("rows", "smoothness"):  # but for what the test images say
            assert [without_test(row) for row in listed(seen.record[name])] == [
                without_test(row) for row in listed(unseen.record[name])
            ]
    assert (
        seen.record["rows"][-1]["test_accuracy"] > 2 * unseen.record["rows"][-1]["test_accuracy"]
    )  # the labels were really others


def listed(rows):
    return rows if isinstance(rows, list) else [rows]


def without_test(row):
    return {name: value for name, value in row.items() if not name.startswith(("test", "norm"))}


def test_selections_sets_and_the_search_keep_every_byte(both):
    mine = [settings for settings in tasks() if not isinstance(settings, Expert)]
    assert {s.method for s in mine if isinstance(s, Selection)} >= {
        "real",
        "representative",
        "herding",
        "k_center",
    }
    assert (
        sum(isinstance(s, Distillation) for s in mine) > 15
        and sum(s.stage == "rows" for s in mine) == 4
    )
    for (
        settings
    ) in mine:  # images, labels, learned lr, chosen iteration, curve; of the search every row
        seen, unseen = (store.file(settings).read_bytes() for store in both)
        assert seen == unseen, pipeline.name(settings)
    rows = both[1].load(next(s for s in mine if s.stage == "rows")).record["rows"]
    assert all(row["accuracy"] is None and row["validation_accuracy"] > 0 for row in rows)
