"""The outer loop of trajectory matching: its window of starts, its average, its soft labels.

And what is said of one whose numbers stop being finite.
"""

from itertools import islice

import pytest
import torch

from ddlib.method.distill import LABEL_MOMENTUM, window
from ddlib.method.train import Diverged
from ddlib.runs import run
from ddlib.runs.run import get
from ddlib.runs.stages import Following, Inputs, OuterLoop
from ddlib.settings import Selection
from tiny import DATA, SET

FTD = SET.model_copy(update={"ema": 0.7})
DATM = SET.model_copy(
    update={
        "labels": "learned",
        "lr_labels": 2.0,
        "start": Selection(data=DATA, method="correct", expert=SET.start.expert),
    }
)


def steps(settings, store, number=6):
    """The state before the outer loop, and its first steps."""
    artefacts = {other: get(other, store) for other in settings.needs()}
    loop = OuterLoop(settings, Inputs(run.images(DATA, store), artefacts))
    return loop.state, list(islice(loop.steps(), number))


def test_the_start_window_grows_as_datms():
    """T- = 0, T = 10, T+ = 20 over 1000 iterations, as published for CIFAR-10 at IPC 10."""
    grows = {"start_epochs": 20, "early_epochs": 10, "growth": 1000}
    late = SET.model_copy(update=grows)
    ends = [window(late, t) for t in (0, 99, 100, 550, 999, 1000, 9999)]
    assert ends == [(0, last) for last in (10, 10, 11, 15, 19, 20, 20)]
    assert window(late.model_copy(update={"first_start": 4}), 0) == (4, 10)
    assert window(SET, 7) == (0, SET.start_epochs)


def test_starts_lie_in_the_window(halfway):
    grows = {"first_start": 1, "early_epochs": 2, "growth": 3, "start_epochs": 3}
    settings = SET.model_copy(update=grows | {"matched_epochs": 1})
    starts = [step.start for step in steps(settings, halfway)[1]]
    windows = [window(settings, t) for t in range(6)]
    for start, (first, last) in zip(starts, windows, strict=True):
        assert first <= start < last
    assert set(starts) == {1, 2}


def test_the_average_is_its_closed_form_and_changes_no_step(halfway):
    """A_t = d^t S_0 + (1 - d) sum_i d^(t - i) S_i; the images go as without it."""
    first, averaged = steps(FTD, halfway)
    plain, d = steps(SET, halfway)[1], FTD.ema
    images = [first.images, *(step.state.images for step in averaged)]
    for t, step in enumerate(averaged, 1):
        sum_ = sum(d ** (t - i) * images[i] for i in range(1, t + 1))
        state, other = step.state, plain[t - 1].state
        torch.testing.assert_close(state.average, d**t * images[0] + (1 - d) * sum_)
        assert torch.equal(state.images, other.images) and other.average is None
        assert state.kept is state.average and (state.kept - state.images).norm() > 0
    history = get(FTD, halfway).tensors["history"]  # at iterations 0, 2, 4, 6
    for i in (1, 2, 3):
        assert torch.equal(history[i], averaged[2 * i - 1].state.average)


def test_learned_labels_start_as_an_experts_and_go_down_their_gradient(halfway):
    first, (one, two) = steps(DATM, halfway, 2)
    real, start = run.images(DATA, halfway), get(DATM.start, halfway).tensors
    inputs = Inputs(real, {})
    end = get(DATM.experts.at(DATM.seed % 2), halfway).tensors["path"][-1]
    torch.testing.assert_close(first.labels, inputs.network(DATM.network)(end, start["images"]))
    one, two = one.state, two.state
    torch.testing.assert_close(one.labels, first.labels - DATM.lr_labels * one.v_labels)
    torch.testing.assert_close(two.labels, one.labels - DATM.lr_labels * two.v_labels)
    assert one.v_labels.norm() > 0
    assert (two.v_labels - LABEL_MOMENTUM * one.v_labels).norm() > 0


def test_soft_labels_are_kept_followed_and_can_be_left_aside(halfway):
    from ddlib.method.evaluate import SyntheticSet

    made = get(DATM, halfway)
    soft, hard = (SyntheticSet.of(made, hard) for hard in (False, True))
    assert torch.equal(soft.labels, made.tensors["soft"].softmax(1))
    assert hard.labels is made.tensors["labels"] and hard.labels.tolist() == list(range(10))
    errors = [row["error"] for row in get(Following(of=DATM), halfway).record["rows"]]
    assert len(errors) == 6 and all(0 < error < 10 for error in errors)


DIVERGING = {  # what is changed -> what may overflow first, and what is to be lowered
    "lr_images": (1e30, "gradient for the images", ": lower a0, lr_images or lr_lr"),
    "a0": (1e10, "student's parameters", ": lower a0, lr_images or lr_lr"),
    "lr_lr": (1.0, "inner lr", ": lower lr_lr first, then a0"),
}


@pytest.mark.parametrize("field", DIVERGING)
def test_an_outer_loop_that_diverges_names_iteration_quantity_and_advice(field, halfway):
    value, what, advice = DIVERGING[field]
    settings = SET.model_copy(update={field: value})
    with pytest.raises(Diverged) as caught:
        steps(settings, halfway)
    text = str(caught.value)
    assert text.startswith(f"the {what} stopped being finite at outer iteration "), text
    assert advice in text and "the last good state is kept" in text, text
