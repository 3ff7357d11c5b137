"""The store: one safetensors file per task, whole or not at all, named by the key of its settings.

A file's header holds the settings, the record (rows, learned lr, curves), the versions that made it
and the sha256 of all that. So a file says all that is needed to use it, and one that was made under
other settings, or changed since, is not taken for it.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ddlib import files
from ddlib.base import FORMAT, AsItIs, InputError, Task, key, own_torch
from ddlib.files import Absent, Damaged

HOME = Path(__file__).resolve().parent.parent.parent  # the project


def place(variable: str, usual: str) -> Path:
    """The folder that an environment variable names, else one of the project.

    A relative one is meant from where the shell stands. A notebook's kernel stands in `notebooks/`
    instead, and knows the shell's folder as PWD.
    """
    if not (given := os.environ.get(variable)):
        return HOME / usual
    in_notebook = Path.cwd() == HOME / "notebooks"
    return Path(os.environ.get("PWD", HOME) if in_notebook else "", files.expanded(given))


def store_folder() -> Path:
    """The store's folder: the environment's STORE, else `store` in the project."""
    return place("STORE", "store")


@dataclass(frozen=True)
class Artefact(AsItIs):
    """What a task left: tensors by name, and a record that JSON can hold."""

    origin: ClassVar[str] = "which the functions of ddlib.api return; `load` reads one from a file"
    tensors: dict[str, Tensor]
    record: dict
    settings: dict


def write(file: Path, settings: Task, tensors: dict[str, Tensor], record: dict) -> None:
    """Save an artefact under exactly this name."""
    start, tensors = packed(settings, tensors, record)
    with files.whole(file, len(start) + sum(t.nbytes for t in tensors.values())) as out:
        out.write(start)
        for tensor in tensors.values():
            out.write(tensor.flatten().view(torch.uint8).numpy().data)


def packed(
    settings: Task, tensors: dict[str, Tensor], record: dict
) -> tuple[bytes, dict[str, Tensor]]:
    """An artefact's file: the bytes before the numbers, and the tensors in their order."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    versions = {
        "format": FORMAT,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    about = {
        "stage": settings.stage,
        "settings": settings.model_dump(mode="json"),
        "record": record,
        "versions": versions,
    }
    header = json.dumps(about)
    # one note only: the order of several would vary
    order, start = files.layout(tensors, {"ddlib": f"{files.digest(tensors, header)} {header}"})
    return start, {name: tensors[name] for name in order}


def _header(file: Path, notes: dict[str, str]) -> tuple[str, str, dict[str, Any]]:
    """The digest in an artefact's header, the text that it is of, and that text read."""
    expected, _, header = notes.get("ddlib", "").partition(" ")
    try:
        about = json.loads(header)
        parts = {name: dict(about[name]) for name in ("settings", "record", "versions")}
        return expected, header, {"stage": str(about["stage"])} | parts
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(file, f"its header is not that of an artefact ({error!r})") from None


def peek(file: Path) -> dict[str, Any]:
    """`stage`, `settings` and `record` of an artefact, from its header alone, unchecked."""
    with files.opened(file) as content:
        return _header(file, content.metadata() or {})[2]


@own_torch()
def read(file: Path | str) -> Artefact:
    """Load an artefact, its tensors mapped. Nothing else is needed to use it.

    Raises:
        Absent: there is no such file.
        Damaged: it is none of ours, of another format, or not as it was written.
    """
    file = Path(file)
    tensors, notes = files.unpack(file)
    expected, header, about = _header(file, notes)
    actual = files.digest(tensors, header)
    if actual != expected:
        raise Damaged(file, f"its content hashes to {actual[:12]}, its header says {expected[:12]}")
    if (version := about["versions"].get("format")) != FORMAT:
        raise Damaged(file, f"it has format {version}, this library reads format {FORMAT}")
    return Artefact(tensors, about["record"], about["settings"])


def checked(file: Path, settings: Task) -> Artefact:
    """As `read`, and Damaged where it was not made under exactly these settings."""
    artefact = read(file)
    wanted = settings.model_dump(mode="json")
    for name in sorted(wanted.keys() | artefact.settings.keys()):
        there, asked = artefact.settings.get(name), wanted.get(name)
        if there != asked:
            raise Damaged(
                file,
                f"it was made under other settings: {name} is {there!r} there, {asked!r} was asked "
                "for",
            )
    return artefact


class Store:
    """A folder of artefacts, `root/<stage>/<key>.safetensors`."""

    def __init__(self, root: Path | str = "store"):
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"{self.root} cannot be the store ({os.strerror(error.errno)}): expected a folder "
                "to write into; name another (STORE=...)"
            ) from None

    def file(self, settings: Task) -> Path:
        """Where the artefact of `settings` is or will be."""
        return self.root / settings.stage / f"{key(settings)}.safetensors"

    def has(self, settings: Task) -> bool:
        """Whether it is there."""
        return self.file(settings).exists()

    def load(self, settings: Task) -> Artefact:
        """What the task of `settings` made: as `read`, and its settings are compared."""
        return checked(self.file(settings), settings)

    def kept(self, settings: Task, make: Callable[[], object]) -> Artefact:
        """The artefact of `settings`. Where it is absent or damaged, one process makes it."""
        load = partial(checked, settings=settings)
        return files.kept(self.root, self.file(settings), settings.title, load, make)

    def busy(self, settings: Task) -> bool:
        """Whether a living process is making it."""
        return files.locked(self.root, key(settings))

    def save(
        self,
        settings: Task,
        tensors: dict[str, Tensor],
        record: dict,
        spent: dict | None = None,
    ) -> None:
        """Keep what a task made, note what it cost, and drop its checkpoint."""
        write(self.file(settings), settings, tensors, record)
        if spent is not None:
            files.write_whole(self.note_file(settings), json.dumps(spent).encode())
        self.checkpoint_file(settings).unlink(missing_ok=True)

    def checkpoint_file(self, settings: Task) -> Path:
        """Where the state of the unfinished task is kept."""
        return self.root / "checkpoints" / f"{key(settings)}.safetensors"

    def resume(self, settings: Task) -> Artefact | None:
        """The checkpoint of an unfinished task, if there is a sound one."""
        try:
            return checked(self.checkpoint_file(settings), settings)
        except Absent:
            return None
        except Damaged as error:
            files.set_aside(self.root, error)
            return None

    def note_file(self, settings: Task) -> Path:
        """What the artefact cost is noted beside it, for that differs from run to run."""
        return self.root / "notes" / f"{key(settings)}.json"

    def note(self, settings: Task) -> dict | None:
        """What making the artefact took, all its runs together; None where it was not noted."""
        try:
            return json.loads(self.note_file(settings).read_bytes())
        except (OSError, ValueError):
            return None
