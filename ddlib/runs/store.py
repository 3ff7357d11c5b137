"""Artefacts on disk: one safetensors file a task, written whole or not at all, named by the key of its settings.

The header holds the settings, the record (rows, learned lr, curves), the versions that made it and the sha256 of all that, so
a file says all that is needed to use it. Asking again reads it; a file made under other settings is refused.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ddlib.files import (
    FULL as FULL,
)
from ddlib.files import (
    Absent,
    Damaged,
    digest,
    kept,
    layout,
    locked,
    opened,
    set_aside,
    unpack,
    whole,
    write_whole,
)
from ddlib.files import (
    Full as Full,
)
from ddlib.files import (
    amount as amount,
)
from ddlib.files import (
    sweep as sweep,
)
from ddlib.settings import FORMAT, InputError, Settings, key


@dataclass(frozen=True)
class Artefact:
    """What a task left: tensors by name, and a JSON-able record."""

    tensors: dict[str, Tensor]
    record: dict
    settings: dict


def write(file: Path, settings: Settings, tensors: dict[str, Tensor], record: dict) -> None:
    """Save an artefact under exactly this name."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    about = {
        "stage": settings.stage,
        "settings": settings.model_dump(mode="json"),
        "record": record,
        "versions": {
            "format": FORMAT,
            "python": platform.python_version(),
            "torch": torch.__version__,
        },
    }
    header = json.dumps(about)
    order, start = layout(
        tensors, {"ddlib": f"{digest(tensors, header)} {header}"}
    )  # one note: the order of several would vary
    with whole(file, len(start) + sum(t.nbytes for t in tensors.values())) as out:
        out.write(start)
        for name in order:
            out.write(tensors[name].flatten().view(torch.uint8).numpy().data)


def noted(file: Path, notes: dict[str, str]) -> tuple[str, str, dict[str, Any]]:
    """What the header of an artefact says: its hash, the text that it is of, and that text read."""
    expected, _, header = notes.get("ddlib", "").partition(" ")
    try:
        about = json.loads(header)
        about = {"stage": str(about["stage"])} | {
            name: dict(about[name]) for name in ("settings", "record", "versions")
        }
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(file, f"its header is not that of an artefact ({error!r})") from None
    return expected, header, about


def peek(file: Path) -> dict[str, Any]:
    """`stage`, `settings` and `record` of an artefact by its header alone: no tensor is read and no hash checked, only that the file is as long as it says.

    Raises:
        Absent, Damaged: as for `read`.
    """
    with opened(file) as held:
        return noted(file, held.metadata() or {})[2]


def read(file: Path | str) -> Artefact:
    """Load an artefact; nothing else is needed to use it.

    Raises:
        Absent: there is no such file.
        Damaged: not one of ours, of another format, or any byte of it is not the one that was written.
    """
    file = Path(file)
    tensors, notes = unpack(file)
    expected, header, about = noted(file, notes)
    found = digest(tensors, header)
    if found != expected:
        raise Damaged(file, f"its content hashes to {found[:12]}, its header says {expected[:12]}")
    if (version := about["versions"].get("format")) != FORMAT:
        raise Damaged(
            file, f"it was written under format {version}, this library reads format {FORMAT}"
        )
    return Artefact(tensors, about["record"], about["settings"])


class Store:
    """A folder of artefacts, `root/<stage>/<key>.safetensors`.

    Raises:
        InputError: no folder can be there, or it was filled by another format of the library.
    """

    def __init__(self, root: Path | str = "store"):
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise InputError(
                f"{self.root} cannot be the store ({os.strerror(error.errno)}): expected a folder to write into; name another (STORE=...)"
            ) from None
        kept(self.root, self.root / "store.json", f"the store {self.root}", self._mark, self._sign)

    def _sign(self) -> None:
        write_whole(self.root / "store.json", json.dumps({"format": FORMAT}).encode())

    def _mark(self, mark: Path) -> None:
        try:
            found = json.loads(mark.read_bytes())
        except FileNotFoundError:
            raise Absent(f"no file {mark}") from None
        except (
            ValueError
        ) as error:  # nothing is lost: each artefact says itself under which format it was made
            raise Damaged(mark, f"it is no JSON ({error})") from None
        if (version := found.get("format") if isinstance(found, dict) else None) != FORMAT:
            raise InputError(
                f"{self.root} was filled under format {version}, this library writes format {FORMAT}: name another folder (STORE=...) or delete it"
            )

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
            Absent: it is not there.
            Damaged: it is damaged, or was made under other settings (both values are named).
        """
        return checked(self.file(settings), settings)

    def kept(
        self,
        settings: Settings,
        what: str,
        make: Callable[[], object],
        needs: Iterable[Settings] = (),
    ) -> Artefact:
        """What the task of `settings` made; where that is absent or damaged, `make` makes it now, in one process at a time; `what` says it in words."""
        return kept(
            self.root,
            self.file(settings),
            what,
            partial(checked, settings=settings),
            make,
        )

    def busy(self, settings: Settings) -> bool:
        """Whether a living process is making it."""
        return locked(self.root, key(settings))

    def checkpoint_file(self, settings: Settings) -> Path:
        """Where the state of the unfinished task stands."""
        return self.root / "checkpoints" / f"{key(settings)}.safetensors"

    def resume(self, settings: Settings) -> Artefact | None:
        """The checkpoint of an unfinished task, if there is a sound one; a damaged one is set aside."""
        try:
            return checked(self.checkpoint_file(settings), settings)
        except Absent:
            return None
        except Damaged as error:
            set_aside(self.root, error)
            return None

    def checkpoint(self, settings: Settings, tensors: dict[str, Tensor], record: dict) -> None:
        """Keep an unfinished task's state."""
        write(self.checkpoint_file(settings), settings, tensors, record)

    def finish(
        self, settings: Settings, tensors: dict[str, Tensor], record: dict, spent: dict
    ) -> None:
        """Save, note what it cost, and drop the checkpoint."""
        self.save(settings, tensors, record)
        write_whole(self.note_file(settings), json.dumps(spent).encode())
        self.checkpoint_file(settings).unlink(missing_ok=True)

    def note_file(self, settings: Settings) -> Path:
        """Where it is noted what the artefact cost: beside it, for it would differ from run to run."""
        return self.root / "notes" / f"{key(settings)}.json"

    def note(self, settings: Settings) -> dict | None:
        """What `meter.Meter` read when the artefact was finished, all its runs together; None where that was not noted, or cannot be read."""
        try:
            found = json.loads(self.note_file(settings).read_bytes())
        except (OSError, ValueError):
            return None
        return (
            found if isinstance(found, dict) and isinstance(found.get("seconds"), float) else None
        )

    def rows_of(self, settings: Settings) -> Callable[[int, int], Tensor]:
        """`(first, last) -> rows first ... last - 1` of the stored tensor `path`, read from disk without the rest.

        Raises:
            Absent, Damaged: as for `load`.
        """
        self.load(settings)  # checks the hash once
        held = safe_open(str(self.file(settings)), "pt").get_slice("path")
        return lambda first, last: held[first:last]


def checked(file: Path, settings: Settings) -> Artefact:
    """The artefact in `file`, made under exactly these settings.

    Raises:
        Absent, Damaged: as for `read`; or it was made under others.
    """
    artefact = read(file)
    wanted = settings.model_dump(mode="json")
    for name in sorted(wanted.keys() | artefact.settings.keys()):
        found, expected = artefact.settings.get(name), wanted.get(name)
        if found != expected:
            raise Damaged(
                file,
                f"it was made under other settings: {name} is {found!r} there, {expected!r} was asked for",
            )
    return artefact
