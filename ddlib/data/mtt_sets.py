"""Distilled sets in the form of MTT and its successors, as `.pt` files: images, labels and lr.

n images, c x h x w pixels, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddlib.base import InputError
from ddlib.data.mtt_format import checksums, prove, read_foreign, saved, words
from ddlib.files import write_new


class LoadedSet(NamedTuple):
    """A distilled set of a stranger's, in a space that it does not name."""

    images: Tensor  # (n, c, h, w)
    labels: Tensor  # (n,), or probabilities (n, K)
    lr: float | None  # the learned one, if it is kept


def beside(file: Path, what: str) -> Path | None:
    """labels_best.pt for images_best.pt or images_zca_best.pt (MTT's in pixels), if it is there."""
    if not file.name.startswith("images_"):
        return None
    other = file.with_name(f"{what}_{file.name.removeprefix('images_').removeprefix('zca_')}")
    return other if other.exists() else None


def has_lr(file: Path) -> bool:
    """Whether images come with an lr: in their file, or in lr_*.pt beside it."""
    tree = read_foreign(file)
    return (isinstance(tree, dict) and "lr" in tree) or beside(file, "lr") is not None


def read_set(
    file: Path | str, labels: Path | None, shape: tuple[int, int, int], classes: int, most: int
) -> LoadedSet:
    """Images, labels and lr of a `.pt` file: a dict of the three, or a tensor beside the others.

    At most `most` images (as many as train a network in full) of this (c, h, w); hard labels
    0 ... K - 1, or soft ones (n, K): probabilities where each row is one, else logits (as DATM's).

    Raises:
        InputError: an unsound file; no labels; another shape, number or type; labels out of range,
            or none of a class; numbers that are not finite.
    """
    file = Path(file)
    lr_file, labels_file = beside(file, "lr"), labels or beside(file, "labels")
    prove(file, *filter(None, (lr_file, labels_file)))
    tree = read_foreign(file)
    inside = tree if isinstance(tree, dict) else {"images": tree}
    images = inside.get("images")
    if not isinstance(images, Tensor):
        raise InputError(
            f"{file} holds {words(tree)}, expected a tensor of images, "
            'or a dict with "images" and perhaps "labels" and "lr"'
        )
    if not images.is_floating_point():
        raise InputError(
            f"{file}: images are {words(images)}, expected numbers in a network's space, such as "
            "torch.float32: divide levels by 255, whiten them as their networks saw them, and save "
            "them again"
        )
    n = len(images) if images.dim() else 0
    if images.shape[1:] != shape or not 0 < n <= most:
        raise InputError(
            f"{file}: images are {words(images)}, expected {('n', *shape)} of torch.float32 with "
            f"n from 1 to {most}: choose the data set that they were made of (--data)"
        )
    checksums(file)
    images = images.detach().float().clone()
    if bad := int((~images.isfinite()).flatten(1).any(1).sum()):
        raise InputError(
            f"{file}: {bad} of {n} images have numbers that are not finite: "
            "its distillation failed; take an earlier one"
        )
    if labels is None and "labels" in inside:
        y = _labels(file, inside["labels"], n, classes)
    elif labels_file is not None:
        checksums(labels_file)
        y = _labels(labels_file, read_foreign(labels_file), n, classes)
    else:
        raise InputError(
            f"{file} holds no labels and labels_*.pt does not lie beside it: "
            "name their file with --labels"
        )
    if "lr" in inside:
        return LoadedSet(images, y, _number(file, inside["lr"]))
    if lr_file is None:
        return LoadedSet(images, y, None)
    checksums(lr_file)
    return LoadedSet(images, y, _number(lr_file, read_foreign(lr_file)))


def _labels(file: Path, y: Any, n: int, classes: int) -> Tensor:
    """Hard labels (n,), int64, or soft ones (n, K), float32, each row a probability."""
    soft = isinstance(y, Tensor) and y.shape == (n, classes) and y.is_floating_point()
    hard = isinstance(y, Tensor) and y.shape == (n,) and not y.is_floating_point()
    if not soft and (not hard or y.dtype == torch.bool):
        raise InputError(
            f"{file}: labels are {words(y)}, expected ({n},) of torch.int64, one for each image, "
            f"or soft ones, ({n}, {classes}) of torch.float32: "
            "give the file of these images' labels as --labels"
        )
    if soft:
        return _soft(file, y.detach().float().clone())
    y = y.long().clone()
    if int(y.min()) < 0 or int(y.max()) >= classes:
        raise InputError(
            f"{file}: labels reach from {int(y.min())} to {int(y.max())}, expected 0 to "
            f"{classes - 1}: choose the data set that they were made of (--data)"
        )
    if lacking := (y.bincount(minlength=classes) == 0).nonzero().flatten().tolist():
        raise InputError(
            f"{file}: no image of class {lacking[0]} ({len(lacking)} of {classes} classes have "
            "none), expected one of each at least: complete the set"
        )
    return y


def _soft(file: Path, y: Tensor) -> Tensor:
    """Probabilities, as they are or made of logits."""
    if bad := int((~y.isfinite()).any(1).sum()):
        raise InputError(
            f"{file}: {bad} of {len(y)} soft labels have numbers that are not finite, "
            "expected probabilities or logits: take those of an earlier iteration"
        )
    are = bool((y >= 0).all()) and torch.allclose(y.sum(1), y.new_ones(len(y)), atol=1e-4)
    return y if are else y.softmax(1)


def _number(file: Path, value: Any) -> float:
    """A positive number, or a tensor of one."""
    single = isinstance(value, int | float) or (isinstance(value, Tensor) and value.numel() == 1)
    return positive(float(value) if single else float("nan"), f"{file}: its lr")


def positive(value: float, what: str) -> float:
    """The number, if it can be an lr."""
    if not 0 < value < float("inf"):
        raise InputError(
            f"{what} is {value}, expected a positive number, "
            "the lr that was learned with the images: give it with --lr"
        )
    return value


def write_set(
    folder: Path,
    images: Tensor,
    labels: Tensor,
    lr: float,
    form: str = "mtt",
    force: bool = False,
) -> list[Path]:
    """images_best.pt, labels_best.pt (hard, or logits) and lr_best.pt (one number), as MTT's.

    In the form of DD-Ranking images.pt, class after class, for it takes hard labels to lie so,
    labels.pt, and lr.pt, a plain number.

    Raises:
        InputError: a file of that name holds something else, unless `force`.
    """
    tensors: dict[str, Any] = {"images": images.clone(), "labels": labels.clone()}
    if form == "mtt":
        tensors |= {"lr": torch.tensor(lr, dtype=torch.float64)}
        files = {folder / f"{name}_best.pt": saved(value) for name, value in tensors.items()}
    else:
        order = labels.argsort(stable=True) if labels.dim() == 1 else torch.arange(len(labels))
        tensors = {"images": images[order].float(), "labels": labels[order], "lr": lr}
        files = {folder / f"{name}.pt": saved(value) for name, value in tensors.items()}
    return write_new(files, force)
