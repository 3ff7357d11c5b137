"""An artefact comes back as it was, is there whole or not at all, and is never taken for another."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save

from ddlib import settings as config
from ddlib.runs import store
from ddlib.runs.store import Store
from ddlib.settings import (
    FORMAT,
    Condensation,
    Data,
    Distillation,
    Evaluation,
    Expert,
    Imported,
    InputError,
    Network,
    Selection,
    key,
)

DATA = Data(name="digits")
ASKED = Selection(data=DATA, method="real", ipc=2)
RECORD = {
    "lr": 0.1 + 0.2,
    "rows": [{"epoch": 1, "accuracy": None}, {"epoch": 2, "accuracy": 1 / 3}],
}


def some_tensors():
    return {
        "path": torch.arange(12.0).view(4, 3).T,
        "labels": torch.arange(5),
        "none": torch.empty(0, 3),
        "one": torch.tensor(1 / 3, dtype=torch.float64),
    }


@pytest.fixture
def kept(tmp_path):
    folder = Store(tmp_path / "store")
    folder.save(ASKED, some_tensors(), RECORD)
    return folder


def test_round_trip(kept):
    held = kept.load(ASKED)
    assert held.record == RECORD and held.settings == ASKED.model_dump(mode="json")
    assert held.tensors.keys() == some_tensors().keys()
    for name, t in some_tensors().items():
        assert torch.equal(held.tensors[name], t) and held.tensors[name].dtype == t.dtype
    assert kept.has(ASKED) and not kept.has(ASKED.model_copy(update={"seed": 1}))
    alone = store.read(kept.file(ASKED))  # without the store
    assert alone.record == RECORD and Selection(**alone.settings) == ASKED


def test_same_contents_same_bytes(kept, tmp_path):
    other = Store(tmp_path / "other")
    other.save(ASKED, dict(reversed(some_tensors().items())), RECORD)
    assert other.file(ASKED).read_bytes() == kept.file(ASKED).read_bytes()


def test_rows_are_read_without_the_rest(kept):
    read = kept.rows_of(ASKED)
    assert torch.equal(read(1, 3), some_tensors()["path"][1:3])


def test_parts_make_the_tensors_that_a_whole_write_makes(tmp_path):
    whole = {
        "y": torch.arange(7),
        "x": torch.rand(7, 3, 2),
        "levels": torch.arange(21, dtype=torch.uint8).view(7, 3),
        "none": torch.empty(0, 3),
    }
    file = tmp_path / "deeper" / "parts.safetensors"
    store.write_parts(
        file, {name: (t.dtype, tuple(t.shape), t.split(3)) for name, t in whole.items()}
    )
    read = load_file(file)
    assert read.keys() == whole.keys() and all(
        torch.equal(read[name], t) and read[name].dtype == t.dtype for name, t in whole.items()
    )


def test_digest_sees_names_shapes_types_and_bytes():
    one = {"x": torch.zeros(2, 3)}
    others = [
        {"y": torch.zeros(2, 3)},
        {"x": torch.zeros(3, 2)},
        {"x": torch.zeros(2, 3, dtype=torch.int32)},
        {"x": -torch.zeros(2, 3)},
        {},
    ]
    assert (
        store.digest(one) == store.digest({"x": torch.zeros(3, 2).T})
        and len({store.digest(t) for t in (one, *others)}) == 6
    )


@pytest.mark.parametrize("step", ["replace", "fsync", "chmod"])
@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_failed_write_leaves_nothing(kept, step, error, monkeypatch):
    new = ASKED.model_copy(update={"seed": 7})
    before = kept.file(ASKED).read_bytes()

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, step, fail)
        for settings in (new, ASKED):
            with pytest.raises(type(error)):
                kept.save(settings, {"x": torch.ones(3)}, {})
    assert not kept.has(new) and kept.file(ASKED).read_bytes() == before
    assert [f.name for f in kept.file(ASKED).parent.iterdir()] == [kept.file(ASKED).name]


def damaged(good):
    """Names of harms, and what is left of the file."""
    yield "empty", b""
    yield "foreign", b"images, supposedly"
    for part in (1, 8, 9, len(good) // 2, len(good) - 1):
        yield f"cut to {part}", good[:part]
    yield "longer", good + b"\0"
    for place in (0, 7, 8, len(good) - 1, len(good) - 60):  # sizes, the header's start, tensors
        yield f"bit flipped at {place}", good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :]


def test_a_damaged_file_is_refused(kept):
    file = kept.file(ASKED)
    for harm, content in damaged(file.read_bytes()):
        file.write_bytes(content)
        with pytest.raises(InputError) as caught:
            kept.load(ASKED)
        assert isinstance(caught.value, store.Damaged) and str(caught.value).startswith(
            f"{file} is damaged or not a ddlib file: "
        ), harm
        assert str(caught.value).endswith(
            "; take a sound copy of it, or move it away and make it again"
        ), harm
    file.unlink()
    with pytest.raises(InputError, match="no file"):
        kept.load(ASKED)


def test_any_flipped_bit_is_refused(kept):
    file = kept.file(ASKED)
    good = file.read_bytes()
    for place in range(len(good)):
        file.write_bytes(good[:place] + bytes([good[place] ^ 1 << place % 8]) + good[place + 1 :])
        with pytest.raises(store.Damaged):
            store.read(file)


def test_the_layout_is_that_of_safetensors(kept):
    odd = {
        'é "\\\n\x01\x7f': torch.ones(3, dtype=torch.bfloat16),
        "z": torch.tensor(1.0),
        "a": torch.ones(2, 2) > 0,
        "b": torch.ones(5).short(),
    }
    for tensors in (some_tensors(), odd, some_tensors() | odd, {}):
        tensors, notes = (
            {name: t.contiguous() for name, t in tensors.items()},
            {"note": 'é "\\\n\x01\x7f\u2028'},
        )
        order, start = store.layout(tensors, notes)
        assert start + b"".join(
            tensors[name].flatten().view(torch.uint8).numpy().tobytes() for name in order
        ) == save(tensors, notes)


def test_a_file_of_another_format_is_refused(kept, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(store, "FORMAT", FORMAT + 1)
        kept.save(ASKED, some_tensors(), RECORD)
    with pytest.raises(
        store.Damaged,
        match=f"it was written under format {FORMAT + 1}, this library reads format {FORMAT}",
    ):
        kept.load(ASKED)


@pytest.mark.parametrize("content", [b"", b"{", b'{"format": 2', b"\xff\xfe", b"\0" * 13])
def test_a_damaged_mark_of_the_store_is_made_again(content, kept, capsys):
    mark = kept.root / "store.json"
    good = mark.read_bytes()
    mark.write_bytes(content)
    assert Store(kept.root).load(ASKED).record == RECORD and mark.read_bytes() == good
    assert f"warning: {mark} is damaged: it is no JSON" in capsys.readouterr().err
    assert [file.read_bytes() for file in (kept.root / "damaged").iterdir()] == [content]


def test_what_is_set_aside_overwrites_nothing(kept, capsys):
    good, harms = kept.file(ASKED).read_bytes(), [b"", b"foreign", b"", b"foreign again"]
    for harm in harms:
        kept.file(ASKED).write_bytes(harm)
        held = kept.kept(ASKED, "some images", lambda: kept.save(ASKED, some_tensors(), RECORD))
        assert held.record == RECORD and kept.file(ASKED).read_bytes() == good
    assert sorted(file.read_bytes() for file in (kept.root / "damaged").iterdir()) == sorted(harms)
    said = capsys.readouterr().err
    assert (
        said.count(f"warning: {kept.file(ASKED)} is damaged: ") == 4
        and said.count("damaged: it is empty") == 2
    )


def test_half_files_of_ended_processes_are_swept_and_those_of_living_ones_not(kept):
    """The dead one is killed for real: it leaves what it had written under no final name."""
    program = """import os, sys
from pathlib import Path
from ddlib.store import whole
with whole(Path(sys.argv[1])) as out:
    out.write(b"half")
    out.flush()
    os.kill(os.getpid(), 9)"""
    target = kept.root / "data" / "x.safetensors"
    killed = subprocess.run(
        [sys.executable, "-c", program, str(target)],
        env=os.environ | {"PYTHONPATH": str(Path(store.__file__).parent.parent)},
    )
    (half,) = target.parent.iterdir()
    assert (
        killed.returncode == -9 and half.name.startswith(".half-") and half.read_bytes() == b"half"
    )
    assert (
        store.sweep(kept.root) == [] and half.exists()
    )  # it is young: its process might be about to lock it
    with store.whole(target) as out:
        for file in (half, Path(out.name)):
            os.utime(file, (0, 0))
        assert store.sweep(kept.root) == [half]
        out.write(b"whole")
    assert target.read_bytes() == b"whole" and list(target.parent.iterdir()) == [target]


def test_a_file_under_anothers_name_is_refused_naming_both_values(kept):
    other = ASKED.model_copy(update={"ipc": 5})
    shutil.copy(kept.file(ASKED), kept.file(other))
    with pytest.raises(
        InputError, match="made under other settings: ipc is 2 there, 5 was asked for"
    ):
        kept.load(other)
    kept.load(ASKED)


def test_a_folder_of_another_format_is_refused(kept):
    (kept.root / "store.json").write_text(f'{{"format": {FORMAT + 1}}}')
    with pytest.raises(
        InputError,
        match=f"filled under format {FORMAT + 1}, this library writes format {FORMAT}: name another folder",
    ):
        Store(kept.root)


def test_checkpoints_are_resumed_until_the_task_is_finished(kept):
    new = ASKED.model_copy(update={"seed": 8})
    assert kept.resume(new) is None
    kept.checkpoint(new, {"x": torch.ones(2)}, {"iteration": 3})
    assert (
        not kept.has(new)
        and kept.resume(new).record == {"iteration": 3}
        and torch.equal(kept.resume(new).tensors["x"], torch.ones(2))
    )
    (file,) = (kept.root / "checkpoints").iterdir()
    good = file.read_bytes()
    file.write_bytes(good[:-1])
    assert kept.resume(new) is None  # a damaged one is no reason to stop
    file.write_bytes(good)
    kept.finish(new, {"x": torch.zeros(2)}, {}, {})
    assert (
        kept.has(new)
        and kept.resume(new) is None
        and not list((kept.root / "checkpoints").iterdir())
    )


EXPERT = Expert(data=DATA)
IMPORTED = Imported(data=DATA, buffer="here", contents="0")
SET = Distillation(experts=EXPERT, start=ASKED)
OTHERWISE = {  # for each field another value
    Data(name="folder", path="here", size=8, contents="0"): {
        "name": "digits",
        "seed": 1,
        "zca": True,
        "path": "there",
        "size": 9,
        "contents": "1",
        "space": "mtt",
    },
    Network(): {"architecture": "vgg11", "width": 127, "depth": 2, "precision": "bfloat16"},
    EXPERT: {
        "data": Data(name="digits", seed=1),
        "network": Network(width=3),
        "optimiser": "sgd",
        "lr": 0.0030001,
        "weight_decay": 0.0,
        "batch": 255,
        "epochs": 49,
        "drop": 1.0,
        "ramp": "loss",
        "ramp_epochs": 9,
        "penalty": "per_pixel",
        "penalty_weight": 1.0,
        "penalty_target": 0.0,
        "sharpness": 0.01,
        "sharpness_alpha": 0.4,
        "strategies": ("crop",),
        "seed": 1,
    },
    IMPORTED: {
        "data": Data(name="digits", seed=1),
        "network": Network(width=3),
        "buffer": "there",
        "epochs": 49,
        "contents": "1",
        "seed": 1,
    },
    Selection(data=DATA, method="representative", expert=EXPERT, ipc=2): {
        "data": Data(name="mnist_5k"),
        "method": "herding",
        "ipc": 3,
        "expert": Expert(data=DATA, seed=2),
        "features": "penultimate",
        "centres": 1,
        "lr": 0.02,
        "seed": 1,
    },
    SET: {
        "experts": Expert(data=DATA, optimiser="adam"),
        "n_experts": 99,
        "start": Selection(data=DATA, method="noise", ipc=2),
        "inner_steps": 19,
        "matched_epochs": 3,
        "start_epochs": 19,
        "first_start": 1,
        "early_epochs": 10,
        "growth": 100,
        "momentum": 0.0,
        "batch": 10,
        "balance": True,
        "perturbation": 1.0,
        "perturbation_form": "norm_matched",
        "intermediate": "equal",
        "lr_images": 999.0,
        "lr_lr": 0.0,
        "a0": 0.02,
        "iterations": 4999,
        "checks": 9,
        "check_epochs": 299,
        "gradient": "unroll",
        "ema": 0.9,
        "labels": "expert",
        "lr_labels": 1.0,
        "seed": 1,
    },
    Condensation(start=ASKED, method="dc", outer=3, inner=4): {
        "start": Selection(data=DATA, method="noise", ipc=2),
        "network": Network(width=3),
        "method": "dsa",
        "outer": 2,
        "inner": 5,
        "iterations": 999,
        "checks": 9,
        "check_epochs": 299,
        "lr_images": 0.2,
        "batch_real": 255,
        "lr_net": 0.02,
        "seed": 1,
    },
    Evaluation(of=SET, network=Network()): {
        "of": ASKED,
        "network": Network(width=3),
        "networks": 4,
        "epochs": 999,
        "batch": 255,
        "weight_decay": 0.0,
        "factors": (1.0,),
        "search_networks": 2,
        "test": False,
        "looks": 4,
        "labels": "hard",
        "strategies": (),
    },
}


@pytest.mark.parametrize("settings", OTHERWISE, ids=lambda s: type(s).__name__)
def test_every_field_is_in_the_key(settings):
    changes = OTHERWISE[settings]
    assert changes.keys() == type(settings).model_fields.keys(), (
        "a field is missing from the table above"
    )
    changed = [settings.model_copy(update={name: value}) for name, value in changes.items()]
    assert len({key(s) for s in (settings, *changed)}) == len(changes) + 1


def test_keys_are_what_they_were():
    """Hours of kept results are found by them; a stage that can read buffers still names trained experts as before."""
    seen = Selection(data=DATA, method="representative", expert=EXPERT, ipc=2)
    made = Distillation(experts=EXPERT, start=seen)
    kept = {
        EXPERT: "51535fef9e82921b",
        seen: "c10e7650268fc030",
        made: "c4435d19ba5e7f02",
        Evaluation(of=made, network=Network()): "75aa3b32d44c2d89",
    }
    assert {settings: key(settings) for settings in kept} == kept


def test_the_order_of_fields_is_not_in_the_key():
    def reordered(fields):
        return {
            name: reordered(v) if isinstance(v, dict) else v for name, v in reversed(fields.items())
        }

    for settings in OTHERWISE:
        again = type(settings)(**reordered(settings.model_dump()))
        assert key(again) == key(settings) and again == settings


def test_the_format_is_in_the_key(monkeypatch):
    before = key(ASKED)
    monkeypatch.setattr(config, "FORMAT", FORMAT + 1)
    assert key(ASKED) != before and len(before) == 16
