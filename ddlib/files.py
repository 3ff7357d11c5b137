"""Files that are written whole or not at all, by one process at a time, and checked by a digest.

Tensors are kept as safetensors, with a sha256 over names, shapes, types and numbers in the header.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO, Any, TypeVar

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from ddlib.base import InputError, printable

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # no space, no quota left, a file above the limit
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EROFS)  # of the file system
UMASK = os.umask(0o022)  # it is read by setting it
os.umask(UMASK)
ABANDONED = 3600.0  # seconds: nobody has written into a half file for so long

T = TypeVar("T")
# a tensor's type, its shape, and the tensors that make it up, in order
Parts = tuple[torch.dtype, tuple[int, ...], Iterable[Tensor]]


class Absent(InputError):
    """There is no such file."""


class Damaged(InputError):
    """A file is not as it was written, or not what its name says."""

    def __init__(self, file: Path, fault: str):
        super().__init__(file, fault)
        self.file, self.fault = file, fault

    def __str__(self) -> str:
        return printable(
            f"{self.file} is damaged or not a ddlib file: {self.fault}; "
            "take a sound copy of it, or move it away and make it again"
        )


class Full(InputError):
    """There is no room to write."""


def amount(size: float) -> str:
    """Bytes in words: 12 kB, 3.4 MB, 5.1 GB."""
    for unit, large in (("GB", 1e9), ("MB", 1e6)):
        if size >= large:
            return f"{size / large:.1f} {unit}"
    return f"{size / 1e3:.0f} kB" if size >= 1e3 else f"{size:.0f} bytes"


def digest(tensors: dict[str, Tensor], header: str = "") -> str:
    """sha256 over a header and the tensors' names, shapes, types and bytes."""
    total = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        t = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tuple(t.shape)} {t.dtype}".encode())
        total.update(t.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


def stamp(file: Path) -> tuple[Path, int, int, int]:
    """A file with its size and times of change: while that is the same, so is its content."""
    about = file.stat()
    return file, about.st_size, about.st_mtime_ns, about.st_ctime_ns


def expanded(path: Path | str) -> Path:
    """A path whose ~ is the home it means; raises InputError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(f"{path}: there is no such home; write the whole path") from None


@contextmanager
def whole(file: Path, size: int = 0) -> Iterator[IO[bytes]]:
    """A file to write into that gets its name when all is written, or leaves nothing.

    Until then it is called ``.half-*``. `size` is what it will take, if known.

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
            os.chmod(half, 0o666 & ~UMASK)
            yield out
            out.flush()
            os.fsync(out.fileno())
            os.replace(half, file)
        sync_folder(file.parent)
    except BaseException as error:
        if half is not None:
            half.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:
            raise Full(no_room(error, file, size)) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut, where its file system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        with suppress(OSError):
            os.fsync(handle)
        os.close(handle)


def no_room(error: OSError, file: Path, size: int = 0) -> str:
    """The message for a full disk."""
    home = next(folder for folder in file.absolute().parents if os.path.isdir(folder))
    needed = f"it takes {amount(size)}, and " if size else ""
    return (
        f"{file} could not be written ({os.strerror(error.errno)}): {needed}"
        f"{amount(shutil.disk_usage(home).free)} are free in {home}. Free some space there "
        "(`python -m ddlib gc` shows what no profile needs), or raise your quota or limit, "
        "and run again: what is finished is kept"
    )


def trouble(error: OSError) -> str:
    """The message for a fault of the file system."""
    place = error.filename2 or error.filename or "a file"
    if error.errno in FULL:
        return no_room(error, Path(place))
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return f"{error.strerror}: run fewer processes (WORKERS=...), or raise `ulimit -n`"
    return (
        f"{place}: {error.strerror or error}; expected a place that can be read and written: "
        "correct the path or its rights, or name another. What is finished is kept"
    )


def write_new(files: dict[Path, bytes], force: bool = False) -> list[Path]:
    """Write files; none where one is there already with other content, unless `force`."""
    there = {file: content for file, content in files.items() if os.path.lexists(file)}
    others = [f for f, content in there.items() if not (f.is_file() and f.read_bytes() == content)]
    if others and not force:
        raise InputError(
            f"{others[0]} is there already and holds something else ({len(others)} of "
            f"{len(files)} files): nothing was written; name another place, or add --force "
            "(in Python: force=True) to replace them"
        )
    for file, content in files.items():
        write_whole(file, content)
    return list(files)


def write_whole(file: Path, content: bytes) -> None:
    """All of `content` under its name, or nothing."""
    with whole(file, len(content)) as out:
        out.write(content)


def sweep(folder: Path, remove: bool = True) -> list[Path]:
    """Remove half files from a folder and those right inside it; which they were.

    Only those that an hour has not touched: a process that still writes one touches it all along.
    """
    ended = []
    for half in sorted([*folder.glob(".half-*"), *folder.glob("*/.half-*")]):
        with suppress(OSError):  # finished, or swept by another process, or another user's
            if time.time() - half.stat().st_mtime > ABANDONED:
                ended.append(half)
                if remove:
                    half.unlink()
    return ended


def layout(tensors: dict[str, Tensor], notes: dict[str, str]) -> tuple[list[str], bytes]:
    """The order in which safetensors keeps these tensors, and its file's bytes before the numbers.

    Only names, shapes and types are read, so the tensors may be on the meta device.
    """
    empty = save({name: torch.empty(0, dtype=t.dtype) for name, t in tensors.items()}, notes)
    header, end = json.loads(empty[8:]), 0
    order = [name for name in header if name != "__metadata__"]
    for name in order:
        begin, end = end, end + tensors[name].nbytes
        header[name] |= {"shape": list(tensors[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return order, len(text).to_bytes(8, "little") + text


def write_parts(file: Path, tensors: Mapping[str, Tensor | Parts]) -> None:
    """Write tensors that may be larger than memory, part by part, with their digest."""
    parts = {
        name: (t.dtype, tuple(t.shape), [t]) if isinstance(t, Tensor) else t
        for name, t in tensors.items()
    }
    shapes = {
        name: torch.empty(shape, dtype=dtype, device="meta")
        for name, (dtype, shape, _) in parts.items()
    }
    order, start = layout(shapes, {"sha256": "0" * 64})
    with whole(file, len(start) + sum(t.nbytes for t in shapes.values())) as out:
        out.write(start)
        for name in order:
            for part in parts[name][2]:
                out.write(part.contiguous().numpy().data)
        out.flush()
        sha256 = digest(load_file(out.name))
        out.seek(0)
        out.write(layout(shapes, {"sha256": sha256})[1])


def read_parts(file: Path, expected: str | None = None) -> dict[str, Tensor]:
    """What `write_parts` wrote, mapped: it need not fit memory.

    Raises:
        Absent, Damaged: as `unpack`; or its digest is not that of its header, or the expected one.
    """
    tensors, notes = unpack(file)
    sha256, noted = digest(tensors), notes.get("sha256", "nothing")
    for wanted, whose in ((noted, "its header says"), (expected or sha256, "expected")):
        if sha256 != wanted:
            raise Damaged(file, f"its content hashes to {sha256[:12]}, {whose} {wanted[:12]}")
    return tensors


def unpack(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, mapped, and notes of a file that this library wrote.

    Every byte before the numbers is checked here; the numbers are for a digest to check.

    Raises:
        Absent: there is no such file.
        Damaged: it is no such file, or its first bytes are not those that its content asks for.
    """
    with opened(file) as archive:
        notes = archive.metadata() or {}
        tensors = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
        start = layout(tensors, notes)[1]
        with file.open("rb") as raw:
            if raw.read(len(start)) != start:
                raise Damaged(file, "its first bytes are not those that its content asks for")
    return tensors, notes


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """A safetensors file; an error inside says which file it was."""
    try:
        if file.exists() and not file.is_file():
            raise InputError(f"{file} is no plain file: expected a .safetensors file")
        file.open("rb").close()  # safetensors calls absent whatever it cannot open
        with safe_open(str(file), "pt") as archive:
            yield archive
    except FileNotFoundError:
        raise Absent(f"no file {file}: check the path") from None
    except OSError as error:
        raise InputError(
            f"{file} cannot be read ({error.strerror or error}): "
            "expected a file, and the right to read it"
        ) from error
    except InputError:
        raise
    except (SafetensorError, ValueError, RuntimeError, TypeError) as error:
        raise Damaged(file, str(error) if file.stat().st_size else "it is empty") from error


def set_aside(root: Path, error: Damaged) -> None:
    """Move a damaged file of the store at `root` to its folder `damaged`, and say so."""
    file, home = error.file, root / "damaged"
    home.mkdir(parents=True, exist_ok=True)
    names = (f"{file.parent.name}-{file.stem}{f'-{i}' if i else ''}{file.suffix}" for i in count())
    there = next(place for name in names if not (place := home / name).exists())
    os.replace(file, there)
    warning = f"warning: {file} is damaged: {error.fault}; it is set aside as {there}"
    print(f"{warning} and made again", file=sys.stderr, flush=True)


def kept(
    root: Path, file: Path, what: str, load: Callable[[Path], T], make: Callable[[], object]
) -> T:
    """What `load` reads from a file of the store at `root`; `make` makes it where it is not sound.

    One process makes it while others wait. `what` says in words what it is.
    """
    with suppress(Absent, Damaged):
        return load(file)
    with _alone(root / "locks" / f"{file.stem}.lock", what):
        try:
            return load(file)
        except Absent:
            pass
        except Damaged as error:
            set_aside(root, error)
        make()
        return load(file)


@contextmanager
def _alone(lock_file: Path, what: str) -> Iterator[None]:
    """Hold a lock; where the file system knows none, go on without: a task is then done twice."""
    lock_file.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(lock_file, poll_interval=0.2)
    try:
        with suppress(NotImplementedError):
            try:
                lock.acquire(timeout=0.5)
            except Timeout:
                words = printable(f"{what}: waits for another process that makes it")
                print(words, file=sys.stderr, flush=True)
                lock.acquire()
    except PermissionError as error:
        raise InputError(
            f"{lock_file} belongs to another user and cannot be locked: expected a store that all "
            "of its users may write into (one group, umask 002); name another (STORE=...)"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()


def locked(root: Path, stem: str) -> bool:
    """Whether a living process makes the file of that stem in the store at `root`.

    A lock that cannot be looked at, for it is another user's, counts as held.
    """
    file = root / "locks" / f"{stem}.lock"
    try:
        if file.exists():
            FileLock(file).acquire(timeout=0).lock.release()
    except (Timeout, PermissionError):
        return True
    except (OSError, NotImplementedError):
        pass
    return False
