"""The command line: `python -m ddlib paper laptop`, `figures`, `tune`, `run STUDY`, `plan`, `evaluate FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from .config import Refusal
from .engine import Lost
from .fit import Diverged


def main(arguments: list[str] | None = None) -> int:
    """Run one command; bad input prints one message and returns 2."""
    parser = argparse.ArgumentParser(prog="ddlib", description="The executable paper of AST: dataset distillation by trajectory matching")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, text in (
        ("paper", "run every notebook; make what is missing"),
        ("figures", "render tables and figures again from the kept rows"),
        ("tune", "run the search behind the profile's tuned settings"),
        ("plan", "predict what a profile costs, here and on GPUs, before it is paid; `cells`: every cell of the paper"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("profile", nargs="?", default="laptop")
        if name == "paper":
            command.add_argument("--parameters", type=Path, help="a YAML file of notebook parameters")
            command.add_argument("--notebook", action="append", help="only this one (may be repeated)")
    command = commands.add_parser("run", help="make what a study is read from, and no notebook")
    command.add_argument("study", help="its name, or `all`: every study but `tuning`, the search for settings")
    command.add_argument("--profile", default="laptop")
    command.add_argument("--shard", metavar="i/n", help="only the i-th of n parts: a member of a batch system's array, over one store")
    command = commands.add_parser("evaluate", help="train fresh networks on a distilled set")
    command.add_argument("file", type=Path)
    command.add_argument("--networks", type=int, default=5)
    command.add_argument("--epochs", type=int, default=300)
    given = parser.parse_args(arguments)

    from . import plan, press  # torch takes seconds to import: `--help` need not wait

    try:
        if given.command == "paper":
            press.paper(given.profile, given.parameters, given.notebook)
        elif given.command == "figures":
            press.figures(given.profile)
        elif given.command == "tune":
            press.tune(given.profile)
        elif given.command == "run":
            press.run(given.study, given.profile, given.shard)
        elif given.command == "plan":
            press.cells() if given.profile == "cells" else plan.report(given.profile)
        else:
            press.evaluate_file(given.file, given.networks, given.epochs)
    except (Refusal, Diverged, Lost) as error:
        print(f"ddlib: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
