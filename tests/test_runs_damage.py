"""Files really damaged and disks really full.

No damaged byte is taken, damaged artefacts are made again, and nothing that is finished is lost.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ddlib.files import Damaged
from ddlib.runs import run, store
from ddlib.runs.run import get
from ddlib.runs.stages import Following
from tiny import EXPERT, ROWS, SET, START

HOME = Path(store.__file__).parents[2]
FOLLOWING = Following(of=SET)


def splice(good, begin, end, new):
    return good[:begin] + new + good[end:]


def harmed(good, chance):
    """A file harmed at random in one of ten ways; its header is hit as often as its numbers."""
    header = 8 + int.from_bytes(good[:8], "little")
    a, b = sorted(chance.sample(range(chance.choice([8, header, len(good)]) + 1), 2))
    b = min(b, a + chance.choice([1, 8, 100, 4096]))
    c = chance.randrange(len(good) - (b - a) + 1)
    swapped = splice(splice(good, a, a + 1, good[b - 1 : b]), b - 1, b, good[a : a + 1])
    return chance.choice(
        [
            lambda: good[:a],
            lambda: good + chance.randbytes(b - a),
            lambda: splice(good, a, a + 1, bytes([good[a] ^ 1 << chance.randrange(8)])),
            lambda: splice(good, a, a + 1, bytes([chance.choice(b' 09aZ"\\,:[]{}')])),
            lambda: splice(good, a, b, bytes(b - a)),
            lambda: splice(good, a, b, chance.randbytes(b - a)),
            lambda: splice(good, a, b, good[c : c + b - a]),
            lambda: splice(good, a, b, b""),
            lambda: splice(good, a, a, chance.choice([b" ", b"\n", good[a:b]])),
            lambda: swapped,
        ]
    )()


def test_of_many_random_damages_none_is_accepted(done, tmp_path):
    good, file, chance = done.file(SET).read_bytes(), tmp_path / "set.safetensors", random.Random(5)
    tried = set()
    while len(tried) < 300:
        if (bad := harmed(good, chance)) != good:
            tried.add(bad)
    for bad in tried:
        file.write_bytes(bad)
        with pytest.raises(Damaged) as caught:
            store.read(file)
        assert str(file) in str(caught.value) and caught.value.fault
    file.write_bytes(good)
    store.read(file)


def spaced(good, done):
    """The same content, which safetensors and the hash would take, but not the same bytes."""
    n = int.from_bytes(good[:8], "little")
    return (n + 8).to_bytes(8, "little") + b"{" + b" " * 8 + good[9:]


HARMS = {  # name -> what is left of the file, given a store with another's; and what is said
    "one bit": (
        lambda good, done: splice(good, -40, -39, bytes([good[-40] ^ 2])),
        "its content hashes to",
    ),
    "another's": (lambda good, done: done.file(SET).read_bytes(), "made under other settings"),
    "the same, written otherwise": (spaced, "its first bytes are not those that its content"),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_artefact_is_set_aside_and_made_again(harm, done, halfway, capsys):
    change, fault = HARMS[harm]
    file = halfway.file(START)
    good = file.read_bytes()
    bad = change(good, done)
    assert bad != good
    file.write_bytes(bad)
    made = get(START, halfway)
    assert file.read_bytes() == good and made.settings == START.model_dump(mode="json")
    (aside,) = (halfway.root / "damaged").iterdir()
    assert aside.read_bytes() == bad and aside.name == f"selections-{file.name}"
    text = capsys.readouterr().err
    assert text.startswith(f"warning: {file} is damaged: ") and fault in text and str(aside) in text


def test_what_a_task_reads_is_made_again_in_its_middle(done, halfway, capfd):
    """An expert, the start and the checkpoint; the plan took them for sound."""
    store.write(halfway.checkpoint_file(SET), SET, {"x": torch.ones(2)}, {})
    files = [halfway.file(EXPERT.at(1)), halfway.file(START), halfway.checkpoint_file(SET)]
    for file in files:
        file.write_bytes(file.read_bytes()[:-5])
    assert run.missing([ROWS, FOLLOWING], halfway).keys() == {ROWS, SET, FOLLOWING}
    run.ensure([ROWS, FOLLOWING], halfway, workers=1)
    for settings in (EXPERT.at(1), START, SET, ROWS, FOLLOWING):
        assert halfway.file(settings).read_bytes() == done.file(settings).read_bytes()
    assert len(list((halfway.root / "damaged").iterdir())) == 3
    text = capfd.readouterr().err
    assert all(f"warning: {file} is damaged" in text for file in files)


FILLED = """
import json, resource, shutil, sys
from pathlib import Path
from ddlib.files import Full
from ddlib.runs import run, store, studies
from ddlib.runs.profile import profile
home, how = Path(sys.argv[1]), sys.argv[2]
tasks = [run.settings for run in studies.coresets(profile("smoke"))][::4]
room, message = 40 << 10, ""
place = store.Store(home / "store")
if how == "disk":
    (home / "ballast").write_bytes(bytes(shutil.disk_usage(home).free - room))
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
try:
    run.ensure(tasks, place, workers=1)
except Full as error:
    message = str(error)
files = list((home / "store").rglob("*.safetensors"))
sound = [str(store.read(file).settings) for file in files]
half = [file.name for file in files if file.name.startswith(".")]
if how == "disk":
    (home / "ballast").unlink()
else:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
run.ensure(tasks, place, workers=1)
left = len(run.missing(tasks, place))
print(json.dumps({"message": message, "sound": len(sound), "half": half, "left": left}))
"""


def test_a_full_disk_stops_with_a_message_and_the_store_stays_sound(tmp_path):
    """A file system of 1 MB in a name space of its own; else a limit on the size of files.

    With room again, the same call goes on to the end.
    """
    home, how = tmp_path / "home", "limit"
    home.mkdir()
    command = [sys.executable, "-c", FILLED, str(home)]
    mount = f'mount -t tmpfs -o size=1m none "{home}" && exec "$@"'
    mounted = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if (
        shutil.which("unshare")
        and not subprocess.run([*mounted, "true"], capture_output=True).returncode
    ):
        command, how = [*mounted, *command], "disk"
    paths = os.environ | {"PYTHONPATH": str(HOME)}
    ran = subprocess.run([*command, how], env=paths, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    told = json.loads(ran.stdout.splitlines()[-1])
    assert told["half"] == [] and told["left"] == 0 and told["sound"] > 0
    reason = "No space left on device" if how == "disk" else "File too large"
    assert f".safetensors could not be written ({reason}): it takes " in told["message"]
    assert " are free in " in told["message"]
    assert "run again: what is finished is kept" in told["message"]
