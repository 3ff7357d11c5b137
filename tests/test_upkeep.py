"""What a store holds for a profile is told as it is, and only what no profile needs and nobody uses is removed, after the answer yes."""

import os
import re
import shutil

import pytest
import torch
from test_pipeline import ALL, EXPERT, ROWS, SET, START
from test_pipeline import done as done  # a set-up that is of no profile

from ddlib import settings as config
from ddlib.__main__ import main
from ddlib.runs import locks, store, studies
from ddlib.runs import stages as pipeline
from ddlib.runs import status as upkeep
from ddlib.runs.stages import expert
from ddlib.runs.store import Store
from ddlib.settings import Distillation, key

TINY = "extends: smoke\nseeds: 1\nevaluation: {networks: 1, epochs: 1, factors: [1.0], looks: 1}\n"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder with a small profile and a store that holds its coresets; to be copied."""
    home = tmp_path_factory.mktemp("filled")
    (home / "tiny.yaml").write_text(TINY)
    pipeline.ensure(
        [run.settings for run in studies.coresets(config.profile(str(home / "tiny.yaml")))],
        Store(home / "store"),
        workers=1,
    )
    return home


@pytest.fixture
def home(filled, done, tmp_path, monkeypatch):
    """A copy, with what no profile needs beside; the library has one profile that can be read and one that cannot."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    for settings in ALL:
        file = tmp_path / "store" / done.file(settings).relative_to(done.root)
        file.parent.mkdir(exist_ok=True)
        shutil.copy(done.file(settings), file)
    library = tmp_path / "library"
    library.mkdir()
    shutil.copy(config.PROFILES / "smoke.yaml", library)
    (library / "broken.yaml").write_text("title: 3\n")
    monkeypatch.setattr(config, "PROFILES", library)
    monkeypatch.setattr(pipeline, "MAKE", {})  # nothing is made
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setenv("WORKERS", "3")
    return tmp_path


def everything(folder):
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def names(made, tasks):
    return {made.file(settings).relative_to(made.root).as_posix() for settings in tasks}


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_status_tells_what_is_there_missing_damaged_begun_and_not_needed(home, capsys):
    made, profile = Store(home / "store"), config.profile(str(home / "tiny.yaml"))
    tasks, search = upkeep.tasks(profile)
    (cut, *_), begun = (
        [t for t in tasks if made.has(t) and t.stage == "selections"],
        next(t for t in tasks if isinstance(t, Distillation)),
    )
    made.file(cut).write_bytes(made.file(cut).read_bytes()[:-1])
    made.checkpoint(begun, {"x": torch.ones(1)}, {"iteration": begun.iterations // 2})
    (made.root / "damaged").mkdir()
    (made.root / "damaged" / "rows-1.safetensors").write_bytes(bytes(1234))
    before = everything(made.root)
    with locks.lock(made.root / "locks" / key(begun), "that very task"):
        assert main(["status", str(home / "tiny.yaml")]) == 0
    assert everything(made.root) == before
    said = capsys.readouterr().out
    lines = {cells(line)[0]: cells(line)[1:] for line in said.splitlines() if line.startswith("| ")}
    for stage in ("experts", "selections", "sets", "rows", "followings", "films", "measurements"):
        wanted = [t for t in tasks if t.stage == stage]
        there = [made.file(t) for t in wanted if made.has(t)]
        damaged = int(stage == "selections")
        size = store.amount(sum(file.stat().st_size for file in there))
        assert lines[stage] == [
            *map(
                str,
                (len(wanted), len(there) - damaged, len(wanted) - len(there) + damaged, damaged),
            ),
            size,
        ]
    assert f"asks for {len(search)} tasks more, of which 0 are there" in said
    missing = [t for t in tasks if not made.has(t) or t == cut]
    seconds = sum(map(pipeline.work, missing)) - pipeline.work(begun) / 2
    assert (
        f"Missing: {len(missing)} tasks. Estimate, from their settings alone: {upkeep.engine.clock(seconds / 3)} in 3 processes"
        in said
    )
    assert (
        f"A checkpoint: {pipeline.name(begun)}, iteration {begun.iterations // 2} of {begun.iterations}."
        in said
    )
    assert f"Being made: that very task, by process {os.getpid()} on " in said
    assert re.search(
        f"Damaged, and made again when it is asked for: {made.file(cut)}: .*not fully covered", said
    )
    assert f"Damaged and set aside in {made.root / 'damaged'}: 1 file, 1 kB." in said
    assert f"Not for this profile: {len(ALL)} files, " in said


def test_status_of_a_whole_store(home, capsys, monkeypatch):
    monkeypatch.setattr(
        studies, "asked", lambda profile: [run.settings for run in studies.coresets(profile)]
    )
    assert main(["status", str(home / "tiny.yaml")]) == 0
    said = capsys.readouterr().out
    assert "Nothing is missing." in said and "Damaged" not in said and "checkpoint" not in said


@pytest.fixture
def littered(home):
    """With a file of each other kind that `gc` removes, and one of each that it must not."""
    made = Store(home / "store")
    of_tiny = made.file(
        next(studies.coresets(config.profile(str(home / "tiny.yaml")))).settings
    ).name
    for name, content in {
        "damaged/rows-1.safetensors": b"damaged",
        f"rows/.half-{key(ROWS)}.safetensors": b"half",
        "locks/0123456789abcdef": b"",
        "data/mine/train/cat/1.png": b"my own",
        "data/cifar-10-batches-py/data_batch_1": b"my own",
        "data/mnist_5k-0.safetensors": b"a copy",
        "notes.txt": b"my own",
        "rows/mine.safetensors": b"my own",
        f"checkpoints/{of_tiny}": b"of a finished task",
    }.items():
        (made.root / name).parent.mkdir(parents=True, exist_ok=True)
        (made.root / name).write_bytes(content)
    os.utime(made.root / f"rows/.half-{key(ROWS)}.safetensors", (0, 0))
    litter = {
        "damaged/rows-1.safetensors",
        f"rows/.half-{key(ROWS)}.safetensors",
        "locks/0123456789abcdef",
        f"checkpoints/{of_tiny}",
    }
    return made, litter | names(made, ALL)


@pytest.mark.parametrize("answer", ["", "n", "no", "all", None])
def test_nothing_is_removed_without_a_yes(answer, littered, home, capsys, monkeypatch):
    made, litter = littered
    before = everything(made.root)

    def asked(question):
        print(question)
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("builtins.input", asked)
    assert main(["gc", str(home / "tiny.yaml")]) == 0
    assert everything(made.root) == before
    said = capsys.readouterr().out
    assert all(f"  {name}  " in said for name in litter)
    assert (
        f"{len(litter)} files, " in said
        and "The profile broken cannot be read" in said
        and "Removed" not in said
    )
    assert (
        f"{made.file(EXPERT).relative_to(made.root)}  {pipeline.name(EXPERT)} · no profile needs it"
        in said
    )


def test_what_no_profile_needs_is_removed_and_nothing_else(littered, home, capsys, monkeypatch):
    made, litter = littered
    before = everything(made.root)
    monkeypatch.setattr("builtins.input", lambda question: "yes")
    assert main(["gc", str(home / "tiny.yaml")]) == 0
    left = everything(made.root)
    assert left == {name: content for name, content in before.items() if name not in litter}
    assert f"Removed {len(litter)} of {len(litter)} files, " in capsys.readouterr().out
    assert main(["gc", "--yes", str(home / "tiny.yaml")]) == 0
    assert (
        everything(made.root) == left
        and "holds nothing that no profile needs" in capsys.readouterr().out
    )


def test_only_the_librarys_profiles_count_where_none_is_named(home, capsys):
    made = Store(home / "store")
    tiny, smoke = (
        {key(t) for t in upkeep.tasks(config.profile(name))[0]}
        for name in (str(home / "tiny.yaml"), "smoke")
    )
    assert main(["gc", "--yes"]) == 0
    left = {name.split("/")[1].split(".")[0] for name in everything(made.root) if "/" in name}
    assert left and left <= smoke and not left & (tiny - smoke)
    assert (
        main(["gc", "--yes", "nowhere"]) == 2 and "no profile 'nowhere'" in capsys.readouterr().err
    )


def test_what_a_living_process_makes_or_reads_stays(littered, home, capsys, monkeypatch):
    """Taken before the question, or while it is asked."""
    made, litter = littered
    held = made.root / "locks" / key(ROWS)

    def taken_meanwhile(question):
        meanwhile.__enter__()
        return "y"

    meanwhile = locks.lock(
        made.root / "locks" / key(SET), "a set", [key(START), key(expert(EXPERT, 1))]
    )
    monkeypatch.setattr("builtins.input", taken_meanwhile)
    with locks.lock(held, "rows"):
        assert main(["gc", str(home / "tiny.yaml")]) == 0
        left = everything(made.root)
        meanwhile.__exit__(None, None, None)
    stay = names(made, [ROWS, SET, START, expert(EXPERT, 1)])
    assert stay <= left.keys() and not (litter - stay) & left.keys()
    assert (
        capsys.readouterr().out.count("Kept, for a living process uses it: ") == 3
    )  # the rows were not even listed
