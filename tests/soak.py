"""`make soak`: kill a small paper at random instants and start it again, until it is done.

    python tests/soak.py [KILLS] [--seed N] [--keep FOLDER] [--quick]

Then every byte is compared with a paper that was left alone. A journey fills an empty folder by
`ddlib run all` and by `ddlib paper` with two notebooks, in either order; a quick one by one study
alone. Every start is a process of its own, forked from this one so that it need not import all
anew, and every third one computes in processes. Every kill is a SIGKILL of the whole process
group, or of the parent alone, whose children must then end by themselves. It comes at an instant
drawn from the seed: while a task is at work, while the run starts, or as soon as a file is being
written. Each task notes its epochs and outer iterations (TRACK), so that work which was done again
can be counted.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing import Process, get_context
from pathlib import Path

import yaml

TESTS = Path(__file__).resolve().parent
INTERVAL = 0.2  # seconds between checkpoints, so that a small task has several
SPAN = {"run": 1.2, "paper": 4.0}  # seconds after the first work within which most kills come
STARTING = 3.0  # seconds from the start within which the early kills come
MOST = {"run": 16, "paper": 6}  # kills of one command in one journey: `paper` must end some time
PATIENCE = 300.0  # seconds
NOTEBOOKS = ("02_experts", "08_ablations")
MOMENTUM = {"optimiser": "momentum", "lr": 0.01, "batch": 128, "epochs": 4}
RAMP = {"ramp": "loss", "ramp_epochs": 2}
PENALTY = {"penalty": "per_sample", "penalty_weight": 0.1}
TUNED = {"lr_images": 30.0, "a0": 0.01, "lr_lr": 1e-6}
LOOP = {"inner_steps": 4, "matched_epochs": 2, "start_epochs": 2, "iterations": 12, "checks": 2}
PROFILE = {
    "title": "a paper to be killed",
    "network": {"architecture": "convnet", "width": 8, "depth": 2},
    "n_experts": 1,
    "seeds": 1,
    "recipes": {
        "sgd": {"optimiser": "sgd", "lr": 0.05, "batch": 128, "epochs": 4},
        "momentum": MOMENTUM,
        "adam": {"optimiser": "adam", "lr": 0.001, "batch": 128, "epochs": 4},
        "momentum_ramp": MOMENTUM | RAMP,
        "momentum_penalty": MOMENTUM | PENALTY,
        "ast": MOMENTUM | RAMP | PENALTY,
        "momentum_lr_matched": MOMENTUM | {"lr": 0.005},
        "momentum_warmup_penalty": MOMENTUM | PENALTY | {"ramp": "lr", "ramp_epochs": 2},
    },
    "evaluation": {"networks": 2, "epochs": 60, "lrs": [0.003, 0.01], "looks": 2},
    "cells": {
        "digits-ipc1": {
            "data": {"name": "digits"},
            "ipc": 1,
            "methods": ["random", "k-means", "MTT", "AST"],
            "student": LOOP | {"check_epochs": 40},
            "tuned": {"MTT": TUNED | {"a0": 0.05}, "AST": TUNED},
        }
    },
    "ablation": {"cell": "digits-ipc1", "networks": 1},
    "cross_architecture": {
        "cells": ["digits-ipc1"],
        "methods": ["AST"],
        "seeds": 1,
        "networks": [{"architecture": "convnet", "width": 4, "depth": 2}],
        "evaluation": {"networks": 1, "epochs": 10, "lrs": [0.01]},
    },
    "ceiling": {"evaluation": {"epochs": 4, "networks": 1, "lrs": [0.01]}},
}


def on_step(task, step, numbers):
    """In the processes that are killed: note an epoch or an outer iteration."""
    from ddlib.base import key

    with open(os.environ["TRACE"], "ab", buffering=0) as out:
        out.write(f"{time.time():.3f} {key(task)} {step}\n".encode())


@dataclass
class Kill:
    """One kill: how it was done, the artefacts that were there, and the seconds until all ended."""

    how: str
    finished: set[str]
    gone: float


class Soak:
    """Journeys in `folder` under `profile`, all chance from `seed`."""

    def __init__(self, folder: Path, profile: dict, commands: list[list[str]], seed: int = 0):
        self.folder, self.commands, self.seed = folder, commands, seed
        self.chance, self.kills, self.starts = random.Random(seed), [], 0
        folder.mkdir(parents=True, exist_ok=True)
        self.profile = folder / "tiny.yaml"
        self.profile.write_text(yaml.safe_dump(profile, sort_keys=False))

    def start(self, home: Path, command: list[str], engine: str) -> Process:
        """`ddlib command` over the folder's store and results, in a process group of its own."""
        running = get_context("fork").Process(target=self.child, args=(home, command, engine))
        running.start()
        return running

    def child(self, home: Path, command: list[str], engine: str) -> None:
        """In that process."""
        os.setsid()
        log = os.open(home / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.environ |= {
            "STORE": str(home / "store"),
            "RESULTS": str(home / "results"),
            "TRACE": str(home / "trace"),
            "TRACK": "soak:on_step",
            "CHECKPOINT": str(INTERVAL),
            "ENGINE": engine,
            "WORKERS": "2",
            "PYTHONPATH": f"{TESTS.parent}:{TESTS}",
        }
        from ddlib.__main__ import main

        sys.exit(main([str(self.profile) if word == "PROFILE" else word for word in command]))

    def undisturbed(self) -> Path:
        """The reference."""
        home = self.folder / "undisturbed"
        home.mkdir()
        for command in self.commands:
            ends(self.start(home, command, "serial"), home)
        return home

    def journey(self, number: int, kills: int) -> Path:
        """A folder filled under at most so many kills."""
        home = self.folder / f"journey-{number}"
        home.mkdir()
        for command in self.commands if number % 2 else self.commands[::-1]:
            left = min(kills, MOST[command[0]])
            while self.killed(home, command, left > 0):
                left, kills = left - 1, kills - 1
        return home

    def killed(self, home: Path, command: list[str], lethal: bool) -> bool:
        """Start it once, and perhaps kill it; whether it was killed."""
        engine = "processes" if self.starts % 3 == 1 else "serial"
        self.starts += 1
        began, seen = time.monotonic(), len(lines(home))
        running = self.start(home, command, engine)
        if lethal:
            aim = self.chance.choices(("at work", "starting", "writing"), (6, 1, 2))[0]
            spans = {"at work": SPAN[command[0]], "starting": STARTING, "writing": 0.005}
            delay, group = self.chance.uniform(0, spans[aim]), self.chance.random() < 0.5
            signs = {
                "at work": lambda: len(lines(home)) > seen,
                "starting": lambda: True,
                "writing": lambda: any(home.glob("*/*/.half-*")),
            }
            until(lambda: signs[aim]() or not running.is_alive(), 0.001)
            time.sleep(delay)
        if not lethal or not running.is_alive():
            ends(running, home)
            return False
        (os.killpg if group else os.kill)(running.pid, signal.SIGKILL)
        running.join()
        at = time.monotonic()
        until(lambda: not alive(home), 0.01)
        whom = "the group" if group else "the parent"
        how = f"{command[0]}, {engine}, {whom}, {aim}, {at - began:.2f} s after its start"
        finished = {file.stem for file in (home / "store").glob("[!c]*/*.safetensors")}
        with (home / "trace").open("a") as trace:
            trace.write(f"kill {len(self.kills)}\n")
        self.kills.append(Kill(how, finished, time.monotonic() - at))
        print(
            f"kill {len(self.kills)}: {how}; all ended in {self.kills[-1].gone:.1f} s", flush=True
        )
        return True

    def again(self, home: Path) -> tuple[int, list[str]]:
        """The most steps of one task that were done again after one kill; and the tasks that were
        begun again though they were finished."""
        done: set[tuple[str, str]] = set()
        repeated: Counter[tuple[int, str]] = Counter()
        needless: set[str] = set()
        last = None
        for words in map(str.split, lines(home)):
            if words[0] == "kill":
                last = int(words[1])
                continue
            _, task, step = words
            if last is not None and task in self.kills[last].finished:
                needless.add(task)
            if (task, step) in done:
                repeated[last, task] += 1
            done.add((task, step))
        return max(repeated.values(), default=0), sorted(needless)

    def run(self, kills: int) -> bool:
        """Journeys until so many kills are survived; whether all ended with the same bytes."""
        print(f"seed {self.seed}, {kills} kills, a checkpoint every {INTERVAL:g} s", flush=True)
        began, number, faults, steps = time.monotonic(), 0, [], 0
        reference = self.undisturbed()
        print(f"undisturbed: {len(contents(reference))} files in {time.monotonic() - began:.0f} s")
        while len(self.kills) < kills:
            number += 1
            home = self.journey(number, kills - len(self.kills))
            wrong, (most, needless) = differences(reference, home), self.again(home)
            steps = max(steps, most)
            faults += [f"journey {number}: {name} differs" for name in wrong]
            faults += [f"journey {number}: {task} was done, and done again" for task in needless]
            print(f"journey {number}: {len(contents(home))} files, {len(wrong)} differ", flush=True)
        seconds, gone = time.monotonic() - began, max(kill.gone for kill in self.kills)
        print(
            f"\n{len(self.kills)} kills, {self.starts} starts, {number} journeys, {seconds:.0f} s; "
            f"at most {steps} epochs or outer iterations of a task done again after a kill, and "
            f"{gone:.1f} s until the last process of a killed run had ended"
        )
        print("\n".join(faults) or "every file has the bytes of the undisturbed run")
        return not faults


def ends(running: Process, home: Path) -> None:
    """Wait for its good end."""
    running.join(PATIENCE)
    assert running.exitcode == 0, (home / "log").read_text()


def until(so, every: float) -> None:
    """Wait."""
    end = time.monotonic() + PATIENCE
    while not so():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened within {PATIENCE:.0f} s")
        time.sleep(every)


def lines(home: Path) -> list[str]:
    """All that was noted."""
    return (home / "trace").read_text().splitlines() if (home / "trace").exists() else []


def alive(home: Path) -> list[int]:
    """The processes that work on this folder, kernels too."""
    mark, found = f"STORE={home / 'store'}".encode(), []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (process / "environ").read_bytes().split(b"\0"):
                found.append(int(process.name))
        except OSError:
            continue
    return found


def contents(home: Path) -> dict[str, bytes]:
    """Every artefact, row, table, figure and executed notebook.

    Not half files, which have no name; locks and notes of what tasks took; nor which machine made
    the results, which a paper writes if anything was left for it to make, and the seal of that.
    """
    kept = {}
    for part in ("store", "results"):
        for file in (home / part).rglob("*"):
            passing = file.parent.name in ("notes", "locks") or file.name.startswith(".half-")
            if file.is_file() and not passing and file.name not in ("machine.json", "SHA256SUMS"):
                kept[str(file.relative_to(home))] = file.read_bytes()
    return kept


def differences(reference: Path, home: Path) -> list[str]:
    """Files that are in one only, or not the same byte for byte."""
    one, other = contents(reference), contents(home)
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


ALL = [
    ["run", "all", "--profile", "PROFILE"],
    ["paper", "PROFILE", *(word for name in NOTEBOOKS for word in ("--notebook", name))],
]
QUICK = [["run", "main", "--profile", "PROFILE"]]


def main() -> int:
    """0 if every journey ended with the bytes of the reference."""
    parser = argparse.ArgumentParser(description="Kill a small paper; it must not matter")
    parser.add_argument("kills", nargs="?", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder to work in, which stays")
    parser.add_argument("--quick", action="store_true", help="one study, and no notebook")
    given = parser.parse_args()
    # imported once, for all that are forked
    import torch._dynamo  # noqa: F401

    import ddlib.paper.build  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        commands = QUICK if given.quick else ALL
        soak = Soak(given.keep or Path(folder), PROFILE, commands, given.seed)
        return 0 if soak.run(given.kills) else 1


if __name__ == "__main__":
    sys.exit(main())
