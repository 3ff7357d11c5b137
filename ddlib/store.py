"""Artefacts on disk: one safetensors file a task, written whole or not at all, named by the key of its settings.

The header holds the settings, the record (rows, learned lr, curves), the versions that made it and the sha256 of all that, so
a file says all that is needed to use it. Asking again reads it; a file made under other settings is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from .config import FORMAT, Refusal, Settings, key

TYPES = {torch.uint8: "U8", torch.int64: "I64", torch.float32: "F32"}  # as safetensors writes them


@dataclass(frozen=True)
class Artefact:
    """What a task left: tensors by name, and a JSON-able record."""

    tensors: dict[str, Tensor]
    record: dict
    settings: dict


def digest(tensors: dict[str, Tensor], header: str = "") -> str:
    """sha256 over a header and the tensors' names, shapes, types and bytes."""
    total = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        total.update(t.flatten().view(torch.uint8).numpy())
    return total.hexdigest()


@contextmanager
def whole(file: Path) -> Iterator[BinaryIO]:
    """A file to write into that gets its name when all is written, or leaves nothing: a reader never meets half a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=".half-", suffix=file.suffix)
    try:
        with os.fdopen(handle, "wb") as out:
            yield out
            out.flush()
            os.fsync(out.fileno())
        os.chmod(name, 0o644)
        os.replace(name, file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_whole(file: Path, content: bytes) -> None:
    """All of `content` under its name, or nothing."""
    with whole(file) as out:
        out.write(content)


def write_parts(file: Path, tensors: dict[str, tuple[torch.dtype, tuple[int, ...], Iterable[Tensor]]]) -> None:
    """Tensors larger than memory as a safetensors file: type, shape and the parts that follow one another, each written as it comes.

    Give the widest types first: then every tensor begins at a multiple of its numbers' width, as readers want.
    """
    header, end = {}, 0
    for name, (dtype, shape, _) in tensors.items():
        begin, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": TYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with whole(file) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for _, _, parts in tensors.values():
            for part in parts:
                out.write(part.contiguous().numpy())


def write(file: Path, settings: Settings, tensors: dict[str, Tensor], record: dict) -> None:
    """Save an artefact under exactly this name."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    about = {
        "stage": settings.stage,
        "settings": settings.model_dump(mode="json"),
        "record": record,
        "versions": {"format": FORMAT, "python": platform.python_version(), "torch": torch.__version__},
    }
    header = json.dumps(about)
    write_whole(file, save(tensors, {"ddlib": f"{digest(tensors, header)} {header}"}))  # one entry: the order of several would vary


def read(file: Path) -> Artefact:
    """Load an artefact; nothing else is needed to use it.

    Raises:
        Refusal: the file is missing, damaged or not one of ours.
    """
    try:
        with safe_open(str(file), "pt") as held:
            expected, _, header = (held.metadata() or {})["ddlib"].partition(" ")
            tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError:
        raise Refusal(f"no file {file}: check the path, or make it by asking for its table") from None
    except (SafetensorError, KeyError, ValueError) as error:
        raise Refusal(f"{file} is damaged or not a ddlib artefact ({error}): delete it and it will be made again") from error
    found = digest(tensors, header)
    if found != expected:
        raise Refusal(f"{file} is damaged: its content hashes to {found[:12]}, its header says {expected[:12]}; delete it and it will be made again")
    about = json.loads(header)
    return Artefact(tensors, about["record"], about["settings"])


class Store:
    """A folder of artefacts, `root/<stage>/<key>.safetensors`.

    Raises:
        Refusal: the folder was filled by another format of the library.
    """

    def __init__(self, root: Path | str = "store"):
        self.root = Path(root)
        mark = self.root / "store.json"
        if not mark.exists():
            write_whole(mark, json.dumps({"format": FORMAT}).encode())
        found = json.loads(mark.read_text()).get("format")
        if found != FORMAT:
            raise Refusal(f"{self.root} was filled under format {found}, this library writes format {FORMAT}: name another folder (STORE=...) or delete it")

    def file(self, settings: Settings) -> Path:
        """Where the artefact of `settings` stands or will stand."""
        return self.root / settings.stage / f"{key(settings)}.safetensors"

    def has(self, settings: Settings) -> bool:
        """Whether it is there."""
        return self.file(settings).exists()

    def save(self, settings: Settings, tensors: dict[str, Tensor], record: dict) -> None:
        """Keep what the task of `settings` made."""
        write(self.file(settings), settings, tensors, record)

    def load(self, settings: Settings) -> Artefact:
        """What the task of `settings` made.

        Raises:
            Refusal: missing, damaged, or made under other settings (both values are named).
        """
        return self._checked(self.file(settings), settings)

    def _checked(self, file: Path, settings: Settings) -> Artefact:
        artefact = read(file)
        wanted = settings.model_dump(mode="json")
        for name in sorted(wanted.keys() | artefact.settings.keys()):
            found, expected = artefact.settings.get(name), wanted.get(name)
            if found != expected:
                raise Refusal(f"{file} was made under other settings: {name} is {found!r} there, {expected!r} was asked for; move the file away")
        return artefact

    def resume(self, settings: Settings) -> Artefact | None:
        """The checkpoint of an unfinished task, if there is a sound one."""
        try:
            return self._checked(self._checkpoint(settings), settings)
        except Refusal:
            return None

    def checkpoint(self, settings: Settings, tensors: dict[str, Tensor], record: dict) -> None:
        """Keep an unfinished task's state."""
        write(self._checkpoint(settings), settings, tensors, record)

    def finish(self, settings: Settings, tensors: dict[str, Tensor], record: dict) -> None:
        """Save, and drop the checkpoint."""
        self.save(settings, tensors, record)
        self._checkpoint(settings).unlink(missing_ok=True)

    def _checkpoint(self, settings: Settings) -> Path:
        return self.root / "checkpoints" / f"{key(settings)}.safetensors"

    def rows_of(self, settings: Settings) -> Callable[[int, int], Tensor]:
        """`(first, last) -> rows first ... last - 1` of the stored tensor `path`, read from disk without the rest."""
        self.load(settings)  # checks the hash once
        held = safe_open(str(self.file(settings)), "pt").get_slice("path")
        return lambda first, last: held[first:last]
