"""A paper under one profile, as the notebooks hold it: ask for a study's rows, a table or a figure; what is missing is made.

    paper = Paper("laptop")
    paper.study("main")        # rows, one a network
    paper.table("main")        # a DataFrame, also kept as CSV and Markdown
    paper.figure("main")       # a Figure, also kept as SVG and PNG
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from . import config, data, engine, pipeline, plots, studies, tables
from .config import Distillation, Following, Selection, Settings, key
from .data import Images
from .results import Results
from .store import Artefact, Store, write
from .studies import Run

HOME = Path(os.environ.get("DDLIB_HOME") or Path(__file__).resolve().parent.parent)


def store_folder() -> Path:
    """Where the environment's STORE says; else `store` beside the library."""
    return Path(os.environ.get("STORE") or HOME / "store")


class Paper:
    """A profile, the store that its runs fill and the results that it leaves.

    Raises:
        Refusal: unknown profile, or anything in it that cannot be run, before any work.
    """

    def __init__(self, profile: str = "laptop", store: Path | str | None = None, results: Path | str | None = None):
        engine.settle()
        self.name = Path(profile).stem
        self.profile = config.profile(profile)
        for settings in studies.everything(self.profile):
            pipeline.check(settings)
        self.store = Store(store or store_folder())
        self.results = Results(results or Path(os.environ.get("RESULTS") or HOME / "results") / self.name)

    def data(self, cell: str | None = None) -> Images:
        """The images of a cell; of the main one if none is named; on the CPU, where notebooks look at them."""
        return data.load(self._cell(cell).data, self.store.root)

    def get(self, settings: Settings) -> Artefact:
        """One artefact, made if it is missing."""
        pipeline.fulfil([settings], self.store)
        return pipeline.get(settings, self.store)

    def study(self, name: str) -> pd.DataFrame:
        """The rows of a study: made where they are missing, and kept."""
        pipeline.fulfil(self.tasks(name), self.store)
        return self.results.keep_rows(name, pd.DataFrame(STUDIES[name](self)))

    def tasks(self, study: str) -> list[Settings]:
        """What the rows of a study are read from."""
        if study in studies.RUNS:
            return [run.settings for run in studies.RUNS[study](self.profile)]
        if study in ("experts", "smoothness"):
            return [settings for _, _, settings in studies.experts(self.profile)]
        if study == "curves":
            return [run.settings.of for run in self._distilled()]
        if study == "following":
            return [Following(of=run.settings.of) for run in studies.ablation(self.profile)]
        return [run.settings for run, _ in studies.tuning(self.profile)] if study == "tuning" else []

    def table(self, name: str) -> pd.DataFrame:
        """A table, from rows alone."""
        table = tables.TABLES[name](self.results)
        self.results.keep_table(name, table)
        return table

    def figure(self, name: str) -> Figure:
        """A figure, from rows and kept sets alone."""
        with plots.style():
            figure = plots.FIGURES[name](self.results)
            self.results.keep_figure(name, figure)
        return figure

    def keep_sets(self, methods: Iterable[str] = studies.METHODS) -> None:
        """Copy the sets of the main study to the results: distilled ones under every seed, coresets under the first."""
        for run in studies.main(self.profile):
            made = run.settings.of
            if run.method not in methods or (isinstance(made, Selection) and run.distil_seed):
                continue
            held = pipeline.get(made, self.store)
            wanted = held.tensors.keys() - ({"history"} if run.distil_seed else set())
            if "history" in wanted and made.start.ipc > 1:
                wanted -= {"history"}
            write(self.results.set_file(run.cell, run.method, run.distil_seed), made, {n: held.tensors[n] for n in wanted}, held.record)

    def _cell(self, name: str | None) -> config.Cell:
        return self.profile.cells[name or next(iter(self.profile.cells))]

    def _distilled(self) -> list[Run]:
        runs = [run for study in (studies.main, studies.ablation) for run in study(self.profile)]
        return [run for run in runs if isinstance(run.settings.of, Distillation)]


def network_rows(study: str) -> Callable[[Paper], list[dict]]:
    """Rows of a study whose lines are networks."""

    def rows(paper: Paper) -> list[dict]:
        found = []
        for run in studies.RUNS[study](paper.profile):
            label = run.label(paper.profile.cells[run.cell])
            if run.method == studies.CEILING:
                label["ipc"] = None
            found += [label | row for row in pipeline.get(run.settings, paper.store).record["rows"]]
        return found

    return rows


def epoch_rows(paper: Paper) -> list[dict]:
    """One line an epoch of an expert."""
    found = []
    for name, recipe, settings in studies.experts(paper.profile):
        label = {"data": name, "recipe": recipe, "expert_seed": settings.seed}
        found += [label | row | {"settings_key": key(settings)} for row in pipeline.get(settings, paper.store).record["rows"]]
    return found


def smoothness_rows(paper: Paper) -> list[dict]:
    """One line an expert: its whole path, and how good it is at the end."""
    found = []
    for name, recipe, settings in studies.experts(paper.profile):
        record = pipeline.get(settings, paper.store).record
        last = {column: record["rows"][-1][column] for column in ("validation_accuracy", "test_accuracy", "norm_per_pixel", "norm_per_sample")}
        label = {"data": name, "recipe": recipe, "expert_seed": settings.seed}
        found.append(label | record["smoothness"] | last | {"settings_key": key(settings)})
    return found


def curve_rows(paper: Paper) -> list[dict]:
    """One line an outer iteration."""
    found = []
    for run in paper._distilled():
        label = run.label(paper.profile.cells[run.cell])
        curve = pipeline.get(run.settings.of, paper.store).record["curve"]
        found += [label | row | {"settings_key": key(run.settings.of)} for row in curve]
    return found


def following_rows(paper: Paper) -> list[dict]:
    """One line an epoch of a student that follows an expert without being put back on its path."""
    found = []
    for run in studies.ablation(paper.profile):
        settings = Following(of=run.settings.of)
        label = {"cell": run.cell, "method": run.method, "distil_seed": run.distil_seed}
        found += [label | row | {"settings_key": key(settings)} for row in pipeline.get(settings, paper.store).record["rows"]]
    return found


def tuning_rows(paper: Paper) -> list[dict]:
    """One line a network of a candidate; validation accuracy only."""
    found = []
    for run, tried in studies.tuning(paper.profile):
        label = run.label(paper.profile.cells[run.cell]) | {"tried": ", ".join(f"{k} = {v:g}" for k, v in tried.items()), "iterations": run.settings.of.iterations}
        found += [label | row for row in pipeline.get(run.settings, paper.store).record["rows"]]
    return found


STUDIES: dict[str, Callable[[Paper], list[dict]]] = {
    **{study: network_rows(study) for study in studies.RUNS},
    "experts": epoch_rows,
    "smoothness": smoothness_rows,
    "curves": curve_rows,
    "following": following_rows,
    "tuning": tuning_rows,
}
