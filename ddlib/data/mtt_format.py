"""Expert buffers and distilled sets in the form of MTT and its successors, as `.pt` files.

A buffer is a list of trajectories, a trajectory a list of E + 1 epochs, an epoch a list of the
network's parameters. MTT's ConvNet lists them as ours does, in the same shapes: of each block the
convolution's weight and bias and the norm's, then the linear map's; theta is their concatenation.
A stranger's file is loaded by a child process first, `reader`, with little memory and time: only
one that proved to be harmless is loaded here. P is the number of parameters, K that of classes.
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
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddlib.files import opened, stamp, write_new
from ddlib.settings import Imported, InputError

PER_FILE = 10  # trajectories per file that is written, as MTT does
ENDING = 17 << 20  # bytes; an archive's list of entries takes less
SECONDS = 60  # of processor time that the child may take per file; of clock time ten times that
EXPECTED = (
    "expected what torch.save has written since PyTorch 1.6, of tensors, lists, dicts, numbers and "
    "strings alone: download or copy it again, or have its owner save the tensors again"
)

Shapes = Mapping[str, Sequence[int]]  # the network's parameters in order, by name
_sound: set[tuple] = set()  # stamps of files that proved to be


def identify(settings: Imported) -> Imported:
    """The same settings, with the buffer's `contents` as they are now filled in."""
    if settings.contents is not None:
        return settings
    return settings.model_copy(update={"contents": fingerprint(Path(settings.buffer))})


def buffer_files(path: Path) -> list[Path]:
    """The files of a buffer: `path` itself, or the replay_buffer_<n>.pt in it, by number."""
    if path.is_file():
        return [path]
    name = re.compile(r"replay_buffer_([0-9]+)\.pt")
    numbered = [(int(n[1]), file) for file in path.glob("*") if (n := name.fullmatch(file.name))]
    if not numbered:
        raise InputError(
            f"no buffer {path.absolute()}: expected a replay_buffer_<n>.pt, or the folder of "
            "several; correct `buffer`"
        )
    return [file for _, file in sorted(numbered)]


def fingerprint(buffer: Path) -> str:
    """16 hexadecimal digits that name a buffer's contents, by names, sizes and endings of files.

    A `.pt` archive ends with a list of the checksums of all that it holds.
    """
    files = buffer_files(buffer)
    known = [(file.name, file.stat().st_size, _ending(*stamp(file))) for file in files]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _ending(file: Path, size: int, *times: int) -> str:
    with file.open("rb") as content:
        content.seek(max(0, size - ENDING))
        return hashlib.sha256(content.read(ENDING)).hexdigest()


def prove(*files: Path) -> None:
    """Have a child process load the files, unless they have proved harmless before.

    Raises:
        InputError: one is missing, harmful, damaged or no `.pt` file; the first of them is named.
    """
    for file in files:
        if not file.exists():
            raise InputError(f"no file {file}: check the path")
        if not file.is_file():
            raise InputError(f"{file} is no plain file: name a .pt file; {EXPECTED}")
    stamps = {file: stamp(file) for file in files if not is_safetensors(file)}
    new = [file for file in stamps if stamps[file] not in _sound]
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
        if line == "sound":
            _sound.add(stamps[file])
            continue
        name = signal.Signals(-status).name if status < 0 else f"status {status}"
        fault = line if status == 3 else f"crashes the process that reads it ({name})"
        if -status in (signal.SIGXCPU, signal.SIGKILL):
            fault = f"is not read within {SECONDS} s, so it was stopped"
        raise InputError(f"{file} {fault}; {EXPECTED}")


def is_safetensors(file: Path) -> bool:
    """Whether a file begins as a safetensors file: its header's length, and a JSON object."""
    with file.open("rb") as content:
        head = content.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < file.stat().st_size


def read_foreign(file: Path) -> Any:
    """What a `.pt` or `.safetensors` file holds, its tensors mapped: copy what you keep.

    Refused as by `prove`. The numbers are not checked yet: see `checksums`.
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

    def check(found: Any, n: int | None, place: str, expected: str) -> None:
        good = isinstance(found, list | tuple) and (len(found) == n or (n is None and found))
        if not good:
            raise InputError(f"{file}{place} is {words(found)}, expected a list of {expected}")

    check(tree, None, "", "trajectories as MTT's buffer.py saves it")
    for t, trajectory in enumerate(tree):
        held = f"E + 1 = {epochs + 1} epochs: set `epochs` to what the buffer holds"
        check(trajectory, epochs + 1, f": trajectory {t}", held)
        for e, epoch in enumerate(trajectory):
            place = f": trajectory {t}, epoch {e}"
            held = f"{len(shapes)} parameters ({', '.join(shapes)}): set `network` to the buffer's"
            check(epoch, len(shapes), place, held)
            for p, (name, shape) in enumerate(shapes.items()):
                held = f"{tuple(shape)} of torch.float32"
                if not isinstance(epoch[p], Tensor) or words(epoch[p]) != held:
                    raise InputError(
                        f"{file}{place}, parameter {p} ({name}) is {words(epoch[p])}, expected "
                        f"{held}: set `network` (width, depth) and `data` to those that the buffer "
                        "was made with; tensors of another type convert with .float(), and save"
                    )


@lru_cache(maxsize=64)
def _counted(about: tuple, shapes: tuple[tuple[str, tuple], ...], epochs: int) -> int:
    file, *_ = about
    tree = read_foreign(file)
    check_buffer(file, tree, dict(shapes), epochs)
    return len(tree)


def count(buffer: Path | str, shapes: Shapes, epochs: int) -> list[tuple[Path, int]]:
    """How many trajectories of this network each file of a buffer holds; no number is read."""
    files = buffer_files(Path(buffer))
    prove(*files)
    same = tuple((name, tuple(shape)) for name, shape in shapes.items())
    return [(file, _counted(stamp(file), same, epochs)) for file in files]


def trajectory(
    buffer: Path | str, index: int, shapes: Shapes, epochs: int, contents: str
) -> Tensor:
    """Trajectory `index` of a buffer as theta*_0 ... theta*_E, (E + 1, P), counted over its files.

    Raises:
        InputError: it has other contents than those named; numbers are not finite, or an epoch
            moves nothing.
    """
    if (now := fingerprint(Path(buffer))) != contents:
        raise InputError(
            f"{buffer} has changed: its contents are {now}, expected {contents}. Put the files "
            "back, or leave `contents` out to work with those there now"
        )
    places = [(file, i) for file, n in count(buffer, shapes, epochs) for i in range(n)]
    file, i = places[index]
    checksums(file)
    snapshots = read_foreign(file)[i]
    path = torch.stack([torch.cat([p.detach().reshape(-1) for p in some]) for some in snapshots])
    for e, theta in enumerate(path):
        if not theta.isfinite().all():
            raise InputError(
                f"{file}: trajectory {i}, epoch {e} has numbers that are not finite: take this "
                "trajectory out, its training failed"
            )
        if e and torch.equal(path[e - 1], theta):
            raise InputError(
                f"{file}: trajectory {i} is the same at epochs {e - 1} and {e}, expected an "
                "expert that moves: its snapshots may not have been cloned"
            )
    return path


def write_buffer(
    folder: Path, paths: Iterable[Tensor], shapes: Shapes, force: bool = False
) -> list[Path]:
    """Write trajectories (E + 1, P) as replay_buffer_0.pt ..., ten per file; see `write_new`."""
    sizes = [prod(shape) for shape in shapes.values()]

    def parameters(theta: Tensor) -> list[Tensor]:
        parts = zip(theta.split(sizes), shapes.values(), strict=True)
        return [p.view(*shape).clone() for p, shape in parts]

    left, files = iter(paths), list[Path]()
    while some := list(islice(left, PER_FILE)):
        content = saved([[parameters(theta) for theta in path] for path in some])
        files += write_new({folder / f"replay_buffer_{len(files)}.pt": content}, force)
    return files


def read_set(file: Path, labels: Path | None = None) -> dict[str, Any]:
    """What is there of "images", "labels" and "lr": a dict of them in `file`, or images alone.

    Then the others lie beside it: labels_best.pt and lr_best.pt beside images_best.pt or
    images_zca_best.pt (MTT's in pixels). `labels` names another file of labels. Labels are classes
    (n,), or probabilities (n, K): so they are if each row is one, else they are logits (DATM's).

    Raises:
        InputError: as `prove`, or a number is not the one that was written; images or labels are
            no tensors, or images are levels.
    """
    others = {}
    if file.name.startswith("images_"):
        name = file.name.removeprefix("images_").removeprefix("zca_")
        beside = {what: file.with_name(f"{what}_{name}") for what in ("labels", "lr")}
        others = {what: other for what, other in beside.items() if other.exists()}
    others |= {"labels": labels} if labels else {}
    prove(file, *others.values())
    for each in (file, *others.values()):
        checksums(each)
    tree = read_foreign(file)
    inside = tree if isinstance(tree, dict) else {"images": tree}
    found = {what: inside[what] for what in ("images", "labels", "lr") if what in inside}
    for what, other in others.items():
        if what not in found or other == labels:
            found[what] = read_foreign(other)
    x, y = found.get("images"), found.get("labels", torch.empty(0))
    if not isinstance(x, Tensor) or not x.is_floating_point():
        raise InputError(
            f"{file} holds {words(tree)}, expected a tensor of images, or a dict with "
            '"images" and perhaps "labels" and "lr", in a network\'s space: divide levels by 255, '
            "whiten them as their networks saw them, and save them again"
        )
    if not isinstance(y, Tensor):
        raise InputError(f"{file} has for labels {words(y)}, expected a tensor: name it (--labels)")
    found["images"] = x.detach().float().clone()
    if "labels" in found:
        found["labels"] = _labels(y.detach().clone())
    return found


def _labels(y: Tensor) -> Tensor:
    """Classes as int64, soft labels as probabilities."""
    if y.is_floating_point() and y.dim() == 2:
        y = y.float()
        known = bool((y >= 0).all()) and torch.allclose(y.sum(1), y.new_ones(len(y)), atol=1e-4)
        return y if known else y.softmax(1)
    return y if y.is_floating_point() or y.dtype == torch.bool else y.long()


def write_set(
    folder: Path, images: Tensor, labels: Tensor, lr: float, form: str = "mtt", force: bool = False
) -> list[Path]:
    """images_best.pt, labels_best.pt (hard, or logits) and lr_best.pt (one number), as MTT's.

    In the form of DD-Ranking images.pt, class after class, for it takes hard labels to lie so,
    labels.pt, and lr.pt, a plain number. See `write_new`.
    """
    order, ending = torch.arange(len(labels)), "_best"
    number: Any = torch.tensor(lr, dtype=torch.float64)
    if form == "ddranking":
        order, ending = labels.argsort(stable=True) if labels.dim() == 1 else order, ""
        images, number = images.float(), lr
    content = {"images": images[order], "labels": labels[order], "lr": number}
    return write_new({folder / f"{k}{ending}.pt": saved(v) for k, v in content.items()}, force)


def saved(content: Any) -> bytes:
    """What `torch.save` writes."""
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()
