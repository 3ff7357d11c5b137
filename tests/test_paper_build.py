"""The notebooks: clean sources, each executed under `smoke`; what a paper leaves, and its pages."""

import asyncio
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pandas as pd
import pytest
import torch
import yaml
from jupyter_core.utils import ensure_async
from jupyter_server.services.contents.filemanager import FileContentsManager

from ddlib.__main__ import main
from ddlib.base import InputError, key
from ddlib.paper import build, figures, pages, tables
from ddlib.paper.paper import LARGE, Paper, main_sets
from ddlib.paper.results import KINDS, Results
from ddlib.runs import stages, studies
from ddlib.runs.methods import CORESETS, distillation
from ddlib.runs.profile import over, profile
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
    (lines,) = (source.splitlines() for source in given)
    cost = [line for line in lines if line.startswith("# ")]
    assert cost and lines[: len(cost)] == cost, "what it costs"
    assert lines[-1] == 'profile = "laptop"'
    assert all(re.match(r"\w+ = ", line) for line in lines[len(cost) :])
    assert "smoke" in " ".join(cost) and "laptop" in " ".join(cost)
    title = notebook.cells[0].source.splitlines()[0]
    assert title.startswith("# ") and title.endswith("?"), "a notebook's title is its question"
    words = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    assert any("## What we saw" in text for text in words)
    assert max(len(cell.source.splitlines()) for cell in cells) <= 20, "move it to the library"


def test_there_are_fifteen_notebooks_and_their_studies_are_found_in_their_source():
    assert [file.stem[:2] for file in SOURCES] == [f"{i:02}" for i in range(15)]
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
            if source.startswith("paper.schematic("):
                assert ["image/svg+xml" in output["data"] for output in cell["outputs"]] == [True]
        assert str(printed) not in text and str(Path.home()) not in text, "a path of this machine"


def test_a_paper_leaves_every_table_figure_row_and_set_under_a_seal(printed):
    results = Results(printed / "results/smoke")
    for name in tables.TABLES.keys() - {"tuning"}:
        assert (results.folder / f"tables/{name}.csv").exists(), name
        assert (results.folder / f"tables/{name}.md").exists(), name
    for name in figures.FIGURES.keys() - {"benchmark"}:  # of digits nobody publishes numbers
        for kind in KINDS:
            assert (results.folder / f"figures/{name}.{kind}").stat().st_size > 1000, name
    assert (results.folder / "figures/film.gif").read_bytes().startswith(b"GIF89a")
    assert all(len(results.rows(name)) for name in STUDIES if name != "tuning")
    claims = pd.read_csv(results.folder / "tables/claims.csv", dtype={"claim": str})
    assert {"1", "2", "3", "4", "5", "6", "7"} <= set(claims.claim)
    assert "## 7. " in (results.folder / "claims.md").read_text()
    assert results.sealed() == results.digests()


def test_sets_of_the_first_seed_are_kept_and_the_digest_of_each(
    printed,
):
    results, wanted = Results(printed / "results/smoke"), main_sets(profile("smoke"))
    places = [(of.cell, of.method, of.distil_seed) for of in wanted]
    lines = results.set_digests()[["cell", "method", "distil_seed"]]
    assert sorted(places) == sorted(lines.itertuples(index=False, name=None))
    shown = {
        (of.cell, of.method)
        for of in wanted
        if of.method not in CORESETS or of.settings.of.ipc == 1
    }
    kept = {results.set_file(*place) for place in places if place[2] == 0 and place[:2] in shown}
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
    before = dict(os.environ)  # what kernels are told is not told to who asked
    # cell 3: the parameters that are given are a cell of their own
    with pytest.raises(InputError, match="failed in cell 3 with ZeroDivisionError"):
        build.execute(source, tmp_path / "out", {"profile": "smoke"})
    assert (tmp_path / "out/00_wrong.failed.ipynb").exists()
    assert (tmp_path / "out/00_wrong.ipynb").read_text() == "the good copy"
    assert dict(os.environ) == before


def test_wrong_names_and_parameters_are_errors_before_any_work(tmp_path):
    with pytest.raises(InputError, match="no notebook '99_x': expected one of 00_tour"):
        build.notebooks(["99_x"])
    with pytest.raises(InputError, match="no study 'x': expected one of coresets"):
        build.run("x", "smoke")
    for text, fault in (
        ("profil: smoke", r"unknown parameter 'profil'.*expected one of profile"),
        ("profile: smoke", "names a profile: name it on the command line"),
        ("- 1", "holds list"),
        ("a: [", "while parsing"),
        (None, "No such file"),
    ):
        file = tmp_path / f"{fault[:2]}.yaml"
        if text:
            file.write_text(text)
        with pytest.raises(InputError, match=fault) as error:
            build.parameters_of(file, SOURCES[:1])
        assert file.name in str(error.value)


def test_the_blocks_of_the_pages_are_filled_from_what_is_kept(printed, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "README", tmp_path / "README.md")
    monkeypatch.setattr(pages, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(pages, "BLOCKS", {"paper": ("smoke", pages.summary)})
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
    table = pages.cells_table()
    assert table in (tmp_path / "docs/cells.md").read_text() and "| CIFAR-10, 32 px" in table
    (tmp_path / "README.md").write_text("<!-- paper:start -->")
    with pytest.raises(InputError, match=r"lost its markers.*found no <!-- paper:end -->"):
        pages.fill("paper", "words")
    with pytest.raises(InputError, match="no page has a block 'bench'"):
        pages.fill("bench", "words")
    assert (tmp_path / "README.md").read_text() == "<!-- paper:start -->"


def test_the_scale_is_that_of_the_profile():
    assert re.search(
        r"`mnist_m_5k-ipc1`: 300 outer iterations, 5 experts of 8 epochs × 14 steps, a convnet of "
        r"width 32, \d{4} training images, 5 distillation seeds",
        pages.scale(profile("laptop")),
    )


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.stem)
def test_a_notebook_that_was_run_and_saved_is_the_same_file(file, tmp_path, printed):
    """As `make lab` sets Jupyter up; what is saved here was run and holds outputs."""
    hook = {"c": SimpleNamespace(FileContentsManager=SimpleNamespace())}
    exec((build.HOME / ".jupyter/jupyter_server_config.py").read_text(), hook)
    manager = FileContentsManager(root_dir=str(tmp_path))
    manager.pre_save_hook = hook["c"].FileContentsManager.pre_save_hook
    ran = nbformat.read(printed / f"results/smoke/notebooks/{file.name}", as_version=4)
    ran.cells = [c for c in ran.cells if "injected-parameters" not in c.metadata.get("tags", [])]
    for cell in ran.cells:
        cell.metadata |= {"trusted": True}
    model = {"type": "notebook", "format": "json", "content": ran}
    asyncio.run(ensure_async(manager.save(model, file.name)))
    assert (tmp_path / file.name).read_bytes() == file.read_bytes()


def test_a_readers_session_writes_nothing_of_the_paper(printed, tmp_path, monkeypatch):
    """A notebook that nobody prints keeps what it makes in the store, and reads what is printed."""
    monkeypatch.delenv("RESULTS", raising=False)
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setattr("ddlib.runs.store.HOME", tmp_path)
    shutil.copytree(printed / "results", tmp_path / "results")
    before = {f: f.read_bytes() for f in (tmp_path / "results").rglob("*") if f.is_file()}
    paper = Paper("smoke")
    paper.results.keep_rows("main", paper.results.rows("main").head(8))
    paper.table("tuning")
    paper.figure("experts")
    assert (
        len(paper.results.rows("main")) == 8
        and len(Paper.printed("smoke").results.rows("main")) > 8
    )
    assert before == {f: f.read_bytes() for f in (tmp_path / "results").rglob("*") if f.is_file()}
    kept = {f.name for f in (tmp_path / "store/results/smoke").rglob("*") if f.is_file()}
    assert kept >= {"main.csv", "experts.png"}


def test_a_reader_is_shown_what_is_kept_and_nothing_is_made(printed, tmp_path, monkeypatch):
    monkeypatch.delenv("RESULTS", raising=False)
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setattr("ddlib.runs.store.HOME", tmp_path)
    shutil.copytree(printed / "results", tmp_path / "results")
    paper, kept = Paper("smoke"), Results(tmp_path / "results/smoke")
    for study in ("main", "experts", "costs", "film", "ablation", "architectures", "memory"):
        assert paper.study(study).equals(kept.rows(study))
    of = distillation(paper.profile, paper.profile.main_cell, "AST", seed=0)
    images = kept.set(paper.profile.main_cell, "AST").tensors["images"]
    assert torch.equal(paper.get(of).tensors["images"], images)
    assert paper.film() == (kept.folder / "figures/film.gif").read_bytes()
    paper.keep_sets()
    assert not [*paper.store.root.rglob("*.safetensors")]
    # rows that are gone are of results that have to be made, and those alone
    rows = kept.rows("experts")
    kept.keep_rows("experts", rows[rows.settings_key != rows.settings_key[0]])
    assert [key(task) for task in paper.lacking("experts")] == [rows.settings_key[0]]
    again = paper.study("experts")
    assert again.equals(rows) and len([*paper.store.root.rglob("experts/*.safetensors")]) == 1
    # a session that does not read makes all of them
    assert len(Paper.printed("smoke").lacking("main")) == len(Paper.printed("smoke").tasks("main"))


def test_a_notebooks_own_rows_are_computed_once_for_what_they_depend_on(tmp_path, monkeypatch):
    monkeypatch.setenv("KEPT", "1")

    def rows(store, about, compute):
        paper = Paper("smoke", store=tmp_path / store, results=tmp_path / "results")
        return paper.own("continual", about, compute)

    def never():
        pytest.fail("computed again")

    made = rows("one", {"tasks": 2}, lambda: [{"seed": 0, "accuracy": 0.5}])
    assert made[["seed", "accuracy"]].values.tolist() == [[0, 0.5]]
    # from that store, and in another from the rows that are kept
    assert rows("one", {"tasks": 2}, never).equals(made)
    assert rows("two", {"tasks": 2}, never).equals(made)
    # rows that a store has made do not stand beside those of the machine that made the others
    kept = Results(tmp_path / "results")
    kept.keep_rows("continual", kept.rows("continual").assign(accuracy=0.75))
    assert rows("one", {"tasks": 2}, never).accuracy.tolist() == [0.75]
    # rows that depend on something else are other rows
    other = rows("two", {"tasks": 3}, lambda: [{"seed": 0, "accuracy": 0.25}])
    assert other.accuracy.tolist() == [0.25] and {*other.settings_key} != {*made.settings_key}


def test_a_profile_that_leaves_no_notebook_is_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    file = tmp_path / "mine.yaml"
    file.write_text("extends: smoke\nablation: null\n")
    with pytest.raises(InputError, match="no notebook is left to run"):
        build.paper(str(file), only=["08_ablations"])
    assert not (tmp_path / "results").exists()


def test_kept_rows_stand_under_the_names_that_the_profile_gives_now(tmp_path, monkeypatch):
    """A renamed group or cell loses none, and a row that had two names has each once."""
    file = tmp_path / "mine.yaml"
    file.write_text("extends: smoke\nablation: {more: {mine: {base: AST, methods: [MTT]}}}\n")
    monkeypatch.setenv("KEPT", "1")
    paper = Paper(str(file), store=tmp_path / "store", results=tmp_path / "results")
    asked = [*STUDIES["ablation"].asks(paper.profile)]
    lines = [
        label | {"group": group, "accuracy": 0.5, "net_seed": 0, "settings_key": key(settings)}
        for label, settings in asked
        for group in ("before", "and before that")
    ]
    paper.results.keep_rows("ablation", pd.DataFrame(lines))
    assert not paper.lacking("ablation")
    rows = paper.study("ablation")
    assert [*rows.group] == [label["group"] for label, _ in asked] and "mine" in {*rows.group}
    assert not [*tmp_path.rglob("*.safetensors")]


def test_a_notebook_runs_again_from_what_is_kept(printed, tmp_path, monkeypatch):
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("KEPT", "1")
    shutil.copytree(printed / "results", tmp_path / "results")
    before = Results(tmp_path / "results/smoke").digests()
    build.paper("smoke", only=["07_evaluation"])
    assert Results(tmp_path / "results/smoke").digests() == before
    made = {file.parent.name for file in (tmp_path / "store").rglob("*.safetensors")}
    assert made <= {"data"}


def test_two_profiles_of_one_name_share_no_results(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    folders = set()
    for place in ("a/mine", "b/mine", "a/laptop", "a/smoke"):
        file = tmp_path / f"{place}.yaml"
        file.parent.mkdir(exist_ok=True)
        file.write_text("extends: smoke\n")
        folders |= {Paper(str(file)).results.folder, Paper.printed(str(file)).results.folder}
    assert len(folders) == 4
    assert not folders & {tmp_path / "results/laptop", tmp_path / "results/smoke"}
    monkeypatch.chdir(tmp_path / "a")
    assert Paper("mine.yaml").results.folder in folders


def test_a_kernel_that_is_killed_is_named_and_set_aside(tmp_path, monkeypatch):
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    cells = [nbformat.v4.new_code_cell('profile = "smoke"', metadata={"tags": ["parameters"]})]
    source = nbformat.v4.new_notebook(cells=[*cells, nbformat.v4.new_code_cell(kill)])
    source.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(source, tmp_path / "00_dies.ipynb")
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path)
    with pytest.raises(InputError, match=r"00_dies.ipynb could not be run.*WORKERS=1"):
        build.execute(tmp_path / "00_dies.ipynb", tmp_path / "done", {})
    assert [f.name for f in (tmp_path / "done").iterdir()] == ["00_dies.failed.ipynb"]


def test_notebooks_run_in_this_python_whatever_kernels_there_are(tmp_path, monkeypatch):
    spec = tmp_path / "jupyter/kernels/python3"
    spec.mkdir(parents=True)
    argv = ["/bin/false", "{connection_file}"]
    (spec / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "x"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    cell = nbformat.v4.new_code_cell("import sys; print(sys.executable)")
    source = nbformat.v4.new_notebook(cells=[cell])
    source.metadata["kernelspec"] = {"name": "python3", "display_name": "", "language": "python"}
    nbformat.write(source, tmp_path / "00_who.ipynb")
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path)
    build.execute(tmp_path / "00_who.ipynb", tmp_path / "done", {})
    assert sys.executable in (tmp_path / "done/00_who.ipynb").read_text()
    assert os.environ["JUPYTER_PATH"] == str(tmp_path / "jupyter")


ODD = {
    "controls alone": {"ablation": {"cell": "digits-ipc1", "groups": ["controls"]}, "seeds": 1},
    "no ablation": {"ablation": None},
    "coresets alone": {
        "ablation": None,
        "cross_architecture": None,
        "tuning": [],
        "cells": {"digits-ipc1": {"methods": ["random", "k-means"]}},
    },
    "larger sets alone": {
        "cells": {"digits-ipc1": {"ipc": 2, "student": {"batch": None}}},
        "ablation": {"cell": "digits-ipc3", "groups": ["AST minus one"]},
    },
    "the same data twice": {"cells": {"digits-ipc3": {"data": {"name": "digits", "seed": 1}}}},
}


@pytest.mark.parametrize("odd", ODD)
def test_every_profile_gets_its_claims_tables_and_figures(
    odd, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    """What it does not ask for is left out, by name."""
    monkeypatch.setenv("STORE", str(tmp_path_factory.getbasetemp() / "odd"))  # one for all
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("WORKERS", "1")
    monkeypatch.setattr(Results, "kinds", ("png",))
    short = {"evaluation": {"networks": 1, "epochs": 1, "lrs": [0.01]}, "seeds": 2}
    fields = {"extends": "smoke"} | over(short, ODD[odd])
    (tmp_path / "odd.yaml").write_text(yaml.safe_dump(fields))
    paper = Paper(str(tmp_path / "odd.yaml"))
    for study in (
        "main",
        "ablation",
        "cross_architecture",
        "coresets",
        "curves",
        "costs",
        "scores",
    ):
        paper.study(study)
    for study in ("experts", "smoothness", "following"):
        paper.study(study)
    paper.keep_sets()
    build.figures(str(tmp_path / "odd.yaml"))
    said = capsys.readouterr().out
    drawn = {f.stem for f in paper.results.folder.glob("*/*") if f.suffix in (".png", ".csv")}
    assert {"main", "summary", "claims", "smoothness", "experts", "scores", "costs"} <= drawn
    if odd in ("coresets alone", "no ablation"):
        assert "The table ablation is left out" in said and "The figure ablation is" in said
    assert (paper.results.folder / "claims.md").read_text().count("\n## ") == 8


@pytest.mark.parametrize("error, runs", [(InputError("it failed"), 2), (KeyboardInterrupt(), 1)])
def test_the_last_notebook_runs_after_a_failure_and_not_after_an_interrupt(
    error, runs, printed, tmp_path, monkeypatch
):
    monkeypatch.setenv("STORE", str(printed / "store"))
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("ENGINE", "serial")
    called = []

    def run(tasks, *rest):
        called.append([notebook.stem for notebook in tasks])
        if len(called) == 1:
            raise error

    monkeypatch.setattr(build.engine, "run", run)
    monkeypatch.setattr(build.runs, "ensure", lambda *rest: None)
    monkeypatch.setattr(build.Paper, "study", lambda *rest: None)
    with pytest.raises(type(error)):
        build.paper("smoke")
    assert len(called) == runs and called[-1] == (["09_paper"] if runs == 2 else called[0])
