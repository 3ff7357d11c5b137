"""Fault -> message, through the command line: each fault is really there, each message says what was found, what was expected and what to do, and no work is begun.

Faults inside one stage's settings have a table of their own in test_config.py.
"""

import copy
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from ddlib.__main__ import main
from ddlib.paper import build as press
from ddlib.runs.store import write
from ddlib.settings import FORMAT, PROFILES, Data, Selection

SMOKE = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
CELL = "cells/digits-ipc1"


@dataclass
class Place:
    """Where a fault is made: a folder with STORE and RESULTS in it, and the environment."""

    folder: Path
    patch: pytest.MonkeyPatch

    def profile(self, **changes):
        """The path of a copy of the smoke profile with the values at some places, `cells/digits-ipc1/ipc`, replaced; None removes one."""
        fields = copy.deepcopy(SMOKE)
        for way, value in changes.items():
            *path, last = way.split("/")
            inner = fields
            for name in path:
                inner = inner[name]
            inner.pop(last, None) if value is None else inner.update({last: value})
        return self.file("mine.yaml", yaml.safe_dump(fields, sort_keys=False))

    def file(self, name, content):
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(file)

    def env(self, **values):
        for name, value in values.items():
            self.patch.setenv(name, value)


def profile(**changes):
    """A fault in a profile: the command that meets it."""
    return lambda place: ["run", "main", "--profile", place.profile(**changes)]


def of_data(name, **more):
    """A profile on data that is not there."""
    return lambda place: [
        "run",
        "experts",
        "--profile",
        place.profile(
            **{
                f"{CELL}/data": {"name": name} | more,
                "cells/digits-ipc3/data": {"name": name} | more,
            }
        ),
    ]


def given(*arguments, **environment):
    """A fault on the command line or in the environment."""

    def make(place):
        place.env(**environment)
        return list(arguments)

    return make


def holding(name, content, *arguments):
    """A fault in a file; the arguments may name it as `{file}`."""

    def make(place):
        file = place.file(name, content)
        return [argument.format(file=file) for argument in arguments]

    return make


def own_set(place):
    file = place.folder / "mine.safetensors"
    write(
        file,
        Selection(data=Data(name="digits"), method="real"),
        {"images": torch.ones(10, 1, 16, 16), "labels": torch.arange(10)},
        {"lr": 0.1},
    )
    return file


def damaged_set(place):
    file = own_set(place)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    return ["evaluate", place.file(file.name, bytes(content))]


def no_ray(place):
    place.patch.setitem(sys.modules, "ray", None)
    place.env(ENGINE="ray")
    return ["run", "experts", "--profile", "smoke"]


FAULTS = {  # fault: the command that meets it; what was found, what was expected, what to do
    "unknown profile": (
        given("figures", "labtop"),
        "no profile 'labtop'",
        "expected one of",
        "correct the name, or write that file",
    ),
    "no such file": (
        given("paper", "none.yaml"),
        "none.yaml'",
        "the path of a YAML file",
        "correct the name, or write that file",
    ),
    "no YAML": (
        holding("mine.yaml", "title: [unclosed", "figures", "{file}"),
        "profile mine is no YAML",
        "expected `name: value` lines as in",
        "correct ",
    ),
    "no text": (
        holding("mine.yaml", b"\x89PNG\xff\xfe", "figures", "{file}"),
        "profile mine is no YAML",
        "expected `name: value` lines as in",
        "correct ",
    ),
    "no mapping": (
        holding("mine.yaml", "- a list", "plan", "{file}"),
        "found ['a list']",
        "valid dictionary",
        "correct this line",
    ),
    "extends itself": (
        holding("mine.yaml", "extends: mine", "plan", "{file}"),
        "extends 'mine', which extends it",
        "profile beside it or of the library",
        "name a",
    ),
    "extends nothing": (
        holding("mine.yaml", "extends: my", "plan", "{file}"),
        "extends 'my', which is not there",
        "profile beside it or of the library",
        "name a",
    ),
    "unknown key": (
        profile(seed=3),
        "seed: unknown key",
        "expected one of ablation, ceiling, cells",
        "check its spelling, or remove it",
    ),
    "unknown key in a cell": (
        profile(**{f"{CELL}/ipcs": 3}),
        "cells.digits-ipc1.ipcs: unknown key",
        "expected one of coreset_lr, data, ",
        "check its spelling",
    ),
    "unknown key of a stage": (
        profile(**{"evaluation/epoch": 3}),
        "epoch: unknown key",
        "expected one of batch, epochs, factors",
        "or remove it",
    ),
    "missing key": (profile(seeds=None), "profile", "seeds: Field required", "correct this line"),
    "wrong type": (
        profile(n_experts="two"),
        "found 'two'",
        "n_experts: Input should be a valid integer",
        "correct this line",
    ),
    "several faults": (
        profile(n_experts=0, seeds=1.5),
        "found 0",
        "greater than or equal to 1",
        "correct these lines",
    ),
    "N below M": (
        profile(**{f"{CELL}/student/inner_steps": 1}),
        "N = 1 is below matched_epochs M = 2",
        "needs a step of its own",
        "raise N or lower M",
    ),
    "T_max too high": (
        profile(**{f"{CELL}/student/start_epochs": 4}),
        "T_max = 4 with matched_epochs M = 2 reaches",
        "the experts have 4",
        "lower T_max or M",
    ),
    "checks above iterations": (
        profile(**{f"{CELL}/student/checks": 9}),
        "checks = 9",
        "above iterations = 4",
        "lower it",
    ),
    "ipc too high": (
        profile(**{f"{CELL}/ipc": 121}),
        "ipc = 121",
        "has 120 training images a class",
        "choose an ipc of at most 120",
    ),
    "unknown method": (
        profile(**{f"{CELL}/methods": ["MTTT"]}),
        "no method 'MTTT'",
        "expected one of random; herding",
        "correct its name",
    ),
    "nothing tuned": (
        profile(**{f"{CELL}/tuned/AST": None}),
        "has no tuned settings for 'AST'",
        "cells.digits-ipc1.tuned",
        "add them under",
    ),
    "unknown recipe": (
        profile(**{"recipes/ast": None}),
        "no expert recipe 'ast'",
        "expected one of sgd, momentum",
        "add it under `recipes`",
    ),
    "unknown cell": (
        profile(**{"ablation/cell": "digits"}),
        "names a cell 'digits'",
        "expected one of digits-ipc1, digits-ipc3",
        "correct the name, or add",
    ),
    "unknown data": (
        of_data("mnist_6k"),
        "data 'mnist_6k' is unknown",
        "expected one of digits",
        "correct `data.name`",
    ),
    "no CIFAR-10": (
        of_data("cifar10"),
        "'cifar10' was not found whole in",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "Unpack the archive there",
    ),
    "no CIFAR-100": (
        of_data("cifar100"),
        "'cifar100' was not found whole in",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "Unpack the archive there",
    ),
    "no MNIST": (
        of_data("mnist"),
        "'MNIST' was not found whole in",
        "train-images-idx3-ubyte.gz (md5",
        "Put them there, or run",
    ),
    "no Fashion-MNIST": (
        of_data("fashion_mnist"),
        "'FashionMNIST' was not found whole in",
        "http://fashion-mnist",
        "Put them there, or run",
    ),
    "no Tiny ImageNet": (
        of_data("tiny_imagenet"),
        "lacks wnids.txt",
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "put it there",
    ),
    "no ImageNet": (
        of_data("imagewoof"),
        "of 10 classes",
        "ILSVRC2012 (image-net.org), train and val as one folder",
        "put them there",
    ),
    "no folder": (
        of_data("folder", path="/no/where", size=32),
        "no images in /no/where",
        "expected <class>/* or train/<class>/*",
        "correct `path`",
    ),
    "no path": (
        of_data("folder", size=32),
        "data 'folder' lacks path",
        "expected `path`, where the images lie",
        "correct these lines",
    ),
    "path for other data": (
        of_data("digits", path="/no/where"),
        "path given with data 'digits'",
        "only 'folder' has them",
        "leave them out, or set",
    ),
    "store of another format": (
        holding(
            "store/store.json",
            json.dumps({"format": FORMAT + 1}),
            "run",
            "main",
            "--profile",
            "smoke",
        ),
        f"was filled under format {FORMAT + 1}",
        f"writes format {FORMAT}",
        "name another folder (STORE=...) or delete it",
    ),
    "unknown study": (
        given("run", "mian", "--profile", "smoke"),
        "no study 'mian'",
        "expected one of coresets, main",
        "correct the name",
    ),
    "empty shard": (
        given("run", "main", "--profile", "smoke", "--shard", ""),
        "shard ''",
        "expected i/n, the i-th of n shards",
        "give 2/8 for example",
    ),
    "wrong shard": (
        given("run", "main", "--profile", "smoke", "--shard", "3/2"),
        "shard '3/2'",
        "expected i/n, the i-th of n shards",
        "give 2/8 for example",
    ),
    "unknown engine": (
        given("run", "experts", "--profile", "smoke", ENGINE="dask", WORKERS="2"),
        "ENGINE=dask",
        "one of serial, processes, ray",
        "leave ENGINE out",
    ),
    "Ray not installed": (
        no_ray,
        "ENGINE=ray, but Ray is not installed",
        "serial and processes need nothing more",
        "pip install 'ddlib[ray]'",
    ),
    "wrong share of a GPU": (
        given("run", "experts", "--profile", "smoke", GPU_SHARE="2"),
        "GPU_SHARE=2",
        "from 0 to 1",
        "set 0.25 to put four",
    ),
    "no number of workers": (
        given("run", "experts", "--profile", "smoke", WORKERS="two"),
        "WORKERS=two",
        "1 or more",
        "leave WORKERS out",
    ),
    "no workers": (
        given("run", "experts", "--profile", "smoke", WORKERS="0"),
        "WORKERS=0",
        "expected a number of processes, 1 or more",
        "leave WORKERS out",
    ),
    "unknown device": (
        given("run", "experts", "--profile", "smoke", DEVICE="gpu"),
        "DEVICE=gpu",
        "expected cpu, or cuda",
        "correct DEVICE, or leave it out",
    ),
    "unknown notebook": (
        given("paper", "smoke", "--notebook", "11_more"),
        "no notebook '11_more'",
        "expected one of 00_tour",
        "correct the name, or leave it out",
    ),
    "unknown parameter": (
        holding(
            "given.yaml",
            "profil: smoke",
            "paper",
            "smoke",
            "--notebook",
            "00_tour",
            "--parameters",
            "{file}",
        ),
        "unknown parameter 'profil'",
        "expected one of profile",
        "correct its name, or remove it",
    ),
    "no parameter file": (
        given("paper", "smoke", "--parameters", "none"),
        "no parameter file none",
        "expected a YAML file of `name: value` lines",
        "correct the path",
    ),
    "parameters no mapping": (
        holding("given.yaml", "smoke", "paper", "smoke", "--parameters", "{file}"),
        "holds str",
        "expected `name: value` lines",
        "correct it",
    ),
    "parameters no YAML": (
        holding("given.yaml", "a: [", "paper", "smoke", "--parameters", "{file}"),
        "is no YAML",
        "expected `name: value` lines",
        "correct it",
    ),
    "no rows": (
        given("figures", "smoke"),
        "no rows in",
        "where a study keeps them",
        "run `make paper PROFILE=smoke` first",
    ),
    "nothing to verify": (
        given("verify", "smoke"),
        "nothing to verify: no rows in",
        "expected what `make paper PROFILE=smoke` leaves there",
        "run it first",
    ),
    "no set": (
        given("evaluate", "none.safetensors"),
        "no file none.safetensors",
        "the path",
        "check",
    ),
    "foreign set": (
        holding("some.safetensors", "images, supposedly", "evaluate", "{file}"),
        "some.safetensors",
        "not a ddlib file",
        "take a sound copy",
    ),
    "no networks": (
        lambda place: ["evaluate", str(own_set(place)), "--networks", "0"],
        "networks",
        "greater than or equal to 1",
        "--networks and --epochs",
    ),
    "store is a file": (
        given("status", "smoke", STORE=__file__),
        "test_errors.py cannot be the store",
        "expected a folder",
        "STORE=...",
    ),
    "damaged set": (
        damaged_set,
        "mine.safetensors is damaged",
        "its content hashes to",
        "take a sound copy",
    ),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("ENGINE", "WORKERS", "GPU_SHARE", "DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, monkeypatch)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_what_was_expected_and_what_to_do(fault, place, capsys):
    make, *parts = FAULTS[fault]
    assert main(make(place)) == 2
    said = capsys.readouterr().err
    message = said[said.index("ddlib: ") :]
    assert "Traceback" not in said
    for words in parts:
        assert words in message, message
    made = [
        file
        for file in (place.folder / "store").rglob("*.safetensors")
        if file.parent.name != "data"
    ]
    assert not made and not (place.folder / "results").exists(), "no work is begun"


def test_lost_markers_are_named(tmp_path, monkeypatch):
    start, end = "<!-- paper:start -->", "<!-- paper:end -->"
    for text, lost in (("no markers", start), (start, end), (f"{end} {start}", end)):
        monkeypatch.setattr(press, "README", tmp_path / "README.md")
        press.README.write_text(text)
        with pytest.raises(
            press.InputError,
            match=f"has lost its markers: expected .*, found no {lost}; put them back where that part belongs",
        ):
            press.fill("paper", ["words"])
        assert press.README.read_text() == text
