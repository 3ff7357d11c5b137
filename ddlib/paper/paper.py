"""The paper under one profile: rows, tables and figures; what is missing is made first.

    paper = Paper("laptop")
    paper.study("main")        # rows, one per network
    paper.table("main")        # a DataFrame, also kept as CSV and Markdown
    paper.figure("main")       # a Figure, also kept as SVG and PNG

Artefacts are in the store, what is read from them in `results/<profile>`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
from filelock import FileLock
from IPython.display import SVG
from matplotlib.figure import Figure
from torch import Tensor

from ddlib.base import InputError, Task, key
from ddlib.data import datasets
from ddlib.data.datasets import Images
from ddlib.files import Absent, Damaged, digest
from ddlib.paper import claims, figures, pictures, style, tables
from ddlib.paper.results import Results
from ddlib.runs import engine, run, studies
from ddlib.runs.methods import CEILING
from ddlib.runs.profile import Profile
from ddlib.runs.profile import profile as read_profile
from ddlib.runs.store import HOME, Artefact, Store, checked, place, store_folder, write
from ddlib.runs.studies import STUDIES, Run
from ddlib.settings import AnySet, Distilled

LARGE = 1 << 20  # bytes of images above which a set stays in the store
TRAINED_ON = ("images", "labels", "soft")  # what a set's digest is of, beside its learned lr


class Own(Task):
    """A notebook's own study: its name, and all that its rows depend on."""

    stage: ClassVar[str] = "own"
    words: ClassVar[str] = "the study {s.name}"
    name: str
    about: dict[str, Any]


def name_of(profile: str) -> str:
    """What the results of a profile are called; of a file of one's own also by where it lies.

    So two files of the same name never share results, nor do they take those of the library's.
    """
    file = Path(profile)
    if file.suffix not in (".yaml", ".yml"):
        return profile
    return f"{file.stem}-{sha256(str(file.resolve()).encode()).hexdigest()[:6]}"


def results_root() -> Path:
    """The folder of all results: the environment's RESULTS, else `results` in the project."""
    return place("RESULTS", "results")


class Paper:
    """A profile, the store of its artefacts, and its results.

    A reader's own session keeps its results in the store, so that what is printed in `results/`
    changes by `make paper` alone. What it has not made itself it reads there: rows of studies, and
    sets (without their history), as long as they were made under the same settings. KEPT=1 in the
    environment lets `make paper` read them, too.

    Raises:
        InputError: an unknown profile, or anything in it that cannot be run, before any work.
    """

    def __init__(
        self,
        profile: str = "laptop",
        store: Path | str | None = None,
        results: Path | str | None = None,
    ):
        engine.settle()
        self.name, self.profile = name_of(profile), read_profile(profile)
        for settings in studies.check(self.profile):
            run.check(settings)
        self.store = Store(store or store_folder())
        printed, own = results_root() / self.name, self.store.root / "results" / self.name
        if results or os.environ.get("RESULTS"):
            self.results = Results(results or printed)
        else:
            self.results = Results(own, behind=printed)
        self.reads = self.results.behind is not None or os.environ.get("KEPT") == "1"
        # a reader is shown what this store has made, with KEPT=1 what is printed
        self.made = self.store.has if self.results.behind else lambda settings: False
        for cell, of in self.profile.cells.items():
            files = [self.results.set_file(cell, method, 0).name for method in of.methods]
            if twice := {file for file in files if files.count(file) > 1}:
                raise InputError(
                    f"two methods of {cell} would both keep their sets as {min(twice)}: give one "
                    "of these variants a name that differs in its letters"
                )

    @classmethod
    def printed(cls, profile: str) -> Paper:
        """The paper whose results are those that are printed."""
        return cls(profile, results=results_root() / name_of(profile))

    def data(self, cell: str | None = None) -> Images:
        """The images of a cell, by default the main one, on the CPU."""
        of = self.profile.cells[cell or self.profile.main_cell]
        return datasets.load(of.data, self.store.root)

    def get(self, settings: Task) -> Artefact:
        """One artefact; it and all that it needs are made side by side if missing."""
        if self.reads and not self.made(settings):
            for of in main_sets(self.profile):
                if of.settings.of == settings:
                    with suppress(Absent, Damaged):
                        name = self.results.set_file(of.cell, of.method, of.distil_seed).name
                        return checked(self.results.file(f"sets/{name}"), settings)
        run.ensure([settings], self.store)
        return run.get(settings, self.store)

    def study(self, name: str) -> pd.DataFrame:
        """The rows of a study, made where they are missing; also kept as rows/<name>.csv."""
        run.ensure(self.lacking(name), self.store)
        return self.results.keep_rows(name, pd.DataFrame(self.rows(name)))

    def kept(self, study: str) -> dict[str, pd.DataFrame]:
        """The kept rows of a study by the key of their settings, where a session reads them."""
        if not self.reads or not self.results.has_rows(study):
            return {}
        rows = self.results.rows(study)
        return dict([*rows.groupby("settings_key")]) if "settings_key" in rows else {}

    def lacking(self, study: str) -> list[Task]:
        """The artefacts of a study but those whose kept rows are read."""
        kept = self.kept(study)
        return [settings for settings in self.tasks(study) if key(settings) not in kept]

    def tasks(self, study: str) -> list[Task]:
        """The artefacts that the rows of a study are read from."""
        return [settings for _, settings in STUDIES[study].asks(self.profile)]

    def rows(
        self, study: str, wanted: Callable[[Task], bool] = lambda settings: True
    ) -> list[dict[str, Any]]:
        """The rows of a study, or those of the artefacts that are wanted."""
        rows, kept = list[dict[str, Any]](), self.kept(study)
        for label, settings in STUDIES[study].asks(self.profile):
            if wanted(settings) and key(settings) in kept and not self.made(settings):
                old = kept[key(settings)]  # one result may have several labels, or another by now
                old = old.drop_duplicates([name for name in old if name not in label])
                rows += old.assign(**label).to_dict("records")
            elif wanted(settings):
                record = run.get(settings, self.store).record
                if STUDIES[study].measured:
                    record = record | {"spent": run.spent(settings, self.store)}
                columns = {"settings_key": key(settings)}
                rows += [label | line | columns for line in STUDIES[study].lines(record)]
        return rows

    def own(
        self, name: str, about: dict[str, Any], compute: Callable[[], Iterable[dict[str, Any]]]
    ) -> pd.DataFrame:
        """A notebook's own study: rows that `compute` returns, kept in the store.

        They are computed once for each value of `about`, which names all that they depend on and
        must be JSON-able. Also kept as rows/<name>.csv.
        """
        settings = Own(name=name, about=about)
        if key(settings) in (kept := self.kept(name)) and not self.made(settings):
            return self.results.keep_rows(name, kept[key(settings)])

        def make() -> None:
            # through a DataFrame, for JSON holds no numpy numbers
            rows = pd.DataFrame(compute()).assign(settings_key=key(settings))
            self.store.save(settings, {}, {"rows": rows.to_dict("records")})

        artefact = self.store.kept(settings, make)
        return self.results.keep_rows(name, pd.DataFrame(artefact.record["rows"]))

    def table(self, name: str) -> pd.DataFrame:
        """A table, from rows alone; also kept as tables/<name>.csv and .md."""
        table = tables.TABLES[name](self.results)
        self.results.keep_table(name, table)
        if name == "claims":
            self.results.write("claims.md", claims.ledger(self.results))
        return table

    @staticmethod
    def schematic(step: int) -> SVG | None:
        """A step of the method, 1 to 5, as a picture; None where the package alone is installed."""
        file = HOME / f"docs/_static/schematic-{step}.svg"
        return SVG(filename=str(file)) if file.exists() else None

    def figure(self, name: str) -> Figure:
        """A figure, from rows and kept sets alone; also kept as figures/<name>.svg, .pdf, .png."""
        with style.style():
            figure = figures.FIGURES[name](self.results)
            self.results.keep_figure(name, figure)
        return figure

    def film(self) -> bytes:
        """A set's images from their start to the check that was kept; also as figures/film.gif."""
        film, kept = studies.film(self.profile), self.results.file("figures/film.gif")
        if key(film) in self.kept("film") and not self.made(film) and kept.exists():
            return kept.read_bytes()
        chosen = self.get(film.of).record["chosen_iteration"]
        content = pictures.film(self.get(film), chosen)
        self.results.write("figures/film.gif", content)
        return content

    def keep_sets(self, methods: Iterable[str] | None = None) -> None:
        """Keep the sets of the main study, or of these methods of it, beside the rows.

        The tensors are kept of some, as `keeps_tensors` says; of every set its digest.
        """
        # notebooks run side by side, and digests.csv is read before it is written
        with FileLock(self.store.root / "locks" / f"{self.name}-sets.lock"):
            wanted, kept = main_sets(self.profile), self.kept("main")
            self.results.keep_digests([(of.cell, of.method, of.distil_seed) for of in wanted])
            for of in wanted:
                beside = key(of.settings) in kept and not self.made(of.settings.of)
                if beside or (methods is not None and of.method not in methods):
                    continue
                settings, place = of.settings.of, (of.cell, of.method, of.distil_seed)
                made = run.get(settings, self.store)
                self.results.keep_set_digest(*place, set_digest(made.tensors), made.record["lr"])
                if keeps_tensors(of):
                    tensors = {n: t for n, t in made.tensors.items() if n != "history"}
                    if settings.ipc == 1 and of.method == pictures.SHOWN:
                        tensors["history"] = made.tensors["history"][:1]
                    write(self.results.set_file(*place), settings, tensors, made.record)


def main_sets(profile: Profile) -> list[Run]:
    """The runs of the main study that have a set of their own."""
    return [of for of in studies.main(profile) if of.method != CEILING]


def keeps_tensors(of: Run) -> bool:
    """Whether a run's set is kept beside its rows: of seed 0, distilled or IPC 1, not LARGE."""
    settings: AnySet = of.settings.of
    known = datasets.about(settings.data)
    size = 4 * settings.ipc * len(known.class_names) * prod(known.shape)
    wanted = isinstance(settings, Distilled) or settings.ipc == 1
    return of.distil_seed == 0 and wanted and size <= LARGE


def set_digest(tensors: dict[str, Tensor]) -> str:
    """The digest of what networks are trained on."""
    return digest({name: tensors[name] for name in TRAINED_ON if name in tensors})
