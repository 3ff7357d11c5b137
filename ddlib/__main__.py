"""The command line: `python -m ddlib COMMAND`; `python -m ddlib --help` lists the commands."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

Argument = tuple[str, dict[str, Any]]  # what argparse's `add_argument` takes


def _call(place: str, *values: Any) -> Any:
    """Call `module:function`.

    It is imported when it is called: torch takes seconds, and `--help` should not wait for it.
    """
    module, function = place.split(":")
    return getattr(import_module(f"ddlib.{module}"), function)(*values)


def _plan(profile: str) -> None:
    _call("paper.pages:cells") if profile == "cells" else _call("runs.cost:report", profile)


def _book(profile: str, article: bool) -> None:
    print(f"Open {_call('paper.book:article' if article else 'paper.book:make', profile)}")


def _evaluate(file: Path, networks: int, epochs: int, *about: Any) -> None:
    from ddlib import interop

    interop.evaluate_file(file, networks, epochs, interop.About(*about))


def _fetch(name: str) -> None:
    from ddlib.data.fetch import fetch
    from ddlib.runs.store import store_folder

    real = fetch(name, store_folder())
    train, val, test = (len(y) for y in (real.y_train, real.y_val, real.y_test))
    print(
        f"{name} is in {store_folder() / 'data'}: of {real.classes} classes {train} images "
        f"train, {val} validate and {test} test"
    )


def _export(what: str, to: Path, form: str | None, force: bool, *of_experts: str | None) -> None:
    from ddlib.base import InputError

    experts, (profile, recipe, cell) = what == "experts", of_experts
    if any((form,) if experts else of_experts):
        theirs = "--form is for sets" if experts else "--profile, --recipe, --cell are for experts"
        raise InputError(f"{theirs}, and {what} is none: leave them out")
    if experts:
        _call("interop:export_experts", profile or "laptop", recipe or "sgd", to, cell, force)
    else:
        _call("interop:export_set", what, to, form or "mtt", force)


def _show(profile: str, method: str, cell: str | None) -> None:
    from ddlib.base import InputError, Task
    from ddlib.runs import methods
    from ddlib.runs.profile import profile as read

    chosen = read(profile)
    cell = cell or chosen.main_cell
    if cell not in chosen.cells:
        raise InputError(f"no cell '{cell}': expected one of {', '.join(chosen.cells)}")
    for name, value, origin in methods.origins(chosen, cell, method):
        print(f"{name:18} {value.title if isinstance(value, Task) else value!s:48} {origin}")


def _arg(name: str, help: str, **more: Any) -> Argument:
    return name, {"help": help, **more}


STOPPED = (
    "stopped. What is finished is kept, and so is what experts and outer loops had reached at "
    "their last checkpoint: the same command goes on from there"
)
NAME = "a profile of the library, or a YAML file of your own"
PROFILE = _arg("profile", f"{NAME}; default: laptop", nargs="?", default="laptop")
OF_PROFILE = _arg("--profile", f"{NAME}; default: laptop", default="laptop")
CELL = _arg("--cell", "a cell of the profile; default: its first")
PAPER = [
    PROFILE,
    _arg("--parameters", "a YAML file of notebook parameters", type=Path),
    _arg("--notebook", "only this one (may be repeated)", action="append"),
]
GC = [
    _arg("profile", "profiles of your own, whose results stay too", nargs="*"),
    _arg("--yes", "remove without asking", action="store_true"),
]
STUDY = _arg("study", "its name, or `all`: every study but `tuning`")
ABOUT = [  # a stranger's images
    _arg("--data", "for a .pt file: the data set that it was distilled from"),
    _arg(
        "--lr", "for a .pt file: to train with; default: the best on validation images", type=float
    ),
    _arg("--whitening", "for a .pt file: its space", choices=("none", "zca", "mtt", "mtt-zca")),
    _arg("--labels", "for a .pt file: their file; default: labels_*.pt beside it", type=Path),
    _arg("--width", "for a .pt file: of the ConvNet; default: 128", type=int),
    _arg("--depth", "for a .pt file: of the ConvNet; default: by the images' size", type=int),
]
EVALUATE = [
    _arg("file", "set.safetensors, or images_*.pt", type=Path),
    _arg("--networks", "how many; default: 5", type=int, default=5),
    _arg("--epochs", "that each is trained for; default: 300", type=int, default=300),
    *ABOUT,
]
EXPORT = [
    _arg("what", "the file of a set, or `experts`"),
    _arg("--to", "the folder to write into", type=Path, required=True),
    _arg(
        "--form",
        "of a set: .pt files for MTT's code (the default) or DD-Ranking, PNGs, or a folder for "
        "Hugging Face",
        choices=("mtt", "ddranking", "png", "datasets"),
    ),
    _arg("--force", "replace files of other content", action="store_true"),
    _arg("--profile", f"of the experts, {NAME}; default: laptop"),
    _arg("--recipe", "of the experts; default: sgd"),
    CELL,
]
# What a command does, its arguments, and the function that takes their values in this order; where
# that returns False the exit status is 1.
COMMANDS: dict[str, tuple[str, list[Argument], str | Callable[..., Any]]] = {
    "paper": ("run every notebook; make what is missing", PAPER, "paper.build:paper"),
    "figures": ("draw tables and figures again", [PROFILE], "paper.build:figures"),
    "readme": ("put the tables into the README and the guide", [], "paper.pages:readme"),
    "book": (
        "make a static site of the executed notebooks and the reference",
        [PROFILE, _arg("--article", "a PDF of the notebooks without code", action="store_true")],
        _book,
    ),
    "tune": ("run the search behind the tuned settings", [PROFILE], "paper.build:tune"),
    "plan": ("predict what a profile costs; `plan cells`: all of the paper", [PROFILE], _plan),
    "status": ("show what the store holds for a profile", [PROFILE], "runs.status:status"),
    "verify": (
        "check kept results and make a sample anew; status 1 if anything differs",
        [PROFILE, _arg("--quick", "make no sample anew", action="store_true")],
        "paper.verify:verify",
    ),
    "run": (
        "make the results of a study, without notebooks",
        [STUDY, OF_PROFILE],
        "paper.build:run",
    ),
    "gc": ("remove what no profile needs", GC, "runs.status:gc"),
    "fetch": (
        "bring a data set that has to be downloaded into the store",
        [_arg("name", "for example fashion_mnist")],
        _fetch,
    ),
    "evaluate": (
        "train fresh networks on a distilled set, one of ours or a stranger's .pt file",
        EVALUATE,
        _evaluate,
    ),
    "export": ("write a set, or a recipe's experts, for other code", EXPORT, _export),
    "show": (
        "print the numbers in force for a method, and where each comes from",
        [_arg("profile", NAME), _arg("method", "for example AST"), CELL],
        _show,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command; its exit status. An error prints one message and returns 2.

    With DDLIB_DEBUG=1 in the environment its traceback comes first.
    """
    parser = argparse.ArgumentParser(
        prog="ddlib",
        description="Dataset distillation by trajectory matching: the executable paper of AST",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, (words, takes, _) in COMMANDS.items():
        command = commands.add_parser(name, help=words, description=words)
        for argument, more in takes:
            command.add_argument(argument, **more)
    options = vars(parser.parse_args(arguments))
    _, takes, does = COMMANDS[options["command"]]
    values = [options[name.removeprefix("--")] for name, _ in takes]
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a notebook's
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    if sys.flags.optimize > 1:
        parser.error("python -OO takes out the docstrings that tables show: use python -O, or none")
    try:
        Path.home()
    except (RuntimeError, KeyError):  # a user without an entry, in a container
        os.environ["HOME"] = tempfile.mkdtemp(prefix="ddlib-home-")
    for stop in (signal.SIGINT, signal.SIGTERM):  # a shell may have had the first ignored
        with suppress(ValueError):  # not in the main thread
            signal.signal(stop, _interrupt)
    try:
        return int((_call(does, *values) if isinstance(does, str) else does(*values)) is False)
    except BrokenPipeError:  # what reads the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        keeps = options["command"] not in ("verify", "evaluate")
        message, status = STOPPED if keeps else "stopped; nothing of it is kept", 130
    except Exception as error:
        message, status = _message(error), 2
        if os.environ.get("DDLIB_DEBUG") == "1":
            traceback.print_exc()
    from ddlib.base import printable

    print(f"ddlib: {printable(message)}", file=sys.stderr)
    return status


def _interrupt(*_: object) -> None:
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.SIG_IGN)  # once is enough, and ending takes a moment
    raise KeyboardInterrupt


def _message(error: Exception) -> str:
    """An error in one message."""
    from ddlib.base import InputError
    from ddlib.files import trouble
    from ddlib.method.train import Diverged
    from ddlib.runs.engine import Lost

    if isinstance(error, InputError | Diverged | Lost):
        return str(error)
    if isinstance(error, OSError):
        return trouble(error)
    words = (str(error).strip().splitlines() or [""])[0]
    return (
        f"an error that was not foreseen: {type(error).__name__}: {words[:300]}. What is finished "
        "is kept. DDLIB_DEBUG=1 in the environment shows where it came from; please report it"
    )


if __name__ == "__main__":
    sys.exit(main())
