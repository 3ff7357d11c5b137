"""Whether what is kept holds: every table and figure follows from the kept rows, rows, sets and profile agree, and a sample made anew is the kept one.

On a machine of the kind that made the results (`measure.KIND`) all is equal to the byte, for a task's bytes depend on its settings alone. Another processor
rounds otherwise, and training carries the last digit of a number into the first: the remade sample is then judged by what a reader would take from it.

Rows: the mean of each column in JUDGED lies within SPREAD standard deviations of the kept rows (over networks, experts or iterations), or within MARGIN of
their mean, whichever is more. With and without the hand-written kernels, which round as differently, the laptop's means differ by up to 0.2 of a deviation.

Images: the kept set is nearer to the remade one than any other kept set of its cell is, and than the remade one is to where it started. In the same trial
the right set lay at 0.6 of the way that its images went, the nearest wrong one (the same start, another recipe of experts) at 0.8.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import zip_longest
from pathlib import Path
from shutil import copytree
from typing import Any, NamedTuple

import pandas as pd

from ddlib.paper import build as press
from ddlib.paper import figures as plots
from ddlib.paper import tables
from ddlib.paper.paper import AT_THE_END, STUDIES, Paper, kept_sets
from ddlib.runs import measure, studies
from ddlib.runs import stages as pipeline
from ddlib.runs.engine import Progress, clock, default_workers
from ddlib.runs.store import Artefact, digest, read
from ddlib.settings import Distilled, InputError, Profile, Settings, key

EQUAL, NEAR, DIFFERENT, NOT_KEPT, UNCHECKED = (
    "equal",
    "within tolerance",
    "DIFFERENT",
    "not kept",
    "not checked",
)
SPREAD, MARGIN = 3.0, 0.01
JUDGED = {
    "experts": ["test_accuracy"],
    "smoothness": ["test_accuracy", "step"],
    "curves": ["lr"],
}  # of all other studies: accuracy

Row = dict[str, Any]
Sets = dict[tuple[str, str, int], Artefact]  # by cell, method and distillation seed


class Verdict(NamedTuple):
    """What became of one artefact, and why."""

    artefact: str
    verdict: str
    note: str = ""


def verify(profile: str, quick: bool = False) -> bool:
    """`make verify`: print a verdict an artefact; whether nothing differs. Writes nothing into the results; `quick` makes no sample anew.

    Raises:
        InputError: nothing is kept under that profile.
    """
    held = Paper(profile)
    if not (held.results.folder / "rows").is_dir():
        raise InputError(
            f"nothing to verify: no rows in {held.results.folder / 'rows'}; expected what `make paper PROFILE={held.name}` leaves there: run it first"
        )
    with tempfile.TemporaryDirectory(prefix="ddlib-verify-") as folder:
        fresh = Paper(profile, Path(folder) / "store", Path(folder) / "results" / held.name)
        alike = same_kind(held)
        found = [*rendered(held, fresh), *readme(held), *agreeing(held), *executed(held)]
        if not quick:
            run = sample(held)
            remake(held, fresh, run)
            found += remade(held, fresh, run, alike)
    wide = max(len(one.artefact) for one in found)
    for one in found:
        print(f"{one.artefact:{wide}}  {one.verdict:{len(NEAR)}}  {one.note}".rstrip())
    print(
        f"\n{len(found)} artefacts: {', '.join(f'{n} {verdict}' for verdict, n in Counter(one.verdict for one in found).items())}"
    )
    return not any(one.verdict == DIFFERENT for one in found)


def same_kind(held: Paper) -> bool:
    """Say which machine made the results and which this is; whether equal bytes can be asked of this one."""
    made, here = held.results.machine(), measure.machine()
    other = [name for name in measure.KIND if made is not None and made.get(name) != here[name]]
    differs = "; ".join(f"{name} was {made.get(name)}, is {here[name]}" for name in other)
    kind = (
        "unknown, judged as another kind"
        if made is None
        else f"another kind ({differs})"
        if other
        else "the same kind"
    )
    print(
        f"made on: {measure.described(made) if made else 'a machine that was not written down (machine.json)'}\nhere:    {measure.described(here)}: {kind}\n"
    )
    return made is not None and not other


def rendered(held: Paper, fresh: Paper) -> Iterator[Verdict]:
    """Every table and every figure, made again elsewhere from a copy of the rows and sets."""
    for part in ("rows", "sets"):
        if (held.results.folder / part).is_dir():
            copytree(held.results.folder / part, fresh.results.folder / part)
    for name in tables.TABLES:
        yield again(held, fresh, f"tables/{name}", ("csv", "md"), partial(fresh.table, name))
    yield again(held, fresh, "claims", ("md",), lambda: None)  # made with their table
    for name in plots.FIGURES:
        yield again(held, fresh, f"figures/{name}", ("svg", "png"), partial(fresh.figure, name))
    there = (held.results.folder / "figures" / "film.gif").exists()
    yield (
        Verdict("figures/film.gif", UNCHECKED, "its frames lie in the store alone")
        if there
        else Verdict("figures/film.gif", NOT_KEPT)
    )


def readme(held: Paper) -> Iterator[Verdict]:
    """The README's block of results, where this is the profile that it speaks of."""
    if held.name in press.BLOCKS and press.README.exists():
        same = (
            press.filled(press.BLOCKS[held.name], press.summary(held.results))
            == press.README.read_text()
        )
        yield (
            Verdict(press.README.name, EQUAL)
            if same
            else Verdict(
                press.README.name,
                DIFFERENT,
                "its block is not what the tables say; `make paper` fills it",
            )
        )


def again(
    held: Paper, fresh: Paper, what: str, kinds: Iterable[str], make: Callable[[], object]
) -> Verdict:
    """One table or figure, made again, beside the files that are kept."""
    kept, made = (
        [paper.results.folder / f"{what}.{kind}" for kind in kinds] for paper in (held, fresh)
    )
    lacking = [file.name for file in kept if not file.exists()]
    if len(lacking) == len(kept):
        return Verdict(what, NOT_KEPT)
    try:
        make()
    except Exception as error:  # rows that somebody changed can break a table in any way
        return Verdict(
            what,
            DIFFERENT,
            f"cannot be made again: {error}".replace(
                str(fresh.results.folder), str(held.results.folder)
            ),
        )
    if lacking:
        return Verdict(what, DIFFERENT, f"lacks {', '.join(lacking)}")
    for old, new in zip(kept, made, strict=True):
        if old.read_bytes() != new.read_bytes():
            return Verdict(
                what, DIFFERENT, f"{old.name} is not what the rows give{first_line(old, new)}"
            )
    return Verdict(what, EQUAL)


def first_line(old: Path, new: Path) -> str:
    """Where a table's files part."""
    where = (
        parting(old.read_text(errors="replace"), new.read_text()) if old.suffix == ".csv" else ""
    )
    return f": {where}" if where else ""


def parting(found: str, expected: str) -> str:
    """The first line in which two texts differ, of each."""
    pairs = enumerate(zip_longest(found.splitlines(), expected.splitlines(), fillvalue=""), 1)
    return next(
        (f"line {i} reads {a[:90]!r}, expected {b[:90]!r}" for i, (a, b) in pairs if a != b), ""
    )


def agreeing(held: Paper) -> Iterator[Verdict]:
    """Every kept set and every study's rows: made under the settings that the profile asks for today, and in agreement with one another."""
    sets: Sets = {}
    yield from of_sets(held, sets)
    rows = {study: kept_rows(held, study) for study in STUDIES if held.results.has_rows(study)}
    for study in STUDIES:
        if study not in rows:
            yield Verdict(f"rows/{study}.csv", NOT_KEPT)
            continue
        if STUDIES[study].measured:
            yield Verdict(
                f"rows/{study}.csv",
                UNCHECKED,
                "measured while the sets were made, so it differs from run to run",
            )
            continue
        fault = (
            other_settings(held.profile, study, rows[study])
            or disagreement(study, rows, sets)
            or (EQUAL, f"{len(rows[study])} rows, under today's settings")
        )
        yield Verdict(f"rows/{study}.csv", *fault)
    for file in sorted((held.results.folder / "rows").glob("*.csv")):
        if file.stem not in STUDIES:
            yield Verdict(f"rows/{file.name}", UNCHECKED, "a notebook's own, measured or predicted")


def of_sets(held: Paper, sets: Sets) -> Iterator[Verdict]:
    """Every set that is kept or should be; those that are sound are added to `sets`."""
    wanted = {
        held.results.set_file(run.cell, run.method, run.distil_seed): run
        for run in kept_sets(held.profile)
    }
    for file in sorted({*wanted, *(held.results.folder / "sets").glob("*.safetensors")}):
        name = f"sets/{file.name}"
        if not file.exists():
            yield Verdict(name, NOT_KEPT)
        elif file not in wanted:
            yield Verdict(
                name, DIFFERENT, "no method of the profile makes a set of that name: remove it"
            )
        else:
            run = wanted[file]
            try:
                artefact = read(file)
            except InputError as error:
                yield Verdict(name, DIFFERENT, str(error))
                continue
            if fault := other_value(artefact.settings, run.settings.of):
                yield Verdict(name, DIFFERENT, fault)
                continue
            sets[run.cell, run.method, run.distil_seed] = artefact
            yield Verdict(name, EQUAL, "whole, under today's settings")


def other_value(found: Row, asked: Settings) -> str | None:
    """The first setting in which a set is another than the profile's."""
    wanted = asked.model_dump(mode="json")
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            return f"made under other settings: {name} is {found.get(name)!r} there, the profile asks for {wanted.get(name)!r}"
    return None


def kept_rows(held: Paper, study: str) -> list[Row]:
    """A study's rows as they were written: to the last digit, blanks as None."""
    table = pd.read_csv(held.results.folder / "rows" / f"{study}.csv", float_precision="round_trip")
    return [{name: blank(value) for name, value in row.items()} for row in table.to_dict("records")]


def blank(value: Any) -> Any:
    """None for what a CSV file leaves blank."""
    return None if value is None or value != value else value


def other_settings(profile: Profile, study: str, rows: list[Row]) -> tuple[str, str] | None:
    """The first result of a study that the profile does not ask for under its label, or that it asks for in vain.

    The search for settings is past and no part of `make paper`: the same candidates may stand there as an earlier form of the library judged them.
    """
    asked = {
        (*label.values(), key(settings)): (label, settings)
        for label, settings in STUDIES[study].asks(profile)
    }
    columns = [*next(iter(asked.values()))[0], "settings_key"] if asked else ["settings_key"]
    found = dict.fromkeys(tuple(row.get(column) for column in columns) for row in rows)
    foreign, lacking = (
        [one for one in found if one not in asked],
        [one for one in asked if one not in found],
    )
    if foreign and study == "tuning" and {one[:-1] for one in found} == {one[:-1] for one in asked}:
        return (
            UNCHECKED,
            f"the profile's candidates, but {len(foreign)} of {len(found)} judged under other settings or format; `make tune` judges them again",
        )
    if foreign:
        words = ", ".join(str(value) for value in foreign[0])
        return (
            DIFFERENT,
            f"{len(foreign)} of {len(found)} results were made under other settings than the profile's, first: {words}; `make paper` makes them again",
        )
    if lacking:
        first = pipeline.name(asked[lacking[0]][1])
        return (
            DIFFERENT,
            f"{len(lacking)} of {len(asked)} results that the profile asks for have no row, first: {first}; `make paper` makes them",
        )
    return None


def disagreement(study: str, rows: dict[str, list[Row]], sets: Sets) -> tuple[str, str] | None:
    """The first place where a study's rows say other than what is kept beside them."""
    for what, found, expected in facing(study, rows, sets):
        if found != expected:
            return DIFFERENT, f"{what}: found {found}, expected {expected}"
    return None


def facing(study: str, rows: dict[str, list[Row]], sets: Sets) -> Iterator[tuple[str, Any, Any]]:
    """(what, what the row says, what it should say): learned lrs and curves as the sets hold them, what two studies both say as the first of them does."""

    def who(row: Row) -> tuple[str, str, int]:
        return row["cell"], row["method"], row["distil_seed"]

    if study == "main":
        for i, row in enumerate(rows["main"], 2):
            if who(row) in sets:
                yield (
                    f"lr in line {i}, by the set's own",
                    row["lr"],
                    sets[who(row)].record["lr"] * row["lr_factor"],
                )
    if study == "curves":
        mine = [
            (i, row)
            for i, row in enumerate(rows["curves"], 2)
            if row["study"] == "main" and who(row) in sets
        ]
        for i, row in mine:
            lines = {line["iteration"]: line for line in sets[who(row)].record["curve"]}
            yield (
                f"line {i}, by the set's own curve",
                *both(
                    row,
                    lines.get(row["iteration"], {}),
                    ("loss", "start", "lr", "validation_accuracy"),
                ),
            )
    if study == "coresets" and "main" in rows:
        pairs: Iterable[tuple[Row, Row]] = zip_longest(
            rows["coresets"],
            (row for row in rows["main"] if row["method"] in studies.CORESETS),
            fillvalue={},
        )
        for i, (row, other) in enumerate(pairs, 2):
            yield (
                f"line {i}, by rows/main.csv",
                *both(row, other, sorted((row.keys() | other.keys()) - {"study"})),
            )
    if study == "smoothness" and "experts" in rows:
        last = {row["settings_key"]: row for row in rows["experts"]}
        for i, row in enumerate(rows["smoothness"], 2):
            yield (
                f"line {i}, by rows/experts.csv",
                *both(row, last.get(row["settings_key"], {}), AT_THE_END),
            )


def both(row: Row, other: Row, columns: Iterable[str]) -> tuple[Row, Row]:
    """The columns in which two rows differ, of each."""
    unlike = [name for name in columns if blank(row.get(name)) != blank(other.get(name))]
    mine, theirs = ({name: blank(one.get(name)) for name in unlike} for one in (row, other))
    return mine, theirs


def executed(held: Paper) -> Iterator[Verdict]:
    """Every notebook's executed copy, and whatever lies beside: no cell of it ended with an error, and its cells are the notebook's of today."""
    folder, sources = (
        held.results.folder / "notebooks",
        {file.name: file for file in press.notebooks()},
    )
    for name in sorted({*sources, *(file.name for file in folder.glob("*.ipynb"))}):
        if not (folder / name).exists():
            yield Verdict(f"notebooks/{name}", NOT_KEPT)
            continue
        fault = fault_of(folder / name, sources.get(name), held.name)
        yield (
            Verdict(f"notebooks/{name}", DIFFERENT, fault)
            if fault
            else Verdict(f"notebooks/{name}", EQUAL, "executed without error, from today's cells")
        )


def fault_of(copy: Path, source: Path | None, profile: str) -> str | None:
    """What is wrong with an executed copy of the notebook `source`, and what to do; the parameters that it was given are a cell of its own."""
    try:
        cells = json.loads(copy.read_text())["cells"]
        errors = [
            output["ename"]
            for cell in cells
            for output in cell.get("outputs", [])
            if output["output_type"] == "error"
        ]
        done = [
            written(cell)
            for cell in cells
            if "injected-parameters" not in cell["metadata"].get("tags", [])
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"holds an error: no notebook can be read from it ({error})"
    if errors:
        return f"holds an error: {errors[0]}"
    if source is None:
        return f"there is no {copy.name} in {press.NOTEBOOKS.name}/ that it could be a copy of: remove it"
    asked = [written(cell) for cell in json.loads(source.read_text())["cells"]]
    for number, (found, expected) in enumerate(
        zip_longest(done, asked, fillvalue=("nothing", "")), 1
    ):
        if found != expected:
            how = (
                parting(found[1], expected[1])
                if found[0] == expected[0]
                else f"is {found[0]}, expected {expected[0]}"
            )
            return f"executed from another {press.NOTEBOOKS.name}/{copy.name}: cell {number} {how}; `make paper PROFILE={profile}` runs it again"
    return None


def written(cell: Row) -> tuple[str, str]:
    """The kind of a notebook's cell, and what it says."""
    return cell["cell_type"], "".join(cell["source"]).rstrip()


def sample(held: Paper) -> studies.Run:
    """The distilled set of the main study that is cheapest to make with all it needs, and its evaluation."""
    runs = [run for run in studies.main(held.profile) if isinstance(run.settings.of, Distilled)]
    if not runs:
        raise InputError(
            f"profile {held.name} distils nothing, so no sample can be made anew: verify with --quick"
        )
    return min(
        runs, key=lambda run: sum(map(pipeline.work, pipeline.missing([run.settings], None)))
    )


def remake(held: Paper, fresh: Paper, run: studies.Run) -> None:
    """Make the sample anew in a store of its own, which shares the data with the usual one and nothing else."""
    held.data(run.cell)  # a missing data set stops here, and names its folder
    data = held.store.root / "data"
    data.mkdir(exist_ok=True)
    (fresh.store.root / "data").symlink_to(data.resolve())
    tasks, workers = pipeline.missing([run.settings], fresh.store), default_workers()
    seconds = sum(map(pipeline.work, tasks))
    print(
        f"made anew, about {clock(seconds / min(workers, len(tasks)))} to {clock(seconds)} on {workers} cores:",
        file=sys.stderr,
    )
    for settings in sorted(tasks, key=lambda task: task.stage):
        print(f"  {pipeline.name(settings)}", file=sys.stderr)
    pipeline.ensure([run.settings], fresh.store, Progress("verify", seconds, workers))


def remade(held: Paper, fresh: Paper, run: studies.Run, alike: bool) -> Iterator[Verdict]:
    """The sample's rows and its set beside the kept ones; `alike`: they must be equal, else near."""
    for study in (name for name, one in STUDIES.items() if not one.measured):
        made = [
            {name: blank(value) for name, value in row.items()}
            for row in fresh.rows(study, fresh.store.has)
        ]
        if made and held.results.has_rows(study):
            keys = {row["settings_key"] for row in made}
            kept = [row for row in kept_rows(held, study) if row["settings_key"] in keys]
            yield Verdict(
                f"rows/{study}.csv, made anew",
                *compared_rows(kept, made, None if alike else JUDGED.get(study, ["accuracy"])),
            )
    file = held.results.set_file(run.cell, run.method, run.distil_seed)
    name = f"sets/{file.name}, made anew"
    if not file.exists():
        yield Verdict(name, NOT_KEPT)
        return
    try:
        target: Any = run.settings.of
        yield Verdict(
            name,
            *compared_sets(
                held, file, fresh.store.load(target), fresh.store.load(target.start), alike
            ),
        )
    except InputError as error:
        yield Verdict(name, DIFFERENT, str(error))


def compared_rows(kept: list[Row], made: list[Row], judged: list[str] | None) -> tuple[str, str]:
    """A verdict on rows made anew and why; with columns to judge by, near is good enough."""
    if len(kept) != len(made):
        return DIFFERENT, f"{len(kept)} rows are kept, {len(made)} were made"
    unlike = [
        both(row, other, other)
        for row, other in zip(kept, made, strict=True)
        if both(row, other, other) != ({}, {})
    ]
    if not unlike:
        return EQUAL, f"{len(made)} rows"
    if judged is None:
        return (
            DIFFERENT,
            f"{len(unlike)} of {len(made)} rows, the first: kept {unlike[0][0]}, made anew {unlike[0][1]}",
        )
    ours, theirs = (pd.DataFrame(rows) for rows in (kept, made))
    if "epoch" in ours:
        ours, theirs = (table[table.epoch == table.epoch.max()] for table in (ours, theirs))
    notes, far = [], False
    for column in judged:
        found, expected, room = (
            theirs[column].mean(),
            ours[column].mean(),
            max(SPREAD * ours[column].std(ddof=0), MARGIN),
        )
        far |= not abs(found - expected) <= room
        notes.append(f"mean {column} {found:.4g}, kept {expected:.4g} ± {room:.2g}")
    return DIFFERENT if far else NEAR, "; ".join(notes)


def compared_sets(
    held: Paper, file: Path, made: Artefact, start: Artefact, alike: bool
) -> tuple[str, str]:
    """A verdict on a set made anew and why.

    Raises:
        InputError: the kept one cannot be read.
    """
    kept = read(file)
    if kept.record == made.record and digest(kept.tensors) == digest(
        {name: made.tensors.get(name, made.tensors["labels"]) for name in kept.tensors}
    ):
        return EQUAL, "images, labels and learned lr"
    if alike:
        return (
            DIFFERENT,
            f"images by {away(kept, made):.3g} of their norm; learned lr {kept.record['lr']}, made anew {made.record['lr']}",
        )
    if digest({"labels": kept.tensors["labels"]}) != digest({"labels": made.tensors["labels"]}):
        return DIFFERENT, "other labels"
    cell = file.name.split(".")[0]
    others = {
        other.name: read(other)
        for other in file.parent.glob(f"{cell}.*.safetensors")
        if other != file
    }
    distances = {"where it started": away(start, made)} | {
        name: away(other, made) for name, other in others.items()
    }
    nearest = min(distances, key=distances.get)
    words = f"{away(kept, made):.3g} of their norm away, {nearest} {distances[nearest]:.3g}"
    return NEAR if away(kept, made) < distances[nearest] else DIFFERENT, words


def away(one: Artefact, made: Artefact) -> float:
    """Distance of a set's images from those made anew, by the norm of these."""
    a, b = one.tensors["images"], made.tensors["images"]
    return float((a - b).norm() / b.norm()) if a.shape == b.shape else float("inf")
