"""Experts, outer loops and films are killed for real, and end with the bytes of undisturbed ones.

Also the hook that hears of every step, and what is kept of a run whose numbers stop being finite.
"""

import signal
import sys

import pytest
import torch

from ddlib.base import InputError
from ddlib.method import experts
from ddlib.method.train import Diverged
from ddlib.runs import checkpoint, run, store
from ddlib.runs.checkpoint import Checkpoint, interval
from ddlib.runs.run import get
from ddlib.runs.stages import Film
from ddlib.runs.store import Store
from ddlib.settings import Condensation
from kills import dies_at, in_a_child, with_needs
from tiny import EXPERT, NET, SET, START

HARDER = {
    "optimiser": "adam",
    "lr": 0.002,
    "epochs": 5,
    "drop": 0.5,
    "ramp": "lr",
    "ramp_epochs": 3,
    "penalty": "per_sample",
    "penalty_weight": 0.1,
}
ADAM = EXPERT.model_copy(update=HARDER)
RICH = SET.model_copy(
    update={"ema": 0.7, "labels": "learned", "lr_labels": 2.0}
)  # the fullest state
DSA = Condensation(
    start=START,
    network=NET,
    method="dsa",
    outer=2,
    inner=2,
    batch_real=8,
    iterations=4,
    checks=2,
    check_epochs=2,
)
TASKS = {
    ADAM: 5,
    RICH: 6,
    DSA: 4,
    Film(of=SET, frames=4): 6,
}  # task -> checkpoints that it can write
NAMES = ["expert", "trajectory matching", "condensation", "film"]


@pytest.fixture(scope="module")
def whole(done, tmp_path_factory):
    """The undisturbed artefacts, and what they need."""
    made = Store(tmp_path_factory.mktemp("whole"))
    for settings in (EXPERT, EXPERT.at(1), START):
        made.file(settings).parent.mkdir(exist_ok=True)
        made.file(settings).write_bytes(done.file(settings).read_bytes())
    for settings in TASKS:
        get(settings, made)
    return made


@pytest.mark.parametrize("settings", TASKS, ids=NAMES)
def test_a_task_killed_again_and_again_ends_with_the_same_bytes(
    settings, whole, tmp_path, monkeypatch
):
    monkeypatch.setenv("CHECKPOINT", "0")
    made, kills = with_needs(settings, whole, tmp_path), 0
    while not made.has(settings):

        def life(half=kills % 2 == 1):
            dies_at(3 if half else 2, half)  # each adds two checkpoints
            get(settings, made)

        status = in_a_child(life)
        assert status == (-signal.SIGKILL if not made.has(settings) else status) and kills < 9
        kills += 1
    # nothing that was kept is done again
    assert TASKS[settings] // 2 <= kills <= TASKS[settings] // 2 + 1
    assert get(settings, made).settings == settings.model_dump(mode="json")
    assert made.file(settings).read_bytes() == whole.file(settings).read_bytes()


def cut(file, content):
    file.write_bytes(content[: len(content) // 2])


def flip(file, content):
    file.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])


SHORT = [  # one checkpoint before the end
    EXPERT.model_copy(update=HARDER | {"epochs": 2}),
    RICH.model_copy(update={"iterations": 2, "checks": 2, "check_epochs": 1}),
    DSA.model_copy(update={"outer": 1, "iterations": 2, "check_epochs": 1}),
    Film(of=SET.model_copy(update={"iterations": 2, "checks": 1}), frames=2),
]


@pytest.mark.parametrize("settings", SHORT, ids=NAMES)
def test_a_checkpoint_that_cannot_be_used_is_none(settings, whole, tmp_path, monkeypatch):
    """It is damaged, of other settings, or of a library that kept less."""
    monkeypatch.setenv("CHECKPOINT", "0")
    good = get(settings, whole) and whole.file(settings).read_bytes()
    made = with_needs(settings, whole, tmp_path)
    in_a_child(lambda: (dies_at(1), get(settings, made)))
    (file,) = (tmp_path / "checkpoints").iterdir()
    content, past = file.read_bytes(), made.resume(settings)
    tensors = {name: t.clone() for name, t in past.tensors.items()}  # those of `past` are mapped
    other = START.model_copy(update={"seed": 99})

    def without(name):
        less = [{n: p for n, p in parts.items() if n != name} for parts in (tensors, past.record)]
        store.write(file, settings, *less)

    faults = {
        "cut": lambda: cut(file, content),
        "flipped": lambda: flip(file, content),
        "empty": lambda: file.write_bytes(b""),
        "other settings": lambda: store.write(file, other, tensors, past.record),
    }
    names = [*tensors, *past.record]
    faults |= {f"without {name}": lambda name=name: without(name) for name in names}
    for fault, inflict in faults.items():
        inflict()
        get(settings, made)
        assert made.file(settings).read_bytes() == good, fault
        made.file(settings).unlink()
    assert not list((tmp_path / "checkpoints").iterdir())  # a finished task leaves none


def test_an_interval_is_a_number_of_seconds(monkeypatch, tmp_path):
    monkeypatch.delenv("CHECKPOINT", raising=False)
    assert interval() == 60
    monkeypatch.setenv("CHECKPOINT", "0.5")
    assert interval() == 0.5
    for wrong in ("-1", "soon", "nan", "inf"):
        monkeypatch.setenv("CHECKPOINT", wrong)
        text = f"CHECKPOINT={wrong}: expected the seconds between two checkpoints"
        with pytest.raises(InputError, match=text):
            interval()
    with pytest.raises(InputError, match=r"CHECKPOINT=inf: .*or leave CHECKPOINT out"):
        run.ensure([EXPERT], Store(tmp_path))
    assert not (tmp_path / "experts").exists()


def test_a_state_is_kept_when_its_time_has_come(tmp_path, monkeypatch):
    folder = Store(tmp_path)
    monkeypatch.setenv("CHECKPOINT", "1000")
    keep = Checkpoint(folder, START)
    keep(lambda: pytest.fail("it is too early"))
    keep.last -= 1000
    keep(lambda: {"a": 1, "rows": [float("nan")], "t": torch.ones(2)})
    keep(lambda: pytest.fail("it is too early again"))
    again = Checkpoint(folder, START)
    past = again.left("a", "rows", "t")
    assert past["a"] == 1 and torch.equal(past["t"], torch.ones(2)) and str(past["rows"]) == "[nan]"
    assert again.left("a", "b") is None
    assert again.spent()["runs"] == 2 and keep.spent()["runs"] == 1


def test_an_expert_that_diverges_keeps_its_last_good_epoch_and_stops_there_again(
    tmp_path, monkeypatch
):
    late = EXPERT.model_copy(update={"epochs": 5, "drop": 1e30})  # its lr "drops" in epoch 5
    made, epochs, measure = Store(tmp_path), [], experts.measure
    monkeypatch.setattr(experts, "measure", lambda *given: epochs.append(1) or measure(*given))
    for _ in range(2):
        with pytest.raises(Diverged, match=r"finite in epoch 5 of 5 \(momentum, lr 0.02\)"):
            get(late, made)
        assert len(epochs) == 5  # the start and four epochs, all in the first run
        past = made.resume(late)
        assert not made.has(late) and len(past.record["rows"]) == 5
        assert past.tensors["path"].shape[0] == 5 and torch.isfinite(past.tensors["path"]).all()


def test_an_outer_loop_that_diverges_keeps_its_last_good_state(halfway):
    harsh = SET.model_copy(update={"lr_images": 1e30})
    with pytest.raises(Diverged, match="the last good state is kept"):
        get(harsh, halfway)
    past = halfway.resume(harsh)
    assert not halfway.has(harsh) and 0 < past.record["iteration"] < harsh.iterations
    assert all(torch.isfinite(t).all() for t in past.tensors.values())


@pytest.fixture
def track(monkeypatch, tmp_path):
    """A function that sets TRACK; the folder has a module `listening` with one function `hear`."""
    text = "heard = []\n\ndef hear(task, step, numbers):\n    heard.append((task, step, numbers))\n"
    (tmp_path / "listening.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)

    def name(hook):
        checkpoint.hook.cache_clear()
        monkeypatch.setenv("TRACK", hook)

    yield name
    checkpoint.hook.cache_clear()
    sys.modules.pop("listening", None)


def test_the_hook_hears_of_every_epoch_and_outer_iteration(halfway, done, track):
    track("listening:hear")
    for settings in (EXPERT.at(5), SET):
        get(settings, halfway)
    heard = sys.modules["listening"].heard
    steps = [(task, step) for task, step, _ in heard]
    assert steps == [*((EXPERT.at(5), e) for e in range(4)), *((SET, t) for t in range(1, 7))]
    rows = halfway.load(EXPERT.at(5)).record["rows"]
    assert "loss" not in heard[0][2]  # it is nan
    assert heard[3][2]["loss"] == rows[3]["loss"]
    curve = halfway.load(SET).record["curve"]
    assert [numbers for _, _, numbers in heard[4:]] == curve
    assert halfway.file(SET).read_bytes() == done.file(SET).read_bytes()


@pytest.mark.parametrize("name", ["nonsense", "listening", "listening:other", ":"])
def test_a_hook_that_is_not_there_is_one_error_before_any_work(name, track, tmp_path):
    track(name)
    with pytest.raises(InputError, match=rf"^TRACK={name}: .*expected tensorboard, or module:func"):
        run.ensure([EXPERT], Store(tmp_path / "store"))
    assert not (tmp_path / "store" / "experts").exists()


def test_tensorboard_is_a_hook(halfway, track):
    pytest.importorskip("tensorboard")
    track("tensorboard")
    get(EXPERT.at(5), halfway)
    (folder,) = (halfway.root / "tensorboard").iterdir()
    assert folder.name.startswith(EXPERT.at(5).title) and list(folder.iterdir())
