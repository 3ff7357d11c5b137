"""Same settings, same bytes: in any order, in one process or several, whatever the environment says of threads and hashing; trajectories, sets, rows and tables."""

import copy
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_pipeline import ALL
from test_pipeline import done as done  # the same set-up, filled by this process

import ddlib
from ddlib.runs.stages import get
from ddlib.runs.store import Store
from ddlib.settings import PROFILES


@pytest.mark.parametrize("seed", [0, 1])
def test_tasks_in_any_order_leave_the_same_bytes(seed, done, tmp_path):
    """In the process that made `done`, a second and a third time."""
    order, made = random.Random(seed).sample(ALL, len(ALL)), Store(tmp_path)
    for settings in order:
        get(settings, made)
    assert order != ALL
    for settings in ALL:
        assert made.file(settings).read_bytes() == done.file(settings).read_bytes(), settings.stage


@pytest.fixture
def tiny(tmp_path):
    """The smoke profile with one cell, a coreset and AST under one seed."""
    fields = copy.deepcopy(yaml.safe_load((PROFILES / "smoke.yaml").read_text()))
    cell = fields["cells"]["digits-ipc1"]
    fields |= {"seeds": 1, "cells": {"digits-ipc1": cell | {"methods": ["k-means", "AST"]}}}
    fields["cross_architecture"]["cells"] = ["digits-ipc1"]
    file = tmp_path / "tiny.yaml"
    file.write_text(yaml.safe_dump(fields))
    return file


PROGRAM = """
if __name__ == "__main__":
    import sys
    from ddlib import pipeline
    from ddlib.paper import Paper
    profile, folder = sys.argv[1:]
    paper = Paper(profile, folder + "/store", folder + "/results")
    tasks = paper.tasks("main")
    pipeline.ensure(tasks[::-1] if "backwards" in folder else tasks, paper.store)
    paper.study("main")
    for table in ("main", "summary"):
        paper.table(table)
"""


def test_neither_processes_nor_threads_nor_hashing_change_a_byte(tiny, tmp_path):
    """One process, and two that are told to use more threads, hash otherwise and begin at the other end."""
    ways = {
        "serial": {"ENGINE": "serial", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
        "backwards": {
            "ENGINE": "processes",
            "WORKERS": "2",
            "PYTHONHASHSEED": "77",
            "OMP_NUM_THREADS": "2",
            "MKL_NUM_THREADS": "2",
        },
    }
    paths = os.environ | {"PYTHONPATH": str(Path(ddlib.__file__).parent.parent)}
    (tmp_path / "program.py").write_text(PROGRAM)
    runs = [
        subprocess.Popen(
            [sys.executable, tmp_path / "program.py", tiny, tmp_path / way], env=paths | about
        )
        for way, about in ways.items()
    ]
    assert [run.wait(timeout=300) for run in runs] == [0, 0]
    serial, other = (
        {
            f.relative_to(tmp_path / way): f.read_bytes()
            for f in (tmp_path / way).rglob("*")
            if f.is_file() and f.parent.name != "notes"
        }
        for way in ways
    )
    assert serial.keys() == other.keys()
    assert {"experts", "sets", "rows", "tables"} <= {name.parts[-2] for name in serial}
    assert not [str(name) for name in serial if serial[name] != other[name]]
