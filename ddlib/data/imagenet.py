"""Tiny ImageNet and six subsets of ImageNet: which classes, and where their images lie."""

from __future__ import annotations

import hashlib
from pathlib import Path

from ddlib.data.image_folder import Found, by_class, counted, few
from ddlib.settings import InputError

TINY = 200  # classes; the sha256 of their WordNet ids, sorted, one a line
TINY_IDS = "add4bf0c8712ef7fb4bca98e3bbaf07101636c5db62cce486fd2af71cc11caf8"
TINY_COUNTS = {"train": (500, 500), "test": (50, 50)}  # fewest and most images per class
# Ten classes each, numbered as the published trajectory-matching runs number them
TENS = {
    "imagenette": """
        n01440764 tench, n02102040 English springer, n02979186 cassette player, n03000684 chain
        saw, n03028079 church, n03394916 French horn, n03417042 garbage truck, n03425413 gas pump,
        n03445777 golf ball, n03888257 parachute""",
    "imagewoof": """
        n02096294 Australian terrier, n02093754 Border terrier, n02111889 Samoyed, n02088364
        beagle, n02086240 Shih-Tzu, n02089973 English foxhound, n02087394 Rhodesian ridgeback,
        n02115641 dingo, n02099601 golden retriever, n02105641 Old English sheepdog""",
    "imagefruit": """
        n07753275 pineapple, n07753592 banana, n07745940 strawberry, n07747607 orange, n07749582
        lemon, n07768694 pomegranate, n07753113 fig, n07720875 bell pepper, n07718472 cucumber,
        n07742313 Granny Smith""",
    "imageyellow": """
        n02206856 bee, n12057211 yellow lady's slipper, n07753592 banana, n07749582 lemon,
        n12144580 corn, n04146614 school bus, n03530642 honeycomb, n02129165 lion, n01773157 black
        and gold garden spider, n01531178 goldfinch""",
    "imagemeow": """
        n02123045 tabby, n02123159 tiger cat, n02123394 Persian cat, n02123597 Siamese cat,
        n02124075 Egyptian cat, n02129165 lion, n02129604 tiger, n02128925 jaguar, n02128757 snow
        leopard, n02127052 lynx""",
    "imagesquawk": """
        n01806143 peacock, n02007558 flamingo, n01818515 macaw, n02051845 pelican, n02056570 king
        penguin, n01614925 bald eagle, n01843383 toucan, n01518878 ostrich, n01860187 black swan,
        n01819313 sulphur-crested cockatoo""",
}
SUBSETS = {  # WordNet id -> class name
    name: dict(item.split(maxsplit=1) for item in " ".join(text.split()).split(", "))
    for name, text in TENS.items()
}
IMAGENET_COUNTS = {"train": (732, 1300), "test": (50, 50)}


def imagenet(subset: str, folder: Path) -> Found:
    """Ten classes of ILSVRC2012; its validation images test, for its test set has no labels."""
    home, ids = folder / "data" / "imagenet", SUBSETS[subset]
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
