"""Same settings, same bytes, in any order, alone or side by side, whatever the environment says."""

import os
import random
import subprocess
import sys
from pathlib import Path

import ddlib
from ddlib.runs.run import get
from ddlib.runs.store import Store
from tiny import ALL

PROGRAM = """
if __name__ == "__main__":
    import sys
    from tiny import ALL
    from ddlib.runs import run
    from ddlib.runs.store import Store
    run.ensure(ALL[::-1], Store(sys.argv[1]), workers=2)
"""


def test_tasks_in_any_order_leave_the_same_bytes(done, tmp_path):
    """In the process that made `done`, a second time."""
    order, made = random.Random(0).sample(ALL, len(ALL)), Store(tmp_path)
    for settings in order:
        get(settings, made)
    assert order != ALL
    for settings in ALL:
        assert made.file(settings).read_bytes() == done.file(settings).read_bytes(), settings.title


def test_neither_processes_nor_threads_nor_hashing_change_a_byte(done, tmp_path):
    """Two processes are told to use more threads, hash otherwise and begin at the other end."""
    paths = [str(Path(__file__).parent), str(Path(ddlib.__file__).parent.parent)]
    about = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONHASHSEED": "77",
        "OMP_NUM_THREADS": "2",
        "MKL_NUM_THREADS": "2",
    }
    (tmp_path / "program.py").write_text(PROGRAM)
    command = [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "store")]
    subprocess.run(command, env=os.environ | about, check=True, timeout=300)
    beside = Store(tmp_path / "store")
    for settings in ALL:
        assert beside.file(settings).read_bytes() == done.file(settings).read_bytes()
    stages = {"experts", "selections", "sets", "rows", "followings"}
    assert {settings.stage for settings in ALL} == stages
