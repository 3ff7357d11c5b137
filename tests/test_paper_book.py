"""The book of a paper under `smoke`: every page, link and picture; search and keys in a browser.

Without Chromium, or what drives it, the tests in a browser are skipped.
"""

import contextlib
import io
import re
import shutil
from urllib.parse import unquote, urldefrag

import nbformat
import pytest

from ddlib.__main__ import main
from ddlib.base import InputError
from ddlib.paper import book, figures

pytestmark = pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")  # Sphinx's own
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
OVERHANG = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
BLANK = "[...document.images].filter(i => !(i.complete && i.naturalWidth)).map(i => i.src)"


@pytest.fixture(scope="module")
def made(printed, tmp_path_factory):
    """The folder of the book, and what Sphinx complained of."""
    pytest.importorskip("sphinx", reason="no Sphinx to make the book: pip install 'ddlib[book]'")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(io.StringIO()) as errors:
        patch.setenv("STORE", str(printed / "store"))
        patch.setenv("RESULTS", str(printed / "results"))
        first = book.make("smoke", tmp_path_factory.mktemp("book") / "book")
    return first.parent, errors.getvalue()


def test_sphinx_complains_of_nothing(made):
    assert made[1] == ""


def test_every_link_and_picture_is_there_and_no_page_asks_the_network_for_anything(made):
    anchors, broken, pictures = {}, set(), 0
    for page in sorted(made[0].rglob("*.html")):
        text = page.read_text()
        anchors[page] = {"", *re.findall(r'\bid="([^"]*)"', text)}
        assert not re.findall(r'(?:src="|<link[^>]*href=")(?:https?:)?//', text), page.name
        for image in re.findall(r"<img [^>]*>", text.partition("<article")[2]):
            pictures += 1
            assert re.search(r'alt="[^"]', image), f"{page.name}: a picture without words: {image}"
    for page in anchors:
        for link in re.findall(r'(?:href|src)="([^"]*)"', page.read_text()):
            place, anchor = urldefrag(link)
            if re.match(r"\w+:", link) or link == "builtins.html":  # Sphinx's own, of no module
                continue
            target = (page.parent / unquote(place.partition("?")[0])).resolve() if place else page
            if not target.exists() or unquote(anchor) not in anchors.get(target, {unquote(anchor)}):
                broken.add((page.name, link))
    assert not broken
    assert pictures > 2 * len(figures.FIGURES)  # in the notebooks, and all on one page


def test_the_front_page_leads_to_every_notebook_and_the_claims_and_shows_this_paper(made, printed):
    front = (made[0] / "index.html").read_text()
    for file in (printed / "results/smoke/notebooks").glob("*.ipynb"):
        assert f'href="notebooks/{file.stem}.html"' in front
    claims = (made[0] / "claims.html").read_text()
    assert 'href="claims.html"' in front and "seven of the paper" in claims
    images = (printed / "results/smoke/figures/images.svg").read_bytes()
    assert (made[0] / "_images/images.svg").read_bytes() == images


@pytest.fixture
def page(made, chromium):
    """An empty page, and a list of what its console and its requests complain of."""
    page, page.complaints = chromium.new_page(viewport=PHONE), []

    def loud(message):
        if message.type in ("error", "warning"):
            page.complaints.append(message.text)

    def away(request):
        if not request.url.startswith(("file:", "data:")):
            page.complaints.append(request.url)

    page.on("console", loud)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("requestfailed", lambda request: page.complaints.append(request.url))
    page.on("request", away)
    yield page
    page.close()


def test_every_page_is_whole_at_the_width_of_a_phone(made, page):
    pages = [file for file in made[0].rglob("*.html") if "_modules" not in file.parts]
    for file in sorted(pages):
        page.goto(file.as_uri())
        assert not page.complaints, (file.name, page.complaints)
        assert page.evaluate(BLANK) == [], file.name
        assert page.evaluate(OVERHANG) == 0, f"{file.name} scrolls sideways"


def test_search_and_turning_pages_by_keys(made, page):
    page.set_viewport_size(DESK)
    page.goto((made[0] / "index.html").as_uri())
    page.keyboard.press("/")
    page.keyboard.type("adjoint")
    page.keyboard.press("Enter")
    page.locator("#search-results li a", has_text="inner loop").first.click()
    page.wait_for_url("**/notebooks/05_student.html*")
    assert "adjoint" in page.inner_text("article").lower()
    page.keyboard.press("ArrowRight")
    page.wait_for_url("**/06_distillation.html")
    page.click(".prev-page")
    page.wait_for_url("**/05_student.html")
    assert not page.complaints


def test_a_notebook_is_shown_with_words_for_its_pictures(tmp_path):
    (tmp_path / "main.svg").write_text("<svg/>")

    def output(*kinds):
        return nbformat.v4.new_output("display_data", data=dict.fromkeys(kinds, ""))

    def code(source, *outputs, tag=None):
        return nbformat.v4.new_code_cell(
            source, outputs=list(outputs), metadata={"tags": [tag]} if tag else {}
        )

    text = "# A question?\n\n## The *images*\n\nA digit $x$ over a photograph. More."
    cells = [
        code('profile = "laptop"', tag="parameters"),
        code('profile = "smoke"', tag="injected-parameters"),
        nbformat.v4.new_markdown_cell(text),
        code("plt.plot(losses)", output("image/png")),
        code('a = 1\npaper.figure("main")', output("image/png")),
        code('paper.figure("main")', output("image/png")),
    ]
    shown = book.prepared(nbformat.v4.new_notebook(cells=cells), tmp_path).cells
    assert [cell.metadata.get("tags") for cell in shown[:2]] == [
        ["remove-cell"],
        ["injected-parameters"],
    ]
    main_words = " ".join(figures.FIGURES["main"].__doc__.split())
    alts = [cell.metadata.mystnb["image"]["alt"] for cell in shown[3:]]
    assert alts == ["The images. A digit x over a photograph.", main_words, main_words]
    both = ["image/png", "image/svg+xml"]
    assert [[*o.data] for cell in shown[3:] for o in cell.outputs] == [["image/png"], both, both]


def test_without_a_paper_or_sphinx_the_command_says_what_to_do(
    printed, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("STORE", str(printed / "store"))
    monkeypatch.setenv("RESULTS", str(tmp_path))
    assert main(["book", "smoke"]) == 2
    assert "run `make paper PROFILE=smoke`" in capsys.readouterr().err
    monkeypatch.setenv("RESULTS", str(printed / "results"))
    monkeypatch.setattr(book, "BOOK", tmp_path / "book")
    monkeypatch.setattr(book.sys, "executable", shim(tmp_path))
    assert main(["book", "smoke"]) == 2
    assert "pip install 'ddlib[book]'" in capsys.readouterr().err


def shim(folder):
    """A Python that has no modules."""
    file = folder / "python"
    file.write_text('#!/bin/sh\necho "No module named sphinx" >&2\nexit 1\n')
    file.chmod(0o755)
    return str(file)


def test_the_article_is_a_pdf_that_shows_the_notebooks_without_their_code(
    printed, tmp_path, monkeypatch
):
    if not any(map(shutil.which, book.BROWSERS)):
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    monkeypatch.setenv("STORE", str(printed / "store"))
    monkeypatch.setenv("RESULTS", str(printed / "results"))
    file = book.article("smoke", tmp_path / "article.pdf")
    assert file.read_bytes().startswith(b"%PDF") and file.stat().st_size > 100_000
    page = (tmp_path / "article/article.html").read_text()
    assert "00 · What is dataset distillation" in page and "Parameters" not in page
    assert "import torch" not in page and page.count("<img") > len(figures.FIGURES)
    monkeypatch.setattr(book, "BROWSERS", ("no-browser",))
    with pytest.raises(InputError, match="found none of no-browser, expected a browser"):
        book.article("smoke", tmp_path / "article.pdf")
