"""Profiles: all that a paper needs to know, as YAML. The same notebooks run under every profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, create_model

from ddlib.base import InputError, Settings, validated
from ddlib.data import datasets
from ddlib.settings import (
    Condensation,
    Count,
    Data,
    Distillation,
    Evaluation,
    Expert,
    Imported,
    Network,
    Positive,
    Selection,
)

PROFILES = Path(__file__).parent / "profiles"
Names = Annotated[tuple[str, ...], Field(strict=False)]


def part_of(*kinds: type[BaseModel], **more: Any) -> Any:
    """The type of a mapping that holds some fields of these settings, each of the right type."""
    fields: dict[str, Any] = {name: (kind, None) for name, kind in more.items()}
    for kind in kinds:
        for name, field in kind.model_fields.items():
            bare = field.annotation
            full = Annotated[(bare, *field.metadata)] if field.metadata else bare
            fields.setdefault(name, (full | None, None))
    some: Any = create_model("Some", __base__=Settings, **fields)

    def check(given: dict[str, Any]) -> dict[str, Any]:
        try:
            some.model_validate(given)
        except ValidationError as error:
            lines = []
            for e in error.errors():
                place = ".".join(map(str, e["loc"]))
                found = f"{place}: {e['msg']} (found {e['input']!r})"
                if e["type"] == "extra_forbidden":
                    found = f"unknown key '{place}': expected one of {', '.join(sorted(fields))}"
                lines.append(found)
            raise ValueError("; ".join(lines)) from None
        return given

    return Annotated[dict[str, Any], AfterValidator(check)]


if TYPE_CHECKING:
    OfRecipe: TypeAlias = dict[str, Any]
    OfEvaluation: TypeAlias = dict[str, Any]
    OfSet: TypeAlias = dict[str, Any]
    OfVariant: TypeAlias = dict[str, Any]
else:
    OfRecipe = part_of(Expert, Imported)
    OfEvaluation = part_of(Evaluation)
    OfSet = part_of(Distillation, Condensation, init=str)  # `init`: another start than the method's
    OfVariant = part_of(Distillation, Condensation, Selection, of=str, recipe=str, start=str)


class Cell(Settings):
    """One data set at one IPC: what its methods share, and what was tuned for each of them."""

    data: Data
    ipc: Count
    methods: Names
    seeds: Count | None = None  # distillation seeds; None: as many as the profile has
    student: OfSet = {}  # for every method; Condensation takes those that it has too
    tuned: dict[str, OfSet] = {}  # method -> its numbers, chosen on the validation split
    coreset_lr: Positive = 0.01  # a for sets that learn none
    evaluation: OfEvaluation = {}


class Group(Settings):
    """Methods that each differ from `base` in one thing."""

    base: str
    methods: Names
    cell: str | None = None  # None: that of the other groups
    seeds: Count | None = None  # distillation seeds; None: as many as the cell has


class Ablation(Settings):
    """One thing changed at a time, group by group, beside what it was changed from."""

    cell: str
    networks: Count = 3
    groups: Names = ("AST minus one", "controls")  # of `methods.GROUPS`
    more: dict[str, Group] = {}  # groups of the profile's own


class Cross(Settings):
    """Sets made with one architecture, judged by others."""

    cells: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    methods: Names
    networks: list[Network]
    seeds: Count = 3
    evaluation: OfEvaluation = {}


class Ceiling(Settings):
    """Training on the whole training set."""

    lr: Positive
    evaluation: OfEvaluation = {}


class Trial(Settings):
    """What is tried on a cell while tuning: each method gets as many candidates and iterations."""

    cell: str
    choosing: str = Field("settings", pattern="^(settings|method)$")  # the best of each, or of all
    seeds: Count = 1
    budget: OfSet = {}
    evaluation: OfEvaluation = {}
    candidates: dict[str, list[OfSet]]


class Profile(Settings):
    """All that a paper needs to know."""

    title: str
    network: Network
    recipes: dict[str, OfRecipe]  # of experts, by name; one with `buffer` imports them
    n_experts: Count
    seeds: Count  # distillation seeds
    evaluation: OfEvaluation
    cells: dict[str, Cell]  # the first is the main one
    ablation: Ablation
    cross_architecture: Cross
    ceiling: Ceiling
    # methods of the profile's own: `of` the method that is changed, and what is changed in it
    variants: dict[str, OfVariant] = {}
    tuning: list[Trial] = []

    @property
    def main_cell(self) -> str:
        """The name of the first cell."""
        return next(iter(self.cells))


def profiles() -> list[str]:
    """The profiles that come with the library; one whose name begins with _ is only extended."""
    return sorted(p.stem for p in PROFILES.glob("[!_]*.yaml"))


def profile(name: str) -> Profile:
    """The profile of that name, or of that YAML file; folders of images in it are identified.

    Raises:
        InputError: no such profile, or something in it that no profile may hold.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not file.exists():
        raise InputError(
            f"no profile '{name}': expected one of {', '.join(profiles())}, or the path of a YAML "
            "file; correct the name, or write that file"
        )
    read = validated(Profile, fields_of(file), f"profile {name}")
    cells = {
        name: cell.model_copy(update={"data": datasets.identify(cell.data)})
        for name, cell in read.cells.items()
    }
    return read.model_copy(update={"cells": cells})


def fields_of(file: Path, inside: tuple[Path, ...] = ()) -> Any:
    """What a profile's file says, laid over the profiles that it `extends`, in their order.

    Raises:
        InputError: no YAML, or it extends what is not there, or itself.
    """
    try:
        fields = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"profile {file.stem} is no YAML: {error}\nexpected `name: value` lines as in "
            f"{PROFILES / 'smoke.yaml'}; correct {file}"
        ) from None
    if not isinstance(fields, dict):
        return fields
    bases = fields.pop("extends", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        other = file.parent / f"{base}.yaml"
        other = other if other.exists() else PROFILES / f"{base}.yaml"
        if not other.exists() or other in (*inside, file):
            fault = "which extends it" if other.exists() else "which is not there"
            raise InputError(
                f"profile {file.stem} extends '{base}', {fault}: name a profile beside it or of "
                "the library"
            )
        merged = over(merged, fields_of(other, (*inside, file)))
    return over(merged, fields)


def over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, key by key where both hold mappings."""
    both = {
        name: over(below[name], value)
        if isinstance(value, dict) and isinstance(below.get(name), dict)
        else value
        for name, value in above.items()
    }
    return below | both
