"""The command line: `python -m ddlib paper laptop`, `figures`, `book`, `tune`, `run STUDY`, `plan`, `verify`, `status`, `gc`, `evaluate FILE`, `export FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ddlib.method.train import Diverged
from ddlib.runs.engine import Lost
from ddlib.settings import InputError


def main(arguments: list[str] | None = None) -> int:
    """Run one command; bad input prints one message and returns 2, and `verify` 1 where anything differs."""
    given = _parser().parse_args(arguments)

    from ddlib.runs.store import (
        FULL,
        no_room,
    )  # torch takes seconds to import: `--help` need not wait

    try:
        return _run(given)
    except (InputError, Diverged, Lost) as error:
        print(f"ddlib: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"ddlib: {no_room(error, Path(error.filename or 'a file'))}", file=sys.stderr)
    return 2


def _parser() -> argparse.ArgumentParser:
    """All commands, and what they take."""
    parser = argparse.ArgumentParser(
        prog="ddlib",
        description="The executable paper of AST: dataset distillation by trajectory matching",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("paper", "run every notebook; make what is missing"),
        ("figures", "render tables and figures again from the kept rows"),
        (
            "book",
            "make the executed notebooks, the tables and the library's reference into a static site",
        ),
        ("tune", "run the search behind the profile's tuned settings"),
        (
            "plan",
            "predict what a profile costs, here and on GPUs, before it is paid; `cells`: every cell of the paper",
        ),
        ("status", "what the store holds for a profile, and what is missing"),
        (
            "verify",
            "check what is kept: tables and figures from rows, and a sample made anew; status 1 if anything differs",
        ),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("profile", nargs="?", default="laptop")
        if name == "paper":
            command.add_argument(
                "--parameters", type=Path, help="a YAML file of notebook parameters"
            )
            command.add_argument(
                "--notebook", action="append", help="only this one (may be repeated)"
            )
        if name == "verify":
            command.add_argument("--quick", action="store_true", help="make no sample anew")
    command = commands.add_parser("run", help="make what a study is read from, and no notebook")
    command.add_argument(
        "study", help="its name, or `all`: every study but `tuning`, the search for settings"
    )
    command.add_argument("--profile", default="laptop")
    command.add_argument(
        "--shard",
        metavar="i/n",
        help="only the i-th of n parts: a member of a batch system's array, over one store",
    )
    command = commands.add_parser("gc", help="show what no profile needs, and remove it once asked")
    command.add_argument(
        "profile",
        nargs="*",
        help="profiles of your own whose artefacts stay too; those of the library's always do",
    )
    command.add_argument("--yes", action="store_true", help="remove without asking")
    _borders(commands)
    return parser


def _run(given: argparse.Namespace) -> int:
    """The command that was given; its exit status."""
    from ddlib import interop as trade
    from ddlib.paper import book, verify
    from ddlib.paper import build as press
    from ddlib.runs import plan
    from ddlib.runs import status as upkeep

    if given.command == "paper":
        press.paper(given.profile, given.parameters, given.notebook)
    elif given.command == "figures":
        press.figures(given.profile)
    elif given.command == "book":
        print(f"Open {book.make(given.profile)}")
    elif given.command == "tune":
        press.tune(given.profile)
    elif given.command == "run":
        press.run(given.study, given.profile, given.shard)
    elif given.command == "plan":
        press.cells() if given.profile == "cells" else plan.report(given.profile)
    elif given.command == "verify":
        return 0 if verify.verify(given.profile, given.quick) else 1
    elif given.command == "status":
        upkeep.status(given.profile)
    elif given.command == "gc":
        upkeep.gc(given.profile, given.yes)
    elif given.command == "evaluate":
        said = trade.Words(
            given.data, given.lr, given.whitening, given.labels, given.width, given.depth
        )
        trade.evaluate_file(given.file, given.networks, given.epochs, said)
    elif given.what == "experts":
        trade.export_experts(given.profile, given.recipe, given.to, given.cell)
    else:
        trade.export_set(Path(given.what), given.to, given.form)
    return 0


def _borders(commands: argparse._SubParsersAction) -> None:
    """The commands for sets and experts that come and go."""
    command = commands.add_parser(
        "evaluate",
        help="train fresh networks on a distilled set: one of ours, or images in a stranger's .pt",
    )
    command.add_argument("file", type=Path, help="set.safetensors, or images_*.pt")
    command.add_argument("--networks", type=int, default=5, help="how many; 5")
    command.add_argument("--epochs", type=int, default=300, help="that each is trained for; 300")
    theirs = command.add_argument_group(
        "about a stranger's images, where their file does not say it"
    )
    theirs.add_argument("--data", help="what they were distilled from, as profiles name it")
    theirs.add_argument(
        "--whitening",
        choices=("none", "zca", "mtt", "mtt-zca"),
        help="their space: ours without or with ZCA, or that of MTT's code",
    )
    theirs.add_argument("--lr", type=float, help="to train with; else lr_*.pt beside the images")
    theirs.add_argument(
        "--labels", type=Path, help="their file; else labels_*.pt beside the images"
    )
    theirs.add_argument("--width", type=int, help="of the convnet that is trained; 128")
    theirs.add_argument(
        "--depth", type=int, help="of that convnet; 3 up to 32 pixels, 4 up to 64, else 5"
    )
    command = commands.add_parser(
        "export",
        help="write a set, or a recipe's experts, as .pt files in the form of MTT's code; a set in others, too",
    )
    command.add_argument("what", help="a set's file, or `experts`")
    command.add_argument("--to", type=Path, required=True, help="the folder to write into")
    forms = "for MTT's code; for DD-Ranking (images.pt, labels.pt, lr.pt); PNGs by class with a CSV; a folder for Hugging Face's datasets, with a card"
    command.add_argument(
        "--form",
        choices=("mtt", "ddranking", "png", "datasets"),
        default="mtt",
        help=f"of a set: {forms}",
    )
    command.add_argument("--profile", default="laptop", help="whose experts")
    command.add_argument("--recipe", default="sgd", help="which of them")
    command.add_argument("--cell", help="on whose data; the profile's first")


if __name__ == "__main__":
    sys.exit(main())
