"""Balance factors, which step answers to which epoch, and the objective against a plain loop."""

import math

import pytest
import torch

from ddlib.method import networks
from ddlib.method.distill import begin, distill
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.student import balance, matched_steps, objective
from ddlib.settings import (
    Data,
    Distillation,
    Expert,
    InputError,
    Network,
    Selection,
    generator,
    validated,
)

DATA = Data(name="digits")


@pytest.mark.parametrize("t_max", [1, 2, 3, 20, 41])
def test_balance_is_its_formula(t_max):
    """In the other base: log_5 y = ln y / ln 5."""
    m = t_max // 2
    for s in range(t_max):
        log5 = math.log(8 + abs(s - m)) / math.log(5)
        assert balance(s, t_max) == pytest.approx(log5 if s >= m else 1 / log5, rel=1e-14)


def test_balance_jumps_at_the_middle_and_grows_away_from_it():
    t_max, m = 20, 10
    w = [balance(s, t_max) for s in range(t_max)]
    assert (round(w[m - 1], 2), round(w[m], 2)) == (0.73, 1.29)
    assert w == sorted(w) and all(v < 1 for v in w[:m]) and all(v > 1 for v in w[m:])
    assert balance(0, 1) == pytest.approx(
        math.log2(8) / math.log2(5)
    )  # a T_max of 1 has only its middle


@pytest.mark.parametrize("steps, epochs", [(20, 2), (7, 3), (10, 4), (5, 5), (3, 1)])
def test_matched_steps(steps, epochs):
    last = {steps: epochs}
    assert matched_steps(steps, epochs, "none") == last
    for intermediate in ("equal", "adaptive"):
        way = matched_steps(steps, epochs, intermediate)
        assert way.pop(steps) == epochs
        each = steps // epochs
        assert way == dict(
            zip(range(each, each * epochs, each), range(1, epochs), strict=True)
        )  # M - 1 of them, each before N


def test_the_last_step_is_matched_though_M_does_not_divide_N():
    assert matched_steps(7, 3, "equal") == {2: 1, 4: 2, 7: 3}


@pytest.mark.parametrize("intermediate", ["none", "equal", "adaptive"])
@pytest.mark.parametrize("steps, epochs", [(6, 3), (7, 3), (4, 1)])
def test_objective_is_the_plain_loop(steps, epochs, intermediate):
    path = torch.randn(steps + 1, 11, generator=generator("path"), dtype=torch.float64)
    expert = torch.randn(epochs + 1, 11, generator=generator("expert"), dtype=torch.float64)

    def share(k, i):
        return sum(
            (a - b) ** 2 for a, b in zip(path[k].tolist(), expert[i].tolist(), strict=True)
        ) / sum((a - b) ** 2 for a, b in zip(path[0].tolist(), expert[i].tolist(), strict=True))

    total = share(steps, epochs)
    for i in range(1, epochs if intermediate != "none" else 1):
        total += {"equal": 1.0, "adaptive": i / epochs}[intermediate] * share(
            i * (steps // epochs), i
        )
    assert float(
        objective(path, expert, matched_steps(steps, epochs, intermediate), intermediate)
    ) == pytest.approx(total, rel=1e-13)


def test_a_student_that_lands_on_its_expert_has_no_loss_and_one_that_stays_has_one_a_term():
    expert = torch.randn(4, 5, generator=generator("expert"), dtype=torch.float64)
    matched = matched_steps(3, 3, "equal")
    assert objective(expert, expert, matched, "equal") == 0
    stays = torch.zeros(4, 5, dtype=torch.float64)
    assert float(objective(stays, expert, matched, "equal")) == pytest.approx(3)
    assert float(objective(stays, expert, matched, "adaptive")) == pytest.approx(1 / 3 + 2 / 3 + 1)


def test_the_normaliser_is_the_perturbed_start():
    expert = torch.tensor([[0.0], [1.0]])
    assert float(objective(torch.tensor([[-1.0], [0.0]]), expert, {1: 1}, "none")) == pytest.approx(
        1 / 4
    )  # not 1 / 1


def test_an_expert_that_stands_still_is_refused():
    flat = FunctionalNetwork(networks.build(Network(width=2, depth=1), (1, 4, 4), 2))
    theta = flat.initial(generator("theta"))
    given = {
        "experts": Expert(data=DATA),
        "n_experts": 1,
        "start": Selection(data=DATA, method="real"),
        "inner_steps": 2,
        "matched_epochs": 2,
    }
    images, labels = torch.randn(2, 1, 4, 4, generator=generator("images")), torch.arange(2)

    def outer(intermediate, expert):
        settings = Distillation(**given, intermediate=intermediate)
        return next(
            distill(settings, flat, lambda i, s, m: expert, labels, (), begin(settings, images))
        )

    with pytest.raises(
        InputError,
        match=r"expert epoch s \+ 1 equals the student's start.*check that the expert moves",
    ):
        outer("equal", torch.stack([theta, theta, theta + 1]))
    assert (
        outer("none", torch.stack([theta, theta, theta + 1])).loss > 0
    )  # epoch 1 is not asked for
    assert outer("equal", torch.stack([theta, theta + 1, theta + 2])).loss > 0


def test_fewer_steps_than_epochs_are_refused():
    fields = {
        "experts": Expert(data=DATA),
        "start": Selection(data=DATA, method="real"),
        "matched_epochs": 5,
    }
    with pytest.raises(
        InputError, match=r"inner_steps N = 4 is below matched_epochs M = 5.*raise N or lower M"
    ):
        validated(Distillation, fields | {"inner_steps": 4}, "a set")
    validated(Distillation, fields | {"inner_steps": 5}, "a set")
