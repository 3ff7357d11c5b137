"""Trackers: they are told every epoch and outer iteration, and no artefact changes by a byte; the real ones where they are installed."""

import pytest

from ddlib.__main__ import main
from ddlib.runs import stages as pipeline
from ddlib.runs import track
from ddlib.runs.stages import expert
from ddlib.runs.store import Store
from ddlib.settings import Data, Distillation, Expert, InputError, Network, Selection

EXPERT = Expert(data=Data(name="digits"), network=Network(width=4, depth=1), epochs=2, lr=0.02)
SET = Distillation(
    experts=EXPERT, n_experts=2, start=Selection(data=EXPERT.data, method="real"), inner_steps=2, matched_epochs=1, start_epochs=1, iterations=3, checks=1, check_epochs=1
)  # fmt: skip
MADE = (EXPERT, expert(EXPERT, 1), SET)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A store that nobody watched being filled."""
    store = Store(tmp_path_factory.mktemp("alone"))
    pipeline.ensure([SET], store, workers=1)
    return store


def watched(kind, store, monkeypatch):
    monkeypatch.setenv("TRACK", kind)
    pipeline.ensure([SET], store, workers=1)


def test_a_tracker_is_told_all_and_changes_nothing(alone, tmp_path, monkeypatch):
    told, closed = [], []

    class Recorder(track.Silent):
        def __init__(self, settings, name, folder):
            self.task = settings
            assert folder == tmp_path / "track/recorder" and name == pipeline.name(settings)

        def tell(self, step, numbers):
            told.append((self.task, step, dict(numbers)))

        def close(self):
            closed.append(self.task)

    monkeypatch.setitem(track.TRACKERS, "recorder", (Recorder, "json"))
    store = Store(tmp_path)
    watched("recorder", store, monkeypatch)
    assert [(task, step) for task, step, _ in told] == [
        (one, e) for one in MADE[:2] for e in range(3)
    ] + [(SET, i) for i in (1, 2, 3)]
    assert closed == list(MADE)
    curve = store.load(SET).record["curve"]
    assert [
        numbers for task, _, numbers in told if task == SET
    ] == curve and "validation_accuracy" in curve[-1]
    assert (
        "loss" not in told[0][2] and told[1][2]["loss"] > 0
    )  # before its first epoch an expert has no loss
    assert all(store.file(one).read_bytes() == alone.file(one).read_bytes() for one in MADE)


@pytest.mark.parametrize("kind", track.TRACKERS)
def test_the_real_ones(kind, alone, tmp_path, monkeypatch):
    pytest.importorskip(track.TRACKERS[kind][1], reason=f"{kind} is an extra of the reader's own")
    store = Store(tmp_path)
    watched(kind, store, monkeypatch)
    assert all(store.file(one).read_bytes() == alone.file(one).read_bytes() for one in MADE)
    left = [file for file in (tmp_path / "track" / kind).rglob("*") if file.is_file()]
    assert {"tensorboard": "events.out", "mlflow": "validation_accuracy", "wandb": "run-"}[
        kind
    ] in " ".join(file.name for file in left)


def test_a_tracker_that_is_not_there_is_refused_before_any_work(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TRACK", "visdom")
    monkeypatch.setenv("STORE", str(tmp_path))
    assert main(["run", "main", "--profile", "smoke"]) == 2
    assert "TRACK=visdom: expected one of tensorboard, mlflow, wandb" in capsys.readouterr().err
    monkeypatch.setitem(track.TRACKERS, "visdom", (track.Silent, "a_package_of_no_name"))
    with pytest.raises(InputError, match="pip install a_package_of_no_name"):
        track.chosen()
    assert not list(tmp_path.rglob("*.safetensors"))
