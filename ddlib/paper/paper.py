"""A paper under one profile, as the notebooks hold it: ask for a study's rows, a table or a figure; what is missing is made.

    paper = Paper("laptop")
    paper.study("main")        # rows, one a network
    paper.table("main")        # a DataFrame, also kept as CSV and Markdown
    paper.figure("main")       # a Figure, also kept as SVG and PNG

What was computed stands in the store, what it comes to in `results/<profile>`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ddlib import settings as config
from ddlib.data import datasets as data
from ddlib.data.datasets import Images
from ddlib.paper import claims, tables
from ddlib.paper import figures as plots
from ddlib.paper.results import Results
from ddlib.runs import engine, studies
from ddlib.runs import stages as pipeline
from ddlib.runs.store import Artefact, Store, write
from ddlib.settings import Distilled, Profile, Settings, key

HOME = Path(os.environ.get("DDLIB_HOME") or Path(__file__).resolve().parent.parent.parent)
SMALL, LARGE = (
    256 << 10,
    2 << 20,
)  # bytes of images: up to the first a set is kept under every seed, above the second it stays in the store
AT_THE_END = (
    "validation_accuracy",
    "test_accuracy",
    "norm_per_pixel",
    "norm_per_sample",
)  # what an expert's last epoch says of it


def store_folder() -> Path:
    """Where the environment's STORE says; else `store` beside the library."""
    return Path(os.environ.get("STORE") or HOME / "store")


class Paper:
    """A profile, the store that its runs fill and the results that it leaves.

    Raises:
        InputError: unknown profile, or anything in it that cannot be run, before any work.
    """

    def __init__(
        self,
        profile: str = "laptop",
        store: Path | str | None = None,
        results: Path | str | None = None,
    ):
        engine.settle()
        self.name = Path(profile).stem
        self.profile = config.profile(profile)
        for settings in studies.everything(self.profile):
            pipeline.check(settings)
        self.store = Store(store or store_folder())
        self.results = Results(
            results or Path(os.environ.get("RESULTS") or HOME / "results") / self.name
        )

    def data(self, cell: str | None = None) -> Images:
        """The images of a cell; of the main one if none is named; on the CPU, where notebooks look at them."""
        return data.load(self._cell(cell).data, self.store.root)

    def get(self, settings: Settings) -> Artefact:
        """One artefact, made if it is missing."""
        pipeline.ensure([settings], self.store)
        return pipeline.get(settings, self.store)

    def study(self, name: str) -> pd.DataFrame:
        """The rows of a study: made where they are missing, and kept."""
        pipeline.ensure(self.tasks(name), self.store)
        return self.results.keep_rows(name, pd.DataFrame(self.rows(name)))

    def tasks(self, study: str) -> list[Settings]:
        """What the rows of a study are read from."""
        return [settings for _, settings in STUDIES[study].asks(self.profile)]

    def rows(
        self, study: str, wanted: Callable[[Settings], bool] = lambda settings: True
    ) -> list[dict]:
        """What the stored artefacts of a study say, or those of them that are wanted."""
        found = []
        for label, settings in STUDIES[study].asks(self.profile):
            if wanted(settings):
                record = pipeline.get(settings, self.store).record
                if STUDIES[study].measured:
                    record = record | {"spent": pipeline.spent(settings, self.store)}
                found += [
                    label | line | {"settings_key": key(settings)}
                    for line in STUDIES[study].lines(record)
                ]
        return found

    def table(self, name: str) -> pd.DataFrame:
        """A table, from rows alone."""
        table = tables.TABLES[name](self.results)
        self.results.keep_table(name, table)
        if name == "claims":
            self.results.keep_ledger(claims.ledger(self.results))
        return table

    def figure(self, name: str) -> Figure:
        """A figure, from rows and kept sets alone."""
        with plots.style():
            figure = plots.FIGURES[name](self.results)
            self.results.keep_figure(name, figure)
        return figure

    def film(self) -> bytes:
        """The images of a set while they are distilled, as a GIF, also kept as figures/film.gif; from the store, for no frames are kept beside the rows."""
        return self.results.keep_film(plots.film(self.get(studies.film(self.profile))))

    def keep_sets(self, methods: Iterable[str] | None = None) -> None:
        """Copy the sets of the main study to the results, or those of these methods: see `kept_sets`."""
        for run in kept_sets(self.profile):
            made: Any = run.settings.of
            if methods is not None and run.method not in methods:
                continue
            held = pipeline.get(made, self.store)
            wanted = held.tensors.keys() - ({"history"} if run.distil_seed else set())
            if "history" in wanted and made.start.ipc > 1:
                wanted -= {"history"}
            write(
                self.results.set_file(run.cell, run.method, run.distil_seed),
                made,
                {n: held.tensors[n] for n in wanted},
                held.record,
            )

    def _cell(self, name: str | None) -> config.Cell:
        return self.profile.cells[name or next(iter(self.profile.cells))]


def kept_sets(profile: Profile) -> Iterator[studies.Run]:
    """The sets of the main study that are kept beside its rows: small distilled ones under every seed, other ones and coresets under the first, none that is large."""
    for run in studies.main(profile):
        made, first = run.settings.of, run.distil_seed == 0
        start = made.start if isinstance(made, Distilled) else made
        known = data.about(start.data)
        size = 4 * start.ipc * len(known.class_names) * prod(known.shape)
        if run.method != studies.CEILING and size <= (
            LARGE if first else SMALL if isinstance(made, Distilled) else 0
        ):
            yield run


@dataclass(frozen=True)
class Study:
    """Rows, as data: `asks` gives the artefacts that they are read from, each with the first columns of its rows; `lines` what an artefact's record says.

    Rows that are `measured` are read from what was noted beside the artefact, too, under "spent": they differ from run to run.
    """

    asks: Callable[[Profile], Iterable[tuple[dict, Settings]]]
    lines: Callable[[dict], list[dict]]
    measured: bool = False


def rows(record: dict) -> list[dict]:
    """One line a network of an evaluation, an epoch of an expert or of what follows one."""
    return record["rows"]


def curve(record: dict) -> list[dict]:
    """One line an outer iteration."""
    return record["curve"]


def whole_path(record: dict) -> list[dict]:
    """One line an expert: its whole path, and how good it is at the end."""
    return [record["smoothness"] | {column: record["rows"][-1][column] for column in AT_THE_END}]


def cost(record: dict) -> list[dict]:
    """One line a set: its learned lr, its outer iterations, and what was noted while it was made."""
    return [{"lr": record["lr"], "iterations": len(record["curve"]), **record["spent"]}]


def effort(record: dict) -> list[dict]:
    """One line: what was noted while it was made."""
    return [record["spent"]]


def of_runs(study: str) -> Callable[[Profile], Iterator[tuple[dict, Settings]]]:
    """Each evaluation of a study whose lines are networks."""

    def asks(profile: Profile) -> Iterator[tuple[dict, Settings]]:
        for run in studies.RUNS[study](profile):
            label = run.label(profile.cells[run.cell]) | run.place
            yield label | ({"ipc": None} if run.method == studies.CEILING else {}), run.settings

    return asks


def of_scores(profile: Profile) -> Iterator[tuple[dict, Settings]]:
    """Each set of the main cell and random images, judged with augmentation and without, soft labels also by the classes alone."""
    for run, how in studies.scores(profile):
        yield run.label(profile.cells[run.cell]) | how, run.settings


def of_experts(profile: Profile) -> Iterator[tuple[dict, Settings]]:
    """Each expert."""
    for data_name, recipe, settings in studies.experts(profile):
        yield {"data": data_name, "recipe": recipe, "expert_seed": settings.seed}, settings


def of_sets(profile: Profile) -> Iterator[tuple[dict, Settings]]:
    """Each distilled set of the main study and the ablation."""
    for study in (studies.main, studies.ablation):
        for run in study(profile):
            if isinstance(run.settings.of, Distilled):
                yield run.label(profile.cells[run.cell]), run.settings.of


def of_followings(profile: Profile) -> Iterator[tuple[dict, Settings]]:
    """A student that follows the experts without being put back on their paths, on sets of the ablation."""
    for run, following in studies.followings(profile):
        yield {"cell": run.cell, "method": run.method, "distil_seed": run.distil_seed}, following


def of_choices(profile: Profile) -> Iterator[tuple[dict, Settings]]:
    """What choosing an architecture costs: each evaluation behind it, and each distilled set that it is made on."""
    made: dict[Settings, dict] = {}
    for label, settings in studies.architectures(profile):
        yield label, settings
        if isinstance(settings.of, Distilled):
            made.setdefault(settings.of, label | {"network": "the set itself"})
    yield from ((label, settings) for settings, label in made.items())


def of_film(profile: Profile) -> Iterator[tuple[dict, Settings]]:
    """The one set that is filmed."""
    yield (
        {"cell": next(iter(profile.cells)), "method": "AST", "distil_seed": 0},
        studies.film(profile),
    )


def of_candidates(profile: Profile) -> Iterator[tuple[dict, Settings]]:
    """Each candidate of the search; validation accuracy only."""
    for run, tried in studies.tuning(profile):
        words = (
            ", ".join(
                f"{k} = {v:g}" if isinstance(v, float) else f"{k} = {v}" for k, v in tried.items()
            )
            or "as it is"
        )
        made: Any = run.settings.of
        yield (
            run.label(profile.cells[run.cell])
            | run.place
            | {"tried": words, "iterations": made.iterations},
            run.settings,
        )


STUDIES = {
    **{study: Study(of_runs(study), rows) for study in studies.RUNS},
    "experts": Study(of_experts, rows),
    "smoothness": Study(of_experts, whole_path),
    "curves": Study(of_sets, curve),
    "costs": Study(of_sets, cost, measured=True),
    "scores": Study(of_scores, rows),
    "following": Study(of_followings, rows),
    "continual": Study(studies.continual, rows),
    "architectures": Study(studies.architectures, rows),
    "choices": Study(of_choices, effort, measured=True),
    "film": Study(of_film, rows),
    "tuning": Study(of_candidates, rows),
}
