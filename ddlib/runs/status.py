"""Looking after a store: what it holds for a profile, and removing what no profile needs.

Headers are read, no tensors, and nothing is made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import pandas as pd

from ddlib.base import InputError, Task, key, printable
from ddlib.data import datasets
from ddlib.files import Absent, Damaged, amount, locked, sweep
from ddlib.progress import clock
from ddlib.runs import cost, engine, run, studies
from ddlib.runs.profile import Profile, profile, profiles
from ddlib.runs.stages import KINDS, settings_of
from ddlib.runs.store import Store, peek, store_folder

STAGES = tuple(dict.fromkeys(kind.stage for kind in KINDS))
BESIDE = ("checkpoints", "notes")  # folders whose files are named by the key of an artefact
KEY = re.compile("[0-9a-f]{16}")

Begun = dict[Task, tuple[int, int, str]]  # task -> how far its checkpoint is, of how much, in what


def tasks(given: Profile) -> tuple[list[Task], list[Task]]:
    """All tasks of a paper, and those that only the search for settings adds.

    Raises:
        InputError: anything in the profile that cannot be run.
    """
    paper = list(run.missing(studies.everything_asked(given), None))
    search = run.missing(studies.asked(given, ["tuning"]), None)
    known = set(paper)
    return paper, [task for task in search if task not in known]


def status(name: str) -> None:
    """Print what is there, missing and begun, what is being made, and what is damaged."""
    given, store = profile(name), Store(store_folder())
    wanted, search = tasks(given)
    faults = dict(faulty(store, wanted))
    missing = [task for task in wanted if task in faults or not store.has(task)]
    print(f"{given.title}, in {store.root}\n")
    print(table(store, wanted, faults).to_markdown(index=False), end="\n\n")
    for cell in given.cells.values():
        try:
            if find := datasets.about(cell.data).find:
                find(store.root)
        except InputError as error:
            print(f"Missing data: {error}\n")
    if search:
        there = sum(map(store.has, search))
        print(f"The search for settings asks for {len(search)} more tasks; {there} are there.")
    begun = dict(unfinished(store, wanted + search))
    print(time_left(missing, begun))
    for task, (done, total, unit) in begun.items():
        print(f"A checkpoint: {task.title}, {unit} {done} of {total}.")
    for task in wanted + search:
        if locked(store.root, key(task)):
            print(f"Being made by another process: {task.title}.")
    for task, fault in faults.items():
        print(printable(f"Damaged, and made again when asked for: {store.file(task)}: {fault}."))
    notes = [note for task in wanted + search if (note := store.note(task))]
    spent = clock(sum(note["seconds"] for note in notes))
    print(f"Making {len(notes)} of the files took {spent}, one after the other.")
    if rest := list(leftovers(store, set(map(key, wanted + search)))):
        print(
            f"Not for this profile: {summed(file for file, _ in rest)}; `python -m ddlib gc` shows "
            "what no profile needs."
        )


def table(store: Store, wanted: list[Task], faults: dict[Task, str]) -> pd.DataFrame:
    """One row per stage: files wanted, there, missing and damaged, and their size."""
    lines = []
    for stage in STAGES:
        asked = [task for task in wanted if task.stage == stage]
        there = [task for task in asked if store.has(task)]
        damaged = sum(task in faults for task in there)
        sound = len(there) - damaged
        size = amount(sum(store.file(task).stat().st_size for task in there))
        line = {"stage": stage, "wanted": len(asked), "there": sound}
        lines.append(line | {"missing": len(asked) - sound, "damaged": damaged, "size": size})
    return pd.DataFrame(lines)


def faulty(store: Store, wanted: Iterable[Task]) -> Iterator[tuple[Task, str]]:
    """Tasks whose file, by its header and length, is not what it should be, and why."""
    for task in wanted:
        try:
            if peek(store.file(task))["settings"] != task.model_dump(mode="json"):
                yield task, "it was made under other settings"
        except Absent:
            continue
        except Damaged as error:
            yield task, error.fault


def unfinished(store: Store, wanted: Iterable[Task]) -> Iterator[tuple[Task, tuple]]:
    """Tasks that have a checkpoint: how far each is, of how much, in what."""
    for task in wanted:
        if store.has(task):
            continue
        try:
            record = peek(store.checkpoint_file(task))["record"]
        except (Absent, Damaged):
            continue
        for unit in ("iteration", "epoch"):
            if isinstance(record.get(unit), int) and hasattr(task, f"{unit}s"):
                yield task, (record[unit], getattr(task, f"{unit}s"), unit)


def time_left(missing: list[Task], begun: Begun) -> str:
    """The predicted time of what is missing, less what checkpoints hold, as a sentence."""
    if not missing:
        return "Nothing is missing."
    done = {task: at / total for task, (at, total, _) in begun.items()}
    left = [cost.seconds(task) * (1 - done.get(task, 0)) for task in missing]
    workers = engine.default_workers()
    seconds = max(max(left), sum(left) / workers)
    return (
        f"Missing: {len(missing)} tasks. Estimate, from their settings alone: {clock(seconds)} in "
        f"{workers} processes (WORKERS=n says how many)."
    )


def summed(files: Iterable[Path]) -> str:
    """How many files, and their size."""
    sizes = [file.stat().st_size for file in files if file.exists()]
    return f"{len(sizes)} file{'s' * (len(sizes) != 1)}, {amount(sum(sizes))}"


def leftovers(store: Store, needed: set[str]) -> Iterator[tuple[Path, str]]:
    """Files of a store that nobody needs, each with the reason; nothing in `data`."""
    named = {
        folder: [file for file in (store.root / folder).glob("*") if KEY.fullmatch(file.stem)]
        for folder in (*STAGES, *BESIDE)
    }
    finished = {file.stem for stage in STAGES for file in named[stage]}
    for folder, files in named.items():
        for file in sorted(files):
            if file.stem not in needed:
                yield file, "no profile needs it"
            elif folder == "checkpoints" and file.stem in finished:
                yield file, "of a finished task"
    yield from ((file, "damaged, set aside") for file in sorted((store.root / "damaged").glob("*")))
    yield from ((file, "half written by a killed process") for file in sweep(store.root, False))


def gc(names: list[str], yes: bool = False) -> None:
    """Show what none of the library's profiles and of those named needs; remove it if agreed.

    Raises:
        InputError: a profile named cannot be read, or a process is at work in the store.
    """
    store, needed = Store(store_folder()), set[str]()
    for name in dict.fromkeys([*profiles(), *names]):
        needed |= {key(task) for task in chain(*tasks(profile(name)))}
    rest = list(leftovers(store, needed))
    if not rest:
        print(f"{store.root} holds nothing that no profile needs.")
        return
    for file, why in rest:
        words = " · ".join(filter(None, [described(file), why]))
        name = printable(f"{file.relative_to(store.root)}")
        print(f"{amount(file.stat().st_size):>10}  {name}  {words}")
    print(f"{summed(file for file, _ in rest)} in {store.root}")
    if not (yes or agreed("Remove them? [y/N] ")):
        return
    for lock in sorted((store.root / "locks").glob("*.lock")):
        if locked(store.root, lock.stem):
            raise InputError(
                f"a process is at work in {store.root} (it holds {lock.name}): nothing was "
                "removed; run gc again when it is done"
            )
    size = summed(file for file, _ in rest)
    for file, _ in rest:
        file.unlink(missing_ok=True)
    print(f"Removed {size}.")


def described(file: Path) -> str:
    """What an artefact or a checkpoint is, where its header can be read."""
    try:
        return settings_of(peek(file)["settings"]).title
    except InputError:
        return ""


def agreed(question: str) -> bool:
    """Whether someone is there and says yes."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False
