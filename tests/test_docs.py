"""The README, the guide and the citation: short, complete, in agreement with the project."""

import importlib.util
import io
import re
import tomllib
from importlib import import_module
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import scipy.stats
import yaml
from PIL import Image

from ddlib.paper import build, style
from ddlib.runs import studies
from ddlib.runs.profile import profile
from ddlib.settings import Distillation, Evaluation, Expert

HOME = Path(__file__).parent.parent
README = (HOME / "README.md").read_text()
PAGES = [HOME / "README.md", HOME / "CHANGELOG.md", *sorted((HOME / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((HOME / "notebooks").glob("[0-9][0-9]_*.ipynb"))
CITED = yaml.safe_load((HOME / "CITATION.cff").read_text())
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
BLOCKS = {
    "README.md": ("picture", "paper", "api"),
    "docs/paper_cells.md": ("cells", "benchmark", "processors", "verdicts"),
    "docs/speed_and_memory.md": ("bench",),
}


@pytest.mark.parametrize("step", [None, 1, 2, 3, 4, 5])
def test_the_schematic_is_that_of_its_code(step):
    """Its shapes and letters; the images in it are those of the kept set."""
    spec = importlib.util.spec_from_file_location("schematic", HOME / "docs/schematic.py")
    schematic = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(schematic)
    with style.style():
        content = io.StringIO()
        schematic.draw(step).savefig(content, format="svg", metadata={"Date": None})
    kept, made = (
        re.sub(r'(base64,|id="image)[^"]*', "", text)
        for text in (schematic.file(step).read_text(), content.getvalue())
    )
    assert kept == made and ("<image" in kept) == (step != 1)


def test_what_the_readme_says_of_the_results_is_what_came_out():
    """Its sentences are written by hand: these are the verdicts that they rest on."""
    verdicts = {
        name: pd.read_csv(HOME / f"results/{name}/tables/claims.csv").set_index("claim").verdict
        for name in ("laptop", "fashion", "laptop-full")
    }
    here = verdicts["laptop"]
    assert (here[["3a", "3b", "8a"]] == "supported").all() and "inconclusive" in here["3c"]
    assert (here[["5a", "6a"]] == "not supported").all() and "inconclusive" in here["7a"]
    assert (
        verdicts["fashion"]["7b"] == "not supported" and "inconclusive" in verdicts["fashion"]["7a"]
    )
    assert "inconclusive" in verdicts["laptop-full"]["7a"]
    validation = []
    for name in verdicts:
        rows = pd.read_csv(HOME / f"results/{name}/rows/main.csv").query("protocol == 'lr_chosen'")
        leads = ["TESLA", "DATM", "AST+"] if name == "laptop-full" else ["AST+"]
        for _, cell in rows[rows.method != "full data"].groupby("cell"):
            best = cell.groupby("method")[["accuracy", "validation_accuracy"]].mean()
            order = best.accuracy.sort_values(ascending=False).index
            assert "AST+" not in best.index or [*order[: len(leads)]] == leads
            if "AST+" in best.index and name != "laptop-full":
                validation.append(best.validation_accuracy)
        if name == "laptop-full":
            seeds = rows.groupby(["method", "distil_seed"]).accuracy.mean().unstack()
            for rival in leads[:2]:
                lead = seeds.loc[rival] - seeds.loc["AST+"]
                half = scipy.stats.t.ppf(0.975, len(lead) - 1) * lead.std() / len(lead) ** 0.5
                assert lead.mean() - half < 0 < lead.mean()
    over_cells = pd.concat(validation, axis=1).dropna().mean(axis=1)  # of the default of `distil`
    assert len(validation) == 3 and over_cells.idxmax() == "AST+"
    fashion = validation[1]
    assert 100 * (fashion["MTT + inner momentum"] - fashion["AST+"]) == pytest.approx(0.1, abs=0.05)


def test_the_readme_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 1800


@pytest.mark.parametrize("page", BLOCKS)
def test_pages_have_their_markers(page):
    text = (HOME / page).read_text()
    assert tuple(re.findall(r"<!-- (\w+):start -->", text)) == BLOCKS[page]
    for part in BLOCKS[page]:
        start, end = f"<!-- {part}:start -->", f"<!-- {part}:end -->"
        assert text.count(start) == text.count(end) == 1
        assert text.index(start) < text.index(end)


def test_the_profiles_of_the_pages_can_be_run(tmp_path, capsys):
    """Each that extends another, and all parts of one together; a notebook is left to run."""
    parts: dict = {"extends": "laptop"}
    wholes = [parts]
    for page in PAGES:
        for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S):
            given = yaml.safe_load(block)
            if "extends" in given:
                wholes.append(given)
            elif {*given} & {"recipes", "variants", "ablation"}:
                parts |= given
    assert len(wholes) >= 3 and len(parts) >= 4
    for k, place in enumerate(
        f"{part}/{name}" for part in ("train", "val", "test") for name in "ab"
    ):
        folder = tmp_path / "my/images" / place
        folder.mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (40, 40), (k * 40, i * 30, 0)).save(folder / f"{i}.png")
    for i, given in enumerate(wholes):
        file = tmp_path / f"{i}.yaml"
        file.write_text(yaml.safe_dump(given))
        mine = profile(str(file))
        assert studies.check(mine), given
        named = mine.notebooks or [notebook.stem for notebook in NOTEBOOKS]
        assert [n for n in build.notebooks([*named]) if not build.left_out(n, mine)], given


@pytest.mark.parametrize("processor", ["avx2", "amd-epyc"])
def test_the_page_shows_how_far_the_same_seeds_move_on_another_processor(processor):
    here, there = (
        pd.read_csv(HOME / "results" / file).query("protocol == 'lr_chosen'")
        for file in ("laptop/rows/main.csv", f"processors/{processor}.csv")
    )
    (cell,) = there.cell.unique()
    page = (HOME / "docs/paper_cells.md").read_text()
    text = page.partition("<!-- processors:start -->")[2].partition("<!--")[0]
    table = [line.split("|") for line in text.splitlines() if line.startswith("| ")]
    lines = [line[2:-1] for line in table if line[1].strip() == processor]
    shown = {method.strip(): cells for method, *cells in lines}
    assert {*shown} == {*there.method} and len(shown) >= 2
    for method, (printed, other, moved, *_) in shown.items():
        ours = [of[(of.cell == cell) & (of.method == method)] for of in (here, there)]
        scores = [100 * rows.groupby("distil_seed").accuracy.mean() for rows in ours]
        for words, values in zip((printed, other), scores, strict=True):
            assert words.strip() == f"{values.mean():.1f} ± {values.std():.1f}"
        change = scores[1] - scores[0]
        assert moved.strip() == f"{change.mean():+.1f} ± {change.std():.1f}" and len(change) == 5


def test_the_setting_of_fashion_at_ipc_1_is_as_far_behind_the_best_as_the_page_says():
    table = pd.read_csv(HOME / "results/fashion/tables/tuning.csv")
    tried = table[table.cell == "fashion_mnist-ipc1"].set_index("tried")
    used = tried.loc["lr_images = 100, a0 = 0.03, lr_lr = 1e-05"]
    assert (tried.sets == 3).all()
    assert tried.validation_accuracy.max() - used.validation_accuracy == pytest.approx(
        0.2, abs=0.05
    )


def test_the_verdicts_on_an_amd_epyc_are_those_that_the_page_says():
    """All of the claims, and of their parts all but 5b; the best mean is MTT's there."""
    here, there = (
        pd.read_csv(HOME / "results" / file).set_index("claim").verdict
        for file in ("laptop/tables/claims.csv", "processors/claims/amd-epyc.csv")
    )
    assert [*here.index] == [*there.index] and sum(name.isdigit() for name in here.index) == 8
    assert [*here.index[here != there]] == ["5b"]
    assert here["5b"].startswith("inconclusive") and there["5b"] == "supported"
    rows = pd.read_csv(HOME / "results/processors/amd-epyc.csv").query("protocol == 'lr_chosen'")
    means = rows.groupby("method").accuracy.mean()
    assert means.idxmax() == "MTT" and means["MTT"] - means["AST+"] < 0.005


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(HOME)))
def test_every_relative_link_leads_somewhere(page):
    """To a file that exists and, where it names one, to a heading of that page."""
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), f"{page.name} links {target}"
        if anchor:
            assert anchor in headings(file), f"{page.name} links {target}"


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_the_map_from_the_paper_names_functions_and_settings_that_there_are():
    text = (HOME / "docs/from_the_paper.md").read_text()
    named = re.findall(r"`(ddlib[\w.]+):(\w+)`", text)
    for module, function in named:
        assert callable(getattr(import_module(module), function, None)), f"{module}:{function}"
    settings = {*Expert.model_fields, *Distillation.model_fields, *Evaluation.model_fields}
    for row in re.findall(r"^\| .*`ddlib.*$", text, re.M):
        column = 4 if row.count("|") == 7 else 3
        for name in re.findall(r"`(\w+)[`:]", row.split("|")[column]):
            assert name in settings, row
    assert len(named) > 15


def test_the_notebook_table_names_every_notebook():
    """In order, each by the question that its title asks, or the first half of it."""
    row = (
        r"^\| (.+)\? \| \[(\w+)\]\(results/laptop/notebooks/\2\.ipynb\)"
        r" \| \[source\]\(notebooks/\2\.ipynb\) \|$"
    )
    listed = re.findall(row, README, re.M)
    assert [name for _, name in listed] == [file.stem for file in NOTEBOOKS]
    for (question, name), file in zip(listed, NOTEBOOKS, strict=True):
        title = nbformat.read(file, as_version=4).cells[0].source.splitlines()[0]
        assert title.removeprefix("# ").startswith(question.split(",")[0]), f"{name}: {title!r}"


def test_the_tree_names_what_is_there():
    """Every folder and file at the top of ddlib, the fast folder of the method, and top folders."""
    tree = re.search(r"```text\n(ddlib/\n.*?)```", README, re.S)[1]
    named = [re.match(r"( *)(\S+)", line).groups() for line in tree.splitlines()]
    inside = sorted(name for indent, name in named if len(indent) == 2)
    package = HOME / "ddlib"
    files = [file.name for file in package.glob("[a-z]*.py")]
    folders = [f"{file.parent.name}/" for file in package.glob("*/__init__.py")]
    assert inside == sorted(files + folders)
    assert [name for indent, name in named if len(indent) == 4] == ["fast/"]
    for name in (name for indent, name in named if not indent):
        assert (HOME / name).is_dir(), name


def test_the_api_pages_describe_every_module():
    """Each once; package markers and the command line aside."""
    text = "".join(page.read_text() for page in PAGES)
    described = re.findall(r"automodule:: ddlib\.(\S+)", text)
    files = [file.relative_to(HOME / "ddlib") for file in (HOME / "ddlib").rglob("[a-z]*.py")]
    assert sorted(described) == sorted(".".join(file.with_suffix("").parts) for file in files)


def test_every_page_of_the_guide_is_in_its_contents():
    contents = (HOME / "docs/index.md").read_text() + (HOME / "docs/api.md").read_text()
    for page in (HOME / "docs").rglob("*.md"):
        name = page.relative_to(HOME / "docs").with_suffix("").as_posix()
        assert name in ("index", "article") or re.search(rf"^{name}$", contents, re.M), name


def test_the_accuracies_under_the_picture_are_those_of_the_summary():
    block = README.split("<!-- picture:start -->")[1].split("<!-- picture:end -->")[0]
    table = pd.read_csv(HOME / "results/laptop/tables/summary.csv").set_index("method")
    column = next(name for name in table if name.endswith("-ipc1"))  # the first cell: the picture's
    for method in ("k-means", "AST"):
        assert table.loc[method, column].partition(" (")[0] in block


def test_version_and_licence_are_the_same_everywhere():
    newest = re.search(r"^## \[(\d\S*)\] - (\S+)$", (HOME / "CHANGELOG.md").read_text(), re.M)
    assert PROJECT["version"] == CITED["version"] == newest[1]
    assert CITED["date-released"] == newest[2]
    assert f"Version {PROJECT['version']}}}" in README, "the README's citation"
    assert PROJECT["license"] == CITED["license"] == "MIT"
    assert (HOME / "LICENSE").read_text().startswith("MIT License\n")


def test_the_citation_file_is_valid_and_names_the_paper():
    """CFF 1.2.0: required fields, authors as people or entities, the paper as in the README."""
    assert CITED["cff-version"] == "1.2.0" and CITED["type"] == "software"
    assert CITED["message"] and CITED["title"]
    (paper,) = CITED["references"]
    assert {"type", "title", "authors"} <= paper.keys() and paper["url"] in README
    assert f"title  = {{{paper['title']}}}" in README
    for work in (CITED, paper):
        kinds = ({"name"}, {"family-names", "given-names"})
        assert work["authors"] and all(author.keys() in kinds for author in work["authors"])
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert " and ".join(names) in README
