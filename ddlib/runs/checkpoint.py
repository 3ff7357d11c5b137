"""Checkpoints: experts and outer loops keep their state, so a killed run loses a minute at most.

A state is a dict of tensors and of what JSON can hold. The next run goes on from it to the same
bytes. Every epoch and outer iteration is also reported to the one hook, `on_step(task, step,
numbers)`, which TRACK names: `tensorboard`, or a function of yours as `module:function`.
"""

from __future__ import annotations

import importlib
import math
import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

from ddlib.base import InputError, Task, key
from ddlib.runs import engine
from ddlib.runs.store import Store, write

INTERVAL = 60  # seconds
SPENT = "spent"  # in a checkpoint: what its runs took until then

State = dict[str, Any]
Hook = Callable[[Task, int, Mapping[str, float]], object]


def interval() -> float:
    """Seconds between two checkpoints: the environment's CHECKPOINT, else 60."""
    seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
    expected = "the seconds between two checkpoints of a task, 0 or more"
    return engine.variable("CHECKPOINT", INTERVAL, seconds, expected)


class Checkpoint:
    """The unfinished state of the task of `settings`, kept in the store now and then."""

    def __init__(self, store: Store, settings: Task):
        self.store, self.settings = store, settings
        self.every, self.last = interval(), time.monotonic()
        past = store.resume(settings)
        self.past: State = {**past.record, **past.tensors} if past else {}
        nothing = {"seconds": 0.0, "processor_seconds": 0.0, "megabytes": None, "runs": 0}
        self.before = nothing | self.past.pop(SPENT, {})
        self.began, self.worked = time.monotonic(), time.process_time()
        reset_peak()

    def left(self, *names: str) -> State | None:
        """What an earlier run left under these names; None if any of them is missing."""
        if not all(name in self.past for name in names):
            return None
        return {name: self.past[name] for name in names}

    def __call__(self, state: Callable[[], State]) -> None:
        """Keep `state()`, if it is time."""
        if time.monotonic() - self.last >= self.every:
            self.now(state)

    def now(self, state: Callable[[], State]) -> None:
        """Keep `state()`."""
        parts = state()
        tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
        record = {name: part for name, part in parts.items() if name not in tensors}
        file = self.store.checkpoint_file(self.settings)
        write(file, self.settings, tensors, record | {SPENT: self.spent()})
        self.last = time.monotonic()

    def report(self, step: int, row: Mapping[str, Any]) -> None:
        """Tell the hook the finite numbers of an epoch or an outer iteration."""
        if on_step := hook(self.store.root):
            numbers = {k: v for k, v in row.items() if isinstance(v, int | float)}
            on_step(self.settings, step, {k: v for k, v in numbers.items() if math.isfinite(v)})

    def spent(self) -> dict:
        """Seconds, processor seconds, most megabytes and number of the runs until now."""
        before, worked = self.before, time.process_time() - self.worked
        peaks = [peak for peak in (before["megabytes"], memory("VmHWM")) if peak is not None]
        return {
            "seconds": before["seconds"] + time.monotonic() - self.began,
            "processor_seconds": before["processor_seconds"] + worked,
            "megabytes": max(peaks, default=None),
            "runs": before["runs"] + 1,
        }


def memory(line: str) -> float | None:
    """Megabytes that the process holds (`VmRSS`) or held at most (`VmHWM`); None off Linux."""
    with suppress(OSError, IndexError):
        status = Path("/proc/self/status").read_text()
        return int(status.split(f"{line}:")[1].split()[0]) / 1024
    return None


def reset_peak() -> None:
    """Count the most memory that is held from now on, where the system can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


@cache
def hook(store: Path) -> Hook | None:
    """The function that TRACK names; None without TRACK."""
    if not (name := os.environ.get("TRACK")):
        return None
    if name == "tensorboard":
        return tensorboard(store / "tensorboard")
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever that module does
        raise InputError(
            f"TRACK={name}: {error}; expected tensorboard, or module:function of a function "
            "on_step(task, step, numbers)"
        ) from None


def tensorboard(folder: Path) -> Hook:
    """Event files for `tensorboard --logdir store/tensorboard`, one run per task."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(
            "TRACK=tensorboard, but tensorboard is not installed: pip install tensorboard, or "
            "leave TRACK out"
        ) from None
    writer = cache(lambda task: SummaryWriter(str(folder / f"{task.title} {key(task)}")))

    def on_step(task: Task, step: int, numbers: Mapping[str, float]) -> None:
        for what, number in numbers.items():
            writer(task).add_scalar(what, number, step)
        writer(task).flush()

    return on_step
