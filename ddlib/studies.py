"""Which runs each table and figure needs, as data: a method is a start, the experts it follows if any, and switches.

MTT is AST with its switches off and SGD experts; a coreset is a start with nothing after it; the ceiling is a "selection" of everything.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from .config import (
    Cell,
    Condensation,
    Distillation,
    Distilled,
    Evaluation,
    Expert,
    Following,
    Imported,
    Measurement,
    Network,
    Profile,
    Refusal,
    Selection,
    Settings,
    validated,
)
from .unroll import EXACT

FEATURES = "momentum"  # the recipe whose expert shows the coresets their features


@dataclass(frozen=True)
class Method:
    """`start` names an initialisation; `recipe` the experts followed, or none; `switches` are fields of Distillation, of Condensation without a recipe."""

    start: str
    recipe: str | None = None
    switches: dict[str, Any] = field(default_factory=dict)
    tuned_as: str | None = None  # whose tuned numbers it takes where a cell has none of its own


INNER_MOMENTUM = 0.9
CORESETS = {
    "random": Method("real"),
    "herding": Method("herding"),
    "k-center": Method("k_center"),
    "k-means": Method("representative"),
}
CONDENSED = {  # as published, but for what depends on the IPC, which Condensation knows: arXiv 2006.05929, 2102.08259 and 2110.04181 by their authors' code
    "DC": Method("noise", switches={"method": "dc", "lr_images": 0.1, "iterations": 1000}),
    "DSA": Method("real", switches={"method": "dsa", "lr_images": 0.1, "iterations": 1000}),
    "DM": Method("real", switches={"method": "dm", "lr_images": 1.0, "iterations": 20000}),
}
AST = Method("representative", "ast", {"momentum": INNER_MOMENTUM, "balance": True, "perturbation": 1.0, "intermediate": "equal"}, "AST")
DISTILLED = {
    "MTT": Method("real", "sgd", {"momentum": 0.0}),
    "MTT + inner momentum": Method("real", "sgd", {"momentum": INNER_MOMENTUM}),
    "MTT, strong experts": Method("real", "momentum", {"momentum": 0.0}),
    "AST": AST,
}
TESLA = Method("real", "sgd", {"momentum": 0.0, "gradient": "tesla"}, "TESLA")
RIVALS = {  # published switches, which a cell's tuned numbers may change; what depends on its length (start window, decay) stands there
    "FTD": Method("real", "ftd", {"momentum": 0.0, "ema": 0.9995}),  # arXiv 2211.11004; decay: its authors' scripts
    "TESLA": TESLA,  # arXiv 2211.10586
    "TESLA + soft labels": replace(TESLA, switches=TESLA.switches | {"labels": "expert"}),  # its authors use them on ImageNet-1K alone
    "DATM": Method("correct", "ftd", {"momentum": 0.0, "labels": "learned", "lr_labels": 2.0}),  # arXiv 2310.05773; lr: its authors' settings, CIFAR-10, IPC 10
}


def without(**switches: Any) -> Method:
    """AST with these switches changed."""
    return replace(AST, switches=AST.switches | switches)


COMPOSED = {  # AST with a part of a rival
    "AST + soft labels": without(labels="learned", lr_labels=2.0),
    "AST, FTD experts": replace(AST, recipe="ftd"),
}
ABLATIONS = {
    "AST": AST,
    "AST − ramp": replace(AST, recipe="momentum_penalty"),
    "AST − penalty": replace(AST, recipe="momentum_ramp"),
    "AST − representative start": replace(AST, start="real"),
    "AST − balanced loss": without(balance=False),
    "AST − intermediate matching": without(intermediate="none"),
    "AST − weight perturbation": without(perturbation=0.0),
    "AST − inner momentum": without(momentum=0.0),
    "AST, unsmoothed experts": replace(AST, recipe="momentum"),
    "AST, SGD experts": replace(AST, recipe="sgd"),
    "AST, lr-matched experts": replace(AST, recipe="momentum_lr_matched"),
    "AST, lr warm-up for the ramp": replace(AST, recipe="momentum_warmup_penalty"),
}
METHODS = CORESETS | CONDENSED | DISTILLED | RIVALS | COMPOSED | ABLATIONS
CEILING = "full data"


@dataclass(frozen=True)
class Run:
    """One evaluation and what to call it in a row."""

    study: str
    cell: str
    method: str
    distil_seed: int
    settings: Evaluation

    def label(self, cell: Cell) -> dict[str, Any]:
        """The first columns of its rows."""
        return {"study": self.study, "cell": self.cell, "data": cell.data.name, "method": self.method, "ipc": cell.ipc, "distil_seed": self.distil_seed}


def recipe(profile: Profile, cell: Cell, name: str, seed: int = 0) -> Expert | Imported:
    """The expert of that recipe on the cell's data; a recipe that names a `buffer` imports it."""
    if name not in profile.recipes:
        raise Refusal(f"no expert recipe '{name}' in the profile: expected one of {', '.join(profile.recipes)}; add it under `recipes`")
    fields = {"data": cell.data.model_dump(), "network": profile.network.model_dump(), **profile.recipes[name], "seed": seed}
    return validated(Imported if "buffer" in fields else Expert, fields, f"recipe {name}")


def selection(profile: Profile, cell: Cell, method: str, seed: int, features: str = FEATURES) -> Selection:
    """A start, or a coreset; each seed looks through the eyes of another expert."""
    looks = recipe(profile, cell, features, seed % profile.n_experts) if method in ("correct", "representative", "herding", "k_center") else None
    return Selection(data=cell.data, method=method, ipc=cell.ipc, expert=looks, lr=cell.coreset_lr, seed=seed)


def distillation(profile: Profile, name: str, method: str, seed: int, **changes: Any) -> Distilled:
    """The settings of a method on a cell: what the cell's methods share, what was tuned for this one, its switches, `changes`."""
    cell, how = profile.cells[name], known(method)
    tuned = method if method in cell.tuned else how.tuned_as or method
    if tuned not in cell.tuned:
        raise Refusal(f"cell {name} has no tuned settings for '{tuned}': add them under cells.{name}.tuned, or remove '{method}' from its methods")
    kind = Distillation if how.recipe else Condensation
    shared = {field: value for field, value in cell.student.items() if field in kind.model_fields or field not in Distillation.model_fields}
    fields = shared | how.switches | cell.tuned[tuned] | changes
    start = fields.pop("init", how.start)
    if tuned != method and how.switches["momentum"] != METHODS[tuned].switches["momentum"]:  # keep N a / (1 - mu), the student's reach
        reach = (1 - how.switches["momentum"]) / (1 - METHODS[tuned].switches["momentum"])
        fields |= {"a0": fields["a0"] * reach, "lr_lr": fields["lr_lr"] * reach**2}
    given = {"start": selection(profile, cell, start, seed, how.recipe or FEATURES).model_dump(), "seed": seed}
    if how.recipe:
        given |= {"experts": recipe(profile, cell, how.recipe).model_dump(), "n_experts": profile.n_experts}
    else:
        given |= {"network": profile.network.model_dump()}
    return validated(kind, given | fields, f"'{method}' on {name}")


def known(method: str) -> Method:
    """The method of that name, or a refusal."""
    if method not in METHODS:
        raise Refusal(f"no method '{method}': expected one of {', '.join(METHODS)}; correct its name where the profile lists methods")
    return METHODS[method]


def of(profile: Profile, name: str, method: str, seed: int) -> Distilled | Selection:
    """The set that a method makes on a cell."""
    if known(method) in CORESETS.values():
        return selection(profile, profile.cells[name], METHODS[method].start, seed)
    return distillation(profile, name, method, seed)


def evaluation(profile: Profile, name: str, made: Distilled | Selection, network: Network | None = None, **changes: Any) -> Evaluation:
    """How a set of that cell is judged."""
    fields = profile.evaluation | profile.cells[name].evaluation | changes
    network = network or profile.network
    return validated(Evaluation, {"of": made, "network": network, **fields}, f"evaluation on {name}")


def main(profile: Profile) -> Iterator[Run]:
    """Every method on every cell, and the ceiling."""
    for name, cell in profile.cells.items():
        for method in cell.methods:
            for seed in range(profile.seeds):
                yield Run("main", name, method, seed, evaluation(profile, name, of(profile, name, method, seed)))
        everything = Selection(data=cell.data, method="all", lr=profile.ceiling.lr)
        yield Run("main", name, CEILING, 0, evaluation(profile, name, everything, **profile.ceiling.evaluation))


def coresets(profile: Profile) -> Iterator[Run]:
    """The part of the main study that needs no distillation."""
    for run in main(profile):
        if run.method in CORESETS:
            yield replace(run, study="coresets")


def ablation(profile: Profile) -> Iterator[Run]:
    """AST minus each ingredient, and the standing controls."""
    name = profile.ablation.cell
    for method in ABLATIONS:
        for seed in range(profile.seeds):
            made = distillation(profile, name, method, seed)
            yield Run("ablation", name, method, seed, evaluation(profile, name, made, networks=profile.ablation.networks))


def cross_architecture(profile: Profile) -> Iterator[Run]:
    """Sets made with the profile's network, judged by others."""
    cross = profile.cross_architecture
    for method in cross.methods:
        for seed in range(min(cross.seeds, profile.seeds)):
            made = of(profile, cross.cell, method, seed)
            for network in cross.networks:
                yield Run("cross_architecture", cross.cell, method, seed, evaluation(profile, cross.cell, made, network, **cross.evaluation))


def scores(profile: Profile) -> Iterator[tuple[Run, bool]]:
    """What the robust scores of the main cell's methods are made of: each set, and random images of its size, judged with augmentation and without; the ceiling."""
    name, cell = next(iter(profile.cells.items()))
    for method in dict.fromkeys(["random", *cell.methods]):
        for seed in range(profile.seeds):
            made = of(profile, name, method, seed)
            yield Run("scores", name, method, seed, evaluation(profile, name, made)), True
            yield Run("scores", name, method, seed, evaluation(profile, name, made, strategies=(), networks=profile.ablation.networks)), False
    for run in main(profile):
        if (run.cell, run.method) == (name, CEILING):
            yield replace(run, study="scores"), True


def tuning(profile: Profile) -> Iterator[tuple[Run, dict[str, Any]]]:
    """Candidates, each with what was tried; judged on the validation split only, under a seed that no table uses."""
    for trial in profile.tuning:
        for method, candidates in trial.candidates.items():
            for tried in candidates:
                made = distillation(profile, trial.cell, method, 1000, **trial.budget, **tried)
                yield Run("tuning", trial.cell, method, 1000, evaluation(profile, trial.cell, made, **trial.evaluation, networks=2, test=False)), tried


def experts(profile: Profile) -> Iterator[tuple[str, str, Expert | Imported]]:
    """(data, recipe, expert): every recipe on the main cell's data; on the others those that a method follows."""
    first = next(iter(profile.cells.values())).data
    seen = set()
    for cell in profile.cells.values():
        followed = {FEATURES, *(METHODS[m].recipe for m in cell.methods)} - {None}
        for name in profile.recipes:
            if cell.data == first or name in followed:
                for seed in range(profile.n_experts):
                    settings = recipe(profile, cell, name, seed)
                    if settings not in seen:
                        seen.add(settings)
                        yield cell.data.name, name, settings


RUNS = {"coresets": coresets, "main": main, "ablation": ablation, "cross_architecture": cross_architecture}


def measurements(profile: Profile) -> list[Measurement]:
    """Each form of the exact gradient of the outer loop on the main cell's data, over inner loops from a quarter of its length to twice it."""
    cell = next(iter(profile.cells.values()))
    most = cell.student.get("inner_steps", Distillation.model_fields["inner_steps"].default) * 2
    lengths = sorted({max(2, most // 8), max(3, most // 4), most // 2, most})
    return [Measurement(network=profile.network, data=cell.data, ipc=10, gradient=form, inner_steps=n) for form in EXACT for n in lengths]


def everything(profile: Profile) -> list[Settings]:
    """All that a paper needs, settled before any work: a fault anywhere in the profile shows here."""
    for name in (profile.ablation.cell, profile.cross_architecture.cell, *(trial.cell for trial in profile.tuning)):
        if name not in profile.cells:
            raise Refusal(f"the profile names a cell '{name}': expected one of {', '.join(profile.cells)}; correct the name, or add the cell under `cells`")
    for method in {m for cell in profile.cells.values() for m in cell.methods}:
        known(method)
    return [e for _, _, e in experts(profile)] + [run.settings for runs in RUNS.values() for run in runs(profile)]


def asked(profile: Profile) -> list[Settings]:
    """All that the notebooks ever ask for under a profile: the studies, and what one of them shows beside."""
    name, cell = next(iter(profile.cells.items()))
    shown = [selection(profile, cell, "representative", 0), distillation(profile, name, "AST", 0)]
    followings, judged = (Following(of=run.settings.of) for run in ablation(profile)), (run.settings for run, _ in scores(profile))
    return [*everything(profile), *followings, *judged, *shown, *measurements(profile)]
