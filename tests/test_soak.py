"""A handful of the kills of `make soak`, what the soak would find, and a notebook killed under
papermill with its kernel."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
import soak

from ddlib.paper import build as press

HOME = Path(soak.__file__).parent


def test_a_few_kills_change_no_byte():
    done = subprocess.run(
        [sys.executable, soak.__file__, "4", "--quick", "--seed", "2"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "4 kills" in done.stdout
        and done.stdout.splitlines()[-1] == "every file has the bytes of the undisturbed run"
    )


def test_the_soak_finds_differences_and_needless_work(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    for home in (one, other):
        for name in ("store/sets/a", "store/sets/b", "results/tiny/rows/c.csv"):
            (home / name).parent.mkdir(parents=True, exist_ok=True)
            (home / name).write_bytes(b"0123")
    found = soak.Soak(tmp_path / "soak", {}, [])
    (other / "store/sets/.half-x").write_bytes(b"01")
    assert found.differences(one, other) == []
    (other / "store/sets/a").write_bytes(b"0124")
    (other / "results/tiny/rows/c.csv").unlink()
    (other / "store/sets/d").write_bytes(b"")
    assert found.differences(one, other) == [
        "results/tiny/rows/c.csv",
        "store/sets/a",
        "store/sets/d",
    ]
    found.kills = [soak.Kill(1, "", [], 0.0)]
    noted = [
        "begin sets k",
        "unit k 1",
        "unit k 2",
        "unit k 3",
        "kill 1",
        "begin sets k",
        "unit k 2",
        "unit k 3",
        "unit k 4",
        "end sets k",
        "begin sets k",
    ]
    (one / "trace").write_text("".join(f"7 {at}.5 {what}\n" for at, what in enumerate(noted)))
    assert found.again(one) == ["sets k"]
    assert found.kills[0].again == {"k": 2} and found.kills[0].seconds == {"k": 2.0}
    assert soak.hit(
        ["1 0 begin sets k", "2 0 begin rows l", "1 0 begin look k", "2 0 end rows l"]
    ) == ["between tasks", "sets, look"]


CELL = """import os, time
from pathlib import Path
mark = Path(profile) / "mark"
if not mark.exists():
    mark.write_text(str(os.getpid()))
    time.sleep(1000)
print("done")"""


def test_a_kernel_ends_with_the_paper_that_is_killed(tmp_path):
    """And the next run of the notebook leaves the copy that an undisturbed one does."""
    source, mark = tmp_path / "00_slow.ipynb", tmp_path / "mark"
    cells = [
        nbformat.v4.new_code_cell('profile = "x"', metadata={"tags": ["parameters"]}, id="a"),
        nbformat.v4.new_code_cell(CELL, id="b"),
    ]
    about = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=about), source)
    given = {"profile": str(tmp_path)}
    program = "import sys; from pathlib import Path; from ddlib import press; press.execute(Path(sys.argv[1]), Path(sys.argv[2]), {'profile': sys.argv[3]})"  # noqa: E501
    environment = os.environ | {"PYTHONPATH": str(HOME.parent)}
    killed = subprocess.Popen(
        [sys.executable, "-c", program, source, tmp_path / "out", tmp_path],
        env=environment,
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
        press.execute(source, tmp_path / folder, given)
    assert (tmp_path / "out/00_slow.ipynb").read_bytes() == (
        tmp_path / "undisturbed/00_slow.ipynb"
    ).read_bytes()
    assert all(
        file.name.startswith(".half-")
        for file in (tmp_path / "out").iterdir()
        if file.name != "00_slow.ipynb"
    )  # a paper sweeps it, once it is old enough
