"""The book, made from a paper under `smoke` and read in a real browser from the file system,
without a server: every page, link and picture, search, and keys.

Without Chromium, or what drives it, the tests in it are skipped; all else here needs neither.
"""

import contextlib
import io
import re
import sys
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import nbformat
import pytest

from ddlib.__main__ import main
from ddlib.paper import book
from ddlib.paper import build as press
from ddlib.paper import figures as plots
from ddlib.paper.results import Results
from ddlib.settings import InputError

pytestmark = pytest.mark.filterwarnings(
    "ignore::PendingDeprecationWarning"
)  # of Sphinx, to its own extensions
PHONE = {"width": 390, "height": 844}
LOOK = """() => ({
    links: [...document.querySelectorAll('a[href]')].map(a => a.href),
    blank: [...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src),
    speechless: [...document.querySelectorAll('article img')].filter(i => !i.alt.trim()).map(i =>
    i.src), figures: document.querySelectorAll('article img').length,
    overhang: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""


@pytest.fixture(scope="module")
def made(printed, tmp_path_factory):
    """The folder of the book, and what Sphinx had to say."""
    pytest.importorskip(
        "sphinx", reason="the book's tools are not installed: pip install 'ddlib[book]'"
    )
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as said:
        patch.setenv("STORE", str(printed / "store"))
        patch.setenv("RESULTS", str(printed / "results"))
        first = book.make("smoke", tmp_path_factory.mktemp("book") / "book")
    return first.parent, said.getvalue()


@pytest.fixture
def page(made, chromium):
    """An empty page as wide as a phone's, and a list of what its console and its requests have to
    complain of."""
    page, page.complaints = chromium.new_page(viewport=PHONE), []
    page.on(
        "console",
        lambda message: (
            page.complaints.append(message.text) if message.type in ("error", "warning") else None
        ),
    )
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(request.url))
    page.on(
        "request",
        lambda request: (
            None
            if request.url.startswith(("file:", "data:"))
            else page.complaints.append(request.url)
        ),
    )
    yield page
    page.close()


def test_sphinx_has_nothing_to_complain_of(made):
    assert made[1] == ""


def test_the_front_page_has_the_ledger_and_leads_to_every_notebook(made, printed):
    front = (made[0] / "index.html").read_text()
    assert "The seven claims" in front and "what would settle it" in front
    assert 'src="_images/images.svg"' in front, "the README's picture, of this paper"
    for file in (printed / "results/smoke/notebooks").glob("*.ipynb"):
        assert f'href="notebooks/{file.stem}.html"' in front
    for place in ("guide.html#your-first-distilled-set", "#the-ledger"):
        assert f'href="{place}"' in front
    (film,) = re.findall(r'href="([^"]*film\.gif)"', front)
    assert (made[0] / film).read_bytes() == (
        printed / "results/smoke/figures/film.gif"
    ).read_bytes()


def test_every_page_is_whole_at_the_width_of_a_phone(made, page):
    seen = {}
    for file in sorted(
        file for file in made[0].rglob("*.html") if "_modules" not in file.parts
    ):  # source code, some fifty pages of one make
        page.goto(file.as_uri())
        seen[file] = page.evaluate(LOOK)
        assert not page.complaints, (file.name, page.complaints)
        assert not seen[file]["blank"] and not seen[file]["speechless"], (
            file.name,
            "pictures that are not there, or have no words",
        )
        assert seen[file]["overhang"] == 0, (
            f"{file.name} scrolls sideways by {seen[file]['overhang']} px"
        )
    assert sum(look["figures"] for look in seen.values()) > 2 * len(
        plots.FIGURES
    )  # in the notebooks, and all on one page
    assert not list(broken(seen))


def broken(seen):
    """Links to what is not there, or to no place in it."""
    places = {}
    for file, look in seen.items():
        for link in look["links"]:
            where, place = urldefrag(link)
            if not where.startswith("file:"):
                continue
            target = Path(unquote(urlparse(where).path))
            if target.exists() and target not in places:
                places[target] = {""} | set(
                    re.findall(
                        r'\bid="([^"]*)"', target.read_text() if target.suffix == ".html" else ""
                    )
                )
            if unquote(place) not in places.get(target, ()):
                yield file.name, link


def test_search_by_keys_finds_the_adjoint(made, page):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto((made[0] / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("adjoint")
    page.keyboard.press("Enter")
    page.locator("#search-results li a", has_text="What happens inside one inner loop?").click()
    page.wait_for_url("**/notebooks/05_student.html*")
    assert "adjoint" in page.inner_text("article").lower()
    assert not page.complaints


def test_next_and_previous_lead_through_the_book_by_pointer_and_by_keys(made, page):
    page.goto((made[0] / "index.html").as_uri())
    page.click(".next-page")
    page.wait_for_url("**/notebooks/00_tour.html")
    page.click(".prev-page")
    page.wait_for_url("**/index.html")  # and loaded: before that nobody listens to keys
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/00_tour.html")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to content"
    assert not page.complaints


def test_a_notebook_is_shown_with_words_for_its_pictures_and_without_dead_widgets(tmp_path):
    (tmp_path / "main.svg").write_text("<svg/>")

    def output(*kinds):
        return nbformat.v4.new_output("display_data", data=dict.fromkeys(kinds, ""))

    cells = [
        nbformat.v4.new_code_cell('profile = "laptop"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell('profile = "smoke"', metadata={"tags": ["injected-parameters"]}),
        nbformat.v4.new_markdown_cell(
            "# A question?\n\n## The *images*\n\nA digit $x$ over a photograph. More."
        ),
        nbformat.v4.new_code_cell("plt.plot(losses)", outputs=[output("image/png")]),
        nbformat.v4.new_code_cell(
            'rows = 1\npaper.figure("main")',
            outputs=[output(press.WIDGET, "text/plain"), output("image/png")],
        ),
        nbformat.v4.new_code_cell("play.main(paper, rows)", outputs=[output("image/png")]),
    ]
    shown = book.prepared(nbformat.v4.new_notebook(cells=cells), tmp_path).cells
    assert shown[0].metadata.tags == ["remove-cell"] and shown[1].metadata.tags == [
        "injected-parameters"
    ]
    assert shown[3].metadata.mystnb["image"]["alt"] == "The images. A digit x over a photograph."
    assert (
        shown[4].metadata.mystnb["image"]["alt"]
        == shown[5].metadata.mystnb["image"]["alt"]
        == " ".join(plots.main.__doc__.split())
    )
    assert [sorted(o.data) for cell in shown[3:] for o in cell.outputs] == [
        ["image/png"],
        ["image/png", "image/svg+xml"],
        ["image/png", "image/svg+xml"],
    ]


def test_docstrings_keep_their_signs_columns_and_formulas():
    text = "theta_N of `FunctionalNetwork`, |g| * 2:\nDC   of grad_S\n\n    x_y = |z|"
    assert (
        book.restructured(text)
        == "theta\\_N of ``FunctionalNetwork``, \\|g\\| \\* 2:\n\nDC\n    of grad\\_S\n\n\n::\n\n    x_y = |z|"  # noqa: E501
    )


def test_a_paper_that_was_not_printed_is_refused(tmp_path):
    with pytest.raises(
        InputError, match=r"no executed notebooks in .*run `make paper PROFILE=smoke`"
    ):
        book.lay(tmp_path / "sources", Results(tmp_path / "smoke"))


def test_without_its_tools_the_command_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sphinx.application", None)
    assert main(["book", "smoke"]) == 2
    assert "pip install 'ddlib[book]'" in capsys.readouterr().err
