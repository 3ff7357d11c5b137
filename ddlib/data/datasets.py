"""The data sets: a name and a seed become balanced training, validation and test images.

n images, c x h x w pixels, K classes. A set is made of a wheel, of an archive in `<folder>/data`,
or of a folder of one's own; image files are decoded once and mapped into memory.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddlib.base import AsItIs, own_torch
from ddlib.data import image_folder
from ddlib.data.catalogue import EVERY, KEPT, MADE, MTT, SETS, TORCHVISION, Raw, Set, split
from ddlib.data.image_folder import PARTS, PICTURES, Found
from ddlib.data.space import Space, fit_space
from ddlib.files import digest, kept, read_parts, write_parts
from ddlib.progress import Progress
from ddlib.settings import Data, InputError

FOLDER = Path("store")  # where nobody says otherwise
LARGEST_ZCA = 64  # pixels a side: the matrix has 12 288 x 12 288 numbers

log = logging.getLogger("ddlib")


@dataclass(frozen=True, eq=False)
class Images(AsItIs):
    """A data set as a network sees it. The whole process shares it: do not write into it."""

    origin: ClassVar[str] = "which `load_data` returns"
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
        tensors = {name: t for name, t in vars(self).items() if isinstance(t, Tensor)}
        moved: dict[str, Any] = {name: t.to(device) for name, t in tensors.items()}
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


def identify(settings: Data) -> Data:
    """The same settings, with the `contents` of a folder of one's own as it is now filled in."""
    if settings.path is None or settings.contents is not None:
        return settings
    return settings.model_copy(update={"contents": image_folder.listing(Path(settings.path))})


@own_torch()
def load(settings: Data, folder: Path | str | None = None) -> Images:
    """The images of `settings`, read once per process.

    `folder/data` holds what was downloaded and what is cached.

    Raises:
        InputError: unknown data, or files that are missing, damaged or other than expected.
    """
    return _load(identify(settings), Path(folder or FOLDER).resolve())


def about(settings: Data) -> Set:
    """What is known before anything is loaded: shape, class names, training images per class."""
    if settings.name == "folder":
        entry = _own(identify(settings))
    elif settings.name in SETS:
        entry = SETS[settings.name]
    else:
        raise InputError(
            f"data '{settings.name}' is unknown: expected one of {', '.join(SETS)} or folder; "
            'correct the name. Images of your own are data "folder" with a `path` and a `size`'
        )
    side = entry.shape[1]
    if settings.zca and side > LARGEST_ZCA:  # it would take tens of GB and days
        raise InputError(
            f"zca for '{settings.name}' at {side} pixels: expected at most {LARGEST_ZCA}, "
            "for ZCA needs a square matrix of all pixels; set `zca: false`"
        )
    return entry


@lru_cache(maxsize=4)
def _load(settings: Data, folder: Path) -> Images:
    entry, home = about(settings), folder / "data"
    if entry.find:
        space, tensors = _from_files(entry, settings, folder)
    else:
        raw = _made(entry, settings, folder)
        if settings.name in TORCHVISION:  # an archive of 50 000 images and more
            file = _entered(settings, f"{settings.name}-{digest(raw)[:16]}", home)
            space, tensors = _mapped(file, lambda: raw, settings)
        else:
            space = _space(raw["x_train"], settings, home)
            enter = {"x": space.enter, "y": Tensor.long}
            tensors = {name: enter[name[0]](t) for name, t in raw.items()}
    names = entry.words(folder) if entry.words else entry.class_names
    return Images(settings, **tensors, space=space, class_names=names, strategies=entry.strategies)


def _made(entry: Set, settings: Data, folder: Path) -> Raw:
    """Pixels and labels as the entry makes them, or as they are kept where that is quicker."""
    expected = MADE.get(settings.name) if settings.seed == 0 else None

    def make() -> Raw:
        raw = entry.make(settings.seed, folder)
        if expected and (sha256 := digest(raw)) != expected:
            raise InputError(
                f"data '{settings.name}' of seed 0 has sha256 {sha256}, expected {expected}: its "
                "images differ from those behind every published number. The wheels that hold "
                "them have changed: install the versions of the lock file"
            )
        return raw

    if settings.name not in KEPT:
        return make()
    file = folder / "data" / f"{settings.name}-{settings.seed}.safetensors"
    return _kept(file, make, expected)


def _from_files(entry: Set, settings: Data, folder: Path) -> tuple[Space, dict[str, Tensor]]:
    """The space, and the images in it as `Images` names them, of image files.

    They become a file of pixels. When that in the space is there, it is needed no more.
    """
    home, side, own = folder / "data", entry.shape[1], settings.path is not None
    files = entry.find(folder)
    parts = _parts(files, settings.seed)
    stem = f"{settings.name}-{image_folder.stem(parts, side, own)}"

    def pixels() -> Raw:
        _warn(entry, settings, files, parts)
        work = image_folder.SECONDS * sum(len(some) for some, _ in parts.values())
        with closing(Progress(f"decoding {settings.title}", work)) as progress:
            decoded = partial(image_folder.decoded, parts, side, progress, own)
            return _kept(home / f"{stem}.safetensors", decoded)

    return _mapped(_entered(settings, stem, home), pixels, settings)


def _mapped(
    file: Path, pixels: Callable[[], Raw], settings: Data
) -> tuple[Space, dict[str, Tensor]]:
    """The same, mapped: pixels become a file of numbers in the space (four bytes each).

    Tiny ImageNet takes 5 GB. The system keeps in memory what it has room for, once for all
    processes.
    """

    def enter() -> dict[str, Any]:
        raw = pixels()
        space = _space(raw["x_train"], settings, file.parent)
        tensors: dict[str, Any] = {f"space.{k}": t for k, t in space.tensors().items()}
        for part in PARTS:
            x, y = raw[f"x_{part}"], raw[f"y_{part}"]
            entered = map(space.enter, x.split(500))
            tensors[f"x_{part}"] = (torch.float32, tuple(x.shape), entered)
            tensors[f"y_{part}"] = y.long()
        return tensors

    tensors = _kept(file, enter)
    space = {name: tensors.pop(name) for name in list(tensors) if name.startswith("space.")}
    return Space.from_tensors({k.removeprefix("space."): t for k, t in space.items()}), tensors


def _warn(entry: Set, settings: Data, files: Found, parts: image_folder.Parts) -> None:
    """Log what a user may not expect of these files."""
    title, sizes = settings.title, [len(some) for some in files["train"]]
    if len(set(sizes)) > 1:
        counts = ", ".join(map("{}: {}".format, entry.class_names, sizes))
        text = "%s has classes of unequal size (%s): %d images of each are used"
        log.warning(text, title, counts, min(sizes))
    if settings.path is None:
        return
    train, val, test = (len(parts[part][0]) for part in PARTS)
    text = "%s: of %d classes %d images train, %d validate and %d test; %s"
    step = f"one test image more or less is {100 / test:.2g} points of accuracy"
    log.warning(text, title, len(sizes), train, val, test, step)
    if odd := image_folder.left_out(Path(settings.path)):
        log.warning("%s: left out %s; read are %s of each class", title, odd, ", ".join(PICTURES))


def _entered(settings: Data, stem: str, home: Path) -> Path:
    space = f"{'mtt-' if settings.space else ''}{'zca' if settings.zca else 'plain'}"
    return home / f"{stem}-{space}.safetensors"


def _parts(found: Found, seed: int) -> image_folder.Parts:
    """Files and labels of each part: some set apart as they are, the others cut from train.

    Train gives as many of each class as its smallest has.
    """
    files = {part: [file for some in classes for file in some] for part, classes in found.items()}
    y = {
        part: torch.tensor([k for k, some in enumerate(classes) for _ in some])
        for part, classes in found.items()
    }
    places = {part: torch.arange(len(some)) for part, some in files.items()}
    places |= split(y["train"], _shares(found), seed)
    origin = {part: part if part in found else "train" for part in PARTS}
    return {
        part: ([files[home][i] for i in places[part].tolist()], y[home][places[part]])
        for part, home in origin.items()
    }


def _shares(found: Found) -> dict[str, int]:
    """Images per class to cut from train: a tenth validates and a fifth tests, unless set apart."""
    each = min(map(len, found["train"]))
    cut = {part: max(1, each // n) for part, n in (("val", 10), ("test", 5)) if part not in found}
    return {"train": each - sum(cut.values())} | cut


@lru_cache
def _own(settings: Data) -> Set:
    """The entry of a folder of one's own; its settings name its contents, so it is read once."""
    home = Path(settings.path)

    def find(folder: Path) -> Found:
        found = image_folder.own(home)
        if (now := image_folder.listing(home)) != settings.contents:
            raise InputError(
                f"the images in {home} are not those of the settings, or are decoded otherwise "
                f"today: their listing is {now}, expected {settings.contents}. Put the files back "
                "as they were, or leave `data.contents` out to work with those there now"
            )
        return found

    shape, each = (3, settings.size, settings.size), _shares(image_folder.own(home))["train"]
    return Set(image_folder.own_classes(home), shape, each, EVERY, str(home), find=find)


def _space(x: Tensor, settings: Data, home: Path) -> Space:
    """The space of training images `x`. ZCA is kept: 3072 eigenvectors take half a minute."""
    given = _mtt(settings) if settings.space else None
    if not settings.zca:
        return fit_space(x, False, given=given)
    file = home / f"{'mtt-' if given else ''}zca-{digest({'x': x})[:16]}.safetensors"
    return Space.from_tensors(_kept(file, lambda: fit_space(x, True, given=given).tensors()))


def _mtt(settings: Data) -> Space:
    """The space of MTT's code: fixed means and deviations.

    With ZCA it whitens pixels as they are, so epsilon is far larger beside their variance.
    """
    channels = about(settings).shape[0]
    if settings.zca:
        return Space(torch.zeros(channels), torch.ones(channels))
    if settings.name not in MTT:
        raise InputError(
            f"MTT's code has no means and deviations for data '{settings.name}', expected one of "
            f"{', '.join(MTT)}: leave `data.space` out (--whitening none), or set `zca: true` "
            "beside it (--whitening mtt-zca)"
        )
    return Space(*map(torch.tensor, MTT[settings.name]))


def _kept(
    file: Path, make: Callable[[], Mapping[str, Any]], expected: str | None = None
) -> dict[str, Tensor]:
    """The tensors of `file` in a store's `data`, mapped; what `make` returns if it is not sound."""

    def write() -> None:
        write_parts(file, make())

    load = partial(read_parts, expected=expected)
    return kept(file.parent.parent, file, f"data {file.stem}", load, write)
