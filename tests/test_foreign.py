"""A stranger's `.pt` file yields tensors or a refusal: it runs no code, takes no more memory than it holds, writes nowhere, and no damage passes.

Every file here is real, and so is every weapon in it.
"""

import ast
import io
import os
import pickle
import random
import re
import struct
import subprocess
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import ddlib
from ddlib.data import datasets as data
from ddlib.data import foreign
from ddlib.data.foreign import Outline, read_foreign
from ddlib.runs.measure import peak
from ddlib.settings import Data, InputError

GOOD = {
    "images": torch.arange(24.0).view(2, 3, 2, 2),
    "labels": torch.tensor([1, 0]),
    "lr": 0.1,
    "more": [None, True, "word", (7, 2**70), torch.tensor(3.0)],
}


class Weapon:
    """Once unpickled it has run a shell's command."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


class Call:
    """What is pickled is a call of something that PyTorch itself admits."""

    def __init__(self, what, *arguments):
        self.call = what, arguments

    def __reduce__(self):
        return self.call


def saved(file, content, **how):
    torch.save(content, file, **how)
    return file


def refusal(file):
    with pytest.raises(InputError) as caught:
        read_foreign(file)
    text = str(caught.value)
    assert str(file) in text and (": " in text or ";" in text)
    return text


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.dtype == b.dtype
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    return (
        len(a) == len(b) and all(map(same, a, b))
        if isinstance(a, list | tuple) and not isinstance(a, str)
        else a == b
    )


def test_what_is_sound_is_read(tmp_path):
    file = saved(tmp_path / "good.pt", GOOD)
    seen = []
    assert same(read_foreign(file, seen.append), GOOD)
    (tree,) = seen
    assert (
        tree["images"] == Outline((2, 3, 2, 2), torch.float32)
        and tree["lr"] == 0.1
        and tree["more"][3] == (7, 2**70)
    )
    for dtype in (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ):
        x = torch.tensor([[0, 1], [1, 1]]).to(dtype).T
        assert same(read_foreign(saved(file, x)), x)
    learned = torch.nn.Parameter(torch.ones(3))
    assert same(read_foreign(saved(file, [learned]))[0].detach(), learned.detach())


def test_a_view_comes_alone(tmp_path):
    x = torch.arange(12.0).view(3, 4)
    assert same(read_foreign(saved(tmp_path / "view.pt", x[1:, ::2])), x[1:, ::2])


@pytest.mark.parametrize("zip_form", [True, False], ids=["today's form", "before 1.6"])
def test_a_pickle_that_would_run_code_runs_none(zip_form, tmp_path):
    target = tmp_path / "was here"
    file = saved(
        tmp_path / "weapon.pt",
        {"images": torch.ones(2), "labels": Weapon(f"'{target}'")},
        _use_new_zipfile_serialization=zip_form,
    )
    text = refusal(file)
    assert not target.exists()
    assert (
        (
            "asks for 'posix.system'" in text
            and "Nothing was run" in text
            and "save the tensors alone" in text
        )
        if zip_form
        else "reading it could run code" in text
    )
    torch.load(file, weights_only=False)
    assert target.exists()  # the weapon was loaded


def test_a_bare_pickle_runs_none(tmp_path):
    target, file = tmp_path / "was here", tmp_path / "weapon.pt"
    for protocol in range(6):
        file.write_bytes(pickle.dumps(Weapon(f"'{target}'"), protocol))
        refusal(file)
        assert not target.exists()
    pickle.loads(file.read_bytes())
    assert target.exists()


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_other_protocols_run_none(protocol, tmp_path):
    target = tmp_path / "was here"
    file = saved(tmp_path / "weapon.pt", Weapon(f"'{target}'"), pickle_protocol=protocol)
    assert "Nothing was run" in refusal(file) and not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists()


BOMBS = {  # a small file that asks PyTorch, or would ask a pickle, for much
    "a buffer of bytes": (lambda: Call(bytearray, 10**9), "asks for '__builtin__.bytearray'"),
    "a tensor of zeros": (lambda: Call(torch.Tensor, 10**9), "asks for 'torch.Tensor'"),
    "an expanded tensor": (
        lambda: torch.zeros(1).expand(10**9),
        "declares tensors of 4000000000 bytes but holds 4",
    ),
    "one tensor a thousand times over": (
        lambda: [x.view(10) for x in [torch.zeros(10)] for _ in range(1000)],
        "declares tensors of 40000 bytes but holds 40",
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_a_bomb_is_refused_before_it_takes_memory(kind, tmp_path):
    make, part = BOMBS[kind]
    file = saved(tmp_path / "bomb.pt", [make()])
    assert file.stat().st_size < 200_000
    assert (
        peak(lambda: part in refusal(file) or pytest.fail(kind)) < 50
    )  # megabytes; the bombs ask for 1000 and more


def rezipped(
    file, source, change=lambda name, content: [(name, content)], compression=zipfile.ZIP_STORED
):
    """The archive written again, entry by entry."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(file, "w", compression) as new:
        for entry in old.infolist():
            for name, content in change(entry.filename, old.read(entry)):
                new.writestr(zipfile.ZipInfo(name), content, compression)
    return file


def test_compressed_entries_are_refused_before_they_take_memory(tmp_path):
    file = rezipped(
        tmp_path / "bomb.pt",
        saved(tmp_path / "large.pt", torch.zeros(20_000_000)),
        compression=zipfile.ZIP_DEFLATED,
    )
    assert file.stat().st_size < 1_000_000

    def look():
        assert "is compressed" in refusal(file)

    assert peak(look) < 50


def shape_declared(file, source, old, new):
    """The same file whose pickle declares another number."""
    return rezipped(
        file,
        source,
        lambda name, content: [
            (name, content.replace(old, new) if name.endswith("data.pkl") else content)
        ],
    )


def test_declared_sizes_are_held_against_the_file(tmp_path):
    source = saved(tmp_path / "small.pt", torch.zeros(300, 5))
    rows, total = b"M" + struct.pack("<H", 300), b"M" + struct.pack("<H", 1500)
    text = refusal(shape_declared(tmp_path / "a.pt", source, rows, b"J" + struct.pack("<i", 10**9)))
    assert (
        "declares a tensor of shape (1000000000, 5) that reaches number 4999999999 of 1500" in text
    )
    text = refusal(
        shape_declared(tmp_path / "b.pt", source, total, b"J" + struct.pack("<i", 10**9))
    )
    assert (
        "declares 1000000000 numbers of torch.float32 in entry data/0, which holds 6000 bytes"
        in text
    )
    assert refusal(shape_declared(tmp_path / "c.pt", source, rows, b"J" + struct.pack("<i", -1)))
    content = source.read_bytes()
    at = content.rindex(
        b"PK\1\2" + content[content.index(b"PK\1\2") + 4 :][:4]
    )  # an entry of the list: its sizes raised to 4 GB
    (tmp_path / "d.pt").write_bytes(
        content[: at + 20] + b"\xfe\xff\xff\xff" * 2 + content[at + 28 :]
    )
    assert "but holds" in refusal(tmp_path / "d.pt")


def test_lists_of_entries_and_pickles_have_a_limit(tmp_path, monkeypatch):
    file = saved(tmp_path / "many.pt", [torch.zeros(1) for _ in range(50)])
    monkeypatch.setattr(foreign, "DIRECTORY", 3000)
    assert "its list of entries takes" in refusal(file)
    monkeypatch.undo()
    monkeypatch.setattr(foreign, "PICKLE", 1000)
    assert "has a pickle of" in refusal(file)
    monkeypatch.undo()
    assert len(read_foreign(file)) == 50


def test_both_forms_of_an_archives_end_are_read(tmp_path):
    """The wide one, which torch.save writes, and the narrow one, which is for at most 65 535 entries."""
    wide = saved(tmp_path / "wide.pt", GOOD)
    narrow = rezipped(tmp_path / "narrow.pt", wide)
    assert [file.read_bytes()[-42:-38] == b"PK\6\7" for file in (wide, narrow)] == [True, False]
    assert same(read_foreign(wide), GOOD) and same(read_foreign(narrow), GOOD)


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/tmp/outside",
        "archive/../../outside",
        "archive\\..\\outside",
        "archive/./x",
        "outside",
    ],
)
def test_names_that_point_elsewhere_are_refused_and_nothing_is_unpacked(name, tmp_path):
    source, inner = saved(tmp_path / "good.pt", GOOD), tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    file = rezipped(
        inner / "bad.pt",
        source,
        lambda entry, content: [(entry, content)] + [(name, b"x")] * entry.endswith("data.pkl"),
    )
    before = sorted(tmp_path.rglob("*"))
    assert "points elsewhere" in refusal(file)
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/outside").exists()


def test_an_archive_in_an_archive_is_refused(tmp_path):
    """Readers differ in which of two lists of entries they take."""
    one, two = (
        saved(tmp_path / "one.pt", torch.zeros(2)).read_bytes(),
        saved(tmp_path / "two.pt", torch.ones(2)).read_bytes(),
    )
    for content in (one + two, one + b"\0", one + b"PK\5\6" + b"\0" * 18, one[:-2] + b"\4\0more"):
        (tmp_path / "both.pt").write_bytes(content)
        refusal(tmp_path / "both.pt")
    for twin in (str.upper, lambda name: f"other/{name}"):  # torch finds names in any case
        doubled = rezipped(
            tmp_path / "double.pt",
            tmp_path / "one.pt",
            lambda name, content, twin=twin: [(name, content), (twin(name), content)],
        )
        assert re.search("holds [12] archives, or a name twice", refusal(doubled))


FAULTS = {
    "missing": (None, "no file"),
    "empty": (b"", "is empty; expected what torch.save has written since PyTorch 1.6"),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), "is no .pt archive"),
    "a stub": (b"PK\3\4", "ends before its list of entries"),
    "a zip of something else": ("zip", "has a pickle of 0 bytes"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_pt_file_is_refused(fault, tmp_path):
    content, part = FAULTS[fault]
    file = tmp_path / "some.pt"
    if content == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("letters/a.txt", "hello")
    elif content is not None:
        file.write_bytes(content)
    assert part in refusal(file)
    assert "is a folder" in refusal(tmp_path)


def test_no_damage_passes(tmp_path):
    """A flipped bit, a cut, a run of zeros: refused, or, in the padding and the dates of the archive, without effect."""
    good = saved(tmp_path / "good.pt", GOOD).read_bytes()
    chance, file, refused = random.Random(0), tmp_path / "bad.pt", 0
    for i in range(1000):
        at = chance.randrange(len(good))
        flipped = good[:at] + bytes([good[at] ^ (1 << chance.randrange(8))]) + good[at + 1 :]
        holed = good[:at] + bytes(min(40, len(good) - at)) + good[at + 40 :]
        file.write_bytes((flipped, flipped, good[:at], holed)[i % 4])
        try:
            found = read_foreign(file)
        except InputError:
            refused += 1
        else:
            assert same(found, GOOD), i
    assert refused > 600


def test_damaged_numbers_are_named(tmp_path):
    file = saved(tmp_path / "good.pt", torch.arange(1000.0))
    content = bytearray(file.read_bytes())
    content[content.index(struct.pack("<f", 500.0))] ^= 1
    file.write_bytes(content)
    assert re.search(
        r"is damaged \(Bad CRC-32 for file 'good/data/0'\): copy or download it again",
        refusal(file),
    )


@pytest.mark.parametrize(
    "member", ["../../outside", "/tmp/ddlib-outside", "cifar-10-batches-py/link"]
)
def test_a_malicious_archive_in_the_data_folder_writes_nowhere(member, tmp_path):
    """The library unpacks no archive, torchvision one only with `download=True`: what lies there unpacked is taken, if its md5 sums are the published ones."""
    home = tmp_path / "store" / "data"
    home.mkdir(parents=True)
    with tarfile.open(home / "cifar-10-python.tar.gz", "w:gz") as archive:
        entry = tarfile.TarInfo(member)
        if member.endswith("link"):
            entry.type, entry.linkname = tarfile.SYMTYPE, "/"
            archive.addfile(entry)
        else:
            entry.size = 1
            archive.addfile(entry, io.BytesIO(b"x"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="was not found whole"):
        data.load(Data(name="cifar10"), tmp_path / "store")
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/ddlib-outside").exists()


def test_a_batch_of_cifar_that_would_run_code_runs_none(tmp_path):
    """Its official files are pickles: none is opened whose md5 sum is not the published one."""
    from torchvision.datasets import CIFAR10

    home, target = tmp_path / "data" / CIFAR10.base_folder, tmp_path / "was here"
    home.mkdir(parents=True)
    for name, _ in [*CIFAR10.train_list, *CIFAR10.test_list, (CIFAR10.meta["filename"], "")]:
        (home / name).write_bytes(pickle.dumps(Weapon(f"'{target}'")))
    with pytest.raises(InputError, match="was not found whole"):
        data.load(Data(name="cifar10"), tmp_path)
    assert not target.exists()


BORDERS = {  # calls that reach a shell, run code or unpack, and the modules that may make them
    "subprocess": {"kernels"},  # the compiler, on a source of ours, with no word from a file
    "system": set(),
    "popen": set(),
    "pickle": set(),
    "eval": set(),
    "exec": set(),
    "extract": set(),
    "extractall": set(),
    "unpack_archive": set(),
    "download_and_extract_archive": set(),
    "extract_archive": set(),
}


def called(source):
    """Names of modules and functions that a source imports or calls."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call):
            yield (
                node.func.attr
                if isinstance(node.func, ast.Attribute)
                else getattr(node.func, "id", "")
            )


def test_nothing_reaches_a_shell_or_unpacks():
    found = {name: set() for name in BORDERS}
    for file in Path(ddlib.__file__).parent.glob("*.py"):
        source = file.read_text()
        for name in BORDERS.keys() & set(called(source)):
            found[name].add(file.stem)
        for loaded in re.findall(r"torch\.load\(.*", source):
            assert "weights_only=True" in loaded, file
        assert "shell=True" not in source and "yaml.load(" not in source, file
    assert found == BORDERS


def test_a_compiler_of_a_strange_name_is_no_command(tmp_path, monkeypatch):
    """`CC` is looked up as a program's name, never read as a line for a shell."""
    from ddlib.method.fast import kernels

    target = tmp_path / "was here"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a; touch 'b'"))
    monkeypatch.setenv("CC", f"cc; touch '{target}'")
    with suppress(OSError, subprocess.CalledProcessError):
        kernels.build("float")
    assert not target.exists() and not list(tmp_path.glob("b*"))
