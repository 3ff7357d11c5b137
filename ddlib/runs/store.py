"""Artefacts on disk: one safetensors file a task, written whole or not at all, named by the key of its settings.

The header holds the settings, the record (rows, learned lr, curves), the versions that made it and the sha256 of all that, so
a file says all that is needed to use it. Asking again reads it; a file made under other settings is refused.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ddlib.runs import locks
from ddlib.settings import FORMAT, InputError, Settings, key

FULL = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
)  # no space, no more of one's share, a file larger than allowed

T = TypeVar("T")


@dataclass(frozen=True)
class Artefact:
    """What a task left: tensors by name, and a JSON-able record."""

    tensors: dict[str, Tensor]
    record: dict
    settings: dict


class Absent(InputError):
    """There is no such file."""


class Damaged(InputError):
    """A file is not as it was written, or not what its name says: names both."""

    def __init__(self, file: Path, fault: str):
        super().__init__(file, fault)
        self.file, self.fault = file, fault

    def __str__(self) -> str:
        return f"{self.file} is damaged or not a ddlib file: {self.fault}; take a sound copy of it, or move it away and make it again"


class Full(InputError):
    """There is no room to write."""


def amount(size: float) -> str:
    """Bytes in words: 12 kB, 3.4 MB, 5.1 GB."""
    for unit, one in (("GB", 1e9), ("MB", 1e6)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size / 1e3:.0f} kB" if size >= 1e3 else f"{size:.0f} bytes"


def digest(tensors: dict[str, Tensor], header: str = "") -> str:
    """sha256 over a header and the tensors' names, shapes, types and bytes."""
    total = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        total.update(t.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


@contextmanager
def whole(file: Path, size: int = 0) -> Iterator[IO[bytes]]:
    """A file to write into that gets its name when all is written, or leaves nothing: a reader never meets half a file.

    Until then it has the name `out.name`, .half-*, and is locked, so that those which a killed process left can be told. `size` is what it will take, if known.

    Raises:
        Full: there is no room for it.
    """
    half = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=file.parent, prefix=".half-", suffix=file.suffix, delete=False
        ) as out:
            half = Path(out.name)
            os.chmod(half, 0o644)
            locks.lock_now(out.fileno())
            yield out
            out.flush()
            os.fsync(out.fileno())
            os.replace(half, file)
        settle(file.parent)
    except BaseException as error:
        if half is not None:
            half.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise Full(no_room(error, file, size)) from error
        raise


def settle(folder: Path) -> None:
    """See to it that the names in a folder outlast a power cut, where its file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def no_room(error: OSError, file: Path, size: int = 0) -> str:
    """What to say of a full disk."""
    home = next(folder for folder in file.absolute().parents if folder.exists())
    needed = f"it takes {amount(size)}, and " if size else ""
    return (
        f"{file} could not be written ({os.strerror(error.errno)}): {needed}{amount(shutil.disk_usage(home).free)} are free in {home}. "
        "Free some space there (`python -m ddlib gc` shows what no profile needs), or raise your quota or limit, and run again: what is finished is kept"
    )


def write_whole(file: Path, content: bytes) -> None:
    """All of `content` under its name, or nothing."""
    with whole(file, len(content)) as out:
        out.write(content)


def sweep(folder: Path, remove: bool = True) -> list[Path]:
    """Remove the half files of ended processes from a folder and those right inside it; which they were."""
    found = [
        half
        for pattern in (".half-*", "*/.half-*")
        for half in sorted(folder.glob(pattern))
        if locks.abandoned(half)
    ]
    for half in found if remove else ():
        half.unlink(missing_ok=True)
    return found


def layout(tensors: dict[str, Tensor], notes: dict[str, str]) -> tuple[list[str], bytes]:
    """The order in which safetensors keeps these tensors, and its file's bytes before their numbers; of their numbers nothing is read."""
    empty = save({name: torch.empty(0, dtype=t.dtype) for name, t in tensors.items()}, notes)
    header, end = json.loads(empty[8:]), 0
    order = [name for name in header if name != "__metadata__"]
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        header[name] |= {"shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return order, len(text).to_bytes(8, "little") + text


Parts = tuple[
    torch.dtype, tuple[int, ...], Iterable[Tensor]
]  # a tensor's type, its shape, and what makes it up, in order


def entire(tensors: dict[str, Tensor]) -> dict[str, Parts]:
    """Each tensor as one part."""
    return {name: (t.dtype, tuple(t.shape), [t]) for name, t in tensors.items()}


def write_parts(file: Path, tensors: dict[str, Parts]) -> None:
    """Tensors that may be larger than memory as a safetensors file that notes their digest, each part written as it comes."""
    shapes = {
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, (dtype, shape, _) in tensors.items()
    }
    order, start = layout(shapes, {"sha256": "0" * 64})
    with whole(file, len(start) + sum(t.nbytes for t in shapes.values())) as out:
        out.write(start)
        for name in order:
            for part in tensors[name][2]:
                out.write(part.contiguous().numpy().data)
        out.flush()
        found = digest(load_file(out.name))
        out.seek(0)
        out.write(layout(shapes, {"sha256": found})[1])


def read_parts(file: Path, expected: str | None = None) -> dict[str, Tensor]:
    """What `write_parts` wrote, mapped: it need not fit memory.

    Raises:
        Absent: there is no such file.
        Damaged: its digest is not the one that it notes, or that was expected.
    """
    tensors, notes = unpack(file)
    found, noted = digest(tensors), notes.get("sha256", "nothing")
    if found != noted:
        raise Damaged(file, f"its content hashes to {found[:12]}, its header says {noted[:12]}")
    if found != (expected or found):
        raise Damaged(file, f"its content hashes to {found[:12]}, expected {expected[:12]}")
    return tensors


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


def unpack(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, mapped, and notes of a file that this library wrote. That their bytes are sound is for a digest to say; all others are here.

    Raises:
        Absent: there is no such file.
        Damaged: it is no such file, or a byte before the numbers is not the one that its content asks for.
    """
    with opened(file) as held:
        notes = held.metadata() or {}
        tensors = {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (not a dict)
        start = layout(tensors, notes)[1]
        with file.open("rb") as raw:
            if raw.read(len(start)) != start:
                raise Damaged(file, "its first bytes are not those that its content asks for")
    return tensors, notes


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file; what goes wrong inside says which file."""
    try:
        with safe_open(str(file), "pt") as held:
            yield held
    except FileNotFoundError:
        raise Absent(
            f"no file {file}: check the path, or make it by asking for its table"
        ) from None
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror or error}): expected a file, and the right to read it"
        ) from error
    except (SafetensorError, ValueError, RuntimeError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise Damaged(file, str(error) if file.stat().st_size else "it is empty") from error


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


def set_aside(root: Path, error: Damaged) -> None:
    """Move a damaged file of the store at `root` to its folder `damaged`, where nothing is overwritten, and say so."""
    file, home = error.file, root / "damaged"
    home.mkdir(parents=True, exist_ok=True)
    for i in count():
        there = home / f"{file.parent.name}-{file.stem}{f'-{i}' if i else ''}{file.suffix}"
        with suppress(FileExistsError):
            there.open("x").close()  # the name is ours
            break
    os.replace(file, there)
    print(
        f"warning: {file} is damaged: {error.fault}; it is set aside as {there} and made again",
        file=sys.stderr,
        flush=True,
    )


def kept(
    root: Path,
    file: Path,
    what: str,
    load: Callable[[Path], T],
    make: Callable[[], object],
    reads: Iterable[str] = (),
) -> T:
    """What `load` finds in a file of the store at `root`; where it is absent or damaged, `make` makes it: one process does, others wait for it."""
    with suppress(Absent, Damaged):
        return load(file)
    with locks.lock(root / "locks" / file.stem, what, reads):
        try:
            return load(file)
        except Absent:
            pass
        except Damaged as error:
            set_aside(root, error)
        make()
        return load(file)


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
            map(key, needs),
        )

    def busy(self, settings: Settings) -> bool:
        """Whether a living process is making it."""
        return locks.holder(self.root / "locks" / key(settings)) is not None

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
