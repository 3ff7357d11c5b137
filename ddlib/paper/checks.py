"""What is kept of a paper, file by file: a verdict on each, and why.

Numbers are compared as numbers (RTOL), figures with the tolerance of `style.same_picture`: so
results hold on every processor.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import zip_longest
from math import isclose
from pathlib import Path
from shutil import copytree
from typing import Any, NamedTuple

import nbformat
import pandas as pd
import yaml

from ddlib.base import InputError, Task, key
from ddlib.paper import build, figures, pages, style, tables
from ddlib.paper.paper import Paper, keeps_tensors, main_sets, name_of, set_digest
from ddlib.paper.results import KINDS, SEALS, SET, NoRows, rows_file
from ddlib.runs import store
from ddlib.runs.stages import Film, Following
from ddlib.runs.store import HOME
from ddlib.runs.studies import STUDIES, Run
from ddlib.settings import Distillation, Distilled, Evaluation

OK, NEAR, DIFFERENT, UNCHECKED = "holds", "within tolerance", "DIFFERENT", "not checked"
RTOL = 1e-5  # tables have six digits
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

Rows = list[dict[str, Any]]


class Verdict(NamedTuple):
    """What became of one file, and why."""

    file: str
    verdict: str
    note: str = ""


class Unchecked(Exception):
    """Why a file is not checked."""


def checked(file: str, find: Callable[..., str | None], *given: Any, good: str = OK) -> Verdict:
    """The verdict of `find(*given)`, which returns a fault or None.

    A file that somebody changed can break a check in any way: then that is its fault.
    """
    try:
        fault = find(*given)
    except Unchecked as reason:
        return Verdict(file, UNCHECKED, str(reason))
    except Exception as error:
        words = str(error) if isinstance(error, InputError) else repr(error)[:300]
        fault = f"cannot be checked: {words}".replace("\n", " ")
    return Verdict(file, DIFFERENT, fault) if fault else Verdict(file, good)


def kept_files(kept: Paper, fresh: Paper) -> Iterator[Verdict]:
    """All checks of kept files; `fresh` is an empty paper, in which tables are made again."""
    yield from sealed(kept)
    yield from of_rows(kept)
    yield from of_sets(kept)
    yield from redrawn(kept, fresh)
    yield from of_notebooks(kept)
    yield from of_pages(kept)
    yield from of_manifest(kept)


def sealed(kept: Paper) -> Iterator[Verdict]:
    """Every file against SHA256SUMS: changed, missing and extra ones are named."""
    results = kept.results
    try:
        expected, there = results.sealed(), results.digests()
    except (InputError, OSError) as error:
        yield Verdict(SEALS, DIFFERENT, f"cannot be compared: {error}")
        return
    if not expected:
        fault = f"is missing or empty; `make figures PROFILE={kept.name}` writes it"
        yield Verdict(SEALS, DIFFERENT, fault)
        return
    for path in sorted(expected.keys() | there.keys()):
        if path not in there:
            yield Verdict(path, DIFFERENT, f"is missing, but {SEALS} names it")
        elif path not in expected:
            yield Verdict(path, DIFFERENT, f"is not in {SEALS}: nothing that `make paper` left")
        elif there[path] != expected[path]:
            yield Verdict(path, DIFFERENT, f"is not the file that {SEALS} names: it was changed")
    yield Verdict(SEALS, OK, f"{len(expected)} files")


def of_rows(kept: Paper) -> Iterator[Verdict]:
    """Each study's rows are those that the profile asks for, and agree with what lies beside."""
    for study in STUDIES:
        yield checked(rows_file(study), rows_fault, kept, study)
    for file in sorted((kept.results.folder / "rows").glob("*.csv")):
        if f"rows/{file.name}" not in map(rows_file, STUDIES):
            yield Verdict(f"rows/{file.name}", UNCHECKED, "a notebook's own study")


def rows_fault(kept: Paper, study: str) -> str | None:
    """The first result of a study with other rows than the profile asks for, or altered ones."""
    rows = kept_rows(kept, study)
    labels: list[str] = []
    asked: Counter[tuple] = Counter()
    for label, settings in STUDIES[study].asks(kept.profile):
        labels = [*label, "settings_key"]
        asked[(*label.values(), key(settings))] += length(study, settings)
    there = Counter(tuple(row[name] for name in labels) for row in rows)
    foreign = there.keys() - asked.keys()
    if foreign and study == "tuning" and {r[:-2] for r in there} == {r[:-2] for r in asked}:
        # the search is over, and no table that `make paper` fills depends on it
        raise Unchecked("the profile's candidates, of an earlier format or for other iterations")
    if other := [result for result in asked | there if asked[result] != there[result]]:
        place = f"{len(other)} results, first {', '.join(map(str, other[0]))}"
        return f"{there[other[0]]} rows, expected {asked[other[0]]} by the profile, of {place}"
    if pd.DataFrame(rows).duplicated().any():
        return "a row stands there twice"
    return disagreement(kept, study, rows)


def length(study: str, settings: Task) -> int:
    """How many rows an artefact has in a study."""
    if study in ("smoothness", "costs", "memory"):
        return 1
    if isinstance(settings, Evaluation):  # with the chosen lr, and with a learned one
        return settings.networks * (1 + isinstance(settings.of, Distillation))
    if isinstance(settings, Following):
        return settings.of.n_experts * (settings.of.start_epochs - 1 + settings.of.matched_epochs)
    if isinstance(settings, Film):
        return min(settings.frames, settings.of.iterations) + 1
    if isinstance(settings, Distilled):
        return settings.iterations
    expert: Any = settings
    return (expert.until or expert.epochs) + 1


def disagreement(kept: Paper, study: str, rows: Rows) -> str | None:
    """The first row whose learned lr is not that of the set that is kept beside it."""
    lrs: dict[tuple, float] = {}
    names = SET
    if study == "main":
        lrs = kept.results.set_digests().set_index(SET).lr.to_dict()
        # a published protocol judges the last images, with their lr
        rows = [
            r for r in rows if r["protocol"] == "lr_a" and r.get("evaluation") in (None, "ours")
        ]
    elif study == "curves":
        names = ["settings_key", "iteration"]
        for file, of in sets_of(kept).items():
            with suppress(InputError):  # a set that cannot be read has a verdict of its own
                curve = store.read(file).record.get("curve", ())
                lrs |= {(key(of.settings.of), row["iteration"]): row["lr"] for row in curve}
    else:
        return None
    for row in rows:
        place = tuple(row[name] for name in names)
        if not isclose(row["lr"], lrs.get(place, row["lr"])):
            return f"{', '.join(map(str, place))}: lr is {row['lr']}, the set learned {lrs[place]}"
    return None


def kept_rows(kept: Paper, study: str) -> Rows:
    """A study's rows to the last digit, blanks as None."""
    file = kept.results.folder / rows_file(study)
    if not file.is_file():
        raise Unchecked("not kept")
    return blanks(pd.read_csv(file, float_precision="round_trip").to_dict("records"))


def blanks(rows: Rows) -> Rows:
    """The same rows, with None for what a CSV file leaves blank."""
    return [{k: None if v is None or v != v else v for k, v in row.items()} for row in rows]


def sets_of(kept: Paper) -> dict[Path, Run]:
    """The sets of a profile whose tensors are kept, by their files."""
    runs = filter(keeps_tensors, main_sets(kept.profile))
    return {kept.results.set_file(of.cell, of.method, 0): of for of in runs}


def of_sets(kept: Paper) -> Iterator[Verdict]:
    """Each kept set was made under today's settings, and each set of the profile has its digest."""
    yield checked("sets/digests.csv", digests_fault, kept)
    wanted = sets_of(kept)
    for file in sorted({*wanted, *(kept.results.folder / "sets").glob("*.safetensors")}):
        yield checked(f"sets/{file.name}", set_fault, kept, file, wanted.get(file))


def digests_fault(kept: Paper) -> str | None:
    """The first set of the profile without a line in sets/digests.csv, or a line too many."""
    there = Counter(kept.results.set_digests()[SET].itertuples(index=False, name=None))
    asked = Counter((of.cell, of.method, of.distil_seed) for of in main_sets(kept.profile))
    if missing := [*asked - there]:
        return f"{len(missing)} sets have no digest, first: {missing[0]}"
    if extra := [*there - asked]:
        return f"{len(extra)} lines are of no set of the profile or stand twice, first: {extra[0]}"
    return None


def set_fault(kept: Paper, file: Path, of: Run | None) -> str | None:
    """What is wrong with a kept set."""
    if of is None:
        return "no set of that name is kept under the profile: remove it"
    if not file.exists():
        raise Unchecked("not kept")
    artefact = store.checked(file, of.settings.of)
    digests = kept.results.set_digests().set_index(SET).sha256
    same = set_digest(artefact.tensors) == digests[of.cell, of.method, of.distil_seed]
    return None if same else "its digest is not that of sets/digests.csv"


def redrawn(kept: Paper, fresh: Paper) -> Iterator[Verdict]:
    """Every table and figure, made again from a copy of the rows and sets."""
    folder = kept.results.folder
    for part in ("rows", "sets"):
        if (folder / part).is_dir():
            copytree(folder / part, fresh.results.folder / part)
    fresh.results.kinds = ("png",)
    expected = {"figures/film.gif"}  # its frames are in the store alone
    for part, make, names, kinds in (
        ("tables", fresh.table, tables.TABLES, ("csv", "md")),
        ("figures", fresh.figure, figures.FIGURES, tuple(KINDS)),
    ):
        for name in names:
            paths = [f"{part}/{name}.{kind}" for kind in kinds]
            expected |= {*paths}
            paths += ["claims.md"] * (paths[0] == "tables/claims.csv")  # made with it
            yield checked(f"{part}/{name}", made_fault, kept, fresh, paths, make, name)
        for path in sorted(f"{part}/{file.name}" for file in (folder / part).glob("[!.]*")):
            if path not in expected:
                yield Verdict(path, DIFFERENT, "nothing makes a file of that name: remove it")


def made_fault(
    kept: Paper, fresh: Paper, paths: list[str], make: Callable[[str], object], name: str
) -> str | None:
    """Where kept files are other than the rows give."""
    if not any((kept.results.folder / path).exists() for path in paths):
        raise Unchecked("not kept")
    try:
        make(name)
    except NoRows:
        return "the rows that it shows are not kept"
    for path in paths:
        old = (kept.results.folder / path).read_bytes()
        if path.endswith((".svg", ".pdf")):  # what it shows is compared in the PNG beside it
            continue
        new = (fresh.results.folder / path).read_bytes()
        png = path.endswith(".png")
        fault = style.same_picture(old, new) if png else parting(old.decode(), new.decode())
        if fault:
            return f"{path} is not what the rows give: {fault}"
    return None


def parting(kept: str, made: str) -> str | None:
    """The first line in which two texts differ; numbers are compared as numbers."""
    pairs = zip_longest(kept.splitlines(), made.splitlines(), fillvalue="")
    for i, (a, b) in enumerate(pairs, 1):
        # a number of other length moves the borders of a Markdown table
        words, others = (re.sub(r"[\s-]+", "-", NUMBER.sub("0", line)) for line in (a, b))
        numbers = ((float(n.replace("−", "-")) for n in NUMBER.findall(line)) for line in (a, b))
        near = (isclose(*two, rel_tol=RTOL, abs_tol=1e-9) for two in zip(*numbers, strict=False))
        if words != others or not all(near):
            return f"line {i} reads {a[:90]!r}, expected {b[:90]!r}"
    return None


def of_notebooks(kept: Paper) -> Iterator[Verdict]:
    """Every executed copy: run to its end under this profile, from today's cells."""
    folder, sources = kept.results.folder / "notebooks", {n.name: n for n in build.notebooks()}
    copies = {copy.name for copy in folder.glob("[!.]*.ipynb") if ".failed." not in copy.name}
    for name in sorted({*sources, *copies}):
        copy = folder / name
        yield checked(f"notebooks/{name}", copy_fault, copy, sources.get(name), kept)


def copy_fault(copy: Path, source: Path | None, kept: Paper) -> str | None:
    """What is wrong with an executed copy of the notebook `source`."""
    if source is None:
        return f"there is no {copy.name} in notebooks/ that it could be a copy of: remove it"
    if not copy.exists():
        raise Unchecked("not kept")
    cells = nbformat.read(copy, as_version=4).cells
    given = [cell for cell in cells if "injected-parameters" in cell.metadata.get("tags", [])]
    code = [cell for cell in cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    if errors := [output.ename for output in outputs if output.output_type == "error"]:
        return f"holds an error: {errors[0]}"
    counts = [cell.execution_count for cell in code]
    if None in counts:
        return f"code cell {counts.index(None) + 1} was not run"
    if not outputs:
        return "it has no outputs"
    named = re.findall(r"""profile = ["'](.+)["']""", "".join(cell.source for cell in given))
    if [name_of(name) for name in named] != [kept.name]:
        return f"run with the profile {', '.join(named) or 'of the notebook'}, not {kept.name}"
    done = [cell for cell in cells if cell not in given]
    asked = nbformat.read(source, as_version=4).cells
    texts = ([(cell.cell_type, cell.source.rstrip()) for cell in of] for of in (done, asked))
    for number, (found, expected) in enumerate(zip_longest(*texts), 1):
        if found != expected:
            return f"cell {number} is not that of today's notebook; `make paper` runs it again"
    return None


def of_pages(kept: Paper) -> Iterator[Verdict]:
    """The blocks of the README and the docs that show this profile's results."""
    for block, (profile, text_of) in pages.BLOCKS.items():
        if profile == kept.name:
            yield checked(f"block {block}", block_fault, kept, block, text_of)


def block_fault(kept: Paper, block: str, text_of: Callable[[Paper], str]) -> str | None:
    """Where the page of a block is other than the results give."""
    page = pages.page_of(block)
    if page is None:
        raise Unchecked("on no page")
    fault = parting(page.read_text("utf-8"), pages.filled(page, block, text_of(kept)))
    return f"{page.name}: {fault}; `make readme` fills it" if fault else None


def of_manifest(kept: Paper) -> Iterator[Verdict]:
    """Each artefact that codecheck.yml expects of this profile."""
    for entry in yaml.safe_load((HOME / "codecheck.yml").read_text("utf-8"))["manifest"]:
        if (HOME / entry["file"]).parents[1] == kept.results.folder:
            kind, name = next(iter(entry.items()))
            yield checked(f"codecheck {kind} {name}", manifest_fault, kept, entry)


def manifest_fault(kept: Paper, entry: dict[str, str]) -> str | None:
    """What is lacking of an artefact that a check has to reproduce."""
    file = HOME / entry["file"]
    if not file.exists():
        return f"{entry['file']} is missing; `{entry['command']}` makes it"
    claims = pd.read_csv(file, dtype={"claim": str}).claim if "claim" in entry else pd.Series()
    lacks = "claim" in entry and entry["claim"] not in set(claims)
    return f"{entry['file']} has no claim {entry['claim']}" if lacks else None
