"""The project around the library: one dependency list, and committed tables that are functions of committed rows."""

import io
import tomllib
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ddlib import press, tables
from ddlib.results import Results

HOME = Path(__file__).parent.parent
LAPTOP = Results(HOME / "results/laptop")


def test_environment_is_the_conda_face_of_pyproject():
    wanted = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]["dependencies"]
    listed = yaml.safe_load((HOME / "environment.yml").read_text())["dependencies"][-1]["pip"]
    assert listed == [*wanted, "--editable ."]


def test_the_lock_pins_every_dependency():
    project = tomllib.loads((HOME / "pyproject.toml").read_text())["project"]
    wanted = project["dependencies"] + project["optional-dependencies"]["test"]
    locked = {line.split("==")[0].lower() for line in (HOME / "requirements.lock").read_text().splitlines() if "==" in line}
    assert {name.split(">")[0].lower() for name in wanted} <= locked


def test_the_readme_has_its_markers_and_names_every_notebook():
    text = (HOME / "README.md").read_text()
    assert text.index(press.START) < text.index(press.END)
    assert all(f"notebooks/{n.name}" in text for n in press.notebooks())


@pytest.mark.skipif(not LAPTOP.has_rows("main"), reason="the laptop paper was not printed yet")
@pytest.mark.parametrize("name", tables.TABLES)
def test_committed_tables_follow_from_committed_rows(name):
    made = io.StringIO(tables.TABLES[name](LAPTOP).to_csv(index=False))
    pd.testing.assert_frame_equal(pd.read_csv(made), pd.read_csv(LAPTOP.folder / "tables" / f"{name}.csv"), rtol=1e-9)
