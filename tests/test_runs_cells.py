"""Every cell of the paper: its published settings, and a dry run per form of data set.

A dry run uses a small archive of the set's official form, its image size and its network.
"""

import gzip
import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets as torchvision_sets

from ddlib.base import InputError
from ddlib.data import catalogue, datasets, imagenet
from ddlib.data.catalogue import SETS
from ddlib.paper.pictures import pixels
from ddlib.runs.methods import distillation, evaluation
from ddlib.runs.profile import PROFILES, profile, profiles
from ddlib.runs.run import get
from ddlib.runs.store import Store
from ddlib.settings import Data

CELLS = [name for name in profiles() if "-ipc" in name]
SGD = ("sgd", 0.01, 256, 50)
STUDENT = ["inner_steps", "matched_epochs", "start_epochs", "lr_images", "lr_lr", "a0", "batch"]
MTT = {  # STUDENT and ZCA: MTT's table; its row of CIFAR-10 at 10 is a typo by its author's word
    "cifar10-ipc1": (50, 2, 2, 100, 1e-7, 0.01, None, True),
    "cifar10-ipc50": (30, 2, 40, 1000, 1e-5, 0.001, None, False),
    "cifar100-ipc1": (20, 3, 20, 1000, 1e-5, 0.01, None, True),
    "cifar100-ipc10": (20, 2, 20, 1000, 1e-5, 0.01, None, False),
    # published with ZCA; the cell has the space of AST's row
    "cifar100-ipc50": (80, 2, 40, 1000, 1e-5, 0.01, 125, False),
    "tiny_imagenet-ipc1": (10, 2, 10, 10000, 1e-4, 0.01, None, False),
    "tiny_imagenet-ipc10": (20, 2, 40, 10000, 1e-4, 0.01, 200, False),
    "tiny_imagenet-ipc50": (20, 2, 40, 10000, 1e-4, 0.01, 300, False),
}
MEANS = "representative"
AST = {  # the same, then start, perturbation, intermediate matching, balanced loss: their scripts
    "cifar10-ipc10": (30, 2, 20, 1000, 1e-5, 0.01, None, True, "real", True, True, True),
    "cifar100-ipc1": (20, 3, 20, 1000, 1e-5, 0.01, None, True, MEANS, True, True, True),
    "cifar100-ipc10": (20, 2, 30, 1000, 1e-5, 0.01, 128, False, MEANS, True, True, False),
    "cifar100-ipc50": (80, 2, 40, 1000, 1e-5, 0.01, 700, False, MEANS, False, False, False),
    "tiny_imagenet-ipc1": (10, 2, 10, 10000, 1e-4, 0.01, None, False, "real", True, True, False),
}
DEPTHS = {28: 3, 32: 3, 64: 4, 128: 5}


def student(name, method):
    """The settings of a method on a cell, as MTT's table lists them, and all of them."""
    made = distillation(profile(name), name, method, 0)
    return (*(getattr(made, field) for field in STUDENT), made.data.zca), made


@pytest.mark.parametrize("name", MTT)
def test_mtt_runs_as_published(name):
    numbers, made = student(name, "MTT")
    assert numbers == MTT[name] and made.iterations == 5000 and made.n_experts == 100
    assert made.momentum == 0 and made.start.method == "real"
    assert not (made.balance or made.perturbation) and made.intermediate == "none"
    expert = made.experts
    assert (expert.optimiser, expert.lr, expert.batch, expert.epochs) == SGD


@pytest.mark.parametrize("name", AST)
def test_ast_runs_as_its_authors_scripts(name):
    numbers, made = student(name, "AST")
    parts = (made.perturbation == 1.0, made.intermediate == "equal", made.balance)
    assert (*numbers, made.start.method, *parts) == AST[name] and made.momentum == 0.9
    e = made.experts
    numbers = (e.optimiser, e.lr, e.weight_decay, e.batch, e.epochs, e.drop)
    assert numbers == ("momentum", 0.003, 0.001, 256, 50, 0.6)
    smooth = (e.ramp, e.ramp_epochs, e.penalty, e.penalty_weight)
    assert smooth == ("loss", 10, "per_pixel", 2.0)


def test_a_cell_says_what_it_is_and_where_its_settings_come_from():
    assert len(CELLS) == 33
    pool = {"convnet", "alexnet", "vgg11", "resnet18", "resnet18_ap", "vit"}
    for name in CELLS:
        text = (PROFILES / f"{name}.yaml").read_text()
        assert "# MTT:" in text and "# AST:" in text, name
        given = profile(name)
        (cell,) = given.cells.values()
        side = datasets.about(cell.data).shape[1]
        assert list(given.cells) == [name] == [f"{cell.data.name}-ipc{cell.ipc}"]
        assert (given.network.depth, given.network.width) == (DEPTHS[side], 128), name
        assert {n.architecture for n in given.cross_architecture.networks} == pool, name
        judged = given.evaluation
        assert (judged["networks"], judged["epochs"]) == (5, 1000), name


def test_a_table_is_its_three_cells():
    for name in {name.split("-ipc")[0] for name in CELLS}:
        table = profile(name)
        assert list(table.cells) == [f"{name}-ipc{ipc}" for ipc in (1, 10, 50)]
        for cell in table.cells:
            assert table.cells[cell] == profile(cell).cells[cell]


class Archive:
    """Small archives in their official form; what fixes their size is swapped for theirs."""

    def __init__(self, home, patch):
        self.home, self.patch, self.chance = home, patch, np.random.default_rng(0)

    def pixels(self, *shape):
        """Noise about a level, so that images differ."""
        level = self.chance.integers(40, 200, (shape[0], *[1] * (len(shape) - 1)))
        return (level + self.chance.integers(-30, 30, shape)).astype(np.uint8)

    def idx(self, reader, name):
        """The four files of MNIST's form."""
        home, digests = self.home / reader.__name__ / "raw", []
        home.mkdir(parents=True)
        y = np.repeat(np.arange(10, dtype=np.uint8), 10)
        parts = (self.pixels(100, 28, 28), y, self.pixels(100, 28, 28), y)
        for (file, _), numbers in zip(reader.resources, parts, strict=True):
            shape = np.array(numbers.shape, dtype=">u4").tobytes()
            content = bytes([0, 0, 8, numbers.ndim]) + shape + numbers.tobytes()
            (home / file).write_bytes(gzip.compress(content))
            digests.append(hashlib.sha256(content).hexdigest())
        self.patch.setitem(catalogue.IDX, name, tuple(digests))

    def cifar(self, reader, name):
        """Pickled batches; of a hundred classes twenty."""
        home, known, hundred = self.home / reader.base_folder, SETS[name], name == "cifar100"
        home.mkdir(parents=True)
        train = ["train"] if hundred else [f"data_batch_{i}" for i in range(1, 6)]
        classes = known.class_names[:20]
        self.patch.setitem(SETS, name, replace(known, class_names=classes, per_class=9))

        def write(name, content):
            content = pickle.dumps(content)
            (home / name).write_bytes(content)
            return [name, hashlib.md5(content).hexdigest()]

        def batch(name):
            y = list(range(len(classes))) * (10 // len(train))
            label = "fine_labels" if hundred else "labels"
            return write(name, {"data": self.pixels(len(y), 3072), label: y})

        self.patch.setattr(reader, "train_list", [batch(name) for name in train])
        self.patch.setattr(reader, "test_list", [batch("test" if hundred else "test_batch")])
        meta, key = reader.meta["filename"], reader.meta["key"]
        meta, md5 = write(meta, {key: list(known.class_names)})
        self.patch.setattr(reader, "meta", {"filename": meta, "key": key, "md5": md5})

    def jpeg(self, file, width, height):
        """One image."""
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pixels(1, height, width, 3)[0]).save(file)

    def tiny(self):
        """Twenty classes of Tiny ImageNet: two hundred would take long to write."""
        ids = [f"n{k:08}" for k in range(20)]
        small = replace(SETS["tiny_imagenet"], class_names=tuple(ids), per_class=1)
        sha256 = hashlib.sha256("\n".join(ids).encode()).hexdigest()
        self.patch.setattr(imagenet, "TINY_IDS", sha256)
        self.patch.setattr(imagenet, "TINY_COUNTS", {"train": (2, 2), "test": (1, 1)})
        self.patch.setitem(SETS, "tiny_imagenet", small)
        home, notes = self.home / "tiny-imagenet-200", []
        for k, wnid in enumerate(ids):
            for i in range(2):
                self.jpeg(home / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 64, 64)
            self.jpeg(home / "val" / "images" / f"val_{k}.JPEG", 64, 64)
            notes.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t63\t63\n")
        (home / "val" / "val_annotations.txt").write_text("".join(notes))
        (home / "wnids.txt").write_text("\n".join(ids))
        words = (f"{wnid}\tclass {k}" for k, wnid in enumerate(ids))
        (home / "words.txt").write_text("\n".join(words))

    def imagenet(self, subset):
        """Ten classes at sizes that ImageNet has."""
        self.patch.setattr(imagenet, "IMAGENET_COUNTS", {"train": (2, 2), "test": (1, 1)})
        home = self.home / "imagenet"
        for wnid in SETS[subset].find.args[0]:
            for i, size in enumerate(((500, 375), (333, 500))):
                self.jpeg(home / "train" / wnid / f"{wnid}_{i}.JPEG", *size)
            self.jpeg(home / "val" / wnid / "val.JPEG", 500, 333)


# Cell -> what makes its archive. The six subsets of ImageNet have one form; no ZCA, for it is slow.
FORMS = {
    "mnist-ipc10": lambda archive: archive.idx(torchvision_sets.MNIST, "mnist"),
    "fashion_mnist-ipc50": lambda archive: archive.idx(
        torchvision_sets.FashionMNIST, "fashion_mnist"
    ),
    "cifar10-ipc50": lambda archive: archive.cifar(torchvision_sets.CIFAR10, "cifar10"),
    "cifar100-ipc10": lambda archive: archive.cifar(torchvision_sets.CIFAR100, "cifar100"),
    "tiny_imagenet-ipc1": Archive.tiny,
    "imagenette-ipc1": lambda archive: archive.imagenet("imagenette"),
}
FEW = {"epochs": 1, "batch": 180}  # all that the archives hold
AMOUNTS = {
    "n_experts": 1,
    "inner_steps": 1,
    "matched_epochs": 1,
    "start_epochs": 1,
    "batch": 4,
    "iterations": 1,
    "checks": 1,
    "check_epochs": 1,
}


@pytest.mark.parametrize("name", FORMS)
def test_dry_run(name, tmp_path, monkeypatch):
    """One step of expert, outer loop and evaluation, with all of AST's settings but the amounts."""
    datasets._load.cache_clear()
    FORMS[name](Archive(tmp_path / "data", monkeypatch))
    given, store = profile(name), Store(tmp_path)
    full = distillation(given, name, "AST", 0)
    seen = full.start.expert and full.start.expert.model_copy(update=FEW)
    start = full.start.model_copy(update={"ipc": 1, "expert": seen})
    less = {"experts": full.experts.model_copy(update=FEW), "start": start, **AMOUNTS}
    made = full.model_copy(update=less)
    judged = evaluation(given, name, made, networks=1, epochs=1, looks=1, lrs=[0.01])
    assert judged.network == given.network

    (row,) = [row for row in get(judged, store).record["rows"] if row["protocol"] == "lr_chosen"]
    result, began = store.load(made), store.load(start)
    shape, images = datasets.about(full.data).shape, result.tensors["images"]
    assert tuple(images.shape[1:]) == shape and torch.isfinite(images).all()
    assert 0 <= row["accuracy"] <= 1
    moved = (images != began.tensors["images"]).flatten(1).any(1)
    assert moved.sum() == 4  # the batch of the one inner step, and no other image
    shown, real = pixels(result), pixels(began)
    assert shown.shape[1:3] == shape[1:] and 0 <= shown.min() <= shown.max() <= 1
    assert shown.std() > 0.05 and abs(real.mean() - shown.mean()) < 0.2
    assert np.abs(real - np.round(real * 255) / 255).max() < 0.01  # whitened and back
    datasets._load.cache_clear()


def test_a_whitening_too_large_is_an_error_before_any_work():
    text = r"zca for 'imagenette' at 128 pixels: expected at most 64, .*set `zca: false`"
    with pytest.raises(InputError, match=text):
        datasets.about(Data(name="imagenette", zca=True))
    assert datasets.about(Data(name="tiny_imagenet", zca=True)).shape == (3, 64, 64)
