"""Images in folders: what must lie where, found and counted before any is read; then each decoded once, into a file of pixels.

n images, 3 x side x side pixels, K classes. That file stays on disk and is mapped into memory, so a set may be larger than memory.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from ddlib.runs.engine import Progress
from ddlib.runs.store import write_parts
from ddlib.settings import DECODING, PARTS, PICTURES, InputError, parts_in, pictures

SECONDS = 0.005  # to decode an image, about
BATCH = 100  # images decoded between two looks at the progress
TINY_IDS = """
n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393 n01774384 n01774750 n01784675 n01855672 n01882714 n01910747 n01917289 n01944390
n01945685 n01950731 n01983481 n01984695 n02002724 n02056570 n02058221 n02074367 n02085620 n02094433 n02099601 n02099712 n02106662 n02113799 n02123045 n02123394
n02124075 n02125311 n02129165 n02132136 n02165456 n02190166 n02206856 n02226429 n02231487 n02233338 n02236044 n02268443 n02279972 n02281406 n02321529 n02364673
n02395406 n02403003 n02410509 n02415577 n02423022 n02437312 n02480495 n02481823 n02486410 n02504458 n02509815 n02666196 n02669723 n02699494 n02730930 n02769748
n02788148 n02791270 n02793495 n02795169 n02802426 n02808440 n02814533 n02814860 n02815834 n02823428 n02837789 n02841315 n02843684 n02883205 n02892201 n02906734
n02909870 n02917067 n02927161 n02948072 n02950826 n02963159 n02977058 n02988304 n02999410 n03014705 n03026506 n03042490 n03085013 n03089624 n03100240 n03126707
n03160309 n03179701 n03201208 n03250847 n03255030 n03355925 n03388043 n03393912 n03400231 n03404251 n03424325 n03444034 n03447447 n03544143 n03584254 n03599486
n03617480 n03637318 n03649909 n03662601 n03670208 n03706229 n03733131 n03763968 n03770439 n03796401 n03804744 n03814639 n03837869 n03838899 n03854065 n03891332
n03902125 n03930313 n03937543 n03970156 n03976657 n03977966 n03980874 n03983396 n03992509 n04008634 n04023962 n04067472 n04070727 n04074963 n04099969 n04118538
n04133789 n04146614 n04149813 n04179913 n04251144 n04254777 n04259630 n04265275 n04275548 n04285008 n04311004 n04328186 n04356056 n04366367 n04371430 n04376876
n04398044 n04399382 n04417672 n04456115 n04465501 n04486054 n04487081 n04501370 n04507155 n04532106 n04532670 n04540053 n04560804 n04562935 n04596742 n04597913
n06596364 n07579787 n07583066 n07614500 n07615774 n07695742 n07711569 n07715103 n07720875 n07734744 n07747607 n07749582 n07753592 n07768694 n07871810 n07873807
n07875152 n07920052 n09193705 n09246464 n09256479 n09332890 n09428293 n12267677
"""
TINY = TINY_IDS.split()
TINY_COUNTS = {"train": (500, 500), "test": (50, 50)}  # fewest and most images a class
# Ten classes each, numbered as the published trajectory-matching runs number them
TENS = {
    "imagenette": """n01440764 tench, n02102040 English springer, n02979186 cassette player, n03000684 chain saw, n03028079 church, n03394916 French horn,
        n03417042 garbage truck, n03425413 gas pump, n03445777 golf ball, n03888257 parachute""",
    "imagewoof": """n02096294 Australian terrier, n02093754 Border terrier, n02111889 Samoyed, n02088364 beagle, n02086240 Shih-Tzu, n02089973 English foxhound,
        n02087394 Rhodesian ridgeback, n02115641 dingo, n02099601 golden retriever, n02105641 Old English sheepdog""",
    "imagefruit": """n07753275 pineapple, n07753592 banana, n07745940 strawberry, n07747607 orange, n07749582 lemon, n07768694 pomegranate, n07753113 fig,
        n07720875 bell pepper, n07718472 cucumber, n07742313 Granny Smith""",
    "imageyellow": """n02206856 bee, n12057211 yellow lady's slipper, n07753592 banana, n07749582 lemon, n12144580 corn, n04146614 school bus, n03530642 honeycomb,
        n02129165 lion, n01773157 black and gold garden spider, n01531178 goldfinch""",
    "imagemeow": """n02123045 tabby, n02123159 tiger cat, n02123394 Persian cat, n02123597 Siamese cat, n02124075 Egyptian cat, n02129165 lion, n02129604 tiger,
        n02128925 jaguar, n02128757 snow leopard, n02127052 lynx""",
    "imagesquawk": """n01806143 peacock, n02007558 flamingo, n01818515 macaw, n02051845 pelican, n02056570 king penguin, n01614925 bald eagle, n01843383 toucan,
        n01518878 ostrich, n01860187 black swan, n01819313 sulphur-crested cockatoo""",
}
SUBSETS = {
    name: dict(item.split(maxsplit=1) for item in text.split(",")) for name, text in TENS.items()
}  # WordNet id -> name
IMAGENET_COUNTS = {"train": (732, 1300), "test": (50, 50)}

Found = dict[str, list[list[Path]]]  # part -> for each class, in order, its images by name


def imagenet(subset: str, folder: Path) -> Found:
    """Ten classes of ILSVRC2012; its validation images are the test set, for its test images have no labels."""
    home = folder / "data" / "imagenet"
    source = (
        "ImageNet's ILSVRC2012 (image-net.org), train and val as one folder of images a WordNet id"
    )
    found = {
        part: _by_class(home / where, SUBSETS[subset], source)
        for part, where in (("train", "train"), ("test", "val"))
    }
    return _counted(found, SUBSETS[subset], IMAGENET_COUNTS, home, f"put there {source}")


def tiny_imagenet(folder: Path) -> Found:
    """200 classes, numbered in the order of their sorted WordNet ids; the validation images are the test set, for its test images have no labels."""
    home = folder / "data" / "tiny-imagenet-200"
    source = "the archive http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked"
    listed, notes, images = (
        home / "wnids.txt",
        home / "val" / "val_annotations.txt",
        home / "val" / "images",
    )
    missing = [
        str(place.relative_to(home))
        for place in (listed, home / "words.txt", home / "train", notes, images)
        if not place.exists()
    ]
    if missing:
        raise InputError(f"{home} lacks {_few(missing)}: expected there {source}; put it there")
    if (ids := sorted(listed.read_text().split())) != TINY:
        odd = sorted(set(ids) ^ set(TINY)) or ["an id that stands twice"]
        raise InputError(
            f"{listed} lists {len(ids)} ids, of which {_few(odd)} do not match the {len(TINY)} expected: take it from {source}"
        )
    test: dict[str, list[Path]] = {name: [] for name in TINY}
    for i, line in enumerate(notes.read_text().splitlines(), 1):
        file, wnid, *box = line.split("\t") if line.count("\t") == 5 else ("", "")
        if wnid not in test or len(box) != 4 or not (images / file).is_file():
            raise InputError(
                f"line {i} of {notes} is {line!r}: expected an image of {images}, one of the {len(TINY)} ids and four numbers, set apart by tabs"
            )
        test[wnid].append(images / file)
    found = {
        "train": _by_class(home / "train", TINY, source, "images"),
        "test": [sorted(set(files)) for files in test.values()],
    }
    return _counted(found, TINY, TINY_COUNTS, home, f"put there {source}")


def tiny_words(folder: Path) -> tuple[str, ...]:
    """The first word that the archive gives for each class."""
    lines = (folder / "data" / "tiny-imagenet-200" / "words.txt").read_text().splitlines()
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(words.get(wnid, wnid).split(",")[0] for wnid in TINY)


def own_classes(folder: Path) -> tuple[str, ...]:
    """The classes of a folder of one's own, by name."""
    if not folder.is_dir():
        raise InputError(
            f"no folder {folder.absolute()}: expected there the images, a folder a class; put them back, or correct `data.path`"
        )
    if (train := parts_in(folder).get("train")) is None:
        raise InputError(
            f"no folder train in {folder.absolute()}: expected train/<class>/*, and perhaps val/<class>/*, test/<class>/*; correct `data.path`"
        )
    names = _inside(train)
    if len(names) < 2:
        raise InputError(
            f"{train} holds {len(names)} classes ({_few(names)}): expected a folder of images for each of at least two"
        )
    return names


def own(folder: Path) -> Found:
    """What lies in a folder of one's own, <class>/*, or train/<class>/*, and val/<class>/* and test/<class>/* where they are there."""
    names, same = own_classes(folder), "the same classes in every part"
    found = {}
    for part, home in parts_in(folder).items():
        if more := set(_inside(home)) - set(names):
            raise InputError(
                f"{home} holds {_few(sorted(more))}, which train does not: expected {same}"
            )
        found[part] = _by_class(home, names, same)
    least = 1 + len(PARTS) - len(found)  # one image for each part to be made
    counts = {part: (least if part == "train" else 1, None) for part in found}
    return _counted(
        found,
        names,
        counts,
        folder,
        f"add some, with names that end in {', '.join(PICTURES)}, or take the class away",
    )


def left_out(folder: Path) -> str:
    """The files beside the images of a folder of one's own that are none by their names, counted by ending; nothing where there are none."""
    homes = [home / name for home in parts_in(folder).values() for name in _inside(home)]
    odd = Counter(
        file.suffix.lower() or "no ending"
        for home in homes
        for file in home.iterdir()
        if file.is_file() and not file.name.startswith(".")
    )
    return ", ".join(f"{n} {ending}" for ending, n in sorted(odd.items()) if ending not in PICTURES)


def _inside(folder: Path) -> tuple[str, ...]:
    return tuple(
        sorted(
            home.name
            for home in folder.iterdir()
            if home.is_dir() and not home.name.startswith(".")
        )
    )


def _by_class(
    home: Path, names: Collection[str], source: str, inside: str = ""
) -> list[list[Path]]:
    missing = [name for name in names if not (home / name / inside).is_dir()]
    if missing:
        raise InputError(
            f"{home} lacks {_few([str(Path(name, inside)) for name in missing])} of {len(names)} classes: expected {source}; put them there"
        )
    return [pictures(home / name / inside) for name in names]


def _counted(
    found: Found,
    names: Collection[str],
    counts: Mapping[str, tuple[int, int | None]],
    home: Path,
    advice: str,
) -> Found:
    for part, (least, most) in counts.items():
        wrong = [
            f"{name}: {len(files)}"
            for name, files in zip(names, found[part], strict=True)
            if len(files) < least or (most and len(files) > most)
        ]
        if wrong:
            span = (
                f"{least}"
                if least == most
                else f"{least} to {most}"
                if most
                else f"at least {least}"
            )
            raise InputError(
                f"{part} images in {home}: {_few(wrong)}, but {span} of each class are expected; {advice}"
            )
    return found


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def decode(file: Path, side: int, upright: bool = False) -> Tensor:
    """An image as (3, side, side) levels: its shorter side is brought to `side` and the middle cut out (MTT stretches both sides instead).

    `upright`: as a viewer shows it, turned as its EXIF note says and on white where it is transparent; else as its pixels are stored, as others read archives.

    Raises:
        InputError: it cannot be read.
    """
    from torchvision.transforms import functional as F

    try:
        with Image.open(file) as opened:
            image: Image.Image = turned(opened) if upright else opened
            if image.mode.startswith("I;16"):  # Pillow would cut its 65 536 levels off at 255
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            if upright and image.has_transparency_data:
                image = Image.alpha_composite(
                    Image.new("RGBA", image.size, "white"), image.convert("RGBA")
                )
            image = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(
            f"{file} cannot be read as an image ({error}): replace it, or remove it where any number of images will do"
        ) from error
    image = F.center_crop(F.resize(image, side), [side, side])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def turned(image: Image.Image) -> Image.Image:
    """The image as the camera was held, if its EXIF note says that; a note that cannot be read says nothing."""
    image.load()  # what is wrong with the image itself shows here
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # anything can stand in a note
        return image


Parts = dict[str, tuple[list[Path], Tensor]]  # part -> n files and their labels (n,), int64


def name(parts: Parts, side: int, upright: bool = False) -> str:
    """16 hexadecimal digits that name what `pack` makes of these files, as they are now, known by name and size in bytes."""
    files = {
        part: [
            (*file.parts[-4:], file.stat().st_size, k)
            for file, k in zip(files, y.tolist(), strict=True)
        ]
        for part, (files, y) in parts.items()
    }
    return hashlib.sha256(json.dumps([side, files, *[DECODING] * upright]).encode()).hexdigest()[
        :16
    ]


def pack(file: Path, parts: Parts, side: int, title: str, upright: bool = False) -> None:
    """Decode all images, a few at a time, into `file`: x_<part> (n, 3, side, side) uint8 and y_<part> (n,) int64."""
    progress = Progress(title, SECONDS * sum(len(files) for files, _ in parts.values()))

    def pixels(part: str, files: list[Path]) -> Iterator[Tensor]:
        for i in range(0, len(files), BATCH):
            some = torch.stack([decode(file, side, upright) for file in files[i : i + BATCH]])
            yield some
            progress.advance(SECONDS * len(some), part)

    labels = {f"y_{part}": (torch.int64, tuple(y.shape), [y]) for part, (_, y) in parts.items()}
    try:
        write_parts(
            file,
            labels
            | {
                f"x_{part}": (torch.uint8, (len(files), 3, side, side), pixels(part, files))
                for part, (files, _) in parts.items()
            },
        )
    finally:
        progress.close()
