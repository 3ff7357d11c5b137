"""Building the paper: notebooks executed under a profile, its tables and figures, its runs.

What the notebooks read is made first, side by side, with the time left. Then the notebooks run,
side by side too; each only reads, so its executed copy is clean. What is kept is sealed at the end:
`results/<profile>/SHA256SUMS` holds the digest of every file.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from operator import attrgetter
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ddlib.base import InputError
from ddlib.files import sweep, whole
from ddlib.paper import tables
from ddlib.paper.figures import FIGURES
from ddlib.paper.paper import Paper
from ddlib.paper.results import NoRows
from ddlib.progress import Progress, clock
from ddlib.runs import cost, engine, machine, studies
from ddlib.runs import run as runs
from ddlib.runs.profile import Profile, read_yaml
from ddlib.runs.store import HOME
from ddlib.runs.studies import STUDIES

NOTEBOOKS = HOME / "notebooks"
GATHERS = "09_paper"  # shows what all the others made, so it runs last
STUDY = re.compile(r'\bpaper\.study\("(\w+)"\)')
WIDGET = "application/vnd.jupyter.widget-view+json"  # the output of a progress bar or a control
RUNNING = 12.0  # seconds that a notebook takes once everything is there
COMPUTING = {"11_your_data": 240.0, "12_continual": 120.0}  # of those that compute for themselves


def notebooks(only: list[str] | None = None) -> list[Path]:
    """The notebooks in order, or those named; raises InputError where there is none of a name."""
    every = {notebook.stem: notebook for notebook in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))}
    if unknown := [name for name in only or () if name not in every]:
        raise InputError(
            f"no notebook '{unknown[0]}': expected one of {', '.join(every)}; correct the name, or "
            "leave it out to run all"
        )
    return [notebook for name, notebook in every.items() if not only or name in only]


def studies_of(notebook: Path) -> list[str]:
    """The studies that a notebook reads, by its calls of `paper.study("...")`."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    names = [name for cell in cells for name in STUDY.findall("".join(cell["source"]))]
    return [name for name in names if name in STUDIES]


def parameters_of(file: Path | None, chosen: list[Path]) -> dict[str, Any]:
    """A YAML file of parameters, which all the chosen notebooks have; papermill would only warn."""
    import papermill

    parameters = read_yaml(file) if file else {}
    if not isinstance(parameters, dict):
        raise InputError(
            f"the parameter file {file} holds {type(parameters).__name__}: expected `name: value` "
            "lines; correct it, or leave it out"
        )
    if "profile" in parameters:  # a kernel's results would be of one profile and lie under another
        raise InputError(
            f"{file} names a profile: name it on the command line, and leave it out there"
        )
    for notebook in chosen if parameters else ():
        known = papermill.inspect_notebook(str(notebook))
        if unknown := [name for name in parameters if name not in known]:
            raise InputError(
                f"unknown parameter '{unknown[0]}' (found in {file}, for {notebook.name}): "
                f"expected one of {', '.join(known)}; correct its name, or remove it"
            )
    return parameters


def execute(notebook: Path, folder: Path, parameters: dict[str, Any]) -> None:
    """Run one notebook into `folder`; raises InputError where a cell failed, and says which.

    A run that fails leaves NAME.failed.ipynb there, and the last good copy stays.
    """
    import nbformat
    import papermill

    failed = folder / f"{notebook.stem}.failed.ipynb"
    # the kernel of this Python, whatever others are installed
    search = [f"{sys.prefix}/share/jupyter", *os.environ.get("JUPYTER_PATH", "").split(os.pathsep)]
    kernels = {
        "JUPYTER_PATH": os.pathsep.join(filter(None, dict.fromkeys(search))),
        "NO_READER": "1",  # a run waits for no slider, some would for ever
    }
    with environment(kernels), whole(folder / notebook.name) as half:
        try:
            papermill.execute_notebook(
                str(notebook),
                half.name,
                parameters,
                kernel_name="python3",
                progress_bar=False,
                cwd=str(NOTEBOOKS),
                extra_arguments=["--log-level=CRITICAL"],
            )
        except Exception as error:
            os.replace(half.name, failed)
            if isinstance(error, papermill.PapermillExecutionError):
                words = f"failed in cell {error.exec_count} with {error.ename}: {error.evalue}"
            else:  # the kernel was killed, or did not start
                words = (str(error).strip().splitlines() or [type(error).__name__])[0]
                words = f"could not be run: {words} A kernel that dies is mostly short of memory: "
                words += "run fewer side by side (WORKERS=1)."
            raise InputError(f"{notebook.name} {words}\nthe half-run copy is {failed}") from None
        done = cleaned(nbformat.read(half.name, as_version=4))
        half.truncate()
        half.write(nbformat.writes(done).encode())
    failed.unlink(missing_ok=True)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set these variables for the kernels started meanwhile; afterwards all are as before."""
    before = dict(os.environ)
    os.environ |= variables
    try:
        yield
    finally:
        for name in variables:
            os.environ.pop(name)
        os.environ |= {name: before[name] for name in variables if name in before}


def cleaned(done: Any) -> Any:
    """An executed notebook without what differs from run to run, or only a live kernel can draw."""
    from nbconvert.preprocessors.coalescestreams import CoalesceStreamsPreprocessor

    for part in (done, *done.cells):
        for name in ("papermill", "execution", "widgets"):
            part.metadata.pop(name, None)
    for cell in done.cells:
        if "outputs" in cell:
            cell.outputs = [
                output
                for output in cell.outputs
                if output.get("name") != "stderr" and WIDGET not in output.get("data", {})
            ]
            # in how many pieces a kernel sends what it prints is chance
            CoalesceStreamsPreprocessor().preprocess_cell(cell, {}, 0)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "given-parameters"  # papermill's is random
    return done


def paper(profile: str, parameters: Path | None = None, only: list[str] | None = None) -> None:
    """`make paper`: every notebook under one profile, or those named.

    Raises:
        InputError: bad input; or a notebook failed, after those that do not need it have run.
    """
    began = time.monotonic()
    if profile.endswith((".yaml", ".yml")):
        profile = str(Path(profile).resolve())  # kernels run in another folder
    paper = Paper.printed(profile)
    named = only or [*(paper.profile.notebooks or ())]
    chosen = [n for n in notebooks(named) if not left_out(n, paper.profile)]
    if not chosen:
        raise InputError("no notebook is left to run: expected one or more; name others")
    given = {"profile": profile, **parameters_of(parameters, chosen)}
    for cell in paper.profile.cells:
        paper.data(cell)  # a missing data set stops here
    folder = paper.results.folder
    sweep(folder)
    places = {"STORE": str(paper.store.root.resolve()), "RESULTS": str(folder.parent.resolve())}
    with at_work(paper), environment(places):
        _make_and_run(paper, chosen, given)
        paper.results.seal()
    print(f"\nDone in {clock(time.monotonic() - began)}. Open:")
    last = next((n for n in chosen if n.stem == GATHERS), chosen[-1])
    shown = {"figures/main.png": "the main figure", "claims.md": "the claims and their verdicts"}
    for file, words in (shown | {f"notebooks/{last.name}": "what came out"}).items():
        if (folder / file).exists():
            print(f"  {folder / file}  ({words})")


def left_out(notebook: Path, profile: Profile) -> bool:
    """Whether a notebook shows what the profile does not ask for, and say so."""
    text = notebook.read_text("utf-8")
    lacks = [name for name in studies_of(notebook) if not any(STUDIES[name].asks(profile))]
    if '\\"AST\\"' in text and "AST" not in profile.cells[profile.main_cell].methods:
        lacks.append("AST on its first cell")
    if notebook.stem == GATHERS or not lacks:
        return False
    print(f"{notebook.name} is left out: the profile asks for no {' and no '.join(lacks)}")
    return True


@contextmanager
def at_work(paper: Paper) -> Iterator[None]:
    """While results are being written: nobody else writes them, and nobody judges them."""
    file = lock_of(paper)
    file.parent.mkdir(exist_ok=True)
    try:
        lock = FileLock(file).acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"another process is at work on {paper.results.folder}: wait until it is done"
        ) from None
    with lock:
        yield


def lock_of(paper: Paper) -> Path:
    """The lock of a paper's results: in the store, named after their folder."""
    where = str(paper.results.folder.resolve())
    return paper.store.root / "locks" / f"paper-{sha256(where.encode()).hexdigest()[:16]}.lock"


def _make_and_run(paper: Paper, chosen: list[Path], parameters: dict[str, Any]) -> None:
    """Make the studies that these notebooks read, then run them; both side by side."""
    names = dict.fromkeys(name for notebook in chosen for name in studies_of(notebook))
    wanted = [task for name in names for task in paper.lacking(name)]
    workers = engine.default_workers()
    missing = runs.missing(wanted, paper.store)
    if missing and not paper.reads:  # else most rows stay those of the machine that made them
        about = json.dumps(machine.machine(), indent=2)
        paper.results.write("machine.json", f"{about}\n")
    title = f"{paper.profile.title}: {len(missing)} results to make, {len(chosen)} notebooks to run"
    takes = {notebook: COMPUTING.get(notebook.stem, RUNNING) for notebook in chosen}
    work = sum(map(cost.seconds, missing)) + sum(takes.values())
    took = clock(cost.pace() * work / workers)
    print(f"{title}, on {workers} cores: about {took} here", file=sys.stderr)
    progress = Progress(paper.name, work, workers)
    run_one = partial(execute, folder=paper.results.folder / "notebooks", parameters=parameters)
    job = engine.Job(run_one, takes.__getitem__, attrgetter("stem"))
    with engine.executor(workers) as pool:
        runs.ensure(wanted, paper.store, progress, workers, pool)
        for name in names:
            paper.study(name)  # a notebook also shows rows that another one asks for
        failure = None
        try:
            others: dict[Path, list[Path]] = {n: [] for n in chosen if n.stem != GATHERS}
            engine.run(others, job, progress, workers, pool)
        except Exception as error:  # the last one shows what there is
            failure = error
        last: dict[Path, list[Path]] = {n: [] for n in chosen if n.stem == GATHERS}
        engine.run(last, job, progress, workers, pool)
    progress.close()
    if failure:
        raise failure


def figures(profile: str) -> None:
    """`make figures`: every table and figure from the kept rows and sets alone.

    Those of a study without rows are left out, and named; raises NoRows where there are none.
    """
    paper, counts = Paper.printed(profile), {"table": 0, "figure": 0}
    sealed, there = paper.results.sealed(), paper.results.digests()
    for path in sealed:
        if path.startswith(("rows/", "sets/")) and there.get(path) != sealed[path]:
            print(f"{path} is not the file that was sealed: it was changed, or made since")
    every = [("table", name) for name in tables.TABLES] + [("figure", name) for name in FIGURES]
    for kind, name in every:
        try:
            make = paper.table if kind == "table" else paper.figure
            make(name)
            counts[kind] += 1
        except NoRows as error:
            if not paper.results.has_rows("main"):
                raise
            print(f"The {kind} {name} is left out: {error}")
        except (LookupError, TypeError, AttributeError) as error:
            raise InputError(
                f"the {kind} {name} cannot be made of the rows in {paper.results.folder}: "
                f"{error!r}; a column was taken out or changed: take sound copies"
            ) from error
    paper.results.seal()
    folder = paper.results.folder
    print(f"{counts['table']} tables and {counts['figure']} figures are in {folder}")


def tune(profile: str) -> None:
    """`make tune`: every candidate of the profile's search, and its table."""
    paper = Paper.printed(profile)
    paper.study("tuning")
    print(paper.table("tuning").to_string(index=False))


def run(study: str, profile: str) -> None:
    """`make run`: the artefacts of a study and no notebook; `all`: of all but the search."""
    if study not in (*STUDIES, "all"):
        raise InputError(
            f"no study '{study}': expected one of {', '.join(STUDIES)}, or all; correct the name"
        )
    began, paper = time.monotonic(), Paper(profile)
    names = [name for name in STUDIES if name != "tuning"] if study == "all" else [study]
    runs.ensure(studies.asked(paper.profile, names), paper.store)
    print(f"{study}: done in {clock(time.monotonic() - began)}; kept in {paper.store.root}")
