"""Tasks over this process, several, or a Ray cluster: a task runs once those it needs are there, the longest first, with the time left.

Each process computes on one thread, so a task's bytes do not depend on how many run beside it, nor where; on a CPU two such processes use two cores
better than two threads do. A task whose process was killed is done again; one that raised is not.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import contextmanager, nullcontext
from functools import partial
from multiprocessing import get_context, parent_process
from types import ModuleType
from typing import Generic

import torch

from ddlib.files import Full
from ddlib.progress import Progress
from ddlib.progress import clock as clock
from ddlib.runs.cluster import Ray
from ddlib.runs.shards import Shard, Task
from ddlib.settings import InputError

KEEP_MEMORY = 1 << 30  # bytes that the allocator keeps between steps
RETRIES = 2  # times that a task is done again after its process was killed
POLL = 2.0  # seconds between two looks at the other shards
ENGINES = ("serial", "processes", "ray")


def settle() -> None:
    """One thread; and on Linux keep freed memory, whose return and re-request to the kernel costs up to half of a training step."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            libc.mallopt(parameter, KEEP_MEMORY)


def device() -> torch.device:
    """Where tasks compute: the environment's DEVICE, else the first GPU that this process sees, else the CPU.

    Raises:
        InputError: no such device here.
    """
    found = "cuda" if torch.cuda.is_available() else "cpu"
    given = os.environ.get("DEVICE") or found
    try:
        named = torch.device(given)
    except RuntimeError:
        named = None
    if named is None or (named.type == "cuda" and found == "cpu"):
        raise InputError(
            f"DEVICE={given}, but there is none of that name here: expected cpu, or cuda where there is a GPU; correct DEVICE, or leave it out"
        )
    return named


def default_workers() -> int:
    """What the environment's WORKERS says; else, where GPU_SHARE is given, as many processes as the GPUs hold; else one a core.

    Raises:
        InputError: WORKERS is no number of processes, or GPU_SHARE no part of a GPU.
    """
    given = os.environ.get("WORKERS") or ""
    if given and not (given.isdecimal() and int(given)):
        raise InputError(
            f"WORKERS={given}: expected a number of processes, 1 or more; correct it, or leave WORKERS out to have one a core"
        )
    share = gpu_share()
    held = int(1 / share) * len(gpus()) if share else 0
    return int(given or held or len(os.sched_getaffinity(0)))


def gpu_share() -> float:
    """The part of a GPU that a task takes, from the environment's GPU_SHARE: 0.25 puts four tasks on each; 0 if it is not given.

    Raises:
        InputError: not a number from 0 to 1.
    """
    given = os.environ.get("GPU_SHARE") or "0"
    try:
        share = float(given)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise InputError(
            f"GPU_SHARE={given}: expected the part of a GPU that a task takes, from 0 to 1; set 0.25 to put four tasks on each GPU, or leave it out"
        )
    return share


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return (named.split(",") if named else [str(i) for i in range(count)])[:count]


def placed(worker: int, devices: list[str]) -> str | None:
    """The GPU of a worker: they take turns."""
    return devices[worker % len(devices)] if devices else None


def begin(gpu: str | None) -> None:
    """A worker's first act: see one GPU, if there are any, settle, and end when the process that it works for is killed."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    watched()
    settle()


def watched() -> None:
    """Compute on one thread, and end when the process that this one works for is killed."""
    torch.set_num_threads(1)
    threading.Thread(target=follow, daemon=True).start()


def follow() -> None:
    """Wait for the parent's end, then end at once."""
    if (parent := parent_process()) is not None:
        parent.join()
        os._exit(1)


@contextmanager
def nameless() -> Iterator[None]:
    """While a process begins: it would run the caller's script again, from its first line, but needs nothing of it."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


class Lost(RuntimeError):
    """A task's process was killed again and again: says which task, and the likely cause."""


class Here(Executor):
    """This process, as an executor."""

    def submit(self, do: Callable, /, *given: object) -> Future:  # type: ignore[override]  # nothing is given by name
        """Do it now."""
        future: Future = Future()
        try:
            future.set_result(do(*given))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """Processes of one thread each, every one a pool of its own: when one is killed only its own task breaks, and a new process takes its place."""

    def __init__(self, workers: int):
        devices = gpus()
        self.start = [
            partial(ProcessPoolExecutor, 1, get_context("spawn"), begin, (placed(k, devices),))
            for k in range(workers)
        ]
        self.pools = [start() for start in self.start]
        self.given: list[list[Future]] = [[] for _ in self.pools]

    def submit(self, do: Callable, /, *given: object) -> Future:  # type: ignore[override]  # nothing is given by name
        """In the process with the least to do."""
        self.given = [[future for future in mine if not future.done()] for mine in self.given]
        k = min(range(len(self.pools)), key=lambda k: len(self.given[k]))
        with nameless():
            try:
                future = self.pools[k].submit(do, *given)
            except BrokenExecutor:
                self.pools[k] = self.start[k]()
                future = self.pools[k].submit(do, *given)
        self.given[k].append(future)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes."""
        for pool in self.pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)


def executor(workers: int, engine: str | None = None) -> Executor:
    """Where tasks run, by the name given or the environment's ENGINE: this process, that many on this machine (one: this process), or Ray.

    Raises:
        InputError: no engine of that name.
    """
    engine = engine or os.environ.get("ENGINE") or "processes"
    if engine not in ENGINES:
        raise InputError(
            f"ENGINE={engine}: expected one of {', '.join(ENGINES)}; correct it, or leave ENGINE out"
        )
    if engine == "ray":
        return Ray(workers, gpu_share(), settle)
    if engine == "serial" or workers <= 1:
        settle()
        return Here()
    return Processes(workers)


def forgiven(task: str, times: int) -> Lost | None:
    """Nothing, where a task whose process was killed so often may be done again; else the error."""
    if times <= RETRIES:
        print(
            f"{task}: its process was killed; again ({times} of {RETRIES})",
            file=sys.stderr,
            flush=True,
        )
        return None
    return Lost(
        f"{task}: its process was killed, and {RETRIES} times again, likely for want of memory: run fewer side by side (WORKERS=...)"
    )


def taken(ready: list[Task], shard: Shard | None, free: int) -> Iterator[Task]:
    """Of the tasks that are ready as many as there are workers free for; of a shard those that it may do, in its order."""
    if not shard:
        yield from ready[:free]
        return
    for task in shard.order(ready):
        if free <= 0:
            return
        if shard.takes(task):
            free -= 1
            yield task


class Queue(Generic[Task]):
    """What of `tasks` (task -> the tasks it needs) is still to be begun, and what became of the rest."""

    def __init__(
        self,
        tasks: Mapping[Task, Iterable[Task]],
        work: Callable[[Task], float],
        label: Callable[[Task], str],
        progress: Progress,
    ):
        self.waiting = {task: {n for n in needs if n in tasks} for task, needs in tasks.items()}
        self.work, self.label, self.progress = work, label, progress
        self.killed: Counter[Task] = Counter()
        self.failures: list[BaseException] = []

    def ready(self, busy: Callable[[Task], bool]) -> list[Task]:
        """Those that lack nothing: the longest first, and last what another process is on."""
        return sorted(
            (task for task, needs in self.waiting.items() if not needs),
            key=lambda task: (busy(task), -self.work(task)),
        )

    def begin(self, task: Task) -> None:
        """It waits no more."""
        del self.waiting[task]

    def finish(self, task: Task) -> None:
        """It is made; nobody has to wait for it."""
        for needs in self.waiting.values():
            needs.discard(task)
        self.progress.advance(self.work(task), self.label(task))

    def end(self, task: Task, error: BaseException | None) -> None:
        """It has ended, in one way or another. One whose process was killed waits again; one that failed is not waited for; nothing waits for a full disk."""
        if isinstance(error, BrokenExecutor):
            self.killed[task] += 1
            if (error := forgiven(self.label(task), self.killed[task])) is None:
                self.waiting[task] = set()
                return
        if error is None:
            self.finish(task)
            return
        self.failures.append(error)
        if isinstance(error, Full):
            self.waiting.clear()
        print(f"{self.label(task)} failed: {error}", file=sys.stderr, flush=True)


def run(
    tasks: Mapping[Task, Iterable[Task]],
    do: Callable[[Task], object],
    work: Callable[[Task], float],
    label: Callable[[Task], str],
    progress: Progress | None = None,
    workers: int | None = None,
    pool: Executor | None = None,
    shard: Shard | None = None,
    busy: Callable[[Task], bool] = lambda task: False,
) -> None:
    """Do every task of `tasks` (task -> the tasks it needs; needs outside the mapping count as done), in `pool` or one of its own.

    A failed task does not stop those that do not need it; when all that can run has run, the first failure is raised. Where a disk is full nothing more
    is begun. Tasks that another process is on (`busy`) come last. With a shard, tasks that other shards are on are left to them, until their artefacts appear.
    """
    if not tasks:
        return
    workers = min(workers or default_workers(), len(tasks))
    queue: Queue[Task] = Queue(
        tasks, work, label, progress or Progress("", sum(map(work, tasks)), workers)
    )
    running: dict[Future, Task] = {}
    with nullcontext(pool) if pool else executor(workers) as able:
        while True:
            for task in shard.made(queue.waiting) if shard else ():
                queue.begin(task)
                queue.finish(task)
            ready = queue.ready(busy)
            for task in taken(ready, shard, workers - len(running)):
                queue.begin(task)
                running[able.submit(do, task)] = task
            if not running:
                if not ready:
                    break
                shard.waits(ready)
                time.sleep(POLL)
            for future in wait(running, POLL if shard else None, FIRST_COMPLETED).done:
                task = running.pop(future)
                if shard:
                    shard.drops(task)
                queue.end(task, future.exception())
    if progress is None:
        queue.progress.close()
    if queue.failures:
        raise queue.failures[0]
