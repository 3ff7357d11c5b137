"""Runs tasks in this process, in several, or on a Ray cluster, and says how long the rest takes.

A task runs once the tasks that it needs are done, the longest first. Each process computes on one
thread, so a task's bytes depend neither on how many run beside it nor where. A task whose process
was killed is done again; one that raised is not. Several machines that share a store share the
work: each leaves out what another is on, and comes back to it later.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from concurrent.futures import ProcessPoolExecutor as Pool
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from multiprocessing import get_context, parent_process
from time import sleep
from types import ModuleType
from typing import Annotated, Any

import joblib
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from ddlib.base import InputError, printable
from ddlib.files import Full
from ddlib.method import student
from ddlib.progress import Progress

KEEP_MEMORY = 1 << 30  # bytes that the allocator keeps between steps
SOCKET = 20  # letters of a folder that leave room for Ray's names: sockets have at most 107
RETRIES = 2  # how often a task is done again after its process was killed
POLL = 2.0  # seconds between two looks at tasks that another process is on


class Lost(RuntimeError):
    """A task's process was killed again and again."""


class Taken(Exception):
    """The task waits again, say because another process is on it."""


def settle() -> None:
    """Use one thread and, on Linux, keep freed memory: getting it anew costs half of a step."""
    torch.set_num_threads(1)
    if sys.platform == "linux":
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            ctypes.CDLL(None).mallopt(parameter, KEEP_MEMORY)


def wrong(name: str, value: str, expected: str) -> InputError:
    """The error for an environment variable."""
    return InputError(f"{name}={value}: expected {expected}; correct it, or leave {name} out")


def variable(name: str, usual: Any, kind: Any, expected: str) -> Any:
    """An environment variable as that type; `usual` where it is not set."""
    text = os.environ.get(name) or str(usual)
    try:
        return TypeAdapter(kind).validate_strings(text)
    except ValidationError:
        raise wrong(name, text, expected) from None


def device() -> torch.device:
    """The environment's DEVICE, else the first visible GPU, else the CPU; there tasks compute."""
    name = os.environ.get("DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    with suppress(RuntimeError):
        kind = torch.device(name).type
        if kind == "cpu" or (kind == "cuda" and torch.cuda.is_available()):
            return torch.device(name)
    raise wrong("DEVICE", name, "cpu, or cuda where there is a GPU")


def memory() -> int:
    """Bytes that a process may keep of an outer iteration, by MEMORY in megabytes; default 160.

    More is faster until all inner steps are kept. Results are the same.
    """
    usual, expected = student.MEMORY >> 20, "a number of megabytes, 0 or more"
    return variable("MEMORY", usual, NonNegativeInt, expected) << 20


def default_workers() -> int:
    """The environment's WORKERS, else what the GPUs hold by GPU_SHARE, else one per usable core."""
    share = gpu_share()
    usual = (int(1 / share) * len(gpus()) if share else 0) or joblib.cpu_count()
    return variable("WORKERS", usual, PositiveInt, "a number of processes, 1 or more")


def gpu_share() -> float:
    """The part of a GPU that a task takes, by GPU_SHARE: 0.25 puts four on each; 0 if not set."""
    part = Annotated[float, Field(ge=0, le=1)]
    return variable("GPU_SHARE", 0, part, "the part of a GPU that a task takes, from 0 to 1")


def gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    count, names = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return (names.split(",") if names else [str(i) for i in range(count)])[:count]


def begin(gpu: str | None) -> None:
    """Set up a worker process, which sees one GPU, if there is any."""
    if gpu is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpu
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all: the parent ends its workers
    watched()
    settle()


def watched() -> None:
    """Use one thread, and end at once when the parent process ends."""
    torch.set_num_threads(1)

    def follow() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def nameless() -> Iterator[None]:
    """Hide the caller's script while a process starts, which would run it again from line one."""
    script = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = script


class Here(Executor):
    """This process as an executor."""

    def __init__(self, workers: int = 1):
        settle()

    def submit(self, do: Callable, /, *given: object) -> Future:  # type: ignore[override]
        """Do it now."""
        future: Future = Future()
        try:
            future.set_result(do(*given))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """Processes of one thread, each a pool of its own: a killed one breaks only its own task."""

    def __init__(self, workers: int):
        turns = islice(cycle(gpus() or [None]), workers)  # at the GPUs
        self.start = [partial(Pool, 1, get_context("spawn"), begin, (gpu,)) for gpu in turns]
        self.pools = [start() for start in self.start]
        self.futures: list[list[Future]] = [[] for _ in self.pools]

    def submit(self, do: Callable, /, *given: object) -> Future:  # type: ignore[override]
        """Give it to the process with the least to do; replace a process that was killed."""
        self.futures = [[f for f in queue if not f.done()] for queue in self.futures]
        k = min(range(len(self.pools)), key=lambda k: len(self.futures[k]))
        with nameless():
            try:
                future = self.pools[k].submit(do, *given)
            except BrokenExecutor:
                self.pools[k] = self.start[k]()
                future = self.pools[k].submit(do, *given)
        self.futures[k].append(future)
        return future

    def __exit__(self, kind: Any, *rest: Any) -> None:
        for pool in self.pools if kind else ():  # an interrupt waits for no task
            for process in list((pool._processes or {}).values()):
                process.terminate()  # from Python 3.14 on: pool.terminate_workers()
        self.shutdown()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes."""
        for pool in self.pools:
            pool.shutdown(wait, cancel_futures=cancel_futures)


class Ray(Executor):
    """The Ray cluster at RAY_ADDRESS (an address, or `auto`), else one on this machine."""

    def __init__(self, workers: int):
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        options: Any = {"log_to_driver": False, "logging_level": logging.ERROR}
        address = os.environ.get("RAY_ADDRESS") or "local"
        if address == "local":  # no cluster: one that listens on this machine alone
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            options |= {"num_cpus": workers, "include_dashboard": False}
            options |= {"_node_ip_address": "127.0.0.1"}
            if len(tempfile.gettempdir()) > SOCKET:
                options |= {"_temp_dir": f"/tmp/ray-{os.getuid()}"}
        try:
            import ray
        except ImportError:
            raise wrong("ENGINE", "ray", "Ray to be installed (pip install 'ddlib[ray]')") from None
        try:
            ray.init(address, **options)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise wrong("RAY_ADDRESS", address, f"a Ray cluster there ({error})") from None
        # A lost process is the queue's affair: Ray itself tries nothing again.
        self.do = ray.remote(num_cpus=1, num_gpus=gpu_share(), max_retries=0)(settled)
        self.end = ray.shutdown

    def submit(self, do: Callable, /, *given: object) -> Future:  # type: ignore[override]
        """Run it where there is room."""
        return self.do.remote(do, given).future()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; one on this machine ends."""
        self.end()


def settled(do: Callable, given: tuple) -> object:
    """Do it in a process of Ray's."""
    settle()
    return do(*given)


def executor(workers: int, engine: str | None = None) -> Executor:
    """Where tasks run, by name or the environment's ENGINE; one worker is this process.

    Raises:
        InputError: no engine of that name; Ray is not installed, or has no cluster there.
    """
    engine = engine or os.environ.get("ENGINE") or "processes"
    kinds: dict[str, Callable[[int], Executor]] = {
        "serial": Here,
        "processes": Processes if workers > 1 else Here,
        "ray": Ray,
    }
    if engine not in kinds:
        raise wrong("ENGINE", engine, f"one of {', '.join(kinds)}")
    return kinds[engine](workers)


@dataclass(frozen=True)
class Job:
    """What to do with a task. What is pickled, `do` and `busy`, must have names."""

    do: Callable[[Any], object]
    work: Callable[[Any], float]  # predicted seconds
    label: Callable[[Any], str] = str  # a few words, for progress and errors
    busy: Callable[[Any], bool] | None = None  # whether another process is on it


def attempt(do: Callable, busy: Callable | None, task: Any) -> None:
    """Do it, unless another process began it while a worker started, which takes seconds."""
    if busy and busy(task):
        raise Taken
    do(task)


def forgiven(label: str, times: int) -> Exception:
    """What becomes of a task whose process was killed so often: it waits again, or is given up."""
    if times <= RETRIES:
        say(f"{label}: its process was killed; again ({times} of {RETRIES})")
        return Taken()
    return Lost(
        f"{label}: its process was killed, and {RETRIES} times again, likely for want of memory: "
        "run fewer side by side (WORKERS=...)"
    )


def run(
    tasks: Mapping[Any, Iterable[Any]],
    job: Job,
    progress: Progress | None = None,
    workers: int | None = None,
    pool: Executor | None = None,
) -> None:
    """Do every task of `tasks` (task -> the tasks it needs; others count as done).

    A failed task stops only those that need it. When all that can run has run, the first error is
    raised. On a full disk nothing more begins. A task that another process is on begins once it is
    free, and then finds its result made.
    """
    if not tasks:
        return
    workers = min(workers or default_workers(), len(tasks))
    bar = progress or Progress("", sum(map(job.work, tasks)), workers)
    waiting = {task: {n for n in needs if n in tasks} for task, needs in tasks.items()}
    running: dict[Future, Any] = {}
    kills: Counter[Any] = Counter()
    failures: list[BaseException] = []
    with nullcontext(pool) if pool else executor(workers) as place:
        while (ready := [task for task, needs in waiting.items() if not needs]) or running:
            for task in sorted(ready, key=lambda task: -job.work(task)):
                if len(running) < workers and not (job.busy and job.busy(task)):
                    del waiting[task]
                    running[place.submit(attempt, job.do, job.busy, task)] = task
            if not running:  # other processes are on all that is ready
                sleep(POLL)
            look = POLL if len(running) < workers else None  # one may be free by then
            for future in wait(running, look, FIRST_COMPLETED).done:
                task, error = running.pop(future), future.exception()
                error = getattr(error, "cause", error)  # Ray wraps what a task raised
                if isinstance(error, BrokenExecutor) or type(error).__module__ == "ray.exceptions":
                    kills[task] += 1
                    error = forgiven(job.label(task), kills[task])
                if isinstance(error, Taken):
                    waiting[task] = set()
                elif error:
                    failures.append(error)
                    say(f"{job.label(task)} failed: {error}")
                    if isinstance(error, Full):  # nothing more can be kept
                        waiting.clear()
                else:
                    for needs in waiting.values():
                        needs.discard(task)
                    bar.advance(job.work(task), job.label(task))
    if progress is None:
        bar.close()
    if failures:
        raise failures[0]


def say(text: str) -> None:
    """Print a line where errors go."""
    print(printable(text), file=sys.stderr, flush=True)
