"""From settings to artefacts on a set-up that takes seconds: the same bytes alone, side by side, and after a kill."""

from dataclasses import replace

import pytest
import torch

from ddlib.data.space import Space
from ddlib.method import evaluate
from ddlib.method.train import Diverged
from ddlib.runs import engine, store
from ddlib.runs import stages as pipeline
from ddlib.runs.stages import expert, get
from ddlib.runs.store import Store
from ddlib.settings import (
    Data,
    Distillation,
    Evaluation,
    Expert,
    Following,
    Network,
    Selection,
    generator,
)

DATA = Data(name="digits")
NET = Network(width=8, depth=2)  # wide enough for the fused kernels
EXPERT = Expert(data=DATA, network=NET, epochs=3, lr=0.02)
START = Selection(data=DATA, method="representative", expert=EXPERT)
SET = Distillation(
    experts=EXPERT,
    n_experts=2,
    start=START,
    inner_steps=4,
    matched_epochs=2,
    start_epochs=2,
    batch=7,
    balance=True,
    perturbation=1.0,
    intermediate="adaptive",
    lr_images=30.0,
    iterations=6,
    checks=3,
    check_epochs=5,
    seed=3,
)
ROWS = Evaluation(of=SET, network=NET, networks=2, epochs=4, factors=(0.3, 1.0), looks=2)
HARSH = SET.model_copy(update={"lr_images": 1e30})
ALL = [EXPERT, expert(EXPERT, 1), START, SET, ROWS, Following(of=SET)]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A store filled by one process, one task after the other; to be read only."""
    made = Store(tmp_path_factory.mktemp("done"))
    pipeline.ensure(ALL, made, workers=1)
    return made


@pytest.fixture
def halfway(done, tmp_path):
    """A store that has what SET needs."""
    some = Store(tmp_path / "halfway")
    for settings in (EXPERT, expert(EXPERT, 1), START):
        some.file(settings).parent.mkdir(parents=True, exist_ok=True)
        some.file(settings).write_bytes(done.file(settings).read_bytes())
    return some


def test_two_processes_leave_the_same_bytes_and_a_failure_stops_nothing_else(done, tmp_path, capfd):
    beside = Store(tmp_path)
    with pytest.raises(Diverged, match=r"stopped being finite.*lower lr_images first"):
        pipeline.ensure([Evaluation(of=HARSH, network=NET), *ALL], beside, workers=2)
    for settings in ALL:
        assert beside.file(settings).read_bytes() == done.file(settings).read_bytes(), (
            settings.stage
        )
    assert not beside.has(HARSH) and not beside.has(Evaluation(of=HARSH, network=NET))
    assert "failed" in capfd.readouterr().err


def test_what_is_there_is_read_not_made(done, monkeypatch):
    before = {settings: done.file(settings).read_bytes() for settings in ALL}
    monkeypatch.setattr(pipeline, "MAKE", {})
    for settings in ALL:
        assert get(settings, done).settings == settings.model_dump(mode="json")
    assert pipeline.missing(ALL, done) == {}
    pipeline.ensure(ALL, done)
    assert before == {settings: done.file(settings).read_bytes() for settings in ALL}


def test_get_makes_all_that_is_needed(done, tmp_path):
    fresh = Store(tmp_path)
    assert set(pipeline.missing([ROWS], fresh)) == {ROWS, SET, START, EXPERT, expert(EXPERT, 1)}
    get(ROWS, fresh)
    for settings in (EXPERT, expert(EXPERT, 1), START, SET, ROWS):
        assert fresh.file(settings).read_bytes() == done.file(settings).read_bytes()


@pytest.mark.parametrize("stopped", [1, 3, 4, 5])
def test_a_killed_run_goes_on_to_the_same_bytes(stopped, done, halfway, monkeypatch):
    began = []

    def run(*arguments, until=None):
        began.append(arguments[-1].iteration)
        for i, step in enumerate(distil(*arguments), began[-1]):
            if i == until:
                raise KeyboardInterrupt
            yield step

    distil = pipeline.distil
    monkeypatch.setenv("CHECKPOINT", "0")  # after every iteration
    monkeypatch.setattr(pipeline, "distil", lambda *arguments: run(*arguments, until=stopped))
    with pytest.raises(KeyboardInterrupt):
        get(SET, halfway)
    assert not halfway.has(SET)
    held = halfway.resume(SET)
    assert held.record["iteration"] == stopped and [
        row["iteration"] for row in held.record["curve"]
    ] == list(range(1, stopped + 1))
    monkeypatch.setattr(pipeline, "distil", run)
    get(SET, halfway)
    assert began == [0, stopped]
    assert halfway.file(SET).read_bytes() == done.file(SET).read_bytes()
    assert halfway.resume(SET) is None


def test_a_run_killed_while_it_looks_goes_on_to_the_same_bytes(done, halfway, monkeypatch):
    score, looks = pipeline.score, []

    def interrupted(*arguments, **named):
        looks.append(named["seed"])
        if len(looks) == 2:
            raise KeyboardInterrupt
        return score(*arguments, **named)

    monkeypatch.setenv("CHECKPOINT", "0")
    monkeypatch.setattr(pipeline, "score", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get(SET, halfway)
    get(SET, halfway)
    assert looks == [2, 4, 4, 6]  # the first look is not taken again
    assert halfway.file(SET).read_bytes() == done.file(SET).read_bytes()


def test_an_outer_loop_that_is_not_finite_stops_and_keeps_its_last_good_state(halfway):
    with pytest.raises(
        Diverged,
        match=r"stopped being finite at outer iteration \d \(lr_images 1e\+30.*the last good state is kept",
    ):
        get(HARSH, halfway)
    assert not halfway.has(HARSH)
    held = halfway.resume(HARSH)
    assert 0 < held.record["iteration"] < HARSH.iterations
    assert torch.isfinite(held.tensors["images"]).all() and torch.isfinite(held.tensors["log_lr"])


def test_the_kept_images_are_those_that_validated_best(done):
    made, start = get(SET, done), get(START, done)
    history, looked = (
        made.tensors["history"],
        [row for row in made.record["curve"] if "validation_accuracy" in row],
    )
    assert [row["iteration"] for row in looked] == [2, 4, 6] and len(history) == 4
    assert torch.equal(history[0], start.tensors["images"]) and torch.equal(
        made.tensors["labels"], start.tensors["labels"]
    )
    best = max(looked, key=lambda row: row["validation_accuracy"])
    assert made.record["chosen_iteration"] == best["iteration"] and made.record["lr"] == best["lr"]
    assert torch.equal(made.tensors["images"], history[best["iteration"] // 2])
    assert len({t.numpy().tobytes() for t in history}) == 4
    assert len(made.record["curve"]) == 6 and {row["start"] for row in made.record["curve"]} <= {
        0,
        1,
    }


def test_an_artefact_says_all_that_is_needed(done):
    held = store.read(done.file(SET))
    assert Distillation(**held.settings) == SET
    space = Space.from_tensors(
        {n.removeprefix("space."): t for n, t in held.tensors.items() if n.startswith("space.")}
    )
    real = pipeline.images(DATA, done)
    assert torch.equal(space.leave(real.x_test), real.space.leave(real.x_test))
    rows = get(ROWS, done).record["rows"]
    assert {row["protocol"]: row["lr"] / row["lr_factor"] for row in rows} == pytest.approx(
        dict.fromkeys(["lr_chosen", "lr_a"], held.record["lr"])
    )
    for protocol in ("lr_chosen", "lr_a"):
        assert [row["net_seed"] for row in rows if row["protocol"] == protocol] == [0, 1]
    for row in rows:
        assert row["best_on_test"] >= max(row["accuracy"], row["best_on_validation"])


@pytest.mark.parametrize("method", ["noise", "real", "representative", "herding", "k_center"])
@pytest.mark.parametrize("features", ["logits", "penultimate"])
def test_a_selection_holds_ipc_images_of_each_class(method, features, done, tmp_path, halfway):
    settings = Selection(data=DATA, method=method, ipc=3, expert=EXPERT, features=features)
    held, real = get(settings, halfway), pipeline.images(DATA, halfway)
    assert held.tensors["labels"].tolist() == [c for c in range(10) for _ in range(3)]
    assert held.tensors["images"].shape == (30, 1, 16, 16)
    if method != "noise":
        taken = held.tensors["indices"]
        assert torch.equal(real.x_train[taken], held.tensors["images"]) and torch.equal(
            real.y_train[taken], held.tensors["labels"]
        )


def test_everything_is_the_training_set(halfway):
    held, real = get(Selection(data=DATA, method="all"), halfway), pipeline.images(DATA, halfway)
    assert torch.equal(held.tensors["images"], real.x_train) and torch.equal(
        held.tensors["labels"], real.y_train
    )


def test_a_student_at_rest_has_an_error_of_one(done, halfway):
    """The following divides by the expert's own way: a student that hardly moves is as far as the start was."""
    rows = get(Following(of=SET), done).record["rows"]
    assert [(row["expert_seed"], row["epoch"]) for row in rows] == [
        (i, e) for i in (0, 1) for e in (1, 2, 3)
    ]
    slow = SET.model_copy(update={"a0": 1e-9, "lr_lr": 0.0})
    assert [
        row["error"] for row in get(Following(of=slow), halfway).record["rows"]
    ] == pytest.approx([1.0] * 6, abs=1e-5)
    assert max(abs(row["error"] - 1) for row in rows) > 1e-3


def test_tuning_and_choosing_never_look_at_the_test_images(done, tmp_path, monkeypatch):
    tuned = ROWS.model_copy(update={"test": False})
    real = pipeline.images(DATA, done)
    other = replace(
        real,
        x_test=real.x_test.flip(0) + 1,
        y_test=real.y_test[torch.randperm(len(real.y_test), generator=generator("mix"))],
    )
    assert (other.y_test != real.y_test).float().mean() > 0.5
    monkeypatch.setattr(pipeline, "images", lambda *_: other)
    accuracy, seen = evaluate.accuracy, []
    monkeypatch.setattr(
        evaluate,
        "accuracy",
        lambda flat, theta, x, y: seen.append(x is other.x_test) or accuracy(flat, theta, x, y),
    )
    blind = Store(tmp_path)
    for settings in (START, SET, tuned):
        get(settings, blind)
    monkeypatch.undo()
    assert seen and not any(seen)
    assert torch.equal(blind.load(EXPERT).tensors["path"], done.load(EXPERT).tensors["path"])
    for settings in (START, SET):
        assert blind.file(settings).read_bytes() == done.file(settings).read_bytes()
    rows, judged = blind.load(tuned).record["rows"], done.load(ROWS).record["rows"]
    assert all(
        row[name] is None
        for row in rows
        for name in ("accuracy", "best_on_validation", "best_on_test")
    )
    for name in ("lr_factor", "lr", "validation_accuracy", "protocol", "net_seed"):
        assert [row[name] for row in rows] == [row[name] for row in judged], name


def test_the_seed_changes_the_outcome(done, halfway):
    other = get(SET.model_copy(update={"seed": 4}), halfway)
    assert not torch.equal(other.tensors["images"], get(SET, done).tensors["images"])


def test_a_failed_task_stops_only_those_that_need_it(capsys):
    ran = []

    def do(task):
        ran.append(task)
        if task in "bx":
            raise ValueError(f"{task} broke")

    tasks = {
        "d": ["c", "e"],
        "c": ["b"],
        "b": ["a"],
        "a": ["made before"],
        "x": [],
        "e": ["a"],
        "f": ["e"],
    }
    with pytest.raises(ValueError, match="broke"):
        engine.run(
            tasks,
            do,
            work=lambda task: ord(task) / 100,
            label=lambda task: f"task {task}",
            workers=1,
        )
    assert sorted(ran) == ["a", "b", "e", "f", "x"]
    assert ran.index("a") < ran.index("b") and ran.index("a") < ran.index("e") < ran.index("f")
    assert ran[0] == "x"  # the longest that can run
    said = capsys.readouterr().err
    assert "task b failed: b broke" in said and "task x failed: x broke" in said
