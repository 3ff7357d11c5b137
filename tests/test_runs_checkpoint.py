"""Every kind of task is killed, really, after each of its checkpoints and in the middle of writing them, and ends with the bytes of an undisturbed one.

A forked child does the task and kills itself; the next child goes on. And numbers that stop being finite: what is said, what is kept, what goes on.
"""

import os
import signal
from dataclasses import replace
from multiprocessing import get_context

import pytest
import torch
import yaml
from test_pipeline import DATA, EXPERT, NET, ROWS, SET, START
from test_pipeline import done as done  # the same set-up, filled by one process

from ddlib.__main__ import main
from ddlib.method import experts
from ddlib.method.distill import begin, checked
from ddlib.method.matching import objective
from ddlib.method.student import Loss, adjoint, path, walk
from ddlib.method.train import Diverged
from ddlib.runs import stages as pipeline
from ddlib.runs import store
from ddlib.runs.checkpoint import Keeper, interval
from ddlib.runs.stages import get
from ddlib.runs.store import Store
from ddlib.settings import (
    Condensation,
    Evaluation,
    Film,
    Following,
    InputError,
    Selection,
    generator,
)

ADAM = EXPERT.model_copy(
    update={
        "optimiser": "adam",
        "lr": 0.002,
        "epochs": 5,
        "drop": 0.5,
        "ramp": "lr",
        "ramp_epochs": 3,
        "penalty": "per_sample",
        "penalty_weight": 0.1,
    }
)
HERD = Selection(data=DATA, method="representative", ipc=2, expert=EXPERT)
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
TASKS = {  # task -> the checkpoints that it writes when it writes all it can
    EXPERT: 3,
    ADAM: 5,
    HERD: 10,
    SET: 6 + 3 * 5,  # an iteration and, at each look, an epoch
    DSA: 4 + 2 * 2,
    ROWS: 2 * 4 + 2 * 4,  # two networks choose, two are scored
    Following(of=SET): 2 * 3,
    Film(of=SET, frames=4): 6,
}
NAMES = {settings: f"{settings.stage} {i}" for i, settings in enumerate(TASKS)}


def in_a_child(do) -> int:
    """The exit status of a forked child that does it: minus the signal that ended it."""
    child = get_context("fork").Process(target=do)
    child.start()
    child.join(120)
    return child.exitcode


def dies_at(write: int, half: bool):
    """From now on this process is killed by its n-th write: just after it, or, `half`, before the new file gets its name."""
    replace, seen = os.replace, []

    def deadly(source, target):
        seen.append(target)
        if len(seen) == write and half:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(source, target)
        if len(seen) == write:
            os.kill(os.getpid(), signal.SIGKILL)

    store.os.replace = deadly


def with_needs(settings, done, folder) -> Store:
    """A store that has what the task needs and not the task."""
    some = Store(folder)
    for other in pipeline.missing([settings], None):
        if other != settings and done.has(other):
            some.file(other).parent.mkdir(parents=True, exist_ok=True)
            some.file(other).write_bytes(done.file(other).read_bytes())
    assert pipeline.missing([settings], some).keys() == {settings}
    return some


@pytest.fixture(scope="module")
def whole(done):
    """The undisturbed artefacts."""
    for settings in TASKS:
        get(settings, done)
    return done


@pytest.mark.parametrize("settings", TASKS, ids=NAMES.get)
def test_a_task_killed_again_and_again_ends_with_the_same_bytes(
    settings, whole, tmp_path, monkeypatch
):
    monkeypatch.setenv("CHECKPOINT", "0")
    made, kills = with_needs(settings, whole, tmp_path), 0
    while not made.has(settings):

        def life(half=kills % 3 == 2):
            dies_at(4 if half else 3, half)  # each adds three checkpoints
            get(settings, made)

        status = in_a_child(life)
        assert status == (-signal.SIGKILL if not made.has(settings) else status) and kills < 40
        kills += 1
    get(settings, made)
    assert (
        TASKS[settings] // 3 <= kills <= TASKS[settings] // 3 + 1
    )  # nothing that was kept is done again
    assert made.file(settings).read_bytes() == whole.file(settings).read_bytes()


@pytest.mark.parametrize("settings", TASKS, ids=NAMES.get)
def test_a_finished_task_leaves_no_checkpoint(settings, whole, tmp_path, monkeypatch):
    monkeypatch.setenv("CHECKPOINT", "0")
    made, kept = with_needs(settings, whole, tmp_path), []
    monkeypatch.setattr(
        Store, "checkpoint", lambda *given, keep=Store.checkpoint: kept.append(1) or keep(*given)
    )
    get(settings, made)
    assert len(kept) == TASKS[settings]
    assert made.resume(settings) is None and not list((tmp_path / "checkpoints").iterdir())
    assert made.file(settings).read_bytes() == whole.file(settings).read_bytes()


def test_an_interval_is_a_number_of_seconds(monkeypatch, tmp_path, capsys):
    monkeypatch.delenv("CHECKPOINT", raising=False)
    assert interval() == 60
    monkeypatch.setenv("CHECKPOINT", "0.5")
    assert interval() == 0.5
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    for wrong in ("-1", "soon", "nan", "inf"):
        monkeypatch.setenv("CHECKPOINT", wrong)
        with pytest.raises(
            InputError, match=f"CHECKPOINT={wrong}: expected the seconds between two checkpoints"
        ):
            interval()
    assert main(["run", "experts", "--profile", "smoke"]) == 2
    assert (
        capsys.readouterr().err
        == "ddlib: CHECKPOINT=inf: expected the seconds between two checkpoints of a task, 0 or more; leave it out for 60\n"
    )


def test_a_keeper_keeps_when_its_time_has_come(tmp_path, monkeypatch):
    kept = Store(tmp_path)
    monkeypatch.setenv("CHECKPOINT", "1000")
    patient = Keeper(kept, START)
    patient(lambda: {"a": 1})
    assert kept.resume(START) is None
    patient.last -= 1000
    patient.inside(lambda: {"a": 1, "t": torch.ones(2)})(lambda: {"rows": [float("nan")]})
    patient(lambda: {"a": 2})
    again = Keeper(kept, START)
    held = again.left("a", "t")
    assert (
        held["a"] == 1
        and torch.equal(held["t"], torch.ones(2))
        and str(again.left("rows")) == "{'rows': [nan]}"
    )
    assert again.left("a") is None  # told once
    monkeypatch.setenv("CHECKPOINT", "0")
    nowhere = Keeper()
    nowhere(lambda: pytest.fail("nothing to keep it in"))
    assert nowhere.left("a") is None


WRONG = {
    "truncated": lambda file, content: file.write_bytes(content[: len(content) // 2]),
    "flipped": lambda file, content: file.write_bytes(
        content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]
    ),
    "empty": lambda file, content: file.write_bytes(b""),
}


@pytest.mark.parametrize("settings", TASKS, ids=NAMES.get)
def test_a_checkpoint_that_cannot_be_used_is_none(settings, whole, tmp_path, monkeypatch):
    """Damaged, of other settings, or of a library that kept less."""
    monkeypatch.setenv("CHECKPOINT", "0")
    made = with_needs(settings, whole, tmp_path)
    in_a_child(lambda: (dies_at(2, False), get(settings, made)))
    (file,) = (tmp_path / "checkpoints").iterdir()
    content, held = file.read_bytes(), made.resume(settings)
    tensors = {
        name: t.clone() for name, t in held.tensors.items()
    }  # those of `held` lie in the file
    faults = {name: lambda wrong=wrong: wrong(file, content) for name, wrong in WRONG.items()}
    faults["other settings"] = lambda: store.write(
        file, START.model_copy(update={"seed": 99}), tensors, held.record
    )
    for name in [*tensors, *held.record]:
        less = (
            {n: part for n, part in parts.items() if n != name} for parts in (tensors, held.record)
        )
        faults[f"without {name}"] = lambda less=tuple(less): store.write(file, settings, *less)
    for fault, inflict in faults.items():
        inflict()
        get(settings, made)
        assert made.file(settings).read_bytes() == whole.file(settings).read_bytes(), fault
        made.file(settings).unlink()


def test_a_step_at_a_time_is_the_path():
    chance = generator("walk")
    theta, images, lr = (
        torch.randn(5, generator=chance),
        torch.randn(5, generator=chance),
        torch.tensor(0.1),
    )
    loss = Loss(lambda theta, images, k: (k * (theta - images).square()).sum().sin())
    visited, b = path(loss, theta, images, lr, 6, 0.9, differentiable=False), torch.zeros(5)
    for first, last in ((1, 2), (3, 3), (4, 6)):
        theta, b = walk(loss, theta, b, images, lr, range(first, last + 1), 0.9)
        assert torch.equal(theta, visited[last])


LATE = EXPERT.model_copy(
    update={"epochs": 5, "drop": 1e30}
)  # it diverges when its lr "drops", in the fifth epoch


def test_an_expert_that_diverges_keeps_its_last_good_epoch_and_stops_there_again(
    tmp_path, monkeypatch
):
    made, epochs = Store(tmp_path), []
    look = experts.look
    monkeypatch.setattr(experts, "look", lambda *given: epochs.append(1) or look(*given))
    for again in (False, True):
        with pytest.raises(
            Diverged,
            match=r"stopped being finite at step 2 of 5 in epoch 5 of 5 \(momentum, lr 0.02\): lower lr; begun again as it is, it stops",
        ):
            get(LATE, made)
        assert len(epochs) == 5  # the start and four epochs, all in the first run
        held = made.resume(LATE)
        assert (
            not made.has(LATE)
            and held.tensors["path"].shape[0] == 5
            and len(held.record["rows"]) == 5
        ), again
        assert torch.isfinite(held.tensors["path"]).all()


DISTIL = [  # what is changed, what may overflow first, and what is to be lowered
    (
        {"lr_images": 1e30},
        "the gradient for the images",
        "the images had run away, to pixels of .e+27: lower lr_images first, then a0",
    ),
    (
        {"a0": 1e3},
        "the gradient for the images",
        "the inner loop overflowed at an inner lr of .*: lower a0 first, then lr_images",
    ),
    (
        {"a0": 1e10},
        "the student's parameters, at inner step 3 of 4,",
        "the inner loop overflowed at an inner lr of 1e.10: lower a0 first, then lr_images",
    ),
    (
        {"lr_lr": 1.0},
        "the inner lr",
        "a step on the inner lr was too long: lower lr_lr first, then a0",
    ),
]


@pytest.mark.parametrize(
    "changes, what, advice", DISTIL, ids=["lr_images", "a0", "a0, inner step", "lr_lr"]
)
def test_an_outer_loop_that_diverges_names_the_iteration_the_quantity_and_the_cause(
    changes, what, advice, whole, tmp_path
):
    settings = SET.model_copy(update=changes)
    made = with_needs(settings, whole, tmp_path)
    with pytest.raises(
        Diverged,
        match=rf"^{what} stopped being finite at outer iteration \d \(lr_images .*\): {advice.replace('+', '.')}; the last good state is kept",
    ):
        get(settings, made)
    held = made.resume(settings)
    assert not made.has(settings) and all(torch.isfinite(t).all() for t in held.tensors.values())


@pytest.mark.parametrize("a0", [1e10, 1e30])
def test_the_inner_step_that_is_named_is_the_first_that_overflowed(a0, whole):
    settings, real = (
        SET.model_copy(update={"a0": a0, "inner_steps": 8}),
        pipeline.images(DATA, whole),
    )
    start, target = get(START, whole).tensors, get(EXPERT, whole).tensors["path"][:3]
    loss = pipeline.inner_loss(
        pipeline.network(NET, real.shape, real.classes),
        start["labels"],
        settings,
        real.strategies,
        0,
        0,
    )
    state, momentum = begin(settings, start["images"]), settings.momentum
    walked = path(
        loss, target[0], state.images, torch.tensor(a0), 8, momentum, differentiable=False
    )
    first = [bool(torch.isfinite(point).all()) for point in walked].index(False)
    found = adjoint(
        loss,
        target[0],
        state.images,
        torch.tensor(a0),
        8,
        momentum,
        lambda path: objective(path, target, {8: 2}, "none"),
        [8],
    )
    with pytest.raises(
        Diverged,
        match=f"^the student's parameters, at inner step {first} of 8, stopped being finite at outer iteration 1 ",
    ):
        checked(settings, loss, target[0], target, state, found, replace(state, iteration=1))


def test_a_network_that_diverges_scores_chance_and_says_so(whole, tmp_path, capfd):
    settings = Evaluation(of=START, network=NET, networks=1, epochs=3, factors=(1e30,))
    (row,) = get(settings, with_needs(settings, whole, tmp_path)).record["rows"]
    assert all(row[name] == 0.1 for name in ("accuracy", "best_on_validation", "best_on_test"))
    assert (
        "network 0 scores chance: the training loss stopped being finite at step 1 of 1 in epoch 2 of 3 (momentum, lr 1e+28): lower lr"
        in capfd.readouterr().err
    )


def test_one_task_diverges_and_the_others_go_on(tmp_path, monkeypatch, capfd):
    """From the command line: status 2, the fault by name, and every other artefact there."""
    profile = tmp_path / "harsh.yaml"
    profile.write_text(
        yaml.safe_dump(
            {"extends": "smoke", "n_experts": 1, "seeds": 1, "recipes": {"adam": {"lr": 1e30}}}
        )
    )
    monkeypatch.setenv("ENGINE", "serial")
    monkeypatch.setenv("STORE", str(tmp_path / "store"))
    assert main(["run", "experts", "--profile", str(profile)]) == 2
    said = capfd.readouterr().err
    assert (
        said.count(
            "expert adam 0 on digits failed: the training loss stopped being finite at step 2 of"
        )
        == 1
    )
    assert (
        said.splitlines()[-1].startswith("ddlib: the training loss stopped being finite")
        and "lower lr; begun again" in said
    )
    optimisers = [
        store.read(file).settings["optimiser"]
        for file in (tmp_path / "store/experts").glob("*.safetensors")
    ]
    assert len(optimisers) == 8 and "adam" not in optimisers
