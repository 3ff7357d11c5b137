"""The project around the library: one dependency list, and committed tables that are functions of committed rows."""

import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import bench
import nbformat
import pandas as pd
import pytest
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from ddlib.paper import build as press
from ddlib.paper import tables
from ddlib.paper.results import NoRows, Results

HOME = Path(__file__).parent.parent
README = (HOME / "README.md").read_text()
CITED = yaml.safe_load((HOME / "CITATION.cff").read_text())
LAPTOP = Results(HOME / "results/laptop")


def test_environment_is_the_conda_face_of_pyproject():
    wanted = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["dependencies"]
    listed = yaml.safe_load((HOME / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert listed == [*wanted, "--editable ."]


def test_the_container_recipe_is_sound():
    """By a linter of such recipes; and what it copies is there."""
    folder = HOME / ".devcontainer"
    found = subprocess.run(
        [shutil.which("hadolint", path=Path(sys.executable).parent), folder / "Dockerfile"],
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stdout
    about = json.loads((folder / "devcontainer.json").read_text())
    assert (folder / about["build"]["dockerfile"]).exists() and (
        folder / about["build"]["context"]
    ).resolve() == HOME
    copied = re.findall(r"^COPY (?:--\S+ )*(\S+) ", (folder / "Dockerfile").read_text(), re.M)
    assert copied == ["requirements.lock", "."] and (HOME / copied[0]).exists()


def test_the_lock_pins_every_dependency():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    wanted = (
        project["dependencies"]
        + project["optional-dependencies"]["test"]
        + project["optional-dependencies"]["book"]
    )
    locked = {
        line.split("==")[0].lower()
        for line in (HOME / "requirements.lock").read_text().splitlines()
        if "==" in line
    }
    assert {name.split(">")[0].lower() for name in wanted} <= locked


def test_the_readme_has_its_markers():
    for part in ("paper", "verbs", "full", "cells", "bench"):
        start, end = f"<!-- {part}:start -->", f"<!-- {part}:end -->"
        assert README.count(start) == README.count(end) == 1 and README.index(start) < README.index(
            end
        )


def test_the_readmes_map_names_every_notebook_and_no_other():
    """In order, each by the question that its title asks, or the first half of it."""
    mapped = re.findall(r"^\| (.+)\? \| \[(\w+)\]\(notebooks/(\w+)\.ipynb\) \|$", README, re.M)
    assert [(name, link) for _, name, link in mapped] == [
        (file.stem, file.stem) for file in press.notebooks()
    ]
    assert set(re.findall(r"\(notebooks/([^)]+)\)", README)) == {
        file.name for file in press.notebooks()
    }
    for question, name, _ in mapped:
        title = (
            nbformat.read(press.NOTEBOOKS / f"{name}.ipynb", as_version=4)
            .cells[0]
            .source.splitlines()[0]
        )
        assert title.removeprefix("# ").startswith(question.split(",")[0]), f"{name} asks {title!r}"


def test_every_file_that_the_readme_links_is_there():
    links = set(re.findall(r"\]\(([^)#\s]+)\)", README))
    assert links and not [
        link for link in links if "://" not in link and not (HOME / link).exists()
    ]


def test_the_readmes_floors_name_every_module_once():
    named = re.findall(r"`(\w+)`", README[README.index("| floor | modules |") :].split("\n\n")[0])
    assert sorted(named) == sorted(file.stem for file in (HOME / "ddlib").glob("[a-z]*.py"))


def test_version_and_licence_are_the_same_wherever_they_stand():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    newest = re.search(r"^## \[(\d\S*)\] - (\S+)$", (HOME / "CHANGELOG.md").read_text(), re.M)
    assert (
        project["version"] == CITED["version"] == newest[1] and CITED["date-released"] == newest[2]
    )
    assert f"Version {project['version']}}}" in README, "the README's citation"
    assert project["license"] == CITED["license"] == "MIT" and (
        HOME / "LICENSE"
    ).read_text().startswith("MIT License\n")


def test_the_citation_file_says_what_its_format_asks_for():
    """Of CFF 1.2.0: its required fields, people or entities as authors, and the paper as the README has it."""
    assert (
        CITED["cff-version"] == "1.2.0"
        and CITED["type"] == "software"
        and CITED["message"]
        and CITED["title"]
    )
    (paper,) = CITED["references"]
    assert (
        {"type", "title", "authors"} <= paper.keys()
        and paper["url"] in README
        and f"title  = {{{paper['title']}}}" in README
    )
    for work in (CITED, paper):
        assert work["authors"] and all(
            author.keys() in ({"name"}, {"family-names", "given-names"})
            for author in work["authors"]
        )
    assert (
        " and ".join(
            f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]
        )
        in README
    )


@pytest.mark.skipif(not LAPTOP.has_rows("main"), reason="the laptop paper was not printed yet")
@pytest.mark.parametrize("name", tables.TABLES)
def test_committed_tables_follow_from_committed_rows(name):
    """As numbers, to the six digits that are kept."""
    file = LAPTOP.folder / "tables" / f"{name}.csv"
    try:
        made = io.StringIO(tables.TABLES[name](LAPTOP).to_csv(index=False))
    except NoRows:  # of a study that these results are older than
        assert not file.exists()
        pytest.skip(f"{name} has no rows yet")
    kept = pd.read_csv(file)
    pd.testing.assert_frame_equal(pd.read_csv(made), kept, rtol=1e-5, check_dtype=False)


@pytest.mark.skipif(not (bench.RESULTS / "bench.csv").exists(), reason="the bench was not run yet")
def test_the_readmes_sentence_on_speed_follows_from_the_bench():
    table = pd.read_csv(bench.RESULTS / "bench.csv")
    assert list(table.columns[:7]) == [
        "work",
        "ours",
        "plain",
        "unit",
        "ratio",
        "fraction_of_limit",
        "threads",
    ]
    assert bench.sentence(table) in README
    rates = table.unit.isin(["images/s", "tasks/s"])
    expected = (table.ours / table.plain).where(rates, table.plain / table.ours)
    pd.testing.assert_series_equal(table.ratio, expected, check_names=False, rtol=2e-3)


class Convolutions(TorchDispatchMode):
    """Counts them: a forward, an image's and a weight's gradient are one each."""

    count = 0

    def __torch_dispatch__(self, function, types, given=(), options=None):
        if function.name() == "aten::convolution":
            self.count += 1
        elif function.name() == "aten::convolution_backward":
            self.count += given[-1][0] + given[-1][1]
        return function(*given, **(options or {}))


COUNTED = [  # work, and the convolutions that plain PyTorch saves: nobody asks for the gradient of theta_0
    (bench.expert(bench.GREY, 8, 4, False)[1], 0),
    (bench.expert(bench.COLOUR, 8, 4, True)[1], 0),
    (bench.iteration(1, 3)[1], bench.DEPTH),
    (bench.evaluation(1, 2)[1], 0),
]


@pytest.mark.parametrize(
    "work, saved", COUNTED, ids=["expert", "penalty", "outer iteration", "evaluation"]
)
def test_the_limit_of_the_bench_is_the_convolutions_of_plain_pytorch(work, saved):
    work["run"]("plain")  # what is made once is there
    with Convolutions() as plainly:
        work["run"]("plain")
    with Convolutions() as limit:
        work["limit"]()
    assert plainly.count + saved == limit.count > 0
