"""What each method is, as data: a start, the experts it follows if any, and switches.

MTT is AST with its switches off and SGD experts. A coreset is a start with nothing after it. The
ceiling is a "selection" of all images.

The numbers of a run are found in one order: **default < cell < method < tuned < call**. The default
is that of the settings' class; the cell gives what its methods share (`student`); the method its
switches; `tuned` what was chosen for it on the validation split of that cell; the call what its
caller says. `origins` tells which of them each number came from.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ddlib.base import InputError, validated
from ddlib.data import mtt_format
from ddlib.runs.profile import Cell, Group, Profile
from ddlib.settings import (
    NEED_EXPERT,
    PROTOCOLS,
    AnySet,
    Condensation,
    Distillation,
    Distilled,
    Evaluation,
    Expert,
    Imported,
    Network,
    Selection,
)

FEATURES = "momentum"  # the recipe of the experts whose features the coresets use
FAST = {"momentum": 0.9}  # of the inner loop
RANDOM, CEILING = "random", "full data"


@dataclass(frozen=True)
class Method:
    """`start` names a selection; `recipe` the experts that are followed, or none.

    `switches` are fields of Distillation; of Condensation, where no expert is followed; of
    Selection, where nothing is distilled.
    """

    start: str
    recipe: str | None = None
    switches: Mapping[str, Any] = field(default_factory=dict)
    # whose tuned numbers it takes where a cell has none of its own: the first of these that has
    tuned_as: tuple[str, ...] = ()
    distils: bool = True  # a coreset does not
    published: bool = False  # its switches are all that it needs: nothing has to be tuned

    def but(self, **switches: Any) -> Method:
        """The same method with these switches changed."""
        return replace(self, switches={**self.switches, **switches})


CORESETS = {
    RANDOM: Method("real", distils=False),
    "herding": Method("herding", distils=False),
    "k-center": Method("k_center", distils=False),
    "k-means": Method("representative", distils=False),
}
# As published in arXiv 2006.05929, 2102.08259 and 2110.04181, by their authors' code; what depends
# on the IPC is in settings.Condensation.
CONDENSED = {
    name: Method(start, switches={"method": name.lower(), **numbers}, published=True)
    for name, start, numbers in (
        ("DC", "noise", {"lr_images": 0.1, "iterations": 1000}),
        ("DSA", "real", {"lr_images": 0.1, "iterations": 1000}),
        ("DM", "real", {"lr_images": 1.0, "iterations": 20000}),
    )
}
MTT = Method("real", "sgd", {"momentum": 0.0}, ("MTT",))
AST = Method(
    "representative",
    "ast",
    {**FAST, "balance": True, "perturbation": 1.0, "intermediate": "equal"},
    ("AST",),
)
DISTILLED = {
    "MTT": MTT,
    "MTT + inner momentum": Method("real", "sgd", FAST),
    "MTT, strong experts": Method("real", "momentum", {"momentum": 0.0}),
    "AST": AST,
    # ours, and the default of the six functions: what validation favours in `laptop`, `fashion`
    "AST+": Method("representative", "sgd", FAST, ("MTT + inner momentum",)),
}
# Published switches, which a cell's tuned numbers may change. What depends on the length of a run
# (start window, decay of the average) is tuned per cell.
RIVALS = {
    # arXiv 2211.11004; decay: its authors' scripts
    "FTD": Method("real", "ftd", {"momentum": 0.0, "ema": 0.9995}),
    # arXiv 2211.10586
    "TESLA": Method("real", "sgd", {"momentum": 0.0, "gradient": "tesla"}, ("TESLA",)),
    # arXiv 2406.19827: SGD experts made straight
    "MCT": Method("real", "sgd", {"momentum": 0.0, "convex": True}, ("MTT",)),
    # arXiv 2310.05773; lr_labels: its authors' settings for CIFAR-10 at IPC 10
    "DATM": Method("correct", "ftd", {"momentum": 0.0, "labels": "learned", "lr_labels": 2.0}),
}
MINUS = {  # an ingredient of AST taken away
    "AST − ramp": replace(AST, recipe="momentum_penalty"),
    "AST − penalty": replace(AST, recipe="momentum_ramp"),
    "AST − representative start": replace(AST, start="real"),
    "AST − balanced loss": AST.but(balance=False),
    "AST − intermediate matching": AST.but(intermediate="none"),
    "AST − weight perturbation": AST.but(perturbation=0.0),
    "AST − inner momentum": AST.but(momentum=0.0),
}
CONTROLS = {  # AST with other experts
    "AST, unsmoothed experts": replace(AST, recipe="momentum"),
    "AST, SGD experts": replace(AST, recipe="sgd"),
    "AST, straight rough experts": replace(AST.but(convex=True), recipe="momentum"),
    "AST, straight SGD experts": replace(AST.but(convex=True), recipe="sgd"),
    "AST, lr-matched experts": replace(AST, recipe="momentum_lr_matched"),
    "AST, lr warm-up for the ramp": replace(AST, recipe="momentum_warmup_penalty"),
}
PLUS = {  # an ingredient of AST given to MTT; its inner momentum is in DISTILLED
    "MTT, AST experts": replace(MTT, recipe="ast"),
    "MTT + representative start": replace(MTT, start="representative"),
    "MTT + balanced loss": MTT.but(balance=True),
    "MTT + intermediate matching": MTT.but(intermediate="equal"),
    "MTT + weight perturbation": MTT.but(perturbation=1.0),
}
METHODS = CORESETS | CONDENSED | DISTILLED | RIVALS | MINUS | CONTROLS | PLUS
GROUPS = {  # what an ablation may ask for by name; a profile adds groups of its own
    "AST minus one": Group(base="AST", methods=tuple(MINUS)),
    "controls": Group(base="AST", methods=tuple(CONTROLS)),
    "MTT plus one": Group(
        base="MTT", methods=("MTT + inner momentum", "MTT, strong experts", *PLUS)
    ),
}


def methods(profile: Profile) -> dict[str, Method]:
    """The library's methods, and the profile's own variants of them.

    Raises:
        InputError: a variant of nothing that is known, or one that takes a known name.
    """
    every = dict(METHODS)
    for name, fields in profile.variants.items():
        of = fields.get("of")
        if of not in every or name in METHODS:
            fault = f"is `of` {of}" if name not in METHODS else "has the name of a known method"
            raise InputError(
                f"variant '{name}' {fault}: expected a name of its own, and `of` one of "
                f"{'; '.join(every)}\ncorrect it under `variants`"
            )
        places = {key: fields[key] for key in ("start", "recipe") if key in fields}
        switches = {k: v for k, v in fields.items() if k not in ("of", *places)}
        every[name] = replace(
            every[of].but(**switches), tuned_as=(of, *every[of].tuned_as), **places
        )
    return every


def known(profile: Profile, method: str) -> Method:
    """The method of that name."""
    every = methods(profile)
    if method not in every:
        raise InputError(
            f"no method '{method}': expected one of {'; '.join(every)}\ncorrect its name where the "
            "profile lists methods"
        )
    return every[method]


def recipe(profile: Profile, cell: Cell, name: str, seed: int = 0) -> Expert | Imported:
    """The expert of that recipe on the cell's data; a recipe with a `buffer` imports it."""
    if name not in profile.recipes:
        raise InputError(
            f"no expert recipe '{name}' in the profile: expected one of "
            f"{', '.join(profile.recipes)}; add it under `recipes`"
        )
    shared = {"data": cell.data.model_dump(), "network": profile.network.model_dump()}
    fields = {**shared, **profile.recipes[name], "seed": seed}
    fields.pop("n_experts", None)
    if "buffer" in fields:
        return mtt_format.identify(validated(Imported, fields, f"recipe {name}"))
    return validated(Expert, fields, f"recipe {name}")


def n_experts(profile: Profile, name: str) -> int:
    """How many experts of that recipe there are."""
    return profile.recipes.get(name, {}).get("n_experts") or profile.n_experts


def selection(
    profile: Profile, cell: Cell, /, method: str, seed: int, experts: str = FEATURES, **changes: Any
) -> Selection:
    """A start, or a coreset. Each seed uses the features of an expert of its own, of that recipe.

    Of a buffer with fewer experts than seeds some are used again.
    """
    seen = recipe(profile, cell, experts, seed) if method in NEED_EXPERT else None
    if isinstance(seen, Imported):
        seen = seen.at(seed % n_experts(profile, experts))
    elif seen and seen.until:  # features are those of an end, which these experts do not reach
        seen = recipe(profile, cell, FEATURES, seed).model_copy(update={"until": None})
    fields = {"data": cell.data, "method": method, "ipc": cell.ipc, "expert": seen}
    fields |= {"lr": cell.coreset_lr, "seed": seed, **changes}
    return validated(Selection, fields, f"'{method}' images")


def layers(
    profile: Profile, cell_name: str, method: str, changes: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any]]]:
    """(origin, fields) from the cell to the call: each overrides those before it.

    Raises:
        InputError: the cell has no tuned numbers for the method.
    """
    every, cell, how = methods(profile), profile.cells[cell_name], known(profile, method)
    for name in cell.tuned:
        known(profile, name)
    names = tuple(dict.fromkeys((method, *how.tuned_as)))
    tuned = next((name for name in names if name in cell.tuned), None)
    if tuned is None and not how.published:
        raise InputError(
            f"cell {cell_name} has no tuned settings for {' or '.join(map(repr, names))}: add them "
            f"under cells.{cell_name}.tuned, or remove '{method}' where the profile, or one that "
            "it extends, names it: methods, ablation, cross_architecture (`ablation: null`: "
            "no ablation)"
        )
    kind = Distillation if how.recipe else Condensation
    others = Distillation.model_fields.keys() - kind.model_fields.keys()
    shared = {name: value for name, value in cell.student.items() if name not in others}
    found = [("cell", shared), ("published" if how.published else "method", how.switches)]
    if tuned:
        found.append((f"tuned for {tuned}", cell.tuned[tuned]))
    if tuned and tuned != method:
        momentum = {name: every[name].switches.get("momentum", 0.0) for name in (method, tuned)}
        if momentum[method] != momentum[tuned]:
            # the student's reach N a / (1 - mu) stays what it was tuned to be
            reach = (1 - momentum[method]) / (1 - momentum[tuned])
            standard = {name: Distillation.model_fields[name].default for name in ("a0", "lr_lr")}
            numbers = {**standard, **shared, **how.switches, **cell.tuned[tuned]}
            scaled = {"a0": numbers["a0"] * reach, "lr_lr": numbers["lr_lr"] * reach**2}
            found.append((f"tuned for {tuned}, scaled to this inner momentum", scaled))
    return [*found, ("call", changes)]


def distillation(
    profile: Profile, cell_name: str, /, method: str, seed: int, **changes: Any
) -> Distilled:
    """The settings of a distilling method on a cell."""
    fields: dict[str, Any] = {}
    for _, layer in layers(profile, cell_name, method, changes):
        fields |= layer
    cell, how = profile.cells[cell_name], known(profile, method)
    init = fields.pop("init", how.start)
    start = selection(profile, cell, init, seed, how.recipe or FEATURES).model_dump()
    kind: type[Distilled] = Condensation
    given: dict[str, Any] = {"start": start, "seed": seed, "network": profile.network.model_dump()}
    if how.recipe:
        kind, experts = Distillation, recipe(profile, cell, how.recipe).model_dump()
        given = {"start": start, "seed": seed, "experts": experts}
        given["n_experts"] = n_experts(profile, how.recipe)
    return validated(kind, given | fields, f"'{method}' on {cell_name}")


def origins(profile: Profile, cell_name: str, method: str) -> list[tuple[str, Any, str]]:
    """(field, value, origin) of each number in force for a method on a cell."""
    settings = synthetic(profile, cell_name, method, 0)
    source = dict.fromkeys(type(settings).model_fields, "default")
    if isinstance(settings, Distilled):
        for name, layer in layers(profile, cell_name, method, {}):
            source |= dict.fromkeys(layer, name)
        source |= dict.fromkeys(("start", "experts", "network"), "method")
        source["n_experts"] = "profile"
    return [(name, getattr(settings, name), source[name]) for name in type(settings).model_fields]


def synthetic(profile: Profile, cell_name: str, method: str, seed: int) -> AnySet:
    """The set that a method makes on a cell: distilled, or a coreset."""
    how = known(profile, method)
    if how.distils:
        return distillation(profile, cell_name, method, seed)
    return selection(profile, profile.cells[cell_name], how.start, seed, **how.switches)


def everything(cell: Cell) -> Selection:
    """All training images of a cell, as the ceiling uses them."""
    return Selection(data=cell.data, method="all")


def evaluation(
    profile: Profile, cell_name: str, of: AnySet, /, network: Network | None = None, **changes: Any
) -> Evaluation:
    """How a set of that cell is judged: profile < cell < call.

    Who names a protocol sets all its numbers; a later change of one of them makes it `ours`.
    """
    fields: dict[str, Any] = {}
    for layer in (profile.evaluation, profile.cells[cell_name].evaluation, changes):
        fixed = PROTOCOLS.get(layer.get("protocol", fields.get("protocol", "ours")), {})
        if "protocol" in layer:
            fields |= fixed
        elif any(fixed.get(name, value) != value for name, value in layer.items()):
            fields |= {"protocol": "ours"}
        fields |= layer
    given = {"of": of, "network": network or profile.network, **fields}
    return validated(Evaluation, given, f"evaluation on {cell_name}")
