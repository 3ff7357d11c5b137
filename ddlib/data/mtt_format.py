"""What we share with MTT and its successors: expert buffers and distilled images, as `.pt` files in the form that its code writes; checked and read, and written.

A buffer is a list of trajectories, a trajectory a list of E + 1 epochs, an epoch a list of the network's parameters. MTT's ConvNet lists them as ours does:
for each block the convolution's weight and bias and the norm's, then the linear map's, in the same shapes, so theta is their concatenation. Only on grey
images do the two differ (MTT pads those of 28 x 28 pixels to 32 x 32), and there the shapes tell. E epochs, P parameters, n images, c x h x w pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddlib.data.foreign import Outline, outline, read_foreign, words
from ddlib.runs.store import whole
from ddlib.settings import InputError, buffer_files, fingerprint

PER_FILE = 10  # trajectories a file of those we write, as MTT does

Shapes = Mapping[str, Sequence[int]]  # the network's parameters in order, by name


def check_buffer(file: Path, tree: Any, shapes: Shapes, epochs: int) -> None:
    """Refuse an `outline` that is no list of trajectories of this network: names the first trajectory, epoch and parameter that does not fit."""
    if not isinstance(tree, list | tuple) or not tree:
        raise InputError(
            f"{file} holds {words(tree)}, expected a list of trajectories as MTT's buffer.py saves it"
        )
    for t, trajectory in enumerate(tree):
        if not isinstance(trajectory, list | tuple) or len(trajectory) != epochs + 1:
            raise InputError(
                f"{file}: trajectory {t} is {words(trajectory)}, expected a list of E + 1 = {epochs + 1} epochs: set `epochs` to what the buffer holds"
            )
        for e, parameters in enumerate(trajectory):
            where = f"{file}: trajectory {t}, epoch {e}"
            if not isinstance(parameters, list | tuple) or len(parameters) != len(shapes):
                raise InputError(
                    f"{where} is {words(parameters)}, expected a list of {len(shapes)} parameters ({', '.join(shapes)}): set `network` to the buffer's"
                )
            for p, (found, (name, shape)) in enumerate(
                zip(parameters, shapes.items(), strict=True)
            ):
                if (
                    not isinstance(found, Outline)
                    or found.shape != tuple(shape)
                    or found.dtype != torch.float32
                ):
                    raise InputError(
                        f"{where}, parameter {p} ({name}) is {words(found)}, expected {tuple(shape)} of torch.float32: "
                        "set `network` (width, depth) and `data` to those that the buffer was made with"
                    )


@lru_cache(maxsize=64)
def _counted(
    file: Path,
    size: int,
    changed: int,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    epochs: int,
) -> int:
    tree = outline(file)
    check_buffer(file, tree, dict(shapes), epochs)
    return len(tree)


def count(buffer: Path | str, shapes: Shapes, epochs: int) -> list[tuple[Path, int]]:
    """How many trajectories of this network each file of a buffer holds, all of them checked; from outlines alone.

    Raises:
        InputError: a file that is not sound, or does not fit.
    """
    same, found = tuple((name, tuple(shape)) for name, shape in shapes.items()), []
    for file in buffer_files(Path(buffer)):
        about = file.stat()
        found.append((file, _counted(file, about.st_size, about.st_mtime_ns, same, epochs)))
    return found


def trajectory(
    buffer: Path | str, index: int, shapes: Shapes, epochs: int, contents: str
) -> Tensor:
    """Trajectory `index` of a buffer as theta*_0 ... theta*_E, (E + 1, P); those of a folder count on from file to file.

    Raises:
        InputError: not so many; other contents than those named; numbers that are not finite, or an epoch that moves nothing.
    """
    if (now := fingerprint(Path(buffer))) != contents:
        raise InputError(
            f"{buffer} has changed: its contents are {now}, expected {contents}. Put the files back, or leave `contents` out to work with those there now"
        )
    places = [(file, i) for file, n in count(buffer, shapes, epochs) for i in range(n)]
    if index >= len(places):
        raise InputError(
            f"{buffer} holds {len(places)} trajectories, but number {index} (from 0) is asked for: set n_experts to at most {len(places)}"
        )
    file, i = places[index]
    epoch_lists = read_foreign(file, lambda tree: check_buffer(file, tree, shapes, epochs))[i]
    path = torch.stack(
        [torch.cat([p.detach().reshape(-1) for p in parameters]) for parameters in epoch_lists]
    )  # (E + 1, P)
    if not (good := path.isfinite()).all():
        e, where = (~good).nonzero()[0].tolist()
        p, name = next(
            (p, name)
            for p, name in enumerate(shapes)
            if where < sum(prod(s) for s in list(shapes.values())[: p + 1])
        )
        raise InputError(
            f"{file}: trajectory {i}, epoch {e}, parameter {p} ({name}) has numbers that are not finite: take this trajectory out, its training failed"
        )
    for e in range(epochs):
        if torch.equal(path[e], path[e + 1]):
            raise InputError(
                f"{file}: trajectory {i} is the same at epochs {e} and {e + 1}, expected an expert that moves: its snapshots may not have been cloned"
            )
    return path


def write_buffer(folder: Path, paths: Iterable[Tensor], shapes: Shapes) -> list[Path]:
    """Trajectories (E + 1, P) as replay_buffer_0.pt, replay_buffer_1.pt ..., ten a file; what `trajectory` reads back, number by number."""
    sizes = [prod(s) for s in shapes.values()]
    held: list[list[list[Tensor]]] = []
    files: list[Path] = []

    def keep() -> None:
        files.append(save(folder / f"replay_buffer_{len(files)}.pt", held))
        held.clear()

    for path in paths:
        held.append(
            [
                [
                    p.view(*shape).clone()
                    for p, shape in zip(theta.split(sizes), shapes.values(), strict=True)
                ]
                for theta in path
            ]
        )
        if len(held) == PER_FILE:
            keep()
    if held:
        keep()
    return files


def save(file: Path, content: Any) -> Path:
    """`torch.save`, whole or not at all."""
    with whole(file) as out:
        torch.save(content, out)
    return file


@dataclass(frozen=True)
class Loose:
    """A distilled set as others keep it: images (n, c, h, w) in a space that they do not name, labels (n,) or probabilities (n, K), the learned lr if it is kept."""

    images: Tensor
    labels: Tensor
    lr: float | None


def beside(file: Path, what: str) -> Path | None:
    """labels_best.pt for images_best.pt, if it lies there; images_zca_best.pt (MTT's images in pixels) has the same labels."""
    if not file.name.startswith("images_"):
        return None
    other = file.with_name(f"{what}_{file.name.removeprefix('images_').removeprefix('zca_')}")
    return other if other.exists() else None


def has_lr(file: Path) -> bool:
    """Whether images come with the lr to train on them with: in their file, or in lr_*.pt beside it."""
    tree = outline(file)
    return (isinstance(tree, dict) and "lr" in tree) or beside(file, "lr") is not None


def read_set(
    file: Path | str, labels: Path | None, shape: tuple[int, int, int], classes: int, most: int
) -> Loose:
    """Images and labels from a `.pt` file: a dict {"images", "labels", "lr"}, or a tensor, whose labels and lr lie in files of their own.

    At most `most` images (as many as train a network in full) of this (c, h, w), hard labels 0 ... K - 1 or soft ones (n, K): probabilities
    where each row is one, else logits, as DATM's code keeps them.

    Raises:
        InputError: an unsound file; no labels; another shape, number or type; labels out of range, or none of a class; numbers that are not finite.
    """
    file = Path(file)

    def fits(tree: Any) -> None:
        found = tree.get("images") if isinstance(tree, dict) else tree
        if not isinstance(found, Outline):
            raise InputError(
                f'{file} holds {_keys(tree)}, expected a tensor of images, or a dict with "images" and perhaps "labels" and "lr"'
            )
        n, *rest = found.shape or (0,)
        if tuple(rest) != tuple(shape) or not 0 < n <= most or not found.dtype.is_floating_point:
            raise InputError(
                f"{file}: images are {words(found)}, expected {('n', *shape)} of torch.float32 with n from 1 to {most}: "
                "choose the data set that they were made of (--data)"
            )

    held = read_foreign(file, fits)
    images = (held["images"] if isinstance(held, dict) else held).detach().float().clone()
    if not images.isfinite().all():
        n = int((~images.isfinite()).flatten(1).any(1).sum())
        raise InputError(
            f"{file}: {n} of {len(images)} images have numbers that are not finite: its distillation failed; take an earlier one"
        )
    inside = isinstance(held, dict)
    if labels is None and inside and "labels" in held:
        y = _labels(file, len(images), classes, "labels")
    elif (found := labels or beside(file, "labels")) is not None:
        y = _labels(found, len(images), classes, None)
    else:
        raise InputError(
            f"{file} holds no labels and labels_*.pt does not lie beside it: name their file with --labels"
        )
    lr = _number(file, held["lr"]) if inside and "lr" in held else None
    if lr is None and (found := beside(file, "lr")) is not None:
        lr = _number(found, read_foreign(found))
    return Loose(images, y, lr)


def _keys(tree: Any) -> str:
    return (
        f"a dict of {', '.join(repr(k[:40]) for k in list(tree)[:5] if isinstance(k, str))}"
        if isinstance(tree, dict)
        else words(tree)
    )


def _labels(file: Path, n: int, classes: int, key: str | None) -> Tensor:
    """Hard labels (n,), int64, or soft ones (n, K), float32, each row a probability."""

    def part(tree: Any) -> Any:
        return tree[key] if key else tree

    def fits(tree: Any) -> None:
        found = part(tree)
        if (
            isinstance(found, Outline)
            and found.shape == (n, classes)
            and found.dtype.is_floating_point
        ):
            return
        if (
            not isinstance(found, Outline)
            or found.shape != (n,)
            or found.dtype.is_floating_point
            or found.dtype == torch.bool
        ):
            raise InputError(
                f"{file}: labels are {words(found)}, expected ({n},) of torch.int64, one for each image, or soft ones, ({n}, {classes}) of torch.float32: "
                "give the file of these images' labels as --labels"
            )

    y = part(read_foreign(file, fits)).detach()
    if y.dim() == 2:
        return _soft(file, y.float().clone())
    y = y.long().clone()
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise InputError(
            f"{file}: labels reach from {int(y.min())} to {int(y.max())}, expected 0 to {classes - 1}: choose the data set that they were made of (--data)"
        )
    if lacking := (y.bincount(minlength=classes) == 0).nonzero().flatten().tolist():
        raise InputError(
            f"{file}: no image of class {lacking[0]} ({len(lacking)} of {classes} classes have none), expected one of each at least: complete the set"
        )
    return y


def _soft(file: Path, y: Tensor) -> Tensor:
    """Probabilities, or what they are of logits."""
    if wrong := int((~y.isfinite()).any(1).sum()):
        raise InputError(
            f"{file}: {wrong} of {len(y)} soft labels have numbers that are not finite, expected probabilities or logits: take those of an earlier iteration"
        )
    return (
        y
        if bool((y >= 0).all()) and torch.allclose(y.sum(1), y.new_ones(len(y)), atol=1e-4)
        else y.softmax(1)
    )


def _number(file: Path, found: Any) -> float:
    """A positive number, or a tensor of one."""
    single = isinstance(found, int | float) or (isinstance(found, Tensor) and found.numel() == 1)
    return positive(float(found) if single else float("nan"), f"{file}: its lr")


def positive(value: float, what: str) -> float:
    """The number, if it can be an lr."""
    if not 0 < value < float("inf"):
        raise InputError(
            f"{what} is {value}, expected a positive number, the lr that was learned with the images: give it with --lr"
        )
    return value


def write_set(
    folder: Path, images: Tensor, labels: Tensor, lr: float, form: str = "mtt"
) -> list[Path]:
    """images_best.pt and labels_best.pt (hard labels, or the logits of soft ones) as MTT names them, and lr_best.pt: the learned lr as a tensor of one number.

    In the form of DD-Ranking: images.pt class after class, for it takes the labels of hard-labelled sets to lie so; labels.pt; lr.pt, a plain number.
    """
    if form == "mtt":
        contents: dict[str, Any] = {
            "images": images.clone(),
            "labels": labels.clone(),
            "lr": torch.tensor(lr, dtype=torch.float64),
        }
        return [save(folder / f"{name}_best.pt", content) for name, content in contents.items()]
    order = labels.argsort(stable=True) if labels.dim() == 1 else torch.arange(len(labels))
    contents = {"images": images[order].float(), "labels": labels[order], "lr": lr}
    return [save(folder / f"{name}.pt", content) for name, content in contents.items()]
