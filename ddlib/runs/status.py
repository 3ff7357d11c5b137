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
KEY = re.compile("[0-9a-f]{16}")


def tasks(given: Profile) -> tuple[list[Task], list[Task]]:
    """All tasks of a paper, and those that only the search for settings adds.

    Raises:
        InputError: anything in the profile that cannot be run.
    """
    paper = run.missing(studies.everything_asked(given), None)
    search = run.missing(studies.asked(given, ["tuning"]), None)
    return list(paper), [task for task in search if task not in paper]


def status(name: str) -> None:
    """Print what is there, missing and begun, what is being made, and what is damaged."""
    given, store = profile(name), Store(store_folder())
    wanted, search = tasks(given)
    every = wanted + search
    faults = {task: fault for task in wanted if (fault := fault_of(store, task))}
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
    begun = {task: at for task in every if (at := reached(store, task))}
    missing = [task for task in wanted if task in faults or not store.has(task)]
    print(time_left(missing, {task: done / total for task, (done, total, _) in begun.items()}))
    for task, (done, total, unit) in begun.items():
        print(f"A checkpoint: {task.title}, {unit} {done} of {total}.")
    for task in filter(store.busy, every):
        print(f"Being made by another process: {task.title}.")
    for task, fault in faults.items():
        print(printable(f"Damaged, and made again when asked for: {store.file(task)}: {fault}."))
    notes = [note for task in every if (note := store.note(task))]
    spent = clock(sum(note["seconds"] for note in notes))
    print(f"Making {len(notes)} of the files took {spent}, one after the other.")
    if rest := list(leftovers(store, set(map(key, every)))):
        print(
            f"Not for this profile: {summed(file for file, _ in rest)}; `python -m ddlib gc` shows "
            "what no profile needs."
        )


def table(store: Store, wanted: list[Task], faults: dict[Task, str]) -> pd.DataFrame:
    """One row per stage: files wanted, there, missing and damaged, and their size."""
    lines = []
    for task in wanted:
        sound = store.has(task) and task not in faults
        size = store.file(task).stat().st_size if store.has(task) else 0
        line = {"stage": task.stage, "wanted": 1, "there": sound, "missing": not sound}
        lines.append(line | {"damaged": task in faults, "size": size})
    sums = pd.DataFrame(lines).groupby("stage").sum().reindex(STAGES, fill_value=0)
    return sums.assign(size=sums["size"].map(amount)).reset_index()


def fault_of(store: Store, task: Task) -> str:
    """What is wrong with a task's file, by its header and length; empty if nothing, or absent."""
    try:
        same = peek(store.file(task))["settings"] == task.model_dump(mode="json")
        return "" if same else "it was made under other settings"
    except Absent:
        return ""
    except Damaged as error:
        return error.fault


def reached(store: Store, task: Task) -> tuple[int, int, str] | None:
    """How far the checkpoint of an unfinished task is, of how much, in what; None without one."""
    try:
        record = {} if store.has(task) else peek(store.checkpoint_file(task))["record"]
    except (Absent, Damaged):
        return None
    for unit in ("iteration", "epoch"):
        if isinstance(record.get(unit), int) and hasattr(task, f"{unit}s"):
            return record[unit], getattr(task, f"{unit}s"), unit
    return None


def time_left(missing: list[Task], done: dict[Task, float]) -> str:
    """The predicted time of what is missing, less the part that checkpoints hold, as a sentence."""
    if not missing:
        return "Nothing is missing."
    left = [cost.seconds(task) * (1 - done.get(task, 0)) for task in missing]
    workers = engine.default_workers()
    return (
        f"Missing: {len(missing)} tasks. Estimate, from their settings alone: "
        f"{clock(max(*left, sum(left) / workers))} in {workers} processes (WORKERS=n says how "
        "many)."
    )


def summed(files: Iterable[Path]) -> str:
    """How many files, and their size."""
    sizes = [file.stat().st_size for file in files if file.exists()]
    return f"{len(sizes)} file{'s' * (len(sizes) != 1)}, {amount(sum(sizes))}"


def leftovers(store: Store, needed: set[str]) -> Iterator[tuple[Path, str]]:
    """Files of a store that nobody needs, each with the reason; nothing in `data`."""
    finished = {file.stem for stage in STAGES for file in (store.root / stage).glob("*")}
    for folder in (*STAGES, "checkpoints", "notes"):
        for file in sorted((store.root / folder).glob("*")):
            if KEY.fullmatch(file.stem) and file.stem not in needed:
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
    for file, _ in rest:
        file.unlink(missing_ok=True)
    print("Removed.")


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
    except (EOFError, OSError, RuntimeError):  # nobody is there
        print()
        return False
