"""What a paper leaves in `results/<profile>/`: rows, and the tables and figures that are functions of rows.

rows/*.csv hold one line a network (or an epoch, or an iteration), sets/*.safetensors the distilled images; tables and figures can
always be rendered again from them.
"""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from ddlib.runs.store import Artefact, read, write_whole
from ddlib.settings import InputError


def in_reading_order(rows: pd.DataFrame) -> list[str]:
    """The methods of rows as the cell with most of them lists them, then those that it lacks."""
    cells = [list(mine.method.unique()) for _, mine in rows.groupby("cell", sort=False)]
    return list(
        dict.fromkeys(
            method for methods in sorted(cells, key=len, reverse=True) for method in methods
        )
    )


class NoRows(InputError):
    """A study was not run, or before its rows were kept."""


class Results:
    """The folder of one profile's results."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder)

    def rows(self, name: str) -> pd.DataFrame:
        """The rows of that study.

        Raises:
            NoRows: they were not made yet.
        """
        file = self.folder / "rows" / f"{name}.csv"
        if not file.exists():
            raise NoRows(
                f"no rows in {file}, where a study keeps them: run `make paper PROFILE={self.folder.name}` first, or the notebook that makes them"
            )
        return pd.read_csv(file)

    def has_rows(self, name: str) -> bool:
        """Whether that study was run."""
        return (self.folder / "rows" / f"{name}.csv").exists()

    def keep_rows(self, name: str, rows: pd.DataFrame) -> pd.DataFrame:
        """Write rows, and return them as a reader will find them."""
        write_whole(
            self.folder / "rows" / f"{name}.csv",
            rows.to_csv(index=False, lineterminator="\n").encode(),
        )
        return self.rows(name)

    def set_file(self, cell: str, method: str, seed: int) -> Path:
        """Where a set is kept: sets/mnist_5k-ipc1.ast.0.safetensors; AST+ is ast_plus, MTT + inner momentum mtt_inner_momentum."""
        plain = re.sub(r"\W+", "_", re.sub(r"(?<=\w)\+", " plus", method.lower())).strip("_")
        return self.folder / "sets" / f"{cell}.{plain}.{seed}.safetensors"

    def set(self, cell: str, method: str, seed: int = 0) -> Artefact:
        """A kept set: images (n, c, h, w) in the network's space, labels (n,), the learned lr in the record."""
        return read(self.set_file(cell, method, seed))

    def keep_table(self, name: str, table: pd.DataFrame) -> None:
        """tables/<name>.csv and .md; numbers in Markdown as they are in the table."""
        write_whole(
            self.folder / "tables" / f"{name}.csv",
            table.to_csv(index=False, lineterminator="\n").encode(),
        )
        shown = table.astype(object).where(table.notna(), "")
        text = shown.to_markdown(index=False, floatfmt=".4g") + "\n"
        write_whole(self.folder / "tables" / f"{name}.md", text.encode())

    def keep_ledger(self, text: str) -> None:
        """claims.md: the claims with all that was measured of them."""
        write_whole(self.folder / "claims.md", text.encode())

    def keep_figure(self, name: str, figure: Figure) -> None:
        """figures/<name>.svg and .png, the same bytes from the same rows."""
        for kind, about in (("svg", {"Date": None, "Creator": None}), ("png", {"Software": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=150, bbox_inches="tight", metadata=about)
            write_whole(self.folder / "figures" / f"{name}.{kind}", buffer.getvalue())

    def keep_film(self, content: bytes) -> bytes:
        """figures/film.gif."""
        write_whole(self.folder / "figures" / "film.gif", content)
        return content

    def machine(self) -> dict | None:
        """The machine that made what is kept, if that was written down."""
        file = self.folder / "machine.json"
        return json.loads(file.read_text()) if file.exists() else None

    def keep_machine(self, about: dict) -> None:
        """machine.json: what made the results."""
        write_whole(self.folder / "machine.json", (json.dumps(about, indent=2) + "\n").encode())
