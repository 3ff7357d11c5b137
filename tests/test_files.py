"""Files are there whole or not at all, their digest sees every byte, and one process makes each."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import ddlib
from ddlib import files
from ddlib.base import InputError
from ddlib.files import (
    Absent,
    Damaged,
    amount,
    digest,
    kept,
    layout,
    read_parts,
    whole,
    write_parts,
)

TENSORS = {
    "y": torch.arange(7),
    "x": torch.rand(7, 3, 2),
    "levels": torch.arange(21, dtype=torch.uint8).view(7, 3),
    "none": torch.empty(0, 3),
}
ODD = {
    'é "\\\n\x01\x7f': torch.ones(3, dtype=torch.bfloat16),
    "z": torch.tensor(1.0),
    "a": torch.ones(2, 2) > 0,
    "b": torch.ones(5).short(),
}


def in_parts(tensors):
    return {name: (t.dtype, tuple(t.shape), t.split(3)) for name, t in tensors.items()}


def test_parts_come_back_as_the_tensors_that_they_make(tmp_path):
    file = tmp_path / "deeper" / "parts.safetensors"
    write_parts(file, in_parts(TENSORS))
    read = read_parts(file, digest(TENSORS))
    assert read.keys() == TENSORS.keys()
    assert all(
        torch.equal(read[name], t) and read[name].dtype == t.dtype for name, t in TENSORS.items()
    )
    with pytest.raises(Damaged, match=r"its content hashes to .*, expected 000"):
        read_parts(file, "0" * 64)
    good = file.read_bytes()
    for bad in (b"", good[:-1], good + b"\0", good[:-1] + bytes([good[-1] ^ 1]), b" " + good[1:]):
        file.write_bytes(bad)
        with pytest.raises(Damaged):
            read_parts(file)
    with pytest.raises(Absent, match="no file"):
        read_parts(tmp_path / "none")


def test_a_digest_sees_names_shapes_types_and_bytes():
    one = {"x": torch.zeros(2, 3)}
    others = [
        {"y": torch.zeros(2, 3)},
        {"x": torch.zeros(3, 2)},
        {"x": torch.zeros(2, 3, dtype=torch.int32)},
        {"x": -torch.zeros(2, 3)},
        {},
    ]
    assert digest(one) == digest({"x": torch.zeros(3, 2).T})
    assert len({digest(t) for t in (one, *others)}) == 6 and digest(one) != digest(one, "header")


@pytest.mark.parametrize("tensors", [TENSORS, ODD, TENSORS | ODD, {}])
def test_the_layout_is_that_of_safetensors(tensors):
    notes = {"note": 'é "\\\n\x01\x7f\u2028'}
    order, start = layout(tensors, notes)
    numbers = (tensors[n].contiguous().flatten().view(torch.uint8).numpy().tobytes() for n in order)
    assert start + b"".join(numbers) == save(tensors, notes)


@pytest.mark.parametrize("step", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("error", [OSError("broken"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(step, error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    old, new = tmp_path / "old", tmp_path / "new"
    files.write_whole(old, b"old")
    monkeypatch.setattr(os, step, fail)
    for file in (old, new):
        with pytest.raises(type(error)):
            files.write_whole(file, b"other")
    assert list(tmp_path.iterdir()) == [old] and old.read_bytes() == b"old"


def test_half_files_of_ended_processes_are_swept_and_others_not(tmp_path):
    """The dead process is killed for real: what it had written has no final name."""
    program = """import os, sys
from pathlib import Path
from ddlib.files import whole
with whole(Path(sys.argv[1])) as out:
    out.write(b"half")
    out.flush()
    os.kill(os.getpid(), 9)"""
    target = tmp_path / "data" / "x.safetensors"
    paths = os.environ | {"PYTHONPATH": str(Path(ddlib.__file__).parents[1])}
    killed = subprocess.run([sys.executable, "-c", program, str(target)], env=paths)
    (half,) = target.parent.iterdir()
    assert killed.returncode == -9 and half.name.startswith(".half-")
    assert half.read_bytes() == b"half" and files.sweep(tmp_path) == []  # it is young
    os.utime(half, (0, 0))
    with whole(target) as out:
        assert files.sweep(tmp_path, remove=False) == [half] == files.sweep(tmp_path)
        out.write(b"whole")
    assert target.read_bytes() == b"whole" and list(target.parent.iterdir()) == [target]


def test_one_makes_a_file_while_others_wait(tmp_path, capsys):
    file, made = tmp_path / "x", []

    def load(place):
        if not place.exists():
            raise Absent("no file")
        return place.read_bytes()

    def make():
        made.append(1)
        assert files.locked(tmp_path, "x")
        threading.Event().wait(1)
        files.write_whole(file, b"done")

    def work():
        assert kept(tmp_path, file, "this file", load, make) == b"done"

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made == [1] and not files.locked(tmp_path, "x")
    assert "this file: waits for another process that makes it" in capsys.readouterr().err


def test_an_amount_is_in_words():
    amounts = [amount(n) for n in (12, 12e3, 3.4e6, 5.1e9)]
    assert amounts == ["12 bytes", "12 kB", "3.4 MB", "5.1 GB"]


def test_a_file_that_cannot_be_read_is_not_taken_for_absent(tmp_path, monkeypatch):
    """safetensors says of every file that it cannot open that there is none."""
    file = tmp_path / "data" / "x.safetensors"
    files.write_parts(file, {"x": torch.arange(3)})
    before = file.read_bytes()

    def refused(self, *given, **named):
        raise PermissionError(13, "Permission denied", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refused)
        with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
            files.kept(tmp_path, file, "x", files.read_parts, lambda: pytest.fail("made again"))
    assert file.read_bytes() == before


def test_new_files_replace_none(tmp_path):
    there, other = tmp_path / "a", tmp_path / "b"
    there.write_text("theirs")
    with pytest.raises(InputError, match=r"a is there already .*1 of 2 files.*add --force"):
        files.write_new({other: b"ours", there: b"ours"})
    assert not other.exists() and there.read_text() == "theirs"
    files.write_new({there: b"theirs", other: b"ours"})  # the same is no other
    files.write_new({there: b"ours"}, force=True)
    assert there.read_bytes() == other.read_bytes() == b"ours"


USER = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
os.umask(int(sys.argv[4], 8))
from ddlib.files import _alone, locked
root = Path(sys.argv[2])
if sys.argv[3] == "hold":
    with _alone(root / "locks/x.lock", "x"):
        print("held", flush=True)
        time.sleep(60)
print(locked(root, "x"), flush=True)
try:
    with _alone(root / "locks/x.lock", "x"):
        print("taken", flush=True)
except Exception as error:
    print(type(error).__name__, error, flush=True)
"""


@pytest.mark.skipif(os.getuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("umask, says", [("022", "InputError"), ("002", "waits for another")])
def test_another_users_lock_is_respected(umask, says, tmp_path):
    """Shared by a group it is waited for; closed to it, it is refused; it is never free."""
    (tmp_path / "locks").mkdir()
    for folder in (tmp_path, tmp_path / "locks", *tmp_path.parents[:3]):
        folder.chmod(0o777)
    packages = Path(files.torch.__file__).parent.parent
    home = str(Path(files.__file__).parent.parent)

    def user(number, what):
        who = ["setpriv", f"--reuid={number}", "--regid=100", "--clear-groups"]
        command = [*who, sys.executable, "-c", USER, home, str(tmp_path), what, umask]
        env = os.environ | {"PYTHONPATH": str(packages), "HOME": str(tmp_path)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=env, **pipes)

    if subprocess.run(["setpriv", "--reuid=1001", sys.executable, "-V"]).returncode:
        pytest.skip("this Python belongs to root alone")
    with user(1001, "hold") as first:
        assert first.stdout.readline().strip() == "held"
        with user(1002, "try") as second:
            assert second.stdout.readline().strip() == "True"
            assert says in second.stdout.readline()
            second.kill()
        first.kill()


def test_a_file_has_the_rights_that_the_umask_leaves(tmp_path):
    code = "import os, sys; os.umask(0o077); from pathlib import Path; from ddlib import files; "
    code += "files.write_whole(Path(sys.argv[1]), b'x')"
    paths = os.environ | {"PYTHONPATH": str(Path(ddlib.__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code, tmp_path / "x"], env=paths, check=True)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o600
