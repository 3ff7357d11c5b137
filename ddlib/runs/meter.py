"""What making an artefact costs: seconds by the clock and of the processor, and the most memory that the process held meanwhile.

Such numbers differ from run to run, so no artefact holds them: they are noted beside it (`Store.note`). Memory is all that the process holds, the libraries'
own hundreds of megabytes and what its heap kept of tasks before it included: a bound on what the task needs, while `measure` tells what one thing alone takes.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path


def memory(line: str) -> float:
    """`VmRSS` (held now) or `VmHWM` (the most held since the last `reset`), in megabytes; Linux only."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{line}:")[1].split()[0]) / 1024


def reset() -> None:
    """Count the most that is held from now on; Linux only."""
    Path("/proc/self/clear_refs").write_text("5")


class Meter:
    """Runs from when it is made, on top of what earlier runs of the task had `spent` when they were last kept."""

    def __init__(self, spent: dict | None = None):
        self.spent = spent or {
            "seconds": 0.0,
            "processor_seconds": 0.0,
            "megabytes": None,
            "runs": 0,
        }
        self.began, self.worked = time.monotonic(), time.process_time()
        with suppress(OSError):  # then it is the most that the process ever held
            reset()

    def read(self) -> dict:
        """`seconds`, `processor_seconds` (of all threads), `megabytes` (the largest of any run; None where the system does not tell) and `runs`."""
        peaks = [self.spent["megabytes"]]
        with suppress(OSError, IndexError):
            peaks.append(memory("VmHWM"))
        return {
            "seconds": self.spent["seconds"] + time.monotonic() - self.began,
            "processor_seconds": self.spent["processor_seconds"]
            + time.process_time()
            - self.worked,
            "megabytes": max((peak for peak in peaks if peak is not None), default=None),
            "runs": self.spent["runs"] + 1,
        }
