"""Where a task runs, and how often it is begun again, changes no byte of what it leaves."""

import os
import re
import signal
import subprocess
import sys
import time
from functools import partial
from operator import attrgetter
from pathlib import Path

import pytest

from ddlib.base import InputError, key
from ddlib.files import Full
from ddlib.method.train import Diverged
from ddlib.runs import cost, engine, run
from ddlib.runs.engine import Job
from ddlib.runs.store import Store
from tiny import ALL, ROWS, SET

PATHS = os.pathsep.join([str(Path(__file__).parent), str(Path(engine.__file__).parents[2])])


def second(task):
    """A second of predicted work."""
    return 1.0


def dies_once(mark: Path, root: Path, settings) -> None:
    """The first set's process is killed before it is made, the first time."""
    if settings == SET and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    run.get(settings, Store(root))


def dies(task):
    os.kill(os.getpid(), signal.SIGKILL)


def raises(task):
    raise {"diverged": Diverged, "refused": InputError}[task](f"{task} as it is")


def survive(name, folder, capfd):
    """A killed process costs one more try of its task; what a task raised comes as it is."""
    alone, store = Store(folder / "alone"), Store(folder / name)
    for settings in ALL:
        run.get(settings, alone)
    tasks = run.missing(ALL, store)
    job = Job(partial(dies_once, folder / "killed", store.root), cost.seconds, attrgetter("title"))
    with engine.executor(2, name) as pool:
        engine.run(tasks, job, None, 2, pool)
        said = capfd.readouterr().err
        assert f"{SET.title}: its process was killed; again (1 of 2)" in said
        for task, kind in (("diverged", Diverged), ("refused", InputError)):
            with pytest.raises(kind, match=task):
                engine.run({task: []}, Job(raises, second), None, 1, pool)
    for settings in ALL:
        assert store.file(settings).read_bytes() == alone.file(settings).read_bytes()


def test_processes_survive_a_kill(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(engine, "RETRIES", 2)
    survive("processes", tmp_path, capfd)
    with engine.executor(2, "processes") as pool, pytest.raises(engine.Lost, match=r"WORKERS"):
        monkeypatch.setattr(engine, "RETRIES", 0)
        engine.run({"x": [], "y": ["x"]}, Job(dies, second), None, 2, pool)


def test_ray_leaves_the_same_bytes_and_survives_a_kill(tmp_path, capfd, monkeypatch):
    pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'ddlib[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", PATHS)  # Ray's processes find this module
    survive("ray", tmp_path, capfd)


class Recorder:
    """What was done, in which order."""

    def __init__(self, fails=()):
        self.done, self.fails = [], fails

    def __call__(self, task):
        self.done.append(task)
        if task in self.fails:
            raise self.fails[task]


def test_the_longest_first_and_after_what_it_needs():
    do = Recorder()
    engine.run({1: [], 5: [], 9: [1], 2: [9, 5]}, Job(do, float), workers=1)
    assert do.done == [5, 1, 9, 2]


def test_a_failure_stops_only_what_needs_it(capsys):
    do = Recorder({5: InputError("no five")})
    with pytest.raises(InputError, match="no five"):
        engine.run({5: [], 6: [5], 1: [], 2: [1]}, Job(do, float), workers=1)
    assert sorted(do.done) == [1, 2, 5] and "5 failed: no five" in capsys.readouterr().err


def test_nothing_begins_on_a_full_disk():
    do = Recorder({5: Full("no room")})
    with pytest.raises(Full, match="no room"):
        engine.run({i: [] for i in range(10)}, Job(do, float), workers=1)
    assert 5 in do.done and len(do.done) < 10


def test_what_another_process_is_on_comes_last(monkeypatch):
    monkeypatch.setattr(engine, "POLL", 0.01)
    do, asked = Recorder(), []

    def busy(task):
        asked.append(task)
        return task == 9 and 1 not in do.done

    engine.run({9: [], 1: [], 3: []}, Job(do, float, str, busy), workers=1)
    assert do.done[-1] == 9 and set(do.done) == {1, 3, 9}


def test_engines_and_workers_by_the_environment(monkeypatch):
    monkeypatch.setenv("ENGINE", "serial")
    assert isinstance(engine.executor(4), engine.Here)
    monkeypatch.setenv("ENGINE", "dask")
    with pytest.raises(InputError, match="ENGINE=dask: expected one of serial, processes, ray"):
        engine.executor(2)
    monkeypatch.setenv("MEMORY", "0")
    assert engine.memory() == 0
    monkeypatch.setenv("MEMORY", "2 GB")
    with pytest.raises(InputError, match="MEMORY=2 GB: expected a number of megabytes"):
        engine.memory()
    for name, wrong in (("WORKERS", "0"), ("GPU_SHARE", "2"), ("GPU_SHARE", "half")):
        monkeypatch.setenv(name, wrong)
        with pytest.raises(InputError, match=f"{name}={wrong}: expected"):
            engine.default_workers()
        monkeypatch.delenv(name)
    monkeypatch.setattr(engine.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("GPU_SHARE", "0.25")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7a")
    assert engine.gpus() == ["4", "GPU-7a"] and engine.default_workers() == 8
    monkeypatch.setenv("DEVICE", "tpu9")
    with pytest.raises(InputError, match="DEVICE=tpu9: expected cpu, or cuda"):
        engine.device()


FILLER = """
import sys
from functools import partial
from tiny import ALL
from ddlib.runs import run, stages
from ddlib.base import key
from ddlib.runs.store import Store
root, mark = sys.argv[1:]
make = run.make
def noted(settings, inputs, keep):
    with open(mark, "a") as out:
        out.write(key(settings) + "\\n")
    return make(settings, inputs, keep)
run.make = noted
run.ensure(ALL, Store(root), workers=1)
"""


def test_the_same_command_twice_over_one_store_makes_each_thing_once(tmp_path):
    """As the members of a batch system's array do."""
    command = [sys.executable, "-c", FILLER, tmp_path / "store", tmp_path / "mark"]
    environment = os.environ | {"PYTHONPATH": PATHS, "ENGINE": "serial"}
    both = [subprocess.Popen(command, env=environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    noted = (tmp_path / "mark").read_text().split()
    assert sorted(noted) == sorted(set(noted)) and set(map(key, ALL)) <= set(noted)
    assert Store(tmp_path / "store").has(ROWS)


SCRIPT = """
import os, signal, sys, time
from ddlib.runs import engine
print(engine.Processes(1).submit(os.getpid).result(), flush=True)
if sys.argv[1] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_processes_end_with_the_one_that_they_work_for(tmp_path):
    """And a script needs no guard: processes do not run it again."""
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, tmp_path / "script.py", "kill"]
    killed = subprocess.run(
        command,
        env=os.environ | {"PYTHONPATH": PATHS},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    worker = Path("/proc") / killed.stdout.strip()
    assert killed.returncode == -signal.SIGKILL and worker.name.isdecimal()
    for _ in range(100):
        if not worker.exists() or ") Z " in (worker / "stat").read_text():
            return
        time.sleep(0.1)
    pytest.fail("the worker lives on")


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_an_interrupt_stops_within_seconds_in_one_line(signal_, workers, tmp_path):
    """Sent to the parent alone, and started as a shell starts what is in the background."""
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    code += "from ddlib.__main__ import main; sys.exit(main(sys.argv[1:]))"
    long = "extends: smoke\nrecipes: {sgd: {epochs: 100000}, momentum: {epochs: 100000}}\n"
    (tmp_path / "long.yaml").write_text(long)
    command = [sys.executable, "-c", code, "run", "main", "--profile", str(tmp_path / "long.yaml")]
    env = os.environ | {"WORKERS": workers, "STORE": str(tmp_path / "store"), "CHECKPOINT": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=env, **pipes) as child:
        until = time.monotonic() + 60
        while not list(tmp_path.glob("store/checkpoints/*")) and time.monotonic() < until:
            time.sleep(0.1)
        inside = [int(p) for p in re.findall(r"\d+", _children(child.pid))]
        child.send_signal(signal_)
        _, said = child.communicate(timeout=20)
    assert child.returncode == 130
    assert said.splitlines()[-1].startswith("ddlib: stopped. What is finished is kept")
    assert "Traceback" not in said and list(tmp_path.glob("store/checkpoints/*"))
    until = time.monotonic() + 10
    while any(Path(f"/proc/{p}").exists() for p in inside) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(Path(f"/proc/{p}").exists() for p in inside)


def _children(pid):
    return Path(f"/proc/{pid}/task/{pid}/children").read_text()


LISTENS = """
import sys
from pathlib import Path

def listening():
    lines = [line.split() for file in ("tcp", "tcp6") for line in open(f"/proc/net/{file}")]
    return {line[1] for line in lines if line[3] == "0A"}

if __name__ == "__main__":
    from ddlib.runs.engine import executor
    before = listening()
    with executor(1, "ray") as place:
        assert place.submit(len, "abc").result() == 3
        print(*(listening() - before))
"""


def test_ray_listens_on_this_machine_alone(tmp_path):
    """Its ports have no authentication, so nobody else may reach them."""
    pytest.importorskip("ray")
    (tmp_path / "listens.py").write_text(LISTENS)
    env = {k: v for k, v in os.environ.items() if not k.startswith("RAY")}
    env |= {"PYTHONPATH": str(Path(engine.__file__).parents[2])}
    command = [sys.executable, str(tmp_path / "listens.py")]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    loopback = (
        "0100007F:",
        "0000000000000000FFFF00000100007F:",
        "00000000000000000000000001000000:",
    )
    assert said.split() and all(address.startswith(loopback) for address in said.split()), said
