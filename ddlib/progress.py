"""How far a task is, and how long the rest takes."""

from __future__ import annotations

import sys
import time

from tqdm.auto import tqdm

PRIOR = 100.0  # seconds of predicted work after which the measured pace outweighs the predicted one


def clock(seconds: float) -> str:
    """1 h 02 min, 3 min 20 s, 12 s."""
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {left:02} s" if minutes else f"{left} s"


class Progress:
    """Work done, in seconds of predicted work: a bar in a terminal or notebook, lines in a log."""

    def __init__(self, title: str, total: float, workers: int = 1, every: float = 15.0):
        self.title, self.total, self.workers, self.every = title, total, workers, every
        self.done, self.began, self.spoke = 0.0, time.monotonic(), time.monotonic()
        self.bar = None
        if sys.stderr.isatty() or "ipykernel" in sys.modules:
            form = "{desc} |{bar}| {percentage:.0f} % {postfix}"
            self.bar = tqdm(total=round(total), bar_format=form, leave=False)

    def left(self) -> float:
        """Seconds to go: the rest of the work at the predicted pace, later at the measured one."""
        pace = (time.monotonic() - self.began + PRIOR / self.workers) / (self.done + PRIOR)
        return pace * (self.total - self.done)

    def advance(self, work: float, text: str) -> None:
        """Count `work` predicted seconds as done; `text` says what they were."""
        self.done += work
        left = f"{clock(self.left())} left"
        if self.bar is not None:
            self.bar.set_description_str(f"{self.title} · {text}" if self.title else text)
            self.bar.set_postfix_str(left)
            self.bar.update(round(self.done) - self.bar.n)
        elif time.monotonic() - self.spoke > self.every or self.done >= self.total - 1e-9:
            self.spoke = time.monotonic()
            words = (self.title, f"{self.done / self.total:4.0%}", left, text)
            print(" · ".join(filter(None, words)), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Remove the bar."""
        if self.bar is not None:
            self.bar.close()
