"""The notebooks: clean sources, and every one executed from nothing under `smoke`, with all that a paper leaves."""

import json
import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from ddlib.__main__ import main
from ddlib.paper import build as press
from ddlib.paper import figures as plots
from ddlib.paper import tables
from ddlib.paper.results import Results
from ddlib.runs import stages as pipeline
from ddlib.runs import studies
from ddlib.settings import InputError

SOURCES = press.notebooks()


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: f.stem)
def test_what_a_notebook_reads_is_made_before_it_runs(file):
    """Else its kernel makes it, and what is left in the executed copy depends on what ran before."""
    assert set(re.findall(r'paper\.study\(\\"(\w+)\\"\)', file.read_text())) == set(
        press.NEEDS.get(file.stem, [])
    )


@pytest.mark.parametrize("file", SOURCES, ids=lambda f: f.stem)
def test_source_is_clean(file):
    book = nbformat.read(file, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3"
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), (
        "sources carry no outputs: executed copies live under results/"
    )
    assert [cell.source for cell in code if "parameters" in cell.metadata.get("tags", [])] == [
        'profile = "laptop"'
    ]
    assert book.cells[0].source.startswith("# ") and book.cells[0].source.splitlines()[0].endswith(
        "?"
    ), "a notebook's title is its question"
    assert any(
        cell.source.split("\n\n")[-1].startswith("## What we saw")
        or "## What we saw" in cell.source
        for cell in book.cells
        if cell.cell_type == "markdown"
    )
    assert max(len(cell.source.splitlines()) for cell in code) <= 20, "a long cell is library code"


def test_fourteen_notebooks_in_order():
    assert [f.stem[:2] for f in SOURCES] == [f"{i:02}" for i in range(14)]
    assert set(press.NEEDS) <= {f.stem for f in SOURCES}


def test_every_notebook_runs(printed):
    done = sorted((printed / "results/smoke/notebooks").glob("*.ipynb"))
    assert [f.name for f in done] == [f.name for f in SOURCES]
    for file in done:
        book = json.loads(file.read_text())
        outputs = [o for cell in book["cells"] for o in cell.get("outputs", [])]
        assert not [o for o in outputs if o["output_type"] == "error"]
        assert [o for o in outputs if "image/png" in o.get("data", {})], (
            f"{file.name} shows no figure"
        )
        for source, shown in (
            ("".join(cell["source"]), cell["outputs"])
            for cell in book["cells"]
            if cell["cell_type"] == "code"
        ):
            if "plt.subplots(" in source or source.splitlines()[-1].startswith(
                ("paper.figure(", "plots.", "play.")
            ):
                assert any("image/png" in o.get("data", {}) for o in shown), (
                    f"{file.name} draws and does not show:\n{source}"
                )
        assert str(printed) not in file.read_text() and str(Path.home()) not in file.read_text(), (
            "an executed copy tells no paths of its machine"
        )


def test_all_tables_figures_rows_and_sets_are_left(printed):
    folder = printed / "results/smoke"
    for name in tables.TABLES:
        assert (folder / f"tables/{name}.csv").exists() and (folder / f"tables/{name}.md").exists()
    for name in plots.FIGURES:
        assert (folder / f"figures/{name}.svg").stat().st_size > 1000 and (
            folder / f"figures/{name}.png"
        ).stat().st_size > 1000
    assert (folder / "figures/film.gif").read_bytes().startswith(b"GIF89a")
    for name in studies.RUNS:
        assert len(Results(folder).rows(name))
    assert Results(folder).set("digits-ipc1", "AST").record["lr"] > 0
    claims = pd.read_csv(folder / "tables/claims.csv")
    assert list(claims.columns) == [
        "claim",
        "statement",
        "effect",
        "low",
        "high",
        "n",
        "verdict",
        "settled_by",
    ]
    assert "## 7. " in (folder / "claims.md").read_text()
    assert {"1", "2", "3", "4", "5", "6", "7"} <= set(claims.claim.astype(str))


def test_a_second_run_computes_nothing_and_changes_nothing(printed, monkeypatch):
    monkeypatch.setenv("STORE", str(printed / "store"))
    monkeypatch.setenv("RESULTS", str(printed / "results"))
    before = {
        f: f.read_bytes()
        for f in (printed / "results/smoke").rglob("*")
        if f.suffix in (".csv", ".md", ".svg", ".safetensors")
    }
    monkeypatch.setenv("ENGINE", "serial")
    monkeypatch.setattr(pipeline, "MAKE", {})  # nothing is left to make
    assert main(["paper", "smoke", "--notebook", "07_evaluation"]) == 0
    assert main(["figures", "smoke"]) == 0
    changed = [f.name for f, content in before.items() if f.read_bytes() != content]
    assert not changed


def test_a_kept_set_is_evaluated_from_its_file_alone(printed, monkeypatch, capsys):
    monkeypatch.setenv("STORE", str(printed / "store"))
    file = Results(printed / "results/smoke").set_file("digits-ipc1", "AST", 0)
    assert main(["evaluate", str(file), "--networks", "2", "--epochs", "5"]) == 0
    assert "(2)" in capsys.readouterr().out


def test_an_executed_copy_keeps_no_bars():
    def output(*kinds):
        return nbformat.v4.new_output("display_data", data=dict.fromkeys(kinds, ""))

    said = [
        nbformat.v4.new_output("stream", name=name, text=f"{text}\n")
        for name, text in (("stdout", "one"), ("stderr", "90 % done"), ("stdout", "two"))
    ]
    shown = [output(press.WIDGET, "text/plain"), *said, output("image/png")]
    cells = [nbformat.v4.new_markdown_cell("words"), nbformat.v4.new_code_cell("1", outputs=shown)]
    done = press.cleaned(nbformat.v4.new_notebook(cells=cells, metadata={"widgets": {}}))
    printed, drawn = done.cells[1].outputs
    assert (
        printed.text == "one\ntwo\n"
        and sorted(drawn.data) == ["image/png"]
        and "widgets" not in done.metadata
    )


def test_a_failed_notebook_is_set_aside_and_the_good_copy_stays(tmp_path):
    source = tmp_path / "00_wrong.ipynb"
    cells = [
        nbformat.v4.new_code_cell('profile = "x"', metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("1 / 0"),
    ]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), source)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/00_wrong.ipynb").write_text("the good copy")
    with pytest.raises(
        InputError, match="failed in cell 3 with ZeroDivisionError"
    ):  # the parameters given are a cell of their own
        press.execute(source, tmp_path / "out", {"profile": "smoke"})
    assert (tmp_path / "out/00_wrong.failed.ipynb").exists()
    assert (tmp_path / "out/00_wrong.ipynb").read_text() == "the good copy"
