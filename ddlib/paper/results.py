"""What a paper leaves in `results/<profile>/`: rows, distilled sets, tables and figures.

rows/*.csv hold one line per network (or epoch, or iteration; these are packed), sets/*.safetensors
the distilled images. Tables and figures are functions of these, and can always be rendered again.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import zlib
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from ddlib.files import write_whole
from ddlib.runs.store import Artefact, read
from ddlib.settings import InputError

SEALS = "SHA256SUMS"
UNFINISHED = re.compile(r"^\.half-|\.failed\.ipynb$")  # files of a run that failed, or goes on
SET = ["cell", "method", "distil_seed"]  # the columns that name a distilled set
DIGESTS = [*SET, "sha256", "lr"]
KINDS: dict[str, dict] = {  # of a kept figure, and what would tell when or by whom it was written
    "svg": {"Date": None, "Creator": None},
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "png": {"Software": None},
}


PACKED = ("curves",)  # studies of so many rows that their file is compressed


def rows_file(study: str) -> str:
    """Where the rows of a study are kept: rows/main.csv, rows/curves.csv.gz."""
    return f"rows/{study}.csv{'.gz' * (study in PACKED)}"


class NoRows(InputError):
    """A study was not run, or its rows were not kept."""


class Results:
    """The folder of one profile's results; what it lacks is read from another one `behind` it.

    Of a file that is in both the newer one is read.
    """

    kinds = tuple(KINDS)  # the files that a figure is kept as

    def __init__(self, folder: Path | str, behind: Path | None = None):
        self.folder, self.behind = Path(folder), behind

    def file(self, path: str) -> Path:
        """Where a kept file is read."""
        here = self.folder / path
        there = self.behind / path if self.behind else here
        newer = here.exists() and there.exists() and there.stat().st_mtime > here.stat().st_mtime
        return there if newer or (there.exists() and not here.exists()) else here

    def rows(self, name: str) -> pd.DataFrame:
        """The rows of a study; raises NoRows where they were not made yet."""
        file = self.file(rows_file(name))
        if not file.is_file():
            raise NoRows(
                f"no rows in {file}, where a study keeps them: run `make paper "
                f"PROFILE={self.folder.name}` first, or the notebook that makes them"
            )
        try:
            return pd.read_csv(file, float_precision="round_trip")
        except (ValueError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(
                f"{file} is no table of rows ({str(error).strip()}): take a sound copy, or run "
                f"`make paper PROFILE={self.folder.name}` again"
            ) from None

    def has_rows(self, name: str) -> bool:
        """Whether a study was run."""
        return self.file(rows_file(name)).is_file()

    def keep_rows(self, name: str, rows: pd.DataFrame) -> pd.DataFrame:
        """Write rows, and return them as a reader will find them; a study may have none."""
        if rows.empty:
            (self.folder / rows_file(name)).unlink(missing_ok=True)
            return rows
        self._write_csv(rows_file(name), rows)
        return self.rows(name)

    def write(self, path: str, content: str | bytes) -> None:
        """Keep a file."""
        write_whole(self.folder / path, content.encode() if isinstance(content, str) else content)

    def set_file(self, cell: str, method: str, seed: int) -> Path:
        """Where a set is kept: sets/mnist_5k-ipc1.ast.0.safetensors; AST+ becomes ast_plus."""
        plain = re.sub(r"\W+", "_", re.sub(r"(?<=\w)\+", " plus", method.lower())).strip("_")
        return self.folder / "sets" / f"{cell}.{plain}.{seed}.safetensors"

    def set(self, cell: str, method: str, seed: int = 0) -> Artefact:
        """A kept set: images (n, c, h, w) in the network's space, labels (n,), lr in the record."""
        file = self.file(f"sets/{self.set_file(cell, method, seed).name}")
        if not file.exists():
            raise NoRows(f"no set {file}: expected what `make paper` or the notebook 07 keeps")
        return read(file)

    def keep_set_digest(
        self, cell: str, method: str, seed: int, digest: str, lr: float | None = None
    ) -> None:
        """Note the digest of a set's tensors, and its learned lr, in sets/digests.csv."""
        others = self.set_digests()
        others = others[(others[SET] != [cell, method, seed]).any(axis=1)]
        line = dict(zip(DIGESTS, (cell, method, seed, digest, lr), strict=True))
        every = pd.DataFrame([*others.to_dict("records"), line])
        self._write_csv("sets/digests.csv", every.sort_values(SET))

    def keep_digests(self, places: list[tuple[str, str, int]]) -> None:
        """Drop the digests of all other sets: the profile asks for them no more."""
        digests = self.set_digests()
        places_of = digests[SET].apply(tuple, axis=1)
        if not digests.empty and not places_of.isin(places).all():
            self._write_csv("sets/digests.csv", digests[places_of.isin(places)])

    def set_digests(self) -> pd.DataFrame:
        """cell, method, distil_seed, sha256, lr of the sets whose tensors need not be kept."""
        file = self.file("sets/digests.csv")
        if not file.exists():
            return pd.DataFrame(columns=DIGESTS)
        return pd.read_csv(file, float_precision="round_trip")

    def keep_table(self, name: str, table: pd.DataFrame) -> None:
        """tables/<name>.csv with six digits, the same on every processor, and .md with four."""
        self._write_csv(f"tables/{name}.csv", table, float_format="%.6g")
        shown = table.astype(object).where(table.notna(), "")
        self.write(f"tables/{name}.md", shown.to_markdown(index=False, floatfmt=".4g") + "\n")

    def keep_figure(self, name: str, figure: Figure) -> None:
        """figures/<name>.svg, .pdf and .png, the same bytes from the same rows."""
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # it is laid out, and each drawing would move it a little
        for kind in self.kinds:
            buffer, options = io.BytesIO(), {"dpi": 300, "bbox_inches": "tight"}
            figure.savefig(buffer, format=kind, metadata=KINDS[kind], **options)
            if kind == "png":  # 256 colours: a third of the bytes, and the eye sees no difference
                picture = Image.open(buffer).convert("RGB").quantize(dither=Image.Dither.NONE)
                picture.save(buffer := io.BytesIO(), kind, optimize=True, dpi=(300, 300))
            self.write(f"figures/{name}.{kind}", buffer.getvalue())

    def machine(self) -> dict | None:
        """The machine that made the results, if that was noted."""
        file = self.file("machine.json")
        return json.loads(file.read_text("utf-8")) if file.exists() else None

    def digests(self) -> dict[str, str]:
        """sha256 of every kept file by its path; not of unfinished files and failed notebooks."""
        paths = {
            file.relative_to(self.folder).as_posix()
            for file in self.folder.rglob("*")
            if file.is_file() and not UNFINISHED.search(file.name)
        }
        return {
            path: hashlib.sha256((self.folder / path).read_bytes()).hexdigest()
            for path in sorted(paths - {SEALS})
        }

    def seal(self) -> None:
        """SHA256SUMS: the digests of all that is kept, as `sha256sum -c` reads them."""
        self.write(SEALS, "".join(f"{sha}  {path}\n" for path, sha in self.digests().items()))

    def sealed(self) -> dict[str, str]:
        """What `seal` wrote: digests by path; raises InputError where a line is none of its own."""
        file = self.folder / SEALS
        lines = file.read_text("utf-8", "replace").splitlines() if file.exists() else []
        for number, line in enumerate(lines, 1):
            if not re.fullmatch(r"[0-9a-f]{64}  \S.*", line):
                raise InputError(
                    f"line {number} of {file} reads {line[:90]!r}: expected a sha256, two spaces "
                    "and a path; take a sound copy of the file, or run `make paper` again"
                )
        return {line[66:]: line[:64] for line in lines}

    def _write_csv(self, path: str, table: pd.DataFrame, **options: str) -> None:
        content = table.to_csv(index=False, lineterminator="\n", **options).encode()
        packed = path.endswith(".gz")
        self.write(path, gzip.compress(content, mtime=0) if packed else content)
