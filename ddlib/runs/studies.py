"""Studies: the artefacts behind each table and figure, and the rows that are read from them.

A new study is one entry of `STUDIES`: `asks` names the artefacts, each with the first columns of
its rows, and `lines` reads the rows from an artefact's record. A table or figure is then a function
of those rows in `ddlib.paper`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import ceil
from operator import itemgetter
from typing import Any

from ddlib.base import InputError, Task
from ddlib.method.student import EXACT
from ddlib.runs.methods import (
    CEILING,
    CORESETS,
    FEATURES,
    GROUPS,
    RANDOM,
    distillation,
    evaluation,
    everything,
    known,
    n_experts,
    recipe,
    selection,
    synthetic,
)
from ddlib.runs.profile import Cell, Group, Profile
from ddlib.runs.stages import Film, Following, Measurement
from ddlib.settings import Distillation, Distilled, Evaluation

Ask = tuple[dict[str, Any], Task]  # the first columns of an artefact's rows, and its settings
Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """One evaluation, and what its rows are called."""

    study: str
    cell: str
    method: str
    distil_seed: int
    settings: Evaluation
    place: dict[str, Any] = field(default_factory=dict)  # more columns, as its group

    def label(self, cell: Cell) -> dict[str, Any]:
        """The first columns of its rows."""
        return {
            "study": self.study,
            "cell": self.cell,
            "data": cell.data.label,
            "method": self.method,
            "ipc": None if self.method == CEILING and self.study in RUNS else cell.ipc,
            "distil_seed": self.distil_seed,
            **self.place,
        }


def seeds(profile: Profile, cell_name: str) -> range:
    """The distillation seeds of a cell."""
    return range(profile.cells[cell_name].seeds or profile.seeds)


def main(profile: Profile) -> Iterator[Run]:
    """Every method on every cell, and the ceiling."""
    for name, cell in profile.cells.items():
        for method in cell.methods:
            for seed in seeds(profile, name):
                of = synthetic(profile, name, method, seed)
                yield Run("main", name, method, seed, evaluation(profile, name, of))
        of = everything(cell)
        judged = evaluation(profile, name, of, **profile.ceiling.evaluation)
        yield Run("main", name, CEILING, 0, judged)


def coresets(profile: Profile) -> Iterator[Run]:
    """The part of the main study that needs no distillation."""
    for run in main(profile):
        if run.method in CORESETS:
            yield replace(run, study="coresets")


def groups(profile: Profile) -> dict[str, Group]:
    """The groups of the profile's ablation."""
    if profile.ablation is None:
        return {}
    if unknown := [name for name in profile.ablation.groups if name not in GROUPS]:
        raise InputError(
            f"no group '{unknown[0]}': expected one of {', '.join(GROUPS)}; correct "
            "ablation.groups, or add the group under ablation.more"
        )
    return {name: GROUPS[name] for name in profile.ablation.groups} | profile.ablation.more


def ablation(profile: Profile) -> Iterator[Run]:
    """Group by group, what differs from its base in one thing.

    A base stands in the first group that it is the base of.
    """
    done = set()
    for group_name, group in groups(profile).items():
        cell = group.cell or profile.ablation.cell
        for method in (group.base, *group.methods):
            if (cell, method) in done:
                continue
            done |= {(cell, group.base)}
            for seed in seeds(profile, cell)[: group.seeds]:
                of = synthetic(profile, cell, method, seed)
                judged = evaluation(profile, cell, of, networks=profile.ablation.networks, looks=1)
                place = {"group": group_name, "base": group.base}
                yield Run("ablation", cell, method, seed, judged, place)


def cross_architecture(profile: Profile) -> Iterator[Run]:
    """Sets made with the profile's network, judged by others."""
    cross = profile.cross_architecture
    for cell in cross.cells if cross else ():
        for method in cross.methods:
            for seed in seeds(profile, cell)[: cross.seeds]:
                of = synthetic(profile, cell, method, seed)
                for network in cross.networks:
                    judged = evaluation(profile, cell, of, network, **cross.evaluation)
                    yield Run("cross_architecture", cell, method, seed, judged)


def architectures(profile: Profile) -> Iterator[Run]:
    """A pool of networks, trained on random images, on AST's, and half as long on all images."""
    cross, half = profile.cross_architecture, profile.ceiling.evaluation
    for name in cross.cells[:1] if cross and cross.pool else ():
        cell = profile.cells[name]
        # as many networks as on the sets, and the same lrs
        half = half | cross.evaluation | {"epochs": max(1, half.get("epochs", 2) // 2)}
        for method in (RANDOM, *["AST"] * ("AST" in cell.tuned), CEILING):
            of = everything(cell) if method == CEILING else synthetic(profile, name, method, 0)
            how = half if method == CEILING else cross.evaluation
            for network in cross.pool:
                judged = evaluation(profile, name, of, network, **how)
                yield Run("architectures", name, method, 0, judged, {"depth": network.depth})


RUNS: dict[str, Callable[[Profile], Iterator[Run]]] = {
    "coresets": coresets,
    "main": main,
    "ablation": ablation,
    "cross_architecture": cross_architecture,
    "architectures": architectures,
}


def of_runs(study: str) -> Callable[[Profile], Iterator[Ask]]:
    """Each evaluation of a study in RUNS."""

    def asks(profile: Profile) -> Iterator[Ask]:
        for run in RUNS[study](profile):
            yield run.label(profile.cells[run.cell]), run.settings

    return asks


def scores(profile: Profile) -> Iterator[Ask]:
    """What the robust scores of the main cell's methods are made of.

    Each set, and random images of its size, judged with augmentation and without, and under the
    soft labels of an expert, of the recipe whose features coresets use; sets with soft labels also
    by their classes alone; the ceiling.
    """
    name = profile.main_cell
    cell = profile.cells[name]
    fewer = {"networks": profile.ablation.networks if profile.ablation else 3, "looks": 1}
    for method in dict.fromkeys([RANDOM, *cell.methods]):
        for seed in seeds(profile, name)[:3]:
            of = synthetic(profile, name, method, seed)
            teacher = recipe(profile, cell, FEATURES, seed % n_experts(profile, FEATURES))
            variants: list[tuple[bool, str, dict]] = [
                (True, "own", {}),
                (False, "own", {"strategies": (), **fewer}),
                (True, "teacher", {"teacher": teacher, **fewer}),
            ]
            if isinstance(of, Distilled) and of.labels:
                variants.append((True, "hard", {"labels": "hard"}))
            for augmented, labels, how in variants:
                judged = evaluation(profile, name, of, **how)
                label = Run("scores", name, method, seed, judged).label(cell)
                yield label | {"augmented": augmented, "labels": labels}, judged
    for run in main(profile):
        if (run.cell, run.method) == (name, CEILING):
            label = replace(run, study="scores").label(cell)
            yield label | {"augmented": True, "labels": "own"}, run.settings


def experts(profile: Profile) -> Iterator[Ask]:
    """Every recipe on the main cell's data; on other data the recipes that a method follows."""
    first = profile.cells[profile.main_cell].data
    labels: dict[Task, Row] = {}
    for cell in profile.cells.values():
        followed = {FEATURES, *(known(profile, method).recipe for method in cell.methods)}
        for name in profile.recipes:
            shown = cell.data == first or name in followed
            for seed in range(n_experts(profile, name) if shown else 0):
                label = {"data": cell.data.label, "recipe": name, "expert_seed": seed}
                labels.setdefault(recipe(profile, cell, name, seed), label)
    for settings, label in labels.items():
        yield label, settings


def distilled_sets(profile: Profile) -> Iterator[Ask]:
    """Each distilled set of the main study and of the ablation."""
    for study in (main, ablation):
        for run in study(profile):
            if isinstance(run.settings.of, Distilled):
                label = run.label(profile.cells[run.cell])
                yield {k: v for k, v in label.items() if k not in run.place}, run.settings.of


def followings(profile: Profile) -> Iterator[Ask]:
    """A student left to itself on sets of the ablation's own cell, and how far it strays.

    Only on sets whose experts are those of their base: paths of other experts are no measure.
    """
    for run in ablation(profile):
        of = run.settings.of
        alike = len({known(profile, name).recipe for name in (run.method, run.place["base"])}) == 1
        if alike and run.cell == profile.ablation.cell and isinstance(of, Distillation):
            label = {"cell": run.cell, "method": run.method, "distil_seed": run.distil_seed}
            yield label, Following(of=of)


def film(profile: Profile) -> Film:
    """AST's images at the first seed on the main cell, on their way; each check has its frame."""
    of: Any = distillation(profile, profile.main_cell, "AST", 0)
    return Film(of=of, frames=of.checks * ceil(50 / of.checks))


def filmed(profile: Profile) -> Iterator[Ask]:
    """The one set that is filmed; none, where the main cell has no AST."""
    if "AST" in profile.cells[profile.main_cell].methods:
        yield {"cell": profile.main_cell, "method": "AST", "distil_seed": 0}, film(profile)


def tuning(profile: Profile) -> Iterator[Ask]:
    """Candidates of the search, judged on the validation split alone, under seeds of their own."""
    for trial in profile.tuning:
        cell = profile.cells[trial.cell]
        for method, candidates in trial.candidates.items():
            for tried in candidates:
                words = ", ".join(
                    f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}"
                    for k, v in tried.items()
                )
                for seed in range(1000, 1000 + trial.seeds):
                    changes = trial.budget | tried
                    of = distillation(profile, trial.cell, method, seed, **changes)
                    how: Any = trial.evaluation | {"networks": 2, "test": False}
                    judged = evaluation(profile, trial.cell, of, **how)
                    label = Run("tuning", trial.cell, method, seed, judged).label(cell)
                    label |= {"choosing": trial.choosing, "tried": words or "as it is"}
                    yield label | {"iterations": of.iterations}, judged


def measurements(profile: Profile) -> Iterator[Ask]:
    """Each exact gradient on the main data, for inner loops of a quarter to twice the length."""
    cell = profile.cells[profile.main_cell]
    default = Distillation.model_fields["inner_steps"].default
    most = cell.student.get("inner_steps", default) * 2
    lengths = sorted({max(2, most // 8), max(3, most // 4), most // 2, most})
    for form in EXACT:
        for steps in lengths:
            loop = {"ipc": 10, "gradient": form, "inner_steps": steps}
            yield {}, Measurement(network=profile.network, data=cell.data, **loop)


AT_THE_END = ("validation_accuracy", "test_accuracy", "norm_per_pixel", "norm_per_sample")


def whole_path(record: dict) -> list[Row]:
    """One row per expert: its path as a whole, and how good it is at the end."""
    return [record["smoothness"] | {name: record["rows"][-1][name] for name in AT_THE_END}]


def cost(record: dict) -> list[Row]:
    """One row per set: its learned lr, its outer iterations, and what making it took."""
    return [{"lr": record["lr"], "iterations": len(record["curve"]), **record["spent"]}]


@dataclass(frozen=True)
class Study:
    """`asks(profile)` gives the artefacts of a study, `lines(record)` the rows of each.

    Rows that are `measured` also read what was noted while the artefact was made, under "spent":
    they differ from run to run.
    """

    asks: Callable[[Profile], Iterable[Ask]]
    lines: Callable[[dict], list[Row]]
    measured: bool = False


# one row per network, per epoch of an expert or of what follows one, or per outer iteration
rows, curve = itemgetter("rows"), itemgetter("curve")
STUDIES = {
    **{study: Study(of_runs(study), rows) for study in RUNS},
    "experts": Study(experts, rows),
    "smoothness": Study(experts, whole_path),
    "curves": Study(distilled_sets, curve),
    "costs": Study(distilled_sets, cost, measured=True),
    "scores": Study(scores, rows),
    "following": Study(followings, rows),
    "film": Study(filmed, rows),
    "memory": Study(measurements, lambda record: [record]),
    "tuning": Study(tuning, rows),
}


def check(profile: Profile) -> list[Task]:
    """The experts and evaluations that a paper needs, settled before any work.

    Raises:
        InputError: anything in the profile that cannot be run.
    """
    cells = [group.cell for group in groups(profile).values() if group.cell]
    cells += [profile.ablation.cell] if profile.ablation else []
    cells += profile.cross_architecture.cells if profile.cross_architecture else ()
    for name in (*cells, *(trial.cell for trial in profile.tuning)):
        if name not in profile.cells:
            raise InputError(
                f"the profile names a cell '{name}': expected one of {', '.join(profile.cells)}; "
                "correct the name, or add the cell under `cells`"
            )
    return asked(profile, ["experts", *RUNS])


def asked(profile: Profile, names: Iterable[str]) -> list[Task]:
    """The artefacts that the rows of these studies are read from."""
    return [settings for name in names for _, settings in STUDIES[name].asks(profile)]


def everything_asked(profile: Profile) -> list[Task]:
    """All that the notebooks ask for under a profile; not the search for settings."""
    shown = selection(profile, profile.cells[profile.main_cell], "representative", 0)
    studies = (name for name in STUDIES if name != "tuning")
    return [*check(profile), *asked(profile, studies), shown]
