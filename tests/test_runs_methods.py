"""The rivals in trajectory matching as studies ask for them: each runs, ends with the same bytes after kills, is judged, and does what its switches say."""

import signal

import pytest
import torch
import yaml
from test_keeper import dies_at, in_a_child, with_needs
from test_pipeline import DATA, NET, SET

from ddlib import settings as config
from ddlib.method import distill as distil
from ddlib.method import train as fit
from ddlib.method.distill import begin, window
from ddlib.method.evaluate import trained_on
from ddlib.runs import plan, studies
from ddlib.runs import stages as pipeline
from ddlib.runs.stages import expert, get
from ddlib.runs.store import Store
from ddlib.settings import Distillation, Evaluation, Expert, Following, InputError, Selection

CELL = "digits-ipc1"
TUNED = {"lr_images": 30.0, "a0": 0.05, "lr_lr": 1e-5}
OWN = {  # what a cell says of each beside its lrs; the last two take AST's
    "FTD": {"ema": 0.7},
    "TESLA": {},
    "TESLA + soft labels": {},
    "DATM": {"first_start": 1, "early_epochs": 2, "growth": 3, "start_epochs": 3},
    "AST + soft labels": None,
    "AST, FTD experts": None,
}
SWITCHES = {  # in which each differs from MTT, and the last two from AST
    "FTD": {"ema"},
    "TESLA": {"gradient"},
    "TESLA + soft labels": {"gradient", "labels"},
    "DATM": {
        "labels",
        "lr_labels",
        "first_start",
        "early_epochs",
        "growth",
        "start_epochs",
        "start",
    },
    "AST + soft labels": {"labels", "lr_labels"},
    "AST, FTD experts": {"start"},  # whose features are those of the experts that are followed
}


@pytest.fixture(scope="module")
def profile(tmp_path_factory):
    """The smoke profile with these rows: FTD's experts are a recipe."""
    fields = yaml.safe_load((config.PROFILES / "smoke.yaml").read_text())
    fields["recipes"]["ftd"] = fields["recipes"]["sgd"] | {
        "sharpness": 0.01,
        "sharpness_alpha": 0.4,
    }
    cell = fields["cells"][CELL]
    cell["methods"] += list(OWN)
    cell["tuned"] |= {method: TUNED | more for method, more in OWN.items() if more is not None}
    cell["student"] |= {"iterations": 6, "checks": 3, "check_epochs": 5}
    fields |= {"cells": {CELL: cell}, "seeds": 1, "tuning": []}
    fields["cross_architecture"]["cells"] = [CELL]
    file = tmp_path_factory.mktemp("profile") / "rivals.yaml"
    file.write_text(yaml.safe_dump(fields))
    return config.profile(str(file))


@pytest.fixture(scope="module")
def made(profile, tmp_path_factory):
    """A store with each one's set; to be read only."""
    store = Store(tmp_path_factory.mktemp("rivals"))
    pipeline.ensure(
        [studies.distillation(profile, CELL, method, 0) for method in [*OWN, "MTT"]],
        store,
        workers=1,
    )
    return store


def looks(held):
    return [row for row in held.record["curve"] if "validation_accuracy" in row]


@pytest.mark.parametrize("method", OWN)
def test_a_rival_is_its_baseline_with_its_switches_on(method, profile):
    settings, base = (
        studies.distillation(profile, CELL, name, 0)
        for name in (method, "AST" if "AST" in method else "MTT")
    )
    differ = {
        name for name in Distillation.model_fields if getattr(settings, name) != getattr(base, name)
    } - {"experts"}
    assert differ == SWITCHES[method]
    recipe = (
        "ftd"
        if method in ("FTD", "DATM", "AST, FTD experts")
        else "ast"
        if "AST" in method
        else "sgd"
    )
    assert settings.experts == studies.recipe(profile, profile.cells[CELL], recipe)
    assert settings in [run.settings.of for run in studies.main(profile)] and settings.experts in [
        e for _, _, e in studies.experts(profile)
    ]


@pytest.mark.parametrize("method", OWN)
def test_a_rival_killed_again_and_again_ends_with_the_same_bytes(
    method, profile, made, tmp_path, monkeypatch
):
    monkeypatch.setenv("CHECKPOINT", "0")
    settings = studies.distillation(profile, CELL, method, 0)
    store, kills = with_needs(settings, made, tmp_path), 0
    while not store.has(settings):

        def life(half=kills % 3 == 2):
            dies_at(
                6 if half else 5, half
            )  # each adds five checkpoints: iterations, and epochs of looks
            get(settings, store)

        status = in_a_child(life)
        assert status == (-signal.SIGKILL if not store.has(settings) else status) and kills < 10
        kills += 1
    assert kills >= 3
    assert store.file(settings).read_bytes() == made.file(settings).read_bytes()


@pytest.mark.parametrize("method", OWN)
def test_a_rival_is_judged_and_followed(method, profile, made):
    settings = studies.distillation(profile, CELL, method, 0)
    rows = get(
        Evaluation(of=settings, network=NET, networks=1, epochs=3, factors=(1.0,)), made
    ).record["rows"]
    assert len(rows) == 2 and all(0 <= row["accuracy"] <= 1 for row in rows)
    errors = [row["error"] for row in get(Following(of=settings), made).record["rows"]]
    assert len(errors) == settings.n_experts * (settings.start_epochs + 1) and all(
        0 < error < 10 for error in errors
    )


@pytest.mark.parametrize("method", OWN)
def test_the_set_that_is_kept_is_that_of_a_look(method, profile, made):
    held = get(studies.distillation(profile, CELL, method, 0), made)
    best = [row["iteration"] for row in looks(held)].index(held.record["chosen_iteration"])
    assert (
        torch.equal(held.tensors["images"], held.tensors["history"][best + 1])
        and len(held.tensors["history"]) == 4
    )
    assert ("soft" in held.tensors) == ("soft labels" in method or method == "DATM")
    y = trained_on(held)
    if "soft" in held.tensors:
        assert (
            y.shape == (10, 10)
            and torch.equal(y, held.tensors["soft"].softmax(1))
            and held.tensors["labels"].tolist() == list(range(10))
        )
    else:
        assert y is held.tensors["labels"]


def test_soft_labels_can_be_left_aside(profile, made, tmp_path):
    """Judged under hard labels, a set with soft ones scores what the same images score without them; its own labels score otherwise."""
    settings = studies.distillation(profile, CELL, "DATM", 0)
    judged = Evaluation(of=settings, network=NET, networks=1, epochs=3, factors=(1.0,))
    held, bare = made.load(settings), with_needs(settings, made, tmp_path)
    bare.save(
        settings, {name: t for name, t in held.tensors.items() if name != "soft"}, held.record
    )
    asked = ((judged.model_copy(update={"labels": "hard"}), made), (judged, made), (judged, bare))
    hard, soft, without = (
        [row["accuracy"] for row in get(how, store).record["rows"]] for how, store in asked
    )
    assert hard == without != soft
    runs = [how["labels"] for run, how in studies.scores(profile) if run.method == "DATM"]
    assert runs == ["own", "own", "hard"] and all(
        how["labels"] == "own"
        for run, how in studies.scores(profile)
        if "label" not in run.method and run.method != "DATM"
    )


def walk(settings, store, steps):
    """The states of the outer loop, as the pipeline begins it."""
    real = pipeline.images(settings.start.data, store)
    flat, start = (
        pipeline.network(settings.experts.network, real.shape, real.classes),
        get(settings.start, store).tensors,
    )
    paths = [
        get(expert(settings.experts, i), store).tensors["path"] for i in range(settings.n_experts)
    ]
    state = begin(
        settings,
        start["images"],
        pipeline.expert_labels(settings, flat, start["images"], store) if settings.labels else None,
    )
    loop = distil.distil(
        settings,
        flat,
        lambda i, s, m: paths[i][s : s + m + 1],
        start["labels"],
        real.strategies,
        state,
    )
    return state, [next(loop) for _ in range(steps)]


def test_the_average_is_its_closed_form_and_changes_no_step(profile, made):
    """A_t = d^t S_0 + (1 - d) sum_i d^(t - i) S_i; the images themselves go as without it."""
    settings = studies.distillation(profile, CELL, "FTD", 0)
    first, steps = walk(settings, made, 6)
    plain = walk(settings.model_copy(update={"ema": None}), made, 6)[1]
    images, d = [first.images, *(step.state.images for step in steps)], settings.ema
    for t, step in enumerate(steps, 1):
        expected = d**t * images[0] + (1 - d) * sum(
            d ** (t - i) * images[i] for i in range(1, t + 1)
        )
        torch.testing.assert_close(step.state.average, expected)
        assert (
            torch.equal(step.state.images, plain[t - 1].state.images)
            and plain[t - 1].state.average is None
        )
        assert (
            torch.equal(step.state.kept, step.state.average)
            and (step.state.kept - step.state.images).norm() > 0
        )
    held = get(settings, made)
    for look, kept in zip(looks(held), held.tensors["history"][1:], strict=True):
        assert torch.equal(kept, steps[look["iteration"] - 1].state.average)


def test_learned_labels_start_as_an_experts_and_go_down_their_gradient(profile, made):
    settings = studies.distillation(profile, CELL, "DATM", 0)
    first, steps = walk(settings, made, 2)
    real, start = pipeline.images(DATA, made), get(settings.start, made).tensors
    flat = pipeline.network(settings.experts.network, real.shape, real.classes)
    end = get(settings.start.expert, made).tensors["path"][-1]
    torch.testing.assert_close(first.labels, flat(end, start["images"]))
    assert (
        first.labels.argmax(1).tolist() == start["labels"].tolist()
    )  # which is what "correct" asks for
    one, two = (step.state for step in steps)
    torch.testing.assert_close(one.labels, first.labels - settings.lr_labels * one.v_labels)
    torch.testing.assert_close(two.labels, one.labels - settings.lr_labels * two.v_labels)
    assert (
        one.v_labels.norm() > 0 and (two.v_labels - distil.LABEL_MOMENTUM * one.v_labels).norm() > 0
    )


def test_the_experts_own_labels_are_those_of_its_matched_end(profile, made):
    """In every iteration anew, from the images before the step; nothing of them is learned."""
    settings = studies.distillation(profile, CELL, "TESLA + soft labels", 0)
    first, steps = walk(settings, made, 3)
    real = pipeline.images(DATA, made)
    flat, before = (
        pipeline.network(settings.experts.network, real.shape, real.classes),
        first.images,
    )
    ends = [
        get(expert(settings.experts, i), made).tensors["path"] for i in range(settings.n_experts)
    ]
    for step in steps:
        possible = [flat(path[step.start + settings.matched_epochs], before) for path in ends]
        assert (
            any(torch.allclose(step.state.labels, logits, atol=1e-5) for logits in possible)
            and step.state.v_labels is None
        )
        before = step.state.images


def test_the_start_window_grows_as_datms():
    """T- = 0, T = 10, T+ = 20 over 1000 iterations, the settings of CIFAR-10 at ten images a class; and one that begins late."""
    late = SET.model_copy(update={"start_epochs": 20, "early_epochs": 10, "growth": 1000})
    assert [window(late, t) for t in (0, 99, 100, 550, 999, 1000, 9999)] == [
        (0, 10),
        (0, 10),
        (0, 11),
        (0, 15),
        (0, 19),
        (0, 20),
        (0, 20),
    ]
    assert window(late.model_copy(update={"first_start": 4}), 0) == (4, 10)
    assert window(SET, 7) == (0, SET.start_epochs)


def test_starts_lie_in_the_window(profile, made):
    settings = studies.distillation(profile, CELL, "DATM", 0)
    seen = [row["start"] for row in get(settings, made).record["curve"]]
    assert all(
        first <= start < last
        for start, (first, last) in zip(seen, (window(settings, t) for t in range(6)), strict=True)
    ) and set(seen) == {1, 2}


def test_sharp_experts_differ_from_plain_ones_by_their_steps_alone(profile, made):
    """They begin at the same point, with the same batches, and are no worse than chance."""
    sharp, plain = (
        get(studies.recipe(profile, profile.cells[CELL], name), made) for name in ("ftd", "sgd")
    )
    assert torch.equal(sharp.tensors["path"][0], plain.tensors["path"][0]) and not torch.equal(
        sharp.tensors["path"][1], plain.tensors["path"][1]
    )
    assert sharp.record["rows"][-1]["validation_accuracy"] > 0.3


def test_a_start_of_images_that_the_expert_is_right_about(tmp_path):
    store, settings = (
        Store(tmp_path),
        Selection(
            data=DATA,
            method="correct",
            ipc=2,
            expert=Expert(data=DATA, network=NET, epochs=4, lr=0.02),
        ),
    )
    held, real = get(settings, store), pipeline.images(DATA, store)
    flat, end = (
        pipeline.network(NET, real.shape, real.classes),
        get(settings.expert, store).tensors["path"][-1],
    )
    assert (
        fit.accuracy(flat, end, held.tensors["images"], held.tensors["labels"])
        == 1.0
        > fit.accuracy(flat, end, real.x_train, real.y_train)
    )
    assert (
        held.tensors["labels"].tolist() == [c for c in range(10) for _ in range(2)]
        and len(set(held.tensors["indices"].tolist())) == 20
    )
    with pytest.raises(
        InputError,
        match=r"the expert is right about \d+ images of class 0, below ipc = 120: train it longer, or lower ipc",
    ):
        get(settings.model_copy(update={"ipc": 120}), store)


def test_tesla_is_predicted_to_cost_what_the_exact_sweep_does(profile):
    settings = studies.distillation(profile, CELL, "TESLA", 0)
    assert plan.part(settings) == plan.part(settings.model_copy(update={"gradient": "adjoint"}))
