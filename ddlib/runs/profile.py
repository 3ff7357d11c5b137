"""Profiles: all that a paper needs to know, as YAML. The same notebooks run under every profile."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import pandas as pd
import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, create_model

from ddlib.base import InputError, Settings, validated
from ddlib.data import datasets
from ddlib.files import expanded
from ddlib.settings import (
    Condensation,
    Count,
    Data,
    Distillation,
    Evaluation,
    Expert,
    Few,
    Imported,
    Network,
    Positive,
    Selection,
)

PROFILES = Path(__file__).parent / "profiles"
LARGEST = 100_000  # values in a YAML file


def _once(names: Sequence[Any]) -> Sequence[Any]:
    """Refuse what stands twice: its rows would count twice."""
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(f"'{twice[0]}' stands twice: name it once")
    return names


Names = Annotated[tuple[str, ...], Field(strict=False), AfterValidator(_once)]


def _in_one_folder(name: str) -> str:
    """Refuse a name that, in the name of a file, would lead into another folder."""
    if not name.strip() or len(name) > 100 or name[0] == "." or re.search(r"[/\\\x00-\x1f]", name):
        raise ValueError("expected at most 100 characters, no / or \\, and no dot at the beginning")
    kept = pd.DataFrame({"of": [name]}).to_csv(index=False)
    if pd.read_csv(io.StringIO(kept)).of[0] != name:
        raise ValueError(f"'{name}' would be read as a number or a blank: add a letter")
    return name


Name = Annotated[str, AfterValidator(_in_one_folder)]


def part_of(*kinds: type[BaseModel], **more: Any) -> Any:
    """The type of a mapping that holds some fields of these settings, each of the right type."""
    fields: dict[str, Any] = {name: (kind, None) for name, kind in more.items()}
    for kind in kinds:
        for name, field in kind.model_fields.items():
            bare = field.annotation
            full = Annotated[(bare, *field.metadata)] if field.metadata else bare
            fields.setdefault(name, (full | None, None))
    fields.pop("seed", None)  # each repetition has its own
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
    OfRecipe = part_of(Expert, Imported, n_experts=Few)  # None: as many as the profile has
    OfEvaluation = part_of(Evaluation)
    OfSet = part_of(Distillation, Condensation, init=str)  # `init`: another start than the method's
    OfVariant = part_of(Distillation, Condensation, Selection, of=str, recipe=str, start=str)


class Cell(Settings):
    """One data set at one IPC: what its methods share, and what was tuned for each of them."""

    data: Data
    ipc: Count
    methods: Names
    seeds: Few | None = None  # distillation seeds; None: as many as the profile has
    student: OfSet = {}  # for every method; Condensation takes those that it has too
    tuned: dict[str, OfSet] = {}  # method -> its numbers, chosen on the validation split
    coreset_lr: Positive = 0.01  # a for sets that learn none
    evaluation: OfEvaluation = {}


class Group(Settings):
    """Methods that each differ from `base` in one thing."""

    base: str
    methods: Names
    cell: str | None = None  # None: that of the other groups
    seeds: Few | None = None  # distillation seeds; None: as many as the cell has


class Ablation(Settings):
    """One thing changed at a time, group by group, beside what it was changed from."""

    cell: str
    networks: Few = 3
    groups: Names = ("AST minus one", "controls")  # of `methods.GROUPS`
    more: dict[str, Group] = {}  # the profile's own


class Cross(Settings):
    """Sets made with one architecture, judged by others."""

    cells: Annotated[Names, Field(min_length=1)]
    methods: Names
    networks: Annotated[list[Network], AfterValidator(_once)]
    pool: Annotated[list[Network], AfterValidator(_once)] = []  # to choose an architecture from
    seeds: Few = 3
    evaluation: OfEvaluation = {}


class Ceiling(Settings):
    """Training on the whole training set."""

    evaluation: OfEvaluation = {}


class Trial(Settings):
    """What is tried on a cell while tuning: about as many candidates for each method."""

    cell: str
    choosing: str = Field("settings", pattern="^(settings|method)$")  # the best of each, or of all
    seeds: Few = 1
    budget: OfSet = {}
    evaluation: OfEvaluation = {}
    candidates: dict[str, list[OfSet]]


class Profile(Settings):
    """All that a paper needs to know."""

    title: str
    network: Network
    recipes: dict[str, OfRecipe]  # of experts, by name; one with `buffer` imports them
    n_experts: Few
    seeds: Few  # distillation seeds
    evaluation: OfEvaluation
    cells: Annotated[dict[Name, Cell], Field(min_length=1)]  # the first is the main one
    ablation: Ablation | None = None
    cross_architecture: Cross | None = None
    ceiling: Ceiling
    notebooks: Names | None = None  # that `make paper` runs; None: all that show what it asks for
    # methods of the profile's own: `of` the method that is changed, and what is changed in it
    variants: dict[Name, OfVariant] = {}
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
    ours = PROFILES / f"{name}.yaml"
    file = Path(name) if name.endswith((".yaml", ".yml")) else ours
    if not file.exists() or (file == ours and ours.parent != PROFILES):
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


class Reader(yaml.SafeLoader):
    """YAML that says each key once, and whose numbers are as they look: 1e-3 is one, 010 is not."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """Refuse a key that stands twice."""
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            name, line = self.construct_object(key, deep=True), key.start_mark.line + 1
            if name in lines and key.tag != "tag:yaml.org,2002:merge":
                raise ValueError(f"'{name}' stands on line {lines[name]} and on line {line}")
            lines[name] = line
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: Any) -> None:
        """Refuse a file whose aliases would repeat more than LARGEST values."""
        if self.values(node, {}) > LARGEST:
            raise ValueError(f"it holds more than {LARGEST} values, most of them by aliases")
        super().flatten_mapping(node)

    def values(self, node: Any, known: dict[int, int]) -> int:
        """How many values a node holds, those behind aliases each time."""
        if id(node) not in known:
            known[id(node)] = LARGEST  # a node inside itself
            inner = node.value if isinstance(node.value, list) else []
            parts = [n for child in inner for n in (child if isinstance(child, tuple) else [child])]
            known[id(node)] = 1 + sum(self.values(part, known) for part in parts)
        return known[id(node)]


def _plain_int(reader: Reader, node: Any) -> int:
    if re.match(r"[-+]?0[0-9_]", node.value):
        raise ValueError(f"{node.value} begins with 0, which may mean octal: leave the 0 out")
    return int(node.value.replace("_", ""), 0)


Reader.yaml_implicit_resolvers = {
    first: [(tag, form) for tag, form in resolvers if tag.rsplit(":", 1)[1] in ("bool", "null")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _form in (
    ("merge", r"<<"),
    ("int", r"[-+]?(0[xo][0-9a-fA-F_]+|[0-9][0-9_]*)"),
    ("float", r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan"),
):
    Reader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^({_form})$"), None)
Reader.add_constructor("tag:yaml.org,2002:int", _plain_int)


def read_yaml(file: Path) -> Any:
    """What a YAML file says.

    Raises:
        InputError: it cannot be read, or says something twice or in a way that misleads.
    """
    try:
        if file.stat().st_size > LARGEST * 100 or not file.is_file():
            raise ValueError(f"expected a plain file of at most {LARGEST // 10} kB")
        return yaml.load(file.read_text("utf-8"), Reader)
    except (yaml.YAMLError, ValueError, OSError, RecursionError, TypeError, LookupError) as error:
        raise InputError(
            f"{file} cannot be read as YAML: {str(error) or repr(error)}\nexpected `name: value` "
            f"lines as in {PROFILES / 'smoke.yaml'}; correct it"
        ) from None


def fields_of(file: Path, inside: tuple[Path, ...] = (), seen: dict | None = None) -> Any:
    """What a profile's file says, laid over the profiles that it `extends`, in their order.

    Raises:
        InputError: no YAML, or it extends what is not there, or itself.
    """
    seen = {} if seen is None else seen  # each file is read once, however often it is extended
    if file in seen:
        return seen[file]
    fields = seen[file] = read_yaml(file)
    if not isinstance(fields, dict):
        return fields
    bases = fields.pop("extends", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise InputError(
            f"{file}: `extends` is {bases!r}, expected the name of a profile, or a list of names"
        )
    merged: dict[str, Any] = {}
    for base in bases:
        places = [file.parent / f"{base}.yaml", PROFILES / f"{base}.yaml"]
        there = [place for place in places if place.exists()]
        # a file of one's own may have the name of the one of the library that it extends
        other = next((place for place in there if not place.samefile(file)), [*there, places[1]][0])
        if not other.exists() or other in (*inside, file):
            fault = "which extends it" if other.exists() else "which is not there"
            raise InputError(
                f"profile {file.stem} extends '{base}', {fault}: name a profile beside it or of "
                "the library"
            )
        merged = over(merged, fields_of(other, (*inside, file), seen))
    seen[file] = over(merged, placed(fields, file.resolve().parent))
    return seen[file]


def placed(fields: Any, home: Path) -> Any:
    """The same fields, with relative paths in them taken from the profile's folder."""
    if isinstance(fields, list):
        return [placed(value, home) for value in fields]
    if not isinstance(fields, dict):
        return fields
    here = {
        name: str(home / expanded(value))
        for name, value in fields.items()
        if name in ("path", "buffer") and isinstance(value, str)
    }
    return {name: placed(value, home) for name, value in fields.items()} | here


def over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, key by key where both hold mappings; null takes a key away."""
    both = {
        name: over(below[name], value)
        if isinstance(value, dict) and isinstance(below.get(name), dict)
        else value
        for name, value in above.items()
    }
    taken = {name for name, value in above.items() if value is None and name in below}
    return {name: value for name, value in (below | both).items() if name not in taken}
