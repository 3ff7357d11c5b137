"""Profiles: every fault in one shows before any work, and one extends others key by key."""

import copy

import pytest
import yaml

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
    "recipes/ast": (None, ["no expert recipe 'ast'", "expected one of adam, momentum"]),
    "recipes/ast/lr": (0.0, ["recipes.ast", "lr", "greater than 0"]),
    "recipes/sgd/learning_rate": (0.1, ["recipes.sgd", "unknown key 'learning_rate'"]),
    "ablation/cell": ("digits", ["a cell 'digits'", f"expected one of {CELL}"]),
    "ablation/groups": (["AST minus two"], ["no group 'AST minus two'", "AST minus one, controls"]),
    "cross_architecture/methods": (["best"], ["no method 'best'"]),
    "evaluation/epoch": (10, ["evaluation", "unknown key 'epoch'"]),
    "evaluation/factors": ([], ["factors"]),
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
        ("title: [unclosed", "own is no YAML"),
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
    own = "extends: [below, beside]\ntitle: own\nevaluation: {factors: [1.0]}\n"
    given, smoke = profile(written(own)), profile("smoke")
    network = smoke.network.model_copy(update={"width": 16})
    assert (given.title, given.seeds, given.network) == ("own", 1, network)
    assert given.evaluation == smoke.evaluation | {"factors": [1.0]}
    assert given.cells == smoke.cells and given.main_cell == CELL
