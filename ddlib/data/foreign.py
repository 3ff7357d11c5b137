"""Reading a stranger's `.pt` file with distrust: its tensors, lists, dicts, numbers and strings, and nothing else.

It is a zip archive: a pickle that says how tensors lie in lists, and each tensor's numbers as an entry. Nothing is unpacked from it and no name in it becomes
a path. What it declares is read and checked first, by `outline`, which calls nothing and takes no memory for tensors: the pickle that PyTorch itself admits
could still ask for any amount. Then `torch.load(weights_only=True)` maps it.
"""

from __future__ import annotations

import io
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from ddlib.settings import InputError

DIRECTORY = 16 << 20  # bytes that an archive's list of entries may take: 200 000 tensors
PICKLE = 8 << 20  # bytes that its pickle may take: 100 000 tensors
AXES = 8  # of a tensor, at most
UNSOUND = (
    zipfile.BadZipFile,
    EOFError,
    ValueError,
    RuntimeError,
    struct.error,
)  # what zipfile raises at an archive that is no such
STORAGES = {
    f"torch {name}Storage": dtype
    for name, dtype in {
        "Float": torch.float32,
        "Double": torch.float64,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
    }.items()
}
TENSOR, PARAMETER, ORDERED = (
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
    "collections OrderedDict",
)
VALUES = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
FRESH: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_TUPLE": tuple,
}


@dataclass(frozen=True)
class Outline:
    """A tensor that a file declares, not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Name:
    """What a pickle would import; nothing is."""

    text: str


def entries(file: Path) -> dict[str, zipfile.ZipInfo]:
    """The entries of a `.pt` archive by name, after checks that no reader of it can see others, and that they are as large as they say.

    Raises:
        InputError: missing, empty, truncated, no such archive; compressed, overlapping or doubled entries, or names that point elsewhere.
    """
    try:
        with file.open("rb") as held:
            size = os.fstat(held.fileno()).st_size
            start, listed = _directory(file, held, size)
            found = zipfile.ZipFile(held).infolist()
    except FileNotFoundError:
        raise InputError(f"no file {file}: check the path") from None
    except IsADirectoryError:
        raise InputError(f"{file} is a folder, expected a .pt file: name the file in it") from None
    except InputError:
        raise
    except UNSOUND as error:
        raise InputError(f"{file} is damaged ({error}): copy or download it again") from None
    if len(found) != listed:
        raise InputError(
            f"{file} lists {len(found)} entries but announces {listed}: it is damaged; copy or download it again"
        )
    for entry in found:
        if (
            entry.compress_type != zipfile.ZIP_STORED
            or entry.file_size != entry.compress_size
            or entry.flag_bits & 1
        ):
            raise InputError(
                f"{file}: entry {entry.filename!r} is compressed ({entry.compress_size} bytes in the file, {entry.file_size} declared), which torch.save never does; "
                "refused, for it could fill the memory: save the tensors again with torch.save"
            )
        if not re.fullmatch(r"[^/\\\0]+(/[^/\\\0]+)+", entry.filename) or {".", ".."} & set(
            entry.filename.split("/")
        ):
            raise InputError(
                f"{file}: entry {entry.filename!r} has a name that points elsewhere, expected <name>/data/<number>: nothing was unpacked; do not use this file"
            )
    total, homes = (
        sum(entry.file_size for entry in found),
        {entry.filename.split("/")[0] for entry in found},
    )
    if total > start or any(entry.header_offset + entry.file_size > start for entry in found):
        raise InputError(
            f"{file} declares {total} bytes of content but holds {start}: its entries overlap or lie outside it; copy or download it again"
        )
    if len(homes) != 1 or len({entry.filename.lower() for entry in found}) != len(found):
        raise InputError(
            f"{file} holds {len(homes)} archives, or a name twice: expected one, as torch.save writes it; save the tensors again"
        )
    return {entry.filename.split("/", 1)[1]: entry for entry in found}


def _directory(file: Path, held: io.BufferedReader, size: int) -> tuple[int, int]:
    """Where the archive's list of entries starts and how many it announces; it must end the file, so that every reader takes the same list."""
    head = held.read(4)
    if head != b"PK\3\4":
        what = (
            "is empty"
            if not size
            else "is a bare pickle, or of PyTorch before 1.6: reading it could run code"
            if head[:1] == b"\x80"
            else "is no .pt archive"
        )
        raise InputError(
            f"{file} {what}; expected what torch.save has written since PyTorch 1.6: have its owner save the tensors again with a newer one"
        )
    held.seek(max(0, size - 98))
    tail = held.read(98)
    fault = InputError(
        f"{file} ends before its list of entries, or goes on after it ({size} bytes): it is truncated or damaged; copy or download it again"
    )
    if size < 98 or tail[-22:-18] != b"PK\5\6" or tail[-2:] != b"\0\0":
        raise fault
    end = size - 22
    listed, length, start = (
        int.from_bytes(tail[-22:][i:j], "little") for i, j in ((10, 12), (12, 16), (16, 20))
    )
    if tail[-42:-38] == b"PK\6\7":  # many or large entries: the wide form
        end = size - 98
        if tail[:4] != b"PK\6\6" or int.from_bytes(tail[64:72], "little") != end:
            raise fault
        listed, length, start = (int.from_bytes(tail[i : i + 8], "little") for i in (32, 40, 48))
    if start + length != end:
        raise fault
    if length > DIRECTORY:
        raise InputError(
            f"{file}: its list of entries takes {length} bytes, expected at most {DIRECTORY}: save fewer tensors a file, joined by torch.stack"
        )
    return start, listed


def outline(file: Path) -> Any:
    """The lists and dicts of a `.pt` file with an `Outline` in place of each tensor; its pickle is interpreted here, and nothing that it names is called.

    Raises:
        InputError: no sound archive (`entries`); a pickle that asks for more than tensors, or for more numbers than the file holds.
    """
    found = entries(file)
    if "data.pkl" not in found or found["data.pkl"].file_size > PICKLE:
        size = found["data.pkl"].file_size if "data.pkl" in found else 0
        raise InputError(
            f"{file} has a pickle of {size} bytes, expected 1 to {PICKLE}: torch.save did not write it, or of too many tensors; save them again, joined by torch.stack"
        )
    content = _contents(file, [found["data.pkl"]], keep=True)
    try:
        tree, tensors = _interpreted(
            content,
            {
                name.removeprefix("data/"): entry.file_size
                for name, entry in found.items()
                if name.startswith("data/")
            },
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        fault = f"{file} has a pickle that cannot be followed ({type(error).__name__})"
        raise InputError(
            f"{fault}: it is damaged, or not written by torch.save; save the tensors again"
        ) from None
    needed, held = (
        sum(t.bytes for t in tensors),
        sum(entry.file_size for name, entry in found.items() if name.startswith("data/")),
    )
    if needed > held:
        raise InputError(
            f"{file} declares tensors of {needed} bytes but holds {held}: some are expanded, or share memory, as snapshots of a network on the CPU do that were not "
            "cloned (all of them are then its last state). Save a .clone() of each"
        )
    return tree


def _contents(file: Path, some: Iterable[zipfile.ZipInfo], keep: bool) -> bytes:
    """The bytes of some entries, or nothing if they are read for their checksums alone: one that differs is refused."""
    parts = []
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in some:
                with archive.open(entry) as held:
                    while part := held.read(1 << 20):
                        parts += [part] * keep
    except UNSOUND as error:
        raise InputError(
            f"{file} is damaged ({error}): copy or download it again; if it was saved without checksums, save it again with them"
        ) from None
    return b"".join(parts)


def _interpreted(content: bytes, sizes: Mapping[str, int]) -> tuple[Any, list[Outline]]:
    """What a pickle builds, and the tensors in it; instructions that torch.save needs for tensors, lists, dicts, numbers and strings, and no other."""
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[int, Any] = {}
    tensors: list[Outline] = []

    def since_mark() -> list[Any]:
        at = marks.pop()
        some = stack[at:]
        del stack[at:]
        return some

    for code, given, _ in pickletools.genops(content):
        name = code.name
        if name in VALUES:
            stack.append(given)
        elif name in FRESH:
            stack.append(FRESH[name]())
        elif name == "MARK":
            marks.append(len(stack))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[given] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[given])
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            some = (
                since_mark()
                if name == "TUPLE"
                else [stack.pop() for _ in range(int(name[-1]))][::-1]
            )
            stack.append(tuple(some))
        elif name in ("APPEND", "APPENDS"):
            some = since_mark() if name == "APPENDS" else [stack.pop()]
            stack[-1].extend(some)
        elif name in ("SETITEM", "SETITEMS"):
            some = since_mark() if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
            stack[-1].update(zip(some[::2], some[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_allowed(given))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), sizes))
        elif name == "REDUCE":
            arguments, what = stack.pop(), stack.pop()
            stack.append(_made(what, arguments, tensors))
        elif name not in ("PROTO", "STOP"):
            raise InputError(
                f"its pickle has the instruction {name}, which torch.save does not write for tensors and could run code. Nothing was run: do not use this file"
            )
    (tree,) = stack
    return tree, tensors


def _allowed(name: str) -> Name:
    if name not in (*STORAGES, TENSOR, PARAMETER, ORDERED):
        raise InputError(
            f"its pickle asks for {name.replace(' ', '.')[:80]!r}, expected tensors, lists, dicts, numbers and strings alone: anything else could run code. "
            "Nothing was run. If you trust whoever made it, have them save the tensors alone: torch.save of torch.Tensor objects, numpy arrays through torch.from_numpy"
        )
    return Name(name)


@dataclass(frozen=True)
class _Storage:
    dtype: torch.dtype
    numbers: int


def _storage(given: Any, sizes: Mapping[str, int]) -> _Storage:
    """The numbers of a tensor: as many as their entry holds."""
    kind, which, key, _, numbers = given
    dtype = STORAGES[which.text]
    if kind != "storage" or type(numbers) is not int or sizes[key] != numbers * dtype.itemsize:
        raise InputError(
            f"its pickle declares {numbers} numbers of {dtype} in entry data/{key}, which holds {sizes[key]} bytes: it is damaged; copy or download it again"
        )
    return _Storage(dtype, numbers)


def _made(what: Any, arguments: Any, tensors: list[Outline]) -> Any:
    """What one of the allowed names makes of its arguments."""
    if what == Name(ORDERED) and arguments == ():
        return {}
    if what == Name(PARAMETER):
        made, *_ = arguments
        if isinstance(made, Outline):
            return made
    if what != Name(TENSOR):
        raise ValueError("a call of something else")
    storage, offset, shape, stride, *_ = arguments
    if (
        not isinstance(storage, _Storage)
        or not len(shape) == len(stride) <= AXES
        or any(type(n) is not int or not 0 <= n < 1 << 62 for n in (offset, *shape, *stride))
    ):
        raise ValueError("no shape of a tensor")
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    if prod(shape) and last >= storage.numbers:
        raise InputError(
            f"its pickle declares a tensor of shape {shape} that reaches number {last} of {storage.numbers}: it is damaged; copy or download it again"
        )
    tensors.append(Outline(tuple(shape), storage.dtype))
    return tensors[-1]


def read_foreign(file: Path | str, check: Callable[[Any], None] = lambda tree: None) -> Any:
    """What a `.pt` file holds, its tensors mapped, not in memory: copy what you keep. `check` sees the `outline` first, and refuses what does not fit.

    Raises:
        InputError: whatever `outline` or `check` refuse; numbers whose checksum differs.
    """
    file = Path(file)
    check(outline(file))
    _contents(file, entries(file).values(), keep=False)
    try:
        return torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever torch still finds, it is the file's fault
        raise InputError(
            f"{file} cannot be read by torch.load(weights_only=True): {str(error).splitlines()[0]}. Save the tensors again with torch.save"
        ) from None


def words(found: Any) -> str:
    """A value of an outline in a few words."""
    if isinstance(found, Outline):
        return f"{found.shape} of {found.dtype}"
    return (
        f"a {type(found).__name__} of {len(found)}"
        if hasattr(found, "__len__")
        else f"a {type(found).__name__}"
    )
