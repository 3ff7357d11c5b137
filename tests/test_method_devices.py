"""What a GPU wants: steps that stay on their device, compile as one graph, batch over networks, and
run in mixed precision.

No GPU is needed: tensors of PyTorch's `meta` device have no values, so any look at them from the
CPU is an error.
"""

import pytest
import torch

from ddlib.method import augment, functional, student
from ddlib.method.fast.convnet import FastConvNet
from ddlib.method.functional import CrossEntropy, FunctionalNetwork
from ddlib.method.student import inner_loss, matched_steps, objective
from ddlib.method.train import Batch, gradient, gradient_norms, optimiser_for
from ddlib.settings import Data, Distillation, Expert, Network, Recipe, Selection, generator

SHAPE, K, N = (3, 16, 16), 4, 6
NET = functional.network(Network(width=8, depth=2), SHAPE, K)
MODULE = NET.module
EVERY = tuple(augment.STRATEGIES)


def cost(g):
    return (gradient_norms(g, "per_sample") - 1).square().sum() / N


def problem(device="cpu", n=N):
    theta = NET.initial(generator("theta"))
    x = torch.randn(n, *SHAPE, generator=generator("x"))
    return theta.to(device), x.to(device), (torch.arange(n) % K).to(device)


def test_the_meta_device_fails_on_tensors_left_behind():
    """So that the tests below can fail."""
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones(2, device="meta") + torch.ones(2)
    with pytest.raises(RuntimeError, match="meta"):
        float(torch.ones((), device="meta"))


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("optimiser", ["sgd", "momentum", "adam"])
def test_an_expert_step_stays_on_its_device(optimiser, strategy):
    theta, x, y = problem("meta")
    penalty = {"penalty": "per_sample", "penalty_weight": 2.0}
    recipe = Recipe(epochs=1, batch=4, lr=0.01, optimiser=optimiser, **penalty)
    chosen = optimiser_for(theta, recipe, recipe.lr)
    draws = augment.draws([len(x)], (strategy,), generator("draws"), "meta")[0]
    value, theta.grad = gradient(NET, theta, Batch(x, y, draws), recipe, 0.5)
    chosen.step()
    assert value.device.type == "meta" and theta.device.type == "meta"


@pytest.mark.parametrize("strategy", EVERY)
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_inner_and_adjoint_steps_stay_on_their_device(soft, batch, strategy):
    theta, images, labels = problem("meta", 2 * K)
    labels = torch.empty(2 * K, K, device="meta") if soft else labels
    data = Data(name="digits")
    fields = {
        "inner_steps": 3,
        "matched_epochs": 2,
        "start_epochs": 3,
        "batch": batch,
        "balance": True,
        "intermediate": "adaptive",
    }
    settings = Distillation(
        experts=Expert(data=data), start=Selection(data=data, method="real"), **fields
    )
    loss = inner_loss(NET, labels, settings, (strategy,), 1, 0)
    lr, matched = torch.tensor(0.01, device="meta"), matched_steps(3, 2, "adaptive")
    loop = student.InnerLoop(loss, theta, images, lr, 3, 0.9)
    walked = list(student.walk(loop))
    assert all(point.device.type == "meta" for point in walked)
    target = torch.empty(3, len(theta), device="meta")
    found = student.adjoint(
        loop, lambda path: objective(path, target, matched, "adaptive"), list(matched)
    )
    assert (found.labels is not None) == soft and all(
        part.device.type == "meta" for part in found if part is not None
    )
    assert found.images.shape == images.shape and found.lr.shape == ()


def test_evaluation_stays_on_its_device():
    theta, x, y = problem("meta")
    assert (NET.logits(theta, x).argmax(1) == y).sum().device.type == "meta"


STEPS = {
    "gradient": lambda net, theta, x, y: net.gradient(theta, x, CrossEntropy(y)),
    "pull": lambda net, theta, x, y: net.pull(theta, x, CrossEntropy(y), theta),
    "penalty": lambda net, theta, x, y: net.penalty(theta, x, cost),
}


@pytest.mark.parametrize("step", STEPS)
def test_steps_compile_as_one_graph(step):
    """Captured whole, with its derivatives; which code is made of the graph is the device's affair.
    Captured whole, with its derivatives; which code is made of the graph is the device's affair."""
    given = (FunctionalNetwork(MODULE), *problem())
    compiled = torch.compile(STEPS[step], fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(*given), STEPS[step](*given), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("step", STEPS)
def test_networks_batch_on_one_device(step):
    """`torch.vmap` over the parameters of several networks: each as it would be alone."""
    net, (theta, x, y) = FunctionalNetwork(MODULE), problem()
    thetas = theta + 0.05 * torch.randn(3, len(theta), generator=generator("thetas"))
    together = torch.vmap(lambda theta: STEPS[step](net, theta, x, y))(thetas)
    for i, one in enumerate(thetas):
        for a, b in zip(together, STEPS[step](net, one, x, y), strict=True):
            torch.testing.assert_close(a[i], b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_mixed_precision_is_near_full_precision_and_not_it(step):
    full, mixed = NET, FunctionalNetwork(MODULE, "bfloat16")
    assert type(full) is FastConvNet and type(mixed) is FunctionalNetwork
    given = problem()
    for a, b in zip(STEPS[step](mixed, *given), STEPS[step](full, *given), strict=True):
        assert a.dtype == b.dtype == torch.float32 and a.shape == b.shape
        assert 1e-5 < float((a - b).norm() / b.norm()) < 0.05
