"""Experts and distilled images of MTT's form: what comes in is checked and means the same here, what goes out comes back number by number."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from ddlib import album
from ddlib import interop as trade
from ddlib import settings as config
from ddlib.__main__ import main
from ddlib.data import datasets as data
from ddlib.data import mtt_format as exchange
from ddlib.data.space import Space, fit_space
from ddlib.runs import engine, studies
from ddlib.runs import stages as pipeline
from ddlib.runs.engine import Progress
from ddlib.runs.stages import expert, get
from ddlib.runs.store import Artefact, Store
from ddlib.settings import (
    PROFILES,
    Data,
    Distillation,
    Evaluation,
    Expert,
    Imported,
    InputError,
    Network,
    Selection,
    generator,
    validated,
)

DATA = Data(name="digits")
NET = Network(width=8, depth=2)
EXPERT = Expert(data=DATA, network=NET, epochs=3, lr=0.02)
EPOCHS = 3


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with two experts and two sets; to be read only."""
    store = Store(tmp_path_factory.mktemp("trained"))
    for settings in (
        EXPERT,
        expert(EXPERT, 1),
        following(EXPERT),
        Selection(data=DATA, method="real", ipc=2),
    ):
        get(settings, store)
    return store


def following(experts, **changes):
    """A short distillation along those experts."""
    start = Selection(data=DATA, method="representative", expert=experts)
    short = {
        "n_experts": 2,
        "inner_steps": 4,
        "matched_epochs": 2,
        "start_epochs": 2,
        "lr_images": 30.0,
        "iterations": 3,
        "checks": 1,
        "check_epochs": 3,
    }
    return Distillation(experts=experts, start=start, **short | changes)


@pytest.fixture(scope="module")
def buffer(trained, tmp_path_factory):
    """The two experts as a folder of one file."""
    folder = tmp_path_factory.mktemp("buffer")
    exchange.write_buffer(folder, paths(trained), pipeline.shapes(EXPERT))
    return folder


def paths(store):
    return [store.load(expert(EXPERT, i)).tensors["path"] for i in (0, 1)]


def imported(buffer, **changes):
    return Imported(
        **{"data": DATA, "network": NET, "buffer": str(buffer), "epochs": EPOCHS} | changes
    )


class Theirs(nn.Module):
    """The network of MTT's code as its users know it: blocks under `features`, then `classifier`."""

    def __init__(self, shape, classes, width, depth):
        super().__init__()
        c, h, w = shape
        blocks = []
        for _ in range(depth):
            blocks += [
                nn.Conv2d(c, width, 3, padding=1),
                nn.GroupNorm(width, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2, 2),
            ]
            c, h, w = width, h // 2, w // 2
        self.features, self.classifier = nn.Sequential(*blocks), nn.Linear(c * h * w, classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


def walk(shape=(3, 32, 32), classes=10, width=8, depth=3, epochs=EPOCHS):
    """A trajectory of their network whose parameters are drawn anew at each epoch, and the network as it is at the end."""
    net, epoch_lists = Theirs(shape, classes, width, depth), []
    for e in range(epochs + 1):
        for i, p in enumerate(net.parameters()):
            p.data = torch.randn(p.shape, generator=generator("walk", e, i)) / 10
        epoch_lists.append([p.detach().cpu().clone() for p in net.parameters()])
    return epoch_lists, net


def test_their_parameters_make_our_network(tmp_path):
    """In MTT's order, through MTT's file: the same logits."""
    epoch_lists, net = walk()
    torch.save([epoch_lists], tmp_path / "replay_buffer_0.pt")
    settings = Imported(
        data=Data(name="cifar10"), network=Network(width=8), buffer=str(tmp_path), epochs=EPOCHS
    )
    path = exchange.trajectory(tmp_path, 0, pipeline.shapes(settings), EPOCHS, settings.contents)
    x = torch.randn(5, 3, 32, 32, generator=generator("x"))
    flat = pipeline.network(settings.network, (3, 32, 32), 10)
    torch.testing.assert_close(flat(path[-1], x), net(x), atol=1e-5, rtol=1e-5)


def test_a_buffer_comes_back_number_by_number(tmp_path):
    shapes, n = pipeline.shapes(EXPERT), 23
    size = sum(s.numel() for s in shapes.values())
    every = [torch.randn(EPOCHS + 1, size, generator=generator("path", i)) for i in range(n)]
    files = exchange.write_buffer(tmp_path, iter(every), shapes)
    assert [f.name for f in files] == [
        "replay_buffer_0.pt",
        "replay_buffer_1.pt",
        "replay_buffer_2.pt",
    ]
    assert [held for _, held in exchange.count(tmp_path, shapes, EPOCHS)] == [10, 10, 3]
    contents = config.fingerprint(tmp_path)
    for i, path in enumerate(every):
        assert torch.equal(exchange.trajectory(tmp_path, i, shapes, EPOCHS, contents), path)
    again = tmp_path / "again"
    exchange.write_buffer(again, every, shapes)
    assert all((again / f.name).read_bytes() == f.read_bytes() for f in files)
    plain = torch.load(files[1], weights_only=True)  # as MTT's code reads it
    assert torch.equal(torch.cat([p.reshape(-1) for p in plain[2][1]]), every[12][1])


def test_files_of_a_buffer_go_by_number(tmp_path):
    for n in (10, 2, 0):
        (tmp_path / f"replay_buffer_{n}.pt").touch()
    (tmp_path / "replay_buffer_1.pt.part").touch()
    assert [f.name for f in config.buffer_files(tmp_path)] == [
        f"replay_buffer_{n}.pt" for n in (0, 2, 10)
    ]


def test_an_imported_expert_is_as_good_as_trained_here(trained, buffer, tmp_path):
    """The same path, the same rows but the training loss, which no buffer holds; and along it the same set, byte by byte."""
    store, settings = Store(tmp_path), imported(buffer)
    pipeline.ensure([following(settings)], store, workers=1)
    for i in (0, 1):
        ours, theirs = trained.load(expert(EXPERT, i)), store.load(expert(settings, i))
        assert (
            torch.equal(ours.tensors["path"], theirs.tensors["path"])
            and ours.record["smoothness"] == theirs.record["smoothness"]
        )
        assert [row | {"loss": 0} for row in ours.record["rows"]] == [
            row | {"loss": 0} for row in theirs.record["rows"]
        ]
    ours, theirs = trained.load(following(EXPERT)), store.load(following(settings))
    assert (
        torch.equal(ours.tensors["images"], theirs.tensors["images"])
        and ours.record == theirs.record
    )
    assert Distillation(**theirs.settings) == following(settings)


def test_experts_of_chance_are_doubted(buffer, tmp_path, caplog):
    """Right in form, of another data set."""
    shapes = pipeline.shapes(EXPERT)
    drawn = [
        torch.randn(
            EPOCHS + 1, sum(s.numel() for s in shapes.values()), generator=generator("drawn")
        )
        for _ in range(1)
    ]
    exchange.write_buffer(tmp_path / "other", drawn, shapes)
    get(imported(tmp_path / "other"), Store(tmp_path))
    assert "hardly more than chance: was it trained on this data, in this space" in caplog.text
    caplog.clear()
    get(imported(buffer), Store(tmp_path))
    assert not caplog.text


def spoiled(change):
    """A buffer of two trajectories, of which the second is changed."""
    both = [walk(shape=(1, 16, 16), depth=2)[0] for _ in range(2)]
    change(both[1])
    return both


def put(e, p, value):
    def change(trajectory):
        trajectory[e][p] = value

    return change


def nan(trajectory):
    trajectory[2][3][1] = float("nan")


def still(trajectory):
    trajectory[3] = [p.clone() for p in trajectory[2]]


FAULTS = {  # what the file holds -> parts of the message
    "a tensor": (torch.zeros(3), ["holds (3,) of torch.float32, expected a list of trajectories"]),
    "nothing": ([], ["holds a list of 0, expected a list of trajectories"]),
    "too few epochs": (
        spoiled(lambda t: t.pop()),
        ["trajectory 1 is a list of 3, expected a list of E + 1 = 4 epochs: set `epochs`"],
    ),
    "too many epochs": (spoiled(lambda t: t.append(t[0])), ["trajectory 1 is a list of 5"]),
    "no epoch": (
        spoiled(lambda t: t.__setitem__(2, 7)),
        ["trajectory 1, epoch 2 is a int, expected a list of 10 parameters (features.0.weight"],
    ),
    "a parameter less": (
        spoiled(lambda t: t[1].pop()),
        ["trajectory 1, epoch 1 is a list of 9, expected a list of 10 parameters", "set `network`"],
    ),
    "another shape": (
        spoiled(put(1, 4, torch.zeros(8, 8, 5, 5))),
        [
            "trajectory 1, epoch 1, parameter 4 (features.4.weight) is (8, 8, 5, 5) of torch.float32, expected (8, 8, 3, 3) of",
            "set `network` (width, depth)",
        ],
    ),
    "another type": (
        spoiled(put(0, 9, torch.zeros(10).double())),
        [
            "epoch 0, parameter 9 (head.bias) is (10,) of torch.float64, expected (10,) of torch.float32"
        ],
    ),
    "no tensor": (spoiled(put(0, 1, "bias")), ["parameter 1 (features.0.bias) is a str of 4"]),
    "not finite": (
        spoiled(nan),
        [
            "trajectory 1, epoch 2, parameter 3 (features.1.bias) has numbers that are not finite",
            "take this trajectory out",
        ],
    ),
    "no step": (
        spoiled(still),
        ["trajectory 1 is the same at epochs 2 and 3, expected an expert that moves"],
    ),
    "not cloned": (
        spoiled(lambda t: t.__setitem__(slice(0, 3), [[p[:] for p in t[3]] for _ in range(3)])),
        ["share memory", "Save a .clone() of each"],
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_buffer_is_refused(fault, tmp_path):
    content, parts = FAULTS[fault]
    file = tmp_path / "replay_buffer_0.pt"
    torch.save(content, file)
    with pytest.raises(InputError) as caught:
        get(imported(file, seed=1), Store(tmp_path / "store"))
    for part in (str(file), *parts):
        assert part in str(caught.value), str(caught.value)


def test_settings_of_a_buffer(buffer, tmp_path):
    first = imported(buffer)
    assert Imported(**first.model_dump()) == first and first.contents == config.fingerprint(
        buffer
    ) == config.fingerprint(buffer / "replay_buffer_0.pt")
    assert config.key(first) != config.key(expert(first, 1))
    for fields, part in (
        ({"buffer": str(tmp_path)}, "no replay_buffer_<n>.pt in"),
        ({"buffer": str(tmp_path / "none.pt")}, "no buffer"),
        ({"network": Network(architecture="vgg11")}, "a buffer of vgg11 cannot be imported"),
        ({"lr": 0.1}, "lr: unknown key"),
    ):
        with pytest.raises(InputError, match=part):
            validated(
                Imported,
                {"data": DATA, "network": NET, "buffer": str(buffer), "epochs": EPOCHS} | fields,
                "this here",
            )
    with pytest.raises(
        InputError,
        match=r"T_max = 3 with matched_epochs M = 2 reaches expert epoch 4, but the experts have 3",
    ):
        validated(Distillation, following(first).model_dump() | {"start_epochs": 3}, "this here")


def test_a_buffer_that_changed_is_refused(buffer, tmp_path):
    file = tmp_path / "replay_buffer_0.pt"
    file.write_bytes((buffer / file.name).read_bytes())
    settings = imported(file)
    torch.save(list(reversed(torch.load(file, weights_only=True))), file)
    assert imported(file).contents != settings.contents
    with pytest.raises(
        InputError,
        match=f"has changed: its contents are {imported(file).contents}, expected {settings.contents}",
    ):
        get(settings, Store(tmp_path / "store"))


def test_more_experts_than_a_buffer_has_are_refused_before_any_work(buffer, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "run", None)
    for ask in (following(imported(buffer), n_experts=3), expert(imported(buffer), 2)):
        with pytest.raises(
            InputError,
            match=r"holds 2 trajectories, but number 2 \(from 0\) is asked for: set n_experts to at most 2",
        ):
            pipeline.ensure([ask], Store(tmp_path))


def test_a_recipe_may_name_a_buffer(buffer, tmp_path):
    fields = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
    fields["recipes"] |= {"sgd": {"buffer": str(buffer), "epochs": EPOCHS}}
    file = tmp_path / "mine.yaml"

    def asked(fields):
        file.write_text(yaml.safe_dump(fields))
        profile = config.profile(str(file))
        for settings in studies.everything(profile):
            pipeline.check(settings)
        return studies.distillation(profile, "digits-ipc1", "MTT", 0)

    made = asked(fields)
    assert made.experts == imported(buffer) and made.start.method == "real"
    assert isinstance(
        studies.distillation(config.profile(str(file)), "digits-ipc1", "AST", 0).experts, Expert
    )
    fields["recipes"]["sgd"]["lr"] = 0.1
    with pytest.raises(InputError, match=r"recipe sgd.*\n.*lr: unknown key"):
        asked(fields)
    del fields["recipes"]["sgd"]["lr"]
    fields["network"]["width"] = 16
    with pytest.raises(
        InputError, match=r"trajectory 0, epoch 0, parameter 0 .*expected \(16, 1, 3, 3\)"
    ):
        asked(fields)


@pytest.fixture
def home(trained, monkeypatch):
    monkeypatch.setenv("STORE", str(trained.root))
    return trained


def run(capsys, *arguments):
    """Exit status, and what was printed."""
    status = main([str(a) for a in arguments])
    said = capsys.readouterr()
    return status, said.out + said.err * bool(status)  # progress is no part of it


SAID = ("--data", "digits", "--whitening", "none", "--width", "8", "--depth", "2")
SHORT = ("--networks", "2", "--epochs", "4")


def test_a_set_goes_out_and_is_judged_the_same(home, tmp_path, capsys):
    ours = home.file(following(EXPERT))
    status, said = run(capsys, "export", ours, "--to", tmp_path)
    assert (
        status == 0
        and f"evaluate {tmp_path / 'images_best.pt'} --data digits --whitening none --width 8 --depth 2"
        in said
    )
    held = home.load(following(EXPERT))
    kept = {
        name: torch.load(tmp_path / f"{name}_best.pt", weights_only=True)
        for name in ("images", "labels", "lr")
    }
    assert (
        torch.equal(kept["images"], held.tensors["images"])
        and torch.equal(kept["labels"], held.tensors["labels"])
        and float(kept["lr"]) == held.record["lr"]
    )
    first, second = (
        run(capsys, "evaluate", ours, *SHORT),
        run(capsys, "evaluate", tmp_path / "images_best.pt", *SAID, *SHORT),
    )
    assert first[0] == second[0] == 0 and first[1].strip() == second[1].splitlines()[-1]
    assert "10 images of 10 classes of digits (1 to 1 a class), whitening none, lr" in second[1]
    torch.save(
        {
            "images": kept["images"],
            "labels": kept["labels"].int(),
            "lr": kept["lr"].item(),
            "notes": ["whatever"],
        },
        tmp_path / "one.pt",
    )
    assert run(capsys, "evaluate", tmp_path / "one.pt", *SAID, *SHORT) == second


def test_judging_a_file_shows_how_far_it_is(home, monkeypatch):
    """Turn by turn and never past its end, whichever lr is chosen."""
    done = []
    advance = Progress.advance
    monkeypatch.setattr(
        Progress,
        "advance",
        lambda self, work, text: (advance(self, work, text), done.append(self.done / self.total)),
    )
    assert main(["evaluate", str(home.file(following(EXPERT))), *SHORT]) == 0
    assert done == sorted(done) and 0.5 < done[-1] <= 1 + 1e-9 and len(done) % 4 == 0


def test_soft_labels_go_out_and_come_back(home, tmp_path, capsys):
    """As logits, as DATM's code keeps them; and as probabilities they mean the same."""
    settings = following(EXPERT, labels="learned", lr_labels=1.0)
    held = get(settings, home)
    status, _ = run(capsys, "export", home.file(settings), "--to", tmp_path)
    assert status == 0 and torch.equal(
        torch.load(tmp_path / "labels_best.pt", weights_only=True), held.tensors["soft"]
    )
    back = exchange.read_set(tmp_path / "images_best.pt", None, (1, 16, 16), 10, 1200)
    assert (
        torch.equal(back.labels, held.tensors["soft"].softmax(1)) and back.lr == held.record["lr"]
    )
    ours, theirs = (
        run(capsys, "evaluate", home.file(settings), *SHORT),
        run(capsys, "evaluate", tmp_path / "images_best.pt", *SAID, *SHORT),
    )
    assert (
        ours[0] == theirs[0] == 0
        and ours[1].strip() == theirs[1].splitlines()[-1]
        and "10 images of 10 classes of digits" in theirs[1]
    )
    torch.save(held.tensors["soft"].softmax(1).double(), tmp_path / "labels_best.pt")
    assert torch.equal(
        exchange.read_set(tmp_path / "images_best.pt", None, (1, 16, 16), 10, 1200).labels,
        back.labels,
    )
    assert run(capsys, "evaluate", tmp_path / "images_best.pt", *SAID, *SHORT) == theirs


def test_experts_go_out(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENGINE", "serial")
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    status, said = run(
        capsys, "export", "experts", "--profile", "smoke", "--recipe", "sgd", "--to", tmp_path
    )
    assert status == 0 and f"2 experts 'sgd' of digits in {tmp_path / 'replay_buffer_0.pt'}" in said
    profile, store = config.profile("smoke"), Store(tmp_path / "store")
    wanted = [studies.recipe(profile, profile.cells["digits-ipc1"], "sgd", i) for i in (0, 1)]
    for i, settings in enumerate(wanted):
        back = exchange.trajectory(
            tmp_path, i, pipeline.shapes(settings), settings.epochs, config.fingerprint(tmp_path)
        )
        assert torch.equal(back, store.load(settings).tensors["path"])
    for words, part in (
        (("--recipe", "best"), "no expert recipe 'best'"),
        (("--cell", "best"), "no cell 'best'"),
    ):
        status, said = run(
            capsys, "export", "experts", "--profile", "smoke", *words, "--to", tmp_path
        )
        assert status == 2 and part in said


X, Y = torch.zeros(20, 1, 16, 16), torch.arange(10).repeat(2)
ASKED = {  # what is in the folder, what is said, parts of the message
    "nothing is said": (
        {"images_9.pt": X, "labels_9.pt": Y},
        [],
        ["--data NAME", "--whitening WORD", "--lr NUMBER", "mtt-zca", "cifar10"],
    ),
    "the lr is lacking": ({"images_9.pt": X, "labels_9.pt": Y}, SAID, ["--lr NUMBER"]),
    "labels are lacking": (
        {"images_9.pt": X, "lr_9.pt": torch.tensor(0.1)},
        SAID,
        ["holds no labels", "--labels"],
    ),
    "an lr below zero": (
        {"images_9.pt": X, "labels_9.pt": Y, "lr_9.pt": torch.tensor(-0.1)},
        SAID,
        ["its lr is -0.1", "expected a positive number", "--lr"],
    ),
    "an lr that is none": (
        {"images_9.pt": X, "labels_9.pt": Y},
        [*SAID, "--lr", "nan"],
        ["--lr is nan, expected a positive number"],
    ),
    "soft labels of others": (
        {"images_9.pt": X, "labels_9.pt": torch.rand(20, 9)},
        [*SAID, "--lr", "0.1"],
        ["labels are (20, 9) of", "soft ones, (20, 10) of"],
    ),
    "soft labels of none": (
        {"images_9.pt": X, "labels_9.pt": Y.view(20, 1).repeat(1, 10)},
        [*SAID, "--lr", "0.1"],
        ["(20, 10) of torch.int64", "or soft ones"],
    ),
    "soft labels not finite": (
        {"images_9.pt": X, "labels_9.pt": torch.full((20, 10), torch.inf)},
        [*SAID, "--lr", "0.1"],
        ["20 of 20 soft labels", "not finite"],
    ),
    "labels of others": (
        {"images_9.pt": X, "labels_9.pt": Y[:10]},
        [*SAID, "--lr", "0.1"],
        ["labels are (10,) of torch.int64, expected (20,) of torch.int64"],
    ),
    "labels as fractions": (
        {"images_9.pt": X, "labels_9.pt": Y / 2},
        [*SAID, "--lr", "0.1"],
        ["labels are (20,) of torch.float32, expected (20,) of torch.int64"],
    ),
    "a label too high": (
        {"images_9.pt": X, "labels_9.pt": Y + 1},
        [*SAID, "--lr", "0.1"],
        ["labels reach from 1 to 10, expected 0 to 9"],
    ),
    "a label below zero": (
        {"images_9.pt": X, "labels_9.pt": Y - 1},
        [*SAID, "--lr", "0.1"],
        ["labels reach from -1 to 8"],
    ),
    "a class without images": (
        {"images_9.pt": X, "labels_9.pt": Y.clamp(max=7)},
        [*SAID, "--lr", "0.1"],
        ["no image of class 8 (2 of 10 classes have none)"],
    ),
    "images of another shape": (
        {"images_9.pt": X[..., :15], "labels_9.pt": Y},
        [*SAID, "--lr", "0.1"],
        ["images are (20, 1, 16, 15)", "('n', 1, 16, 16)", "--data"],
    ),
    "images as levels": (
        {"images_9.pt": X.byte(), "labels_9.pt": Y},
        [*SAID, "--lr", "0.1"],
        ["torch.uint8", "expected ('n', 1, 16, 16) of torch.float32"],
    ),
    "more images than train": (
        {"images_9.pt": torch.zeros(1201, 1, 16, 16)},
        [*SAID, "--lr", "0.1"],
        ["images are (1201, 1, 16, 16)", "n from 1 to 1200"],
    ),
    "images not finite": (
        {"images_9.pt": X / X, "labels_9.pt": Y},
        [*SAID, "--lr", "0.1"],
        ["20 of 20 images have numbers that are not finite"],
    ),
    "no images": (
        {"images_9.pt": {"pictures": X, "labels": Y}},
        [*SAID, "--lr", "0.1"],
        ["holds a dict of 'pictures', 'labels', expected a tensor", '"images"'],
    ),
    "a strange space": (
        {"images_9.pt": X},
        ["--data", "digits", "--whitening", "mtt", "--lr", "1"],
        ["MTT's code has no means and deviations for data 'digits'"],
    ),
    "unknown data": (
        {"images_9.pt": X},
        ["--data", "cifar", "--whitening", "mtt", "--lr", "1"],
        ["data 'cifar' is unknown: expected one of digits"],
    ),
    "a folder of one's own": (
        {"images_9.pt": X},
        ["--data", "folder"],
        ["cannot say which folder", "judge the .safetensors"],
    ),
    "no network": (
        {"images_9.pt": X, "labels_9.pt": Y},
        [*SAID[:4], "--width", "0", "--lr", "1"],
        ["--width and --depth", "greater than or equal to 1", "found 0"],
    ),
}


@pytest.mark.parametrize("fault", ASKED)
def test_a_strangers_images_are_checked_and_what_they_lack_is_asked_for(
    fault, home, tmp_path, capsys
):
    files, words, parts = ASKED[fault]
    for name, content in files.items():
        torch.save(content, tmp_path / name)
    if "labels_9.pt" not in files and fault != "labels are lacking":
        torch.save(Y, tmp_path / "labels_9.pt")
    status, said = run(capsys, "evaluate", tmp_path / "images_9.pt", *words)
    assert status == 2 and said.startswith("ddlib: ") and len(said) < 900
    for part in parts:
        assert part in said, said


def test_ours_say_themselves_what_they_are(home, tmp_path, capsys):
    status, said = run(
        capsys, "evaluate", home.file(following(EXPERT)), "--lr", "0.1", "--data", "digits"
    )
    assert status == 2 and "says itself what --data and --lr would say: leave them out" in said
    status, said = run(capsys, "export", home.file(EXPERT), "--to", tmp_path)
    assert status == 2 and "holds path, expected a set" in said and not list(tmp_path.iterdir())


def test_labels_are_found_beside_and_where_they_are_said_to_be(tmp_path):
    for name, content in (
        ("images_best.pt", X),
        ("images_zca_best.pt", X),
        ("labels_best.pt", Y),
        ("mine.pt", Y.flip(0)),
        ("lr_best.pt", torch.tensor([0.25])),
    ):
        torch.save(content, tmp_path / name)
    for name in ("images_best.pt", "images_zca_best.pt"):
        found = exchange.read_set(tmp_path / name, None, (1, 16, 16), 10, 1200)
        assert torch.equal(found.labels, Y) and found.lr == 0.25
    assert torch.equal(
        exchange.read_set(
            tmp_path / "images_best.pt", tmp_path / "mine.pt", (1, 16, 16), 10, 1200
        ).labels,
        Y.flip(0),
    )


def test_the_spaces_of_mtts_code(tmp_path):
    """Fixed statistics; or, with ZCA, pixels as they are, whitened at the same epsilon: not our space, whose pixels have unit variance first."""
    raw = data._digits(0, tmp_path)["x_train"]
    pixels = raw.double().flatten(1) / 255
    values, vectors = torch.linalg.eigh(torch.cov(pixels.T))
    expected = (pixels - pixels.mean(0)) @ (vectors * (values + 0.1).rsqrt() @ vectors.T)
    shown = data.load(Data(name="digits", zca=True, space="mtt"), tmp_path)
    torch.testing.assert_close(shown.x_train.flatten(1).double(), expected, atol=1e-4, rtol=1e-4)
    ours = data.load(Data(name="digits", zca=True), tmp_path)
    assert (
        ours.x_train - shown.x_train
    ).abs().max() > 0.5  # both are kept, under names of their own
    torch.testing.assert_close(
        shown.space.leave(shown.x_test), ours.space.leave(ours.x_test), atol=1e-3, rtol=0
    )
    x = torch.rand(10, 3, 4, 4, generator=generator("x"))
    given = data._mtt(Data(name="cifar100", space="mtt"))
    expected = (x - torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)) / torch.tensor(
        [0.2023, 0.1994, 0.2010]
    ).view(3, 1, 1)
    torch.testing.assert_close(fit_space(x, False, given=given).enter(x), expected)
    assert (
        isinstance(given, Space)
        and {"tiny_imagenet", "imagenette", "imagesquawk", "cifar10"} < data.MTT.keys()
    )


def test_words_for_spaces_are_those_of_the_command_line(home, tmp_path, capsys):
    """Each is a space of its own, and export names the one that it evaluates in."""
    spaces = [Data(name="digits", **fields) for fields in trade.WHITENING.values()]
    assert len({config.key(s) for s in spaces}) == 4
    for word in ("zca", "mtt-zca"):
        where = Data(name="digits", **trade.WHITENING[word])
        get(some := Selection(data=where, method="real"), home)
        status, said = run(capsys, "export", home.file(some), "--to", tmp_path)
        assert status == 0 and f"--data digits --whitening {word} --width" in said
        status, said = run(
            capsys,
            "evaluate",
            tmp_path / "images_best.pt",
            "--data",
            "digits",
            "--whitening",
            word,
            *SAID[4:],
            *SHORT,
        )
        assert status == 0 and f"whitening {word}" in said


def test_the_command_line_offers_those_words(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "images_9.pt", "--whitening", "some"])
    offered = capsys.readouterr().err.split("choose from")[1]
    assert [word.strip(" ')\n") for word in offered.split(",")] == list(trade.WHITENING)


def test_an_evaluation_of_an_imported_set_is_settled_by_its_settings(buffer):
    made = following(imported(buffer))
    assert Evaluation(of=made, network=NET).model_dump()["of"]["experts"]["buffer"] == str(buffer)
    assert Evaluation(**Evaluation(of=made, network=NET).model_dump()).of.experts == imported(
        buffer
    )


def test_a_set_goes_out_in_the_form_of_dd_ranking(home, tmp_path, capsys):
    """Class after class, for there the labels of hard-labelled sets are not asked for; the same set, still, by our own judge."""
    mixed = torch.tensor([2, 0, 1, 0, 2, 1])
    exchange.write_set(
        tmp_path / "mixed",
        torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 2),
        mixed,
        0.25,
        "ddranking",
    )
    read = {
        name: torch.load(tmp_path / f"mixed/{name}.pt", weights_only=True)
        for name in ("images", "labels", "lr")
    }
    assert (
        read["labels"].tolist() == [0, 0, 1, 1, 2, 2]
        and read["images"][:, 0, 0, 0].tolist() == [1, 3, 2, 5, 0, 4]
        and read["lr"] == 0.25
    )
    status, said = run(
        capsys, "export", home.file(following(EXPERT)), "--to", tmp_path, "--form", "ddranking"
    )
    assert status == 0 and "these are in another space, 'none'" in said
    images = torch.load(tmp_path / "images.pt", weights_only=True)
    assert (
        torch.equal(images, home.load(following(EXPERT)).tensors["images"])
        and not (tmp_path / "images_best.pt").exists()
    )


def test_a_set_goes_out_as_pngs(home, tmp_path, capsys):
    """Each class in its folder, in their order; a PNG is the set's pixel, clipped and rounded, and the CSV says which is what."""
    settings = following(EXPERT, labels="learned", lr_labels=1.0)
    held = get(settings, home)
    status, said = run(capsys, "export", home.file(settings), "--to", tmp_path, "--form", "png")
    assert status == 0 and f"Only {home.file(settings)} is exact" in said
    rows = pd.read_csv(tmp_path / "labels.csv")
    assert (
        list(rows.columns) == ["file", "class", "label", *(f"soft_{k}" for k in range(10))]
        and rows.file[3] == "3_3/0000.png"
    )
    assert rows.label.tolist() == held.tensors["labels"].tolist() and sorted(
        p.name for p in tmp_path.iterdir() if p.is_dir()
    ) == [f"{k}_{k}" for k in range(10)]
    torch.testing.assert_close(
        torch.tensor(rows.filter(like="soft").values).float(), held.tensors["soft"].softmax(1)
    )
    seen = np.stack([np.asarray(Image.open(tmp_path / file)) for file in rows.file])
    exact = album.unbounded(held)[:, 0].numpy()
    assert (
        seen.dtype == np.uint8
        and seen.shape == exact.shape
        and abs(seen / 255 - exact.clip(0, 1)).max() <= 0.5 / 255 + 1e-6
    )
    loss = album.Loss.of(held)
    assert loss.largest == pytest.approx(
        abs(seen / 255 - exact).max(), rel=1e-4
    ) and loss.clipped == pytest.approx(((exact < 0) | (exact > 1)).mean())
    assert (
        np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10
        and f"{tmp_path / 'sheet.png'} to look at" in said
    )
    x, y = album.dataset(held)[3]
    assert (
        torch.equal(x, held.tensors["images"][3])
        and torch.equal(y, held.tensors["soft"][3].softmax(0))
        and album.dataset(held, hard=True)[3][1] == 3
    )


def test_a_folder_holds_one_set(home, tmp_path, capsys):
    """Written again it is the same; another beside it would be taken for a part of it, and is refused before anything is written."""
    one, other = following(EXPERT).start, Selection(data=DATA, method="real", ipc=2, seed=1)
    for form in ("png", "datasets"):
        there = tmp_path / form
        for settings in (one, other):
            get(settings, home)
        assert run(capsys, "export", home.file(one), "--to", there, "--form", form)[0] == 0
        before = {file: file.read_bytes() for file in there.rglob("*") if file.is_file()}
        assert run(capsys, "export", home.file(one), "--to", there, "--form", form)[0] == 0
        status, said = run(capsys, "export", home.file(other), "--to", there, "--form", form)
        assert status == 2 and f"{there} holds 10 images of something else" in said
        assert before == {file: file.read_bytes() for file in there.rglob("*") if file.is_file()}
    assert (
        run(capsys, "export", home.file(one), "--to", tmp_path, "--form", "png")[0] == 2
    )  # around the others
    small, large = (
        np.asarray(Image.open(run_sheet(capsys, home, settings, tmp_path / "sheets")))
        for settings in (one, other)
    )
    assert large.shape[0] > 1.5 * small.shape[0]  # two images a class


def run_sheet(capsys, home, settings, there):
    """The sheet of a set that goes out as PNGs."""
    there = there / config.key(settings)
    assert run(capsys, "export", home.file(settings), "--to", there, "--form", "png")[0] == 0
    return there / "sheet.png"


def test_a_set_goes_out_as_a_folder_for_datasets(home, tmp_path, capsys):
    """What `load_dataset("imagefolder")` reads: files named in metadata.jsonl beside them; and a card that knows the accuracy, if rows are at hand."""
    settings, there = following(EXPERT), tmp_path / "without"
    assert run(capsys, "export", home.file(settings), "--to", there, "--form", "datasets")[0] == 0
    assert "No rows of an evaluation" in (there / "README.md").read_text()
    judged = Evaluation(of=settings, network=NET, networks=2, epochs=2, factors=(1.0,))
    get(judged, home)
    there = tmp_path / "with"
    assert run(capsys, "export", home.file(settings), "--to", there, "--form", "datasets")[0] == 0
    lines = [json.loads(line) for line in (there / "train/metadata.jsonl").read_text().splitlines()]
    assert [line["label"] for line in lines] == list(range(10)) and all(
        (there / "train" / line["file_name"]).exists() for line in lines
    )
    _, head, text = (there / "README.md").read_text().split("---\n", 2)
    about = yaml.safe_load(head)
    assert (
        about["license"] == "cc-by-4.0"
        and about["size_categories"] == ["n<1K"]
        and about["pretty_name"] == "digits, distilled, 1 a class"
    )
    accuracy = pd.Series(
        [
            row["accuracy"]
            for row in home.load(judged).record["rows"]
            if row["protocol"] == "lr_chosen"
        ]
    )
    assert (
        f"{100 * accuracy.mean():.1f} ±" in text
        and "(2)" in text
        and data.UCI in text
        and '"stage"' not in text
    )
    assert json.loads(text.split("```json\n")[1].split("```")[0]) == settings.model_dump(
        mode="json"
    )


def test_a_card_keeps_to_itself_where_its_maker_had_the_images():
    where = {"name": "folder", "path": "/somewhere/pictures/birds", "size": 32}
    told = album.portable(
        {
            "start": {"data": where},
            "experts": {"buffer": "/somewhere/buffers", "data": where},
            "seed": 0,
        }
    )
    ours = where | {"path": "birds"}
    assert told == {
        "start": {"data": ours},
        "experts": {"buffer": "buffers", "data": ours},
        "seed": 0,
    }


def test_classes_of_any_name_go_out(tmp_path):
    """In folders whose order is the classes', two of the same name apart; what is neither grey nor in colour is refused."""
    made = Selection(data=DATA, method="real")
    space = {"space.mean": torch.zeros(2), "space.std": torch.ones(2)}
    held = Artefact(
        {"images": torch.zeros(3, 2, 4, 4), "labels": torch.tensor([0, 1, 1])} | space,
        {},
        made.model_dump(mode="json"),
    )
    assert album.table(held, ["T-shirt/top", "crane", *["crane"] * 9]).file.tolist() == [
        "00_T-shirt_top/0000.png",
        "01_crane/0000.png",
        "01_crane/0001.png",
    ]
    with pytest.raises(InputError, match="images of 2 channels"):
        album.write_pngs(tmp_path, held, ["a", "b"])
