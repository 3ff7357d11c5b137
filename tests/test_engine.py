"""Where a task runs, beside which others, and how often it has to be begun again changes no byte of what it leaves."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from test_pipeline import ALL, EXPERT, NET, ROWS, SET
from test_pipeline import done as done  # the same set-up, filled by one process

from ddlib.method.train import Diverged
from ddlib.runs import engine, shards
from ddlib.runs import stages as pipeline
from ddlib.runs.store import Store
from ddlib.settings import Evaluation, InputError

PATHS = os.pathsep.join([str(Path(__file__).parent), str(Path(engine.__file__).parent.parent)])
AGAIN = [
    Evaluation(of=SET, network=NET, networks=1, epochs=2, factors=(f,))
    for f in (0.1, 0.2, 0.3, 0.4)
]


def same(store, done, wanted=ALL):
    """Byte for byte."""
    return all(
        store.file(settings).read_bytes() == done.file(settings).read_bytes() for settings in wanted
    )


def killed_while_it_distils(mark: Path, root: Path, settings) -> None:
    """A task whose process is killed after the third outer iteration, the first time."""
    distil = pipeline.distil

    def dies(*given):
        for i, step in enumerate(distil(*given)):
            if i == 3 and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            yield step

    os.environ["CHECKPOINT"], pipeline.distil = "0", dies
    try:
        pipeline.task(settings, root)
    finally:
        pipeline.distil = distil


def until(file: Path) -> str:
    while not file.exists():
        time.sleep(0.05)
    return "gone"


def dies(task):
    os.kill(os.getpid(), signal.SIGKILL)


def raises(task):
    raise {"diverged": Diverged, "refused": InputError}[task](f"{task} as it is")


def survive(name, done, folder, capfd):
    """A killed process costs one more try of its task, and an error that a task raised comes as it is, after one try."""
    made, mark = Store(folder / name), folder / "killed"
    tasks = pipeline.missing([*ALL, *AGAIN], made)
    with engine.executor(2, name) as pool:
        engine.run(
            tasks,
            partial(killed_while_it_distils, mark, made.root),
            pipeline.work,
            pipeline.name,
            None,
            2,
            pool,
        )
        said = capfd.readouterr().err
        assert (
            f"{pipeline.name(SET)}: its process was killed; again (1 of 2)" in said
            and said.count("killed") == 1
        )
        for task, kind in (("diverged", Diverged), ("refused", InputError)):
            with pytest.raises(kind, match=f"^{task} as it is$") as caught:
                engine.run({task: []}, raises, lambda task: 1.0, str, None, 1, pool)
            assert type(caught.value) is kind
    assert mark.exists() and same(made, done) and made.resume(SET) is None


def test_a_killed_process_is_survived(done, tmp_path, capfd):
    survive("processes", done, tmp_path, capfd)


def test_ray_leaves_the_same_bytes_and_survives_a_killed_worker(done, tmp_path, capfd, monkeypatch):
    pytest.importorskip("ray", reason="Ray is an optional extra: pip install 'ddlib[ray]'")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", PATHS)  # Ray's processes find this module
    survive("ray", done, tmp_path, capfd)


def test_only_the_killed_process_loses_its_task(tmp_path):
    with engine.executor(2, "processes") as pool:
        kept, lost = pool.submit(until, tmp_path / "go"), pool.submit(dies, "task")
        with pytest.raises(engine.BrokenExecutor):
            lost.result()
        assert pool.submit(os.getpid).result() != os.getpid() and not kept.done()
        (tmp_path / "go").touch()
        assert kept.result() == "gone"


def test_processes_end_with_the_one_that_they_work_for():
    program = """if __name__ == "__main__":
        import os, signal
        from ddlib.engine import Processes
        print(Processes(1).submit(os.getpid).result(), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)"""
    killed = subprocess.run(
        [sys.executable, "-c", program],
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


def test_a_task_that_kills_its_process_every_time_is_given_up_by_name(monkeypatch, capfd):
    monkeypatch.setattr(engine, "RETRIES", 0)
    with (
        engine.executor(2, "processes") as pool,
        pytest.raises(
            engine.Lost, match=r"task x: its process was killed, and 0 times again, .*WORKERS"
        ),
    ):
        engine.run({"x": [], "y": ["x"]}, dies, lambda task: 1.0, "task {}".format, None, 2, pool)
    assert "again (" not in capfd.readouterr().err


def test_engines_by_name(monkeypatch):
    monkeypatch.setenv("ENGINE", "serial")
    assert isinstance(engine.executor(4), engine.Here)
    monkeypatch.delenv("ENGINE")
    assert isinstance(engine.executor(1), engine.Here)
    with engine.executor(2) as pool:
        assert isinstance(pool, engine.Processes)
    monkeypatch.setenv("ENGINE", "dask")
    with pytest.raises(InputError, match="ENGINE=dask: expected one of serial, processes, ray"):
        engine.executor(2)


def test_workers_take_turns_at_the_gpus(monkeypatch):
    assert [engine.placed(k, ["0", "2"]) for k in range(5)] == [
        "0",
        "2",
        "0",
        "2",
        "0",
    ] and engine.placed(3, []) is None
    monkeypatch.setattr(engine.torch.cuda, "device_count", lambda: 2)
    for name, value in (("WORKERS", ""), ("GPU_SHARE", "0.25"), ("CUDA_VISIBLE_DEVICES", "")):
        monkeypatch.setenv(name, value)
    assert engine.gpus() == ["0", "1"] and engine.default_workers() == 8
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-7a")
    assert engine.gpus() == ["4", "GPU-7a"]
    with engine.executor(3, "processes") as pool:
        assert [start.args[-2:] for start in pool.start] == [
            (engine.begin, (gpu,)) for gpu in ("4", "GPU-7a", "4")
        ]
    engine.begin("GPU-7a")
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-7a"
    for wrong in ("2", "-1", "half", "nan"):
        monkeypatch.setenv("GPU_SHARE", wrong)
        with pytest.raises(InputError, match=f"GPU_SHARE={wrong}: expected the part of a GPU"):
            engine.default_workers()


@pytest.mark.parametrize(
    "text", ["0/2", "3/2", "x", "", "1", "1/0", "-1/2", "1/2/3", "1.0/2", " 1/2", "²/3"]
)
def test_a_wrong_shard_is_refused(text):
    with pytest.raises(InputError, match="expected i/n, the i-th of n shards"):
        shards.parse(text)


def test_each_task_has_one_shard_the_same_everywhere_and_the_parts_are_even():
    tasks = [
        EXPERT.model_copy(update={"seed": s, "epochs": e}) for s in range(10) for e in (1, 2, 8)
    ] + AGAIN
    owner = shards.split(tasks, 3, pipeline.work)
    assert owner == shards.split(reversed(tasks), 3, pipeline.work) and owner.keys() == set(tasks)
    load = Counter()
    for task, i in owner.items():
        load[i] += pipeline.work(task)
    assert load.keys() == {1, 2, 3} and max(load.values()) < 1.2 * min(load.values())
    assert set(shards.split(tasks, 1, pipeline.work).values()) == {1} and set(
        shards.split(tasks[:1], 5, pipeline.work).values()
    ) == {1}


def test_shards_one_after_another_do_together_what_one_run_does(done, tmp_path, monkeypatch, capfd):
    """Neither waits for the other to exist; what the first needs of the second it makes itself."""
    monkeypatch.setattr(shards, "SILENCE", 0.0)
    made, wanted = Store(tmp_path), [*ALL, *AGAIN]
    owner = shards.split(pipeline.missing(wanted, None), 2, pipeline.work)
    pipeline.ensure(wanted, made, workers=1, shard=(1, 2))
    left = pipeline.missing(wanted, made)
    assert (
        left
        and {owner[s] for s in left} == {2}
        and "no life from shard 2/2" in capfd.readouterr().err
    )
    pipeline.ensure(wanted, made, workers=1, shard=(2, 2))
    assert same(made, done) and not pipeline.missing(wanted, made)
    assert not any((made.root / "shards").iterdir())


WORKER = """
import sys, time
from pathlib import Path
from test_engine import *
from ddlib.config import key
store, i, mark = Store(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
shards.SILENCE, shards.BEAT, engine.POLL = 6.0, 0.5, 0.2
make = dict(pipeline.MAKE)
def traced(kind, settings, store):
    with open(mark, "a") as out:
        out.write(f"{i} {key(settings)}\\n")
    if "slow" in sys.argv:
        time.sleep(1e3)
    make[kind](settings, store)
pipeline.MAKE = {kind: partial(traced, kind) for kind in make}
pipeline.ensure([*ALL, *AGAIN], store, workers=1, shard=(i, 2))
"""


def member(i, store, mark, *more):
    """A shard as a process of its own, which notes in `mark` what it makes."""
    environment = os.environ | {"PYTHONPATH": PATHS, "ENGINE": "serial"}
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, store.root, str(i), mark, *more],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_shards_at_the_same_time_do_each_task_once(done, tmp_path):
    made, mark = Store(tmp_path / "store"), tmp_path / "mark"
    both = [member(i, made, mark) for i in (1, 2)]
    said = [shard.communicate(timeout=120)[1] for shard in both]
    assert [shard.returncode for shard in both] == [0, 0], said
    assert same(made, done) and not pipeline.missing([*ALL, *AGAIN], made)
    pairs = [line.split() for line in mark.read_text().splitlines()]
    assert {i for i, _ in pairs} == {"1", "2"} and len(pairs) == len({k for _, k in pairs}) == len(
        ALL
    ) + len(AGAIN)
    assert any("waits for" in text for text in said)  # the set's rows wait for the set


def test_a_killed_shard_is_taken_over_and_runs_again(done, tmp_path):
    made, mark = Store(tmp_path / "store"), tmp_path / "mark"
    wanted = [*ALL, *AGAIN]
    owner = shards.split(pipeline.missing(wanted, None), 2, pipeline.work)
    dead = owner[SET]
    victim = member(dead, made, mark, "slow")
    while not mark.exists():
        time.sleep(0.05)
    survivor = member(3 - dead, made, mark)
    assert any(f"waits for {dead}/2" in line for line in survivor.stderr)
    victim.kill()
    victim.wait()
    said = survivor.communicate(timeout=120)[1]
    assert survivor.returncode == 0 and f"no life from shard {dead}/2" in said
    assert {owner[s] for s in pipeline.missing(wanted, made)} <= {dead}
    again = member(dead, made, mark)
    assert again.wait(timeout=120) == 0
    assert same(made, done) and not pipeline.missing(wanted, made) and ROWS in owner
    assert not any((made.root / "shards").iterdir())


def test_a_script_needs_no_guard(tmp_path):
    """Processes do not run the caller's script again, which would begin them for ever."""
    script = tmp_path / "script.py"
    script.write_text(
        'from ddlib import engine\n\nengine.run({"1": [], "2": []}, float, float, str, workers=2)\nprint("once")\n'
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        env=os.environ | {"ENGINE": "processes", "PYTHONPATH": PATHS},
        timeout=300,
    )
    assert done.returncode == 0 and done.stdout == "once\n", done.stderr
