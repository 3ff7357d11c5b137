"""Settings of the book: Sphinx builds it from docs/ and the results that lie beside its pages.

`make book` copies docs/ and, of results/<profile>/, notebooks, tables, figures and claims.md into
one folder and runs Sphinx there. Nothing is executed, and no page needs the network: formulas are
MathML, which browsers draw themselves, fonts are the reader's own, and the search's index is a
local script.
"""

import re
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "ddlib"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}
nb_render_markdown_format = "myst"
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

HERE = Path(__file__).parent
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
        text = f"# {docname.removeprefix('tables/').replace('_', ' ').capitalize()}\n\n{text}"
    elif docname == "figures":
        text += "\n".join(map(figure, sorted((HERE / "figures").glob("*.svg"))))
    elif docname in ("claims", "index") or (HERE / f"{docname}.md").exists():
        text = re.sub(r"\]\(\.\./results/(?!bench)[\w-]+/", f"]({'../' * docname.count('/')}", text)
        text = LINK.sub(r"\1", text)
    content[0] = text


def figure(file):
    """A section of the page of figures."""
    title = file.stem.replace("_", " ")
    return f"\n## {title.capitalize()}\n\n![{title}](figures/{file.name})\n"


def skip_member(app, what, name, member, skip, options):
    """Leave out what pydantic and named tuples add to a class."""
    generated = name == "model_config" or (member.__doc__ or "").startswith("Alias for field")
    return True if generated else None


def formula(writer, node):
    """Write a formula as MathML."""
    display = "block" if node.tagname == "math_block" else "inline"
    writer.body.append(convert(node.astext(), display=display))
    raise SkipNode
