"""Six functions: load data, train experts, pick images, distil, evaluate, save and load.

Each returns the result of one stage from the store, and makes it there if it is missing. Numbers
that are not given are those of the profile `laptop`, for its cell of the nearest IPC; `changes` are
fields of the stage's settings (`ddlib.settings`). Bad input raises an InputError before any work.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import wraps
from inspect import signature
from math import ceil
from pathlib import Path
from statistics import fmean, geometric_mean
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch
from pydantic import ConfigDict, ValidationError, validate_call

from ddlib.base import Data, InputError, Network, Task, explained, own_torch, validated
from ddlib.data import datasets
from ddlib.data.datasets import Images
from ddlib.files import digest, expanded, trouble, write_new
from ddlib.method.evaluate import SyntheticSet
from ddlib.progress import Progress, clock
from ddlib.runs import cost, engine, methods, run, stages
from ddlib.runs.profile import Profile, profile
from ddlib.runs.store import Artefact, Store, packed, read, store_folder
from ddlib.settings import (
    NEED_EXPERT,
    AnySet,
    Distilled,
    Evaluation,
    Expert,
    Imported,
    Selection,
)

__all__ = ["distil", "evaluate", "load", "load_data", "merge", "pick_images", "save"]
__all__ += ["train_experts"]

PROFILE = "laptop"  # whose network, recipes and numbers are taken where nothing else is given
SMALLEST = 16  # images per step of an expert: with fewer, gradients are mostly noise
LARGE = 10  # times the training images of the profile's main data: there experts do less
PATIENCE = 120  # seconds, above which the work is announced
WORTH = 50  # training images per class, below which distilled images learn these by heart
SHORT = "not enough memory: take a smaller `size`, `ipc` or `batch`, or fewer WORKERS"
NEAR = 1.5  # times chance: an expert that is not better than this has learned next to nothing

log = logging.getLogger("ddlib")
P = ParamSpec("P")
T = TypeVar("T")


def verb(do: Callable[P, T]) -> Callable[P, T]:
    """One of the six functions: works whatever PyTorch is set to; its faults are InputErrors."""
    takes = signature(do)
    checked: Any = validate_call(config=ConfigDict(strict=True))(do)

    @wraps(do)
    def done(*given: P.args, **named: P.kwargs) -> T:
        try:
            call = takes.bind(*given, **named).arguments
        except TypeError as error:
            names = ", ".join(takes.parameters)
            raise InputError(f"{do.__name__}: {error}; it takes {names}") from None
        call |= call.pop("changes", {})
        plain = {k: v.item() if isinstance(v, np.generic) else v for k, v in call.items()}
        try:
            with own_torch():
                return checked(**plain)
        except OSError as error:
            raise InputError(trouble(error)) from error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and "allocate memory" not in str(error):
                raise
            raise InputError(f"{do.__name__}: {SHORT}") from error
        except ValidationError as error:
            raise explained(error, f"what {do.__name__} was given") from None

    return done


@verb
def load_data(
    name: str, path: Path | str | None = None, size: int | None = None, **changes: Any
) -> Images:
    """Load training, validation and test images by the name of the data set.

    `load_data("folder", path="my/images", size=32)` loads your own from ``path/<class>/*``, each
    cut square and brought to `size` pixels per side.

    Raises:
        InputError: no such data set, or not all of its files are there.
    """
    fields = {"name": name, "path": path and str(expanded(path)), "size": size, **changes}
    data = validated(Data, fields, f"data '{name}'")
    return datasets.load(datasets.identify(data), store_folder())


@verb
def train_experts(
    real: Images, n: int | None = None, recipe: str = "sgd", **changes: Any
) -> list[Artefact]:
    """Train n experts (default: the profile's number) on the training images.

    Each artefact holds the trajectory `path` theta*_0 ... theta*_E, (E + 1, P), and one row per
    epoch in its record. `recipe` is one of the profile's: `sgd` (MTT's), `momentum`, `ast` ... On
    a data set smaller than the profile's, batches are smaller and, where batches of 16 still give
    too few steps, epochs are more. On one that is ten times as large, two experts are enough, and
    they stop after the last epoch that a student follows.

    Raises:
        InputError: no such recipe.
    """
    scaled, cell = _profile_for(real.settings)
    fields = methods.recipe(scaled, scaled.cells[cell], recipe).model_dump()
    usual = profile(PROFILE)
    main = usual.cells[usual.main_cell].data
    n_here, n_there = datasets.about(real.settings).n_train, datasets.about(main).n_train
    batch = min(fields["batch"], max(SMALLEST, int(fields["batch"] * n_here / n_there)))
    longer = max(1, round(ceil(n_there / fields["batch"]) / ceil(n_here / batch)))
    epochs = {name: fields[name] * longer for name in ("epochs", "ramp_epochs")}
    if "seed" in changes or not 1 <= (1 if n is None else n) <= 10_000:
        raise InputError("seeds 0 to n - 1 are trained, n from 1 to 10000: set n alone")
    usually = scaled.n_experts
    if n_here >= LARGE * n_there:
        students = [cell.student for cell in usual.cells.values()]
        last = max(s["start_epochs"] + s["matched_epochs"] - 1 for s in students)
        epochs["until"] = min(last, changes.get("epochs", epochs["epochs"]))
        usually = min(2, usually)
    fields |= {"batch": batch, **epochs, **changes}
    seeds = range(usually if n is None else n)
    wanted = [validated(Expert, fields | {"seed": seed}, f"recipe {recipe}") for seed in seeds]
    experts = _make(wanted)
    ends = [expert.record["rows"][-1]["validation_accuracy"] for expert in experts]
    if ends and fmean(ends) < NEAR / real.classes:
        log.warning(
            "experts on %s classify %.0f %% of the validation images correctly, chance is %.0f %%: "
            "images that follow them will hardly teach more; use more images, or more `epochs`",
            *(real.settings.title, 100 * fmean(ends), 100 / real.classes),
        )
    return experts


@verb
def pick_images(
    real: Images,
    experts: Sequence[Artefact] = (),
    ipc: int = 1,
    method: str = "representative",
    seed: int = 0,
    **changes: Any,
) -> Artefact:
    """Pick `ipc` training images per class, to start from or to train on as they are (a coreset).

    `representative`, `herding`, `k_center` and `correct` use the features of one of the experts;
    `real` draws at random, `noise` is no images at all. The artefact holds `images` (n, c, h, w)
    and `labels` (n,).

    Raises:
        InputError: no such method, no experts where it needs them, or too few images.
    """
    scaled, cell = _profile_for(real.settings, ipc)
    if method in NEED_EXPERT and "expert" not in changes:
        if not experts:
            raise InputError(
                f"'{method}' images are picked by an expert's features, but no experts were given: "
                "hand over those of train_experts, or use method='real'"
            )
        expert = _settings(experts[seed % len(experts)], Expert, "experts of train_experts")
        if expert.data != real.settings:
            raise InputError(
                f"the experts saw {expert.data}, but the images to pick from are {real.settings}: "
                "train experts on these"
            )
        changes["expert"] = expert
    return _make([methods.selection(scaled, scaled.cells[cell], method, seed, **changes)])[0]


@verb
def distil(
    experts: Sequence[Artefact],
    start: Artefact,
    method: str = "AST+",
    seed: int = 0,
    **changes: Any,
) -> Artefact:
    """Distil synthetic images, from the images `start`, along the experts.

    `start` may be a set that was distilled, loaded or merged: it goes on from its images and lr.

    `method` names the switches and the tuned numbers. The default, `AST+`, is what validation
    favours over the cells of `laptop` and `fashion`: SGD experts, inner momentum, a start from
    representative images. Others are `AST` (with experts of the recipe `ast`), `MTT`, `FTD`,
    `DATM` ... `DC`, `DSA` and `DM` follow no experts. The artefact holds `images`, `labels`, and
    their `history` at each checkpoint evaluation; the learned `lr` and the `curve` are in its
    record.

    Raises:
        InputError: no such method, or experts that do not fit.
    """
    of = _settings(start, AnySet, "images of pick_images, or a set to go on with")
    store = _store()
    known = isinstance(of, Selection) and store.has(of)
    if not known or _taught(store.load(of)) != _taught(start):
        of = _handed_over(of.data, [start])
    if (per_class := datasets.about(of.data).per_class) < WORTH:
        log.warning(
            "%s has %d training images per class: distilled images then learn these by heart, and "
            "seldom teach more about others than picked ones; it is worth it from about %d on",
            *(of.data.title, per_class, WORTH),
        )
    scaled, cell = _profile_for(of.data, of.ipc)
    followed: dict[str, Any] = {}
    if methods.known(scaled, method).recipe:
        followed = {"experts": _recipe_of(experts), "n_experts": len(experts)}
        followed |= {"a0": of.lr} if of.method == "given" else {}
    given = {"start": of.model_dump(), **followed, **changes}
    usual = scaled.cells[cell].student.get("checks")
    if usual and isinstance(few := changes.get("iterations"), int):
        given.setdefault("checks", max(1, min(usual, few)))
    return _make([methods.distillation(scaled, cell, method, seed, **given)])[0]


@verb
def merge(sets: Sequence[Artefact]) -> Artefact:
    """All images of several sets of the same data as one set; its lr is their geometric mean.

    Raises:
        InputError: no sets, or sets of different data.
    """
    each = [_settings(one, AnySet, "sets of distil or pick_images") for one in sets]
    if not each or any(of.data != each[0].data for of in each):
        found = "; ".join(f"{of.data}" for of in each) or "none"
        raise InputError(f"sets of {found} were given: expected sets of the same data")
    return run.get(_handed_over(each[0].data, sets), _store())


@verb
def evaluate(synthetic: Artefact, network: Network | None = None, **changes: Any) -> pd.DataFrame:
    """Train fresh networks on a set from scratch, and score them on the test images.

    One row per network and protocol: `lr_chosen` has the learning rate selected on the validation
    set, `lr_a` the set's own. Rows of a set in the store are kept there. Any other set, say a
    friend's file, is judged as it is, each time anew. The accuracy is printed; where nothing is
    changed, that of a distilled set beside those of the images it began with and of its experts.

    Raises:
        InputError: what was given is no set.
    """
    of = _settings(synthetic, AnySet, "a set of distil or pick_images")
    scaled, cell = _profile_for(of.data, of.ipc)
    settings = methods.evaluation(scaled, cell, of, network or of.network, **changes)
    store = _store()
    if store.has(of) and _taught(store.load(of)) == _taught(synthetic):
        asked: list[Task] = [settings]
        if isinstance(of, Distilled) and network is None and not changes:
            asked.append(methods.evaluation(scaled, cell, of.start, of.network))
        each = [pd.DataFrame(made.record["rows"]) for made in _make(asked)]
        _tell(of, *each)
        return each[0]
    teachers = {other: run.get(other, store) for other in settings.needs()[1:]}
    inputs = stages.Inputs(run.images(of.data, store), teachers)
    rows = pd.DataFrame(judge(settings, stages.judged(settings, synthetic, inputs)))
    _tell(of, rows)
    return rows


@verb
def save(artefact: Artefact, file: Path | str, force: bool = False) -> None:
    """Write an artefact to a file of its own, exactly, with all that is needed to use it.

    Raises:
        InputError: the file is there and holds something else; with `force` it is replaced.
    """
    settings = stages.settings_of(artefact.settings)
    start, tensors = packed(settings, artefact.tensors, artefact.record)
    numbers = (t.flatten().view(torch.uint8).numpy().tobytes() for t in tensors.values())
    write_new({Path(file): b"".join([start, *numbers])}, force)


@verb
def load(file: Path | str) -> Artefact:
    """Read what `save` wrote, on any machine; raises Absent or Damaged where it is not that."""
    return read(Path(file))


def judge(settings: Evaluation, synthetic: SyntheticSet) -> list[dict]:
    """Rows of fresh networks on any images, which the store does not keep; shows the time left."""
    real = run.images(settings.data, _store())
    with closing(Progress("judging the set", cost.seconds(settings))) as progress:
        share = progress.total / cost.trained(settings)

        def done() -> None:  # a grid that widens more often trains more networks
            progress.advance(min(share, progress.total - progress.done), "networks train on it")

        return stages.judge(settings, synthetic, real, done)


def _tell(of: AnySet, rows: pd.DataFrame, before: pd.DataFrame | None = None) -> None:
    """Print what a set teaches, and what its images taught `before`, and what experts know."""

    def shown(rows: pd.DataFrame, when: str = "") -> str:
        some = rows[rows.protocol == "lr_chosen"]
        return f"{some.accuracy.mean():.1%}{when} (lr {some.lr.iloc[0]:.2g})"

    if rows.accuracy.isna().any():
        return  # the test images stay unseen
    words = f"{of.title}, {rows.epochs[0]} epochs: test accuracy "
    if before is None:
        words += shown(rows)
    else:
        words += f"{shown(before, ' before')}, {shown(rows, ' distilled')}"
        kept = [one for one in of.needs()[1:] if _store().has(one)]
        experts = [_store().load(one).record["rows"][-1] for one in kept]
        if experts:
            words += f", {fmean(row['test_accuracy'] for row in experts):.1%} the experts"
    print(words)


def _handed_over(data: Data, sets: Sequence[Artefact]) -> Selection:
    """These sets as one selection, class after class; the store keeps it under its digest."""
    known = datasets.about(data)
    synthetic = [SyntheticSet.of(one) for one in sets]
    for one in synthetic:
        one.check(known.shape, len(known.class_names))
    labels = torch.cat([one.tensors["labels"] for one in sets])
    order = labels.argsort(stable=True)
    tensors = {"images": torch.cat([one.images for one in synthetic])[order]}
    tensors["labels"] = labels[order]
    soft = ["soft" in one.tensors for one in sets]
    if any(soft) and not all(soft):
        raise InputError("some sets have soft labels, some have none: merge sets of one kind")
    if all(soft):
        tensors["soft"] = torch.cat([one.tensors["soft"] for one in sets])[order]
    lr = geometric_mean(one.lr for one in synthetic)
    ipc, contents = len(labels) // len(known.class_names), digest(tensors, f"{lr}")[:16]
    settings = Selection(data=data, method="given", ipc=ipc, lr=lr, contents=contents)
    store, space = _store(), {k: t for k, t in sets[0].tensors.items() if k.startswith("space.")}
    if not store.has(settings):
        store.save(settings, tensors | space, {"lr": lr})
    return settings


def _store() -> Store:
    """The one store; this process computes as those that fill it."""
    engine.settle()
    return Store(store_folder())


def _make(wanted: Sequence[Task]) -> list[Artefact]:
    """The artefacts of these settings; those that are missing are made side by side."""
    store = _store()
    missing = run.missing(wanted, store)
    workers = min(engine.default_workers(), len(missing))
    if sum(map(cost.seconds, missing)) / max(1, workers) > PATIENCE:
        took = cost.pace() * sum(map(cost.seconds, missing)) / workers
        text = "%d results are to be made, which takes about %s here; an interrupted run continues"
        log.warning(text, len(missing), clock(took))
    run.ensure(wanted, store)
    return [run.get(settings, store) for settings in wanted]


def _settings(artefact: Artefact, kind: Any, expected: str) -> Any:
    """The settings of an artefact that was handed over, which should be of that kind."""
    settings = stages.settings_of(artefact.settings)
    if not isinstance(settings, kind):
        raise InputError(f"{settings.title} was given, expected {expected}: hand that over")
    return settings


def _profile_for(data: Data, ipc: int = 1) -> tuple[Profile, str]:
    """The profile with one cell, named after the data: its own of the nearest IPC, on these."""
    usual = profile(PROFILE)
    nearest = min(usual.cells.values(), key=lambda cell: abs(cell.ipc - ipc))
    cell = nearest.model_copy(update={"data": data, "ipc": ipc})
    return usual.model_copy(update={"cells": {data.name: cell}}), data.name


def _recipe_of(experts: Sequence[Artefact]) -> dict[str, Any]:
    """The settings of the first expert; the others may differ from it in their seeds alone."""
    each = [_settings(e, Expert | Imported, "experts").model_dump(mode="json") for e in experts]
    if not each or any(fields != each[0] | {"seed": seed} for seed, fields in enumerate(each)):
        raise InputError(
            f"{len(each)} experts of seeds {[fields.get('seed') for fields in each]}: expected all "
            "that one call of train_experts returned, in order; hand that over"
        )
    return each[0]


def _taught(synthetic: Artefact) -> str:
    """A digest of what networks train on: the images, their labels and the lr."""
    parts = {k: t for k, t in synthetic.tensors.items() if k in ("images", "labels", "soft")}
    return digest(parts, repr(synthetic.record["lr"]))
