"""An artefact comes back as it was, is whole or not there, and is never taken for another."""

import shutil

import pytest
import torch

from ddlib.base import FORMAT, InputError
from ddlib.files import Damaged
from ddlib.runs import store
from ddlib.runs.store import Store
from ddlib.settings import Data, Selection

DATA = Data(name="digits")
ASKED = Selection(data=DATA, method="real", ipc=2)
NEW = ASKED.model_copy(update={"seed": 7})
ROWS = [{"epoch": 1, "accuracy": None}, {"epoch": 2, "accuracy": 1 / 3}]
RECORD = {"lr": 0.1 + 0.2, "rows": ROWS}


def some_tensors():
    return {
        "path": torch.arange(12.0).view(4, 3).T,
        "labels": torch.arange(5),
        "none": torch.empty(0, 3),
        "one": torch.tensor(1 / 3, dtype=torch.float64),
    }


@pytest.fixture
def folder(tmp_path):
    """A store with one artefact."""
    some = Store(tmp_path / "store")
    some.save(ASKED, some_tensors(), RECORD)
    return some


def test_round_trip(folder):
    artefact = folder.load(ASKED)
    assert artefact.record == RECORD and artefact.settings == ASKED.model_dump(mode="json")
    assert artefact.tensors.keys() == some_tensors().keys()
    for name, t in some_tensors().items():
        assert torch.equal(artefact.tensors[name], t) and artefact.tensors[name].dtype == t.dtype
    assert folder.has(ASKED) and not folder.has(NEW)
    alone = store.read(folder.file(ASKED))  # without the store
    assert alone.record == RECORD and Selection(**alone.settings) == ASKED
    about = store.peek(folder.file(ASKED))
    assert (about["stage"], about["record"]) == ("selections", RECORD)
    assert about["settings"] == alone.settings


def test_the_same_contents_are_the_same_bytes(folder, tmp_path):
    other = Store(tmp_path / "other")
    other.save(ASKED, dict(reversed(some_tensors().items())), RECORD)
    assert other.file(ASKED).read_bytes() == folder.file(ASKED).read_bytes()


def test_an_absent_or_foreign_file_is_an_error(folder):
    file = folder.file(ASKED)
    file.write_bytes(b"images, supposedly")
    with pytest.raises(Damaged) as caught:
        folder.load(ASKED)
    text = str(caught.value)
    assert text.startswith(f"{file} is damaged or not a ddlib file: ")
    assert text.endswith("; take a sound copy of it, or move it away and make it again")
    file.unlink()
    with pytest.raises(InputError, match=f"no file {file}"):
        folder.load(ASKED)


def test_a_file_of_another_format_is_an_error(folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "FORMAT", FORMAT + 1)
        folder.save(ASKED, some_tensors(), RECORD)
    text = f"it has format {FORMAT + 1}, this library reads format {FORMAT}"
    with pytest.raises(Damaged, match=text):
        folder.load(ASKED)


def test_a_file_under_the_name_of_another_is_an_error_with_both_values(folder):
    other = ASKED.model_copy(update={"ipc": 5})
    shutil.copy(folder.file(ASKED), folder.file(other))
    text = "made under other settings: ipc is 2 there, 5 was asked for"
    with pytest.raises(InputError, match=text):
        folder.load(other)
    folder.load(ASKED)


def test_what_is_set_aside_overwrites_nothing(folder, capsys):
    good, harms = folder.file(ASKED).read_bytes(), [b"", b"foreign", b"", b"foreign again"]
    for harm in harms:
        folder.file(ASKED).write_bytes(harm)
        made = folder.kept(ASKED, lambda: folder.save(ASKED, some_tensors(), RECORD))
        assert made.record == RECORD and folder.file(ASKED).read_bytes() == good
    aside = [file.read_bytes() for file in (folder.root / "damaged").iterdir()]
    assert sorted(aside) == sorted(harms)
    text = capsys.readouterr().err
    assert text.count(f"warning: {folder.file(ASKED)} is damaged: ") == 4
    assert text.count("damaged: it is empty") == 2


def test_a_file_cannot_be_the_store(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"cannot be the store \(.*name another \(STORE"):
        Store(tmp_path / "file")


def test_checkpoints_are_resumed_until_the_task_is_finished(folder, capsys):
    assert folder.resume(NEW) is None
    file = folder.checkpoint_file(NEW)
    store.write(file, NEW, {"x": torch.ones(2)}, {"iteration": 3})
    past = folder.resume(NEW)
    assert not folder.has(NEW) and past.record == {"iteration": 3}
    assert torch.equal(past.tensors["x"], torch.ones(2))
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    assert folder.resume(NEW) is None and not file.exists()  # a damaged one stops nothing
    assert f"warning: {file} is damaged" in capsys.readouterr().err
    file.write_bytes(good)
    folder.save(NEW, {"x": torch.zeros(2)}, {}, {"seconds": 1.5})
    assert folder.has(NEW) and folder.resume(NEW) is None and not file.exists()
    assert folder.note(NEW) == {"seconds": 1.5} and folder.note(ASKED) is None


def test_a_lock_says_that_a_process_is_at_work(folder):
    def make():
        assert folder.busy(NEW)
        folder.save(NEW, {}, {})

    assert not folder.busy(NEW)
    folder.kept(NEW, make)
    assert not folder.busy(NEW)
