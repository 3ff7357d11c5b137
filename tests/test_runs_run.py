"""From settings to artefacts: alone, after a kill, from inputs handed in, always the same bytes."""

import pytest
import torch

from ddlib.base import InputError, validated
from ddlib.data.space import Space
from ddlib.method.evaluate import SyntheticSet
from ddlib.method.functional import network
from ddlib.method.train import Diverged, accuracy
from ddlib.runs import run, stages, store
from ddlib.runs.checkpoint import Checkpoint
from ddlib.runs.run import get
from ddlib.runs.stages import Following, Inputs, make, settings_of
from ddlib.runs.store import Store
from ddlib.settings import Distillation, Evaluation, Network, Selection
from tiny import ALL, DATA, EXPERT, NET, ROWS, SET, START

HARSH = SET.model_copy(update={"lr_images": 1e30})
FOLLOWING = Following(of=SET)


def same_bytes(made, other, tasks=ALL):
    """Assert that two stores hold the same artefacts."""
    for settings in tasks:
        assert made.file(settings).read_bytes() == other.file(settings).read_bytes(), settings.title


def test_a_failure_stops_nothing_else(done, tmp_path, capfd):
    """What two processes leave is compared in test_runs_determinism.py."""
    beside, harsh = Store(tmp_path), Evaluation(of=HARSH, network=NET)
    with pytest.raises(Diverged, match=r"stopped being finite at outer iteration \d \(lr_images"):
        run.ensure([harsh, *ALL], beside, workers=1)
    same_bytes(beside, done)
    assert not beside.has(HARSH) and not beside.has(harsh)
    assert f"{HARSH.title} failed: the " in capfd.readouterr().err


def test_what_is_there_is_read_not_made(done, monkeypatch):
    before = {settings: done.file(settings).read_bytes() for settings in ALL}
    monkeypatch.setattr(stages, "MAKE", {})
    for settings in ALL:
        assert get(settings, done).settings == settings.model_dump(mode="json")
    assert run.missing(ALL, done) == {}
    run.ensure(ALL, done)
    assert before == {settings: done.file(settings).read_bytes() for settings in ALL}


def test_get_makes_all_that_is_needed(done, tmp_path):
    fresh, needed = Store(tmp_path), [EXPERT, EXPERT.at(1), START, SET, ROWS]
    assert set(run.missing([ROWS], fresh)) == set(needed)
    get(ROWS, fresh)
    same_bytes(fresh, done, needed)
    assert not fresh.has(FOLLOWING)


def test_a_stopped_run_goes_on_to_the_same_bytes(done, halfway, monkeypatch):
    def stops(self):
        for step in steps(self):
            yield step
            if step.state.iteration == 4:
                raise KeyboardInterrupt

    steps = stages.OuterLoop.steps
    monkeypatch.setenv("CHECKPOINT", "0")  # after every iteration
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(stages.OuterLoop, "steps", stops)
        get(SET, halfway)
    assert not halfway.has(SET)
    past = halfway.resume(SET).record
    assert past["iteration"] == 4
    assert [row["iteration"] for row in past["curve"]] == [1, 2, 3, 4]
    get(SET, halfway)
    same_bytes(halfway, done, [SET])
    assert halfway.resume(SET) is None


@pytest.mark.parametrize("settings", ALL, ids=lambda s: s.title)
def test_a_stage_reads_what_it_is_handed_and_nothing_else(settings, done, tmp_path):
    artefacts = {other: done.load(other) for other in settings.needs()}
    elsewhere = Checkpoint(Store(tmp_path), settings)  # it has no artefact
    tensors, record = make(settings, Inputs(run.images(DATA, done), artefacts), elsewhere)
    made = done.load(settings)
    assert tensors.keys() == made.tensors.keys() and str(record) == str(made.record)
    assert all(torch.equal(tensors[name], t) for name, t in made.tensors.items())
    if artefacts:
        with pytest.raises(KeyError):
            make(settings, Inputs(run.images(DATA, done), {}), elsewhere)


def test_the_images_that_are_kept_are_those_that_validated_best(done):
    made, start = get(SET, done), get(START, done)
    history, curve = made.tensors["history"], made.record["curve"]
    checks = [row for row in curve if "validation_accuracy" in row]
    assert [row["iteration"] for row in checks] == [2, 4, 6] and len(curve) == 6
    assert torch.equal(history[0], start.tensors["images"])
    assert torch.equal(made.tensors["labels"], start.tensors["labels"])
    best = max(checks, key=lambda row: row["validation_accuracy"])
    assert made.record["chosen_iteration"] == best["iteration"] and made.record["lr"] == best["lr"]
    assert torch.equal(made.tensors["images"], history[best["iteration"] // 2])
    assert len({t.numpy().tobytes() for t in history}) == 4
    assert {row["start"] for row in curve} <= {0, 1}


def test_an_artefact_says_all_that_is_needed(done):
    made, real = store.read(done.file(SET)), run.images(DATA, done)
    assert Distillation(**made.settings) == SET and settings_of(made.settings) == SET
    parts = {n.removeprefix("space."): t for n, t in made.tensors.items() if n.startswith("space.")}
    left = Space.from_tensors(parts).leave(real.x_test)
    assert torch.equal(left, real.space.leave(real.x_test))
    rows = get(ROWS, done).record["rows"]
    for protocol in ("lr_chosen", "lr_a"):
        some = [row for row in rows if row["protocol"] == protocol]
        assert [row["net_seed"] for row in some] == [0, 1]
        assert protocol == "lr_chosen" or some[0]["lr"] == pytest.approx(made.record["lr"])
    for row in rows:
        assert row["best_on_test"] >= max(row["accuracy"], row["best_on_validation"])
    with pytest.raises(InputError, match="settings of nothing belong to no stage"):
        settings_of({})


def test_a_student_at_rest_has_an_error_of_one(done, halfway):
    """The error is divided by the expert's own path, so one that hardly moves is that far off."""
    rows = get(FOLLOWING, done).record["rows"]
    places = [(row["expert_seed"], row["epoch"]) for row in rows]
    assert places == [(i, e) for i in (0, 1) for e in (1, 2, 3)]
    assert max(abs(row["error"] - 1) for row in rows) > 1e-3
    slow = SET.model_copy(update={"a0": 1e-9, "lr_lr": 0.0})
    errors = [row["error"] for row in get(Following(of=slow), halfway).record["rows"]]
    assert errors == pytest.approx([1.0] * 6, abs=1e-5)


@pytest.mark.parametrize(
    "method", ["noise", "real", "correct", "representative", "herding", "k_center"]
)
def test_a_selection_holds_ipc_images_per_class(method, done, halfway):
    settings = Selection(data=DATA, method=method, ipc=2, expert=EXPERT)
    made, real = get(settings, halfway).tensors, run.images(DATA, halfway)
    assert made["labels"].tolist() == [c for c in range(10) for _ in range(2)]
    assert made["images"].shape == (20, 1, 16, 16)
    if method != "noise":
        taken = made["indices"]
        assert len(set(taken.tolist())) == 20
        assert torch.equal(real.x_train[taken], made["images"])
        assert torch.equal(real.y_train[taken], made["labels"])
    if method == "correct":
        net, end = network(NET, real.shape, real.classes), done.load(EXPERT).tensors["path"][-1]
        right = accuracy(net, end, made["images"], made["labels"])
        assert right == 1.0 > accuracy(net, end, real.x_train, real.y_train)
        with pytest.raises(
            InputError, match=r"right about \d+ images of class \d, below ipc = 120"
        ):
            get(settings.model_copy(update={"ipc": 120}), halfway)


def test_everything_is_the_training_set(halfway):
    made, real = get(Selection(data=DATA, method="all"), halfway), run.images(DATA, halfway)
    assert torch.equal(made.tensors["images"], real.x_train)
    assert torch.equal(made.tensors["labels"], real.y_train)


def test_what_an_artefact_took_is_told_beside_what_its_experts_took(done, halfway):
    took = run.spent(SET, done)
    experts = sum(done.note(EXPERT.at(i))["seconds"] for i in range(2))
    assert took["experts_seconds"] == pytest.approx(experts) and took["runs"] == 1
    assert took["seconds"] > 0 and took["megabytes"] > 0
    assert set(run.spent(SET, halfway).values()) == {None}  # artefacts came without their notes


@pytest.mark.parametrize("kind", ["set", "coreset", "rows"])
def test_more_images_than_there_are_is_an_error(kind):
    greedy = Selection(data=DATA, method="real", ipc=121)
    wanted = {
        "coreset": greedy,
        "set": Distillation(experts=EXPERT, start=greedy, start_epochs=2),
        "rows": Evaluation(of=greedy, network=Network()),
    }[kind]
    text = "ipc = 121, but digits has 120 training images per class: choose an ipc of at most 120"
    with pytest.raises(InputError, match=text):
        run.check(wanted)
    run.check(Selection(data=DATA, method="real", ipc=120))
    run.check(Selection(data=DATA, method="noise", ipc=121))  # noise has no end


def test_a_teacher_gives_the_labels_that_networks_learn_from(halfway):
    settings = Evaluation(of=START, network=NET, networks=1, epochs=3, lrs=(0.01,), teacher=EXPERT)
    start, path = get(START, halfway).tensors, get(EXPERT, halfway).tensors["path"]
    net = network(NET, tuple(start["images"].shape[1:]), 10)
    soft = net.logits(path[-1], start["images"]).softmax(1)
    taught = SyntheticSet(start["images"], soft, 0.01)
    (row,) = get(settings, halfway).record["rows"]
    (other,) = stages.judge(settings, taught, run.images(DATA, halfway))
    assert row == other and (soft.argmax(1) == start["labels"]).all() and soft.max() < 0.999
    with pytest.raises(InputError, match="beside a teacher"):
        validated(Evaluation, {**dict(settings), "labels": "hard"}, "evaluation")


def test_a_network_that_diverges_scores_chance_and_says_so(halfway, caplog):
    settings = Evaluation(of=START, network=NET, networks=1, epochs=3, lrs=(1e30,))
    (row,) = get(settings, halfway).record["rows"]
    assert {row[n] for n in ("accuracy", "best_on_validation", "best_on_test")} == {0.1}
    assert "network 0 scores chance: the training loss stopped being finite" in caplog.text
