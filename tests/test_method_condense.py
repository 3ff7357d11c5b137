"""DC, DSA and DM: gaps in closed form and by finite differences, fused as plain, an iteration as
plain PyTorch does it, and each through the pipeline to its rows."""

from dataclasses import replace
from functools import partial
from itertools import islice
from statistics import fmean

import pytest
import torch
from torch.nn import functional as F

import plain
from ddlib.data import datasets as data
from ddlib.method import augment, condense, functional
from ddlib.method.condense import (
    batches,
    distance,
    feature_gap,
    gradient_gap,
    matching,
    members,
    siamese,
)
from ddlib.method.distill import begin
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.train import Diverged
from ddlib.runs import run
from ddlib.runs.run import get
from ddlib.runs.store import Store
from ddlib.settings import (
    Condensation,
    Data,
    Evaluation,
    InputError,
    Network,
    Selection,
    generator,
    key,
    validated,
)

DATA, NET, METHODS = Data(name="digits"), Network(width=8, depth=2), ("dc", "dsa", "dm")
START = Selection(data=DATA, method="real", seed=1)
SHORT = {"network": NET, "iterations": 4, "checks": 2, "check_epochs": 3, "seed": 3}
SETS = {
    "dc": Condensation(start=START, method="dc", outer=2, inner=3, **SHORT),
    "dsa": Condensation(start=START, method="dsa", outer=2, inner=3, batch_real=16, **SHORT),
    "dm": Condensation(start=START, method="dm", lr_images=1.0, batch_real=16, **SHORT),
}
SHAPES = [((3, 16, 16), 8, 2), ((1, 9, 7), 8, 1)]  # images, width, depth
K = 3


def problem(shape=SHAPES[0][0], width=8, depth=2, device="cpu"):
    """The fused network, the plain one, theta, real images and synthetic ones, float64."""
    chance = generator("condense", *shape)
    net = functional.network(Network(width=width, depth=depth), shape, K)
    theta = net.initial(chance).double()
    theta += 0.1 * torch.randn(theta.shape, generator=chance, dtype=torch.float64)
    real, x = (torch.randn(n, *shape, generator=chance, dtype=torch.float64) for n in (11, 4))
    return (
        net,
        plain.ConvNet(shape, K, width, depth).load(theta),
        theta.to(device),
        real.to(device),
        x.to(device),
    )


def plain_distance(module, real, x, c):
    """D of the gradients, written as the paper has it: one output after the other, biases and norms
    left out."""
    loss = [F.cross_entropy(module(part), torch.full((len(part),), c)) for part in (real, x)]
    weights = [p for p in module.parameters() if p.dim() > 1]
    a, b = (
        torch.autograd.grad(loss[0], weights),
        torch.autograd.grad(loss[1], weights, create_graph=True),
    )
    return sum(
        1 - u.flatten() @ v.flatten() / (u.norm() * v.norm() + 1e-6)
        for p, q in zip(a, b, strict=True)
        for u, v in zip(p, q, strict=True)
    )


def fixed(n=7, dtype=torch.float64):
    """The digits, the first n training images of each class alone."""
    real = data.load(DATA)
    few = torch.cat([mine[:n] for mine in members(real.y_train, 10)])
    return replace(real, x_train=real.x_train[few].to(dtype), y_train=real.y_train[few])


def test_the_distance_of_known_gradients():
    net, *_ = problem()
    outputs = 8 + 8 + K
    chance = generator("distance")
    a, e = (
        torch.randn(net.parameters, generator=chance, dtype=torch.float64) * 10 for _ in range(2)
    )
    assert float(distance(net, a, a)) == pytest.approx(0, abs=1e-6)
    assert float(distance(net, 3 * a, 0.5 * a)) == pytest.approx(0, abs=1e-6)
    assert float(distance(net, a, -a)) == pytest.approx(2 * outputs, abs=1e-6)
    assert float(distance(net, a, torch.zeros_like(a))) == outputs
    flipped = {
        name: part * (-1) ** torch.arange(len(part)).view(-1, *[1] * (part.dim() - 1))
        for name, part in net.unpack(a).items()
    }
    assert float(distance(net, a, plain.flat(flipped.values()))) == pytest.approx(
        2 * (4 + 4 + 1), abs=1e-6
    )  # every second output
    others = {name: part if part.dim() > 1 else part + 1 for name, part in net.unpack(a).items()}
    assert float(distance(net, a, e)) == float(
        distance(net, plain.flat(others.values()), e)
    )  # biases and norms have no say


def test_a_layer_without_gradient_leaves_no_nan():
    net, *_ = problem()
    a = torch.zeros(net.parameters, dtype=torch.float64).requires_grad_()
    (rho,) = torch.autograd.grad(distance(net, a, torch.ones_like(a)), a)
    assert rho.isfinite().all()


@pytest.mark.parametrize("shape, width, depth", SHAPES)
def test_the_gap_of_gradients_is_that_of_double_back_propagation(shape, width, depth):
    net, module, theta, real, x = problem(shape, width, depth)
    assert type(net) is not FunctionalNetwork and net.fits(theta, x)
    leaf = x.clone().requires_grad_()
    value = plain_distance(module, real, leaf, 1)
    (d_x,) = torch.autograd.grad(value, leaf)
    for one in (net, FunctionalNetwork(net.module)):
        found, d_found = gradient_gap(one, theta, real, x, 1)
        assert float(found) == pytest.approx(value.item(), rel=1e-10)
        assert (d_found - d_x).norm() <= 1e-9 * d_x.norm() and d_x.norm() > 0


def some_batches(strategy, real):
    """A real batch and a Siamese draw a class."""
    drawn = [
        augment.draw(1, (strategy,) if strategy else (), generator("draw", c)) for c in range(2)
    ]
    return [(real[:5], drawn[0]), (real[5:], drawn[1])]


@pytest.mark.parametrize("gap", [gradient_gap, feature_gap])
@pytest.mark.parametrize("strategy", [None, "color", "crop", "cutout", "flip", "scale", "rotate"])
def test_gradients_for_the_images_are_what_central_differences_measure(gap, strategy):
    net, _, theta, real, x = problem()
    ours, given = [torch.tensor([0, 3]), torch.tensor([1])], some_batches(strategy, real)
    value, gradient = matching(partial(gap, net, theta), x, ours, given)
    bump, h = torch.randn(x.shape, generator=generator("bump"), dtype=x.dtype), 1e-6
    ahead, behind = (
        matching(partial(gap, net, theta), x + sign * h * bump, ours, given)[0] for sign in (1, -1)
    )
    assert float(ahead - behind) / (2 * h) == pytest.approx(
        float((gradient * bump).sum()), rel=1e-4
    )
    assert gradient[[0, 1, 3]].flatten(1).norm(dim=1).min() > 0
    assert not gradient[2].any()  # of neither class
    alone = [
        gap(net, theta, siamese(r, one), siamese(x[mine], one), c)[0]
        for c, (mine, (r, one)) in enumerate(zip(ours, given, strict=True))
    ]
    assert float(value) == pytest.approx(float(sum(alone)), rel=1e-12)


@pytest.mark.parametrize("strategy", augment.STRATEGIES)
def test_siamese_images_are_changed_alike(strategy):
    """An image comes out the same in whatever company, and not as it went in."""
    x = torch.randn(5, 3, 12, 12, generator=generator("siamese"), dtype=torch.float64)
    drawn = augment.draw(1, (strategy,), generator("siamese", 3))
    together, alone = siamese(x, drawn), augment.apply(x[2:3], drawn)
    torch.testing.assert_close(together[2:3], alone)
    torch.testing.assert_close(together.flip(0), siamese(x.flip(0), drawn))
    assert not torch.equal(together, x)


def test_mean_features_of_the_same_images_do_not_pull():
    net, _, theta, real, _ = problem()
    value, d_x = feature_gap(net, theta, real, real.flip(0), 0)
    assert float(value) < 1e-25 and d_x.abs().max() < 1e-12
    value, d_x = feature_gap(net, theta, real, real[:4], 0)
    assert float(value) == pytest.approx(
        float(
            (net.features(theta, real).mean(0) - net.features(theta, real[:4]).mean(0))
            .square()
            .sum()
        )
    )
    assert d_x.abs().max() > 1e-3


def test_images_that_are_the_real_ones_stay_where_they_are():
    """DM's own fixed point, with augmentation: the whole loop on a set that holds every real image.
    DM's own fixed point, with augmentation: the whole loop on a set that holds every real image."""
    real = fixed()
    settings = SETS["dm"]
    state = begin(settings, real.x_train)
    for step in islice(
        condense.condense(
            settings,
            FunctionalNetwork(functional.networks.build(NET, real.shape, 10)),
            real,
            real.y_train,
            state,
        ),
        3,
    ):
        assert step.loss < 1e-20
        torch.testing.assert_close(step.state.images, real.x_train, rtol=0, atol=1e-10)


def test_batches_are_of_their_class_and_replayed():
    real, settings = fixed(20), SETS["dsa"]
    theirs = members(real.y_train, 10)
    assert [len(mine) for mine in theirs] == [20] * 10 and all(
        (real.y_train[mine] == c).all() for c, mine in enumerate(theirs)
    )

    def drawn(t, k):
        return list(batches(settings, real, theirs, real.strategies, (t, k)))

    first, again, other, later = drawn(0, 0), drawn(0, 0), drawn(0, 1), drawn(1, 0)
    for c, (x, draws) in enumerate(first):
        assert len(x) == settings.batch_real and len(
            {image.numpy().tobytes() for image in x}
        ) == len(x)
        assert {image.numpy().tobytes() for image in x} <= {
            image.numpy().tobytes() for image in real.x_train[theirs[c]]
        }
        assert (
            torch.equal(x, again[c][0])
            and draws.strategy == again[c][1].strategy
            and torch.equal(draws.u, again[c][1].u)
        )
    for another in (other, later):
        assert all(
            not torch.equal(x, y) and not torch.equal(a.u, b.u)
            for (x, a), (y, b) in zip(first, another, strict=True)
        )
    assert len({draws.strategy for _, draws in first + other + later}) > 2
    greedy = settings.model_copy(update={"batch_real": 256})
    assert [len(x) for x, _ in batches(greedy, real, theirs, (), (0, 0))] == [
        20
    ] * 10  # all, where there are fewer


def test_an_iteration_of_dc_is_that_of_plain_pytorch():
    """Two networks of three steps each, trained for two epochs between them: torch.optim on images
    and parameters, double back-propagation."""
    real, settings = fixed(), SETS["dc"].model_copy(update={"outer": 3, "inner": 2, "lr_net": 0.3})
    net, labels = functional.network(NET, real.shape, 10), torch.arange(10)
    images = torch.randn(10, *real.shape, generator=generator("images"), dtype=torch.float64)
    found = list(islice(condense.condense(settings, net, real, labels, begin(settings, images)), 2))

    x = images.clone().requires_grad_()
    pixels = torch.optim.SGD([x], lr=settings.lr_images, momentum=0.5)
    for t in range(2):
        module, total = (
            plain.ConvNet(real.shape, 10, NET.width, NET.depth).load(
                net.initial(generator(settings.seed, "network", t)).double()
            ),
            0.0,
        )
        weights = torch.optim.SGD(module.parameters(), lr=0.3)
        for k in range(3):
            gap = sum(
                plain_distance(module, real.x_train[real.y_train == c], x[c : c + 1], c)
                for c in range(10)
            )
            (x.grad,) = torch.autograd.grad(gap, x)
            pixels.step()
            total += gap.item() / 30
            for _ in range(2 if k < 2 else 0):
                weights.zero_grad()
                F.cross_entropy(module(x.detach()), labels).backward()
                weights.step()
        step = found[t]
        assert step.loss == pytest.approx(total, rel=1e-8)
        assert (step.state.images - x.detach()).norm() <= 1e-8 * (x.detach() - images).norm()
    assert (
        step.state.iteration == 2
        and step.state.lr == pytest.approx(START.lr)
        and not step.state.v_lr.any()
    )


@pytest.mark.parametrize("method", METHODS)
def test_going_on_from_any_state_gives_the_same_bytes(method):
    real, settings = fixed(dtype=torch.float32), SETS[method]
    net, labels = functional.network(NET, real.shape, 10), torch.arange(10)
    run = partial(condense.condense, settings, net, real, labels)
    whole = list(islice(run(begin(settings, real.x_train[::7])), 4))
    assert [step.state.iteration for step in whole] == [1, 2, 3, 4]
    for i in (0, 2):
        for step, wanted in zip(run(whole[i].state), whole[i + 1 :], strict=False):
            assert step.loss == wanted.loss
            assert all(
                torch.equal(t, wanted.state.tensors()[name])
                for name, t in step.state.tensors().items()
            )
    other = next(
        condense.condense(
            settings.model_copy(update={"seed": 4}),
            net,
            real,
            labels,
            begin(settings, real.x_train[::7]),
        )
    )
    assert not torch.equal(other.state.images, whole[0].state.images)


@pytest.mark.parametrize("method", METHODS)
def test_each_lowers_its_own_gap(method):
    """On networks that it never saw, without augmentation, from noise."""
    real = data.load(DATA)
    settings = Condensation(start=START, method=method, lr_images=1.0, batch_real=32, network=NET)
    net, labels, theirs = (
        functional.network(NET, real.shape, 10),
        torch.arange(10),
        members(real.y_train, 10),
    )
    start = torch.randn(10, *real.shape, generator=generator("noise"))

    def gap(images):
        thetas = [net.initial(generator("unseen", i)) for i in range(3)]
        pairs = partial(batches, settings, real, theirs, ())
        return fmean(
            float(
                matching(
                    partial(condense.GAPS[method], net, t),
                    images,
                    members(labels, 10),
                    pairs((i, 0)),
                )[0]
            )
            for i, t in enumerate(thetas)
        )

    *_, last = islice(condense.condense(settings, net, real, labels, begin(settings, start)), 10)
    assert gap(last.state.images) < 0.6 * gap(start), (gap(start), gap(last.state.images))


def test_gaps_stay_on_their_device():
    """The meta device has no values: any look at them from the CPU is an error."""
    net, _, theta, real, x = problem(device="meta")
    for gap in (gradient_gap, feature_gap):
        for strategy in (None, *augment.STRATEGIES):
            given = [
                (
                    real,
                    augment.draws([1], (strategy,) if strategy else (), generator("meta"), "meta")[
                        0
                    ],
                )
            ]
            value, gradient = matching(
                partial(gap, net, theta), x, [torch.arange(4, device="meta")], given
            )
            assert value.device.type == gradient.device.type == "meta" and gradient.shape == x.shape


TEN, TWO = (Selection(data=DATA, method="real", ipc=ipc) for ipc in (10, 2))
FAULTS = [  # fields, what the message says
    (
        {"method": "dc", "start": TWO},
        ["no outer and inner are published for ipc = 2, only for 1, 10, 20, 30, 40, 50: give both"],
    ),
    ({"method": "dsa", "start": TWO, "outer": 3}, ["ipc = 2", "give both"]),
    (
        {"method": "dm", "start": TEN, "outer": 10, "inner": 50},
        [
            "outer = 10, inner = 50, but dm takes one step with each network and trains none: leave them out"  # noqa: E501
        ],
    ),
    ({"method": "dm", "start": TEN, "inner": 2}, ["outer = None, inner = 2", "leave them out"]),
    (
        {"method": "dc", "start": TEN, "iterations": 10, "checks": 11},
        ["checks = 11 is above iterations = 10: lower it"],
    ),
    ({"method": "mtt", "start": TEN}, ["method", "'dc', 'dsa' or 'dm'", "found 'mtt'"]),
    ({"method": "dc", "start": TEN, "lr_net": 0.0}, ["lr_net", "greater than 0"]),
    ({"method": "dc", "start": TEN, "n_experts": 2}, ["n_experts: unknown key", "batch_real"]),
    ({"method": "dc", "start": TEN, "batch": 2}, ["batch: unknown key"]),
]


@pytest.mark.parametrize("fields, parts", FAULTS)
def test_a_fault_is_refused(fields, parts):
    with pytest.raises(InputError) as caught:
        validated(Condensation, fields, "this here")
    for part in parts:
        assert part in str(caught.value), str(caught.value)


def test_what_is_left_out_is_as_published():
    for ipc, loops in ((1, (1, 1)), (10, (10, 50)), (50, (50, 10))):
        made = Condensation(start=Selection(data=DATA, method="real", ipc=ipc), method="dc")
        assert (made.outer, made.inner) == loops
        assert (
            key(made)
            == key(Condensation(start=made.start, method="dc", outer=loops[0], inner=loops[1]))
            == key(Condensation(**made.model_dump()))
        )
        dm = Condensation(start=made.start, method="dm")
        assert (dm.outer, dm.inner) == (1, 1) and Condensation(**dm.model_dump()) == dm
    half = Condensation(start=TEN, method="dsa", outer=3)
    assert (half.outer, half.inner) == (3, 50)
    read = Evaluation(**Evaluation(of=half, network=NET).model_dump()).of
    assert read == half and isinstance(read, Condensation)


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A store with the three sets; to be read only."""
    made = Store(tmp_path_factory.mktemp("condensed"))
    run.ensure(SETS.values(), made, workers=1)
    return made


@pytest.mark.parametrize("method", METHODS)
def test_a_set_is_made_checked_and_judged(method, done, tmp_path):
    settings = SETS[method]
    held, start = get(settings, done), get(START, done)
    assert set(run.missing([settings], Store(tmp_path))) == {settings, START}
    assert settings.title == f"condensing by {method}, ipc 1, seed 3, of digits"
    curve = held.record["curve"]
    looked = [row for row in curve if "validation_accuracy" in row]
    assert [row["iteration"] for row in curve] == [1, 2, 3, 4] and [
        row["iteration"] for row in looked
    ] == [2, 4]
    assert {row["lr"] for row in curve} == {held.record["lr"]} and held.record[
        "lr"
    ] == pytest.approx(START.lr)
    best = max(looked, key=lambda row: row["validation_accuracy"])
    history = held.tensors["history"]
    assert torch.equal(history[0], start.tensors["images"]) and torch.equal(
        held.tensors["images"], history[best["iteration"] // 2]
    )
    assert len({t.numpy().tobytes() for t in history}) == 3 and torch.equal(
        held.tensors["labels"], start.tensors["labels"]
    )
    rows = get(
        Evaluation(of=settings, network=NET, networks=2, epochs=3, lrs=(0.01,), looks=1), done
    ).record["rows"]
    assert [row["protocol"] for row in rows] == ["lr_chosen"] * 2, "it has learned no lr"
    assert all(0 <= row["accuracy"] <= 1 for row in rows)


def test_the_test_images_have_no_say(done, tmp_path, monkeypatch):
    real = run.images(DATA, done)
    monkeypatch.setattr(
        run,
        "images",
        lambda *_: replace(real, x_test=real.x_test.flip(0) + 1, y_test=real.y_test.flip(0)),
    )
    for settings in SETS.values():
        get(settings, blind := Store(tmp_path))
        assert blind.file(settings).read_bytes() == done.file(settings).read_bytes()


@pytest.mark.parametrize(
    "method, changes, said",
    [
        (
            "dc",
            {"lr_images": 1e30},
            r"^the .* stopped being finite at outer iteration \d \(lr_images 1e\+30\): lower lr_images; the last good state is kept",  # noqa: E501
        ),
        (
            "dm",
            {"lr_images": 1e30},
            r"^the .* stopped being finite at outer iteration \d \(lr_images 1e\+30\): lower lr_images; the last good state is kept",  # noqa: E501
        ),
        (
            "dc",
            {"lr_net": 1e30},
            r"^training on the images \(its lr is lr_net\) after step 1 of outer iteration 1: the .* stopped being finite .*lower lr",  # noqa: E501
        ),
    ],
)
def test_what_diverges_says_so_and_keeps_the_last_good_state(method, changes, said, tmp_path):
    settings, made = SETS[method].model_copy(update=changes), Store(tmp_path)
    with pytest.raises(Diverged, match=said):
        get(settings, made)
    held = made.resume(settings)
    assert not made.has(settings) and all(t.isfinite().all() for t in held.tensors.values())
