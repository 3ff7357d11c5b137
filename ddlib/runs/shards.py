"""A study over several machines that share the store's folder: each shard does its part, and leaves to the living what is theirs.

Any shard may do any task, for an artefact depends on its settings alone and is written whole: two that do the same one lose time, nothing else. So
nothing here rests on locks; the store's own, which every process takes for what it makes, come on top. Each shard writes into a file of its own, every
BEAT seconds, which tasks it is on. What a task needs from another shard is waited for while that one lives; it is done here once its owner has ended, was
silent for SILENCE seconds or never came.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from ddlib.settings import InputError, Settings, key

Task = TypeVar("Task", bound=Settings)

BEAT = 5.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one, or from the start for a shard not seen yet, until its tasks are anybody's


def parse(text: str) -> tuple[int, int]:
    """(2, 8) of "2/8".

    Raises:
        InputError: not i/n with 1 <= i <= n.
    """
    found = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    i, n = map(int, found.groups()) if found else (0, 0)
    if not 1 <= i <= n:
        raise InputError(
            f"shard '{text}': expected i/n, the i-th of n shards, i from 1 to n; give 2/8 for example, or no shard to do all"
        )
    return i, n


def split(
    tasks: Iterable[Settings], n: int, work: Callable[[Settings], float]
) -> dict[Settings, int]:
    """The shard, 1 ... n, of each task: stage by stage the longest first, to the one with the least to do; the same on every machine."""
    load: dict[object, float] = {}
    owner = {}
    for task in sorted(tasks, key=lambda t: (-work(t), key(t))):
        owner[task] = i = min(
            range(1, n + 1), key=lambda i: (load.get((task.stage, i), 0), load.get(i, 0), i)
        )
        for what in ((task.stage, i), i):
            load[what] = load.get(what, 0) + work(task)
    return owner


class Shard:
    """Shard i of n while it runs (`with Shard(...)`): `owner` says whose a task is, `has` whether its artefact is there, `name` what to call it."""

    def __init__(
        self,
        i: int,
        n: int,
        owner: Mapping[Settings, int],
        root: Path,
        has: Callable[[Settings], bool],
        name: Callable[[Settings], str],
    ):
        self.i, self.n, self.owner, self.has, self.name = i, n, owner, has, name
        job = hashlib.sha256(" ".join(sorted(map(key, owner))).encode()).hexdigest()[:16]
        self.files = {k: root / "shards" / f"{job}-{k}-of-{n}" for k in range(1, n + 1)}
        self.doing: set[Settings] = set()
        self.seen: set[int] = set()
        self.said: set[object] = set()
        self.others: dict[int, list[str]] = {}
        self.began, self.over, self.lock = time.monotonic(), threading.Event(), threading.Lock()
        self.pulse = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Shard:
        self.files[self.i].parent.mkdir(parents=True, exist_ok=True)
        self.beat()
        self.pulse.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.pulse.join()
        self.files[self.i].unlink(missing_ok=True)

    def _live(self) -> None:
        while not self.over.wait(BEAT):
            with suppress(OSError):  # a shared folder may be away for a moment
                self.beat()

    def beat(self) -> None:
        """Say what this one is on; in place, for a network's file system shows a file's new content sooner than a new file."""
        with self.lock, self.files[self.i].open("w") as out:
            out.write(" ".join(key(task) for task in tuple(self.doing)))
            out.flush()
            self.now = os.fstat(out.fileno()).st_mtime  # by the file system's own clock

    def look(self) -> None:
        """Which of the others live, and the keys of the tasks they are on."""
        self.others = {}
        for k, file in self.files.items():
            if k == self.i:
                continue
            try:
                with file.open() as held:
                    age, doing = self.now - os.fstat(held.fileno()).st_mtime, held.read().split()
            except FileNotFoundError:
                age, doing = SILENCE if k in self.seen else time.monotonic() - self.began, []
            else:
                self.seen.add(k)
            if age < SILENCE:
                self.others[k] = doing

    def made(self, tasks: Iterable[Task]) -> list[Task]:
        """After a look at the others, those whose artefacts are there by now."""
        self.look()
        return [task for task in tasks if self.has(task)]

    def order(self, ready: list[Task]) -> list[Task]:
        """Its own first."""
        return sorted(ready, key=lambda task: self.owner[task] != self.i)

    def takes(self, task: Settings) -> bool:
        """Whether to do it here: nobody is on it, and it is this one's own or its owner does not live."""
        whose = self.owner[task]
        if whose in self.others or any(key(task) in doing for doing in self.others.values()):
            return False
        self.doing.add(task)
        self.beat()
        self.look()
        if any(
            key(task) in doing for k, doing in self.others.items() if k < self.i
        ):  # two took it at once: the first keeps it
            self.drops(task)
            return False
        if whose != self.i:
            self.once(
                whose,
                f"no life from shard {whose}/{self.n} (for {SILENCE:.0f} s, or it ended): does itself what it needs of it, first {self.name(task)}",
            )
        return True

    def drops(self, task: Settings) -> None:
        """No longer on it."""
        self.doing.discard(task)
        self.beat()

    def waits(self, ready: Sequence[Settings]) -> None:
        """Say for whom and for what."""
        awaited = {self.owner[task] for task in ready}
        whom = ", ".join(f"{k}/{self.n}" for k in sorted(awaited))
        self.once(
            whom,
            f"waits for {whom}: {'; '.join(map(self.name, ready[:3]))}{'; ...' if len(ready) > 3 else ''}",
        )

    def once(self, what: object, text: str) -> None:
        """One line about `what`, the first time."""
        if what not in self.said:
            self.said.add(what)
            print(f"shard {self.i}/{self.n} · {text}", file=sys.stderr, flush=True)
