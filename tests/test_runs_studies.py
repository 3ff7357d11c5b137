"""Studies: which artefacts each asks for, under which names, and which rows are read from them."""

import copy
from collections import Counter

import pytest
import yaml

from ddlib.runs import studies
from ddlib.runs.methods import MINUS, PLUS, distillation, methods, synthetic
from ddlib.runs.profile import PROFILES, profile
from ddlib.runs.run import get
from ddlib.runs.stages import Film, Following, Measurement
from ddlib.runs.studies import STUDIES
from ddlib.settings import Distillation, Distilled, Evaluation

CELL = "digits-ipc1"
SMOKE = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
GROUPS = {
    "mine minus one": {"base": "mine", "methods": ["mine, long"]},
    "coresets": {"base": "random", "methods": ["k-means"], "cell": "digits-ipc3", "seeds": 4},
}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The smoke profile with groups of its own, soft labels, and five seeds on its second cell."""
    fields = copy.deepcopy(SMOKE)
    fields["variants"] = {
        "mine": {"of": "AST", "balance": False},
        "mine, long": {"of": "mine", "inner_steps": 5},
        "AST + soft labels": {"of": "AST", "labels": "learned", "lr_labels": 2.0},
    }
    fields["ablation"] |= {"groups": ["AST minus one", "MTT plus one"], "more": GROUPS}
    fields["cells"]["digits-ipc3"]["seeds"] = 5
    fields["cells"][CELL]["methods"].append("AST + soft labels")
    file = tmp_path_factory.mktemp("profile") / "own.yaml"
    file.write_text(yaml.safe_dump(fields))
    return profile(str(file))


def labels(given, name):
    return [label for label, _ in STUDIES[name].asks(given)]


def test_the_main_study_is_every_method_on_every_cell_and_the_ceiling(given):
    runs = list(studies.main(given))
    for cell, settings in given.cells.items():
        mine = [run for run in runs if run.cell == cell]
        seeds = range(5 if cell == "digits-ipc3" else given.seeds)
        every = [(method, seed) for method in settings.methods for seed in seeds]
        assert [(run.method, run.distil_seed) for run in mine] == [*every, ("full data", 0)]
        assert [run.settings.of.ipc for run in mine[:-1]] == [settings.ipc] * len(every)
        whole = mine[-1].settings
        assert whole.of.method == "all" and whole.epochs == 4
    assert {label["ipc"] for label in labels(given, "main")} == {1, 3, None}
    coresets = {label["method"] for label in labels(given, "coresets")}
    assert coresets == {"random", "herding", "k-center", "k-means"}


def test_groups_stand_beside_their_base_once(given):
    runs = [run for run in studies.ablation(given) if run.distil_seed == 0]
    assert len({(run.cell, run.method) for run in runs}) == len(runs)
    by_group = {}
    for run in runs:
        by_group.setdefault(run.place["group"], []).append(run.method)
        assert (run.method == run.place["base"]) == (run.method in ("AST", "MTT", "mine", "random"))
        assert run.settings.networks == given.ablation.networks
    assert by_group == {
        "AST minus one": ["AST", *MINUS],
        "MTT plus one": ["MTT", "MTT + inner momentum", "MTT, strong experts", *PLUS],
        "mine minus one": ["mine", "mine, long"],
        "coresets": ["random", "k-means"],
    }
    seeds = {}
    for run in studies.ablation(given):
        seeds.setdefault(run.place["group"], set()).add(run.distil_seed)
    assert seeds.pop("coresets") == {0, 1, 2, 3} and set(map(len, seeds.values())) == {given.seeds}
    followed = [
        (label["cell"], label["method"])
        for label, settings in studies.followings(given)
        if isinstance(settings, Following) and label["distil_seed"] == 0
    ]
    every = methods(given)
    assert followed == [
        (run.cell, run.method)
        for run in runs
        if run.cell == CELL and every[run.method].recipe == every[run.place["base"]].recipe
    ]
    names = [method for _, method in followed]
    assert "AST − balanced loss" in names and "AST − ramp" not in names  # its experts are others


def test_scores_ask_for_hard_labels_where_a_set_has_soft_ones(given):
    kinds = {}
    for label, settings in STUDIES["scores"].asks(given):
        assert isinstance(settings, Evaluation) and label["cell"] == CELL
        assert (label["labels"] == "hard") == (settings.labels == "hard")
        if label["distil_seed"] == 0 and label["method"] != "full data":
            assert label["augmented"] == (settings.strategies != ())
            kinds.setdefault(label["method"], []).append(label["labels"])
        assert (label["labels"] == "teacher") == (settings.teacher is not None)
        assert settings.teacher in (None, *settings.needs()[1:])
    assert kinds.pop("AST + soft labels") == ["own", "own", "teacher", "hard"]
    assert set(map(tuple, kinds.values())) == {("own", "own", "teacher")}


def test_every_expert_that_a_set_needs_is_in_the_study_of_experts(given):
    known = {settings for _, settings in STUDIES["experts"].asks(given)}
    first = {label["recipe"] for label in labels(given, "experts")}
    assert first == set(given.recipes) and len(known) == len(first) * given.n_experts
    needed = {
        e for run in studies.main(given) for e in run.settings.of.needs() if e.stage == "experts"
    }
    assert {expert for expert in needed if expert.seed < given.n_experts} <= known
    # a seed above it has an expert of its own for its features
    features = [run.settings.of for run in studies.main(given) if run.method == "herding"]
    assert [of.expert.seed for of in features] == [of.seed for of in features]


def test_a_recipe_may_have_fewer_experts_than_the_others(given):
    fields = copy.deepcopy(given.recipes)
    fields["sgd"] = fields["sgd"] | {"n_experts": 1}
    fewer = given.model_copy(update={"recipes": fields})
    counts = Counter(label["recipe"] for label in labels(fewer, "experts"))
    assert counts.pop("sgd") == 1 and {*counts.values()} == {given.n_experts}
    follows = {name: distillation(fewer, CELL, name, 0) for name in ("MTT", "AST")}
    assert [of.n_experts for of in follows.values()] == [1, given.n_experts]
    assert follows["MTT"].experts == distillation(given, CELL, "MTT", 0).experts


def test_a_pool_is_trained_on_sets_and_on_all_images_for_half_as_long(given):
    pool, cross = given.cross_architecture.pool, given.cross_architecture
    asks = list(STUDIES["architectures"].asks(given))
    assert [settings.network for _, settings in asks] == pool * 3
    assert [label["depth"] for label, _ in asks] == [network.depth for network in pool] * 3
    by = {label["method"]: settings for label, settings in asks}
    assert [*by] == ["random", "AST", "full data"]
    assert by["AST"].of == synthetic(given, cross.cells[0], "AST", 0)
    assert by["AST"].epochs == cross.evaluation["epochs"] and by["full data"].epochs == 2
    assert {settings.lrs for settings in by.values()} == {tuple(cross.evaluation["lrs"])}
    alone = given.model_copy(update={"cross_architecture": None})
    assert not [*STUDIES["architectures"].asks(alone)]


def test_tuning_tries_each_candidate_without_test_images(given):
    asks = list(STUDIES["tuning"].asks(given))
    assert [label["tried"] for label, _ in asks] == ["lr_images = 30", "lr_images = 100"] * 2
    for label, settings in asks:
        assert not settings.test and settings.networks == 2
        assert label["distil_seed"] == settings.of.seed == 1000  # no seed of the main study
        assert settings.of.iterations == label["iterations"] == 2


def test_all_that_is_asked_is_asked_once_per_study_and_known_before_any_work(given):
    asked = studies.everything_asked(given)
    film = studies.film(given)
    assert isinstance(film, Film) and film.of == distillation(given, CELL, "AST", 0)
    assert film in asked and sum(isinstance(task, Measurement) for task in asked) == 8
    assert synthetic(given, CELL, "k-means", 0) in asked
    assert studies.asked(given, ["main"])[0] == next(studies.main(given)).settings


def test_rows_are_read_from_records(done):
    from tiny import EXPERT, ROWS, SET

    expert, made, judged = (get(settings, done).record for settings in (EXPERT, SET, ROWS))
    assert len(STUDIES["experts"].lines(expert)) == 4 and len(STUDIES["main"].lines(judged)) == 4
    (path,) = STUDIES["smoothness"].lines(expert)
    assert path["test_accuracy"] == expert["rows"][-1]["test_accuracy"] and len(path) > 4
    assert [row["iteration"] for row in STUDIES["curves"].lines(made)] == [1, 2, 3, 4, 5, 6]
    (cost,) = STUDIES["costs"].lines(made | {"spent": {"seconds": 2.0}})
    assert cost == {"lr": made["lr"], "iterations": 6, "seconds": 2.0}
    assert [name for name, study in STUDIES.items() if study.measured] == ["costs"]


def test_curves_and_costs_are_of_every_distilled_set(given):
    sets = [settings for _, settings in STUDIES["curves"].asks(given)]
    assert all(isinstance(settings, Distilled) for settings in sets)
    assert {s for s in sets if isinstance(s, Distillation)} >= {
        run.settings.of for run in studies.main(given) if run.method == "AST"
    }
    assert not {"group", "base"} & {name for label in labels(given, "curves") for name in label}
