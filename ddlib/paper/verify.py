"""Whether kept results hold: every file of them, and a sample that is trained anew.

The sample must be equal to the byte on a machine of the kind that made the results
(`machine.KIND`). Another processor rounds otherwise, and training carries the last digit of a
number into the first. There the mean of each column in JUDGED must lie within SPREAD standard
deviations of the kept rows, or within MARGIN of their mean; and the images must be nearer to the
kept set than to the start and to any other kept set of the cell.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pandas as pd

from ddlib.base import InputError, printable
from ddlib.files import locked
from ddlib.paper import build, checks
from ddlib.paper.checks import DIFFERENT, NEAR, OK, Rows, Unchecked, Verdict, checked
from ddlib.paper.paper import Paper, main_sets, set_digest
from ddlib.paper.results import rows_file
from ddlib.progress import Progress, clock
from ddlib.runs import cost, engine, machine, run
from ddlib.runs.store import Artefact, read
from ddlib.runs.studies import STUDIES, Run
from ddlib.settings import Distilled

SPREAD, MARGIN = 3.0, 0.01
WIDE = 56  # letters of the longest name of a file
# Columns by which rows made on another processor are judged; of other studies: accuracy.
JUDGED = {"experts": ["test_accuracy"], "smoothness": ["test_accuracy", "step"], "curves": ["lr"]}


def verify(profile: str, quick: bool = False) -> bool:
    """Print a verdict on each kept file; whether none differs. Nothing is written."""
    kept = Paper.printed(profile)
    if locked(kept.store.root, build.lock_of(kept).stem):
        raise InputError(
            f"a process is at work on {kept.results.folder}: verify when it is done, for until "
            "then some files are old and some are new"
        )
    if not (kept.results.folder / "rows").is_dir():
        raise InputError(
            f"nothing to verify: no rows in {kept.results.folder / 'rows'}; expected what `make "
            f"paper PROFILE={kept.name}` leaves there: run it first"
        )
    with tempfile.TemporaryDirectory(prefix="ddlib-verify-") as folder:
        fresh = Paper(profile, Path(folder) / "store", Path(folder) / "results" / kept.name)
        verdicts = list[str]()
        for file, word, note in chain(checks.kept_files(kept, fresh), anew(kept, fresh, quick)):
            print(printable(f"{file:{WIDE}}  {word:{len(NEAR)}}  {note}".rstrip()))
            verdicts.append(word)
    counts = Counter(verdicts)
    print(f"\n{len(verdicts)} checks: {', '.join(f'{n} {word}' for word, n in counts.items())}")
    return not counts[DIFFERENT]


def anew(kept: Paper, fresh: Paper, quick: bool) -> Iterator[Verdict]:
    """The sample, made once the kept files were judged; `quick`: nothing."""
    if not quick:
        of, alike = sample(kept), same_kind(kept)
        make_sample(kept, fresh, of)
        yield from beside(kept, fresh, of, alike)


def sample(kept: Paper) -> Run:
    """The evaluation of the main study's set that is cheapest to distil with its experts."""
    runs = [of for of in main_sets(kept.profile) if isinstance(of.settings.of, Distilled)]
    if not runs:
        raise InputError(f"profile {kept.name} distils nothing to make anew: verify with --quick")
    first = [of for of in runs if of.distil_seed == 0]
    return min(first, key=lambda of: sum(map(cost.seconds, run.missing([of.settings], None))))


def make_sample(kept: Paper, fresh: Paper, of: Run) -> None:
    """Train it, and all that it needs."""
    kept.data(of.cell)  # a missing data set stops here
    (fresh.store.root / "data").symlink_to((kept.store.root / "data").resolve())
    tasks, workers = run.missing([of.settings], fresh.store), engine.default_workers()
    seconds = sum(map(cost.seconds, tasks))
    words = f"made anew with {len(tasks) - 1} results that it needs, in {clock(seconds)} at most"
    print(f"{of.settings.title}: {words}", file=sys.stderr)
    run.ensure([of.settings], fresh.store, Progress("verify", seconds, workers))


def beside(kept: Paper, fresh: Paper, of: Run, alike: bool) -> Iterator[Verdict]:
    """The sample's rows and its set beside the kept ones; `alike`: they must be equal."""
    good = OK if alike else NEAR
    for study, entry in STUDIES.items():
        rows = [] if entry.measured else checks.blanks(fresh.rows(study, fresh.store.has))
        if rows:
            yield checked(
                f"{rows_file(study)}, anew", anew_rows, kept, study, rows, alike, good=good
            )
    name = kept.results.set_file(of.cell, of.method, 0).name
    yield checked(f"sets/{name}, anew", anew_set, kept, fresh, of, alike, good=good)


def same_kind(kept: Paper) -> bool:
    """Say which machine made the results and which this is; whether bytes must be equal."""
    here = machine.machine()
    try:
        made = kept.results.machine()
        words, other = machine.described(made), [k for k in machine.KIND if made[k] != here[k]]
    except (ValueError, KeyError, TypeError, OSError):
        words, other = "a machine that was not written down (machine.json)", [*machine.KIND]
    kind = f"another kind ({', '.join(other)})" if other else "the same kind"
    print(f"made on: {words}\nhere:    {machine.described(here)}: {kind}\n")
    return not other


def anew_rows(kept: Paper, study: str, made: Rows, alike: bool) -> str | None:
    """Where rows made anew differ from the kept ones, or are too far from them."""
    keys = {row["settings_key"] for row in made}
    rows = [row for row in checks.kept_rows(kept, study) if row["settings_key"] in keys]
    if len(rows) != len(made):
        return f"{len(rows)} rows are kept, {len(made)} were made"
    if alike:
        for old, new in zip(rows, made, strict=True):
            for name in new:
                if old[name] != new[name]:
                    return f"{name} was {old[name]}, made anew {new[name]}"
        return None
    ours, theirs = pd.DataFrame(rows), pd.DataFrame(made)
    if "epoch" in ours:  # of an expert its last epoch
        ours, theirs = (table[table.epoch == table.epoch.max()] for table in (ours, theirs))
    for column in JUDGED.get(study, ["accuracy"]):
        mean, room = ours[column].mean(), max(SPREAD * ours[column].std(ddof=0), MARGIN)
        if not abs(theirs[column].mean() - mean) <= room:
            return f"mean {column} {theirs[column].mean():.4g}, kept {mean:.4g} ± {room:.2g}"
    return None


def anew_set(kept: Paper, fresh: Paper, of: Run, alike: bool) -> str | None:
    """Where a set made anew differs from the kept one, or is nearer to another."""
    file, settings = kept.results.set_file(of.cell, of.method, 0), of.settings.of
    if not file.exists():
        raise Unchecked("not kept")
    old, made = read(file), fresh.store.load(settings)
    if set_digest(old.tensors) == set_digest(made.tensors) and old.record == made.record:
        return None
    distance = away(old, made)
    if alike:
        return f"its images or its record differ: images by {distance:.3g} of their norm"
    others = [
        read(other) for other in file.parent.glob(f"{of.cell}.*.safetensors") if other != file
    ]
    start = fresh.store.load(settings.start)  # type: ignore[union-attr]
    nearest = min(away(other, made) for other in (start, *others))
    if distance < nearest:
        return None
    return f"{distance:.3g} of their norm away from the kept set, {nearest:.3g} from another"


def away(one: Artefact, made: Artefact) -> float:
    """Distance of a set's images from those made anew, by the norm of these."""
    a, b = one.tensors["images"], made.tensors["images"]
    return float((a - b).norm() / b.norm()) if a.shape == b.shape else float("inf")
