"""Whether kept results hold: each file as it was sealed, all that follows from rows, a sample anew.

Numbers are compared as numbers (RTOL) and figures within the tolerance of `style.same_picture`, so
that results hold on every processor. Only a sample that is trained anew on a machine of the kind
that made the results (`machine.KIND`) must be equal to the byte: another processor rounds
otherwise, and training carries the last digit of a number into the first. There the mean of each
column in JUDGED must lie within SPREAD standard deviations of the kept rows, or within MARGIN of
their mean, and the images must be nearer to the kept set than to any other kept set of the cell and
than the start was to them.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import zip_longest
from math import isclose
from pathlib import Path
from shutil import copytree
from typing import Any, NamedTuple

import pandas as pd

from ddlib.base import InputError, key
from ddlib.files import amount
from ddlib.paper import build, figures, pages, style, tables
from ddlib.paper.paper import Paper, keeps_tensors, main_sets, set_digest
from ddlib.paper.results import SEALS
from ddlib.progress import Progress, clock
from ddlib.runs import cost, engine, run
from ddlib.runs.machine import KIND, described, machine
from ddlib.runs.store import Artefact, read
from ddlib.runs.studies import STUDIES, Run
from ddlib.settings import Distilled

OK, NEAR, DIFFERENT, NOT_KEPT = "holds", "within tolerance", "DIFFERENT", "not kept"
RTOL = 1e-5  # tables hold six digits
SPREAD, MARGIN = 3.0, 0.01
# Columns by which rows made on another processor are judged; of other studies: accuracy.
JUDGED = {"experts": ["test_accuracy"], "smoothness": ["test_accuracy", "step"], "curves": ["lr"]}
NUMBER = re.compile(r"[-+−]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")

Rows = list[dict[str, Any]]


class Verdict(NamedTuple):
    """What became of one file or study, and why."""

    what: str
    verdict: str
    note: str = ""


def verify(profile: str, quick: bool = False) -> bool:
    """Print a verdict for each file that is kept; whether nothing differs. Nothing is written.

    Raises:
        InputError: nothing is kept under that profile.
    """
    kept = Paper(profile)
    if not (kept.results.folder / "rows").is_dir():
        raise InputError(
            f"nothing to verify: no rows in {kept.results.folder / 'rows'}; run `make paper "
            f"PROFILE={kept.name}` first"
        )
    with tempfile.TemporaryDirectory(prefix="ddlib-verify-") as folder:
        fresh = Paper(profile, Path(folder) / "store", Path(folder) / "results" / kept.name)
        verdicts = [
            *sealed(kept),
            *of_rows(kept),
            *of_sets(kept),
            *drawn_again(kept, fresh),
            *of_notebooks(kept),
            *of_readme(kept),
        ]
        if not quick:
            verdicts += made_anew(kept, fresh)
    wide = max(len(one.what) for one in verdicts)
    for one in verdicts:
        print(f"{one.what:{wide}}  {one.verdict:{len(NEAR)}}  {one.note}".rstrip())
    counts = Counter(one.verdict for one in verdicts)
    print(f"\n{len(verdicts)} checks: {', '.join(f'{n} {what}' for what, n in counts.items())}")
    return not counts[DIFFERENT]


def checked(what: str, find: Callable[[], str | None], verdict: str = OK) -> Verdict:
    """The verdict of a check that returns a fault or None; damaged files can break any check."""
    try:
        fault = find()
    except Exception as error:
        fault = f"cannot be checked: {type(error).__name__}: {error}".split("\n")[0]
    return Verdict(what, DIFFERENT, fault) if fault else Verdict(what, verdict)


def sealed(kept: Paper) -> Iterator[Verdict]:
    """Every file against SHA256SUMS: changed, missing and extra ones are named."""
    try:
        expected = kept.results.sealed()
    except (InputError, OSError) as error:
        yield Verdict(SEALS, DIFFERENT, str(error))
        return
    if not expected:
        yield Verdict(SEALS, DIFFERENT, f"is missing: `make figures PROFILE={kept.name}` writes it")
        return
    there = kept.results.digests()
    for path in sorted(expected.keys() | there.keys()):
        if path not in there:
            yield Verdict(path, DIFFERENT, "is sealed, but not there")
        elif path not in expected:
            yield Verdict(path, DIFFERENT, "is not sealed: nothing that `make paper` writes")
        elif there[path] != expected[path]:
            size = amount((kept.results.folder / path).stat().st_size)
            yield Verdict(path, DIFFERENT, f"was changed after it was sealed ({size} now)")
    yield Verdict(SEALS, OK, f"{len(expected)} files")


def of_rows(kept: Paper) -> Iterator[Verdict]:
    """Each study's rows are those that the profile asks for: none missing, doubled or foreign."""
    for study in STUDIES:
        what = f"rows/{study}.csv"
        if not (kept.results.folder / what).exists():
            yield Verdict(what, NOT_KEPT)
        else:
            yield checked(what, lambda study=study: count_fault(kept, study))


def count_fault(kept: Paper, study: str) -> str | None:
    """The first result of a study that has no row, too many, or that nobody asked for."""
    asked = {
        (*label.values(), key(task)): label for label, task in STUDIES[study].asks(kept.profile)
    }
    columns = [*next(iter(asked.values()), {}), "settings_key"]
    rows = kept_rows(kept, study)
    found = [tuple(row[column] for column in columns) for row in rows]
    if foreign := [one for one in found if one not in asked]:
        words = ", ".join(map(str, foreign[0]))
        return f"{len(foreign)} rows are of other settings than the profile's, first: {words}"
    if missing := [one for one in asked if one not in set(found)]:
        return f"{len(missing)} of {len(asked)} results have no row, first: {missing[0]}"
    if len({json.dumps(row, sort_keys=True) for row in rows}) < len(rows):
        return "a row stands there twice"
    sizes = Counter(Counter(found).values())
    if study in ("main", "experts") and len(sizes) > len({row.get("epochs") for row in rows}) * 2:
        return f"results have unequal numbers of rows: {dict(sizes)}"
    return None


def kept_rows(kept: Paper, study: str) -> Rows:
    """A study's rows to the last digit, blanks as None."""
    file = kept.results.folder / "rows" / f"{study}.csv"
    table = pd.read_csv(file, float_precision="round_trip")
    return [{k: blank(v) for k, v in row.items()} for row in table.to_dict("records")]


def blank(value: Any) -> Any:
    """None for what a CSV file leaves blank."""
    return None if value is None or value != value else value


def of_sets(kept: Paper) -> Iterator[Verdict]:
    """Each kept set was made under today's settings, and each set of the profile has its digest."""
    results, digests = kept.results, kept.results.set_digests()
    wanted = {results.set_file(r.cell, r.method, r.distil_seed): r for r in main_sets(kept.profile)}
    known = set(digests[["cell", "method", "distil_seed"]].itertuples(index=False, name=None))
    lacking = [r for r in wanted.values() if (r.cell, r.method, r.distil_seed) not in known]
    fault = f"{len(lacking)} sets have no digest, first: {lacking[0]}" if lacking else None
    yield checked("sets/digests.csv", lambda: fault)
    for file in sorted({*wanted, *(results.folder / "sets").glob("*.safetensors")}):
        one, what = wanted.get(file), f"sets/{file.name}"
        if one is None:
            yield Verdict(what, DIFFERENT, "no method of the profile makes a set of that name")
        elif file.exists():
            yield checked(what, lambda file=file, one=one: set_fault(read(file), one, digests))
        elif keeps_tensors(one):
            yield Verdict(what, NOT_KEPT)


def set_fault(artefact: Artefact, one: Run, digests: pd.DataFrame) -> str | None:
    """What is wrong with a kept set."""
    wanted = one.settings.of.model_dump(mode="json")
    for name in sorted(wanted.keys() | artefact.settings.keys()):
        if artefact.settings.get(name) != wanted.get(name):
            return f"it was made under another {name} than the profile's"
    place = [one.cell, one.method, one.distil_seed]
    line = digests[(digests[["cell", "method", "distil_seed"]] == place).all(axis=1)]
    digest = set_digest(artefact.tensors)
    return None if digest in set(line.sha256) else "its digest is not that of sets/digests.csv"


def drawn_again(kept: Paper, fresh: Paper) -> Iterator[Verdict]:
    """Every table and figure, made again from a copy of the rows and sets."""
    for part in ("rows", "sets"):
        if (kept.results.folder / part).is_dir():
            copytree(kept.results.folder / part, fresh.results.folder / part)
    for name in tables.TABLES:
        yield again(
            kept, fresh, f"tables/{name}", ("csv", "md"), lambda name=name: fresh.table(name)
        )
    yield again(kept, fresh, "claims", ("md",), lambda: None)  # made with their table
    for name in figures.FIGURES:
        yield again(kept, fresh, f"figures/{name}", ("png",), lambda name=name: fresh.figure(name))


def again(
    kept: Paper, fresh: Paper, what: str, kinds: tuple[str, ...], make: Callable[[], object]
) -> Verdict:
    """One table or figure, made again, beside the files that are kept."""
    files = [kept.results.folder / f"{what}.{kind}" for kind in kinds]
    if not any(file.exists() for file in files):
        return Verdict(what, NOT_KEPT)

    def fault() -> str | None:
        make()
        for file in files:
            made = fresh.results.folder / f"{what}{file.suffix}"
            if file.suffix == ".png":
                wrong = style.same_picture(file.read_bytes(), made.read_bytes())
            else:
                wrong = parting(file.read_text(), made.read_text())
            if wrong:
                return f"{file.name} is not what the rows give: {wrong}"
        return None

    return checked(what, fault)


def parting(kept: str, made: str) -> str | None:
    """The first line in which two texts differ, once numbers are compared as numbers."""
    pairs = zip_longest(kept.splitlines(), made.splitlines(), fillvalue="")
    for i, (a, b) in enumerate(pairs, 1):
        if a == b:
            continue
        words = [" ".join(NUMBER.sub("#", line).split()) for line in (a, b)]
        numbers = [[float(n.replace("−", "-")) for n in NUMBER.findall(x)] for x in (a, b)]
        near = len(numbers[0]) == len(numbers[1]) and all(
            isclose(x, y, rel_tol=RTOL, abs_tol=1e-9) for x, y in zip(*numbers, strict=True)
        )
        if words[0].replace("-", "") != words[1].replace("-", "") or not near:
            return f"line {i} reads {a[:90]!r}, expected {b[:90]!r}"
    return None


def of_notebooks(kept: Paper) -> Iterator[Verdict]:
    """Every executed copy: run to its end under this profile, from today's cells."""
    folder, sources = kept.results.folder / "notebooks", {f.name: f for f in build.notebooks()}
    for name in sorted({*sources, *(file.name for file in folder.glob("*.ipynb"))}):
        what, copy = f"notebooks/{name}", folder / name
        if not copy.exists():
            yield Verdict(what, NOT_KEPT)
        elif name.endswith(".failed.ipynb"):
            yield Verdict(what, NOT_KEPT, "a run that failed, set aside")
        else:
            source = sources.get(name)
            yield checked(what, lambda c=copy, s=source: copy_fault(c, s, kept.name))


def copy_fault(copy: Path, source: Path | None, profile: str) -> str | None:
    """What is wrong with an executed copy of a notebook."""
    if source is None:
        return f"there is no {copy.name} in notebooks/ that it could be a copy of: remove it"
    cells = json.loads(copy.read_text())["cells"]
    injected = [c for c in cells if "injected-parameters" in c["metadata"].get("tags", [])]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    outputs = [output for cell in code for output in cell["outputs"]]
    if errors := [output for output in outputs if output["output_type"] == "error"]:
        return f"holds an error: {errors[0]['ename']}"
    if not outputs or any(cell["execution_count"] is None for cell in code):
        return "a cell of it was not run, or its outputs are gone"
    given = "".join("".join(cell["source"]) for cell in injected)
    if not re.search(rf"""profile = ["'](?:.*/)?{re.escape(profile)}(?:\.ya?ml)?["']""", given):
        return f"it was not run under the profile {profile}"
    texts = [("".join(c["source"]).rstrip(), c["cell_type"]) for c in cells if c not in injected]
    today = json.loads(source.read_text())["cells"]
    asked = [("".join(c["source"]).rstrip(), c["cell_type"]) for c in today]
    for number, (found, expected) in enumerate(zip_longest(texts, asked), 1):
        if found != expected:
            return f"cell {number} is not that of today's notebook; `make paper` runs it again"
    return None


def of_readme(kept: Paper) -> Iterator[Verdict]:
    """The page whose block shows this profile's results."""
    for block, profile in pages.BLOCKS.items():
        page = pages.page_of(block) if profile == kept.name else None
        if page is not None:
            text = pages.filled(page, block, pages.summary(kept))
            yield checked(page.name, lambda page=page, text=text: parting(page.read_text(), text))


def made_anew(kept: Paper, fresh: Paper) -> Iterator[Verdict]:
    """The cheapest distilled set of the main study and its evaluation, trained in a new store."""
    runs = [one for one in main_sets(kept.profile) if isinstance(one.settings.of, Distilled)]
    if not runs:
        return
    works = {one: run.missing([one.settings], None) for one in runs if one.distil_seed == 0}
    one = min(works, key=lambda r: sum(map(cost.seconds, works[r])))
    alike = same_kind(kept)
    (fresh.store.root / "data").symlink_to(kept.store.root.resolve() / "data")
    kept.data(one.cell)  # a missing data set stops here
    workers, seconds = engine.default_workers(), sum(map(cost.seconds, works[one]))
    print(f"made anew, at most about {clock(seconds)}: {one.settings.title}", file=sys.stderr)
    run.ensure([one.settings], fresh.store, Progress("verify", seconds, workers))
    for study in (name for name, entry in STUDIES.items() if not entry.measured):
        made = [{k: blank(v) for k, v in r.items()} for r in fresh.rows(study, fresh.store.has)]
        if made and kept.results.has_rows(study):
            keys = {row["settings_key"] for row in made}
            rows = [row for row in kept_rows(kept, study) if row["settings_key"] in keys]
            judged = None if alike else JUDGED.get(study, ["accuracy"])
            fault = rows_fault(rows, made, judged)
            yield checked(f"rows/{study}.csv, anew", lambda f=fault: f, OK if alike else NEAR)
    file = kept.results.set_file(one.cell, one.method, 0)
    of: Any = one.settings.of
    made_set, start = fresh.store.load(of), fresh.store.load(of.start)
    yield checked(
        f"sets/{file.name}, anew",
        lambda: images_fault(file, made_set, start, alike),
        OK if alike else NEAR,
    )


def same_kind(kept: Paper) -> bool:
    """Say which machine made the results and which this is; whether equal bytes are asked."""
    made, here = kept.results.machine(), machine()
    other = [name for name in KIND if made is None or made.get(name) != here[name]]
    print(f"made on: {described(made) if made else 'unknown (no machine.json)'}")
    print(f"here:    {described(here)}, {'another' if other else 'the same'} kind\n")
    return not other


def rows_fault(kept: Rows, made: Rows, judged: list[str] | None) -> str | None:
    """Where rows made anew differ from the kept ones; by these columns alone, if there are any."""
    if len(kept) != len(made):
        return f"{len(kept)} rows are kept, {len(made)} were made"
    if judged is None:
        unlike = [i for i, (a, b) in enumerate(zip(kept, made, strict=True)) if a != b]
        return (
            f"{len(unlike)} of {len(made)} rows differ, first {made[unlike[0]]}" if unlike else None
        )
    ours, theirs = pd.DataFrame(kept), pd.DataFrame(made)
    for column in judged:
        mean, room = ours[column].mean(), max(SPREAD * ours[column].std(ddof=0), MARGIN)
        if not abs(theirs[column].mean() - mean) <= room:
            return f"mean {column} {theirs[column].mean():.4g}, kept {mean:.4g} ± {room:.2g}"
    return None


def images_fault(file: Path, made: Artefact, start: Artefact, alike: bool) -> str | None:
    """Where a set made anew differs from the kept one."""
    kept = read(file)
    if set_digest(kept.tensors) == set_digest(made.tensors):
        return None
    if alike:
        return f"its images differ by {away(kept, made):.3g} of their norm"
    others = [read(f) for f in file.parent.glob(f"{file.name.split('.')[0]}.*") if f != file]
    nearest = min(away(one, made) for one in (start, *others))
    if away(kept, made) < nearest:
        return None
    return f"{away(kept, made):.3g} of their norm away, another set only {nearest:.3g}"


def away(one: Artefact, made: Artefact) -> float:
    """Distance of a set's images from those made anew, by the norm of these."""
    a, b = one.tensors["images"], made.tensors["images"]
    return float((a - b).norm() / b.norm()) if a.shape == b.shape else float("inf")
