"""Processes that are killed for real, and the stores that they leave."""

import os
import signal
from multiprocessing import get_context

from ddlib.runs import run
from ddlib.runs.store import Store


def in_a_child(do) -> int:
    """The exit status of a forked child that does it: minus the signal that ended it."""
    child = get_context("fork").Process(target=do)
    child.start()
    child.join(120)
    return child.exitcode


def dies_at(write: int, half: bool = False) -> None:
    """Let this process be killed by its n-th write: after it, or, `half`, before it has a name."""
    replace, seen = os.replace, []

    def deadly(source, target):
        seen.append(target)
        if len(seen) == write and half:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if len(seen) == write:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = deadly


def with_needs(settings, done, folder) -> Store:
    """A store that has what the task needs and not the task."""
    some = Store(folder)
    for other in run.missing([settings], None):
        if other != settings and done.has(other):
            some.file(other).parent.mkdir(parents=True, exist_ok=True)
            some.file(other).write_bytes(done.file(other).read_bytes())
    assert run.missing([settings], some).keys() == {settings}
    return some
