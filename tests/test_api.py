"""The six functions: the same artefacts as a paper's, a folder of one's own, and error messages."""

import logging
import re
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image, ImageFile

from ddlib import api, base
from ddlib.api import (
    distil,
    evaluate,
    load,
    load_data,
    merge,
    pick_images,
    save,
    train_experts,
)
from ddlib.base import InputError
from ddlib.data import datasets
from ddlib.files import Damaged
from ddlib.interop import dataset
from ddlib.runs import cost, methods, run, stages
from ddlib.runs.profile import profile
from ddlib.runs.store import Artefact, Store
from ddlib.settings import Data

README = (Path(__file__).parent.parent / "README.md").read_text()
CELL = profile("smoke"), "digits-ipc1"
PAPERS = methods.evaluation(*CELL, methods.distillation(*CELL, "AST+", 0))
BEFORE = methods.evaluation(*CELL, PAPERS.of.start)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A store that holds what a paper under `smoke` asks for first of AST+."""
    store = Store(tmp_path_factory.mktemp("api"))
    run.ensure([PAPERS, BEFORE], store, workers=1)
    return store


@pytest.fixture(autouse=True)
def small(stored, monkeypatch):
    """Everything at the scale of `smoke`."""
    monkeypatch.setattr(api, "PROFILE", "smoke")
    monkeypatch.setenv("STORE", str(stored.root))
    monkeypatch.setenv("ENGINE", "serial")


def test_it_makes_what_a_paper_makes(stored, monkeypatch, tmp_path):
    """The same settings, so nothing is left to make; a saved set has the store's bytes."""
    monkeypatch.setattr(stages, "MAKE", {})
    real = load_data("digits")
    experts = train_experts(real)
    made = distil(experts, pick_images(real, experts))
    assert made.settings == PAPERS.of.model_dump(mode="json")
    rows = pd.DataFrame(stored.load(PAPERS).record["rows"])
    pd.testing.assert_frame_equal(evaluate(made), rows)
    file = tmp_path / "set.safetensors"
    save(made, file)
    assert file.read_bytes() == stored.file(PAPERS.of).read_bytes()
    monkeypatch.setenv("STORE", str(tmp_path / "elsewhere"))  # where nobody made it
    pd.testing.assert_frame_equal(evaluate(load(file)), rows)
    assert not list((tmp_path / "elsewhere").rglob("*.safetensors"))


def test_a_judged_set_is_shown_beside_what_it_began_with_and_its_experts(stored, capsys):
    made = stored.load(PAPERS.of)
    evaluate(made, networks=1, epochs=1)
    alone = r", 1 epochs: test accuracy [0-9.]+% \(lr [0-9.]+\)\n$"
    assert re.search(alone, capsys.readouterr().out), "beside others only where nothing is changed"
    evaluate(made, networks=1, epochs=1, test=False)
    assert not capsys.readouterr().out, "the test images stay unseen"
    evaluate(made)
    ends = [stored.load(one).record["rows"][-1] for one in PAPERS.of.needs()[1:]]
    numbers = [np.mean([row["test_accuracy"] for row in ends])]
    for one in (PAPERS, BEFORE):
        rows = pd.DataFrame(stored.load(one).record["rows"])
        numbers.append(rows[rows.protocol == "lr_chosen"].accuracy.mean())
    experts, then, first = (f"{number:.1%}" for number in numbers)
    said = rf"epochs: test accuracy {first} before \(lr [0-9.]+\), {then} distilled "
    assert re.search(said + rf"\(lr [0-9.]+\), {experts} the experts\n$", capsys.readouterr().out)


@pytest.mark.parametrize("worth", [121, 120])
def test_it_says_when_there_are_too_few_images_to_distil(worth, monkeypatch, caplog):
    monkeypatch.setattr(api, "WORTH", worth)
    real = load_data("digits")
    experts = train_experts(real)
    with caplog.at_level(logging.WARNING, "ddlib"):
        distil(experts, pick_images(real, experts))
    said = "digits has 120 training images per class: distilled images then learn these by heart"
    assert [message.startswith(said) for message in caplog.messages] == [True] * (worth > 120)


def test_a_set_goes_on_from_its_images_and_lr_and_several_become_one(stored, tmp_path):
    real = load_data("digits")
    experts = train_experts(real)
    short = {"iterations": 2, "checks": 1, "check_epochs": 1}
    start = pick_images(real, experts)
    half = distil(experts, start, **short)
    save(half, tmp_path / "half.safetensors")
    more = distil(experts, load(tmp_path / "half.safetensors"), **short)
    assert torch.equal(more.tensors["history"][0], half.tensors["images"])
    assert more.record["curve"][0]["lr"] == pytest.approx(half.record["lr"], rel=0.05)
    again = distil(experts, half, **short)
    assert again.settings == more.settings, "a set is known by what it teaches"
    learned = short | {"labels": "learned", "lr_labels": 1.0}
    soft = distil(experts, start, **learned)
    further = distil(experts, soft, **learned)
    assert torch.equal(further.tensors["soft_history"][0], soft.tensors["soft"])
    both = merge([half, start])
    assert both.settings["ipc"] == 2 and both.tensors["labels"].tolist() == [
        k for k in range(10) for _ in range(2)
    ]
    assert torch.equal(both.tensors["images"][::2], half.tensors["images"])
    assert torch.equal(both.tensors["images"][1::2], start.tensors["images"])
    assert both.record["lr"] == pytest.approx((half.record["lr"] * start.record["lr"]) ** 0.5)
    assert len(evaluate(both, networks=1, epochs=1))
    save(both, tmp_path / "both.safetensors")
    with pytest.MonkeyPatch.context() as elsewhere:  # in a store that has neither
        elsewhere.setenv("STORE", str(tmp_path / "another"))
        loaded = distil(experts, load(tmp_path / "both.safetensors"), **short)
    assert torch.equal(loaded.tensors["history"][0], both.tensors["images"])
    with pytest.raises(InputError, match="expected sets of the same data"):
        merge([])
    with pytest.raises(InputError, match="hand one over"):
        pick_images(real, method="given")
    gone = Store(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="hand that set to distil or merge again"):
        run.get(stages.settings_of(both.settings), gone)


def test_what_a_call_cannot_do_it_refuses(stored):
    real = load_data("digits")
    with pytest.raises(InputError, match="seeds 0 to n - 1 are trained"):
        train_experts(real, seed=5)
    with pytest.raises(InputError, match="n from 1 to 10000"):
        train_experts(real, n=-1)
    hard = stored.load(PAPERS.of)
    soft = Artefact(hard.tensors | {"soft": torch.zeros(10, 10)}, hard.record, hard.settings)
    with pytest.raises(InputError, match="merge sets of one kind"):
        merge([hard, soft])
    with pytest.raises(InputError, match="`load` reads one from a file"):
        evaluate("first.safetensors")


def test_distil_starts_from_the_images_that_it_is_handed(stored):
    real = load_data("digits")
    experts = train_experts(real)
    short = {"iterations": 1, "check_epochs": 1}
    start = pick_images(real, experts)
    blank = Artefact(
        start.tensors | {"images": torch.zeros_like(start.tensors["images"])},
        start.record,
        start.settings,
    )
    made = distil(experts, blank, **short)
    assert made.settings["checks"] == 1, "no more checks than iterations"
    assert not made.tensors["history"][0].any()
    assert torch.equal(
        distil(experts, start, **short).tensors["history"][0], start.tensors["images"]
    )


def test_the_readmes_script_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    script = re.search(r"<!-- api:start -->\s+```python\n(.*?)```", README, re.DOTALL)[1]
    names = {}
    exec(compile(script, "README.md", "exec"), names)
    part = r"[0-9.]+% {} \(lr [0-9.]+\), "
    said = "test accuracy " + part.format("before") + part.format("distilled")
    said += r"[0-9.]+% the experts\n"
    assert re.search(said, capsys.readouterr().out)
    again, made = load("first.safetensors"), names["made"]
    assert again.settings == made.settings and again.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(t, made.tensors[name]) for name, t in again.tensors.items())


def test_a_large_set_gets_amounts_that_fit_it_and_long_work_is_announced(monkeypatch, caplog):
    """FashionMNIST has 45 times the images of the usual data: two experts, as far as they go."""
    asked = []

    class Enough(Exception):
        pass

    def ensure(wanted, store):
        asked.extend(wanted)
        raise Enough

    monkeypatch.setattr(run, "ensure", ensure)
    large = replace(load_data("digits"), settings=Data(name="fashion_mnist"))
    for changes, until in (({}, 3), ({"epochs": 2}, 2), ({"until": 1}, 1)):
        asked.clear()
        with pytest.raises(Enough):
            train_experts(large, **changes)
        assert [(e.seed, e.until) for e in asked] == [(0, until), (1, until)]
        assert {e.epochs for e in asked} == {changes.get("epochs", 4)}
    assert not caplog.records
    monkeypatch.setattr(cost, "seconds", lambda task: 2000.0)
    with pytest.raises(Enough):
        train_experts(large, n=3)
    (said,) = caplog.messages
    assert re.match(r"3 results are to be made, which takes about .*\d+ (h|min) .* here", said)


def test_a_set_that_was_changed_is_judged_as_it_is(monkeypatch):
    """It is not in the store; how far its evaluation is is shown, and never passes the end."""
    start = pick_images(load_data("digits"), method="real")
    short = {"networks": 1, "epochs": 2, "lrs": [0.003, 0.01]}
    before = evaluate(start, **short | {"epochs": 30})
    changed = type(start)(
        {**start.tensors, "images": -start.tensors["images"]}, start.record, start.settings
    )
    done, advance = [], api.Progress.advance
    monkeypatch.setattr(
        api.Progress,
        "advance",
        lambda self, work, text: (advance(self, work, text), done.append(self.done / self.total)),
    )
    assert evaluate(changed, **short)["set"][0] != before["set"][0]
    assert done == sorted(done) and 0.5 < done[-1] <= 1 + 1e-9


def test_a_folder_of_ones_own(tmp_path):
    """Few images: smaller batches, and more epochs where those still give too few steps."""
    chance = np.random.default_rng(0)
    for k, name in enumerate(("dark", "light")):
        (tmp_path / "train" / name).mkdir(parents=True)
        for i in range(12):
            pixels = (100 * k + chance.integers(0, 100, (20, 24, 3))).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"train/{name}/{i}.png")
    real = load_data("folder", path=tmp_path, size=16)
    experts = train_experts(real, recipe="ast")
    made = distil(experts, pick_images(real, experts, ipc=2))
    settings, usual = experts[0].settings, profile("smoke").recipes["ast"]
    assert made.tensors["images"].shape == (4, 3, 16, 16) and settings["batch"] == api.SMALLEST
    # 10 steps per epoch on the 1 200 images of digits, 2 on these 18
    assert [settings[n] / usual[n] for n in ("epochs", "ramp_epochs")] == [5, 5]
    assert evaluate(made).net_seed.nunique() == 2
    x, y = dataset(made, pixels=True)[3]
    assert y == 1 and x.shape == (3, 16, 16) and 0 <= x.min() <= x.max() <= 1


@pytest.mark.parametrize("near", [0, 100])
def test_experts_that_are_as_good_as_guessing_are_named(near, monkeypatch, caplog):
    monkeypatch.setattr(api, "NEAR", near)
    with caplog.at_level(logging.WARNING, "ddlib"):
        train_experts(load_data("digits"))
    assert ["chance is 10 %" in message for message in caplog.messages] == [True] * (near > 0)


ODD = {  # what is no argument of that kind, and what is said of it
    "text for a number": (lambda real, one: pick_images(real, ipc="3"), "ipc: .*found '3'"),
    "a part of one": (lambda real, one: train_experts(real, n=2.5), "n: .*found 2.5"),
    "a truth": (lambda real, one: pick_images(real, ipc=True), "ipc: .*found True"),
    "a number for a name": (lambda real, one: load_data(3), "name: .*found 3"),
    "a number for a file": (lambda real, one: load(3), "file: .*found 3"),
    "images to save": (lambda real, one: save(real, "x"), "artefact: .*of type Images"),
    "a name for images": (lambda real, one: train_experts("digits"), "real: .*`load_data` returns"),
    "numbers for experts": (lambda real, one: distil([3], one), r"experts.0: .*found 3"),
    "a generator": (lambda real, one: distil((e for e in ()), one), "experts: .*type generator"),
    "one set to merge": (lambda real, one: merge(one), "sets: .*of type Artefact"),
    "a wrong network": (lambda real, one: evaluate(one, {"with": 3}), "network.with: .*found 3"),
    "nothing": (lambda real, one: train_experts(), "missing a required argument: 'real'"),
    "too much": (lambda real, one: load(1, 2), "too many positional arguments; it takes file"),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_arguments_are_one_message(odd):
    call, message = ODD[odd]
    real = load_data("digits")
    with pytest.raises(InputError, match=message):
        call(real, pick_images(real, method="real"))


def test_numbers_of_numpy_are_numbers():
    real = load_data("digits")
    plain, numpy = (pick_images(real, ipc=n, method="real") for n in (2, np.int64(2)))
    assert plain.settings == numpy.settings


FAULTS = {
    "unknown data": (lambda real, experts, start: load_data("digit"), "data 'digit' is unknown"),
    "a field of folders": (
        lambda real, experts, start: load_data("digits", size=3),
        "size given with data 'digits'",
    ),
    "unknown recipe": (
        lambda real, experts, start: train_experts(real, recipe="fast"),
        "no expert recipe 'fast'",
    ),
    "unknown field": (
        lambda real, experts, start: train_experts(real, epoch=3),
        "epoch: unknown key",
    ),
    "a profile": (
        lambda real, experts, start: distil(experts, start, profile="smoke"),
        "unknown key 'profile'|profile: unknown key",
    ),
    "a cell": (
        lambda real, experts, start: evaluate(start, cell_name="digits"),
        "cell_name: unknown key",
    ),
    "unknown selection": (
        lambda real, experts, start: pick_images(real, experts, method="best"),
        "'best' images cannot be used",
    ),
    "no features": (lambda real, experts, start: pick_images(real), "no experts were given"),
    "other data": (
        lambda real, experts, start: pick_images(load_data("digits", seed=1), experts),
        "the experts saw",
    ),
    "too many": (
        lambda real, experts, start: pick_images(real, ipc=500, method="real"),
        "120 training images per class",
    ),
    "no experts": (lambda real, experts, start: distil([], start), "0 experts"),
    "an expert twice": (
        lambda real, experts, start: distil([experts[0], experts[0]], start),
        r"experts of seeds \[0, 0\]",
    ),
    "a start that is none": (
        lambda real, experts, start: distil(experts, experts[0]),
        "expected images of pick_images",
    ),
    "unknown method": (
        lambda real, experts, start: distil(experts, start, "ASD"),
        "no method 'ASD'",
    ),
    "an expert to judge": (
        lambda real, experts, start: evaluate(experts[0]),
        "expected a set of distil or pick_images",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_used_is_an_error(fault):
    real = load_data("digits")
    experts = train_experts(real)
    call, message = FAULTS[fault]
    with pytest.raises(InputError, match=message):
        call(real, experts, pick_images(real, experts))


def test_a_file_that_is_none_of_ours_is_damaged(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"images")
    with pytest.raises(Damaged):
        load(tmp_path / "a.safetensors")


def test_labels_of_a_dataset_are_soft_or_hard(stored):
    artefact = stored.load(PAPERS.of)
    soft = torch.eye(10).flip(0)
    learned = type(artefact)(artefact.tensors | {"soft": soft}, artefact.record, {})
    assert dataset(artefact)[3][1] == 3 == dataset(learned, hard=True)[3][1]
    x, y = dataset(learned)[3]
    assert torch.equal(x, artefact.tensors["images"][3]) and torch.equal(y, soft[3].softmax(0))


STATES = {
    "float64": lambda: stack_of(torch.set_default_dtype, torch.float64, torch.float32),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "another device": lambda: torch.device("meta"),
    "no oneDNN": lambda: stack_of(partial(setattr, torch.backends.mkldnn, "enabled"), False, True),
    "no small numbers": lambda: stack_of(torch.set_flush_denormal, True, False),
    "three threads": lambda: stack_of(torch.set_num_threads, 3, 1),
    "low precision on a GPU": lambda: stack_of(
        partial(setattr, torch.backends.cuda.matmul, "fp32_precision"), "tf32", "none"
    ),
    "low precision": lambda: stack_of(torch.set_float32_matmul_precision, "medium", "highest"),
}


@contextmanager
def stack_of(setter, value, usual):
    setter(value)
    try:
        yield
    finally:
        setter(usual)


@pytest.mark.parametrize("state", STATES)
def test_what_pytorch_is_set_to_changes_no_result(state, tmp_path, monkeypatch):
    def work(place):
        monkeypatch.setenv("STORE", str(tmp_path / place))
        datasets._load.cache_clear()
        real = load_data("digits")
        experts = train_experts(real, n=1, recipe="ast", epochs=3)
        start = pick_images(real, experts)
        made = distil(experts, start, method="MTT", iterations=2, checks=1)
        file = tmp_path / f"{place}.safetensors"
        save(made, file)
        return experts[0], load(file), evaluate(load(file), networks=1, epochs=2)

    plain = work("plain")
    with STATES[state]():
        other = work("other")
        assert torch.get_default_dtype() == (torch.float64 if state == "float64" else torch.float32)
    for one, two in zip(plain[:2], other[:2], strict=True):
        assert one.settings == two.settings and one.record == two.record
        assert all(torch.equal(t, two.tensors[name]) for name, t in one.tensors.items())
    pd.testing.assert_frame_equal(plain[2], other[2])


def test_nothing_is_overwritten_and_the_file_system_is_one_message(stored, tmp_path):
    made = run.get(PAPERS.of, stored)
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(InputError, match="force=True"):
        save(made, tmp_path / "mine")
    assert (tmp_path / "mine").read_text() == "mine"
    save(made, tmp_path / "mine", force=True)
    save(made, tmp_path / "mine")
    for place in (tmp_path / "mine/below", tmp_path / ("y" * 300)):
        with pytest.raises(InputError, match="expected a place that can be read and written"):
            save(made, place)


def test_half_an_image_is_refused_whatever_pillow_is_set_to(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for name in ("cats", "dogs"):
        (tmp_path / name).mkdir()
        for i in range(3):
            noise = np.random.default_rng(i).integers(0, 255, (32, 32, 3), np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{i}.png")
    file = tmp_path / "cats" / "0.png"
    file.write_bytes(file.read_bytes()[:1500])
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    with pytest.raises(InputError, match=r"0\.png cannot be read as an image"):
        load_data("folder", path=tmp_path, size=16)
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


def test_of_calls_side_by_side_the_last_sets_pytorch_back():
    torch.set_default_dtype(torch.float64)
    try:
        first, second = base._everywhere(), base._everywhere()
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float32, "the second is at work"
        second.__exit__(None, None, None)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
