"""Files really damaged and disks really full: no damaged byte is taken, our own files are made again, a user's are named, and nothing finished is lost."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_pipeline import ALL, EXPERT, SET, START
from test_pipeline import done as done  # the same set-up, filled by one process
from test_pipeline import halfway as halfway

from ddlib.__main__ import main
from ddlib.paper.paper import Paper
from ddlib.runs import engine, store
from ddlib.runs import stages as pipeline
from ddlib.runs.stages import expert, get
from ddlib.runs.store import Damaged, Full
from ddlib.settings import Following

HOME = Path(store.__file__).parent.parent
TINY = """
extends: smoke
seeds: 1
evaluation: {networks: 1, epochs: 1, factors: [1.0], looks: 1}
"""


@pytest.fixture
def profile(tmp_path):
    """`smoke`, smaller still."""
    file = tmp_path / "tiny.yaml"
    file.write_text(TINY)
    return str(file)


def splice(good, begin, end, new):
    return good[:begin] + new + good[end:]


def harmed(good, chance):
    """A file harmed at random in one of ten ways; its header, where a change might do no harm, is hit as often as the numbers behind it."""
    header = 8 + int.from_bytes(good[:8], "little")
    span = chance.choice([8, header, len(good)])
    a, b = sorted(chance.sample(range(span + 1), 2))
    b = min(b, a + chance.choice([1, 8, 100, 4096]))
    c = chance.randrange(len(good) - (b - a) + 1)
    return chance.choice(
        [
            lambda: good[:a],
            lambda: good + chance.randbytes(b - a),
            lambda: splice(good, a, a + 1, bytes([good[a] ^ 1 << chance.randrange(8)])),
            lambda: splice(good, a, a + 1, chance.choice(b' 09aZ"\\,:[]{}').to_bytes()),
            lambda: splice(good, a, b, bytes(b - a)),
            lambda: splice(good, a, b, chance.randbytes(b - a)),
            lambda: splice(good, a, b, good[c : c + b - a]),
            lambda: splice(good, a, b, b""),
            lambda: splice(good, a, a, chance.choice([b" ", b"\n", good[a:b]])),
            lambda: splice(splice(good, a, a + 1, good[b - 1 : b]), b - 1, b, good[a : a + 1]),
        ]
    )()


def test_of_a_thousand_random_damages_none_is_accepted(done, tmp_path):
    good, file, chance = done.file(SET).read_bytes(), tmp_path / "set.safetensors", random.Random(5)
    tried = set()
    while len(tried) < 1000:
        if (bad := harmed(good, chance)) != good:
            tried.add(bad)
    for bad in tried:
        file.write_bytes(bad)
        with pytest.raises(Damaged) as caught:
            store.read(file)
        assert str(file) in str(caught.value) and caught.value.fault
    file.write_bytes(good)
    store.read(file)


def spaced(good):
    """The same content, which safetensors and the hash would take, but not the same bytes."""
    n = int.from_bytes(good[:8], "little")
    return (n + 8).to_bytes(8, "little") + b"{" + b" " * 8 + good[9:]


HARMS = {  # name -> what is left of the file, given a store that has the same and more; and what is said
    "cut short": (lambda good, done: good[:-1], "file not fully covered"),
    "one bit": (
        lambda good, done: good[:-40] + bytes([good[-40] ^ 2]) + good[-39:],
        "its content hashes to",
    ),
    "empty": (lambda good, done: b"", "it is empty"),
    "foreign": (lambda good, done: b"not a tensor in sight", "deserializing header"),
    "another's": (
        lambda good, done: done.file(SET).read_bytes(),
        "it was made under other settings",
    ),
    "the same, written otherwise": (
        lambda good, done: spaced(good),
        "its first bytes are not those that its content asks for",
    ),
}


@pytest.mark.parametrize("harm", HARMS)
def test_an_artefact_of_our_own_is_set_aside_and_made_again(harm, done, halfway, capsys):
    change, fault = HARMS[harm]
    file = halfway.file(START)
    good = file.read_bytes()
    bad = change(good, done)
    assert bad != good
    file.write_bytes(bad)
    held = get(START, halfway)
    assert file.read_bytes() == good and held.settings == START.model_dump(mode="json")
    (aside,) = (halfway.root / "damaged").iterdir()
    assert aside.read_bytes() == bad and aside.name == f"selections-{file.name}"
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {file} is damaged: ") and fault in said and str(aside) in said


def test_what_a_task_reads_is_made_again_by_its_worker(done, halfway, capfd):
    """An expert, the start and the checkpoint, met by another process in the middle of its task."""
    halfway.checkpoint(SET, {"x": torch.ones(2)}, {})
    harmed = [halfway.file(expert(EXPERT, 1)), halfway.file(START), halfway.checkpoint_file(SET)]
    for file in harmed:
        file.write_bytes(file.read_bytes()[:-5])
    with engine.Processes(1) as pool:
        pipeline.ensure(ALL, halfway, workers=1, pool=pool)
    assert all(
        halfway.file(settings).read_bytes() == done.file(settings).read_bytes() for settings in ALL
    )
    assert len(list((halfway.root / "damaged").iterdir())) == 3
    said = capfd.readouterr().err
    assert all(f"warning: {file} is damaged" in said for file in harmed)


def test_rows_that_follow_an_expert_meet_it_whole(done, halfway):
    halfway.file(SET).parent.mkdir()
    shutil.copy(done.file(SET), halfway.file(SET))
    halfway.file(EXPERT).write_bytes(b"")
    get(Following(of=SET), halfway)
    assert halfway.file(EXPERT).read_bytes() == done.file(EXPERT).read_bytes()
    assert halfway.file(Following(of=SET)).read_bytes() == done.file(Following(of=SET)).read_bytes()


def test_a_paper_reads_damaged_rows_as_they_were(profile, tmp_path, monkeypatch):
    monkeypatch.setenv("ENGINE", "serial")
    paper = Paper(profile, tmp_path / "store", tmp_path / "results")
    before = paper.study("coresets")
    harmed = [paper.store.file(settings) for settings in paper.tasks("coresets")[:3]]
    good = [file.read_bytes() for file in harmed]
    for i, file in enumerate(harmed):
        file.write_bytes(good[i][: 50 * i])
    assert paper.study("coresets").equals(before) and [file.read_bytes() for file in harmed] == good


def test_a_users_file_is_named_with_its_fault_and_stays(done, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    good, mine = done.file(SET).read_bytes(), tmp_path / "mine.safetensors"
    faults = {
        b"": "it is empty",
        good[:-1]: "not fully covered",
        good[:-1] + bytes([good[-1] ^ 1]): "its content hashes to",
    }
    for content, fault in faults.items():
        mine.write_bytes(content)
        assert main(["evaluate", str(mine)]) == 2
        said = capsys.readouterr().err
        assert (
            said.startswith(f"ddlib: {mine} is damaged or not a ddlib file: ")
            and fault in said
            and "take a sound copy of it" in said
        )
        assert mine.read_bytes() == content and not (tmp_path / "damaged").exists()
    assert main(["evaluate", str(tmp_path / "none")]) == 2 and "no file" in capsys.readouterr().err
    assert (
        main(["evaluate", str(tmp_path)]) == 2
        and f"{tmp_path} is a folder, expected a .pt file" in capsys.readouterr().err
    )


FILLED = """
import json, os, resource, shutil, sys
from pathlib import Path
from ddlib import config, pipeline, store, studies
from ddlib.__main__ import main
home, profile, how = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ |= {"STORE": str(home / "store"), "ENGINE": "serial"}
room = 40 << 10
if how == "disk":
    (home / "ballast").write_bytes(bytes(shutil.disk_usage(home).free - room))
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
first = main(["run", "coresets", "--profile", profile])
files = [file for file in (home / "store").rglob("*.safetensors")]
sound = [str(store.read(file).settings) for file in files]
half = [file.name for file in files if file.name.startswith(".")]
if how == "disk":
    (home / "ballast").unlink()
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
again = main(["run", "coresets", "--profile", profile])
tasks = [run.settings for run in studies.coresets(config.profile(profile))]
missing = pipeline.missing(tasks, store.Store(home / "store"))
print(json.dumps({"first": first, "sound": len(sound), "half": half, "again": again, "missing": len(missing)}))
"""


def test_a_full_disk_stops_with_a_message_and_the_store_stays_sound(profile, tmp_path):
    """A file system of 1 MB in a name space of its own; else a limit on the size of files. With room again the same command goes on to the end."""
    home, how = tmp_path / "home", "limit"
    home.mkdir()
    command = [sys.executable, "-c", FILLED, str(home), profile]
    mounted = [
        "unshare",
        "-rm",
        "sh",
        "-c",
        f'mount -t tmpfs -o size=1m none "{home}" && exec "$@"',
        "sh",
    ]
    if (
        shutil.which("unshare")
        and subprocess.run([*mounted, "true"], capture_output=True).returncode == 0
    ):
        command, how = [*mounted, *command], "disk"
    ran = subprocess.run(
        [*command, how],
        env=os.environ | {"PYTHONPATH": str(HOME)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert (
        found == {"first": 2, "sound": found["sound"], "half": [], "again": 0, "missing": 0}
        and found["sound"] > 0
    ), ran.stderr
    reason = "No space left on device" if how == "disk" else "File too large"
    (said,) = [line for line in ran.stderr.splitlines() if line.startswith("ddlib: ")]
    assert (
        f".safetensors could not be written ({reason}): it takes " in said
        and " are free in " in said
        and "run again: what is finished is kept" in said
    )


def test_nothing_is_begun_on_a_full_disk(capsys):
    ran = []

    def do(task):
        ran.append(task)
        if task == 5:
            raise Full("no room")

    with pytest.raises(Full, match="no room"):
        engine.run({i: [] for i in range(10)}, do, work=float, label=str, workers=1)
    assert ran == [9, 8, 7, 6, 5]
