"""Settings of the book: Sphinx builds it from docs/ and the results that lie beside its pages.

`make book` copies docs/ and, of results/<profile>/, notebooks, tables, figures and claims.md into
one folder and runs Sphinx there. Nothing is executed, and no page needs the network: formulas are
MathML, which browsers draw themselves, fonts are the reader's own, and the search's index is a
local script.
"""

import json
import re
from functools import cache
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

from ddlib.paper.figures import FIGURES

project = "ddlib"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"
autodoc_inherit_docstrings = False  # those of torch
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 88
html_theme = "furo"
html_theme_options = {"navigation_with_keys": True}
html_title = "ddlib"
html_math_renderer = "mathml"
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_copy_source = False
html_show_search_summary = False  # it would fetch pages, which browsers refuse on a file system
html_show_copyright = False

if tags.has("article"):  # noqa: F821  # on paper: the notebooks without their code
    exclude_patterns = ["index.md", "api*"]
    suppress_warnings = ["toc.not_included"]
    html_theme_options, html_sidebars = {}, {"**": []}
    html_theme = "basic"
    nb_merge_streams = nb_remove_code_source = True
else:
    exclude_patterns = ["article.md"]

HERE = Path(__file__).parent
CALL = re.compile(r'paper\.(figure|table)\("(\w+)"')  # in a cell of a notebook
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?:\.\./)[^)\s]+\)")  # to a file that is not in the book


def setup(app):
    """Connect what the book adds to Sphinx."""
    app.connect("source-read", source)
    app.connect("autodoc-skip-member", skip_member)
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))


def source(app, docname, content):
    """Change the text of a page: links lead inside the book, tables and claims have a title."""
    text = content[0]
    if docname.startswith("tables/"):
        name = docname.removeprefix("tables/")
        title = name.replace("_", " ").capitalize()
        text = f"# {title}\n\n{made_by('table', name, '../')}\n\n{text}"
    elif docname == "figures":
        text += "\n".join(map(figure, sorted((HERE / "figures").glob("*.svg"))))
    elif docname in ("claims", "index") or (HERE / f"{docname}.md").exists():
        up = f"]({'../' * docname.count('/')}"
        text = re.sub(r"\]\(\.\./results/(?!bench|processors)[\w-]+/", up, text)
        text = re.sub(r"\]\(\.\./(notebooks/\w+\.ipynb)", inside, text)
        text = LINK.sub(r"\1", text)
    content[0] = text


def inside(link):
    """A link to a notebook leads to its executed copy, where the book has it."""
    return f"]({link[1]}" if (HERE / link[1]).exists() else link[0]


def figure(file):
    """A section of the page of figures."""
    title, others = (
        file.stem.replace("_", " "),
        ", ".join(f"[{kind.upper()}](figures/{file.stem}.{kind})" for kind in ("pdf", "png")),
    )
    about = " ".join((getattr(FIGURES.get(file.stem), "__doc__", None) or "").split())
    lines = about, f"![{title}](figures/{file.name})", f"{made_by('figure', file.stem)} {others}"
    return "\n\n".join(["", f"## {title.capitalize()}", *lines, ""])


@cache
def makers():
    """(figure or table, its name) -> the notebooks that make it, each with the section."""
    found = {}
    for file in sorted((HERE / "notebooks").glob("*.ipynb")):
        heading = ""
        for cell in json.loads(file.read_text("utf-8"))["cells"]:
            text = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                heading = ([heading, *re.findall(r"^#+ (.+)$", text, re.MULTILINE)])[-1]
            for call in CALL.findall(text) if cell["cell_type"] == "code" else ():
                found.setdefault(call, {}).setdefault(file.stem, heading)
    return found


def made_by(kind, name, up=""):
    """A sentence that leads to the cells that make a figure or a table."""
    places = (
        f"[{stem}, “{heading}”]({up}notebooks/{stem}.ipynb#{slug(heading)})"
        for stem, heading in makers().get((kind, name), {}).items()
    )
    return f"Made by {' and '.join(places)}." if (kind, name) in makers() else ""


def slug(heading):
    """The anchor of a heading, as myst makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def skip_member(app, what, name, member, skip, options):
    """Leave out what pydantic and named tuples add to a class."""
    generated = name == "model_config" or (member.__doc__ or "").startswith("Alias for field")
    return True if generated else None


def formula(writer, node):
    """Write a formula as MathML."""
    display = "block" if node.tagname == "math_block" else "inline"
    writer.body.append(convert(node.astext(), display=display))
    raise SkipNode
