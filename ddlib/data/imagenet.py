"""Tiny ImageNet and six subsets of ImageNet: which classes, and where their images lie."""

from __future__ import annotations

from pathlib import Path

from ddlib.data.image_folder import Found, by_class, counted, few
from ddlib.settings import InputError

TINY_IDS = """
n01443537 n01629819 n01641577 n01644900 n01698640 n01742172 n01768244 n01770393 n01774384
n01774750 n01784675 n01855672 n01882714 n01910747 n01917289 n01944390 n01945685 n01950731
n01983481 n01984695 n02002724 n02056570 n02058221 n02074367 n02085620 n02094433 n02099601
n02099712 n02106662 n02113799 n02123045 n02123394 n02124075 n02125311 n02129165 n02132136
n02165456 n02190166 n02206856 n02226429 n02231487 n02233338 n02236044 n02268443 n02279972
n02281406 n02321529 n02364673 n02395406 n02403003 n02410509 n02415577 n02423022 n02437312
n02480495 n02481823 n02486410 n02504458 n02509815 n02666196 n02669723 n02699494 n02730930
n02769748 n02788148 n02791270 n02793495 n02795169 n02802426 n02808440 n02814533 n02814860
n02815834 n02823428 n02837789 n02841315 n02843684 n02883205 n02892201 n02906734 n02909870
n02917067 n02927161 n02948072 n02950826 n02963159 n02977058 n02988304 n02999410 n03014705
n03026506 n03042490 n03085013 n03089624 n03100240 n03126707 n03160309 n03179701 n03201208
n03250847 n03255030 n03355925 n03388043 n03393912 n03400231 n03404251 n03424325 n03444034
n03447447 n03544143 n03584254 n03599486 n03617480 n03637318 n03649909 n03662601 n03670208
n03706229 n03733131 n03763968 n03770439 n03796401 n03804744 n03814639 n03837869 n03838899
n03854065 n03891332 n03902125 n03930313 n03937543 n03970156 n03976657 n03977966 n03980874
n03983396 n03992509 n04008634 n04023962 n04067472 n04070727 n04074963 n04099969 n04118538
n04133789 n04146614 n04149813 n04179913 n04251144 n04254777 n04259630 n04265275 n04275548
n04285008 n04311004 n04328186 n04356056 n04366367 n04371430 n04376876 n04398044 n04399382
n04417672 n04456115 n04465501 n04486054 n04487081 n04501370 n04507155 n04532106 n04532670
n04540053 n04560804 n04562935 n04596742 n04597913 n06596364 n07579787 n07583066 n07614500
n07615774 n07695742 n07711569 n07715103 n07720875 n07734744 n07747607 n07749582 n07753592
n07768694 n07871810 n07873807 n07875152 n07920052 n09193705 n09246464 n09256479 n09332890
n09428293 n12267677
"""  # 200 WordNet ids
TINY = TINY_IDS.split()
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
    source = (
        "ImageNet's ILSVRC2012 (image-net.org), "
        "train and val as one folder of images per WordNet id"
    )
    files = {
        "train": by_class(home / "train", ids, source),
        "test": by_class(home / "val", ids, source),
    }
    return counted(files, ids, IMAGENET_COUNTS, home, f"put there {source}")


def tiny_imagenet(folder: Path) -> Found:
    """200 classes in the order of their WordNet ids; the validation images are the test set."""
    home = folder / "data" / "tiny-imagenet-200"
    source = "the archive http://cs231n.stanford.edu/tiny-imagenet-200.zip, unpacked"
    listed, notes = home / "wnids.txt", home / "val" / "val_annotations.txt"
    images = home / "val" / "images"
    needed = (listed, home / "words.txt", home / "train", notes, images)
    if missing := [str(place.relative_to(home)) for place in needed if not place.exists()]:
        raise InputError(f"{home} lacks {few(missing)}: expected there {source}; put it there")
    if (ids := sorted(listed.read_text("utf-8").split())) != TINY:
        odd = sorted(set(ids) ^ set(TINY)) or ["an id that stands twice"]
        raise InputError(
            f"{listed} lists {len(ids)} ids, of which {few(odd)} do not match the {len(TINY)} "
            f"expected: take it from {source}"
        )
    test: dict[str, list[Path]] = {wnid: [] for wnid in TINY}
    for i, line in enumerate(notes.read_text("utf-8").splitlines(), 1):
        file, wnid, *box = line.split("\t") if line.count("\t") == 5 else ("", "")
        if wnid not in test or len(box) != 4 or not (images / file).is_file():
            raise InputError(
                f"line {i} of {notes} is {line!r}: expected an image of {images}, "
                f"one of the {len(TINY)} ids and four numbers, set apart by tabs"
            )
        test[wnid].append(images / file)
    files = {
        "train": by_class(home / "train", TINY, source, "images"),
        "test": [sorted(set(some)) for some in test.values()],
    }
    return counted(files, TINY, TINY_COUNTS, home, f"put there {source}")


def tiny_words(folder: Path) -> tuple[str, ...]:
    """The first word that the archive gives for each class."""
    lines = (folder / "data" / "tiny-imagenet-200" / "words.txt").read_text("utf-8").splitlines()
    words = dict(line.split("\t", 1) for line in lines if "\t" in line)
    return tuple(words.get(wnid, wnid).split(",")[0] for wnid in TINY)
