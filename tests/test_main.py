"""The command line: what each fault is answered with, what `show` prints, and quick help.

Each message says what was found, what was expected and what to do, and no work is begun. Faults
inside one stage's settings have a table of their own in test_settings.py.
"""

import copy
import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml

from ddlib import interop
from ddlib.__main__ import COMMANDS, main
from ddlib.base import InputError
from ddlib.files import Full
from ddlib.runs.profile import PROFILES
from ddlib.runs.store import write
from ddlib.settings import Data, Selection

SMOKE = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
CELL = "cells/digits-ipc1"


@dataclass
class Place:
    """Where a fault is made: a folder with STORE and RESULTS in it, and the environment."""

    folder: Path
    patch: pytest.MonkeyPatch

    def profile(self, changes):
        """A copy of the smoke profile with the values at some places changed; None removes one."""
        fields = copy.deepcopy(SMOKE)
        for place, value in changes.items():
            *path, last = place.split("/")
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


def given(*arguments, **environment):
    """A fault on the command line or in the environment."""

    def make(place):
        for name, value in environment.items():
            place.patch.setenv(name, value)
        return list(arguments)

    return make


def profile(changes, *command):
    """A fault in a profile, met by `show`, or by a command that is given."""
    command = command or ("show", "{}", "AST")
    return lambda place: [word.format(place.profile(changes)) for word in command]


def of_data(name, **more):
    """A profile on data that is not there."""
    data = {f"cells/{cell}/data": {"name": name} | more for cell in SMOKE["cells"]}
    return profile(data, "export", "experts", "--to", "there", "--profile", "{}")


def holding(name, content, *arguments):
    """A fault in a file; the arguments may name it as `{}`."""
    return lambda place: [word.format(place.file(name, content)) for word in arguments]


def own_set(place):
    file = place.folder / "mine.safetensors"
    settings = Selection(data=Data(name="digits"), method="real")
    tensors = {"images": torch.ones(10, 1, 16, 16), "labels": torch.arange(10)}
    tensors |= {"space.mean": torch.zeros(1), "space.std": torch.ones(1)}
    write(file, settings, tensors, {"lr": 0.1})
    return file


def pt_set(place):
    file = place.folder / "images_best.pt"
    for name, value in (("images", torch.zeros(10, 1, 16, 16)), ("labels", torch.arange(10))):
        torch.save(value, file.with_name(f"{name}_best.pt"))
    return file


def damaged_set(place):
    file = own_set(place)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    return ["evaluate", place.file(file.name, bytes(content))]


def rows_without_columns(place):
    place.patch.setenv("RESULTS", str(place.folder / "kept"))
    place.file("kept/smoke/rows/main.csv", "some\n1\n")
    return ["figures", "smoke"]


def no_ray(place):
    place.patch.setitem(sys.modules, "ray", None)
    place.patch.setenv("ENGINE", "ray")
    return list(EXPERTS)


EXPERTS = ("export", "experts", "--to", "there", "--profile", "smoke")
RUN = ("run", "main", "--profile", "{}")
FAULTS = {  # fault: the command that meets it; what was found, what was expected, what to do
    "unknown profile": (
        given("figures", "labtop"),
        "no profile 'labtop'",
        "expected one of",
        "correct the name, or write that file",
    ),
    "no such file": (
        given("show", "none.yaml", "AST"),
        "none.yaml'",
        "the path of a YAML file",
        "correct the name, or write that file",
    ),
    "no YAML": (
        holding("mine.yaml", "title: [unclosed", "show", "{}", "AST"),
        "mine.yaml cannot be read as YAML",
        "expected `name: value` lines as in",
        "correct ",
    ),
    "no text": (
        holding("mine.yaml", b"\x89PNG\xff\xfe", "show", "{}", "AST"),
        "mine.yaml cannot be read as YAML",
        "expected `name: value` lines as in",
        "correct ",
    ),
    "no mapping": (
        holding("mine.yaml", "- a list", "show", "{}", "AST"),
        "found ['a list']",
        "valid dictionary",
        "correct this line",
    ),
    "extends itself": (
        holding("mine.yaml", "extends: mine", "show", "{}", "AST"),
        "extends 'mine', which extends it",
        "profile beside it or of the library",
        "name a",
    ),
    "extends nothing": (
        holding("mine.yaml", "extends: my", "show", "{}", "AST"),
        "extends 'my', which is not there",
        "profile beside it or of the library",
        "name a",
    ),
    "unknown key": (
        profile({"seed": 3}),
        "seed: unknown key",
        "expected one of ablation, ceiling, cells",
        "check its spelling, or remove it",
    ),
    "unknown key in a cell": (
        profile({f"{CELL}/ipcs": 3}),
        "cells.digits-ipc1.ipcs: unknown key",
        "expected one of coreset_lr, data, ",
        "check its spelling",
    ),
    "unknown key of a stage": (
        profile({"evaluation/epoch": 3}),
        "unknown key 'epoch'",
        "expected one of batch, epochs, images, labels",
        "correct this line",
    ),
    "missing key": (profile({"seeds": None}), "profile", "seeds: Field required", "correct this"),
    "wrong type": (
        profile({"n_experts": "two"}),
        "found 'two'",
        "n_experts: Input should be a valid integer",
        "correct this line",
    ),
    "several faults": (
        profile({"n_experts": 0, "seeds": 1.5}),
        "found 0",
        "greater than or equal to 1",
        "correct these lines",
    ),
    "N below M": (
        profile({f"{CELL}/student/inner_steps": 1}),
        "N = 1 is below matched_epochs M = 2",
        "needs a step of its own",
        "raise N or lower M",
    ),
    "T_max too high": (
        profile({f"{CELL}/student/start_epochs": 4}),
        "T_max = 4 with matched_epochs M = 2 reaches",
        "the experts have 4",
        "lower T_max or M",
    ),
    "checks above iterations": (
        profile({f"{CELL}/student/checks": 9}),
        "checks = 9",
        "above iterations = 4",
        "lower it",
    ),
    "ipc too high": (
        profile({f"{CELL}/ipc": 121}, *RUN),
        "ipc = 121",
        "has 120 training images per class",
        "choose an ipc of at most 120",
    ),
    "unknown method": (
        profile({f"{CELL}/methods": ["MTTT"]}, *RUN),
        "no method 'MTTT'",
        "expected one of random; herding",
        "correct its name",
    ),
    "nothing tuned": (
        profile({f"{CELL}/tuned/AST": None}),
        "has no tuned settings for 'AST'",
        "cells.digits-ipc1.tuned",
        "add them under",
    ),
    "unknown recipe": (
        profile({"recipes/ast": None}),
        "no expert recipe 'ast'",
        "expected one of sgd, momentum",
        "add it under `recipes`",
    ),
    "unknown cell of an ablation": (
        profile({"ablation/cell": "digits"}, *RUN),
        "names a cell 'digits'",
        "expected one of digits-ipc1, digits-ipc3",
        "correct the name, or add",
    ),
    "unknown data": (
        of_data("mnist_6k"),
        "data 'mnist_6k' is unknown",
        "expected one of digits",
        "correct the name",
    ),
    "no CIFAR-10": (
        of_data("cifar10"),
        "'cifar10' was not found whole in",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "Unpack the archive there",
    ),
    "no MNIST": (
        of_data("mnist"),
        "'mnist' was not found whole in",
        "train-images-idx3-ubyte (or .gz): found nothing",
        "or let `python -m ddlib fetch mnist` do so",
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
        "no folder /no/where",
        "expected the images there",
        "correct the `path`",
    ),
    "no path": (
        of_data("folder", size=32),
        "data 'folder' needs `path`",
        "`size`, their side in pixels",
        "correct these lines",
    ),
    "path for other data": (
        of_data("digits", path="/no/where"),
        "path given with data 'digits'",
        "only 'folder' has them",
        "leave them out, or set",
    ),
    "store is a file": (
        given(*EXPERTS, STORE=__file__),
        "test_main.py cannot be the store",
        "expected a folder",
        "STORE=...",
    ),
    "unknown study": (
        given("run", "mian", "--profile", "smoke"),
        "no study 'mian'",
        "expected one of coresets, main",
        "correct the name",
    ),
    "unknown engine": (
        given(*EXPERTS, ENGINE="dask", WORKERS="2"),
        "ENGINE=dask",
        "one of serial, processes, ray",
        "leave ENGINE out",
    ),
    "Ray not installed": (
        no_ray,
        "ENGINE=ray",
        "expected Ray to be installed (pip install 'ddlib[ray]')",
        "leave ENGINE out",
    ),
    "wrong share of a GPU": (
        given(*EXPERTS, GPU_SHARE="2"),
        "GPU_SHARE=2",
        "from 0 to 1",
        "or leave GPU_SHARE out",
    ),
    "no number of workers": (
        given(*EXPERTS, WORKERS="two"),
        "WORKERS=two",
        "1 or more",
        "leave WORKERS out",
    ),
    "no workers": (
        given(*EXPERTS, WORKERS="0"),
        "WORKERS=0",
        "expected a number of processes, 1 or more",
        "leave WORKERS out",
    ),
    "unknown device": (
        given(*EXPERTS, DEVICE="gpu"),
        "DEVICE=gpu",
        "expected cpu, or cuda",
        "or leave DEVICE out",
    ),
    "a device that computes nothing": (
        given(*EXPERTS, DEVICE="meta"),
        "DEVICE=meta",
        "expected cpu, or cuda",
        "or leave DEVICE out",
    ),
    "no such home": (
        given(*EXPERTS, STORE="~nobody-of-that-name/store"),
        "~nobody-of-that-name/store",
        "there is no such home",
        "write the whole path",
    ),
    "a module inside nothing": (
        given(*RUN[:-1], "smoke", TRACK=".hooks:on_step"),
        "TRACK=.hooks:on_step",
        "expected tensorboard, or module:function",
        "of a function",
    ),
    "a folder to fetch": (
        given("fetch", "folder"),
        "data 'folder' needs `path`",
        "`size`, their side in pixels",
        "correct this line",
    ),
    "experts as pictures": (
        given(*EXPERTS, "--form", "png"),
        "--form is for sets",
        "experts is none",
        "leave them out",
    ),
    "a set of a recipe": (
        lambda place: ["export", str(own_set(place)), "--to", "there", "--recipe", "sgd"],
        "--profile, --recipe, --cell are for experts",
        "mine.safetensors is none",
        "leave them out",
    ),
    "no number for a rate": (
        lambda place: [
            *("evaluate", str(pt_set(place)), "--data", "digits", "--whitening", "none"),
            *("--lr", "nan"),
        ],
        "its lr is nan",
        "expected a positive number",
        "--lr gives another",
    ),
    "two methods of one file": (
        profile(
            {
                "variants": {"AST plus": {"of": "AST"}},
                f"{CELL}/methods": ["random", "MTT", "AST", "AST+", "AST plus"],
            },
            "paper",
            "{}",
        ),
        "would both keep their sets as digits-ipc1.ast_plus.0.safetensors",
        "two methods of digits-ipc1",
        "give one of these variants a name",
    ),
    "unknown notebook": (
        given("paper", "smoke", "--notebook", "11_more"),
        "no notebook '11_more'",
        "expected one of 00_tour",
        "correct the name, or leave it out",
    ),
    "rows without their columns": (
        rows_without_columns,
        "the table main cannot be made of the rows in",
        "a column was taken out or changed",
        "take sound copies",
    ),
    "no rows": (given("figures", "smoke"), "no rows in", "make paper PROFILE=smoke", "first"),
    "unknown cell": (
        given(*EXPERTS, "--cell", "best"),
        "no cell 'best' in profile smoke",
        "expected one of digits-ipc1",
        "correct the name",
    ),
    "no set": (
        given("evaluate", "none.safetensors"),
        "no file none.safetensors",
        "the path",
        "check",
    ),
    "foreign set": (
        holding("some.safetensors", "images, supposedly", "evaluate", "{}"),
        "some.safetensors cannot be read",
        "expected what torch.save has written",
        "download or copy it again",
    ),
    "damaged set": (
        damaged_set,
        "mine.safetensors is damaged",
        "its content hashes to",
        "take a sound copy",
    ),
    "no networks": (
        lambda place: ["evaluate", str(own_set(place)), "--networks", "0"],
        "networks",
        "greater than or equal to 1",
        "--networks and --epochs",
    ),
    "a set with words": (
        lambda place: ["evaluate", str(own_set(place)), "--lr", "0.1", "--data", "digits"],
        "mine.safetensors says itself",
        "what --data and --lr would say",
        "leave",
    ),
}


@pytest.fixture
def place(tmp_path, monkeypatch):
    for name in ("ENGINE", "WORKERS", "GPU_SHARE", "DEVICE", "DDLIB_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    monkeypatch.chdir(tmp_path)
    return Place(tmp_path, monkeypatch)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_with_what_was_expected_and_what_to_do(fault, place, capsys):
    make, *parts = FAULTS[fault]
    assert main(make(place)) == 2
    printed = capsys.readouterr().err
    message = printed[printed.index("ddlib: ") :]
    assert "Traceback" not in printed
    for words in parts:
        assert words in message, message
    stored = (place.folder / "store").rglob("*.safetensors")
    assert not [file for file in stored if file.parent.name != "data"], "no work is begun"
    assert not (place.folder / "results").exists() and not (place.folder / "there").exists()


def test_every_failure_is_one_message(place, capsys):
    def fails(error):
        def export(*_):
            raise error

        place.patch.setattr(interop, "export_set", export)
        return main(["export", "x", "--to", "there"])

    full = OSError(errno.ENOSPC, "No space left", "store/x")
    for error, message in ((full, "could not be written"), (Full("no room for x"), "no room")):
        assert fails(error) == 2 and message in capsys.readouterr().err
    assert fails(OSError(errno.EIO, "Input/output error", "store/x")) == 2
    assert "store/x: Input/output error; expected a place" in capsys.readouterr().err
    assert fails(OSError(errno.EMFILE, "Too many open files", "store/x")) == 2
    assert "run fewer processes (WORKERS=...)" in capsys.readouterr().err
    assert fails(KeyError("it")) == 2
    printed = capsys.readouterr().err
    assert "not foreseen: KeyError: 'it'" in printed and "DDLIB_DEBUG=1" in printed
    assert fails(KeyboardInterrupt) == 130
    assert "stopped. What is finished is kept" in capsys.readouterr().err
    place.patch.setattr(interop, "evaluate_file", interop.export_set)  # what was stopped last
    assert main(["evaluate", "x"]) == 130 and "nothing of it is kept" in capsys.readouterr().err
    assert fails(InputError("a name \x1b[31m\udce9 of another's")) == 2
    assert "a name \\x1b[31m\\udce9 of another's" in capsys.readouterr().err


def test_the_traceback_is_shown_where_it_is_asked_for(place, capsys):
    place.patch.setenv("DDLIB_DEBUG", "1")
    assert main(["show", "labtop", "AST"]) == 2
    printed = capsys.readouterr().err
    assert "Traceback" in printed and printed.splitlines()[-1].startswith("ddlib: no profile")


def test_without_docstrings_nothing_is_begun():
    command = [sys.executable, "-OO", "-m", "ddlib", "status", "smoke"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "use python -O, or none" in done.stderr


def test_help_is_quick_and_names_every_command():
    """PyTorch, which takes seconds to import, is not."""
    code = "import sys, runpy; sys.argv = ['ddlib', '--help']\n"
    code += "try: runpy.run_module('ddlib', run_name='__main__')\n"
    code += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert all(f"\n    {name} " in done.stdout for name in COMMANDS)


def test_show_prints_each_number_and_where_it_comes_from(capsys):
    assert main(["show", "smoke", "MTT + balanced loss"]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    for name, value, origin in (
        ("inner_steps", "4", "cell"),
        ("balance", "True", "method"),
        ("lr_images", "30.0", "tuned for MTT"),
        ("matched_epochs", "2", "cell"),
        ("gradient", "adjoint", "default"),
        ("start", "real images, ipc 1, seed 0, of digits", "method"),
    ):
        assert lines[name].split(maxsplit=1)[1].startswith(value)
        assert lines[name].endswith(origin)
