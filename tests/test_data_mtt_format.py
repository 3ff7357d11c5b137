"""Other people's `.pt` files: sound ones mean the same here, and no hostile one does any harm."""

import os
import pickle
import random
import zipfile

import pytest
import torch
from torch import nn

from ddlib.base import InputError, generator, key
from ddlib.data import mtt_format
from ddlib.data.mtt_format import read_foreign, read_set, trajectory
from ddlib.method.functional import FunctionalNetwork, network
from ddlib.method.networks import build
from ddlib.runs import run
from ddlib.runs.store import Store
from ddlib.settings import Imported, Network
from tiny import DATA, EXPERT, NET

EPOCHS = 3
GOOD = {
    "images": torch.arange(24.0).view(2, 3, 2, 2),
    "labels": torch.tensor([1, 0]),
    "lr": 0.1,
    "more": [None, True, "word", (7, 2**70), torch.tensor(3.0)],
}


class Call:
    """Once unpickled it has called something."""

    def __init__(self, what, *arguments):
        self.call = what, arguments

    def __reduce__(self):
        return self.call


def saved(file, content):
    torch.save(content, file)
    return file


def archive(file, pickled):
    """A `.pt` archive whose pickle is these bytes."""
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("archive/data.pkl", pickled)
        out.writestr("archive/version", "3\n")
    return file


def test_what_is_sound_is_read(tmp_path):
    content = read_foreign(saved(tmp_path / "a.pt", GOOD))
    assert torch.equal(content["images"], GOOD["images"]) and content["more"][3] == (7, 2**70)


def nested(file):
    depth = 300_000
    return archive(file, b"\x80\x02" + b")" + b"\x85" * depth + b".")


def flipped(file):
    content = bytearray(saved(file, GOOD).read_bytes())
    content[content.index(b"archive" if b"archive" in content else b"data.pkl") + 200] ^= 0xFF
    file.write_bytes(bytes(content))
    return file


def compressed(file):
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("archive/data.pkl", b"0" * 10_000_000)
    return file


def fifo(file):
    os.mkfifo(file)
    return file


def folder(file):
    file.mkdir()
    return file


def empty(file):
    file.touch()
    return file


def bare(file):
    file.write_bytes(pickle.dumps([1, 2]))
    return file


def expanded(file):
    return saved(file, torch.zeros(1).expand(10**9))


@pytest.fixture
def trusted(monkeypatch):
    """No child process, which takes seconds to start: these files are known to be harmless."""
    monkeypatch.setattr(mtt_format, "prove", lambda *files: None)


HOSTILE = {
    "code": lambda f: saved(f, Call(os.system, f"touch {f.parent / 'ran'}")),
    "memory": lambda f: archive(
        f,
        b"\x80\x02cbuiltins\nbytearray\n"
        + b"\x8a\x05"
        + (3 * 10**9).to_bytes(5, "little")
        + b"\x85R.",
    ),
    "nested": nested,
    "compressed": compressed,
    "a FIFO": fifo,
    "a folder": folder,
    "empty": empty,
    "a bare pickle": bare,
    "expanded": expanded,
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_file_is_one_error_and_does_nothing(kind, tmp_path):
    file = HOSTILE[kind](tmp_path / "x.pt")
    with pytest.raises(InputError) as caught:
        read_foreign(file)
    said = str(caught.value)
    assert said.startswith(f"{file} ") and "\n" not in said and "expected" in said
    assert not (tmp_path / "ran").exists()


def test_a_missing_file_is_said(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_foreign(tmp_path / "none.pt")


def test_no_flipped_bit_of_a_buffer_passes(tmp_path, trusted):
    chance, file = random.Random(3), tmp_path / "replay_buffer_0.pt"
    shapes = {"w": (40, 5), "b": (40,)}
    path = torch.randn(EPOCHS + 1, 240, generator=generator("path"))
    mtt_format.write_buffer(tmp_path, [path], shapes)
    good = file.read_bytes()
    name = mtt_format.fingerprint(tmp_path)
    assert torch.equal(trajectory(tmp_path, 0, shapes, EPOCHS, name), path)
    for _ in range(40):
        bad = bytearray(good)
        bad[chance.randrange(len(bad) * 3 // 4)] ^= 1 << chance.randrange(8)
        file.write_bytes(bytes(bad))
        try:
            found = trajectory(tmp_path, 0, shapes, EPOCHS, mtt_format.fingerprint(tmp_path))
        except (
            InputError,
            RuntimeError,
            ValueError,
            pickle.UnpicklingError,
        ):  # the child would have refused it
            continue
        assert torch.equal(found, path)  # a bit of padding


class Theirs(nn.Module):
    """The network of MTT's code as its users know it: `features`, then `classifier`."""

    def __init__(self, shape, classes, width, depth):
        super().__init__()
        c, h, w = shape
        blocks = []
        for i in range(depth):
            padding = 3 if c == 1 and i == 0 else 1
            h, w = h + 2 * padding - 2, w + 2 * padding - 2
            blocks += [
                nn.Conv2d(c, width, 3, padding=padding),
                nn.GroupNorm(width, width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2, 2),
            ]
            c, h, w = width, h // 2, w // 2
        self.features, self.classifier = nn.Sequential(*blocks), nn.Linear(c * h * w, classes)

    def forward(self, x):
        return self.classifier(self.features(x).flatten(1))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28)])
def test_their_parameters_make_our_network(shape, tmp_path, trusted):
    """Saved as their buffer.py saves them, read, and seen on the same images; and written again."""
    net = Theirs(shape, 10, 8, 3)
    epochs = []
    for e in range(EPOCHS + 1):
        for i, p in enumerate(net.parameters()):
            p.data = torch.randn(p.shape, generator=generator("walk", e, i)) / 10
        epochs.append([p.detach().clone() for p in net.parameters()])
    saved(tmp_path / "replay_buffer_0.pt", [epochs])
    ours = FunctionalNetwork(build(Network(width=8, depth=3), shape, 10))
    name = mtt_format.fingerprint(tmp_path)
    path = trajectory(tmp_path, 0, ours.shapes, EPOCHS, name)
    x = torch.randn(4, *shape, generator=generator("x"))
    torch.testing.assert_close(ours(path[-1], x), net(x))
    mtt_format.write_buffer(tmp_path / "ours", [path], ours.shapes)
    (again,) = read_foreign(tmp_path / "ours" / "replay_buffer_0.pt")
    for mine, theirs in zip(again[-1], net.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two experts, and their buffer."""
    store, home = Store(tmp_path_factory.mktemp("trained")), tmp_path_factory.mktemp("buffer")
    paths = [run.get(EXPERT.at(i), store).tensors["path"] for i in (0, 1)]
    mtt_format.write_buffer(home, paths, run.shapes(EXPERT))
    return store, home


def test_an_imported_expert_is_the_one_that_was_trained_here(trained, tmp_path):
    store, home = trained
    bare = Imported(data=DATA, network=NET, buffer=str(home), epochs=EPOCHS)
    with pytest.raises(InputError, match="are not identified yet"):
        key(bare)
    imported, place = mtt_format.identify(bare), Store(tmp_path)
    for i in (0, 1):
        ours, theirs = store.load(EXPERT.at(i)), run.get(imported.at(i), place)
        assert torch.equal(ours.tensors["path"], theirs.tensors["path"])
        assert ours.record["smoothness"] == theirs.record["smoothness"]
    with pytest.raises(InputError, match="holds 2 trajectories, but number 2"):
        run.check(imported.at(2))
    (home / "replay_buffer_1.pt").write_bytes((home / "replay_buffer_0.pt").read_bytes())
    with pytest.raises(InputError, match="has changed: its contents are"):
        run.get(imported, Store(tmp_path / "again"))


def test_a_buffer_of_another_network_is_refused(trained, trusted):
    _, home = trained
    other = network(Network(width=16, depth=2), (1, 16, 16), 10).shapes
    with pytest.raises(InputError, match=r"parameter 0 .*expected .*set `network`"):
        mtt_format.count(home, other, EPOCHS)
    with pytest.raises(InputError, match=r"E \+ 1 = 10 epochs: set `epochs`"):
        mtt_format.count(home, run.shapes(EXPERT), 9)


@pytest.mark.parametrize("form", ["mtt", "ddranking"])
@pytest.mark.parametrize("soft", [False, True])
def test_a_set_comes_back_as_it_went(form, soft, tmp_path, trusted):
    images = torch.randn(4, 1, 16, 16, generator=generator("images"))
    labels = torch.arange(4) % 2
    if soft:
        labels = torch.randn(4, 2, generator=generator("soft")).softmax(1)
    files = mtt_format.write_set(tmp_path, images, labels, 0.02, form)
    found = read_set(files[0], files[1])
    assert found["images"].shape == images.shape and found["labels"].shape == labels.shape
    assert ("lr" in found) == (form == "mtt")
    if form == "mtt":
        assert torch.equal(found["images"], images) and float(found["lr"]) == pytest.approx(0.02)
        assert torch.equal(found["labels"], labels)
