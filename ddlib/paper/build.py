"""Printing the paper: the notebooks in order, each made ready and then executed, with the time left; and the README's block.

Work is done before a notebook runs, side by side and with progress; the notebook itself then only reads, so its executed copy is clean.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from ddlib.paper import figures as plots
from ddlib.paper import tables
from ddlib.paper.paper import HOME, STUDIES, Paper
from ddlib.paper.results import NoRows, Results
from ddlib.runs import measure, plan, shards
from ddlib.runs import stages as pipeline
from ddlib.runs.engine import Progress, clock, default_workers, executor
from ddlib.runs.store import sweep, whole, write_whole
from ddlib.settings import InputError

NOTEBOOKS, README = HOME / "notebooks", HOME / "README.md"
NEEDS = {  # the studies that a notebook reads
    "02_experts": ["experts"],
    "03_smoothness": ["experts", "smoothness"],
    "04_initialisation": ["coresets"],
    "06_distillation": ["curves", "film"],
    "07_evaluation": ["main", "costs", "scores", "cross_architecture"],
    "08_ablations": ["ablation", "curves", "smoothness", "following"],
    "09_paper": ["main", "ablation"],
    "12_continual": ["continual"],
    "13_architectures": ["architectures", "choices"],
}
BLOCKS = {"laptop": "paper", "laptop-full": "full"}  # profile -> its part of the README
GATHERS = "09_paper"  # shows what all the others made, so it runs last
WIDGET = "application/vnd.jupyter.widget-view+json"  # of a progress bar
RUNNING = 12.0  # seconds that a notebook takes once everything is there


def notebooks(only: list[str] | None = None) -> list[Path]:
    """The notebooks in order, or those named.

    Raises:
        InputError: no notebook of that name.
    """
    every = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    for name in only or ():
        if name not in [n.stem for n in every]:
            raise InputError(
                f"no notebook '{name}': expected one of {', '.join(n.stem for n in every)}; correct the name, or leave it out to run all"
            )
    return [n for n in every if not only or n.stem in only]


def parameters_of(file: Path | None) -> dict[str, Any]:
    """A YAML file of notebook parameters.

    Raises:
        InputError: missing, or not a mapping.
    """
    if file is None:
        return {}
    if not file.exists():
        raise InputError(
            f"no parameter file {file}: expected a YAML file of `name: value` lines; correct the path, or leave it out"
        )
    try:
        given = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"{file} is no YAML: {error}\nexpected `name: value` lines; correct it"
        ) from None
    if not isinstance(given, dict):
        raise InputError(
            f"{file} holds {type(given).__name__}, expected `name: value` lines; correct it"
        )
    return given


def check_parameters(notebook: Path, given: dict[str, Any]) -> None:
    """Papermill only warns at a parameter that a notebook does not have; here it is an error, before anything runs."""
    import papermill

    known = papermill.inspect_notebook(str(notebook))
    for name in given:
        if name not in known:
            raise InputError(
                f"unknown parameter '{name}' (found in the parameters for {notebook.name}): expected one of {', '.join(known)}; correct its name, or remove it"
            )


def execute(notebook: Path, folder: Path, given: dict[str, Any]) -> None:
    """Run one notebook into `folder`; a run that fails leaves NAME.failed.ipynb there, and the last good copy stays.

    Raises:
        InputError: a cell failed; says which, and where to look.
    """
    import nbformat
    import papermill

    failed = folder / f"{notebook.stem}.failed.ipynb"
    with whole(folder / notebook.name) as half:
        try:
            papermill.execute_notebook(
                str(notebook),
                half.name,
                given,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(NOTEBOOKS),
                extra_arguments=["--log-level=CRITICAL"],
            )
        except papermill.PapermillExecutionError as error:
            os.replace(half.name, failed)
            raise InputError(
                f"{notebook.name} failed in cell {error.exec_count} with {error.ename}: {error.evalue}\nthe half-run copy is {failed}"
            ) from None
        done = cleaned(nbformat.read(half.name, as_version=4))
        half.truncate()
        half.write(nbformat.writes(done).encode())
    failed.unlink(missing_ok=True)


def cleaned(done: Any) -> Any:
    """An executed notebook without what differs from run to run: times, paths, and the bars and words of what had to be made first."""
    from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

    without_widgets(done)
    for part in (done, *done.cells):  # times and paths of this machine are no part of the paper
        part.metadata.pop("papermill", None)
        part.metadata.pop("execution", None)
    for cell in done.cells:
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            CoalesceStreamsPreprocessor().preprocess_cell(
                cell, {}, 0
            )  # how often a kernel sent what it printed depends on the hour
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "given-parameters"  # papermill's is random
    return done


def without_widgets(notebook: Any) -> None:
    """Drop, in place, what only a live kernel can draw."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [
                output for output in cell.outputs if WIDGET not in output.get("data", {})
            ]


def paper(profile: str, file: Path | None = None, only: list[str] | None = None) -> None:
    """`make paper`: every notebook under one profile."""
    began = time.monotonic()
    profile = (
        str(Path(profile).resolve()) if profile.endswith((".yaml", ".yml")) else profile
    )  # kernels run in another folder
    held = Paper(profile)
    chosen = sorted(notebooks(only), key=lambda notebook: notebook.stem == GATHERS)
    given = {"profile": profile, **parameters_of(file)}
    for notebook in chosen:
        check_parameters(notebook, given)
    for cell in held.profile.cells:
        held.data(cell)  # a missing data set stops here
    sweep(held.results.folder)
    os.environ |= {
        "STORE": str(held.store.root.resolve()),
        "RESULTS": str(held.results.folder.parent.resolve()),
    }  # for the kernels

    missing = pipeline.missing(
        [s for n in chosen for study in NEEDS.get(n.stem, []) for s in held.tasks(study)],
        held.store,
    )
    workers = default_workers()
    if missing:
        held.results.keep_machine(measure.machine())
    progress = Progress(
        held.name, sum(map(pipeline.work, missing)) + RUNNING * len(chosen), workers
    )
    print(
        f"{held.profile.title}: {len(chosen)} notebooks, {len(missing)} tasks to do on {workers} cores",
        file=sys.stderr,
    )
    with executor(workers) as pool:
        for number, notebook in enumerate(chosen, 1):
            progress.title = f"{notebook.stem} ({number}/{len(chosen)})"
            for study in NEEDS.get(notebook.stem, []):
                pipeline.ensure(held.tasks(study), held.store, progress, workers, pool)
            execute(notebook, held.results.folder / "notebooks", given)
            progress.advance(RUNNING, "executed")
    progress.close()
    folder = held.results.folder
    print(f"\nDone in {clock(time.monotonic() - began)}. Open:")
    for what, where in (
        ("the main figure", "figures/main.png"),
        ("the claims and their verdicts", "claims.md"),
        ("the paper", "notebooks/09_paper.ipynb"),
    ):
        print(f"  {folder / where}  ({what})")


def figures(profile: str) -> None:
    """`make figures`: every table and figure from the kept rows and sets alone; those of a study without rows are left out, and named.

    Raises:
        InputError: there are no rows at all.
    """
    held, made = Paper(profile), {"table": 0, "figure": 0}
    for kind, make, names in (
        ("table", held.table, tables.TABLES),
        ("figure", held.figure, plots.FIGURES),
    ):
        for name in names:
            try:
                make(name)
                made[kind] += 1
            except NoRows as error:
                if not held.results.has_rows("main"):
                    raise
                print(f"The {kind} {name} is left out: {error}")
    print(f"{made['table']} tables and {made['figure']} figures in {held.results.folder}")


def tune(profile: str) -> None:
    """`make tune`: every candidate of the profile's search, and its table."""
    held = Paper(profile)
    held.study("tuning")
    print(held.table("tuning").to_string(index=False))


def run(study: str, profile: str, part: str | None = None) -> None:
    """`make run`: the artefacts of a study and no notebook; of all studies but the search for settings if it is `all`; with a part i/n, that shard's.

    Raises:
        InputError: no study of that name, or no such part.
    """
    if study not in (*STUDIES, "all"):
        raise InputError(
            f"no study '{study}': expected one of {', '.join(STUDIES)}, or all; correct the name"
        )
    shard = None if part is None else shards.parse(part)
    began, held = time.monotonic(), Paper(profile)
    chosen = [name for name in STUDIES if name != "tuning"] if study == "all" else [study]
    pipeline.ensure(
        dict.fromkeys(settings for name in chosen for settings in held.tasks(name)),
        held.store,
        shard=shard,
    )
    print(
        f"{study}{f', shard {part}' if shard else ''}: done in {clock(time.monotonic() - began)}; kept in {held.store.root}"
    )


def fill_readme(held: Paper) -> None:
    """Put the main table and the verdicts into the README's block of that profile, if it has one."""
    if held.name in BLOCKS:
        fill(BLOCKS[held.name], summary(held.results))


def summary(results: Results) -> list[str]:
    """The README's paragraphs on a paper, from its tables."""
    folder = results.folder
    claims, ledger = (
        pd.read_csv(folder / "tables" / "claims.csv", dtype={"claim": str}),
        f"results/{folder.name}/claims.md",
    )
    verdicts = claims[claims.claim.str.len() == 1]
    return [
        "Test accuracy in percent after the last epoch, learning rate chosen on validation images: mean ± std over all networks of all distillation seeds "
        f"(number of networks). The [main figure](results/{folder.name}/figures/main.svg) draws it.",
        (folder / "tables" / "summary.md").read_text().strip(),
        f"What holds of the paper's seven claims at this scale (a claim is as good as its weakest part, named in brackets; [all that was measured]({ledger})):",
        "\n".join(
            f"{row.claim}. {row.statement}: **{row.verdict}**" for row in verdicts.itertuples()
        ),
    ]


CELLS = (
    HOME / "results" / "scale" / "cells.csv"
)  # what the README's table of cells is a function of


def cells() -> None:
    """`python -m ddlib plan cells`: predict every cell of the paper, and put the README's table."""
    write_whole(
        CELLS, plan.cells().to_csv(index=False, lineterminator="\n", float_format="%.4g").encode()
    )
    fill("cells", [cells_table(pd.read_csv(CELLS))])


def cells_table(rows: pd.DataFrame) -> str:
    """A line a data set; IPC 1 / 10 / 50 side by side."""
    lines = [
        {
            "data": "MNIST-M-5k, MNIST-5k",
            "cells": "`laptop`",
            "run here": "yes, on two cores",
            "dry-run here": "",
        },
        {
            "data": "the same, every rival and more images",
            "cells": "`laptop-full`",
            "run here": "yes, in hours",
            "dry-run here": "",
        },
        {
            "data": "digits",
            "cells": "`smoke`",
            "run here": "yes, its numbers mean nothing",
            "dry-run here": "",
        },
    ]
    for (pixels, name), mine in rows.groupby(["pixels", "data"], sort=False):
        first, *others = mine.cell
        sides = {
            column: " / ".join(f"{value:.0f}" for value in mine[column])
            for column in ("hours", "adjoint GB", "unroll GB", "disk GB")
        }
        predicted = {
            f"{mine.gpu.iloc[0]}: hours": sides["hours"],
            "GB, adjoint": sides["adjoint GB"],
            "GB, unroll": sides["unroll GB"],
            "GB of disk": sides["disk GB"],
        }
        names = ", ".join([f"`{first}`", *(f"`-{other.rsplit('-', 1)[1]}`" for other in others)])
        lines.append(
            {
                "data": f"{name}, {pixels} px",
                "cells": names,
                "run here": "no",
                "dry-run here": "yes",
            }
            | predicted
        )
    return pd.DataFrame(lines).fillna("").to_markdown(index=False)


def fill(part: str, paragraphs: list[str]) -> None:
    """Put paragraphs between the README's markers for that part, where there is a README.

    Raises:
        InputError: the README has lost its markers.
    """
    if README.exists():
        write_whole(README, filled(part, paragraphs).encode())


def filled(part: str, paragraphs: list[str]) -> str:
    """The README with these paragraphs between its markers for that part, <!-- part:start --> and <!-- part:end -->.

    Raises:
        InputError: the README has lost its markers.
    """
    start, end = f"<!-- {part}:start -->", f"<!-- {part}:end -->"
    head, first, rest = README.read_text().partition(start)
    _, last, tail = rest.partition(end)
    if not (first and last):
        lost = end if first else start
        raise InputError(
            f"{README} has lost its markers: expected {start} and below it {end}, found no {lost}; put them back where that part belongs"
        )
    return head + "\n\n".join([start, *paragraphs, end]) + tail
