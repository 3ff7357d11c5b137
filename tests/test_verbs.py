"""Six verbs: the README's script as it stands there, the same artefacts as a paper's, a folder of one's own, and what is refused."""

import logging
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from ddlib import api as verbs
from ddlib import settings as config
from ddlib.album import dataset
from ddlib.api import distil, evaluate, load, load_data, pick_images, save, train_experts
from ddlib.runs import stages as pipeline
from ddlib.runs import studies
from ddlib.runs.store import Damaged, Store
from ddlib.settings import InputError

README = (Path(__file__).parent.parent / "README.md").read_text()
SCRIPT = re.search(
    r"<!-- verbs:start -->\n+```python\n(.*?)```\n+<!-- verbs:end -->", README, re.DOTALL
)[1]


PAPERS = next(
    run
    for run in studies.main(config.profile("smoke"))
    if (run.method, run.cell) == ("AST", "digits-ipc1")
).settings


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A store that holds what a paper under `smoke` asks for first of AST."""
    store = Store(tmp_path_factory.mktemp("verbs"))
    pipeline.ensure([PAPERS], store, workers=1)
    return store.root


@pytest.fixture(autouse=True)
def small(kept, monkeypatch):
    """Everything at the scale of `smoke`."""
    monkeypatch.setattr(verbs, "PROFILE", "smoke")
    monkeypatch.setenv("STORE", str(kept))
    monkeypatch.setenv("ENGINE", "serial")


def test_the_readmes_script_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(SCRIPT, "README.md", "exec"), names)
    assert re.fullmatch(r"picked: [0-9.]+%\ndistilled: [0-9.]+%\n", capsys.readouterr().out)
    back = load("first.safetensors")
    assert back.settings == names["made"].settings and all(
        torch.equal(t, names["made"].tensors[name]) for name, t in back.tensors.items()
    )


def test_they_make_what_a_paper_makes(kept, monkeypatch, tmp_path):
    """At the profile's own scale the same settings: nothing is left to make, and what is saved has the store's bytes."""
    monkeypatch.setattr(pipeline, "MAKE", dict.fromkeys(pipeline.MAKE))
    real = load_data("digits")
    experts = train_experts(real)
    made = distil(experts, pick_images(real, experts))
    assert made.settings == PAPERS.of.model_dump(mode="json")
    rows = pd.DataFrame(Store(kept).load(PAPERS).record["rows"])
    pd.testing.assert_frame_equal(evaluate(made), rows)
    save(made, tmp_path / "set.safetensors")
    assert (tmp_path / "set.safetensors").read_bytes() == Store(kept).file(PAPERS.of).read_bytes()
    monkeypatch.setenv("STORE", str(tmp_path / "elsewhere"))  # where nobody made it
    pd.testing.assert_frame_equal(evaluate(load(tmp_path / "set.safetensors")), rows)
    assert not list((tmp_path / "elsewhere").rglob("*.safetensors"))


def test_a_set_that_was_changed_is_judged_as_it_is():
    real = load_data("digits")
    start = pick_images(real, method="real")
    before = evaluate(start)
    start.tensors["images"] = torch.zeros_like(start.tensors["images"])
    after = evaluate(start)
    assert not after.accuracy.equals(before.accuracy)
    start.tensors["images"] = real.x_train[start.tensors["indices"]]
    pd.testing.assert_frame_equal(evaluate(start), before)


def test_a_folder_of_ones_own(tmp_path):
    chance = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(12):
            Image.fromarray((100 * k + chance.integers(0, 100, (20, 24, 3))).astype(np.uint8)).save(
                tmp_path / f"train/{name}/{i}.png"
            )
    real = load_data("folder", path=tmp_path, size=16)
    experts = train_experts(real)
    made = distil(experts, pick_images(real, experts, ipc=2))
    assert experts[0].settings["batch"] == verbs.SMALLEST and made.tensors["images"].shape == (
        4,
        3,
        16,
        16,
    )
    recipe = config.profile("smoke").recipes[
        "ast"
    ]  # 10 steps an epoch on 1 200 images; here 2, on 18
    assert [experts[0].settings[name] for name in ("epochs", "ramp_epochs")] == [
        5 * recipe[name] for name in ("epochs", "ramp_epochs")
    ]
    assert evaluate(made).net_seed.nunique() == 2
    x, y = dataset(made, pixels=True)[3]
    assert y == 1 and x.shape == (3, 16, 16) and 0 <= x.min() <= x.max() <= 1


@pytest.mark.parametrize("near", [0, 100])
def test_experts_that_are_as_good_as_guessing_are_named(near, monkeypatch, caplog):
    monkeypatch.setattr(verbs, "NEAR", near)
    with caplog.at_level(logging.WARNING, "ddlib"):
        train_experts(load_data("digits"))
    assert [
        message.startswith("the experts on digits are right on") for message in caplog.messages
    ] == [True] * (near > 0)


FAULTS = {
    "an unknown set": (lambda real, experts, start: load_data("digit"), "data 'digit' is unknown"),
    "a field that data do not have": (
        lambda real, experts, start: load_data("digits", size=3),
        "size given with data 'digits'",
    ),
    "no such recipe": (
        lambda real, experts, start: train_experts(real, recipe="fast"),
        "no expert recipe 'fast'",
    ),
    "a field that experts do not have": (
        lambda real, experts, start: train_experts(real, epoch=3),
        "epoch: unknown key",
    ),
    "no eyes": (lambda real, experts, start: pick_images(real), "no expert is given"),
    "other data": (
        lambda real, experts, start: pick_images(load_data("digits", seed=1), experts),
        "the experts saw",
    ),
    "too many": (
        lambda real, experts, start: pick_images(real, ipc=500, method="real"),
        "120 training images a class",
    ),
    "no experts": (lambda real, experts, start: distil([], start), "0 experts"),
    "experts of two recipes": (
        lambda real, experts, start: distil([experts[0], experts[0]], start),
        r"experts of seeds \[0, 0\]",
    ),
    "an expert to begin with": (
        lambda real, experts, start: distil(experts, experts[0]),
        "expected images that pick_images left",
    ),
    "no such method": (
        lambda real, experts, start: distil(experts, start, "ASD"),
        "no method 'ASD'",
    ),
    "an expert to judge": (
        lambda real, experts, start: evaluate(experts[0]),
        "expected a set that",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_refused(fault):
    real = load_data("digits")
    experts = train_experts(real)
    do, message = FAULTS[fault]
    with pytest.raises(InputError, match=message):
        do(real, experts, pick_images(real, experts))


def test_a_file_that_is_none_of_ours_is_refused(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"images")
    with pytest.raises(Damaged):
        load(tmp_path / "a.safetensors")
