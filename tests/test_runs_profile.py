"""Profiles: every fault in one shows before any work, and one extends others key by key."""

import copy

import pytest
import yaml
from PIL import Image

from ddlib.base import InputError
from ddlib.data import datasets
from ddlib.runs import run, stages, studies
from ddlib.runs.profile import PROFILES, profile, profiles

SMOKE = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
CELL = next(iter(SMOKE["cells"]))


def changed(place, value):
    """The smoke profile with the value at `place`, a path, replaced; None removes it."""
    fields = copy.deepcopy(SMOKE)
    *path, last = place.split("/")
    inner = fields
    for name in path:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return fields


@pytest.fixture
def written(tmp_path):
    """A function that writes a profile's fields, or its text, and gives the file's name."""

    def write(fields):
        file = tmp_path / "own.yaml"
        file.write_text(fields if isinstance(fields, str) else yaml.safe_dump(fields))
        return str(file)

    return write


FAULTS = {  # place -> value, what the message says
    "seeds": (None, ["seeds: Field required"]),
    "n_experts": (True, ["n_experts", "valid integer", "found True"]),
    f"cells/{CELL}/ipcs": (3, [f"cells.{CELL}.ipcs: unknown key", "coreset_lr"]),
    f"cells/{CELL}/methods": (["MTTT"], ["no method 'MTTT'", "MTT; MTT + inner momentum"]),
    f"cells/{CELL}/tuned/AST": (None, ["has no tuned settings for 'AST'", f"cells.{CELL}.tuned"]),
    f"cells/{CELL}/student/inner_step": (3, [f"cells.{CELL}.student", "unknown key 'inner_step'"]),
    f"cells/{CELL}/student/start_epochs": (5, [f"on {CELL}", "T_max = 5", "lower T_max or M"]),
    f"cells/{CELL}/data/name": ("mnist_6k", ["data 'mnist_6k' is unknown", "mnist_5k"]),
    f"cells/{CELL}/ipc": (121, ["ipc = 121, but digits has 120 training images per class"]),
    f"cells/{CELL}/tuned/Ast": ({"lr_images": 7.0}, ["no method 'Ast'"]),
    "cells/NA": (SMOKE["cells"][CELL], ["'NA' would be read as a number or a blank"]),
    "cells/001": (SMOKE["cells"][CELL], ["'001' would be read as a number or a blank"]),
    "cross_architecture/networks": (2 * SMOKE["cross_architecture"]["networks"], ["stands twice"]),
    "recipes/ast": (None, ["no expert recipe 'ast'", "expected one of adam, momentum"]),
    "recipes/ast/lr": (0.0, ["recipes.ast", "lr", "greater than 0"]),
    "recipes/sgd/learning_rate": (0.1, ["recipes.sgd", "unknown key 'learning_rate'"]),
    "ablation/cell": ("digits", ["a cell 'digits'", f"expected one of {CELL}"]),
    "ablation/groups": (["AST minus two"], ["no group 'AST minus two'", "AST minus one, controls"]),
    "cross_architecture/methods": (["best"], ["no method 'best'"]),
    "evaluation/epoch": (10, ["evaluation", "unknown key 'epoch'"]),
    "evaluation/lrs": ([], ["lrs"]),
}


@pytest.mark.parametrize("place", FAULTS)
def test_a_fault_anywhere_shows_before_any_work(place, written, monkeypatch):
    value, parts = FAULTS[place]
    file = written(changed(place, value))
    monkeypatch.setattr(stages, "MAKE", {})
    monkeypatch.setattr(datasets, "load", None)
    with pytest.raises(InputError) as caught:
        for settings in studies.everything_asked(profile(file)):
            run.check(settings)
    for part in parts:
        assert part in str(caught.value), str(caught.value)


@pytest.mark.parametrize("name", ["smoke", "laptop-full", "cifar10"])
def test_a_profile_of_the_library_is_sound(name):
    given = profile(name)
    for settings in [*studies.check(given), *studies.asked(given, ["tuning"])]:
        run.check(settings)


def test_an_unknown_profile_is_an_error(tmp_path):
    text = r"no profile 'labtop': expected one of .*smoke.*, or the path of a YAML file"
    with pytest.raises(InputError, match=text):
        profile("labtop")
    with pytest.raises(InputError, match="no profile"):
        profile(str(tmp_path / "none.yaml"))
    assert "smoke" in profiles() and "_scale" not in profiles()


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "own"),
        ("just words", "own"),
        ("title: [unclosed", "own.yaml cannot be read as YAML"),
        ("extends: nobody", "'nobody', which is not there"),
        ("extends: own", "'own', which extends it"),
    ],
)
def test_a_file_that_is_no_profile_is_an_error(text, message, written):
    with pytest.raises(InputError, match=message):
        profile(written(text))


def test_a_profile_extends_others_key_by_key(written, tmp_path):
    (tmp_path / "below.yaml").write_text("extends: smoke\ntitle: below\nnetwork: {width: 16}\n")
    (tmp_path / "beside.yaml").write_text("seeds: 1\n")
    own = "extends: [below, beside]\ntitle: own\nevaluation: {lrs: [0.01]}\n"
    given, smoke = profile(written(own)), profile("smoke")
    network = smoke.network.model_copy(update={"width": 16})
    assert (given.title, given.seeds, given.network) == ("own", 1, network)
    assert given.evaluation == smoke.evaluation | {"lrs": [0.01]}
    assert given.cells == smoke.cells and given.main_cell == CELL


def test_null_takes_away_what_an_extended_profile_has(written):
    other = next(cell for cell in profile("smoke").cells if cell != CELL)
    own = f"extends: smoke\ncells: {{{CELL}: null}}\ncross_architecture: null\nablation: null\n"
    given = profile(written(own))
    assert [*given.cells] == [other] and not given.cross_architecture and not given.ablation
    with pytest.raises(InputError, match="sedes"):
        profile(written("extends: smoke\nsedes: null\n"))


BOMB = "".join(
    f"{name}: &{name} [{', '.join([f'*{below}'] * 9 if below else '111111111')}]\n"
    for below, name in zip(["", *"abcdefgh"], "abcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text, message",
    [
        ("seeds: 2\nseeds: 3\n", "'seeds' stands on line 2 and on line 3"),
        ("ceiling: {evaluation: {epochs: 3, epochs: 4}}\n", "'epochs' stands"),
        ("n_experts: 010\n", "010 begins with 0"),
        ("n_experts: 1:30\n", "found '1:30'"),
        ("n_experts: 1" + "0" * 30, "less than or equal to 10000"),
        ("n_experts: " + "9" * 5000, "Exceeds the limit"),
        ("title: 2026-13-45\n", None),
        ("title: 3\n", "valid string"),
        (BOMB, "more than 100000 values"),
        ("a: &a [*a]\n", "more than 100000 values"),
        ("a: " + "[" * 5000, "recursion"),
        ("? [1]\n: 2\n", "unhashable"),
        ("cells: {../../x: {}}\n", "no / or "),
        ('title: !!float ""\n', "cannot be read as YAML"),
        ("recipes: {sgd: {seed: 3}}\n", "unknown key 'seed'"),
        (f"cells: {{{CELL}: {{student: {{seed: 3}}}}}}\n", "unknown key 'seed'"),
        ("cells: {}\nvariants: {a/b: {of: AST}}\n", "no / or "),
    ],
)
def test_a_file_that_misleads_or_would_never_end_is_refused(text, message, written):
    file = written("extends: smoke\n" + text)
    if message is None:
        assert profile(file).title == "2026-13-45"
        return
    with pytest.raises(InputError) as caught:
        profile(file)
    assert message in str(caught.value) and len(str(caught.value)) < 1500


def test_profiles_that_extend_one_another_again_and_again_are_read_once_each(written, tmp_path):
    """2 ** 30 ways lead to the last one."""
    for i in range(30):
        below = "smoke" if i == 29 else f"way{i + 1}"
        (tmp_path / f"way{i}.yaml").write_text(f"extends: [{below}, {below}]\n")
    assert profile(written("extends: way0\n")) == profile("smoke")


@pytest.mark.parametrize("extends", ["null", "3", "[1]", "{a: b}"])
def test_extends_names_profiles(extends, written):
    with pytest.raises(InputError, match="expected the name of a profile"):
        profile(written(f"extends: {extends}\n"))


@pytest.mark.parametrize("text, number", [("1e-3", 1e-3), ("1E3", 1e3), (".5", 0.5), ("2.", 2.0)])
def test_numbers_are_read_as_they_look(text, number, written):
    given = profile(written(f"extends: smoke\ncells: {{{CELL}: {{coreset_lr: {text}}}}}\n"))
    assert given.cells[CELL].coreset_lr == number


def test_a_method_or_cell_that_stands_twice_is_refused(written):
    for place, value in (
        (f"cells/{CELL}/methods", ["random", "random"]),
        ("cross_architecture/cells", [CELL, CELL]),
        ("ablation/groups", ["controls", "controls"]),
    ):
        with pytest.raises(InputError, match="stands twice: name it once"):
            profile(written(changed(place, value)))


def test_a_relative_path_is_meant_from_the_profiles_folder(tmp_path, monkeypatch):
    """Of the file that says it, wherever the command stands."""
    for name in ("a", "b"):
        for part in ("cats", "dogs"):
            (tmp_path / f"sets/{name}/{part}").mkdir(parents=True)
            for i in range(3):
                image = Image.new("RGB", (8, 8), (i, 100, 200))
                image.save(tmp_path / f"sets/{name}/{part}/{i}.png")
    data = "data: {name: folder, size: 16, path: sets/a}"
    (tmp_path / "below.yaml").write_text(f"extends: smoke\ncells: {{{CELL}: {{{data}}}}}\n")
    (tmp_path / "own").mkdir()
    buffer = "recipes: {mine: {buffer: experts, epochs: 3}}"
    (tmp_path / "own/top.yaml").write_text(f"extends: smoke\n{buffer}\n")
    monkeypatch.chdir(tmp_path / "sets")
    assert profile("../below.yaml").cells[CELL].data.path == str(tmp_path / "sets/a")
    given = profile("../own/top.yaml")
    assert given.recipes["mine"]["buffer"] == str(tmp_path / "own/experts")


def test_a_profile_of_coresets_alone_is_sound(written):
    """No ablation, no other architectures, nothing distilled."""
    fields = changed(f"cells/{CELL}/methods", ["random", "k-means"])
    fields = {k: v for k, v in fields.items() if k not in ("ablation", "cross_architecture")}
    fields |= {"cells": {CELL: fields["cells"][CELL] | {"tuned": {}}}, "tuning": []}
    given = profile(written(fields))
    asked = {name: list(entry.asks(given)) for name, entry in studies.STUDIES.items()}
    assert asked["main"] and asked["scores"] and asked["experts"]
    assert not any(asked[name] for name in ("ablation", "following", "film", "curves", "tuning"))


def test_a_file_of_ones_own_is_named_with_its_ending(written):
    """Without it, its results would lie beside it."""
    file = written(SMOKE)
    with pytest.raises(InputError, match="no profile"):
        profile(file.removesuffix(".yaml"))
    assert profile(file).title == SMOKE["title"]
