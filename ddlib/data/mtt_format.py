"""Expert buffers in the form of MTT and its successors, and `.pt` files of other people.

A buffer is a list of trajectories, a trajectory a list of E + 1 epochs, an epoch a list of the
network's parameters. MTT's ConvNet lists them as ours does, in the same shapes: of each block the
convolution's weight and bias and the norm's, then the linear map's; theta is their concatenation.
A stranger's file is loaded by a child process first, `reader`, with little memory and time: only
one that proved to be harmless is loaded here. P is the number of parameters.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddlib.files import opened, write_new
from ddlib.settings import Imported, InputError

PER_FILE = 10  # trajectories per file that is written, as MTT does
ENDING = 17 << 20  # bytes; an archive's list of entries takes less
SECONDS = 60  # of processor time that the child may take per file; of clock time ten times that
EXPECTED = (
    "expected what torch.save has written since PyTorch 1.6, of tensors, lists, dicts, numbers and "
    "strings alone: download or copy it again, or have its owner save the tensors again"
)

Shapes = Mapping[str, Sequence[int]]  # the network's parameters in order, by name
_sound: set[tuple[Path, int, int]] = set()  # files that proved to be: path, size, time of change


def identify(settings: Imported) -> Imported:
    """The same settings, with the buffer's `contents` as they are now filled in.

    Raises:
        InputError: there is no such buffer.
    """
    if settings.contents is not None:
        return settings
    return settings.model_copy(update={"contents": fingerprint(Path(settings.buffer))})


def buffer_files(path: Path) -> list[Path]:
    """The files of a buffer: `path` itself, or the replay_buffer_<n>.pt in it, by number.

    Raises:
        InputError: there are none.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(
                f"no buffer {path.absolute()}: expected a replay_buffer_<n>.pt, "
                "or the folder of several; correct `buffer`"
            )
        return [path]
    matches = {
        file: re.fullmatch(r"replay_buffer_([0-9]+)\.pt", file.name) for file in path.iterdir()
    }
    numbered: dict[int, Path] = {}
    for file, match in sorted(matches.items()):
        if match and numbered.setdefault(int(match[1]), file) != file:
            raise InputError(
                f"{numbered[int(match[1])].name} and {file.name} in {path.absolute()} have the "
                "same number: expected one file of each; rename one, or take it away"
            )
    if not numbered:
        raise InputError(f"no replay_buffer_<n>.pt in {path.absolute()}: correct `buffer`")
    return [numbered[n] for n in sorted(numbered)]


def fingerprint(buffer: Path) -> str:
    """16 hexadecimal digits that name a buffer's contents, by names, sizes and endings of files.

    A `.pt` archive ends with a list of the checksums of all that it holds.
    """
    known = [(file, *_stamp(file)) for file in buffer_files(buffer)]
    text = json.dumps([(file.name, size, _ending(file, size, time)) for file, size, time in known])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _ending(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as content:
        content.seek(max(0, size - ENDING))
        return hashlib.sha256(content.read(ENDING)).hexdigest()


def _stamp(file: Path) -> tuple[int, int]:
    about = file.stat()
    return about.st_size, about.st_mtime_ns


def prove(*files: Path) -> None:
    """Have a child process load the files, unless they have proved harmless before.

    Raises:
        InputError: one is missing, harmful, damaged or no `.pt` file; the first of them is named.
    """
    for file in files:
        if not file.exists():
            raise InputError(f"no file {file}: check the path")
        if not file.is_file() or not file.stat().st_size:
            what = "a folder" if file.is_dir() else "empty" if file.is_file() else "no plain file"
            raise InputError(f"{file} is {what}, expected a .pt file: name another, or {EXPECTED}")
    new = {file: (file, *_stamp(file)) for file in files if not is_safetensors(file)}
    new = {file: stamp for file, stamp in new.items() if stamp not in _sound}
    if not new:
        return
    # -P: the modules beside the script hide none of the same name
    command = [sys.executable, "-P", str(Path(__file__).with_name("reader.py")), str(SECONDS)]
    slim = {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1", "CUDA_VISIBLE_DEVICES": ""}
    try:
        child = subprocess.run(
            [*command, *(str(file.absolute()) for file in new)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=os.environ | slim,
            timeout=10 * SECONDS * len(new),
        )
        output, status = child.stdout, child.returncode
    except subprocess.TimeoutExpired as expired:
        output, status = (expired.stdout or b"").decode(), -signal.SIGXCPU
    lines = output.splitlines()
    for file, line in zip(new, [*lines, ""], strict=False):
        if line != "sound":
            raise InputError(f"{file} {_fault(line, status)}; {EXPECTED}")
        _sound.add(new[file])


def _fault(line: str, status: int) -> str:
    """What is wrong with a file, by the child's last words or the way it ended."""
    if status == 3:
        return line
    if -status in (signal.SIGXCPU, signal.SIGKILL):
        return f"is not read within {SECONDS} s, so it was stopped"
    name = signal.Signals(-status).name if status < 0 else f"status {status}"
    return f"crashes the process that reads it ({name})"


def is_safetensors(file: Path) -> bool:
    """Whether a file begins as a safetensors file: its header's length, and a JSON object."""
    with file.open("rb") as content:
        head = content.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size


def read_foreign(file: Path) -> Any:
    """What a `.pt` or `.safetensors` file holds, its tensors mapped: copy what you keep.

    Their numbers are not checked yet: see `checksums`.

    Raises:
        InputError: as `prove`.
    """
    prove(file)
    if is_safetensors(file):
        with opened(file) as archive:
            return {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    return torch.load(str(file), map_location="cpu", weights_only=True, mmap=True)


def checksums(file: Path) -> None:
    """Refuse a `.pt` file of which a number is not the one that was written."""
    if is_safetensors(file):  # which has none
        return
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        damaged = str(error)
    if damaged:
        raise InputError(
            f"{file} is damaged (the checksum of {damaged} differs): copy or download it again; "
            "if it was saved without checksums, save it again with them"
        )


def words(value: Any) -> str:
    """A value of a file in a few words."""
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {value.dtype}"
    if isinstance(value, dict):
        return f"a dict of {', '.join(repr(k)[:40] for k in list(value)[:5])}"
    length = f" of {len(value)}" if hasattr(value, "__len__") else ""
    return f"a {type(value).__name__}{length}"


def check_buffer(file: Path, tree: Any, shapes: Shapes, epochs: int) -> None:
    """Refuse what is no list of trajectories of this network, naming the first fault."""
    if not isinstance(tree, list | tuple) or not tree:
        raise InputError(
            f"{file} holds {words(tree)}, expected a list of trajectories "
            "as MTT's buffer.py saves it"
        )
    for t, trajectory in enumerate(tree):
        if not isinstance(trajectory, list | tuple) or len(trajectory) != epochs + 1:
            raise InputError(
                f"{file}: trajectory {t} is {words(trajectory)}, expected a list of "
                f"E + 1 = {epochs + 1} epochs: set `epochs` to what the buffer holds"
            )
        for e, parameters in enumerate(trajectory):
            place = f"{file}: trajectory {t}, epoch {e}"
            if not isinstance(parameters, list | tuple) or len(parameters) != len(shapes):
                raise InputError(
                    f"{place} is {words(parameters)}, expected a list of {len(shapes)} parameters "
                    f"({', '.join(shapes)}): set `network` to the buffer's"
                )
            for p, (name, shape) in enumerate(shapes.items()):
                expected = f"{tuple(shape)} of torch.float32"
                if isinstance(parameters[p], Tensor) and parameters[p].dtype != torch.float32:
                    raise InputError(
                        f"{place}, parameter {p} ({name}) is {words(parameters[p])}, expected "
                        f"{expected}: convert the buffer's tensors with .float(), and save them"
                    )
                if not isinstance(parameters[p], Tensor) or words(parameters[p]) != expected:
                    raise InputError(
                        f"{place}, parameter {p} ({name}) is {words(parameters[p])}, expected "
                        f"{expected}: set `network` (width, depth) and `data` to those that the "
                        "buffer was made with"
                    )


@lru_cache(maxsize=64)
def _counted(
    file: Path, stamp: tuple[int, int], shapes: tuple[tuple[str, tuple], ...], epochs: int
) -> int:
    tree = read_foreign(file)
    check_buffer(file, tree, dict(shapes), epochs)
    return len(tree)


def count(buffer: Path | str, shapes: Shapes, epochs: int) -> list[tuple[Path, int]]:
    """How many trajectories of this network each file of a buffer holds; no number is read.

    Raises:
        InputError: a file that is not sound, or does not fit.
    """
    same, files = (
        tuple((k, tuple(shape)) for k, shape in shapes.items()),
        buffer_files(Path(buffer)),
    )
    prove(*files)
    return [(file, _counted(file, _stamp(file), same, epochs)) for file in files]


def trajectory(
    buffer: Path | str, index: int, shapes: Shapes, epochs: int, contents: str
) -> Tensor:
    """Trajectory `index` of a buffer as theta*_0 ... theta*_E, (E + 1, P), counted over its files.

    Raises:
        InputError: there are fewer, or it has other contents than those named; numbers are not
            finite, or an epoch moves nothing.
    """
    if (now := fingerprint(Path(buffer))) != contents:
        raise InputError(
            f"{buffer} has changed: its contents are {now}, expected {contents}. Put the files "
            "back, or leave `contents` out to work with those there now"
        )
    places = [(file, i) for file, n in count(buffer, shapes, epochs) for i in range(n)]
    if index >= len(places):
        raise InputError(
            f"{buffer} holds {len(places)} trajectories, but number {index} (from 0) is asked "
            f"for: set n_experts to at most {len(places)}"
        )
    file, i = places[index]
    checksums(file)
    snapshots = read_foreign(file)[i]
    path = torch.stack([torch.cat([p.detach().reshape(-1) for p in some]) for some in snapshots])
    if not path.isfinite().all():
        fits = [(e, p) for e, some in enumerate(snapshots) for p in range(len(some))]
        e, p = next((e, p) for e, p in fits if not snapshots[e][p].isfinite().all())
        raise InputError(
            f"{file}: trajectory {i}, epoch {e}, parameter {p} ({list(shapes)[p]}) has numbers "
            "that are not finite: take this trajectory out, its training failed"
        )
    for e in range(epochs):
        if torch.equal(path[e], path[e + 1]):
            raise InputError(
                f"{file}: trajectory {i} is the same at epochs {e} and {e + 1}, expected an "
                "expert that moves: its snapshots may not have been cloned"
            )
    return path


def write_buffer(
    folder: Path, paths: Iterable[Tensor], shapes: Shapes, force: bool = False
) -> list[Path]:
    """Write trajectories (E + 1, P) as replay_buffer_0.pt ..., ten per file, for `trajectory`.

    Raises:
        InputError: a file of that name holds something else, unless `force`.
    """
    sizes = [prod(shape) for shape in shapes.values()]
    files: list[Path] = []
    trajectories: list[list[list[Tensor]]] = []

    def parameters(theta: Tensor) -> list[Tensor]:
        parts = zip(theta.split(sizes), shapes.values(), strict=True)
        return [p.view(*shape).clone() for p, shape in parts]

    def write() -> None:
        file = folder / f"replay_buffer_{len(files)}.pt"
        files.extend(write_new({file: saved(trajectories)}, force))
        trajectories.clear()

    for path in paths:
        trajectories.append([parameters(theta) for theta in path])
        if len(trajectories) == PER_FILE:
            write()
    if trajectories:
        write()
    return files


def saved(content: Any) -> bytes:
    """What `torch.save` writes."""
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()
