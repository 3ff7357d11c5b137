"""A few of the kills of `make soak`, what the soak would find, and a notebook killed at work."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

import soak
from ddlib.paper import build

CODE = nbformat.v4.new_code_cell
CELL = """import os, time
from pathlib import Path
mark = Path(profile) / "mark"
if not mark.exists():
    mark.write_text(str(os.getpid()))
    time.sleep(1000)
print("done")"""
PROGRAM = """import sys; from pathlib import Path; from ddlib.paper import build
build.execute(Path(sys.argv[1]), Path(sys.argv[2]), {'profile': sys.argv[3]})"""


def test_a_few_kills_change_no_byte():
    command = [sys.executable, soak.__file__, "4", "--quick", "--seed", "2"]
    paths = os.pathsep.join([str(soak.TESTS.parent), str(soak.TESTS)])
    environment = os.environ | {"PYTHONPATH": paths}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    last = done.stdout.splitlines()[-1]
    assert "4 kills" in done.stdout and last == "every file has the bytes of the undisturbed run"


def test_the_soak_finds_differences_and_needless_work(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for home in (one, other):
        for name in ("store/sets/a", "store/sets/b", "results/tiny/rows/c.csv"):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(b"0123")
    (other / "store/sets/.half-x").write_bytes(b"01")
    assert soak.differences(one, other) == []
    (other / "store/sets/a").write_bytes(b"0124")
    (other / "results/tiny/rows/c.csv").unlink()
    (other / "store/sets/d").write_bytes(b"")
    expected = ["results/tiny/rows/c.csv", "store/sets/a", "store/sets/d"]
    assert soak.differences(one, other) == expected
    kills = soak.Soak(tmp_path / "soak", {}, [])
    kills.kills = [soak.Kill("", set(), 0.0), soak.Kill("", {"k"}, 0.0)]
    steps = ["1 k 1", "2 k 2", "3 k 3", "kill 0", "4 k 2", "5 k 3", "6 k 4", "kill 1", "7 l 1"]
    (one / "trace").write_text("\n".join(steps))
    assert kills.again(one) == (2, [])
    (one / "trace").write_text("\n".join([*steps, "8 k 5"]))
    assert kills.again(one) == (2, ["k"])


def test_a_kernel_ends_with_the_paper_that_is_killed(tmp_path):
    """And the next run of the notebook leaves the copy that an undisturbed one does."""
    source, mark = tmp_path / "00_slow.ipynb", tmp_path / "mark"
    parameters = CODE('profile = "x"', metadata={"tags": ["parameters"]}, id="a")
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    notebook = nbformat.v4.new_notebook(cells=[parameters, CODE(CELL, id="b")], metadata=about)
    nbformat.write(notebook, source)
    killed = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, source, tmp_path / "out", tmp_path],
        env=os.environ | {"PYTHONPATH": str(soak.TESTS.parent)},
        start_new_session=True,
    )
    soak.until(lambda: mark.exists() and mark.read_text(), 0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "out/00_slow.ipynb").exists()
    kernel = Path("/proc") / mark.read_text()
    for _ in range(200):
        if not kernel.exists() or ") Z " in (kernel / "stat").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the kernel lives on")
    for folder in ("out", "undisturbed"):
        build.execute(source, tmp_path / folder, {"profile": str(tmp_path)})
    copies = [
        (tmp_path / folder / "00_slow.ipynb").read_bytes() for folder in ("out", "undisturbed")
    ]
    assert copies[0] == copies[1]
    # what the kill left half-written has no name, and a paper sweeps it
    left = {file.name for file in (tmp_path / "out").iterdir()} - {"00_slow.ipynb"}
    assert all(name.startswith(".half-") for name in left)
