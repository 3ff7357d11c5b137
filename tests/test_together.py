"""Several processes over one store: each thing is made once, by whoever comes first; one that is killed or stopped is not waited for, and no byte differs."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter

import nbformat
import pytest
from test_engine import AGAIN, PATHS, same
from test_pipeline import ALL, ROWS, SET
from test_pipeline import done as done  # the same set-up, filled by one process
from test_pipeline import halfway as halfway

from ddlib.data import datasets as data
from ddlib.paper.paper import Paper
from ddlib.runs import stages as pipeline
from ddlib.runs import studies
from ddlib.runs.store import Store
from ddlib.settings import Data, key

EVERY = [*ALL, *AGAIN]
FILLER = """
import os, sys, time
from functools import partial
from test_engine import AGAIN, ALL, ROWS, SET
from ddlib import data, locks, pipeline
from ddlib.config import Data, key
from ddlib.store import Store
root, mark, name, go, wait = sys.argv[1:]
locks.BEAT, locks.SILENCE = 0.2, 1.5
wanted = {"all": [*ALL, *AGAIN], "backwards": [*reversed(AGAIN), ROWS], "set": [SET]}[name]
def note(mark, text):
    with open(mark, "a") as out:
        out.write(f"{text}\\n")
made = data._made
def noted(entry, settings, folder):
    note(mark, f"data {settings.name}")
    return made(entry, settings, folder)
data._made = noted
make = dict(pipeline.MAKE)
def traced(kind, settings, store):
    note(mark, key(settings))
    while wait != "-" and not os.path.exists(wait):
        time.sleep(0.02)
    make[kind](settings, store)
pipeline.MAKE = {kind: partial(traced, kind) for kind in make}
note(mark, "ready")
while not os.path.exists(go):
    time.sleep(0.02)
if name != "set":
    data.load(Data(name="mnist_5k"), root)
pipeline.ensure(wanted, Store(root), workers=1)
"""


def filler(root, mark, name, go, wait="-"):
    """A process that fulfils one of the lists, once `go` is there, and notes in `mark` what it makes; each task of it once `wait` is there."""
    environment = os.environ | {"PYTHONPATH": PATHS, "ENGINE": "serial"}
    command = [sys.executable, "-c", FILLER, *map(str, (root, mark, name, go, wait))]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def until(true, *processes):
    while not true():
        assert all(process.poll() is None for process in processes), [
            process.stderr.read() for process in processes
        ]
        time.sleep(0.02)


def lines(*marks):
    return [line for mark in marks if mark.exists() for line in mark.read_text().splitlines()]


def test_two_processes_make_each_thing_once(done, tmp_path):
    """Of lists that overlap, in other orders; the data set's copy too."""
    made, go, marks = (
        Store(tmp_path / "store"),
        tmp_path / "go",
        [tmp_path / "first", tmp_path / "second"],
    )
    both = [
        filler(made.root, mark, name, go)
        for mark, name in zip(marks, ("all", "backwards"), strict=True)
    ]
    until(lambda: lines(*marks) == ["ready"] * 2, *both)
    go.touch()
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    noted = Counter(
        line for line in lines(*marks) if line not in ("ready", "data digits")
    )  # of digits no copy is kept
    assert noted == Counter(["data mnist_5k", *map(key, EVERY)])
    assert all(set(map(key, EVERY)) & set(lines(mark)) for mark in marks)  # the work was shared
    assert same(made, done) and not pipeline.missing(EVERY, made)
    assert data.load(Data(name="mnist_5k"), made.root).x_train.shape == (3500, 1, 28, 28)
    assert (
        not list(made.root.rglob(".half-*"))
        and not list((made.root / "locks").iterdir())
        and not (made.root / "damaged").exists()
    )


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_stands_still_is_not_waited_for(end, done, halfway, tmp_path):
    """A killed one's lock is free at once; a stopped one's task is done by the other too, and when it goes on no byte is torn."""
    go, wait, marks = tmp_path / "go", tmp_path / "wait", [tmp_path / "first", tmp_path / "second"]
    go.touch()
    first = filler(halfway.root, marks[0], "set", go, wait)
    until(lambda: key(SET) in lines(marks[0]), first)
    assert halfway.busy(SET) and not halfway.busy(ROWS)
    second = filler(halfway.root, marks[1], "set", go)
    said = second.stderr.readline()
    assert (
        said
        == f"{pipeline.name(SET)}: waits for process {first.pid} on {os.uname().nodename}, which is on it\n"
    )
    first.send_signal(end)
    rest = second.communicate(timeout=60)[1]
    assert second.returncode == 0 and key(SET) in lines(marks[1]) and same(halfway, done, [SET])
    assert (f"{pipeline.name(SET)}: no sign of life from process {first.pid} on " in rest) == (
        end == signal.SIGSTOP
    )
    if end == signal.SIGSTOP:
        wait.touch()
        first.send_signal(signal.SIGCONT)
        assert first.wait(60) == 0 and same(halfway, done, [SET])
    first.wait(60)
    first.stderr.close()
    assert not list(halfway.root.rglob(".half-*")) and not halfway.busy(SET)


def test_a_lock_is_one_processes_at_a_time_while_its_file_comes_and_goes(tmp_path):
    """Four processes take and drop it as fast as they can: none ever finds another inside."""
    program = """
import os, sys
from pathlib import Path
from ddlib import locks
locks.LOOK = 0.0
lock, inside = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(200):
    with locks.lock(lock, "this"):
        inside.open("x").close()
        inside.unlink()
"""
    command = [
        sys.executable,
        "-c",
        program,
        str(tmp_path / "locks" / "one"),
        str(tmp_path / "inside"),
    ]
    four = [
        subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": PATHS}, stderr=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = [process.communicate(timeout=60)[1] for process in four]
    assert [process.returncode for process in four] == [0] * 4, said
    assert not list((tmp_path / "locks").iterdir())


def test_two_papers_at_once(tmp_path, monkeypatch):
    """Two `make paper` into one folder: the notebook is whole, artefacts and rows are those of one alone, and no half file is left."""
    profile, folder = tmp_path / "tiny.yaml", tmp_path / "together"
    profile.write_text(
        "extends: smoke\nseeds: 1\nevaluation: {networks: 1, epochs: 1, factors: [1.0], looks: 1}\n"
    )
    command = [
        sys.executable,
        "-m",
        "ddlib",
        "paper",
        str(profile),
        "--notebook",
        "04_initialisation",
    ]
    environment = os.environ | {
        "PYTHONPATH": PATHS,
        "ENGINE": "serial",
        "STORE": str(folder / "store"),
        "RESULTS": str(folder / "results"),
    }
    both = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=200)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    monkeypatch.setenv("ENGINE", "serial")
    alone = Paper(
        str(profile), tmp_path / "alone" / "store", tmp_path / "alone" / "results" / "tiny"
    )
    alone.study("coresets")
    alone.keep_sets(studies.CORESETS)
    left = {
        file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()
    }
    expected = {
        file.relative_to(tmp_path / "alone"): file.read_bytes()
        for file in (tmp_path / "alone").rglob("*")
        if file.is_file() and file.parent.name != "notes"
    }
    assert len(expected) > 20 and {file: left[file] for file in expected} == expected
    (book,) = [
        nbformat.reads(content, as_version=4)
        for file, content in left.items()
        if file.suffix == ".ipynb"
    ]
    nbformat.validate(book)
    assert all(cell.execution_count for cell in book.cells if cell.cell_type == "code") and not [
        file for file in left if file.name.startswith(".half-")
    ]
