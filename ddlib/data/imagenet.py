"""Tiny ImageNet and subsets of ImageNet: where their images lie."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from ddlib.data.image_folder import Found, by_class, counted, few
from ddlib.settings import InputError

TINY = 200  # classes; the sha256 of their WordNet ids, sorted, one a line
TINY_IDS = "add4bf0c8712ef7fb4bca98e3bbaf07101636c5db62cce486fd2af71cc11caf8"
TINY_COUNTS = {"train": (500, 500), "test": (50, 50)}  # fewest and most images per class
IMAGENET_COUNTS = {"train": (732, 1300), "test": (50, 50)}


def imagenet(ids: Collection[str], folder: Path) -> Found:
    """Classes of ILSVRC2012; its validation images test, for its test set has no labels."""
    home = folder / "data" / "imagenet"
    source = "ImageNet's ILSVRC2012 (image-net.org), train and val as one folder of images per id"
    homes = {"train": home / "train", "test": home / "val"}
    files = {part: by_class(place, ids, source) for part, place in homes.items()}
    return counted(files, ids, IMAGENET_COUNTS, home, f"put there {source}")


def tiny_imagenet(folder: Path) -> Found:
    """200 classes in the order of their WordNet ids; the validation images are the test set."""
    home = folder / "data" / "tiny-imagenet-200"
    source = "the archive http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked"
    notes, images = home / "val" / "val_annotations.txt", home / "val" / "images"
    needed = (home / "wnids.txt", home / "words.txt", home / "train", notes, images)
    if missing := [str(place.relative_to(home)) for place in needed if not place.exists()]:
        raise InputError(f"{home} lacks {few(missing)}: expected there {source}; put it there")
    ids = _tiny_ids(home)
    if (found := hashlib.sha256("\n".join(ids).encode()).hexdigest()) != TINY_IDS:
        raise InputError(
            f"{home / 'wnids.txt'} lists {len(ids)} ids of sha256 {found}, expected {TINY} of "
            f"{TINY_IDS}: take it from {source}"
        )
    test: dict[str, list[Path]] = {wnid: [] for wnid in ids}
    for i, line in enumerate(notes.read_text("utf-8").splitlines(), 1):
        file, wnid = line.split("\t")[:2] if line.count("\t") == 5 else ("", "")
        if wnid not in test or not (images / file).is_file():
            raise InputError(
                f"line {i} of {notes} is {line!r}: expected an image of {images}, "
                f"one of the {len(ids)} ids and four numbers, set apart by tabs"
            )
        test[wnid].append(images / file)
    files = {
        "train": by_class(home / "train", ids, source, "images"),
        "test": [sorted(set(some)) for some in test.values()],
    }
    return counted(files, ids, TINY_COUNTS, home, f"put there {source}")


def _tiny_ids(home: Path) -> list[str]:
    return sorted((home / "wnids.txt").read_text("utf-8").split())


def tiny_words(folder: Path) -> tuple[str, ...]:
    """The first word that the archive gives for each class."""
    home = folder / "data" / "tiny-imagenet-200"
    lines = (home / "words.txt").read_text("utf-8").splitlines()
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(words.get(wnid, wnid).split(",")[0] for wnid in _tiny_ids(home))
