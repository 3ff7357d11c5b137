"""A table of faults: each is refused before any work, and the message says what was found, what was expected and what to do."""

import copy
import math

import pytest
import torch
import yaml

from ddlib import settings as config
from ddlib.data import datasets as data
from ddlib.runs import stages as pipeline
from ddlib.runs import studies
from ddlib.settings import (
    PROFILES,
    Data,
    Distillation,
    Evaluation,
    Expert,
    InputError,
    Network,
    Profile,
    Selection,
    generator,
    validated,
)

SMOKE = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
CELL = next(iter(SMOKE["cells"]))
DATA = Data(name="digits")
EXPERT = Expert(data=DATA)
SET = {"experts": EXPERT, "start": Selection(data=DATA, method="real")}


def changed(place, value):
    """The smoke profile with the value at `place`, a dotted path, replaced; None removes it."""
    fields = copy.deepcopy(SMOKE)
    *way, last = place.split("/")
    inner = fields
    for name in way:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return fields


IN_A_FIELD = [  # kind, fields, what the message says
    (
        Expert,
        {"data": DATA, "epoch": 3},
        ["epoch: unknown key: check its spelling, or remove it", "found 3"],
    ),
    (Expert, {"data": {"name": "digits", "zcaa": True}}, ["data.zcaa: unknown key"]),
    (Expert, {"data": DATA, "epochs": "5"}, ["epochs", "valid integer", "found '5'"]),
    (Expert, {"data": DATA, "epochs": 5.0}, ["epochs", "valid integer", "found 5.0"]),
    (Expert, {"data": DATA, "epochs": 0}, ["epochs", "greater than or equal to 1", "found 0"]),
    (Expert, {"data": DATA, "lr": -0.1}, ["lr", "greater than 0", "found -0.1"]),
    (Expert, {"data": DATA, "lr": math.nan}, ["lr", "finite number", "found nan"]),
    (Expert, {"data": DATA, "lr": math.inf}, ["lr", "finite", "found inf"]),
    (
        Expert,
        {"data": DATA, "lr": "1e-3"},
        ["lr", "valid number", "found '1e-3'"],
    ),  # as YAML reads 1e-3
    (
        Expert,
        {"data": DATA, "optimiser": "rmsprop"},
        ["optimiser", "'sgd', 'momentum' or 'adam'", "found 'rmsprop'"],
    ),
    (
        Expert,
        {"data": DATA, "strategies": ["crop", "mirror"]},
        ["strategies.1", "'flip'", "found 'mirror'"],
    ),
    (
        Expert,
        {"epochs": 0, "lr": 0},
        ["data: Field required", "epochs", "lr"],
    ),  # every fault at once
    (
        Selection,
        {"data": DATA, "method": "kmeans"},
        ["method", "'representative'", "found 'kmeans'"],
    ),
    (
        Selection,
        {"data": DATA, "method": "herding"},
        ["'herding' looks at an expert's features, but no expert is given: set `expert`"],
    ),
    (
        Selection,
        {"data": DATA, "method": "correct"},
        ["'correct' looks at an expert's features, but no expert is given: set `expert`"],
    ),
    (
        Selection,
        {"data": DATA, "method": "correct", "expert": EXPERT, "features": "penultimate"},
        ["features 'penultimate': expected 'logits'", "leave it out"],
    ),
    (
        Expert,
        {"data": DATA, "sharpness_alpha": 0.4},
        ["sharpness_alpha = 0.4 without `sharpness`", "set `sharpness`, or leave it out"],
    ),
    (Expert, {"data": DATA, "sharpness": 0.0}, ["sharpness", "greater than 0", "found 0.0"]),
    (
        Selection,
        {"data": DATA, "method": "representative", "expert": EXPERT, "ipc": 25, "centres": 10},
        ["centres = 10 with ipc = 25", "leave `centres` out"],
    ),
    (
        Selection,
        {"data": DATA, "method": "real", "ipc": 20, "centres": 10},
        ["centres = 10", "with 'representative'"],
    ),
    (
        Distillation,
        SET | {"inner_steps": 2, "matched_epochs": 3},
        ["inner_steps N = 2 is below matched_epochs M = 3", "raise N or lower M"],
    ),
    (
        Distillation,
        SET | {"start_epochs": 50, "matched_epochs": 2},
        [
            "T_max = 50",
            "M = 2 reaches expert epoch 51",
            "have 50",
            "lower T_max or M, or train longer",
        ],
    ),
    (
        Distillation,
        SET | {"checks": 11, "iterations": 10},
        ["checks = 11 is above iterations = 10"],
    ),
    (Distillation, SET | {"momentum": 1.0}, ["momentum", "less than 1", "found 1.0"]),
    (
        Distillation,
        SET | {"gradient": "exact"},
        ["gradient", "'adjoint', 'unroll' or 'tesla'", "found 'exact'"],
    ),
    (
        Distillation,
        SET | {"labels": "learned"},
        ["labels = learned with lr_labels = None", "set it, or leave it out"],
    ),
    (
        Distillation,
        SET | {"lr_labels": 2.0},
        ["labels = None with lr_labels = 2.0", "set it, or leave it out"],
    ),
    (
        Distillation,
        SET | {"labels": "expert", "lr_labels": 2.0},
        ["labels = expert with lr_labels = 2.0"],
    ),
    (Distillation, SET | {"ema": 1.0}, ["ema", "less than 1", "found 1.0"]),
    (
        Distillation,
        SET | {"early_epochs": 5},
        ["early_epochs = 5 with growth = None: set both", "or neither"],
    ),
    (Distillation, SET | {"growth": 5}, ["early_epochs = None with growth = 5"]),
    (
        Distillation,
        SET | {"early_epochs": 21, "growth": 5},
        ["early_epochs = 21 at first and start_epochs = 20", "< early_epochs <= start_epochs"],
    ),
    (
        Distillation,
        SET | {"first_start": 20},
        ["first_start = 20", "start_epochs = 20 at last", "expected first_start <"],
    ),
    (
        Distillation,
        SET | {"first_start": 5, "early_epochs": 5, "growth": 9},
        ["first_start = 5 on, below early_epochs = 5 at first"],
    ),
    (
        Distillation,
        SET | {"experts": Expert(data=Data(name="digits", seed=1))},
        ["seed=1", "seed=0", "give both the same data"],
    ),
    (
        Evaluation,
        {"of": Selection(data=DATA, method="real"), "network": {"architecture": "convnet4"}},
        ["network.architecture", "'vgg11'", "found 'convnet4'"],
    ),
    (Profile, changed("seeds", None), ["seeds: Field required"]),
    (Profile, changed("cells/" + CELL + "/ipcs", 3), [f"cells.{CELL}.ipcs: unknown key"]),
    (Profile, changed("n_experts", True), ["n_experts", "valid integer", "found True"]),
]


@pytest.mark.parametrize("kind, fields, parts", IN_A_FIELD)
def test_a_fault_is_refused(kind, fields, parts):
    with pytest.raises(InputError) as caught:
        validated(kind, fields, "this here")
    text = str(caught.value)
    assert text.startswith("this here cannot be used:\n")
    for part in parts:
        assert part in text, text


IN_A_PROFILE = [  # place, value, what the message says
    (
        f"cells/{CELL}/methods",
        ["random", "MTTT"],
        ["no method 'MTTT'", "expected one of", "MTT; MTT + inner momentum"],
    ),
    (
        f"cells/{CELL}/tuned/AST",
        None,
        [f"cell {CELL} has no tuned settings for 'AST'", f"cells.{CELL}.tuned", "remove"],
    ),
    (
        f"cells/{CELL}/student/inner_step",
        3,
        [f"'MTT' on {CELL} cannot be used", "inner_step: unknown key"],
    ),
    (f"cells/{CELL}/student/start_epochs", 5, ["T_max = 5", "lower T_max or M"]),
    (
        f"cells/{CELL}/data/name",
        "mnist_6k",
        ["data 'mnist_6k' is unknown", "mnist_5k", "correct `data.name`"],
    ),
    (
        f"cells/{CELL}/ipc",
        121,
        ["ipc = 121, but digits has 120 training images a class", "choose an ipc of at most 120"],
    ),
    ("recipes/ast", None, ["no expert recipe 'ast'", "expected one of adam, momentum"]),
    ("recipes/ast/lr", 0.0, ["recipe ast", "lr", "greater than 0"]),
    ("recipes/sgd/learning_rate", 0.1, ["recipe sgd", "learning_rate: unknown key"]),
    ("ablation/cell", "digits", ["cell 'digits'", f"expected one of {CELL}"]),
    ("cross_architecture/methods", ["best"], ["no method 'best'"]),
    ("evaluation/epoch", 10, ["epoch: unknown key"]),
    ("evaluation/factors", [], ["factors"]),
]


@pytest.mark.parametrize("place, value, parts", IN_A_PROFILE, ids=[row[0] for row in IN_A_PROFILE])
def test_a_fault_anywhere_in_a_profile_shows_before_any_work(
    place, value, parts, tmp_path, monkeypatch
):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump(changed(place, value)))
    monkeypatch.setattr(pipeline, "MAKE", {})
    monkeypatch.setattr(data, "load", None)
    with pytest.raises(InputError) as caught:
        for settings in studies.everything(config.profile(str(file))):
            pipeline.check(settings)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", config.profiles())
def test_every_profile_here_is_sound(name):
    for settings in studies.everything(config.profile(name)):
        pipeline.check(settings)
    for _ in studies.tuning(config.profile(name)):
        pass


def test_an_unknown_profile_is_refused(tmp_path):
    with pytest.raises(
        InputError,
        match=r"no profile 'labtop': expected one of .*smoke.*, or the path of a YAML file",
    ):
        config.profile("labtop")
    with pytest.raises(InputError, match="no profile"):
        config.profile(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("text", ["", "just words", "title: [unclosed"])
def test_a_file_that_is_no_profile_is_refused(text, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match="mine"):
        config.profile(str(file))


@pytest.mark.parametrize("made", ["set", "coreset", "judged"])
def test_more_images_than_there_are_is_refused(made, tmp_path):
    greedy = Selection(data=DATA, method="real", ipc=121)
    wanted = {
        "coreset": greedy,
        "set": Distillation(experts=EXPERT, start=greedy),
        "judged": Evaluation(of=greedy, network=Network()),
    }[made]
    with pytest.raises(
        InputError,
        match="ipc = 121, but digits has 120 training images a class: choose an ipc of at most 120",
    ):
        pipeline.check(wanted)
    pipeline.check(Selection(data=DATA, method="real", ipc=120))
    pipeline.check(Selection(data=DATA, method="noise", ipc=121))  # noise has no end


def test_limits_are_allowed():
    Distillation(**SET, inner_steps=2, matched_epochs=2, start_epochs=49)  # reaches epoch 50 of 50
    Distillation(**SET, inner_steps=1, matched_epochs=1, start_epochs=1, checks=1, iterations=1)
    Distillation(**SET, first_start=19, early_epochs=20, growth=1)
    Selection(data=DATA, method="representative", expert=EXPERT, ipc=20, centres=10)


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        EXPERT.lr = 1.0


def test_each_use_has_a_generator_of_its_own():
    def first(*names):
        return torch.rand(1, generator=generator(*names)).item()

    uses = [
        (0, "augment", 1),
        (0, "augment", 2),
        (1, "augment", 1),
        (0, "order", 1),
        (0, "augment", 11),
        ("0", "augment", 1),
        (0, "augment"),
    ]
    assert len({first(*names) for names in uses}) == len(uses)
    before = first(0, "augment", 1)
    torch.manual_seed(3)
    assert first(0, "augment", 1) == before


def test_a_profile_extends_others_key_by_key(tmp_path):
    (tmp_path / "below.yaml").write_text("extends: smoke\ntitle: below\nnetwork: {width: 16}\n")
    (tmp_path / "beside.yaml").write_text("seeds: 1\n")
    (tmp_path / "mine.yaml").write_text(
        "extends: [below, beside]\ntitle: mine\nevaluation: {factors: [1.0]}\n"
    )
    mine, smoke = config.profile(str(tmp_path / "mine.yaml")), config.profile("smoke")
    assert (mine.title, mine.seeds, mine.network.width, mine.network.depth) == (
        "mine",
        1,
        16,
        smoke.network.depth,
    )
    assert mine.evaluation == smoke.evaluation | {"factors": [1.0]} and mine.cells == smoke.cells


@pytest.mark.parametrize(
    "text, said",
    [
        ("extends: nobody", "'nobody', which is not there"),
        ("extends: mine", "'mine', which extends it"),
    ],
)
def test_a_profile_that_extends_nothing_or_itself_is_refused(text, said, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=said):
        config.profile(str(tmp_path / "mine.yaml"))
