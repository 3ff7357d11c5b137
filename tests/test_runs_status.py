"""What a store holds is told as it is; only what no profile needs is removed, after a yes."""

import re
import shutil

import pytest
import torch
from filelock import FileLock

from ddlib.__main__ import main
from ddlib.base import key
from ddlib.runs import profile as profiles_module
from ddlib.runs import run, status, store, studies
from ddlib.runs.profile import PROFILES, profile
from ddlib.runs.store import Store
from ddlib.settings import Distillation
from tiny import ALL

TINY = "extends: smoke\nseeds: 1\nevaluation: {networks: 1, epochs: 1, lrs: [0.01], looks: 1}\n"


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder with a small profile, a store that holds its coresets, and one set of no profile."""
    home = tmp_path_factory.mktemp("filled")
    (home / "tiny.yaml").write_text(TINY)
    given = profile(str(home / "tiny.yaml"))
    run.ensure([*studies.asked(given, ["coresets"]), *ALL[:3]], Store(home / "store"), workers=1)
    return home


@pytest.fixture
def home(filled, tmp_path, monkeypatch):
    """A copy; the library has one profile."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    library = tmp_path / "library"
    library.mkdir()
    shutil.copy(PROFILES / "smoke.yaml", library)
    monkeypatch.setattr(profiles_module, "PROFILES", library)
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    monkeypatch.setenv("WORKERS", "3")
    return tmp_path


def everything(folder):
    return {f.relative_to(folder): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_status_tells_what_is_there_missing_damaged_and_begun(home, capsys):
    place, given = Store(home / "store"), profile(str(home / "tiny.yaml"))
    tasks, _ = status.tasks(given)
    cut = next(t for t in tasks if place.has(t) and t.stage == "selections")
    begun = next(t for t in tasks if isinstance(t, Distillation))
    place.file(cut).write_bytes(place.file(cut).read_bytes()[:-1])
    half = begun.iterations // 2
    store.write(place.checkpoint_file(begun), begun, {"x": torch.ones(1)}, {"iteration": half})
    lock = place.root / "locks" / f"{key(begun)}.lock"
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        assert main(["status", str(home / "tiny.yaml")]) == 0
    said = capsys.readouterr().out
    there = sum(place.has(t) for t in tasks if t.stage == "selections")
    wanted = sum(t.stage == "selections" for t in tasks)
    assert re.search(rf"\| selections +\| +{wanted} \| +{there - 1} \|.*\| +1 \|", said)
    missing = [t for t in tasks if not place.has(t) or t == cut]
    assert f"Missing: {len(missing)} tasks." in said and "in 3 processes" in said
    assert f"A checkpoint: {begun.title}, iteration {half} of {begun.iterations}." in said
    assert f"Being made by another process: {begun.title}." in said
    assert f"Damaged, and made again when asked for: {place.file(cut)}" in said
    assert "Not for this profile: " in said


@pytest.mark.parametrize("answer", ["", "n", "no", EOFError, RuntimeError, OSError])
def test_nothing_is_removed_without_a_yes(answer, home, capsys, monkeypatch):
    def ask(question):
        if isinstance(answer, str):
            return answer
        raise answer  # nobody is there, or the input is closed

    monkeypatch.setattr("builtins.input", ask)
    before = everything(home / "store")
    assert main(["gc"]) == 0
    after = everything(home / "store")
    assert {k for k in before if "locks" not in k.parts} == {
        k for k in after if "locks" not in k.parts
    }
    assert "no profile needs it" in capsys.readouterr().out


def test_what_no_profile_needs_is_removed_and_nothing_else(home, capsys):
    place, mine = Store(home / "store"), str(home / "tiny.yaml")
    (place.root / "data").mkdir(exist_ok=True)
    (place.root / "data" / "mine.bin").write_bytes(b"mine")
    lock = place.root / "locks" / f"{key(ALL[0])}.lock"
    with FileLock(lock):
        assert main(["gc", mine, "--yes"]) == 2
    assert "a process is at work in" in capsys.readouterr().err and place.has(ALL[0])
    needed = set(map(key, status.tasks(profile(mine))[0]))
    assert main(["gc", mine, "--yes"]) == 0
    left = {file.stem for file in place.root.glob("*/*.safetensors")}
    assert left and left <= needed and (place.root / "data" / "mine.bin").exists()
    assert main(["gc", mine]) == 0
    assert "holds nothing that no profile needs" in capsys.readouterr().out
