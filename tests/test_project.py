"""The project around the library: one list of dependencies; committed tables follow from rows."""

import io
import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

import bench
from ddlib.paper import tables
from ddlib.paper.results import NoRows, Results

HOME = Path(__file__).parent.parent
LAPTOP = Results(HOME / "results/laptop")
DEPOSIT = ".zenodo.json"


def test_the_cpu_environment_lists_what_pyproject_lists():
    """PyTorch comes from conda, where it can be had without CUDA; all else as pip installs it."""
    wanted = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["dependencies"]
    *conda, other = yaml.safe_load((HOME / "environment.yml").read_text())["dependencies"]
    torch = [name.replace("pytorch-cpu", "torch") for name in conda if "torch" in name]
    assert [*torch, *other["pip"]] == [*wanted, "--editable ."]


def test_who_cites_deposits_or_indexes_reads_one_version_date_and_text():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    cite = yaml.safe_load((HOME / "CITATION.cff").read_text())
    meta, deposit = (json.loads((HOME / name).read_text()) for name in ("codemeta.json", DEPOSIT))
    assert project["version"] == cite["version"] == meta["version"] == deposit["version"]
    assert cite["date-released"] == meta["dateModified"]
    assert f"## [{cite['version']}]" in (HOME / "CHANGELOG.md").read_text()
    assert cite["abstract"].strip() == meta["description"] == deposit["description"]
    assert cite["keywords"] == meta["keywords"] == deposit["keywords"] == project["keywords"]
    notebooks = len([*(HOME / "notebooks").glob("*.ipynb")])
    assert notebooks == 15 and "fifteen notebooks" in cite["abstract"]


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
def test_the_guides_sentence_on_speed_follows_from_the_bench():
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
    assert bench.sentence(table) in (HOME / "docs/speed_and_memory.md").read_text()
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


# Work, and the convolutions that plain PyTorch saves: the gradient of theta_0 is not needed
COUNTED = [
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
