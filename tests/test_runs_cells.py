"""Every cell of the paper: its published settings, and a dry run on a small archive of its set's form, at its image size, with its network."""

import gzip
import hashlib
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib import pyplot as plt
from PIL import Image
from torchvision import datasets

from ddlib import settings as config
from ddlib.data import datasets as data
from ddlib.data import image_folder as folders
from ddlib.paper import figures as plots
from ddlib.runs import stages as pipeline
from ddlib.runs import studies
from ddlib.runs.store import Store
from ddlib.settings import Evaluation

CELLS = [name for name in config.profiles() if "-ipc" in name]
MTT = {  # N, M, T_max, lr_images, lr_lr, a0, batch, ZCA: MTT's table; its row of CIFAR-10 at 10 is a typo by its author's word
    "cifar10-ipc1": (50, 2, 2, 100, 1e-7, 0.01, None, True),
    "cifar10-ipc50": (30, 2, 40, 1000, 1e-5, 0.001, None, False),
    "cifar100-ipc1": (20, 3, 20, 1000, 1e-5, 0.01, None, True),
    "cifar100-ipc10": (20, 2, 20, 1000, 1e-5, 0.01, None, False),
    "cifar100-ipc50": (
        80,
        2,
        40,
        1000,
        1e-5,
        0.01,
        125,
        False,
    ),  # published with ZCA; the cell has the space of AST's row
    "tiny_imagenet-ipc1": (10, 2, 10, 10000, 1e-4, 0.01, None, False),
    "tiny_imagenet-ipc10": (20, 2, 40, 10000, 1e-4, 0.01, 200, False),
    "tiny_imagenet-ipc50": (20, 2, 40, 10000, 1e-4, 0.01, 300, False),
}
AST = {  # the same, then start, perturbation, intermediate matching, balanced loss: the authors' scripts
    "cifar10-ipc10": (30, 2, 20, 1000, 1e-5, 0.01, None, True, "real", True, True, True),
    "cifar100-ipc1": (20, 3, 20, 1000, 1e-5, 0.01, None, True, "representative", True, True, True),
    "cifar100-ipc10": (
        20,
        2,
        30,
        1000,
        1e-5,
        0.01,
        128,
        False,
        "representative",
        True,
        True,
        False,
    ),
    "cifar100-ipc50": (
        80,
        2,
        40,
        1000,
        1e-5,
        0.01,
        700,
        False,
        "representative",
        False,
        False,
        False,
    ),
    "tiny_imagenet-ipc1": (10, 2, 10, 10000, 1e-4, 0.01, None, False, "real", True, True, False),
}
DEPTHS = {28: 3, 32: 3, 64: 4, 128: 5}


def student(name, method):
    """The settings of a method on a cell, as MTT's table lists them, and all of them."""
    made = studies.distillation(config.profile(name), name, method, 0)
    fields = ("inner_steps", "matched_epochs", "start_epochs", "lr_images", "lr_lr", "a0", "batch")
    return (*(getattr(made, field) for field in fields), made.start.data.zca), made


@pytest.mark.parametrize("name", MTT)
def test_mtt_runs_as_published(name):
    found, made = student(name, "MTT")
    assert (
        found == MTT[name]
        and made.iterations == 5000
        and made.momentum == 0
        and made.start.method == "real"
    )
    assert not (made.balance or made.perturbation) and made.intermediate == "none"
    expert = made.experts
    assert (expert.optimiser, expert.lr, expert.batch, expert.epochs, made.n_experts) == (
        "sgd",
        0.01,
        256,
        50,
        100,
    )


@pytest.mark.parametrize("name", AST)
def test_ast_runs_as_its_authors_scripts(name):
    found, made = student(name, "AST")
    switches = (
        made.start.method,
        made.perturbation == 1.0,
        made.intermediate == "equal",
        made.balance,
    )
    assert (*found, *switches) == AST[name] and made.momentum == 0.9
    expert = made.experts
    assert (
        expert.optimiser,
        expert.lr,
        expert.weight_decay,
        expert.batch,
        expert.epochs,
        expert.drop,
    ) == ("momentum", 0.003, 0.001, 256, 50, 0.6)
    assert (expert.ramp, expert.ramp_epochs, expert.penalty, expert.penalty_weight) == (
        "loss",
        10,
        "per_pixel",
        2.0,
    )


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_says_what_it_is_and_where_its_settings_come_from(name):
    text = (config.PROFILES / f"{name}.yaml").read_text()
    assert "# MTT:" in text and "# AST:" in text
    profile = config.profile(name)
    (cell,) = profile.cells.values()
    known = data.about(cell.data)
    assert list(profile.cells) == [name] == [f"{cell.data.name}-ipc{cell.ipc}"]
    assert (profile.network.depth, profile.network.width) == (DEPTHS[known.shape[1]], 128)
    assert {n.architecture for n in profile.cross_architecture.networks} == {
        "convnet",
        "alexnet",
        "vgg11",
        "resnet18",
        "resnet18_ap",
        "vit",
    }
    assert profile.evaluation["networks"] == 5 and profile.evaluation["epochs"] == 1000


@pytest.mark.parametrize("name", sorted({name.split("-ipc")[0] for name in CELLS}))
def test_a_table_is_its_three_cells(name):
    table = config.profile(name)
    assert list(table.cells) == [f"{name}-ipc{ipc}" for ipc in (1, 10, 50)]
    for cell in table.cells:
        assert table.cells[cell] == config.profile(cell).cells[cell]


class Archive:
    """Small archives in their official form, all classes there; what fixes their size is swapped for theirs."""

    def __init__(self, home, patch):
        self.home, self.patch, self.chance = home, patch, np.random.default_rng(0)

    def pixels(self, *shape):
        """Noise about a level, so that images differ."""
        return (
            self.chance.integers(40, 200, (shape[0], *[1] * (len(shape) - 1)))
            + self.chance.integers(-30, 30, shape)
        ).astype(np.uint8)

    def idx(self, reader):
        """The four files of MNIST's form."""
        home, resources = self.home / reader.__name__ / "raw", []
        home.mkdir(parents=True)
        y = np.repeat(np.arange(10, dtype=np.uint8), 10)
        for (name, _), numbers in zip(
            reader.resources,
            (self.pixels(100, 28, 28), y, self.pixels(100, 28, 28), y),
            strict=True,
        ):
            content = gzip.compress(
                bytes([0, 0, 8, numbers.ndim])
                + np.array(numbers.shape, dtype=">u4").tobytes()
                + numbers.tobytes()
            )
            (home / name).write_bytes(content)
            resources.append((name, hashlib.md5(content).hexdigest()))
        self.patch.setattr(reader, "resources", resources)

    def cifar(self, reader, classes):
        """Pickled batches; of a hundred classes twenty."""
        home, named = self.home / reader.base_folder, reader.__name__.lower()
        home.mkdir(parents=True)
        names, label = (
            (["train"], "fine_labels")
            if classes == 100
            else ([f"data_batch_{i}" for i in range(1, 6)], "labels")
        )
        known = data.SETS[named]
        classes = min(classes, 20)
        self.patch.setitem(
            data.SETS, named, replace(known, class_names=known.class_names[:classes], per_class=9)
        )

        def write(name, content):
            content = pickle.dumps(content)
            (home / name).write_bytes(content)
            return [name, hashlib.md5(content).hexdigest()]

        def batch(name):
            y = list(range(classes)) * (10 // len(names))
            return write(name, {"data": self.pixels(len(y), 3072), label: y})

        self.patch.setattr(reader, "train_list", [batch(name) for name in names])
        self.patch.setattr(reader, "test_list", [batch("test" if classes == 100 else "test_batch")])
        name, md5 = write(reader.meta["filename"], {reader.meta["key"]: list(known.class_names)})
        self.patch.setattr(
            reader, "meta", {"filename": name, "key": reader.meta["key"], "md5": md5}
        )

    def jpeg(self, file, width, height):
        """One image."""
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(self.pixels(1, height, width, 3)[0]).save(file)

    def tiny(self):
        """Twenty classes of Tiny ImageNet: two hundred would take long to write."""
        ids = folders.TINY[:20]
        self.patch.setattr(folders, "TINY", ids)
        self.patch.setattr(folders, "TINY_COUNTS", {"train": (2, 2), "test": (1, 1)})
        self.patch.setitem(
            data.SETS,
            "tiny_imagenet",
            replace(data.SETS["tiny_imagenet"], class_names=tuple(ids), per_class=1),
        )
        home, notes = self.home / "tiny-imagenet-200", []
        for k, wnid in enumerate(ids):
            for i in range(2):
                self.jpeg(home / "train" / wnid / "images" / f"{wnid}_{i}.JPEG", 64, 64)
            self.jpeg(home / "val" / "images" / f"val_{k}.JPEG", 64, 64)
            notes.append(f"val_{k}.JPEG\t{wnid}\t0\t0\t63\t63\n")
        (home / "val" / "val_annotations.txt").write_text("".join(notes))
        (home / "wnids.txt").write_text("\n".join(ids))
        (home / "words.txt").write_text(
            "\n".join(f"{wnid}\tclass {k}" for k, wnid in enumerate(ids))
        )

    def imagenet(self, subset):
        """Ten classes at sizes that ImageNet has."""
        self.patch.setattr(folders, "IMAGENET_COUNTS", {"train": (2, 2), "test": (1, 1)})
        for wnid in folders.SUBSETS[subset]:
            for i in range(2):
                self.jpeg(
                    self.home / "imagenet" / "train" / wnid / f"{wnid}_{i}.JPEG",
                    *((500, 375), (333, 500))[i % 2],
                )
            self.jpeg(self.home / "imagenet" / "val" / wnid / "val.JPEG", 500, 333)


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """`archive(name)` is a store whose data folder holds that set; each is made once."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:

        def store(name):
            if name not in made:
                root = tmp_path_factory.mktemp(name)
                build = Archive(root / "data", patch)
                if name in folders.SUBSETS:
                    build.imagenet(name)
                elif name == "tiny_imagenet":
                    build.tiny()
                else:
                    reader = {
                        "mnist": "MNIST",
                        "fashion_mnist": "FashionMNIST",
                        "cifar10": "CIFAR10",
                        "cifar100": "CIFAR100",
                    }[name]
                    build.cifar(
                        getattr(datasets, reader), len(data.SETS[name].class_names)
                    ) if "cifar" in name else build.idx(getattr(datasets, reader))
                made[name] = Store(root)
            return made[name]

        data._load.cache_clear()
        yield store
        data._load.cache_clear()


@pytest.mark.parametrize("name", CELLS)
def test_dry_run(name, archive):
    """One expert's step, one outer iteration, one step of evaluation; then the picture grid. All of AST's settings but the amounts."""
    profile = config.profile(name)
    full = studies.distillation(profile, name, "AST", 0)
    store = archive(full.start.data.name)
    few = {"epochs": 1, "batch": 180}  # all that the archives hold
    start = full.start.model_copy(
        update={"ipc": 1, "expert": full.start.expert and full.start.expert.model_copy(update=few)}
    )
    amounts = {
        "n_experts": 1,
        "inner_steps": 1,
        "matched_epochs": 1,
        "start_epochs": 1,
        "batch": 4,
        "iterations": 1,
        "checks": 1,
        "check_epochs": 1,
    }
    made = full.model_copy(
        update={"experts": full.experts.model_copy(update=few), "start": start, **amounts}
    )
    judged = studies.evaluation(profile, name, made, networks=1, epochs=1, looks=1, factors=[1.0])
    assert isinstance(judged, Evaluation) and judged.network == profile.network

    (row,) = [
        row for row in pipeline.get(judged, store).record["rows"] if row["protocol"] == "lr_chosen"
    ]
    held, began = store.load(made), store.load(start)
    shape = data.about(full.start.data).shape
    images = held.tensors["images"]
    assert (
        tuple(images.shape[1:]) == shape
        and torch.isfinite(images).all()
        and 0 <= row["accuracy"] <= 1
    )
    moved = (images != began.tensors["images"]).flatten(1).any(1)
    assert moved.sum() == 4  # the batch of the one inner step, and no other image
    grid = plots.pixels(held)
    assert (
        grid.shape[1:3] == shape[1:] and grid.min() >= 0 and grid.max() <= 1 and grid.std() > 0.05
    )
    figure, ax = plt.subplots()
    plots.grid(ax, grid[:10], held.tensors["labels"][:10])
    plt.close(figure)
    real = plots.pixels(began)
    assert (
        abs(real.mean() - grid.mean()) < 0.2
        and np.abs(real - np.round(real * 255) / 255).max() < 0.01
    )  # whitened and back: pixels again


def test_a_whitening_too_large_is_refused_before_any_work():
    with pytest.raises(
        config.InputError,
        match=r"zca for 'imagenette' at 128 pixels: expected at most 64, .*set `zca: false`",
    ):
        data.about(config.Data(name="imagenette", zca=True))
    assert data.about(config.Data(name="tiny_imagenet", zca=True)).shape == (3, 64, 64)
