"""Sets of image files: archives in their official form, made here at a small scale, and folders of
one's own; each fault is named."""

import hashlib
import logging
import os
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models._meta import _IMAGENET_CATEGORIES

from ddlib import settings as config
from ddlib.data import catalogue, imagenet
from ddlib.data import datasets as data
from ddlib.data import image_folder as folders
from ddlib.runs import cost, run
from ddlib.runs.store import Store
from ddlib.settings import Data, InputError, Selection, key

COLOURS = [
    (200, 30, 30),
    (30, 200, 30),
    (30, 30, 200),
    (200, 200, 30),
]  # of the images of each class
PUBLISHED = {  # the classes' numbers among ImageNet's thousand, in the order of the published runs
    "imagenette": [0, 217, 482, 491, 497, 566, 569, 571, 574, 701],
    "imagewoof": [193, 182, 258, 162, 155, 167, 159, 273, 207, 229],
    "imagefruit": [953, 954, 949, 950, 951, 957, 952, 945, 943, 948],
    "imageyellow": [309, 986, 954, 951, 987, 779, 599, 291, 72, 11],
    "imagemeow": [281, 282, 283, 284, 285, 291, 292, 290, 289, 287],
    "imagesquawk": [84, 130, 88, 144, 145, 22, 96, 9, 100, 89],
}


@pytest.fixture(autouse=True)
def forget():
    """Every test reads anew."""
    data._load.cache_clear()
    yield
    data._load.cache_clear()


def draw(file, colour, size=(64, 64), mode="RGB", seed=0):
    """An image of one colour, a little noisy so that no two are the same."""
    noise = np.random.default_rng(seed).integers(-5, 6, (size[1], size[0], 3))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).convert(mode).save(file)


def colours_of(images, x):
    """The class that each image's colour stands for."""
    means = images.space.leave(x).mean(dim=(2, 3)) * 255  # (n, 3)
    return torch.cdist(means, torch.tensor(COLOURS, dtype=torch.float32)).argmin(1)


def refused(settings, store):
    with pytest.raises(InputError) as caught:
        data.load(settings, store)
    return str(caught.value)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Three classes of ten training and two validation images, as the archive lays them out."""
    ids = ["n01443537", "n01629819", "n01641577"]
    sha256 = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    monkeypatch.setattr(imagenet, "TINY_IDS", sha256)
    monkeypatch.setattr(imagenet, "TINY_COUNTS", {"train": (10, 10), "test": (2, 2)})
    monkeypatch.setitem(
        data.SETS,
        "tiny_imagenet",
        replace(data.SETS["tiny_imagenet"], class_names=tuple(ids), per_class=9),
    )
    home = tmp_path / "data" / "tiny-imagenet-200"
    notes = []
    for k, wnid in enumerate(ids):
        for i in range(10):
            draw(
                home / "train" / wnid / "images" / f"{wnid}_{i}.JPEG",
                COLOURS[k],
                seed=10 * k + i,
                mode="L" if (k, i) == (2, 9) else "RGB",
            )
        (home / "train" / wnid / f"{wnid}_boxes.txt").write_text("")
    for i in range(6):
        draw(home / "val" / "images" / f"val_{i}.JPEG", COLOURS[(2 * i) % 3], seed=100 + i)
        notes.append(f"val_{i}.JPEG\t{ids[(2 * i) % 3]}\t0\t32\t44\t62")
    (home / "val" / "val_annotations.txt").write_text("\n".join(notes) + "\n")
    (home / "wnids.txt").write_text("\n".join(reversed(ids)) + "\n")
    (home / "words.txt").write_text(
        f"n00001740\tentity\n{ids[0]}\tgoldfish, Carassius auratus\n{ids[1]}\tfire salamander\n{ids[2]}\tbullfrog, Rana\n"  # noqa: E501
    )
    return home


def test_tiny_imagenet_is_read(tiny, tmp_path):
    images = data.load(Data(name="tiny_imagenet"), tmp_path)
    assert images.shape == (3, 64, 64) and images.class_names == (
        "goldfish",
        "fire salamander",
        "bullfrog",
    )
    assert images.x_train.dtype == torch.float32 and images.y_train.dtype == torch.int64
    assert [
        images.y_train.bincount().tolist(),
        images.y_val.bincount().tolist(),
        images.y_test.bincount().tolist(),
    ] == [[9] * 3, [1] * 3, [2] * 3]
    assert torch.equal(colours_of(images, images.x_test), images.y_test)
    flat = images.space.leave(torch.cat([images.x_train, images.x_val]))
    grey = (flat - flat.mean(1, keepdim=True)).abs().amax((1, 2, 3)) < 1e-5
    assert grey.sum() == 1
    coloured = torch.cat([images.x_train, images.x_val])[~grey]
    assert torch.equal(
        colours_of(images, coloured), torch.cat([images.y_train, images.y_val])[~grey]
    )
    assert len({x.numpy().tobytes() for x in flat}) == 30  # no image twice
    assert (
        images.x_train.mean(dim=(0, 2, 3)).abs().max() < 1e-4
        and (images.x_train.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3
    )


def edit(file, old, new):
    file.write_text(file.read_text().replace(old, new))


TINY_FAULTS = [
    (lambda home: (home / "wnids.txt").unlink(), ["lacks wnids.txt", "tiny-imagenet-200.zip"]),
    (
        lambda home: (home / "val" / "val_annotations.txt").unlink(),
        ["lacks val/val_annotations.txt"],
    ),
    (
        lambda home: edit(home / "wnids.txt", "n01443537", "n99999999"),
        ["lists 3 ids of sha256", "expected 200 of", "take it from the archive"],
    ),
    (
        lambda home: (home / "train" / "n01629819").rename(home / "gone"),
        ["lacks n01629819/images of 3 classes"],
    ),
    (
        lambda home: (home / "train" / "n01629819" / "images" / "n01629819_3.JPEG").unlink(),
        ["n01629819: 9", "10 of each class are expected"],
    ),
    (
        lambda home: edit(
            home / "val" / "val_annotations.txt", "val_3.JPEG\tn01443537", "val_3.JPEG\tn00000001"
        ),
        ["line 4 of", "n00000001", "expected"],
    ),
    (
        lambda home: edit(home / "val" / "val_annotations.txt", "val_2.JPEG\t", "val_2.JPEG "),
        ["line 3 of", "set apart by tabs"],
    ),
    (lambda home: (home / "val" / "images" / "val_5.JPEG").unlink(), ["line 6 of", "val_5.JPEG"]),
    (
        lambda home: edit(home / "val" / "val_annotations.txt", "val_3.JPEG", "val_0.JPEG"),
        ["n01443537: 1", "2 of each class"],
    ),
    (
        lambda home: (home / "train" / "n01443537" / "images" / "n01443537_7.JPEG").write_bytes(
            b"no image"
        ),
        ["n01443537_7.JPEG cannot be read as an image"],
    ),
]


@pytest.mark.parametrize("harm, parts", TINY_FAULTS, ids=[parts[0] for _, parts in TINY_FAULTS])
def test_a_faulty_tiny_imagenet_is_refused(harm, parts, tiny, tmp_path):
    harm(tiny)
    text = refused(Data(name="tiny_imagenet"), tmp_path)
    assert all(part in text for part in parts), text
    assert not list((tmp_path / "data").glob("*.safetensors")) and not list(
        (tmp_path / "data").glob(".half*")
    )


def subset(name):
    """WordNet id -> class name, of a subset of ImageNet."""
    return dict(item.split(maxsplit=1) for item in catalogue.KNOWN[name]["classes"].split(", "))


def test_a_linked_folder_inside_a_class_is_refused(tmp_path):
    """It may lead to another class's images, or round in a circle."""
    for name in ("a", "b"):
        for i in range(5):
            draw(tmp_path / "mine" / name / f"{i}.png", COLOURS[0], (8, 8))
    (tmp_path / "mine/a/loop").symlink_to("..")
    text = refused(Data(name="folder", path=str(tmp_path / "mine"), size=8), tmp_path)
    assert "loop is a link to a folder" in text


def test_class_lists():
    for name, numbers in PUBLISHED.items():
        ids = subset(name)
        categories = [_IMAGENET_CATEGORIES[i] for i in numbers]
        assert list(ids.values()) == categories == list(data.about(Data(name=name)).class_names)
        by_number = [wnid for _, wnid in sorted(zip(numbers, ids, strict=True))]
        assert by_number == sorted(ids)  # ImageNet numbers its classes in the order of their ids
    shared = {}
    for ids in map(subset, PUBLISHED):
        for wnid, word in ids.items():
            assert shared.setdefault(wnid, word) == word


@pytest.fixture
def meow(tmp_path, monkeypatch):
    """Four cats, three to five training and two validation images each, at the sizes and in the
    modes that ImageNet has."""
    ids = dict(list(subset("imagemeow").items())[-4:])
    cats, find = tuple(ids.values()), partial(imagenet.imagenet, ids)
    monkeypatch.setattr(imagenet, "IMAGENET_COUNTS", {"train": (3, 5), "test": (2, 2)})
    few = replace(data.SETS["imagemeow"], class_names=cats, find=find)
    monkeypatch.setitem(data.SETS, "imagemeow", few)
    home = tmp_path / "data" / "imagenet"
    sizes = [(500, 375), (333, 500), (128, 128), (96, 140)]
    for k, wnid in enumerate(ids):
        for i in range(3 + k % 2):
            draw(
                home / "train" / wnid / f"{wnid}_{i}.JPEG",
                COLOURS[k],
                sizes[(i + k) % 4],
                "CMYK" if i == 0 else "RGB",
                seed=10 * k + i,
            )
        for i in range(2):
            draw(
                home / "val" / wnid / f"ILSVRC2012_val_{i}.JPEG",
                COLOURS[k],
                sizes[i],
                seed=50 + 10 * k + i,
            )
    return home


def test_an_imagenet_subset_is_read(meow, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ddlib"):
        images = data.load(Data(name="imagemeow"), tmp_path)
    assert images.shape == (3, 128, 128) and images.class_names == (
        "tiger",
        "jaguar",
        "snow leopard",
        "lynx",
    )
    for part, each in (("train", 2), ("val", 1), ("test", 2)):
        x, y = getattr(images, f"x_{part}"), getattr(images, f"y_{part}")
        assert y.bincount().tolist() == [each] * 4 and torch.equal(colours_of(images, x), y)
    assert caplog.messages == [
        "imagemeow has classes of unequal size (tiger: 3, jaguar: 4, snow leopard: 3, lynx: 4): 3 images of each are used"  # noqa: E501
    ]


def test_a_faulty_imagenet_is_refused(meow, tmp_path):
    settings = Data(name="imagemeow")
    (meow / "val" / "n02127052" / "ILSVRC2012_val_1.JPEG").unlink()
    assert (
        "test images in" in (text := refused(settings, tmp_path))
        and "lynx" not in text
        and "n02127052: 1, but 2 of each class" in text
    )
    (meow / "val").rename(meow / "validation")
    assert (
        "lacks n02129604, n02128925, n02128757, n02127052 of 4 classes"
        in (text := refused(settings, tmp_path))
        and "ILSVRC2012" in text
    )
    assert str(tmp_path / "elsewhere" / "data" / "imagenet") in refused(
        settings, tmp_path / "elsewhere"
    )


@pytest.mark.parametrize("turned", [False, True])
def test_the_middle_is_cut_out(turned, tmp_path):
    bands = np.repeat(np.array(COLOURS[:3], dtype=np.uint8), 100, axis=0)[None].repeat(
        100, axis=0
    )  # (100, 300, 3)
    Image.fromarray(bands.transpose(1, 0, 2) if turned else bands).save(tmp_path / "bands.png")
    x = folders.decode(tmp_path / "bands.png", 50)
    assert x.shape == (3, 50, 50) and x.dtype == torch.uint8
    assert (x[:, 2:-2, 2:-2] == torch.tensor(COLOURS[1]).view(3, 1, 1)).all()
    same = folders.decode(tmp_path / "bands.png", 100)
    assert (
        same == torch.tensor(COLOURS[1]).view(3, 1, 1)
    ).all()  # no resampling where the size is right


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    grey = np.linspace(0, 255, 64).reshape(8, 8).round().astype(np.uint8)
    image = (
        Image.fromarray(grey.astype(np.uint16) * 256)
        if mode == "I;16"
        else Image.fromarray(grey).convert(mode)
    )
    assert image.mode == mode
    image.save(tmp_path / "some.png")
    x = folders.decode(tmp_path / "some.png", 8)
    expected = torch.from_numpy(np.where(grey > 127, 255, 0) if mode == "1" else grey).expand(
        3, 8, 8
    )
    assert x.shape == (3, 8, 8) and (mode == "1" or torch.equal(x, expected.to(torch.uint8)))


Way = Image.Transpose
LAID = {  # the EXIF note, and how pixels lie that it says are to be turned
    1: None,
    2: Way.FLIP_LEFT_RIGHT,
    3: Way.ROTATE_180,
    4: Way.FLIP_TOP_BOTTOM,
    5: Way.TRANSPOSE,
    6: Way.ROTATE_90,
    7: Way.TRANSVERSE,
    8: Way.ROTATE_270,
}


def photograph(seed=0, mode="RGB"):
    """Of which no two turns or mirrorings are alike."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    return Image.fromarray(
        np.random.default_rng(seed).integers(0, 256, (24, 40, channels), dtype=np.uint8).squeeze(),
        mode,
    )


def laid(image, note, file):
    """A file of it as a camera leaves it that was held otherwise; nothing is lost."""
    exif = Image.Exif()
    exif[0x0112] = note
    file.parent.mkdir(parents=True, exist_ok=True)
    (image.transpose(LAID[note]) if LAID[note] is not None else image).save(
        file, exif=exif, lossless=True
    )


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("note", LAID)
def test_an_image_is_turned_as_its_note_says_in_a_folder_of_ones_own(note, suffix, tmp_path):
    laid(photograph(), note, file := tmp_path / f"laid.{suffix}")
    laid(photograph(), 1, straight := tmp_path / "straight.png")
    assert torch.equal(
        folders.decode(file, 16, upright=True), folders.decode(straight, 16, upright=True)
    )
    assert torch.equal(folders.decode(file, 16), folders.decode(straight, 16)) == (
        note == 1
    )  # an archive's: as it is stored


def test_a_note_that_cannot_be_read_says_nothing(tmp_path):
    photograph().save(tmp_path / "a.jpg", exif=b"Exif\x00\x00no note at all")
    photograph().save(tmp_path / "b.jpg")
    assert torch.equal(
        *(folders.decode(tmp_path / f"{name}.jpg", 16, upright=True) for name in "ab")
    )


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_lies_on_white(mode, tmp_path):
    levels, alpha = (
        np.full((8, 8), 60, np.uint8),
        np.repeat(np.array([0, 128, 255, 255], np.uint8), 2)[:, None].repeat(8, axis=1),
    )
    if mode == "P":
        image, alpha = (
            Image.fromarray((alpha > 128).astype(np.uint8), "P"),
            np.where(alpha > 128, 255, 0),
        )
        image.putpalette([10, 20, 30, 60, 60, 60])
        image.save(tmp_path / "some.png", transparency=0)
    else:
        Image.fromarray(
            np.stack([levels] * (3 if mode == "RGBA" else 1) + [alpha], axis=2), mode
        ).save(tmp_path / "some.png")
    x = folders.decode(tmp_path / "some.png", 8, upright=True)
    expected = torch.from_numpy(255 + (60 - 255) * (alpha / 255)).expand(3, 8, 8)
    torch.testing.assert_close(x.double(), expected, rtol=0, atol=1)
    assert folders.decode(tmp_path / "some.png", 8)[0, 0, 0] == (
        10 if mode == "P" else 60
    )  # an archive's: its levels as they are


def test_a_folder_of_turned_images_is_the_folder_of_upright_ones(tmp_path):
    for k in range(2):
        for i in range(8):
            image = photograph(10 * k + i)
            laid(image, 1, tmp_path / "straight" / "train" / f"class {k}" / f"{i}.png")
            laid(image, i + 1, tmp_path / "laid" / "train" / f"class {k}" / f"{i}.png")
    straight, turned = (
        data.load(of(tmp_path / name, 16), tmp_path / "store") for name in ("straight", "laid")
    )
    for part in folders.PARTS:
        assert torch.equal(getattr(straight, f"x_{part}"), getattr(turned, f"x_{part}"))


@pytest.fixture
def mine(tmp_path):
    """Thirteen cats, ten birds: photographs of any form and size."""
    home = tmp_path / "mine"
    forms = [
        ("png", (40, 30)),
        ("JPG", (30, 50)),
        ("jpeg", (32, 32)),
        ("bmp", (20, 20)),
        ("webp", (64, 33)),
    ]
    for k, (name, n) in enumerate({"bird": 10, "cat": 13}.items()):
        for i in range(n):
            suffix, size = forms[i % 5]
            draw(home / "train" / name / f"{i}.{suffix}", COLOURS[k], size, seed=100 * k + i)
        (home / "train" / name / "notes.txt").write_text("not an image")
        (home / "train" / name / ".hidden.png").write_text("not an image")
    return home


def of(home, size=24, **more):
    return data.identify(Data(name="folder", path=str(home), size=size, **more))


def test_a_folder_of_ones_own_is_read(mine, tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "ddlib"):
        images = data.load(of(mine), tmp_path)
    assert caplog.messages == [
        "mine has classes of unequal size (bird: 10, cat: 13): 10 images of each are used",
        "mine: of 2 classes 14 images train, 2 validate and 4 test; one test image more or less is 25 points of accuracy",  # noqa: E501
        "mine: left out 2 .txt; read are .bmp, .jpeg, .jpg, .png, .webp of each class",
    ]
    assert images.shape == (3, 24, 24) and images.class_names == ("bird", "cat")
    known = data.about(of(mine))
    assert (known.shape, known.per_class, known.class_names) == (
        images.shape,
        7,
        images.class_names,
    ) and data.about(of(mine)).per_class == 7
    for part, each in (("train", 7), ("val", 1), ("test", 2)):
        x, y = getattr(images, f"x_{part}"), getattr(images, f"y_{part}")
        assert y.bincount().tolist() == [each] * 2 and torch.equal(colours_of(images, x), y)
    other = data.load(of(mine, seed=1), tmp_path)
    assert not torch.equal(other.x_train, images.x_train)


def test_a_folder_of_classes_is_all_to_train(mine, tmp_path):
    """As a folder that holds `train` alone; no sooner is `test` there than it is looked for
    classes, and `train` missed."""
    structured = data.load(of(mine), tmp_path)
    (mine / "train").rename(tmp_path / "bare")
    bare = data.load(of(tmp_path / "bare"), tmp_path)
    assert bare.class_names == structured.class_names and (
        data.about(bare.settings).per_class == data.about(structured.settings).per_class
    )
    for part in folders.PARTS:
        assert torch.equal(getattr(bare, f"x_{part}"), getattr(structured, f"x_{part}"))
    draw(tmp_path / "bare" / "test" / "cat" / "0.png", COLOURS[1])
    with pytest.raises(InputError, match="no folder train in"):
        of(tmp_path / "bare")


def test_parts_set_apart_are_kept_apart(mine, tmp_path):
    for k, (name, n) in enumerate({"bird": 2, "cat": 4}.items()):
        for i in range(n):
            draw(mine / "test" / name / f"{i}.png", COLOURS[k], seed=1000 + 10 * k + i)
    images = data.load(of(mine), tmp_path)
    assert (
        data.about(of(mine)).per_class == 9
        and images.y_train.bincount().tolist() == [9, 9]
        and images.y_val.bincount().tolist() == [1, 1]
    )
    assert images.y_test.bincount().tolist() == [2, 4] and torch.equal(
        colours_of(images, images.x_test), images.y_test
    )  # whole, for it only tests


def spoil(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def few(home, name, n):
    for file in sorted((home / "train" / name).glob("[0-9]*"))[n:]:
        file.unlink()


OWN_FAULTS = [
    (
        lambda home: spoil(home / "train" / "bird" / "3.bmp"),
        ["train/bird/3.bmp cannot be read as an image", "replace it, or remove it"],
    ),
    (
        lambda home: few(home, "cat", 2),
        ["cat: 2", "3+ of each class", "or take the class away"],
    ),
    (lambda home: few(home, "bird", 0), ["bird: 0", "3+ of each class"]),
    (
        lambda home: (home / "train" / "bird").rename(home / "bird"),
        ["holds 1 folders (cat)", "at least two"],
    ),
    (
        lambda home: draw(home / "val" / "cat" / "1.png", COLOURS[0]),
        ["val lacks bird of 2 classes"],
    ),
    (
        lambda home: [
            draw(home / "val" / name / "1.png", COLOURS[0]) for name in ("bird", "cat", "dog")
        ],
        ["val holds dog, which train does not"],
    ),
    (
        lambda home: [
            draw(home / "train" / "cat" / "1.png", COLOURS[0]),
            (home / "train").rename(home / "test"),
        ],
        ["no folder train in", "correct `data.path`"],
    ),
]


@pytest.mark.parametrize("harm, parts", OWN_FAULTS, ids=[parts[0] for _, parts in OWN_FAULTS])
def test_a_faulty_folder_is_refused(harm, parts, mine, tmp_path):
    harm(mine)
    with pytest.raises(InputError) as caught:
        data.load(of(mine), tmp_path)
    text = str(caught.value)
    assert all(part in text for part in parts), text


def test_settings_of_a_folder(mine, tmp_path):
    def fault(**fields):
        with pytest.raises(InputError) as caught:
            config.validated(Data, fields, "data")
        return str(caught.value)

    needs = "data 'folder' needs `path`, where the images are, and `size`"
    assert needs in fault(name="folder") and needs in fault(name="folder", path=str(mine))
    assert "path and size given with data 'digits', but only 'folder' has them" in fault(
        name="digits", path=str(mine), size=8
    )
    nowhere = Data(name="folder", path=str(tmp_path / "none"), size=8)  # no disk is read for it
    with pytest.raises(InputError, match="are not identified yet"):
        key(nowhere)
    with pytest.raises(InputError, match=str(tmp_path / "none")):
        data.identify(nowhere)
    assert "size" in fault(name="folder", path=str(mine), size=0)


def test_other_files_are_other_data(mine, tmp_path):
    first = of(mine)
    assert key(of(mine)) == key(first) == key(Data(**first.model_dump()))
    (mine / "train" / "cat" / "notes.txt").write_text("more notes")
    assert of(mine) == first  # no image has changed
    draw(mine / "train" / "cat" / "1.JPG", COLOURS[1], (31, 50), seed=7)
    second = of(mine)
    assert key(second) != key(first)
    assert f"their listing is {second.contents}, expected {first.contents}" in refused(
        first, tmp_path
    )
    data.load(second, tmp_path)
    mine.rename(tmp_path / "moved")
    again = Data(
        **first.model_dump()
    )  # what an artefact holds is read without looking at the folder
    assert again == first and f"no folder {mine}, it is not there" in refused(again, tmp_path)


def test_another_decoding_is_other_data_of_folders_alone(mine, tmp_path, monkeypatch):
    first, others = (
        of(mine),
        {
            name: key(Data(name=name))
            for name in ("digits", "cifar10", "imagefruit", "tiny_imagenet")
        },
    )
    data.load(first, tmp_path)
    there = set((tmp_path / "data").iterdir())
    monkeypatch.setattr(folders, "DECODING", folders.DECODING + 1)
    second = of(mine)
    assert key(second) != key(first) and others == {name: key(Data(name=name)) for name in others}
    data._load.cache_clear()
    assert "or are decoded otherwise today" in refused(first, tmp_path)
    data.load(second, tmp_path)
    assert len(set((tmp_path / "data").iterdir()) - there) == 2  # decoded anew, beside the others


def test_what_is_decoded_is_kept(mine, tmp_path, monkeypatch):
    settings = of(mine, size=8)
    first = data.load(settings, tmp_path).x_val.clone()  # the file is damaged in place further down
    kept = {file: file.read_bytes() for file in (tmp_path / "data").iterdir()}
    assert len(kept) == 2  # pixels, and the same in the space
    with monkeypatch.context() as patch:
        patch.setattr(folders, "decode", None)
        data._load.cache_clear()
        assert torch.equal(data.load(settings, tmp_path).x_val, first)  # read
        data.load(of(mine, size=8, zca=True), tmp_path)  # from the same pixels
    for harm in (
        lambda content: content[:-1],
        lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    ):
        for file, content in kept.items():
            file.write_bytes(harm(content))
        data._load.cache_clear()
        assert torch.equal(data.load(settings, tmp_path).x_val, first)
        assert all(
            file.read_bytes() == content for file, content in kept.items()
        )  # made again, the same
    assert len(list((tmp_path / "damaged").iterdir())) == 4
    there = set((tmp_path / "data").iterdir())
    draw(mine / "train" / "bird" / "0.png", COLOURS[0], (41, 30), seed=7)
    data.load(of(mine, size=8), tmp_path)
    assert len(set((tmp_path / "data").iterdir()) - there) == 2  # decoded anew, beside the others


def test_a_killed_decode_leaves_nothing(mine, tmp_path, monkeypatch):
    decode, done = folders.decode, []

    def killed(file, side, upright):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(file)
        return decode(file, side, upright)

    monkeypatch.setattr(folders, "decode", killed)
    monkeypatch.setattr(folders, "BATCH", 2)
    with pytest.raises(KeyboardInterrupt):
        data.load(of(mine), tmp_path)
    assert len(done) == 5 and not list((tmp_path / "data").iterdir())


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux tells")
def test_images_are_mapped_not_read(mine, tmp_path):
    images = data.load(of(mine), tmp_path)
    file = next((tmp_path / "data").glob("*-plain.safetensors"))
    where = [
        line.split()[0].split("-")
        for line in Path("/proc/self/maps").read_text().splitlines()
        if line.endswith(file.name)
    ]
    assert any(int(begin, 16) <= images.x_train.data_ptr() < int(end, 16) for begin, end in where)


def test_the_pipeline_works_on_a_folder(mine, tmp_path):
    store = Store(tmp_path)
    chosen = Selection(data=of(mine), method="real", ipc=2)
    held = run.get(chosen, store)
    assert held.tensors["images"].shape == (4, 3, 24, 24) and Selection(**held.settings) == chosen
    assert cost.seconds(run.Expert(data=of(mine))) > 0
    with pytest.raises(InputError, match="ipc = 8, but mine has 7 training images per class"):
        run.check(chosen.model_copy(update={"ipc": 8}))


def some(home, names=("cat", "dog"), n=6, inside=""):
    for k, name in enumerate(names):
        for i in range(n):
            draw(home / name / inside / f"{i}.png", COLOURS[k], (20, 20), seed=i)


def counts(home, tmp_path):
    read = data.load(Data(name="folder", path=str(home), size=16), tmp_path / "store")
    return [len(getattr(read, f"y_{part}")) for part in ("train", "val", "test")], read


@pytest.mark.parametrize("val", ["val", "valid", "Validation", "dev"])
@pytest.mark.parametrize("train, test", [("train", "test"), ("Training", "testing")])
def test_the_parts_have_many_names(train, val, test, tmp_path):
    for part, n in ((train, 6), (val, 2), (test, 3)):
        some(tmp_path / "set" / part, n=n)
    assert counts(tmp_path / "set", tmp_path)[0] == [12, 4, 6]


def test_two_folders_of_one_part_are_refused(tmp_path):
    for part in ("train", "val", "valid"):
        some(tmp_path / part)
    with pytest.raises(InputError, match="holds val and valid, which both mean `val`"):
        folders.own(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part).rename(tmp_path / f"old_{part}")
    with pytest.raises(InputError, match=r"no folder train in .*, but valid"):
        folders.own(tmp_path)


@pytest.mark.parametrize("name", ["train", "test", "valid"])
def test_a_class_may_be_called_as_a_part(name, tmp_path):
    some(tmp_path / "set", ("bus", "car", name))
    assert counts(tmp_path / "set", tmp_path)[1].class_names == tuple(sorted(("bus", "car", name)))


def test_images_in_folders_inside_a_class_are_of_that_class(tmp_path):
    some(tmp_path / "set")
    some(tmp_path / "set", n=5, inside="second/camera")
    assert sum(counts(tmp_path / "set", tmp_path)[0]) == 22


def test_what_is_left_out_is_named(tmp_path, caplog):
    some(tmp_path / "set/train")
    some(tmp_path / "set/extra")
    draw(tmp_path / "set/train/loose.png", COLOURS[0])
    draw(tmp_path / "set/cover.jpg", COLOURS[0])
    (tmp_path / "set/train/cat/notes.txt").write_text("a note")
    (tmp_path / "set/train/cat/.DS_Store").write_text("")
    counts(tmp_path / "set", tmp_path)
    said = caplog.text.split("left out ")[1].split(";")[0]
    places = ("1 .jpg right in set/", "1 .png right in train/", "1 .txt", "1 folder 'extra'")
    assert sorted(said.split(", ")) == sorted(places)


def test_folders_that_look_like_parts_of_other_names_are_refused(tmp_path):
    for part in ("training_set", "test_set"):
        some(tmp_path / part)
    with pytest.raises(InputError, match=r"holds the folders cat, dog: are these the classes\?"):
        folders.own(tmp_path)


def test_an_image_edited_in_place_is_other_data(tmp_path):
    """Of the same size in bytes, under the same name, at the same time."""
    file = tmp_path / "set/cat/0.bmp"
    some(tmp_path / "set")
    draw(file, COLOURS[0], (20, 20))
    before, kept = counts(tmp_path / "set", tmp_path)[1], file.stat()
    draw(file, (0, 0, 0), (20, 20), seed=1)
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert file.stat().st_size == kept.st_size
    data._load.cache_clear()
    after = counts(tmp_path / "set", tmp_path)[1]
    assert before.settings.contents != after.settings.contents
    darkest = [
        min(r.space.leave(x).mean() for x in r.x_train[r.y_train == 0]) for r in (before, after)
    ]
    assert not torch.equal(before.x_train, after.x_train) or darkest[0] == darkest[1]


def pipe(file):
    os.mkfifo(file)


def ghost(file):
    file.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")


HOSTILE = {
    "a link to nothing": (lambda file: file.symlink_to("/nowhere/9.png"), "a link to what is not"),
    "a pipe": (pipe, "no plain file"),
    "PostScript": (ghost, "cannot be read as an image"),
    "a line of pixels": (
        lambda file: Image.new("1", (1, 400_000)).save(file),
        "1 x 400000 pixels are no picture",
    ),
    "a folder": (lambda file: file.mkdir(), None),
}


@pytest.mark.parametrize("fault", HOSTILE)
def test_what_is_no_image_is_one_message_in_bounded_time(fault, tmp_path):
    some(tmp_path / "set")
    make, message = HOSTILE[fault]
    make(tmp_path / "set/cat/99.png")
    if message is None:
        assert counts(tmp_path / "set", tmp_path)
        return
    with pytest.raises(InputError, match=message) as caught:
        counts(tmp_path / "set", tmp_path)
    assert "99.png" in str(caught.value)


@pytest.mark.parametrize("name", [os.fsdecode(b"caf\xe9"), "red\x1b[31m"])
def test_a_class_has_a_name_that_can_be_printed(name, tmp_path):
    some(tmp_path, ("tea", name))
    with pytest.raises(InputError, match="is called what cannot be printed") as caught:
        folders.own(tmp_path)
    str(caught.value).encode()
    assert "\x1b" not in str(caught.value)
