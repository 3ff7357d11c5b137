"""`make soak`: kill a small paper at random instants and start it again, until it is done; then
compare every byte with one that was left alone.

    python tests/soak.py [KILLS] [--seed N] [--keep FOLDER] [--quick]

A journey fills an empty folder by `ddlib run all` and `ddlib paper` with two notebooks, in turn
first the one and first the other; a quick one by one study alone. Every start is a process of its
own, forked from this one so that it need not import all anew, and takes the next engine; every kill
is a SIGKILL of the whole process group, or of the parent alone, whose children must then end by
themselves. It comes at an instant drawn from the seed: after the first work that is seen, or
sooner, or as soon as a file is being written. Each process notes what it does in a file, so that it
can be said what a kill hit and what was done again because of it.
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
from dataclasses import dataclass, field
from multiprocessing import Process, get_context
from pathlib import Path

import yaml

HOME = Path(__file__).resolve().parent.parent
INTERVAL = 0.2  # seconds between checkpoints, so that a small task has several
SPAN = {"run": 1.2, "paper": 4.0}  # seconds after the first work within which most kills come
# seconds from the start within which the early ones come: settings, the data set, workers that are
# not up yet
STARTING = 3.0
MOST = {
    "run": 16,
    "paper": 6,
    # kills of one command in one journey: `paper` only ends if it is left alone for all its notebooks  # noqa: E501
}
PATIENCE = 300.0  # seconds
NOTEBOOKS = ("02_experts", "08_ablations")
MOMENTUM = {"optimiser": "momentum", "lr": 0.01, "batch": 128, "epochs": 4}
RAMP = {"ramp": "loss", "ramp_epochs": 2}
PENALTY = {"penalty": "per_sample", "penalty_weight": 0.1}
TUNED = {"lr_images": 30.0, "a0": 0.01, "lr_lr": 1e-6}
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
    "evaluation": {"networks": 2, "epochs": 60, "factors": [0.3, 1.0], "looks": 2},
    "cells": {
        "digits-ipc1": {
            "data": {"name": "digits"},
            "ipc": 1,
            "methods": ["random", "k-means", "MTT", "AST"],
            "student": {
                "inner_steps": 4,
                "matched_epochs": 2,
                "start_epochs": 2,
                "iterations": 12,
                "checks": 2,
                "check_epochs": 40,
            },
            "tuned": {"MTT": TUNED | {"a0": 0.05}, "AST": TUNED},
        }
    },
    "ablation": {"cell": "digits-ipc1", "networks": 1},
    "cross_architecture": {
        "cells": ["digits-ipc1"],
        "methods": ["AST"],
        "seeds": 1,
        "networks": [{"architecture": "convnet", "width": 4, "depth": 2}],
        "evaluation": {"networks": 1, "epochs": 10, "factors": [1.0]},
    },
    "ceiling": {"lr": 0.01, "evaluation": {"epochs": 4, "networks": 1, "factors": [1.0]}},
}


# --- in the processes that are killed ---


def install(trace: str) -> None:
    """Have this process note what it does: a line when a piece of work begins and ends, and one
    when an epoch or an outer iteration is done."""
    from ddlib.method import continual, evaluate, experts
    from ddlib.runs import stages as pipeline
    from ddlib.runs import store

    out = os.open(trace, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    task = []

    def note(*words: object) -> None:
        os.write(
            out, (" ".join(map(str, (os.getpid(), f"{time.time():.3f}", *words))) + "\n").encode()
        )

    def around(what, function, name):
        def noted(*given, **named):
            note("begin", what, name(*given))
            result = function(*given, **named)
            note("end", what, name(*given))
            return result

        return noted

    def each(generator, name):
        def noted(*given):
            for one in generator(*given):
                note("unit", *task[-1:], name(one, *given))
                yield one

        return noted

    def making(make):
        def noted(settings, folder):
            task.append(pipeline.key(settings))
            try:
                around(settings.stage, make, lambda *_: task[-1])(settings, folder)
            finally:
                task.pop()

        return noted

    pipeline.MAKE = {kind: making(make) for kind, make in pipeline.MAKE.items()}
    pipeline.score = around("look", pipeline.score, lambda *_: task[-1])
    pipeline.distil = each(pipeline.distil, lambda step, *_: f"iteration-{step.state.iteration}")
    for module in (experts, evaluate, continual):
        module.fit = each(
            module.fit,
            lambda epoch, flat, theta, x, y, recipe, seed, *_: (
                f"{seed[1]}-{seed[0]}-{recipe.lr:.9g}-epoch-{epoch.index}"
            ),
        )
    store.write = around("writing", store.write, lambda file, *_: file.name)
    if press := sys.modules.get("ddlib.press"):  # workers do without
        press.execute = around("notebook", press.execute, lambda notebook, *_: notebook.stem)


# --- the one that kills ---


@dataclass
class Kill:
    """One kill: how, what each process was on, the seconds until nothing was left, and what was
    done again after it, by task."""

    number: int
    how: str
    hit: list[str]
    gone: float
    again: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)


class Soak:
    """Journeys in `folder` under `profile`, all chance from `seed`."""

    def __init__(self, folder: Path, profile: dict, commands: list[list[str]], seed: int = 0):
        self.folder, self.commands, self.seed = folder, commands, seed
        self.chance, self.kills, self.starts = random.Random(seed), [], 0
        folder.mkdir(parents=True, exist_ok=True)
        self.profile = folder / "tiny.yaml"
        self.profile.write_text(yaml.safe_dump(profile, sort_keys=False))

    def start(self, home: Path, command: list[str], engine: str) -> Process:
        """`ddlib command` over this folder's store and results, noting what it does, as a process
        group of its own."""
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
            "CHECKPOINT": str(INTERVAL),
        }
        os.environ |= {"ENGINE": engine, "WORKERS": "2", "PYTHONPATH": str(HOME)}
        install(os.environ["TRACE"])
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
        engine = ("serial", "processes")[self.starts % 2]
        self.starts += 1
        begun, seen = time.time(), len(lines(home))
        running = self.start(home, command, engine)
        if lethal:
            aim = self.chance.choices(("at work", "starting", "writing"), (6, 1, 2))[0]
            delay = self.chance.uniform(
                0, {"at work": SPAN[command[0]], "starting": STARTING, "writing": 0.005}[aim]
            )
            group = self.chance.random() < 0.5
            until(
                lambda: aim == "starting" or sighted(home, seen, aim) or not running.is_alive(),
                0.001,
            )
            time.sleep(delay)
        if not lethal or not running.is_alive():
            ends(running, home)
            return False
        (os.killpg if group else os.kill)(running.pid, signal.SIGKILL)
        running.join()
        at = time.time()
        until(lambda: not alive(home), 0.01)
        how = f"{command[0]}, ENGINE={engine}, {'the group' if group else 'the parent'}, {at - begun:.2f} s after its start"  # noqa: E501
        self.kills.append(Kill(len(self.kills) + 1, how, hit(lines(home)[seen:]), time.time() - at))
        print(
            f"kill {self.kills[-1].number}: {how}: {'; '.join(self.kills[-1].hit)}; all gone after {self.kills[-1].gone:.1f} s",  # noqa: E501
            flush=True,
        )
        with (home / "trace").open("a") as trace:
            trace.write(f"0 {at:.3f} kill {self.kills[-1].number}\n")
        return True

    def differences(self, reference: Path, home: Path) -> list[str]:
        """Files that are in one only, or not the same byte for byte."""
        one, other = contents(reference), contents(home)
        return sorted(
            name for name in one.keys() | other.keys() if one.get(name) != other.get(name)
        )

    def again(self, home: Path) -> list[str]:
        """Charge every unit that was done twice to the kill before its second time; the tasks that
        were begun again though they were finished.

        A process's first unit takes no time: most of it goes into what is imported and compiled at
        the first use.
        """
        done, finished, needless, kill, last, warm = {}, set(), [], None, {}, set()
        for line in lines(home):
            pid, at, event, *words = line.split()
            if event == "kill":
                kill = self.kills[int(words[0]) - 1]
            elif event == "unit":
                if (unit := tuple(words)) in done and kill:
                    kill.again[words[0]] += 1
                    kill.seconds[words[0]] += done[unit]
                done[unit], warm = float(at) - last[pid] if pid in warm else 0.0, warm | {pid}
            elif event == "end":
                finished.add(tuple(words))
            elif (
                event == "begin"
                and words[0] not in ("writing", "look", "notebook")
                and tuple(words) in finished
            ):
                needless.append(" ".join(words))
            last[pid] = float(at)
        return needless

    def run(self, kills: int) -> bool:
        """Journeys until so many kills are survived; whether every one ended with the bytes of the
        reference."""
        print(f"seed {self.seed}, {kills} kills, a checkpoint every {INTERVAL:g} s", flush=True)
        began, number, faults = time.monotonic(), 0, []
        reference = self.undisturbed()
        print(
            f"undisturbed: {len(contents(reference))} files in {time.monotonic() - began:.0f} s",
            flush=True,
        )
        while len(self.kills) < kills:
            number += 1
            home = self.journey(number, kills - len(self.kills))
            wrong, needless = self.differences(reference, home), self.again(home)
            faults += [f"journey {number}: {name} differs" for name in wrong] + [
                f"journey {number}: done again though finished: {task}" for task in needless
            ]
            print(f"journey {number}: {len(contents(home))} files, {len(wrong)} differ", flush=True)
        self.report(number, faults, time.monotonic() - began)
        return not faults

    def report(self, journeys: int, faults: list[str], seconds: float) -> None:
        """What was hit, what it cost, and the verdict."""
        stages = Counter(stage for kill in self.kills for stage in kill.hit)
        print(
            f"\n{len(self.kills)} kills, {self.starts} starts, {journeys} journeys in {seconds:.0f} s; what the killed processes were on:"  # noqa: E501
        )
        for stage, count in stages.most_common():
            print(f"  {count:3} × {stage}")
        units = max((count for kill in self.kills for count in kill.again.values()), default=0)
        lost = max((value for kill in self.kills for value in kill.seconds.values()), default=0.0)
        print(
            f"done again after one kill, of one task: {units} epochs or outer iterations at most, {lost:.2f} s of work at most (checkpoints: every {INTERVAL:g} s)"  # noqa: E501
        )
        print(
            f"the last process of a killed run was gone after {max(kill.gone for kill in self.kills):.1f} s at most"  # noqa: E501
        )
        print("\n".join(faults) or "every file has the bytes of the undisturbed run")


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


def sighted(home: Path, seen: int, aim: str) -> bool:
    """Whether this start has begun its work, or begins to write a file."""
    new = [line.split()[2:4] for line in lines(home)[seen:]]
    return bool(new) and (aim != "writing" or new[-1] == ["begin", "writing"])


def hit(new: list[str]) -> list[str]:
    """What each process of a start was on, by what it had begun and not ended."""
    open_: dict[str, list[str]] = {}
    for pid, _, event, *words in map(str.split, new):
        mine = open_.setdefault(pid, [])
        if event == "begin":
            mine.append(words[0])
        elif event == "end":
            mine.pop()
    return sorted(", ".join(mine) if mine else "between tasks" for mine in open_.values()) or [
        "starting"
    ]


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
    """Every artefact, row, table, figure and executed notebook; what a kill left half-written has
    no name.

    Not the lock of a process that was killed between an artefact's last byte and letting go, which
    `gc` removes; not the notes of what tasks took, nor which machine made the results, which a
    paper writes if anything was left for it to make.
    """
    files = [
        file
        for part in ("store", "results")
        for file in (home / part).rglob("*")
        if file.is_file() and not file.name.startswith(".half-")
    ]
    files = [
        file
        for file in files
        if file.parent.name not in ("notes", "locks") and file.name != "machine.json"
    ]
    return {str(file.relative_to(home)): file.read_bytes() for file in files}


ALL = [
    ["run", "all", "--profile", "PROFILE"],
    ["paper", "PROFILE", *(word for name in NOTEBOOKS for word in ("--notebook", name))],
]

QUICK = [["run", "main", "--profile", "PROFILE"]]


def main() -> int:
    """0 if every journey ended with the bytes of the reference."""
    parser = argparse.ArgumentParser(
        description="Kill a small paper at random instants; it must end as if nothing had happened"
    )
    parser.add_argument("kills", nargs="?", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a new folder to work in, which stays")
    parser.add_argument("--quick", action="store_true", help="one study, and no notebook")
    given = parser.parse_args()
    import ddlib.press  # noqa: F401 (once, for all that are forked)
    import torch._dynamo  # noqa: F401 (what PyTorch imports at the first use)

    with tempfile.TemporaryDirectory() as folder:
        return (
            0
            if Soak(
                given.keep or Path(folder), PROFILE, QUICK if given.quick else ALL, given.seed
            ).run(given.kills)
            else 1
        )


if __name__ == "__mp_main__":  # a worker of one that is to be killed
    install(os.environ["TRACE"])

if __name__ == "__main__":
    sys.exit(main())
