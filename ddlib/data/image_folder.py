"""Folders of images: found and counted before any is read, then each decoded once into a file.

n images, 3 x side x side pixels. The file of pixels stays on disk and is mapped into memory, so a
data set may be larger than memory. A folder of one's own holds ``<class>/**``, or
``train/<class>/**`` and perhaps val and test likewise, under any of the names in ALIASES.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddlib.base import InputError, printable
from ddlib.files import stamp
from ddlib.progress import Progress

PARTS = ("train", "val", "test")
ALIASES = {"train": "train", "training": "train", "test": "test", "testing": "test"}
ALIASES |= dict.fromkeys(("val", "valid", "validation", "dev"), "val")  # all in capitals, too
PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")  # endings, in capitals too
FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # that are decoded
LONGEST = 100  # times the shorter side: a longer image would be blown up beyond any memory
# part of the key of a folder of one's own: raise it when its images come out otherwise
DECODING = 3
SECONDS = 0.005  # to decode an image, about
BATCH = 100  # images decoded between two reports of progress

Found = dict[str, list[list[Path]]]  # part -> for each class, in order, its images by name
Parts = dict[str, tuple[list[Path], Tensor]]  # part -> n files and their labels (n,), int64


def parts_in(folder: Path) -> dict[str, Path]:
    """Where the parts of a folder of one's own lie; all of it trains if none has a folder.

    A part holds folders of classes. So a class of images alone may be called train.
    """
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "is not there"
        raise InputError(
            f"no folder {folder.absolute()}, it {what}: expected the images there, a folder per "
            "class; put them there, or correct the `path`"
        )
    inside = _folders(folder)
    named = [name for name in inside if name.lower() in ALIASES and _folders(folder / name)]
    parts: dict[str, Path] = {}
    for name in named:
        part = ALIASES[name.lower()]
        if part in parts:
            raise InputError(
                f"{folder} holds {parts[part].name} and {name}, which both mean `{part}`: "
                "put them together, or take one away"
            )
        parts[part] = folder / name
    if parts and "train" not in parts:
        raise InputError(
            f"no folder train in {folder.absolute()}, but {few(sorted(named))}: expected "
            "train/<class>/*, and perhaps val/<class>/*, test/<class>/*; correct `data.path`"
        )
    return parts or {"train": folder}


def _folders(home: Path) -> tuple[str, ...]:
    inside = (folder for folder in home.iterdir() if folder.is_dir())
    return tuple(sorted(folder.name for folder in inside if not folder.name.startswith(".")))


def _images(home: Path) -> list[Path]:
    """Files right inside `home` that are images by their names."""
    files = (file for file in home.iterdir() if not file.name.startswith(".") and not file.is_dir())
    return sorted(file for file in files if file.suffix.lower() in PICTURES)


def pictures(folder: Path, deep: bool = False) -> list[Path]:
    """The images that lie in `folder` itself, by name, or if `deep` in its folders, too."""
    files = _images(folder)
    for inner in _folders(folder) if deep else ():
        if (folder / inner).is_symlink():
            raise InputError(
                f"{folder / inner} is a link to a folder, which may lead to images of another "
                "class: put the images themselves there, or remove it"
            )
        files += pictures(folder / inner, deep)
    for file in files:
        if not file.is_file():
            what = "a link to what is not there" if file.is_symlink() else "no plain file"
            raise InputError(f"{file} is {what}: expected an image; put it back, or remove it")
    return files


def listing(folder: Path) -> str:
    """16 hexadecimal digits that name a folder's images by relative path and content."""
    files = [file for part in own(folder).values() for some in part for file in some]
    names = [(file.relative_to(folder).as_posix(), content(*stamp(file))) for file in files]
    return _hash([DECODING, names])


@lru_cache(maxsize=1 << 20)
def content(file: Path, *stamp: int) -> str:
    """The sha256 of the bytes of a file with this `files.stamp`."""
    with file.open("rb") as bytes_of:
        return hashlib.file_digest(bytes_of, "sha256").hexdigest()


def _hash(content: list) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def own_classes(folder: Path) -> tuple[str, ...]:
    """The classes of a folder of one's own, by name."""
    train = parts_in(folder)["train"]
    names = _folders(train)
    if len(names) < 2:
        raise InputError(
            f"{train} holds {len(names)} folders ({few(names)}): expected one per class, of at "
            "least two classes; put the images of each class into a folder named after it"
        )
    for name in names:
        if printable(name) != name:
            raise InputError(
                f"the class '{name}' in {train} is called what cannot be printed: expected text in "
                "UTF-8; rename its folder"
            )
    inner = [set(_folders(train / name)) for name in names if not _images(train / name)]
    if len(inner) == len(names) and len(shared := set.intersection(*inner)) > 1:
        raise InputError(
            f"each folder of {train} ({few(names)}) holds the folders {few(sorted(shared))}: are "
            f"these the classes? Parts are called {', '.join(ALIASES)}; rename them, or correct "
            "`data.path`"
        )
    return names


def own(folder: Path) -> Found:
    """The images of a folder of one's own, those in folders inside a class's folder, too."""
    names, parts, same = own_classes(folder), parts_in(folder), "the same classes in every part"
    for home in parts.values():
        if more := set(_folders(home)) - set(names):
            raise InputError(
                f"{home} holds {few(sorted(more))}, which train does not: expected {same}"
            )
    files = {part: by_class(home, names, same, deep=True) for part, home in parts.items()}
    least = 1 + len(PARTS) - len(files)  # one image for each part that is cut from train
    counts = {part: (least if part == "train" else 1, None) for part in files}
    endings = ", ".join(PICTURES)
    advice = f"add some, with names that end in {endings}, or take the class away"
    return counted(files, names, counts, folder, advice)


def left_out(folder: Path) -> str:
    """What in a folder of one's own is not read: files by ending, and whole folders by name."""
    homes, odd = {*parts_in(folder).values()}, Counter[str]()
    for place, inner, files in os.walk(folder):
        home = Path(place)
        inner[:] = [name for name in inner if name[0] != "."]
        if home == folder and folder not in homes:
            odd.update(f"folder '{printable(n)}'" for n in inner if home / n not in homes)
            inner[:] = [name for name in inner if home / name in homes]
        outside = f" right in {printable(home.name)}/" if home in {folder, *homes} else ""
        for file in files:
            suffix = Path(file).suffix.lower()
            if file[0] != "." and (outside or suffix not in PICTURES):
                odd[(suffix or "no ending") + outside] += 1
    return ", ".join(f"{n} {what}" for what, n in sorted(odd.items()))


def by_class(
    home: Path, names: Collection[str], source: str, inside: str = "", deep: bool = False
) -> list[list[Path]]:
    """The images of each class, in home/<class>/<inside>; `source` says what is expected there."""
    if missing := [str(Path(k, inside)) for k in names if not (home / k / inside).is_dir()]:
        raise InputError(
            f"{home} lacks {few(missing)} of {len(names)} classes: expected {source}; "
            "put them there"
        )
    return [pictures(home / name / inside, deep) for name in names]


def counted(
    files: Found,
    names: Collection[str],
    counts: Mapping[str, tuple[int, int | None]],
    home: Path,
    advice: str,
) -> Found:
    """The same files, if every class has as many as `counts` says: fewest and most, per part."""
    for part, (least, most) in counts.items():
        pairs = zip(names, map(len, files[part]), strict=True)
        wrong = [f"{name}: {n}" for name, n in pairs if n < least or (most and n > most)]
        if wrong:
            span = f"{least}" if most == least else f"{least} to {most}" if most else f"{least}+"
            raise InputError(
                f"{part} images in {home}: {few(wrong)}, but {span} of each class are expected; "
                f"{advice}"
            )
    return files


def few(names: Sequence[str]) -> str:
    """The first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def decode(file: Path, side: int, upright: bool = False) -> Tensor:
    """An image as (3, side, side) levels: its shorter side becomes `side`, the middle is cut out.

    `upright`: as a viewer shows it, turned as its EXIF note says and on white where it is
    transparent; else as its pixels are stored, as others read archives. (MTT stretches both sides.)
    """
    from torchvision.transforms import functional as F

    try:
        with Image.open(file, formats=FORMATS) as opened:
            if max(opened.size) > LONGEST * min(opened.size):
                raise ValueError(f"{opened.width} x {opened.height} pixels are no picture")
            image: Image.Image = _turned(opened) if upright else opened
            if image.mode.startswith("I;16"):  # Pillow would cut its 65 536 levels off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if upright and image.has_transparency_data:
                white = Image.new("RGBA", image.size, "white")
                image = Image.alpha_composite(white, image.convert("RGBA"))
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{file} cannot be read as an image ({error}): "
            "replace it, or remove it where any number of images will do"
        ) from error
    image = F.center_crop(F.resize(image, side), [side, side])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _turned(image: Image.Image) -> Image.Image:
    """The image as the camera was held; an EXIF note that cannot be read says nothing."""
    image.load()  # what is wrong with the image itself shows here
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # anything can stand in a note
        return image


def stem(parts: Parts, side: int, upright: bool = False) -> str:
    """16 hexadecimal digits that name what `decoded` makes of these files, by name and content.

    An archive's files are many: their size and time of change stand for the content.
    """

    def about(file: Path) -> tuple:
        _, size, changed, _ = known = stamp(file)
        return (content(*known),) if upright else (size, changed)

    files = {}
    for part, (some, y) in parts.items():
        pairs = zip(some, y.tolist(), strict=True)
        files[part] = [(*file.parts[-4:], *about(file), k) for file, k in pairs]
    return _hash([side, files, *[DECODING] * upright])


def decoded(parts: Parts, side: int, progress: Progress, upright: bool = False) -> dict[str, Any]:
    """x_<part> (n, 3, side, side) uint8 and y_<part> (n,) int64, decoded as they are written."""

    def pixels(part: str, files: list[Path]) -> Iterator[Tensor]:
        for i in range(0, len(files), BATCH):
            some = torch.stack([decode(file, side, upright) for file in files[i : i + BATCH]])
            yield some
            progress.advance(SECONDS * len(some), part)

    tensors: dict[str, Any] = {f"y_{part}": y for part, (_, y) in parts.items()}
    for part, (files, _) in parts.items():
        shape = (len(files), 3, side, side)
        tensors[f"x_{part}"] = (torch.uint8, shape, pixels(part, files))
    return tensors
