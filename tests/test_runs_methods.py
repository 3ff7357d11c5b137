"""Methods: what each changes, where each number of a run comes from, and what a profile adds."""

import copy

import pytest
import yaml

from ddlib.base import InputError
from ddlib.runs.methods import (
    MINUS,
    PLUS,
    distillation,
    evaluation,
    everything,
    methods,
    origins,
    recipe,
    synthetic,
)
from ddlib.runs.profile import PROFILES, profile
from ddlib.settings import Condensation, Distillation, Selection
from tiny import DATA

CELL = "digits-ipc1"
SMOKE = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
TUNED = {"lr_images": 30.0, "a0": 0.05, "lr_lr": 1e-5}
OWN = {  # what a cell says of rivals beside their lrs
    "FTD": {"ema": 0.7},
    "TESLA": {},
    "DATM": {"first_start": 1, "early_epochs": 2, "growth": 3, "start_epochs": 3},
}
VARIANTS = {
    "mine": {"of": "AST", "recipe": "momentum", "start": "real", "balance": False},
    "mine, long": {"of": "mine", "inner_steps": 5},
}


@pytest.fixture
def changed(tmp_path):
    """A function: the smoke profile, with rivals and variants, and what `change` does to it."""

    def make(change=lambda fields: None):
        fields = copy.deepcopy(SMOKE) | {"variants": copy.deepcopy(VARIANTS)}
        sharp = {"sharpness": 0.01, "sharpness_alpha": 0.4}
        fields["recipes"]["ftd"] = fields["recipes"]["sgd"] | sharp
        fields["cells"][CELL]["tuned"] |= {name: TUNED | more for name, more in OWN.items()}
        fields["cells"][CELL]["tuned"]["DM"] = {"lr_images": 1.0, "iterations": 2}
        change(fields)
        file = tmp_path / "own.yaml"
        file.write_text(yaml.safe_dump(fields))
        return profile(str(file))

    return make


def differing(one, other):
    one, other = (settings.model_dump() for settings in (one, other))
    return {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}


SWITCHES = {  # method -> another, and the fields in which they differ
    "MTT + inner momentum": ("MTT", {"momentum", "a0", "lr_lr"}),
    "MTT, strong experts": ("MTT", {"experts"}),
    "MTT, AST experts": ("MTT", {"experts"}),
    "MTT + representative start": ("MTT", {"start"}),
    "MTT + balanced loss": ("MTT", {"balance"}),
    "MTT + intermediate matching": ("MTT", {"intermediate"}),
    "MTT + weight perturbation": ("MTT", {"perturbation"}),
    "FTD": ("MTT", {"ema", "experts"}),
    "TESLA": ("MTT", {"gradient"}),
    "MCT": ("MTT", {"convex"}),
    "DATM": ("MTT", {"labels", "lr_labels", "start", "experts", *OWN["DATM"]}),
    "AST − ramp": ("AST", {"experts", "start"}),  # the start uses the experts' features
    "AST − penalty": ("AST", {"experts", "start"}),
    "AST − representative start": ("AST", {"start"}),
    "AST − balanced loss": ("AST", {"balance"}),
    "AST − intermediate matching": ("AST", {"intermediate"}),
    "AST − weight perturbation": ("AST", {"perturbation"}),
    "AST − inner momentum": ("AST", {"momentum", "a0", "lr_lr"}),
    "mine": ("AST", {"experts", "start", "balance"}),
    "mine, long": ("mine", {"inner_steps"}),
}


def test_a_method_changes_what_it_says_and_nothing_else(changed):
    given = changed()
    assert {*MINUS, *PLUS} < SWITCHES.keys()
    for method, (base, fields) in SWITCHES.items():
        one, other = (distillation(given, CELL, name, 0) for name in (method, base))
        assert differing(one, other) == fields, method
    sharp = distillation(given, CELL, "FTD", 0).experts
    assert sharp == recipe(given, given.cells[CELL], "ftd") and sharp.sharpness == 0.01
    assert distillation(given, CELL, "AST", 0) == distillation(profile("smoke"), CELL, "AST", 0)


def test_a_method_without_experts_is_a_condensation_and_a_coreset_a_selection(changed):
    given = changed()
    dm, herding = (synthetic(given, CELL, name, 3) for name in ("DM", "herding"))
    assert isinstance(dm, Condensation) and (dm.method, dm.outer, dm.seed) == ("dm", 1, 3)
    assert dm.checks == given.cells[CELL].student["checks"]  # what it shares with Distillation
    assert isinstance(herding, Selection) and herding.expert.seed == 3
    assert everything(given.cells[CELL]) == Selection(data=DATA, method="all")
    assert evaluation(given, CELL, herding, epochs=3).epochs == 3


PUBLISHED = {  # method -> start, iterations, lr_images, and by IPC outer and inner
    "DC": ("noise", 1000, 0.1, {1: (1, 1), 10: (10, 50), 50: (50, 10)}),
    "DSA": ("real", 1000, 0.1, {1: (1, 1), 10: (10, 50), 50: (50, 10)}),
    "DM": ("real", 20000, 1.0, dict.fromkeys((1, 10, 50), (1, 1))),
}


@pytest.mark.parametrize("method", PUBLISHED)
def test_published_settings_need_no_search_on_any_cell_of_the_paper(method):
    start, iterations, lr, loops = PUBLISHED[method]
    for name in ("fashion_mnist", "mnist", "cifar10", "cifar100", "tiny_imagenet", "imagenette"):
        given = profile(name)
        for cell_name, cell in given.cells.items():
            found = synthetic(given, cell_name, method, 0)
            assert (found.start.method, found.iterations, found.lr_images) == (
                start,
                iterations,
                lr,
            )
            assert (found.outer, found.inner) == loops[cell.ipc] and found.batch_real == 256
    source = {name: where for name, _, where in origins(given, cell_name, method)}
    assert source["iterations"] == "published" and source["batch_real"] == "default"


def test_a_change_of_a_published_protocol_is_ours():
    given = profile("fashion-published")
    of = synthetic(given, "fashion_mnist-ipc1", "random", 0)
    judged = evaluation(given, "fashion_mnist-ipc1", of)
    assert (judged.protocol, judged.epochs, judged.strategies) == ("dc", 300, ())
    assert evaluation(given, "fashion_mnist-ipc1", of, networks=7).protocol == "dc"
    other = evaluation(given, "fashion_mnist-ipc1", of, epochs=5)
    assert other == judged.model_copy(update={"protocol": "ours", "epochs": 5})
    whole = evaluation(given, "fashion_mnist-ipc1", of, protocol="dsa")
    assert (whole.protocol, whole.epochs) == ("dsa", 1000) and whole.strategies
    wide = profile("fashion")  # whose own evaluation says other epochs
    of = synthetic(wide, "fashion_mnist-ipc1", "random", 0)
    assert evaluation(wide, "fashion_mnist-ipc1", of).epochs == 300
    assert evaluation(wide, "fashion_mnist-ipc1", of, protocol="dsa").epochs == 1000


def test_numbers_come_in_one_order(changed):
    """Default < cell < method < tuned < call."""

    def last(n):
        """The profile whose `student` and so on set the inner momentum up to the n-th layer."""

        def change(fields):
            cell = fields["cells"][CELL]
            cell["student"] |= {"momentum": 0.1, "perturbation_form": "norm_matched"} if n else {}
            fields["variants"]["own"] = {"of": "AST"} | ({"momentum": 0.2} if n > 1 else {})
            cell["tuned"]["own"] = TUNED | ({"momentum": 0.3} if n > 2 else {})

        return changed(change)

    source = {name: where for name, _, where in origins(last(0), CELL, "own")}
    assert source["perturbation_form"] == "default" and source["n_experts"] == "profile"
    assert source["inner_steps"] == "cell" and source["experts"] == source["start"] == "method"
    source = {name: where for name, _, where in origins(last(1), CELL, "own")}
    assert source["perturbation_form"] == "cell"
    assert source["momentum"] == "method"  # AST says 0.9, above the cell's 0.1
    for n, momentum, origin in ((1, 0.9, "method"), (2, 0.2, "method"), (3, 0.3, "tuned for own")):
        found = {name: (value, where) for name, value, where in origins(last(n), CELL, "own")}
        assert found["momentum"] == (momentum, origin)
        assert found.keys() == Distillation.model_fields.keys()
    assert distillation(last(3), CELL, "own", 0, momentum=0.4).momentum == 0.4


def test_borrowed_numbers_keep_the_students_reach_and_say_so(changed):
    """N a / (1 - mu): AST's a0 and lr_lr under no momentum; those of a call stay as they are."""
    given, method = changed(), "AST − inner momentum"
    ast, plain = (distillation(given, CELL, name, 0) for name in ("AST", method))
    assert plain.a0 == pytest.approx(10 * ast.a0) and plain.momentum == 0
    assert plain.lr_lr == pytest.approx(100 * ast.lr_lr)
    origin = {name: (value, where) for name, value, where in origins(given, CELL, method)}
    text = "tuned for AST, scaled to this inner momentum"
    assert origin["a0"] == (plain.a0, text) and origin["lr_lr"] == (plain.lr_lr, text)
    assert origin["lr_images"] == (ast.lr_images, "tuned for AST")
    asked = distillation(given, CELL, method, 0, a0=0.02, lr_lr=1e-5)
    assert (asked.a0, asked.lr_lr) == (0.02, 1e-5)
    assert not any("scaled" in where for _, _, where in origins(given, CELL, "AST"))


def test_a_variant_of_a_coreset_changes_its_selection(changed):
    def change(fields):
        fields["variants"]["deep"] = {"of": "k-means", "features": "penultimate"}

    given = changed(change)
    plain, deep = (synthetic(given, "digits-ipc3", name, 1) for name in ("k-means", "deep"))
    assert differing(plain, deep) == {"features"} and deep.features == "penultimate"


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("own", {"of": "nothing"}, "variant 'own' is `of` nothing: expected a name of its own"),
        ("own", {"recipe": "sgd"}, "variant 'own' is `of` None"),
        ("AST", {"of": "MTT"}, "'AST' has the name of a known method"),
        ("own", {"of": "AST", "balanced": True}, "unknown key 'balanced'"),
        ("own", {"of": "AST", "balance": "yes"}, "balance: .*found 'yes'"),
    ],
)
def test_a_variant_of_nothing_is_an_error(name, fields, message, changed):
    with pytest.raises(InputError, match=message):
        methods(changed(lambda profile: profile["variants"].update({name: fields})))


def test_what_a_profile_lacks_is_named(changed):
    given = changed()
    with pytest.raises(InputError, match="no method 'MTTT': expected one of random; herding"):
        synthetic(given, CELL, "MTTT", 0)
    with pytest.raises(InputError, match="no expert recipe 'adamw'"):
        recipe(given, given.cells[CELL], "adamw")
    text = "cell digits-ipc3 has no tuned settings for 'TESLA': add them under cells.digits-ipc3"
    with pytest.raises(InputError, match=text):
        synthetic(given, "digits-ipc3", "TESLA", 0)


def test_a_variant_of_a_variant_takes_the_nearest_tuned_numbers():
    smoke = profile("smoke")
    variants = {"mine": {"of": "MTT", "start": "representative"}}
    variants |= {"mine, balanced": {"of": "mine", "balance": True}}
    tuned = smoke.cells[smoke.main_cell].tuned | {"mine": {"lr_images": 7.0, "a0": 0.2}}
    cell = smoke.cells[smoke.main_cell].model_copy(update={"tuned": tuned})
    given = smoke.model_copy(update={"variants": variants, "cells": {smoke.main_cell: cell}})
    made = {
        name: distillation(given, smoke.main_cell, name, 0)
        for name in ("MTT", "mine", "mine, balanced")
    }
    one, two = made["mine"], made["mine, balanced"]
    assert (one.lr_images, one.a0) == (two.lr_images, two.a0) == (7.0, 0.2) != made["MTT"].a0
    assert two == one.model_copy(update={"balance": True}), "nothing else is changed"
