"""Asking for results: what is missing is made first, with all that it needs, and then read.

This is the one place that joins the stages with the store. `get` gives one artefact, `ensure` makes
many side by side.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Executor
from functools import lru_cache, partial
from operator import attrgetter
from pathlib import Path

import torch

from ddlib.base import InputError, Task, own_torch
from ddlib.data import datasets, mtt_format
from ddlib.data.datasets import Images
from ddlib.files import sweep
from ddlib.method.functional import network
from ddlib.progress import Progress
from ddlib.runs import cost, engine
from ddlib.runs.checkpoint import Checkpoint, hook, interval
from ddlib.runs.stages import Inputs, Measurement, make
from ddlib.runs.store import Artefact, Store
from ddlib.settings import Data, Expert, Imported, Selection


@own_torch()
def images(data: Data, store: Store) -> Images:
    """The data set in the space in which networks see it, where tasks compute."""
    return _placed(datasets.load(data, store.root), engine.device())


@lru_cache(maxsize=2)
def _placed(real: Images, device: torch.device) -> Images:
    """One copy per process; the CPU's is the one that was loaded."""
    return real if device.type == "cpu" else real.on(device)


@own_torch()
def get(settings: Task, store: Store) -> Artefact:
    """The artefact of `settings`: read if it is there and sound, else made.

    What another process is making is waited for.
    """

    def fill() -> None:
        check(settings)
        inputs = Inputs(
            images(settings.data, store),  # type: ignore[attr-defined]
            {other: get(other, store) for other in settings.needs()},
        )
        keep = Checkpoint(store, settings)
        tensors, record = make(settings, inputs, keep)
        spent = None if isinstance(settings, Imported | Measurement) else keep.spent()
        store.save(settings, tensors, record, spent)

    return store.kept(settings, fill)


def check(settings: Task) -> None:
    """Refuse before any work what only data and buffers can tell.

    Raises:
        InputError: more images per class than there are, or more experts than a buffer holds.
    """
    for task in (settings, *settings.needs()):
        if isinstance(task, Imported):
            counts = mtt_format.count(task.buffer, shapes(task), task.epochs)
            if task.seed >= (number := sum(n for _, n in counts)):
                raise InputError(
                    f"{task.buffer} holds {number} trajectories, but number {task.seed} (from 0) "
                    f"is asked for: set n_experts to at most {number}"
                )
        if isinstance(task, Selection) and task.method not in ("noise", "all", "given"):
            most = datasets.about(task.data).per_class
            if task.ipc > most:
                raise InputError(
                    f"ipc = {task.ipc}, but {task.data.title} has {most} training images per "
                    f"class: choose an ipc of at most {most}"
                )


def shapes(settings: Expert | Imported) -> dict[str, torch.Size]:
    """The parameters of an expert's network in order, by name."""
    known = datasets.about(settings.data)
    return network(settings.network, known.shape, len(known.class_names)).shapes


def spent(settings: Task, store: Store) -> dict:
    """What making an artefact and its experts took, as noted; None where a note is lacking."""
    note = store.note(settings) or {}
    notes = [
        store.note(other) for other in settings.needs() if isinstance(other, Expert | Imported)
    ]
    experts = sum(note["seconds"] for note in notes) if all(notes) else None
    names = ("seconds", "processor_seconds", "megabytes", "runs")
    return {name: note.get(name) for name in names} | {"experts_seconds": experts}


def missing(wanted: Iterable[Task], store: Store | None) -> dict[Task, list[Task]]:
    """All tasks that `wanted` still asks for, each with what it needs.

    Without a store: all that it ever asks for.
    """
    tasks: dict[Task, list[Task]] = {}

    def visit(settings: Task) -> None:
        if settings in tasks or (store and store.has(settings)):
            return
        check(settings)
        tasks[settings] = settings.needs()
        for other in tasks[settings]:
            visit(other)

    for settings in wanted:
        visit(settings)
    return tasks


def _task(settings: Task, root: Path) -> None:
    """`get` in another process."""
    get(settings, Store(root))


@own_torch()
def ensure(
    wanted: Iterable[Task],
    store: Store,
    progress: Progress | None = None,
    workers: int | None = None,
    pool: Executor | None = None,
) -> None:
    """Make all that `wanted` needs and the store lacks, side by side, with the time left."""
    interval(), hook(store.root)  # a wrong CHECKPOINT or TRACK stops here, before any work
    sweep(store.root)
    tasks = missing(wanted, store)
    # One process builds a data set, the rest read it. A missing one stops here, before any work.
    for data in {task.data for task in tasks}:  # type: ignore[attr-defined]
        images(data, store)
    do, title = partial(_task, root=store.root.resolve()), attrgetter("title")
    job = engine.Job(do, cost.seconds, title, store.busy)
    engine.run(tasks, job, progress, workers, pool)
