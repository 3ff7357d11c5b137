"""Learning task by task: what a memory shows, and its two ends: all real images, which is joint training, and nothing, which is forgotten."""

import pytest
import torch
from test_pipeline import DATA, NET, SET, START

from ddlib.data import datasets as data
from ddlib.method import continual
from ddlib.method import train as fit
from ddlib.runs import stages as pipeline
from ddlib.runs.store import Store
from ddlib.settings import Continual, Data, InputError, Selection, generator, key, validated

REAL = data.load(DATA)
FLAT = pipeline.network(NET, REAL.shape, REAL.classes)
ALL = {"images": REAL.x_train, "labels": REAL.y_train}
FEW = {
    "images": torch.randn(30, *REAL.shape, generator=generator(0, "test")),
    "labels": torch.arange(10).repeat(3),
}
TASKS = Continual(data=DATA, network=NET, epochs=2, batch=32, lr=0.05)


def shown(x, y):
    """Images with their labels, in no order."""
    return sorted((int(label), image.numpy().tobytes()) for image, label in zip(x, y, strict=True))


@pytest.mark.parametrize("number, sizes", [(5, [2] * 5), (3, [4, 3, 3]), (1, [10]), (99, [1] * 10)])
def test_every_class_is_in_one_task(number, sizes):
    found = continual.tasks(10, number)
    assert [len(some) for some in found] == sizes and torch.cat(found).tolist() == list(range(10))


def test_with_all_real_images_the_last_lesson_is_the_training_set():
    now, before = torch.arange(8, 10), torch.arange(8)
    assert shown(*continual.lesson(REAL, ALL, now, before)) == shown(REAL.x_train, REAL.y_train)
    met = REAL.y_train < 10 - len(now)
    assert shown(*continual.lesson(REAL, ALL, torch.arange(6, 8), torch.arange(6))) == shown(
        REAL.x_train[met], REAL.y_train[met]
    )


def test_a_few_images_are_shown_as_often_as_all_would_be():
    x, y = continual.lesson(REAL, FEW, torch.arange(2, 4), torch.arange(2))
    assert torch.equal(
        y.bincount(minlength=10), torch.where(torch.arange(10) < 4, REAL.y_train.bincount(), 0)
    )
    assert shown(x[y >= 2], y[y >= 2]) == shown(
        REAL.x_train[(REAL.y_train == 2) | (REAL.y_train == 3)],
        REAL.y_train[(REAL.y_train == 2) | (REAL.y_train == 3)],
    )
    for c in range(2):
        each = torch.unique(x[y == c], dim=0, return_counts=True)[1]
        assert each.tolist() == [40, 40, 40]  # of 120 real ones


def test_without_a_memory_and_where_it_lacks_a_class_nothing_old_is_shown():
    _, y = continual.lesson(REAL, None, torch.arange(2, 4), torch.arange(2))
    assert y.unique().tolist() == [2, 3]
    part = {name: t[FEW["labels"] != 0] for name, t in FEW.items()}
    assert continual.lesson(REAL, part, torch.arange(2, 4), torch.arange(2))[
        1
    ].unique().tolist() == [1, 2, 3]


def test_one_task_is_joint_training():
    (row,) = continual.learn(TASKS.model_copy(update={"tasks": 1}), FLAT, REAL, None)
    how = fit.Recipe(
        2,
        32,
        0.05,
        weight_decay=TASKS.weight_decay,
        strategies=[s for s in TASKS.strategies if s in REAL.strategies],
    )
    order = REAL.y_train.argsort(stable=True)
    *_, last = fit.fit(
        FLAT,
        FLAT.initial(generator(0, "network")),
        REAL.x_train[order],
        REAL.y_train[order],
        how,
        (0, "task-0"),
    )
    assert row == {
        "after": 0,
        "on": 0,
        "accuracy": fit.accuracy(FLAT, last.theta, REAL.x_test, REAL.y_test),
    }


def test_real_images_are_remembered_and_nothing_is_forgotten_at_once():
    found = {
        name: continual.learn(TASKS, FLAT, REAL, memory)
        for name, memory in (("all", ALL), ("none", None))
    }
    for rows in found.values():
        assert [(row["after"], row["on"]) for row in rows] == [
            (t, j) for t in range(5) for j in range(t + 1)
        ]
    assert found["all"][0] == found["none"][0]  # before there is anything to remember
    first = {name: rows[-5]["accuracy"] for name, rows in found.items()}
    assert first["all"] > 0.5 > 0.1 > first["none"], first


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("tasks"))
    pipeline.ensure([SET], store, workers=1)
    return store


@pytest.mark.parametrize("memory", [SET, START, None], ids=["distilled", "coreset", "none"])
@pytest.mark.parametrize("stopped", [1, 4, 10])
def test_a_killed_run_goes_on_to_the_same_bytes(stopped, memory, done, monkeypatch):
    settings = TASKS.model_copy(update={"memory": memory, "seed": stopped})
    whole, epochs = pipeline.get(settings, done), []
    content = done.file(settings).read_bytes()
    assert (
        whole.settings == settings.model_dump(mode="json")
        and pipeline.settled(whole.settings) == settings
    )
    done.file(settings).unlink()

    def killed(*given):
        for epoch in fit.fit(*given):
            yield epoch
            epochs.append(epoch)
            if len(epochs) == stopped:
                raise KeyboardInterrupt

    monkeypatch.setenv("CHECKPOINT", "0")
    monkeypatch.setattr(continual, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        pipeline.get(settings, done)
    pipeline.get(settings, done)
    assert (
        len(epochs) == 2 * 5 and done.file(settings).read_bytes() == content
    )  # none was done again


def test_a_memory_of_other_data_is_refused():
    with pytest.raises(
        InputError,
        match=r"the tasks are of .* but the memory's images of .*: give both the same data",
    ):
        validated(
            Continual,
            {
                "data": DATA,
                "network": NET,
                "memory": Selection(data=Data(name="digits", seed=1), method="real"),
            },
            "tasks",
        )
    assert key(TASKS) != key(TASKS.model_copy(update={"memory": START}))
