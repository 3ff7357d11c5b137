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

Options = argparse.Namespace
Argument = tuple[str, dict[str, Any]]  # what argparse's `add_argument` takes


def _call(place: str, names: str = "profile") -> Callable[[Options], Any]:
    """Call `module:function` with the options of these names.

    It is imported when it is called: torch takes seconds, and `--help` should not wait for it.
    """
    module, function = place.split(":")

    def run(options: Options) -> Any:
        values = [getattr(options, name) for name in names.split()]
        return getattr(import_module(f"ddlib.{module}"), function)(*values)

    return run


def _plan(options: Options) -> None:
    if options.profile == "cells":
        _call("paper.pages:cells", "")(options)
    else:
        _call("runs.cost:report")(options)


def _book(options: Options) -> None:
    print(f"Open {_call('paper.book:make')(options)}")


def _verify(options: Options) -> int:
    return 0 if _call("paper.verify:verify", "profile quick")(options) else 1


def _evaluate(options: Options) -> None:
    from ddlib import interop

    about = {name: getattr(options, name) for name in interop.About._fields}
    interop.evaluate_file(options.file, options.networks, options.epochs, interop.About(**about))


def _fetch(options: Options) -> None:
    from ddlib.data.fetch import fetch
    from ddlib.runs.store import store_folder

    real = fetch(options.name, store_folder())
    train, val, test = (len(y) for y in (real.y_train, real.y_val, real.y_test))
    print(
        f"{options.name} is in {store_folder() / 'data'}: of {real.classes} classes {train} images "
        f"train, {val} validate and {test} test"
    )


def _export(options: Options) -> None:
    if options.what == "experts":
        _call("interop:export_experts", "profile recipe to cell force")(options)
    else:
        _call("interop:export_set", "what to form force")(options)


def _show(options: Options) -> None:
    from ddlib.base import InputError, Task
    from ddlib.runs import methods
    from ddlib.runs.profile import profile

    chosen = profile(options.profile)
    cell = options.cell or chosen.main_cell
    if cell not in chosen.cells:
        raise InputError(f"no cell '{cell}': expected one of {', '.join(chosen.cells)}")
    for name, value, origin in methods.origins(chosen, cell, options.method):
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
    _arg("--lr", "for a .pt file: to train with; default: lr_*.pt beside it", type=float),
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
        "of a set: .pt files for MTT's code or DD-Ranking, PNGs, or a folder for Hugging Face",
        choices=("mtt", "ddranking", "png", "datasets"),
        default="mtt",
    ),
    _arg("--force", "replace files of other content", action="store_true"),
    OF_PROFILE,
    _arg("--recipe", "of the experts; default: sgd", default="sgd"),
    CELL,
]
COMMANDS: dict[str, tuple[str, list[Argument], Callable[[Options], Any]]] = {
    "paper": (
        "run every notebook; make what is missing",
        PAPER,
        _call("paper.build:paper", "profile parameters notebook"),
    ),
    "figures": ("draw tables and figures again", [PROFILE], _call("paper.build:figures")),
    "readme": ("put the tables into the README and the guide", [], _call("paper.pages:readme", "")),
    "book": ("make a static site of the executed notebooks and the reference", [PROFILE], _book),
    "tune": ("run the search behind the tuned settings", [PROFILE], _call("paper.build:tune")),
    "plan": ("predict what a profile costs; `plan cells`: all of the paper", [PROFILE], _plan),
    "status": ("show what the store holds for a profile", [PROFILE], _call("runs.status:status")),
    "verify": (
        "check kept results and make a sample anew; status 1 if anything differs",
        [PROFILE, _arg("--quick", "make no sample anew", action="store_true")],
        _verify,
    ),
    "run": (
        "make the results of a study, without notebooks",
        [STUDY, OF_PROFILE],
        _call("paper.build:run", "study profile"),
    ),
    "gc": ("remove what no profile needs", GC, _call("runs.status:gc", "profile yes")),
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
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError):  # a notebook's
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    try:
        Path.home()
    except (RuntimeError, KeyError):  # a user without an entry, in a container
        os.environ["HOME"] = tempfile.mkdtemp(prefix="ddlib-home-")
    for stop in (signal.SIGINT, signal.SIGTERM):  # a shell may have had the first ignored
        with suppress(ValueError):  # not in the main thread
            signal.signal(stop, _interrupt)
    try:
        return COMMANDS[options.command][2](options) or 0
    except BrokenPipeError:  # what reads the output has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        message, status = STOPPED, 130
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
