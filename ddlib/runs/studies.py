"""Which runs each table and figure needs, as data: a method is a start, the experts it follows if any, and switches.

MTT is AST with its switches off and SGD experts; a coreset is a start with nothing after it; the ceiling is a "selection" of everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from ddlib.method.student import EXACT
from ddlib.settings import (
    Cell,
    Condensation,
    Continual,
    Distillation,
    Distilled,
    Evaluation,
    Expert,
    Film,
    Following,
    Group,
    Imported,
    InputError,
    Measurement,
    Network,
    Profile,
    Selection,
    Settings,
    validated,
)

FEATURES = "momentum"  # the recipe whose expert shows the coresets their features


@dataclass(frozen=True)
class Method:
    """`start` names an initialisation; `recipe` the experts followed, or none; `switches` are fields of Distillation, of Condensation without a recipe, and of
    Selection without either.
    """

    start: str
    recipe: str | None = None
    switches: dict[str, Any] = field(default_factory=dict)
    tuned_as: str | None = None  # whose tuned numbers it takes where a cell has none of its own
    distils: bool = True  # a coreset does not


INNER_MOMENTUM = 0.9
CORESETS = {
    "random": Method("real", distils=False),
    "herding": Method("herding", distils=False),
    "k-center": Method("k_center", distils=False),
    "k-means": Method("representative", distils=False),
}
CONDENSED = {  # as published, but for what depends on the IPC, which Condensation knows: arXiv 2006.05929, 2102.08259 and 2110.04181 by their authors' code
    "DC": Method("noise", switches={"method": "dc", "lr_images": 0.1, "iterations": 1000}),
    "DSA": Method("real", switches={"method": "dsa", "lr_images": 0.1, "iterations": 1000}),
    "DM": Method("real", switches={"method": "dm", "lr_images": 1.0, "iterations": 20000}),
}
MTT = Method("real", "sgd", {"momentum": 0.0}, "MTT")
AST = Method(
    "representative",
    "ast",
    {"momentum": INNER_MOMENTUM, "balance": True, "perturbation": 1.0, "intermediate": "equal"},
    "AST",
)
DISTILLED = {
    "MTT": MTT,
    "MTT + inner momentum": Method("real", "sgd", {"momentum": INNER_MOMENTUM}),
    "MTT, strong experts": Method("real", "momentum", {"momentum": 0.0}),
    "AST": AST,
}
TESLA = Method("real", "sgd", {"momentum": 0.0, "gradient": "tesla"}, "TESLA")
RIVALS = {  # published switches, which a cell's tuned numbers may change; what depends on its length (start window, decay) stands there
    "FTD": Method(
        "real", "ftd", {"momentum": 0.0, "ema": 0.9995}
    ),  # arXiv 2211.11004; decay: its authors' scripts
    "TESLA": TESLA,  # arXiv 2211.10586
    "TESLA + soft labels": replace(
        TESLA, switches=TESLA.switches | {"labels": "expert"}
    ),  # its authors use them on ImageNet-1K alone
    "DATM": Method(
        "correct", "ftd", {"momentum": 0.0, "labels": "learned", "lr_labels": 2.0}
    ),  # arXiv 2310.05773; lr: its authors' settings, CIFAR-10, IPC 10
}


def changed(method: Method, **switches: Any) -> Method:
    """A method with these switches changed."""
    return replace(method, switches=method.switches | switches)


COMPOSED = {  # AST with a part of a rival
    "AST + soft labels": changed(AST, labels="learned", lr_labels=2.0),
    "AST, FTD experts": replace(AST, recipe="ftd"),
}
MINUS = {  # an ingredient of AST taken away
    "AST − ramp": replace(AST, recipe="momentum_penalty"),
    "AST − penalty": replace(AST, recipe="momentum_ramp"),
    "AST − representative start": replace(AST, start="real"),
    "AST − balanced loss": changed(AST, balance=False),
    "AST − intermediate matching": changed(AST, intermediate="none"),
    "AST − weight perturbation": changed(AST, perturbation=0.0),
    "AST − inner momentum": changed(AST, momentum=0.0),
}
CONTROLS = {  # AST with other experts
    "AST, unsmoothed experts": replace(AST, recipe="momentum"),
    "AST, SGD experts": replace(AST, recipe="sgd"),
    "AST, lr-matched experts": replace(AST, recipe="momentum_lr_matched"),
    "AST, lr warm-up for the ramp": replace(AST, recipe="momentum_warmup_penalty"),
}
PLUS = {  # an ingredient of AST given to MTT, which has its inner momentum in DISTILLED
    "MTT, AST experts": replace(MTT, recipe="ast"),
    "MTT + representative start": replace(MTT, start="representative"),
    "MTT + balanced loss": changed(MTT, balance=True),
    "MTT + intermediate matching": changed(MTT, intermediate="equal"),
    "MTT + weight perturbation": changed(MTT, perturbation=1.0),
}
METHODS = CORESETS | CONDENSED | DISTILLED | RIVALS | COMPOSED | MINUS | CONTROLS | PLUS
GROUPS = {  # what the ablation may ask for by name; a profile adds groups of its own
    "AST minus one": Group(base="AST", methods=tuple(MINUS)),
    "controls": Group(base="AST", methods=tuple(CONTROLS)),
    "MTT plus one": Group(
        base="MTT", methods=("MTT + inner momentum", "MTT, strong experts", *PLUS)
    ),
    "AST with a rival's part": Group(base="AST", methods=tuple(COMPOSED)),
}
CEILING = "full data"


@dataclass(frozen=True)
class Run:
    """One evaluation and what to call it in a row."""

    study: str
    cell: str
    method: str
    distil_seed: int
    settings: Evaluation
    place: dict[str, str] = field(default_factory=dict)  # its group, and what that compares it with

    def label(self, cell: Cell) -> dict[str, Any]:
        """The first columns of its rows."""
        return {
            "study": self.study,
            "cell": self.cell,
            "data": cell.data.name,
            "method": self.method,
            "ipc": cell.ipc,
            "distil_seed": self.distil_seed,
        }


def recipe(profile: Profile, cell: Cell, name: str, seed: int = 0) -> Expert | Imported:
    """The expert of that recipe on the cell's data; a recipe that names a `buffer` imports it."""
    if name not in profile.recipes:
        raise InputError(
            f"no expert recipe '{name}' in the profile: expected one of {', '.join(profile.recipes)}; add it under `recipes`"
        )
    fields = {
        "data": cell.data.model_dump(),
        "network": profile.network.model_dump(),
        **profile.recipes[name],
        "seed": seed,
    }
    kind: type[Expert | Imported] = Imported if "buffer" in fields else Expert
    return validated(kind, fields, f"recipe {name}")


def selection(
    profile: Profile, cell: Cell, method: str, seed: int, eyes: str = FEATURES, **changes: Any
) -> Selection:
    """A start, or a coreset; each seed looks through the eyes of another expert of the recipe `eyes`; `changes` are fields of Selection."""
    looks = (
        recipe(profile, cell, eyes, seed % profile.n_experts)
        if method in ("correct", "representative", "herding", "k_center")
        else None
    )
    fields = {
        "data": cell.data,
        "method": method,
        "ipc": cell.ipc,
        "expert": looks,
        "lr": cell.coreset_lr,
        "seed": seed,
    }
    return validated(Selection, fields | changes, f"'{method}' images")


def distillation(profile: Profile, name: str, method: str, seed: int, **changes: Any) -> Distilled:
    """The settings of a method on a cell: what the cell's methods share, what was tuned for this one, its switches, `changes`."""
    every = methods(profile)
    cell, how = profile.cells[name], known(profile, method)
    tuned = method if method in cell.tuned else how.tuned_as or method
    if tuned not in cell.tuned:
        raise InputError(
            f"cell {name} has no tuned settings for '{tuned}': add them under cells.{name}.tuned, or remove '{method}' from its methods"
        )
    kind: type[Distillation | Condensation] = Distillation if how.recipe else Condensation
    shared = {
        field: value
        for field, value in cell.student.items()
        if field in kind.model_fields or field not in Distillation.model_fields
    }
    fields = shared | how.switches | cell.tuned[tuned]
    own, theirs = (one.switches.get("momentum", 0.0) for one in (how, every[tuned]))
    if tuned != method and own != theirs:  # keep N a / (1 - mu), the student's reach
        reach = (1 - own) / (1 - theirs)
        fields |= {"a0": fields["a0"] * reach, "lr_lr": fields["lr_lr"] * reach**2}
    fields |= changes
    start = fields.pop("init", how.start)
    given = {
        "start": selection(profile, cell, start, seed, how.recipe or FEATURES).model_dump(),
        "seed": seed,
    }
    if how.recipe:
        given |= {
            "experts": recipe(profile, cell, how.recipe).model_dump(),
            "n_experts": profile.n_experts,
        }
    else:
        given |= {"network": profile.network.model_dump()}
    return validated(kind, given | fields, f"'{method}' on {name}")


def methods(profile: Profile) -> dict[str, Method]:
    """Those that the library knows, and the profile's own: `start` and `recipe` change what they name, other fields are switches.

    Raises:
        InputError: one is a variant of nothing that is known.
    """
    every = dict(METHODS)
    for name, fields in profile.variants.items():
        of = fields.get("of")
        if of not in every or name in METHODS:
            fault = (
                "has the name of a method that is known already"
                if name in METHODS
                else f"is `of` {of}"
            )
            raise InputError(
                f"variant '{name}' {fault}: expected a name of its own, and `of` one of {'; '.join(every)}\ncorrect it under `variants`"
            )
        base, switches = (
            every[of],
            {
                field: value
                for field, value in fields.items()
                if field not in ("of", "start", "recipe")
            },
        )
        taken = {field: fields[field] for field in ("start", "recipe") if field in fields}
        every[name] = replace(changed(base, **switches), tuned_as=base.tuned_as or of, **taken)
    return every


def known(profile: Profile, method: str) -> Method:
    """The method of that name, or a refusal."""
    every = methods(profile)
    if method not in every:
        raise InputError(
            f"no method '{method}': expected one of {'; '.join(every)}\ncorrect its name where the profile lists methods"
        )
    return every[method]


def of(profile: Profile, name: str, method: str, seed: int) -> Distilled | Selection:
    """The set that a method makes on a cell."""
    how = known(profile, method)
    if not how.distils:
        return selection(profile, profile.cells[name], how.start, seed, **how.switches)
    return distillation(profile, name, method, seed)


def evaluation(
    profile: Profile,
    name: str,
    made: Distilled | Selection,
    network: Network | None = None,
    **changes: Any,
) -> Evaluation:
    """How a set of that cell is judged."""
    fields = profile.evaluation | profile.cells[name].evaluation | changes
    network = network or profile.network
    return validated(
        Evaluation, {"of": made, "network": network, **fields}, f"evaluation on {name}"
    )


def seeds(profile: Profile, name: str) -> range:
    """The distillation seeds of a cell."""
    return range(profile.cells[name].seeds or profile.seeds)


def main(profile: Profile) -> Iterator[Run]:
    """Every method on every cell, and the ceiling."""
    for name, cell in profile.cells.items():
        for method in cell.methods:
            for seed in seeds(profile, name):
                yield Run(
                    "main",
                    name,
                    method,
                    seed,
                    evaluation(profile, name, of(profile, name, method, seed)),
                )
        everything = Selection(data=cell.data, method="all", lr=profile.ceiling.lr)
        yield Run(
            "main",
            name,
            CEILING,
            0,
            evaluation(profile, name, everything, **profile.ceiling.evaluation),
        )


def coresets(profile: Profile) -> Iterator[Run]:
    """The part of the main study that needs no distillation."""
    for run in main(profile):
        if run.method in CORESETS:
            yield replace(run, study="coresets")


def groups(profile: Profile) -> dict[str, Group]:
    """The groups of the profile's ablation.

    Raises:
        InputError: no group of that name.
    """
    if unknown := [name for name in profile.ablation.groups if name not in GROUPS]:
        raise InputError(
            f"no group '{unknown[0]}': expected one of {', '.join(GROUPS)}; correct ablation.groups, or add the group under ablation.more"
        )
    return {name: GROUPS[name] for name in profile.ablation.groups} | profile.ablation.more


def ablation(profile: Profile) -> Iterator[Run]:
    """Group by group what differs from its base in one thing; each base stands in the first group that it is the base of."""
    begun = set()
    for group, one in groups(profile).items():
        name = one.cell or profile.ablation.cell
        for method in (one.base, *one.methods):
            if (name, method) in begun:
                continue
            begun |= {(name, one.base)}
            for seed in seeds(profile, name)[: one.seeds]:
                judged = evaluation(
                    profile,
                    name,
                    of(profile, name, method, seed),
                    networks=profile.ablation.networks,
                )
                yield Run(
                    "ablation", name, method, seed, judged, {"group": group, "base": one.base}
                )


def cross_architecture(profile: Profile) -> Iterator[Run]:
    """Sets made with the profile's network, judged by others."""
    cross = profile.cross_architecture
    for name in cross.cells:
        for method in cross.methods:
            for seed in seeds(profile, name)[: cross.seeds]:
                made = of(profile, name, method, seed)
                for network in cross.networks:
                    yield Run(
                        "cross_architecture",
                        name,
                        method,
                        seed,
                        evaluation(profile, name, made, network, **cross.evaluation),
                    )


def scores(profile: Profile) -> Iterator[tuple[Run, dict[str, Any]]]:
    """What the robust scores of the main cell's methods are made of: each set, and random images of its size, judged with augmentation and without, soft labels
    also by the classes alone; the ceiling.
    """
    name, cell = next(iter(profile.cells.items()))
    for method in dict.fromkeys(["random", *cell.methods]):
        for seed in seeds(profile, name):
            made = of(profile, name, method, seed)
            run = Run("scores", name, method, seed, evaluation(profile, name, made))
            yield run, {"augmented": True, "labels": "own"}
            plain = evaluation(
                profile, name, made, strategies=(), networks=profile.ablation.networks
            )
            yield replace(run, settings=plain), {"augmented": False, "labels": "own"}
            if isinstance(made, Distilled) and made.labels:
                yield (
                    replace(run, settings=evaluation(profile, name, made, labels="hard")),
                    {"augmented": True, "labels": "hard"},
                )
    for run in main(profile):
        if (run.cell, run.method) == (name, CEILING):
            yield replace(run, study="scores"), {"augmented": True, "labels": "own"}


MEMORIES = (
    "random",
    "k-means",
    "DM",
    "AST",
)  # random real images, representative ones, and sets distilled without experts and along them
NOTHING = "no memory"


def distils_there(profile: Profile, cell: Cell, method: str) -> bool:
    """Whether the cell has tuned settings for a method that needs some; coresets need none."""
    how = known(profile, method)
    return not how.distils or bool({method, how.tuned_as} & cell.tuned.keys())


def continual(profile: Profile) -> Iterator[tuple[dict[str, Any], Continual]]:
    """A network that learns the classes task by task with each method's set as its memory, seed by seed; beside them with none, and with all real images.

    On the first cell whose sets other architectures judge. Every memory is learned with in the same way, at the ceiling's lr and batch.
    """
    name, full = profile.cross_architecture.cells[0], profile.ceiling
    cell = profile.cells[name]
    how = {
        "data": cell.data,
        "network": profile.network,
        "lr": full.lr,
        "batch": full.evaluation.get("batch", 256),
    }
    for method in (NOTHING, *(m for m in MEMORIES if distils_there(profile, cell, m)), CEILING):
        for seed in seeds(profile, name):
            kept = {NOTHING: None, CEILING: Selection(data=cell.data, method="all", lr=full.lr)}
            memory = kept[method] if method in kept else of(profile, name, method, seed)
            label = {
                "cell": name,
                "data": cell.data.name,
                "method": method,
                "ipc": None if method in kept else cell.ipc,
                "seed": seed,
            }
            yield (
                label,
                validated(
                    Continual,
                    {**how, "memory": memory, "seed": seed},
                    f"continual learning on {name}",
                ),
            )


def pool(profile: Profile) -> dict[str, Network]:
    """A dozen networks to choose from, by name: the profile's ConvNet, narrower and shallower ones, and one small network of each other kind."""
    width, others = profile.network.width, {"alexnet": 2, "vgg11": 4, "resnet18": 8, "vit": 2}
    convnets = [
        Network(width=max(1, width // part), depth=depth)
        for depth in range(1, profile.network.depth + 1)
        for part in (4, 2, 1)
    ]
    small = [
        Network.model_validate({"architecture": kind, "width": max(2, width // part)})
        for kind, part in others.items()
    ]
    return {
        f"{one.architecture} {one.width}{f' × {one.depth}' if one.architecture == 'convnet' else ''}": one
        for one in (*convnets, *small)
    }


def architectures(profile: Profile) -> Iterator[tuple[dict[str, Any], Evaluation]]:
    """Each network of the pool trained on random real images, on as many distilled ones, and on all real images for half the ceiling's epochs; no lr is chosen."""
    name, cross = profile.cross_architecture.cells[0], profile.cross_architecture
    cell, full = profile.cells[name], profile.ceiling
    everything = Selection(data=cell.data, method="all", lr=full.lr)
    half = full.evaluation | {
        "epochs": max(1, full.evaluation.get("epochs", 2) // 2),
        "networks": cross.evaluation.get("networks", 1),
    }
    methods = [method for method in ("random", "AST") if distils_there(profile, cell, method)]
    sets = [
        (method, seed, of(profile, name, method, seed), cross.evaluation)
        for method in methods
        for seed in seeds(profile, name)[: cross.seeds]
    ]
    for method, seed, made, how in (*sets, (CEILING, 0, everything, half)):
        for words, network in pool(profile).items():
            label = {
                "cell": name,
                "data": cell.data.name,
                "method": method,
                "ipc": None if method == CEILING else cell.ipc,
                "distil_seed": seed,
            }
            yield label | {"network": words}, evaluation(profile, name, made, network, **how)


def tuning(profile: Profile) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Candidates, each with what was tried; judged on the validation split only, under seeds that no table uses."""
    for trial in profile.tuning:
        for method, candidates in trial.candidates.items():
            for tried in candidates:
                for seed in range(1000, 1000 + trial.seeds):
                    made = distillation(profile, trial.cell, method, seed, **trial.budget, **tried)
                    judged = evaluation(
                        profile, trial.cell, made, **trial.evaluation, networks=2, test=False
                    )
                    yield (
                        Run(
                            "tuning", trial.cell, method, seed, judged, {"choosing": trial.choosing}
                        ),
                        tried,
                    )


def experts(profile: Profile) -> Iterator[tuple[str, str, Expert | Imported]]:
    """(data, recipe, expert): every recipe on the main cell's data; on the others those that a method follows."""
    first = next(iter(profile.cells.values())).data
    seen = set()
    for cell in profile.cells.values():
        followed = {FEATURES, *(known(profile, m).recipe for m in cell.methods)} - {None}
        for name in profile.recipes:
            if cell.data == first or name in followed:
                for seed in range(profile.n_experts):
                    settings = recipe(profile, cell, name, seed)
                    if settings not in seen:
                        seen.add(settings)
                        yield cell.data.name, name, settings


def followings(profile: Profile) -> Iterator[tuple[Run, Following]]:
    """A student that is left to itself on each set of the ablation that follows experts, on its first cell."""
    for run in ablation(profile):
        if run.cell == profile.ablation.cell and isinstance(run.settings.of, Distillation):
            yield run, Following(of=run.settings.of)


def film(profile: Profile) -> Film:
    """AST's images at the first seed on the main cell, on their way."""
    filmed: Any = distillation(profile, next(iter(profile.cells)), "AST", 0)
    return Film(of=filmed)


RUNS = {
    "coresets": coresets,
    "main": main,
    "ablation": ablation,
    "cross_architecture": cross_architecture,
}


def measurements(profile: Profile) -> list[Measurement]:
    """Each form of the exact gradient of the outer loop on the main cell's data, over inner loops from a quarter of its length to twice it."""
    cell = next(iter(profile.cells.values()))
    most = cell.student.get("inner_steps", Distillation.model_fields["inner_steps"].default) * 2
    lengths = sorted({max(2, most // 8), max(3, most // 4), most // 2, most})
    return [
        Measurement(network=profile.network, data=cell.data, ipc=10, gradient=form, inner_steps=n)
        for form in EXACT
        for n in lengths
    ]


def everything(profile: Profile) -> list[Settings]:
    """All that a paper needs, settled before any work: a fault anywhere in the profile shows here."""
    elsewhere = [one.cell for one in groups(profile).values() if one.cell]
    for name in (
        profile.ablation.cell,
        *elsewhere,
        *profile.cross_architecture.cells,
        *(trial.cell for trial in profile.tuning),
    ):
        if name not in profile.cells:
            raise InputError(
                f"the profile names a cell '{name}': expected one of {', '.join(profile.cells)}; correct the name, or add the cell under `cells`"
            )
    for method in {m for cell in profile.cells.values() for m in cell.methods}:
        known(profile, method)
    return [e for _, _, e in experts(profile)] + [
        run.settings for runs in RUNS.values() for run in runs(profile)
    ]


def asked(profile: Profile) -> list[Settings]:
    """All that the notebooks ever ask for under a profile: the studies, and what one of them shows beside."""
    name, cell = next(iter(profile.cells.items()))
    shown = [selection(profile, cell, "representative", 0), distillation(profile, name, "AST", 0)]
    judged = (run.settings for run, _ in scores(profile))
    reused = (settings for _, settings in (*continual(profile), *architectures(profile)))
    followed = (following for _, following in followings(profile))
    return [
        *everything(profile),
        *followed,
        *judged,
        *reused,
        *shown,
        film(profile),
        *measurements(profile),
    ]
