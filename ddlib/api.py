"""The library in six verbs: load data, train experts, pick initial images, distil, evaluate, save and load.

Each builds the settings of one stage, as the profile `laptop` has them for its cell of the nearest IPC, and hands back what the store holds of them, made
if it is missing: asked again, it is read. What a verb takes beyond its own arguments are fields of those settings (`help(ddlib.config.Distillation)` lists
them with their defaults), and what cannot be used is refused before any work. The store is `store` beside the library, or the environment's STORE.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch

from ddlib import settings as config
from ddlib.data import datasets as data
from ddlib.data.datasets import Images
from ddlib.method.evaluate import trained_on
from ddlib.paper.paper import store_folder
from ddlib.runs import engine, studies
from ddlib.runs import stages as pipeline
from ddlib.runs.store import Artefact, Store, read, write
from ddlib.settings import (
    Data,
    Distilled,
    Expert,
    InputError,
    Network,
    Profile,
    Selection,
    Settings,
    validated,
)

__all__ = [
    "distil",
    "evaluate",
    "load",
    "load_data",
    "pick_images",
    "save",
    "train_experts",
]  # what `help` shows

PROFILE = "laptop"  # whose networks, recipes and settings are taken where nothing else is said
SMALLEST = 16  # images a step of an expert: below, chance rules
NEAR = 1.5  # times chance: an expert that is right no oftener has seen next to nothing

log = logging.getLogger("ddlib")


def load_data(
    name: str, path: Path | str | None = None, size: int | None = None, **changes: Any
) -> Images:
    """The training, validation and test images of that name as networks see them; `folder`: your own, in path/<class>/*, cut to `size` pixels a side.

    Raises:
        InputError: no such data, or not all of it where it should be; `changes` are fields of `config.Data`.
    """
    own = {"path": None if path is None else str(path), "size": size}
    given = {field: value for field, value in own.items() if value is not None}
    return data.load(
        validated(Data, {"name": name, **given, **changes}, f"data '{name}'"), store_folder()
    )


def train_experts(
    real: Images, n: int | None = None, recipe: str = "ast", **changes: Any
) -> list[Artefact]:
    """n experts (the profile's number) on the training images, each with its `path` theta*_0 ... theta*_E, (E + 1, P), and a row an epoch in its record.

    `recipe` is one of the profile's: `ast` smooth and strong, `sgd` as MTT's, `momentum` strong alone ... A set smaller than the profile's is taken in
    smaller batches, so that an epoch has as many steps; where batches of 16 leave too few, in more epochs, so that an expert takes about as many in all.

    Raises:
        InputError: no such recipe; `changes` are fields of `config.Expert`.
    """
    profile, named = scaled(real.settings)
    one = studies.recipe(profile, profile.cells[named], recipe).model_dump()
    ours, theirs = (
        images_in(real.settings),
        images_in(next(iter(config.profile(PROFILE).cells.values())).data),
    )
    batch = min(one["batch"], max(SMALLEST, int(one["batch"] * ours / theirs)))
    longer = max(1, round(ceil(theirs / one["batch"]) / ceil(ours / batch)))
    one |= {
        "batch": batch,
        "epochs": one["epochs"] * longer,
        "ramp_epochs": one["ramp_epochs"] * longer,
    }
    experts = made(
        [
            validated(Expert, one | changes | {"seed": seed}, f"recipe {recipe}")
            for seed in range(profile.n_experts if n is None else n)
        ]
    )
    if (
        experts
        and (right := fmean(expert.record["rows"][-1]["validation_accuracy"] for expert in experts))
        < NEAR / real.classes
    ):
        about = f"the experts on {real.settings.title} are right on {right:.0%} of {len(real.y_val)} validation images, where guessing is on {1 / real.classes:.0%}"
        log.warning(
            "%s: images that follow them will hardly teach more; more images, or more `epochs`, help",
            about,
        )
    return experts


def pick_images(
    real: Images,
    experts: Sequence[Artefact] = (),
    ipc: int = 1,
    method: str = "representative",
    seed: int = 0,
    **changes: Any,
) -> Artefact:
    """`ipc` training images a class to begin with, or to be trained on as they are, a coreset: `images` (n, c, h, w) and `labels` (n,).

    `representative`, `herding`, `k_center` and `correct` look through the eyes of one of the experts; `real` takes any images, `noise` none.

    Raises:
        InputError: no such method, no experts to look through, or too few images; `changes` are fields of `config.Selection`.
    """
    profile, named = scaled(real.settings, ipc)
    if method not in ("real", "noise", "all"):
        eyes = (
            meant(experts[seed % len(experts)], Expert, "experts that train_experts left")
            if experts
            else None
        )
        if eyes and eyes.data != real.settings:
            raise InputError(
                f"the experts saw {eyes.data}, but images of {real.settings} are to be picked: train experts on these"
            )
        changes = {"expert": eyes} | changes
    return made([studies.selection(profile, profile.cells[named], method, seed, **changes)])[0]


def distil(
    experts: Sequence[Artefact], start: Artefact, method: str = "AST", seed: int = 0, **changes: Any
) -> Artefact:
    """Images that teach, from `start` along the experts: `images`, `labels`, their `history` at each look, and the learned `lr` and the `curve` in the record.

    `method` names the switches and tuned numbers: `AST`, `MTT`, `FTD`, `DATM` ...; those that follow no expert (`DC`, `DSA`, `DM`) take none.

    Raises:
        InputError: no such method, experts that do not fit; `changes` are fields of `config.Distillation`, or of `config.Condensation`.
    """
    begun: Selection = meant(start, Selection, "images that pick_images left")
    profile, named = scaled(begun.data, begun.ipc)
    followed = (
        {"experts": recipe_of(experts), "n_experts": len(experts)}
        if studies.known(profile, method).recipe
        else {}
    )
    return made(
        [
            studies.distillation(
                profile, named, method, seed, start=start.settings, **followed | changes
            )
        ]
    )[0]


def evaluate(what: Artefact, network: Network | None = None, **changes: Any) -> pd.DataFrame:
    """Fresh networks trained on a set from scratch, a row each: test `accuracy` after the last epoch, with the lr chosen on validation and with the set's own.

    A set that the store made is judged there, and its rows are kept; any other, say a friend's file, is judged as it is.

    Raises:
        InputError: `changes` are fields of `config.Evaluation`.
    """
    of: Distilled | Selection = meant(
        what, Distilled | Selection, "a set that distil or pick_images left"
    )
    profile, named = scaled(
        pipeline.of_data(of), of.start.ipc if isinstance(of, Distilled) else of.ipc
    )
    settings = studies.evaluation(profile, named, of, network or pipeline.made_with(of), **changes)
    store = store_at_hand()
    if store.has(of) and same(store.load(of), what):
        return pd.DataFrame(made([settings])[0].record["rows"])
    return pd.DataFrame(
        pipeline.judge(
            settings,
            what.tensors["images"],
            trained_on(what, settings.labels == "hard"),
            what.record["lr"],
            store,
        )
    )


def save(what: Artefact, file: Path | str) -> None:
    """An artefact as a file of its own, exact, with all that is needed to use it; byte by byte what the store holds."""
    write(Path(file), pipeline.settled(what.settings), what.tensors, what.record)


def load(file: Path | str) -> Artefact:
    """What was saved, by this library on any machine.

    Raises:
        Absent: there is no such file.
        Damaged: it is none of ours, or a byte of it is not the one that was written.
    """
    return read(Path(file))


def store_at_hand() -> Store:
    """The one store, and this process as those that fill it."""
    engine.settle()
    return Store(store_folder())


def made(wanted: Sequence[Settings]) -> list[Artefact]:
    """Their artefacts, made side by side where they are missing."""
    store = store_at_hand()
    pipeline.ensure(wanted, store)
    return [pipeline.get(settings, store) for settings in wanted]


def meant(what: Artefact, kind: Any, expected: str) -> Any:
    """The settings of an artefact that was handed over.

    Raises:
        InputError: of another kind.
    """
    found = pipeline.settled(what.settings)
    if not isinstance(found, kind):
        raise InputError(f"{pipeline.name(found)} was given, expected {expected}: hand that over")
    return found


def scaled(where: Data, ipc: int = 1) -> tuple[Profile, str]:
    """The profile with one cell, named as the data: its own of the nearest IPC, on these data."""
    profile = config.profile(PROFILE)
    nearest = min(profile.cells.values(), key=lambda cell: abs(cell.ipc - ipc))
    return profile.model_copy(
        update={"cells": {where.name: nearest.model_copy(update={"data": where, "ipc": ipc})}}
    ), where.name


def images_in(where: Data) -> int:
    """How many train."""
    known = data.about(where)
    return known.per_class * len(known.class_names)


def recipe_of(experts: Sequence[Artefact]) -> dict[str, Any]:
    """What the experts have in common, as that of seed 0.

    Raises:
        InputError: there are none, or they are not the first few of one recipe.
    """
    found = [expert.settings for expert in experts]
    if not found or any(fields != found[0] | {"seed": seed} for seed, fields in enumerate(found)):
        raise InputError(
            f"{len(found)} experts of seeds {[fields.get('seed') for fields in found]}: expected what one call of train_experts left, all of it, in order"
        )
    return found[0]


def same(one: Artefact, other: Artefact) -> bool:
    """Whether two sets teach the same."""
    parts = ("images", "labels", "soft")
    return one.record["lr"] == other.record["lr"] and all(
        (name in one.tensors) == (name in other.tensors)
        and (name not in one.tensors or torch.equal(one.tensors[name], other.tensors[name]))
        for name in parts
    )
