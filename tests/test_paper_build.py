"""The notebooks: clean sources, each executed under `smoke`; what a paper leaves, and its pages."""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from ddlib.__main__ import main
from ddlib.base import InputError
from ddlib.paper import build, figures, pages, tables
from ddlib.paper.paper import LARGE, Paper, main_sets
from ddlib.paper.results import Results
from ddlib.runs import stages, studies
from ddlib.runs.profile import profile
from ddlib.runs.studies import STUDIES

SOURCES = build.notebooks()
KERNEL = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_a_source_is_clean(file):
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    given = [cell.source for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert given == ['profile = "laptop"']
    title = notebook.cells[0].source.splitlines()[0]
    assert title.startswith("# ") and title.endswith("?"), "a notebook's title is its question"
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert any("## What we saw" in text for text in words)
    assert max(len(cell.source.splitlines()) for cell in cells) <= 20, "move it to the library"


def test_there_are_fourteen_notebooks_and_their_studies_are_found_in_their_source():
    assert [file.stem[:2] for file in SOURCES] == [f"{i:02}" for i in range(14)]
    assert {"main", "costs"} <= set(build.studies_of(build.NOTEBOOKS / "07_evaluation.ipynb"))
    read = {name for file in SOURCES for name in build.studies_of(file)}
    assert read == STUDIES.keys() - {"tuning"}


def test_every_notebook_was_executed_and_shows_what_it_draws(printed):
    done = sorted((printed / "results/smoke/notebooks").glob("*.ipynb"))
    assert [file.name for file in done] == [file.name for file in SOURCES]
    for file in done:
        text = file.read_text()
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        assert not [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
        for cell in cells:
            source = "".join(cell["source"])
            drawn = ("paper.figure(",)
            if "plt.subplots(" in source or source.splitlines()[-1].startswith(drawn):
                shown = any("image/png" in output.get("data", {}) for output in cell["outputs"])
                assert shown, f"{file.name} draws and does not show:\n{source}"
        assert str(printed) not in text and str(Path.home()) not in text, "a path of this machine"


def test_a_paper_leaves_every_table_figure_row_and_set_under_a_seal(printed):
    results = Results(printed / "results/smoke")
    for name in tables.TABLES.keys() - {"tuning"}:
        assert (results.folder / f"tables/{name}.csv").exists(), name
        assert (results.folder / f"tables/{name}.md").exists(), name
    for name in figures.FIGURES:
        for kind in ("svg", "png"):
            assert (results.folder / f"figures/{name}.{kind}").stat().st_size > 1000, name
    assert (results.folder / "figures/film.gif").read_bytes().startswith(b"GIF89a")
    assert all(len(results.rows(name)) for name in STUDIES if name != "tuning")
    claims = pd.read_csv(results.folder / "tables/claims.csv", dtype={"claim": str})
    assert {"1", "2", "3", "4", "5", "6", "7"} <= set(claims.claim)
    assert "## 7. " in (results.folder / "claims.md").read_text()
    assert results.sealed() == results.digests()


def test_of_the_sets_those_of_the_first_seed_are_kept_and_the_digest_of_each(printed):
    results, wanted = Results(printed / "results/smoke"), main_sets(profile("smoke"))
    places = [(of.cell, of.method, of.distil_seed) for of in wanted]
    lines = results.set_digests()[["cell", "method", "distil_seed"]]
    assert sorted(places) == sorted(lines.itertuples(index=False, name=None))
    kept = {results.set_file(*place) for place in places if place[2] == 0}
    assert {*(results.folder / "sets").glob("*.safetensors")} == kept
    assert all(file.stat().st_size < 3 * LARGE for file in kept)


def test_a_second_run_computes_nothing_and_changes_nothing(printed, monkeypatch):
    monkeypatch.setenv("STORE", str(printed / "store"))
    monkeypatch.setenv("RESULTS", str(printed / "results"))
    monkeypatch.setenv("ENGINE", "serial")
    monkeypatch.setattr(stages, "MAKE", {})  # nothing can be made
    before = Results(printed / "results/smoke").digests()
    assert main(["paper", "smoke", "--notebook", "08_ablations"]) == 0
    assert Results(printed / "results/smoke").digests() == before


def test_a_kept_set_is_evaluated_from_its_file_alone(printed, monkeypatch, capsys):
    monkeypatch.setenv("STORE", str(printed / "store"))
    file = Results(printed / "results/smoke").set_file("digits-ipc1", "AST", 0)
    assert main(["evaluate", str(file), "--networks", "2", "--epochs", "5"]) == 0
    assert "(2)" in capsys.readouterr().out


def test_a_notebooks_own_study_is_computed_once_per_value_of_what_it_depends_on(tmp_path):
    paper, calls = Paper("smoke", tmp_path / "store", tmp_path / "results"), []

    def compute():
        calls.append(1)
        return pd.DataFrame({"i": range(3), "x": [0.1, None, 1 / 3]})

    first = paper.own("mine", {"lr": 0.1}, compute)
    pd.testing.assert_frame_equal(first, paper.own("mine", {"lr": 0.1}, compute))
    pd.testing.assert_frame_equal(first, paper.results.rows("mine"))
    assert calls == [1] and list(first.x.isna()) == [False, True, False]
    paper.own("mine", {"lr": 0.2}, compute)
    assert len(calls) == 2


def test_an_executed_copy_keeps_no_bars():
    def output(*kinds):
        return nbformat.v4.new_output("display_data", data=dict.fromkeys(kinds, ""))

    pieces = (("stdout", "one"), ("stderr", "90 % done"), ("stdout", "two"))
    streams = [nbformat.v4.new_output("stream", name=n, text=f"{t}\n") for n, t in pieces]
    outputs = [output(build.WIDGET, "text/plain"), *streams, output("image/png")]
    cells = [markdown("words"), code("1", outputs=outputs)]
    done = build.cleaned(nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {}}))
    text, drawn = done.cells[1].outputs
    assert text.text == "one\ntwo\n" and sorted(drawn.data) == ["image/png"]
    assert "widgets" not in done.metadata


def test_a_failed_notebook_is_set_aside_and_the_good_copy_stays(tmp_path):
    source = tmp_path / "00_wrong.ipynb"
    cells = [code('profile = "x"', metadata={"tags": ["parameters"]}), code("1 / 0")]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=KERNEL), source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/00_wrong.ipynb").write_text("the good copy")
    # cell 3: the parameters that are given are a cell of their own
    with pytest.raises(InputError, match="failed in cell 3 with ZeroDivisionError"):
        build.execute(source, tmp_path / "out", {"profile": "smoke"})
    assert (tmp_path / "out/00_wrong.failed.ipynb").exists()
    assert (tmp_path / "out/00_wrong.ipynb").read_text() == "the good copy"


def test_wrong_names_and_parameters_are_errors_before_any_work(tmp_path):
    with pytest.raises(InputError, match="no notebook '99_x': expected one of 00_tour"):
        build.notebooks(["99_x"])
    with pytest.raises(InputError, match=r"unknown parameter 'profil'.*expected one of profile"):
        build.check_parameters(SOURCES[0], {"profil": "smoke"})
    with pytest.raises(InputError, match="no study 'x': expected one of coresets"):
        build.run("x", "smoke")
    for text, fault in (
        ("- 1", "holds list"),
        ("a: [", "while parsing"),
        (None, "No such file"),
    ):
        file = tmp_path / f"{fault[:2]}.yaml"
        if text:
            file.write_text(text)
        with pytest.raises(InputError, match=f"{file.name}.*{fault}"):
            build.parameters_of(file)


def test_the_blocks_of_the_pages_are_filled_from_what_is_kept(printed, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "README", tmp_path / "README.md")
    monkeypatch.setattr(pages, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(pages, "BLOCKS", {"paper": "smoke"})
    monkeypatch.setenv("STORE", str(printed / "store"))
    monkeypatch.setenv("RESULTS", str(printed / "results"))
    (tmp_path / "docs").mkdir()
    text = "# A\n\n<!-- paper:start -->\nold\n<!-- paper:end -->\n\nMore.\n"
    (tmp_path / "README.md").write_text(text)
    (tmp_path / "docs/cells.md").write_text("<!-- cells:start --><!-- cells:end -->")
    pages.readme()
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("# A\n\n<!-- paper:start -->\n\n") and page.endswith("\n\nMore.\n")
    assert "old" not in page and "7. The whole beats" in page
    asked = [of for of in studies.main(profile("smoke")) if of.cell == "digits-ipc1"]
    sizes = {of.settings.of.iterations for of in asked if of.method == "AST"}
    assert f"{sizes.pop()} outer iterations" in page and "training images" in page
    table = pages.cells_table(pd.read_csv(pages.CELLS))
    assert table in (tmp_path / "docs/cells.md").read_text() and "| CIFAR-10, 32 px" in table
    (tmp_path / "README.md").write_text("<!-- paper:start -->")
    with pytest.raises(InputError, match=r"lost its markers.*found no <!-- paper:end -->"):
        pages.fill("paper", "words")
    with pytest.raises(InputError, match="no page has a block 'bench'"):
        pages.fill("bench", "words")
    assert (tmp_path / "README.md").read_text() == "<!-- paper:start -->"


def test_the_scale_is_that_of_the_profile():
    assert re.search(
        r"`mnist_m_5k-ipc1`: 50 outer iterations, 4 experts of 8 epochs × 14 steps, a convnet of "
        r"width 32, \d{4} training images, 5 distillation seeds",
        pages.scale(profile("laptop")),
    )
