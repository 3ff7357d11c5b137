"""What a kill may cost: a long task keeps its unfinished state every CHECKPOINT seconds, and the next run goes on from there to the same bytes.

A state is a dict of tensors and of what JSON can hold; the names in it are those of one task's loops, which share no name. A loop asks for what was
`left` under its names, and gives `keep(state)` the chance to keep what `state()` returns at the end of each of its turns.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ddlib.runs.meter import Meter
from ddlib.runs.store import Store
from ddlib.settings import InputError, Settings

INTERVAL = 60.0  # seconds
SPENT = "spent"  # in a checkpoint: what its meter read; no loop has a name like it

State = dict[str, Any]


def interval() -> float:
    """Seconds of work that a kill may cost: the environment's CHECKPOINT, else 60.

    Raises:
        InputError: not a number of seconds.
    """
    given = os.environ.get("CHECKPOINT") or str(INTERVAL)
    try:
        seconds = float(given)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise InputError(
            f"CHECKPOINT={given}: expected the seconds between two checkpoints of a task, 0 or more; leave it out for {INTERVAL:g}"
        )
    return seconds


class Keeper:
    """Keeps the task of `settings` in its store; without a store nothing is kept, and nothing was left."""

    def __init__(self, store: Store | None = None, settings: Settings | None = None):
        self.store, self.settings = store, settings
        self.every, self.last = interval(), time.monotonic()
        held = store.resume(settings) if store else None
        self.past: State = {**held.record, **held.tensors} if held else {}
        self.meter = Meter(self.past.pop(SPENT, None)) if store else None

    def left(self, *names: str) -> State | None:
        """What an earlier run left under these names, to the first who asks; if one is missing, all that was left is forgotten."""
        if not all(name in self.past for name in names):
            self.past = {}
            return None
        return {name: self.past.pop(name) for name in names}

    def __call__(self, state: Callable[[], State]) -> None:
        """Keep it, if it is time."""
        if self.store and time.monotonic() - self.last >= self.every:
            self.now(state)

    def now(self, state: Callable[[], State]) -> None:
        """Keep it."""
        if self.store:
            parts = state()
            tensors = {name: part for name, part in parts.items() if isinstance(part, Tensor)}
            record = {name: part for name, part in parts.items() if name not in tensors}
            self.store.checkpoint(self.settings, tensors, record | {SPENT: self.meter.read()})
            self.last = time.monotonic()

    def inside(self, outer: Callable[[], State]) -> Inside:
        """For a loop inside this one: its state is kept together with what `outer()` returns."""
        return Inside(self, outer)

    def finish(self, tensors: dict[str, Tensor], record: dict) -> None:
        """Save what the task made, and note what it cost; its unfinished state goes."""
        self.store.finish(self.settings, tensors, record, self.meter.read())


class Inside:
    """The keeper of a loop inside a loop."""

    def __init__(self, keeper: Keeper | Inside, outer: Callable[[], State]):
        self.keeper, self.outer = keeper, outer
        self.left: Callable[..., State | None] = keeper.left

    def __call__(self, state: Callable[[], State]) -> None:
        """Keep it with the outer one's, if it is time."""
        self.keeper(lambda: self.outer() | state())
