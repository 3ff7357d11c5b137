"""The derivatives by hand are those of automatic differentiation, in every shape; where the kernels
do not fit, plain PyTorch is used and said so."""

import logging
import os
import subprocess
import sys
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import plain
from ddlib.method import augment, networks, student
from ddlib.method.fast import convnet as fused
from ddlib.method.fast import kernels
from ddlib.method.fast.convnet import FastConvNet
from ddlib.method.functional import CrossEntropy, FunctionalNetwork, network
from ddlib.method.train import Epoch, gradient_norms, train
from ddlib.runs import machine
from ddlib.settings import Network, Recipe, generator

# images, width, depth: CIFAR's, MNIST's, odd edges dropped, few and many channels, one block, one
# pixel, rows longer than what is summed at once, widths that fill no vector
SHAPES = [
    ((3, 32, 32), 16, 3),
    ((1, 28, 28), 8, 3),
    ((3, 7, 9), 8, 2),
    ((2, 5, 11), 1, 1),
    ((6, 12, 6), 13, 2),
    ((1, 2, 2), 33, 1),
    ((9, 3, 70), 5, 1),
]
K, N, WEIGHT = 5, 7, 1.3


def problem(shape, width, depth, dtype=torch.float64, n=N):
    """The fused network, the plain one, theta, images, labels, a direction; theta is far enough
    from its start for every term to count."""
    module = networks.build(Network(width=width, depth=depth), shape, K)
    net, chance = fused.FastConvNet(module), generator("fused", *shape, width, depth)
    theta = net.initial(chance).double()
    theta += 0.1 * torch.randn(theta.shape, generator=chance, dtype=torch.float64)
    x = torch.randn(n, *shape, generator=chance, dtype=torch.float64)
    rho = torch.randn(theta.shape, generator=chance, dtype=torch.float64)
    theta, x, rho = (t.to(dtype) for t in (theta, x, rho))
    return (
        net,
        plain.ConvNet(shape, K, width, depth).load(theta),
        theta,
        x,
        torch.arange(n) % K,
        rho,
    )


def cost(reading):
    """The gradient penalty of 7 images, per image and pixel."""

    def value(g):
        norms = gradient_norms(g, reading)
        return 2.0 / (N * norms[0].numel()) * (norms - 0.3).square().sum()

    return value


def assert_close(one, other, tolerance=1e-10):
    for a, b in zip(one, other, strict=True):
        assert a.shape == b.shape and b.norm() > 0
        assert (a - b).norm() <= tolerance * b.norm(), float((a - b).norm() / b.norm())


@pytest.fixture(autouse=True)
def kernels_are_there():
    assert kernels.library(torch.float64) is not None, (
        "these tests are about the kernels: install a C compiler (cc or gcc), or set CC"
    )


@pytest.mark.parametrize("shape, width, depth", SHAPES)
def test_derivatives_are_those_of_plain_pytorch(shape, width, depth):
    net, module, theta, x, y, rho = problem(shape, width, depth)
    assert type(net) is FastConvNet and net.fits(theta, x, CrossEntropy(y), rho)
    head = CrossEntropy(y, WEIGHT)
    assert_close(net.gradient(theta, x, head), plain.gradient(module, x, y, WEIGHT))
    assert_close(net.pull(theta, x, head, rho), plain.pull(module, x, y, rho, WEIGHT))
    for reading in ("per_sample", "per_pixel"):
        assert_close(net.penalty(theta, x, cost(reading)), plain.penalty(module, x, cost(reading)))
    leaf = x.clone().requires_grad_()
    assert_close([net.logits(theta, x)], [module(x).detach()])
    assert_close([net.embedding(theta, x)], [nn.Sequential(*list(module)[:-1])(x).detach()])
    assert_close([net.input_gradient(theta, x)], torch.autograd.grad(module(leaf).sum(), leaf))


@pytest.mark.parametrize("shape, width, depth", SHAPES[:3])
def test_the_plain_twins_agree_too(shape, width, depth):
    """`FunctionalNetwork`, which fused networks fall back on, against torch.nn: same names, same
    values."""
    net, module, theta, x, y, rho = problem(shape, width, depth)
    twin, head = FunctionalNetwork(net.module), CrossEntropy(y, WEIGHT)
    assert_close(twin.gradient(theta, x, head), plain.gradient(module, x, y, WEIGHT))
    assert_close(twin.pull(theta, x, head, rho), plain.pull(module, x, y, rho, WEIGHT))
    assert_close(
        twin.penalty(theta, x, cost("per_sample")), plain.penalty(module, x, cost("per_sample"))
    )


def test_pull_is_what_central_differences_measure():
    net, _, theta, x, y, rho = problem(*SHAPES[2])
    head, h = CrossEntropy(y), 1e-5
    d_theta, d_x = net.pull(theta, x, head, rho)

    def along(theta, x):
        return net.gradient(theta, x, head)[1] @ rho

    for i in d_theta.abs().argsort(descending=True)[:6].tolist():
        bump = torch.zeros_like(theta)
        bump[i] = h
        assert float(along(theta + bump, x) - along(theta - bump, x)) / (2 * h) == pytest.approx(
            float(d_theta[i]), rel=1e-4
        )
    bump = torch.randn(x.shape, generator=generator("bump"), dtype=x.dtype)
    assert float(along(theta, x + h * bump) - along(theta, x - h * bump)) / (
        2 * h
    ) == pytest.approx(float((d_x * bump).sum()), rel=1e-5)


@pytest.mark.parametrize("shape, width, depth", [((3, 32, 32), 32, 3), ((1, 28, 28), 32, 3)])
def test_in_float32_they_are_off_as_rounding_is(shape, width, depth):
    """No farther from the float64 truth than plain PyTorch is on images moved by one rounding
    error."""
    net, module, theta, x, y, rho = problem(shape, width, depth, torch.float32, n=20)
    head = CrossEntropy(y)

    def plainly(x, rho):
        return {
            "gradient": plain.gradient(module, x, y),
            "pull": plain.pull(module, x, y, rho),
            "penalty": plain.penalty(module, x, cost("per_sample")),
        }

    fast = {
        "gradient": net.gradient(theta, x, head),
        "pull": net.pull(theta, x, head, rho),
        "penalty": net.penalty(theta, x, cost("per_sample")),
    }
    signs = [
        torch.randint(0, 2, x.shape, generator=generator("signs", i)) * 2 - 1 for i in range(4)
    ]
    slow = [plainly(x * (1 + sign * torch.finfo(x.dtype).eps), rho) for sign in signs]
    module.load(theta.double())
    truth = plainly(x.double(), rho.double())

    def off(found, name, i):
        return float((found[name][i].double() - truth[name][i]).norm())

    for name, parts in truth.items():
        for i in range(len(parts)):
            if parts[i].dim():
                assert off(fast, name, i) <= 1.2 * max(off(found, name, i) for found in slow), (
                    name,
                    i,
                )


@pytest.mark.parametrize("momentum, ipc, steps", [(0.0, 1, 5), (0.9, 2, 4)])
def test_a_fused_outer_gradient_is_the_full_unroll_of_plain_pytorch(momentum, ipc, steps):
    net, module, theta, _, _, rho = problem(*SHAPES[0])
    labels = torch.arange(K).repeat_interleave(ipc)
    images = torch.randn(
        len(labels), *SHAPES[0][0], generator=generator("images"), dtype=torch.float64
    )
    draws = augment.draws(
        [len(labels)] * steps, tuple(augment.STRATEGIES), generator("draws"), "cpu"
    )
    target, lr = theta + 0.1 * rho, torch.tensor(0.03, dtype=torch.float64)
    loss = student.InnerLoss(net, labels, [torch.arange(len(labels))] * steps, draws, 1.0)
    loop = student.InnerLoop(loss, theta, images, lr, steps, momentum)
    given = student.adjoint(loop, lambda path: (path[steps] - target).square().sum(), [steps])
    assert_close(
        (given.value, given.images, given.lr),
        plain.outer(module, theta, images, labels, lr, steps, momentum, draws, target),
    )


def test_training_is_that_of_plain_pytorch():
    """Three epochs of momentum SGD with DSA, weight decay and penalty, a batch an epoch: the same
    end."""
    net, module, theta, x, y, _ = problem(*SHAPES[0])
    given = {"weight_decay": 0.01, "strategies": tuple(augment.STRATEGIES)}
    recipe = Recipe(
        epochs=3,
        batch=N,
        lr=0.02,
        drop=1.0,
        **given,
        penalty="per_sample",
        penalty_weight=2.0,
        penalty_target=0.3,
    )
    end = list(train(net, Epoch.first(theta), x, y, recipe, ("seed",)))[-1].theta
    plainly, velocity = theta.clone(), torch.zeros_like(theta)
    for epoch in range(3):
        order = torch.randperm(N, generator=generator("seed", "order", epoch))
        module.load(plainly)
        seen = augment.apply(
            x[order], augment.draw(N, given["strategies"], generator("seed", "augment", epoch))
        )
        d_theta = (
            plain.gradient(module, seen, y[order])[1]
            + plain.penalty(module, x[order], cost("per_sample"))[1]
            + 0.01 * plainly
        )
        velocity = 0.9 * velocity + d_theta
        plainly = plainly - 0.02 * velocity
    assert_close([end], [plainly], 1e-9)
    assert (end - theta).norm() > 0.01 * theta.norm()


def test_same_input_same_bytes():
    net, _, theta, x, y, rho = problem((3, 32, 32), 32, 3, torch.float32, n=20)
    once, again = (net.pull(theta, x.clone(), CrossEntropy(y), rho) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["x", "theta", "rho"])
def test_numbers_that_are_not_finite_come_through_as_in_plain(where, bad):
    """A ReLU that hid them would let a diverged run go on."""
    net, _, theta, x, y, rho = problem(*SHAPES[0])
    twin, head = FunctionalNetwork(net.module), CrossEntropy(y)
    {"x": x.view(-1), "theta": theta, "rho": rho}[where][70] = bad
    bias = torch.cat(  # a bias has no gradient here, for the norm takes it out again
        [torch.full((p.numel(),), "features" in n and "bias" in n) for n, p in named(net)]
    )
    for a, b in (
        (net.logits(theta, x), twin.logits(theta, x)),
        *zip(net.gradient(theta, x, head), twin.gradient(theta, x, head), strict=True),
        *zip(net.pull(theta, x, head, rho), twin.pull(theta, x, head, rho), strict=True),
    ):
        skipped = bias if a.shape == bias.shape else torch.zeros(a.shape, dtype=torch.bool)
        assert torch.equal(a.isfinite() | skipped, b.isfinite() | skipped)
        assert where == "rho" or not a.isfinite().all()


def named(net):
    return net.module.named_parameters()


def test_arguments_stay_as_they_were():
    net, _, theta, x, y, rho = problem(*SHAPES[0])
    before = [t.clone() for t in (theta, x, rho)]
    (
        net.gradient(theta, x, CrossEntropy(y)),
        net.pull(theta, x, CrossEntropy(y), rho),
        net.penalty(theta, x, cost("per_pixel")),
    )
    assert all(torch.equal(a, b) for a, b in zip(before, (theta, x, rho), strict=True))


def test_what_does_not_fit_is_done_the_plain_way_and_said_once(caplog):
    fused.trusted.cache_clear()
    net, _, theta, x, y, rho = problem((3, 8, 8), 8, 2, torch.bfloat16)
    plainly = FunctionalNetwork(net.module)
    head = CrossEntropy(y)
    with caplog.at_level(logging.WARNING, "ddlib"):
        for _ in range(2):
            for a, b in zip(
                net.pull(theta, x, head, rho), plainly.pull(theta, x, head, rho), strict=True
            ):
                assert torch.equal(a, b)
            assert torch.equal(net.logits(theta, x), plainly.logits(theta, x))
    assert len(caplog.messages) == 1
    assert (
        "no fast kernels for numbers of type torch.bfloat16: plain PyTorch is used"
        in caplog.messages[0]
    )


@pytest.mark.parametrize("architecture", networks.NETWORKS)
def test_only_the_convnet_has_kernels(architecture):
    net = network(Network(architecture=architecture, width=4, depth=2), (3, 32, 32), K)
    assert (type(net) is FastConvNet) == (architecture == "convnet")
    mixed = Network(architecture=architecture, width=4, depth=2, precision="bfloat16")
    assert type(network(mixed, (3, 32, 32), K)) is FunctionalNetwork


# a layer, and what is put in its place: the same parameters, another function
CHANGED = {
    "gelu": (2, nn.GELU()),
    "stride": (4, nn.Conv2d(20, 20, 3, stride=2, padding=1)),
    "circular": (4, nn.Conv2d(20, 20, 3, padding=1, padding_mode="circular")),
    "layer norm": (1, nn.GroupNorm(1, 20)),
    "another eps": (5, nn.GroupNorm(20, 20, eps=1e-3)),
}


@pytest.mark.parametrize("change", CHANGED)
def test_a_convnet_that_is_changed_has_none(change, monkeypatch):
    """Whoever changes `networks.convnet` gets what he wrote, not what the kernels know."""
    build = networks.build

    def changed(*given):
        module = build(*given)
        at, layer = CHANGED[change]
        module.features[at] = layer.to("meta")
        return module

    monkeypatch.setattr(networks, "build", changed)
    fused.trusted.cache_clear()
    assert not fused.trusted(torch.float64)
    fused.trusted.cache_clear()


def test_what_does_not_go_together_is_an_error_not_a_number():
    net, _, theta, x, y, rho = problem(*SHAPES[2])
    head = CrossEntropy(y)
    with pytest.raises(RuntimeError):
        net.gradient(theta, x[:, :1], head)  # one channel where three were trained
    with pytest.raises(RuntimeError):
        net.gradient(theta.float(), x, head)
    with pytest.raises(RuntimeError):
        net.gradient(theta[:-1], x, head)
    with pytest.raises(RuntimeError):
        net.pull(theta, x[..., :4], head, rho)
    with pytest.raises(RuntimeError):
        net.pull(theta, x, head, rho[1:])
    with pytest.raises((RuntimeError, IndexError)):
        net.gradient(theta, x, CrossEntropy(y + K))  # no such class
    with pytest.raises((RuntimeError, ValueError)):
        net.gradient(theta, x, CrossEntropy(y[1:]))


ASK = """
import sys, torch
from ddlib.settings import Network, generator
from ddlib.method.functional import CrossEntropy, FunctionalNetwork, network
net = network(Network(width=8, depth=2), (3, 8, 8), 4)
theta, x = net.initial(generator("theta")), torch.randn(4, 3, 8, 8, generator=generator("x"))
for _ in range(2):
    found = net.gradient(theta, x, CrossEntropy(torch.arange(4)))[1]
print(net.fits(theta, x), torch.equal(found, FunctionalNetwork(net.module).gradient(theta, x,
CrossEntropy(torch.arange(4)))[1]))
"""


def ask(folder, **environment):
    """A fresh process with nothing compiled: whether it uses the kernels, whether it equals plain
    PyTorch exactly, and its log."""
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        env=os.environ | {"XDG_CACHE_HOME": str(folder)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split(), done.stderr.strip().splitlines()


def test_kernels_are_compiled_once_and_kept(tmp_path):
    assert ask(tmp_path) == (["True", "False"], [])  # fused: equal up to rounding, not to the byte
    made = sorted((tmp_path / "ddlib").iterdir())
    assert [m.suffix for m in made] == [".so"]
    before = made[0].stat().st_mtime_ns
    assert ask(tmp_path)[0] == ["True", "False"]
    assert sorted((tmp_path / "ddlib").iterdir()) == made and made[0].stat().st_mtime_ns == before


def fake(folder, text):
    compiler = folder / "cc"
    compiler.write_text(f"#!/bin/sh\n{text}\n")
    compiler.chmod(0o755)
    return str(compiler)


def test_without_a_compiler_all_is_plain(tmp_path):
    found, log = ask(tmp_path, PATH=str(tmp_path), CC="")
    assert found == ["False", "True"]
    assert (
        len(log) == 1
        and "no fast kernels: no C compiler found (set CC); plain PyTorch is used" in log[0]
    )


def test_a_compiler_that_fails_is_named(tmp_path):
    found, log = ask(
        tmp_path / "kept", CC=fake(tmp_path, "echo 'error: unknown target' >&2; exit 1")
    )
    assert found == ["False", "True"]
    assert (
        len(log) == 1 and "no fast kernels: error: unknown target; plain PyTorch is used" in log[0]
    )
    assert not list((tmp_path / "kept").glob("ddlib/*"))


def test_a_compiler_that_makes_wrong_code_is_caught(tmp_path):
    found, log = ask(
        tmp_path / "kept", CC=fake(tmp_path, 'PATH=/usr/bin:/bin exec gcc "$@" -UEPS -DEPS=0.5')
    )
    assert found == ["False", "True"]
    assert len(log) == 1 and "they are wrong by" in log[0]


def test_kernels_can_be_switched_off(tmp_path):
    assert ask(tmp_path, DDLIB_KERNELS="0") == (["False", "True"], [])
    assert not (tmp_path / "ddlib").exists()


def test_cross_entropy_of_classes_and_of_probabilities():
    logits = torch.randn(6, 4, generator=generator("logits"), dtype=torch.float64)
    y, soft = torch.tensor([0, 1, 2, 3, 0, 1]), logits.flip(0).softmax(1)
    hard, certain = CrossEntropy(y, WEIGHT), CrossEntropy(F.one_hot(y, 4).double(), WEIGHT)
    torch.testing.assert_close(hard.value(logits), WEIGHT * F.cross_entropy(logits, y))
    torch.testing.assert_close(certain.value(logits), hard.value(logits))
    expected = -WEIGHT * (soft * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(CrossEntropy(soft, WEIGHT).value(logits), expected)
    weight = torch.tensor(WEIGHT, dtype=torch.float64)
    assert torch.equal(CrossEntropy(y, weight).value(logits), hard.value(logits))


@pytest.mark.parametrize("shape, width, depth", SHAPES)
def test_soft_labels_are_pulled_as_automatic_differentiation_does(shape, width, depth):
    net, module, theta, x, _, rho = problem(shape, width, depth)
    soft = torch.randn(N, K, generator=generator("soft"), dtype=x.dtype).softmax(1).requires_grad_()
    head, leaf, parameters = (
        CrossEntropy(soft.detach(), WEIGHT),
        x.clone().requires_grad_(),
        list(module.parameters()),
    )
    first = plain.flat(
        torch.autograd.grad(
            WEIGHT * F.cross_entropy(module(leaf), soft), parameters, create_graph=True
        )
    )
    *d_theta, d_x, d_soft = torch.autograd.grad(first @ rho, [*parameters, leaf, soft])
    for one in (net, FunctionalNetwork(net.module)):
        assert_close(one.pull(theta, x, head, rho), (plain.flat(d_theta), d_x, d_soft))
        expected = WEIGHT * F.cross_entropy(module(x), soft.detach()).detach()
        assert_close(one.gradient(theta, x, head), (expected, first.detach()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape, width, depth", SHAPES)
def test_a_tape_changes_no_bit(shape, width, depth, dtype):
    net, _, theta, x, y, rho = problem(shape, width, depth, dtype)
    for head in (CrossEntropy(y, WEIGHT), CrossEntropy(torch.full((N, K), 1 / K, dtype=dtype))):
        tape = net.tape(x)
        pairs = zip(
            net.gradient(theta, x, head, tape=tape), net.gradient(theta, x, head), strict=True
        )
        assert all(torch.equal(a, b) for a, b in pairs)
        with_tape, without = net.pull(theta, x, head, rho, tape=tape), net.pull(theta, x, head, rho)
        assert all(torch.equal(a, b) for a, b in zip(with_tape, without, strict=True))


@pytest.mark.parametrize("soft", [False, True])
def test_an_outer_gradient_is_the_same_to_the_bit_at_any_memory(soft):
    net, _, theta, x, y, rho = problem((3, 32, 32), 16, 3, torch.float32)
    steps, labels = 6, torch.randn(N, K, generator=generator("soft")) if soft else y
    draws = augment.draws([N] * steps, tuple(augment.STRATEGIES), generator("draws"), "cpu")
    loss = student.InnerLoss(net, labels, [torch.arange(N)] * steps, draws, 1.0)
    size = net.tape(x).nbytes
    found = []
    for memory in (0, size - 1, size, 3 * size + 1, 100 * size):
        loop = student.InnerLoop(loss, theta, x, torch.tensor(0.02), steps, 0.9, memory)
        found.append(student.adjoint(loop, lambda p: (p[steps] - rho).square().sum(), [steps]))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert a is b is None or torch.equal(a, b)


def test_strided_arguments_are_read_as_they_are():
    net, _, theta, x, y, rho = problem((3, 8, 8), 8, 2)
    head = CrossEntropy(F.one_hot(y, K).double())
    expected = net.pull(theta, x, head, rho)
    strided = [torch.stack([t, t + 1], -1)[..., 0] for t in (theta, x, head.labels, rho)]
    last = x.contiguous(memory_format=torch.channels_last)
    for images in (strided[1], last):
        found = net.pull(strided[0], images, CrossEntropy(strided[2]), strided[3])
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


DRIVER = r"""
#include <stdio.h>
#include <stdlib.h>
#include "kernels.c"
static REAL *numbers(long n) { /* of its own, so that a step outside is seen */
    REAL *x = malloc((n ? n : 1) * sizeof(REAL));
    for (long i = 0; i < n; i++) x[i] = rand() / (REAL)RAND_MAX - (REAL)0.5;
    return x;
}
static void same(long n, const REAL *a, const REAL *b, const char *what) {
    if (memcmp(a, b, n * sizeof(REAL))) printf("%s differ\n", what), exit(1);
}
int main(void) {
    for (int trial = 0; trial < TRIALS; trial++) {
        const long depth = 1 + rand() % 3, side = 1 << depth, width = 1 + rand() % 130;
        const long s[7] = {rand() % 4, 1 + rand() % 9, side + rand() % 9, side + rand() % 20, width,
                           depth, 1 + rand() % 12};
        const long size = s[0] * s[1] * s[2] * s[3], out = s[0] * s[6];
        const long d = width * (s[2] >> depth) * (s[3] >> depth);
        const long kernels = 9 * width * (s[1] + (depth - 1) * width);
        const long P = kernels + 3 * depth * width + s[6] * (d + 1);
        REAL *x = numbers(size), *theta = numbers(P), *target = numbers(out), *v = numbers(P);
        REAL *logits = numbers(out), *features = numbers(s[0] * d);
        REAL *kept = numbers(tape_numbers(s));
        REAL *g[2], *xbar[2], *tbar[2], value[2], *room = numbers(room_numbers(s));
        ahead(s, room, x, theta, logits, features);
        for (int i = 0; i < 2; i++) {
            g[i] = numbers(P), xbar[i] = numbers(size), tbar[i] = numbers(out);
            REAL *tape = i && s[0] ? kept : 0;
            back(s, room, x, theta, target, 0.5, tape, value + i, g[i], 0);
            along(s, room, x, theta, target, 0.5, tape, v, 0, g[i], xbar[i], tbar[i]);
        }
        same(1, value, value + 1, "values"), same(P, g[0], g[1], "derivatives for theta");
        same(size, xbar[0], xbar[1], "those for x"), same(out, tbar[0], tbar[1], "for targets");
        back(s, room, x, theta, 0, 1, kept, 0, 0, xbar[0]);
        along(s, room, x, theta, 0, 1, kept, 0, xbar[1], g[0], 0, 0);
        for (long i = 0; i < P; i++) if (!isfinite(g[0][i])) puts("not finite"), exit(1);
        REAL *all[] = {x, theta, target, v, logits, features, kept, room, g[0], g[1], xbar[0],
                       xbar[1], tbar[0], tbar[1]};
        for (int i = 0; i < 14; i++) free(all[i]);
    }
    return 0;
}
"""


@pytest.mark.parametrize("real", ["float", "double"])
def test_the_kernels_stay_inside_what_they_are_given(real, tmp_path):
    """Address and undefined-behaviour sanitizers over random shapes: odd sides, no image and one,
    widths 1 to 130; and what a tape keeps is what is computed again."""
    source, program = tmp_path / "driver.c", tmp_path / "driver"
    source.write_text(DRIVER)
    flags = ["-O1", "-g", "-march=native", "-fsanitize=address,undefined", "-ffp-contract=fast"]
    flags += ["-fno-sanitize-recover=all", f"-DREAL={real}", "-DEPS=1e-5", "-DTRIALS=25"]
    command = [kernels.compiler(), *flags, f"-I{kernels.SOURCE.parent}", str(source)]
    command += ["-o", str(program), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "lasan" in done.stderr or "unrecognized" in done.stderr:
        pytest.skip("this compiler has no sanitizers")
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([program], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr[-3000:]


def test_no_images_and_one():
    net, module, theta, x, y, rho = problem((3, 8, 8), 8, 2)
    assert net.logits(theta, x[:0]).shape == (0, K)
    head = CrossEntropy(y[:1])
    assert_close(net.pull(theta, x[:1], head, rho), plain.pull(module, x[:1], y[:1], rho))


@pytest.fixture
def private(tmp_path, monkeypatch):
    """A cache of its own with a compiled library in it."""
    if kernels.compiler() is None:
        pytest.skip("no C compiler")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return kernels.build("float")


def test_the_cache_of_compiled_kernels_is_private_and_checked(private):
    good, folder = private.read_bytes(), private.parent
    assert folder.stat().st_mode & 0o777 == 0o700
    for content in (b"", good[: len(good) // 2], b"\0" * len(good)):
        private.write_bytes(content)
        assert kernels.build("float") == private and kernels.sound(private)
    for harm in (
        lambda: folder.chmod(0o777),  # anybody could have written into it
        lambda: (private.unlink(), private.symlink_to("/bin/true")),
    ):
        harm()
        before = time.time_ns()
        assert kernels.sound(kernels.build("float")) and not private.is_symlink()
        assert private.stat().st_mtime_ns > before - 10**9, "it was compiled again"
        assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_another_users_cache_is_not_used(private):
    os.chown(private, 1001, 1001)
    assert not kernels.sound(private)
    os.chown(private.parent, 1001, 1001)
    with pytest.raises(OSError, match="is not a folder of yours"):
        kernels.build("float")


def test_a_compiler_may_not_say_its_version(private, tmp_path, monkeypatch):
    silent = tmp_path / "silent-cc"
    silent.write_text(
        f'#!/bin/sh\n[ "$1" = --version ] && exit 1\nexec {kernels.compiler()} "$@"\n'
    )
    silent.chmod(0o755)
    monkeypatch.setenv("CC", str(silent))
    assert "does not say its version" in machine.compiler()
