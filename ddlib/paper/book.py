"""The book: the guide in docs/, executed notebooks, tables, figures and the reference, as one site.

Its sources are laid out in build/sources, and plain Sphinx makes the pages (`docs/conf.py`).
Nothing is run, and the pages ask nothing of a network: they open from the file system.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from ddlib.base import InputError
from ddlib.paper import figures
from ddlib.paper.build import notebooks
from ddlib.paper.paper import Paper
from ddlib.paper.results import Results
from ddlib.runs.store import HOME

BOOK = HOME / "build" / "book"
ARTICLE = HOME / "build" / "article.pdf"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")  # which can print without a window
FIGURE = re.compile(r'paper\.figure\("(\w+)"\)\s*$')  # a cell that ends in a figure of the paper


def make(profile: str = "laptop", folder: Path = BOOK, *options: str) -> Path:
    """`make book`: the book of what is kept under a profile; its first page.

    `options` are Sphinx's; those of `article` show no code.

    Raises:
        InputError: Sphinx is not installed, or the paper was not made under that profile.
    """
    paper, sources = Paper.printed(profile), folder.parent / "sources"
    copies = [paper.results.folder / "notebooks" / source.name for source in notebooks()]
    executed = [copy for copy in copies if copy.exists()]
    if not executed:
        raise InputError(
            f"no executed notebooks in {paper.results.folder / 'notebooks'}: run `make paper "
            f"PROFILE={paper.name}` first"
        )
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(HOME / "docs", sources)
    lay(sources, paper.results, executed)
    builder = options or ("-b", "html", "--tag", "book")
    command = [sys.executable, "-m", "sphinx", "-q", *builder, str(sources), str(folder)]
    shutil.rmtree(folder, ignore_errors=True)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    sys.stderr.write(done.stderr)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"Sphinx could not make the book: {last}; pip install 'ddlib[book]'")
    return folder / "index.html"


def article(profile: str = "laptop", file: Path = ARTICLE) -> Path:
    """`make article`: the book's notebooks without code, its figures, tables and claims as a PDF.

    Raises:
        InputError: there is no Chromium, which prints the pages; and as `make`.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        raise InputError(
            f"found none of {', '.join(BROWSERS)}, expected a browser that prints the article: "
            "install Chromium (apt-get install chromium), or read the book (make book)"
        )
    options = ("-b", "singlehtml", "--tag", "article", "-D", "root_doc=article")
    page = make(profile, file.parent / "article", *options).with_name("article.html")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    command = [browser, *quiet, f"--print-to-pdf={file}", page.as_uri()]
    file.unlink(missing_ok=True)
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    if not file.exists():
        raise InputError(f"{browser} printed nothing: {done.stderr.strip()[-300:]}")
    return file


def lay(sources: Path, results: Results, executed: list[Path]) -> None:
    """Put the results beside the guide."""
    import nbformat

    for part in ("figures", "tables"):
        shutil.copytree(results.folder / part, sources / part, dirs_exist_ok=True)
    shutil.copy(results.folder / "claims.md", sources)
    (sources / "notebooks").mkdir(exist_ok=True)
    for file in executed:
        notebook = prepared(nbformat.read(file, as_version=4), results.folder / "figures")
        first = notebook.cells[0]
        first.source = first.source.replace("# ", f"# {file.name[:2]} · ", 1)
        (sources / "notebooks" / file.name).write_text(nbformat.writes(notebook), "utf-8")


def prepared(notebook: Any, drawn: Path) -> Any:
    """An executed notebook with figures as vectors, and words for every picture."""
    words = ""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            words = spoken(cell.source)
            continue
        named = FIGURE.search(cell.source)
        known = named is not None and named[1] in figures.FIGURES
        alt = " ".join(figures.FIGURES[named[1]].__doc__.split()) if known else words
        cell.metadata["mystnb"] = {"image": {"alt": alt}}
        for output in cell.outputs if known else ():
            if "image/png" in output.get("data", {}):
                output.data["image/svg+xml"] = (drawn / f"{named[1]}.svg").read_text("utf-8")
        if "injected-parameters" in cell.metadata.get("tags", []):
            notebook.cells[number - 1].metadata["tags"] = ["remove-cell"]  # the replaced default
    return notebook


def spoken(markdown: str) -> str:
    """The last heading of a text and the first sentence below it, without signs."""
    heading, _, below = markdown.rpartition("# ")[2].partition("\n")
    sentence = re.split(r"(?<=[.:])\s", below.strip())[0]
    return re.sub(r"[*`$\\]", "", ". ".join(filter(None, [heading.strip(), sentence])))
