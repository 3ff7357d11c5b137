"""The gradient at constant memory is that of the full unroll, and both are what central differences
measure; TESLA's is what its definition says."""

from dataclasses import replace

import pytest
import torch

from ddlib.method import functional, student
from ddlib.method.augment import STRATEGIES
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.student import (
    EXACT,
    GRADIENTS,
    balance,
    batches,
    inner_loss,
    matched_steps,
    objective,
)
from ddlib.settings import Data, Distillation, Expert, Network, Selection, generator

SHAPE, CLASSES, START = (2, 8, 8), 3, 4
DATA = Data(name="digits")
FLAT = FunctionalNetwork(functional.networks.build(Network(width=3, depth=2), SHAPE, CLASSES))
FUSED = functional.network(Network(width=8, depth=2), SHAPE, CLASSES)
LR = torch.tensor(0.05, dtype=torch.float64)


def by(form):
    """A form of the gradient that takes the parts of an inner loop by name."""

    def call(images, lr, loss, theta, steps, momentum, objective, matched):
        loop = student.InnerLoop(loss, theta, images, lr, steps, momentum)
        return form(loop, objective, matched)

    return call


def path(loss, theta, images, lr, steps, momentum, differentiable=True):
    """theta_0 ... theta_N, with derivatives or without."""
    loop = student.InnerLoop(loss, theta, images, lr, steps, momentum)
    return student.path(loop) if differentiable else [theta, *student.walk(loop)]


def step_loss(loss, theta, images, k):
    """The loss of step k."""
    (x,) = loss.seen(images, [k])
    return loss(theta, x, k)


adjoint, unroll, tesla = map(by, (student.adjoint, student.unroll, student.tesla))


def problem(
    strategies=tuple(STRATEGIES), steps=7, momentum=0.9, t=0, soft=False, net=FLAT, **changes
):
    """All that a gradient function takes but the images and the lr: six images, an expert of M + 1
    nearby points, float64."""
    fields = {"matched_epochs": 3, "start_epochs": 6} | changes
    settings = Distillation(
        experts=Expert(data=DATA),
        start=Selection(data=DATA, method="real"),
        inner_steps=steps,
        momentum=momentum,
        **fields,
    )
    labels = (
        torch.randn(6, CLASSES, generator=generator("labels"), dtype=torch.float64)
        if soft
        else torch.arange(CLASSES).repeat_interleave(2)
    )
    moves = 0.03 * torch.randn(
        settings.matched_epochs + 1,
        net.parameters,
        generator=generator("expert"),
        dtype=torch.float64,
    )
    theta = net.initial(generator("theta")).double()
    expert = theta + moves.cumsum(0)
    matched = matched_steps(steps, settings.matched_epochs, settings.intermediate)
    loss = inner_loss(net, labels, settings, strategies, START, t)
    return {
        "loss": loss,
        "theta": theta,
        "steps": steps,
        "momentum": momentum,
        "objective": lambda path: objective(path, expert, matched, settings.intermediate),
        "matched": list(matched),
    }


def some_images():
    return torch.randn(6, *SHAPE, generator=generator("images"), dtype=torch.float64)


def assert_same(one, other, tolerance=1e-10):
    for name in one._fields:
        a, b = getattr(one, name), getattr(other, name)
        if name == "labels" and b is None:
            assert a is None
            continue
        assert a.shape == b.shape and (a - b).norm() <= tolerance * b.norm(), name
        assert b.norm() > 0, f"{name} is zero: nothing was compared"


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("intermediate", ["none", "equal", "adaptive"])
@pytest.mark.parametrize("batch", [None, 4])  # four of six: batches of 4, 2, 4, 2 ...
def test_adjoint_is_the_unroll(momentum, intermediate, batch):
    given = problem(momentum=momentum, intermediate=intermediate, batch=batch)
    assert_same(
        adjoint(images=some_images(), lr=LR, **given), unroll(images=some_images(), lr=LR, **given)
    )


@pytest.mark.parametrize("strategies", [(), *((name,) for name in STRATEGIES)])
def test_adjoint_is_the_unroll_through_every_augmentation(strategies):
    given = problem(strategies, intermediate="equal", balance=True)
    assert_same(
        adjoint(images=some_images(), lr=LR, **given), unroll(images=some_images(), lr=LR, **given)
    )


def test_one_step_and_one_epoch():
    given = problem(steps=1, matched_epochs=1)
    assert_same(
        adjoint(images=some_images(), lr=LR, **given), unroll(images=some_images(), lr=LR, **given)
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("net", [FLAT, FUSED], ids=["plain", "fused"])
def test_adjoint_is_the_unroll_with_soft_labels(net, momentum, batch):
    given = problem(
        net=net, soft=True, momentum=momentum, intermediate="equal", batch=batch, balance=True
    )
    found = adjoint(images=some_images(), lr=LR, **given)
    assert_same(found, unroll(images=some_images(), lr=LR, **given))
    assert (
        found.labels.shape == (6, CLASSES)
        and found.labels.sum(1).abs().max() < 1e-12 * found.labels.norm()
    )  # a softmax does not see a row's mean


@pytest.mark.parametrize(
    "form, net",
    [(adjoint, FLAT), (adjoint, FUSED), (unroll, FLAT)],
    ids=["adjoint", "fused adjoint", "unroll"],
)
def test_central_differences_in_soft_labels_images_and_lr(form, net):
    given, images, h = (
        problem(net=net, soft=True, intermediate="equal", batch=4),
        some_images(),
        1e-6,
    )
    gradient, labels = form(images=images, lr=LR, **given), given["loss"].labels

    def value(labels, images, lr):
        walked = path(
            replace(given["loss"], labels=labels),
            given["theta"],
            images,
            lr,
            given["steps"],
            given["momentum"],
            differentiable=False,
        )
        return float(given["objective"](walked))

    at = (labels, images, LR)
    for i, d in enumerate((gradient.labels, gradient.images, gradient.lr)):
        bumps = (
            [torch.ones_like(d)]
            if d.dim() == 0
            else [
                torch.randn(d.shape, generator=generator("bump", j), dtype=d.dtype)
                for j in range(3)
            ]
        )
        for bump in bumps:
            up, down = (
                [t + sign * h * bump if i == j else t for j, t in enumerate(at)] for sign in (1, -1)
            )
            assert (value(*up) - value(*down)) / (2 * h) == pytest.approx(
                float((d * bump).sum()), rel=1e-5
            )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("intermediate", ["none", "adaptive"])
@pytest.mark.parametrize(
    "net, soft", [(FLAT, False), (FLAT, True), (FUSED, True)], ids=["hard", "soft", "fused soft"]
)
def test_tesla_holds_the_path_of_the_step_gradients_fixed(net, soft, intermediate, momentum):
    """Automatic differentiation through theta_n = theta_0 - a sum of b_k, of gradients at points
    that are numbers; not the gradient itself."""
    given, images, lr = (
        problem(net=net, soft=soft, momentum=momentum, intermediate=intermediate, batch=4),
        some_images().requires_grad_(),
        LR.clone().requires_grad_(),
    )
    loss, labels = given["loss"], given["loss"].labels
    if soft:
        loss = replace(loss, labels=labels.clone().requires_grad_())
    fixed = [
        theta.detach() for theta in path(loss, given["theta"], images, lr, given["steps"], momentum)
    ]
    visited, b = [given["theta"]], torch.zeros_like(given["theta"])
    for k in range(1, given["steps"] + 1):
        leaf, (x,) = fixed[k - 1].requires_grad_(), loss.seen(images, [k])
        b = momentum * b + torch.autograd.grad(loss(leaf, x, k), leaf, create_graph=True)[0]
        visited.append(visited[-1] - lr * b)
    value = given["objective"](visited)
    expected = torch.autograd.grad(value, [images, lr, *([loss.labels] if soft else [])])
    found = tesla(images=some_images(), lr=LR, **given)
    for a, d in zip(
        (found.images, found.lr, *([found.labels] if soft else [])), expected, strict=True
    ):
        assert (a - d).norm() <= 1e-10 * d.norm() and d.norm() > 0
    exact = adjoint(images=some_images(), lr=LR, **given)
    assert torch.equal(found.value, exact.value) and torch.equal(found.end, exact.end)
    assert (found.images - exact.images).norm() > 1e-3 * exact.images.norm()


def test_of_one_step_tesla_drops_nothing():
    given = problem(steps=1, matched_epochs=1)
    assert_same(
        tesla(images=some_images(), lr=LR, **given), adjoint(images=some_images(), lr=LR, **given)
    )


def test_only_the_exact_forms_are_called_so():
    assert set(GRADIENTS) - set(EXACT) == {"tesla"} and set(EXACT) == {"adjoint", "unroll"}


@pytest.mark.parametrize("form", [adjoint, unroll])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_central_differences(form, momentum):
    given = problem(momentum=momentum, intermediate="adaptive", batch=4, balance=True)
    images, h = some_images(), 1e-6
    gradient = form(images=images, lr=LR, **given)

    def value(images, lr):
        walked = path(
            given["loss"],
            given["theta"],
            images,
            lr,
            given["steps"],
            momentum,
            differentiable=False,
        )
        return float(given["objective"](walked))

    steepest = gradient.images.flatten().abs().argsort(descending=True)[:4].tolist()
    for i in [*steepest, 17, 300]:
        bump = torch.zeros_like(images).flatten().index_fill(0, torch.tensor(i), h).view_as(images)
        measured = (value(images + bump, LR) - value(images - bump, LR)) / (2 * h)
        assert measured == pytest.approx(float(gradient.images.flatten()[i]), rel=1e-5, abs=1e-8)
    measured = (value(images, LR + h) - value(images, LR - h)) / (2 * h)
    assert measured == pytest.approx(float(gradient.lr), rel=1e-6)
    assert value(images, LR) == pytest.approx(float(gradient.value), rel=1e-12)


@pytest.mark.parametrize("differentiable", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_path_is_that_of_torch_optim(momentum, differentiable):
    given, images = problem(momentum=momentum, batch=4), some_images()
    walked = path(
        given["loss"], given["theta"], images, LR, given["steps"], momentum, differentiable
    )
    assert len(walked) == given["steps"] + 1
    theta = given["theta"].clone().requires_grad_()
    optimiser = torch.optim.SGD([theta], lr=float(LR), momentum=momentum)
    for k, visited in enumerate(walked):
        torch.testing.assert_close(visited.detach(), theta.detach(), rtol=1e-12, atol=1e-14)
        if k < given["steps"]:
            optimiser.zero_grad()
            step_loss(given["loss"], theta, images, k + 1).backward()
            optimiser.step()


def test_a_balanced_loss_is_an_inner_lr_that_depends_on_the_start():
    w = balance(START, 6)
    weighted = adjoint(images=some_images(), lr=LR, **problem(balance=True))
    faster = adjoint(images=some_images(), lr=LR * w, **problem(balance=False))
    plain = adjoint(images=some_images(), lr=LR, **problem(balance=False))
    for name, factor in {"value": 1, "end": 1, "images": 1, "lr": w}.items():
        torch.testing.assert_close(
            getattr(weighted, name), factor * getattr(faster, name), rtol=1e-10, atol=1e-14
        )
    assert (weighted.end - plain.end).norm() > 1e-3 * (plain.end - problem()["theta"]).norm()


@pytest.mark.parametrize("n, size, steps", [(6, 4, 7), (10, 5, 4), (7, 3, 2)])
def test_batches_walk_through_all_images_in_shuffled_order(n, size, steps):
    walked = batches(n, size, steps, generator("walk"))
    assert len(walked) == steps
    each = -(-n // size)  # steps a walk
    walks = [torch.cat(walked[i : i + each]).tolist() for i in range(0, steps - each + 1, each)]
    assert all(sorted(walk) == list(range(n)) for walk in walks) and len(
        {tuple(walk) for walk in walks}
    ) == len(walks)
    assert all(len(batch) in (size, n % size) for batch in walked)


def test_a_set_that_fits_is_seen_whole():
    for size in (None, 6, 9):
        assert [batch.tolist() for batch in batches(6, size, 3, generator("walk"))] == [
            list(range(6))
        ] * 3


@pytest.mark.parametrize(
    "strategies, batch", [((), 4), (("crop",), None)]
)  # the batches; the augmentation
def test_an_outer_iteration_replays_its_chance_and_another_draws_anew(strategies, batch):
    losses = [
        [float(step_loss(given["loss"], given["theta"], some_images(), k)) for k in range(1, 8)]
        for given in (problem(strategies, batch=batch, t=t) for t in (0, 0, 1))
    ]
    assert losses[0] == losses[1] and all(a != b for a, b in zip(losses[0], losses[2], strict=True))


def test_how_many_steps_are_augmented_at_once_is_no_matter(monkeypatch):
    found = []
    for size in (1, 3 * some_images().nbytes, 1 << 30):
        monkeypatch.setattr(student, "SEEN", size)
        found.append(adjoint(images=some_images(), lr=LR, **problem(batch=4)))
    for other in found[1:]:
        assert torch.equal(other.end, found[0].end)
        torch.testing.assert_close(other.images, found[0].images, rtol=1e-12, atol=1e-15)


def test_arguments_stay_as_they_were():
    for form in map(by, GRADIENTS.values()):
        given, images, lr = problem(soft=True), some_images(), LR.clone()
        form(images=images, lr=lr, **given)
        assert (
            torch.equal(images, some_images())
            and torch.equal(lr, LR)
            and torch.equal(given["theta"], problem()["theta"])
        )
        assert (
            torch.equal(given["loss"].labels, problem(soft=True)["loss"].labels)
            and not given["loss"].labels.requires_grad
        )
        assert (
            not images.requires_grad and not lr.requires_grad and not given["theta"].requires_grad
        )
