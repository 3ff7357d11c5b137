"""One living process at a time: locks over a folder that several processes share.

A lock is a file that its holder has locked (flock) and touches every BEAT seconds. The kernel frees it when the holder dies, however it dies. Where nothing
tells of an end (a stopped process, a lost machine behind a network file system) those who wait go on without it after SILENCE seconds, and where a file
system knows no locks nobody waits: two may then do the same, which costs time and nothing else, for files are written whole.

A lock's file is removed by its holder while it holds it. Another that had opened it by then gets a lock on a file without a name; it sees that and tries again,
so two never hold locks on two files of one name.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

BEAT = 5.0  # seconds between two signs of life
SILENCE = 30.0  # seconds without one after which nobody waits any longer
LOOK = 0.2  # seconds between two tries
NO_LOCK = -1  # instead of a file's descriptor, where a file cannot be locked
YOUNG, OLD = (
    60.0,
    86400.0,
)  # seconds: an unlocked half file younger than the one may be about to be locked; without locks, age alone tells


def take(file: Path) -> int | None:
    """The descriptor of `file`, made where it is not there and locked; None while another process holds it; NO_LOCK where that cannot be told."""
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError:  # no room, or not ours to write: what is written next says so better
            return NO_LOCK
        if (free := lock_now(handle)) is not True:
            os.close(handle)
            return None if free is False else NO_LOCK
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.stat(file)):
                return handle
        os.close(handle)


def lock_now(handle: int) -> bool | None:
    """Whether the open file is now locked here; None where its file system knows no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def drop(file: Path, handle: int) -> None:
    """Let go of what `take` gave."""
    if handle != NO_LOCK:
        file.unlink(missing_ok=True)
        os.close(handle)


def note(file: Path) -> dict[str, Any]:
    """What the holder says of itself: process, machine, what it does and the keys of the artefacts that it reads; empty where it says nothing."""
    try:
        said = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def holder(file: Path) -> dict[str, Any] | None:
    """The note of the living process that holds this lock; None where it is free."""
    try:
        handle = os.open(file, os.O_RDWR)
    except OSError:
        return None
    try:
        return note(file) if lock_now(handle) is False else None
    finally:
        os.close(handle)


def wait(file: Path, what: str) -> int:
    """`take`, once it can be had, or NO_LOCK once its holder gives no more signs of life."""
    beat, since, tries = None, time.monotonic(), 0
    while (handle := take(file)) is None:
        about, tries = note(file), tries + 1
        who = f"process {about.get('pid', '?')} on {about.get('host', '?')}"
        if tries == 2:  # at the first it may only have been looked at
            print(f"{what}: waits for {who}, which is on it", file=sys.stderr, flush=True)
        with suppress(FileNotFoundError):
            if (last := file.stat().st_mtime_ns) != beat:
                beat, since = last, time.monotonic()
        if time.monotonic() - since > SILENCE:
            print(
                f"{what}: no sign of life from {who} for {SILENCE:.0f} s; goes on without it",
                file=sys.stderr,
                flush=True,
            )
            return NO_LOCK
        time.sleep(LOOK)
    return handle


@contextmanager
def lock(file: Path, what: str, reads: Iterable[str] = ()) -> Iterator[None]:
    """Inside, this process alone is on `what`, among the living; it says in the file what it does and which artefacts it reads, by their keys."""
    handle, over = wait(file, what), threading.Event()
    if handle == NO_LOCK:
        yield
        return

    def live() -> None:
        while not over.wait(BEAT):
            with suppress(OSError):
                os.utime(handle)

    pulse = threading.Thread(target=live, daemon=True)
    try:
        with suppress(OSError):  # a full disk has room for no note
            os.ftruncate(handle, 0)
            os.write(
                handle,
                json.dumps(
                    {
                        "pid": os.getpid(),
                        "host": socket.gethostname(),
                        "what": what,
                        "reads": list(reads),
                    }
                ).encode(),
            )
        pulse.start()
        yield
    finally:
        over.set()
        pulse.join()
        drop(file, handle)


def abandoned(half: Path) -> bool:
    """Whether the process that was writing this half file has ended: a living one has it locked."""
    with suppress(FileNotFoundError):
        age = time.time() - half.stat().st_mtime
        with half.open("rb") as held:
            free = lock_now(held.fileno())
        return age > OLD if free is None else free and age > YOUNG
    return False
