"""What `make verify` finds: nothing on a paper as it was printed; on one that was changed by hand exactly what was changed; on another machine what is near enough."""

import copy
import json
import shutil
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml

from ddlib.__main__ import main
from ddlib.paper import build as press
from ddlib.paper import verify
from ddlib.paper.paper import STUDIES, Paper
from ddlib.paper.verify import DIFFERENT, EQUAL, NEAR, NOT_KEPT, UNCHECKED
from ddlib.runs.store import read, write
from ddlib.settings import PROFILES, key

SAMPLED = "digits-ipc3.mtt.0.safetensors"  # the cheapest set under `smoke`
SMOKE = yaml.safe_load((PROFILES / "smoke.yaml").read_text())


@pytest.fixture
def kept(printed, tmp_path, monkeypatch):
    """A copy of the results to do harm to, and a store that holds nothing."""
    shutil.copytree(printed / "results/smoke", tmp_path / "results/smoke")
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setenv("RESULTS", str(tmp_path / "results"))
    return tmp_path / "results/smoke"


def verdicts(found):
    return {one.artefact: one.verdict for one in found}


def differing(found):
    return {one.artefact for one in found if one.verdict == DIFFERENT}


def edit_csv(file, change):
    """Rewrite a table of rows with `change` done to it."""
    table = pd.read_csv(file, float_precision="round_trip")
    change(table)
    table.to_csv(file, index=False, lineterminator="\n")


def raise_by(column, by, where=lambda table: table.index >= 0):
    def change(table):
        table.loc[where(table), column] += by

    return change


def files(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_printed_paper_verifies_and_stays_as_it_is(kept, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ENGINE", "serial")
    before = files(kept)
    assert main(["verify", "smoke"]) == 0
    said, progress = capsys.readouterr()
    assert "the same kind" in said and DIFFERENT not in said
    for name in (
        "tables/claims",
        "figures/main",
        "rows/main.csv",
        "sets/digits-ipc1.ast.0.safetensors",
        "notebooks/09_paper.ipynb",
    ):
        assert f"\n{name} " in said
    for name in (
        "rows/experts.csv",
        "rows/smoothness.csv",
        "rows/curves.csv",
        "rows/main.csv",
        f"sets/{SAMPLED}",
    ):
        assert any(
            line.startswith(f"{name}, made anew") and f" {EQUAL} " in line
            for line in said.splitlines()
        ), said
    assert "made anew, about" in progress and "expert sgd 1 on digits" in progress
    assert files(kept) == before
    assert {file.name for file in (tmp_path / "store").iterdir()} - {"locks"} == {
        "data",
        "store.json",
    }, "what is made anew stays out of the usual store"


def test_what_was_changed_by_hand_is_named_and_nothing_else(kept, capsys):
    table = kept / "tables/ablation.csv"
    table.write_text(table.read_text().replace("AST − ramp", "AST - ramp"))
    edit_csv(
        kept / "rows/main.csv",
        raise_by("lr", 1e-9, lambda rows: rows.index == rows.index[rows.method == "AST"][3]),
    )
    damaged = kept / "sets/digits-ipc3.ast.1.safetensors"
    content = bytearray(damaged.read_bytes())
    content[-5] ^= 1
    damaged.write_bytes(content)
    drawn = kept / "figures/norms.svg"
    drawn.write_text(drawn.read_text().replace("</svg>", "<!-- mine --></svg>"))
    failed = kept / "notebooks/03_smoothness.ipynb"
    book = json.loads(failed.read_text())
    next(cell for cell in book["cells"] if cell["cell_type"] == "code")["outputs"] = [
        {"output_type": "error", "ename": "ValueError", "evalue": "", "traceback": []}
    ]
    failed.write_text(json.dumps(book))
    (kept / "notebooks/01_data.ipynb").unlink()
    assert main(["verify", "smoke", "--quick"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if DIFFERENT in line][:-1] == [
        "tables/ablation",
        "figures/norms",
        "sets/digits-ipc3.ast.1.safetensors",
        "rows/main.csv",
        "notebooks/03_smoothness.ipynb",
    ]
    assert any(line.startswith("notebooks/01_data.ipynb") and NOT_KEPT in line for line in lines)
    for part in (
        ",AST,AST - ramp",
        ",AST,AST − ramp",
        "lr in line",
        "is damaged",
        "holds an error: ValueError",
    ):
        assert any(part in line for line in lines), part
    assert not any("made anew" in line for line in lines)


def test_a_copy_of_another_notebook_than_todays_is_named_with_its_cell(tmp_path, monkeypatch):
    """Whatever it was changed in, and none for the parameters that it was given."""
    monkeypatch.setattr(press, "NOTEBOOKS", tmp_path / "notebooks")
    paper = Paper("smoke", tmp_path / "store", tmp_path / "results/smoke")
    copies = paper.results.folder / "notebooks"
    for folder in (press.NOTEBOOKS, copies):
        folder.mkdir(parents=True)
    words, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    asked = [
        words("# Why?"),
        code('profile = "laptop"'),
        code("a = 1\nb = 2"),
        words("## What we saw"),
    ]
    executed = [
        *asked[:2],
        code('profile = "smoke"', metadata={"tags": ["injected-parameters"]}),
        *asked[2:],
    ]
    changed = {
        "00_same": executed,
        "01_line": [*executed[:3], code("a = 1\nb = 3"), executed[4]],
        "02_words": [words("# How?"), *executed[1:]],
        "03_fewer": executed[:-1],
        "04_more": [*executed, code("c = 3")],
        "05_kind": [*executed[:3], words("a = 1\nb = 2"), executed[4]],
        "06_failed": [
            *executed[:3],
            code(
                "a = 1",
                outputs=[
                    nbformat.v4.new_output("error", ename="ValueError", evalue="", traceback=[])
                ],
            ),
            executed[4],
        ],
        "07_gone": executed,
    }
    for name, cells in changed.items():
        if name != "07_gone":
            nbformat.write(nbformat.v4.new_notebook(cells=asked), press.NOTEBOOKS / f"{name}.ipynb")
        nbformat.write(nbformat.v4.new_notebook(cells=cells), copies / f"{name}.ipynb")
    nbformat.write(nbformat.v4.new_notebook(cells=asked), press.NOTEBOOKS / "08_new.ipynb")
    (copies / "09_broken.ipynb").write_text("{")
    found = {Path(one.artefact).stem: one for one in verify.executed(paper)}
    kinds = {name: one.verdict for name, one in found.items()}
    assert kinds == dict.fromkeys([*changed, "09_broken"], DIFFERENT) | {
        "00_same": EQUAL,
        "08_new": NOT_KEPT,
    }
    for name, said in {
        "01_line": "notebooks/01_line.ipynb: cell 3 line 2 reads 'b = 3', expected 'b = 2'; `make paper PROFILE=smoke` runs it again",
        "02_words": "cell 1 line 1 reads '# How?', expected '# Why?'",
        "03_fewer": "cell 4 is nothing, expected markdown",
        "04_more": "cell 5 is code, expected nothing",
        "05_kind": "cell 3 is markdown, expected code",
        "06_failed": "holds an error: ValueError",
        "07_gone": "no 07_gone.ipynb in notebooks/ that it could be a copy of: remove it",
        "09_broken": "no notebook can be read from it",
    }.items():
        assert said in found[name].note


HARMS = {
    "rows/main.csv": lambda rows: rows.drop(rows.index[rows.method == "AST"], inplace=True),
    "rows/curves.csv": raise_by("loss", 1e-6, lambda rows: rows.index == 3),
    "rows/coresets.csv": raise_by("accuracy", 0.1, lambda rows: rows.index == 3),
    "rows/smoothness.csv": raise_by("test_accuracy", 0.1, lambda rows: rows.index == 3),
}


@pytest.mark.parametrize("name", HARMS)
def test_rows_that_do_not_agree_with_the_profile_or_with_one_another_are_named(name, kept):
    assert not differing(verify.agreeing(Paper("smoke")))
    edit_csv(kept / name, HARMS[name])
    expected = {"rows/main.csv", "rows/coresets.csv"} if name == "rows/main.csv" else {name}
    assert (
        differing(verify.agreeing(Paper("smoke"))) >= {name}
        and differing(verify.agreeing(Paper("smoke"))) <= expected
    )


def test_results_of_other_settings_are_found_and_named(kept, tmp_path):
    fields = copy.deepcopy(SMOKE)
    fields["cells"]["digits-ipc1"]["tuned"]["AST"]["lr_images"] = 31.0
    (tmp_path / "smoke.yaml").write_text(yaml.safe_dump(fields))
    found = list(verify.agreeing(Paper(str(tmp_path / "smoke.yaml"))))
    assert differing(found) == {
        *(f"sets/digits-ipc1.ast.{seed}.safetensors" for seed in (0, 1)),
        *(
            f"rows/{study}.csv"
            for study in ("main", "ablation", "scores", "curves", "following", "film")
        ),
    }
    notes = {one.artefact: one.note for one in found}
    assert (
        "lr_images is 30.0 there, the profile asks for 31.0"
        in notes["sets/digits-ipc1.ast.0.safetensors"]
    )
    assert (
        "2 of 26 results were made under other settings" in notes["rows/main.csv"]
        and "main, digits-ipc1, digits, AST, 1.0, 0," in notes["rows/main.csv"]
    )


def test_a_past_search_may_be_of_another_format_but_not_of_other_candidates(kept):
    paper = Paper("smoke")
    rows = [
        label | {"settings_key": "of another format"}
        for label, _ in STUDIES["tuning"].asks(paper.profile)
    ]
    assert verify.other_settings(paper.profile, "tuning", rows)[0] == UNCHECKED
    assert (
        verify.other_settings(
            paper.profile, "tuning", [*rows[1:], rows[0] | {"tried": "lr_images = 1"}]
        )[0]
        == DIFFERENT
    )
    whole = [
        label | {"settings_key": key(settings)}
        for label, settings in STUDIES["tuning"].asks(paper.profile)
    ]
    assert verify.other_settings(paper.profile, "tuning", whole) is None


def test_the_machine_is_written_down_and_another_is_told(kept, capsys):
    paper, about = Paper("smoke"), json.loads((kept / "machine.json").read_text())
    assert verify.same_kind(paper) and about["torch"] in capsys.readouterr().out
    (kept / "machine.json").write_text(json.dumps(about | {"cores": 512}))
    assert verify.same_kind(paper), "the number of cores changes no byte"
    (kept / "machine.json").write_text(json.dumps(about | {"processor": "Z80"}))
    capsys.readouterr()
    assert (
        not verify.same_kind(paper)
        and f"another kind (processor was Z80, is {about['processor']})" in capsys.readouterr().out
    )
    (kept / "machine.json").unlink()
    assert not verify.same_kind(paper) and "not written down" in capsys.readouterr().out


def test_the_readme_is_held_to_the_tables(kept, tmp_path, monkeypatch):
    shutil.copytree(kept, kept.parent / "laptop")
    (tmp_path / "laptop.yaml").write_text(yaml.safe_dump(SMOKE))
    monkeypatch.setattr(press, "README", tmp_path / "README.md")
    press.README.write_text("# Mine\n\n<!-- paper:start -->\n<!-- paper:end -->\n\nMore.\n")
    paper = Paper(str(tmp_path / "laptop.yaml"))
    assert verdicts(verify.readme(paper)) == {"README.md": DIFFERENT}
    press.fill_readme(paper)
    assert verdicts(verify.readme(paper)) == {
        "README.md": EQUAL
    } and press.README.read_text().endswith("\n\nMore.\n")
    assert not list(verify.readme(Paper("smoke")))


@pytest.fixture(scope="module")
def anew(printed, tmp_path_factory):
    """The sample made anew here; and by processes that have no hand-written kernels, which round as another processor would."""
    made = []
    for about in (
        {"ENGINE": "serial"},
        {"ENGINE": "processes", "WORKERS": "2", "DDLIB_KERNELS": "0"},
    ):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in {
                "STORE": str(printed / "store"),
                "RESULTS": str(printed / "results"),
                **about,
            }.items():
                patch.setenv(name, value)
            folder = tmp_path_factory.mktemp("anew")
            held, fresh = Paper("smoke"), Paper("smoke", folder / "store", folder / "results")
            verify.remake(held, fresh, verify.sample(held))
            made.append(fresh)
    return made


def remade(fresh, alike):
    held = Paper("smoke")
    return verdicts(verify.remade(held, fresh, verify.sample(held), alike))


def test_a_sample_rounded_otherwise_is_near_and_not_equal(kept, anew):
    same, other = anew
    assert set(remade(same, True).values()) == {EQUAL}
    assert (
        set(remade(other, False).values()) <= {EQUAL, NEAR}
        and NEAR in remade(other, False).values()
    )
    assert DIFFERENT in remade(other, True).values(), "where bytes must be equal, near is not"


def with_images_of(other):
    """A sound file of the right settings that holds another set's images."""

    def harm(kept):
        paper = Paper("smoke")
        run, file = verify.sample(paper), kept / "sets" / SAMPLED
        held, wrong = read(file), read(kept / f"sets/digits-ipc3.{other}.safetensors")
        write(
            file, run.settings.of, held.tensors | {"images": wrong.tensors["images"]}, held.record
        )

    return harm


def in_rows(name, change):
    return lambda kept: edit_csv(kept / f"rows/{name}.csv", change)


WRONG = {
    "another seed": (f"sets/{SAMPLED}", with_images_of("mtt.1")),
    "another method": (f"sets/{SAMPLED}", with_images_of("ast.0")),
    "no distillation": (f"sets/{SAMPLED}", with_images_of("random.0")),
    "accuracy": ("rows/main.csv", in_rows("main", raise_by("accuracy", 0.5))),
    "experts": ("rows/experts.csv", in_rows("experts", raise_by("test_accuracy", -0.3))),
    "smoothness": ("rows/smoothness.csv", in_rows("smoothness", raise_by("step", 1.0))),
    "learned lr": ("rows/curves.csv", in_rows("curves", raise_by("lr", 0.1))),
    "a row too few": (
        "rows/main.csv",
        in_rows(
            "main",
            lambda rows: rows.drop(
                rows.index[(rows.method == "MTT") & (rows.cell == "digits-ipc3")][:1], inplace=True
            ),
        ),
    ),
}


@pytest.mark.parametrize("name, harm", WRONG.values(), ids=WRONG)
def test_a_wrong_artefact_is_no_neighbour(name, harm, kept, anew):
    """Neither where bytes must be equal nor where near is enough."""
    harm(kept)
    same, other = anew
    for fresh, alike in ((same, True), (other, False)):
        found = remade(fresh, alike)
        assert {one for one, verdict in found.items() if verdict == DIFFERENT} == {
            f"{name}, made anew"
        }


@pytest.mark.parametrize("profile", ["laptop", "laptop-full"])
def test_the_kept_results_verify(profile, capsys, tmp_path, monkeypatch):
    """The committed ones; without the sample, which takes minutes."""
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    assert main(["verify", profile, "--quick"]) == 0, capsys.readouterr().out
