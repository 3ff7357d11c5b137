"""What `make verify` finds: nothing on a paper as it was made, and every harm done to it."""

import copy
import itertools
import json
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from ddlib.__main__ import main
from ddlib.base import InputError, key
from ddlib.paper import build, checks, pages, verify
from ddlib.paper.checks import DIFFERENT, NEAR, OK, UNCHECKED
from ddlib.paper.paper import Paper
from ddlib.paper.results import Results, rows_file
from ddlib.runs.profile import PROFILES
from ddlib.runs.store import HOME, read, write
from ddlib.runs.studies import STUDIES

SAMPLED = "digits-ipc1.mtt.0.safetensors"  # the cheapest set under `smoke`
SMOKE = yaml.safe_load((PROFILES / "smoke.yaml").read_text())
COMMITTED = sorted(rows.parent.name for rows in (HOME / "results").glob("*/rows"))
markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell


@pytest.fixture
def kept(printed, tmp_path, monkeypatch):
    """A copy of the results to do harm to, and a store that holds nothing."""
    shutil.copytree(printed / "results/smoke", tmp_path / "results/smoke")
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    return tmp_path / "results/smoke"


def differing(verdicts):
    return {verdict.file for verdict in verdicts if verdict.verdict == DIFFERENT}


def notes(verdicts):
    return {verdict.file: verdict.note for verdict in verdicts}


def edit_csv(file, change):
    """Rewrite rows with `change` done to them."""
    table = pd.read_csv(file, float_precision="round_trip")
    change(table)
    table.to_csv(file, index=False, lineterminator="\n")


def add(column, by, line=3):
    def change(table):
        table.loc[table.index[line], column] += by

    return change


def test_a_paper_verifies_and_stays_as_it_is(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENGINE", "serial")
    before = {file: file.read_bytes() for file in kept.rglob("*") if file.is_file()}
    assert main(["verify", "smoke"]) == 0
    text, progress = capsys.readouterr()
    assert ": the same kind" in text and DIFFERENT not in text and NEAR not in text
    verdicts = {line.rsplit(OK)[0].strip() for line in text.splitlines() if OK in line}
    assert verdicts >= {
        "SHA256SUMS",
        "tables/claims",
        "figures/main",
        "rows/costs.csv",
        "sets/digests.csv",
        "sets/digits-ipc1.ast.0.safetensors",
        "notebooks/09_paper.ipynb",
        f"sets/{SAMPLED}, anew",
        *(f"{rows_file(study)}, anew" for study in ("experts", "smoothness", "curves", "main")),
    }
    assert "made anew with" in progress
    assert before == {file: file.read_bytes() for file in kept.rglob("*") if file.is_file()}
    assert not list((tmp_path / "store").glob("sets")), "a sample stays out of the usual store"


def harm_bytes(kept):
    damaged = kept / "sets/digits-ipc3.ast.0.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)


def test_what_was_changed_by_hand_is_named_and_nothing_else(kept, capsys):
    table = kept / "tables/ablation.csv"
    table.write_text(table.read_text().replace("AST − ramp", "AST - ramp"))
    harm_bytes(kept)
    shutil.copy(kept / "figures/main.png", kept / "figures/norms.png")
    (kept / "figures/mine.svg").write_text("<svg/>")
    (kept / "figures/main.svg").unlink()
    (kept / "machine.json").write_text("{")
    (kept / "rows/scores.csv").write_bytes(b"\xff\x00")
    (kept / "rows/.half-x").touch()
    failed = kept / "notebooks/03_smoothness.ipynb"
    shutil.copy(failed, kept / "notebooks/03_smoothness.failed.ipynb")
    notebook = json.loads(failed.read_text())
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    fault = {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
    failed.write_text(json.dumps(notebook | {"cells": [cell | {"outputs": [fault]}]}))
    assert main(["verify", "smoke", "--quick"]) == 1
    text, errors = capsys.readouterr()
    lines = [line for line in text.splitlines()[:-2] if DIFFERENT in line]
    changed = ["ablation.csv", "digits-ipc3.ast.0.safetensors", "norms.png", "main.svg"]
    changed += ["mine.svg", "machine.json", "scores.csv", "03_smoothness.ipynb"]
    sealed = [name for name in changed if any(line.split()[0].endswith(name) for line in lines)]
    assert sealed == changed
    also = {"tables/ablation", "tables/scores", "figures/main", "figures/norms"}
    assert {line.split()[0] for line in lines} == also | {
        line.split()[0] for line in lines if line.split()[0].endswith(tuple(changed))
    }
    for part in ("reads '", "is damaged", "holds an error: ValueError", "remove it"):
        assert any(part in line for line in lines), part
    for name in ("rows/.half-x", "notebooks/03_smoothness.failed.ipynb"):
        assert name not in text, "it may be of a run that goes on"
    assert "Traceback" not in text + errors and "anew" not in text


def test_a_missing_or_broken_seal_is_one_line(kept):
    assert not differing(checks.sealed(Paper("smoke")))
    for text in ("", "not a digest", None):
        (kept / "SHA256SUMS").unlink() if text is None else (kept / "SHA256SUMS").write_text(text)
        assert differing(checks.sealed(Paper("smoke"))) == {"SHA256SUMS"}


@pytest.mark.parametrize(
    "kept_text, made, same",
    [
        ("a,b\n1,2.5\n", "a,b\n1,2.50001\n", True),
        ("a,b\n1,2.5\n", "a,b\n1,2.5001\n", False),
        ("a,b\n1,2\n", "a,b\n1,2\n3,4\n", False),
        ("a,b\n1,2\n", "b,a\n1,2\n", False),
        ("x-1,−0.3 [n 5]\n", "x-1,−0.3 [n 6]\n", False),
        ("| 1.0 | x |\n|:---|---:|\n", "| 1.000001 | x |\n|:------|---:|\n", True),
        ("MTT 1", "AST 1", False),
        ("1,,", "1,0,", False),
    ],
)
def test_texts_are_compared_with_numbers_as_numbers(kept_text, made, same):
    assert (checks.parting(kept_text, made) is None) == same


def drop(rows):
    rows.drop(rows.index[rows.method == "AST"], inplace=True)


def double(rows):
    rows.loc[len(rows)] = rows.loc[0]


def other_lr(rows):
    rows.loc[rows.index[rows.protocol == "lr_a"][0], "lr"] += 1e-6


def replace(rows):
    rows.loc[1] = rows.loc[0]


@pytest.mark.parametrize(
    "study, change, fault",
    [
        ("main", drop, "0 rows, expected 4"),
        ("main", double, "3 rows, expected 2"),
        ("experts", replace, "a row stands there twice"),
        ("main", other_lr, "lr is"),
        ("curves", add("lr", 1e-6, 0), "lr is"),
        ("ablation", add("distil_seed", 5), "1 rows, expected 2"),
        ("costs", add("distil_seed", 5), "0 rows, expected 1"),
        ("film", lambda rows: rows.rename(columns={"cell": "x"}, inplace=True), "KeyError"),
    ],
)
def test_rows_that_the_profile_does_not_ask_for_are_named(study, change, fault, kept):
    edit_csv(kept / rows_file(study), change)
    verdicts = list(checks.of_rows(Paper("smoke")))
    assert differing(verdicts) == {rows_file(study)}
    assert fault in notes(verdicts)[rows_file(study)]


def test_results_of_other_settings_are_named(kept, tmp_path):
    fields = copy.deepcopy(SMOKE)
    fields["cells"]["digits-ipc1"]["tuned"]["AST"]["lr_images"] = 31.0
    (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(fields))
    paper = Paper(str(tmp_path / "smoke.yaml"), results=kept)
    verdicts = [*checks.of_sets(paper), *checks.of_rows(paper)]
    studies = ("main", "ablation", "scores", "curves", "costs", "following", "film")
    ast = "sets/digits-ipc1.ast.0.safetensors"
    assert differing(verdicts) == {ast, *(rows_file(study) for study in studies)}
    assert "lr_images is 30.0 there, 31.0 was asked for" in notes(verdicts)[ast]


def test_a_past_search_may_be_of_another_format_but_not_of_other_candidates(kept):
    paper = Paper("smoke")
    rows = [
        label | {"settings_key": key(task)}
        for label, task in STUDIES["tuning"].asks(paper.profile)
        for _ in range(checks.length("tuning", task))
    ]
    table = pd.DataFrame(rows).assign(line=range(len(rows)))
    for changes, verdict in (
        ({}, OK),
        ({"settings_key": "of another format"}, UNCHECKED),
        ({"settings_key": "of other iterations", "iterations": 7}, UNCHECKED),
        ({"tried": "lr_images = 1"}, DIFFERENT),
    ):
        paper.results.keep_rows("tuning", table.assign(**changes))
        assert checks.checked("tuning", checks.rows_fault, paper, "tuning").verdict == verdict


def test_sets_and_their_digests_are_held_to_one_another(kept):
    paper = Paper("smoke")
    assert not differing(checks.of_sets(paper))
    first, other = (kept / f"sets/digits-ipc1.ast.{seed}.safetensors" for seed in (0, 1))
    shutil.copy(first, other)
    verdicts = list(checks.of_sets(paper))
    assert differing(verdicts) == {f"sets/{other.name}"}
    other.unlink()
    edit_csv(kept / "sets/digests.csv", lambda rows: rows.drop(index=0, inplace=True))
    verdicts = list(checks.of_sets(paper))
    assert "1 sets have no digest" in notes(verdicts)["sets/digests.csv"]
    (kept / "sets/digests.csv").write_text("x")
    assert "sets/digests.csv" in differing(checks.of_sets(paper))


def test_an_executed_copy_must_be_todays_notebook_run_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "NOTEBOOKS", tmp_path / "notebooks")
    paper = Paper("smoke", tmp_path / "store", tmp_path / "results/smoke")
    copies = paper.results.folder / "notebooks"
    for folder in (build.NOTEBOOKS, copies):
        folder.mkdir(parents=True)
    shown = [nbformat.v4.new_output("stream", name="stdout", text="1")]

    def given(profile):
        tags = {"tags": ["injected-parameters"]}
        return code(f'profile = "{profile}"', metadata=tags, execution_count=2)

    asked = [markdown("# Why?"), code('profile = "laptop"'), code("a = 1\nprint(a)")]

    def run(source=asked[2].source, execution_count=3, outputs=shown):
        return code(source, execution_count=execution_count, outputs=outputs)

    start = [asked[0], code(asked[1].source, execution_count=1)]
    error = nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
    cells = {
        "00_same": [*start, given("smoke"), run()],
        "01_line": [*start, given("smoke"), run("a = 2\nprint(a)")],
        "02_fewer": [start[1], given("smoke"), run()],
        "03_failed": [*start, given("smoke"), run(outputs=[error])],
        "04_not_run": [*start, given("smoke"), run(execution_count=None)],
        "05_no_outputs": [*start, given("smoke"), run(outputs=[])],
        "06_profile": [*start, given("laptop"), run()],
        "07_default": [*start, run()],
        "08_gone": [*start, given("smoke"), run()],
    }
    for name, done in cells.items():
        if name != "08_gone":
            notebook = nbformat.v4.new_notebook(cells=asked)
            nbformat.write(notebook, build.NOTEBOOKS / f"{name}.ipynb")
        nbformat.write(nbformat.v4.new_notebook(cells=done), copies / f"{name}.ipynb")
    (build.NOTEBOOKS / "09_broken.ipynb").write_text("{}")
    (copies / "09_broken.ipynb").write_text("{")
    verdicts = {Path(verdict.file).stem: verdict for verdict in checks.of_notebooks(paper)}
    expected = {
        "01_line": "cell 3 is not that of today's notebook",
        "02_fewer": "cell 1 is not that of today's notebook",
        "03_failed": "holds an error: ValueError",
        "04_not_run": "code cell 3 was not run",
        "05_no_outputs": "it has no outputs",
        "06_profile": "run with the profile laptop, not smoke",
        "07_default": "run with the profile of the notebook, not smoke",
        "08_gone": "there is no 08_gone.ipynb in notebooks/",
        "09_broken": "cannot be checked: NotJSONError",
    }
    assert {name for name, v in verdicts.items() if v.verdict == DIFFERENT} == expected.keys()
    assert verdicts["00_same"].verdict == OK
    for name, note in expected.items():
        assert note in verdicts[name].note


def test_the_machine_is_written_down_and_another_is_named(kept, capsys):
    paper, about = Paper("smoke"), json.loads((kept / "machine.json").read_text())
    (kept / "machine.json").write_text(json.dumps(about | {"cores": 512}))
    assert verify.same_kind(paper), "the number of cores changes no byte"
    (kept / "machine.json").write_text(json.dumps(about | {"processor": "Z80"}))
    assert not verify.same_kind(paper)
    assert "another kind (processor)" in capsys.readouterr().out
    for text in ("{", "[]", "{}"):
        (kept / "machine.json").write_text(text)
        assert not verify.same_kind(paper) and "not written down" in capsys.readouterr().out


def test_the_readme_is_held_to_the_tables(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "README", tmp_path / "README.md")
    monkeypatch.setattr(pages, "DOCS", tmp_path / "docs")
    blocks = dict.fromkeys(("paper", "full"), ("smoke", pages.summary))
    monkeypatch.setattr(pages, "BLOCKS", blocks)
    pages.README.write_text("<!-- paper:start -->\n<!-- paper:end -->\n")
    paper = Paper("smoke")
    assert differing(checks.of_pages(paper)) == {"block paper"}
    pages.fill("paper", pages.summary(paper))
    assert [v.verdict for v in checks.of_pages(paper)] == [OK, UNCHECKED]
    (kept / "tables/claims.csv").unlink()
    assert differing(checks.of_pages(paper)) == {"block paper"}


@pytest.fixture(scope="module")
def other(printed, tmp_path_factory):
    """The sample made by plain PyTorch, which rounds as another processor would."""
    with pytest.MonkeyPatch.context() as patch:
        about = {"ENGINE": "processes", "WORKERS": "2", "DDLIB_KERNELS": "0"}
        places = {"STORE": str(printed / "store"), "RESULTS": str(printed / "results")}
        for name, value in {**about, **places}.items():
            patch.setenv(name, value)
        folder = tmp_path_factory.mktemp("anew")
        paper, fresh = Paper("smoke"), Paper("smoke", folder / "store", folder / "results")
        verify.make_sample(paper, fresh, verify.sample(paper))
    return fresh


def beside(fresh, alike):
    paper = Paper("smoke")
    return list(verify.beside(paper, fresh, verify.sample(paper), alike))


def test_what_was_found_is_printed_before_the_sample_is_made(kept, monkeypatch, capsys):
    def fails(*_):
        raise InputError("the data are not here")

    monkeypatch.setattr(verify, "make_sample", fails)
    with pytest.raises(InputError, match="not here"):
        verify.verify("smoke")
    assert "rows/main.csv" in (said := capsys.readouterr().out) and said.count(OK) > 20


def test_a_sample_that_was_rounded_otherwise_is_near_and_not_equal(kept, other):
    assert {verdict.verdict for verdict in beside(other, False)} == {NEAR}
    assert differing(beside(other, True)), "where bytes must be equal, near is not"


def with_images_of(name):
    """A sound file of the right settings that holds another set's images."""

    def harm(kept):
        of, file = verify.sample(Paper("smoke")), kept / "sets" / SAMPLED
        artefact, wrong = read(file), read(kept / f"sets/digits-ipc1.{name}.0.safetensors")
        tensors = artefact.tensors | {"images": wrong.tensors["images"]}
        write(file, of.settings.of, tensors, artefact.record)

    return harm


def in_rows(study, column, by):
    def change(rows):
        rows[column] += by

    return lambda kept: edit_csv(kept / rows_file(study), change)


@pytest.mark.parametrize(
    "name, harm",
    [
        (f"sets/{SAMPLED}", with_images_of("ast")),
        (f"sets/{SAMPLED}", with_images_of("random")),
        ("rows/main.csv", in_rows("main", "accuracy", 0.5)),
        ("rows/experts.csv", in_rows("experts", "test_accuracy", -0.3)),
        ("rows/smoothness.csv", in_rows("smoothness", "step", 1.0)),
        ("rows/curves.csv.gz", in_rows("curves", "lr", 0.1)),
    ],
)
def test_a_wrong_file_is_not_near(name, harm, kept, other):
    harm(kept)
    assert differing(beside(other, False)) == {f"{name}, anew"}


@pytest.mark.parametrize("profile", COMMITTED)
def test_the_committed_results_verify(profile, capsys, tmp_path, monkeypatch):
    """Without the sample, which takes minutes."""
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    assert main(["verify", profile, "--quick"]) == 0, capsys.readouterr().out


def text(path, change):
    def harm(kept):
        file = kept / path
        file.write_text(change(file.read_text()))

    return harm


def content(path, change):
    return lambda kept: (kept / path).write_bytes(change((kept / path).read_bytes()))


def lines(path, change):
    """Rows, the head apart."""

    def changed(content):
        head, *rows = content.splitlines()
        return "\n".join([head, *change(rows)]) + "\n"

    return text(path, changed)


def cells(change, name="02_experts"):
    """An executed notebook whose code cells were changed."""

    def harm(kept):
        file = kept / f"notebooks/{name}.ipynb"
        notebook = json.loads(file.read_text())
        change([cell for cell in notebook["cells"] if cell["cell_type"] == "code"])
        file.write_text(json.dumps(notebook))

    return harm


def other_output(code):
    shown = next(o for cell in code for o in cell["outputs"] if o["output_type"] == "stream")
    shown["text"] = ["all claims hold\n"]


def no_outputs(code):
    for cell in code:
        cell["outputs"] = []


def never_run(code):
    for cell in code:
        cell["execution_count"] = None


def other_profile(code):
    given = next(c for c in code if "injected-parameters" in c["metadata"].get("tags", []))
    given["source"] = ['profile = "laptop"']


def move(path, to):
    return lambda kept: (kept / path).rename(kept / to)


def copy_of(path, to):
    return lambda kept: shutil.copy(kept / path, kept / to)


def half(content):
    return content[: len(content) // 2]


HARMS = {  # and whether it shows, too, where somebody has written new seals
    "a row taken out": (lines("rows/main.csv", lambda rows: rows[1:]), True),
    "the last row taken out": (lines("rows/experts.csv", lambda rows: rows[:-1]), True),
    "a method taken out": (
        lines("rows/main.csv", lambda rows: [r for r in rows if ",AST," not in r]),
        True,
    ),
    "a row doubled": (lines("rows/main.csv", lambda rows: [rows[0], *rows]), True),
    "a row in another's place": (
        lambda kept: edit_csv(kept / "rows/curves.csv.gz", replace),
        True,
    ),
    "rows in another order": (lines("rows/main.csv", lambda rows: rows[::-1]), False),
    "no rows": (lines("rows/main.csv", lambda rows: []), True),
    "rows that are empty": (text("rows/main.csv", lambda t: ""), True),
    "rows that are no text": (content("rows/main.csv", lambda c: b"\xff\xfe" + c), True),
    "half of the rows": (content("rows/ablation.csv", half), True),
    "a column renamed": (text("rows/main.csv", lambda t: t.replace("cell", "cel", 1)), True),
    "an accuracy raised": (
        lambda kept: edit_csv(kept / "rows/main.csv", add("accuracy", 0.1)),
        True,
    ),
    "a seed renamed": (lambda kept: edit_csv(kept / "rows/main.csv", add("distil_seed", 7)), True),
    "rows of a study gone": (lambda kept: (kept / "rows/scores.csv").unlink(), True),
    "rows of no study": (copy_of("rows/main.csv", "rows/more.csv"), False),
    "a number in a table": (text("tables/main.csv", lambda t: t.replace("1", "2", 1)), True),
    "a table empty": (text("tables/scores.csv", lambda t: ""), True),
    "a table in other words": (text("tables/claims.md", lambda t: t.replace("not ", "")), True),
    "a table gone": (lambda kept: (kept / "tables/costs.csv").unlink(), True),
    "another table": (copy_of("tables/main.csv", "tables/best.csv"), True),
    "the ledger in other words": (
        text("claims.md", lambda t: t.replace("inconclusive", "sure")),
        True,
    ),
    "no ledger": (lambda kept: (kept / "claims.md").unlink(), True),
    "a figure of another": (copy_of("figures/main.png", "figures/claims.png"), True),
    "half a figure": (content("figures/main.png", half), True),
    "a figure that is none": (content("figures/main.png", lambda c: b"PNG"), True),
    "a drawing changed": (text("figures/main.svg", lambda t: t.replace("#", "# ", 9)), False),
    "a drawing gone": (lambda kept: (kept / "figures/main.svg").unlink(), True),
    "another figure": (copy_of("figures/main.png", "figures/best.png"), True),
    "a film changed": (content("figures/film.gif", lambda c: c[:-1]), False),
    "a set under another's name": (
        copy_of("sets/digits-ipc1.ast.0.safetensors", f"sets/{SAMPLED}"),
        True,
    ),
    "a byte of a set": (content(f"sets/{SAMPLED}", lambda c: c[:-1] + bytes([c[-1] ^ 1])), True),
    "half a set": (content(f"sets/{SAMPLED}", half), True),
    "a set renamed": (move(f"sets/{SAMPLED}", "sets/digits-ipc1.mtt.1.safetensors"), True),
    "no digests": (lambda kept: (kept / "sets/digests.csv").unlink(), True),
    "a digest taken out": (lines("sets/digests.csv", lambda rows: rows[1:]), True),
    "a digest changed": (
        text("sets/digests.csv", lambda t: t.replace("a", "b").replace("mbin", "main")),
        True,
    ),
    "an output changed": (cells(other_output), False),
    "no outputs": (cells(no_outputs), True),
    "a notebook that was not run": (cells(never_run), True),
    "run under another profile": (cells(other_profile), True),
    "half a notebook": (content("notebooks/09_paper.ipynb", half), True),
    "a notebook of none": (copy_of("notebooks/09_paper.ipynb", "notebooks/99_more.ipynb"), True),
    "a notebook gone": (lambda kept: (kept / "notebooks/02_experts.ipynb").unlink(), False),
    "a damaged machine": (text("machine.json", lambda t: "{"), False),
    "a file of nobody": (lambda kept: (kept / "notes.txt").write_text("mine"), False),
}


@pytest.mark.parametrize("harm", HARMS)
def test_every_harm_is_told(harm, kept, tmp_path):
    """By the seals; where those are made anew, by what the files say of one another."""
    do, lasting = HARMS[harm]
    paper = Paper("smoke")
    do(kept)
    assert differing(checks.sealed(paper)), harm
    assert len(HARMS) >= 43
    if lasting:
        paper.results.seal()
        fresh = Paper("smoke", tmp_path / "fresh/store", tmp_path / "fresh/results")
        asked = (checks.of_rows, checks.of_sets, checks.of_notebooks)
        told = (verdict for check in asked for verdict in check(paper))
        told = itertools.chain(told, checks.redrawn(paper, fresh))
        assert any(verdict.verdict == DIFFERENT for verdict in told), harm


def test_figures_drawn_from_rows_that_were_changed_say_so(kept, monkeypatch, capsys):
    monkeypatch.setattr(Results, "kinds", ("png",))
    edit_csv(kept / "rows/main.csv", add("accuracy", 0.1))
    assert main(["figures", "smoke"]) == 0
    said = capsys.readouterr().out
    assert (
        said.startswith("rows/main.csv is not the file that was sealed") and said.count("seal") == 1
    )


def test_results_that_are_being_made_are_not_judged(kept, capsys):
    """Nor is a half-written file of a run that goes on; two runs do not write the same results."""
    (kept / "rows" / ".half-main.csv").write_text("cell")
    assert not differing(checks.sealed(Paper("smoke")))
    with build.at_work(Paper("smoke")):
        assert main(["verify", "smoke", "--quick"]) == 2
        assert "a process is at work on" in capsys.readouterr().err


def test_what_an_independent_check_expects_is_there(tmp_path, monkeypatch):
    manifest = yaml.safe_load((HOME / "codecheck.yml").read_text())["manifest"]
    assert {entry["claim"] for entry in manifest if "claim" in entry} == set("12345678")
    paper = Paper("laptop")
    assert all(verdict.verdict == OK for verdict in checks.of_manifest(paper))
    lacking = checks.manifest_fault(paper, manifest[0] | {"claim": "9"})
    assert lacking == "results/laptop/tables/claims.csv has no claim 9"
    gone = {"figure": "x", "file": "results/laptop/figures/x.svg", "command": "make paper"}
    assert "x.svg is missing; `make paper` makes it" in checks.manifest_fault(paper, gone)
