"""The training loop against a hand-written one over an `nn.Module` and torch.optim; the gradient
penalty against closed forms."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from ddlib.method import augment, networks
from ddlib.method.augment import Draws
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.train import (
    Batch,
    Diverged,
    Epoch,
    accuracy,
    finite,
    gradient,
    gradient_norms,
    optimiser_for,
    ramp,
    train,
)
from ddlib.settings import Network, Recipe, generator

SHAPE, CLASSES, N = (2, 6, 6), 3, 11
SETTINGS = Network(width=3, depth=1)
FLAT = FunctionalNetwork(networks.build(SETTINGS, SHAPE, CLASSES))
SEED = (5, "here")


def recipe_of(**fields):
    """A plain training, but for what is said."""
    plain = {"batch": 4, "weight_decay": 0.0, "drop": 1.0, "strategies": (), "penalty_weight": 0.0}
    return Recipe(**(plain | fields))


def some_data():
    x = torch.randn(N, *SHAPE, generator=generator("x"), dtype=torch.float64)
    return FLAT.initial(generator("theta")).double(), x, torch.arange(N) % CLASSES


def thetas(**recipe):
    theta, x, y = some_data()
    return [
        epoch.theta for epoch in train(FLAT, Epoch.first(theta), x, y, recipe_of(**recipe), SEED)
    ]


def by_hand(make, epochs, factors=None, lrs=None, restart_at=None, strategies=()):
    """Batches of 4 in the order that the seed gives; `factors` scale the loss and `lrs` set the lr,
    epoch by epoch."""
    theta, x, y = some_data()
    module = networks.build(SETTINGS, SHAPE, CLASSES).to_empty(device="cpu").double()
    vector_to_parameters(theta, module.parameters())
    optimiser, path, losses = make(module.parameters()), [], []
    for epoch in range(epochs):
        if epoch == restart_at:
            optimiser = make(module.parameters())
        if lrs:
            optimiser.param_groups[0]["lr"] = lrs[epoch]
        order = torch.randperm(N, generator=generator(*SEED, "order", epoch)).tolist()
        chance, total = generator(*SEED, "augment", epoch), 0.0
        for first in range(0, N, 4):
            batch = order[first : first + 4]
            optimiser.zero_grad()
            seen = augment.apply(x[batch], augment.draw(len(batch), strategies, chance))
            value = (factors[epoch] if factors else 1.0) * F.cross_entropy(module(seen), y[batch])
            value.backward()
            optimiser.step()
            total += float(value.detach()) * len(batch)
        path.append(parameters_to_vector(module.parameters()).detach().clone())
        losses.append(total / N)
    return path, losses


def assert_same_path(one, other):
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


MAKERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.02, weight_decay=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9, weight_decay=0.01),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, weight_decay=0.01),
}


@pytest.mark.parametrize("strategies", [(), ("crop", "color")])
@pytest.mark.parametrize("optimiser", MAKERS)
def test_fit_is_the_loop_one_would_write(optimiser, strategies):
    path, losses = by_hand(MAKERS[optimiser], 3, strategies=strategies)
    theta, x, y = some_data()
    recipe = recipe_of(
        epochs=3, batch=4, lr=0.02, optimiser=optimiser, weight_decay=0.01, strategies=strategies
    )
    epochs = list(train(FLAT, Epoch.first(theta), x, y, recipe, SEED))
    assert_same_path([epoch.theta for epoch in epochs], path)
    assert [epoch.index for epoch in epochs] == [0, 1, 2]
    assert [float(epoch.loss) for epoch in epochs] == pytest.approx(
        losses, rel=1e-6
    )  # the sum of losses is kept in float32
    assert (
        torch.equal(theta, some_data()[0]) and not theta.requires_grad
    )  # the start is left as it was


def test_all_chance_comes_from_the_seed():
    theta, x, y = some_data()
    recipe = recipe_of(epochs=1, batch=4, lr=0.02, strategies=("crop", "color"))
    ends = [
        next(train(FLAT, Epoch.first(theta), x, y, recipe, seed)).theta
        for seed in (SEED, SEED, (6, "here"), (5, "there"))
    ]
    assert (
        torch.equal(ends[0], ends[1])
        and not torch.equal(ends[0], ends[2])
        and not torch.equal(ends[0], ends[3])
    )


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_the_lr_drops_once_past_the_middle_and_the_optimiser_restarts(optimiser):
    """E = 6: epochs 0 ... 4 = E // 2 + 1 at the lr, epoch 5 at 0.6 of it, without memory of what
    went before."""
    lrs = [0.02] * 5 + [0.012]
    dropped = thetas(epochs=6, lr=0.02, optimiser=optimiser, drop=0.6, weight_decay=0.01)
    assert_same_path(dropped, by_hand(MAKERS[optimiser], 6, lrs=lrs, restart_at=5)[0])
    remembered = by_hand(MAKERS[optimiser], 6, lrs=lrs)[0]
    apart = (dropped[5] - remembered[5]).norm()
    assert apart < 1e-12 if optimiser == "sgd" else apart > 1e-4


def test_ramp_is_that_of_the_authors():
    assert [ramp(e, 10) for e in range(14)] == pytest.approx(
        [0.50, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95, 1, 1, 1, 1]
    )
    assert [ramp(e, 2) for e in range(4)] == [0.5, 0.75, 1, 1]


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_the_clipping_loss_scales_the_loss(optimiser):
    path, _ = by_hand(MAKERS[optimiser], 5, factors=[0.5, 0.5 + 1 / 6, 0.5 + 2 / 6, 1, 1])
    assert_same_path(
        thetas(
            epochs=5, lr=0.02, optimiser=optimiser, weight_decay=0.01, ramp="loss", ramp_epochs=3
        ),
        path,
    )


@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_its_control_is_a_warm_up_of_the_lr(optimiser):
    lrs = [0.01, 0.015, 0.02, 0.02, 0.012]
    warmed = thetas(
        epochs=5,
        lr=0.02,
        optimiser=optimiser,
        weight_decay=0.01,
        ramp="lr",
        ramp_epochs=2,
        drop=0.6,
    )
    path, _ = by_hand(
        MAKERS[optimiser], 5, lrs=lrs, restart_at=4
    )  # E = 5: the drop comes after epoch 3
    assert_same_path(warmed, path)


def test_under_plain_sgd_the_clipping_loss_is_that_warm_up():
    for lr in (0.02, 0.1):
        assert_same_path(
            *(
                thetas(epochs=4, lr=lr, optimiser="sgd", ramp=kind, ramp_epochs=3)
                for kind in ("loss", "lr")
            )
        )
    for changes in ({"optimiser": "momentum"}, {"optimiser": "sgd", "weight_decay": 0.1}):
        loss_ramp, lr_ramp = (
            thetas(epochs=4, lr=0.02, ramp=kind, ramp_epochs=3, **changes)[-1]
            for kind in ("loss", "lr")
        )
        assert (loss_ramp - lr_ramp).norm() > 1e-5  # with a memory, or a second force, it is not


def sharp_by_hand(optimiser, rho, alpha, epochs, factors, cost):
    """Sharpness-aware steps as one would first write them: walk uphill, take the gradient there,
    walk back, step."""
    theta, x, y = some_data()
    leaf = theta.clone().requires_grad_()
    chosen, path = MAKERS[optimiser]([leaf]), []

    def grad(point, batch, factor):
        point = point.detach().requires_grad_()
        return torch.autograd.grad(
            factor * F.cross_entropy(FLAT(point, x[batch]), y[batch]) + cost(point, x[batch]), point
        )[0]

    for epoch in range(epochs):
        for batch in torch.randperm(N, generator=generator(*SEED, "order", epoch)).split(4):
            here = grad(leaf, batch, factors[epoch])
            there = grad(leaf + rho * here / here.norm(), batch, factors[epoch])
            along = there / there.norm()
            leaf.grad = there - alpha * (here - (here @ along) * along)
            chosen.step()
        path.append(leaf.detach().clone())
    return path


@pytest.mark.parametrize("alpha", [None, 0.4])
@pytest.mark.parametrize("penalty", ["none", "per_sample"])
@pytest.mark.parametrize("optimiser", MAKERS)
def test_sharp_steps_go_down_the_gradient_uphill(optimiser, penalty, alpha):
    """With every optimiser, the ramp and the penalty: the plain two steps."""

    def cost(theta, x):
        if penalty == "none":
            return 0.0
        x = x.clone().requires_grad_()
        (g,) = torch.autograd.grad(FLAT(theta, x).sum(), x, create_graph=True)
        return 0.5 * (g.flatten(1).norm(dim=1) - 1).square().mean()

    more = {
        "weight_decay": 0.01,
        "ramp": "loss",
        "ramp_epochs": 2,
        "penalty": penalty,
        "penalty_weight": 0.5,
        "penalty_target": 1.0,
    }
    path = thetas(
        epochs=3, lr=0.02, optimiser=optimiser, sharpness=0.3, sharpness_alpha=alpha, **more
    )
    assert_same_path(path, sharp_by_hand(optimiser, 0.3, alpha or 0.0, 3, [0.5, 0.75, 1.0], cost))
    plain = thetas(epochs=3, lr=0.02, optimiser=optimiser, **more)
    assert (path[-1] - plain[-1]).norm() > 1e-3 * (plain[-1] - some_data()[0]).norm()


@pytest.mark.parametrize("alpha", [None, 0.4])
def test_steps_that_look_no_distance_uphill_are_plain_ones(alpha):
    """The way apart shrinks with rho, in proportion."""
    plain = thetas(epochs=2, lr=0.02)[-1]
    apart = [
        (thetas(epochs=2, lr=0.02, sharpness=rho, sharpness_alpha=alpha)[-1] - plain).norm()
        for rho in (1e-4, 1e-5, 1e-6)
    ]
    assert apart[0] > 1e-6 and [float(a / b) for a, b in pairwise(apart)] == pytest.approx(
        [10, 10], rel=0.05
    )


def zero(recipe):
    theta, x, y = some_data()
    return gradient(FLAT, theta, Batch(x, y, Draws(None, torch.empty(3, N))), recipe, factor=0.0)


def test_a_sharp_step_from_a_gradient_of_zero_is_one_of_zero():
    recipe = recipe_of(epochs=1, batch=N, lr=0.1, sharpness=0.1, sharpness_alpha=0.4)
    assert zero(recipe)[1].norm() == 0


@pytest.mark.parametrize("optimiser", MAKERS)
def test_soft_labels_that_are_certain_are_the_classes(optimiser):
    theta, x, y = some_data()
    recipe = recipe_of(epochs=2, batch=4, lr=0.02, optimiser=optimiser, strategies=("crop",))
    hard, soft = (
        [epoch.theta for epoch in train(FLAT, Epoch.first(theta), x, labels, recipe, SEED)]
        for labels in (y, F.one_hot(y, CLASSES).double())
    )
    assert_same_path(soft, hard)


LINEAR = FunctionalNetwork(
    nn.Sequential(nn.Flatten(), nn.Linear(72, CLASSES, dtype=torch.float64))
)  # f = W x + b


@pytest.mark.parametrize("target", [0.0, 1.0, 0.3])
@pytest.mark.parametrize("reading", ["per_pixel", "per_sample"])
def test_the_penalty_of_a_linear_network(reading, target):
    """g = sum_k W_k at every image, so its norms are those of one picture."""
    _, x, y = some_data()
    theta = torch.randn(
        LINEAR.parameters, generator=generator("linear"), dtype=torch.float64, requires_grad=True
    )
    picture = theta[: 72 * CLASSES].view(CLASSES, *SHAPE).sum(0)  # (c, h, w)
    g = LINEAR.input_gradient(theta.detach(), x)
    torch.testing.assert_close(g, picture.detach().expand_as(x))
    norms = picture.norm(dim=0) if reading == "per_pixel" else picture.norm()
    torch.testing.assert_close(gradient_norms(g, reading), norms.detach().expand(N, *norms.shape))
    expected = 0.5 * F.cross_entropy(LINEAR(theta, x), y) + 3.0 * ((norms - target) ** 2).mean()
    recipe = recipe_of(
        epochs=1, batch=4, lr=0.1, penalty=reading, penalty_weight=3.0, penalty_target=target
    )
    value, d_theta = gradient(
        LINEAR, theta.detach(), Batch(x, y, Draws(None, torch.empty(3, N))), recipe, factor=0.5
    )  # the ramp scales the entropy alone
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(d_theta, torch.autograd.grad(expected, theta)[0])


@pytest.mark.parametrize("reading", ["per_pixel", "per_sample"])
def test_the_penalty_moves_theta_as_central_differences_say(reading):
    theta, x, y = some_data()
    recipe = recipe_of(
        epochs=1, batch=4, lr=0.1, penalty=reading, penalty_weight=2.0, penalty_target=1.0
    )
    draws = augment.draw(N, ("crop",), generator("draws"))

    def value(theta):
        return gradient(FLAT, theta, Batch(x, y, draws), recipe)[0]

    d_theta = gradient(FLAT, theta, Batch(x, y, draws), recipe)[1]
    leaf = theta.clone().requires_grad_()
    plain = F.cross_entropy(FLAT(leaf, augment.apply(x, draws)), y)
    from_penalty = d_theta - torch.autograd.grad(plain, leaf)[0]
    for i in from_penalty.abs().argsort(descending=True)[:8].tolist():
        bump = torch.zeros_like(theta)
        bump[i] = 1e-6
        measured = float(value(theta + bump) - value(theta - bump)) / 2e-6
        assert measured == pytest.approx(float(d_theta[i]), rel=1e-5)


@pytest.mark.parametrize("reading", ["per_pixel", "per_sample"])
def test_the_penalty_sees_the_images_as_they_are(reading):
    theta, x, y = some_data()
    recipe = recipe_of(
        epochs=1, batch=4, lr=0.1, penalty=reading, penalty_weight=2.0, penalty_target=1.0
    )
    draws = augment.draw(N, ("crop",), generator("draws"))
    entropy = F.cross_entropy(FLAT(theta, augment.apply(x, draws)), y)
    penalty = 2.0 * (gradient_norms(FLAT.input_gradient(theta, x), reading) - 1).square().mean()
    torch.testing.assert_close(
        gradient(FLAT, theta, Batch(x, y, draws), recipe)[0], entropy + penalty
    )


def test_a_gradient_of_zero_has_a_penalty_with_a_derivative():
    theta, x, y = some_data()
    still = torch.zeros_like(theta)
    for reading in ("per_pixel", "per_sample"):
        recipe = recipe_of(epochs=1, batch=4, lr=0.1, penalty=reading, penalty_weight=2.0)
        assert torch.isfinite(
            gradient(FLAT, still, Batch(x, y, Draws(None, torch.empty(3, N))), recipe)[1]
        ).all()


WAYS = [  # the drop comes after epoch 4 of 6
    {"drop": 0.6},
    {"drop": 0.6, "ramp": "loss", "ramp_epochs": 3},
    {"drop": 0.6, "ramp": "lr", "ramp_epochs": 6},
    {
        "ramp": "lr",
        "ramp_epochs": 3,
        "penalty": "per_sample",
        "penalty_weight": 0.5,
        "strategies": ("crop", "color"),
    },
    {"drop": 0.6, "sharpness": 0.05, "sharpness_alpha": 0.4},
]


@pytest.mark.parametrize("way", WAYS, ids=["drop", "loss ramp", "lr ramp", "penalty", "sharpness"])
@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_a_training_goes_on_after_any_epoch_to_the_same_bytes(optimiser, way):
    theta, x, y = some_data()
    recipe = recipe_of(epochs=6, batch=4, lr=0.02, optimiser=optimiser, weight_decay=0.01, **way)
    whole = list(train(FLAT, Epoch.first(theta), x, y, recipe, SEED))
    for stop in range(6):
        kept = {
            name: part.clone() if isinstance(part, torch.Tensor) else part
            for name, part in whole[stop].state().items()
        }
        assert kept.keys() == set(Epoch.names(recipe))
        rest = list(train(FLAT, Epoch.of(kept, recipe), x, y, recipe, SEED))
        assert [epoch.index for epoch in rest] == list(range(stop + 1, 6))
        for epoch, before in zip(rest, whole[stop + 1 :], strict=True):
            assert all(
                torch.equal(torch.as_tensor(part), torch.as_tensor(before.state()[name]))
                for name, part in epoch.state().items()
            )
    if optimiser != "sgd":
        forgetful = Epoch(0, whole[0].theta, whole[0].loss, {})
        assert not torch.equal(
            next(train(FLAT, forgetful, x, y, recipe, SEED)).theta, whole[1].theta
        )


@pytest.mark.parametrize("until", [1, 4, 6])
def test_a_training_until_an_epoch_is_the_start_of_the_whole(until):
    """With the drop where it was, so that later epochs can still be asked for."""
    theta, x, y = some_data()
    recipe = recipe_of(epochs=6, batch=4, lr=0.02, drop=0.6)
    whole = list(train(FLAT, Epoch.first(theta), x, y, recipe, SEED))
    part = recipe.model_copy(update={"until": until})
    found = list(train(FLAT, Epoch.first(theta), x, y, part, SEED))
    assert len(found) == until
    assert all(torch.equal(a.theta, b.theta) for a, b in zip(found, whole, strict=False))


def first_fault(recipe):
    """(epoch, what), from 1, of the first number that is not finite, looked for after every
    step; in float32, as all work is done."""
    theta, x, y = (t.float() if t.is_floating_point() else t for t in some_data())
    optimiser = optimiser_for(theta, recipe, recipe.lr)
    for epoch in range(recipe.epochs):
        order = torch.randperm(N, generator=generator(*SEED, "order", epoch))
        for batch in order.split(recipe.batch):
            value, theta.grad = gradient(
                FLAT,
                theta,
                Batch(x[batch], y[batch], Draws(None, torch.empty(3, len(batch)))),
                recipe,
            )
            optimiser.step()
            squares = optimiser.state[theta].get("exp_avg_sq", value)
            looked = {
                "training loss": value,
                "gradient": theta.grad,
                "optimiser's exp_avg_sq": squares,
                "parameters": theta,
            }
            for what, part in looked.items():
                if not torch.isfinite(part).all():
                    return epoch + 1, what
    return None


PENALTY = {"penalty": "per_sample", "penalty_weight": 1e30}
FAULTS = [
    ({"lr": 1e30}, "training loss", "lower lr;"),
    ({"lr": 1e30, "optimiser": "adam"}, "training loss", "lower lr;"),
    ({"lr": 1e30, "optimiser": "sgd", "batch": N}, "training loss", "lower lr;"),
    (
        {"lr": 3e38, "weight_decay": 1e4, "batch": N, "epochs": 1},
        "parameters",
        "lower lr;",
    ),  # in the last step of the last epoch
    ({"lr": 0.01} | PENALTY, "training loss", "lower lr or penalty_weight;"),
    (
        {"lr": 0.01, "optimiser": "adam"} | PENALTY,
        "optimiser's exp_avg_sq",
        "lower lr or penalty_weight;",
    ),
    (
        {"lr": 1e30} | PENALTY | {"penalty_weight": 1e-3},
        "training loss",
        "lower lr or penalty_weight;",
    ),
]


@pytest.mark.parametrize("fields, what, advice", FAULTS)
def test_a_training_that_diverges_names_the_epoch_the_quantity_and_the_advice(fields, what, advice):
    theta, x, y = (t.float() if t.is_floating_point() else t for t in some_data())
    recipe = recipe_of(**fields)
    epoch, found = first_fault(recipe)
    assert found == what
    with pytest.raises(Diverged) as caught:
        list(train(FLAT, Epoch.first(theta), x, y, recipe, SEED))
    said = str(caught.value)
    where = f"in epoch {epoch} of {recipe.epochs}"
    assert said.startswith(
        f"the {what} stopped being finite {where} ({recipe.optimiser}, lr {recipe.lr:g}"
    )
    assert advice in said and ("penalty_weight" in said) == (recipe.penalty != "none")


def test_images_that_are_not_finite_are_blamed_themselves():
    theta, x, y = some_data()
    x[3, 0, 0, 0] = torch.inf
    with pytest.raises(Diverged, match="the images themselves are not finite: correct them"):
        list(train(FLAT, Epoch.first(theta), x, y, recipe_of(epochs=1, batch=N, lr=0.01), SEED))


def test_finite_looks_at_every_number():
    for wrong in (torch.nan, torch.inf, -torch.inf):
        for i in (0, 500, 999):
            t = torch.zeros(1000)
            t[i] = wrong
            assert finite(
                torch.ones(()), t, torch.full((3,), 3e38), torch.ones(2, dtype=torch.float64)
            ) == [True, False, True, True]


def test_accuracy_counts():
    theta, x, y = some_data()
    right = sum(int(FLAT(theta, x[i : i + 1]).argmax()) == int(y[i]) for i in range(N))
    for batch in (1, 4, N, 250):
        assert accuracy(FLAT, theta, x, y, batch) == pytest.approx(right / N)
