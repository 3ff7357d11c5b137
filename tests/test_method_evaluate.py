"""The learning rate that a set is judged with: chosen from one grid, which widens where it must."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from ddlib.method.evaluate import FEW, MOST, WIDER, SyntheticSet, choose, evaluate
from ddlib.method.functional import network
from ddlib.runs import run
from ddlib.runs.run import get
from ddlib.settings import LRS
from tiny import DATA, NET, ROWS, SET


def peak(best):
    """A validation accuracy that is highest at `best`, and how often each lr was asked for."""
    asked = []

    def judge(lr, seed):
        asked.append(lr)
        return 1 / (1 + max(lr / best, best / lr))

    return judge, asked


@pytest.mark.parametrize("best", [0.0003, 0.003, 0.01, 0.1, 0.3, 0.9])
def test_the_best_lr_is_found_inside_the_grid_and_beyond_it(best):
    judge, asked = peak(best)
    choice = choose(LRS, 2, judge)
    assert choice.lr / best == pytest.approx(1, rel=0.12) and not choice.at_edge
    assert choice.networks == 2 and choice.ties == 1
    assert all(asked.count(lr) == 2 for lr in asked)


@pytest.mark.parametrize("better", [1, -1])
def test_a_best_that_is_never_inside_is_said_to_be_at_the_edge(better):
    choice = choose(LRS, 1, lambda lr, seed: lr**better)
    end = LRS[-1] * WIDER**MOST if better > 0 else LRS[0] / WIDER**MOST
    assert choice.lr == pytest.approx(end) and choice.at_edge


def test_of_equals_the_middle_one_is_taken_and_their_number_said():
    choice = choose(LRS, 1, lambda lr, seed: 0.5)
    assert (choice.lr, choice.ties, choice.at_edge) == (0.01, len(LRS), False)
    choice = choose(LRS, 1, lambda lr, seed: float(lr >= 0.03))
    assert choice.lr >= 0.03 and choice.ties >= 2


def test_the_last_images_are_those_that_the_outer_loop_left():
    history, soft = torch.rand(3, 2, 1, 4, 4), torch.rand(3, 2, 5)
    tensors = {"images": history[1], "labels": torch.arange(2), "soft": soft[1]}
    tensors |= {"history": history, "soft_history": soft}
    record = {"lr": 0.1, "curve": [{"lr": 0.1}, {"lr": 0.2}]}
    made = SimpleNamespace(tensors=tensors, record=record)
    chosen, last = SyntheticSet.of(made), SyntheticSet.of(made, last=True)
    assert torch.equal(chosen.images, history[1]) and chosen.lr == 0.1
    assert torch.equal(last.images, history[2]) and last.lr == 0.2
    assert torch.equal(last.labels, soft[2].softmax(1))
    assert torch.equal(SyntheticSet.of(made, hard=True, last=True).labels, torch.arange(2))
    del tensors["history"]  # of a coreset there is one state only
    assert torch.equal(SyntheticSet.of(made, last=True).images, history[1])


def test_one_lr_is_no_choice():
    choice = choose((0.05,), 3, lambda lr, seed: pytest.fail("nothing is to be tried"))
    assert (choice.lr, choice.networks, choice.at_edge) == (0.05, 0, False)


@pytest.mark.parametrize("few", [True, False])
def test_with_few_validation_images_every_set_keeps_its_own_lr(done, caplog, few):
    real = run.images(DATA, done)
    left = FEW - few
    real = replace(real, x_val=real.x_val[:left], y_val=real.y_val[:left])
    how = ROWS.model_copy(update={"networks": 1, "epochs": 1})
    made = SyntheticSet.of(get(SET, done))
    chosen, learned = evaluate(how, network(NET, real.shape, real.classes), made, real)
    assert ((chosen["lr_networks"] == 0) == few) and learned["lr"] == made.lr
    assert (f"{left} validation images are too few" in caplog.text) == few
    assert not few or chosen["lr"] == made.lr
    how = how.model_copy(update={"of": SET.start})  # of the images that were picked, too
    (picked,) = evaluate(how, network(NET, real.shape, real.classes), replace(made, lr=0.02), real)
    assert (picked["lr"] == 0.02 and picked["lr_networks"] == 0) == few


def test_looks_on_the_way_change_no_accuracy(done):
    real, made = run.images(DATA, done), SyntheticSet.of(get(SET, done))
    judge = network(NET, real.shape, real.classes)
    once, often = (
        evaluate(ROWS.model_copy(update={"looks": n}), judge, made, real) for n in (1, 4)
    )
    for one, other in zip(once, often, strict=True):
        best = [[row.pop(f"best_on_{by}") for by in ("validation", "test")] for row in (one, other)]
        assert one == other and best[0] == [one["accuracy"]] * 2
        assert best[1][1] >= max(best[1][0], one["accuracy"])
