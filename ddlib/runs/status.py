"""Looking after a store: what it holds for a profile, and removing what no profile needs. Headers are read, no tensors; nothing is made."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path

import pandas as pd

from ddlib import settings as config
from ddlib.data import datasets as data
from ddlib.paper.paper import store_folder
from ddlib.runs import engine, locks, studies
from ddlib.runs import stages as pipeline
from ddlib.runs.store import Absent, Damaged, Store, amount, peek, sweep
from ddlib.settings import Data, InputError, Profile, Settings, key

KINDS = tuple(pipeline.MAKE)
STAGES = tuple(dict.fromkeys(kind.stage for kind in KINDS))
CHECKPOINTS = "checkpoints"
NOTES = "notes"
KEY = re.compile("[0-9a-f]{16}")


def tasks(profile: Profile) -> tuple[list[Settings], list[Settings]]:
    """All tasks of a paper, those that others read included; and those that only the search for settings adds.

    Raises:
        InputError: anything in the profile that cannot be run.
    """
    paper = pipeline.missing(studies.asked(profile), None)
    search = pipeline.missing((run.settings for run, _ in studies.tuning(profile)), None)
    return list(paper), [task for task in search if task not in paper]


def status(name: str) -> None:
    """`python -m ddlib status PROFILE`: what is there, what is missing and how long it takes, what is being made, what is damaged, what else there is."""
    profile, store = config.profile(name), Store(store_folder())
    wanted, search = tasks(profile)
    faults = dict(faulty(store, wanted))
    missing = [task for task in wanted if task in faults or not store.has(task)]
    print(f"{profile.title}, in {store.root}\n")
    print(table(store, wanted, faults).to_markdown(index=False), end="\n\n")
    if search:
        print(
            f"The search for settings asks for {len(search)} tasks more, of which {sum(map(store.has, search))} are there."
        )
    begun = dict(progress(store, wanted + search))
    print(time_left(missing, begun))
    for task, (done, total, unit) in begun.items():
        print(f"A checkpoint: {pipeline.name(task)}, {unit} {done} of {total}.")
    for lock in living(store):
        about = locks.note(lock)
        print(
            f"Being made: {about.get('what', lock.name)}, by process {about.get('pid', '?')} on {about.get('host', '?')}."
        )
    for task, fault in faults.items():
        print(f"Damaged, and made again when it is asked for: {store.file(task)}: {fault}.")
    print(time_spent(store, wanted + search))
    if aside := files(store.root / "damaged"):
        print(f"Damaged and set aside in {store.root / 'damaged'}: {summed(aside)}.")
    others = [file for file, _ in leftovers(store, set(map(key, wanted + search)), set())]
    if others := [file for file in others if file not in aside]:
        print(
            f"Not for this profile: {summed(others)}; `python -m ddlib gc` shows what no profile needs."
        )


def table(store: Store, wanted: list[Settings], faults: dict[Settings, str]) -> pd.DataFrame:
    """A line a stage: files wanted, there, missing, damaged, and the size of those there."""
    sets = dict.fromkeys(task.data for task in wanted if hasattr(task, "data"))
    copies = {where: copy_of(where, store) for where in sets}
    groups: dict[str, list[Path | None]] = {
        "copies of data": [file for keeps, file in copies.values() if keeps]
    }
    for stage in STAGES:
        groups[stage] = [store.file(task) for task in wanted if task.stage == stage]
    bad, lines = {store.file(task) for task in faults}, []
    for stage, asked in groups.items():
        there = [file for file in asked if file and file.exists()]
        damaged = sum(file in bad for file in there)
        sound = len(there) - damaged
        line = {
            "stage": stage,
            "wanted": len(asked),
            "there": sound,
            "missing": len(asked) - sound,
            "damaged": damaged,
        }
        lines.append(line | {"size": amount(sum(file.stat().st_size for file in there))})
    return pd.DataFrame(lines)


def copy_of(settings: Data, store: Store) -> tuple[bool, Path | None]:
    """Whether a copy of the data set is kept, and where; nowhere yet if the files that it is made of are missing."""
    try:
        file = data.copy(settings, store.root)
    except InputError as error:
        print(f"Missing data: {error}\n")
        return True, None
    return file is not None, file


def faulty(store: Store, wanted: Iterable[Settings]) -> Iterator[tuple[Settings, str]]:
    """Those whose file, by its header and length, is not what it should be, and why; only reading it whole tells all."""
    for task in wanted:
        try:
            if peek(store.file(task))["settings"] != task.model_dump(mode="json"):
                yield task, "it was made under other settings"
        except Absent:
            continue
        except Damaged as error:
            yield task, error.fault


def progress(
    store: Store, wanted: Iterable[Settings]
) -> Iterator[tuple[Settings, tuple[int, int, str]]]:
    """Unfinished tasks that have a checkpoint: how far each is, of how much, in what."""
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


def time_left(missing: list[Settings], begun: dict[Settings, tuple[int, int, str]]) -> str:
    """A sentence: the predicted time of what is missing, less what checkpoints hold."""
    if not missing:
        return "Nothing is missing."
    left = [
        pipeline.work(task) * (1 - begun[task][0] / begun[task][1] if task in begun else 1)
        for task in missing
    ]
    workers = engine.default_workers()
    time = engine.clock(max(max(left), sum(left) / workers))
    return f"Missing: {len(missing)} tasks. Estimate, from their settings alone: {time} in {workers} processes side by side (WORKERS=n says how many)."


def time_spent(store: Store, wanted: Iterable[Settings]) -> str:
    """A sentence: what making those that are there took, where that was noted."""
    there = [task for task in wanted if store.has(task)]
    notes = [note for task in there if (note := store.note(task))]
    return f"Noted of {len(notes)} of the {len(there)} files there: making them took {engine.clock(sum(note['seconds'] for note in notes))}, one after the other."


def files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.is_file())


def summed(found: Iterable[Path]) -> str:
    """How many files, and their size."""
    found = list(found)
    return (
        f"{len(found)} file{'s' * (len(found) != 1)}, {amount(sum(size(file) for file in found))}"
    )


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def living(store: Store) -> list[Path]:
    """The locks that living processes hold."""
    return [lock for lock in files(store.root / "locks") if locks.holder(lock) is not None]


def in_use(store: Store) -> set[str]:
    """Keys of what living processes make, and of what they read for it."""
    return set(
        chain.from_iterable(
            [lock.name, *locks.note(lock).get("reads", [])] for lock in living(store)
        )
    )


def leftovers(store: Store, needed: set[str], used: set[str]) -> Iterator[tuple[Path, str]]:
    """Files of a store that nobody needs, each with the reason; of its folder `data` only half files: the rest there may be the user's own."""
    made = {
        stage: [file for file in files(store.root / stage) if KEY.fullmatch(file.stem)]
        for stage in (*STAGES, CHECKPOINTS, NOTES)
    }
    finished = {file.stem for stage in STAGES for file in made[stage]}
    for stage, found in made.items():
        for file in found:
            if file.stem in used:
                continue
            if file.stem not in needed:
                yield file, "no profile needs it"
            elif stage == CHECKPOINTS and file.stem in finished:
                yield file, "of a finished task"
    yield from ((file, "damaged, set aside") for file in files(store.root / "damaged"))
    yield from (
        (file, "a killed process left it half written") for file in sweep(store.root, remove=False)
    )
    yield from (
        (file, "a lock of a process that has ended")
        for file in files(store.root / "locks")
        if locks.holder(file) is None
    )


def gc(names: list[str], yes: bool = False) -> None:
    """`python -m ddlib gc [PROFILE...]`: show what none of the library's profiles and of those named needs, and remove it once the answer is yes.

    Raises:
        InputError: a profile named cannot be read.
    """
    store, needed = Store(store_folder()), needed_keys(names)
    found = list(leftovers(store, needed, in_use(store)))
    if not found:
        print(f"{store.root} holds nothing that no profile needs.")
        return
    for file, why in found:
        print(
            f"{amount(size(file)):>10}  {file.relative_to(store.root)}  {' · '.join(filter(None, [words(file), why]))}"
        )
    print(f"{summed(file for file, _ in found)} in {store.root}")
    if yes or agreed("Remove them? [y/N] "):
        still = dict(leftovers(store, needed, in_use(store)))  # a process may have begun to use one
        sizes = {file: size(file) for file, _ in found}
        gone = [file for file in sizes if file in still and remove(store, file)]
        print(
            f"Removed {len(gone)} of {len(sizes)} files, {amount(sum(sizes[file] for file in gone))}."
        )
        for file in (file for file in sizes if file.exists()):
            print(f"Kept, for a living process uses it: {file.relative_to(store.root)}")


def needed_keys(names: list[str]) -> set[str]:
    """The keys of all that the library's profiles, and those named, ask for."""
    needed = set()
    for name in dict.fromkeys([*config.profiles(), *names]):
        try:
            needed |= {key(task) for task in chain(*tasks(config.profile(name)))}
        except InputError as error:
            if name in names:
                raise
            print(
                f"The profile {name} cannot be read, so what it alone needs is not known: {error}"
            )
    return needed


def words(file: Path) -> str:
    """What an artefact or a checkpoint is, where its header can be read."""
    try:
        about = peek(file)
    except InputError:
        return ""
    for kind in KINDS:
        with suppress(ValueError):  # of another kind, or of a library that knew other settings
            if kind.stage == about["stage"]:
                return pipeline.name(kind(**about["settings"]))
    return ""


def agreed(question: str) -> bool:
    """Whether someone is there and says yes."""
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def remove(store: Store, file: Path) -> bool:
    """Remove one leftover, unless a living process has just taken its lock; whether it is gone."""
    lock = file if file.parent.name == "locks" else store.root / "locks" / file.stem
    if (handle := locks.take(lock)) is None:
        return False
    file.unlink(missing_ok=True)
    locks.drop(lock, handle)
    return True
