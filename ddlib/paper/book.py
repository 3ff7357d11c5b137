"""The book: the executed notebooks, every table and figure, the README and the reference of the library, as a static site that opens from the file system.

Its sources are laid out in a scratch folder as they lie in the project, so that links between them hold; Sphinx (MyST-NB, Furo) then makes the pages, and runs
nothing. A page asks nothing of the network: formulas are MathML, which browsers draw themselves; letters are the reader's own; the search's index is a script.
"""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ddlib.paper import build as press
from ddlib.paper import claims, tables
from ddlib.paper import figures as plots
from ddlib.paper.paper import HOME, Paper
from ddlib.paper.results import Results
from ddlib.settings import InputError

BOOK = HOME / "build" / "book"
SETTINGS = {
    "project": "ddlib",
    "extensions": [
        "myst_nb",
        "sphinx.ext.autodoc",
        "sphinx.ext.napoleon",
        "sphinx.ext.viewcode",
        "ddlib.book",
    ],
    "myst_enable_extensions": ["dollarmath"],
    "myst_heading_anchors": 2,
    "nb_execution_mode": "off",
    "nb_ipywidgets_js": {},
    "nb_render_markdown_format": "myst",
    "autodoc_member_order": "bysource",
    "python_maximum_signature_line_length": 88,
    "html_theme": "furo",
    "html_theme_options": {"navigation_with_keys": True},
    "html_title": "ddlib",
    "html_math_renderer": "mathml",
    "html_static_path": ["_static"],
    "html_css_files": ["book.css"],
    "html_copy_source": False,
    "html_show_search_summary": False,  # it would fetch pages, which a browser refuses to do on a file system
    "html_show_copyright": False,
}
LOOKS = """\
article h1 { font-size: 2em; }
article h2 { font-size: 1.5em; }
article h3 { font-size: 1.2em; }
article img[src$=".svg"] { width: 100%; }
article figure { margin: 1rem 0; }
.cell_output table.dataframe { border-collapse: collapse; border: 0; font-size: 0.85em; }
.cell_output table.dataframe :is(td, th) { border: 0; border-bottom: 1px solid var(--color-background-border); padding: 0.25em 0.6em; }
.cell_output, article :has(> img) { overflow-x: auto; }  /* what is wider than a phone scrolls in a box of its own */
@media (max-width: 46em) { article img[src$=".svg"] { width: 38em; max-width: none; } article h1 { font-size: 1.6em; } }  /* letters of figures can be read */
"""
FRONT = """
```{{figure}} results/{name}/figures/main.svg
:alt: {alt}
```

## Contents

```{{toctree}}
:maxdepth: 1

{notebooks}
guide
figures
tables
library
```
"""
LEDGER = "the-ledger"  # the anchor of the claims on the front page
FIGURE = re.compile(
    r'(?:paper\.figure\("|play\.)(\w+)(?:"\)|\(.*\))\s*$'
)  # a cell that ends in a figure of the paper, or in controls of its name
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")


def make(profile: str = "laptop", folder: Path = BOOK) -> Path:
    """`make book`: the book of what is kept under a profile, in place of the one that was in `folder`; its first page.

    Raises:
        InputError: the book's tools are not installed, or the paper was not printed under that profile.
    """
    try:
        from sphinx.application import Sphinx
        from sphinx.util.docutils import docutils_namespace
    except ImportError:
        raise InputError(
            "no Sphinx here: expected what makes the book; `make book` installs it, or else `pip install 'ddlib[book]'`"
        ) from None
    held = Paper(profile)
    with tempfile.TemporaryDirectory() as scratch, docutils_namespace():
        sources, pages = Path(scratch, "sources"), Path(scratch, "pages")
        lay(sources, held.results)
        Sphinx(
            sources,
            None,
            pages,
            Path(scratch, "trees"),
            "html",
            SETTINGS,
            status=None,
            warning=sys.stderr,
        ).build()
        shutil.rmtree(folder, ignore_errors=True)
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(pages, folder)
    return folder / "index.html"


def lay(sources: Path, results: Results) -> None:
    """Write the book's sources.

    Raises:
        InputError: no notebook was executed, or there are no rows for the claims.
    """
    import nbformat

    kept = Path("results", results.folder.name)
    executed = sorted(
        file
        for file in (results.folder / "notebooks").glob("[0-9][0-9]_*.ipynb")
        if "." not in file.stem
    )
    if not executed:
        raise InputError(
            f"no executed notebooks in {results.folder / 'notebooks'}, which the book shows: run `make paper PROFILE={results.folder.name}` first"
        )
    pages = {"_static/book.css": LOOKS}
    for file in executed:
        pages[f"notebooks/{file.name}"] = nbformat.writes(
            prepared(nbformat.read(file, as_version=4), results.folder / "figures")
        )
    pages |= table_pages(results, kept) | figure_page(results, kept) | library()
    head, _, guide = press.filled("paper", press.summary(results)).partition("\n## ")
    head = head.replace(
        "](results/laptop/", f"]({kept}/"
    )  # the README shows the laptop's picture, the book its own
    front = FRONT.format(
        alt=about(plots.FIGURES["main"]),
        name=results.folder.name,
        notebooks="\n".join(f"notebooks/{file.stem}" for file in executed),
    )
    ledger = re.sub("^#", "##", claims.ledger(results), flags=re.M)

    def followed(found: re.Match) -> str:
        there = leads(found[2], kept, pages, results.folder / "figures")
        return f"[{found[1]}]({there})" if there else found[1]

    for name, text in (
        ("index", f"{head}\n{front}\n({LEDGER})=\n{ledger}"),
        ("guide", f"# Using it\n\n## {guide}"),
    ):
        pages[f"{name}.md"] = LINK.sub(followed, text)
    for name, text in pages.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text)
    shutil.copytree(results.folder / "figures", sources / kept / "figures")


def leads(target: str, kept: Path, pages: Collection[str], figures: Path) -> str | None:
    """Where a link of the README leads in the book; None: to what is no part of it."""
    if "://" in target or target in pages:
        return target
    if target.startswith("#"):
        return f"guide.md{target}"
    if target == f"{kept}/claims.md":
        return f"index.md#{LEDGER}"
    if Path(target).parent == kept / "figures" and (figures / Path(target).name).exists():
        return (
            f"figures.md#{Path(target).stem.replace('_', '-')}"
            if target.endswith(".svg")
            else target
        )
    return None


def prepared(notebook: Any, figures: Path) -> Any:
    """An executed notebook as the book shows it: figures of the paper as vectors, every picture with words for who cannot see it, no dead widgets."""
    press.without_widgets(notebook)
    said = ""
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            said = spoken(cell.source)
            continue
        named = FIGURE.search(cell.source)
        cell.metadata["mystnb"] = {
            "image": {"alt": about(plots.FIGURES[named[1]]) if named else said}
        }
        if named:
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/svg+xml"] = (figures / f"{named[1]}.svg").read_text()
        if "injected-parameters" in cell.metadata.get("tags", []):
            notebook.cells[number - 1].metadata["tags"] = [
                "remove-cell"
            ]  # the default that it replaced
    return notebook


def spoken(markdown: str) -> str:
    """The last heading of a text and the first sentence below it: what a picture that follows is about."""
    heading, _, below = markdown.rpartition("# ")[2].partition("\n")
    return re.sub(
        r"[*`$\\]",
        "",
        ". ".join(filter(None, [heading.strip(), re.split(r"(?<=[.:])\s", below.strip())[0]])),
    )


def about(function: Any) -> str:
    """What a table or figure answers: its docstring."""
    return " ".join(function.__doc__.split())


def table_pages(results: Results, kept: Path) -> dict[str, str]:
    """A page a table, and the list of them."""
    found = [name for name in tables.TABLES if (results.folder / "tables" / f"{name}.md").exists()]
    lines = [
        "# Every table",
        "",
        "From rows alone; what was not run is blank.",
        "",
        "```{toctree}",
        *(f"/{kept}/tables/{name}" for name in found),
        "```",
        "",
    ]
    pages = {"tables.md": "\n".join(lines)}
    for name in found:
        pages[f"{kept}/tables/{name}.md"] = (
            f"# {name.replace('_', ' ')}\n\n{about(tables.TABLES[name])}\n\n{(results.folder / 'tables' / f'{name}.md').read_text()}"
        )
    return pages


def figure_page(results: Results, kept: Path) -> dict[str, str]:
    """All figures, each with what it answers."""
    lines = ["# Every figure", ""]
    for name, figure in plots.FIGURES.items():
        if (results.folder / "figures" / f"{name}.svg").exists():
            image = [
                "```{figure} /" + f"{kept}/figures/{name}.svg",
                f":alt: {about(figure)}",
                "```",
            ]
            lines += [f"## {name.replace('_', ' ')}", "", about(figure), "", *image, ""]
    return {"figures.md": "\n".join(lines)}


def library() -> dict[str, str]:
    """The reference: the glossary, and a page a module."""
    modules = sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py"))
    pages = {
        f"library/{name}.rst": f"{name}\n{'=' * len(name)}\n\n.. automodule:: ddlib.{name}\n   :members:\n"
        for name in modules
    }
    listed = "".join(f"   library/{name}\n" for name in modules)
    return pages | {
        "library.rst": f"The library\n===========\n\n.. automodule:: ddlib\n\n.. toctree::\n   :maxdepth: 1\n\n{listed}"
    }


def setup(app: Any) -> None:
    """What the book adds to Sphinx: docstrings in our plain voice, and formulas without a script."""
    app.connect(
        "autodoc-process-docstring", docstring, priority=400
    )  # before Napoleon's, which sees to `Raises:`
    app.connect("autodoc-skip-member", left_out)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))


def left_out(app: Any, what: str, name: str, subject: Any, skip: bool, options: Any) -> bool | None:
    """Sphinx's hook: members that others than we described; None leaves it to Sphinx."""
    return (
        True
        if name == "model_config" or (subject.__doc__ or "").startswith("Alias for field number")
        else None
    )


def docstring(app: Any, what: str, name: str, subject: Any, options: Any, lines: list[str]) -> None:
    """Sphinx's hook: the lines of a docstring, rewritten in place."""
    lines[:] = restructured("\n".join(lines)).split("\n")


def restructured(text: str) -> str:
    """A docstring as reStructuredText: an indented paragraph stays as it is, a term and what stands two spaces after it is a definition, and only backticks are signs."""
    paragraphs = []
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("    "):
            paragraphs.append("::\n\n" + paragraph)
        else:
            plain = re.sub(
                r"`([^`]+)`|([\\*|_])",
                lambda found: f"``{found[1]}``" if found[1] else "\\" + found[2],
                paragraph,
            )
            paragraphs.append(re.sub(r"^(\S.*?)  +(\S.*)$", r"\n\1\n    \2\n", plain, flags=re.M))
    return "\n\n".join(paragraphs)


def formula(writer: Any, node: Any) -> None:
    """Sphinx's hook: a formula as MathML."""
    from docutils.nodes import SkipNode
    from latex2mathml.converter import convert

    writer.body.append(
        convert(node.astext(), display="block" if node.tagname == "math_block" else "inline")
    )
    raise SkipNode
