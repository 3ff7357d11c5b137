"""Sets and experts that come and go, through the command line and back."""

import hashlib
import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from ddlib import interop
from ddlib.__main__ import main
from ddlib.base import InputError, key
from ddlib.data import mtt_format
from ddlib.data.catalogue import SETS
from ddlib.paper import pictures
from ddlib.runs import methods
from ddlib.runs.profile import profile
from ddlib.runs.run import get
from ddlib.runs.store import Artefact, Store, write
from ddlib.settings import Data, Distillation, Evaluation, Expert, Network, Selection

DATA = Data(name="digits")
NET = Network(width=8, depth=2)
EXPERT = Expert(data=DATA, network=NET, epochs=3, lr=0.02)
HARD = Distillation(
    experts=EXPERT,
    start=Selection(data=DATA, method="representative", expert=EXPERT),
    n_experts=2,
    inner_steps=4,
    matched_epochs=2,
    start_epochs=2,
    lr_images=30.0,
    iterations=3,
    checks=1,
    check_epochs=3,
)
SOFT = HARD.model_copy(update={"labels": "learned", "lr_labels": 1.0})
RANDOM = Selection(data=DATA, method="real", ipc=2)
ABOUT = ("--data", "digits", "--whitening", "none", "--width", "8", "--depth", "2")
SHORT = ("--networks", "2", "--epochs", "4")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A store with two experts and three sets."""
    store = Store(tmp_path_factory.mktemp("trained"))
    for settings in (HARD, SOFT, RANDOM):
        get(settings, store)
    return store


@pytest.fixture
def store(trained, monkeypatch):
    monkeypatch.setenv("STORE", str(trained.root))
    monkeypatch.setenv("ENGINE", "serial")
    return trained


def call(capsys, *arguments):
    """Exit status, and what was printed; progress is no part of it."""
    status = main([str(a) for a in arguments])
    printed = capsys.readouterr()
    return status, printed.out + printed.err * bool(status)


def parts(folder, ending="_best.pt"):
    """What was exported as .pt files."""
    names = ("images", "labels", "lr")
    return {n: torch.load(folder / f"{n}{ending}", weights_only=True) for n in names}


@pytest.mark.parametrize("settings", [HARD, SOFT], ids=["hard", "soft"])
def test_a_set_goes_out_and_is_judged_the_same(settings, store, tmp_path, capsys):
    """Number by number, soft labels as logits; also as one file, and as probabilities."""
    ours, artefact = store.file(settings), store.load(settings)
    tensors, soft = artefact.tensors, settings is SOFT
    status, text = call(capsys, "export", ours, "--to", tmp_path)
    assert status == 0 and f"evaluate {tmp_path / 'images_best.pt'} {' '.join(ABOUT)}" in text
    stored = parts(tmp_path)
    assert torch.equal(stored["images"], tensors["images"])
    assert torch.equal(stored["labels"], tensors["soft" if soft else "labels"])
    assert float(stored["lr"]) == artefact.record["lr"]
    first = call(capsys, "evaluate", ours, *SHORT)
    second = call(capsys, "evaluate", tmp_path / "images_best.pt", *ABOUT, *SHORT)
    assert first[0] == second[0] == 0 and first[1].strip() == second[1].splitlines()[-1]
    assert "10 images of 10 classes of digits (" in second[1] and "whitening none" in second[1]
    labels = stored["labels"].softmax(1).double() if soft else stored["labels"].int()
    lr = stored["lr"].item()
    single = {"images": stored["images"], "labels": labels, "lr": lr, "notes": ["whatever"]}
    torch.save(single, tmp_path / "one.pt")
    assert call(capsys, "evaluate", tmp_path / "one.pt", *ABOUT, *SHORT) == second


X, Y = torch.zeros(20, 1, 16, 16), torch.arange(10).repeat(2)
LACKING = {  # what is said about X and Y, and parts of the message
    "nothing": ([], ["--data NAME", "--whitening WORD", "--lr NUMBER", "mtt-zca", "cifar10"]),
    "no lr": (ABOUT, ["--lr NUMBER"]),
    "no number": ([*ABOUT, "--lr", "nan"], ["lr is nan, expected a positive number"]),
    "a space without numbers": (
        ["--data", "digits", "--whitening", "mtt", "--lr", "1"],
        ["MTT's code has no means and deviations for data 'digits'"],
    ),
    "unknown data": (
        ["--data", "cifar", "--whitening", "mtt", "--lr", "1"],
        ["data 'cifar' is unknown: expected one of digits"],
    ),
    "other data": (
        ["--data", "mnist", *ABOUT[2:], "--lr", "1"],
        ["images (20, 1, 16, 16)", "expected"],
    ),
    "a folder": (["--data", "folder"], ["cannot say which folder", "evaluate the .safetensors"]),
    "no network": (
        [*ABOUT[:4], "--width", "0", "--lr", "1"],
        ["--width and --depth", "greater than or equal to 1", "found 0"],
    ),
}


@pytest.mark.parametrize("fault", LACKING)
def test_what_a_strangers_file_lacks_is_asked_for(fault, store, tmp_path, capsys):
    about, expected = LACKING[fault]
    torch.save(X, tmp_path / "images_9.pt")
    torch.save(Y, tmp_path / "labels_9.pt")
    status, text = call(capsys, "evaluate", tmp_path / "images_9.pt", *about)
    assert status == 2 and text.startswith("ddlib: ") and len(text) < 900
    assert all(part in text for part in expected), text


FAULTY = {  # content -> what the message says
    "images of another shape": ({"images": torch.zeros(10, 3, 8, 8)}, r"\(10, 3, 8, 8\).*expected"),
    "numbers that are not finite": ({"images": X[:10] * torch.nan}, "2560 numbers not finite"),
    "levels": ({"images": X[:10].byte()}, "divide levels by 255"),
    "no images": ({"images": ["none"]}, "expected a tensor of images"),
    "labels out of range": ({"labels": torch.arange(11)[1:]}, "classes .n,. below 10"),
    "a class without images": ({"labels": Y[:10] // 2}, r"no image of classes \[5, 6, 7, 8, 9\]"),
    "labels of one number each": ({"labels": torch.rand(10)}, "probabilities"),
    "an lr of two numbers": ({"lr": torch.ones(2)}, "only one element"),
    "an lr below zero": ({"lr": -1}, "lr is -1.0, expected a positive number"),
}


@pytest.mark.parametrize("fault", FAULTY)
def test_a_faulty_set_of_a_stranger_is_refused(fault, tmp_path, monkeypatch):
    monkeypatch.setattr(mtt_format, "prove", lambda *files: None)
    content, said = FAULTY[fault]
    torch.save({"images": X[:10], "labels": Y[:10], "lr": 0.1} | content, tmp_path / "set.pt")
    with pytest.raises(InputError, match=rf"set.pt .*{said}"):
        interop._read_foreign(tmp_path / "set.pt", interop.About(data="digits", whitening="none"))


def test_labels_that_are_nowhere_are_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(mtt_format, "prove", lambda *files: None)
    torch.save({"images": X[:10], "lr": 0.1, "data": "digits"}, tmp_path / "set.pt")
    with pytest.raises(InputError, match=r"add --data NAME.*; --whitening.*; --labels FILE"):
        interop._read_foreign(tmp_path / "set.pt", interop.About())


def test_a_file_without_images_is_no_set(store, tmp_path, capsys):
    for arguments in (("export", "--to", tmp_path / "there"), ("evaluate",)):
        status, text = call(capsys, arguments[0], store.file(EXPERT), *arguments[1:])
        assert status == 2 and "holds expert momentum 0 on digits, expected a set" in text
    assert not list(tmp_path.iterdir())


def test_words_for_spaces_are_those_of_the_command_line(store, tmp_path, capsys):
    """Each is a space of its own; export names the space that a set is in."""
    spaces = [Data(name="digits", **fields) for fields in interop.WHITENING.values()]
    assert len({key(space) for space in spaces}) == 4
    with pytest.raises(SystemExit):
        main(["evaluate", "images_9.pt", "--whitening", "some"])
    offered = capsys.readouterr().err.split("choose from")[1]
    assert [word.strip(" ')\n") for word in offered.split(",")] == list(interop.WHITENING)
    whitened = Selection(data=spaces[3], method="real")
    get(whitened, store)
    status, text = call(capsys, "export", store.file(whitened), "--to", tmp_path)
    assert status == 0 and "--data digits --whitening mtt-zca --width 32" in text


def test_a_set_goes_out_in_the_form_of_dd_ranking(store, tmp_path, capsys):
    arguments = ("export", store.file(RANDOM), "--to", tmp_path, "--form", "ddranking")
    status, text = call(capsys, *arguments)
    assert status == 0 and "These are in another space, 'none'" in text
    assert torch.equal(parts(tmp_path, ".pt")["images"], store.load(RANDOM).tensors["images"])


def test_a_set_goes_out_as_pngs(store, tmp_path, capsys):
    """A PNG is the set's pixel, clipped and rounded, and the CSV says which is what."""
    artefact = store.load(SOFT)
    arguments = ("export", store.file(SOFT), "--to", tmp_path, "--form", "png")
    status, text = call(capsys, *arguments)
    assert status == 0 and "In PNGs values outside 0 to 255 are clipped" in text
    rows = pd.read_csv(tmp_path / "labels.csv")
    assert list(rows.columns) == ["file", "class", "label", *(f"soft_{k}" for k in range(10))]
    assert rows.file[3] == "3_3/0000.png" and rows.label.tolist() == list(range(10))
    soft = torch.tensor(rows.filter(like="soft").values).float()
    torch.testing.assert_close(soft, artefact.tensors["soft"].softmax(1))
    seen = np.stack([np.asarray(Image.open(tmp_path / file)) for file in rows.file])
    exact = pictures.unclipped(artefact)[:, 0].numpy()
    assert seen.dtype == np.uint8 and seen.shape == exact.shape
    assert abs(seen / 255 - exact.clip(0, 1)).max() <= 0.5 / 255 + 1e-6
    away = 255 * abs(seen / 255 - exact).max()
    most = f"{away:.0f}" if away >= 10 else f"{away:.2g}"
    clipped = ((exact < 0) | (exact > 1)).mean()
    assert f"the farthest {most}." in text and f"({clipped:.1%} of them)" in text
    assert np.asarray(Image.open(tmp_path / "sheet.png")).std() > 10


@pytest.mark.parametrize("form", ["png", "datasets"])
def test_a_folder_holds_one_set(form, store, tmp_path, capsys):
    """Written again it is the same; another is an error before anything is written."""

    def export(settings):
        return call(capsys, "export", store.file(settings), "--to", tmp_path, "--form", form)

    def content():
        return {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    assert export(HARD.start)[0] == 0
    before = content()
    assert export(HARD.start)[0] == 0
    status, text = export(RANDOM)
    assert status == 2 and "is there already and holds something else" in text
    assert before == content()
    (tmp_path / "mine.txt").write_text("mine")
    assert call(capsys, "export", store.file(RANDOM), "--to", tmp_path, "--form", form, "--force")
    assert before != content() and (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("form", ["mtt", "ddranking", "png", "datasets"])
def test_another_persons_files_are_not_replaced(form, store, tmp_path, capsys):
    """Whatever form, whichever of its files is there already: nothing is written."""
    arguments = ("export", store.file(RANDOM), "--form", form, "--to")
    assert call(capsys, *arguments, tmp_path / "all")[0] == 0
    files = [f.relative_to(tmp_path / "all") for f in (tmp_path / "all").rglob("*") if f.is_file()]
    for i, file in enumerate(files if form != "png" else [*files[:1], "labels.csv", "sheet.png"]):
        there = tmp_path / f"{i}" / file
        there.parent.mkdir(parents=True)
        there.write_text("theirs")
        status, text = call(capsys, *arguments, tmp_path / f"{i}")
        assert status == 2 and "add --force" in text and there.read_text() == "theirs"
        assert [f for f in (tmp_path / f"{i}").rglob("*") if f.is_file()] == [there]
        assert call(capsys, *arguments, tmp_path / f"{i}", "--force")[0] == 0
        assert there.read_bytes() == (tmp_path / "all" / file).read_bytes()


@pytest.mark.parametrize("name", ["mine", "mine.SafeTensors", "mine.pt"])
def test_a_set_is_known_by_its_content(name, store, tmp_path, capsys):
    (tmp_path / name).write_bytes(store.file(RANDOM).read_bytes())
    short = ("--networks", "1", "--epochs", "1")
    assert call(capsys, "evaluate", tmp_path / name, *short)[0] == 0
    theirs = tmp_path / "theirs.safetensors"
    save_file({"images": X[:10].clone(), "labels": torch.arange(10)}, theirs)
    status, text = call(capsys, "evaluate", theirs, *ABOUT, "--lr", "0.1", *short)
    assert status == 0 and "10 images of 10 classes" in text and "with lr 0.1\n" in text
    status, text = call(capsys, "evaluate", theirs, *ABOUT, "--lr", "0.02", *short)
    assert status == 0 and "with lr 0.02\n" in text
    status, text = call(capsys, "evaluate", theirs)
    assert status == 2 and "does not say how to judge it" in text


ODD = {
    "no labels": lambda t, r: t.pop("labels"),
    "a class too many": lambda t, r: t["labels"].fill_(10),
    "a negative class": lambda t, r: t["labels"].fill_(-1),
    "labels as numbers": lambda t, r: t.update(labels=t["labels"].double()),
    "labels of two axes": lambda t, r: t.update(labels=t["labels"][:, None]),
    "fewer labels": lambda t, r: t.update(labels=t["labels"][1:]),
    "labels of yes and no": lambda t, r: t.update(labels=t["labels"] > 3),
    "no images": lambda t, r: t.update(images=t["images"][:0], labels=t["labels"][:0]),
    "flat images": lambda t, r: t.update(images=t["images"].flatten(1)),
    "levels": lambda t, r: t.update(images=t["images"].byte()),
    "NaN": lambda t, r: t["images"].fill_(float("nan")),
    "soft labels of other classes": lambda t, r: t.update(soft=torch.zeros(10, 3)),
    "a scalar for soft labels": lambda t, r: t.update(soft=torch.tensor(1.0)),
    "no lr": lambda t, r: r.pop("lr"),
    "lr as text": lambda t, r: r.update(lr="fast"),
    "lr of NaN": lambda t, r: r.update(lr=float("nan")),
    "lr below zero": lambda t, r: r.update(lr=-1.0),
    "no mean": lambda t, r: t.pop("space.mean"),
    "a mean of other channels": lambda t, r: t.update({"space.mean": torch.zeros(3)}),
    "a history of other images": lambda t, r: t.update(history=torch.zeros(2, 3, 1, 16, 16)),
}


@pytest.mark.parametrize("fault", ODD)
def test_a_sound_file_of_a_set_that_is_none_is_one_message(fault, store, tmp_path, capsys):
    made = store.load(RANDOM)
    tensors, record = {k: t.clone() for k, t in made.tensors.items()}, dict(made.record)
    ODD[fault](tensors, record)
    write(tmp_path / "odd.safetensors", RANDOM, tensors, record)
    for arguments in (("evaluate",), ("export", "--to", tmp_path / "there", "--form", "png")):
        status, text = call(capsys, arguments[0], tmp_path / "odd.safetensors", *arguments[1:])
        assert status == 2 and "odd.safetensors is no set to work with: " in text
    assert not (tmp_path / "there").exists()


def test_a_set_goes_out_as_a_folder_for_datasets(store, tmp_path, capsys):
    """Files named in metadata.jsonl, and a card with the accuracy once there are rows."""
    for judged in (False, True):
        if judged:
            how = Evaluation(of=HARD, network=NET, networks=2, epochs=2, lrs=(0.01,))
            rows = pd.DataFrame(get(how, store).record["rows"])
        arguments = ("export", store.file(HARD), "--to", tmp_path, "--form", "datasets")
        assert call(capsys, *arguments)[0] == 0
        card = (tmp_path / "README.md").read_text()
        assert ("No evaluation was at hand" in card) != judged
    lines = (tmp_path / "train/metadata.jsonl").read_text().splitlines()
    images = [json.loads(line) for line in lines]
    assert [image["label"] for image in images] == list(range(10))
    assert all((tmp_path / "train" / image["file_name"]).exists() for image in images)
    croissant = json.loads((tmp_path / "croissant.json").read_text())
    assert croissant["name"] == "digits, distilled, 10 images"
    listing, pictures = croissant["distribution"]
    listed = (tmp_path / listing["contentUrl"]).read_bytes()
    assert hashlib.sha256(listed).hexdigest() == listing["sha256"]
    assert len([*tmp_path.glob(pictures["includes"])]) == len(images)
    columns = [field["source"]["extract"]["column"] for field in croissant["recordSet"][0]["field"]]
    assert columns == [*images[0]]
    _, head, text = card.split("---\n", 2)
    about = yaml.safe_load(head)
    assert about["license"] == "cc-by-4.0" and about["size_categories"] == ["n<1K"]
    assert about["pretty_name"] == "digits, distilled, 10 images"
    mean = 100 * rows[rows.protocol == "lr_chosen"].accuracy.mean()
    assert f"{mean:.1f} ±" in text and "(2)" in text and SETS["digits"].source in text
    settings = json.loads(text.split("```json\n")[1].split("```")[0])
    assert settings == HARD.model_dump(mode="json")


def test_a_card_does_not_tell_where_its_maker_had_the_images():
    data = {"name": "folder", "path": "/somewhere/pictures/birds", "size": 32}
    nested = {"start": {"data": data}, "experts": {"buffer": "/somewhere/buffers"}, "seed": 0}
    told = {"start": {"data": data | {"path": "birds"}}, "experts": {"buffer": "buffers"}}
    assert interop._portable(nested) == told | {"seed": 0}


def test_classes_of_any_name_go_out(tmp_path):
    """In folders in the order of the classes, two of the same name apart."""
    space = {"space.mean": torch.zeros(2), "space.std": torch.ones(2)}
    tensors = {"images": torch.zeros(3, 2, 4, 4), "labels": torch.tensor([0, 1, 1])} | space
    artefact = Artefact(tensors, {"lr": 0.1}, RANDOM.model_dump(mode="json"))
    rows = interop._image_rows(artefact, ("T-shirt/top", "crane", *["crane"] * 9))
    assert rows.file.tolist() == [
        "00_T-shirt_top/0000.png",
        "01_crane/0000.png",
        "01_crane/0001.png",
    ]
    with pytest.raises(InputError, match="2 channels make no PNG"):
        interop._pngs(tmp_path, artefact, rows.file)


def test_experts_go_out(tmp_path, monkeypatch, capsys):
    """What is missing is trained; the buffer holds the same numbers as the store."""
    monkeypatch.setenv("ENGINE", "serial")
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    arguments = ("--profile", "smoke", "--recipe", "sgd", "--to", tmp_path)
    status, text = call(capsys, "export", "experts", *arguments)
    file = tmp_path / "replay_buffer_0.pt"
    assert status == 0 and f"2 experts 'sgd' of digits in {file}" in text
    smoke, store = profile("smoke"), Store(tmp_path / "store")
    trajectories = torch.load(file, weights_only=True)
    for seed, trajectory in enumerate(trajectories):
        settings = methods.recipe(smoke, smoke.cells[smoke.main_cell], "sgd", seed)
        path = torch.stack([torch.cat([p.flatten() for p in epoch]) for epoch in trajectory])
        assert torch.equal(path, store.load(settings).tensors["path"])
    assert len(trajectories) == 2 and mtt_format.buffer_files(tmp_path) == [file]
    (tmp_path / "replay_buffer_1.pt").write_bytes(b"another recipe's")
    for force in ([], ["--force"]):
        status, text = call(capsys, "export", "experts", *arguments, *force)
        assert status == 2 and "holds replay_buffer_1.pt, which 2 experts do not fill" in text
