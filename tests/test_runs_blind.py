"""Nothing that is made or chosen sees the test images.

With noise and shuffled labels in their place, experts, selections, sets and the search for settings
keep their bytes.
"""

from dataclasses import replace

import pytest
import torch

from ddlib.base import generator
from ddlib.runs import run, studies
from ddlib.runs.methods import evaluation, synthetic
from ddlib.runs.profile import profile
from ddlib.runs.stages import Film, Following
from ddlib.runs.store import Store
from ddlib.settings import Expert

PROFILE = profile("smoke")
CELL, OTHER = PROFILE.cells
SETS = [synthetic(PROFILE, CELL, name, 0) for name in ("AST", "MTT", "herding", "k-center")]
SETS += [synthetic(PROFILE, OTHER, "DM", 0), synthetic(PROFILE, CELL, "random", 0)]
SEARCH = next(settings for _, settings in studies.tuning(PROFILE))
JUDGED = evaluation(PROFILE, CELL, SETS[0])
OF_SET = [Film(of=SETS[0], frames=2), Following(of=SETS[0])]
TASKS = list(run.missing([*SETS, SEARCH, *OF_SET], None))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Two stores of the same tasks: made with the test images, and with noise for them."""
    sighted, blind = (Store(tmp_path_factory.mktemp(name)) for name in ("sighted", "blind"))
    real, chance = run.images(PROFILE.cells[CELL].data, sighted), generator("test_blind")
    mixed = real.y_test[torch.randperm(len(real.y_test), generator=chance)]
    noise = torch.randn(real.x_test.shape, generator=chance)
    other = replace(real, x_test=noise, y_test=mixed)
    assert (mixed != real.y_test).float().mean() > 0.5
    for store, images in ((sighted, real), (blind, other)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(run, "images", lambda *_, images=images: images)
            for settings in [*TASKS, JUDGED]:
                run.get(settings, store)
    return sighted, blind


def without_test(row):
    return {name: value for name, value in row.items() if not name.startswith(("test", "norm"))}


def test_experts_take_the_same_path(both):
    experts = [settings for settings in TASKS if isinstance(settings, Expert)]
    assert {e.optimiser for e in experts} == {"sgd", "momentum"}
    assert {e.penalty for e in experts} == {"none", "per_sample"}
    for settings in experts:
        seen, unseen = (store.load(settings) for store in both)
        assert torch.equal(seen.tensors["path"], unseen.tensors["path"])
        assert seen.record["smoothness"] == unseen.record["smoothness"]
        rows = [[without_test(row) for row in a.record["rows"]] for a in (seen, unseen)]
        assert str(rows[0]) == str(rows[1])  # a loss is nan
    last = [artefact.record["rows"][-1]["test_accuracy"] for artefact in (seen, unseen)]
    assert last[0] > 2 * last[1]  # the labels were really others


def test_selections_sets_and_the_search_keep_every_byte(both):
    made = [settings for settings in TASKS if not isinstance(settings, Expert)]
    assert {"selections", "sets", "rows", "films", "followings"} == {s.stage for s in made}
    for settings in made:
        seen, unseen = (store.file(settings).read_bytes() for store in both)
        assert seen == unseen, settings.title
    rows = both[1].load(SEARCH).record["rows"]
    assert all(row["accuracy"] is None and row["validation_accuracy"] > 0 for row in rows)


def test_the_factor_of_an_evaluation_is_chosen_without_them(both):
    seen, unseen = (store.load(JUDGED).record["rows"] for store in both)
    blind = {"accuracy", "best_on_validation", "best_on_test"}
    for one, other in zip(seen, unseen, strict=True):
        assert {name for name in one if one[name] != other[name]} <= blind
    assert [row["accuracy"] for row in seen] != [row["accuracy"] for row in unseen]
