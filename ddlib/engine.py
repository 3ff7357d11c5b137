"""Tasks over this process or several: a task runs once those it needs are there, the longest first, with the time left.

Each process computes on one thread, so a task's bytes do not depend on how many run beside it; on a CPU two such processes use two cores
better than two threads do.
"""

from __future__ import annotations

import ctypes
import os
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from contextlib import nullcontext
from multiprocessing import get_context
from typing import TypeVar

import torch
from tqdm.auto import tqdm

Task = TypeVar("Task", bound=Hashable)
KEEP_MEMORY = 1 << 30  # bytes that the allocator keeps between steps
PRIOR = 100.0  # seconds of predicted work after which the run's own speed counts for more than the prediction


def settle() -> None:
    """One thread; and on Linux keep freed memory, whose return and re-request to the kernel costs up to half of a training step."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(parameter, KEEP_MEMORY)


def default_workers() -> int:
    """One process a core, unless the environment's WORKERS says otherwise."""
    return int(os.environ.get("WORKERS") or len(os.sched_getaffinity(0)))


def clock(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s, 12 s."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {left:02} s" if minutes else f"{left} s"


class Progress:
    """What is done and how long the rest takes, in seconds of predicted work: a bar where someone watches, a line now and then in a log."""

    def __init__(self, title: str, total: float, workers: int = 1, every: float = 15.0):
        self.title, self.total, self.workers, self.every = title, total, workers, every
        self.done, self.began, self.spoke = 0.0, time.monotonic(), time.monotonic()
        self.watched = sys.stderr.isatty() or "ipykernel" in sys.modules
        self.bar = tqdm(total=round(total), bar_format="{desc} |{bar}| {percentage:.0f} % {postfix}", leave=False) if self.watched else None

    def left(self) -> float:
        """Seconds to go: the rest of the predicted work, at the pace predicted at first and measured later."""
        pace = (time.monotonic() - self.began + PRIOR / self.workers) / (self.done + PRIOR)
        return pace * (self.total - self.done)

    def advance(self, work: float, text: str) -> None:
        """`text` is done, and was predicted to be `work`."""
        self.done += work
        left = clock(self.left())
        if self.bar is not None:
            self.bar.set_description_str(f"{self.title} · {text}")
            self.bar.set_postfix_str(f"{left} left")
            self.bar.update(round(self.done) - self.bar.n)
        elif time.monotonic() - self.spoke > self.every or self.done >= self.total - 1e-9:
            self.spoke = time.monotonic()
            print(f"{self.title} · {self.done / self.total:4.0%} · {left} left · {text}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()


class Here(Executor):
    """This process, as an executor."""

    def submit(self, do: Callable, /, *given: object) -> Future:
        """Do it now."""
        future: Future = Future()
        try:
            future.set_result(do(*given))
        except Exception as error:
            future.set_exception(error)
        return future


def processes(workers: int) -> Executor:
    """That many processes of one thread each; one: this process."""
    if workers <= 1:
        settle()
        return Here()
    return ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=settle)


def run(
    tasks: Mapping[Task, Iterable[Task]],
    do: Callable[[Task], object],
    work: Callable[[Task], float],
    label: Callable[[Task], str],
    progress: Progress | None = None,
    workers: int | None = None,
    pool: Executor | None = None,
) -> None:
    """Do every task of `tasks` (task -> the tasks it needs; needs outside the mapping count as done), in `pool` or one of its own.

    A failed task does not stop those that do not need it; when all that can run has run, the first failure is raised.
    """
    if not tasks:
        return
    workers = min(workers or default_workers(), len(tasks))
    waiting = {task: {n for n in needs if n in tasks} for task, needs in tasks.items()}
    running: dict[Future, Task] = {}
    failures: list[BaseException] = []
    mine = progress is None
    progress = progress or Progress("", sum(map(work, tasks)), workers)
    with nullcontext(pool) if pool else processes(workers) as able:
        while True:
            ready = sorted((t for t, needs in waiting.items() if not needs), key=work, reverse=True)
            for task in ready[: workers - len(running)]:
                del waiting[task]
                running[able.submit(do, task)] = task
            if not running:
                break
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                task, error = running.pop(future), future.exception()
                if error is not None:
                    failures.append(error)
                    print(f"{label(task)} failed: {error}", file=sys.stderr, flush=True)
                    continue
                for needs in waiting.values():
                    needs.discard(task)
                progress.advance(work(task), label(task))
    if mine:
        progress.close()
    if failures:
        raise failures[0]
